/* SPDX-License-Identifier: Apache-2.0 */
/* Power cuts: whatever of a journal's writes survives, recovery gives a state
 * that was.  See crash_journal.h.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.  Argument: first seed.
 */
#include "crash_journal.h"
#include "crash_tell.h"

static void
must_not_fail (struct lab *lab, struct rp_journal *journal, int status)
{
  (void) lab;
  (void) journal;
  fprintf (stderr, "the workload failed: %s\n", rp_status_text (status));
  CHECK (status == RP_OK);
}

static void
sweep (struct lab *lab, uint64_t seed)
{
  struct rp_sim_options options = {
    .budget = 4000, .seed = seed, .flags = RP_SIM_TEAR, .seen = lab->seen,
  };
  struct rp_sim_counts counts;
  struct rp_io *order;
  struct rp_fault fault;

  fprintf (stderr, "workload of seed %llu\n", (unsigned long long) seed);
  lab_start (lab, seed);
  lab->warm_steps = seed % 3 ? 0 : 30;   /* a third begins in a longer log */
  OK (rp_io_order_create (lab->simulate, &order, &fault));
  CHECK (run_workload (lab, order) == RP_OK);
  rp_io_destroy (order);
  OK (rp_sim_crash_states (lab->simulate, &options, check_state, lab, &counts,
                           NULL, &fault));
  rp_io_destroy (lab->simulate);
}

/* Commits alone, whose torn sectors hold garbage: checksums have to tell.  (A
 * disk that garbles a sector it was writing may also take the sparse header,
 * which nothing can help: so nothing else is written here.) */
static void
sweep_garbage (struct lab *lab, uint64_t seed)
{
  struct rp_sim_options options = {
    .flags = RP_SIM_TEAR | RP_SIM_GARBAGE, .seed = seed, .budget = 2000,
  };
  struct rp_sim_counts counts;
  struct rp_file *file;
  struct rp_journal *journal;
  struct rp_disk *disk;
  struct rp_fault fault;

  lab_start (lab, seed);
  file = open_log (lab->simulate, RP_OPEN_WRITE);
  journal = journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE);
  disk = rp_journal_disk (journal);
  CHECK (step_write (lab, disk, &seed) == RP_OK);
  OK (rp_journal_commit (journal, &fault));
  OK (rp_sim_settle (lab->simulate, &fault));
  for (int i = 0; i < 3; i++) {
    CHECK (step_burst (lab, disk, &seed) == RP_OK);
    CHECK (step_write (lab, disk, &seed) == RP_OK);
    CHECK (acknowledged (lab, rp_journal_commit (journal, &fault)) == RP_OK);
  }
  rp_journal_destroy (journal);
  rp_file_close (file);
  lab->depth = 1;                /* garbage over garbage is another matter */
  OK (rp_sim_crash_states (lab->simulate, &options, check_state, lab, &counts,
                           NULL, &fault));
  lab->depth = 0;
  rp_io_destroy (lab->simulate);
}

/* The file's size is lost and with it a last grain, of zeros.  Whatever the
 * next writer makes of that batch, the one after it makes the same. */
static void
test_short_file (struct lab *lab)
{
  uint8_t data[2 * GRAIN] = { 1 }, first[BYTES], second[BYTES];
  struct base base;
  struct rp_journal *journal;
  struct rp_file *file;
  struct rp_roll roll;
  struct rp_fault fault;

  lab_start (lab, 1);
  file = open_log (lab->simulate, RP_OPEN_WRITE);
  journal = journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE);
  OK (rp_disk_pwrite (rp_journal_disk (journal), data, GRAIN, 0, &fault));
  OK (rp_journal_commit (journal, &fault));
  OK (rp_disk_pwrite (rp_journal_disk (journal), data, sizeof data, 4 * GRAIN,
                      &fault));
  OK (rp_journal_commit (journal, &fault));
  rp_journal_destroy (journal);
  /* slot 0 has the root; then the segment's header, a batch of a header and a
     grain, and of the next one the header and a grain */
  OK (rp_file_truncate (file, 65536 + SEGMENT + 5 * GRAIN, &fault));
  journal = journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE);
  OK (rp_disk_pread (rp_journal_disk (journal), first, BYTES, 0, &fault));
  OK (rp_journal_roll (journal, RP_POINT_END, &roll, &fault));
  OK (rp_journal_close_clean (journal, &fault));
  rp_journal_destroy (journal);
  journal = journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE);
  OK (rp_disk_pread (rp_journal_disk (journal), second, BYTES, 0, &fault));
  CHECK (memcmp (first, second, BYTES) == 0);
  CHECK (try_open_base (lab->simulate, &base) == RP_OK);
  read_shown (file, &base, second);
  close_base (&base);
  CHECK (memcmp (first, second, BYTES) == 0);
  rp_journal_destroy (journal);
  rp_file_close (file);
  rp_io_destroy (lab->simulate);
}

int
main (int argc, char **argv)
{
  const uint64_t wanted = crash_budget (60000);
  uint64_t seed = argc > 1 ? strtoull (argv[1], NULL, 10) : 1;
  static struct lab lab = { .after_failure = must_not_fail };
  unsigned workloads = 0;

  lab_init (&lab);
  test_short_file (&lab);
  sweep_garbage (&lab, 1);
  sweep_garbage (&lab, 2);
  while (rp_sim_seen_count (lab.seen) < wanted) {
    sweep (&lab, seed++);
    workloads++;
  }
  crash_tell ("crash_journal_test", lab.seen, workloads, "");
  lab_end (&lab);
  return EXIT_SUCCESS;
}

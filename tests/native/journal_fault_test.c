/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that fail: each call of a workload once, one after the other.
 *
 * A failed write or sync is final for the journal: nothing is acknowledged
 * after it.  Opening it again, beside the page cache of the same kernel, gives
 * a state that was; whatever it lists then survives a power cut, also after
 * a sync that failed and dropped the data (as ext4 and xfs do).
 */
#include <errno.h>

#include "crash_reopen.h"

static unsigned checks;
static bool must_be_final;       /* the call that fails is a write or a sync */

/* What a failed sync does on ext4 and xfs: the data stays in the page cache
 * and will never be written; the next sync succeeds. */
static void
lose_data (struct lab *lab)
{
  struct rp_file *file = open_log (lab->simulate, RP_OPEN_WRITE);
  struct base base;
  struct rp_fault fault;

  OK (rp_sim_file_lose (file, false, &fault));
  rp_file_close (file);
  CHECK (try_open_base (lab->simulate, &base) == RP_OK);
  OK (rp_sim_file_lose (base.file, false, &fault));
  close_base (&base);
}

static void
check_failed (struct lab *lab, struct rp_journal *journal, int status)
{
  const struct rp_point point = make_point (POINTS + 5);
  struct rp_journal_info info;
  struct rp_disk *disk = rp_journal_disk (journal);
  uint8_t byte = 1;
  struct rp_roll roll;
  struct rp_fault fault;

  rp_journal_info (journal, &info);
  CHECK (info.failed || !must_be_final || lab->base_failed);
  CHECK (info.based_entry <= info.horizon_entry);
  if (!info.failed)              /* nothing was lost: it may go on */
    return;
  CHECK (status == RP_IO || status == RP_FAILED);
  for (int i = 0; i < 2; i++) {
    CHECK (rp_disk_pwrite (disk, &byte, 1, 0, &fault) == RP_FAILED);
    CHECK (rp_disk_zero (disk, 512, 0, true, &fault) == RP_FAILED);
    CHECK (rp_disk_pread (disk, &byte, 1, 0, &fault) == RP_FAILED);
    CHECK (rp_journal_mark (journal, &point, &fault) == RP_FAILED);
    CHECK (rp_journal_commit (journal, &fault) == RP_FAILED);
    CHECK (rp_journal_roll (journal, RP_POINT_END, &roll, &fault)
           == RP_FAILED);
    CHECK (rp_journal_set_epoch (journal, 99, true, &fault) == RP_FAILED);
    CHECK (rp_journal_close_clean (journal, &fault) == RP_FAILED);
  }
  checks++;
}

/* Fail each call of these kinds in turn, until none is left. */
static void
fail_each (struct lab *lab, uint64_t seed, uint32_t kinds, uint32_t effect,
           bool sticky, uint64_t step)
{
  bool struck = true;

  must_be_final = (kinds & ~(uint32_t) (RP_FAULT_WRITE | RP_FAULT_SYNC)) == 0;

  for (uint64_t call = 1; struck; call += step) {
    const struct rp_fault_plan plan = {
      .call = call, .kinds = kinds, .effect = effect,
      .os_errno = call % 2 ? EIO : ENOSPC, .sticky = sticky,
    };
    struct rp_io *io;
    struct rp_fault fault;

    lab_start (lab, seed);
    OK (rp_io_fault_create (lab->simulate, &plan, &io, &fault));
    (void) run_workload (lab, io);
    struck = rp_io_fault_calls (io) >= call;
    rp_io_destroy (io);
    if (struck && kinds == RP_FAULT_SYNC && effect == RP_FAULT_PLAIN)
      lose_data (lab);
    checks += (unsigned) reopen_and_cut (lab);
    rp_io_destroy (lab->simulate);
  }
}

/* A full datastore: the write that needs a new segment fails, nothing that was
 * accepted is lost, and with room again the journal goes on. */
static void
test_full (struct lab *lab)
{
  struct rp_fault_plan plan = {
    .kinds = RP_FAULT_META, .os_errno = ENOSPC, .sticky = true,
  };
  struct rp_journal_info info;
  struct rp_journal *journal;
  struct rp_file *file;
  struct rp_io *io;
  struct rp_fault fault;
  uint8_t grain[GRAIN] = { 0 };
  int status = RP_OK;

  /* the calls that opening and the first segment need are let through */
  for (plan.call = 1; plan.call < 40; plan.call++) {
    uint8_t wanted = 0, got;

    lab_start (lab, 1);
    OK (rp_io_fault_create (lab->simulate, &plan, &io, &fault));
    journal = NULL;
    if (try_open_log (io, RP_OPEN_WRITE, &file) == RP_OK) {
      status = rp_journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE, 0,
                                &journal, &fault);
      for (uint8_t i = 1; status == RP_OK && i < 60; i++) {
        grain[0] = i;
        status = rp_disk_pwrite (rp_journal_disk (journal), grain, GRAIN, 0,
                                 &fault);
        if (status == RP_OK)
          wanted = i;
        if (status == RP_OK && i % 3 == 0)
          OK (rp_journal_commit (journal, &fault));
      }
      if (journal && wanted > 0 && status != RP_OK) {
        CHECK (status == RP_IO && fault.os_errno == ENOSPC);
        rp_journal_info (journal, &info);
        CHECK (!info.failed);
        OK (rp_journal_commit (journal, &fault));
        OK (rp_disk_pread (rp_journal_disk (journal), &got, 1, 0, &fault));
        CHECK (got == wanted);
        checks++;
      }
      rp_journal_destroy (journal);
      rp_file_close (file);
    }
    rp_io_destroy (io);
    rp_io_destroy (lab->simulate);
  }
}

/* Write, mark, roll to the point. */
static int
mark_and_roll (struct lab *lab, struct rp_io *io)
{
  const struct rp_point point = make_point (1);
  struct rp_journal *journal = NULL;
  struct rp_file *file;
  struct rp_roll roll;
  struct rp_fault fault;
  uint8_t sector[512];
  int status;

  CHECK (try_open_log (io, RP_OPEN_WRITE, &file) == RP_OK);
  status = rp_journal_open (file, &lab->base.disk, RP_JOURNAL_WRITE, 0,
                            &journal, &fault);
  CHECK (status == RP_OK);
  if (list_points (journal).stop == 0) {
    fill_sector (sector, 4711);
    status = rp_disk_pwrite (rp_journal_disk (journal), sector, 512, 0,
                             &fault);  /* the first one writes the superblock */
    if (status == RP_OK)
      OK (rp_journal_mark (journal, &point, &fault));
  }
  if (status == RP_OK)
    status = rp_journal_roll (journal, 1, &roll, &fault);
  rp_journal_destroy (journal);
  rp_file_close (file);
  return status;
}

static int
must_show_the_point (void *context, struct rp_io *io,
                     const struct rp_sim_state *state, struct rp_fault *fault)
{
  struct rp_file *file = open_log (io, RP_OPEN_READ);
  struct base base;
  uint8_t bytes[BYTES], sector[512];

  (void) context;
  (void) fault;
  CHECK (try_open_base (io, &base) == RP_OK);
  if (state->acknowledged > 0) {
    fill_sector (sector, 4711);
    read_shown (file, &base, bytes);
    CHECK (memcmp (bytes, sector, 512) == 0);
    checks++;
  }
  close_base (&base);
  rp_file_close (file);
  return RP_OK;
}

/* A roll back whose sync failed and lost the data, asked for again: done means
 * durable, though the page cache showed it already. */
static void
test_roll_again (struct lab *lab)
{
  struct rp_fault_plan plan = {
    .kinds = RP_FAULT_SYNC, .os_errno = EIO,
  };
  struct rp_sim_options options = { .flags = RP_SIM_TEAR };
  struct rp_sim_counts counts;
  struct rp_io *io;
  struct rp_fault fault;
  bool struck = true;

  for (plan.call = 1; struck; plan.call++) {
    lab_start (lab, 1);
    OK (rp_io_fault_create (lab->simulate, &plan, &io, &fault));
    (void) mark_and_roll (lab, io);
    struck = rp_io_fault_calls (io) >= plan.call;
    rp_io_destroy (io);
    if (struck)
      lose_data (lab);
    CHECK (mark_and_roll (lab, lab->simulate) == RP_OK);
    OK (rp_sim_acknowledge (lab->simulate, 1, &fault));
    OK (rp_sim_crash_states (lab->simulate, &options, must_show_the_point,
                             lab, &counts, NULL, &fault));
    rp_io_destroy (lab->simulate);
  }
}

int
main (void)
{
  static struct lab lab = { .after_failure = check_failed, .depth = 1 };

  lab_init (&lab);
  test_full (&lab);
  test_roll_again (&lab);
  CHECK (checks > 0);
  for (uint64_t seed = 1; seed <= 4; seed++) {
    fail_each (&lab, seed, RP_FAULT_SYNC, RP_FAULT_PLAIN, false, 1);
    fail_each (&lab, seed, RP_FAULT_SYNC, RP_FAULT_LOST, false, 1);
    fail_each (&lab, seed, RP_FAULT_WRITE, RP_FAULT_PLAIN, false, 1);
    fail_each (&lab, seed, RP_FAULT_WRITE, RP_FAULT_PARTIAL, false, 1);
    fail_each (&lab, seed, RP_FAULT_META, RP_FAULT_PLAIN, false, 1);
    fail_each (&lab, seed, RP_FAULT_ANY, RP_FAULT_PLAIN, true, 3);
    fail_each (&lab, seed, RP_FAULT_READ, RP_FAULT_PLAIN, false, 5);
  }
  printf ("journal_fault_test: %u checks\n", checks);
  lab_end (&lab);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Six ways in which a sync fails, at each sync of a journal's workload.
 *
 *   F1  it fails, the data is gone, and the next one succeeds: what ext4 and
 *       xfs do; the page cache shows the data until it is dropped, or does not
 *   F2  it fails, and every later one, too
 *   F3  another handle heard of the failure: a process was killed before it
 *       synced, and the one that comes after it finds the data in the page
 *       cache, opens the file anew, and its syncs succeed
 *   F4  it succeeds, the data is gone, and the next sync tells
 *   F5  it succeeds, and one sector was not written: a disk that lies
 *   F6  a write of several parts does the first, and fails
 *
 * Under F1, F2, F3 and F6 nothing that was acknowledged is lost, whatever a
 * power cut leaves once the journal was opened again.  Under F4 and F5 a sync
 * has lied, so what it acknowledged may be lost: the journal fails as soon as
 * it is told, and nothing is read wrongly without being told.  (What such a
 * sync leaves of a base only the digests of a scrub find.)
 *
 * Argument: seeds (default 2).
 */
#include <errno.h>

#include "crash_reopen.h"

static uint64_t runs[7], states[7], told[7];
static int lying;                /* the mode */

static void
check_failed (struct lab *lab, struct rp_journal *journal, int status)
{
  struct rp_journal_info info;
  struct rp_fault fault;

  CHECK (status == RP_IO || status == RP_FAILED);
  rp_journal_info (journal, &info);
  CHECK (info.failed || lab->base_failed);
  if (info.failed) {
    CHECK (rp_journal_commit (journal, &fault) == RP_FAILED);
    CHECK (rp_journal_close_clean (journal, &fault) == RP_FAILED);
  }
}

/* What was not durable never will be; the page cache has it, or not. */
static void
lose (struct lab *lab, const char *name, bool forget)
{
  struct rp_file *file;
  struct rp_fault fault;

  CHECK (try_open (lab->simulate, name, RP_OPEN_WRITE, &file) == RP_OK);
  OK (rp_sim_file_lose (file, forget, &fault));
  rp_file_close (file);
}

/* Whether there was such a call. */
static bool
run (struct lab *lab, int mode, uint64_t seed, const struct rp_fault_plan *plan,
     bool cached)
{
  struct rp_io *io;
  struct rp_fault fault;
  bool struck;

  lab_start (lab, seed);
  OK (rp_io_fault_create (lab->simulate, plan, &io, &fault));
  (void) run_workload (lab, io);
  struck = rp_io_fault_calls (io) >= plan->call;
  rp_io_destroy (io);
  if (struck && cached) {
    lose (lab, "log", false);
    lose (lab, "base", false);
  }
  states[mode] += reopen_and_cut (lab);
  rp_io_destroy (lab->simulate);
  runs[mode]++;
  return struck;
}

static void
fail_each_sync (struct lab *lab, uint64_t seed)
{
  struct rp_fault_plan plan = { .os_errno = EIO };

  for (plan.call = 1, plan.kinds = RP_FAULT_SYNC, plan.effect = RP_FAULT_LOST;
       run (lab, 1, seed, &plan, false); plan.call++)
    ;
  for (plan.call = 1, plan.effect = RP_FAULT_PLAIN;
       run (lab, 1, seed, &plan, true); plan.call++)
    ;
  plan.sticky = true;
  for (plan.call = 1, plan.effect = RP_FAULT_LOST;
       run (lab, 2, seed, &plan, false); plan.call++)
    ;
  plan.kinds = RP_FAULT_WRITE;
  plan.effect = RP_FAULT_PARTIAL;
  for (unsigned sticky = 0; sticky < 2; sticky++)
    for (plan.call = 1, plan.sticky = sticky; run (lab, 6, seed, &plan, false);
         plan.call++)
      ;
}

/* F3: killed after any number of steps, with what was not synced lost, though
 * everybody reads it. */
static void
kill_after_each_step (struct lab *lab, uint64_t seed)
{
  for (unsigned steps = 1; steps <= STEPS; steps++) {
    struct opened opened = { .file = NULL };
    uint64_t random = seed;

    lab_start (lab, seed);
    for (unsigned i = 0; i < steps; i++) {
      bool reopen;

      if (!opened.journal)
        open_all (lab->simulate, &opened);
      CHECK (one_step (lab, &opened, &random, &reopen) == RP_OK);
      if (reopen)
        close_all (&opened);
    }
    if (opened.journal)
      close_all (&opened);
    lose (lab, "log", false);
    states[3] += reopen_and_cut (lab);
    rp_io_destroy (lab->simulate);
    runs[3]++;
  }
}

static void
count_damage (void *context, const struct rp_journal_damage *damage)
{
  (void) damage;
  ++*(uint64_t *) context;
}

/* Either somebody says that it is damaged, or it is a state that was. */
static int
check_lie (void *context, struct rp_io *io, const struct rp_sim_state *state,
           struct rp_fault *fault_out)
{
  struct lab *lab = context;
  struct opened opened = { .file = NULL };
  struct rp_fault fault;
  uint8_t bytes[BYTES];
  uint64_t damage = 0;
  struct listed listed;
  const int status = try_open_all (io, &opened);

  (void) state;
  (void) fault_out;
  states[lying]++;
  if (status != RP_OK) {
    CHECK (status == RP_CORRUPT || status == RP_FORMAT);
    told[lying]++;
    return RP_OK;
  }
  OK (rp_journal_scrub (opened.journal, &(struct rp_scrub) {
                          .each = count_damage, .context = &damage,
                        }, &fault));
  if (damage > 0)
    told[lying]++;
  else {
    OK (rp_disk_pread (rp_journal_disk (opened.journal), bytes, BYTES, 0,
                       &fault));
    CHECK (find_version (&lab->history, bytes, 0) != UINT32_MAX);
    listed = list_points (opened.journal);
    for (uint32_t i = listed.first; i < listed.stop; i++)
      check_point (lab, &opened, i);
  }
  close_all (&opened);
  return RP_OK;
}

static void
lie_at_each_sync (struct lab *lab, int mode, uint64_t seed)
{
  const struct rp_sim_options options = { .budget = 6, .seed = seed };
  struct rp_fault_plan plan = {
    .call = 1, .kinds = RP_FAULT_SYNC, .os_errno = EIO,
    .effect = mode == 4 ? RP_FAULT_LATE : RP_FAULT_LIE,
  };
  struct rp_sim_counts counts;
  bool struck = true;

  lying = mode;
  lab->no_destage = true;        /* nothing tells whether a base is right */
  for (; struck; plan.call++) {
    struct rp_io *io;
    struct rp_fault fault;

    lab_start (lab, seed);
    OK (rp_io_fault_create (lab->simulate, &plan, &io, &fault));
    (void) run_workload (lab, io);
    struck = rp_io_fault_calls (io) >= plan.call;
    rp_io_destroy (io);
    lose (lab, "log", true);     /* the power goes: the cache, too */
    OK (rp_sim_crash_states (lab->simulate, &options, check_lie, lab, &counts,
                             NULL, &fault));
    rp_io_destroy (lab->simulate);
    runs[mode]++;
  }
  lab->no_destage = false;
}

int
main (int argc, char **argv)
{
  const uint64_t seeds = argc > 1 ? strtoull (argv[1], NULL, 10) : 2;
  static struct lab lab = { .after_failure = check_failed, .depth = 1 };

  lab_init (&lab);
  for (uint64_t seed = 1; seed <= seeds; seed++) {
    fail_each_sync (&lab, seed);
    kill_after_each_step (&lab, seed);
    lie_at_each_sync (&lab, 4, seed);
    lie_at_each_sync (&lab, 5, seed);
  }
  CHECK (told[5] > 0);
  for (int mode = 1; mode <= 6; mode++)
    printf ("F%d: %llu failures, %llu states: %s, %llu of them said to be "
            "damaged\n", mode, (unsigned long long) runs[mode],
            (unsigned long long) states[mode],
            mode == 4 || mode == 5 ? "none is read wrongly"
                                   : "nothing acknowledged was lost",
            (unsigned long long) told[mode]);
  printf ("sync_failures_test: six modes of failing syncs\n");
  lab_end (&lab);
  return EXIT_SUCCESS;
}

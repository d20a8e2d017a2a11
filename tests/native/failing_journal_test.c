/* SPDX-License-Identifier: Apache-2.0 */
/* A journal whose memory or storage fails: each allocation and each call of
 * the storage in turn, once and for ever.
 *
 * A call that fails says so with the right status; what was acknowledged
 * stays, a journal that has not turned FAILED goes on, no block of memory is
 * forgotten, and whatever a power cut leaves of it is a state that was.
 *
 * Argument: seeds (default 4).  The environment: see failing.h.
 */
#include "failing.h"

#include "crash_reopen.h"

#define STEP 7u

static uint64_t runs;

/* Memory or storage is there again: a journal that is not FAILED goes on from
 * a state that was, and keeps its promises. */
static void
go_on (struct lab *lab, struct rp_journal *journal, int status)
{
  struct history *history = &lab->history;
  struct rp_disk *disk = rp_journal_disk (journal);
  struct rp_journal_info info;
  struct rp_fault fault;
  uint8_t bytes[BYTES];
  uint32_t version;

  (void) failing_disarm ();
  CHECK (status == RP_NO_MEMORY || status == RP_IO || status == RP_FAILED);
  rp_journal_info (journal, &info);
  if (info.failed) {
    CHECK (rp_journal_commit (journal, &fault) == RP_FAILED);
    CHECK (rp_disk_pwrite (disk, "x", 1, 0, &fault) == RP_FAILED);
    return;
  }
  if (status != RP_NO_MEMORY)    /* the storage may still fail */
    return;
  OK (rp_disk_pread (disk, bytes, BYTES, 0, &fault));
  version = find_version (history, bytes, 0);
  CHECK (version != UINT32_MAX);
  CHECK (acknowledged (lab, rp_journal_commit (journal, &fault)) == RP_OK);
  history->acks[history->ack_count - 1].version = version;
  history->acks[history->ack_count - 1].horizons
    = history->ack_count > 1 ? history->acks[history->ack_count - 2].horizons
                             : 0;
  promise_listed (history, list_points (journal),
                  &history->acks[history->ack_count - 1]);
  history->acks[history->ack_count - 1].epoch
    = history->ack_count > 1 ? history->acks[history->ack_count - 2].epoch : 1;
}

/* Whether there was such an allocation. */
static bool
without_memory (struct lab *lab, uint64_t seed, uint64_t call, bool sticky)
{
  const int64_t blocks = failing_blocks;
  struct rp_io *order;
  struct rp_fault fault;
  uint64_t struck;
  int status;

  lab_start (lab, seed);
  OK (rp_io_order_create (lab->simulate, &order, &fault));
  failing_arm (call, sticky);
  status = run_workload (lab, order);
  struck = failing_disarm ();
  /* what was asked for in vain may be done without */
  CHECK (status == RP_OK || struck > 0);
  rp_io_destroy (order);
  (void) reopen_and_cut (lab);
  rp_io_destroy (lab->simulate);
  if (failing_blocks != blocks) {
    fprintf (stderr, "seed %" PRIu64 ": %" PRId64 " blocks are forgotten when "
             "allocation %" PRIu64 " fails%s\n", seed,
             failing_blocks - blocks, call, sticky ? " and all after it" : "");
    exit (EXIT_FAILURE);
  }
  runs++;
  return struck > 0;
}

/* Whether there was such a call. */
static bool
without_storage (struct lab *lab, uint64_t seed, uint64_t call, int os_errno,
                 bool sticky)
{
  const int64_t blocks = failing_blocks;
  const struct rp_fault_plan plan = {
    .call = call, .kinds = RP_FAULT_ANY, .os_errno = os_errno,
    .sticky = sticky,
  };
  struct rp_io *faulty;
  struct rp_fault fault;
  bool struck;

  lab_start (lab, seed);
  OK (rp_io_fault_create (lab->simulate, &plan, &faulty, &fault));
  failing_watch (faulty, &plan);
  (void) run_workload (lab, faulty);
  (void) failing_disarm ();
  struck = rp_io_fault_calls (faulty) >= call;
  rp_io_destroy (faulty);
  (void) reopen_and_cut (lab);
  rp_io_destroy (lab->simulate);
  if (failing_blocks != blocks) {
    fprintf (stderr, "seed %" PRIu64 ": %" PRId64 " blocks are forgotten when "
             "call %" PRIu64 " fails%s\n", seed, failing_blocks - blocks, call,
             sticky ? " and all after it" : "");
    exit (EXIT_FAILURE);
  }
  runs++;
  return struck;
}

int
main (int argc, char **argv)
{
  const uint64_t seeds = argc > 1 ? strtoull (argv[1], NULL, 10) : 4;
  const uint64_t step = failing_step (STEP);
  static struct lab lab = { .after_failure = go_on, .depth = 1 };

  lab_init (&lab);
  for (uint64_t seed = 1; seed <= seeds; seed++)
    for (unsigned way = 0; way < 2; way++) {
      const int os_errno = way ? EIO : ENOSPC;

      for (uint64_t call = 1 + way % step; without_memory (&lab, seed, call,
                                                           way);)
        call += step;
      for (uint64_t call = 1; without_storage (&lab, seed, call, os_errno,
                                               false);)
        call += step;
      for (uint64_t call = 1 + 1 % step; without_storage (&lab, seed, call,
                                                          os_errno, true);)
        call += step;
    }
  lab_end (&lab);
  failing_tell ();
  printf ("failing_journal_test: %" PRIu64 " runs, %" PRIu64 " sites of memory "
          "and %" PRIu64 " of storage failed\n", runs,
          failing_count (failing.memory), failing_count (failing.storage));
  return EXIT_SUCCESS;
}

/* crash_reopen.h - after a failure of a journal on simulated storage: opened
 * again by the same kernel, what it then says is a promise, and the power is
 * cut.
 */
#ifndef RP_TEST_CRASH_REOPEN_H
#define RP_TEST_CRASH_REOPEN_H

#include "crash_journal.h"

/* Nothing that was acknowledged is missing, nothing is there that was not
 * written, and whatever may be left of it is a state that was.  Returns how
 * many states were looked at. */
static uint64_t
reopen_and_cut (struct lab *lab)
{
  struct history *history = &lab->history;
  const struct ack last = history->ack_count
                          ? history->acks[history->ack_count - 1]
                          : (struct ack) { .epoch = 1 };
  struct ack *ack = &history->acks[history->ack_count];
  struct rp_sim_options options = {
    .budget = 12, .seed = lab->seed, .flags = RP_SIM_TEAR,
  };
  struct rp_sim_counts counts;
  struct opened opened;
  uint8_t bytes[BYTES];
  struct rp_fault fault;

  open_all (lab->simulate, &opened);
  OK (rp_disk_pread (rp_journal_disk (opened.journal), bytes, BYTES, 0,
                     &fault));
  *ack = last;
  ack->version = find_version (history, bytes, last.version);
  CHECK (ack->version != UINT32_MAX);
  check_listed (history, list_points (opened.journal), &last);
  promise_listed (history, list_points (opened.journal), ack);
  /* a horizon that only the page cache has may be lost again: its superblock
     is written anew before anything relies on it, and not before */
  ack->horizons = last.horizons;
  OK (rp_sim_acknowledge (lab->simulate, history->ack_count++, &fault));
  close_all (&opened);
  OK (rp_sim_crash_states (lab->simulate, &options, check_state, lab, &counts,
                           NULL, &fault));
  return counts.distinct;
}

#endif /* RP_TEST_CRASH_REOPEN_H */

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
  struct rp_file *file = open_log (lab->simulate, RP_OPEN_WRITE);
  struct rp_journal *journal = journal_open (file, &lab->base.disk,
                                             RP_JOURNAL_WRITE);
  uint8_t bytes[BYTES];
  struct rp_fault fault;

  OK (rp_disk_pread (rp_journal_disk (journal), bytes, BYTES, 0, &fault));
  *ack = last;
  ack->version = find_version (history, bytes, last.version);
  CHECK (ack->version != UINT32_MAX);
  ack->points = count_points (journal);
  CHECK (ack->points >= last.points);
  OK (rp_sim_acknowledge (lab->simulate, history->ack_count++, &fault));
  rp_journal_destroy (journal);
  rp_file_close (file);
  OK (rp_sim_crash_states (lab->simulate, &options, check_state, lab, &counts,
                           NULL, &fault));
  return counts.distinct;
}

#endif /* RP_TEST_CRASH_REOPEN_H */

/* gate.h - what writers pass through, and what a cut or a hold closes.
 *
 * All disks of a replica share one gate.  A writer is inside while its write
 * is applied, and inside while its acknowledgement is handed to the kernel:
 * in one passage where it can, in two where it has to wait in between (for a
 * sync, or for a client that does not read); refused in the second, it must
 * not acknowledge.  A cut waits until nobody is inside, keeps newcomers out
 * for as long as it takes to put a restore point into every journal, and opens
 * again: so all disks share one cut and write order across disks holds at it.
 * A hold closes and stays closed: newcomers get RP_HELD, so after a hold
 * returns no write is acknowledged or applied.
 *
 * A watched gate has an alarm, for a writer that was lost: it closes the gate
 * at once, without waiting for anybody, and keeps it closed until somebody
 * heeds it.  A point that is marked meanwhile has what was written before the
 * alarm, and nothing that came later.
 *
 * Threads: any.  A thread that is inside must not enter again or close.
 * Tests:   tests/native/gate_threads_test.c, tests/test_gate.py
 */
#ifndef RP_GATE_H
#define RP_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "journal.h"
#include "status.h"

struct rp_gate;

int  rp_gate_create (struct rp_gate **out, struct rp_fault *fault);
void rp_gate_destroy (struct rp_gate *gate);           /* NULL is allowed */

/* RP_OK: inside, leave it later.  RP_HELD: not inside. */
int  rp_gate_enter (struct rp_gate *gate, struct rp_fault *fault);
void rp_gate_leave (struct rp_gate *gate);

/* Close for good and wait until nobody is inside. */
void rp_gate_hold (struct rp_gate *gate);
void rp_gate_release (struct rp_gate *gate);
bool rp_gate_is_held (struct rp_gate *gate);

/* A restore point in all journals at one cut: close, mark each, open; then
 * commit each.  Works on a held gate too (it stays held).  barrier_ns_out: how
 * long writers were kept out.  When one mark or commit fails, the status of
 * the first is returned and the point does not count: a point is listed only
 * if every journal has it.
 */
int  rp_gate_cut (struct rp_gate *gate, struct rp_journal *const *journals,
                  uint32_t journal_count, const struct rp_point *point,
                  uint64_t *barrier_ns_out, struct rp_fault *fault);
/* The same at the time at which the gate had closed, or an alarm had closed it:
 * point->time_ns is the least that it may be, and becomes that time in whole
 * microseconds.  Commits nothing: the caller does.
 */
int  rp_gate_cut_now (struct rp_gate *gate, struct rp_journal *const *journals,
                      uint32_t journal_count, struct rp_point *point,
                      uint64_t *barrier_ns_out, struct rp_fault *fault);

/* The same cut in steps, so that several gates can share one: begin them all,
 * mark them all, end them all; then commit the journals.
 *   begin  closes; timeout_ms 0 waits for ever.  RP_STATE: a write or another
 *          cut was inside for longer, and the gate is as it was.
 *   mark   between begin and end (else RP_STATE); once for each begin.
 *   end    opens; returns how long writers were kept out, in nanoseconds, 0
 *          where nothing had begun.
 */
int rp_gate_begin (struct rp_gate *gate, uint32_t timeout_ms,
                   struct rp_fault *fault);
int rp_gate_mark (struct rp_gate *gate, struct rp_journal *const *journals,
                  uint32_t journal_count, const struct rp_point *point,
                  struct rp_fault *fault);
uint64_t rp_gate_end (struct rp_gate *gate);

/* Whether an alarm closes the gate; false ends one that is on. */
void rp_gate_watch (struct rp_gate *gate, bool on);
/* May be called by a thread that is inside.  Nothing while the gate is held. */
void rp_gate_alarm (struct rp_gate *gate);
bool rp_gate_is_alarmed (struct rp_gate *gate);
/* How many there were, watched or not; and when the one that is on, or was last
 * on, closed the gate, in nanoseconds since 1970: nothing was let in after.
 */
uint64_t rp_gate_alarms (struct rp_gate *gate);
int64_t rp_gate_alarm_time_ns (struct rp_gate *gate);
void rp_gate_heed (struct rp_gate *gate);

#endif /* RP_GATE_H */

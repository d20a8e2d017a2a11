/* swap.h - a disk that stands for another one, which can be exchanged.
 *
 * A journal reads through its base for as long as it is open.  When the chain
 * below a journal that is being written changes (a new delta disk on top, two
 * of them made one), this is what lets another chain take the place of the old
 * one between two requests:
 *
 *   journal -> swap -> chain
 *
 * Both must show the same bytes wherever they are read through it; whoever
 * exchanges them answers for that.
 *
 * A read-only disk may grow stale by what others do (rp_journal_view): then
 * who reads gets RP_STATE.  A patient swap waits then, and asks the disk that
 * is put in the place of the stale one.
 *
 * Threads: any call from any thread.  rp_swap_put waits until the calls in
 *          progress have left the old disk, and calls that come meanwhile wait
 *          for it (not for long, therefore: nothing is done under that lock).
 * Runs:    the file that a run names belongs to the disk that was there.
 * Tests:   tests/native/swap_threads_test.c
 */
#ifndef RP_SWAP_H
#define RP_SWAP_H

#include "disk.h"

/* A disk in front of first, which is borrowed; writable when first is. */
int rp_swap_create (struct rp_disk *first, struct rp_disk **out,
                    struct rp_fault *fault);
/* Put another disk, of the same size and as writable, behind it.  On return
 * nobody is in the old one.  Errors: RP_BAD_ARGUMENT, and nothing changed. */
int rp_swap_put (struct rp_disk *swap, struct rp_disk *next,
                 struct rp_fault *fault);

/* How long a read or run that gets RP_STATE waits for another disk, and then
 * asks that.  0, as in the beginning: not at all; ends all waiting, too. */
void rp_swap_be_patient (struct rp_disk *swap, unsigned timeout_ms);
/* Wait so long until somebody waits so; true: another disk is to be put.  False
 * at once where nobody is patient. */
bool rp_swap_await (struct rp_disk *swap, unsigned timeout_ms);

#endif /* RP_SWAP_H */

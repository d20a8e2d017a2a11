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

#endif /* RP_SWAP_H */

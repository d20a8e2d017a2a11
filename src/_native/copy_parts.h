/* copy_parts.h - what several of the copy rooms do with a disk; no state.
 */
#ifndef RP_COPY_PARTS_H
#define RP_COPY_PARTS_H

#include <stdatomic.h>

#include "disk.h"

/* What was written; either may be NULL. */
struct rp_copy_tally {
  _Atomic uint64_t *data_bytes;
  _Atomic uint64_t *zero_bytes;
};

/* Have *run hold the run that has byte `at`: the one that is there, or what
 * the disk says of [at, stop). */
int rp_copy_look (struct rp_disk *disk, uint64_t at, uint64_t stop,
                  struct rp_run *run, struct rp_fault *fault);

/* Write bytes [at, stop) of the disk; data NULL: zeros, which may give their
 * space back where it is 64 KiB or more. */
int rp_copy_put (struct rp_disk *target, const uint8_t *data, uint64_t at,
                 uint64_t stop, struct rp_copy_tally counts,
                 struct rp_fault *fault);

/* The same for data that was read: units of 64 KiB that are zeros become
 * zeros. */
int rp_copy_write (struct rp_disk *target, const uint8_t *data, uint64_t at,
                   uint64_t stop, struct rp_copy_tally counts,
                   struct rp_fault *fault);

#endif

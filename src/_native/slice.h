/* slice.h - stretches of disks, one after another, as a disk of their own.
 *
 * A partition is one stretch; a logical volume of LVM is some of them, on one
 * disk or on several:
 *
 *   slice      0 ........ 8 MiB ............. 24 MiB
 *              |-- b, 1 MiB --|-- a, 40 MiB ---|
 *
 * Stretches may lie anywhere in their disks, and in more than one slice: a
 * write is seen through all of them, and through the disk itself.
 *
 * Threads: as a disk; the slice itself never changes.
 * Flush:   flushes every disk that it touches, once.
 * Runs:    end where a stretch ends.
 * Tests:   tests/native/slice_test.c
 */
#ifndef RP_SLICE_H
#define RP_SLICE_H

#include "disk.h"

#define RP_SLICE_PIECES_MAX 65536

struct rp_slice_piece {
  struct rp_disk *disk;          /* borrowed */
  uint64_t        offset_bytes;  /* multiples of 512, inside the disk */
  uint64_t        length_bytes;  /* >= 512 */
};

/* A disk of count >= 1 pieces, in their order; read-only when one of their
 * disks is.  The pieces are copied, the disks borrowed.
 * Errors: RP_BAD_ARGUMENT, RP_OUT_OF_RANGE, RP_NO_MEMORY.
 */
int rp_slice_create (const struct rp_slice_piece *pieces, size_t count,
                     struct rp_disk **out, struct rp_fault *fault);

#endif /* RP_SLICE_H */

/* copy.h - from one disk to another, on all cores.
 *
 * Workers take chunks from a shared cursor, which walks the source's block map
 * (holes and zeros are never read), read them, find the units that hold only
 * zeros, and pass them through the sink's three steps.  Memory is bounded:
 * each worker has one chunk and the sink's scratch.
 *
 *   cursor -> read -> mark zeros -> prepare -> (in order) place -> write
 *
 * Threads: a call makes its workers and ends them.  progress is called by the
 *          calling thread only.  With one worker no thread is made, and the
 *          order of all operations is fixed (crash sweeps rely on it).
 */
#ifndef RP_COPY_H
#define RP_COPY_H

#include "disk.h"
#include "sink.h"
#include "spans.h"

struct rp_copy_options {
  uint32_t workers;              /* 0: as many as cores, and more where a sink
                                    makes them wait for one another */
  uint64_t memory_bytes;         /* most for chunks and scratch; 0: 64 MiB */
  /* bytes of the disk that are done, ascending, at least 10 times a second;
     false cancels with RP_CANCELLED; NULL is allowed */
  bool   (*progress) (void *context, uint64_t done_bytes);
  void    *context;
};

struct rp_copy_counts {
  uint64_t read_bytes, written_bytes;  /* of guest data */
};

/* Copy all of source into the sink, and finish it.  Sizes must be equal. */
int rp_copy (struct rp_disk *source, struct rp_sink *sink,
             const struct rp_copy_options *options,
             struct rp_copy_counts *counts, struct rp_fault *fault);

/* A sink that writes into a disk which reads as zeros so far; unit_bytes: what
 * is left out when it is zeros (its grain).  finish flushes it. */
int rp_disk_sink_create (struct rp_disk *target, uint32_t unit_bytes,
                         struct rp_sink **out, struct rp_fault *fault);
void rp_sink_destroy (struct rp_sink *sink);           /* NULL is allowed */

/* Find the first byte below length that differs: maps first, then data; what
 * lies at the same place of the same file is not read.  *offset_out is length
 * where there is none. */
int rp_compare (struct rp_disk *a, struct rp_disk *b, uint64_t length,
                const struct rp_copy_options *options, uint64_t *offset_out,
                struct rp_fault *fault);

/* Copy into target what the `links` topmost links of chain hold themselves
 * (data and zeros); target is a plain disk that holds the rest already: the
 * chain's base, opened apart for writing.  Asked twice it happens once.  Does
 * not flush target. */
int rp_merge (struct rp_disk *chain, uint32_t links, struct rp_disk *target,
              const struct rp_copy_options *options, struct rp_fault *fault);

struct rp_sent {
  uint64_t read_bytes;           /* data of the source */
  uint64_t sent_bytes, zeroed_bytes;     /* at the target */
};

/* Make the target hold what the source does in ranges (pairs in order, see
 * spans.h), and flush it.  Both are at least as large as the ranges want, and
 * may have different sizes.  Holes and zeros are not read; they, and 64 KiB of
 * zeros among data, become holes of the target where it can have them.
 * progress counts bytes of the ranges.  Asked twice it happens once.
 */
int rp_copy_spans (struct rp_disk *source, struct rp_disk *target,
                   const uint64_t *pairs, uint64_t count,
                   const struct rp_copy_options *options, struct rp_sent *out,
                   struct rp_fault *fault);

/* Where two disks differ inside of ranges, in units of 4 KiB (cut where a
 * range is), byte for byte: both are read, unless both know to be zeros.
 *   out   zeroed; in order on RP_OK; the caller frees out->pairs, whatever is
 *         returned
 */
int rp_differ (struct rp_disk *a, struct rp_disk *b, const uint64_t *pairs,
               uint64_t count, const struct rp_copy_options *options,
               struct rp_spans *out, struct rp_fault *fault);

/* What a region of a disk reads as. */
struct rp_region {
  int      status;               /* RP_OK, or why it cannot be read */
  uint64_t digest;               /* XXH3 (64 bits, seed 0) of its bytes */
  char     message[RP_FAULT_MESSAGE_BYTES];  /* of the fault */
};

/* Digest regions of region_bytes (the last one of a disk may be shorter),
 * numbers [first, first + count), on all cores.  Holes are not read.  One that
 * cannot be read has a status, and does not end the others.
 */
int rp_digest_regions (struct rp_disk *disk, uint64_t region_bytes,
                       uint64_t first, uint64_t count,
                       const struct rp_copy_options *options,
                       struct rp_region *out, struct rp_fault *fault);

#endif /* RP_COPY_H */

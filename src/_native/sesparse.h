/* sesparse.h - ESXi's space-efficient sparse extents, read, and exported.
 *
 *   const header | volatile header | journal | directory | tables | bitmap |
 *   backmap | grains                             (each on a MiB boundary)
 *
 * No public specification: what QEMU and others read, and one real extent
 * (docs/formats.md).  A file whose journal waits to be replayed is refused.
 * Writing makes a clean file in one go, in disk order, as a sink (sink.h);
 * that ESXi accepts it has not been proven.
 *
 * Memory: 4 bytes a table that the disk could have (16 MiB of it), and for one
 *         that was looked at and is not empty 8, and then 10 for each run of
 *         grains, or 8 for each grain where there are more than 512 runs.
 * Threads: an open extent may be read from any thread, without a lock.
 */
#ifndef RP_SESPARSE_H
#define RP_SESPARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "sink.h"
#include "sparse.h"

struct rp_sesparse;

int  rp_sesparse_read_header (struct rp_file *file, struct rp_sparse_info *out,
                              struct rp_fault *fault);
/* sectors: of guest data, at most the header's capacity. */
int  rp_sesparse_open (struct rp_file *file, uint64_t sectors,
                       struct rp_sesparse **out, struct rp_fault *fault);
void rp_sesparse_close (struct rp_sesparse *sesparse);   /* NULL is allowed */
/* As rp_sparse_map. */
int  rp_sesparse_map (struct rp_sesparse *sesparse, uint64_t offset,
                      uint64_t length, struct rp_segment *out,
                      struct rp_fault *fault);
/* Part of rp_image_check.  Kinds of findings: "table" (an entry of directory
 * or table that is no valid one), "outside", "overlap" (two entries for
 * one grain, or one table), "leak" (in use by the bitmap, or a table below
 * freeGTNumber, and nothing points to it), "bitmap" (a grain that is pointed
 * to is free in it), "backmap", "freetable" (freeGTNumber lies inside used
 * tables or behind all).  One finding for each row of leaks and of wrong bits
 * or backmap entries. */
int  rp_sesparse_check (struct rp_sesparse *sesparse, uint32_t extent,
                        uint64_t start_bytes,
                        void (*each) (void *context,
                                      const struct rp_finding *),
                        void *context, struct rp_fault *fault);

/* Into an empty file, borrowed until destroy. */
int rp_sesparse_sink_create (struct rp_file *file, uint64_t capacity_sectors,
                             struct rp_sink **out, struct rp_fault *fault);

#endif /* RP_SESPARSE_H */

/* stream.h - hosted sparse extents with compressed grains (streamOptimized).
 *
 *   header | descriptor | grains and tables, each on a sector | footer | end
 *
 * Reading finds a grain through the directory and its table, which may stand
 * in front or behind the data (a header that says "at the end" has a footer,
 * which is asked for the directory's place and for nothing else).  All
 * dialects of VMDK.md's kind are read: with and without markers, footer and
 * progress markers, tables in front, short last grains, grains that grew by
 * compression.  A grain's marker must name the grain.
 *
 * Inflated grains are kept for small reads; a read of whole grains inflates
 * straight into the caller's buffer.
 *
 * Writing is append only: a sink (sink.h) that compresses in any thread and
 * lays grains down in disk order, a table behind its grains, then directory,
 * footer and end of stream; the header says "at the end".
 *
 * Threads: an open stream may be read from any thread.
 * Source:  "VMware Virtual Disk Format 5.0", "Stream-Optimized Compressed
 *          Sparse Extents"; RFC 1950.
 */
#ifndef RP_STREAM_H
#define RP_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "sink.h"
#include "sparse.h"

struct rp_stream;

/* sectors: of guest data, at most the header's capacity (grain rounded).
 * Returns RP_OK, RP_FORMAT, RP_UNSUPPORTED, RP_CORRUPT (header and footer
 * disagree, the directory or a table lies outside the file, ...), RP_IO.
 */
int  rp_stream_open (struct rp_file *file, uint64_t sectors,
                     struct rp_stream **out, struct rp_fault *fault);
void rp_stream_close (struct rp_stream *stream);       /* NULL is allowed */
/* As rp_sparse_map; DATA is packed. */
int  rp_stream_map (struct rp_stream *stream, uint64_t offset, uint64_t length,
                    struct rp_segment *out, struct rp_fault *fault);
/* Read a range that rp_stream_map called DATA.  RP_CORRUPT where a marker or
 * the compressed data is wrong: position is the byte of the file. */
int  rp_stream_read (struct rp_stream *stream, void *buffer, size_t length,
                     uint64_t offset, struct rp_fault *fault);
/* Part of rp_image_check.  Kinds: "table" (one that cannot be read), "outside",
 * "overlap", "redundant", "unclean", and "grain": its marker and its entry
 * disagree or, with deep, it does not inflate to a grain. */
int  rp_stream_check (struct rp_stream *stream, uint32_t extent,
                      uint64_t start_bytes, bool deep,
                      rp_finding_each *each, void *context,
                      struct rp_fault *fault);
/* The header of a compressed extent with the footer's directory, validated. */
int  rp_stream_read_header (struct rp_file *file, struct rp_sparse_info *out,
                            struct rp_fault *fault);

struct rp_stream_create {
  uint64_t    capacity_sectors;
  uint64_t    grain_sectors;     /* power of two from 8 to 2048; 128 is usual */
  const void *descriptor;        /* embedded text */
  uint64_t    descriptor_bytes;
  uint64_t    descriptor_sectors;
  uint32_t    level;             /* 0 stored, 1 fastest .. 12 smallest */
};

/* Write header and descriptor into an empty file; the sink then takes the
 * grains, and its finish the rest.  file is borrowed until destroy.
 */
int rp_stream_sink_create (struct rp_file *file,
                           const struct rp_stream_create *how,
                           struct rp_sink **out, struct rp_fault *fault);

#endif /* RP_STREAM_H */

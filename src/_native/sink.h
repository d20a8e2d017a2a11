/* sink.h - what a copy writes to, chunk by chunk.
 *
 * A chunk is a stretch of the disk that was read into memory.  Three steps:
 *
 *   prepare   any thread, any order: transform (compress)
 *   place     one chunk at a time, in disk order: decide where it goes
 *   write     any thread, any order: put it there
 *
 * so a sink gives an ordered file without a thread that writes alone.  Zeros
 * never reach a sink: what is not in a chunk, or not marked there, reads as
 * zeros in the target already.
 */
#ifndef RP_SINK_H
#define RP_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

struct rp_chunk {
  uint64_t  offset_bytes;        /* on the disk; a multiple of chunk_bytes */
  uint64_t  length_bytes;        /* <= chunk_bytes; less at the disk's end */
  uint8_t  *data;                /* page aligned; zeros where not marked */
  uint8_t  *marked;              /* one byte for each unit: 1 where it has
                                    something else than zeros */
  void     *scratch;             /* for this chunk alone, made by the sink */
  uint64_t  place;               /* for the sink, from place to write */
};

struct rp_file;
struct rp_sink;

struct rp_sink_functions {
  const char *name;
  void (*destroy) (struct rp_sink *sink);
  /* memory for one chunk on its way; NULL functions where it needs none */
  int  (*scratch_create) (struct rp_sink *sink, void **out,
                          struct rp_fault *fault);
  void (*scratch_destroy) (struct rp_sink *sink, void *scratch);
  int  (*prepare) (struct rp_sink *sink, struct rp_chunk *chunk,
                   struct rp_fault *fault);            /* NULL: nothing to do */
  int  (*place) (struct rp_sink *sink, struct rp_chunk *chunk,
                 struct rp_fault *fault);              /* NULL: no order needed */
  int  (*write) (struct rp_sink *sink, struct rp_chunk *chunk,
                 struct rp_fault *fault);
  /* any thread: take a range of the disk as it lies in a file, instead of all
     of the above; RP_UNSUPPORTED where it cannot.  NULL: it never can */
  int  (*clone) (struct rp_sink *sink, uint64_t length, uint64_t offset,
                 struct rp_file *from, uint64_t from_offset,
                 struct rp_fault *fault);
  /* after the last chunk: all that stands behind the data; syncs */
  int  (*finish) (struct rp_sink *sink, struct rp_fault *fault);
};

struct rp_sink {
  const struct rp_sink_functions *functions;
  uint64_t size_bytes;           /* of the disk */
  uint32_t unit_bytes;           /* power of two >= 512: marked counts these */
  uint32_t chunk_bytes;          /* wanted; a multiple of unit_bytes; 0: any */
  uint64_t scratch_bytes;        /* about what scratch_create takes */
  bool     serial;               /* as in struct rp_disk */
};

#endif /* RP_SINK_H */

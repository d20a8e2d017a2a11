/* stream_inside.h - the insides of stream.h. */
#ifndef RP_STREAM_INSIDE_H
#define RP_STREAM_INSIDE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

#include <libdeflate.h>

#include "sparse.h"
#include "stream.h"

#define RP_STREAM_CACHE_GRAINS 32u
#define RP_STREAM_MARKER_BYTES 12u   /* in front of a grain's data */
#define RP_KDMV_REDUNDANT_OFFSET 48u /* of the header's field */
#define RP_STREAM_WINDOW_BYTES (UINT64_C (256) << 10)

/* What follows a marker whose size is 0. */
enum rp_stream_marker {
  RP_STREAM_END = 0, RP_STREAM_TABLE = 1, RP_STREAM_DIRECTORY = 2,
  RP_STREAM_FOOTER = 3, RP_STREAM_PROGRESS = 4,
};

/* What one reading call uses; kept for the next one.  window holds bytes
 * [window_start, window_start + window_bytes) of the file. */
struct rp_stream_worker {
  struct libdeflate_decompressor *inflater;
  uint8_t  *window;
  uint64_t  window_start;
  size_t    window_bytes;
  uint8_t  *grain;               /* for one that is inflated; NULL or whole */
  struct rp_stream_worker *next;
};

/* An inflated grain. */
struct rp_stream_cached {
  uint64_t  grain;
  uint64_t  used;                /* when last; 0: never */
  uint8_t  *bytes;               /* NULL: free */
};

/* A table that was read.  Only from its first to its last entry that is not 0
 * or, where that is less, those alone with their numbers, rising: a disk with
 * few grains has as many tables as a full one. */
struct rp_stream_table {
  uint16_t first;
  uint16_t count;                /* of entries */
  bool     listed;               /* count numbers, uint16_t, follow them */
  uint32_t entries[];
};

struct rp_stream {
  struct rp_file         *file;  /* borrowed */
  struct rp_sparse_layout layout;
  uint64_t                size_bytes;    /* of guest data that it shows */
  uint64_t                file_sectors;
  uint32_t                marker_bytes;  /* 12, or 4 without markers */
  uint64_t                record_bytes;  /* most of a grain with its marker */
  size_t                  window_room;   /* that, and one record */

  uint32_t               *directory;
  struct rp_stream_table *_Atomic *tables;   /* read when first needed */
  struct rp_stream_table *empty;         /* shared by all tables of zeros */

  pthread_mutex_t          pooling;
  struct rp_stream_worker *idle;
  pthread_mutex_t          caching;
  uint64_t                 clock;
  uint32_t                 cache_count;
  struct rp_stream_cached  cache[RP_STREAM_CACHE_GRAINS];
};

/* A grain as it lies in the file. */
struct rp_stream_record {
  uint64_t       position;       /* of its marker */
  uint32_t       size;           /* of the compressed data */
  const uint8_t *data;           /* in a worker's window */
};

/* stream_header.c */
int rp_stream_read_layout (struct rp_file *file, struct rp_sparse_layout *out,
                           struct rp_fault *fault);

/* stream.c */
/* The table at a sector, in the byte order of this machine. */
int rp_stream_read_table (struct rp_stream *stream, uint32_t sector,
                          uint32_t *out, struct rp_fault *fault);
/* The entry of a grain. */
int rp_stream_lookup (struct rp_stream *stream, uint64_t grain, uint32_t *out,
                      struct rp_fault *fault);
/* RP_CORRUPT where the entry points outside the file or into the head. */
int rp_stream_classify (struct rp_stream *stream, uint64_t grain,
                        uint32_t entry, enum rp_segment_kind *out,
                        struct rp_fault *fault);

/* stream_read.c */
int  rp_stream_take_worker (struct rp_stream *stream,
                            struct rp_stream_worker **out,
                            struct rp_fault *fault);
void rp_stream_give_worker (struct rp_stream *stream,
                            struct rp_stream_worker *worker);
void rp_stream_free_worker (struct rp_stream_worker *worker);
/* The grain behind an entry; those up to stop are read with it where they lie
 * close by.  Valid until the worker's next record. */
int  rp_stream_load_record (struct rp_stream *stream,
                            struct rp_stream_worker *worker, uint64_t grain,
                            uint64_t stop, uint32_t entry,
                            struct rp_stream_record *out,
                            struct rp_fault *fault);
/* Its marker alone: data is NULL. */
int  rp_stream_read_marker (struct rp_stream *stream, uint64_t grain,
                            uint32_t entry, struct rp_stream_record *out,
                            struct rp_fault *fault);
/* Into room for one grain. */
int  rp_stream_inflate (struct rp_stream *stream,
                        struct rp_stream_worker *worker, uint64_t grain,
                        const struct rp_stream_record *record, uint8_t *out,
                        struct rp_fault *fault);

/* stream_noise.c.  Bytes that deflate will not make smaller by a sector. */
bool rp_stream_is_noise (const uint8_t *bytes, size_t length);

static inline uint64_t
rp_stream_grain_bytes (const struct rp_stream *stream)
{
  return UINT64_C (1) << stream->layout.grain_shift;
}

#endif /* RP_STREAM_INSIDE_H */

/* chain.h - images laid over each other; the insides of image.h.
 *
 * An image is extents laid end to end; a chain is images, top first, with the
 * face of a disk.  Only the top is written:
 *
 *   an allocated grain      straight to its place in the file, no lock
 *   a new grain             under the lock of its region: reserve, copy up
 *                           what is not zero below, write, publish
 *   flush                   extent by extent, see sparse.h; callers that
 *                           arrive while one runs share the next
 */
#ifndef RP_CHAIN_H
#define RP_CHAIN_H

#include "sesparse.h"
#include "sparse.h"
#include "stream.h"

#define RP_CHAIN_LINKS_MAX 1024u

struct rp_extent {
  enum rp_extent_kind kind;
  uint64_t          start_bytes; /* on the disk */
  uint64_t          size_bytes;
  struct rp_file   *file;        /* NULL for ZERO */
  uint64_t          file_offset_bytes;   /* FLAT */
  struct rp_sparse *sparse;      /* SPARSE, COWD */
  struct rp_stream *stream;      /* STREAM */
  struct rp_sesparse *sesparse;  /* SESPARSE */
  _Atomic bool      data_dirty;  /* FLAT: since the last sync began */
  bool              stable;      /* FLAT: open for reading only */
  pthread_mutex_t   seeking;
  uint64_t          data_start, data_stop;   /* the last data found in the
                                                file; under seeking */
};

struct rp_image {
  uint64_t          size_bytes;
  bool              writable;
  uint32_t          extent_count;
  struct rp_extent  extents[];
};

struct rp_chain {
  struct rp_disk    disk;        /* first */
  uint32_t          link_count;
  bool              serial;      /* a backend checks us: see lock_writes */
  pthread_rwlock_t  order;       /* only used where serial */
  _Atomic bool      failed;      /* a flush failed: final */
  _Atomic uint64_t  tickets;     /* flushes asked for */
  uint64_t          flushed;     /* tickets served; under flushing */
  pthread_mutex_t   flushing;
  struct rp_image  *links[];     /* borrowed */
};

/* image.c */
struct rp_extent *rp_image_extent (struct rp_image *image, uint64_t offset);
/* As rp_sparse_map, for a range of an image, cut at the end of its extent.
 * FLAT is all data, ZERO is zero. */
int rp_image_map (struct rp_image *image, uint64_t offset, uint64_t length,
                  struct rp_segment *out, struct rp_fault *fault);
/* Read what a segment or run called packed; the range ends inside it. */
int rp_image_read_packed (struct rp_image *image, void *buffer, size_t length,
                          uint64_t offset, struct rp_fault *fault);

/* How much a look below a link wants to know of flat files. */
enum rp_chain_look {
  RP_LOOK_TABLES = 1,            /* no system call: flat is data */
  RP_LOOK_DATA   = 2,            /* holes are holes, data may contain some */
  RP_LOOK_HOLES  = 3,            /* both ends are exact */
};

/* chain.c */
/* The run at offset as seen from link `depth` downwards, but not below link
 * `stop`: absent in all of them is RP_RUN_HOLE with depth stop. */
int rp_chain_look (struct rp_chain *chain, uint32_t depth, uint32_t stop,
                   enum rp_chain_look how, uint64_t offset, uint64_t length,
                   struct rp_run *out, struct rp_fault *fault);
int rp_run_read (struct rp_chain *chain, const struct rp_run *run, void *buffer,
                 struct rp_fault *fault);
int rp_chain_read (struct rp_chain *chain, uint32_t depth, void *buffer,
                   size_t length, uint64_t offset, struct rp_fault *fault);

/* chain_write.c */
int rp_chain_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                     uint64_t offset, struct rp_fault *fault);
int rp_chain_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
                   bool may_trim, struct rp_fault *fault);
int rp_chain_clone (struct rp_disk *disk, uint64_t length, uint64_t offset,
                    struct rp_file *from, uint64_t from_offset,
                    struct rp_fault *fault);
int rp_chain_flush (struct rp_disk *disk, struct rp_fault *fault);

#endif /* RP_CHAIN_H */

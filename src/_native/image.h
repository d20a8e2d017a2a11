/* image.h - VMDK extents, images and chains: guest bytes to file bytes.
 *
 * A chain is links (base and children); a link is an image: extents laid end
 * to end.  Python reads descriptors, checks names and CIDs and opens files;
 * this room gets open files and plain numbers, and turns them into a struct
 * rp_disk (disk.h).
 *
 *   chain   top   [grain tables] -> data | zero | absent -+
 *           ...                                           v  ask the parent
 *           base  [flat, or grain tables] -> data | hole = zeros
 *
 * Writes go to the top link only.  A parent is opened read-only, always.
 *
 * Crash safety of sparse writes: a new grain's data (with what it copies up
 * from the parent) is written and synced before the table entry that points
 * to it is written: entries wait in memory until the next flush, which is
 * sync data, write redundant then primary entries, sync.  A crash in between
 * leaves the old view.  uncleanShutdown is set before the first write and
 * cleared last on close.
 *
 * A copy-up writes only what is not zero in the parent: a new grain lies
 * behind the old end of the file, which reads as zeros.
 *
 * Source: "VMware Virtual Disk Format 5.0" (hosted sparse extents; ESX Server
 *         sparse extents, "COWD").
 * Tests:  tests/native/image_test.c, tests/test_image.py
 */
#ifndef RP_IMAGE_H
#define RP_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "io.h"

enum rp_extent_kind {
  RP_EXTENT_FLAT   = 1,          /* FLAT, VMFS, raw: the file is the data */
  RP_EXTENT_ZERO   = 2,          /* no file; reads as zeros; writes fail */
  RP_EXTENT_SPARSE = 3,          /* hosted sparse, KDMV; version 3 is read only */
  RP_EXTENT_COWD   = 4,          /* ESX sparse, COWD version 1 */
  RP_EXTENT_STREAM = 5,          /* hosted sparse with compressed grains: what
                                    createType streamOptimized means; read only */
  RP_EXTENT_SESPARSE = 6,        /* ESXi space-efficient sparse; read only */
  RP_EXTENT_NOACCESS = 7,        /* no file; reading it is an error */
};

struct rp_extent_spec {
  enum rp_extent_kind kind;
  uint64_t        sectors;       /* of guest data; >= 1 */
  struct rp_file *file;          /* borrowed: outlives the image; NULL for
                                    ZERO and NOACCESS */
  uint64_t        offset_sectors;  /* into the file; FLAT only, else 0 */
};

struct rp_image;

/* Facts for `disk info` and for tests. */
struct rp_sparse_info {
  uint32_t version, flags;
  uint64_t capacity_sectors, grain_sectors;
  uint64_t descriptor_offset_sectors, descriptor_sectors;
  uint32_t entries_per_table;
  uint64_t redundant_directory_sector, directory_sector, overhead_sectors;
  bool     unclean_shutdown;
  uint16_t compress_algorithm;
  uint32_t free_sector;          /* COWD only */
};

/* Read and validate the header of a sparse extent against the size of
 * its file.  *kind_out says which kind it is.
 * Returns RP_OK, RP_FORMAT (no known magic), RP_UNSUPPORTED (a version,
 * unknown incompatible flags, a journal to replay, ...), RP_CORRUPT
 * (a table outside the file, sizes that do not fit), RP_IO.
 */
int rp_sparse_read_header (struct rp_file *file, enum rp_extent_kind *kind_out,
                           struct rp_sparse_info *out, struct rp_fault *fault);

struct rp_sparse_create {
  enum rp_extent_kind kind;      /* SPARSE or COWD */
  uint64_t capacity_sectors;     /* >= 1, any number */
  uint64_t grain_sectors;        /* power of two; SPARSE 1..2048, COWD 1..2048 */
  const void *descriptor;        /* embedded text; NULL for none; SPARSE only */
  uint64_t descriptor_bytes;
  uint64_t descriptor_sectors;   /* room for it (20 is usual); 0 for none */
  bool     redundant;            /* SPARSE: second directory and tables */
  bool     zero_grains;          /* SPARSE: version 2, flag bit 2: a table entry
                                    of 1 is a zero grain */
};

/* Write an empty extent into an empty file and sync it.  SPARSE: every grain
 * table is allocated, as holes that cost no space (QEMU writes at file offset
 * 0 where a directory entry is 0).  COWD: tables come on demand.
 * Returns RP_OK, RP_BAD_ARGUMENT, RP_FULL (tables past 2^32 sectors), RP_IO.
 */
int rp_sparse_create (struct rp_file *file, const struct rp_sparse_create *how,
                      struct rp_fault *fault);

/* Open one link.  Sparse metadata is validated; grain tables are read when
 * first needed.  extents are copied, files are borrowed.
 * writable: files were opened for writing and are locked by the caller.
 */
int rp_image_open (const struct rp_extent_spec *extents, uint32_t extent_count,
                   bool writable, struct rp_image **out, struct rp_fault *fault);
/* Does not flush: a writable image is flushed through its chain first. */
void rp_image_destroy (struct rp_image *image);        /* NULL is allowed */
uint64_t rp_image_size_bytes (const struct rp_image *image);

/* Make a disk of links, top first.  The chain borrows the images: they outlive
 * it.  All must have the same size.  The top must have been opened writable
 * for the disk to be.  Zeroing a grain of a link without zero_grains, or of
 * COWD, writes zeros (or leaves a hole where no parent shows through).
 * Destroying the disk does not flush.
 */
int rp_chain_create (struct rp_image *const *links, uint32_t link_count,
                     struct rp_disk **out, struct rp_fault *fault);
/* Flush, then clear uncleanShutdown and sync: the last act of a writer. */
int rp_chain_close_clean (struct rp_disk *chain, struct rp_fault *fault);

/* One finding of rp_image_check. */
struct rp_finding {
  const char *kind;              /* "leak", "overlap", "outside", "redundant",
                                    "unclean", "freesector", "table", "short",
                                    "header", ... : static; of seSparse see
                                    sesparse.h, too */
  uint32_t extent;               /* index */
  uint64_t position;             /* byte in the extent's file */
  uint64_t guest_offset_bytes;   /* UINT64_MAX where it does not apply */
  uint64_t length_bytes;         /* of the disk from guest_offset_bytes on; of
                                    the file where that does not apply; 0 where
                                    neither does */
  const char *detail;            /* NULL, or a sentence, for this call only */
};

typedef void rp_finding_each (void *context, const struct rp_finding *);

/* Check every extent: pointers outside the file or into the metadata, two
 * entries for one grain, redundant tables that differ, the unclean flag,
 * COWD's freeSector, space that nothing points to and that holds something or
 * makes the file longer (leaks), flat files that are too short.
 * each is called once per finding; neighbours of one kind are one finding.
 * Returns RP_OK when the check ran, whatever it found.
 */
int rp_image_check (struct rp_image *image,
                    rp_finding_each *each, void *context,
                    struct rp_fault *fault);

#endif /* RP_IMAGE_H */

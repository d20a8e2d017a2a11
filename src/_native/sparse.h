/* sparse.h - one sparse extent: a grain directory, grain tables, grains.
 *
 * Hosted sparse (KDMV) and COWD differ in their headers and in that COWD has
 * no redundant tables and none allocated ahead; all else is one code.
 *
 *   header | directory -> tables -> grains          (entries: file sectors)
 *
 * Reading takes no lock.  A table is read when it is first needed and
 * published with a compare-and-swap; entries are atomics.  A table of zeros
 * only is one shared table, which a writer replaces by one of its own.
 *
 * Writing a new grain:  reserve sectors (a counter) -> write data -> publish
 * the entry in memory.  The entry reaches the file with the next flush:
 *
 *   copy dirty table blocks | sync data | redundant, primary, directory | sync
 *
 * so whatever a crash leaves, an entry in the file points at whole data.
 * Sectors that were reserved and not pointed to are a leak, nothing worse.
 * A new table (COWD, or a directory entry of 0) and freeSector need no sync
 * of their own: a table lies behind the old end of the file, so it reads as
 * "absent" until its entries are there, and freeSector is written before
 * everything that it covers.
 *
 * An entry goes from absent or zero grain to data, or from absent to zero
 * grain, and never back: whoever saw a grain's place may use it without a lock.
 *
 * Memory: 12 bytes a table that the disk could have, and what was looked at of
 * those that are not empty, until the extent is closed.  Open for writing: 4
 * bytes a grain (64 MiB for a TiB of 64 KiB grains, 1 GiB of 4 KiB ones).  Open
 * for reading: about 50 bytes a table that has few grains or was filled in
 * order (10 bytes a run of grains, sparse_runs.h), and never more than for
 * writing: it goes with what is allocated, not with the size of the disk.
 *
 * Threads: everything but open and close from any thread; whoever makes a
 *          grain holds its region (rp_sparse_lock_region) from the look at the
 *          entry to the publishing.
 * Source:  "VMware Virtual Disk Format 5.0": hosted sparse extents, ESX Server
 *          sparse extents.
 */
#ifndef RP_SPARSE_H
#define RP_SPARSE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "sparse_runs.h"

#define RP_SPARSE_DIRECTORY_MAX (UINT32_C (32) << 20)  /* entries, as QEMU */
#define RP_SPARSE_GRAIN_MAX     2048u                  /* sectors: 1 MiB */
#define RP_SPARSE_BLOCK_ENTRIES 128u                   /* in one sector */
#define RP_SPARSE_SECTORS_MAX   ((uint64_t) UINT32_MAX)  /* of a file */
#define RP_SPARSE_REGIONS       64u
#define RP_SPARSE_STRETCH       4096u  /* tables: 32 KiB of pointers */

#define RP_COWD_TABLE_ENTRIES   4096u
#define RP_COWD_HEADER_SECTORS  4u

/* Header fields that are written in place. */
#define RP_KDMV_UNCLEAN_OFFSET  72u
#define RP_COWD_UNCLEAN_OFFSET  1648u
#define RP_COWD_FREE_OFFSET     28u

enum {
  RP_KDMV_NEWLINE_TEST = 1, RP_KDMV_REDUNDANT = 2, RP_KDMV_ZERO_GRAINS = 4,
  RP_KDMV_COMPRESSED = 1 << 16, RP_KDMV_MARKERS = 1 << 17,
};

#define RP_KDMV_MAGIC     0x564d444bu
#define RP_KDMV_AT_END    UINT64_MAX     /* directory: ask the footer */
#define RP_SESPARSE_MAGIC UINT64_C (0x00000000cafebabe)

/* What a pointer to a table has added when it is one to runs. */
#define RP_SPARSE_RUNS    ((uintptr_t) 1)

/* What the header says and what follows from it. */
struct rp_sparse_layout {
  enum rp_extent_kind   kind;
  struct rp_sparse_info info;
  uint32_t grain_shift;          /* log2 of the bytes of a grain */
  uint32_t table_shift;          /* log2 of the entries of a table */
  uint32_t table_sectors;
  uint32_t directory_count;
  uint64_t file_bytes;
  bool     zero_grains, redundant;
};

/* A loaded table in full.  dirty has one bit for each block of 128 entries. */
struct rp_sparse_table {
  uint64_t         dirty;        /* under publishing */
  _Atomic uint32_t entries[];
};

struct rp_sparse {
  struct rp_file         *file;  /* borrowed */
  struct rp_sparse_layout layout;
  uint64_t                size_bytes;   /* of guest data that the extent shows */
  bool                    writable;
  uint32_t                region_shift; /* log2 of the grains of a region */

  _Atomic uint32_t *directory;          /* file sectors; changed under
                                           publishing, where an entry was 0 */
  uint32_t *redundant;                  /* likewise; NULL where unused */
  struct rp_sparse_table *_Atomic *tables;    /* NULL: not loaded; or runs,
                                           where it is not writable */
  _Atomic uint8_t *touched;             /* a byte for each RP_SPARSE_STRETCH
                                           of tables: some were loaded */
  struct rp_sparse_table *empty;        /* shared by all tables of zeros */

  /* allocation */
  _Atomic uint64_t next_sector;
  _Atomic uint64_t file_bytes;          /* size of the file */
  uint64_t         step_bytes;          /* the file grows by so much */
  bool             placed;              /* next_sector is known; starting */
  pthread_mutex_t  growing;

  /* writing */
  _Atomic bool     started;             /* uncleanShutdown is set and durable */
  _Atomic bool     data_dirty;          /* since the last sync began */
  pthread_mutex_t  starting;
  pthread_mutex_t  publishing;
  uint32_t *dirty_tables;               /* with a dirty bit; under publishing */
  uint64_t  dirty_table_count, dirty_table_room;
  uint32_t *dirty_directory;            /* new entries of the directories */
  uint64_t  dirty_directory_count, dirty_directory_room;
  _Atomic uint64_t dirty_blocks;
  _Atomic uint64_t dirty_entries;
  pthread_mutex_t  regions[RP_SPARSE_REGIONS];
};

/* sparse_header.c */
int rp_sparse_read_layout (struct rp_file *file, struct rp_sparse_layout *out,
                           struct rp_fault *fault);
/* The fields of a KDMV header, as they are. */
void rp_kdmv_load (const uint8_t *header, struct rp_sparse_info *info);
/* RP_CORRUPT where a copy in text mode changed the header. */
int  rp_kdmv_check_newlines (struct rp_file *file, const uint8_t *header,
                             struct rp_fault *fault);
/* What follows from capacity, grain and table size, which are validated. */
int  rp_sparse_derive (struct rp_file *file, struct rp_sparse_layout *layout,
                       struct rp_fault *fault);
uint64_t
rp_sparse_directory_sectors (const struct rp_sparse_layout *layout);
/* Whether sectors from `sector` on lie over the header or the descriptor. */
bool rp_sparse_over_header (const struct rp_sparse_layout *layout,
                            uint64_t sector, uint64_t sectors);

/* sparse.c.  sectors: of guest data, at most the header's capacity. */
int  rp_sparse_open (struct rp_file *file, enum rp_extent_kind kind,
                     uint64_t sectors, bool writable, struct rp_sparse **out,
                     struct rp_fault *fault);
void rp_sparse_close (struct rp_sparse *sparse);       /* NULL is allowed */
/* Read the whole table at a sector into out, in the byte order of this
 * machine; sector 0 (no table) reads as zeros. */
int  rp_sparse_read_table (struct rp_sparse *sparse, uint32_t sector,
                           uint32_t *out, struct rp_fault *fault);

/* sparse_tables.c */
/* Load a table that is not loaded.  *out may be one of runs, but not where the
 * extent is writable. */
int  rp_sparse_load_table (struct rp_sparse *sparse, uint32_t index,
                           struct rp_sparse_table **out,
                           struct rp_fault *fault);
/* As rp_sparse_lookup, for tables not loaded and tables of runs. */
int  rp_sparse_lookup_slow (struct rp_sparse *sparse, uint64_t grain,
                            uint32_t *out, struct rp_fault *fault);
/* How many grains from `grain` on, whose entry is given, go on in its way: the
 * same entry, or data one after another in the file.  Stops at limit, after a
 * bounded time, at the first difference, or at an error, which the next look
 * reports.  >= 1. */
uint64_t rp_sparse_count_alike (struct rp_sparse *sparse, uint64_t grain,
                                uint64_t limit, uint32_t entry);

/* Bytes of an extent that share one answer. */
enum rp_segment_kind {
  RP_SEGMENT_ABSENT = 1, RP_SEGMENT_ZERO = 2, RP_SEGMENT_DATA = 3,
};
struct rp_segment {
  enum rp_segment_kind kind;
  uint64_t        length_bytes;  /* >= 1 */
  bool            packed;        /* DATA only: not in the file as it reads, so
                                    ask rp_image_read_packed; file is NULL */
  struct rp_file *file;          /* DATA only */
  uint64_t        file_offset_bytes;
};

/* For qsort, of uint32_t. */
int rp_sparse_compare32 (const void *a, const void *b);

/* The run that starts at offset, cut at offset + length; DATA is contiguous in
 * the file.  RP_CORRUPT where an entry points into the metadata. */
int rp_sparse_map (struct rp_sparse *sparse, uint64_t offset, uint64_t length,
                   struct rp_segment *out, struct rp_fault *fault);

/* sparse_write.c */
/* Before every write: the first one marks the file unclean, durably. */
int rp_sparse_start (struct rp_sparse *sparse, struct rp_fault *fault);
/* After every write to the file's data. */
void rp_sparse_wrote (struct rp_sparse *sparse);
/* RP_CORRUPT unless [offset, offset + length) lies inside the file: an
 * overwrite behind the end of a cut-off file would look like a repair. */
int rp_sparse_check_inside (struct rp_sparse *sparse, uint64_t offset,
                            uint64_t length, struct rp_fault *fault);
/* Space for count grains, one after another, which reads as zeros. */
int rp_sparse_reserve (struct rp_sparse *sparse, uint64_t count,
                       uint64_t *sector_out, struct rp_fault *fault);
/* Point count grains from first on at sector, sector + grain, ... or, where
 * sector is 1, make them zero grains. */
int rp_sparse_publish (struct rp_sparse *sparse, uint64_t first,
                       uint64_t count, uint32_t sector,
                       struct rp_fault *fault);
/* So many entries wait in memory that a flush is due. */
bool rp_sparse_wants_flush (struct rp_sparse *sparse);
/* Write the header's uncleanShutdown; no sync. */
int  rp_sparse_mark_unclean (struct rp_sparse *sparse, bool unclean,
                             struct rp_fault *fault);

/* sparse_flush.c */
/* One call at a time. */
int rp_sparse_flush (struct rp_sparse *sparse, struct rp_fault *fault);
/* After a flush: cut reserved space off, clear uncleanShutdown, sync. */
int rp_sparse_finish (struct rp_sparse *sparse, struct rp_fault *fault);

static inline pthread_mutex_t *
rp_sparse_region (struct rp_sparse *sparse, uint64_t grain)
{
  return &sparse->regions[(grain >> sparse->region_shift)
                          % RP_SPARSE_REGIONS];
}

static inline uint64_t
rp_sparse_grain_bytes (const struct rp_sparse *sparse)
{
  return UINT64_C (1) << sparse->layout.grain_shift;
}

/* The entry of a grain.  The hot path: two loads. */
static inline int
rp_sparse_lookup (struct rp_sparse *sparse, uint64_t grain, uint32_t *out,
                  struct rp_fault *fault)
{
  const uint32_t index = (uint32_t) (grain >> sparse->layout.table_shift);
  const uint64_t mask = (UINT64_C (1) << sparse->layout.table_shift) - 1;
  struct rp_sparse_table *table
    = atomic_load_explicit (&sparse->tables[index], memory_order_acquire);

  if (__builtin_expect (!table || ((uintptr_t) table & RP_SPARSE_RUNS), 0))
    return rp_sparse_lookup_slow (sparse, grain, out, fault);
  *out = atomic_load_explicit (&table->entries[grain & mask],
                               memory_order_acquire);
  return RP_OK;
}

#endif /* RP_SPARSE_H */

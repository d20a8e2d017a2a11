/* sesparse_inside.h - what reading, writing and checking seSparse share. */
#ifndef RP_SESPARSE_INSIDE_H
#define RP_SESPARSE_INSIDE_H

#include <stdatomic.h>

#include "sesparse.h"
#include "sparse_runs.h"

#define RP_SE_VERSION        UINT64_C (0x0000000200000001)
#define RP_SE_VOLATILE_MAGIC UINT64_C (0xcafecafe)
#define RP_SE_JOURNAL_MAGIC  UINT64_C (0xdeafc0de)

#define RP_SE_GRAIN_SECTORS  8u
#define RP_SE_GRAIN_BYTES    4096u
#define RP_SE_GRAIN_SHIFT    12u
#define RP_SE_TABLE_SECTORS  64u
#define RP_SE_TABLE_BYTES    32768u
#define RP_SE_TABLE_ENTRIES  4096u
#define RP_SE_TABLE_SHIFT    12u
#define RP_SE_SPAN_SECTORS   32768u      /* of guest data: 16 MiB a table */
#define RP_SE_CAPACITY_MAX   (UINT64_C (1) << 37)    /* sectors: 64 TiB */
#define RP_SE_MIB_SECTORS    2048u

/* Fields of the constant header: offset of sector and size of each region. */
#define RP_SE_REGIONS_OFFSET 80u
#define RP_SE_HEADER_USED    208u

struct rp_se_region {
  uint64_t sector, sectors;
};

/* In the order of the header, which is their order in the file. */
enum {
  RP_SE_VOLATILE, RP_SE_JOURNAL_HEADER, RP_SE_JOURNAL, RP_SE_DIRECTORY,
  RP_SE_TABLES, RP_SE_BITMAP, RP_SE_BACKMAP, RP_SE_GRAINS, RP_SE_REGIONS,
};

struct rp_se_layout {
  uint64_t capacity_sectors;
  struct rp_se_region regions[RP_SE_REGIONS];
  uint64_t free_table;           /* of the volatile header */
  uint32_t directory_count;      /* entries that the capacity needs */
  uint64_t file_bytes;
};

/* Values of the directory in memory: 0, or the table's index and 1, or: */
#define RP_SE_BAD_TABLE  UINT32_MAX

/* A table entry with its grain index put right: 0 absent, RP_SE_ZERO, at
 * RP_SE_DATA and above data at a grain index; all else is no valid entry. */
#define RP_SE_ZERO       (UINT64_C (2) << 60)
#define RP_SE_DATA       (UINT64_C (3) << 60)
#define RP_SE_INDEX_MASK ((UINT64_C (1) << 60) - 1)

struct rp_sesparse {
  struct rp_file     *file;      /* borrowed */
  struct rp_se_layout layout;
  uint64_t            size_bytes;        /* of guest data that it shows */
  uint32_t           *directory;
  /* 0: not loaded; 1: empty; runs with bit 0 set; or uint64_t[4096] */
  _Atomic uintptr_t  *tables;
};

/* sesparse.c */
int rp_se_read_layout (struct rp_file *file, struct rp_se_layout *out,
                       struct rp_fault *fault);
/* Directory entries [first, first + count) as RP_SE_BAD_TABLE says above. */
int rp_se_read_directory (struct rp_file *file,
                          const struct rp_se_layout *layout, uint32_t first,
                          uint32_t count, uint32_t *out,
                          struct rp_fault *fault);
/* Byte of table `index` of the tables' region, not of the directory. */
static inline uint64_t
rp_se_table_offset (const struct rp_se_layout *layout, uint64_t index)
{
  return (layout->regions[RP_SE_TABLES].sector
          + index * RP_SE_TABLE_SECTORS) * 512u;
}

/* The low 12 bits of an index stand above its other 48. */
static inline uint64_t
rp_se_rotate (uint64_t index)
{
  return (index & 0xfff) << 48 | index >> 12;
}

static inline uint64_t
rp_se_index (uint64_t entry)
{
  return (entry >> 48 & 0xfff) | (entry & UINT64_C (0xffffffffffff)) << 12;
}

static inline uint64_t
rp_se_decode (uint64_t entry)
{
  switch (entry >> 60) {
  case 1:                        /* unmapped; still names its old grain */
  case 2:
    return RP_SE_ZERO;
  case 3:
    return RP_SE_DATA | rp_se_index (entry);
  default:
    return entry;
  }
}

#endif /* RP_SESPARSE_INSIDE_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* Headers of sparse extents: read with distrust, and written. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sesparse.h"
#include "sparse.h"
#include "stream.h"

#define COWD_MAGIC          0x44574f43u
#define COWD_HEADER_BYTES   2048u
#define KDMV_TABLE_ENTRIES  512u
#define INCOMPATIBLE_FLAGS  0xffff0000u
#define CHUNK_BYTES         65536u
/* A guest byte position fits a signed 64-bit file offset. */
#define CAPACITY_MAX        ((uint64_t) INT64_MAX / RP_SECTOR_BYTES)

static const uint8_t newline_test[4] = { 0x0a, 0x20, 0x0d, 0x0a };

uint64_t
rp_sparse_directory_sectors (const struct rp_sparse_layout *layout)
{
  return rp_divide_up ((uint64_t) layout->directory_count * 4,
                       RP_SECTOR_BYTES);
}

bool
rp_sparse_over_header (const struct rp_sparse_layout *layout, uint64_t sector,
                       uint64_t sectors)
{
  const struct rp_sparse_info *info = &layout->info;

  return sector < (layout->kind == RP_EXTENT_COWD ? RP_COWD_HEADER_SECTORS : 1)
         || (info->descriptor_offset_sectors
             && rp_overlap (sector, sectors, info->descriptor_offset_sectors,
                            info->descriptor_sectors));
}

/* [sector, sector + sectors) lies behind the header, inside the file. */
static int
check_area (struct rp_file *file, const struct rp_sparse_layout *layout,
            const char *what, uint64_t sector, uint64_t sectors,
            struct rp_fault *fault)
{
  const uint64_t file_sectors = layout->file_bytes / RP_SECTOR_BYTES;

  if (sector > 0 && rp_inside (sector, sectors, file_sectors))
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, 0,
                  "%s: the header puts %s at sector %" PRIu64 " (%" PRIu64
                  " sectors), the file has %" PRIu64, file->name, what, sector,
                  sectors, file_sectors);
}

int
rp_sparse_derive (struct rp_file *file, struct rp_sparse_layout *layout,
                  struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &layout->info;
  uint64_t count;

  if (info->capacity_sectors == 0)
    return rp_fail (fault, RP_CORRUPT, 12,
                    "%s: the header gives a capacity of 0: the file has no "
                    "data, at most a descriptor", file->name);
  if (info->capacity_sectors > CAPACITY_MAX)
    return rp_fail (fault, RP_CORRUPT, 12,
                    "%s: the header gives a capacity of %" PRIu64 " sectors",
                    file->name, info->capacity_sectors);
  if (!rp_is_power_of_two (info->grain_sectors))
    return rp_fail (fault, RP_CORRUPT, 0,
                    "%s: the header gives a grain of %" PRIu64
                    " sectors, which is no power of two", file->name,
                    info->grain_sectors);
  if (info->grain_sectors > RP_SPARSE_GRAIN_MAX)
    return rp_fail (fault, RP_UNSUPPORTED, 0,
                    "%s: a grain of %" PRIu64 " sectors; at most %u",
                    file->name, info->grain_sectors, RP_SPARSE_GRAIN_MAX);
  if (!rp_is_power_of_two (info->entries_per_table)
      || info->entries_per_table < RP_SPARSE_BLOCK_ENTRIES
      || info->entries_per_table > RP_COWD_TABLE_ENTRIES)
    return rp_fail (fault, RP_UNSUPPORTED, 0,
                    "%s: grain tables of %" PRIu32 " entries", file->name,
                    info->entries_per_table);
  layout->grain_shift = 9 + (uint32_t) __builtin_ctzll (info->grain_sectors);
  layout->table_shift = (uint32_t) __builtin_ctz (info->entries_per_table);
  layout->table_sectors = info->entries_per_table * 4 / RP_SECTOR_BYTES;
  count = rp_divide_up (info->capacity_sectors,
                        info->grain_sectors << layout->table_shift);
  if (count > RP_SPARSE_DIRECTORY_MAX)
    return rp_fail (fault, RP_CORRUPT, 0,
                    "%s: a capacity of %" PRIu64 " sectors needs %" PRIu64
                    " grain tables; at most %u", file->name,
                    info->capacity_sectors, count, RP_SPARSE_DIRECTORY_MAX);
  layout->directory_count = (uint32_t) count;
  return RP_OK;
}

int
rp_kdmv_check_newlines (struct rp_file *file, const uint8_t *header,
                        struct rp_fault *fault)
{
  if (!(rp_load32 (header + 8) & RP_KDMV_NEWLINE_TEST)
      || memcmp (header + 73, newline_test, sizeof newline_test) == 0)
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, 73,
                  "%s: line ends in the header were changed, as by a copy "
                  "in text mode", file->name);
}

static int
check_kdmv_version (struct rp_file *file, const uint8_t *header,
                    const struct rp_sparse_info *info, struct rp_fault *fault)
{
  if (info->version < 1 || info->version > 3)
    return rp_fail (fault, RP_UNSUPPORTED, 4,
                    "%s: hosted sparse version %" PRIu32
                    "; 1 to 3 are known", file->name, info->version);
  if (info->flags & INCOMPATIBLE_FLAGS)
    return rp_fail (fault, RP_UNSUPPORTED, 8,
                    "%s: the header's flags 0x%" PRIx32 " have some that "
                    "change the format and are not known for an extent "
                    "without compression", file->name, info->flags);
  if (info->directory_sector == RP_KDMV_AT_END)
    return rp_fail (fault, RP_UNSUPPORTED, 56,
                    "%s: the grain directory is found through a footer",
                    file->name);
  return rp_kdmv_check_newlines (file, header, fault);
}

static int
check_kdmv_areas (struct rp_file *file, const struct rp_sparse_layout *layout,
                  struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &layout->info;
  const uint64_t directory_sectors = rp_sparse_directory_sectors (layout);
  int status;

  status = check_area (file, layout, "the grain directory",
                       info->directory_sector, directory_sectors, fault);
  if (status == RP_OK && layout->redundant)
    status = check_area (file, layout, "the redundant grain directory",
                         info->redundant_directory_sector, directory_sectors,
                         fault);
  if (status == RP_OK && info->descriptor_offset_sectors)
    status = check_area (file, layout, "the descriptor",
                         info->descriptor_offset_sectors,
                         info->descriptor_sectors, fault);
  if (status == RP_OK && info->overhead_sectors)
    status = check_area (file, layout, "the metadata", 1,
                         info->overhead_sectors - 1, fault);
  if (status == RP_OK && layout->redundant
      && info->redundant_directory_sector == info->directory_sector)
    return rp_fail (fault, RP_CORRUPT, 48,
                    "%s: the redundant grain directory is the primary one",
                    file->name);
  return status;
}

void
rp_kdmv_load (const uint8_t *header, struct rp_sparse_info *info)
{
  info->version = rp_load32 (header + 4);
  info->flags = rp_load32 (header + 8);
  info->capacity_sectors = rp_load64 (header + 12);
  info->grain_sectors = rp_load64 (header + 20);
  info->descriptor_offset_sectors = rp_load64 (header + 28);
  info->descriptor_sectors = rp_load64 (header + 36);
  info->entries_per_table = rp_load32 (header + 44);
  info->redundant_directory_sector = rp_load64 (header + 48);
  info->directory_sector = rp_load64 (header + 56);
  info->overhead_sectors = rp_load64 (header + 64);
  info->unclean_shutdown = header[RP_KDMV_UNCLEAN_OFFSET] != 0;
  info->compress_algorithm = rp_load16 (header + 77);
}

static int
read_kdmv (struct rp_file *file, const uint8_t *header,
           struct rp_sparse_layout *layout, struct rp_fault *fault)
{
  struct rp_sparse_info *info = &layout->info;
  int status;

  layout->kind = RP_EXTENT_SPARSE;
  rp_kdmv_load (header, info);
  layout->redundant = info->flags & RP_KDMV_REDUNDANT;
  layout->zero_grains = info->flags & RP_KDMV_ZERO_GRAINS;

  status = check_kdmv_version (file, header, info, fault);
  if (status == RP_OK)
    status = rp_sparse_derive (file, layout, fault);
  if (status == RP_OK)
    status = check_kdmv_areas (file, layout, fault);
  return status;
}

static int
read_cowd (struct rp_file *file, const uint8_t *header,
           struct rp_sparse_layout *layout, struct rp_fault *fault)
{
  struct rp_sparse_info *info = &layout->info;
  const uint32_t directory_count = rp_load32 (header + 24);
  int status;

  layout->kind = RP_EXTENT_COWD;
  info->version = rp_load32 (header + 4);
  info->flags = rp_load32 (header + 8);
  info->capacity_sectors = rp_load32 (header + 12);
  info->grain_sectors = rp_load32 (header + 16);
  info->directory_sector = rp_load32 (header + 20);
  info->free_sector = rp_load32 (header + RP_COWD_FREE_OFFSET);
  info->unclean_shutdown = rp_load32 (header + RP_COWD_UNCLEAN_OFFSET) != 0;
  info->entries_per_table = RP_COWD_TABLE_ENTRIES;

  if (info->version != 1)
    return rp_fail (fault, RP_UNSUPPORTED, 4,
                    "%s: COWD version %" PRIu32
                    " (1 is supported; 3 is a disk of Workstation 3)",
                    file->name, info->version);
  status = rp_sparse_derive (file, layout, fault);
  if (status != RP_OK)
    return status;
  if (directory_count < layout->directory_count)
    return rp_fail (fault, RP_CORRUPT, 24,
                    "%s: a grain directory of %" PRIu32 " entries, the "
                    "capacity needs %" PRIu32, file->name, directory_count,
                    layout->directory_count);
  if (info->directory_sector < RP_COWD_HEADER_SECTORS)
    return rp_fail (fault, RP_CORRUPT, 20,
                    "%s: the grain directory lies in the header", file->name);
  info->overhead_sectors = info->directory_sector
                           + rp_divide_up (directory_count, 128);
  return check_area (file, layout, "the grain directory",
                     info->directory_sector,
                     info->overhead_sectors - info->directory_sector, fault);
}

int
rp_sparse_read_layout (struct rp_file *file, struct rp_sparse_layout *out,
                       struct rp_fault *fault)
{
  uint8_t header[COWD_HEADER_BYTES] = { 0 };
  size_t done;
  int status;

  memset (out, 0, sizeof *out);
  status = rp_file_size (file, &out->file_bytes, fault);
  if (status == RP_OK)
    status = rp_file_pread (file, header, sizeof header, 0, &done, fault);
  if (status != RP_OK)
    return status;
  if (done >= RP_SECTOR_BYTES && rp_load32 (header) == RP_KDMV_MAGIC)
    return read_kdmv (file, header, out, fault);
  if (done >= sizeof header && rp_load32 (header) == COWD_MAGIC)
    return read_cowd (file, header, out, fault);
  return rp_fail (fault, RP_FORMAT, 0,
                  "%s is no sparse extent: it starts with neither KDMV nor "
                  "COWD", file->name);
}

int
rp_sparse_read_header (struct rp_file *file, enum rp_extent_kind *kind_out,
                       struct rp_sparse_info *out, struct rp_fault *fault)
{
  uint8_t head[12] = { 0 };
  struct rp_sparse_layout layout;
  size_t done;
  int status = rp_file_pread (file, head, sizeof head, 0, &done, fault);

  if (status != RP_OK)
    return status;
  if (rp_load32 (head) == RP_KDMV_MAGIC
      && (rp_load32 (head + 8) & RP_KDMV_COMPRESSED)) {
    *kind_out = RP_EXTENT_STREAM;
    return rp_stream_read_header (file, out, fault);
  }
  if (rp_load64 (head) == RP_SESPARSE_MAGIC) {
    *kind_out = RP_EXTENT_SESPARSE;
    return rp_sesparse_read_header (file, out, fault);
  }
  status = rp_sparse_read_layout (file, &layout, fault);
  if (status == RP_OK) {
    *kind_out = layout.kind;
    *out = layout.info;
  }
  return status;
}

/* ---- making one ---- */

/* Where everything of a new extent lies, in sectors. */
struct plan {
  struct rp_sparse_layout layout;
  uint64_t redundant_directory, redundant_tables;
  uint64_t directory, tables;    /* tables: 0 for COWD */
  uint64_t overhead;             /* = the size of the file */
};

static int
check_create (struct rp_file *file, const struct rp_sparse_create *how,
              struct rp_fault *fault)
{
  const bool sparse = how->kind == RP_EXTENT_SPARSE;

  if (!sparse && how->kind != RP_EXTENT_COWD)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: extent kind %d",
                    file->name, (int) how->kind);
  if (how->capacity_sectors == 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: an empty extent",
                    file->name);
  if (!rp_is_power_of_two (how->grain_sectors)
      || how->grain_sectors > RP_SPARSE_GRAIN_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: a grain of %" PRIu64 " sectors; it is a power of two "
                    "from 1 to %u", file->name, how->grain_sectors,
                    RP_SPARSE_GRAIN_MAX);
  if (!sparse && (how->descriptor_sectors || how->redundant
                  || how->zero_grains))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: COWD has no embedded descriptor, redundant tables or "
                    "zero grains", file->name);
  if (how->descriptor_sectors > UINT32_MAX
      || how->descriptor_bytes > how->descriptor_sectors * RP_SECTOR_BYTES)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: a descriptor of %" PRIu64 " bytes in %" PRIu64
                    " sectors", file->name, how->descriptor_bytes,
                    how->descriptor_sectors);
  return RP_OK;
}

static int
make_plan (struct rp_file *file, const struct rp_sparse_create *how,
           struct plan *plan, struct rp_fault *fault)
{
  const bool cowd = how->kind == RP_EXTENT_COWD;
  const uint64_t grain = how->grain_sectors;
  struct rp_sparse_layout *layout = &plan->layout;
  uint64_t at = cowd ? RP_COWD_HEADER_SECTORS : 1 + how->descriptor_sectors;
  uint64_t directory_sectors, tables_sectors = 0;

  memset (plan, 0, sizeof *plan);
  layout->info.capacity_sectors = how->capacity_sectors;
  layout->info.grain_sectors = grain;
  layout->info.entries_per_table = cowd ? RP_COWD_TABLE_ENTRIES
                                        : KDMV_TABLE_ENTRIES;
  if (rp_sparse_derive (file, layout, fault) != RP_OK
      || (cowd && how->capacity_sectors > UINT32_MAX))
    return rp_fail (fault, RP_FULL, 0,
                    "%s: %" PRIu64 " sectors in grains of %" PRIu64
                    " are more than the format can hold", file->name,
                    how->capacity_sectors, grain);
  directory_sectors = rp_sparse_directory_sectors (layout);
  if (!cowd)
    tables_sectors = (uint64_t) layout->directory_count
                     * layout->table_sectors;
  if (how->redundant) {
    plan->redundant_directory = at;
    plan->redundant_tables = at + directory_sectors;
    at = plan->redundant_tables + tables_sectors;
  }
  plan->directory = at;
  plan->tables = cowd ? 0 : at + directory_sectors;
  at += directory_sectors + tables_sectors;
  plan->overhead = cowd ? at : rp_divide_up (at, grain) * grain;
  if (plan->overhead + grain > RP_SPARSE_SECTORS_MAX)
    return rp_fail (fault, RP_FULL, 0,
                    "%s: the tables of %" PRIu64 " sectors in grains of %"
                    PRIu64 " end past the reach of 32-bit sectors",
                    file->name, how->capacity_sectors, grain);
  return RP_OK;
}

/* A directory whose tables lie one after another from sector tables on. */
static int
write_directory (struct rp_file *file, const struct rp_sparse_layout *layout,
                 uint64_t directory, uint64_t tables, struct rp_fault *fault)
{
  uint8_t *chunk = malloc (CHUNK_BYTES);
  const uint32_t room = CHUNK_BYTES / 4;
  int status = RP_OK;

  if (!chunk)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making %s", file->name);
  for (uint32_t first = 0; status == RP_OK && first < layout->directory_count;
       first += room) {
    const uint32_t left = layout->directory_count - first;
    const uint32_t count = left < room ? left : room;

    for (uint32_t i = 0; i < count; i++)
      rp_store32 (chunk + 4 * (size_t) i, (uint32_t) (tables
                  + (uint64_t) (first + i) * layout->table_sectors));
    status = rp_file_pwrite (file, chunk, 4 * (size_t) count,
                             directory * RP_SECTOR_BYTES + 4 * (uint64_t) first,
                             fault);
  }
  free (chunk);
  return status;
}

static void
fill_kdmv (uint8_t *header, const struct rp_sparse_create *how,
           const struct plan *plan)
{
  uint32_t flags = RP_KDMV_NEWLINE_TEST;

  if (how->redundant)
    flags |= RP_KDMV_REDUNDANT;
  if (how->zero_grains)
    flags |= RP_KDMV_ZERO_GRAINS;
  rp_store32 (header, RP_KDMV_MAGIC);
  rp_store32 (header + 4, how->zero_grains ? 2 : 1);
  rp_store32 (header + 8, flags);
  rp_store64 (header + 12, how->capacity_sectors);
  rp_store64 (header + 20, how->grain_sectors);
  rp_store64 (header + 28, how->descriptor_sectors ? 1 : 0);
  rp_store64 (header + 36, how->descriptor_sectors);
  rp_store32 (header + 44, KDMV_TABLE_ENTRIES);
  rp_store64 (header + 48, plan->redundant_directory);
  rp_store64 (header + 56, plan->directory);
  rp_store64 (header + 64, plan->overhead);
  memcpy (header + 73, newline_test, sizeof newline_test);
}

static void
fill_cowd (uint8_t *header, const struct rp_sparse_create *how,
           const struct plan *plan)
{
  rp_store32 (header, COWD_MAGIC);
  rp_store32 (header + 4, 1);
  rp_store32 (header + 8, 3);
  rp_store32 (header + 12, (uint32_t) how->capacity_sectors);
  rp_store32 (header + 16, (uint32_t) how->grain_sectors);
  rp_store32 (header + 20, (uint32_t) plan->directory);
  rp_store32 (header + 24, plan->layout.directory_count);
  rp_store32 (header + RP_COWD_FREE_OFFSET, (uint32_t) plan->overhead);
}

/* The header goes last: what a crash leaves before is no extent at all. */
int
rp_sparse_create (struct rp_file *file, const struct rp_sparse_create *how,
                  struct rp_fault *fault)
{
  const bool cowd = how->kind == RP_EXTENT_COWD;
  uint8_t header[COWD_HEADER_BYTES] = { 0 };
  struct plan plan;
  uint64_t file_bytes;
  int status;

  status = check_create (file, how, fault);
  if (status == RP_OK)
    status = make_plan (file, how, &plan, fault);
  if (status == RP_OK)
    status = rp_file_size (file, &file_bytes, fault);
  if (status != RP_OK)
    return status;
  if (file_bytes != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s is not empty", file->name);

  status = rp_file_truncate (file, plan.overhead * RP_SECTOR_BYTES, fault);
  if (status == RP_OK && how->descriptor_bytes)
    status = rp_file_pwrite (file, how->descriptor, how->descriptor_bytes,
                             RP_SECTOR_BYTES, fault);
  if (status == RP_OK && how->redundant)
    status = write_directory (file, &plan.layout, plan.redundant_directory,
                              plan.redundant_tables, fault);
  if (status == RP_OK && !cowd)
    status = write_directory (file, &plan.layout, plan.directory, plan.tables,
                              fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  if (status != RP_OK)
    return status;
  if (cowd)
    fill_cowd (header, how, &plan);
  else
    fill_kdmv (header, how, &plan);
  status = rp_file_pwrite (file, header, cowd ? sizeof header : RP_SECTOR_BYTES,
                           0, fault);
  if (RP_SABOTAGED (16))         /* forgets to sync a new extent */
    return status;
  return status == RP_OK ? rp_file_sync (file, fault) : status;
}

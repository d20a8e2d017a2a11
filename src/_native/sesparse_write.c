/* SPDX-License-Identifier: Apache-2.0 */
/* Exporting a disk as a clean seSparse extent.
 *
 * Grains, tables and backmap fill up in disk order, so all that is kept in
 * memory is the table in work, a piece of the backmap and the directory.  The
 * constant header goes last: what a crash leaves before is no extent.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "sesparse_inside.h"

#define CAPACITY_LIMIT  (UINT64_C (62) << 31)    /* sectors: 62 TiB */
#define MAP_ENTRIES     8192u    /* of the backmap, in memory */
#define PARTS           64u
#define NO_TABLE        UINT32_MAX
#define USED_TYPE       (UINT64_C (1) << 60)     /* in directory and backmap */

struct se_sink {
  struct rp_sink      sink;      /* first */
  struct rp_file     *file;      /* borrowed */
  struct rp_se_layout layout;
  uint64_t  grain_count;         /* handed out */
  uint32_t  table_count;
  uint32_t  number;              /* directory entry of the table in work */
  uint32_t  low, high;           /* its entries that are used */
  uint8_t  *table;
  uint8_t  *map;                 /* backmap entries of the last grains */
  uint32_t  map_count;
  uint32_t *directory;           /* table index and 1, or 0 */
};

static uint64_t
region_offset (const struct se_sink *se, int region)
{
  return se->layout.regions[region].sector * RP_SECTOR_BYTES;
}

/* What lies where, on MiB boundaries, as ESXi has it. */
static void
plan_regions (struct rp_se_layout *layout)
{
  const uint64_t tables = layout->directory_count;
  const uint64_t grains = rp_divide_up (layout->capacity_sectors,
                                        RP_SE_GRAIN_SECTORS);
  const uint64_t bytes[RP_SE_REGIONS] = {
    [RP_SE_JOURNAL] = 1, [RP_SE_DIRECTORY] = tables * 8,
    [RP_SE_TABLES] = tables * RP_SE_TABLE_BYTES,
    [RP_SE_BITMAP] = rp_divide_up (grains, 8), [RP_SE_BACKMAP] = grains * 8,
    [RP_SE_GRAINS] = grains * RP_SE_GRAIN_BYTES,
  };
  uint64_t at = RP_SE_MIB_SECTORS;

  layout->regions[RP_SE_VOLATILE] = (struct rp_se_region) { 1, 1 };
  layout->regions[RP_SE_JOURNAL_HEADER] = (struct rp_se_region) { 2, 2 };
  for (int i = RP_SE_JOURNAL; i < RP_SE_REGIONS; i++) {
    const uint64_t mib = RP_SE_MIB_SECTORS * RP_SECTOR_BYTES;

    layout->regions[i].sector = at;
    layout->regions[i].sectors = rp_divide_up (bytes[i], mib)
                                 * RP_SE_MIB_SECTORS;
    at += layout->regions[i].sectors;
  }
}

/* ---- place: one chunk at a time ---- */

static int
write_table (struct se_sink *se, struct rp_fault *fault)
{
  const size_t first = se->low / 64 * RP_SECTOR_BYTES;
  const size_t stop = (se->high / 64 + 1) * RP_SECTOR_BYTES;

  if (se->number == NO_TABLE)
    return RP_OK;
  return rp_file_pwrite (se->file, se->table + first, stop - first,
                         rp_se_table_offset (&se->layout,
                                             se->table_count - 1) + first,
                         fault);
}

static int
write_map (struct se_sink *se, struct rp_fault *fault)
{
  const uint64_t first = se->grain_count - se->map_count;
  const size_t bytes = se->map_count * 8;

  se->map_count = 0;
  if (bytes == 0)
    return RP_OK;
  return rp_file_pwrite (se->file, se->map, bytes,
                         region_offset (se, RP_SE_BACKMAP) + 8 * first, fault);
}

static int
add_grain (struct se_sink *se, uint64_t grain, struct rp_fault *fault)
{
  const uint32_t number = (uint32_t) (grain >> RP_SE_TABLE_SHIFT);
  const uint32_t index = grain % RP_SE_TABLE_ENTRIES;
  int status = RP_OK;

  if (number != se->number) {
    status = write_table (se, fault);
    memset (se->table, 0, RP_SE_TABLE_BYTES);
    se->number = number;
    se->low = index;
    se->directory[number] = ++se->table_count;
  }
  if (status == RP_OK && se->map_count == MAP_ENTRIES)
    status = write_map (se, fault);
  if (status != RP_OK)
    return status;
  se->high = index;
  rp_store64 (se->table + 8 * (size_t) index,
              RP_SE_DATA | rp_se_rotate (se->grain_count));
  rp_store64 (se->map + 8 * (size_t) se->map_count++,
              USED_TYPE | rp_se_rotate (grain));
  se->grain_count++;
  return RP_OK;
}

static int
se_place (struct rp_sink *sink, struct rp_chunk *chunk,
          struct rp_fault *fault)
{
  struct se_sink *se = (struct se_sink *) sink;
  const uint64_t first = chunk->offset_bytes >> RP_SE_GRAIN_SHIFT;
  const uint64_t count = rp_divide_up (chunk->length_bytes, RP_SE_GRAIN_BYTES);
  int status = RP_OK;

  RP_CHECK (chunk->offset_bytes % RP_SE_GRAIN_BYTES == 0
            && rp_inside (chunk->offset_bytes, chunk->length_bytes,
                          sink->size_bytes));
  chunk->place = se->grain_count;
  for (uint64_t i = 0; status == RP_OK && i < count; i++)
    if (chunk->marked[i])
      status = add_grain (se, first + i, fault);
  return status;
}

/* ---- write: the marked units, one behind the other ---- */

static int
se_write (struct rp_sink *sink, struct rp_chunk *chunk,
          struct rp_fault *fault)
{
  const struct se_sink *se = (const struct se_sink *) sink;
  uint64_t at = region_offset (se, RP_SE_GRAINS)
                + chunk->place * RP_SE_GRAIN_BYTES;
  struct iovec parts[PARTS];
  uint64_t done = 0;
  int status = RP_OK;

  while (status == RP_OK && done < chunk->length_bytes) {
    uint64_t bytes = 0;
    uint32_t count = 0;

    for (; done < chunk->length_bytes; done += RP_SE_GRAIN_BYTES) {
      const uint64_t left = chunk->length_bytes - done;
      const size_t unit = left < RP_SE_GRAIN_BYTES ? left : RP_SE_GRAIN_BYTES;
      uint8_t *data = chunk->data + done;

      if (!chunk->marked[done / RP_SE_GRAIN_BYTES])
        continue;
      if (count > 0 && (uint8_t *) parts[count - 1].iov_base
                       + parts[count - 1].iov_len == data)
        parts[count - 1].iov_len += unit;
      else if (count < PARTS)
        parts[count++] = (struct iovec) { data, unit };
      else
        break;
      bytes += unit;
    }
    if (count > 0)
      status = rp_file_pwritev (se->file, parts, (int) count, at, fault);
    at += bytes;
  }
  return status;
}

/* ---- finish ---- */

/* A bit for each grain in use; which end of a byte comes first is not known:
 * they are all in a row. */
static int
write_bitmap (struct se_sink *se, struct rp_fault *fault)
{
  const size_t room = MAP_ENTRIES * 8;
  uint64_t at = region_offset (se, RP_SE_BITMAP);
  uint64_t left = se->grain_count;
  int status = RP_OK;

  memset (se->map, 0xff, room);
  while (status == RP_OK && left >= 8) {
    const size_t now = left / 8 < room ? left / 8 : room;

    status = rp_file_pwrite (se->file, se->map, now, at, fault);
    at += now;
    left -= 8 * (uint64_t) now;
  }
  se->map[0] = (uint8_t) ((1u << left) - 1);
  if (status == RP_OK && left > 0)
    status = rp_file_pwrite (se->file, se->map, 1, at, fault);
  return status;
}

/* Pieces without a table stay holes. */
static int
write_directory (struct se_sink *se, struct rp_fault *fault)
{
  const uint64_t start = region_offset (se, RP_SE_DIRECTORY);
  const uint32_t all = se->layout.directory_count;
  int status = RP_OK;

  for (uint32_t first = 0; status == RP_OK && first < all;
       first += MAP_ENTRIES) {
    const uint32_t left = all - first;
    const uint32_t count = left < MAP_ENTRIES ? left : MAP_ENTRIES;
    bool used = false;

    for (uint32_t i = 0; i < count; i++) {
      const uint32_t entry = se->directory[first + i];

      used |= entry != 0;
      rp_store64 (se->map + 8 * (size_t) i,
                  entry ? USED_TYPE | (entry - 1) : 0);
    }
    if (used)
      status = rp_file_pwrite (se->file, se->map, 8 * (size_t) count,
                               start + 8 * (uint64_t) first, fault);
  }
  return status;
}

static int
write_headers (struct se_sink *se, struct rp_fault *fault)
{
  uint8_t headers[3 * RP_SECTOR_BYTES] = { 0 };
  uint8_t *journal = headers + RP_SECTOR_BYTES;

  rp_store64 (headers, RP_SE_VOLATILE_MAGIC);
  rp_store64 (headers + 8, se->table_count);
  rp_store64 (journal, RP_SE_JOURNAL_MAGIC);
  rp_store64 (journal + 16, 1);
  return rp_file_pwrite (se->file, headers, sizeof headers,
                         region_offset (se, RP_SE_VOLATILE), fault);
}

static int
write_constant (struct se_sink *se, struct rp_fault *fault)
{
  uint8_t header[RP_SECTOR_BYTES] = { 0 };

  rp_store64 (header, RP_SESPARSE_MAGIC);
  rp_store64 (header + 8, RP_SE_VERSION);
  rp_store64 (header + 16, se->layout.capacity_sectors);
  rp_store64 (header + 24, RP_SE_GRAIN_SECTORS);
  rp_store64 (header + 32, RP_SE_TABLE_SECTORS);
  for (uint32_t i = 0; i < RP_SE_REGIONS; i++) {
    uint8_t *field = header + RP_SE_REGIONS_OFFSET + 16 * (size_t) i;

    rp_store64 (field, se->layout.regions[i].sector);
    rp_store64 (field + 8, se->layout.regions[i].sectors);
  }
  return rp_file_pwrite (se->file, header, sizeof header, 0, fault);
}

/* The grains' region is whole, as a hole, where the file system has files
 * of that size; ext4 ends at 16 TiB, and then it ends with the last grain. */
static int
set_size (struct se_sink *se, uint64_t *size_out, struct rp_fault *fault)
{
  const struct rp_se_region *grains = &se->layout.regions[RP_SE_GRAINS];
  const uint64_t mib = RP_SE_MIB_SECTORS * RP_SECTOR_BYTES;
  int status;

  *size_out = (grains->sector + grains->sectors) * RP_SECTOR_BYTES;
  status = rp_file_truncate (se->file, *size_out, fault);
  if (status != RP_IO || fault->os_errno != EFBIG)
    return status;
  *size_out = grains->sector * RP_SECTOR_BYTES
              + rp_divide_up (se->grain_count * RP_SE_GRAIN_BYTES, mib) * mib;
  return rp_file_truncate (se->file, *size_out, fault);
}

static int
se_finish (struct rp_sink *sink, struct rp_fault *fault)
{
  struct se_sink *se = (struct se_sink *) sink;
  uint64_t size = 0;
  int status;

  status = write_table (se, fault);
  if (status == RP_OK)
    status = write_map (se, fault);
  if (status == RP_OK)
    status = write_bitmap (se, fault);
  if (status == RP_OK)
    status = write_directory (se, fault);
  if (status == RP_OK)
    status = write_headers (se, fault);
  if (status == RP_OK)
    status = set_size (se, &size, fault);
  if (status == RP_OK)
    status = rp_file_sync (se->file, fault);
  if (status != RP_OK)
    return status;
  rp_file_note (se->file, RP_NOTE_POINTS_TO, RP_SECTOR_BYTES,
                size - RP_SECTOR_BYTES);
  status = write_constant (se, fault);
  return status == RP_OK ? rp_file_sync (se->file, fault) : status;
}

static void
se_destroy (struct rp_sink *sink)
{
  struct se_sink *se = (struct se_sink *) sink;

  free (se->directory);
  free (se->map);
  free (se->table);
  free (se);
}

static const struct rp_sink_functions se_functions = {
  .name = "sesparse",
  .destroy = se_destroy,
  .place = se_place,
  .write = se_write,
  .finish = se_finish,
};

int
rp_sesparse_sink_create (struct rp_file *file, uint64_t capacity_sectors,
                         struct rp_sink **out, struct rp_fault *fault)
{
  struct se_sink *se;
  uint64_t size;
  int status;

  *out = NULL;
  if (capacity_sectors == 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: an empty extent",
                    file->name);
  if (capacity_sectors > CAPACITY_LIMIT)
    return rp_fail (fault, RP_FULL, 0, "%s: %" PRIu64 " sectors are more than "
                    "the 62 TiB that ESXi allows", file->name,
                    capacity_sectors);
  status = rp_file_size (file, &size, fault);
  if (status != RP_OK)
    return status;
  if (size != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s is not empty", file->name);
  se = calloc (1, sizeof *se);
  if (!se)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making %s", file->name);
  se->sink = (struct rp_sink) {
    .functions = &se_functions,
    .size_bytes = capacity_sectors * RP_SECTOR_BYTES,
    .unit_bytes = RP_SE_GRAIN_BYTES,
  };
  se->file = file;
  rp_file_stream (file);
  se->number = NO_TABLE;
  se->layout.capacity_sectors = capacity_sectors;
  se->layout.directory_count
    = (uint32_t) rp_divide_up (capacity_sectors, RP_SE_SPAN_SECTORS);
  plan_regions (&se->layout);
  se->table = malloc (RP_SE_TABLE_BYTES);
  se->map = malloc (MAP_ENTRIES * 8);
  se->directory = calloc (se->layout.directory_count, sizeof *se->directory);
  if (!se->table || !se->map || !se->directory) {
    se_destroy (&se->sink);
    return rp_fail (fault, RP_NO_MEMORY, 0, "making %s", file->name);
  }
  *out = &se->sink;
  return RP_OK;
}

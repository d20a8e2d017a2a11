/* SPDX-License-Identifier: Apache-2.0 */
/* Reading seSparse extents. */
#include "sesparse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sesparse_inside.h"

#define CHUNK_BYTES  65536u
#define GRAINS_END_MAX (UINT64_C (2) * RP_SE_CAPACITY_MAX)   /* sectors */
#define EMPTY        ((uintptr_t) 1)
#define RUNS         ((uintptr_t) 1)

/* One map call does no more than this: it holds no lock, but its caller may
 * have a client waiting.  An entry of a table kept in full counts 1. */
#define SCAN_WORK    (UINT64_C (1) << 20)
#define LOAD_WORK    1024u

static const struct rp_runs_rule rule = { .rising = RP_SE_DATA, .step = 1 };

static const char *const region_names[RP_SE_REGIONS] = {
  "the volatile header", "the journal's header", "the journal",
  "the grain directory", "the grain tables", "the free bitmap", "the backmap",
  "the grains",
};

/* ---- headers ---- */

/* Values of which only one is known; another may change what all else means. */
static int
check_constants (struct rp_file *file, const uint8_t *header,
                 struct rp_fault *fault)
{
  static const struct {
    uint32_t    offset;
    uint64_t    value;
    const char *what;
  } known[] = {
    { 8, RP_SE_VERSION, "version" },
    { 24, RP_SE_GRAIN_SECTORS, "grain size" },
    { 32, RP_SE_TABLE_SECTORS, "table size" },
    { 40, 0, "flags" },
    { 48, 0, "reserved" }, { 56, 0, "reserved" },
    { 64, 0, "reserved" }, { 72, 0, "reserved" },
  };

  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    const uint64_t found = rp_load64 (header + known[i].offset);

    if (found != known[i].value)
      return rp_fail (fault, RP_UNSUPPORTED, known[i].offset,
                      "%s: the seSparse header's %s is 0x%" PRIx64
                      ", only 0x%" PRIx64 " is known", file->name,
                      known[i].what, found, known[i].value);
  }
  for (uint32_t i = RP_SE_HEADER_USED; i < RP_SECTOR_BYTES; i++)
    if (header[i])
      return rp_fail (fault, RP_UNSUPPORTED, i,
                      "%s: the seSparse header has something where zeros "
                      "are known", file->name);
  return RP_OK;
}

/* All lie apart and, but for the grains, whole in the file. */
static int
check_regions (struct rp_file *file, const struct rp_se_layout *layout,
               struct rp_fault *fault)
{
  const struct rp_se_region header = { 0, 1 };
  const uint64_t file_sectors = layout->file_bytes / RP_SECTOR_BYTES;

  for (int i = 0; i < RP_SE_REGIONS; i++) {
    const struct rp_se_region *region = &layout->regions[i];
    const bool needed = i == RP_SE_VOLATILE || i == RP_SE_DIRECTORY
                        || i == RP_SE_TABLES || i == RP_SE_GRAINS;
    const uint64_t limit = i == RP_SE_GRAINS ? GRAINS_END_MAX : file_sectors;

    if (!rp_inside (region->sector, region->sectors, limit)
        || (needed && region->sectors == 0))
      return rp_fail (fault, RP_CORRUPT, RP_SE_REGIONS_OFFSET + 16u * i,
                      "%s: the header puts %s at sector %" PRIu64 " (%" PRIu64
                      " sectors), the file has %" PRIu64, file->name,
                      region_names[i], region->sector, region->sectors,
                      file_sectors);
    if (region->sectors == 0)
      continue;
    for (int k = -1; k < i; k++) {
      const struct rp_se_region *other = k < 0 ? &header : &layout->regions[k];

      if (rp_overlap (region->sector, region->sectors, other->sector,
                      other->sectors))
        return rp_fail (fault, RP_CORRUPT, RP_SE_REGIONS_OFFSET + 16u * i,
                        "%s: %s and %s lie over each other", file->name,
                        region_names[i],
                        k < 0 ? "the header" : region_names[k]);
    }
  }
  return RP_OK;
}

static int
read_constant (struct rp_file *file, struct rp_se_layout *layout,
               struct rp_fault *fault)
{
  uint8_t header[RP_SECTOR_BYTES] = { 0 };
  uint64_t count;
  size_t done;
  int status;

  status = rp_file_pread (file, header, sizeof header, 0, &done, fault);
  if (status != RP_OK)
    return status;
  if (done < sizeof header || rp_load64 (header) != RP_SESPARSE_MAGIC)
    return rp_fail (fault, RP_FORMAT, 0, "%s is no seSparse extent",
                    file->name);
  status = check_constants (file, header, fault);
  if (status != RP_OK)
    return status;
  layout->capacity_sectors = rp_load64 (header + 16);
  if (layout->capacity_sectors == 0
      || layout->capacity_sectors > RP_SE_CAPACITY_MAX)
    return rp_fail (fault, RP_CORRUPT, 16,
                    "%s: the header gives a capacity of %" PRIu64 " sectors",
                    file->name, layout->capacity_sectors);
  for (uint32_t i = 0; i < RP_SE_REGIONS; i++) {
    const uint8_t *field = header + RP_SE_REGIONS_OFFSET + 16 * i;

    layout->regions[i].sector = rp_load64 (field);
    layout->regions[i].sectors = rp_load64 (field + 8);
  }
  status = check_regions (file, layout, fault);
  if (status != RP_OK)
    return status;
  count = rp_divide_up (layout->capacity_sectors, RP_SE_SPAN_SECTORS);
  layout->directory_count = (uint32_t) count;
  if (layout->regions[RP_SE_DIRECTORY].sectors < rp_divide_up (count, 64))
    return rp_fail (fault, RP_CORRUPT, 136,
                    "%s: the grain directory has %" PRIu64 " sectors, which is "
                    "too little for a capacity of %" PRIu64, file->name,
                    layout->regions[RP_SE_DIRECTORY].sectors,
                    layout->capacity_sectors);
  return RP_OK;
}

static int
read_volatile (struct rp_file *file, struct rp_se_layout *layout,
               struct rp_fault *fault)
{
  const uint64_t at = layout->regions[RP_SE_VOLATILE].sector * RP_SECTOR_BYTES;
  uint8_t header[RP_SECTOR_BYTES];
  int status;

  status = rp_file_pread_all (file, header, sizeof header, at, fault);
  if (status != RP_OK)
    return status;
  if (rp_load64 (header) != RP_SE_VOLATILE_MAGIC)
    return rp_fail (fault, RP_CORRUPT, at,
                    "%s: there is no volatile header at byte %" PRIu64,
                    file->name, at);
  layout->free_table = rp_load64 (header + 8);
  if (rp_load64 (header + 24) != 0)
    return rp_fail (fault, RP_UNSUPPORTED, at + 24,
                    "%s has a journal to replay, which only ESXi can do: at "
                    "the host, consolidate the virtual machine's snapshots or "
                    "power it on and off, then copy the file again",
                    file->name);
  for (uint32_t i = 32; i < sizeof header; i++)
    if (header[i])
      return rp_fail (fault, RP_UNSUPPORTED, at + i,
                      "%s: the volatile header has something where zeros are "
                      "known", file->name);
  return RP_OK;
}

int
rp_se_read_layout (struct rp_file *file, struct rp_se_layout *out,
                   struct rp_fault *fault)
{
  int status;

  memset (out, 0, sizeof *out);
  status = rp_file_size (file, &out->file_bytes, fault);
  if (status == RP_OK)
    status = read_constant (file, out, fault);
  if (status == RP_OK)
    status = read_volatile (file, out, fault);
  return status;
}

int
rp_sesparse_read_header (struct rp_file *file, struct rp_sparse_info *out,
                         struct rp_fault *fault)
{
  struct rp_se_layout layout;
  const int status = rp_se_read_layout (file, &layout, fault);

  if (status == RP_OK)
    *out = (struct rp_sparse_info) {
      .version = (uint32_t) (RP_SE_VERSION >> 32),
      .capacity_sectors = layout.capacity_sectors,
      .grain_sectors = RP_SE_GRAIN_SECTORS,
      .entries_per_table = RP_SE_TABLE_ENTRIES,
      .directory_sector = layout.regions[RP_SE_DIRECTORY].sector,
      .overhead_sectors = layout.regions[RP_SE_GRAINS].sector,
    };
  return status;
}

/* ---- directory ---- */

static uint32_t
decode_directory (const struct rp_se_layout *layout, uint64_t entry)
{
  const uint64_t tables = layout->regions[RP_SE_TABLES].sectors
                          / RP_SE_TABLE_SECTORS;
  const uint64_t index = entry & UINT32_MAX;

  if (entry == 0)
    return 0;
  if (entry >> 32 != 0x10000000 || index >= tables
      || index >= RP_SE_BAD_TABLE - 1)
    return RP_SE_BAD_TABLE;
  return (uint32_t) index + 1;
}

int
rp_se_read_directory (struct rp_file *file, const struct rp_se_layout *layout,
                      uint32_t first, uint32_t count, uint32_t *out,
                      struct rp_fault *fault)
{
  const uint64_t start = layout->regions[RP_SE_DIRECTORY].sector
                         * RP_SECTOR_BYTES;
  uint8_t *chunk = malloc (CHUNK_BYTES);
  int status = RP_OK;

  if (!chunk)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
  while (status == RP_OK && count > 0) {
    const uint32_t now = count < CHUNK_BYTES / 8 ? count : CHUNK_BYTES / 8;

    status = rp_file_pread_all (file, chunk, (size_t) now * 8,
                                start + 8 * (uint64_t) first, fault);
    for (uint32_t i = 0; status == RP_OK && i < now; i++)
      out[i] = decode_directory (layout, rp_load64 (chunk + 8 * (size_t) i));
    out += now;
    first += now;
    count -= now;
  }
  free (chunk);
  return status;
}

int
rp_sesparse_open (struct rp_file *file, uint64_t sectors,
                  struct rp_sesparse **out, struct rp_fault *fault)
{
  struct rp_sesparse *sesparse = calloc (1, sizeof *sesparse);
  const struct rp_se_layout *layout;
  int status;

  *out = NULL;
  if (!sesparse)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
  sesparse->file = file;
  sesparse->size_bytes = sectors * RP_SECTOR_BYTES;
  layout = &sesparse->layout;
  status = rp_se_read_layout (file, &sesparse->layout, fault);
  if (status == RP_OK && layout->capacity_sectors < sectors)
    status = rp_fail (fault, RP_CORRUPT, 16,
                      "%s: the descriptor gives it %" PRIu64
                      " sectors, its header %" PRIu64, file->name, sectors,
                      layout->capacity_sectors);
  if (status == RP_OK) {
    sesparse->directory = malloc (layout->directory_count
                                  * sizeof *sesparse->directory);
    sesparse->tables = calloc (layout->directory_count,
                               sizeof *sesparse->tables);
    if (!sesparse->directory || !sesparse->tables)
      status = rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
    else
      status = rp_se_read_directory (file, layout, 0, layout->directory_count,
                                     sesparse->directory, fault);
  }
  if (status != RP_OK) {
    rp_sesparse_close (sesparse);
    return status;
  }
  *out = sesparse;
  return RP_OK;
}

void
rp_sesparse_close (struct rp_sesparse *sesparse)
{
  if (!sesparse)
    return;
  /* pages of tables[] where the directory has nothing were never touched */
  if (sesparse->tables && (sesparse->directory || RP_SABOTAGED (36)))
    for (uint32_t i = 0; i < sesparse->layout.directory_count; i++)
      if (sesparse->directory[i] != 0)
        free ((void *) (atomic_load (&sesparse->tables[i]) & ~RUNS));
  free (sesparse->tables);
  free (sesparse->directory);
  free (sesparse);
}

/* ---- tables ---- */

/* What tables[] keeps of a table that was read; 0: no memory. */
static uintptr_t
keep_table (const uint8_t *bytes)
{
  struct rp_runs_builder builder;
  bool few = true;
  uint64_t *full;

  rp_runs_start (&builder, rule, RP_SE_TABLE_ENTRIES);
  for (uint32_t i = 0; few && i < RP_SE_TABLE_ENTRIES; i++)
    few = rp_runs_add (&builder, rp_se_decode (rp_load64 (bytes + 8 * i)));
  if (few && builder.count == 1 && builder.values[0] == 0)
    return EMPTY;
  if (few) {
    struct rp_runs *runs = rp_runs_finish (&builder);

    return runs ? (uintptr_t) runs | RUNS : 0;
  }
  full = malloc (RP_SE_TABLE_ENTRIES * sizeof *full);
  if (full)
    for (uint32_t i = 0; i < RP_SE_TABLE_ENTRIES; i++)
      full[i] = rp_se_decode (rp_load64 (bytes + 8 * i));
  return (uintptr_t) full;
}

static int
read_table (struct rp_sesparse *sesparse, uint32_t index, uint8_t *bytes,
            bool *hole_out, struct rp_fault *fault)
{
  const uint64_t at = rp_se_table_offset (&sesparse->layout, index);
  uint64_t data;
  int status;

  status = rp_file_seek (sesparse->file, at, true, &data, fault);
  if (status != RP_OK)
    return status;
  *hole_out = data >= at + RP_SE_TABLE_BYTES;
  if (*hole_out)
    return RP_OK;
  if (data < at)                 /* cannot be; the read will tell */
    data = at;
  memset (bytes, 0, data - at);
  return rp_file_pread_all (sesparse->file, bytes + (data - at),
                            RP_SE_TABLE_BYTES - (data - at), data, fault);
}

/* The directory has a table there. */
static int
load_table (struct rp_sesparse *sesparse, uint32_t number, uintptr_t *out,
            struct rp_fault *fault)
{
  const uint32_t entry = sesparse->directory[number];
  uintptr_t table = EMPTY, there = 0;
  bool hole = false;
  uint8_t *bytes;
  int status;

  if (entry == RP_SE_BAD_TABLE) {
    const uint64_t at = sesparse->layout.regions[RP_SE_DIRECTORY].sector
                        * RP_SECTOR_BYTES + 8 * (uint64_t) number;
    return rp_fail (fault, RP_CORRUPT, at, "%s: the grain directory's entry %"
                    PRIu32 " names no grain table", sesparse->file->name,
                    number);
  }
  bytes = malloc (RP_SE_TABLE_BYTES);
  if (!bytes)
    return rp_fail (fault, RP_NO_MEMORY, 0, "reading a grain table of %s",
                    sesparse->file->name);
  status = read_table (sesparse, entry - 1, bytes, &hole, fault);
  if (status == RP_OK && !hole) {
    table = keep_table (bytes);
    if (!table)
      status = rp_fail (fault, RP_NO_MEMORY, 0, "reading a grain table of %s",
                        sesparse->file->name);
  }
  free (bytes);
  if (status != RP_OK)
    return status;
  if (!atomic_compare_exchange_strong (&sesparse->tables[number], &there,
                                       table)) {
    free ((void *) (table & ~RUNS));
    table = there;
  }
  *out = table;
  return RP_OK;
}

/* The value of a grain, and how many grains from there on go on in its way,
 * as far as its table tells, at most limit; *work is raised by what it cost. */
static int
look (struct rp_sesparse *sesparse, uint64_t grain, uint64_t limit,
      uint64_t *value_out, uint64_t *count_out, uint64_t *work,
      struct rp_fault *fault)
{
  const uint32_t number = (uint32_t) (grain >> RP_SE_TABLE_SHIFT);
  const uint32_t index = grain % RP_SE_TABLE_ENTRIES;
  uint32_t left = RP_SE_TABLE_ENTRIES - index;
  uintptr_t table = EMPTY;
  uint64_t value = 0, count;
  int status;

  ++*work;
  if (sesparse->directory[number] != 0) {
    table = atomic_load_explicit (&sesparse->tables[number],
                                  memory_order_acquire);
    if (!table) {
      *work += LOAD_WORK;
      status = load_table (sesparse, number, &table, fault);
      if (status != RP_OK)
        return status;
    }
  }
  if (table == EMPTY) {
    count = left;
  } else if (table & RUNS) {
    value = rp_runs_find ((const struct rp_runs *) (table & ~RUNS), rule,
                          index, &left);
    count = left;
  } else {
    const uint64_t *entries = (const uint64_t *) table + index;
    uint64_t next;

    value = next = entries[0];
    if (left > limit)
      left = (uint32_t) limit;
    for (count = 1; count < left; count++) {
      next += value >= rule.rising;
      if (entries[count] != next)
        break;
    }
    *work += count;
  }
  *value_out = value;
  *count_out = count < limit ? count : limit;
  return RP_OK;
}

static int
fail_entry (struct rp_sesparse *sesparse, uint64_t grain, const char *how,
            struct rp_fault *fault)
{
  const uint32_t table = sesparse->directory[grain >> RP_SE_TABLE_SHIFT] - 1;
  const uint64_t at = rp_se_table_offset (&sesparse->layout, table)
                      + 8 * (grain % RP_SE_TABLE_ENTRIES);

  return rp_fail (fault, RP_CORRUPT, at, "%s: the table entry of its grain %"
                  PRIu64 ", at byte %" PRIu64 ", %s", sesparse->file->name,
                  grain, at, how);
}

/* Where the data of a grain lies; *count is cut to what lies in the region and
 * in the file. */
static int
place_data (struct rp_sesparse *sesparse, uint64_t grain, uint64_t value,
            uint64_t *count, uint64_t *offset_out, struct rp_fault *fault)
{
  const struct rp_se_region *grains
    = &sesparse->layout.regions[RP_SE_GRAINS];
  const uint64_t room = grains->sectors / RP_SE_GRAIN_SECTORS;
  const uint64_t index = value & RP_SE_INDEX_MASK;
  const uint64_t left = sesparse->size_bytes - (grain << RP_SE_GRAIN_SHIFT);
  const uint64_t least = left < RP_SE_GRAIN_BYTES ? left : RP_SE_GRAIN_BYTES;
  uint64_t whole;

  if (value < RP_SE_DATA || value >> 60 != 3)
    return fail_entry (sesparse, grain, "is of no known type", fault);
  if (index >= room)
    return fail_entry (sesparse, grain, "points outside the grains", fault);
  *offset_out = grains->sector * RP_SECTOR_BYTES + index * RP_SE_GRAIN_BYTES;
  if (!rp_inside (*offset_out, least, sesparse->layout.file_bytes))
    return fail_entry (sesparse, grain, "points behind the end of the file",
                       fault);
  whole = (sesparse->layout.file_bytes - *offset_out) >> RP_SE_GRAIN_SHIFT;
  if (whole > room - index)
    whole = room - index;
  if (*count > whole)
    *count = whole ? whole : 1;
  return RP_OK;
}

int
rp_sesparse_map (struct rp_sesparse *sesparse, uint64_t offset,
                 uint64_t length, struct rp_segment *out,
                 struct rp_fault *fault)
{
  const uint64_t grain = offset >> RP_SE_GRAIN_SHIFT;
  const uint64_t within = offset % RP_SE_GRAIN_BYTES;
  const uint64_t limit = ((within + length - 1) >> RP_SE_GRAIN_SHIFT) + 1;
  uint64_t value, count, work = 0, place = 0, bytes;
  struct rp_fault later;
  int status;

  status = look (sesparse, grain, limit, &value, &count, &work, fault);
  if (status != RP_OK)
    return status;
  /* what stops it ends the run; the next call tells why */
  while (count < limit && work < SCAN_WORK) {
    uint64_t next, more;

    if (look (sesparse, grain + count, limit - count, &next, &more, &work,
              &later) != RP_OK
        || next != value + (value >= rule.rising ? count : 0))
      break;
    count += more;
  }
  out->kind = value == 0 ? RP_SEGMENT_ABSENT
              : value == RP_SE_ZERO ? RP_SEGMENT_ZERO : RP_SEGMENT_DATA;
  if (out->kind == RP_SEGMENT_DATA) {
    status = place_data (sesparse, grain, value, &count, &place, fault);
    if (status != RP_OK)
      return status;
  }
  bytes = (count << RP_SE_GRAIN_SHIFT) - within;
  out->length_bytes = bytes < length ? bytes : length;
  out->packed = false;
  out->file = out->kind == RP_SEGMENT_DATA ? sesparse->file : NULL;
  out->file_offset_bytes = out->kind == RP_SEGMENT_DATA ? place + within : 0;
  return RP_OK;
}

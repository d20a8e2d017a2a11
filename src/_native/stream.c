/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed sparse extents: opening, tables and the map. */
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "stream_inside.h"

/* One map call looks at no more grains than this. */
#define SCAN_GRAINS  (UINT64_C (1) << 20)
#define CACHE_BYTES  (UINT64_C (2) << 20)

static int
read_directory (struct rp_stream *stream, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &stream->layout;
  const size_t count = layout->directory_count;
  int status;

  stream->directory = malloc (count * sizeof *stream->directory);
  stream->tables = calloc (count, sizeof *stream->tables);
  stream->empty = calloc (1, sizeof *stream->empty);
  if (!stream->directory || !stream->tables || !stream->empty)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", stream->file->name);
  status = rp_file_pread_all (stream->file, stream->directory,
                              count * sizeof *stream->directory,
                              layout->info.directory_sector * RP_SECTOR_BYTES,
                              fault);
  if (status == RP_OK)
    for (size_t i = 0; i < count; i++)
      stream->directory[i] = le32toh (stream->directory[i]);
  return status;
}

static void
set_up (struct rp_stream *stream)
{
  const struct rp_sparse_layout *layout = &stream->layout;
  const uint64_t grain_bytes = rp_stream_grain_bytes (stream);
  uint64_t cached = CACHE_BYTES / grain_bytes;

  stream->file_sectors = layout->file_bytes / RP_SECTOR_BYTES;
  stream->marker_bytes = layout->info.flags & RP_KDMV_MARKERS
                         ? RP_STREAM_MARKER_BYTES : 4;
  /* Data that cannot be compressed grows a little; others, too, take all up
   * to twice the grain for possible. */
  stream->record_bytes = stream->marker_bytes + 2 * grain_bytes;
  stream->window_room = RP_STREAM_WINDOW_BYTES + stream->record_bytes
                        + 2 * RP_SECTOR_BYTES;
  if (cached < 2)
    cached = 2;
  stream->cache_count = cached < RP_STREAM_CACHE_GRAINS
                        ? (uint32_t) cached : RP_STREAM_CACHE_GRAINS;
  pthread_mutex_init (&stream->pooling, NULL);
  pthread_mutex_init (&stream->caching, NULL);
}

int
rp_stream_open (struct rp_file *file, uint64_t sectors,
                struct rp_stream **out, struct rp_fault *fault)
{
  struct rp_stream *stream = calloc (1, sizeof *stream);
  int status;

  *out = NULL;
  if (!stream)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
  status = rp_stream_read_layout (file, &stream->layout, fault);
  if (status != RP_OK) {
    free (stream);
    return status;
  }
  stream->file = file;
  stream->size_bytes = sectors * RP_SECTOR_BYTES;
  set_up (stream);
  if (stream->layout.info.capacity_sectors < sectors)
    status = rp_fail (fault, RP_CORRUPT, 12,
                      "%s: the descriptor gives it %" PRIu64
                      " sectors, its header %" PRIu64, file->name, sectors,
                      stream->layout.info.capacity_sectors);
  else
    status = read_directory (stream, fault);
  if (status != RP_OK) {
    rp_stream_close (stream);
    return status;
  }
  *out = stream;
  return RP_OK;
}

void
rp_stream_close (struct rp_stream *stream)
{
  struct rp_stream_worker *worker, *next;

  if (!stream)
    return;
  for (worker = stream->idle; worker; worker = next) {
    next = worker->next;
    rp_stream_free_worker (worker);
  }
  for (uint32_t i = 0; i < stream->cache_count; i++)
    free (stream->cache[i].bytes);
  if (stream->tables)
    for (uint32_t i = 0; i < stream->layout.directory_count; i++) {
      struct rp_stream_table *table = atomic_load (&stream->tables[i]);
      if (table != stream->empty)
        free (table);
    }
  pthread_mutex_destroy (&stream->caching);
  pthread_mutex_destroy (&stream->pooling);
  free (stream->empty);
  free (stream->tables);
  free (stream->directory);
  free (stream);
}

int
rp_stream_read_table (struct rp_stream *stream, uint32_t sector,
                      uint32_t *out, struct rp_fault *fault)
{
  const size_t count = (size_t) 1 << stream->layout.table_shift;
  const uint64_t offset = (uint64_t) sector * RP_SECTOR_BYTES;
  int status;

  if (sector < 2
      || !rp_inside (sector, stream->layout.table_sectors,
                     stream->file_sectors))
    return rp_fail (fault, RP_CORRUPT, offset,
                    "%s: a grain table should be at sector %" PRIu32
                    ", which is %s", stream->file->name, sector,
                    sector < 2 ? "the header's place"
                               : "past the end of the file: it is damaged or "
                                 "was cut short");
  status = rp_file_pread_all (stream->file, out, count * sizeof *out, offset,
                              fault);
  if (status == RP_OK)
    for (size_t i = 0; i < count; i++)
      out[i] = le32toh (out[i]);
  return status;
}

/* Of a table that was read: NULL where there is no memory. */
static struct rp_stream_table *
keep_table (struct rp_stream *stream, const uint32_t *entries)
{
  const size_t size = (size_t) 1 << stream->layout.table_shift;
  const size_t entry_bytes = sizeof *entries, number_bytes = sizeof (uint16_t);
  size_t first = 0, stop = size, used = 0, count;
  struct rp_stream_table *table;
  uint16_t *numbers;
  bool listed;

  while (stop > 0 && entries[stop - 1] == 0)
    stop--;
  if (stop == 0)
    return stream->empty;
  while (entries[first] == 0)
    first++;
  for (size_t i = first; i < stop; i++)
    used += entries[i] != 0;
  listed = used * (entry_bytes + number_bytes) < (stop - first) * entry_bytes;
  count = listed ? used : stop - first;
  table = malloc (sizeof *table
                  + count * (entry_bytes + (listed ? number_bytes : 0)));
  if (!table)
    return NULL;
  table->first = (uint16_t) first;
  table->count = (uint16_t) count;
  table->listed = listed;
  numbers = (uint16_t *) (table->entries + count);
  for (size_t i = first, to = 0; i < stop; i++) {
    if (listed && entries[i] == 0)
      continue;
    table->entries[to] = entries[i];
    if (listed)
      numbers[to] = (uint16_t) i;
    to++;
  }
  return table;
}

/* The index of the first listed entry whose number is not below this one. */
static uint32_t
find_listed (const struct rp_stream_table *table, uint32_t number,
             const uint16_t *numbers)
{
  uint32_t low = 0, high = table->count;

  while (low < high) {
    const uint32_t middle = (low + high) / 2;

    if (numbers[middle] < number)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

static uint32_t
find_entry (const struct rp_stream_table *table, uint32_t number)
{
  const uint16_t *numbers = (const uint16_t *) (table->entries + table->count);
  uint32_t index = number - table->first;

  if (table->listed) {
    index = find_listed (table, number, numbers);
    if (index < table->count && numbers[index] != number)
      return 0;
  }
  return index < table->count ? table->entries[index] : 0;
}

/* The number of the first entry from this one on that is not 0; size where
 * there is none. */
static uint32_t
find_used (const struct rp_stream_table *table, uint32_t number, uint32_t size)
{
  const uint16_t *numbers = (const uint16_t *) (table->entries + table->count);
  uint32_t index;

  if (table->listed) {
    index = find_listed (table, number, numbers);
    return index < table->count ? numbers[index] : size;
  }
  index = number < table->first ? 0 : number - table->first;
  while (index < table->count && table->entries[index] == 0)
    index++;
  return index < table->count ? table->first + index : size;
}

static int
load_table (struct rp_stream *stream, uint32_t index,
            struct rp_stream_table **out, struct rp_fault *fault)
{
  uint32_t entries[RP_COWD_TABLE_ENTRIES];     /* the most that is allowed */
  struct rp_stream_table *table = stream->empty, *there = NULL;

  if (stream->directory[index] != 0) {
    const int status = rp_stream_read_table (stream, stream->directory[index],
                                             entries, fault);
    if (status != RP_OK)
      return status;
    table = keep_table (stream, entries);
    if (!table)
      return rp_fail (fault, RP_NO_MEMORY, 0, "reading a grain table of %s",
                      stream->file->name);
  }
  *out = table;
  if (!atomic_compare_exchange_strong (&stream->tables[index], &there,
                                       table)) {
    if (table != stream->empty)
      free (table);
    *out = there;
  }
  return RP_OK;
}

/* The table of a grain. */
static int
find_table (struct rp_stream *stream, uint64_t grain,
            struct rp_stream_table **out, struct rp_fault *fault)
{
  const uint32_t index = (uint32_t) (grain >> stream->layout.table_shift);

  *out = atomic_load_explicit (&stream->tables[index], memory_order_acquire);
  return *out ? RP_OK : load_table (stream, index, out, fault);
}

int
rp_stream_lookup (struct rp_stream *stream, uint64_t grain, uint32_t *out,
                  struct rp_fault *fault)
{
  const uint64_t mask = (UINT64_C (1) << stream->layout.table_shift) - 1;
  struct rp_stream_table *table;
  const int status = find_table (stream, grain, &table, fault);

  if (status == RP_OK)
    *out = find_entry (table, (uint32_t) (grain & mask));
  return status;
}

int
rp_stream_classify (struct rp_stream *stream, uint64_t grain, uint32_t entry,
                    enum rp_segment_kind *out, struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &stream->layout.info;

  if (entry == 0)
    *out = RP_SEGMENT_ABSENT;
  else if (entry == 1 && stream->layout.zero_grains)
    *out = RP_SEGMENT_ZERO;
  else if (entry >= stream->file_sectors)
    return rp_fail (fault, RP_CORRUPT, (uint64_t) entry * RP_SECTOR_BYTES,
                    "%s: grain %" PRIu64 " should be at sector %" PRIu32
                    " and the file has %" PRIu64
                    ": it is damaged or was cut short", stream->file->name,
                    grain, entry, stream->file_sectors);
  else if (entry >= info->descriptor_offset_sectors
           && entry - info->descriptor_offset_sectors
              < info->descriptor_sectors)
    return rp_fail (fault, RP_CORRUPT, (uint64_t) entry * RP_SECTOR_BYTES,
                    "%s: grain %" PRIu64 " should be at sector %" PRIu32
                    ", inside the descriptor", stream->file->name, grain,
                    entry);
  else
    *out = RP_SEGMENT_DATA;
  return RP_OK;
}

/* How many grains from `grain` on are absent, up to limit or to an error, which
 * the next call reports. */
static uint64_t
count_absent (struct rp_stream *stream, uint64_t grain, uint64_t limit)
{
  const uint64_t span = UINT64_C (1) << stream->layout.table_shift;
  struct rp_stream_table *table;
  struct rp_fault ignored;
  uint64_t count = 0;

  while (count < limit
         && find_table (stream, grain + count, &table, &ignored) == RP_OK) {
    const uint32_t number = (uint32_t) ((grain + count) & (span - 1));
    const uint32_t used = find_used (table, number, (uint32_t) span);

    count += used - number;
    if (used < span)
      break;
  }
  return count < limit ? count : limit;
}

/* How many share this kind, zeros or data. */
static uint64_t
count_alike (struct rp_stream *stream, uint64_t grain, uint64_t limit,
             enum rp_segment_kind kind)
{
  struct rp_fault ignored;
  uint64_t count = 1;

  for (; count < limit; count++) {
    enum rp_segment_kind next;
    uint32_t entry;

    if (rp_stream_lookup (stream, grain + count, &entry, &ignored) != RP_OK
        || rp_stream_classify (stream, grain + count, entry, &next, &ignored)
           != RP_OK
        || next != kind)
      break;
  }
  return count;
}

int
rp_stream_map (struct rp_stream *stream, uint64_t offset, uint64_t length,
               struct rp_segment *out, struct rp_fault *fault)
{
  const uint32_t shift = stream->layout.grain_shift;
  const uint64_t grain = offset >> shift;
  const uint64_t within = offset & (rp_stream_grain_bytes (stream) - 1);
  uint64_t limit = ((within + length - 1) >> shift) + 1, count, bytes;
  uint32_t entry;
  int status;

  status = rp_stream_lookup (stream, grain, &entry, fault);
  if (status == RP_OK)
    status = rp_stream_classify (stream, grain, entry, &out->kind, fault);
  if (status != RP_OK)
    return status;
  if (limit > SCAN_GRAINS)
    limit = SCAN_GRAINS;
  count = out->kind == RP_SEGMENT_ABSENT
          ? count_absent (stream, grain, limit)
          : count_alike (stream, grain, limit, out->kind);
  bytes = (count << shift) - within;
  out->length_bytes = bytes < length ? bytes : length;
  out->packed = out->kind == RP_SEGMENT_DATA;
  out->file = NULL;
  out->file_offset_bytes = 0;
  return RP_OK;
}

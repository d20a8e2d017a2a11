/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and mapping sparse extents; sparse_tables.c keeps their tables,
 * sparse_write.c changes them. */
#include "sparse.h"

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

int
rp_sparse_compare32 (const void *a, const void *b)
{
  const uint32_t left = *(const uint32_t *) a, right = *(const uint32_t *) b;

  return (left > right) - (left < right);
}

/* Starts of all tables, sorted, lie apart from each other, from the
 * directories and from the header, and inside the file. */
static int
check_starts (struct rp_sparse *sparse, uint32_t *starts, uint64_t count,
              struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &sparse->layout;
  const struct rp_sparse_info *info = &layout->info;
  const uint64_t directory_sectors = rp_sparse_directory_sectors (layout);
  const uint64_t size = layout->table_sectors;

  for (uint64_t i = 1; i < count; i++)
    if (starts[i] < starts[i - 1]) {
      qsort (starts, count, sizeof *starts, rp_sparse_compare32);
      break;
    }
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t start = starts[i];

    if (rp_sparse_over_header (layout, start, size)
        || !rp_inside (start, size, layout->file_bytes / RP_SECTOR_BYTES)
        || (i > 0 && start - starts[i - 1] < size)
        || rp_overlap (start, size, info->directory_sector, directory_sectors)
        || (layout->redundant
            && rp_overlap (start, size, info->redundant_directory_sector,
                           directory_sectors)))
      return rp_fail (fault, RP_CORRUPT, start * RP_SECTOR_BYTES,
                      "%s: the grain table at sector %" PRIu64 " lies over "
                      "other metadata or outside the file; it can be opened "
                      "for reading only", sparse->file->name, start);
  }
  return RP_OK;
}

/* A write through a wrong directory destroys data, so it is checked whole
 * before the first one. */
static int
check_directory (struct rp_sparse *sparse, struct rp_fault *fault)
{
  const uint32_t count = sparse->layout.directory_count;
  uint32_t *starts = malloc ((size_t) count * 2 * sizeof *starts);
  uint64_t used = 0;
  int status;

  if (!starts)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", sparse->file->name);
  if (sparse->redundant)
    for (uint32_t i = 0; i < count; i++)
      if (sparse->redundant[i])
        starts[used++] = sparse->redundant[i];
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t sector = atomic_load (&sparse->directory[i]);

    if (sector)
      starts[used++] = sector;
    /* a crash may leave one of the two: the first write puts it right */
    if (sparse->redundant && !sector != !sparse->redundant[i]
        && !sparse->layout.info.unclean_shutdown) {
      free (starts);
      return rp_fail (fault, RP_CORRUPT, 0,
                      "%s: only one of the grain directories has table %"
                      PRIu32 "; it can be opened for reading only",
                      sparse->file->name, i);
    }
  }
  status = check_starts (sparse, starts, used, fault);
  free (starts);
  return status;
}

static int
read_directory (struct rp_sparse *sparse, uint64_t sector, uint32_t *out,
                struct rp_fault *fault)
{
  const uint32_t count = sparse->layout.directory_count;
  const int status = rp_file_pread_all (sparse->file, out, (size_t) count * 4,
                                        sector * RP_SECTOR_BYTES, fault);

  if (status == RP_OK)
    for (uint32_t i = 0; i < count; i++)
      out[i] = le32toh (out[i]);
  return status;
}

static int
load_directories (struct rp_sparse *sparse, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &sparse->layout;
  const size_t count = layout->directory_count;
  int status;

  sparse->directory = malloc (count * sizeof *sparse->directory);
  sparse->tables = calloc (count, sizeof *sparse->tables);
  sparse->touched = calloc (count / RP_SPARSE_STRETCH + 1, 1);
  sparse->empty = calloc (1, sizeof *sparse->empty
                          + (sizeof (uint32_t) << layout->table_shift));
  if (sparse->writable && layout->redundant)
    sparse->redundant = malloc (count * sizeof *sparse->redundant);
  if (!sparse->directory || !sparse->tables || !sparse->touched
      || !sparse->empty
      || (sparse->writable && layout->redundant && !sparse->redundant))
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", sparse->file->name);

  /* nobody else sees it yet: plain stores into the atomics are fine */
  status = read_directory (sparse, layout->info.directory_sector,
                           (uint32_t *) (void *) sparse->directory, fault);
  if (status == RP_OK && sparse->redundant)
    status = read_directory (sparse, layout->info.redundant_directory_sector,
                             sparse->redundant, fault);
  if (status == RP_OK && sparse->writable)
    status = check_directory (sparse, fault);
  return status;
}

static void
set_up (struct rp_sparse *sparse)
{
  const uint32_t shift = sparse->layout.grain_shift;
  const uint64_t eighth = sparse->size_bytes / 8;

  /* A region is 1 MiB: one lock for one long write of new grains. */
  sparse->region_shift = shift < 20 ? 20 - shift : 0;
  sparse->step_bytes = eighth < (1u << 20) ? 1u << 20
                       : eighth > (16u << 20) ? 16u << 20 : eighth;
  atomic_init (&sparse->file_bytes, sparse->layout.file_bytes);
  atomic_init (&sparse->next_sector, 0);
  atomic_init (&sparse->started, false);
  /* what an earlier writer left unsynced is for our first flush, too */
  atomic_init (&sparse->data_dirty, sparse->writable);
  atomic_init (&sparse->dirty_blocks, 0);
  atomic_init (&sparse->dirty_entries, 0);
  pthread_mutex_init (&sparse->growing, NULL);
  pthread_mutex_init (&sparse->starting, NULL);
  pthread_mutex_init (&sparse->publishing, NULL);
  for (uint32_t i = 0; i < RP_SPARSE_REGIONS; i++)
    pthread_mutex_init (&sparse->regions[i], NULL);
}

int
rp_sparse_open (struct rp_file *file, enum rp_extent_kind kind,
                uint64_t sectors, bool writable, struct rp_sparse **out,
                struct rp_fault *fault)
{
  struct rp_sparse *sparse = calloc (1, sizeof *sparse);
  int status;

  *out = NULL;
  if (!sparse)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
  status = rp_sparse_read_layout (file, &sparse->layout, fault);
  if (status != RP_OK) {
    free (sparse);
    return status;
  }
  sparse->file = file;
  sparse->writable = writable;
  sparse->size_bytes = sectors * RP_SECTOR_BYTES;
  set_up (sparse);
  if (sparse->layout.kind != kind)
    status = rp_fail (fault, RP_FORMAT, 0,
                      "%s is another kind of sparse extent than the "
                      "descriptor says", file->name);
  else if (sparse->layout.info.capacity_sectors < sectors)
    status = rp_fail (fault, RP_CORRUPT, 0,
                      "%s: the descriptor gives it %" PRIu64
                      " sectors, its header %" PRIu64, file->name, sectors,
                      sparse->layout.info.capacity_sectors);
  else if (writable && sparse->layout.info.version == 3)
    status = rp_fail (fault, RP_READ_ONLY, 4,
                      "%s is hosted sparse of version 3 without compression, "
                      "which is read only; convert it to write to it",
                      file->name);
  else
    status = load_directories (sparse, fault);
  if (status != RP_OK) {
    rp_sparse_close (sparse);
    return status;
  }
  *out = sparse;
  return RP_OK;
}

/* Most of a large disk's tables were never loaded: where none of a stretch
 * was, its pages were never touched, and are not now. */
static void
free_tables (struct rp_sparse *sparse)
{
  for (uint32_t i = 0; i < sparse->layout.directory_count; i++) {
    uintptr_t table;

    if (i % RP_SPARSE_STRETCH == 0
        && !atomic_load_explicit (&sparse->touched[i / RP_SPARSE_STRETCH],
                                  memory_order_relaxed)) {
      i += RP_SPARSE_STRETCH - 1;
      continue;
    }
    table = (uintptr_t) atomic_load_explicit (&sparse->tables[i],
                                              memory_order_relaxed);
    if (table != (uintptr_t) sparse->empty)
      free ((void *) (table & ~RP_SPARSE_RUNS));
  }
}

void
rp_sparse_close (struct rp_sparse *sparse)
{
  if (!sparse)
    return;
  if (sparse->tables && sparse->touched)
    free_tables (sparse);
  for (uint32_t i = 0; i < RP_SPARSE_REGIONS; i++)
    pthread_mutex_destroy (&sparse->regions[i]);
  pthread_mutex_destroy (&sparse->publishing);
  pthread_mutex_destroy (&sparse->starting);
  pthread_mutex_destroy (&sparse->growing);
  free (sparse->dirty_directory);
  free (sparse->dirty_tables);
  free (sparse->empty);
  free (sparse->touched);
  free (sparse->tables);
  free (sparse->redundant);
  free (sparse->directory);
  free (sparse);
}

int
rp_sparse_read_table (struct rp_sparse *sparse, uint32_t sector, uint32_t *out,
                      struct rp_fault *fault)
{
  const size_t count = (size_t) 1 << sparse->layout.table_shift;
  const uint64_t offset = (uint64_t) sector * RP_SECTOR_BYTES;
  int status;

  if (sector == 0) {
    memset (out, 0, count * sizeof *out);
    return RP_OK;
  }
  if (!rp_inside (offset, count * sizeof *out,
                  atomic_load (&sparse->file_bytes)))
    return rp_fail (fault, RP_CORRUPT, offset,
                    "%s: a grain table lies at sector %" PRIu32
                    ", past the end of the file", sparse->file->name, sector);
  status = rp_file_pread_all (sparse->file, out, count * sizeof *out, offset,
                              fault);
  if (status == RP_OK)
    for (size_t i = 0; i < count; i++)
      out[i] = le32toh (out[i]);
  return status;
}

static int
classify (struct rp_sparse *sparse, uint64_t grain, uint32_t entry,
          enum rp_segment_kind *out, struct rp_fault *fault)
{
  if (entry == 0)
    *out = RP_SEGMENT_ABSENT;
  else if (entry == 1 && sparse->layout.zero_grains)
    *out = RP_SEGMENT_ZERO;
  else if (entry == 1 || entry < sparse->layout.info.overhead_sectors)
    return rp_fail (fault, RP_CORRUPT,
                    (uint64_t) entry * RP_SECTOR_BYTES,
                    "%s: the entry of its grain %" PRIu64 " points at sector %"
                    PRIu32 ", inside the metadata", sparse->file->name, grain,
                    entry);
  else
    *out = RP_SEGMENT_DATA;
  return RP_OK;
}

int
rp_sparse_map (struct rp_sparse *sparse, uint64_t offset, uint64_t length,
               struct rp_segment *out, struct rp_fault *fault)
{
  const uint32_t shift = sparse->layout.grain_shift;
  const uint64_t grain = offset >> shift;
  const uint64_t within = offset & (rp_sparse_grain_bytes (sparse) - 1);
  const uint64_t limit = ((within + length - 1) >> shift) + 1;
  uint64_t count = 1, bytes;
  uint32_t entry;
  int status;

  status = rp_sparse_lookup (sparse, grain, &entry, fault);
  if (status == RP_OK)
    status = classify (sparse, grain, entry, &out->kind, fault);
  if (status != RP_OK)
    return status;
  if (limit > 1)
    count = rp_sparse_count_alike (sparse, grain, limit, entry);
  bytes = (count << shift) - within;
  out->length_bytes = bytes < length ? bytes : length;
  out->packed = false;
  out->file = NULL;
  out->file_offset_bytes = 0;
  if (out->kind == RP_SEGMENT_DATA) {
    out->file = sparse->file;
    out->file_offset_bytes = (uint64_t) entry * RP_SECTOR_BYTES + within;
  }
  return RP_OK;
}

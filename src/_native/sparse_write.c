/* SPDX-License-Identifier: Apache-2.0 */
/* Changing sparse extents in memory and growing their files; sparse_flush.c
 * makes that durable. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sparse.h"

/* What may wait in memory.  A dirty block is 512 bytes in the copy that a
 * flush takes, so that copy is at most 64 MiB. */
#define DIRTY_ENTRIES_MAX (UINT64_C (1) << 20)
#define DIRTY_BLOCKS_MAX  (UINT64_C (1) << 17)

/* ---- the first write ---- */

int
rp_sparse_mark_unclean (struct rp_sparse *sparse, bool unclean,
                        struct rp_fault *fault)
{
  const bool cowd = sparse->layout.kind == RP_EXTENT_COWD;
  const uint8_t field[4] = { unclean, 0, 0, 0 };

  return rp_file_pwrite (sparse->file, field, cowd ? 4 : 1,
                         cowd ? RP_COWD_UNCLEAN_OFFSET : RP_KDMV_UNCLEAN_OFFSET,
                         fault);
}

/* The end of the last table or grain that anything points at; an entry behind
 * the capacity shows nothing to anybody. */
static int
find_used_end (struct rp_sparse *sparse, uint64_t *out, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &sparse->layout;
  const size_t count = (size_t) 1 << layout->table_shift;
  const uint64_t grains = rp_divide_up (layout->info.capacity_sectors,
                                        layout->info.grain_sectors);
  uint32_t *entries = malloc (count * sizeof *entries);
  uint64_t end = layout->info.overhead_sectors;
  int status = RP_OK;

  if (!entries)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", sparse->file->name);
  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint64_t sector = atomic_load (&sparse->directory[i]);

    if (sector == 0)
      continue;
    if (end < sector + layout->table_sectors)
      end = sector + layout->table_sectors;
    status = rp_sparse_read_table (sparse, (uint32_t) sector, entries, fault);
    for (size_t k = 0; status == RP_OK && k < count
         && ((uint64_t) i << layout->table_shift) + k < grains; k++)
      if (entries[k] && end < entries[k] + layout->info.grain_sectors)
        end = entries[k] + layout->info.grain_sectors;
  }
  free (entries);
  *out = end;
  return status;
}

/* The end of the disk's last grain, where it may be cut off: only what the disk
 * shows of it has to be in the file, and it need not begin at a whole grain, so
 * the rest may lie behind the end of the file.  A new grain there would overlap
 * it.  0 where there is none. */
static int
find_last_end (struct rp_sparse *sparse, uint64_t *out, struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &sparse->layout.info;
  const uint64_t needed = info->capacity_sectors % info->grain_sectors;
  uint32_t entry = 0;
  int status = RP_OK;

  if (needed != 0)
    status = rp_sparse_lookup (sparse,
                               info->capacity_sectors / info->grain_sectors,
                               &entry, fault);
  *out = entry > 1
         && rp_inside ((uint64_t) entry * RP_SECTOR_BYTES,
                       needed * RP_SECTOR_BYTES,
                       atomic_load (&sparse->file_bytes))
         ? entry + info->grain_sectors : 0;
  return status;
}

/* New grains begin at a whole grain, behind all that is there. */
static int
place_hosted (struct rp_sparse *sparse, struct rp_fault *fault)
{
  const uint64_t grain = sparse->layout.info.grain_sectors;
  uint64_t end = 0, sector = rp_divide_up (atomic_load (&sparse->file_bytes),
                                           RP_SECTOR_BYTES);
  const int status = find_last_end (sparse, &end, fault);

  if (sector < end)
    sector = end;
  atomic_store (&sparse->next_sector, rp_divide_up (sector, grain) * grain);
  return status;
}

/* ESX grows a COWD file ahead of freeSector, QEMU writes behind it without
 * raising it.  What lies behind both the pointer and everything pointed at is
 * cut off, so that all new space reads as zeros.  A pointer behind the end of
 * the file is not followed: a wrong one would make a file of 2 TiB. */
static int
place_cowd (struct rp_sparse *sparse, struct rp_fault *fault)
{
  const uint64_t file_bytes = atomic_load (&sparse->file_bytes);
  const uint64_t file_end = rp_divide_up (file_bytes, RP_SECTOR_BYTES);
  uint64_t free_sector = sparse->layout.info.free_sector, end = 0;
  int status = find_last_end (sparse, &end, fault);

  if (free_sector < sparse->layout.info.overhead_sectors)
    free_sector = sparse->layout.info.overhead_sectors;
  if (status == RP_OK && free_sector * RP_SECTOR_BYTES != file_bytes)
    status = find_used_end (sparse, &end, fault);
  if (free_sector > file_end)    /* a crash, or damage: nothing is there */
    free_sector = file_end;
  if (free_sector < end)
    free_sector = end;
  if (status == RP_OK && free_sector * RP_SECTOR_BYTES < file_bytes) {
    status = rp_file_truncate (sparse->file, free_sector * RP_SECTOR_BYTES,
                               fault);
    if (status == RP_OK)
      atomic_store (&sparse->file_bytes, free_sector * RP_SECTOR_BYTES);
  }
  atomic_store (&sparse->next_sector, free_sector);
  return status;
}

/* Make the redundant table of an index what the primary one is; buffers of one
 * table each. */
static int
repair_table (struct rp_sparse *sparse, uint32_t index, uint8_t *primary,
              uint8_t *redundant, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &sparse->layout;
  const size_t bytes = (size_t) layout->table_sectors * RP_SECTOR_BYTES;
  const uint64_t from = (uint64_t) atomic_load (&sparse->directory[index])
                        * RP_SECTOR_BYTES;
  const bool both = from != 0 && sparse->redundant[index] != 0;
  uint64_t sector = 0;
  uint8_t field[4];
  int status = RP_OK;

  if (from == 0 && sparse->redundant[index] == 0)
    return RP_OK;
  if (from != 0 && !both)
    status = rp_sparse_reserve (sparse, rp_divide_up (layout->table_sectors,
                                layout->info.grain_sectors), &sector, fault);
  if (status == RP_OK && !both) {
    sparse->redundant[index] = (uint32_t) sector;
    rp_store32 (field, (uint32_t) sector);
    status = rp_file_pwrite (sparse->file, field, sizeof field,
                             layout->info.redundant_directory_sector
                             * RP_SECTOR_BYTES + 4 * (uint64_t) index, fault);
  }
  if (status != RP_OK || from == 0)
    return status;
  sector = sparse->redundant[index];
  status = rp_file_pread_all (sparse->file, primary, bytes, from, fault);
  if (status == RP_OK)
    status = rp_file_pread_all (sparse->file, redundant, bytes,
                                sector * RP_SECTOR_BYTES, fault);
  if (status == RP_OK && memcmp (primary, redundant, bytes) != 0)
    status = rp_file_pwrite (sparse->file, primary, bytes,
                             sector * RP_SECTOR_BYTES, fault);
  return status;
}

/* After a crash the redundant tables may be one flush ahead of the primary
 * ones, or behind: make them equal.  Either view was a right one. */
static int
repair_redundant (struct rp_sparse *sparse, struct rp_fault *fault)
{
  const size_t bytes = (size_t) sparse->layout.table_sectors * RP_SECTOR_BYTES;
  uint8_t *primary = malloc (bytes), *redundant = malloc (bytes);
  int status = RP_OK;

  if (!primary || !redundant)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "opening %s",
                      sparse->file->name);
  for (uint32_t i = 0; status == RP_OK && i < sparse->layout.directory_count;
       i++)
    status = repair_table (sparse, i, primary, redundant, fault);
  free (primary);
  free (redundant);
  return status;
}

static int
start_locked (struct rp_sparse *sparse, struct rp_fault *fault)
{
  int status = RP_OK;

  if (!sparse->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s", sparse->file->name);
  if (!sparse->placed) {
    status = sparse->layout.kind == RP_EXTENT_COWD
             ? place_cowd (sparse, fault) : place_hosted (sparse, fault);
    if (status == RP_OK && sparse->redundant
        && sparse->layout.info.unclean_shutdown)
      status = repair_redundant (sparse, fault);
    if (status != RP_OK)
      return status;
    sparse->placed = true;
  }
  status = rp_sparse_mark_unclean (sparse, true, fault);
  if (status == RP_OK)
    status = rp_file_sync (sparse->file, fault);
  if (status == RP_OK)
    atomic_store (&sparse->started, true);
  return status;
}

int
rp_sparse_start (struct rp_sparse *sparse, struct rp_fault *fault)
{
  int status = RP_OK;

  if (atomic_load_explicit (&sparse->started, memory_order_acquire))
    return RP_OK;
  pthread_mutex_lock (&sparse->starting);
  if (!atomic_load (&sparse->started))
    status = start_locked (sparse, fault);
  pthread_mutex_unlock (&sparse->starting);
  return status;
}

/* A flush clears the mark before it syncs, so a mark that is still set after
 * the write means that the sync will cover it: no store, no shared cache line
 * bouncing between writers. */
void
rp_sparse_wrote (struct rp_sparse *sparse)
{
  if (!atomic_load (&sparse->data_dirty))
    atomic_store (&sparse->data_dirty, true);
}

int
rp_sparse_check_inside (struct rp_sparse *sparse, uint64_t offset,
                        uint64_t length, struct rp_fault *fault)
{
  if (rp_inside (offset, length, atomic_load_explicit (&sparse->file_bytes,
                                                       memory_order_relaxed)))
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, offset,
                  "%s: a grain lies at byte %" PRIu64
                  ", past the end of the file", sparse->file->name, offset);
}

/* ---- space ---- */

static int
grow (struct rp_sparse *sparse, uint64_t end_bytes, struct rp_fault *fault)
{
  const uint64_t step = sparse->step_bytes;
  const uint64_t most = RP_SPARSE_SECTORS_MAX * RP_SECTOR_BYTES;
  int status = RP_OK;

  if (end_bytes <= atomic_load (&sparse->file_bytes))
    return RP_OK;
  pthread_mutex_lock (&sparse->growing);
  if (end_bytes > atomic_load (&sparse->file_bytes)) {
    uint64_t size = rp_divide_up (end_bytes, step) * step;

    if (size > most)
      size = most;
    status = rp_file_truncate (sparse->file, size, fault);
    if (status == RP_OK)
      atomic_store (&sparse->file_bytes, size);
  }
  pthread_mutex_unlock (&sparse->growing);
  return status;
}

static int
reserve_sectors (struct rp_sparse *sparse, uint64_t sectors,
                 uint64_t *sector_out, struct rp_fault *fault)
{
  uint64_t at = atomic_load (&sparse->next_sector);

  do
    if (!rp_inside (at, sectors, RP_SPARSE_SECTORS_MAX))
      return rp_fail (fault, RP_FULL, at * RP_SECTOR_BYTES, "%s",
                      sparse->file->name);
  while (!atomic_compare_exchange_weak (&sparse->next_sector, &at,
                                        at + sectors));
  *sector_out = at;
  return grow (sparse, (at + sectors) * RP_SECTOR_BYTES, fault);
}

int
rp_sparse_reserve (struct rp_sparse *sparse, uint64_t count,
                   uint64_t *sector_out, struct rp_fault *fault)
{
  return reserve_sectors (sparse, count * sparse->layout.info.grain_sectors,
                          sector_out, fault);
}

/* ---- entries in memory ---- */

/* Room for one more in an array; under publishing. */
static int
ensure_room (struct rp_sparse *sparse, uint32_t **array, uint64_t count,
             uint64_t *room, struct rp_fault *fault)
{
  const uint64_t wanted = *room ? *room * 2 : 64;
  uint32_t *grown;

  if (count < *room)
    return RP_OK;
  grown = realloc (*array, wanted * sizeof **array);
  if (!grown)
    return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", sparse->file->name);
  *array = grown;
  *room = wanted;
  return RP_OK;
}

/* Where the directory has no table: space for one in the file, which reads as
 * zeros.  The directory entry follows with the next flush. */
static int
place_table (struct rp_sparse *sparse, uint32_t index, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &sparse->layout;
  uint64_t sectors = (uint64_t) layout->table_sectors
                     * (sparse->redundant ? 2 : 1);
  uint64_t sector;
  int status;

  if (atomic_load (&sparse->directory[index]) != 0)
    return RP_OK;
  status = ensure_room (sparse, &sparse->dirty_directory,
                        sparse->dirty_directory_count,
                        &sparse->dirty_directory_room, fault);
  if (status != RP_OK)
    return status;
  if (layout->kind == RP_EXTENT_SPARSE)    /* grains stay aligned */
    sectors = rp_divide_up (sectors, layout->info.grain_sectors)
              * layout->info.grain_sectors;
  status = reserve_sectors (sparse, sectors, &sector, fault);
  if (status != RP_OK)
    return status;
  if (sparse->redundant)
    sparse->redundant[index] = (uint32_t) sector + layout->table_sectors;
  atomic_store (&sparse->directory[index], (uint32_t) sector);
  sparse->dirty_directory[sparse->dirty_directory_count++] = index;
  return RP_OK;
}

/* The loaded table of an index, one that may be changed; under publishing. */
static int
own_table (struct rp_sparse *sparse, uint32_t index,
           struct rp_sparse_table **out, struct rp_fault *fault)
{
  struct rp_sparse_table *table = atomic_load (&sparse->tables[index]);
  int status = RP_OK;

  if (!table)
    status = rp_sparse_load_table (sparse, index, &table, fault);
  if (status == RP_OK && table == sparse->empty) {
    status = place_table (sparse, index, fault);
    if (status != RP_OK)
      return status;
    table = calloc (1, sizeof *table
                    + (sizeof (uint32_t) << sparse->layout.table_shift));
    if (!table)
      return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s",
                      sparse->file->name);
    atomic_store_explicit (&sparse->tables[index], table,
                           memory_order_release);
  }
  *out = table;
  return status;
}

static int
publish_one (struct rp_sparse *sparse, uint64_t grain, uint32_t sector,
             struct rp_fault *fault)
{
  const uint32_t index = (uint32_t) (grain >> sparse->layout.table_shift);
  const uint64_t entry = grain
                         & ((UINT64_C (1) << sparse->layout.table_shift) - 1);
  const uint64_t bit = UINT64_C (1) << (entry / RP_SPARSE_BLOCK_ENTRIES);
  struct rp_sparse_table *table = NULL;
  int status;

  status = ensure_room (sparse, &sparse->dirty_tables,
                        sparse->dirty_table_count, &sparse->dirty_table_room,
                        fault);
  if (status == RP_OK)
    status = own_table (sparse, index, &table, fault);
  if (status != RP_OK)
    return status;
  atomic_store_explicit (&table->entries[entry], sector, memory_order_release);
  if (!table->dirty)
    sparse->dirty_tables[sparse->dirty_table_count++] = index;
  if (!(table->dirty & bit)) {
    table->dirty |= bit;
    atomic_fetch_add (&sparse->dirty_blocks, 1);
  }
  return RP_OK;
}

int
rp_sparse_publish (struct rp_sparse *sparse, uint64_t first, uint64_t count,
                   uint32_t sector, struct rp_fault *fault)
{
  const uint32_t step = sector == 1
                        ? 0 : (uint32_t) sparse->layout.info.grain_sectors;
  int status = RP_OK;

  pthread_mutex_lock (&sparse->publishing);
  for (uint64_t i = 0; status == RP_OK && i < count; i++)
    status = publish_one (sparse, first + i, sector + (uint32_t) i * step,
                          fault);
  pthread_mutex_unlock (&sparse->publishing);
  atomic_fetch_add (&sparse->dirty_entries, count);
  return status;
}

bool
rp_sparse_wants_flush (struct rp_sparse *sparse)
{
  return atomic_load_explicit (&sparse->dirty_entries, memory_order_relaxed)
         >= DIRTY_ENTRIES_MAX
         || atomic_load_explicit (&sparse->dirty_blocks, memory_order_relaxed)
            >= DIRTY_BLOCKS_MAX;
}

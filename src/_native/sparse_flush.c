/* SPDX-License-Identifier: Apache-2.0 */
/* Making sparse extents durable: see the write order in sparse.h. */
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sparse.h"

struct place {
  uint64_t primary, redundant;   /* bytes in the file */
};

/* What one flush writes: a copy, because entries that are made meanwhile
 * point at data that its first sync does not cover. */
struct copy {
  uint64_t      block_count, table_count;
  uint8_t      *blocks;          /* 512 bytes each, in order of places */
  struct place *places;
  struct entry {
    uint32_t index, primary, redundant;
  }            *tables;          /* new tables: entries of the directories */
  uint32_t      free_sector;
};

static void
free_copy (struct copy *copy)
{
  free (copy->tables);
  free (copy->places);
  free (copy->blocks);
}

static void
copy_table (struct rp_sparse *sparse, uint32_t index, struct copy *copy)
{
  struct rp_sparse_table *table = atomic_load (&sparse->tables[index]);

  for (uint64_t left = table->dirty; left; left &= left - 1) {
    const uint32_t block = (uint32_t) __builtin_ctzll (left);
    uint8_t *to = copy->blocks + copy->block_count * RP_SECTOR_BYTES;
    struct place *place = &copy->places[copy->block_count++];

    for (uint32_t i = 0; i < RP_SPARSE_BLOCK_ENTRIES; i++)
      rp_store32 (to + 4 * (size_t) i,
                  atomic_load (&table->entries[block * RP_SPARSE_BLOCK_ENTRIES
                                               + i]));
    place->primary = ((uint64_t) atomic_load (&sparse->directory[index])
                      + block) * RP_SECTOR_BYTES;
    place->redundant = sparse->redundant
                       ? ((uint64_t) sparse->redundant[index] + block)
                         * RP_SECTOR_BYTES : 0;
  }
  table->dirty = 0;
}

/* Take all that is dirty; under publishing. */
static int
take_copy (struct rp_sparse *sparse, struct copy *copy, struct rp_fault *fault)
{
  const uint64_t blocks = atomic_load (&sparse->dirty_blocks);
  const uint64_t tables = sparse->dirty_directory_count;

  memset (copy, 0, sizeof *copy);
  copy->free_sector = (uint32_t) atomic_load (&sparse->next_sector);
  if (blocks == 0 && tables == 0)
    return RP_OK;
  copy->blocks = malloc (blocks * RP_SECTOR_BYTES + 1);
  copy->places = malloc ((blocks + 1) * sizeof *copy->places);
  copy->tables = malloc ((tables + 1) * sizeof *copy->tables);
  if (!copy->blocks || !copy->places || !copy->tables) {
    free_copy (copy);
    return rp_fail (fault, RP_NO_MEMORY, 0, "flushing %s",
                    sparse->file->name);
  }
  qsort (sparse->dirty_tables, sparse->dirty_table_count,
         sizeof *sparse->dirty_tables, rp_sparse_compare32);
  for (uint64_t i = 0; i < sparse->dirty_table_count; i++)
    copy_table (sparse, sparse->dirty_tables[i], copy);
  RP_CHECK (copy->block_count == blocks);
  for (uint64_t i = 0; i < tables; i++) {
    const uint32_t index = sparse->dirty_directory[i];

    copy->tables[copy->table_count++] = (struct entry) {
      .index = index,
      .primary = atomic_load (&sparse->directory[index]),
      .redundant = sparse->redundant ? sparse->redundant[index] : 0,
    };
  }
  sparse->dirty_table_count = 0;
  sparse->dirty_directory_count = 0;
  atomic_store (&sparse->dirty_blocks, 0);
  atomic_store (&sparse->dirty_entries, 0);
  return RP_OK;
}

static uint64_t
place_of (const struct copy *copy, uint64_t i, bool redundant)
{
  return redundant ? copy->places[i].redundant : copy->places[i].primary;
}

/* Write the blocks at their primary or redundant places, neighbours in one
 * call: they are neighbours in the copy, too. */
static int
write_blocks (struct rp_sparse *sparse, const struct copy *copy,
              bool redundant, struct rp_fault *fault)
{
  uint64_t first = 0, stop;
  int status = RP_OK;

  for (; status == RP_OK && first < copy->block_count; first = stop) {
    const uint64_t at = place_of (copy, first, redundant);

    stop = first + 1;
    while (stop < copy->block_count
           && place_of (copy, stop, redundant)
              == at + (stop - first) * RP_SECTOR_BYTES)
      stop++;
    status = rp_file_pwrite (sparse->file,
                             copy->blocks + first * RP_SECTOR_BYTES,
                             (stop - first) * RP_SECTOR_BYTES, at, fault);
  }
  return status;
}

static int
write_directory_entries (struct rp_sparse *sparse, const struct copy *copy,
                         struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &sparse->layout.info;
  int status = RP_OK;

  for (uint64_t i = 0; status == RP_OK && i < copy->table_count; i++) {
    const struct entry *entry = &copy->tables[i];
    uint8_t field[4];

    if (sparse->redundant) {
      rp_store32 (field, entry->redundant);
      status = rp_file_pwrite (sparse->file, field, sizeof field,
                               info->redundant_directory_sector
                               * RP_SECTOR_BYTES + 4 * (uint64_t) entry->index,
                               fault);
    }
    rp_store32 (field, entry->primary);
    if (status == RP_OK)
      status = rp_file_pwrite (sparse->file, field, sizeof field,
                               info->directory_sector * RP_SECTOR_BYTES
                               + 4 * (uint64_t) entry->index, fault);
  }
  return status;
}

static int
write_free_sector (struct rp_sparse *sparse, uint32_t free_sector,
                   struct rp_fault *fault)
{
  uint8_t field[4];

  if (sparse->layout.kind != RP_EXTENT_COWD)
    return RP_OK;
  rp_store32 (field, free_sector);
  return rp_file_pwrite (sparse->file, field, sizeof field,
                         RP_COWD_FREE_OFFSET, fault);
}

/* Tell a checking backend which grains the entries point at. */
static void
note_grains (struct rp_sparse *sparse, const struct copy *copy)
{
  if (!sparse->file->io->functions->file_note)
    return;
  for (uint64_t i = 0; i < copy->block_count * RP_SPARSE_BLOCK_ENTRIES; i++) {
    const uint32_t sector = rp_load32 (copy->blocks + 4 * i);

    if (sector > 1)
      rp_file_note (sparse->file, RP_NOTE_POINTS_TO,
                    (uint64_t) sector * RP_SECTOR_BYTES,
                    rp_sparse_grain_bytes (sparse));
  }
}

static int
write_copy (struct rp_sparse *sparse, const struct copy *copy,
            struct rp_fault *fault)
{
  int status;

  status = write_free_sector (sparse, copy->free_sector, fault);
  if (status == RP_OK && !RP_SABOTAGED (6))   /* entries before data */
    status = rp_file_sync (sparse->file, fault);
  if (status != RP_OK)
    return status;
  note_grains (sparse, copy);
  if (sparse->redundant)
    status = write_blocks (sparse, copy, true, fault);
  if (status == RP_OK)
    status = write_blocks (sparse, copy, false, fault);
  if (status == RP_OK)
    status = write_directory_entries (sparse, copy, fault);
  return status == RP_OK ? rp_file_sync (sparse->file, fault) : status;
}

int
rp_sparse_flush (struct rp_sparse *sparse, struct rp_fault *fault)
{
  struct copy copy;
  bool data_dirty;
  int status;

  pthread_mutex_lock (&sparse->publishing);
  status = take_copy (sparse, &copy, fault);
  pthread_mutex_unlock (&sparse->publishing);
  if (status != RP_OK)
    return status;
  data_dirty = atomic_exchange (&sparse->data_dirty, false);
  if (copy.block_count > 0 || copy.table_count > 0)
    status = write_copy (sparse, &copy, fault);
  else if (data_dirty)
    status = rp_file_sync (sparse->file, fault);
  free_copy (&copy);
  if (status == RP_OK)
    rp_file_note (sparse->file, RP_NOTE_ACKNOWLEDGE, 0,
                  atomic_load (&sparse->file_bytes));
  return status;
}

int
rp_sparse_finish (struct rp_sparse *sparse, struct rp_fault *fault)
{
  uint64_t end;
  int status = RP_OK;

  if (!atomic_load (&sparse->started))
    return RP_OK;
  end = atomic_load (&sparse->next_sector) * RP_SECTOR_BYTES;
  if (end < atomic_load (&sparse->file_bytes)) {
    status = rp_file_truncate (sparse->file, end, fault);
    if (status == RP_OK)
      atomic_store (&sparse->file_bytes, end);
  }
  if (status == RP_OK)
    status = write_free_sector (sparse, (uint32_t) (end / RP_SECTOR_BYTES),
                                fault);
  if (status == RP_OK)
    status = rp_sparse_mark_unclean (sparse, false, fault);
  if (status == RP_OK)
    status = rp_file_sync (sparse->file, fault);
  if (status == RP_OK) {
    sparse->layout.info.unclean_shutdown = false;
    atomic_store (&sparse->started, false);
  }
  return status;
}

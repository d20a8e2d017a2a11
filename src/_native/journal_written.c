/* SPDX-License-Identifier: Apache-2.0 */
/* Which parts of the disk were written since a restore point. */
#include "journal_private.h"

#include <stdlib.h>

/* Bytes of the disk that grains [first, stop) cover: the last may be short. */
static int
add_grains (const struct rp_journal *journal, uint64_t first, uint64_t stop,
            struct rp_spans *out, struct rp_fault *fault)
{
  const uint64_t grain_bytes = journal->super.grain_bytes;
  const uint64_t size = journal->super.capacity_bytes;
  const uint64_t end = stop * grain_bytes;

  return rp_spans_add (out, first * grain_bytes, end < size ? end : size,
                       fault);
}

/* All grains that have an entry in a map of nothing but what was walked. */
static int
list_grains (const struct rp_journal *journal, const struct rp_map *map,
             struct rp_spans *out, struct rp_fault *fault)
{
  int status = RP_OK;

  for (uint64_t i = rp_map_next (map, 0);
       status == RP_OK && i < map->table_count; i = rp_map_next (map, i + 1)) {
    const uint32_t *table = rp_map_peek (map, i);
    const uint64_t first = i * RP_LOG_TABLE_ENTRIES;
    uint32_t stop;

    if (!table)
      continue;
    for (uint32_t at = 0; status == RP_OK && at < RP_LOG_TABLE_ENTRIES;
         at = stop) {
      stop = at + 1;
      if (table[at] == RP_PLACE_ABSENT)
        continue;
      while (stop < RP_LOG_TABLE_ENTRIES && table[stop] != RP_PLACE_ABSENT)
        stop++;
      status = add_grains (journal, first + at, first + stop, out, fault);
    }
  }
  return status;
}

/* Where the walk begins. */
static int
find_start (const struct rp_journal *journal, uint64_t point_id,
            uint64_t *entry_out, struct rp_fault *fault)
{
  struct rp_cut cut = { .entry = 0 };
  int status;

  *entry_out = journal->super.ring.based_entry;
  if (point_id == RP_POINT_BASE)
    return RP_OK;
  status = rp_journal_find_cut (journal, point_id, &cut, fault);
  *entry_out = cut.entry + RP_SABOTAGED (45);  /* forgets one write */
  return status;
}

int
rp_journal_written (struct rp_journal *journal, uint64_t point_id,
                    struct rp_spans *out, struct rp_fault *fault)
{
  struct rp_map map = { .pages = NULL };
  uint64_t first = 0;
  int status = RP_OK;

  if (journal->writable)
    status = rp_journal_commit (journal, fault);
  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  status = find_start (journal, point_id, &first, fault);
  if (status == RP_OK)
    status = rp_map_create (&map, journal->grain_count, fault);
  if (status == RP_OK)
    status = rp_journal_walk_forward (journal, &map, first,
                                      rp_journal_entry_count (journal), fault);
  if (status == RP_OK)
    status = list_grains (journal, &map, out, fault);
  rp_map_destroy (&map);
  if (status == RP_OK)
    status = rp_journal_check_not_passed (journal, fault);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

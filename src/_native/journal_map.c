/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_map.h"

#include <stdlib.h>
#include <string.h>

/* Tables come from slabs: one malloc for each of 25,000 tables would cost more
 * than filling them. */
#define SLAB_TABLES 1024u

struct rp_map_slab {
  struct rp_map_slab *next;
  uint32_t used, room;
  uint32_t places[][RP_LOG_TABLE_ENTRIES];
};

const uint32_t rp_map_zeros[RP_LOG_TABLE_ENTRIES] = {
  [0 ... RP_LOG_TABLE_ENTRIES - 1] = RP_PLACE_ZEROS
};

int
rp_map_create (struct rp_map *map, uint64_t grain_count,
               struct rp_fault *fault)
{
  memset (map, 0, sizeof *map);
  map->grain_count = grain_count;
  map->table_count = rp_divide_up (grain_count, RP_LOG_TABLE_ENTRIES);
  map->tables = calloc (map->table_count, sizeof *map->tables);
  if (!map->tables)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a block map");
  return RP_OK;
}

void
rp_map_destroy (struct rp_map *map)
{
  while (map->slabs) {
    struct rp_map_slab *next = map->slabs->next;

    free (map->slabs);
    map->slabs = next;
  }
  free (map->tables);
  memset (map, 0, sizeof *map);
}

/* Memory for a table, not cleared. */
static uint32_t *
new_table (struct rp_map *map)
{
  uint32_t *table = map->free_table;

  if (table) {
    memcpy (&map->free_table, table, sizeof map->free_table);
    return table;
  }
  if (!map->slabs || map->slabs->used == map->slabs->room) {
    const uint32_t room = map->table_count < SLAB_TABLES
                          ? (uint32_t) map->table_count : SLAB_TABLES;
    struct rp_map_slab *slab = malloc (sizeof *slab
                                       + room * sizeof slab->places[0]);

    if (!slab)
      return NULL;
    slab->used = 0;
    slab->room = room;
    slab->next = map->slabs;
    map->slabs = slab;
  }
  return map->slabs->places[map->slabs->used++];
}

static void
free_table (struct rp_map *map, uint32_t *table)
{
  memcpy (table, &map->free_table, sizeof map->free_table);
  map->free_table = table;
}

/* Does the map's table also belong to a freeze? */
static bool
is_shared (const struct rp_map *map, uint64_t table)
{
  return map->freeze && !map->freeze->kept[table];
}

/* Put another table there; the old one stays with the freeze, or is free. */
static void
replace_table (struct rp_map *map, uint64_t table, uint32_t *with)
{
  uint32_t *at = map->tables[table];

  map->own_count += rp_map_is_writable (with);
  map->own_count -= rp_map_is_writable (at);
  map->stored_count += with != NULL;
  map->stored_count -= at != NULL;
  if (is_shared (map, table)) {
    map->freeze->tables[table] = at;
    map->freeze->kept[table] = 1;
  } else if (rp_map_is_writable (at))
    free_table (map, at);
  map->tables[table] = with;
}

uint32_t *
rp_map_table (struct rp_map *map, uint64_t table)
{
  uint32_t *at = map->tables[table], *made;

  if (rp_map_is_writable (at) && !is_shared (map, table))
    return at;
  made = new_table (map);
  if (!made)
    return NULL;
  if (at)
    memcpy (made, at, RP_LOG_TABLE_BYTES);
  else
    memset (made, 0, RP_LOG_TABLE_BYTES);
  replace_table (map, table, made);
  return made;
}

void
rp_map_forget_table (struct rp_map *map, uint64_t table)
{
  replace_table (map, table, NULL);
}

int
rp_map_freeze_create (const struct rp_map *map, struct rp_map_freeze *freeze,
                      struct rp_fault *fault)
{
  freeze->tables = calloc (map->table_count, sizeof *freeze->tables);
  freeze->kept = calloc (map->table_count, sizeof *freeze->kept);
  if (freeze->tables && freeze->kept)
    return RP_OK;
  rp_map_freeze_destroy (freeze);
  return rp_fail (fault, RP_NO_MEMORY, 0, "a frozen block map");
}

void
rp_map_freeze_destroy (struct rp_map_freeze *freeze)
{
  free (freeze->tables);
  free (freeze->kept);
  memset (freeze, 0, sizeof *freeze);
}

void
rp_map_freeze_begin (struct rp_map *map, struct rp_map_freeze *freeze)
{
  RP_CHECK (!map->freeze);
  map->freeze = freeze;
}

void
rp_map_freeze_end (struct rp_map *map)
{
  map->freeze = NULL;
}

void
rp_map_freeze_release (struct rp_map *map, struct rp_map_freeze *freeze,
                       uint64_t first, uint64_t stop)
{
  for (uint64_t i = first; i < stop; i++)
    if (freeze->kept[i] && rp_map_is_writable (freeze->tables[i]))
      free_table (map, freeze->tables[i]);
}

int
rp_map_copy (struct rp_map *map, const struct rp_map *from,
             struct rp_fault *fault)
{
  int status = rp_map_create (map, from->grain_count, fault);

  for (uint64_t i = 0; status == RP_OK && i < from->table_count; i++) {
    uint32_t *at = from->tables[i];

    if (rp_map_is_writable (at)) {
      uint32_t *made = new_table (map);

      if (!made) {
        status = rp_fail (fault, RP_NO_MEMORY, 0, "a copy of the block map");
        rp_map_destroy (map);
        break;
      }
      memcpy (made, at, RP_LOG_TABLE_BYTES);
      map->own_count++;
      at = made;
    }
    map->stored_count += at != NULL;
    map->tables[i] = at;
  }
  return status;
}

int
rp_map_set (struct rp_map *map, uint64_t grain, uint32_t place,
            struct rp_fault *fault)
{
  uint32_t *table = rp_map_table (map, grain / RP_LOG_TABLE_ENTRIES);

  if (!table)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  table[grain % RP_LOG_TABLE_ENTRIES] = place;
  return RP_OK;
}

/* Fill one whole table without memory for it. */
static void
fill_table (struct rp_map *map, uint64_t table, uint32_t place)
{
  replace_table (map, table, place == RP_PLACE_ABSENT
                             ? NULL : (uint32_t *) (uintptr_t) rp_map_zeros);
}

/* Fill part of a table whose memory is there. */
static void
fill_part (struct rp_map *map, uint64_t grain, uint64_t count, uint32_t place)
{
  uint32_t *table = map->tables[grain / RP_LOG_TABLE_ENTRIES];

  for (uint64_t i = 0; i < count; i++)
    table[grain % RP_LOG_TABLE_ENTRIES + i] = place;
}

int
rp_map_fill (struct rp_map *map, uint64_t grain, uint64_t count,
             uint32_t place, struct rp_fault *fault)
{
  const uint64_t stop = grain + count;

  RP_CHECK (rp_inside (grain, count, map->grain_count));
  RP_CHECK (count <= 1 || place <= RP_PLACE_ZEROS);
  if (count == 0)
    return RP_OK;
  /* only the tables at both ends may need memory: take it first */
  if ((grain % RP_LOG_TABLE_ENTRIES != 0 || count < RP_LOG_TABLE_ENTRIES)
      && !rp_map_table (map, grain / RP_LOG_TABLE_ENTRIES))
    return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  if (stop % RP_LOG_TABLE_ENTRIES != 0
      && !rp_map_table (map, stop / RP_LOG_TABLE_ENTRIES))
    return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  while (grain < stop) {
    uint64_t here = RP_LOG_TABLE_ENTRIES - grain % RP_LOG_TABLE_ENTRIES;

    if (here > stop - grain)
      here = stop - grain;
    if (here == RP_LOG_TABLE_ENTRIES)
      fill_table (map, grain / RP_LOG_TABLE_ENTRIES, place);
    else
      fill_part (map, grain, here, place);
    grain += here;
  }
  return RP_OK;
}

uint64_t
rp_map_run (const struct rp_map *map, uint64_t grain, uint64_t stop,
            uint32_t step, uint32_t *place_out)
{
  const uint32_t first = rp_map_get (map, grain);
  uint64_t at = grain + 1;
  uint32_t expected = first;

  *place_out = first;
  if (first > RP_PLACE_ZEROS)
    expected += step;
  while (at < stop) {
    const uint32_t *table = map->tables[at / RP_LOG_TABLE_ENTRIES];
    const uint64_t rest = RP_LOG_TABLE_ENTRIES - at % RP_LOG_TABLE_ENTRIES;

    if (!rp_map_is_writable (table)) {
      if (expected != (table ? RP_PLACE_ZEROS : RP_PLACE_ABSENT))
        break;
      at = rest < stop - at ? at + rest : stop;
      continue;
    }
    if (table[at % RP_LOG_TABLE_ENTRIES] != expected)
      break;
    if (first > RP_PLACE_ZEROS)
      expected += step;
    at++;
  }
  return at - grain;
}

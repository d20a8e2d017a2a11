/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_map.h"

#include <stdlib.h>
#include <string.h>

/* Tables come from slabs: one malloc for each of 25,000 tables would cost more
 * than filling them. */
#define SLAB_TABLES 1024u
#define PAGE_GRAINS (RP_MAP_PAGE_TABLES * RP_LOG_TABLE_ENTRIES)

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
  map->page_count = rp_divide_up (map->table_count, RP_MAP_PAGE_TABLES);
  map->pages = calloc (map->page_count, sizeof *map->pages);
  if (!map->pages)
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
  for (uint64_t i = 0; map->pages && i < map->page_count; i++)
    free (map->pages[i]);
  free (map->pages);
  memset (map, 0, sizeof *map);
}

uint64_t
rp_map_next (const struct rp_map *map, uint64_t table)
{
  uint64_t page = table / RP_MAP_PAGE_TABLES;

  if (page >= map->page_count || map->pages[page])
    return table < map->table_count ? table : map->table_count;
  while (page < map->page_count && !map->pages[page])
    page++;
  return page < map->page_count ? page * RP_MAP_PAGE_TABLES
                                : map->table_count;
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
  return map->freeze && !rp_map_is_kept (map->freeze, table);
}

/* The page that a table hangs on, and that which remembers it while the map is
 * frozen.  false: no memory. */
static bool
make_page (struct rp_map *map, uint64_t page)
{
  if (!map->pages[page])
    map->pages[page] = calloc (RP_MAP_PAGE_TABLES, sizeof *map->pages[page]);
  if (map->pages[page] && map->freeze && !map->freeze->pages[page])
    map->freeze->pages[page] = calloc (1, sizeof *map->freeze->pages[page]);
  return map->pages[page] && (!map->freeze || map->freeze->pages[page]);
}

/* Put another table there, whose page is made; the old one stays with the
 * freeze, or is free. */
static void
replace_table (struct rp_map *map, uint64_t table, uint32_t *with)
{
  const uint64_t page = table / RP_MAP_PAGE_TABLES;
  const uint64_t index = table % RP_MAP_PAGE_TABLES;
  uint32_t *at = map->pages[page][index];

  map->own_count += rp_map_is_writable (with);
  map->own_count -= rp_map_is_writable (at);
  map->stored_count += with != NULL;
  map->stored_count -= at != NULL;
  if (is_shared (map, table)) {
    map->freeze->pages[page]->tables[index] = at;
    map->freeze->pages[page]->kept[index] = 1;
  } else if (rp_map_is_writable (at))
    free_table (map, at);
  map->pages[page][index] = with;
}

uint32_t *
rp_map_table (struct rp_map *map, uint64_t table)
{
  uint32_t *at = rp_map_peek (map, table), *made;

  if (rp_map_is_writable (at) && !is_shared (map, table))
    return at;
  made = make_page (map, table / RP_MAP_PAGE_TABLES) ? new_table (map) : NULL;
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
  if (rp_map_peek (map, table) && make_page (map, table / RP_MAP_PAGE_TABLES))
    replace_table (map, table, NULL);
}

int
rp_map_freeze_create (const struct rp_map *map, struct rp_map_freeze *freeze,
                      struct rp_fault *fault)
{
  freeze->page_count = map->page_count;
  freeze->pages = calloc (map->page_count, sizeof *freeze->pages);
  if (freeze->pages)
    return RP_OK;
  return rp_fail (fault, RP_NO_MEMORY, 0, "a frozen block map");
}

void
rp_map_freeze_destroy (struct rp_map_freeze *freeze)
{
  for (uint64_t i = 0; freeze->pages && i < freeze->page_count; i++)
    free (freeze->pages[i]);
  free (freeze->pages);
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
  for (uint64_t i = first; i < stop; i++) {
    const struct rp_map_kept *page = freeze->pages[i / RP_MAP_PAGE_TABLES];

    if (rp_map_is_kept (freeze, i)
        && rp_map_is_writable (page->tables[i % RP_MAP_PAGE_TABLES]))
      free_table (map, page->tables[i % RP_MAP_PAGE_TABLES]);
  }
}

/* One table into an empty map: the shared one is shared here as well. */
static bool
copy_table (struct rp_map *map, uint64_t table, uint32_t *from)
{
  uint32_t *made = from;

  if (!make_page (map, table / RP_MAP_PAGE_TABLES))
    return false;
  if (rp_map_is_writable (from)) {
    made = new_table (map);
    if (!made)
      return false;
    memcpy (made, from, RP_LOG_TABLE_BYTES);
  }
  replace_table (map, table, made);
  return true;
}

int
rp_map_copy (struct rp_map *map, const struct rp_map *from,
             struct rp_fault *fault)
{
  int status = rp_map_create (map, from->grain_count, fault);

  for (uint64_t i = 0; status == RP_OK
       && (i = rp_map_next (from, i)) < from->table_count; i++) {
    uint32_t *at = rp_map_peek (from, i);

    if (at && !copy_table (map, i, at)) {
      status = rp_fail (fault, RP_NO_MEMORY, 0, "a copy of the block map");
      rp_map_destroy (map);
    }
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

/* Fill one whole table, whose page is made or would be all absent again. */
static void
fill_table (struct rp_map *map, uint64_t table, uint32_t place)
{
  if (place != RP_PLACE_ABSENT || rp_map_peek (map, table))
    replace_table (map, table, place == RP_PLACE_ABSENT
                               ? NULL : (uint32_t *) (uintptr_t) rp_map_zeros);
}

/* Fill part of a table whose memory is there. */
static void
fill_part (struct rp_map *map, uint64_t grain, uint64_t count, uint32_t place)
{
  uint32_t *table = rp_map_peek (map, grain / RP_LOG_TABLE_ENTRIES);

  for (uint64_t i = 0; i < count; i++)
    table[grain % RP_LOG_TABLE_ENTRIES + i] = place;
}

/* Memory for what filling grains [grain, stop) puts in: pages, and the tables
 * at both ends. */
static bool
make_room (struct rp_map *map, uint64_t grain, uint64_t stop, uint32_t place)
{
  const uint64_t last = (stop - 1) / RP_LOG_TABLE_ENTRIES / RP_MAP_PAGE_TABLES;

  for (uint64_t i = grain / RP_LOG_TABLE_ENTRIES / RP_MAP_PAGE_TABLES;
       i <= last; i++)
    if ((place != RP_PLACE_ABSENT || map->pages[i]) && !make_page (map, i))
      return false;
  if ((grain % RP_LOG_TABLE_ENTRIES != 0
       || stop - grain < RP_LOG_TABLE_ENTRIES)
      && !rp_map_table (map, grain / RP_LOG_TABLE_ENTRIES))
    return false;
  return stop % RP_LOG_TABLE_ENTRIES == 0
         || rp_map_table (map, stop / RP_LOG_TABLE_ENTRIES);
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
  if (!make_room (map, grain, stop, place))
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
    const uint32_t *table = rp_map_peek (map, at / RP_LOG_TABLE_ENTRIES);
    uint64_t rest = RP_LOG_TABLE_ENTRIES - at % RP_LOG_TABLE_ENTRIES;

    if (!map->pages[at / PAGE_GRAINS])
      rest = PAGE_GRAINS - at % PAGE_GRAINS;
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

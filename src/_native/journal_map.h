/* journal_map.h - grain -> place in a journal log.
 *
 * The shape of VMDK's own grain directory and grain tables, so that a map
 * can be written as it is: a table is 512 places of 32 bits.  A table that was
 * never touched is NULL (all absent); a table of nothing but zeros is one
 * constant that all share, copied when one of its grains changes.  So
 * trimming 1 TiB costs next to no memory.
 *
 * The tables hang on pages, one for each page of the directory on disk; a page
 * is made when its first table is, and stays.  So a map costs what the written
 * part of the disk does, not what the disk does: whoever goes through all
 * tables skips the pages that are not there (rp_map_next).
 *
 *   places   0 absent (the base shows) | 1 zeros | sector in the log file
 *
 * A map can be frozen: what it holds at that moment can be read at leisure,
 * table by table, while it goes on changing.  Freezing itself costs nothing; a
 * table that is changed afterwards for the first time is copied before.
 *
 * Threads: none of its own; the journal's lock guards it.  A table that
 *          rp_map_frozen gave out does not change until the freeze ends, and
 *          may be read without the lock.
 */
#ifndef RP_JOURNAL_MAP_H
#define RP_JOURNAL_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "journal_format.h"

struct rp_map_slab;

/* Tables of one page of a directory. */
#define RP_MAP_PAGE_TABLES (RP_LOG_PAGE_BYTES / 4)

struct rp_map_kept {
  uint32_t *tables[RP_MAP_PAGE_TABLES];
  uint8_t   kept[RP_MAP_PAGE_TABLES];  /* 1: that counts, not the map's own */
};

/* What a frozen map had where it has changed since. */
struct rp_map_freeze {
  uint64_t page_count;
  struct rp_map_kept **pages;    /* NULL: nothing of the page has changed */
};

struct rp_map {
  uint64_t   grain_count;
  uint64_t   table_count, page_count;
  uint32_t ***pages;             /* of tables, const when one is rp_map_zeros;
                                    NULL: all of the page is absent */
  struct rp_map_slab *slabs;     /* memory of the tables */
  uint32_t  *free_table;         /* a list, linked through the first bytes */
  uint64_t   own_count;          /* tables with memory of their own */
  uint64_t   stored_count;       /* those, and tables of nothing but zeros */
  struct rp_map_freeze *freeze;  /* NULL: not frozen */
};

/* The shared table of zeros. */
extern const uint32_t rp_map_zeros[RP_LOG_TABLE_ENTRIES];

int  rp_map_create (struct rp_map *map, uint64_t grain_count,
                    struct rp_fault *fault);
void rp_map_destroy (struct rp_map *map);        /* a zeroed one is allowed */
/* Deep copy into a map that was not created. */
int  rp_map_copy (struct rp_map *map, const struct rp_map *from,
                  struct rp_fault *fault);

/* A table that can be written: made, or copied from the shared one.  NULL: no
 * memory.
 */
uint32_t *rp_map_table (struct rp_map *map, uint64_t table);
/* Make a whole table absent.  It stays as it is where a frozen map has no
 * memory to remember it. */
void rp_map_forget_table (struct rp_map *map, uint64_t table);
/* The first table from this one on whose page is there; or table_count. */
uint64_t rp_map_next (const struct rp_map *map, uint64_t table);

/* Memory for a freeze of this map; not the lock's business. */
int  rp_map_freeze_create (const struct rp_map *map,
                           struct rp_map_freeze *freeze,
                           struct rp_fault *fault);
void rp_map_freeze_destroy (struct rp_map_freeze *freeze);  /* zeroed: allowed */
void rp_map_freeze_begin (struct rp_map *map, struct rp_map_freeze *freeze);
void rp_map_freeze_end (struct rp_map *map);
/* After the end: give memory of tables [first, stop) back to the map. */
void rp_map_freeze_release (struct rp_map *map, struct rp_map_freeze *freeze,
                            uint64_t first, uint64_t stop);
/* NULL: all absent. */
static inline uint32_t *
rp_map_peek (const struct rp_map *map, uint64_t table)
{
  uint32_t **page = map->pages[table / RP_MAP_PAGE_TABLES];

  return page ? page[table % RP_MAP_PAGE_TABLES] : NULL;
}

/* Has a table changed since the freeze began? */
static inline bool
rp_map_is_kept (const struct rp_map_freeze *freeze, uint64_t table)
{
  const struct rp_map_kept *page = freeze->pages[table / RP_MAP_PAGE_TABLES];

  return page && page->kept[table % RP_MAP_PAGE_TABLES];
}

/* A table as it was when the map was frozen, or as it is. */
static inline const uint32_t *
rp_map_frozen (const struct rp_map *map, uint64_t table)
{
  const struct rp_map_freeze *freeze = map->freeze;

  return freeze && rp_map_is_kept (freeze, table)
         ? freeze->pages[table / RP_MAP_PAGE_TABLES]
             ->tables[table % RP_MAP_PAGE_TABLES]
         : rp_map_peek (map, table);
}

static inline uint32_t
rp_map_get (const struct rp_map *map, uint64_t grain)
{
  const uint32_t *table = rp_map_peek (map, grain / RP_LOG_TABLE_ENTRIES);

  return table ? table[grain % RP_LOG_TABLE_ENTRIES] : RP_PLACE_ABSENT;
}

static inline bool
rp_map_is_writable (const uint32_t *table)
{
  return table != NULL && table != rp_map_zeros;
}

/* RP_OK or RP_NO_MEMORY; then nothing has changed. */
int rp_map_set (struct rp_map *map, uint64_t grain, uint32_t place,
                struct rp_fault *fault);
/* The same place for a run: RP_PLACE_ABSENT or RP_PLACE_ZEROS, or one grain.
 * All or nothing, too. */
int rp_map_fill (struct rp_map *map, uint64_t grain, uint64_t count,
                 uint32_t place, struct rp_fault *fault);

/* How many grains from `grain` to `stop` lie like it: all absent, all zeros,
 * or data one after another (step sectors apart).  *place_out: of the first.
 */
uint64_t rp_map_run (const struct rp_map *map, uint64_t grain, uint64_t stop,
                     uint32_t step, uint32_t *place_out);

#endif /* RP_JOURNAL_MAP_H */

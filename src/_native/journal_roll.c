/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define AHEAD        16          /* entries whose table is fetched in advance */
#define READ_BYTES   (1u << 20)
#define TABLES_AT_ONCE 256u      /* under one hold of the lock, in one write */
#define SYNC_BYTES   (4u << 20)
#define TABLE_COST   32u         /* entries walked in the time that reading a
                                    table of a root takes */
#define COPY_COST    8u          /* copying one in memory */
#define ENTRIES_FREE 4096u       /* walked in no time that counts */

/* ---- entries ---- */

int
rp_journal_entries (struct rp_journal *journal,
                    const struct rp_segment *segment, const uint8_t **out,
                    uint8_t **memory, uint64_t *room, struct rp_fault *fault)
{
  const uint64_t bytes = segment->prepared * RP_LOG_ENTRY_BYTES;
  int status;

  if (segment->summary != RP_SUMMARY_COMPLETE) {
    *out = segment->entries;
    return RP_OK;
  }
  if (*room < bytes) {
    uint8_t *more = realloc (*memory, bytes);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, 0, "the summary of a segment");
    *memory = more;
    *room = bytes;
  }
  *out = *memory;
  if (bytes == 0)
    return RP_OK;
  status = rp_file_pread_all (journal->file, *memory, bytes,
                              segment->summary_position, fault);
  if (status == RP_OK
      && rp_log_hash (*memory, bytes) != segment->entries_checksum)
    status = rp_fail (fault, RP_CORRUPT, segment->summary_position,
                      "%s: the summary of segment %" PRIu64 ", %" PRIu64
                      " bytes at %" PRIu64, rp_journal_name (journal),
                      segment->number, bytes, segment->summary_position);
  return status;
}

int
rp_journal_bad_entry (struct rp_journal *journal,
                      const struct rp_segment *segment,
                      const struct rp_log_entry *entry,
                      struct rp_fault *fault)
{
  return rp_fail (fault, RP_CORRUPT, segment->summary_position,
                  "%s: an entry of segment %" PRIu64 " for grain %u at %u",
                  rp_journal_name (journal), segment->number, entry->grain,
                  entry->place);
}

/* A working set is larger than the caches, and entries come in any order: ask
 * for a table well before it is needed. */
static inline void
fetch (const struct rp_map *map, const uint8_t *at)
{
  const uint32_t grain = rp_load32 (at);

  if (grain < map->grain_count) {
    const uint32_t *table = rp_map_peek (map, grain / RP_LOG_TABLE_ENTRIES);

    if (table)
      __builtin_prefetch (table + grain % RP_LOG_TABLE_ENTRIES, 1);
  }
}

/* Make grain show place.  A run of zeros changes many grains. */
static inline int
apply (struct rp_journal *journal, struct rp_map *map,
       const struct rp_segment *segment, const struct rp_log_entry *entry,
       uint32_t place, struct rp_fault *fault)
{
  uint32_t *table;

  if (__builtin_expect (entry->place == RP_PLACE_ZEROS, 0)) {
    if (!rp_inside (entry->grain, entry->value, map->grain_count)
        || (entry->value != 1 && place > RP_PLACE_ZEROS))
      return rp_journal_bad_entry (journal, segment, entry, fault);
    return rp_map_fill (map, entry->grain, entry->value, place, fault);
  }
  if (__builtin_expect (entry->grain >= map->grain_count
                        || place % journal->grain_sectors
                           > RP_PLACE_ZEROS, 0))
    return rp_journal_bad_entry (journal, segment, entry, fault);
  table = rp_map_peek (map, entry->grain / RP_LOG_TABLE_ENTRIES);
  if (__builtin_expect (!rp_map_is_writable (table), 0)) {
    table = rp_map_table (map, entry->grain / RP_LOG_TABLE_ENTRIES);
    if (!table)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  }
  table[entry->grain % RP_LOG_TABLE_ENTRIES] = place;
  return RP_OK;
}

int
rp_journal_list_slots (const struct rp_journal *journal,
                       struct rp_slots *slots, struct rp_fault *fault)
{
  memset (slots, 0, sizeof *slots);
  if (journal->super.ring.number == 0)
    return RP_OK;
  slots->count = journal->slot_count;
  slots->first_sector = RP_LOG_HEAD_BYTES / RP_SECTOR_BYTES;
  slots->sectors = journal->super.segment_bytes / RP_SECTOR_BYTES;
  slots->next = calloc (slots->count + 1, sizeof *slots->next);
  if (!slots->next)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the list of slots");
  for (uint64_t i = 0; i < journal->segment_count; i++) {
    const struct rp_segment *segment = journal->segments[i];

    slots->next[rp_position_slot (journal, segment->position)]
      = segment->number + 1;
  }
  return RP_OK;
}

static int
apply_forward (struct rp_journal *journal, struct rp_map *map,
               const struct rp_segment *segment, const uint8_t *entries,
               uint64_t first, uint64_t stop, struct rp_fault *fault)
{
  for (uint64_t i = first; i < stop; i++) {
    const uint8_t *at = entries + i * RP_LOG_ENTRY_BYTES;
    const struct rp_log_entry entry = rp_log_get_entry (at);
    int status;

    if (i + AHEAD < stop)
      fetch (map, at + AHEAD * RP_LOG_ENTRY_BYTES);
    status = apply (journal, map, segment, &entry, entry.place, fault);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

static int
apply_backward (struct rp_journal *journal, struct rp_map *map,
                const struct rp_segment *segment, const uint8_t *entries,
                uint64_t first, uint64_t stop, const struct rp_slots *slots,
                struct rp_fault *fault)
{
  for (uint64_t i = stop; i-- > first;) {
    const uint8_t *at = entries + i * RP_LOG_ENTRY_BYTES;
    const struct rp_log_entry entry = rp_log_get_entry (at);
    int status;

    if (i >= first + AHEAD)
      fetch (map, at - AHEAD * RP_LOG_ENTRY_BYTES);
    if (RP_SABOTAGED (12) && i == first)     /* takes one too few back */
      break;
    status = apply (journal, map, segment, &entry,
                    rp_valid_place (slots, entry.previous,
                                    segment->number + 1), fault);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

static uint64_t
later (uint64_t a, uint64_t b)
{
  return a > b ? a : b;
}

/* Entries [first, stop) of the whole log, one segment after the other. */
static int
walk (struct rp_journal *journal, struct rp_map *map, uint64_t first,
      uint64_t stop, bool backwards, struct rp_fault *fault)
{
  uint8_t *memory = NULL;
  uint64_t room = 0;
  struct rp_slots slots;
  int status = rp_journal_list_slots (journal, &slots, fault);

  for (uint64_t i = 0; status == RP_OK && i < journal->segment_count; i++) {
    const uint64_t index = backwards ? journal->segment_count - 1 - i : i;
    const struct rp_segment *segment = journal->segments[index];
    const uint64_t begin = later (first, segment->first_entry);
    uint64_t end = segment->first_entry + segment->prepared;
    const uint8_t *entries;

    if (end > stop)
      end = stop;
    if (begin >= end)
      continue;
    status = rp_journal_entries (journal, segment, &entries, &memory, &room,
                                 fault);
    if (status == RP_OK && backwards)
      status = apply_backward (journal, map, segment, entries,
                               begin - segment->first_entry,
                               end - segment->first_entry, &slots, fault);
    else if (status == RP_OK)
      status = apply_forward (journal, map, segment, entries,
                              begin - segment->first_entry,
                              end - segment->first_entry, fault);
  }
  free (slots.next);
  free (memory);
  return status;
}

int
rp_journal_walk_forward (struct rp_journal *journal, struct rp_map *map,
                         uint64_t first, uint64_t stop, struct rp_fault *fault)
{
  return walk (journal, map, first, stop, false, fault);
}

/* ---- reading a root ---- */

static int
bad_root (struct rp_journal *journal, const char *what, struct rp_fault *fault)
{
  return rp_fail (fault, RP_CORRUPT, journal->root.position,
                  "%s: the root at %" PRIu64 ", %" PRIu64 " bytes: %s",
                  rp_journal_name (journal), journal->root.position,
                  journal->root.bytes, what);
}

/* The table that a directory entry names: tables lie in directory order. */
static int
read_table (struct rp_journal *journal, struct rp_map *map, uint64_t index,
            const uint8_t *bytes, struct rp_fault *fault)
{
  uint32_t *table;

  if (memcmp (bytes, rp_map_zeros, RP_LOG_TABLE_BYTES) == 0
      && rp_inside (index * RP_LOG_TABLE_ENTRIES, RP_LOG_TABLE_ENTRIES,
                    map->grain_count))
    return rp_map_fill (map, index * RP_LOG_TABLE_ENTRIES,
                        RP_LOG_TABLE_ENTRIES, RP_PLACE_ZEROS, fault);
  table = rp_map_table (map, index);
  if (!table)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  for (uint32_t i = 0; i < RP_LOG_TABLE_ENTRIES; i++) {
    table[i] = rp_load32 (bytes + i * 4);
    if (table[i] % journal->grain_sectors > RP_PLACE_ZEROS)
      return bad_root (journal, "a place is not aligned", fault);
  }
  return RP_OK;
}

/* Pages of the directory that are not stored are zeros in the file: a VMDK
 * reader looks at them all the same. */
static int
check_hole (struct rp_journal *journal, uint64_t position, uint64_t stop,
            struct rp_fault *fault)
{
  while (position < stop) {
    uint8_t page[RP_LOG_PAGE_BYTES];
    uint64_t data;
    int status = rp_file_seek (journal->file, position, true, &data, fault);

    if (status != RP_OK || data >= stop)
      return status;
    position = data - data % RP_LOG_PAGE_BYTES;
    status = rp_file_pread_all (journal->file, page, sizeof page, position,
                                fault);
    if (status != RP_OK)
      return status;
    if (!rp_is_zero (page, sizeof page))
      return bad_root (journal, "a page of the directory that is not stored",
                       fault);
    position += RP_LOG_PAGE_BYTES;
  }
  return RP_OK;
}

/* The stored pages of the directory, one behind the other. */
static int
read_directory (struct rp_journal *journal, uint8_t *directory,
                struct rp_fault *fault)
{
  const struct rp_shown_root *root = &journal->root;
  const uint64_t start = root->position + RP_LOG_PAGE_BYTES;
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  int status = RP_OK;

  for (uint64_t at = 0, stop; status == RP_OK && at < pages; at = stop) {
    const bool stored = rp_log_is_stored (root->stored, at);
    uint64_t bytes;

    stop = rp_log_find_page (root->stored, at, pages, !stored);
    bytes = (stop - at) * RP_LOG_PAGE_BYTES;
    if (!stored)
      status = check_hole (journal, start + at * RP_LOG_PAGE_BYTES,
                           start + stop * RP_LOG_PAGE_BYTES, fault);
    else {
      status = rp_file_pread_all (journal->file, directory, bytes,
                                  start + at * RP_LOG_PAGE_BYTES, fault);
      directory += bytes;
    }
  }
  return status;
}

static int
read_tables (struct rp_journal *journal, struct rp_map *map,
             const uint8_t *directory, uint64_t page_count,
             XXH3_state_t *hash, uint8_t *buffer, struct rp_fault *fault)
{
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  const uint64_t start = journal->root.position + RP_LOG_PAGE_BYTES
                         + pages * RP_LOG_PAGE_BYTES;
  const uint64_t bytes = journal->root.table_count * RP_LOG_TABLE_BYTES;
  uint64_t done = 0, ready = 0, page = 0;
  int status = RP_OK;

  for (uint64_t i = 0; i < page_count * RP_MAP_PAGE_TABLES; i++) {
    const uint64_t index = i % RP_MAP_PAGE_TABLES;
    const uint32_t sector = rp_load32 (directory + i * 4);

    if (index == 0)
      page = rp_log_find_page (journal->root.stored, i == 0 ? 0 : page + 1,
                               pages, true);
    if (sector == 0)
      continue;
    if (done == bytes
        || page * RP_MAP_PAGE_TABLES + index >= map->table_count
        || sector != (start + done) / RP_SECTOR_BYTES)
      return bad_root (journal, "a directory entry", fault);
    if (done == ready) {
      const uint64_t length = bytes - done < READ_BYTES
                              ? bytes - done : READ_BYTES;

      status = rp_file_pread_all (journal->file, buffer, length, start + done,
                                  fault);
      if (status != RP_OK)
        return status;
      XXH3_64bits_update (hash, buffer, length);
      ready = done + length;
    }
    status = read_table (journal, map, page * RP_MAP_PAGE_TABLES + index,
                         buffer + done % READ_BYTES, fault);
    if (status != RP_OK)
      return status;
    done += RP_LOG_TABLE_BYTES;
  }
  return done == bytes ? RP_OK : bad_root (journal, "its table count", fault);
}

static uint64_t
count_stored (const struct rp_journal *journal)
{
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  uint64_t count = 0;

  for (uint64_t i = 0; i < pages; i++)
    count += rp_log_is_stored (journal->root.stored, i);
  return count;
}

int
rp_journal_read_root (struct rp_journal *journal, struct rp_map *map,
                      struct rp_fault *fault)
{
  const uint64_t count = count_stored (journal);
  const uint64_t bytes = count * RP_LOG_PAGE_BYTES;
  const uint64_t tables = journal->root.table_count * RP_LOG_TABLE_BYTES;
  uint8_t *directory = malloc (bytes + 1);
  uint8_t *buffer = malloc (tables < READ_BYTES ? tables + 1 : READ_BYTES);
  XXH3_state_t *hash = XXH3_createState ();
  int status;

  if (!directory || !buffer || !hash)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "a grain directory");
  else {
    XXH3_64bits_reset (hash);
    status = read_directory (journal, directory, fault);
    if (status == RP_OK) {
      XXH3_64bits_update (hash, directory, bytes);
      status = read_tables (journal, map, directory, count, hash, buffer,
                            fault);
    }
    if (status == RP_OK
        && XXH3_64bits_digest (hash) != journal->root.content_checksum)
      status = bad_root (journal, "its checksum", fault);
  }
  XXH3_freeState (hash);
  free (buffer);
  free (directory);
  return status;
}

bool
rp_journal_root_pays (uint64_t tables, uint64_t entries)
{
  return tables * TABLE_COST <= entries + ENTRIES_FREE;
}

int
rp_journal_load_map (struct rp_journal *journal, struct rp_fault *fault)
{
  const uint64_t stop = rp_journal_entry_count (journal);
  uint64_t first = journal->super.ring.based_entry;
  struct rp_map map;
  int status;

  if (journal->map_loaded)
    return RP_OK;
  if (journal->root.entry > stop)
    return bad_root (journal, "it shows more than the log holds", fault);
  status = rp_map_create (&map, journal->grain_count, fault);
  if (status == RP_OK && journal->root.entry > first
      && rp_journal_root_pays (journal->root.table_count,
                               journal->root.entry - first)) {
    status = rp_journal_read_root (journal, &map, fault);
    first = journal->root.entry;
  }
  if (status == RP_OK)
    status = walk (journal, &map, first, stop, false, fault);
  if (status != RP_OK) {
    rp_map_destroy (&map);
    return status;
  }
  journal->map = map;
  journal->map_loaded = true;
  return RP_OK;
}

/* ---- the state at a point ---- */

int
rp_journal_find_cut (const struct rp_journal *journal, uint64_t point_id,
                     struct rp_cut *out, struct rp_fault *fault)
{
  uint64_t index = journal->point_count;

  if (point_id == RP_POINT_END) {
    out->point_id = point_id;
    out->entry = rp_journal_entry_count (journal);
    out->sequence = journal->durable_sequence;
    return RP_OK;
  }
  if (point_id == RP_POINT_LATEST && index > journal->point_first)
    index--;
  else
    for (index = journal->point_first; index < journal->point_count; index++)
      if (journal->points[index].id == point_id)
        break;
  if (index == journal->point_count) {
    if (point_id == RP_POINT_LATEST)
      return rp_fail (fault, RP_NOT_FOUND, 0, "%s has no restore point",
                      rp_journal_name (journal));
    return rp_fail (fault, RP_NOT_FOUND, 0, "%s has no restore point %" PRIu64,
                    rp_journal_name (journal), point_id);
  }
  {
    const struct rp_point_record *point = &journal->points[index];

    out->point_id = point->id;
    out->entry = rp_point_entry (journal, point);
    out->sequence = point->sequence;
    out->segment = point->segment;
  }
  return RP_OK;
}

static uint64_t
distance (uint64_t a, uint64_t b)
{
  return a > b ? a - b : b - a;
}

/* Build the map at the target from the nearest state that is known: that of the
 * base, the shown root, or the end in memory.  That end itself is used as it
 * is: a map of a large disk is large.  *use: the map, or the journal's own. */
static int
build_map (struct rp_journal *journal, const struct rp_cut *target,
           struct rp_map *map, struct rp_map **use, struct rp_roll *out,
           struct rp_fault *fault)
{
  const uint64_t stop = rp_journal_entry_count (journal);
  const uint64_t based = journal->super.ring.based_entry;
  uint64_t from = based;
  int status;

  *use = map;
  if (journal->root.entry > stop)
    return bad_root (journal, "it shows more than the log holds", fault);
  if (journal->map_loaded && target->entry == stop) {
    *use = &journal->map;
    return RP_OK;
  }
  if (distance (journal->root.entry, target->entry)
      < distance (from, target->entry)
      && rp_journal_root_pays (journal->root.table_count,
                               distance (from, target->entry)
                               - distance (journal->root.entry,
                                           target->entry)))
    from = journal->root.entry;
  if (journal->map_loaded
      && distance (stop, target->entry) <= distance (from, target->entry)
      && rp_journal_root_pays (journal->map.own_count * COPY_COST / TABLE_COST,
                               distance (from, target->entry)
                               - distance (stop, target->entry))) {
    from = stop;
    status = rp_map_copy (map, &journal->map, fault);
  } else {
    status = rp_map_create (map, journal->grain_count, fault);
    if (status == RP_OK && from > based)
      status = rp_journal_read_root (journal, map, fault);
    if (status == RP_CORRUPT) {  /* the log says all that it said */
      rp_map_destroy (map);
      from = based;
      status = rp_map_create (map, journal->grain_count, fault);
    }
  }
  out->backwards = from > target->entry;
  out->entries_walked = distance (from, target->entry);
  if (status == RP_OK)
    status = out->backwards
             ? walk (journal, map, target->entry, from, true, fault)
             : walk (journal, map, from, target->entry, false, fault);
  return status;
}

/* ---- writing a root ---- */

/* A root in the making. */
struct content {
  const struct rp_map *map;
  struct rp_log_root root;
  uint8_t *directory;            /* its stored pages, one behind the other */
  uint64_t page_count, page_room;
};

/* Is there anything in a table?  An empty one is left out of the root. */
static bool
table_is_empty (const uint32_t *table)
{
  return !table || rp_is_zero (table, RP_LOG_TABLE_BYTES);
}

/* Some tables of what is to be shown, of one page: the first ones from *first
 * on that may have any entry.  Of a map of one's own, or of the end in memory,
 * which is frozen then and goes on changing. */
static uint64_t
get_tables (struct rp_journal *journal, const struct rp_map *map,
            uint64_t *first, const uint32_t *out[TABLES_AT_ONCE])
{
  const bool live = map == &journal->map;
  uint64_t count;

  if (live)
    pthread_mutex_lock (&journal->lock);
  *first = rp_map_next (map, *first);
  count = map->table_count - *first;
  if (count > TABLES_AT_ONCE)
    count = TABLES_AT_ONCE;
  for (uint64_t i = 0; i < count; i++)
    out[i] = rp_map_frozen (map, *first + i);
  if (live)
    pthread_mutex_unlock (&journal->lock);
  return count;
}

/* A page of the directory is to be stored; behind those that are. */
static int
store_page (struct content *content, uint64_t page, struct rp_fault *fault)
{
  if (content->page_count == content->page_room) {
    const uint64_t room = content->page_room * 2 + 16;
    uint8_t *more = realloc (content->directory, room * RP_LOG_PAGE_BYTES);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a grain directory");
    content->directory = more;
    content->page_room = room;
  }
  memset (content->directory + content->page_count * RP_LOG_PAGE_BYTES, 0,
          RP_LOG_PAGE_BYTES);
  content->page_count++;
  content->root.stored[page / 8] |= (uint8_t) (1u << page % 8);
  return RP_OK;
}

/* Note in the directory which tables there are. */
static int
mark_tables (struct rp_journal *journal, struct content *content,
             struct rp_fault *fault)
{
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  const uint32_t *tables[TABLES_AT_ONCE];
  uint64_t at = 0, count;
  int status = RP_OK;

  for (; (count = get_tables (journal, content->map, &at, tables)) > 0;
       at += count) {
    const uint64_t page = at / RP_MAP_PAGE_TABLES;

    for (uint64_t i = 0; i < count; i++) {
      if (table_is_empty (tables[i]))
        continue;
      if (!rp_log_is_stored (content->root.stored, page))
        status = store_page (content, page, fault);
      if (status != RP_OK)
        return status;
      rp_store32 (content->directory
                  + (content->page_count - 1) * RP_LOG_PAGE_BYTES
                  + (at + i) % RP_MAP_PAGE_TABLES * 4, 1);
      content->root.table_count++;
    }
  }
  content->root.content_bytes = pages * RP_LOG_PAGE_BYTES
                                + content->root.table_count
                                  * RP_LOG_TABLE_BYTES;
  /* the file does not end before the directory does */
  return content->page_count > 0 ? RP_OK
                                 : store_page (content, pages - 1, fault);
}

/* The directory of tables that lie one after the other from position. */
static void
fill_directory (uint8_t *directory, uint64_t table_count, uint64_t position)
{
  for (uint64_t i = 0; i < table_count; i++)
    if (rp_load32 (directory + i * 4) != 0) {
      rp_store32 (directory + i * 4, (uint32_t) (position / RP_SECTOR_BYTES));
      position += RP_LOG_TABLE_BYTES;
    }
}

/* Tables are in the byte order of the file already on a little-endian host,
 * which is all that this is built for. */
_Static_assert (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tables on disk");

/* Beside running writers each few MiB are synced at once: the next commit
 * syncs the same file, and would wait for all of it. */
static int
write_tables (struct rp_journal *journal, const struct content *content,
              uint64_t position, XXH3_state_t *hash, struct rp_fault *fault)
{
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  const uint32_t *tables[TABLES_AT_ONCE];
  struct iovec parts[TABLES_AT_ONCE];
  uint64_t unsynced = 0, page = 0;
  int status = RP_OK;

  for (uint64_t at = 0; at < content->page_count * RP_MAP_PAGE_TABLES;
       at += TABLES_AT_ONCE) {
    uint64_t first, count;
    int found = 0;

    if (at % RP_MAP_PAGE_TABLES == 0)
      page = rp_log_find_page (content->root.stored, at == 0 ? 0 : page + 1,
                               pages, true);
    first = page * RP_MAP_PAGE_TABLES + at % RP_MAP_PAGE_TABLES;
    count = get_tables (journal, content->map, &first, tables);
    for (uint64_t i = 0; i < count; i++) {
      if (rp_load32 (content->directory + (at + i) * 4) == 0)
        continue;
      XXH3_64bits_update (hash, tables[i], RP_LOG_TABLE_BYTES);
      parts[found].iov_base = (void *) (uintptr_t) tables[i];
      parts[found++].iov_len = RP_LOG_TABLE_BYTES;
    }
    if (found > 0)
      status = rp_file_pwritev (journal->file, parts, found, position, fault);
    position += (uint64_t) found * RP_LOG_TABLE_BYTES;
    unsynced += (uint64_t) found * RP_LOG_TABLE_BYTES;
    if (status == RP_OK && content->map->freeze && unsynced >= SYNC_BYTES) {
      status = rp_file_sync (journal->file, fault);
      unsynced = 0;
    }
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

/* The pages of the directory that are stored; what lies between is a hole. */
static int
write_directory (struct rp_journal *journal, const struct content *content,
                 struct rp_fault *fault)
{
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  const uint8_t *stored = content->root.stored, *from = content->directory;
  int status = RP_OK;

  for (uint64_t at = 0, stop; status == RP_OK; at = stop) {
    uint64_t bytes;

    at = rp_log_find_page (stored, at, pages, true);
    if (at == pages)
      break;
    stop = rp_log_find_page (stored, at, pages, false);
    bytes = (stop - at) * RP_LOG_PAGE_BYTES;
    status = rp_file_pwrite (journal->file, from, bytes, content->root.position
                             + (1 + at) * RP_LOG_PAGE_BYTES, fault);
    from += bytes;
  }
  return status;
}

/* Write directory and tables behind position, then the header page with the
 * checksum over them. */
static int
write_content (struct rp_journal *journal, struct content *content,
               struct rp_fault *fault)
{
  struct rp_log_root *root = &content->root;
  XXH3_state_t *hash = XXH3_createState ();
  uint8_t page[RP_LOG_PAGE_BYTES];
  int status;

  if (!hash)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a checksum");
  XXH3_64bits_reset (hash);
  XXH3_64bits_update (hash, content->directory,
                      content->page_count * RP_LOG_PAGE_BYTES);
  status = write_directory (journal, content, fault);
  if (status == RP_OK)
    status = write_tables (journal, content, root->position
                           + RP_LOG_PAGE_BYTES
                           + rp_directory_bytes (journal->grain_count), hash,
                           fault);
  root->content_checksum = XXH3_64bits_digest (hash);
  XXH3_freeState (hash);
  if (status != RP_OK)
    return status;
  rp_log_put_root (page, root);
  return rp_file_pwrite (journal->file, page, sizeof page, root->position,
                         fault);
}

/* Make the sparse header point to the directory of a root that is durable. */
static int
flip (struct rp_journal *journal, uint64_t position, uint64_t bytes,
      struct rp_fault *fault)
{
  uint8_t sector[RP_SECTOR_BYTES];
  int status;

  rp_log_put_sparse (sector, journal->super.capacity_bytes,
                     journal->super.grain_bytes,
                     (position + RP_LOG_PAGE_BYTES) / RP_SECTOR_BYTES);
  rp_file_note (journal->file, RP_NOTE_POINTS_TO, position, bytes);
  status = rp_file_pwrite (journal->file, sector, sizeof sector, 0, fault);
  if (status == RP_OK)
    status = rp_file_sync (journal->file, fault);
  journal->root_proven = status == RP_OK;
  return status;
}

/* Give the space of an old root back; it may stay where that fails. */
static void
drop_root (struct rp_journal *journal, const struct rp_shown_root *old)
{
  struct rp_fault ignored;

  (void) rp_file_punch (journal->file, old->position, old->bytes, &ignored);
}

/* Reserve slots in a row; nobody else gets them while they are `building`. */
static int
take_slots (struct rp_journal *journal, uint64_t bytes, bool limited,
            struct rp_fault *fault)
{
  const uint64_t slots = rp_journal_area_slots (journal, bytes);
  uint64_t slot, position;
  int status;

  if (limited && journal->limit_bytes != 0
      && rp_journal_used_count (journal) + slots
         > journal->limit_bytes / journal->super.segment_bytes)
    return rp_fail (fault, RP_FULL, 0, "%s has reached its limit of %" PRIu64
                    " bytes", rp_journal_name (journal), journal->limit_bytes);
  status = rp_journal_free_slots (journal, slots, &slot, fault);
  if (status != RP_OK)
    return status;
  position = rp_slot_position (journal, slot);
  if (position + bytes > RP_LOG_SECTORS_MAX * RP_SECTOR_BYTES)
    return rp_fail (fault, RP_FULL, position, "%s: a log ends at 2 TiB",
                    rp_journal_name (journal));
  if (slot + slots > journal->slot_count)
    journal->slot_count = slot + slots;
  journal->building.position = position;
  journal->building.bytes = bytes;
  return RP_OK;
}

void
rp_journal_end_building (struct rp_journal *journal)
{
  pthread_mutex_lock (&journal->lock);
  journal->building.bytes = 0;
  pthread_cond_broadcast (&journal->room);
  pthread_mutex_unlock (&journal->lock);
}

/* Space for what will be written, in as few pieces as there are.  The rest of
 * the directory has to read as zeros, whatever the slots were used for before:
 * space that was given back may have stayed, or a crash came first. */
static int
prepare_slots (struct rp_journal *journal, const struct content *content,
               struct rp_fault *fault)
{
  const struct rp_log_root *root = &content->root;
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  const uint64_t start = root->position + RP_LOG_PAGE_BYTES;
  uint64_t from = root->position, to = start;
  int status = RP_OK;

  if (content->page_count < pages
      && !RP_SABOTAGED (42))     /* shows what was there before */
    status = rp_file_punch (journal->file, start, pages * RP_LOG_PAGE_BYTES,
                            fault);
  for (uint64_t at = 0, stop; status == RP_OK && at < pages; at = stop) {
    const bool stored = rp_log_is_stored (root->stored, at);

    stop = rp_log_find_page (root->stored, at, pages, !stored);
    if (!stored && from < to)
      status = rp_journal_allocate (journal, from, to - from, fault);
    to = start + stop * RP_LOG_PAGE_BYTES;
    if (!stored)
      from = to;
  }
  to = start + root->content_bytes;
  return status == RP_OK && from < to
         ? rp_journal_allocate (journal, from, to - from, fault) : status;
}

static int
place_root (struct rp_journal *journal, struct content *content, bool limited,
            struct rp_fault *fault)
{
  const uint64_t bytes = RP_LOG_PAGE_BYTES + content->root.content_bytes;
  struct rp_fault ignored;
  int status;

  pthread_mutex_lock (&journal->lock);
  status = take_slots (journal, bytes, limited, fault);
  pthread_mutex_unlock (&journal->lock);
  if (status != RP_OK)
    return status;
  content->root.position = journal->building.position;
  status = prepare_slots (journal, content, fault);
  if (status != RP_OK) {         /* nothing was written: no harm done */
    (void) rp_file_punch (journal->file, content->root.position, bytes,
                          &ignored);
    rp_journal_end_building (journal);
  }
  return status;
}

/* The new root is shown, durably; the old one is nobody's. */
static void
change_root (struct rp_journal *journal, const struct rp_log_root *root)
{
  const struct rp_shown_root old = journal->root;

  pthread_mutex_lock (&journal->lock);
  rp_journal_adopt_root (journal, root);
  journal->building.position = old.position;
  journal->building.bytes = old.bytes;
  pthread_mutex_unlock (&journal->lock);
  drop_root (journal, &old);
  rp_journal_end_building (journal);
}

static int
put_root (struct rp_journal *journal, struct content *content,
          struct rp_fault *fault)
{
  const struct rp_log_root *root = &content->root;
  int status;

  fill_directory (content->directory,
                  content->page_count * RP_MAP_PAGE_TABLES, root->position
                  + RP_LOG_PAGE_BYTES
                  + rp_directory_bytes (journal->grain_count));
  status = write_content (journal, content, fault);
  if (RP_SABOTAGED (20))         /* gives the old root back too early */
    drop_root (journal, &journal->root);
  if (status == RP_OK && !RP_SABOTAGED (4))   /* flips too early */
    status = rp_file_sync (journal->file, fault);
  if (status == RP_OK)
    status = flip (journal, root->position, RP_LOG_PAGE_BYTES
                                            + root->content_bytes, fault);
  if (status == RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  rp_journal_fail (journal, status, fault);
  pthread_mutex_unlock (&journal->lock);
  rp_journal_end_building (journal);
  return status;
}

static int
write_root (struct rp_journal *journal, const struct rp_map *map,
            const struct rp_cut *target, bool limited, struct rp_roll *out,
            struct rp_fault *fault)
{
  struct content content = {
    .map = map,
    .root = {
      .sequence = target->sequence, .entry = target->entry,
      .point_id = target->point_id,
    },
  };
  int status;

  memcpy (content.root.id, journal->super.id, sizeof content.root.id);
  status = mark_tables (journal, &content, fault);
  if (status == RP_OK)
    status = place_root (journal, &content, limited, fault);
  if (status == RP_OK) {
    status = put_root (journal, &content, fault);
    if (status == RP_OK)
      change_root (journal, &content.root);
  }
  free (content.directory);
  if (status != RP_OK)
    return status;
  out->tables_written = content.root.table_count;
  out->bytes_written = RP_LOG_PAGE_BYTES * (1 + content.page_count)
                       + content.root.table_count * RP_LOG_TABLE_BYTES;
  return RP_OK;
}

/* ---- the calls ---- */

int
rp_journal_freeze_end (struct rp_journal *journal, bool again,
                       struct rp_map_freeze *freeze, struct rp_cut *target,
                       struct rp_fault *fault)
{
  int status = rp_journal_usable (journal, fault);

  if (status != RP_OK)
    return status;
  rp_journal_seal_batch (journal);
  target->point_id = RP_POINT_END;
  target->entry = rp_journal_entry_count (journal);
  target->sequence = journal->next_sequence - 1;
  if (target->entry == journal->root.entry && !again)
    return RP_OK;
  rp_map_freeze_begin (&journal->map, freeze);
  status = rp_journal_commit_locked (journal, fault);
  if (status != RP_OK)
    rp_map_freeze_end (&journal->map);
  return status;
}

/* Tables that were copied meanwhile go back, a few under each hold of the
 * lock. */
void
rp_journal_thaw (struct rp_journal *journal, struct rp_map_freeze *freeze)
{
  const uint64_t count = journal->map.table_count;

  pthread_mutex_lock (&journal->lock);
  rp_map_freeze_end (&journal->map);
  pthread_mutex_unlock (&journal->lock);
  for (uint64_t at = 0; at < count; at += TABLES_AT_ONCE) {
    const uint64_t stop = count - at < TABLES_AT_ONCE ? count
                                                      : at + TABLES_AT_ONCE;

    const struct rp_map_kept *page = freeze->pages[at / RP_MAP_PAGE_TABLES];

    if (!page
        || rp_is_zero (page->kept + at % RP_MAP_PAGE_TABLES, stop - at))
      continue;
    pthread_mutex_lock (&journal->lock);
    rp_map_freeze_release (&journal->map, freeze, at, stop);
    pthread_mutex_unlock (&journal->lock);
  }
}

int
rp_journal_show_end (struct rp_journal *journal, bool again, bool limited,
                     struct rp_roll *out, struct rp_fault *fault)
{
  struct rp_map_freeze freeze;
  struct rp_cut target = { .entry = 0 };
  bool frozen = false;
  int status = rp_map_freeze_create (&journal->map, &freeze, fault);

  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  status = rp_journal_freeze_end (journal, again, &freeze, &target, fault);
  if (status == RP_OK)
    frozen = journal->map.freeze != NULL;
  pthread_mutex_unlock (&journal->lock);
  out->point_id = RP_POINT_END;
  if (frozen) {
    status = write_root (journal, &journal->map, &target, limited, out, fault);
    rp_journal_thaw (journal, &freeze);
  }
  rp_map_freeze_destroy (&freeze);
  out->root_sector = rp_root_sector (journal);
  return status;
}

/* Is the root whole that is shown already?  Who reads the disk through it has
 * no checksum to look at. */
static int
check_shown (struct rp_journal *journal, bool *whole, struct rp_fault *fault)
{
  struct rp_map map;
  int status = rp_map_create (&map, journal->grain_count, fault);

  if (status == RP_OK)
    status = rp_journal_read_root (journal, &map, fault);
  rp_map_destroy (&map);
  *whole = status != RP_CORRUPT;
  return status == RP_CORRUPT ? RP_OK : status;
}

static int
roll (struct rp_journal *journal, uint64_t point_id, struct rp_roll *out,
      struct rp_fault *fault)
{
  struct rp_cut target = { .entry = 0 };
  struct rp_map map = { .pages = NULL }, *use;
  bool whole = true;
  int status = rp_journal_commit (journal, fault);

  if (status == RP_OK)
    status = rp_journal_find_cut (journal, point_id, &target, fault);
  if (status == RP_OK && target.entry == journal->root.entry
      && point_id != RP_POINT_END)
    status = check_shown (journal, &whole, fault);
  if (status != RP_OK)
    return status;
  out->point_id = target.point_id;
  if (target.entry != journal->root.entry || !whole) {
    status = rp_journal_begin_session (journal, fault);
    if (status == RP_OK)
      status = build_map (journal, &target, &map, &use, out, fault);
    if (status == RP_OK)
      status = write_root (journal, use, &target, false, out, fault);
    rp_map_destroy (&map);
  } else if (!journal->root_proven) {
    /* who wrote it may have failed to sync it: make that sure */
    status = flip (journal, journal->root.position, journal->root.bytes,
                   fault);
    if (status != RP_OK)
      rp_journal_fail (journal, status, fault);
  }
  out->root_sector = rp_root_sector (journal);
  return status;
}

int
rp_journal_roll (struct rp_journal *journal, uint64_t point_id,
                 struct rp_roll *out, struct rp_fault *fault)
{
  int status;

  memset (out, 0, sizeof *out);
  rp_journal_begin_work (journal);
  status = roll (journal, point_id, out, fault);
  rp_journal_end_work (journal);
  return status;
}

int
rp_journal_close_clean (struct rp_journal *journal, struct rp_fault *fault)
{
  struct rp_roll ignored;
  struct rp_log_super next;
  int status = rp_journal_commit (journal, fault);

  if (status == RP_OK)
    status = rp_journal_settle (journal, fault);
  if (status == RP_OK)
    status = rp_journal_roll (journal, RP_POINT_END, &ignored, fault);
  if (status != RP_OK || journal->super.clean)
    return status;
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  next = journal->super;
  next.clean = true;
  next.durable_sequence = journal->durable_sequence;
  status = rp_journal_put_super (journal, &next, fault);
  if (status == RP_OK)
    journal->in_session = false;
  else
    rp_journal_fail (journal, status, fault);
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* Beside a writer that destages, what was read here may have changed on the
 * way: then that is what is said, and not what it looked like. */
static int
show_point (struct rp_journal *journal, uint64_t point_id,
            struct rp_fault *fault)
{
  struct rp_cut target = { .entry = 0 };
  struct rp_map map = { .pages = NULL }, *use;
  struct rp_roll ignored;
  struct rp_fault passed;
  int status = rp_journal_find_cut (journal, point_id, &target, fault);

  if (status != RP_OK)
    return status;
  status = build_map (journal, &target, &map, &use, &ignored, fault);
  if (status == RP_OK) {
    journal->map = map;
    journal->map_loaded = true;
    journal->is_view = true;
    journal->view_entry = target.entry;
    return rp_journal_check_not_passed (journal, fault);
  }
  rp_map_destroy (&map);
  if (status == RP_CORRUPT
      && rp_journal_check_not_passed (journal, &passed) == RP_STATE) {
    *fault = passed;
    return RP_STATE;
  }
  return status;
}

int
rp_journal_view (struct rp_journal *journal, uint64_t point_id,
                 struct rp_fault *fault)
{
  int status;

  if (journal->writable || point_id == RP_POINT_END)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: a restore point is shown "
                    "of a journal that is open for reading",
                    rp_journal_name (journal));
  pthread_mutex_lock (&journal->lock);
  status = journal->map_loaded
           ? rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: it has been read",
                      rp_journal_name (journal))
           : show_point (journal, point_id, fault);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

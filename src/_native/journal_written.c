/* SPDX-License-Identifier: Apache-2.0 */
/* Which parts of the disk were written since a restore point; whether what a
 * point shows in some parts is what was written. */
#include "journal_private.h"

#include <inttypes.h>
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

/* ---- is what would be sent what was written? ---- */

struct proof {
  struct rp_journal *journal;
  const uint64_t *pairs;
  uint64_t count;
  uint8_t *data;                 /* a grain */
};

/* Does a range touch the grain? */
static bool
is_wanted (const struct proof *proof, uint64_t grain)
{
  const uint64_t bytes = proof->journal->super.grain_bytes;
  uint64_t first = 0, stop = proof->count;

  while (first < stop) {         /* the first range that ends behind its start */
    const uint64_t middle = first + (stop - first) / 2;

    if (proof->pairs[2 * middle + 1] <= grain * bytes)
      first = middle + 1;
    else
      stop = middle;
  }
  return first < proof->count
         && proof->pairs[2 * first] < (grain + 1) * bytes;
}

static int
prove_grain (const struct proof *proof, const struct rp_log_entry *entry,
             struct rp_fault *fault)
{
  struct rp_journal *journal = proof->journal;
  const uint64_t bytes = journal->super.grain_bytes;
  const uint64_t position = (uint64_t) entry->place * RP_SECTOR_BYTES;
  const int status = rp_file_pread_all (journal->file, proof->data, bytes,
                                        position, fault);

  if (status != RP_OK
      || (uint32_t) rp_log_hash (proof->data, bytes) == entry->value)
    return status;
  return rp_fail (fault, RP_CORRUPT, position, "%s: the %" PRIu64 " bytes at %"
                  PRIu64 " do not match their checksum: byte %" PRIu64
                  " of the disk", rp_journal_name (journal), bytes, position,
                  entry->grain * bytes);
}

/* Entries that the map names: each place has one. */
static int
prove_segment (const struct proof *proof, const uint8_t *entries,
               uint64_t count, struct rp_fault *fault)
{
  const struct rp_map *map = &proof->journal->map;
  int status = RP_OK;

  for (uint64_t i = 0; status == RP_OK && i < count; i++) {
    const struct rp_log_entry entry
      = rp_log_get_entry (entries + i * RP_LOG_ENTRY_BYTES);

    if (entry.place > RP_PLACE_ZEROS && entry.grain < map->grain_count
        && rp_map_get (map, entry.grain) == entry.place
        && is_wanted (proof, entry.grain) && !RP_SABOTAGED (46))
      status = prove_grain (proof, &entry, fault);
  }
  return status;
}

static int
prove (const struct proof *proof, struct rp_fault *fault)
{
  struct rp_journal *journal = proof->journal;
  uint8_t *memory = NULL;
  uint64_t room = 0;
  int status = RP_OK;

  for (uint64_t i = 0; status == RP_OK && i < journal->segment_count; i++) {
    const struct rp_segment *segment = journal->segments[i];
    const uint8_t *entries;

    if (segment->first_entry >= journal->view_entry)
      break;
    status = rp_journal_entries (journal, segment, &entries, &memory, &room,
                                 fault);
    if (status == RP_OK)
      status = prove_segment (proof, entries, segment->prepared, fault);
  }
  free (memory);
  return status;
}

int
rp_journal_prove (struct rp_journal *journal, const uint64_t *pairs,
                  uint64_t count, struct rp_fault *fault)
{
  struct proof proof = { .journal = journal, .pairs = pairs, .count = count };
  int status = rp_spans_check (pairs, count, journal->super.capacity_bytes,
                               fault);

  if (status != RP_OK)
    return status;
  if (!journal->is_view)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: no restore point is shown",
                    rp_journal_name (journal));
  proof.data = malloc (journal->super.grain_bytes);
  if (!proof.data)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a grain");
  pthread_mutex_lock (&journal->lock);
  status = prove (&proof, fault);
  pthread_mutex_unlock (&journal->lock);
  free (proof.data);
  return status;
}

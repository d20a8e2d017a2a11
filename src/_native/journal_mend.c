/* SPDX-License-Identifier: Apache-2.0 */
/* Whom a damage harms, and writing again what was there. */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NEVER UINT64_MAX

/* NULL: the journal has it no more, or not yet. */
static const struct rp_segment *
find_segment (const struct rp_journal *journal, uint64_t number)
{
  if (journal->segment_count == 0
      || number < journal->segments[0]->number
      || number - journal->segments[0]->number >= journal->segment_count)
    return NULL;
  return rp_journal_segment (journal, number);
}

/* The entry of the segment whose data lies at position, or count. */
static uint64_t
find_entry (const uint8_t *entries, uint64_t count, uint64_t position)
{
  for (uint64_t i = 0; i < count; i++) {
    const struct rp_log_entry entry
      = rp_log_get_entry (entries + i * RP_LOG_ENTRY_BYTES);

    if (entry.place > RP_PLACE_ZEROS
        && (uint64_t) entry.place * RP_SECTOR_BYTES == position)
      return i;
  }
  return count;
}

/* ---- whom a damage harms ---- */

/* A damaged grain: shown by cuts behind entry number `entry` up to `until`. */
struct shown {
  struct rp_affected *item;
  uint64_t entry, until;
  uint32_t grain;
};

struct search {
  struct rp_journal *journal;
  struct shown *shown;
  uint64_t count;
  uint8_t *memory;               /* a summary */
  uint64_t room;
};

/* The first point whose cut lies behind entry number `entry`, or the count. */
static uint64_t
first_behind (const struct rp_journal *journal, uint64_t entry)
{
  uint64_t low = journal->point_first, high = journal->point_count;

  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;

    if (rp_point_entry (journal, &journal->points[middle]) <= entry)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The points whose cuts lie behind entry number `after`, up to `until`. */
static void
take_points (const struct rp_journal *journal, struct rp_affected *item,
             uint64_t after, uint64_t until)
{
  const uint64_t first = first_behind (journal, after);
  const uint64_t stop = first_behind (journal, until);

  if (first < stop) {
    item->first_point = journal->points[first].id;
    item->last_point = journal->points[stop - 1].id;
  }
}

/* All points in a segment and behind it. */
static void
take_points_from (const struct rp_journal *journal, struct rp_affected *item,
                  uint64_t segment)
{
  uint64_t point = journal->point_count;

  while (point > journal->point_first
         && journal->points[point - 1].segment >= segment)
    point--;
  if (point < journal->point_count) {
    item->first_point = journal->points[point].id;
    item->last_point = journal->points[journal->point_count - 1].id;
  }
}

/* Where the damaged place is; what is no data is settled at once. */
static int
look_up (struct search *search, struct rp_affected *item,
         struct rp_fault *fault)
{
  struct rp_journal *journal = search->journal;
  const struct rp_segment *segment;
  const uint8_t *entries = NULL;
  uint64_t i;
  int status;

  item->gone = item->end = false;
  item->first_point = item->last_point = 0;
  if (item->segment == UINT64_MAX)
    return RP_OK;
  segment = find_segment (journal, item->segment);
  item->gone = !segment;
  if (!segment)
    return RP_OK;
  status = rp_journal_entries (journal, segment, &entries, &search->memory,
                               &search->room, fault);
  if (status == RP_OK) {
    i = find_entry (entries, segment->prepared, item->position);
    if (i < segment->prepared) {
      search->shown[search->count++] = (struct shown) {
        .item = item, .entry = segment->first_entry + i, .until = NEVER,
        .grain = rp_load32 (entries + i * RP_LOG_ENTRY_BYTES),
      };
      return RP_OK;
    }
  }
  item->end = true;
  take_points_from (journal, item, segment->number);
  return status == RP_CORRUPT || status == RP_IO ? RP_OK : status;
}

static int
by_grain (const void *a, const void *b)
{
  const struct shown *left = a, *right = b;

  return (left->grain > right->grain) - (left->grain < right->grain);
}

/* An entry writes over count grains: who was shown there is not any more. */
static void
write_over (struct search *search, uint64_t grain, uint64_t count,
            uint64_t entry)
{
  uint64_t low = 0, high = search->count;

  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;

    if (search->shown[middle].grain < grain)
      low = middle + 1;
    else
      high = middle;
  }
  for (; low < search->count && search->shown[low].grain - grain < count;
       low++)
    if (search->shown[low].entry < entry && search->shown[low].until == NEVER)
      search->shown[low].until = entry;
}

static int
find_ends (struct search *search, struct rp_fault *fault)
{
  struct rp_journal *journal = search->journal;
  int status = RP_OK;

  for (uint64_t s = 0; status == RP_OK && s < journal->segment_count; s++) {
    const struct rp_segment *segment = journal->segments[s];
    const uint8_t *entries;

    status = rp_journal_entries (journal, segment, &entries, &search->memory,
                                 &search->room, fault);
    if (status == RP_CORRUPT || status == RP_IO) {
      status = RP_OK;            /* who writes over it is not known */
      continue;
    }
    for (uint64_t i = 0; status == RP_OK && i < segment->prepared; i++) {
      const struct rp_log_entry entry
        = rp_log_get_entry (entries + i * RP_LOG_ENTRY_BYTES);

      write_over (search, entry.grain,
                  entry.place == RP_PLACE_ZEROS ? entry.value : 1,
                  segment->first_entry + i);
    }
  }
  return status;
}

int
rp_journal_affected (struct rp_journal *journal, struct rp_affected *items,
                     uint64_t count, struct rp_fault *fault)
{
  struct search search = {
    .journal = journal, .shown = calloc (count + 1, sizeof *search.shown),
  };
  int status = RP_OK;

  if (!search.shown)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a list of damage");
  for (uint64_t i = 0; status == RP_OK && i < count; i++)
    status = look_up (&search, &items[i], fault);
  qsort (search.shown, search.count, sizeof *search.shown, by_grain);
  if (status == RP_OK && search.count > 0)
    status = find_ends (&search, fault);
  for (uint64_t i = 0; status == RP_OK && i < search.count; i++) {
    const struct shown *shown = &search.shown[i];

    shown->item->end = shown->until == NEVER;
    take_points (journal, shown->item, shown->entry, shown->until);
  }
  free (search.memory);
  free (search.shown);
  return status;
}

/* ---- mending ---- */

static int
mend_grain (struct rp_journal *journal, const struct rp_segment *segment,
            uint64_t position, const void *data, struct rp_fault *fault)
{
  const uint32_t bytes = journal->super.grain_bytes;
  const uint8_t *entries = NULL;
  struct rp_log_entry entry = { .value = 0 };
  uint8_t *memory = NULL;
  uint64_t room = 0, i = segment->prepared;
  int status = rp_journal_entries (journal, segment, &entries, &memory, &room,
                                   fault);

  if (status == RP_OK)
    i = find_entry (entries, segment->prepared, position);
  if (i < segment->prepared)
    entry = rp_log_get_entry (entries + i * RP_LOG_ENTRY_BYTES);
  else if (status == RP_OK)
    status = rp_fail (fault, RP_NOT_FOUND, position, "%s: no grain at %"
                      PRIu64, rp_journal_name (journal), position);
  free (memory);
  if (status != RP_OK)
    return status;
  if ((uint32_t) rp_log_hash (data, bytes) != entry.value
      && !RP_SABOTAGED (39))     /* writes what nothing proves */
    return rp_fail (fault, RP_CORRUPT, position,
                    "%s: what is offered for the grain at %" PRIu64
                    " is not what was written there",
                    rp_journal_name (journal), position);
  return rp_file_pwrite (journal->file, data, bytes, position, fault);
}

/* A batch's header that stands where it should: read from the file. */
static int
read_header (struct rp_journal *journal, const struct rp_segment *segment,
             uint64_t position, uint8_t *block, struct rp_log_batch *out,
             bool *whole, struct rp_fault *fault)
{
  int status = rp_file_pread_all (journal->file, block, journal->block_bytes,
                                  position, fault);

  *whole = status == RP_OK
           && rp_log_get_batch (block, journal->block_bytes, out)
           && rp_journal_owns_batch (journal, out, segment, position);
  return status;
}

static uint64_t
behind (const struct rp_journal *journal, const struct rp_log_batch *batch)
{
  return batch->position + rp_batch_bytes (journal, batch->data_count);
}

/* Does this header follow the one before it in the segment, and the one behind
 * follow it?  The checksum of a batch (64 bits) is in the next, or in the
 * trailer. */
static int
header_fits (struct rp_journal *journal, const struct rp_segment *segment,
             const struct rp_log_batch *offered, uint8_t *block, bool *fits,
             struct rp_fault *fault)
{
  uint64_t position = segment->position + journal->block_bytes;
  uint64_t sequence = segment->first_sequence, chain = segment->chain_in;
  struct rp_log_batch batch;
  bool whole = true;
  int status = RP_OK;

  while (position < offered->position && whole) {
    status = read_header (journal, segment, position, block, &batch, &whole,
                          fault);
    if (status != RP_OK || !whole)
      break;
    position = behind (journal, &batch);
    sequence = batch.sequence + 1;
    chain = batch.checksum;
  }
  *fits = whole && position == offered->position
          && offered->sequence == sequence && offered->chain == chain;
  if (status != RP_OK || !*fits)
    return status;
  position = behind (journal, offered);
  if (position >= segment->end) {
    *fits = offered->sequence == segment->last_sequence
            && offered->checksum == segment->chain;
    return RP_OK;
  }
  status = read_header (journal, segment, position, block, &batch, &whole,
                        fault);
  *fits = whole && batch.chain == offered->checksum;
  return status;
}

static int
mend_header (struct rp_journal *journal, const struct rp_segment *segment,
             uint64_t position, const void *data, struct rp_fault *fault)
{
  struct rp_log_batch offered;
  uint8_t *block;
  bool fits = false;
  int status;

  if (!rp_log_get_batch (data, journal->block_bytes, &offered)
      || offered.position != position
      || !rp_journal_owns_batch (journal, &offered, segment, position))
    return rp_fail (fault, RP_NOT_FOUND, position, "%s: neither a grain nor a "
                    "batch's header at %" PRIu64, rp_journal_name (journal),
                    position);
  block = malloc (journal->block_bytes);
  if (!block)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a batch's header");
  status = header_fits (journal, segment, &offered, block, &fits, fault);
  free (block);
  if (status == RP_OK && !fits)
    status = rp_fail (fault, RP_CORRUPT, position,
                      "%s: nothing proves the header that is offered for %"
                      PRIu64, rp_journal_name (journal), position);
  return status == RP_OK
         ? rp_file_pwrite (journal->file, data, journal->block_bytes, position,
                           fault)
         : status;
}

/* The entries of a segment, out of its batches. */
static int
collect_entries (struct rp_journal *journal, const struct rp_segment *segment,
                 uint8_t *block, uint8_t *out, struct rp_fault *fault)
{
  uint64_t position = segment->position + journal->block_bytes;
  uint64_t done = 0;

  while (position < segment->end) {
    struct rp_log_batch batch;
    bool whole;
    int status = read_header (journal, segment, position, block, &batch,
                              &whole, fault);

    if (status != RP_OK)
      return status;
    if (!whole || batch.entry_count > segment->prepared - done)
      break;
    memcpy (out + done * RP_LOG_ENTRY_BYTES, block + RP_LOG_BATCH_BYTES,
            (size_t) batch.entry_count * RP_LOG_ENTRY_BYTES);
    done += batch.entry_count;
    position = behind (journal, &batch);
  }
  if (rp_log_hash (out, segment->prepared * RP_LOG_ENTRY_BYTES)
      != segment->entries_checksum)
    return rp_fail (fault, RP_CORRUPT, segment->summary_position,
                    "%s: the batches of segment %" PRIu64
                    " do not give its summary", rp_journal_name (journal),
                    segment->number);
  return RP_OK;
}

static int
mend_summary (struct rp_journal *journal, const struct rp_segment *segment,
              uint64_t position, struct rp_fault *fault)
{
  const uint64_t bytes = segment->prepared * RP_LOG_ENTRY_BYTES;
  uint8_t *block, *entries;
  int status;

  if (segment->summary != RP_SUMMARY_COMPLETE
      || position != segment->summary_position)
    return rp_fail (fault, RP_NOT_FOUND, position, "%s: no summary at %"
                    PRIu64, rp_journal_name (journal), position);
  block = malloc (journal->block_bytes);
  entries = calloc (1, bytes + 1);
  if (!block || !entries)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "the summary of a segment");
  else
    status = collect_entries (journal, segment, block, entries, fault);
  if (status == RP_OK)
    status = rp_file_pwrite (journal->file, entries, bytes, position, fault);
  free (entries);
  free (block);
  return status;
}

int
rp_journal_mend (struct rp_journal *journal, uint64_t number,
                 uint64_t position, const void *data, struct rp_fault *fault)
{
  const struct rp_segment *segment;
  int status;

  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing to mend",
                    rp_journal_name (journal));
  segment = find_segment (journal, number);
  if (!segment)
    return rp_fail (fault, RP_NOT_FOUND, position, "%s: no segment %" PRIu64,
                    rp_journal_name (journal), number);
  if (!data)
    return mend_summary (journal, segment, position, fault);
  status = mend_grain (journal, segment, position, data, fault);
  if (status == RP_NOT_FOUND)
    status = mend_header (journal, segment, position, data, fault);
  return status;
}

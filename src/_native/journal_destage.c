/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: the newest version of each grain goes to the base, and segments
 * that hold nothing newer are given back.
 *
 * What a stretch of the log leaves on the disk is found by walking it
 * backwards: the first entry that is met for a grain is the newest.  So all
 * that is kept in memory is one bit for each grain of the parts of the disk
 * that were written (32 MiB for 1 TiB of 4 KiB grains, when they are spread
 * over all of it), and a bounded list of what is to be copied: when it is full
 * it is written out, in the order of the disk, and the walk goes on. */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SEEN_GRAINS    32768u    /* bits of one page of those that were met */
#define SEEN_BYTES     (SEEN_GRAINS / 8)
#define COPIES_MAX     (1u << 21)  /* 12 bytes each */
#define STAGE_BYTES    (4u << 20)  /* read and written in one go */
#define READ_BYTES     (1u << 20)  /* of the log in one call */
#define READ_GAP_BYTES 16384u    /* read, rather than begin another call */
#define WRITE_BYTES    (1u << 20)
#define ZERO_BYTES     (64u << 20)
#define SAY_BYTES      (1u << 20)  /* between two calls of progress */
#define FLUSH_BYTES    (8u << 20)  /* dirty in the target at most, so that the
                                      log's syncs do not wait for more */
#define TABLES_AT_ONCE 16u       /* cleared under one hold of the lock */
#define ZERO_TABLES_AT_ONCE 1024u

/* One grain to copy, or a run of zeros. */
struct copy {
  uint32_t grain, place, value;
};

/* A segment as it was when the walk began. */
struct part {
  struct rp_segment segment;     /* entries: its own, or NULL */
};

struct destage {
  struct rp_journal *journal;
  struct rp_disk *target;
  bool (*progress) (void *context, uint64_t done_bytes, uint64_t total_bytes);
  void *context;
  struct rp_destage *out;
  struct rp_cut cut;             /* the new horizon */
  uint64_t first;                /* entry: where the base is */
  struct part *parts;
  uint64_t part_count;
  uint8_t **seen;                /* NULL: none of the page, &all: all of it */
  uint64_t seen_count;
  uint8_t *touched;              /* one byte for each table: then the walk only
                                    notes which ones were written */
  struct copy *copies;
  uint64_t copy_count;
  uint8_t *stage, *span;
  struct copy *order;            /* of a stage, in log order; value: index */
  uint64_t done, total, said;    /* bytes, one grain for each entry */
  uint64_t unflushed;
};

static const uint8_t all;        /* its address alone */

static uint8_t *
all_seen (void)
{
  return (uint8_t *) (uintptr_t) &all;
}

/* ---- progress ---- */

static int
say (struct destage *destage, bool now, struct rp_fault *fault)
{
  if (!destage->progress
      || (!now && destage->done - destage->said < SAY_BYTES))
    return RP_OK;
  destage->said = destage->done;
  if (destage->progress (destage->context, destage->done, destage->total))
    return RP_OK;
  return rp_fail (fault, RP_CANCELLED, destage->done, "%s: moving the oldest "
                  "restore point up", rp_journal_name (destage->journal));
}

/* ---- writing to the target ---- */

static int
wrote (struct destage *destage, uint64_t bytes, struct rp_fault *fault)
{
  destage->unflushed += bytes;
  if (destage->unflushed < FLUSH_BYTES)
    return RP_OK;
  destage->unflushed = 0;
  return rp_disk_flush (destage->target, fault);
}

/* Bytes of the disk that count grains cover: the last one may be short. */
static uint64_t
grains_bytes (const struct destage *destage, uint64_t grain, uint64_t count)
{
  const uint64_t grain_bytes = destage->journal->super.grain_bytes;
  const uint64_t rest = destage->target->size_bytes - grain * grain_bytes;

  return count * grain_bytes < rest ? count * grain_bytes : rest;
}

static int
write_data (struct destage *destage, uint64_t grain, uint64_t count,
            const uint8_t *data, struct rp_fault *fault)
{
  const uint64_t grain_bytes = destage->journal->super.grain_bytes;
  const uint64_t bytes = grains_bytes (destage, grain, count);
  int status = rp_disk_pwrite (destage->target, data, bytes,
                               grain * grain_bytes, fault);

  if (status == RP_OK)
    status = wrote (destage, bytes, fault);
  if (status != RP_OK)
    return status;
  destage->out->grains += count;
  destage->out->bytes_written += bytes;
  destage->done += count * grain_bytes;
  return say (destage, false, fault);
}

static int
write_zeros (struct destage *destage, uint64_t grain, uint64_t count,
             struct rp_fault *fault)
{
  uint64_t offset = grain * destage->journal->super.grain_bytes;
  uint64_t rest = grains_bytes (destage, grain, count);
  int status = RP_OK;

  destage->out->grains += count;
  while (status == RP_OK && rest > 0) {
    const uint64_t here = rest < ZERO_BYTES ? rest : ZERO_BYTES;

    status = rp_disk_zero (destage->target, here, offset, true, fault);
    if (status == RP_OK)
      status = wrote (destage, SAY_BYTES, fault);  /* its tables, say */
    if (status == RP_OK)
      status = say (destage, here == ZERO_BYTES, fault);
    destage->out->zeroed_bytes += here;
    offset += here;
    rest -= here;
  }
  return status;
}

/* ---- one stage: what fits into its memory ---- */

static int
by_grain (const void *a, const void *b)
{
  const struct copy *left = a, *right = b;

  return (left->grain > right->grain) - (left->grain < right->grain);
}

static int
by_place (const void *a, const void *b)
{
  const struct copy *left = a, *right = b;

  return (left->place > right->place) - (left->place < right->place);
}

/* One read of the log for places that lie near each other; returns how many. */
static int
read_span (struct destage *destage, const struct copy *order, uint64_t count,
           uint64_t *taken, struct rp_fault *fault)
{
  struct rp_journal *journal = destage->journal;
  const uint64_t grain_bytes = journal->super.grain_bytes;
  const uint64_t start = (uint64_t) order[0].place * RP_SECTOR_BYTES;
  uint64_t stop = start + grain_bytes, n = 1;
  int status;

  for (; n < count; n++) {
    const uint64_t next = (uint64_t) order[n].place * RP_SECTOR_BYTES;

    if (next > stop + READ_GAP_BYTES
        || next + grain_bytes > start + READ_BYTES)
      break;
    stop = next + grain_bytes;
  }
  *taken = n;
  status = rp_file_pread_all (journal->file, destage->span, stop - start,
                              start, fault);
  for (uint64_t i = 0; status == RP_OK && i < n; i++)
    memcpy (destage->stage + order[i].value * grain_bytes,
            destage->span + (uint64_t) order[i].place * RP_SECTOR_BYTES
            - start, grain_bytes);
  return status;
}

static int
check_data (struct destage *destage, const struct copy *copy,
            const uint8_t *data, struct rp_fault *fault)
{
  const struct rp_journal *journal = destage->journal;
  const uint64_t grain_bytes = journal->super.grain_bytes;
  const uint64_t position = (uint64_t) copy->place * RP_SECTOR_BYTES;

  if ((uint32_t) rp_log_hash (data, grain_bytes) == copy->value)
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, position,
                  "%s: %" PRIu64 " bytes at %" PRIu64 ", data of the disk from "
                  "%" PRIu64 " on: it does not go into the base",
                  rp_journal_name (journal), grain_bytes, position,
                  copy->grain * grain_bytes);
}

/* Read the data of copies [0, count), in log order, and check it. */
static int
fill_stage (struct destage *destage, const struct copy *copies,
            uint64_t count, struct rp_fault *fault)
{
  const uint64_t grain_bytes = destage->journal->super.grain_bytes;
  uint64_t data = 0, index = 0;
  int status = RP_OK;

  for (uint64_t i = 0; i < count; i++)
    if (copies[i].place != RP_PLACE_ZEROS) {
      destage->order[data].place = copies[i].place;
      destage->order[data].value = (uint32_t) data;
      data++;
    }
  if (data > 0)
    qsort (destage->order, data, sizeof *destage->order, by_place);
  for (uint64_t i = 0, taken; status == RP_OK && i < data; i += taken)
    status = read_span (destage, destage->order + i, data - i, &taken, fault);
  for (uint64_t i = 0; status == RP_OK && i < count; i++)
    if (copies[i].place != RP_PLACE_ZEROS)
      status = check_data (destage, &copies[i], destage->stage
                           + index++ * grain_bytes, fault);
  return status;
}

/* How many copies from `at` on are one run of the disk: data, or zeros. */
static uint64_t
run_of (const struct destage *destage, const struct copy *copies,
        uint64_t count, uint64_t *grains)
{
  const bool zeros = copies[0].place == RP_PLACE_ZEROS;
  uint64_t n = 1;

  *grains = zeros ? copies[0].value : 1;
  while (n < count && copies[n].grain == copies[0].grain + *grains
         && (copies[n].place == RP_PLACE_ZEROS) == zeros
         && (zeros || *grains < WRITE_BYTES
                                / destage->journal->super.grain_bytes))
    *grains += zeros ? copies[n++].value : (n++, 1);
  return n;
}

/* Copies [0, count), in disk order, whose data fits into the stage. */
static int
write_stage (struct destage *destage, const struct copy *copies,
             uint64_t count, struct rp_fault *fault)
{
  const uint64_t grain_bytes = destage->journal->super.grain_bytes;
  const uint8_t *data = destage->stage;
  int status = rp_journal_check_epoch (destage->journal, fault);

  if (status != RP_OK) {
    pthread_mutex_lock (&destage->journal->lock);
    rp_journal_fail (destage->journal, status, fault);
    pthread_mutex_unlock (&destage->journal->lock);
    return status;
  }
  status = fill_stage (destage, copies, count, fault);
  for (uint64_t i = 0, n; status == RP_OK && i < count; i += n) {
    uint64_t grains;

    n = run_of (destage, copies + i, count - i, &grains);
    if (copies[i].place == RP_PLACE_ZEROS) {
      status = write_zeros (destage, copies[i].grain, grains, fault);
      continue;
    }
    status = write_data (destage, copies[i].grain, grains, data, fault);
    data += grains * grain_bytes;
  }
  return status;
}

/* Write out what was collected, in disk order. */
static int
write_copies (struct destage *destage, struct rp_fault *fault)
{
  const uint64_t most = STAGE_BYTES / destage->journal->super.grain_bytes;
  uint64_t at = 0;
  int status = RP_OK;

  if (destage->copy_count > 0)
    qsort (destage->copies, destage->copy_count, sizeof *destage->copies,
           by_grain);
  while (status == RP_OK && at < destage->copy_count) {
    uint64_t count = 0, data = 0;

    while (count < destage->copy_count - at
           && (destage->copies[at + count].place == RP_PLACE_ZEROS
               || data < most))
      data += destage->copies[at + count++].place != RP_PLACE_ZEROS;
    status = write_stage (destage, destage->copies + at, count, fault);
    at += count;
  }
  destage->copy_count = 0;
  return status;
}

/* ---- what is the newest ---- */

static int
add_copy (struct destage *destage, uint64_t grain, uint32_t place,
          uint64_t value, struct rp_fault *fault)
{
  struct copy *copy;

  if (destage->copy_count == COPIES_MAX) {
    int status = write_copies (destage, fault);

    if (status != RP_OK)
      return status;
  }
  copy = &destage->copies[destage->copy_count++];
  copy->grain = (uint32_t) grain;
  copy->place = place;
  copy->value = (uint32_t) value;
  return RP_OK;
}

/* The bits around a grain, to be changed.  NULL: no memory. */
static uint8_t *
seen_page (struct destage *destage, uint64_t index, struct rp_fault *fault)
{
  if (!destage->seen[index]) {
    destage->seen[index] = calloc (1, SEEN_BYTES);
    if (!destage->seen[index])
      rp_fail (fault, RP_NO_MEMORY, 0, "which grains were met");
  }
  return destage->seen[index];
}

static int
meet_grain (struct destage *destage, const struct rp_log_entry *entry,
            struct rp_fault *fault)
{
  uint8_t *page = seen_page (destage, entry->grain / SEEN_GRAINS, fault);
  const uint32_t bit = entry->grain % SEEN_GRAINS;

  if (!page)
    return RP_NO_MEMORY;
  if (page == all_seen () || page[bit / 8] >> bit % 8 & 1) {
    destage->done += destage->journal->super.grain_bytes;
    return RP_OK;                /* a later entry was met before */
  }
  page[bit / 8] |= (uint8_t) (1u << bit % 8);
  return add_copy (destage, entry->grain, entry->place, entry->value, fault);
}

/* Zeros for those of grains [grain, grain + count), all of one page, that were
 * not met yet. */
static int
meet_zeros_in_page (struct destage *destage, uint64_t grain, uint64_t count,
                    struct rp_fault *fault)
{
  const uint64_t index = grain / SEEN_GRAINS;
  uint64_t run = 0;
  uint8_t *page;
  int status = RP_OK;

  if (destage->seen[index] == all_seen ())
    return RP_OK;
  if (!destage->seen[index] && count == SEEN_GRAINS) {
    destage->seen[index] = all_seen ();
    return add_copy (destage, grain, RP_PLACE_ZEROS, count, fault);
  }
  page = seen_page (destage, index, fault);
  if (!page)
    return RP_NO_MEMORY;
  for (uint64_t i = 0; status == RP_OK && i <= count; i++) {
    const uint32_t bit = (uint32_t) ((grain + i) % SEEN_GRAINS);

    if (i < count && !(page[bit / 8] >> bit % 8 & 1)) {
      page[bit / 8] |= (uint8_t) (1u << bit % 8);
      run++;
    } else if (run > 0) {
      status = add_copy (destage, grain + i - run, RP_PLACE_ZEROS, run,
                         fault);
      run = 0;
    }
  }
  return status;
}

static int
meet_zeros (struct destage *destage, const struct rp_log_entry *entry,
            struct rp_fault *fault)
{
  const uint64_t stop = (uint64_t) entry->grain + entry->value;
  int status = RP_OK;

  for (uint64_t at = entry->grain, here; status == RP_OK && at < stop;
       at += here) {
    here = SEEN_GRAINS - at % SEEN_GRAINS;
    if (here > stop - at)
      here = stop - at;
    status = meet_zeros_in_page (destage, at, here, fault);
  }
  destage->done += destage->journal->super.grain_bytes;
  return status;
}

static int
touch (struct destage *destage, uint64_t grain, uint64_t count)
{
  const uint64_t first = grain / RP_LOG_TABLE_ENTRIES;
  const uint64_t last = (grain + count - 1) / RP_LOG_TABLE_ENTRIES;

  memset (destage->touched + first, 1, last - first + 1);
  return RP_OK;
}

static int
meet (struct destage *destage, const struct rp_segment *segment,
      const struct rp_log_entry *entry, struct rp_fault *fault)
{
  const struct rp_journal *journal = destage->journal;
  const uint64_t count = entry->place == RP_PLACE_ZEROS ? entry->value : 1;

  if (destage->touched && count > 0
      && rp_inside (entry->grain, count, journal->grain_count))
    return touch (destage, entry->grain, count);
  if (entry->place == RP_PLACE_ZEROS
      && rp_inside (entry->grain, entry->value, journal->grain_count))
    return meet_zeros (destage, entry, fault);
  if (entry->place > RP_PLACE_ZEROS && entry->grain < journal->grain_count
      && entry->place % journal->grain_sectors == 0)
    return meet_grain (destage, entry, fault);
  return rp_fail (fault, RP_CORRUPT, segment->summary_position,
                  "%s: an entry of segment %" PRIu64 " for grain %u at %u",
                  rp_journal_name (journal), segment->number, entry->grain,
                  entry->place);
}

/* ---- the walk ---- */

/* The entries of a segment that no summary holds yet belong to the leader, who
 * may be adding some: copy them. */
static int
take_part (struct destage *destage, const struct rp_segment *segment,
           struct rp_fault *fault)
{
  struct rp_segment *copy = &destage->parts[destage->part_count].segment;
  uint64_t bytes;

  *copy = *segment;
  copy->entries = NULL;
  destage->part_count++;
  if (segment->summary == RP_SUMMARY_COMPLETE)
    return RP_OK;
  if (copy->prepared > destage->cut.entry - copy->first_entry)
    copy->prepared = destage->cut.entry - copy->first_entry;
  bytes = copy->prepared * RP_LOG_ENTRY_BYTES;
  copy->entries = malloc (bytes + 1);
  if (!copy->entries)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the entries of a segment");
  if (bytes > 0)
    memcpy (copy->entries, segment->entries, bytes);
  return RP_OK;
}

static int
take_parts (struct destage *destage, struct rp_fault *fault)
{
  struct rp_journal *journal = destage->journal;
  int status = RP_OK;

  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  destage->parts = calloc (journal->segment_count + 1,
                           sizeof *destage->parts);
  if (!destage->parts)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "a list of segments");
  for (uint64_t i = 0; status == RP_OK && i < journal->segment_count; i++) {
    const struct rp_segment *segment = journal->segments[i];

    if (segment->first_entry >= destage->cut.entry)
      break;
    if (segment->first_entry + segment->prepared > destage->first)
      status = take_part (destage, segment, fault);
  }
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

static int
walk_part (struct destage *destage, const struct rp_segment *segment,
           const uint8_t *entries, struct rp_fault *fault)
{
  uint64_t first = 0, at = segment->prepared;
  int status = RP_OK;

  if (destage->first > segment->first_entry)
    first = destage->first - segment->first_entry;
  if (at > destage->cut.entry - segment->first_entry)
    at = destage->cut.entry - segment->first_entry;
  while (status == RP_OK && at-- > first) {
    const struct rp_log_entry entry
      = rp_log_get_entry (entries + at * RP_LOG_ENTRY_BYTES);

    status = meet (destage, segment, &entry, fault);
  }
  return status == RP_OK ? say (destage, false, fault) : status;
}

static int
walk_parts (struct destage *destage, struct rp_fault *fault)
{
  uint8_t *memory = NULL;
  uint64_t room = 0;
  int status = RP_OK;

  for (uint64_t i = destage->part_count; status == RP_OK && i-- > 0;) {
    const struct rp_segment *segment = &destage->parts[i].segment;
    const uint8_t *entries;

    status = rp_journal_entries (destage->journal, segment, &entries, &memory,
                                 &room, fault);
    if (status == RP_OK)
      status = walk_part (destage, segment, entries, fault);
  }
  free (memory);
  return status;
}

static int
allocate (struct destage *destage, struct rp_fault *fault)
{
  const struct rp_journal *journal = destage->journal;
  const uint64_t entries = destage->cut.entry - destage->first;

  destage->seen_count = rp_divide_up (journal->grain_count, SEEN_GRAINS);
  destage->seen = calloc (destage->seen_count, sizeof *destage->seen);
  destage->copies = malloc (COPIES_MAX * sizeof *destage->copies);
  destage->stage = malloc (STAGE_BYTES);
  destage->span = malloc (READ_BYTES);
  destage->order = malloc (STAGE_BYTES / journal->super.grain_bytes
                           * sizeof *destage->order);
  destage->total = entries * journal->super.grain_bytes;
  if (destage->seen && destage->copies && destage->stage && destage->span
      && destage->order)
    return RP_OK;
  return rp_fail (fault, RP_NO_MEMORY, 0, "what is to be destaged");
}

static void
release (struct destage *destage)
{
  for (uint64_t i = 0; i < destage->part_count; i++)
    free (destage->parts[i].segment.entries);
  for (uint64_t i = 0; destage->seen && i < destage->seen_count; i++)
    if (destage->seen[i] != all_seen ())
      free (destage->seen[i]);
  free (destage->parts);
  free (destage->touched);
  free (destage->seen);
  free (destage->copies);
  free (destage->stage);
  free (destage->span);
  free (destage->order);
}

/* The newest version of all grains between where the base is and the cut. */
static int
copy_to_base (struct destage *destage, struct rp_fault *fault)
{
  int status = allocate (destage, fault);

  if (status == RP_OK)
    status = take_parts (destage, fault);
  if (status == RP_OK)
    status = say (destage, true, fault);
  if (status == RP_OK)
    status = walk_parts (destage, fault);
  if (status == RP_OK)
    status = write_copies (destage, fault);
  release (destage);
  if (status == RP_OK && !RP_SABOTAGED (26))  /* says so before it is synced */
    status = rp_disk_flush (destage->target, fault);
  return status == RP_OK ? say (destage, true, fault) : status;
}

/* ---- giving segments back ---- */

/* Segments before the one that the point lies in: nothing in them is newer. */
static uint64_t
count_done (const struct rp_journal *journal, const struct rp_cut *cut)
{
  return cut->segment - journal->segments[0]->number;
}

/* Giving segments back costs a root.  With the lock held. */
static bool
is_worth_it (const struct rp_journal *journal, uint64_t count)
{
  const uint64_t bytes = count * journal->super.segment_bytes;
  const uint64_t root = rp_journal_root_bytes (journal,
                                               journal->map.stored_count);

  if (count == 0)
    return false;
  if (bytes / 2 >= root)
    return true;
  return journal->limit_bytes != 0
         && rp_journal_used_count (journal) * journal->super.segment_bytes
            > journal->limit_bytes / 4 * 3;
}

/* Which slots the first segments lie in, one byte each. */
static uint8_t *
slots_of (const struct rp_journal *journal, uint64_t count,
          struct rp_fault *fault)
{
  uint8_t *slots = calloc (journal->slot_count + 1, 1);

  if (!slots)
    rp_fail (fault, RP_NO_MEMORY, 0, "the list of slots");
  for (uint64_t i = 0; slots && i < count; i++)
    slots[rp_position_slot (journal, journal->segments[i]->position)] = 1;
  return slots;
}

/* One table: what lies in these slots is in the base.  With the lock held. */
static int
clear_table (struct rp_journal *journal, uint64_t index, const uint8_t *slots,
             struct rp_fault *fault)
{
  const uint32_t first = RP_LOG_HEAD_BYTES / RP_SECTOR_BYTES;
  const uint32_t sectors = journal->super.segment_bytes / RP_SECTOR_BYTES;
  uint32_t *table = journal->map.tables[index];
  bool any = false, left = false;

  if (!rp_map_is_writable (table))
    return RP_OK;
  for (uint32_t i = 0; i < RP_LOG_TABLE_ENTRIES; i++) {
    const bool gone = table[i] > RP_PLACE_ZEROS
                      && slots[(table[i] - first) / sectors];

    if (gone && !any) {
      table = rp_map_table (&journal->map, index);
      if (!table)
        return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
      any = true;
    }
    if (gone)
      table[i] = RP_PLACE_ABSENT;
    left |= table[i] != RP_PLACE_ABSENT;
  }
  if (!left)
    rp_map_forget_table (&journal->map, index);
  return RP_OK;
}

/* Writers that append meanwhile never put anything into these slots. */
static int
clear_places (struct rp_journal *journal, const uint8_t *slots,
              struct rp_fault *fault)
{
  const uint64_t count = journal->map.table_count;
  int status = RP_OK;

  for (uint64_t at = 0; status == RP_OK && at < count;) {
    uint64_t stop = count - at < TABLES_AT_ONCE ? count : at + TABLES_AT_ONCE;

    pthread_mutex_lock (&journal->lock);
    for (; status == RP_OK && at < stop; at++)
      status = clear_table (journal, at, slots, fault);
    pthread_mutex_unlock (&journal->lock);
  }
  return status;
}

/* Of the tables of zeros, those that no entry from `first` on has touched, and
 * no writer since the map was frozen. */
static void
forget_untouched (struct rp_journal *journal,
                  const struct rp_map_freeze *freeze, const uint8_t *touched)
{
  const uint64_t count = journal->map.table_count;

  for (uint64_t at = 0, stop; at < count; at = stop) {
    stop = count - at < ZERO_TABLES_AT_ONCE ? count : at + ZERO_TABLES_AT_ONCE;
    pthread_mutex_lock (&journal->lock);
    for (uint64_t i = at; i < stop; i++)
      if (journal->map.tables[i] == rp_map_zeros && !touched[i]
          && !freeze->kept[i])
        rp_map_forget_table (&journal->map, i);
    pthread_mutex_unlock (&journal->lock);
  }
}

/* A disk that was trimmed as a whole has tables of zeros, which make roots as
 * large as if it was full.  When nothing has touched them since the cut the
 * base has the same zeros, and they can go.  Which ones that is, the entries
 * since then tell, where they are fewer than what it spares. */
static int
forget_zeros (struct rp_journal *journal, uint64_t first,
              struct rp_fault *fault)
{
  struct destage walk = { .journal = journal, .first = first };
  struct rp_map_freeze freeze;
  bool frozen = false;
  int status = rp_map_freeze_create (&journal->map, &freeze, fault);

  if (status != RP_OK)
    return status;
  walk.touched = calloc (journal->map.table_count, 1);
  if (!walk.touched)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "which tables were written");
  pthread_mutex_lock (&journal->lock);
  if (status == RP_OK
      && (journal->map.stored_count - journal->map.own_count)
         * RP_LOG_TABLE_BYTES
         > (rp_journal_entry_count (journal) - first) * RP_LOG_ENTRY_BYTES) {
    status = rp_journal_freeze_end (journal, true, &freeze, &walk.cut, fault);
    frozen = status == RP_OK;
  }
  pthread_mutex_unlock (&journal->lock);
  if (frozen) {
    status = take_parts (&walk, fault);
    if (status == RP_OK)
      status = walk_parts (&walk, fault);
    if (status == RP_OK)
      forget_untouched (journal, &freeze, walk.touched);
    rp_journal_thaw (journal, &freeze);
  }
  release (&walk);
  rp_map_freeze_destroy (&freeze);
  return status;
}

static void
punch_slots (struct rp_journal *journal, uint64_t count)
{
  const uint64_t bytes = journal->super.segment_bytes;
  struct rp_fault ignored;

  for (uint64_t i = 0; i < count; i++) {
    uint64_t position;

    pthread_mutex_lock (&journal->lock);   /* the list may be growing */
    position = journal->segments[i]->position;
    pthread_mutex_unlock (&journal->lock);
    (void) rp_file_punch (journal->file, position, bytes, &ignored);
  }
}

/* What a crash left in slots that were given back, or in a dropped tail, takes
 * space and is read at each recovery: punch it once.  A stretch of slots is
 * taken like a root while that is done. */
static void
punch_leftovers (struct rp_journal *journal)
{
  uint64_t first = 0, stop;
  struct rp_fault ignored;

  while (!journal->was_clean && !journal->leftovers_gone) {
    uint8_t *used;

    pthread_mutex_lock (&journal->lock);
    used = rp_journal_used_slots (journal, &ignored);
    while (used && first < journal->slot_count && used[first])
      first++;
    for (stop = first; used && stop < journal->slot_count && !used[stop];)
      stop++;
    journal->leftovers_gone = !used || first == journal->slot_count;
    free (used);
    if (!journal->leftovers_gone) {
      journal->building.position = rp_slot_position (journal, first);
      journal->building.bytes = (stop - first) * journal->super.segment_bytes;
    }
    pthread_mutex_unlock (&journal->lock);
    if (journal->leftovers_gone)
      return;
    (void) rp_file_punch (journal->file, journal->building.position,
                          journal->building.bytes, &ignored);
    rp_journal_end_building (journal);
    first = stop;
  }
}

/* With the lead and the lock. */
static void
forget_segments (struct rp_journal *journal, uint64_t count)
{
  const uint64_t first = journal->super.ring.number;
  uint64_t gone = 0;

  for (uint64_t i = 0; i < count; i++)
    rp_segment_free (journal->segments[i]);
  journal->segment_count -= count;
  memmove (journal->segments, journal->segments + count,
           journal->segment_count * sizeof *journal->segments);
  journal->next_trailer -= count;
  while (gone < journal->point_first && journal->points[gone].segment < first)
    free (journal->points[gone++].label);
  journal->point_count -= gone;
  journal->point_first -= gone;
  memmove (journal->points, journal->points + gone,
           journal->point_count * sizeof *journal->points);
}

/* The slots are nobody's on disk any more: wait for reads that have looked
 * their places up, and let others have them. */
static void
free_segments (struct rp_journal *journal, uint64_t count)
{
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  if (journal->next_trailer < count)   /* nobody will read their summaries */
    journal->next_trailer = count;
  rp_journal_end_lead (journal);
  rp_journal_await_readers (journal);
  pthread_mutex_unlock (&journal->lock);
  punch_slots (journal, count);
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  forget_segments (journal, count);
  rp_journal_end_lead (journal);
  pthread_cond_broadcast (&journal->room);
  pthread_mutex_unlock (&journal->lock);
}

/* A root that names nothing in the first segments. */
static int
leave_segments (struct rp_journal *journal, uint64_t count, uint64_t cut,
                struct rp_fault *fault)
{
  struct rp_roll ignored;
  uint8_t *slots;
  int status;

  pthread_mutex_lock (&journal->lock);
  slots = slots_of (journal, count, fault);
  pthread_mutex_unlock (&journal->lock);
  if (!slots)
    return RP_NO_MEMORY;
  status = clear_places (journal, slots, fault);
  free (slots);
  if (status == RP_OK)
    status = forget_zeros (journal, cut, fault);
  if (status == RP_OK)
    punch_leftovers (journal);
  if (status == RP_OK)
    status = rp_journal_show_end (journal, true, false, &ignored, fault);
  return status;
}

/* The base has everything before the cut, and it is synced. */
static int
settle (struct destage *destage, struct rp_fault *fault)
{
  struct rp_journal *journal = destage->journal;
  struct rp_log_ring ring;
  uint64_t count;
  int status = RP_OK;

  pthread_mutex_lock (&journal->lock);
  ring = journal->super.ring;
  count = count_done (journal, &destage->cut);
  if (!is_worth_it (journal, count))
    count = 0;
  else {
    const struct rp_segment *first = journal->segments[count];

    ring.number = first->number;
    ring.first_sequence = first->first_sequence;
    ring.chain = first->chain_in;
    ring.first_entry = first->first_entry;
  }
  pthread_mutex_unlock (&journal->lock);
  if (count == 0 && ring.based_entry == destage->cut.entry)
    return RP_OK;
  ring.based_entry = destage->cut.entry;
  if (RP_SABOTAGED (25))         /* gives segments back too early */
    punch_slots (journal, count);
  if (count > 0 && !RP_SABOTAGED (27))   /* frees what the root shows */
    status = leave_segments (journal, count, destage->cut.entry, fault);
  if (status == RP_OK)
    status = rp_journal_put_ring (journal, &ring, fault);
  if (status != RP_OK)
    return status;
  destage->out->entries = destage->cut.entry - destage->first;
  destage->out->freed_bytes = count * journal->super.segment_bytes;
  if (count > 0)
    free_segments (journal, count);
  return RP_OK;
}

/* ---- the calls ---- */

/* What both need: a session, the map, and the lock on the work. */
static int
begin (struct rp_journal *journal, struct rp_fault *fault)
{
  int status;

  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  status = rp_journal_usable (journal, fault);
  if (status == RP_OK) {
    status = rp_journal_begin_session (journal, fault);
    if (status != RP_OK)
      rp_journal_fail (journal, status, fault);
  }
  if (status == RP_OK)
    status = rp_journal_load_map (journal, fault);
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* Would opening read the root in less time than it walks the entries? */
static bool
checkpoint_pays (struct rp_journal *journal)
{
  bool pays;

  pthread_mutex_lock (&journal->lock);
  pays = rp_journal_root_pays (journal->map.stored_count,
                               rp_journal_entry_count (journal)
                               - journal->root.entry);
  pthread_mutex_unlock (&journal->lock);
  return pays;
}

int
rp_journal_checkpoint (struct rp_journal *journal, struct rp_checkpoint *out,
                       struct rp_fault *fault)
{
  struct rp_roll roll;
  uint64_t before;
  int status;

  memset (out, 0, sizeof *out);
  memset (&roll, 0, sizeof roll);
  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  rp_journal_begin_work (journal);
  before = journal->root.entry;
  status = rp_journal_commit (journal, fault);
  if (status == RP_OK)
    status = begin (journal, fault);
  roll.root_sector = (journal->root.position + RP_LOG_PAGE_BYTES)
                     / RP_SECTOR_BYTES;
  if (status == RP_OK && checkpoint_pays (journal))
    status = rp_journal_show_end (journal, false, true, &roll, fault);
  if (status == RP_OK)
    out->entries_since = journal->root.entry - before;
  out->bytes_written = roll.bytes_written;
  out->root_sector = roll.root_sector;
  rp_journal_end_work (journal);
  return status;
}

/* The horizon moves; points before it are gone once that is durable. */
static int
move_horizon (struct rp_journal *journal, const struct rp_cut *cut,
              struct rp_fault *fault)
{
  struct rp_log_ring ring;
  int status;

  pthread_mutex_lock (&journal->lock);
  ring = journal->super.ring;
  pthread_mutex_unlock (&journal->lock);
  if (ring.horizon_sequence == cut->sequence)
    return RP_OK;
  ring.horizon_entry = cut->entry;
  ring.horizon_sequence = cut->sequence;
  status = rp_journal_put_ring (journal, &ring, fault);
  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  rp_journal_hide_points (journal);
  pthread_mutex_unlock (&journal->lock);
  return RP_OK;
}

static int
destage_steps (struct destage *destage, uint64_t point_id,
               struct rp_fault *fault)
{
  struct rp_journal *journal = destage->journal;
  struct rp_roll ignored;
  int status = rp_journal_commit (journal, fault);

  if (status == RP_OK)
    status = begin (journal, fault);
  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  status = rp_journal_find_cut (journal, point_id, &destage->cut, fault);
  destage->first = journal->super.ring.based_entry;
  if (status == RP_OK && destage->cut.sequence > journal->durable_sequence)
    status = rp_journal_commit_locked (journal, fault);  /* just marked */
  pthread_mutex_unlock (&journal->lock);
  if (status == RP_OK && !RP_SABOTAGED (32))   /* the base before the horizon */
    status = move_horizon (journal, &destage->cut, fault);
  if (status == RP_OK && journal->root.entry < destage->cut.entry
      && !RP_SABOTAGED (33))     /* the base changes under the shown root */
    status = rp_journal_show_end (journal, false, false, &ignored, fault);
  if (status == RP_OK && destage->first < destage->cut.entry)
    status = copy_to_base (destage, fault);
  if (RP_SABOTAGED (32) && status == RP_OK)
    status = move_horizon (journal, &destage->cut, fault);
  return status == RP_OK ? settle (destage, fault) : status;
}

static int
check_target (const struct rp_journal *journal, uint64_t point_id,
              const struct rp_disk *target, struct rp_fault *fault)
{
  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  if (point_id == RP_POINT_END)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: a restore point is needed, "
                    "not the end of the log", rp_journal_name (journal));
  if (target->size_bytes != journal->disk.size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: a target of %" PRIu64
                    " bytes", rp_journal_name (journal), target->size_bytes);
  if (journal->base && journal->base != target)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: the target is not the disk "
                    "that it reads through", rp_journal_name (journal));
  return RP_OK;
}

int
rp_journal_destage (struct rp_journal *journal, uint64_t point_id,
                    struct rp_disk *target,
                    bool (*progress) (void *context, uint64_t done_bytes,
                                      uint64_t total_bytes),
                    void *context, struct rp_destage *out,
                    struct rp_fault *fault)
{
  struct destage destage = {
    .journal = journal, .target = target, .progress = progress,
    .context = context, .out = out,
  };
  int status = check_target (journal, point_id, target, fault);

  memset (out, 0, sizeof *out);
  if (status != RP_OK)
    return status;
  rp_journal_begin_work (journal);
  status = destage_steps (&destage, point_id, fault);
  rp_journal_end_work (journal);
  return status;
}

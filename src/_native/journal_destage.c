/* SPDX-License-Identifier: Apache-2.0 */
/* The newest version of each grain in a stretch of the log goes to the base.
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
#define TRIM_COST_BYTES 65536u   /* dirty behind it at most: tables, say */
#define SAY_BYTES      (1u << 20)  /* between two calls of progress */
#define FLUSH_BYTES    (8u << 20)  /* dirty in the target at most, so that the
                                      log's syncs do not wait for more */

/* One grain to copy, or a run of zeros. */
struct copy {
  uint32_t grain, place, value;
};

struct destage {
  struct rp_journal *journal;
  struct rp_disk *target;
  bool (*progress) (void *context, uint64_t done_bytes, uint64_t total_bytes);
  void *context;
  struct rp_destage *out;
  uint64_t first, stop;          /* entries: where the base is, and will be */
  struct rp_segment *parts;      /* as they were when the walk began; entries:
                                    their own, or NULL */
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
      status = wrote (destage, here < TRIM_COST_BYTES ? here
                                                      : TRIM_COST_BYTES, fault);
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

/* A writer that was fenced off, or is held, changes no base either. */
static int
may_write (struct rp_journal *journal, struct rp_fault *fault)
{
  int status = rp_journal_check_epoch (journal, fault);

  pthread_mutex_lock (&journal->lock);
  if (status != RP_OK)
    rp_journal_fail (journal, status, fault);
  else
    status = rp_journal_not_held (journal, fault);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* Copies [0, count), in disk order, whose data fits into the stage. */
static int
write_stage (struct destage *destage, const struct copy *copies,
             uint64_t count, struct rp_fault *fault)
{
  const uint64_t grain_bytes = destage->journal->super.grain_bytes;
  const uint8_t *data = destage->stage;
  int status = may_write (destage->journal, fault);

  if (status == RP_OK)
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
  return rp_journal_bad_entry (destage->journal, segment, entry, fault);
}

/* ---- the walk ---- */

/* The entries of a segment that no summary holds yet belong to the leader, who
 * may be adding some: copy them. */
static int
take_part (struct destage *destage, const struct rp_segment *segment,
           struct rp_fault *fault)
{
  struct rp_segment *copy = &destage->parts[destage->part_count];
  uint64_t bytes;

  *copy = *segment;
  copy->entries = NULL;
  destage->part_count++;
  if (segment->summary == RP_SUMMARY_COMPLETE)
    return RP_OK;
  if (copy->prepared > destage->stop - copy->first_entry)
    copy->prepared = destage->stop - copy->first_entry;
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

    if (segment->first_entry >= destage->stop)
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
  if (at > destage->stop - segment->first_entry)
    at = destage->stop - segment->first_entry;
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
    const struct rp_segment *segment = &destage->parts[i];
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
  const uint64_t entries = destage->stop - destage->first;

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
    free (destage->parts[i].entries);
  for (uint64_t i = 0; destage->seen && i < destage->seen_count; i++)
    if (destage->seen[i] != all_seen ())
      free (destage->seen[i]);
  free (destage->parts);
  free (destage->seen);
  free (destage->copies);
  free (destage->stage);
  free (destage->span);
  free (destage->order);
}

static int
copy_newest (struct destage *destage, struct rp_fault *fault)
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
  if (status == RP_OK && !RP_SABOTAGED (26))  /* says so before it is synced */
    status = rp_disk_flush (destage->target, fault);
  return status == RP_OK ? say (destage, true, fault) : status;
}

int
rp_journal_copy_newest (struct rp_journal *journal, uint64_t first,
                        uint64_t stop, const struct rp_destaging *how,
                        struct rp_destage *out, struct rp_fault *fault)
{
  struct destage destage = {
    .journal = journal, .first = first, .stop = stop, .target = how->target,
    .progress = how->progress, .context = how->context, .out = out,
  };
  int status = copy_newest (&destage, fault);

  release (&destage);
  return status;
}

int
rp_journal_note_touched (struct rp_journal *journal, uint64_t first,
                         uint64_t stop, uint8_t *touched,
                         struct rp_fault *fault)
{
  struct destage walk = {
    .journal = journal, .first = first, .stop = stop, .touched = touched,
  };
  int status = take_parts (&walk, fault);

  if (status == RP_OK)
    status = walk_parts (&walk, fault);
  release (&walk);
  return status;
}

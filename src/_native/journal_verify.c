/* SPDX-License-Identifier: Apache-2.0 */
/* Re-reading everything.  The units of a segment (a batch's header, a grain)
 * all have one size and lie on multiples of it, so they are taken one by one
 * out of large windows that a thread reads ahead (journal_reader.c).  What a
 * unit is says the segment's summary; where that is lost, the batches do.
 */
#include "journal_private.h"
#include "journal_reader.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_GUEST   UINT64_MAX
#define LOOKS      3             /* at what a writer may be writing just now */

struct verify {
  struct rp_journal *journal;
  const struct rp_scrub *scrub;
  uint64_t done, total;          /* bytes, for progress */
  uint64_t next_segment, chain;  /* likewise: where a later call may begin */
  uint64_t segment;              /* number of the one that is read */
  uint8_t *block;                /* RP_LOG_PAGE_BYTES or a batch's header */
};

/* A walk through the units of one segment. */
struct walk {
  const struct rp_segment *segment;
  uint8_t *memory;               /* the summary, once it is read */
  uint64_t room;
  const uint8_t *summary;        /* NULL: lost */
  const uint8_t *entries;        /* the summary's, or those of one batch */
  uint64_t next, count;          /* the next of them */
  uint64_t sequence, chain;      /* of the batch that comes */
  uint64_t ordinal;              /* entries in the batches so far */
  uint64_t batch;                /* sequence of the one that data belongs to */
  uint64_t point;                /* the next in the journal's list */
  bool     lost;                 /* the batch before was unreadable */
  bool     whole;                /* none was */
};

static void __attribute__ ((format (printf, 5, 6)))
report (struct verify *verify, uint64_t position, uint64_t guest,
        uint64_t length, const char *format, ...)
{
  struct rp_journal_damage damage = {
    .segment = verify->segment, .position = position,
    .guest_offset_bytes = guest, .length_bytes = length,
  };
  va_list arguments;

  va_start (arguments, format);
  vsnprintf (damage.message, sizeof damage.message, format, arguments);
  va_end (arguments);
  verify->scrub->each (verify->scrub->context, &damage);
}

static int
advance (struct verify *verify, uint64_t bytes, struct rp_fault *fault)
{
  const struct rp_scrub *scrub = verify->scrub;
  const struct rp_scrub_progress progress = {
    .done_bytes = verify->done += bytes, .total_bytes = verify->total,
    .next_segment = verify->next_segment, .chain = verify->chain,
  };

  if (scrub->progress && !scrub->progress (scrub->context, &progress))
    return rp_fail (fault, RP_CANCELLED, verify->done,
                    "after %" PRIu64 " of %" PRIu64 " bytes", verify->done,
                    verify->total);
  return RP_OK;
}

/* Read; what lies behind the end of the file, or cannot be read, is damage and
 * reads as zeros. */
static int
read_some (struct verify *verify, void *buffer, uint64_t length,
           uint64_t position, struct rp_fault *fault)
{
  size_t done = 0;
  int status = rp_file_pread (verify->journal->file, buffer, length, position,
                              &done, fault);

  if (status == RP_IO) {
    report (verify, position, NO_GUEST, length, "it cannot be read: %.80s",
            fault->message);
    done = 0;
    status = RP_OK;
  }
  if (status == RP_OK && done < length)
    memset ((uint8_t *) buffer + done, 0, length - done);
  return status;
}

/* ---- head ---- */

/* Is the sparse header whole, and does it show the root that was found?  A
 * writer beside us may show another one by now: that is no damage. */
static int
verify_sparse (struct verify *verify, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  uint64_t capacity, directory;
  uint32_t grain_bytes;
  bool good = false;

  for (int look = 0; look < LOOKS && !good; look++) {
    int status = read_some (verify, verify->block, RP_SECTOR_BYTES, 0, fault);

    if (status != RP_OK)
      return status;
    good = rp_log_get_sparse (verify->block, &capacity, &grain_bytes,
                              &directory)
           && capacity == journal->super.capacity_bytes
           && grain_bytes == journal->super.grain_bytes
           && (!journal->writable || directory == rp_root_sector (journal));
  }
  if (!good)
    report (verify, 0, NO_GUEST, RP_SECTOR_BYTES, "the sparse header");
  return RP_OK;
}

static int
verify_head (struct verify *verify, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  int status = verify_sparse (verify, fault);

  for (uint64_t i = 1; status == RP_OK && i <= RP_LOG_SUPER_COUNT; i++) {
    struct rp_log_super super;
    bool good = false;

    for (int look = 0; status == RP_OK && look < LOOKS && !good; look++) {
      status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES,
                          i * RP_LOG_PAGE_BYTES, fault);
      good = status == RP_OK && rp_log_get_super (verify->block, &super)
             && memcmp (super.id, journal->super.id, sizeof super.id) == 0;
    }
    if (status == RP_OK && !good)
      report (verify, i * RP_LOG_PAGE_BYTES, NO_GUEST, RP_LOG_PAGE_BYTES,
              "copy %u of the superblock", (unsigned) i);
  }
  return status == RP_OK ? advance (verify, RP_LOG_HEAD_BYTES, fault) : status;
}

/* ---- units ---- */

/* Is the unit at this place a grain?  The entry that says so, or false. */
static bool
is_data (struct walk *walk, uint64_t position, struct rp_log_entry *out)
{
  while (walk->next < walk->count) {
    *out = rp_log_get_entry (walk->entries + walk->next * RP_LOG_ENTRY_BYTES);
    if (out->place != RP_PLACE_ZEROS)
      return out->place == position / RP_SECTOR_BYTES;
    walk->next++;
  }
  return false;
}

static void
take_data (struct verify *verify, struct walk *walk, const uint8_t *unit,
           uint64_t position, const struct rp_log_entry *entry)
{
  const uint32_t bytes = verify->journal->super.grain_bytes;
  const uint64_t guest = (uint64_t) entry->grain * bytes;

  walk->next++;
  if (!unit)
    report (verify, position, guest, bytes,
            "data of segment %" PRIu64 " cannot be read",
            walk->segment->number);
  else if ((uint32_t) rp_log_hash (unit, bytes) != entry->value
           && !RP_SABOTAGED (40))  /* takes all data for good */
    report (verify, position, guest, bytes, "data written by batch %" PRIu64,
            walk->batch);
}

/* Compare a batch's entries with what the segment's summary says. */
static void
compare_entries (struct verify *verify, const struct walk *walk,
                 const uint8_t *unit, const struct rp_log_batch *batch)
{
  const uint64_t bytes = (uint64_t) batch->entry_count * RP_LOG_ENTRY_BYTES;
  const uint64_t count = walk->segment->prepared;

  if (!walk->summary || !walk->whole)
    return;
  if (walk->ordinal > count || batch->entry_count > count - walk->ordinal
      || (bytes > 0
          && memcmp (walk->summary + walk->ordinal * RP_LOG_ENTRY_BYTES,
                     unit + RP_LOG_BATCH_BYTES, bytes) != 0))
    report (verify, batch->position, NO_GUEST, verify->journal->block_bytes,
            "batch %" PRIu64 " differs from the summary", batch->sequence);
}

/* Points that the horizon has passed are in their batches still. */
static bool
point_is_gone (const struct rp_journal *journal, uint64_t sequence)
{
  return sequence < journal->super.ring.horizon_sequence;
}

/* The point in a batch against the one that the summary, or recovery, gave. */
static void
compare_point (struct verify *verify, struct walk *walk, const uint8_t *unit,
               const struct rp_log_batch *batch)
{
  const struct rp_journal *journal = verify->journal;
  const struct rp_point_record *record = NULL;
  struct rp_point point;

  while (walk->point < journal->point_count
         && journal->points[walk->point].sequence < batch->sequence)
    walk->point++;
  if (walk->point < journal->point_count
      && journal->points[walk->point].sequence == batch->sequence)
    record = &journal->points[walk->point++];
  if (!record && point_is_gone (journal, batch->sequence))
    return;
  if (!rp_log_get_point (unit + RP_LOG_BATCH_BYTES, &point) || !record
      || record->id != point.id || record->time_ns != point.time_ns
      || record->kind != point.kind || record->segment != walk->segment->number
      || strcmp (record->label ? record->label : "", point.label) != 0
      || (walk->whole && record->ordinal != walk->ordinal))
    report (verify, batch->position, NO_GUEST, journal->block_bytes,
            "restore point %" PRIu64 " differs from the summary", point.id);
}

static void
lose_header (struct verify *verify, struct walk *walk, uint64_t position)
{
  /* say it once, and look for the next that can be read */
  if (!walk->lost || walk->summary)
    report (verify, position, NO_GUEST, verify->journal->block_bytes,
            "the header of a batch of segment %" PRIu64 ", %" PRIu64
            " or later", walk->segment->number, walk->sequence);
  walk->lost = true;
  walk->whole = false;
  if (!walk->summary)
    walk->next = walk->count = 0;
}

static void
take_header (struct verify *verify, struct walk *walk, const uint8_t *unit,
             uint64_t position)
{
  struct rp_journal *journal = verify->journal;
  const struct rp_segment *segment = walk->segment;
  struct rp_log_batch batch;

  if (!unit || !rp_log_get_batch (unit, journal->block_bytes, &batch)
      || !rp_journal_owns_batch (journal, &batch, segment, position)
      || batch.sequence < segment->first_sequence
      || batch.sequence > segment->last_sequence) {
    lose_header (verify, walk, position);
    return;
  }
  compare_entries (verify, walk, unit, &batch);
  if (batch.point_count > 0)
    compare_point (verify, walk, unit, &batch);
  if (!walk->lost
      && (batch.sequence != walk->sequence || batch.chain != walk->chain))
    report (verify, position, NO_GUEST, journal->block_bytes,
            "batch %" PRIu64 " does not follow the one before it",
            batch.sequence);
  walk->lost = false;
  walk->batch = batch.sequence;
  walk->sequence = batch.sequence + 1;
  walk->chain = batch.checksum;
  walk->ordinal += batch.entry_count;
  if (!walk->summary) {
    memcpy (verify->block, unit, journal->block_bytes);
    walk->entries = verify->block + RP_LOG_BATCH_BYTES;
    walk->next = 0;
    walk->count = batch.entry_count;
  }
}

/* bytes NULL: they cannot be read at once, so each unit is asked for. */
static int
take_window (struct verify *verify, struct walk *walk,
             const struct rp_window *window, struct rp_fault *fault)
{
  const uint32_t step = verify->journal->block_bytes;
  uint8_t *single = NULL;
  int status = RP_OK;

  if (window->status != RP_OK) {
    single = malloc (step);
    if (!single)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a grain");
  }
  for (uint64_t at = 0; status == RP_OK && at < window->length; at += step) {
    const uint64_t position = window->position + at;
    const uint8_t *unit = window->bytes + at;
    struct rp_log_entry entry;

    if (single) {
      status = rp_file_pread_all (verify->journal->file, single, step,
                                  position, fault);
      unit = status == RP_OK ? single : NULL;
      if (status == RP_IO || status == RP_CORRUPT)
        status = RP_OK;
    }
    if (status != RP_OK)
      break;
    if (is_data (walk, position, &entry))
      take_data (verify, walk, unit, position, &entry);
    else
      take_header (verify, walk, unit, position);
  }
  free (single);
  return status == RP_OK ? advance (verify, window->length, fault) : status;
}

/* ---- segments ---- */

/* The summary's points; a damaged one also stops an open. */
static int
verify_points (struct verify *verify, const struct rp_segment *segment,
               struct rp_fault *fault)
{
  const uint64_t page = segment->position
                        + verify->journal->super.segment_bytes
                        - RP_LOG_PAGE_BYTES;
  struct rp_log_trailer trailer;
  uint64_t position, bytes;
  uint8_t *cuts;
  int status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES, page,
                          fault);

  if (status != RP_OK)
    return status;
  if (!rp_log_get_trailer (verify->block, &trailer)
      || memcmp (trailer.id, verify->journal->super.id, sizeof trailer.id) != 0
      || trailer.position != segment->position
      || trailer.number != segment->number
      || trailer.entry_count != segment->prepared
      || trailer.point_count != segment->point_count) {
    report (verify, page, NO_GUEST, RP_LOG_PAGE_BYTES,
            "the trailer of segment %" PRIu64, segment->number);
    return RP_OK;
  }
  position = segment->summary_position + trailer.entry_count
                                         * RP_LOG_ENTRY_BYTES;
  bytes = trailer.point_count * RP_LOG_CUT_BYTES;
  cuts = malloc (bytes + 1);
  if (!cuts)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the points of a segment");
  status = read_some (verify, cuts, bytes, position, fault);
  if (status == RP_OK && rp_log_hash (cuts, bytes) != trailer.points_checksum)
    report (verify, position, NO_GUEST, bytes,
            "the restore points in the summary of segment %" PRIu64,
            segment->number);
  free (cuts);
  return status;
}

static int
verify_header (struct verify *verify, const struct rp_segment *segment,
               struct rp_fault *fault)
{
  struct rp_log_segment header;
  int status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES,
                          segment->position, fault);

  if (status == RP_OK
      && (!rp_log_get_segment (verify->block, &header)
          || memcmp (header.id, verify->journal->super.id, sizeof header.id)
             != 0
          || header.number != segment->number
          || header.position != segment->position
          || header.first_sequence != segment->first_sequence
          || header.first_entry != segment->first_entry
          || header.chain != segment->chain_in))
    report (verify, segment->position, NO_GUEST, RP_LOG_PAGE_BYTES,
            "the header of segment %" PRIu64, segment->number);
  return status;
}

static int
begin_segment (struct verify *verify, struct walk *walk, uint64_t index,
               struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  const struct rp_segment *segment = journal->segments[index];
  int status;

  walk->segment = segment;
  walk->sequence = segment->first_sequence;
  walk->chain = segment->chain_in;
  walk->ordinal = walk->next = walk->batch = 0;
  walk->lost = false;
  walk->whole = true;
  verify->segment = segment->number;
  status = verify_header (verify, segment, fault);
  if (status != RP_OK)
    return status;
  status = rp_journal_entries (journal, segment, &walk->summary,
                               &walk->memory, &walk->room, fault);
  walk->entries = walk->summary;
  walk->count = segment->prepared;
  if (status == RP_CORRUPT || status == RP_IO) {
    report (verify, segment->summary_position, NO_GUEST,
            segment->prepared * RP_LOG_ENTRY_BYTES,
            "the summary of segment %" PRIu64, segment->number);
    walk->summary = NULL;
    walk->count = 0;
    status = RP_OK;
  }
  if (status == RP_OK && segment->summary == RP_SUMMARY_COMPLETE)
    status = verify_points (verify, segment, fault);
  return status;
}

static void
end_segment (struct verify *verify, const struct walk *walk)
{
  const struct rp_segment *segment = walk->segment;
  const uint64_t bytes = segment->end - segment->position;

  if (walk->whole && walk->ordinal != segment->prepared)
    report (verify, segment->position, NO_GUEST, bytes, "segment %" PRIu64
            " holds %" PRIu64 " entries, its summary says %" PRIu64,
            segment->number, walk->ordinal, segment->prepared);
  else if (!walk->lost && segment->last_sequence != 0
           && (walk->sequence != segment->last_sequence + 1
               || walk->chain != segment->chain))
    report (verify, segment->position, NO_GUEST, bytes, "segment %" PRIu64
            " does not end with the batch that its trailer names",
            segment->number);
  verify->segment = NO_GUEST;
  if (segment->closed) {         /* it never changes: not read again */
    verify->next_segment = segment->number + 1;
    verify->chain = segment->chain;
  }
}

static int
verify_segments (struct verify *verify, uint64_t first, uint64_t stop,
                 struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  struct walk walk = { .memory = NULL };
  struct rp_reader *reader;
  int status = rp_reader_create (&reader, journal, first, stop, fault);

  if (status != RP_OK)
    return status;
  for (uint64_t i = first; status == RP_OK && i < stop; i++) {
    const struct rp_segment *segment = journal->segments[i];
    uint64_t position = segment->position + journal->block_bytes;

    status = begin_segment (verify, &walk, i, fault);
    while (status == RP_OK && position < segment->end) {
      const struct rp_window *window = rp_reader_next (reader);

      RP_CHECK (window->position == position);
      status = take_window (verify, &walk, window, fault);
      position += window->length;
    }
    if (status == RP_OK)
      end_segment (verify, &walk);
  }
  rp_reader_destroy (reader);
  free (walk.memory);
  return status;
}

/* ---- root ---- */

/* What the log says of the shown root's grains: those since the horizon, and
 * those before it, which the base has too, so that a root may leave them to it.
 * (Between the root and the superblock of a destage nothing says how far the
 * base is, so it is the horizon that counts, not based_entry.) */
struct log_maps {
  struct rp_map since, before;
  bool destaged;
};

static bool
agrees (const struct log_maps *log, uint64_t grain, uint32_t shown)
{
  const uint32_t since = rp_map_get (&log->since, grain);

  if (since != RP_PLACE_ABSENT || !log->destaged || shown == RP_PLACE_ABSENT)
    return shown == since;
  /* zeros may come from a segment that was given back */
  return shown == RP_PLACE_ZEROS || shown == rp_map_get (&log->before, grain);
}

/* Has a writer beside us shown another root, or destaged, since the journal was
 * opened?  Then what was read does not belong together. */
static bool
is_moved (struct verify *verify)
{
  const struct rp_journal *journal = verify->journal;
  bool stale[RP_LOG_SUPER_COUNT];
  struct rp_log_super now;
  uint64_t capacity, directory;
  uint32_t grain_bytes;
  uint8_t sector[RP_SECTOR_BYTES];
  struct rp_fault ignored;

  if (journal->writable)
    return false;
  if (rp_journal_read_super (journal->file, &now, stale, &ignored) != RP_OK
      || rp_file_pread_all (journal->file, sector, sizeof sector, 0, &ignored)
         != RP_OK
      || !rp_log_get_sparse (sector, &capacity, &grain_bytes, &directory))
    return false;
  return now.generation != journal->super.generation
         || directory != rp_root_sector (journal);
}

static void
compare_maps (struct verify *verify, const struct rp_map *shown,
              const struct log_maps *log)
{
  const uint64_t table_bytes = (uint64_t) RP_LOG_TABLE_ENTRIES
                               * verify->journal->super.grain_bytes;

  for (uint64_t i = 0; i < shown->table_count; i++) {
    const uint64_t next = rp_map_next (shown, i);
    const uint64_t other = rp_map_next (&log->since, i);

    i = next < other ? next : other;
    if (i == shown->table_count)
      return;
    for (uint64_t g = i * RP_LOG_TABLE_ENTRIES;
         rp_map_peek (shown, i) != rp_map_peek (&log->since, i)
         && g < (i + 1) * RP_LOG_TABLE_ENTRIES && g < shown->grain_count; g++)
      if (!agrees (log, g, rp_map_get (shown, g))) {
        if (is_moved (verify))
          return;
        report (verify, verify->journal->root.position, i * table_bytes,
                table_bytes, "the shown root differs from the log");
        break;
      }
  }
}

static int
read_log (struct rp_journal *journal, struct log_maps *log,
          struct rp_fault *fault)
{
  const struct rp_log_ring *ring = &journal->super.ring;
  const uint64_t middle = ring->horizon_entry < journal->root.entry
                          ? ring->horizon_entry : journal->root.entry;
  int status = rp_map_create (&log->since, journal->grain_count, fault);

  log->destaged = ring->horizon_entry > 0;
  if (status == RP_OK)
    status = rp_map_create (&log->before, journal->grain_count, fault);
  if (status == RP_OK)
    status = rp_journal_walk_forward (journal, &log->since, middle,
                                      journal->root.entry, fault);
  if (status == RP_OK)
    status = rp_journal_walk_forward (journal, &log->before, ring->first_entry,
                                      middle, fault);
  return status;
}

/* The shown root against its checksum, and against what the log says. */
static int
verify_root (struct verify *verify, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  const struct rp_shown_root *root = &journal->root;
  struct log_maps log = { .destaged = false };
  struct rp_map shown;
  int status = rp_map_create (&shown, journal->grain_count, fault);

  if (status != RP_OK)
    return status;
  status = rp_journal_read_root (journal, &shown, fault);
  if (status == RP_CORRUPT && !is_moved (verify))
    report (verify, root->position, NO_GUEST, root->bytes, "the shown root");
  else if (status == RP_OK) {
    status = read_log (journal, &log, fault);
    if (status == RP_OK)
      compare_maps (verify, &shown, &log);
    rp_map_destroy (&log.since);
    rp_map_destroy (&log.before);
  }
  rp_map_destroy (&shown);
  if (status == RP_CORRUPT)      /* reported, here or with the summaries */
    status = RP_OK;
  return status == RP_OK ? advance (verify, root->bytes, fault) : status;
}

/* ---- the call ---- */

/* Segments [*first, *stop) of the list that the caller asks for. */
static int
choose_segments (const struct rp_journal *journal,
                 const struct rp_scrub *scrub, uint64_t *first, uint64_t *stop,
                 struct rp_fault *fault)
{
  uint64_t at = 0;

  while (at < journal->segment_count
         && journal->segments[at]->number < scrub->from_segment)
    at++;
  *first = *stop = at;
  if (at > 0) {
    const struct rp_segment *before = journal->segments[at - 1];

    if (scrub->from_chain != 0
        && (before->number + 1 != scrub->from_segment
            || before->chain != scrub->from_chain))
      return rp_fail (fault, RP_NOT_FOUND, before->position,
                      "%s: segment %" PRIu64 " is not the one that was read",
                      rp_journal_name (journal), before->number);
  }
  while (*stop < journal->segment_count
         && (scrub->segment_count == 0
             || journal->segments[*stop]->number
                < scrub->from_segment + scrub->segment_count))
    (*stop)++;
  return RP_OK;
}

int
rp_journal_scrub (struct rp_journal *journal, const struct rp_scrub *scrub,
                  struct rp_fault *fault)
{
  struct verify verify = {
    .journal = journal, .scrub = scrub, .segment = NO_GUEST,
    .next_segment = scrub->from_segment, .chain = scrub->from_chain,
    .total = RP_LOG_HEAD_BYTES + journal->root.bytes,
  };
  uint64_t first, stop;
  int status = journal->writable ? rp_journal_commit (journal, fault) : RP_OK;

  if (status == RP_OK)
    status = choose_segments (journal, scrub, &first, &stop, fault);
  if (status != RP_OK)
    return status;
  for (uint64_t i = first; i < stop; i++)
    verify.total += journal->segments[i]->end - journal->segments[i]->position
                    - journal->block_bytes;
  verify.block = malloc (journal->block_bytes);
  if (!verify.block)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a buffer");
  if (scrub->segment_count == 0)
    status = verify_head (&verify, fault);
  if (status == RP_OK && first < stop)
    status = verify_segments (&verify, first, stop, fault);
  verify.segment = NO_GUEST;
  if (status == RP_OK && scrub->segment_count == 0)
    status = verify_root (&verify, fault);
  free (verify.block);
  return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SCAN_BYTES (1u << 20)

/* A segment header that was found in a slot. */
struct candidate {
  struct rp_log_segment header;
  bool taken;
};

/* A batch that was found by walking, in a segment without a trailer. */
struct found {
  uint64_t segment;              /* index */
  uint64_t position, sequence;
  uint64_t ordinal;              /* entries of the segment before it */
  uint64_t chain_in, checksum;
  uint64_t epoch, session;
  int64_t  time_ns;
  uint32_t entry_count, data_count;
};

struct recovery {
  struct rp_journal *journal;
  struct candidate *candidates;
  uint64_t candidate_count;
  uint64_t near;                 /* where the next one probably is */
  struct found *found;
  uint64_t found_count, found_room;
  uint64_t durable;              /* the highest sequence known to be synced */
  uint64_t epoch, session;       /* of the last batch that counts */
  uint64_t file_bytes;
  uint8_t *block;                /* one header block, or one trailer */
};

/* ---- superblock ---- */

int
rp_journal_read_super (struct rp_file *file, struct rp_log_super *out,
                       bool stale[RP_LOG_SUPER_COUNT], struct rp_fault *fault)
{
  struct rp_log_super copies[RP_LOG_SUPER_COUNT];
  uint8_t pages[RP_LOG_SUPER_COUNT * RP_LOG_PAGE_BYTES];
  bool whole[RP_LOG_SUPER_COUNT];
  int best = -1;
  int status = rp_file_pread_all (file, pages, sizeof pages, RP_LOG_PAGE_BYTES,
                                  fault);

  if (status != RP_OK)
    return status;
  for (int i = 0; i < (int) RP_LOG_SUPER_COUNT; i++) {
    whole[i] = rp_log_get_super (pages + i * RP_LOG_PAGE_BYTES, &copies[i]);
    if (whole[i]
        && (best < 0 || copies[i].generation > copies[best].generation))
      best = i;
  }
  if (best < 0)
    return rp_fail (fault, RP_CORRUPT, RP_LOG_PAGE_BYTES,
                    "%s: both superblocks, at 4096 and 8192",
                    file->name);
  for (int i = 0; i < (int) RP_LOG_SUPER_COUNT; i++)
    stale[i] = !whole[i] || copies[i].generation != copies[best].generation;
  *out = copies[best];
  return RP_OK;
}

/* ---- small steps ---- */

/* A page of the file; zeros where the file ends. */
static int
read_some (struct rp_file *file, void *buffer, size_t length, uint64_t offset,
           struct rp_fault *fault)
{
  size_t done = 0;
  int status = rp_file_pread (file, buffer, length, offset, &done, fault);

  if (status == RP_OK && done < length)
    memset ((uint8_t *) buffer + done, 0, length - done);
  return status;
}

bool
rp_journal_owns_batch (const struct rp_journal *journal,
                       const struct rp_log_batch *batch,
                       const struct rp_segment *segment, uint64_t position)
{
  const uint64_t stop = segment->position + journal->super.segment_bytes
                        - RP_LOG_PAGE_BYTES;

  return memcmp (batch->id, journal->super.id, sizeof batch->id) == 0
         && batch->position == position && batch->segment == segment->number
         && rp_batch_bytes (journal, batch->data_count) <= stop - position;
}

/* Entries say where their data lies, and it lies in order behind the block. */
static bool
entries_are_sound (const struct rp_journal *journal, const uint8_t *block,
                   const struct rp_log_batch *batch)
{
  uint64_t place = (batch->position + journal->block_bytes) / RP_SECTOR_BYTES;
  uint32_t data = 0;

  for (uint32_t i = 0; i < batch->entry_count; i++) {
    const struct rp_log_entry entry
      = rp_log_get_entry (block + RP_LOG_BATCH_BYTES + i * RP_LOG_ENTRY_BYTES);

    if (entry.place == RP_PLACE_ZEROS) {
      if (entry.value == 0
          || !rp_inside (entry.grain, entry.value, journal->grain_count))
        return false;
    } else {
      if (entry.place != place || entry.grain >= journal->grain_count)
        return false;
      place += journal->grain_sectors;
      data++;
    }
  }
  return data == batch->data_count;
}

static int
add_found (struct recovery *recovery, const struct found *found,
           struct rp_fault *fault)
{
  if (recovery->found_count == recovery->found_room) {
    const uint64_t room = recovery->found_room * 2 + 256;
    struct found *more = realloc (recovery->found, room * sizeof *more);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, 0, "the list of batches");
    recovery->found = more;
    recovery->found_room = room;
  }
  recovery->found[recovery->found_count++] = *found;
  return RP_OK;
}

static void
claim (struct recovery *recovery, uint64_t sequence)
{
  if (sequence > recovery->durable)
    recovery->durable = sequence;
}

/* ---- segments ---- */

static int
scan_slots (struct recovery *recovery, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const struct rp_shown_root *root = &journal->root;

  recovery->candidates = calloc (journal->slot_count + 1,
                                 sizeof *recovery->candidates);
  if (!recovery->candidates)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the list of slots");
  for (uint64_t slot = 0; slot < journal->slot_count; slot++) {
    const uint64_t position = rp_slot_position (journal, slot);
    struct candidate *next
      = &recovery->candidates[recovery->candidate_count];
    int status;

    if (position >= root->position
        && position < root->position + root->bytes)
      continue;
    status = read_some (journal->file, recovery->block, RP_LOG_PAGE_BYTES,
                        position, fault);
    if (status != RP_OK)
      return status;
    if (rp_log_get_segment (recovery->block, &next->header)
        && memcmp (next->header.id, journal->super.id, 16) == 0
        && next->header.position == position)
      recovery->candidate_count++;
  }
  return RP_OK;
}

/* The candidate that continues the log.  Two cannot: a header left from a
 * dropped tail names a batch that has been replaced, by its checksum.
 * Segments lie mostly in file order, so the search starts behind the last. */
static struct candidate *
find_candidate (struct recovery *recovery, uint64_t number,
                uint64_t first_sequence, uint64_t chain, uint64_t first_entry)
{
  for (uint64_t i = 0; i < recovery->candidate_count; i++) {
    struct candidate *at
      = &recovery->candidates[(recovery->near + i)
                               % recovery->candidate_count];

    if (!at->taken && at->header.number == number
        && at->header.first_sequence == first_sequence
        && at->header.chain == chain && at->header.first_entry == first_entry)
      return at;
  }
  return NULL;
}

static int
read_points (struct rp_journal *journal, const struct rp_log_trailer *trailer,
             uint64_t number, struct rp_fault *fault)
{
  const uint64_t position = trailer->summary_position
                            + trailer->entry_count * RP_LOG_ENTRY_BYTES;
  const uint64_t bytes = trailer->point_count * RP_LOG_CUT_BYTES;
  uint8_t *cuts;
  int status;

  if (trailer->point_count == 0)
    return RP_OK;
  cuts = malloc (bytes);
  if (!cuts)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the points of a segment");
  status = rp_file_pread_all (journal->file, cuts, bytes, position, fault);
  if (status == RP_OK && rp_log_hash (cuts, bytes) != trailer->points_checksum)
    status = rp_fail (fault, RP_CORRUPT, position,
                      "%s: the restore points in a summary, at %" PRIu64,
                      rp_journal_name (journal), position);
  for (uint64_t i = 0; status == RP_OK && i < trailer->point_count; i++) {
    struct rp_log_cut cut;

    if (!rp_log_get_cut (cuts + i * RP_LOG_CUT_BYTES, &cut)
        || cut.ordinal > trailer->entry_count)
      status = rp_fail (fault, RP_CORRUPT, position,
                        "%s: a restore point in a summary, at %" PRIu64,
                        rp_journal_name (journal), position);
    else
      status = rp_journal_add_point (journal, &cut, number, fault);
  }
  free (cuts);
  return status;
}

/* A trailer that belongs to this segment and whose numbers fit in it. */
static bool
trailer_fits (const struct rp_journal *journal,
              const struct rp_log_trailer *trailer,
              const struct rp_segment *segment)
{
  const uint64_t bytes = journal->super.segment_bytes;
  const uint64_t stop = segment->position + bytes - RP_LOG_PAGE_BYTES;

  return memcmp (trailer->id, journal->super.id, sizeof trailer->id) == 0
         && trailer->number == segment->number
         && trailer->position == segment->position
         && trailer->session == segment->session
         && trailer->first_sequence == segment->first_sequence
         && trailer->last_sequence >= segment->first_sequence
         && trailer->entry_count <= bytes / RP_LOG_ENTRY_BYTES
         && trailer->point_count <= bytes / RP_LOG_CUT_BYTES
         && trailer->summary_position <= stop
         && stop - trailer->summary_position
            == rp_log_summary_bytes (trailer->entry_count,
                                     trailer->point_count)
         && trailer->end_position > segment->position
         && trailer->end_position <= trailer->summary_position;
}

static int
read_trailer (struct recovery *recovery, struct rp_segment *segment,
              struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint64_t position = segment->position + journal->super.segment_bytes
                            - RP_LOG_PAGE_BYTES;
  struct rp_log_trailer trailer;
  int status = read_some (journal->file, recovery->block, RP_LOG_PAGE_BYTES,
                          position, fault);

  if (status != RP_OK || !rp_log_get_trailer (recovery->block, &trailer)
      || !trailer_fits (journal, &trailer, segment))
    return status;
  segment->last_sequence = trailer.last_sequence;
  segment->entry_count = segment->prepared = trailer.entry_count;
  segment->point_count = trailer.point_count;
  segment->end = trailer.end_position;
  segment->closed = true;
  segment->summary = RP_SUMMARY_COMPLETE;
  segment->summary_position = trailer.summary_position;
  segment->entries_checksum = trailer.entries_checksum;
  segment->chain = trailer.chain;
  segment->epoch = trailer.epoch;
  segment->time_ns = trailer.time_ns;
  /* a trailer is written when all its batches have been synced */
  claim (recovery, trailer.last_sequence);
  recovery->epoch = trailer.epoch;
  return read_points (journal, &trailer, segment->number, fault);
}

/* Take a batch into its segment, and its point, if it is one. */
static int
take_batch (struct recovery *recovery, struct rp_segment *segment,
            const struct rp_log_batch *batch, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint8_t *entries = recovery->block + RP_LOG_BATCH_BYTES;
  struct found found = {
    .segment = journal->segment_count - 1,
    .position = batch->position, .sequence = batch->sequence,
    .ordinal = segment->prepared, .chain_in = segment->chain,
    .checksum = batch->checksum, .epoch = batch->epoch,
    .session = batch->session, .time_ns = batch->time_ns,
    .entry_count = batch->entry_count, .data_count = batch->data_count,
  };
  struct rp_log_cut cut = {
    .sequence = batch->sequence, .ordinal = segment->prepared,
  };
  int status = rp_segment_reserve (segment, batch->entry_count, fault);

  if (status == RP_OK)
    status = add_found (recovery, &found, fault);
  if (status == RP_OK && batch->point_count > 0) {
    if (!rp_log_get_point (entries, &cut.point))
      return rp_fail (fault, RP_CORRUPT, batch->position,
                      "%s: the restore point at %" PRIu64,
                      rp_journal_name (journal), batch->position);
    status = rp_journal_add_point (journal, &cut, segment->number, fault);
    segment->point_count++;
  }
  if (status != RP_OK)
    return status;
  if (batch->entry_count > 0)
    memcpy (segment->entries + segment->prepared * RP_LOG_ENTRY_BYTES, entries,
            (size_t) batch->entry_count * RP_LOG_ENTRY_BYTES);
  segment->prepared += batch->entry_count;
  segment->entry_count = segment->prepared;
  segment->last_sequence = batch->sequence;
  segment->chain = batch->checksum;
  segment->epoch = batch->epoch;
  segment->time_ns = batch->time_ns;
  segment->end += rp_batch_bytes (journal, batch->data_count);
  claim (recovery, batch->durable_sequence);
  return RP_OK;
}

/* A size that grew may be lost and what was written kept: then zeros behind the
 * end of the file stand for data that was zeros.  A writer takes them, and
 * writes them again; dropped they would come back when the file grows.  A
 * reader leaves them out, as nothing can be read there. */
static bool
ends_in_file (const struct recovery *recovery, const struct rp_log_batch *batch)
{
  const struct rp_journal *journal = recovery->journal;

  return journal->writable
         || rp_inside (batch->position,
                       rp_batch_bytes (journal, batch->data_count),
                       recovery->file_bytes);
}

/* Walk the headers of a segment that has no trailer. */
static int
walk_segment (struct recovery *recovery, struct rp_segment *segment,
              struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint64_t stop = segment->position + journal->super.segment_bytes
                        - RP_LOG_PAGE_BYTES;
  uint64_t sequence = segment->first_sequence;

  segment->end = segment->position + journal->block_bytes;
  segment->chain = segment->chain_in;
  while (journal->block_bytes <= stop - segment->end) {
    struct rp_log_batch batch;
    int status = read_some (journal->file, recovery->block,
                            journal->block_bytes, segment->end, fault);

    if (status != RP_OK)
      return status;
    if (!rp_log_get_batch (recovery->block, journal->block_bytes, &batch)
        || !rp_journal_owns_batch (journal, &batch, segment, segment->end)
        || batch.sequence != sequence
        || (batch.chain != segment->chain   /* takes what had been dropped */
            && !RP_SABOTAGED (11))
        || !ends_in_file (recovery, &batch)
        || !entries_are_sound (journal, recovery->block, &batch))
      break;
    status = take_batch (recovery, segment, &batch, fault);
    if (status != RP_OK)
      return status;
    sequence++;
  }
  return RP_OK;
}

static int
take_segment (struct recovery *recovery, struct candidate *candidate,
              struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const struct rp_log_segment *header = &candidate->header;
  struct rp_segment *segment;
  int status = rp_journal_add_segment (journal, &segment, fault);

  if (status != RP_OK)
    return status;
  candidate->taken = true;
  recovery->near = (uint64_t) (candidate - recovery->candidates) + 1;
  segment->number = header->number;
  segment->position = header->position;
  segment->session = header->session;
  segment->first_sequence = header->first_sequence;
  segment->first_entry = header->first_entry;
  segment->chain_in = header->chain;
  claim (recovery, header->durable_sequence);
  if (journal->segment_count > 1)
    journal->segments[journal->segment_count - 2]->closed = true;
  status = read_trailer (recovery, segment, fault);
  if (status == RP_OK && segment->summary != RP_SUMMARY_COMPLETE)
    status = walk_segment (recovery, segment, fault);
  return status;
}

static int
assemble (struct recovery *recovery, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const struct rp_log_ring *ring = &journal->super.ring;
  uint64_t number = ring->number, sequence = ring->first_sequence;
  uint64_t chain = ring->chain, entry = ring->first_entry;

  for (;;) {
    struct rp_segment *segment;
    struct candidate *next = find_candidate (recovery, number, sequence,
                                             chain, entry);
    int status;

    if (!next && journal->segment_count == 0 && ring->number > 0)
      return rp_fail (fault, RP_CORRUPT, RP_LOG_HEAD_BYTES,
                      "%s: segment %" PRIu64 ", the first that is kept, is "
                      "nowhere from %u on", rp_journal_name (journal),
                      ring->number, RP_LOG_HEAD_BYTES);
    if (!next)
      return RP_OK;
    status = take_segment (recovery, next, fault);
    if (status != RP_OK)
      return status;
    segment = journal->segments[journal->segment_count - 1];
    if (segment->last_sequence == 0)
      return RP_OK;              /* no batch in it: nothing comes behind */
    number++;
    sequence = segment->last_sequence + 1;
    chain = segment->chain;
    entry = segment->first_entry + segment->entry_count;
  }
}

/* ---- the end of the log ---- */

/* Does the data of a batch match its entries? */
static int
data_is_whole (struct rp_journal *journal, const struct found *found,
               uint8_t *data, bool *out, struct rp_fault *fault)
{
  const uint32_t grain_bytes = journal->super.grain_bytes;
  const uint8_t *entry = journal->segments[found->segment]->entries
                         + found->ordinal * RP_LOG_ENTRY_BYTES;
  uint64_t position = found->position + journal->block_bytes;

  *out = true;
  for (uint32_t i = 0; i < found->entry_count && *out; i++) {
    const struct rp_log_entry at
      = rp_log_get_entry (entry + (uint64_t) i * RP_LOG_ENTRY_BYTES);
    int status;

    if (at.place == RP_PLACE_ZEROS)
      continue;
    status = read_some (journal->file, data, grain_bytes, position, fault);
    if (status != RP_OK)
      return status;
    *out = (uint32_t) rp_log_hash (data, grain_bytes) == at.value;
    position += grain_bytes;
  }
  return RP_OK;
}

/* Drop a batch and all that comes behind it. */
static void
cut_before (struct recovery *recovery, uint64_t index)
{
  struct rp_journal *journal = recovery->journal;
  const struct found *found = &recovery->found[index];
  struct rp_segment *segment = journal->segments[found->segment];

  while (journal->segment_count - 1 > found->segment)
    rp_segment_free (journal->segments[--journal->segment_count]);
  while (journal->point_count > 0
         && !RP_SABOTAGED (18)   /* keeps the points of a dropped tail */
         && journal->points[journal->point_count - 1].sequence
            >= found->sequence) {
    const struct rp_point_record *point
      = &journal->points[--journal->point_count];

    free (point->label);
    if (point->segment == segment->number)
      segment->point_count--;
  }
  segment->closed = false;
  segment->prepared = segment->entry_count = found->ordinal;
  segment->last_sequence = found->sequence > segment->first_sequence
                           ? found->sequence - 1 : 0;
  segment->end = found->position;
  segment->chain = found->chain_in;
  if (index > 0 && found[-1].segment == found->segment) {
    segment->epoch = found[-1].epoch;
    segment->time_ns = found[-1].time_ns;
  }
  recovery->found_count = index;
}

/* Check the data of what may not have been synced, and cut at the first that
 * is torn.  (What had been synced is verify's to read: opening costs what the
 * last commits wrote, not a whole segment.) */
static int
find_end (struct recovery *recovery, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  uint8_t *data = malloc (journal->super.grain_bytes);
  int status = RP_OK;

  if (!data)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a grain");
  for (uint64_t i = 0; status == RP_OK && i < recovery->found_count; i++) {
    bool whole = true;

    if (recovery->found[i].sequence > recovery->durable)
      status = data_is_whole (journal, &recovery->found[i], data, &whole,
                              fault);
    if (status == RP_OK && !whole && !RP_SABOTAGED (7))  /* keeps a torn tail */
      cut_before (recovery, i);
  }
  free (data);
  return status;
}

static uint64_t
scan_bytes (const struct rp_journal *journal)
{
  const uint64_t bytes = journal->super.segment_bytes;

  return bytes < SCAN_BYTES ? bytes : SCAN_BYTES;
}

/* Look for valid batch headers in a stretch of the file that belongs to
 * nothing: they say what had been synced when they were written. */
static int
scan_leftovers (struct recovery *recovery, uint64_t from, uint64_t stop,
                uint8_t *buffer, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint64_t step = journal->super.grain_bytes;
  uint64_t size;
  int status = rp_file_size (journal->file, &size, fault);

  if (status == RP_OK && stop > size)
    stop = size;
  while (status == RP_OK && from < stop) {
    uint64_t length, data;

    status = rp_file_seek (journal->file, from, true, &data, fault);
    if (status != RP_OK)
      return status;
    if (data >= stop)
      break;
    from = data - data % step;
    length = stop - from < scan_bytes (journal) ? stop - from
                                                : scan_bytes (journal);
    status = read_some (journal->file, buffer, length, from, fault);
    for (uint64_t at = 0; status == RP_OK && at < length; at += step) {
      struct rp_log_batch batch;

      if (journal->block_bytes <= length - at
          && rp_log_get_batch (buffer + at, journal->block_bytes, &batch)
          && memcmp (batch.id, journal->super.id, sizeof batch.id) == 0
          && batch.position == from + at)
        claim (recovery, batch.durable_sequence);
    }
    from += length;
  }
  return status;
}

static int
scan_free_slots (struct recovery *recovery, uint8_t *buffer,
                 struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint64_t bytes = journal->super.segment_bytes;
  uint8_t *used = rp_journal_used_slots (journal, fault);
  int status = RP_OK;

  if (!used)
    return RP_NO_MEMORY;
  for (uint64_t slot = 0; status == RP_OK && slot < journal->slot_count;
       slot++) {
    const uint64_t position = rp_slot_position (journal, slot);
    struct rp_log_trailer trailer;

    if (used[slot])
      continue;
    status = scan_leftovers (recovery, position, position + bytes, buffer,
                             fault);
    if (status == RP_OK)
      status = read_some (journal->file, recovery->block, RP_LOG_PAGE_BYTES,
                          position + bytes - RP_LOG_PAGE_BYTES, fault);
    if (status == RP_OK && rp_log_get_trailer (recovery->block, &trailer)
        && memcmp (trailer.id, journal->super.id, sizeof trailer.id) == 0
        && trailer.position == position)
      claim (recovery, trailer.last_sequence);
  }
  free (used);
  return status;
}

void
rp_journal_hide_points (struct rp_journal *journal)
{
  const uint64_t sequence = journal->super.ring.horizon_sequence;

  while (journal->point_first < journal->point_count
         && journal->points[journal->point_first].sequence < sequence)
    journal->point_first++;
}

/* Is the oldest point that of the horizon? */
static bool
horizon_is_there (const struct rp_journal *journal)
{
  const struct rp_log_ring *ring = &journal->super.ring;
  const struct rp_point_record *point = &journal->points[journal->point_first];

  if (ring->horizon_sequence == 0)
    return ring->horizon_entry == 0;
  return journal->point_first < journal->point_count
         && point->sequence == ring->horizon_sequence
         && rp_point_entry (journal, point) == ring->horizon_entry;
}

/* Does the ring fit the log that was found?  And what is shown does not reach
 * below what the base has become. */
static int
check_ring (struct rp_journal *journal, struct rp_fault *fault)
{
  const struct rp_log_ring *ring = &journal->super.ring;

  rp_journal_hide_points (journal);
  if (ring->first_entry <= ring->based_entry
      && ring->based_entry <= ring->horizon_entry
      && ring->horizon_entry <= rp_journal_entry_count (journal)
      && journal->root.entry >= ring->based_entry
      && horizon_is_there (journal))
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, RP_LOG_PAGE_BYTES,
                  "%s: the superblock and the log differ in where the log "
                  "begins (entry %" PRIu64 ", batch %" PRIu64 ")",
                  rp_journal_name (journal), ring->horizon_entry,
                  ring->horizon_sequence);
}

/* Whatever says that more had been synced than was found is damage. */
static int
check_damage (struct recovery *recovery, uint64_t last, uint64_t position,
              struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;

  if (recovery->durable > last)
    return rp_fail (fault, RP_CORRUPT, position,
                    "%s: batch %" PRIu64 " should be at %" PRIu64 " and is "
                    "damaged; up to %" PRIu64 " had been synced",
                    rp_journal_name (journal), last + 1, position,
                    recovery->durable);
  if (recovery->epoch > journal->super.epoch
      || recovery->session > journal->super.session)
    return rp_fail (fault, RP_CORRUPT, RP_LOG_PAGE_BYTES,
                    "%s: the superblock is older than the log (epoch %" PRIu64
                    ", log %" PRIu64 ")", rp_journal_name (journal),
                    journal->super.epoch, recovery->epoch);
  return RP_OK;
}

/* Write bytes of the log again as they are; zeros where the file ends. */
static int
write_again (struct rp_journal *journal, uint64_t position, uint64_t length,
             uint8_t *buffer, struct rp_fault *fault)
{
  int status = RP_OK;

  while (status == RP_OK && length > 0) {
    const uint64_t here = length < scan_bytes (journal)
                          ? length : scan_bytes (journal);

    status = read_some (journal->file, buffer, here, position, fault);
    if (status == RP_OK)
      status = rp_file_pwrite (journal->file, buffer, here, position, fault);
    position += here;
    length -= here;
  }
  return status;
}

/* Batches that nothing proves durable may be in the page cache only: their
 * process ended before the sync, or the sync failed, and a sync that is tried
 * again may succeed although the data is gone (seen on ext4 and xfs).  They
 * count from here on, so they are written again, and synced. */
static int
make_durable (struct recovery *recovery, uint64_t known, uint64_t last,
              uint8_t *buffer, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  int status = RP_OK;

  if (last <= known)
    return RP_OK;
  for (uint64_t i = 0; status == RP_OK && journal->writable
       && i < recovery->found_count; i++) {
    const struct found *found = &recovery->found[i];
    const struct rp_segment *segment = journal->segments[found->segment];

    if (found->sequence <= known)
      continue;
    if (found->sequence == segment->first_sequence)
      status = write_again (journal, segment->position, RP_LOG_PAGE_BYTES,
                            buffer, fault);
    if (status == RP_OK)
      status = write_again (journal, found->position,
                            rp_batch_bytes (journal, found->data_count),
                            buffer, fault);
  }
  return status == RP_OK ? rp_file_sync (journal->file, fault) : status;
}

/* The last batch: its number, its end and its time. */
static void
note_end (struct recovery *recovery, uint64_t *last, uint64_t *position)
{
  struct rp_journal *journal = recovery->journal;
  uint64_t i = journal->segment_count;

  *last = 0;
  *position = RP_LOG_HEAD_BYTES;
  journal->chain = journal->super.ring.chain;
  if (i > 0) {
    const struct rp_segment *end = journal->segments[i - 1];

    *last = end->last_sequence ? end->last_sequence : end->first_sequence - 1;
    *position = end->end;
    journal->chain = end->chain;
  }
  while (i > 0 && journal->segments[i - 1]->last_sequence == 0)
    i--;
  if (i > 0) {
    journal->last_commit_ns = journal->segments[i - 1]->time_ns;
    recovery->epoch = journal->segments[i - 1]->epoch;
  }
  if (recovery->found_count > 0)
    recovery->session
      = recovery->found[recovery->found_count - 1].session;
}

static int
finish (struct recovery *recovery, struct rp_fault *fault)
{
  struct rp_journal *journal = recovery->journal;
  const uint64_t known = recovery->durable;
  uint64_t last, position;
  uint8_t *buffer = malloc (scan_bytes (journal));
  bool looked;
  int status = RP_OK;

  if (!buffer)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a buffer");
  note_end (recovery, &last, &position);
  /* After a clean end nobody has written, and its superblock says how far the
     log goes: nothing that is left over can know of more. */
  looked = journal->super.clean && known == last;
  if (!looked && journal->segment_count > 0) {
    const struct rp_segment *end
      = journal->segments[journal->segment_count - 1];

    if (!end->closed)
      status = scan_leftovers (recovery, end->end, end->position
                               + journal->super.segment_bytes, buffer, fault);
  }
  if (!looked && status == RP_OK)
    status = scan_free_slots (recovery, buffer, fault);
  if (status == RP_OK)
    status = check_damage (recovery, last, position, fault);
  if (status == RP_OK)
    status = check_ring (journal, fault);
  if (status == RP_OK)
    status = make_durable (recovery, known, last, buffer, fault);
  free (buffer);
  journal->next_sequence = last + 1;
  journal->durable_sequence = last;
  return status;
}

/* ---- root ---- */

void
rp_journal_adopt_root (struct rp_journal *journal,
                       const struct rp_log_root *root)
{
  journal->root.position = root->position;
  journal->root.bytes = RP_LOG_PAGE_BYTES + root->content_bytes;
  journal->root.sequence = root->sequence;
  journal->root.entry = root->entry;
  journal->root.table_count = root->table_count;
  journal->root.content_checksum = root->content_checksum;
  memcpy (journal->root.stored, root->stored, sizeof root->stored);
}

static int
read_root_header (struct rp_journal *journal, uint64_t directory_sector,
                  struct rp_fault *fault)
{
  const uint64_t position = directory_sector * RP_SECTOR_BYTES
                            - RP_LOG_PAGE_BYTES;
  struct rp_log_root root;
  uint8_t page[RP_LOG_PAGE_BYTES];
  const uint64_t pages = rp_directory_pages (journal->grain_count);
  int status = RP_OK;

  if (directory_sector > RP_LOG_SECTORS_MAX
      || directory_sector * RP_SECTOR_BYTES
         < RP_LOG_HEAD_BYTES + RP_LOG_PAGE_BYTES
      || (position - RP_LOG_HEAD_BYTES) % journal->super.segment_bytes != 0)
    status = rp_fail (fault, RP_CORRUPT, 0,
                      "%s: the sparse header at 0 points to a root at %" PRIu64,
                      rp_journal_name (journal), position);
  if (status == RP_OK)
    status = read_some (journal->file, page, sizeof page, position, fault);
  if (status != RP_OK)
    return status;
  if (!rp_log_get_root (page, &root)
      || memcmp (root.id, journal->super.id, sizeof root.id) != 0
      || root.position != position
      || root.table_count > rp_divide_up (journal->grain_count,
                                          RP_LOG_TABLE_ENTRIES)
      || root.content_bytes != rp_directory_bytes (journal->grain_count)
                               + root.table_count * RP_LOG_TABLE_BYTES
      || rp_log_find_page (root.stored, pages, RP_LOG_DIRECTORY_MAX, true)
         < RP_LOG_DIRECTORY_MAX)
    return rp_fail (fault, RP_CORRUPT, position,
                    "%s: the header of the root at %" PRIu64,
                    rp_journal_name (journal), position);
  if (position + RP_LOG_PAGE_BYTES + root.content_bytes
      > RP_LOG_HEAD_BYTES + journal->slot_count * journal->super.segment_bytes)
    return rp_fail (fault, RP_CORRUPT, position,
                    "%s: the root at %" PRIu64 " ends behind the file",
                    rp_journal_name (journal), position);
  rp_journal_adopt_root (journal, &root);
  return RP_OK;
}

/* What everything else is computed from. */
static bool
sizes_are_sound (const struct rp_log_super *super)
{
  const uint32_t grain = super->grain_bytes, segment = super->segment_bytes;

  return rp_is_power_of_two (grain) && grain >= 4096 && grain <= 65536
         && segment >= RP_LOG_HEAD_BYTES && segment <= 1u << 30
         && segment % grain == 0 && segment / 8 >= grain
         && super->capacity_bytes > 0
         && super->capacity_bytes % RP_SECTOR_BYTES == 0
         && (super->capacity_bytes - 1) / grain < UINT64_C (1) << 32;
}

/* A sparse extent that never was a journal has no magic where superblocks
 * are. */
static int
look_for_magic (struct rp_journal *journal, bool *found,
                struct rp_fault *fault)
{
  int status = RP_OK;

  *found = false;
  for (uint32_t i = 0; status == RP_OK && i < RP_LOG_SUPER_COUNT; i++) {
    uint8_t magic[8];

    status = rp_file_pread_all (journal->file, magic, sizeof magic,
                                (1 + i) * RP_LOG_PAGE_BYTES, fault);
    *found |= status == RP_OK && memcmp (magic, "RPJOURN", 7) == 0;
  }
  return status;
}

/* Sector 0 and the superblock, and that they agree. */
static int
read_head (struct rp_journal *journal, struct rp_fault *fault)
{
  uint8_t sector[RP_SECTOR_BYTES];
  struct rp_fault seen;
  bool is_journal;
  uint64_t capacity, directory, size;
  uint32_t grain_bytes;
  int status = rp_file_size (journal->file, &size, fault);

  if (status != RP_OK)
    return status;
  if (size < RP_LOG_HEAD_BYTES + RP_LOG_PAGE_BYTES)
    return rp_fail (fault, RP_FORMAT, 0, "%s: too short for a journal log",
                    rp_journal_name (journal));
  status = rp_file_pread_all (journal->file, sector, sizeof sector, 0, fault);
  if (status != RP_OK)
    return status;
  if (memcmp (sector, "KDMV", 4) != 0)
    return rp_fail (fault, RP_FORMAT, 0, "%s: no sparse extent",
                    rp_journal_name (journal));
  status = rp_journal_read_super (journal->file, &journal->super,
                                  journal->super_stale, fault);
  if (status == RP_CORRUPT) {
    const int looked = look_for_magic (journal, &is_journal, &seen);

    if (looked != RP_OK) {       /* nobody knows what is there */
      *fault = seen;
      return looked;
    }
    if (!is_journal)
      return rp_fail (fault, RP_FORMAT, RP_LOG_PAGE_BYTES,
                      "%s: a sparse extent, but no journal log",
                      rp_journal_name (journal));
  }
  if (status != RP_OK)
    return status;
  if (!sizes_are_sound (&journal->super))
    return rp_fail (fault, RP_CORRUPT, RP_LOG_PAGE_BYTES,
                    "%s: the superblock has sizes that no log has",
                    rp_journal_name (journal));
  if (!rp_log_get_sparse (sector, &capacity, &grain_bytes, &directory)
      || capacity != journal->super.capacity_bytes
      || grain_bytes != journal->super.grain_bytes)
    return rp_fail (fault, RP_CORRUPT, 0, "%s: the sparse header at 0",
                    rp_journal_name (journal));
  journal->grain_count = rp_divide_up (capacity, grain_bytes);
  journal->grain_sectors = grain_bytes / RP_SECTOR_BYTES;
  journal->block_bytes = rp_log_block_bytes (grain_bytes);
  journal->batch_entries_max = rp_log_batch_entries_max (grain_bytes);
  journal->chunk_bytes = journal->super.segment_bytes < RP_CHUNK_BYTES_MAX
                         ? journal->super.segment_bytes : RP_CHUNK_BYTES_MAX;
  journal->slot_count = rp_divide_up (size - RP_LOG_HEAD_BYTES,
                                      journal->super.segment_bytes);
  return read_root_header (journal, directory, fault);
}

int
rp_journal_recover (struct rp_journal *journal, struct rp_fault *fault)
{
  struct recovery recovery = { .journal = journal };
  int status = read_head (journal, fault);

  if (status != RP_OK)
    return status;
  recovery.block = malloc (journal->block_bytes);
  if (!recovery.block)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a block");
  status = rp_file_size (journal->file, &recovery.file_bytes, fault);
  claim (&recovery, journal->super.durable_sequence);
  claim (&recovery, journal->root.sequence);
  if (status == RP_OK)
    status = scan_slots (&recovery, fault);
  if (status == RP_OK)
    status = assemble (&recovery, fault);
  if (status == RP_OK)
    status = find_end (&recovery, fault);
  if (status == RP_OK)
    status = finish (&recovery, fault);
  free (recovery.candidates);
  free (recovery.found);
  free (recovery.block);
  return status;
}

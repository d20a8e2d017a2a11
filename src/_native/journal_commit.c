/* SPDX-License-Identifier: Apache-2.0 */
/* Group commit: what the leader does, and the superblock. */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FLUSH_PARTS 64           /* chunks in one pwritev */

/* ---- superblock ---- */

int
rp_journal_check_epoch (struct rp_journal *journal, struct rp_fault *fault)
{
  struct rp_log_super now;
  bool stale[RP_LOG_SUPER_COUNT];
  int status = rp_journal_read_super (journal->file, &now, stale, fault);

  if (status != RP_OK || RP_SABOTAGED (8))   /* lets a stale writer commit */
    return status;
  if (now.epoch > journal->epoch)
    return rp_fail (fault, RP_STALE_EPOCH, 0,
                    "%s: its epoch is %" PRIu64 ", this writer's %" PRIu64,
                    rp_journal_name (journal), now.epoch, journal->epoch);
  return RP_OK;
}

/* Give *super a generation and write it; nothing in memory changes but which
 * copies are stale. */
static int
write_super (struct rp_journal *journal, struct rp_log_super *super,
             struct rp_fault *fault)
{
  /* The copy that may be broken goes first: the other one holds meanwhile. */
  const uint64_t first = journal->super_stale[1] ? 1 : 0;
  uint8_t *page = calloc (1, RP_LOG_PAGE_BYTES);
  int status = RP_OK;

  if (!page)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a superblock");
  super->generation = journal->super.generation + 1;
  rp_log_put_super (page, super);
  for (uint64_t i = 0; status == RP_OK && i < RP_LOG_SUPER_COUNT; i++) {
    const uint64_t copy = (first + i) % RP_LOG_SUPER_COUNT;

    journal->super_stale[copy] = true;
    status = rp_file_pwrite (journal->file, page, RP_LOG_PAGE_BYTES,
                             (1 + copy) * RP_LOG_PAGE_BYTES, fault);
    if (status == RP_OK && !RP_SABOTAGED (13))   /* both copies at once */
      status = rp_file_sync (journal->file, fault);
    if (status == RP_OK)
      journal->super_stale[copy] = false;
  }
  free (page);
  return status;
}

/* Field by field: readers use the sizes in it without the lock. */
static void
adopt_super (struct rp_journal *journal, const struct rp_log_super *super)
{
  journal->super.epoch = super->epoch;
  journal->super.generation = super->generation;
  journal->super.session = super->session;
  journal->super.durable_sequence = super->durable_sequence;
  journal->super.held = super->held;
  journal->super.clean = super->clean;
  journal->super.ring = super->ring;
}

int
rp_journal_put_super (struct rp_journal *journal,
                      const struct rp_log_super *super, struct rp_fault *fault)
{
  struct rp_log_super next = *super;
  int status = write_super (journal, &next, fault);

  if (status == RP_OK)
    adopt_super (journal, &next);
  return status;
}

int
rp_journal_put_ring (struct rp_journal *journal,
                     const struct rp_log_ring *ring, struct rp_fault *fault)
{
  struct rp_log_super next;
  int status;

  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  status = rp_journal_usable (journal, fault);
  next = journal->super;
  next.ring = *ring;
  next.durable_sequence = journal->durable_sequence;
  pthread_mutex_unlock (&journal->lock);
  if (status == RP_OK)
    status = rp_journal_check_epoch (journal, fault);
  if (status == RP_OK)
    status = write_super (journal, &next, fault);
  pthread_mutex_lock (&journal->lock);
  if (status == RP_OK) {
    adopt_super (journal, &next);
    rp_journal_hide_points (journal);  /* at once: who lists points looks at
                                          whether the horizon has moved */
  } else
    rp_journal_fail (journal, status, fault);
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* ---- who may do what ---- */

void
rp_journal_lead (struct rp_journal *journal)
{
  while (journal->flushing)
    pthread_cond_wait (&journal->flushed, &journal->lock);
  journal->flushing = true;
}

void
rp_journal_end_lead (struct rp_journal *journal)
{
  journal->flushing = false;
  pthread_cond_broadcast (&journal->flushed);
}

void
rp_journal_begin_work (struct rp_journal *journal)
{
  pthread_mutex_lock (&journal->lock);
  while (journal->working)
    pthread_cond_wait (&journal->flushed, &journal->lock);
  journal->working = true;
  pthread_mutex_unlock (&journal->lock);
}

void
rp_journal_end_work (struct rp_journal *journal)
{
  pthread_mutex_lock (&journal->lock);
  journal->working = false;
  pthread_cond_broadcast (&journal->flushed);
  pthread_mutex_unlock (&journal->lock);
}

int
rp_journal_begin_session (struct rp_journal *journal, struct rp_fault *fault)
{
  struct rp_log_super next;
  int status;

  if (journal->in_session)
    return RP_OK;
  status = rp_journal_check_epoch (journal, fault);
  if (status == RP_OK) {
    next = journal->super;
    next.session++;
    next.clean = false;
    next.epoch = journal->epoch;
    next.durable_sequence = journal->durable_sequence;
    status = rp_journal_put_super (journal, &next, fault);
  }
  if (status != RP_OK)
    rp_journal_fail (journal, status, fault);
  journal->in_session = status == RP_OK;
  return status;
}

int
rp_journal_set_epoch (struct rp_journal *journal, uint64_t epoch, bool held,
                      struct rp_fault *fault)
{
  struct rp_log_super next;
  int status = rp_journal_commit (journal, fault);

  if (status != RP_OK)
    return status;
  if (epoch < journal->epoch)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: epoch %" PRIu64 " is below %" PRIu64,
                    rp_journal_name (journal), epoch, journal->epoch);
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  next = journal->super;
  next.epoch = epoch;
  next.held = held && !RP_SABOTAGED (19);   /* a hold that holds nobody */
  next.durable_sequence = journal->durable_sequence;
  status = rp_journal_put_super (journal, &next, fault);
  if (status == RP_OK)
    journal->epoch = epoch;
  else
    rp_journal_fail (journal, status, fault);
  rp_journal_end_lead (journal);
  pthread_cond_broadcast (&journal->room);  /* a writer that waits is held */
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* ---- group commit ---- */

static int64_t
wall_clock_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

/* What the leader carries through one flush. */
struct flight {
  uint64_t durable_sequence;
  int64_t  time_ns;
};

static void
prepare_segment (struct rp_journal *journal, struct rp_chunk *chunk,
                 const struct flight *flight)
{
  struct rp_segment *segment = chunk->segment;
  struct rp_log_segment header = {
    .number = segment->number,
    .position = segment->position,
    .first_sequence = segment->first_sequence,
    .chain = journal->chain,
    .session = journal->super.session,
    .epoch = journal->epoch,
    .durable_sequence = flight->durable_sequence,
    .first_entry = segment->first_entry,
  };

  memcpy (header.id, journal->super.id, sizeof header.id);
  rp_log_put_segment (chunk->data, &header);
  segment->session = header.session;
  segment->chain_in = header.chain;
}

/* Fill in one batch at offset; returns its length. */
static int
prepare_batch (struct rp_journal *journal, struct rp_chunk *chunk,
               uint64_t offset, const struct flight *flight,
               uint64_t *bytes_out, struct rp_fault *fault)
{
  const uint32_t grain_bytes = journal->super.grain_bytes;
  struct rp_segment *segment = chunk->segment;
  uint8_t *header = chunk->data + offset;
  uint8_t *entry = header + RP_LOG_BATCH_BYTES;
  const uint8_t *data = header + journal->block_bytes;
  struct rp_log_batch batch = {
    .sequence = rp_load64 (header + 32),
    .chain = journal->chain,
    .epoch = journal->epoch,
    .time_ns = flight->time_ns,
    .durable_sequence = flight->durable_sequence,
    .session = journal->super.session,
    .position = chunk->position + offset,
    .segment = segment->number,
    .entry_count = rp_load32 (header + 96),
    .data_count = rp_load32 (header + 100),
    .point_count = rp_load32 (header + 104),
  };
  int status = rp_segment_reserve (segment, batch.entry_count, fault);

  if (status != RP_OK)
    return status;
  memcpy (batch.id, journal->super.id, sizeof batch.id);
  for (uint32_t i = 0; i < batch.entry_count; i++) {
    if (rp_load32 (entry + 4) != RP_PLACE_ZEROS) {
      rp_store32 (entry + 12, (uint32_t) rp_log_hash (data, grain_bytes));
      data += grain_bytes;
    }
    entry += RP_LOG_ENTRY_BYTES;
  }
  journal->chain = rp_log_put_batch (header, &batch);
  if (batch.entry_count > 0)
    memcpy (segment->entries + segment->prepared * RP_LOG_ENTRY_BYTES,
            header + RP_LOG_BATCH_BYTES,
            (size_t) batch.entry_count * RP_LOG_ENTRY_BYTES);
  segment->prepared += batch.entry_count;
  segment->chain = journal->chain;
  segment->epoch = batch.epoch;
  segment->time_ns = batch.time_ns;
  *bytes_out = (uint64_t) (data - header);
  return RP_OK;
}

static int
prepare_chunk (struct rp_journal *journal, struct rp_chunk *chunk,
               const struct flight *flight, struct rp_fault *fault)
{
  uint64_t offset = 0;
  int status = RP_OK;

  if (chunk->opens_segment) {
    prepare_segment (journal, chunk, flight);
    offset = journal->block_bytes;
  }
  while (status == RP_OK && offset < chunk->used) {
    uint64_t bytes = 0;

    status = prepare_batch (journal, chunk, offset, flight, &bytes, fault);
    offset += bytes;
  }
  return status;
}

/* Write chunks; those that lie one behind the other go in one call. */
static int
write_chunks (struct rp_journal *journal, const struct rp_chunk *chunk,
              struct rp_fault *fault)
{
  while (chunk) {
    struct iovec parts[FLUSH_PARTS];
    const uint64_t position = chunk->position;
    uint64_t stop = position;
    int count = 0, status;

    while (chunk && count < FLUSH_PARTS && chunk->position == stop) {
      parts[count].iov_base = chunk->data;
      parts[count++].iov_len = chunk->used;
      stop += chunk->used;
      chunk = chunk->next;
    }
    status = rp_file_pwritev (journal->file, parts, count, position, fault);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

/* The summary of a closed segment.  Once it is durable, the trailer may say so. */
static int
write_summary (struct rp_journal *journal, struct rp_segment *segment,
               const uint8_t *cuts, struct rp_fault *fault)
{
  const uint64_t entry_bytes = segment->prepared * RP_LOG_ENTRY_BYTES;
  const uint64_t cut_bytes = segment->point_count * RP_LOG_CUT_BYTES;
  const uint64_t bytes = rp_log_summary_bytes (segment->prepared,
                                               segment->point_count);
  uint8_t *summary = calloc (1, bytes + 1);
  int status;

  if (!summary)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the summary of a segment");
  if (entry_bytes > 0)
    memcpy (summary, segment->entries, entry_bytes);
  if (cut_bytes > 0)
    memcpy (summary + entry_bytes, cuts, cut_bytes);
  segment->entries_checksum = rp_log_hash (summary, entry_bytes);
  segment->points_checksum = rp_log_hash (summary + entry_bytes, cut_bytes);
  segment->summary_position = segment->position + journal->super.segment_bytes
                              - RP_LOG_PAGE_BYTES - bytes;
  RP_CHECK (segment->summary_position >= segment->end);
  status = rp_file_pwrite (journal->file, summary, bytes,
                           segment->summary_position, fault);
  free (summary);
  if (status == RP_OK)
    segment->summary = RP_SUMMARY_WRITTEN;
  return status;
}

/* A whole trailer says that the summary and all batches have been synced, so
 * it is written a sync later than they.  Until it is durable itself, recovery
 * walks the batches. */
static int
write_trailer (struct rp_journal *journal, struct rp_segment *segment,
               struct rp_fault *fault)
{
  const uint64_t stop = segment->position + journal->super.segment_bytes;
  struct rp_log_trailer trailer = {
    .number = segment->number,
    .position = segment->position,
    .first_sequence = segment->first_sequence,
    .last_sequence = segment->last_sequence,
    .chain = segment->chain,
    .summary_position = segment->summary_position,
    .entry_count = segment->prepared,
    .point_count = segment->point_count,
    .entries_checksum = segment->entries_checksum,
    .points_checksum = segment->points_checksum,
    .end_position = segment->end,
    .session = segment->session,
    .epoch = segment->epoch,
    .time_ns = segment->time_ns,
  };
  uint8_t page[RP_LOG_PAGE_BYTES];
  int status;

  memcpy (trailer.id, journal->super.id, sizeof trailer.id);
  rp_log_put_trailer (page, &trailer);
  rp_file_note (journal->file, RP_NOTE_POINTS_TO, segment->position,
                stop - RP_LOG_PAGE_BYTES - segment->position);
  status = rp_file_pwrite (journal->file, page, sizeof page,
                           stop - RP_LOG_PAGE_BYTES, fault);
  if (status != RP_OK)
    return status;
  segment->summary = RP_SUMMARY_COMPLETE;
  free (segment->entries);
  segment->entries = NULL;
  segment->capacity = 0;
  return RP_OK;
}

/* The points of a segment as its summary holds them; the caller frees. */
static int
collect_cuts (const struct rp_journal *journal, uint64_t index,
              uint8_t **out, struct rp_fault *fault)
{
  const uint64_t count = journal->segments[index]->point_count;
  const uint64_t number = journal->segments[index]->number;
  uint64_t first = journal->point_count;
  uint8_t *bytes = calloc (count + 1, RP_LOG_CUT_BYTES);

  if (!bytes)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the points of a segment");
  while (first > 0 && journal->points[first - 1].segment >= number)
    first--;
  for (uint64_t i = 0; i < count; i++) {
    const struct rp_point_record *record = &journal->points[first + i];
    struct rp_log_cut cut = {
      .sequence = record->sequence, .ordinal = record->ordinal,
      .point = { .id = record->id, .time_ns = record->time_ns,
                 .kind = record->kind },
    };

    RP_CHECK (record->segment == number);
    if (record->label)
      memcpy (cut.point.label, record->label, strlen (record->label));
    rp_log_put_cut (bytes + i * RP_LOG_CUT_BYTES, &cut);
  }
  *out = bytes;
  return RP_OK;
}

/* One step for a closed segment: its summary, or a sync later its trailer.
 * Called with the lock, which it drops around the write. */
static int
advance_summary (struct rp_journal *journal, uint64_t index,
                 struct rp_fault *fault)
{
  struct rp_segment *segment = journal->segments[index];
  const bool durable = segment->summary == RP_SUMMARY_DURABLE;
  uint8_t *cuts = NULL;
  int status = durable ? RP_OK : collect_cuts (journal, index, &cuts, fault);

  if (status != RP_OK)
    return status;
  pthread_mutex_unlock (&journal->lock);
  status = durable ? write_trailer (journal, segment, fault)
                   : write_summary (journal, segment, cuts, fault);
  if (RP_SABOTAGED (14) && status == RP_OK && !durable)  /* no sync between */
    status = write_trailer (journal, segment, fault);
  free (cuts);
  pthread_mutex_lock (&journal->lock);
  return status;
}

/* Summaries and trailers that are due; the sync of the coming batches makes
 * them durable too.  With the lock held. */
static int
write_summaries (struct rp_journal *journal, struct rp_fault *fault)
{
  for (uint64_t i = journal->next_trailer; i < journal->segment_count; i++) {
    const struct rp_segment *segment = journal->segments[i];
    int status = RP_OK;

    if (!segment->closed
        || segment->last_sequence > journal->durable_sequence)
      break;
    if (segment->summary != RP_SUMMARY_COMPLETE)
      status = advance_summary (journal, i, fault);
    if (status != RP_OK)
      return status;
    if (segment->summary == RP_SUMMARY_COMPLETE && i == journal->next_trailer)
      journal->next_trailer++;
  }
  return RP_OK;
}

/* After a sync: what was written before it is durable.  True: some was. */
static bool
summaries_are_durable (struct rp_journal *journal)
{
  bool any = false;

  for (uint64_t i = journal->next_trailer; i < journal->segment_count; i++)
    if (journal->segments[i]->summary == RP_SUMMARY_WRITTEN) {
      journal->segments[i]->summary = RP_SUMMARY_DURABLE;
      any = true;
    }
  return any;
}

int
rp_journal_settle (struct rp_journal *journal, struct rp_fault *fault)
{
  int status = RP_OK;

  if (!journal->in_session)
    return RP_OK;
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  status = write_summaries (journal, fault);
  if (status == RP_OK)
    status = rp_file_sync (journal->file, fault);
  if (status == RP_OK && summaries_are_durable (journal))
    status = write_summaries (journal, fault);
  if (status != RP_OK)
    rp_journal_fail (journal, status, fault);
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

static int
flush_chunks (struct rp_journal *journal, struct rp_chunk *chunks,
              const struct flight *flight, struct rp_fault *fault)
{
  int status = rp_journal_check_epoch (journal, fault);

  for (struct rp_chunk *chunk = chunks; status == RP_OK && chunk;
       chunk = chunk->next)
    status = prepare_chunk (journal, chunk, flight, fault);
  if (status == RP_OK)
    status = write_chunks (journal, chunks, fault);
  if (status == RP_OK && !RP_SABOTAGED (3))   /* acknowledges too early */
    status = rp_file_sync (journal->file, fault);
  for (struct rp_chunk *chunk = chunks; status == RP_OK && chunk;
       chunk = chunk->next)
    rp_file_note (journal->file, RP_NOTE_ACKNOWLEDGE, chunk->position,
                  chunk->used);
  return status;
}

/* Be the leader of one group commit.  Called and left with the lock held. */
static int
flush (struct rp_journal *journal, struct rp_fault *fault)
{
  struct rp_chunk *chunks, *last = NULL;
  struct flight flight = {
    .durable_sequence = journal->durable_sequence,
    .time_ns = wall_clock_ns (),
  };
  const uint64_t sequence = journal->next_sequence - 1;
  uint64_t bytes = 0;
  int status;

  rp_journal_seal_batch (journal);
  chunks = journal->flight = journal->open_chunks;
  journal->open_chunks = journal->open_last = NULL;
  journal->flushing = true;
  status = rp_journal_begin_session (journal, fault);
  if (status == RP_OK)
    status = write_summaries (journal, fault);
  pthread_mutex_unlock (&journal->lock);
  if (status == RP_OK)
    status = flush_chunks (journal, chunks, &flight, fault);
  pthread_mutex_lock (&journal->lock);
  journal->flushing = false;
  for (struct rp_chunk *chunk = chunks; chunk; chunk = chunk->next) {
    bytes += chunk->used;
    last = chunk;
  }
  if (last) {
    last->next = journal->spare;
    journal->spare = chunks;
  }
  journal->flight = NULL;
  journal->pending_bytes -= bytes;
  if (status == RP_OK) {
    journal->durable_sequence = sequence;
    summaries_are_durable (journal);
    if (chunks)
      journal->last_commit_ns = flight.time_ns;
  } else
    rp_journal_fail (journal, status, fault);
  pthread_cond_broadcast (&journal->flushed);
  return status;
}

int
rp_journal_commit_locked (struct rp_journal *journal, struct rp_fault *fault)
{
  const uint64_t sequence = journal->next_sequence - 1;
  int status = rp_journal_usable (journal, fault);

  if (status == RP_OK && journal->durable_sequence >= sequence) {
    status = rp_journal_check_epoch (journal, fault);
    if (status != RP_OK)
      rp_journal_fail (journal, status, fault);
    return status;
  }
  while (status == RP_OK && journal->durable_sequence < sequence) {
    if (!journal->flushing)
      return flush (journal, fault);
    pthread_cond_wait (&journal->flushed, &journal->lock);
    status = rp_journal_usable (journal, fault);
  }
  return status;
}

int
rp_journal_commit (struct rp_journal *journal, struct rp_fault *fault)
{
  int status;

  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  pthread_mutex_lock (&journal->lock);
  status = rp_journal_commit_locked (journal, fault);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

int
rp_journal_throttle (struct rp_journal *journal, struct rp_fault *fault)
{
  if (journal->pending_bytes < RP_PENDING_BYTES_MAX)
    return RP_OK;
  return rp_journal_commit_locked (journal, fault);
}

uint64_t
rp_journal_pending_bytes (struct rp_journal *journal)
{
  uint64_t bytes;

  pthread_mutex_lock (&journal->lock);
  bytes = journal->pending_bytes;
  pthread_mutex_unlock (&journal->lock);
  return bytes;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Appending: segments, chunks of memory, batches, entries, points. */
#include "journal_private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MARKS_KEPT 2u            /* points that fit when writers have to stop */

int
rp_journal_usable (struct rp_journal *journal, struct rp_fault *fault)
{
  if (journal->failed == RP_OK)
    return RP_OK;
  return rp_fail (fault, journal->failed, journal->failure.position, "%s",
                  journal->failure.message);
}

int
rp_journal_not_held (struct rp_journal *journal, struct rp_fault *fault)
{
  int status = rp_journal_usable (journal, fault);

  if (status == RP_OK && journal->super.held)
    status = rp_fail (fault, RP_HELD, 0, "%s", rp_journal_name (journal));
  return status;
}

/* The first failure is kept as the caller saw it; later calls get RP_FAILED,
 * or RP_STALE_EPOCH again. */
void
rp_journal_fail (struct rp_journal *journal, int status,
                 const struct rp_fault *fault)
{
  if (journal->failed != RP_OK)
    return;
  if (RP_SABOTAGED (30) && status != RP_STALE_EPOCH)   /* tries again */
    return;
  journal->failed = status == RP_STALE_EPOCH ? status : RP_FAILED;
  journal->failure = *fault;
  pthread_cond_broadcast (&journal->room);  /* nobody needs to wait for it */
}

/* ---- segments, points, slots ---- */

int
rp_journal_add_segment (struct rp_journal *journal, struct rp_segment **out,
                        struct rp_fault *fault)
{
  struct rp_segment *segment;

  if (journal->segment_count == journal->segment_room) {
    const uint64_t room = journal->segment_room * 2 + 16;
    struct rp_segment **more = realloc (journal->segments,
                                        room * sizeof *more);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, 0, "the list of segments");
    journal->segments = more;
    journal->segment_room = room;
  }
  segment = calloc (1, sizeof *segment);
  if (!segment)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a log segment");
  journal->segments[journal->segment_count++] = segment;
  *out = segment;
  return RP_OK;
}

void
rp_segment_free (struct rp_segment *segment)
{
  if (segment)
    free (segment->entries);
  free (segment);
}

int
rp_segment_reserve (struct rp_segment *segment, uint64_t count,
                    struct rp_fault *fault)
{
  uint64_t room = segment->capacity;
  uint8_t *more;

  if (count <= room - segment->prepared)
    return RP_OK;
  while (room - segment->prepared < count)
    room = room * 2 + 1024;
  more = realloc (segment->entries, room * RP_LOG_ENTRY_BYTES);
  if (!more)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the summary of a segment");
  segment->entries = more;
  segment->capacity = room;
  return RP_OK;
}

int
rp_journal_add_point (struct rp_journal *journal,
                      const struct rp_log_cut *cut, uint64_t number,
                      struct rp_fault *fault)
{
  struct rp_point_record *record;
  char *label = NULL;

  if (journal->point_count == journal->point_room) {
    const uint64_t room = journal->point_room * 2 + 64;
    struct rp_point_record *more = realloc (journal->points,
                                            room * sizeof *more);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, 0, "the list of restore points");
    journal->points = more;
    journal->point_room = room;
  }
  if (cut->point.label[0] != '\0') {
    label = strdup (cut->point.label);
    if (!label)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a restore point's label");
  }
  record = &journal->points[journal->point_count++];
  record->id = cut->point.id;
  record->time_ns = cut->point.time_ns;
  record->kind = cut->point.kind;
  record->segment = number;
  record->ordinal = cut->ordinal;
  record->sequence = cut->sequence;
  record->label = label;
  return RP_OK;
}

static void
use_slots (const struct rp_journal *journal, uint8_t *used, uint64_t position,
           uint64_t bytes)
{
  for (uint64_t at = position; at < position + bytes;
       at += journal->super.segment_bytes) {
    RP_CHECK (rp_position_slot (journal, at) < journal->slot_count);
    used[rp_position_slot (journal, at)] = 1;
  }
}

uint8_t *
rp_journal_used_slots (const struct rp_journal *journal,
                       struct rp_fault *fault)
{
  uint8_t *used = calloc (journal->slot_count + 1, 1);

  if (!used) {
    rp_fail (fault, RP_NO_MEMORY, 0, "the list of slots");
    return NULL;
  }
  for (uint64_t i = 0; i < journal->segment_count; i++)
    used[rp_position_slot (journal, journal->segments[i]->position)] = 1;
  use_slots (journal, used, journal->building.position,
             journal->building.bytes);
  if (RP_SABOTAGED (5))          /* reuses the slots of the shown root */
    return used;
  use_slots (journal, used, journal->root.position, journal->root.bytes);
  return used;
}

int
rp_journal_free_slots (const struct rp_journal *journal, uint64_t count,
                       uint64_t *out, struct rp_fault *fault)
{
  uint64_t first = 0, found = 0;
  uint8_t *used = rp_journal_used_slots (journal, fault);

  if (!used)
    return RP_NO_MEMORY;
  for (uint64_t slot = 0; found < count; slot++)
    if (slot < journal->slot_count && used[slot])
      first = slot + 1, found = 0;
    else
      found++;
  free (used);
  *out = first;
  return RP_OK;
}

/* ---- the limit ---- */

uint64_t
rp_journal_area_slots (const struct rp_journal *journal, uint64_t bytes)
{
  return rp_divide_up (bytes, journal->super.segment_bytes);
}

uint64_t
rp_journal_used_count (const struct rp_journal *journal)
{
  return journal->segment_count
         + rp_journal_area_slots (journal, journal->root.bytes)
         + rp_journal_area_slots (journal, journal->building.bytes);
}

uint64_t
rp_journal_root_bytes (const struct rp_journal *journal, uint64_t tables)
{
  return RP_LOG_PAGE_BYTES + rp_directory_bytes (journal->grain_count)
         + tables * RP_LOG_TABLE_BYTES;
}

/* May a new segment be opened?  A root must find room as well: without one
 * nothing is ever given back.  Its size is that of today, and what the entries
 * of one segment may add. */
static bool
limit_allows_segment (const struct rp_journal *journal)
{
  const uint64_t most = rp_divide_up (journal->grain_count,
                                      RP_LOG_TABLE_ENTRIES);
  const uint64_t shown = rp_journal_area_slots (journal, journal->root.bytes);
  const uint64_t other = rp_journal_area_slots (journal,
                                                journal->building.bytes);
  const uint64_t going = shown < other ? shown : other;
  uint64_t tables = (journal->map_loaded ? journal->map.stored_count
                                         : journal->root.table_count)
                    + journal->super.segment_bytes
                      / journal->super.grain_bytes;
  uint64_t root;

  if (journal->limit_bytes == 0)
    return true;
  root = rp_journal_area_slots (journal, rp_journal_root_bytes
                                (journal, tables < most ? tables : most));
  root = root > going ? root - going : 0;  /* one of two will soon be free */
  return rp_journal_used_count (journal) + 1 + root
         <= journal->limit_bytes / journal->super.segment_bytes;
}

int
rp_journal_set_limit (struct rp_journal *journal, uint64_t limit_bytes,
                      bool wait, struct rp_fault *fault)
{
  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  pthread_mutex_lock (&journal->lock);
  journal->limit_bytes = limit_bytes;
  journal->limit_waits = wait;
  pthread_cond_broadcast (&journal->room);
  pthread_mutex_unlock (&journal->lock);
  return RP_OK;
}

/* ---- chunks and batches, with the lock held ---- */

static struct rp_segment *
current_segment (const struct rp_journal *journal)
{
  struct rp_segment *last;

  if (journal->segment_count == 0)
    return NULL;
  last = journal->segments[journal->segment_count - 1];
  return last->closed ? NULL : last;
}

/* Where there is a limit, writers leave room for points: a point that can be
 * marked can be destaged to, which is what makes room again. */
static bool
segment_has_room (const struct rp_journal *journal,
                  const struct rp_segment *segment, uint64_t bytes,
                  uint64_t entries, uint64_t points)
{
  const uint64_t stop = segment->position + journal->super.segment_bytes;
  uint64_t tail;

  if (journal->limit_bytes != 0 && points == 0) {
    bytes += MARKS_KEPT * journal->block_bytes;
    points = MARKS_KEPT;
  }
  tail = RP_LOG_PAGE_BYTES
         + rp_log_summary_bytes (segment->entry_count + entries,
                                 segment->point_count + points);
  return tail <= stop - segment->end && bytes <= stop - segment->end - tail;
}

void
rp_journal_seal_batch (struct rp_journal *journal)
{
  struct rp_open_batch *batch = &journal->batch;
  uint8_t *header;

  if (!batch->chunk)
    return;
  /* the leader reads the counts from the block; it fills in all else */
  header = batch->chunk->data + batch->header;
  rp_store64 (header + 32, batch->sequence);
  rp_store32 (header + 96, batch->entry_count);
  rp_store32 (header + 100, batch->data_count);
  rp_store32 (header + 104, batch->point_count);
  batch->chunk = NULL;
}

static int
new_chunk (struct rp_journal *journal, struct rp_segment *segment,
           struct rp_chunk **out, struct rp_fault *fault)
{
  struct rp_chunk *chunk = journal->spare;

  if (chunk)
    journal->spare = chunk->next;
  else {
    chunk = malloc (sizeof *chunk);
    if (!chunk)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a write buffer");
    chunk->data = malloc (journal->chunk_bytes);
    if (!chunk->data) {
      free (chunk);
      return rp_fail (fault, RP_NO_MEMORY, 0, "a write buffer");
    }
  }
  chunk->next = NULL;
  chunk->segment = segment;
  chunk->position = segment->end;
  chunk->used = 0;
  chunk->opens_segment = false;
  if (journal->open_last)
    journal->open_last->next = chunk;
  else
    journal->open_chunks = chunk;
  journal->open_last = chunk;
  *out = chunk;
  return RP_OK;
}

/* Take bytes at the end of the chunk and of its segment. */
static uint8_t *
take_bytes (struct rp_journal *journal, struct rp_chunk *chunk,
            uint64_t bytes)
{
  uint8_t *at = chunk->data + chunk->used;

  RP_CHECK (bytes <= journal->chunk_bytes - chunk->used);
  RP_CHECK (chunk->position + chunk->used == chunk->segment->end);
  chunk->used += bytes;
  chunk->segment->end += bytes;
  journal->pending_bytes += bytes;
  return at;
}

int
rp_journal_allocate (struct rp_journal *journal, uint64_t position,
                     uint64_t bytes, struct rp_fault *fault)
{
  int status = rp_file_allocate (journal->file, position, bytes, fault);

  if (status == RP_IO && (fault->os_errno == EOPNOTSUPP
                          || fault->os_errno == ENOSYS))
    return RP_OK;
  return status;
}

/* Reserve a slot, before anything of its segment was accepted. */
static int
allocate_slot (struct rp_journal *journal, uint64_t position,
               struct rp_fault *fault)
{
  const uint64_t bytes = journal->super.segment_bytes;

  if (position + bytes > RP_LOG_SECTORS_MAX * RP_SECTOR_BYTES)
    return rp_fail (fault, RP_FULL, position,
                    "%s: a log ends at 2 TiB", rp_journal_name (journal));
  return rp_journal_allocate (journal, position, bytes, fault);
}

static int
open_segment (struct rp_journal *journal, struct rp_fault *fault)
{
  struct rp_segment *segment, *before = NULL;
  struct rp_chunk *chunk;
  uint64_t slot, position;
  int status;

  if (!limit_allows_segment (journal))
    return rp_fail (fault, RP_FULL, 0, "the journal is full: %s has reached "
                    "its limit of %" PRIu64 " bytes",
                    rp_journal_name (journal), journal->limit_bytes);
  status = rp_journal_free_slots (journal, 1, &slot, fault);
  if (status != RP_OK)
    return status;
  position = rp_slot_position (journal, slot);
  status = allocate_slot (journal, position, fault);
  if (status != RP_OK)
    return status;
  if (slot >= journal->slot_count)
    journal->slot_count = slot + 1;
  if (journal->segment_count > 0)
    before = journal->segments[journal->segment_count - 1];
  status = rp_journal_add_segment (journal, &segment, fault);
  if (status != RP_OK)
    return status;
  segment->number = before ? before->number + 1 : 0;
  segment->position = segment->end = position;
  segment->allocated = true;
  segment->first_sequence = journal->next_sequence;
  segment->first_entry = before ? before->first_entry + before->entry_count : 0;
  status = new_chunk (journal, segment, &chunk, fault);
  if (status != RP_OK) {
    rp_segment_free (segment);
    journal->segment_count--;
    return status;
  }
  chunk->opens_segment = true;
  memset (take_bytes (journal, chunk, journal->block_bytes), 0,
          journal->block_bytes);
  if (before)
    before->closed = true;
  return RP_OK;
}

/* A new batch with room for what is asked. */
static int
open_batch (struct rp_journal *journal, uint64_t data_bytes, uint64_t points,
            struct rp_fault *fault)
{
  const uint64_t bytes = journal->block_bytes + data_bytes;
  struct rp_segment *segment = current_segment (journal);
  struct rp_chunk *chunk = journal->open_last;
  int status;

  rp_journal_seal_batch (journal);
  if (!segment
      || !segment_has_room (journal, segment, bytes, 1 - points, points)) {
    status = open_segment (journal, fault);
    if (status != RP_OK)
      return status;
    segment = current_segment (journal);
    chunk = journal->open_last;
    RP_CHECK (segment_has_room (journal, segment, bytes, 1, points));
  } else if (!segment->allocated) {  /* recovered: a crash may have lost it */
    status = allocate_slot (journal, segment->position, fault);
    if (status != RP_OK)
      return status;
    segment->allocated = true;
  }
  if (!chunk || chunk->segment != segment
      || bytes > journal->chunk_bytes - chunk->used) {
    status = new_chunk (journal, segment, &chunk, fault);
    if (status != RP_OK)
      return status;
  }
  memset (&journal->batch, 0, sizeof journal->batch);
  journal->batch.chunk = chunk;
  journal->batch.header = chunk->used;
  journal->batch.sequence = journal->next_sequence++;
  memset (take_bytes (journal, chunk, journal->block_bytes), 0,
          journal->block_bytes);
  segment->last_sequence = journal->batch.sequence;
  return RP_OK;
}

/* Does one more entry go into the open batch? */
static bool
batch_has_room (const struct rp_journal *journal, uint64_t data_bytes)
{
  const struct rp_open_batch *batch = &journal->batch;

  return batch->chunk && batch->point_count == 0
         && batch->entry_count < journal->batch_entries_max
         && data_bytes <= journal->chunk_bytes - batch->chunk->used
         && segment_has_room (journal, batch->chunk->segment, data_bytes, 1,
                              0);
}

/* Room for one more entry in the open batch, which may be a new one. */
static int
reserve_entry (struct rp_journal *journal, bool with_data,
               struct rp_fault *fault)
{
  const uint64_t data_bytes = with_data ? journal->super.grain_bytes : 0;

  return batch_has_room (journal, data_bytes)
         ? RP_OK : open_batch (journal, data_bytes, 0, fault);
}

int
rp_journal_make_room (struct rp_journal *journal, struct rp_fault *fault)
{
  const uint64_t data_bytes = journal->super.grain_bytes;

  while (journal->limit_bytes != 0) {
    const struct rp_segment *segment = current_segment (journal);
    int status;

    if (batch_has_room (journal, data_bytes)
        || (segment && segment_has_room (journal, segment, data_bytes
                                         + journal->block_bytes, 1, 0))
        || limit_allows_segment (journal))
      break;
    if (!journal->limit_waits)
      return rp_fail (fault, RP_FULL, 0, "the journal is full: %s has reached "
                      "its limit of %" PRIu64 " bytes",
                      rp_journal_name (journal), journal->limit_bytes);
    pthread_cond_wait (&journal->room, &journal->lock);
    status = rp_journal_not_held (journal, fault);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

static void
put_entry (struct rp_journal *journal, const struct rp_log_entry *entry)
{
  struct rp_open_batch *batch = &journal->batch;

  rp_log_put_entry (batch->chunk->data + batch->header + RP_LOG_BATCH_BYTES
                    + batch->entry_count * RP_LOG_ENTRY_BYTES, entry);
  batch->entry_count++;
  batch->chunk->segment->entry_count++;
}

/* Where in memory the data of this place is, when it lies in this chunk. */
static uint8_t *
chunk_find (const struct rp_chunk *chunk, uint64_t position)
{
  if (position < chunk->position || position - chunk->position >= chunk->used)
    return NULL;
  return chunk->data + (position - chunk->position);
}

const uint8_t *
rp_journal_pending (const struct rp_journal *journal, uint32_t place)
{
  const uint64_t position = (uint64_t) place * RP_SECTOR_BYTES;
  const uint8_t *at;

  for (struct rp_chunk *chunk = journal->flight; chunk; chunk = chunk->next)
    if ((at = chunk_find (chunk, position)) != NULL)
      return at;
  for (struct rp_chunk *chunk = journal->open_chunks; chunk;
       chunk = chunk->next)
    if ((at = chunk_find (chunk, position)) != NULL)
      return at;
  return NULL;
}

/* The place inside the open batch, whose data may still be changed. */
static uint8_t *
in_open_batch (const struct rp_journal *journal, uint32_t place)
{
  const struct rp_open_batch *batch = &journal->batch;
  const uint64_t position = (uint64_t) place * RP_SECTOR_BYTES;

  if (!batch->chunk || place <= RP_PLACE_ZEROS
      || position < batch->chunk->position + batch->header)
    return NULL;
  return chunk_find (batch->chunk, position);
}

int
rp_journal_append_grain (struct rp_journal *journal, uint64_t grain,
                         const void *data, struct rp_fault *fault)
{
  const uint32_t previous = rp_map_get (&journal->map, grain);
  uint8_t *at = in_open_batch (journal, previous);
  struct rp_chunk *chunk;
  uint64_t position;
  int status;

  if (at) {
    memcpy (at, data, journal->super.grain_bytes);
    return RP_OK;
  }
  if (!rp_map_table (&journal->map, grain / RP_LOG_TABLE_ENTRIES))
    return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
  status = reserve_entry (journal, true, fault);
  if (status != RP_OK)
    return status;
  chunk = journal->batch.chunk;
  position = chunk->position + chunk->used;
  RP_CHECK (position % journal->super.grain_bytes == 0);
  memcpy (take_bytes (journal, chunk, journal->super.grain_bytes), data,
          journal->super.grain_bytes);
  journal->batch.data_count++;
  {
    const struct rp_log_entry entry = {
      .grain = (uint32_t) grain,
      .place = (uint32_t) (position / RP_SECTOR_BYTES),
      .previous = previous,
    };

    put_entry (journal, &entry);
    return rp_map_set (&journal->map, grain, entry.place, fault);
  }
}

int
rp_journal_append_zeros (struct rp_journal *journal, uint64_t grain,
                         uint64_t count, struct rp_fault *fault)
{
  const uint64_t stop = grain + count;

  while (grain < stop) {
    int status = rp_journal_make_room (journal, fault);
    uint32_t previous;
    uint64_t run;

    if (status != RP_OK)
      return status;
    run = rp_map_run (&journal->map, grain, stop, 0, &previous);
    if (previous > RP_PLACE_ZEROS)
      run = 1;                   /* each has its own previous place */
    if (run > UINT32_MAX)
      run = UINT32_MAX;
    if (previous != RP_PLACE_ZEROS) {
      const struct rp_log_entry entry = {
        .grain = (uint32_t) grain, .place = RP_PLACE_ZEROS,
        .previous = previous, .value = (uint32_t) run,
      };

      status = reserve_entry (journal, false, fault);
      if (status == RP_OK)
        status = rp_map_fill (&journal->map, grain, run, RP_PLACE_ZEROS,
                              fault);
      if (status != RP_OK)
        return status;
      put_entry (journal, &entry);
    }
    grain += run;
    status = rp_journal_throttle (journal, fault);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

int
rp_journal_mark (struct rp_journal *journal, const struct rp_point *point,
                 struct rp_fault *fault)
{
  struct rp_log_cut cut = { .point = *point };
  int status;

  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing to mark",
                    rp_journal_name (journal));
  if (!memchr (point->label, 0, RP_POINT_LABEL_BYTES))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "a label has at most %u bytes",
                    RP_POINT_LABEL_BYTES - 1);
  if (point->kind != RP_POINT_CRASH && point->kind != RP_POINT_APP)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%u is no kind of point",
                    point->kind);
  pthread_mutex_lock (&journal->lock);
  status = rp_journal_usable (journal, fault);
  if (status == RP_OK
      && (point->id >= RP_POINT_END
          || (journal->point_count > 0
              && point->id <= journal->points[journal->point_count - 1].id)))
    status = rp_fail (fault, RP_BAD_ARGUMENT, 0,
                      "%s: point %" PRIu64 " is not above the last one",
                      rp_journal_name (journal), point->id);
  if (status == RP_OK)
    status = open_batch (journal, 0, 1, fault);
  if (status == RP_OK) {
    struct rp_open_batch *batch = &journal->batch;

    cut.sequence = batch->sequence;
    cut.ordinal = batch->chunk->segment->entry_count;
    if (RP_SABOTAGED (35) && cut.ordinal > 0)   /* cuts before the last one */
      cut.ordinal--;
    status = rp_journal_add_point (journal, &cut,
                                   batch->chunk->segment->number, fault);
    if (status == RP_OK) {
      /* bytes behind the label's end are not ours to keep */
      memset (cut.point.label, 0, sizeof cut.point.label);
      memcpy (cut.point.label, point->label, strlen (point->label));
      rp_log_put_point (batch->chunk->data + batch->header
                        + RP_LOG_BATCH_BYTES, &cut.point);
      batch->point_count = 1;
      batch->chunk->segment->point_count++;
    }
    rp_journal_seal_batch (journal);  /* what comes next is behind the point */
  }
  pthread_mutex_unlock (&journal->lock);
  return status;
}

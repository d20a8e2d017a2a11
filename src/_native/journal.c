/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define READ_PIECES   64         /* looked up under one hold of the lock */
#define OPEN_ATTEMPTS 3          /* of a reader beside a writer */
#define OPEN_ATTEMPTS_MAX 100    /* beside one that destages */

/* ---- create ---- */

static int
check_options (const struct rp_journal_options *options,
               struct rp_fault *fault)
{
  const uint32_t grain = options->grain_bytes;
  const uint32_t segment = options->segment_bytes;

  if (options->capacity_bytes == 0
      || options->capacity_bytes % RP_SECTOR_BYTES != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a disk of %" PRIu64 " bytes; a multiple of 512 is needed",
                    options->capacity_bytes);
  if (!rp_is_power_of_two (grain) || grain < 4096 || grain > 65536)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "grains of %u bytes; 4096 to 65536, a power of two", grain);
  if (segment < 65536 || segment > (1u << 30) || segment % grain != 0
      || segment % RP_LOG_PAGE_BYTES != 0 || segment / 8 < grain)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "segments of %u bytes; 64 KiB to 1 GiB, a multiple of the "
                    "grain and at least 8 of them", segment);
  if (rp_divide_up (options->capacity_bytes, grain) > (UINT64_C (1) << 32))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a disk of %" PRIu64 " bytes has too many grains of %u",
                    options->capacity_bytes, grain);
  if (options->epoch == 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "epochs start at 1");
  return RP_OK;
}

/* The empty root: no page of its directory is stored, all of it is a hole. */
static int
put_empty_root (struct rp_file *file,
                const struct rp_journal_options *options, uint8_t *page,
                struct rp_fault *fault)
{
  const uint64_t grains = rp_divide_up (options->capacity_bytes,
                                        options->grain_bytes);
  const uint64_t bytes = rp_directory_bytes (grains);
  struct rp_log_root root = {
    .position = RP_LOG_HEAD_BYTES, .point_id = RP_POINT_END,
    .content_bytes = bytes, .content_checksum = rp_log_hash ("", 0),
  };
  int status;

  memcpy (root.id, options->id, sizeof root.id);
  status = rp_file_truncate (file, RP_LOG_HEAD_BYTES + RP_LOG_PAGE_BYTES
                                   + bytes, fault);
  if (status != RP_OK)
    return status;
  rp_log_put_root (page, &root);
  return rp_file_pwrite (file, page, RP_LOG_PAGE_BYTES, root.position, fault);
}

int
rp_journal_create (struct rp_file *file,
                   const struct rp_journal_options *options,
                   struct rp_fault *fault)
{
  uint8_t page[RP_LOG_PAGE_BYTES];
  uint64_t size;
  struct rp_log_super super = {
    .capacity_bytes = options->capacity_bytes,
    .grain_bytes = options->grain_bytes,
    .segment_bytes = options->segment_bytes,
    .epoch = options->epoch, .generation = 1, .clean = true,
    .ring = rp_log_ring_start (options->id),
  };
  int status = check_options (options, fault);

  if (status == RP_OK)
    status = rp_file_size (file, &size, fault);
  if (status != RP_OK)
    return status;
  if (size != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: the file is not empty",
                    file->name);
  status = put_empty_root (file, options, page, fault);
  memcpy (super.id, options->id, sizeof super.id);
  rp_log_put_super (page, &super);
  for (uint64_t i = 1; status == RP_OK && i <= RP_LOG_SUPER_COUNT; i++)
    status = rp_file_pwrite (file, page, RP_LOG_PAGE_BYTES,
                             i * RP_LOG_PAGE_BYTES, fault);
  if (status != RP_OK)
    return status;
  rp_log_put_sparse (page, options->capacity_bytes, options->grain_bytes,
                     (RP_LOG_HEAD_BYTES + RP_LOG_PAGE_BYTES)
                     / RP_SECTOR_BYTES);
  status = rp_file_pwrite (file, page, RP_SECTOR_BYTES, 0, fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  return status;
}

/* ---- reading ---- */

/* Where a stretch of the disk comes from, once the lock is let go. */
struct piece {
  uint64_t offset;               /* into the caller's buffer */
  uint64_t length;
  uint64_t position;             /* in the log file, or on the base */
  bool     from_base;
};

/* Look up one stretch that starts at offset; what is in memory is copied. */
static uint64_t
resolve (struct rp_journal *journal, uint8_t *buffer, uint64_t length,
         uint64_t offset, struct piece *piece, bool *is_piece)
{
  const uint32_t grain_bytes = journal->super.grain_bytes;
  const uint64_t grain = offset / grain_bytes;
  const uint64_t skip = offset % grain_bytes;
  const uint64_t stop = rp_divide_up (offset + length, grain_bytes);
  const uint8_t *memory;
  uint32_t place;
  uint64_t run = rp_map_run (&journal->map, grain, stop,
                             journal->grain_sectors, &place);
  uint64_t bytes;

  *is_piece = false;
  memory = place > RP_PLACE_ZEROS ? rp_journal_pending (journal, place) : NULL;
  if (memory)
    run = 1;
  else if (place > RP_PLACE_ZEROS && run > 1 && journal->pending_bytes > 0)
    for (uint64_t i = 1; i < run; i++)
      if (rp_journal_pending (journal,
                              place + (uint32_t) i * journal->grain_sectors))
        run = i;
  bytes = run * grain_bytes - skip;
  if (bytes > length)
    bytes = length;
  if (memory)
    memcpy (buffer, memory + skip, bytes);
  else if (place == RP_PLACE_ZEROS)
    memset (buffer, 0, bytes);
  else {
    *is_piece = true;
    piece->length = bytes;
    piece->from_base = place == RP_PLACE_ABSENT;
    piece->position = piece->from_base
                      ? offset : (uint64_t) place * RP_SECTOR_BYTES + skip;
  }
  return bytes;
}

static int
read_piece (struct rp_journal *journal, const struct piece *piece,
            uint8_t *buffer, struct rp_fault *fault)
{
  if (!piece->from_base)
    return rp_file_pread_all (journal->file, buffer + piece->offset,
                              piece->length, piece->position, fault);
  if (!journal->base)
    return rp_fail (fault, RP_STATE, piece->position,
                    "%s: opened without its base, so it has no data to show",
                    rp_journal_name (journal));
  return rp_disk_pread (journal->base, buffer + piece->offset, piece->length,
                        piece->position, fault);
}

static int
ready (struct rp_journal *journal, struct rp_fault *fault)
{
  int status;

  while (!journal->map_loaded && journal->flushing)  /* what it reads is L */
    pthread_cond_wait (&journal->flushed, &journal->lock);
  status = rp_journal_usable (journal, fault);
  return status == RP_OK ? rp_journal_load_map (journal, fault) : status;
}

/* With the lock held: a read has looked up its places. */
static unsigned
begin_read (struct rp_journal *journal)
{
  const unsigned phase = journal->read_phase;

  atomic_fetch_add (&journal->readers[phase], 1);
  return phase;
}

static void
end_read (struct rp_journal *journal, unsigned phase)
{
  if (atomic_fetch_sub (&journal->readers[phase], 1) != 1
      || !atomic_load (&journal->readers_awaited))
    return;
  pthread_mutex_lock (&journal->lock);
  pthread_cond_broadcast (&journal->flushed);
  pthread_mutex_unlock (&journal->lock);
}

void
rp_journal_await_readers (struct rp_journal *journal)
{
  const unsigned phase = journal->read_phase;

  RP_CHECK (atomic_load (&journal->readers[!phase]) == 0);
  journal->read_phase = !phase;
  atomic_store (&journal->readers_awaited, true);
  while (atomic_load (&journal->readers[phase]) > 0)
    pthread_cond_wait (&journal->flushed, &journal->lock);
  atomic_store (&journal->readers_awaited, false);
}

/* A reader holds no lock: where a writer has destaged what the reader's map
 * still finds in the log, or what came after what it shows, it may just have
 * read something else.  The superblock says so before that is done. */
int
rp_journal_check_not_passed (struct rp_journal *journal,
                             struct rp_fault *fault)
{
  struct rp_log_super now;
  bool stale[RP_LOG_SUPER_COUNT];
  uint64_t shown;
  int status;

  if (journal->writable || RP_SABOTAGED (43))  /* believes what it read */
    return RP_OK;
  shown = journal->is_view ? journal->view_entry
                           : rp_journal_entry_count (journal);
  status = rp_journal_read_super (journal->file, &now, stale, fault);
  if (status != RP_OK)
    return status;
  if (now.ring.number != journal->super.ring.number
      || now.ring.horizon_entry > shown)
    return rp_fail (fault, RP_STATE, 0, "%s: its oldest restore points have "
                    "gone into the base since it was opened",
                    rp_journal_name (journal));
  return RP_OK;
}

static int
read_pieces (struct rp_journal *journal, const struct piece *pieces, int count,
             uint8_t *buffer, struct rp_fault *fault)
{
  int status = RP_OK;

  for (int i = 0; status == RP_OK && i < count; i++)
    status = read_piece (journal, &pieces[i], buffer, fault);
  return count > 0 && status == RP_OK
         ? rp_journal_check_not_passed (journal, fault) : status;
}

/* What a place in the log holds changes only after it was given back, which
 * waits for reads that have begun; so only looking places up needs the lock. */
static int
journal_pread (struct rp_disk *disk, void *buffer, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  struct rp_journal *journal = (struct rp_journal *) disk;
  uint64_t done = 0;

  while (done < length) {
    struct piece pieces[READ_PIECES];
    int count = 0, status;
    unsigned phase;

    pthread_mutex_lock (&journal->lock);
    status = ready (journal, fault);
    while (status == RP_OK && done < length && count < READ_PIECES) {
      bool is_piece;

      pieces[count].offset = done;
      done += resolve (journal, (uint8_t *) buffer + done, length - done,
                       offset + done, &pieces[count], &is_piece);
      count += is_piece;
    }
    phase = begin_read (journal);
    pthread_mutex_unlock (&journal->lock);
    if (status == RP_OK)
      status = read_pieces (journal, pieces, count, buffer, fault);
    end_read (journal, phase);
    if (status != RP_OK)
      return status;
  }
  return RP_OK;
}

/* ---- writing ---- */

/* What a grain holds now, under the lock; zeros behind the end of the disk. */
static int
read_grain (struct rp_journal *journal, uint64_t grain, uint8_t *buffer,
            struct rp_fault *fault)
{
  const uint64_t offset = grain * journal->super.grain_bytes;
  const uint64_t rest = journal->disk.size_bytes - offset;
  uint64_t length = journal->super.grain_bytes;
  struct piece piece = { .offset = 0 };
  bool is_piece;

  if (rest < length) {
    memset (buffer + rest, 0, length - rest);
    length = rest;
  }
  resolve (journal, buffer, length, offset, &piece, &is_piece);
  return is_piece ? read_piece (journal, &piece, buffer, fault) : RP_OK;
}

/* Change part of one grain; data NULL writes zeros. */
static int
write_part (struct rp_journal *journal, uint64_t grain, uint64_t skip,
            const uint8_t *data, uint64_t length, struct rp_fault *fault)
{
  int status = read_grain (journal, grain, journal->scratch, fault);

  if (status != RP_OK)
    return status;
  if (data)
    memcpy (journal->scratch + skip, data, length);
  else
    memset (journal->scratch + skip, 0, length);
  return rp_journal_append_grain (journal, grain, journal->scratch, fault);
}

/* Who dies from here on is found not to have closed the log, even when what
 * it took lay in memory only. */
static int
enter_session (struct rp_journal *journal, struct rp_fault *fault)
{
  int status;

  if (journal->in_session)
    return RP_OK;
  rp_journal_lead (journal);
  status = rp_journal_not_held (journal, fault);
  if (status == RP_OK)
    status = rp_journal_begin_session (journal, fault);
  rp_journal_end_lead (journal);
  return status;
}

/* May one more grain be written, now?  What lets the lock go comes first, so
 * that the answer still holds when the grain is appended. */
static int
check_write (struct rp_journal *journal, struct rp_fault *fault)
{
  int status = ready (journal, fault);

  if (status == RP_OK)
    status = enter_session (journal, fault);
  if (status == RP_OK)
    status = rp_journal_throttle (journal, fault);
  if (status == RP_OK)
    status = rp_journal_not_held (journal, fault);
  return status == RP_OK ? rp_journal_make_room (journal, fault) : status;
}

static int
journal_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  struct rp_journal *journal = (struct rp_journal *) disk;
  const uint32_t grain_bytes = journal->super.grain_bytes;
  const uint8_t *data = buffer;
  int status = RP_OK;

  pthread_mutex_lock (&journal->lock);
  while (status == RP_OK && length > 0) {
    const uint64_t grain = offset / grain_bytes;
    const uint64_t skip = offset % grain_bytes;
    uint64_t here = grain_bytes - skip;

    if (here > length)
      here = length;
    status = check_write (journal, fault);
    if (status == RP_OK)
      status = here == grain_bytes
               ? rp_journal_append_grain (journal, grain, data, fault)
               : write_part (journal, grain, skip, data, here, fault);
    data += here;
    offset += here;
    length -= here;
  }
  pthread_mutex_unlock (&journal->lock);
  return status;
}

static int
journal_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
              bool may_trim, struct rp_fault *fault)
{
  struct rp_journal *journal = (struct rp_journal *) disk;
  const uint32_t grain_bytes = journal->super.grain_bytes;
  int status = RP_OK;

  (void) may_trim;               /* a zero grain holds no space either way */
  pthread_mutex_lock (&journal->lock);
  while (status == RP_OK && length > 0) {
    const uint64_t grain = offset / grain_bytes;
    const uint64_t skip = offset % grain_bytes;
    uint64_t here = grain_bytes - skip;
    uint64_t grains = length / grain_bytes;

    status = check_write (journal, fault);
    if (status != RP_OK)
      break;
    /* a short last grain ends with the disk */
    if (skip == 0 && offset + length == disk->size_bytes)
      grains = rp_divide_up (length, grain_bytes);
    if (skip == 0 && grains > 0) {
      status = rp_journal_append_zeros (journal, grain, grains, fault);
      here = grains * grain_bytes;
    } else if (rp_map_get (&journal->map, grain) != RP_PLACE_ZEROS)
      status = write_part (journal, grain, skip, NULL,
                           here < length ? here : length, fault);
    if (here > length)
      here = length;
    offset += here;
    length -= here;
  }
  pthread_mutex_unlock (&journal->lock);
  return status;
}

static int
journal_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  return rp_journal_commit ((struct rp_journal *) disk, fault);
}

static int
journal_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
             struct rp_run *out, struct rp_fault *fault)
{
  struct rp_journal *journal = (struct rp_journal *) disk;
  const uint32_t grain_bytes = journal->super.grain_bytes;
  const uint64_t skip = offset % grain_bytes;
  uint32_t place = 0;
  uint64_t run = 0;
  bool pending = false;
  int status;

  pthread_mutex_lock (&journal->lock);
  status = ready (journal, fault);
  if (status == RP_OK) {
    run = rp_map_run (&journal->map, offset / grain_bytes,
                      rp_divide_up (offset + length, grain_bytes),
                      journal->grain_sectors, &place);
    pending = rp_journal_pending (journal, place) != NULL;
  }
  pthread_mutex_unlock (&journal->lock);
  if (status != RP_OK)
    return status;
  run = run * grain_bytes - skip;
  if (run > length)
    run = length;
  if (place == RP_PLACE_ABSENT) {
    if (!journal->base)
      return rp_fail (fault, RP_STATE, offset, "%s: opened without its base",
                      rp_journal_name (journal));
    status = rp_disk_run (journal->base, offset, run, out, fault);
    out->depth++;
    return status == RP_OK ? rp_journal_check_not_passed (journal, fault)
                           : status;
  }
  memset (out, 0, sizeof *out);
  out->offset_bytes = offset;
  out->length_bytes = run;
  out->kind = place == RP_PLACE_ZEROS ? RP_RUN_ZERO : RP_RUN_DATA;
  if (place > RP_PLACE_ZEROS && !pending) {
    out->file = journal->file;
    out->file_offset_bytes = (uint64_t) place * RP_SECTOR_BYTES + skip;
  }
  return RP_OK;
}

/* The disk belongs to the journal, which ends it. */
static void
journal_disk_destroy (struct rp_disk *disk)
{
  (void) disk;
}

static void
journal_settle (struct rp_disk *disk)
{
  struct rp_journal *journal = (struct rp_journal *) disk;
  struct rp_fault fault;

  pthread_mutex_lock (&journal->lock);
  if (journal->pending_bytes >= RP_SETTLED_BYTES_MAX)
    rp_journal_commit_locked (journal, &fault);
  pthread_mutex_unlock (&journal->lock);
}

static const struct rp_disk_functions journal_disk_functions = {
  .name = "journal",
  .destroy = journal_disk_destroy,
  .pread = journal_pread,
  .pwrite = journal_pwrite,
  .zero = journal_zero,
  .flush = journal_flush,
  .run = journal_run,
  .settle = journal_settle,
};

/* ---- open and end ---- */

static void
free_chunks (struct rp_chunk *chunk)
{
  while (chunk) {
    struct rp_chunk *next = chunk->next;

    free (chunk->data);
    free (chunk);
    chunk = next;
  }
}

/* What recovery made, so that it can be made again. */
static void
forget (struct rp_journal *journal)
{
  for (uint64_t i = 0; i < journal->segment_count; i++)
    rp_segment_free (journal->segments[i]);
  for (uint64_t i = 0; i < journal->point_count; i++)
    free (journal->points[i].label);
  journal->segment_count = 0;
  journal->point_count = 0;
  journal->point_first = 0;
}

void
rp_journal_destroy (struct rp_journal *journal)
{
  if (!journal)
    return;
  RP_CHECK (!journal->flushing);
  RP_CHECK (!journal->working);
  forget (journal);
  free (journal->segments);
  free (journal->points);
  rp_map_destroy (&journal->map);
  free_chunks (journal->open_chunks);
  free_chunks (journal->spare);
  free (journal->scratch);
  pthread_cond_destroy (&journal->room);
  pthread_cond_destroy (&journal->flushed);
  pthread_mutex_destroy (&journal->lock);
  free (journal);
}

/* Has the superblock changed since it was read? */
static bool
is_moving (struct rp_journal *journal)
{
  struct rp_log_super now;
  bool stale[RP_LOG_SUPER_COUNT];
  struct rp_fault ignored;

  return rp_journal_read_super (journal->file, &now, stale, &ignored) == RP_OK
         && now.generation != journal->super.generation;
}

/* A reader has no lock, and may look while a writer writes: what looks like
 * damage then is gone at the next look, or is somewhere else, further on; or
 * it is gone at one of the next while segments are being given back. */
static int
recover (struct rp_journal *journal, struct rp_fault *fault)
{
  uint64_t before = UINT64_MAX;
  int status = RP_OK;

  for (int i = 0; i < OPEN_ATTEMPTS_MAX; i++) {
    bool stays;

    forget (journal);
    status = rp_journal_recover (journal, fault);
    if (status != RP_CORRUPT || journal->writable)
      break;
    stays = fault->position == before;
    before = fault->position;
    if (i + 1 >= OPEN_ATTEMPTS && stays && !is_moving (journal))
      break;
  }
  return status;
}

static int
open_steps (struct rp_journal *journal, uint64_t epoch,
            struct rp_fault *fault)
{
  int status = RP_OK;

  if (journal->writable)
    status = rp_file_lock (journal->file, true, fault);
  if (status == RP_OK)
    status = recover (journal, fault);
  if (status != RP_OK)
    return status;
  if (epoch != 0 && epoch < journal->super.epoch
      && !RP_SABOTAGED (21))     /* opens for a stale writer */
    return rp_fail (fault, RP_STALE_EPOCH, 0,
                    "%s: its epoch is %" PRIu64 ", this writer's %" PRIu64,
                    rp_journal_name (journal), journal->super.epoch, epoch);
  journal->epoch = epoch != 0 ? epoch : journal->super.epoch;
  journal->was_clean = journal->root_proven = journal->super.clean;
  journal->disk.size_bytes = journal->super.capacity_bytes;
  if (journal->base
      && journal->base->size_bytes != journal->disk.size_bytes)
    return rp_fail (fault, RP_FORMAT, 0,
                    "%s: it is for a disk of %" PRIu64 " bytes, the base has "
                    "%" PRIu64, rp_journal_name (journal),
                    journal->disk.size_bytes, journal->base->size_bytes);
  journal->scratch = malloc (journal->super.grain_bytes);
  if (!journal->scratch)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a grain");
  return RP_OK;
}

int
rp_journal_open (struct rp_file *file, struct rp_disk *base, int flags,
                 uint64_t epoch, struct rp_journal **out,
                 struct rp_fault *fault)
{
  struct rp_journal *journal;
  int status;

  *out = NULL;
  journal = calloc (1, sizeof *journal);
  if (!journal)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a journal");
  RP_CHECK (pthread_mutex_init (&journal->lock, NULL) == 0);
  RP_CHECK (pthread_cond_init (&journal->flushed, NULL) == 0);
  RP_CHECK (pthread_cond_init (&journal->room, NULL) == 0);
  journal->disk.functions = &journal_disk_functions;
  journal->file = file;
  journal->base = base;
  journal->writable = (flags & RP_JOURNAL_WRITE) != 0;
  journal->disk.read_only = !journal->writable;
  status = open_steps (journal, epoch, fault);
  if (status != RP_OK) {
    rp_journal_destroy (journal);
    return status;
  }
  *out = journal;
  return RP_OK;
}

struct rp_disk *
rp_journal_disk (struct rp_journal *journal)
{
  return &journal->disk;
}

/* ---- facts ---- */

/* Points are listed once they are durable, up to when the horizon passes
 * them.  With the lock held. */
static uint64_t
listed_points (const struct rp_journal *journal)
{
  uint64_t stop = journal->point_count;

  while (stop > journal->point_first
         && journal->points[stop - 1].sequence > journal->durable_sequence)
    stop--;
  return stop - journal->point_first;
}

/* Entries of the log up to its newest point, durable or not. */
static uint64_t
entries_at_point (const struct rp_journal *journal)
{
  const uint64_t count = journal->point_count;

  return count > 0 ? rp_point_entry (journal, &journal->points[count - 1]) : 0;
}

void
rp_journal_info (struct rp_journal *journal, struct rp_journal_info *out)
{
  memset (out, 0, sizeof *out);
  pthread_mutex_lock (&journal->lock);
  out->options.capacity_bytes = journal->super.capacity_bytes;
  out->options.grain_bytes = journal->super.grain_bytes;
  out->options.segment_bytes = journal->super.segment_bytes;
  out->options.epoch = journal->super.epoch;
  memcpy (out->options.id, journal->super.id, sizeof out->options.id);
  out->held = journal->super.held;
  out->failed = journal->failed != RP_OK;
  out->next_sequence = journal->next_sequence;
  out->durable_sequence = journal->durable_sequence;
  out->point_count = listed_points (journal);
  out->segment_count = journal->segment_count;
  out->entry_count = rp_journal_entry_count (journal);
  out->entries_since_point = out->entry_count - entries_at_point (journal);
  out->log_bytes = journal->segment_count * journal->super.segment_bytes;
  out->root_sequence = journal->root.sequence;
  out->root_entry = journal->root.entry;
  out->root_sector = rp_root_sector (journal);
  out->last_commit_ns = journal->last_commit_ns;
  out->closed_clean = journal->was_clean;
  out->horizon_entry = journal->super.ring.horizon_entry;
  out->horizon_sequence = journal->super.ring.horizon_sequence;
  out->based_entry = journal->super.ring.based_entry;
  out->used_bytes = rp_journal_used_count (journal)
                    * journal->super.segment_bytes;
  out->limit_bytes = journal->limit_bytes;
  pthread_mutex_unlock (&journal->lock);
}

/* With the lock held. */
static int
find_listed (struct rp_journal *journal, uint64_t index,
             const struct rp_point_record **out, struct rp_fault *fault)
{
  *out = NULL;
  if (index >= listed_points (journal))
    return rp_fail (fault, RP_NOT_FOUND, index,
                    "%s has no point number %" PRIu64,
                    rp_journal_name (journal), index);
  *out = &journal->points[journal->point_first + index];
  return RP_OK;
}

int
rp_journal_point (struct rp_journal *journal, uint64_t index,
                  struct rp_point *out, struct rp_fault *fault)
{
  const struct rp_point_record *record;
  int status;

  memset (out, 0, sizeof *out);
  pthread_mutex_lock (&journal->lock);
  status = find_listed (journal, index, &record, fault);
  if (status == RP_OK) {
    out->id = record->id;
    out->time_ns = record->time_ns;
    out->kind = record->kind;
    if (record->label)
      memcpy (out->label, record->label, strlen (record->label));
  }
  pthread_mutex_unlock (&journal->lock);
  return status;
}

int
rp_journal_point_cut (struct rp_journal *journal, uint64_t index,
                      uint64_t *entries_out, struct rp_fault *fault)
{
  const struct rp_point_record *record;
  int status;

  *entries_out = 0;
  pthread_mutex_lock (&journal->lock);
  status = find_listed (journal, index, &record, fault);
  if (status == RP_OK)
    *entries_out = rp_point_entry (journal, record);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Grains of compressed extents: found, checked and inflated.
 *
 * A call reads through a worker: an inflater, and a window into the file that
 * takes in one read the grains that lie together.  Whole grains are inflated
 * straight to where they are wanted, parts through a small cache of grains.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "stream_inside.h"

/* ---- workers ---- */

void
rp_stream_free_worker (struct rp_stream_worker *worker)
{
  if (!worker)
    return;
  libdeflate_free_decompressor (worker->inflater);
  free (worker->window);
  free (worker->grain);
  free (worker);
}

int
rp_stream_take_worker (struct rp_stream *stream, struct rp_stream_worker **out,
                       struct rp_fault *fault)
{
  struct rp_stream_worker *worker;

  pthread_mutex_lock (&stream->pooling);
  worker = stream->idle;
  if (worker)
    stream->idle = worker->next;
  pthread_mutex_unlock (&stream->pooling);
  if (!worker) {
    worker = calloc (1, sizeof *worker);
    if (worker) {
      worker->inflater = libdeflate_alloc_decompressor ();
      worker->window = malloc (stream->window_room);
    }
    if (!worker || !worker->inflater || !worker->window) {
      rp_stream_free_worker (worker);
      return rp_fail (fault, RP_NO_MEMORY, 0, "reading %s",
                      stream->file->name);
    }
  }
  *out = worker;
  return RP_OK;
}

void
rp_stream_give_worker (struct rp_stream *stream,
                       struct rp_stream_worker *worker)
{
  pthread_mutex_lock (&stream->pooling);
  worker->next = stream->idle;
  stream->idle = worker;
  pthread_mutex_unlock (&stream->pooling);
}

/* ---- records ---- */

static bool
window_holds (const struct rp_stream_worker *worker, uint64_t position,
              uint64_t length)
{
  return position >= worker->window_start
         && rp_inside (position - worker->window_start, length,
                       worker->window_bytes);
}

/* Fill the window with the grain at entry, of which at least `needed` bytes
 * are wanted, and with those behind it up to stop, in any order, as long as
 * they lie close together. */
static int
fill_window (struct rp_stream *stream, struct rp_stream_worker *worker,
             uint64_t grain, uint64_t stop, uint32_t entry, uint64_t needed,
             struct rp_fault *fault)
{
  const uint64_t near = stream->record_bytes / RP_SECTOR_BYTES + 1;
  const uint64_t count = rp_divide_up (stream->size_bytes,
                                       rp_stream_grain_bytes (stream));
  uint64_t low = entry, high = entry, end, length;
  uint32_t next = 0;
  struct rp_fault ignored;
  int status;

  for (grain++; grain < count; grain++) {
    uint64_t new_low, new_high;

    if (rp_stream_lookup (stream, grain, &next, &ignored) != RP_OK)
      next = 0;
    new_low = next < low ? next : low;
    new_high = next > high ? next : high;
    if (grain >= stop || next < 2 || next >= stream->file_sectors
        || next + near < low || next > high + near
        || (new_high - new_low) * RP_SECTOR_BYTES > RP_STREAM_WINDOW_BYTES)
      break;
    low = new_low;
    high = new_high;
    next = 0;
  }
  /* The highest one ends where the next begins; where that is not known or
   * far away, a grain and a bit are enough for most. */
  end = next > high && next <= high + near
        ? (uint64_t) next * RP_SECTOR_BYTES
        : high * RP_SECTOR_BYTES + rp_stream_grain_bytes (stream)
          + RP_SECTOR_BYTES;
  if (end < (uint64_t) entry * RP_SECTOR_BYTES + needed)
    end = (uint64_t) entry * RP_SECTOR_BYTES + needed;
  if (end > stream->layout.file_bytes)
    end = stream->layout.file_bytes;
  length = end - low * RP_SECTOR_BYTES;
  RP_CHECK (length <= stream->window_room);
  worker->window_bytes = 0;
  worker->window_start = low * RP_SECTOR_BYTES;
  status = rp_file_pread_all (stream->file, worker->window, length,
                              worker->window_start, fault);
  if (status == RP_OK)
    worker->window_bytes = length;
  return status;
}

static int
check_marker (struct rp_stream *stream, uint64_t grain,
              const uint8_t *marker, const struct rp_stream_record *record,
              struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &stream->layout;
  const uint64_t sector = grain << (layout->grain_shift - 9);

  if (stream->marker_bytes == RP_STREAM_MARKER_BYTES
      && rp_load64 (marker) != sector)
    return rp_fail (fault, RP_CORRUPT, record->position,
                    "%s: the grain of guest sector %" PRIu64
                    " should be at byte %" PRIu64
                    ", and its marker there says sector %" PRIu64,
                    stream->file->name, sector, record->position,
                    rp_load64 (marker));
  if (record->size == 0)
    return rp_fail (fault, RP_CORRUPT, record->position,
                    "%s: the grain at byte %" PRIu64 " has no data",
                    stream->file->name, record->position);
  if (record->size > stream->record_bytes - stream->marker_bytes)
    return rp_fail (fault, RP_CORRUPT, record->position,
                    "%s: the grain at byte %" PRIu64 " has %" PRIu32
                    " bytes of compressed data, more than there can be",
                    stream->file->name, record->position, record->size);
  if (!rp_inside (record->position, stream->marker_bytes + record->size,
                  layout->file_bytes))
    return rp_fail (fault, RP_CORRUPT, record->position,
                    "%s: the grain at byte %" PRIu64 " ends at byte %" PRIu64
                    " and the file at byte %" PRIu64
                    ": it is damaged or was cut short", stream->file->name,
                    record->position,
                    record->position + stream->marker_bytes + record->size,
                    layout->file_bytes);
  return RP_OK;
}

int
rp_stream_load_record (struct rp_stream *stream,
                       struct rp_stream_worker *worker, uint64_t grain,
                       uint64_t stop, uint32_t entry,
                       struct rp_stream_record *out, struct rp_fault *fault)
{
  const uint32_t marker_bytes = stream->marker_bytes;
  const uint8_t *marker;
  int status = RP_OK;

  out->position = (uint64_t) entry * RP_SECTOR_BYTES;
  if (!window_holds (worker, out->position, marker_bytes))
    status = fill_window (stream, worker, grain, stop, entry, marker_bytes,
                          fault);
  if (status != RP_OK)
    return status;
  marker = worker->window + (out->position - worker->window_start);
  out->size = rp_load32 (marker + marker_bytes - 4);
  status = check_marker (stream, grain, marker, out, fault);
  if (status == RP_OK
      && !window_holds (worker, out->position, marker_bytes + out->size))
    status = fill_window (stream, worker, grain, stop, entry,
                          marker_bytes + out->size, fault);
  out->data = worker->window + (out->position - worker->window_start)
              + marker_bytes;
  return status;
}

int
rp_stream_read_marker (struct rp_stream *stream, uint64_t grain,
                       uint32_t entry, struct rp_stream_record *out,
                       struct rp_fault *fault)
{
  uint8_t marker[RP_STREAM_MARKER_BYTES];
  int status;

  out->position = (uint64_t) entry * RP_SECTOR_BYTES;
  out->data = NULL;
  status = rp_file_pread_all (stream->file, marker, stream->marker_bytes,
                              out->position, fault);
  if (status != RP_OK)
    return status;
  out->size = rp_load32 (marker + stream->marker_bytes - 4);
  return check_marker (stream, grain, marker, out, fault);
}

int
rp_stream_inflate (struct rp_stream *stream, struct rp_stream_worker *worker,
                   uint64_t grain, const struct rp_stream_record *record,
                   uint8_t *out, struct rp_fault *fault)
{
  const uint64_t grain_bytes = rp_stream_grain_bytes (stream);
  const uint64_t start = grain << stream->layout.grain_shift;
  uint64_t needed = start < stream->size_bytes ? stream->size_bytes - start
                                               : 0;
  enum libdeflate_result result;
  size_t length = 0;

  if (needed > grain_bytes)
    needed = grain_bytes;
  result = libdeflate_zlib_decompress (worker->inflater, record->data,
                                       record->size, out, grain_bytes,
                                       &length);
  if (result == LIBDEFLATE_SUCCESS && length >= needed)
    return RP_OK;
  if (result == LIBDEFLATE_SUCCESS)
    return rp_fail (fault, RP_CORRUPT, record->position,
                    "%s: the grain at byte %" PRIu64 " inflates to %zu bytes; "
                    "%" PRIu64 " are needed", stream->file->name,
                    record->position, length, needed);
  return rp_fail (fault, RP_CORRUPT, record->position,
                  "%s: the grain at byte %" PRIu64 " %s", stream->file->name,
                  record->position,
                  result == LIBDEFLATE_INSUFFICIENT_SPACE
                  ? "inflates to more than a grain" : "does not inflate");
}

/* ---- reading ---- */

static bool
read_cached (struct rp_stream *stream, uint64_t grain, uint64_t within,
             uint8_t *out, size_t length)
{
  bool found = false;

  pthread_mutex_lock (&stream->caching);
  for (uint32_t i = 0; !found && i < stream->cache_count; i++) {
    struct rp_stream_cached *cached = &stream->cache[i];

    if (cached->bytes && cached->grain == grain) {
      memcpy (out, cached->bytes + within, length);
      cached->used = ++stream->clock;
      found = true;
    }
  }
  pthread_mutex_unlock (&stream->caching);
  return found;
}

/* Swap the worker's grain for the one that was not used for longest. */
static void
cache_grain (struct rp_stream *stream, struct rp_stream_worker *worker,
             uint64_t grain)
{
  struct rp_stream_cached *oldest = &stream->cache[0];
  uint8_t *bytes;
  bool there = false;

  pthread_mutex_lock (&stream->caching);
  for (uint32_t i = 0; i < stream->cache_count; i++) {
    struct rp_stream_cached *cached = &stream->cache[i];

    there |= cached->bytes && cached->grain == grain;
    if (cached->used < oldest->used)
      oldest = cached;
  }
  if (!there) {
    bytes = oldest->bytes;
    *oldest = (struct rp_stream_cached) {
      .grain = grain, .used = ++stream->clock, .bytes = worker->grain,
    };
    worker->grain = bytes;
  }
  pthread_mutex_unlock (&stream->caching);
}

static int
read_part (struct rp_stream *stream, struct rp_stream_worker *worker,
           uint64_t grain, uint32_t entry, uint64_t within, uint8_t *out,
           size_t length, struct rp_fault *fault)
{
  struct rp_stream_record record;
  int status;

  if (!worker->grain)
    worker->grain = malloc (rp_stream_grain_bytes (stream));
  if (!worker->grain)
    return rp_fail (fault, RP_NO_MEMORY, 0, "reading %s", stream->file->name);
  status = rp_stream_load_record (stream, worker, grain, grain + 1, entry,
                                  &record, fault);
  if (status == RP_OK)
    status = rp_stream_inflate (stream, worker, grain, &record, worker->grain,
                                fault);
  if (status == RP_OK) {
    memcpy (out, worker->grain + within, length);
    cache_grain (stream, worker, grain);
  }
  return status;
}

static int
find_entry (struct rp_stream *stream, uint64_t grain, uint32_t *out,
            struct rp_fault *fault)
{
  enum rp_segment_kind kind;
  int status = rp_stream_lookup (stream, grain, out, fault);

  if (status == RP_OK)
    status = rp_stream_classify (stream, grain, *out, &kind, fault);
  if (status == RP_OK && kind != RP_SEGMENT_DATA)
    status = rp_fail (fault, RP_BAD_ARGUMENT,
                      grain << stream->layout.grain_shift,
                      "%s: a grain that is not there is read",
                      stream->file->name);
  return status;
}

/* Inside one grain.  Grains up to stop are wanted next. */
static int
read_inside (struct rp_stream *stream, struct rp_stream_worker **worker,
             uint64_t grain, uint64_t stop, uint64_t within, uint8_t *out,
             size_t length, struct rp_fault *fault)
{
  const bool whole = length == rp_stream_grain_bytes (stream);
  struct rp_stream_record record;
  uint32_t entry;
  int status;

  if (!whole && read_cached (stream, grain, within, out, length))
    return RP_OK;
  status = find_entry (stream, grain, &entry, fault);
  if (status == RP_OK && !*worker)
    status = rp_stream_take_worker (stream, worker, fault);
  if (status != RP_OK)
    return status;
  if (!whole)
    return read_part (stream, *worker, grain, entry, within, out, length,
                      fault);
  status = rp_stream_load_record (stream, *worker, grain, stop, entry, &record,
                                  fault);
  if (status == RP_OK)
    status = rp_stream_inflate (stream, *worker, grain, &record, out, fault);
  return status;
}

int
rp_stream_read (struct rp_stream *stream, void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  const uint64_t grain_bytes = rp_stream_grain_bytes (stream);
  const uint64_t stop = (offset + length) >> stream->layout.grain_shift;
  struct rp_stream_worker *worker = NULL;
  uint8_t *out = buffer;
  int status = RP_OK;

  if (!rp_inside (offset, length, stream->size_bytes))
    return rp_fail (fault, RP_OUT_OF_RANGE, offset, "reading %s",
                    stream->file->name);
  while (status == RP_OK && length > 0) {
    const uint64_t within = offset & (grain_bytes - 1);
    const size_t take = length < grain_bytes - within
                        ? length : (size_t) (grain_bytes - within);

    status = read_inside (stream, &worker, offset >> stream->layout.grain_shift,
                          stop, within, out, take, fault);
    out += take;
    offset += take;
    length -= take;
  }
  if (worker)
    rp_stream_give_worker (stream, worker);
  return status;
}

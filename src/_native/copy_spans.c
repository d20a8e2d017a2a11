/* SPDX-License-Identifier: Apache-2.0 */
/* Sending ranges of a disk to another one. */
#include "copy_spans.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "bytes.h"
#include "copy_crew.h"
#include "copy_parts.h"

#define PAGE_BYTES 4096u
/* A piece of zeros, which needs no memory, may be longer than one of data. */
#define ZERO_BYTES (UINT64_C (64) << 20)
/* Zeros inside of data are looked for in units of this size; only such long
 * ones are worth a hole in the target. */

struct job {
  struct rp_disk       *source, *target;
  struct rp_span_cursor cursor;
  struct rp_run         run;     /* of the cursor */
  _Atomic uint64_t      read_bytes, sent_bytes, zeroed_bytes;
};

struct load {
  struct rp_span_cursor cursor;  /* at the start of the piece */
  uint8_t *data;                 /* RP_COPY_CHUNK_BYTES */
};

/* A piece that begins with zeros is nothing but zeros. */
static int
next_piece (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
            bool *more, struct rp_fault *fault)
{
  struct job *job = crew->job;
  uint64_t at, stop, end, most = RP_COPY_CHUNK_BYTES;
  int status;

  *more = from < crew->stop;
  if (!*more)
    return RP_OK;
  at = rp_span_seek (&job->cursor, from, &stop);
  status = rp_copy_look (job->source, at, stop, &job->run, fault);
  if (status != RP_OK)
    return status;
  end = job->run.offset_bytes + job->run.length_bytes;
  if (job->run.kind != RP_RUN_DATA) {
    if (end > stop)
      end = stop;
    most = end - at < ZERO_BYTES ? end - at : ZERO_BYTES;
  }
  slot->start = from;
  slot->stop = crew->stop - from < most ? crew->stop : from + most;
  ((struct load *) slot->own)->cursor = job->cursor;
  return RP_OK;
}

/* ---- one piece ---- */

/* Bytes [at, stop) of the disk, which lie in one range: neighbours that are
 * data are read one by one and written at once.  More than the memory holds is
 * only found where the source has changed since the piece was made. */
static int
send_part (struct job *job, uint8_t *data, uint64_t at, uint64_t stop,
           struct rp_fault *fault)
{
  const struct rp_copy_tally counts = {
    &job->sent_bytes, &job->zeroed_bytes
  };
  uint64_t from = at, read = 0;  /* [from, at) was read */
  int status = RP_OK;

  while (status == RP_OK && at < stop) {
    struct rp_run run;

    status = rp_disk_run (job->source, at, stop - at, &run, fault);
    if (status != RP_OK)
      break;
    if (run.kind == RP_RUN_DATA) {
      if (at - from == RP_COPY_CHUNK_BYTES) {
        status = rp_copy_write (job->target, data, from, at, counts,
                                fault);
        from = at;
        if (status != RP_OK)
          break;
      }
      if (run.length_bytes > RP_COPY_CHUNK_BYTES - (at - from))
        run.length_bytes = RP_COPY_CHUNK_BYTES - (at - from);
      status = rp_disk_pread (job->source, data + (at - from),
                              run.length_bytes, at, fault);
      read += run.length_bytes;
    } else {
      status = rp_copy_write (job->target, data, from, at, counts, fault);
      if (status == RP_OK)
        status = rp_copy_put (job->target, NULL, at, at + run.length_bytes,
                              counts, fault);
      from = at + run.length_bytes;
    }
    at += run.length_bytes;
  }
  if (status == RP_OK)
    status = rp_copy_write (job->target, data, from, at, counts, fault);
  atomic_fetch_add_explicit (&job->read_bytes, read, memory_order_relaxed);
  return status;
}

static int
send_piece (struct rp_crew *crew, struct rp_crew_slot *slot,
            struct rp_fault *fault)
{
  struct load *load = slot->own;
  uint64_t place = slot->start;
  int status = RP_OK;

  while (status == RP_OK && place < slot->stop) {
    uint64_t stop;
    const uint64_t at = rp_span_seek (&load->cursor, place, &stop);

    if (stop - at > slot->stop - place)
      stop = at + (slot->stop - place);
    status = send_part (crew->job, load->data, at, stop, fault);
    place += stop - at;
  }
  return status;
}

static int
finish (struct rp_crew *crew, struct rp_fault *fault)
{
  return rp_disk_flush (((struct job *) crew->job)->target, fault);
}

/* ---- all of it ---- */

static void
load_destroy (struct rp_crew *crew, void *own)
{
  struct load *load = own;

  (void) crew;
  if (load)
    free (load->data);
  free (load);
}

static int
load_create (struct rp_crew *crew, void **own_out, struct rp_fault *fault)
{
  struct load *load = calloc (1, sizeof *load);

  (void) crew;
  *own_out = load;
  if (load)
    load->data = aligned_alloc (PAGE_BYTES, RP_COPY_CHUNK_BYTES);
  if (!load || !load->data)
    return rp_fail (fault, RP_NO_MEMORY, 0, "sending ranges of a disk");
  return RP_OK;
}

static const struct rp_crew_functions send_functions = {
  .next = next_piece,
  .work = send_piece,
  .finish = finish,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

int
rp_copy_spans (struct rp_disk *source, struct rp_disk *target,
               const uint64_t *pairs, uint64_t count,
               const struct rp_copy_options *options, struct rp_sent *out,
               struct rp_fault *fault)
{
  const uint64_t size = source->size_bytes < target->size_bytes
                        ? source->size_bytes : target->size_bytes;
  struct job job = {
    .source = source, .target = target,
    .cursor = { .pairs = pairs, .count = count },
  };
  struct rp_crew crew = {
    .functions = &send_functions, .job = &job, .options = options,
    .stop = rp_span_total (pairs, count), .piece_bytes = RP_COPY_CHUNK_BYTES,
    .slot_bytes = RP_COPY_CHUNK_BYTES,
    .serial = source->serial || target->serial,
  };
  int status;

  *out = (struct rp_sent) { .read_bytes = 0 };
  status = rp_spans_check (pairs, count, size, fault);
  if (status != RP_OK)
    return status;
  status = rp_crew_run (&crew, fault);
  out->read_bytes = atomic_load (&job.read_bytes);
  out->sent_bytes = atomic_load (&job.sent_bytes);
  out->zeroed_bytes = atomic_load (&job.zeroed_bytes);
  return status;
}

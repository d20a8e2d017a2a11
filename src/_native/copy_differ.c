/* SPDX-License-Identifier: Apache-2.0 */
/* All places where two disks differ: both are read, unless both are zeros. */
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "copy_crew.h"
#include "copy_parts.h"
#include "copy_spans.h"

#define PAGE_BYTES 4096u
#define UNIT_BYTES UINT64_C (4096)      /* what is said to differ */

struct job {
  struct rp_disk       *a, *b;
  struct rp_span_cursor cursor;
  struct rp_run         run_a, run_b;   /* of the cursor */
  pthread_mutex_t       lock;
  struct rp_spans      *found;          /* under lock; in no order */
};

struct load {
  struct rp_span_cursor cursor;  /* at the start of the piece */
  uint8_t *a, *b;                /* RP_COPY_CHUNK_BYTES each */
};

/* Up to where both are zeros, at most to stop; `at` where one is data. */
static int
skip_zeros (struct job *job, uint64_t at, uint64_t stop, uint64_t *end_out,
            struct rp_fault *fault)
{
  const struct rp_run *a = &job->run_a, *b = &job->run_b;
  int status = rp_copy_look (job->a, at, stop, &job->run_a, fault);

  *end_out = at;
  if (status == RP_OK)
    status = rp_copy_look (job->b, at, stop, &job->run_b, fault);
  if (status != RP_OK || a->kind == RP_RUN_DATA || b->kind == RP_RUN_DATA)
    return status;
  *end_out = a->offset_bytes + a->length_bytes;
  if (*end_out > b->offset_bytes + b->length_bytes)
    *end_out = b->offset_bytes + b->length_bytes;
  if (*end_out > stop)
    *end_out = stop;
  return RP_OK;
}

static int
next_piece (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
            bool *more, struct rp_fault *fault)
{
  struct job *job = crew->job;

  while (from < crew->stop) {
    uint64_t stop, end;
    const uint64_t at = rp_span_seek (&job->cursor, from, &stop);
    int status = skip_zeros (job, at, stop, &end, fault);

    if (status != RP_OK)
      return status;
    if (end == at)
      break;
    from += end - at;
  }
  *more = from < crew->stop;
  if (!*more)
    return RP_OK;
  slot->start = from;
  slot->stop = crew->stop - from < RP_COPY_CHUNK_BYTES
               ? crew->stop : from + RP_COPY_CHUNK_BYTES;
  ((struct load *) slot->own)->cursor = job->cursor;
  return RP_OK;
}

/* ---- one piece ---- */

/* The disk from at to stop; what is no data is not read. */
static int
fill (struct rp_disk *disk, uint8_t *to, uint64_t at, uint64_t stop,
      struct rp_fault *fault)
{
  while (at < stop) {
    struct rp_run run;
    int status = rp_disk_run (disk, at, stop - at, &run, fault);

    if (status == RP_OK && run.kind == RP_RUN_DATA)
      status = rp_disk_pread (disk, to, run.length_bytes, at, fault);
    else if (status == RP_OK)
      memset (to, 0, run.length_bytes);
    if (status != RP_OK)
      return status;
    to += run.length_bytes;
    at += run.length_bytes;
  }
  return RP_OK;
}

/* The units from at to stop that differ, at the end of a list. */
static int
note_units (const uint8_t *a, const uint8_t *b, uint64_t at, uint64_t stop,
            struct rp_spans *found, struct rp_fault *fault)
{
  int status = RP_OK;

  while (status == RP_OK && at < stop) {
    const uint64_t grid = (at / UNIT_BYTES + 1) * UNIT_BYTES;
    const uint64_t length = (grid < stop ? grid : stop) - at;

    if (memcmp (a, b, length) != 0)
      status = rp_spans_add (found, at, at + length, fault);
    a += length;
    b += length;
    at += length;
  }
  return status;
}

static int
differ_piece (struct rp_crew *crew, struct rp_crew_slot *slot,
              struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct load *load = slot->own;
  uint64_t place = slot->start;
  int status = RP_OK;

  while (status == RP_OK && place < slot->stop) {
    uint64_t stop;
    const uint64_t at = rp_span_seek (&load->cursor, place, &stop);

    if (stop - at > slot->stop - place)
      stop = at + (slot->stop - place);
    status = fill (job->a, load->a, at, stop, fault);
    if (status == RP_OK)
      status = fill (job->b, load->b, at, stop, fault);
    if (status == RP_OK && memcmp (load->a, load->b, stop - at) != 0) {
      pthread_mutex_lock (&job->lock);
      status = note_units (load->a, load->b, at, stop, job->found, fault);
      pthread_mutex_unlock (&job->lock);
    }
    place += stop - at;
  }
  return status;
}

/* ---- all of it ---- */

static void
load_destroy (struct rp_crew *crew, void *own)
{
  struct load *load = own;

  (void) crew;
  if (load) {
    free (load->a);
    free (load->b);
  }
  free (load);
}

static int
load_create (struct rp_crew *crew, void **own_out, struct rp_fault *fault)
{
  struct load *load = calloc (1, sizeof *load);

  (void) crew;
  *own_out = load;
  if (load) {
    load->a = aligned_alloc (PAGE_BYTES, RP_COPY_CHUNK_BYTES);
    load->b = aligned_alloc (PAGE_BYTES, RP_COPY_CHUNK_BYTES);
  }
  if (!load || !load->a || !load->b)
    return rp_fail (fault, RP_NO_MEMORY, 0, "comparing two disks");
  return RP_OK;
}

static const struct rp_crew_functions differ_functions = {
  .next = next_piece,
  .work = differ_piece,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

int
rp_differ (struct rp_disk *a, struct rp_disk *b, const uint64_t *pairs,
           uint64_t count, const struct rp_copy_options *options,
           struct rp_spans *out, struct rp_fault *fault)
{
  const uint64_t size = a->size_bytes < b->size_bytes ? a->size_bytes
                                                      : b->size_bytes;
  struct job job = {
    .a = a, .b = b, .cursor = { .pairs = pairs, .count = count },
    .found = out,
  };
  struct rp_crew crew = {
    .functions = &differ_functions, .job = &job, .options = options,
    .stop = rp_span_total (pairs, count), .piece_bytes = RP_COPY_CHUNK_BYTES,
    .slot_bytes = 2 * RP_COPY_CHUNK_BYTES, .serial = a->serial || b->serial,
  };
  int status = rp_spans_check (pairs, count, size, fault);

  if (status != RP_OK)
    return status;
  RP_CHECK (pthread_mutex_init (&job.lock, NULL) == 0);
  status = rp_crew_run (&crew, fault);
  pthread_mutex_destroy (&job.lock);
  out->count = rp_spans_join (out->pairs, out->count);
  return status;
}

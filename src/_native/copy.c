/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a disk into a sink. */
#include "copy.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "copy_crew.h"

#define PAGE_BYTES      4096u
#define CHUNK_BYTES_MIN UINT64_C (65536)
#define CLONE_BYTES_MIN UINT64_C (65536)   /* less is copied faster */

/* All of one copy. */
struct job {
  struct rp_disk  *source;
  struct rp_sink  *sink;
  uint64_t         chunk_bytes;
  struct rp_run    run;          /* the last that next() found */
  _Atomic bool     clones;       /* the sink has not refused one yet */
  _Atomic uint64_t read_bytes, written_bytes;
};

/* What a worker has: a chunk and all that belongs to it. */
struct load {
  struct rp_chunk chunk;
  struct rp_run   first;         /* the run at the start of the piece */
};

/* ---- the cursor ---- */

/* Chunks lie on a grid.  A piece begins with data, and ends with its chunk. */
static int
next_chunk (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
            bool *more, struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct load *load = slot->own;
  struct rp_run *run = &job->run;
  uint64_t stop;
  int status;

  while (from < crew->stop) {
    if (from >= run->offset_bytes + run->length_bytes) {
      status = rp_disk_run (job->source, from, crew->stop - from, run, fault);
      if (status != RP_OK)
        return status;
    }
    if (run->kind == RP_RUN_DATA)
      break;
    from = run->offset_bytes + run->length_bytes;
  }
  *more = from < crew->stop;
  if (!*more)
    return RP_OK;
  stop = (from / job->chunk_bytes + 1) * job->chunk_bytes;
  slot->start = from;
  slot->stop = stop < crew->stop ? stop : crew->stop;
  load->first = *run;
  return RP_OK;
}

/* ---- a chunk ---- */

/* The run at a place of the piece, cut at its end. */
static int
look (const struct job *job, const struct load *load, uint64_t at,
      uint64_t stop, struct rp_run *out, struct rp_fault *fault)
{
  const uint64_t end = load->first.offset_bytes + load->first.length_bytes;

  if (at >= end)
    return rp_disk_run (job->source, at, stop - at, out, fault);
  *out = load->first;
  if (out->file)
    out->file_offset_bytes += at - out->offset_bytes;
  out->offset_bytes = at;
  out->length_bytes = (end < stop ? end : stop) - at;
  return RP_OK;
}

/* Let the sink share what lies in a file; RP_UNSUPPORTED: read it. */
static int
try_clone (struct job *job, const struct rp_run *run, struct rp_fault *fault)
{
  const uint64_t ends = run->offset_bytes | run->length_bytes;
  int status;

  /* whole units: what is left of one is written with zeros in the gap */
  if (!run->file || run->length_bytes < CLONE_BYTES_MIN
      || (ends | run->file_offset_bytes) % PAGE_BYTES
      || ends % job->sink->unit_bytes
      || !atomic_load_explicit (&job->clones, memory_order_relaxed))
    return RP_UNSUPPORTED;
  status = job->sink->functions->clone (job->sink, run->length_bytes,
                                        run->offset_bytes, run->file,
                                        run->file_offset_bytes, fault);
  if (status == RP_UNSUPPORTED)
    atomic_store (&job->clones, false);
  if (status == RP_OK)
    atomic_fetch_add_explicit (&job->written_bytes, run->length_bytes,
                               memory_order_relaxed);
  return status;
}

/* Read the piece into its chunk; units that data was read into are marked. */
static int
read_chunk (struct job *job, struct load *load,
            const struct rp_crew_slot *slot, struct rp_fault *fault)
{
  struct rp_chunk *chunk = &load->chunk;
  const uint64_t unit = job->sink->unit_bytes;
  const uint64_t from = slot->start / job->chunk_bytes * job->chunk_bytes;
  uint64_t read = 0;
  struct rp_run run;
  int status;

  chunk->offset_bytes = from;
  chunk->length_bytes = slot->stop - from;
  memset (chunk->data, 0, slot->start - from);
  memset (chunk->marked, 0, rp_divide_up (chunk->length_bytes, unit));
  for (uint64_t at = slot->start; at < slot->stop; at += run.length_bytes) {
    uint8_t *to = chunk->data + (at - from);

    status = look (job, load, at, slot->stop, &run, fault);
    if (status != RP_OK)
      return status;
    if (run.kind == RP_RUN_DATA) {
      status = try_clone (job, &run, fault);
      if (status != RP_OK && status != RP_UNSUPPORTED)
        return status;
    }
    if (run.kind != RP_RUN_DATA || status == RP_OK) {
      memset (to, 0, run.length_bytes);
      continue;
    }
    status = rp_disk_pread (job->source, to, run.length_bytes, at, fault);
    if (status != RP_OK)
      return status;
    read += run.length_bytes;
    for (uint64_t i = (at - from) / unit;
         i * unit < at - from + run.length_bytes; i++)
      chunk->marked[i] = 1;
  }
  atomic_fetch_add_explicit (&job->read_bytes, read, memory_order_relaxed);
  return RP_OK;
}

/* Take the mark from units of zeros; returns the bytes of the others. */
static uint64_t
unmark_zeros (const struct job *job, struct rp_chunk *chunk)
{
  const uint64_t unit = job->sink->unit_bytes;
  uint64_t bytes = 0;

  for (uint64_t at = 0; at < chunk->length_bytes; at += unit) {
    const uint64_t left = chunk->length_bytes - at;
    const uint64_t length = left < unit ? left : unit;
    uint8_t *mark = &chunk->marked[at / unit];

    if (*mark && rp_is_zero (chunk->data + at, length))
      *mark = 0;
    if (*mark)
      bytes += length;
  }
  return bytes;
}

static int
pass_on (struct job *job, struct rp_chunk *chunk, struct rp_crew_slot *slot,
         bool something, struct rp_fault *fault)
{
  struct rp_sink *sink = job->sink;
  const struct rp_sink_functions *functions = sink->functions;
  int status = RP_OK;

  if (something && functions->prepare)
    status = functions->prepare (sink, chunk, fault);
  if (status == RP_OK && functions->place) {
    if (!rp_crew_turn (slot))
      return rp_fail (fault, RP_CANCELLED, 0, "another worker failed");
    if (something)
      status = functions->place (sink, chunk, fault);
    if (status == RP_OK)
      rp_crew_turn_over (slot);
  }
  if (status == RP_OK && something)
    status = functions->write (sink, chunk, fault);
  return status;
}

static int
copy_chunk (struct rp_crew *crew, struct rp_crew_slot *slot,
            struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct load *load = slot->own;
  uint64_t bytes;
  int status;

  status = read_chunk (job, load, slot, fault);
  if (status != RP_OK)
    return status;
  bytes = unmark_zeros (job, &load->chunk);
  status = pass_on (job, &load->chunk, slot, bytes > 0, fault);
  if (status == RP_OK)
    atomic_fetch_add_explicit (&job->written_bytes, bytes,
                               memory_order_relaxed);
  return status;
}

static int
finish_sink (struct rp_crew *crew, struct rp_fault *fault)
{
  struct job *job = crew->job;

  return job->sink->functions->finish (job->sink, fault);
}

/* ---- what a worker has ---- */

static void
load_destroy (struct rp_crew *crew, void *own)
{
  struct rp_sink *sink = ((struct job *) crew->job)->sink;
  struct load *load = own;

  if (!load)
    return;
  if (load->chunk.scratch)
    sink->functions->scratch_destroy (sink, load->chunk.scratch);
  free (load->chunk.marked);
  free (load->chunk.data);
  free (load);
}

static int
load_create (struct rp_crew *crew, void **own_out, struct rp_fault *fault)
{
  const struct job *job = crew->job;
  struct load *load = calloc (1, sizeof *load);

  *own_out = load;
  if (load) {
    load->chunk.data = aligned_alloc (PAGE_BYTES, job->chunk_bytes);
    load->chunk.marked = malloc (job->chunk_bytes / job->sink->unit_bytes);
  }
  if (!load || !load->chunk.data || !load->chunk.marked)
    return rp_fail (fault, RP_NO_MEMORY, 0, "copying");
  if (!job->sink->functions->scratch_create)
    return RP_OK;
  return job->sink->functions->scratch_create (job->sink, &load->chunk.scratch,
                                               fault);
}

static const struct rp_crew_functions copy_functions = {
  .next = next_chunk,
  .work = copy_chunk,
  .finish = finish_sink,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

/* ---- all of it ---- */

static uint64_t
slot_bytes (const struct rp_sink *sink, uint64_t chunk_bytes)
{
  return chunk_bytes + chunk_bytes / sink->unit_bytes + sink->scratch_bytes;
}

/* As the sink wants it; else what gives every core a worker in the memory
 * that is allowed. */
static uint64_t
choose_chunk (const struct rp_sink *sink, const struct rp_copy_options *options)
{
  uint64_t bytes = RP_COPY_CHUNK_BYTES, least = CHUNK_BYTES_MIN;

  if (sink->chunk_bytes)
    return sink->chunk_bytes;
  if (least < sink->unit_bytes)
    least = sink->unit_bytes;
  if (bytes < least)
    bytes = least;
  while (bytes > least
         && slot_bytes (sink, bytes) * 4 > rp_crew_memory (options))
    bytes /= 2;
  return bytes;
}

static int
check_sink (const struct rp_disk *source, const struct rp_sink *sink,
            struct rp_fault *fault)
{
  if (source->size_bytes != sink->size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "copying a disk of %" PRIu64
                    " bytes into one of %" PRIu64, source->size_bytes,
                    sink->size_bytes);
  RP_CHECK (sink->unit_bytes >= RP_SECTOR_BYTES
            && rp_is_power_of_two (sink->unit_bytes)
            && sink->chunk_bytes % sink->unit_bytes == 0
            && sink->chunk_bytes % RP_SECTOR_BYTES == 0);
  return RP_OK;
}

int
rp_copy (struct rp_disk *source, struct rp_sink *sink,
         const struct rp_copy_options *options,
         struct rp_copy_counts *counts, struct rp_fault *fault)
{
  struct job job = { .source = source, .sink = sink };
  struct rp_crew crew = {
    .functions = &copy_functions, .job = &job, .options = options,
    .stop = source->size_bytes, .serial = source->serial || sink->serial,
    .ordered = sink->functions->place != NULL,
  };
  int status;

  *counts = (struct rp_copy_counts) { .read_bytes = 0 };
  atomic_init (&job.clones, sink->functions->clone != NULL);
  status = check_sink (source, sink, fault);
  if (status != RP_OK)
    return status;
  job.chunk_bytes = choose_chunk (sink, options);
  crew.piece_bytes = job.chunk_bytes;
  crew.slot_bytes = slot_bytes (sink, job.chunk_bytes);
  status = rp_crew_run (&crew, fault);
  counts->read_bytes = atomic_load (&job.read_bytes);
  counts->written_bytes = atomic_load (&job.written_bytes);
  return status;
}

void
rp_sink_destroy (struct rp_sink *sink)
{
  if (sink)
    sink->functions->destroy (sink);
}

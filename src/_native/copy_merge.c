/* SPDX-License-Identifier: Apache-2.0 */
/* Merging the top links of a chain into another disk. */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "chain.h"
#include "copy_crew.h"
#include "copy_parts.h"

#define PAGE_BYTES 4096u
/* A piece of zeros, which needs no memory, may be longer than one of data. */
#define ZERO_BYTES (UINT64_C (64) << 20)
/* Zeros inside of data are looked for in units of this size; only such long
 * ones are worth a hole in the target. */

struct job {
  struct rp_chain *chain;
  struct rp_disk  *target;
  uint32_t         links;
  struct rp_run    run;          /* of the cursor */
};

struct load {
  struct rp_run first;           /* the run at the start of the piece */
  uint8_t      *data;            /* RP_COPY_CHUNK_BYTES: the piece, where it
                                    is data */
};

/* The links hold it themselves: data, zeros, a hole of a flat link. */
static bool
is_held (const struct job *job, const struct rp_run *run)
{
  return run->kind == RP_RUN_DATA
         || (run->depth < job->links && !RP_SABOTAGED (10));
}

/* Runs of data of flat links begin and end where their files' data does. */
static int
look (struct job *job, uint64_t at, uint64_t stop, struct rp_run *run,
      struct rp_fault *fault)
{
  return rp_chain_look (job->chain, RP_SABOTAGED (9) ? 1 : 0, job->links,
                        RP_LOOK_HOLES, at, stop - at, run, fault);
}

static int
next_piece (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
            bool *more, struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct rp_run *run = &job->run;
  uint64_t grid, end;
  int status;

  while (from < crew->stop) {
    if (from >= run->offset_bytes + run->length_bytes) {
      status = look (job, from, crew->stop, run, fault);
      if (status != RP_OK)
        return status;
    }
    if (is_held (job, run))
      break;
    from = run->offset_bytes + run->length_bytes;
  }
  *more = from < crew->stop;
  if (!*more)
    return RP_OK;
  end = run->offset_bytes + run->length_bytes;
  grid = (from / RP_COPY_CHUNK_BYTES + 1) * RP_COPY_CHUNK_BYTES;
  if (run->kind != RP_RUN_DATA && end > grid)
    grid = end < from + ZERO_BYTES ? end : from + ZERO_BYTES;
  slot->start = from;
  slot->stop = grid < crew->stop ? grid : crew->stop;
  ((struct load *) slot->own)->first = *run;
  return RP_OK;
}

/* ---- one piece ---- */

/* Neighbours that are data are read one by one and written at once. */
static int
merge_piece (struct rp_crew *crew, struct rp_crew_slot *slot,
             struct rp_fault *fault)
{
  struct job *job = crew->job;
  const struct rp_copy_tally uncounted = { NULL, NULL };
  struct load *load = slot->own;
  uint64_t at = slot->start, from = at;   /* [from, at) was read */
  struct rp_run run = load->first;
  int status = RP_OK;

  run.length_bytes -= at - run.offset_bytes;
  run.file_offset_bytes += run.file ? at - run.offset_bytes : 0;
  run.offset_bytes = at;
  while (status == RP_OK && at < slot->stop) {
    if (run.length_bytes > slot->stop - at)
      run.length_bytes = slot->stop - at;
    if (run.kind == RP_RUN_DATA) {
      status = rp_run_read (job->chain, &run, load->data + (at - slot->start),
                            fault);
    } else {
      if (from < at)
        status = rp_copy_write (job->target,
                                load->data + (from - slot->start), from, at,
                                uncounted, fault);
      if (status == RP_OK && is_held (job, &run))
        status = rp_disk_zero (job->target, run.length_bytes, at, true, fault);
      from = at + run.length_bytes;
    }
    at += run.length_bytes;
    if (status == RP_OK && at < slot->stop)
      status = look (job, at, slot->stop, &run, fault);
  }
  if (status == RP_OK && from < at)
    status = rp_copy_write (job->target, load->data + (from - slot->start),
                            from, at, uncounted, fault);
  return status;
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
    return rp_fail (fault, RP_NO_MEMORY, 0, "merging");
  return RP_OK;
}

static const struct rp_crew_functions merge_functions = {
  .next = next_piece,
  .work = merge_piece,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

int
rp_merge (struct rp_disk *chain, uint32_t links, struct rp_disk *target,
          const struct rp_copy_options *options, struct rp_fault *fault)
{
  struct job job = {
    .chain = (struct rp_chain *) chain, .target = target, .links = links,
  };
  struct rp_crew crew = {
    .functions = &merge_functions, .job = &job, .options = options,
    .stop = chain->size_bytes, .piece_bytes = RP_COPY_CHUNK_BYTES,
    .slot_bytes = RP_COPY_CHUNK_BYTES,
    .serial = chain->serial || target->serial,
  };

  if (links == 0 || links > job.chain->link_count)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "merging %" PRIu32
                    " links of a chain of %" PRIu32, links,
                    job.chain->link_count);
  if (target->size_bytes != chain->size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "merging a disk of %" PRIu64
                    " bytes into one of %" PRIu64, chain->size_bytes,
                    target->size_bytes);
  rp_disk_stream (target);
  return rp_crew_run (&crew, fault);
}

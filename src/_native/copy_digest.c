/* SPDX-License-Identifier: Apache-2.0 */
/* What regions of a disk hash to. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bytes.h"
#include "copy_crew.h"

struct job {
  struct rp_disk   *disk;
  uint64_t          region_bytes, first;
  struct rp_region *out;
  atomic_bool       zeros_known;
  _Atomic uint64_t  zeros;       /* digest of a whole region of zeros */
};

struct load {
  uint8_t      *bytes;           /* RP_COPY_CHUNK_BYTES */
  uint8_t      *zeros;           /* as many */
  XXH3_state_t *state;
};

static int
next_region (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
             bool *more, struct rp_fault *fault)
{
  const struct job *job = crew->job;
  const uint64_t start = job->first * job->region_bytes;

  (void) fault;
  slot->start = from < start ? start : from;
  *more = slot->start < crew->stop;
  slot->stop = crew->stop - slot->start < job->region_bytes
               ? crew->stop : slot->start + job->region_bytes;
  return RP_OK;
}

static void
add_zeros (struct load *load, uint64_t length)
{
  while (length > 0) {
    const uint64_t part = length < RP_COPY_CHUNK_BYTES
                          ? length : RP_COPY_CHUNK_BYTES;

    XXH3_64bits_update (load->state, load->zeros, part);
    length -= part;
  }
}

static int
add_data (struct job *job, struct load *load, uint64_t offset,
          uint64_t length, struct rp_fault *fault)
{
  while (length > 0) {
    const uint64_t part = length < RP_COPY_CHUNK_BYTES
                          ? length : RP_COPY_CHUNK_BYTES;
    int status = rp_disk_pread (job->disk, load->bytes, part, offset, fault);

    if (status != RP_OK)
      return status;
    XXH3_64bits_update (load->state, load->bytes, part);
    offset += part;
    length -= part;
  }
  return RP_OK;
}

static int
digest (struct job *job, struct load *load, uint64_t start, uint64_t stop,
        uint64_t *out, struct rp_fault *fault)
{
  const bool regular = stop - start == job->region_bytes;
  uint64_t at = start;

  XXH3_64bits_reset (load->state);
  while (at < stop) {
    struct rp_run run;
    int status = rp_disk_run (job->disk, at, stop - at, &run, fault);

    if (status != RP_OK)
      return status;
    if (run.kind == RP_RUN_DATA)
      status = add_data (job, load, at, run.length_bytes, fault);
    else if (regular && run.length_bytes == stop - start
             && atomic_load (&job->zeros_known)) {
      *out = atomic_load (&job->zeros);
      return RP_OK;
    } else
      add_zeros (load, run.length_bytes);
    if (status != RP_OK)
      return status;
    at += run.length_bytes;
    if (regular && run.kind != RP_RUN_DATA
        && run.length_bytes == stop - start) {
      atomic_store (&job->zeros, XXH3_64bits_digest (load->state));
      atomic_store (&job->zeros_known, true);
    }
  }
  *out = XXH3_64bits_digest (load->state);
  return RP_OK;
}

static int
work (struct rp_crew *crew, struct rp_crew_slot *slot, struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct rp_region *region
    = &job->out[slot->start / job->region_bytes - job->first];

  region->status = digest (job, slot->own, slot->start, slot->stop,
                           &region->digest, fault);
  if (region->status != RP_IO && region->status != RP_CORRUPT)
    return region->status;
  memcpy (region->message, fault->message, sizeof region->message);
  return RP_OK;
}

static void
load_destroy (struct rp_crew *crew, void *own)
{
  struct load *load = own;

  (void) crew;
  if (!load)
    return;
  XXH3_freeState (load->state);
  free (load->zeros);
  free (load->bytes);
  free (load);
}

static int
load_create (struct rp_crew *crew, void **own_out, struct rp_fault *fault)
{
  struct load *load = calloc (1, sizeof *load);

  (void) crew;
  *own_out = load;
  if (load) {
    load->bytes = malloc (RP_COPY_CHUNK_BYTES);
    load->zeros = calloc (1, RP_COPY_CHUNK_BYTES);
    load->state = XXH3_createState ();
  }
  if (!load || !load->bytes || !load->zeros || !load->state)
    return rp_fail (fault, RP_NO_MEMORY, 0, "digests of a disk");
  return RP_OK;
}

static const struct rp_crew_functions digest_functions = {
  .next = next_region,
  .work = work,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

int
rp_digest_regions (struct rp_disk *disk, uint64_t region_bytes,
                   uint64_t first, uint64_t count,
                   const struct rp_copy_options *options,
                   struct rp_region *out, struct rp_fault *fault)
{
  const uint64_t regions = region_bytes > 0
                           ? rp_divide_up (disk->size_bytes, region_bytes) : 0;
  struct job job = {
    .disk = disk, .region_bytes = region_bytes, .first = first, .out = out,
  };
  struct rp_crew crew = {
    .functions = &digest_functions, .job = &job, .options = options,
    .piece_bytes = region_bytes, .slot_bytes = 2 * RP_COPY_CHUNK_BYTES,
    .serial = disk->serial,
  };

  if (!rp_inside (first, count, regions))
    return rp_fail (fault, RP_BAD_ARGUMENT, first, "regions %" PRIu64 " to %"
                    PRIu64 " of a disk that has %" PRIu64, first,
                    first + count, regions);
  if (count == 0)
    return RP_OK;
  crew.stop = first + count == regions ? disk->size_bytes
                                       : (first + count) * region_bytes;
  return rp_crew_run (&crew, fault);
}

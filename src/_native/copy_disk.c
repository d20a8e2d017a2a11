/* SPDX-License-Identifier: Apache-2.0 */
/* The sink that writes into a disk. */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "copy.h"

struct disk_sink {
  struct rp_sink  sink;          /* first */
  struct rp_disk *target;
};

static void
disk_destroy (struct rp_sink *sink)
{
  free (sink);
}

/* Units that follow one another in one call. */
static int
disk_write (struct rp_sink *sink, struct rp_chunk *chunk,
            struct rp_fault *fault)
{
  struct rp_disk *target = ((struct disk_sink *) sink)->target;
  const uint64_t unit = sink->unit_bytes;
  const uint64_t units = rp_divide_up (chunk->length_bytes, unit);
  uint64_t first = 0, stop;
  int status = RP_OK;

  for (; status == RP_OK && first < units; first = stop) {
    const uint64_t at = first * unit;
    uint64_t length;

    stop = first + 1;
    if (!chunk->marked[first])
      continue;
    while (stop < units && chunk->marked[stop])
      stop++;
    length = (stop < units ? stop * unit : chunk->length_bytes) - at;
    status = rp_disk_pwrite (target, chunk->data + at, length,
                             chunk->offset_bytes + at, fault);
  }
  return status;
}

static int
disk_clone (struct rp_sink *sink, uint64_t length, uint64_t offset,
            struct rp_file *from, uint64_t from_offset,
            struct rp_fault *fault)
{
  return rp_disk_clone (((struct disk_sink *) sink)->target, length, offset,
                        from, from_offset, fault);
}

static int
disk_finish (struct rp_sink *sink, struct rp_fault *fault)
{
  return rp_disk_flush (((struct disk_sink *) sink)->target, fault);
}

static const struct rp_sink_functions disk_functions = {
  .name = "disk",
  .destroy = disk_destroy,
  .write = disk_write,
  .clone = disk_clone,
  .finish = disk_finish,
};

int
rp_disk_sink_create (struct rp_disk *target, uint32_t unit_bytes,
                     struct rp_sink **out, struct rp_fault *fault)
{
  struct disk_sink *sink;

  *out = NULL;
  if (unit_bytes < RP_SECTOR_BYTES || !rp_is_power_of_two (unit_bytes))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "units of %" PRIu32 " bytes",
                    unit_bytes);
  if (target->read_only)
    return rp_fail (fault, RP_READ_ONLY, 0, "the target of a copy");
  sink = calloc (1, sizeof *sink);
  if (!sink)
    return rp_fail (fault, RP_NO_MEMORY, 0, "copying");
  sink->sink.functions = &disk_functions;
  sink->sink.size_bytes = target->size_bytes;
  sink->sink.unit_bytes = unit_bytes;
  sink->sink.serial = target->serial;
  sink->target = target;
  rp_disk_stream (target);
  *out = &sink->sink;
  return RP_OK;
}

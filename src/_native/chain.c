/* SPDX-License-Identifier: Apache-2.0 */
/* Chains: reading through links. */
#include "chain.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

/* The end of the data at a place of a flat file.  The kernel walks over all of
 * a file's extents to the next hole, which on a large file without holes costs
 * milliseconds each time: the last answer is kept. */
static int
find_data_end (struct rp_extent *extent, uint64_t at, uint64_t *out,
               struct rp_fault *fault)
{
  int status = RP_OK;

  pthread_mutex_lock (&extent->seeking);
  if (extent->stable && at >= extent->data_start && at < extent->data_stop) {
    *out = extent->data_stop;
  } else {
    status = rp_file_seek (extent->file, at, false, out, fault);
    if (status == RP_OK && *out > at) {
      extent->data_start = at;
      extent->data_stop = *out;
    }
  }
  pthread_mutex_unlock (&extent->seeking);
  return status;
}

/* Cut a run of flat data at what its file really holds. */
static int
look_at_file (struct rp_extent *extent, enum rp_chain_look how,
              struct rp_run *run, struct rp_fault *fault)
{
  const uint64_t at = run->file_offset_bytes;
  uint64_t found;
  int status;

  status = rp_file_seek (extent->file, at, true, &found, fault);
  if (status != RP_OK)
    return status;
  if (found > at) {
    run->kind = RP_RUN_HOLE;
    run->file = NULL;
    run->file_offset_bytes = 0;
  } else if (how == RP_LOOK_HOLES) {
    status = find_data_end (extent, at, &found, fault);
    if (status != RP_OK)
      return status;
  }
  /* behind the end of a file that is too short it stays data, so that
     whoever reads it is told */
  if (found > at && run->length_bytes > found - at)
    run->length_bytes = found - at;
  return RP_OK;
}

int
rp_chain_look (struct rp_chain *chain, uint32_t depth, uint32_t stop,
               enum rp_chain_look how, uint64_t offset, uint64_t length,
               struct rp_run *out, struct rp_fault *fault)
{
  struct rp_segment segment;
  int status;

  *out = (struct rp_run) {
    .offset_bytes = offset, .length_bytes = length, .kind = RP_RUN_HOLE,
    .depth = stop,
  };
  for (; depth < stop; depth++) {
    status = rp_image_map (chain->links[depth], offset, out->length_bytes,
                           &segment, fault);
    if (status != RP_OK)
      return status;
    out->length_bytes = segment.length_bytes;
    if (segment.kind == RP_SEGMENT_ABSENT)
      continue;
    out->depth = depth;
    out->kind = segment.kind == RP_SEGMENT_ZERO ? RP_RUN_ZERO : RP_RUN_DATA;
    if (out->kind == RP_RUN_DATA) {
      struct rp_extent *extent = rp_image_extent (chain->links[depth], offset);

      out->packed = segment.packed;
      out->file = segment.file;
      out->file_offset_bytes = segment.file_offset_bytes;
      if (how != RP_LOOK_TABLES && extent->kind == RP_EXTENT_FLAT)
        return look_at_file (extent, how, out, fault);
    }
    return RP_OK;
  }
  return RP_OK;
}

/* All of a run of data, as the chain shows it. */
int
rp_run_read (struct rp_chain *chain, const struct rp_run *run, void *buffer,
             struct rp_fault *fault)
{
  if (run->packed)
    return rp_image_read_packed (chain->links[run->depth], buffer,
                                 run->length_bytes, run->offset_bytes, fault);
  return rp_file_pread_all (run->file, buffer, run->length_bytes,
                            run->file_offset_bytes, fault);
}

int
rp_chain_read (struct rp_chain *chain, uint32_t depth, void *buffer,
               size_t length, uint64_t offset, struct rp_fault *fault)
{
  uint8_t *to = buffer;
  struct rp_run run;
  int status;

  while (length > 0) {
    status = rp_chain_look (chain, depth, chain->link_count, RP_LOOK_TABLES,
                            offset, length, &run, fault);
    if (status != RP_OK)
      return status;
    if (run.kind == RP_RUN_DATA) {
      status = rp_run_read (chain, &run, to, fault);
      if (status != RP_OK)
        return status;
    } else {
      memset (to, 0, run.length_bytes);
    }
    to += run.length_bytes;
    offset += run.length_bytes;
    length -= run.length_bytes;
  }
  return RP_OK;
}

static int
chain_pread (struct rp_disk *disk, void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  return rp_chain_read ((struct rp_chain *) disk, 0, buffer, length, offset,
                        fault);
}

static int
chain_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
           struct rp_run *out, struct rp_fault *fault)
{
  struct rp_chain *chain = (struct rp_chain *) disk;
  const int status = rp_chain_look (chain, 0, chain->link_count, RP_LOOK_HOLES,
                                    offset, length, out, fault);

  if (status == RP_OK && out->depth == chain->link_count)
    out->depth--;                /* absent in all: the base has the last word */
  return status;
}

static void
chain_stream (struct rp_disk *disk)
{
  struct rp_image *top = ((struct rp_chain *) disk)->links[0];

  for (uint32_t i = 0; i < top->extent_count; i++)
    if (top->extents[i].file)
      rp_file_stream (top->extents[i].file);
}

/* Touches no link: they may have been destroyed before. */
static void
chain_destroy (struct rp_disk *disk)
{
  struct rp_chain *chain = (struct rp_chain *) disk;

  pthread_mutex_destroy (&chain->flushing);
  pthread_rwlock_destroy (&chain->order);
  free (chain);
}

static const struct rp_disk_functions chain_functions = {
  .name = "chain",
  .destroy = chain_destroy,
  .pread = chain_pread,
  .pwrite = rp_chain_pwrite,
  .zero = rp_chain_zero,
  .flush = rp_chain_flush,
  .run = chain_run,
  .stream = chain_stream,
  .clone = rp_chain_clone,
};

static int
check_links (struct rp_image *const *links, uint32_t link_count,
             struct rp_fault *fault)
{
  if (link_count == 0 || link_count > RP_CHAIN_LINKS_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a chain of %" PRIu32 " links; at most %u", link_count,
                    RP_CHAIN_LINKS_MAX);
  for (uint32_t i = 1; i < link_count; i++) {
    if (links[i]->size_bytes != links[0]->size_bytes)
      return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                      "link %" PRIu32 " of the chain has %" PRIu64
                      " bytes, the top has %" PRIu64, i, links[i]->size_bytes,
                      links[0]->size_bytes);
    if (links[i]->writable)
      return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                      "link %" PRIu32 " of the chain is a parent and open for "
                      "writing", i);
  }
  return RP_OK;
}

int
rp_chain_create (struct rp_image *const *links, uint32_t link_count,
                 struct rp_disk **out, struct rp_fault *fault)
{
  struct rp_chain *chain;
  int status;

  *out = NULL;
  status = check_links (links, link_count, fault);
  if (status != RP_OK)
    return status;
  chain = calloc (1, sizeof *chain + link_count * sizeof *chain->links);
  if (!chain)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making a chain");
  chain->disk.functions = &chain_functions;
  chain->disk.size_bytes = links[0]->size_bytes;
  chain->disk.read_only = !links[0]->writable;
  chain->link_count = link_count;
  memcpy (chain->links, links, link_count * sizeof *links);
  for (uint32_t i = 0; i < links[0]->extent_count; i++) {
    const struct rp_file *file = links[0]->extents[i].file;

    if (file && file->io->functions->file_note)
      chain->serial = true;
  }
  for (uint32_t k = 0; k < link_count; k++)
    for (uint32_t i = 0; i < links[k]->extent_count; i++) {
      const struct rp_file *file = links[k]->extents[i].file;

      if (file && rp_file_is_watched (file))
        chain->disk.serial = true;
    }
  atomic_init (&chain->failed, false);
  atomic_init (&chain->tickets, 0);
  pthread_rwlock_init (&chain->order, NULL);
  pthread_mutex_init (&chain->flushing, NULL);
  *out = &chain->disk;
  return RP_OK;
}

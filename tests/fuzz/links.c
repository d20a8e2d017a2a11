/* SPDX-License-Identifier: Apache-2.0 */
/* The files of an input as a chain of images. */
#include <string.h>

#include "bytes.h"
#include "chain.h"
#include "fuzz.h"

static uint64_t
link_sectors (const struct fuzz_chain *chain, uint32_t link)
{
  uint64_t sum = 0;

  for (uint32_t i = chain->first[link]; i < chain->first[link + 1]; i++)
    if (!rp_add (sum, chain->extents[i].sectors, &sum))
      return UINT64_MAX;
  return sum;
}

/* All links of a chain have one size: cut the last extents of the others. */
static void
cut_links (struct fuzz_chain *chain)
{
  for (uint32_t link = 0; link < chain->link_count; link++) {
    uint64_t left = chain->sectors;

    for (uint32_t i = chain->first[link]; i < chain->first[link + 1]; i++) {
      struct rp_extent_spec *extent = &chain->extents[i];

      if (extent->sectors > left)
        extent->sectors = left;
      left -= extent->sectors;
    }
  }
}

bool
fuzz_chain_plan (const struct fuzz_input *input, struct fuzz_chain *out)
{
  memset (out, 0, sizeof *out);
  for (uint32_t i = 0; i < input->file_count; i++) {
    if (!fuzz_spec_of (&input->files[i], &out->extents[i]))
      return false;
    if (i == 0 || !(input->files[i].flags & FUZZ_SAME_LINK))
      out->first[out->link_count++] = i;
  }
  out->first[out->link_count] = input->file_count;
  out->sectors = UINT64_MAX;
  for (uint32_t link = 0; link < out->link_count; link++) {
    const uint64_t sectors = link_sectors (out, link);

    if (sectors < out->sectors)
      out->sectors = sectors;
  }
  cut_links (out);
  return true;
}

bool
fuzz_chain_open (struct fuzz_chain *chain, bool writable)
{
  struct rp_fault fault;

  for (uint32_t i = 0; i < chain->link_count; i++) {
    const uint32_t first = chain->first[i];

    if (rp_image_open (&chain->extents[first], chain->first[i + 1] - first,
                       writable && i == 0, &chain->images[i], &fault)
        != RP_OK) {
      fuzz_chain_close (chain);
      return false;
    }
  }
  FUZZ_CHECK (rp_chain_create (chain->images, chain->link_count, &chain->disk,
                               &fault) == RP_OK);
  FUZZ_CHECK (chain->disk->size_bytes == chain->sectors * RP_SECTOR_BYTES);
  return true;
}

void
fuzz_chain_close (struct fuzz_chain *chain)
{
  rp_disk_destroy (chain->disk);
  chain->disk = NULL;
  for (uint32_t i = 0; i < chain->link_count; i++) {
    rp_image_destroy (chain->images[i]);
    chain->images[i] = NULL;
  }
}

/* Compressed grains: ask the reader itself, for one sector. */
static enum fuzz_naive
ask_stream (struct rp_image *image, uint64_t sector, uint8_t *bytes)
{
  struct rp_segment segment;
  struct rp_fault fault;
  const uint64_t offset = sector * RP_SECTOR_BYTES;

  if (rp_image_map (image, offset, RP_SECTOR_BYTES, &segment, &fault)
      != RP_OK)
    return FUZZ_NAIVE_ERROR;
  if (segment.kind != RP_SEGMENT_DATA)
    return segment.kind == RP_SEGMENT_ZERO ? FUZZ_NAIVE_ZERO
                                           : FUZZ_NAIVE_ABSENT;
  return rp_image_read_packed (image, bytes, RP_SECTOR_BYTES, offset, &fault)
         == RP_OK ? FUZZ_NAIVE_DATA : FUZZ_NAIVE_ERROR;
}

static enum fuzz_naive
link_sector (struct fuzz_chain *chain, uint32_t link, uint64_t sector,
             uint8_t *bytes, bool *known)
{
  const struct rp_extent_spec *extent = &chain->extents[chain->first[link]];
  uint64_t within = sector;

  for (; within >= extent->sectors; extent++)
    within -= extent->sectors;
  switch (extent->kind) {
  case RP_EXTENT_ZERO:
    return FUZZ_NAIVE_ZERO;
  case RP_EXTENT_STREAM:
    return ask_stream (chain->images[link], sector, bytes);
  case RP_EXTENT_SESPARSE:
    *known = false;
    return fuzz_naive_sector (extent, within, bytes);
  default:
    return fuzz_naive_sector (extent, within, bytes);
  }
}

enum fuzz_naive
fuzz_chain_sector (struct fuzz_chain *chain, uint64_t sector, uint8_t *bytes,
                   bool *known)
{
  for (uint32_t link = 0; link < chain->link_count; link++) {
    const enum fuzz_naive kind = link_sector (chain, link, sector, bytes,
                                              known);

    if (kind != FUZZ_NAIVE_ABSENT)
      return kind;
  }
  return FUZZ_NAIVE_ZERO;
}

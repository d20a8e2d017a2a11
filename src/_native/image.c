/* SPDX-License-Identifier: Apache-2.0 */
/* Images: extents laid end to end. */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "chain.h"

#define EXTENTS_MAX 65536u
#define SECTORS_MAX ((uint64_t) INT64_MAX / RP_SECTOR_BYTES)

static int
check_spec (const struct rp_extent_spec *spec, uint32_t index,
            struct rp_fault *fault)
{
  const bool zero = spec->kind == RP_EXTENT_ZERO
                    || spec->kind == RP_EXTENT_NOACCESS;

  if (spec->kind < RP_EXTENT_FLAT || spec->kind > RP_EXTENT_NOACCESS)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "extent %" PRIu32
                    " has kind %d", index, (int) spec->kind);
  if (spec->sectors == 0 || spec->sectors > SECTORS_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "extent %" PRIu32 " has %"
                    PRIu64 " sectors", index, spec->sectors);
  if (zero != !spec->file)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "extent %" PRIu32 " %s a file",
                    index, zero ? "needs no" : "needs");
  if (spec->offset_sectors != 0 && spec->kind != RP_EXTENT_FLAT)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "extent %" PRIu32
                    " is not flat and starts at sector %" PRIu64, index,
                    spec->offset_sectors);
  if (!rp_inside (spec->offset_sectors, spec->sectors, SECTORS_MAX))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "extent %" PRIu32
                    " ends past the reach of a file offset", index);
  return RP_OK;
}

/* A flat file that ends early can be read up to there; a write would make it
 * longer and turn what is missing into zeros. */
static int
check_flat_size (const struct rp_extent *extent, struct rp_fault *fault)
{
  uint64_t file_bytes;
  const int status = rp_file_size (extent->file, &file_bytes, fault);

  if (status != RP_OK
      || rp_inside (extent->file_offset_bytes, extent->size_bytes, file_bytes))
    return status;
  return rp_fail (fault, RP_CORRUPT, file_bytes,
                  "%s ends at byte %" PRIu64 ", its data at byte %" PRIu64
                  "; it can be opened for reading only", extent->file->name,
                  file_bytes, extent->file_offset_bytes + extent->size_bytes);
}

static int
refuse_writing (const struct rp_extent_spec *spec, const char *what,
                struct rp_fault *fault)
{
  return rp_fail (fault, RP_READ_ONLY, 0, "%s is %s, which is written once",
                  spec->file->name, what);
}

static int
open_extent (const struct rp_extent_spec *spec, bool writable,
             struct rp_extent *extent, struct rp_fault *fault)
{
  extent->kind = spec->kind;
  extent->size_bytes = spec->sectors * RP_SECTOR_BYTES;
  extent->file = spec->file;
  extent->file_offset_bytes = spec->offset_sectors * RP_SECTOR_BYTES;
  atomic_init (&extent->data_dirty, writable);
  extent->stable = !writable;
  switch (spec->kind) {
  case RP_EXTENT_SPARSE:
  case RP_EXTENT_COWD:
    return rp_sparse_open (spec->file, spec->kind, spec->sectors, writable,
                           &extent->sparse, fault);
  case RP_EXTENT_FLAT:
    return writable ? check_flat_size (extent, fault) : RP_OK;
  case RP_EXTENT_STREAM:
    return writable ? refuse_writing (spec, "a compressed stream", fault)
                    : rp_stream_open (spec->file, spec->sectors,
                                      &extent->stream, fault);
  case RP_EXTENT_SESPARSE:
    return writable ? refuse_writing (spec, "seSparse", fault)
                    : rp_sesparse_open (spec->file, spec->sectors,
                                        &extent->sesparse, fault);
  case RP_EXTENT_ZERO:
  case RP_EXTENT_NOACCESS:
    break;
  }
  return RP_OK;
}

int
rp_image_open (const struct rp_extent_spec *extents, uint32_t extent_count,
               bool writable, struct rp_image **out, struct rp_fault *fault)
{
  struct rp_image *image;
  int status = RP_OK;

  *out = NULL;
  if (extent_count == 0 || extent_count > EXTENTS_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "an image of %" PRIu32
                    " extents", extent_count);
  image = calloc (1, sizeof *image + extent_count * sizeof *image->extents);
  if (!image)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening an image");
  image->writable = writable;
  for (uint32_t i = 0; status == RP_OK && i < extent_count; i++) {
    struct rp_extent *extent = &image->extents[i];

    image->extent_count = i + 1;
    pthread_mutex_init (&extent->seeking, NULL);
    extent->start_bytes = image->size_bytes;
    status = check_spec (&extents[i], i, fault);
    if (status == RP_OK)
      status = open_extent (&extents[i], writable, extent, fault);
    if (status == RP_OK
        && (!rp_add (image->size_bytes, extent->size_bytes, &image->size_bytes)
            || image->size_bytes > (uint64_t) INT64_MAX))
      status = rp_fail (fault, RP_BAD_ARGUMENT, 0,
                        "the extents are larger than 2^63 bytes together");
  }
  if (status != RP_OK) {
    rp_image_destroy (image);
    return status;
  }
  *out = image;
  return RP_OK;
}

/* Touches no file: they may have been closed before. */
void
rp_image_destroy (struct rp_image *image)
{
  if (!image)
    return;
  for (uint32_t i = 0; i < image->extent_count; i++) {
    rp_sparse_close (image->extents[i].sparse);
    rp_stream_close (image->extents[i].stream);
    rp_sesparse_close (image->extents[i].sesparse);
    pthread_mutex_destroy (&image->extents[i].seeking);
  }
  free (image);
}

uint64_t
rp_image_size_bytes (const struct rp_image *image)
{
  return image->size_bytes;
}

struct rp_extent *
rp_image_extent (struct rp_image *image, uint64_t offset)
{
  uint32_t first = 0, stop = image->extent_count;

  while (stop - first > 1) {
    const uint32_t middle = first + (stop - first) / 2;

    if (image->extents[middle].start_bytes <= offset)
      first = middle;
    else
      stop = middle;
  }
  return &image->extents[first];
}

int
rp_image_map (struct rp_image *image, uint64_t offset, uint64_t length,
              struct rp_segment *out, struct rp_fault *fault)
{
  struct rp_extent *extent = rp_image_extent (image, offset);
  const uint64_t within = offset - extent->start_bytes;

  if (length > extent->size_bytes - within)
    length = extent->size_bytes - within;
  if (extent->sparse)
    return rp_sparse_map (extent->sparse, within, length, out, fault);
  if (extent->stream)
    return rp_stream_map (extent->stream, within, length, out, fault);
  if (extent->sesparse)
    return rp_sesparse_map (extent->sesparse, within, length, out, fault);
  *out = (struct rp_segment) {
    .kind = extent->kind == RP_EXTENT_ZERO ? RP_SEGMENT_ZERO : RP_SEGMENT_DATA,
    .length_bytes = length,
    .packed = extent->kind == RP_EXTENT_NOACCESS,
    .file = extent->file,
    .file_offset_bytes = extent->file_offset_bytes + within,
  };
  return RP_OK;
}

int
rp_image_read_packed (struct rp_image *image, void *buffer, size_t length,
                      uint64_t offset, struct rp_fault *fault)
{
  struct rp_extent *extent = rp_image_extent (image, offset);

  if (extent->stream)
    return rp_stream_read (extent->stream, buffer, length,
                           offset - extent->start_bytes, fault);
  RP_CHECK (extent->kind == RP_EXTENT_NOACCESS);
  return rp_fail (fault, RP_UNSUPPORTED, offset, "bytes %" PRIu64 " to %"
                  PRIu64 " of the disk are marked NOACCESS by its descriptor",
                  extent->start_bytes,
                  extent->start_bytes + extent->size_bytes);
}

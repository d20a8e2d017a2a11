/* SPDX-License-Identifier: Apache-2.0 */
#include "slice.h"

#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"

#define SECTOR 512u

struct piece {
  struct rp_disk *disk;
  uint64_t        offset;        /* on its disk */
  uint64_t        start;         /* on the slice */
  uint64_t        length;
};

struct rp_slice {
  struct rp_disk   disk;         /* first */
  size_t           piece_count;
  struct piece    *pieces;       /* by start, without gaps */
  size_t           disk_count;
  struct rp_disk **disks;        /* each that it touches, once */
};

/* What of [offset, offset + length) lies in one piece. */
struct part {
  struct rp_disk *disk;
  uint64_t        offset;
  uint64_t        length;
};

static struct part
part_at (struct rp_disk *disk, uint64_t offset, uint64_t length)
{
  const struct rp_slice *slice = (const struct rp_slice *) disk;
  size_t first = 0, stop = slice->piece_count;
  const struct piece *piece;
  uint64_t inside;

  while (stop - first > 1) {     /* the last piece that starts at or before */
    const size_t middle = first + (stop - first) / 2;

    if (slice->pieces[middle].start <= offset)
      first = middle;
    else
      stop = middle;
  }
  piece = &slice->pieces[first];
  inside = offset - piece->start;
  RP_CHECK (inside < piece->length);
  return (struct part) {
    .disk = piece->disk,
    .offset = piece->offset + inside,
    .length = length < piece->length - inside ? length
                                              : piece->length - inside,
  };
}

static int
slice_pread (struct rp_disk *disk, void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  uint8_t *at = buffer;

  while (length > 0) {
    const struct part part = part_at (disk, offset, length);
    const int status = rp_disk_pread (part.disk, at, part.length, part.offset,
                                      fault);

    if (status != RP_OK)
      return status;
    at += part.length;
    offset += part.length;
    length -= part.length;
  }
  return RP_OK;
}

static int
slice_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
              uint64_t offset, struct rp_fault *fault)
{
  const uint8_t *at = buffer;

  while (length > 0) {
    const struct part part = part_at (disk, offset, length);
    const int status = rp_disk_pwrite (part.disk, at, part.length, part.offset,
                                       fault);

    if (status != RP_OK)
      return status;
    at += part.length;
    offset += part.length;
    length -= part.length;
  }
  return RP_OK;
}

static int
slice_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
            bool may_trim, struct rp_fault *fault)
{
  while (length > 0) {
    const struct part part = part_at (disk, offset, length);
    const int status = rp_disk_zero (part.disk, part.length, part.offset,
                                     may_trim, fault);

    if (status != RP_OK)
      return status;
    offset += part.length;
    length -= part.length;
  }
  return RP_OK;
}

/* All are flushed, also behind one that fails: the first failure is told. */
static int
slice_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  const struct rp_slice *slice = (const struct rp_slice *) disk;
  struct rp_fault other;
  int status = RP_OK;

  for (size_t i = 0; i < slice->disk_count; i++) {
    if (RP_SABOTAGED (44) && i > 0)    /* leaves the others' writes behind */
      break;
    const int done = rp_disk_flush (slice->disks[i],
                                    status == RP_OK ? fault : &other);

    if (status == RP_OK)
      status = done;
  }
  return status;
}

static int
slice_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
           struct rp_run *out, struct rp_fault *fault)
{
  const struct part part = part_at (disk, offset, length);
  const int status = rp_disk_run (part.disk, part.offset, part.length, out,
                                  fault);

  if (status == RP_OK)
    out->offset_bytes = offset;
  return status;
}

static void
slice_stream (struct rp_disk *disk)
{
  const struct rp_slice *slice = (const struct rp_slice *) disk;

  for (size_t i = 0; i < slice->disk_count; i++)
    rp_disk_stream (slice->disks[i]);
}

static void
slice_settle (struct rp_disk *disk)
{
  const struct rp_slice *slice = (const struct rp_slice *) disk;

  for (size_t i = 0; i < slice->disk_count; i++)
    rp_disk_settle (slice->disks[i]);
}

/* Does not touch the disks: they may have been destroyed before. */
static void
slice_destroy (struct rp_disk *disk)
{
  struct rp_slice *slice = (struct rp_slice *) disk;

  free (slice->pieces);
  free (slice->disks);
  free (slice);
}

static const struct rp_disk_functions slice_functions = {
  .name = "slice",
  .destroy = slice_destroy,
  .pread = slice_pread,
  .pwrite = slice_pwrite,
  .zero = slice_zero,
  .flush = slice_flush,
  .run = slice_run,
  .stream = slice_stream,
  .settle = slice_settle,
};

static int
check_piece (const struct rp_slice_piece *piece, size_t number,
             uint64_t size_bytes, struct rp_fault *fault)
{
  if (piece->length_bytes == 0 || piece->length_bytes % SECTOR
      || piece->offset_bytes % SECTOR)
    return rp_fail (fault, RP_BAD_ARGUMENT, piece->offset_bytes,
                    "piece %zu is %" PRIu64 " bytes at %" PRIu64
                    ", and not whole sectors", number, piece->length_bytes,
                    piece->offset_bytes);
  if (!rp_inside (piece->offset_bytes, piece->length_bytes,
                  piece->disk->size_bytes))
    return rp_fail (fault, RP_OUT_OF_RANGE, piece->offset_bytes,
                    "piece %zu is %" PRIu64 " bytes at %" PRIu64
                    " of a disk of %" PRIu64, number, piece->length_bytes,
                    piece->offset_bytes, piece->disk->size_bytes);
  if (piece->length_bytes > INT64_MAX - size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, piece->offset_bytes,
                    "%zu pieces are more than a disk can hold", number + 1);
  return RP_OK;
}

static void
add_disk (struct rp_slice *slice, struct rp_disk *disk)
{
  for (size_t i = 0; i < slice->disk_count; i++)
    if (slice->disks[i] == disk)
      return;
  slice->disks[slice->disk_count++] = disk;
  slice->disk.read_only = slice->disk.read_only || disk->read_only;
  slice->disk.fast_zero = slice->disk.fast_zero && disk->fast_zero;
  slice->disk.serial = slice->disk.serial || disk->serial;
}

int
rp_slice_create (const struct rp_slice_piece *pieces, size_t count,
                 struct rp_disk **out, struct rp_fault *fault)
{
  struct rp_slice *slice;
  int status = RP_OK;

  *out = NULL;
  if (count < 1 || count > RP_SLICE_PIECES_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "a disk of %zu pieces", count);
  slice = calloc (1, sizeof *slice);
  if (slice) {
    slice->pieces = calloc (count, sizeof *slice->pieces);
    slice->disks = calloc (count, sizeof (struct rp_disk *));
  }
  if (!slice || !slice->pieces || !slice->disks) {
    if (slice)
      slice_destroy (&slice->disk);
    return rp_fail (fault, RP_NO_MEMORY, 0, "a disk of %zu pieces", count);
  }
  slice->disk.functions = &slice_functions;
  slice->disk.fast_zero = true;
  for (size_t i = 0; i < count && status == RP_OK; i++) {
    status = check_piece (&pieces[i], i, slice->disk.size_bytes, fault);
    slice->pieces[i] = (struct piece) {
      .disk = pieces[i].disk,
      .offset = pieces[i].offset_bytes,
      .start = slice->disk.size_bytes,
      .length = pieces[i].length_bytes,
    };
    slice->disk.size_bytes += pieces[i].length_bytes;
    add_disk (slice, pieces[i].disk);
  }
  slice->piece_count = count;
  if (status != RP_OK) {
    slice_destroy (&slice->disk);
    return status;
  }
  *out = &slice->disk;
  return RP_OK;
}

/* stream_maker.h - compressed streams for tests, made by the product's sink
 * from a disk whose bytes follow from their place.
 */
#ifndef RP_TEST_STREAM_MAKER_H
#define RP_TEST_STREAM_MAKER_H

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "stream.h"

static inline uint64_t
stream_mix (uint64_t value)
{
  value = (value ^ (value >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  value = (value ^ (value >> 27)) * UINT64_C (0x94d049bb133111eb);
  return value ^ (value >> 31);
}

/* One sector of the disk: noise, words, nothing, a little, or both, by
 * stretches of `stretch` sectors. */
static inline void
stream_sector (uint8_t *out, uint64_t sector, uint64_t stretch)
{
  const uint64_t kind = sector / stretch % 5;

  memset (out, 0, RP_SECTOR_BYTES);
  if (kind == 0 || (kind == 4 && sector % 2))
    for (uint32_t i = 0; i < RP_SECTOR_BYTES; i += 8)
      rp_store64 (out + i, stream_mix (sector * 64 + i / 8 + 1));
  else if (kind == 1)
    for (uint32_t i = 0; i < RP_SECTOR_BYTES; i++)
      out[i] = (uint8_t) ("the quick brown fox "[(sector + i) % 20]);
  else if (kind == 3)
    out[sector % RP_SECTOR_BYTES] = 1;
}

static inline uint8_t *
stream_disk (uint64_t sectors, uint64_t stretch)
{
  uint8_t *disk = malloc (sectors * RP_SECTOR_BYTES);

  CHECK (disk);
  for (uint64_t i = 0; i < sectors; i++)
    stream_sector (disk + i * RP_SECTOR_BYTES, i, stretch);
  return disk;
}

/* Fill a chunk at an offset from the disk; false where all of it is zeros. */
static inline bool
stream_fill (const struct rp_sink *sink, const uint8_t *disk, uint64_t offset,
             struct rp_chunk *chunk)
{
  const uint64_t left = sink->size_bytes - offset;
  bool something = false;

  chunk->offset_bytes = offset;
  chunk->length_bytes = left < sink->chunk_bytes ? left : sink->chunk_bytes;
  memcpy (chunk->data, disk + offset, chunk->length_bytes);
  for (uint64_t at = 0; at < chunk->length_bytes; at += sink->unit_bytes) {
    uint8_t any = 0;

    for (uint64_t i = at; i < chunk->length_bytes && i < at + sink->unit_bytes;
         i++)
      any |= chunk->data[i];
    chunk->marked[at / sink->unit_bytes] = any != 0;
    something |= any != 0;
  }
  return something;
}

/* Copy the disk into the sink, `window` chunks at a time: all are prepared
 * backwards, placed forwards and written backwards.  Does not finish. */
static inline int
stream_pour (struct rp_sink *sink, const uint8_t *disk, uint32_t window,
             struct rp_fault *fault)
{
  struct rp_chunk *chunks = calloc (window, sizeof *chunks);
  uint64_t offset = 0;
  int status = RP_OK;

  CHECK (chunks);
  for (uint32_t i = 0; i < window; i++) {
    chunks[i].data = malloc (sink->chunk_bytes);
    chunks[i].marked = malloc (sink->chunk_bytes / sink->unit_bytes);
    CHECK (chunks[i].data && chunks[i].marked);
    CHECK (sink->functions->scratch_create (sink, &chunks[i].scratch, fault)
           == RP_OK);
  }
  while (status == RP_OK && offset < sink->size_bytes) {
    uint32_t count = 0;

    for (; count < window && offset < sink->size_bytes;
         offset += sink->chunk_bytes)
      count += stream_fill (sink, disk, offset, &chunks[count]);
    for (uint32_t i = count; status == RP_OK && i-- > 0;)
      status = sink->functions->prepare (sink, &chunks[i], fault);
    for (uint32_t i = 0; status == RP_OK && i < count; i++)
      status = sink->functions->place (sink, &chunks[i], fault);
    for (uint32_t i = count; status == RP_OK && i-- > 0;)
      status = sink->functions->write (sink, &chunks[i], fault);
  }
  for (uint32_t i = 0; i < window; i++) {
    sink->functions->scratch_destroy (sink, chunks[i].scratch);
    free (chunks[i].marked);
    free (chunks[i].data);
  }
  free (chunks);
  return status;
}

/* A whole stream of a disk, into an empty file. */
static inline int
stream_make (struct rp_file *file, const uint8_t *disk, uint64_t sectors,
             uint64_t grain, uint32_t level, uint32_t window,
             struct rp_fault *fault)
{
  static const char text[] = "# Disk DescriptorFile\nversion=1\n";
  const struct rp_stream_create how = {
    .capacity_sectors = sectors, .grain_sectors = grain, .descriptor = text,
    .descriptor_bytes = sizeof text - 1, .descriptor_sectors = 1,
    .level = level,
  };
  struct rp_sink *sink;
  int status = rp_stream_sink_create (file, &how, &sink, fault);

  if (status != RP_OK)
    return status;
  status = stream_pour (sink, disk, window, fault);
  if (status == RP_OK)
    status = sink->functions->finish (sink, fault);
  sink->functions->destroy (sink);
  return status;
}

/* Open a stream and read all that its map calls data, in one read a run. */
static inline int
stream_read_all (struct rp_file *file, uint64_t sectors, uint8_t *out,
                 struct rp_fault *fault)
{
  const uint64_t size = sectors * RP_SECTOR_BYTES;
  struct rp_stream *stream;
  struct rp_segment segment;
  int status = rp_stream_open (file, sectors, &stream, fault);

  if (status != RP_OK)
    return status;
  memset (out, 0, size);
  for (uint64_t at = 0; status == RP_OK && at < size;
       at += segment.length_bytes) {
    status = rp_stream_map (stream, at, size - at, &segment, fault);
    if (status == RP_OK && segment.kind == RP_SEGMENT_DATA)
      status = rp_stream_read (stream, out + at, segment.length_bytes, at,
                               fault);
  }
  rp_stream_close (stream);
  return status;
}

#endif /* RP_TEST_STREAM_MAKER_H */

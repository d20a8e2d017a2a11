/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a compressed extent: a sink.
 *
 *   header | descriptor | grains, table | ... | directory | footer | end
 *
 * A chunk is compressed into its scratch as it will lie in the file; its place
 * is then a matter of one addition and one write.  A table is written when the
 * first grain behind its range is placed, so only one is in memory.
 *
 * The header says that the directory is found through the footer, and the
 * footer is written after all else is durable: what a crash leaves before is
 * a stream that was cut short, which nobody takes for a whole one.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "io.h"
#include "stream_inside.h"

#define VERSION         3u
#define FLAGS           (RP_KDMV_NEWLINE_TEST | RP_KDMV_COMPRESSED            \
                         | RP_KDMV_MARKERS)
#define TABLE_ENTRIES   512u
#define TABLE_SECTORS   4u
#define GRAIN_MIN       8u       /* sectors */
#define LEVEL_MAX       12u
/* Or one grain.  Small: who has compressed one waits for all before it. */
#define CHUNK_BYTES     (UINT32_C (512) << 10)
#define HEAD_SECTORS    128u     /* the first grain stands on a multiple */
/* Behind the last grain, without the directory: a table with its marker, the
 * directory's marker, footer with marker, end. */
#define TAIL_SECTORS    (1 + TABLE_SECTORS + 1 + 2 + 1)
#define DESCRIPTOR_MAX  2048u    /* sectors: 1 MiB */

/* The inside of deflate; each is used by one thread at a time. */
struct press {
  struct libdeflate_compressor *compressor, *storer;
  struct press *next;
};

struct stream_sink {
  struct rp_sink  sink;          /* first */
  struct rp_file *file;          /* borrowed */
  struct rp_sparse_layout layout;
  uint32_t        level;
  uint64_t        record_bytes;  /* room for a grain as it lies in the file */
  pthread_mutex_t pooling;
  struct press   *idle;

  /* by whoever places */
  uint64_t        next_sector;
  uint64_t        next_offset;   /* behind the last chunk placed */
  uint32_t       *directory;     /* sectors of tables */
  uint32_t        number;        /* of the table in work */
  bool            used;          /* it has an entry */
  uint8_t         table[(1 + TABLE_SECTORS) * RP_SECTOR_BYTES];
};

struct scratch {
  uint8_t  *output;              /* grains with markers, each on a sector */
  uint32_t  sectors;             /* of it that are used */
  uint8_t  *padded;              /* the disk's last grain */
  uint32_t  starts[];            /* sector of each grain in output */
};

static uint64_t
grain_bytes (const struct stream_sink *stream)
{
  return stream->sink.unit_bytes;
}

/* ---- prepare: any thread ---- */

static void
free_press (struct press *press)
{
  if (!press)
    return;
  libdeflate_free_compressor (press->compressor);
  libdeflate_free_compressor (press->storer);
  free (press);
}

static struct press *
take_press (struct stream_sink *stream)
{
  struct press *press;

  pthread_mutex_lock (&stream->pooling);
  press = stream->idle;
  if (press)
    stream->idle = press->next;
  pthread_mutex_unlock (&stream->pooling);
  if (press)
    return press;
  press = calloc (1, sizeof *press);
  if (!press)
    return NULL;
  press->compressor = libdeflate_alloc_compressor ((int) stream->level);
  press->storer = libdeflate_alloc_compressor (0);
  if (press->compressor && press->storer)
    return press;
  free_press (press);
  return NULL;
}

static void
give_press (struct stream_sink *stream, struct press *press)
{
  pthread_mutex_lock (&stream->pooling);
  press->next = stream->idle;
  stream->idle = press;
  pthread_mutex_unlock (&stream->pooling);
}

/* A grain with its marker; returns its sectors. */
static uint32_t
pack (struct stream_sink *stream, struct press *press, const uint8_t *grain,
      uint64_t guest_sector, uint8_t *out)
{
  const size_t length = grain_bytes (stream);
  const bool noise = stream->level > 0 && rp_stream_is_noise (grain, length);
  size_t size, used, sectors;

  size = libdeflate_zlib_compress (noise ? press->storer : press->compressor,
                                   grain, length, out + RP_STREAM_MARKER_BYTES,
                                   stream->record_bytes
                                   - RP_STREAM_MARKER_BYTES);
  RP_CHECK (size > 0);           /* there is room for the worst */
  rp_store64 (out, guest_sector);
  rp_store32 (out + 8, (uint32_t) size);
  used = RP_STREAM_MARKER_BYTES + size;
  sectors = rp_divide_up (used, RP_SECTOR_BYTES);
  memset (out + used, 0, sectors * RP_SECTOR_BYTES - used);
  return (uint32_t) sectors;
}

static int
stream_prepare (struct rp_sink *sink, struct rp_chunk *chunk,
                struct rp_fault *fault)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  struct scratch *scratch = chunk->scratch;
  const uint64_t unit = sink->unit_bytes;
  struct press *press = take_press (stream);

  if (!press)
    return rp_fail (fault, RP_NO_MEMORY, chunk->offset_bytes,
                    "compressing for %s", stream->file->name);
  scratch->sectors = 0;
  for (uint64_t at = 0; at < chunk->length_bytes; at += unit) {
    const uint64_t left = chunk->length_bytes - at;
    const uint8_t *grain = chunk->data + at;

    if (!chunk->marked[at / unit])
      continue;
    if (left < unit) {           /* whole in the file, as VMware has it */
      memcpy (scratch->padded, grain, left);
      memset (scratch->padded + left, 0, unit - left);
      grain = scratch->padded;
    }
    scratch->starts[at / unit] = scratch->sectors;
    scratch->sectors += pack (stream, press, grain,
                              (chunk->offset_bytes + at) / RP_SECTOR_BYTES,
                              scratch->output + (size_t) scratch->sectors
                                                * RP_SECTOR_BYTES);
  }
  give_press (stream, press);
  return RP_OK;
}

static void
stream_scratch_destroy (struct rp_sink *sink, void *memory)
{
  struct scratch *scratch = memory;

  (void) sink;
  if (!scratch)
    return;
  free (scratch->output);
  free (scratch->padded);
  free (scratch);
}

static int
stream_scratch_create (struct rp_sink *sink, void **out,
                       struct rp_fault *fault)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  const size_t grains = sink->chunk_bytes / sink->unit_bytes;
  struct scratch *scratch = calloc (1, sizeof *scratch
                                    + grains * sizeof *scratch->starts);

  *out = NULL;
  if (scratch) {
    scratch->output = malloc (grains * stream->record_bytes);
    scratch->padded = malloc (sink->unit_bytes);
  }
  if (!scratch || !scratch->output || !scratch->padded) {
    stream_scratch_destroy (sink, scratch);
    return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", stream->file->name);
  }
  *out = scratch;
  return RP_OK;
}

/* ---- place: one at a time, in disk order ---- */

static void
fill_marker (uint8_t *marker, uint64_t value, enum rp_stream_marker type)
{
  memset (marker, 0, RP_SECTOR_BYTES);
  rp_store64 (marker, value);
  rp_store32 (marker + 12, type);
}

/* Put the table in work behind its grains. */
static int
end_table (struct stream_sink *stream, struct rp_fault *fault)
{
  const uint64_t sector = stream->next_sector;

  if (!stream->used)
    return RP_OK;
  fill_marker (stream->table, TABLE_SECTORS, RP_STREAM_TABLE);
  stream->directory[stream->number] = (uint32_t) sector + 1;
  stream->next_sector += 1 + TABLE_SECTORS;
  stream->used = false;
  return rp_file_pwrite (stream->file, stream->table, sizeof stream->table,
                         sector * RP_SECTOR_BYTES, fault);
}

static int
stream_place (struct rp_sink *sink, struct rp_chunk *chunk,
              struct rp_fault *fault)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  struct scratch *scratch = chunk->scratch;
  const uint64_t first = chunk->offset_bytes / sink->unit_bytes;
  const uint64_t count = rp_divide_up (chunk->length_bytes, sink->unit_bytes);
  const uint32_t number = (uint32_t) (first / TABLE_ENTRIES);
  uint64_t end;
  int status;

  RP_CHECK (chunk->offset_bytes >= stream->next_offset
            && chunk->offset_bytes % sink->chunk_bytes == 0
            && chunk->length_bytes <= sink->chunk_bytes);
  stream->next_offset = chunk->offset_bytes + chunk->length_bytes;
  if (scratch->sectors == 0)
    return RP_OK;
  end = stream->next_sector + (1 + TABLE_SECTORS) + scratch->sectors
        + TAIL_SECTORS + rp_sparse_directory_sectors (&stream->layout);
  if (end > RP_SPARSE_SECTORS_MAX)
    return rp_fail (fault, RP_FULL, chunk->offset_bytes,
                    "%s: the compressed data ends past the reach of 32-bit "
                    "sectors (2 TiB)", stream->file->name);
  if (number != stream->number) {
    status = end_table (stream, fault);
    if (status != RP_OK)
      return status;
    stream->number = number;
  }
  if (!stream->used)
    memset (stream->table, 0, sizeof stream->table);
  stream->used = true;
  for (uint64_t i = 0; i < count; i++)
    if (chunk->marked[i])
      rp_store32 (stream->table + RP_SECTOR_BYTES
                  + 4 * ((first + i) % TABLE_ENTRIES),
                  (uint32_t) stream->next_sector + scratch->starts[i]);
  chunk->place = stream->next_sector * RP_SECTOR_BYTES;
  stream->next_sector += scratch->sectors;
  return RP_OK;
}

/* ---- write: any thread ---- */

static int
stream_write (struct rp_sink *sink, struct rp_chunk *chunk,
              struct rp_fault *fault)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  struct scratch *scratch = chunk->scratch;

  if (scratch->sectors == 0)
    return RP_OK;
  return rp_file_pwrite (stream->file, scratch->output,
                         (size_t) scratch->sectors * RP_SECTOR_BYTES,
                         chunk->place, fault);
}

/* ---- the two ends ---- */

static void
fill_header (uint8_t *header, const struct rp_sparse_info *info,
             uint64_t directory_sector)
{
  static const uint8_t newline_test[4] = { 0x0a, 0x20, 0x0d, 0x0a };

  memset (header, 0, RP_SECTOR_BYTES);
  rp_store32 (header, RP_KDMV_MAGIC);
  rp_store32 (header + 4, info->version);
  rp_store32 (header + 8, info->flags);
  rp_store64 (header + 12, info->capacity_sectors);
  rp_store64 (header + 20, info->grain_sectors);
  rp_store64 (header + 28, info->descriptor_offset_sectors);
  rp_store64 (header + 36, info->descriptor_sectors);
  rp_store32 (header + 44, info->entries_per_table);
  rp_store64 (header + 56, directory_sector);
  rp_store64 (header + 64, info->overhead_sectors);
  memcpy (header + 73, newline_test, sizeof newline_test);
  rp_store16 (header + 77, info->compress_algorithm);
}

static int
write_directory (struct stream_sink *stream, uint64_t *sector_out,
                 struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &stream->layout;
  const uint64_t sectors = rp_sparse_directory_sectors (layout);
  uint8_t *bytes = calloc (1 + sectors, RP_SECTOR_BYTES);
  int status;

  if (!bytes)
    return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", stream->file->name);
  fill_marker (bytes, sectors, RP_STREAM_DIRECTORY);
  for (uint32_t i = 0; i < layout->directory_count; i++)
    rp_store32 (bytes + RP_SECTOR_BYTES + 4 * (size_t) i,
                stream->directory[i]);
  status = rp_file_pwrite (stream->file, bytes,
                           (1 + sectors) * RP_SECTOR_BYTES,
                           stream->next_sector * RP_SECTOR_BYTES, fault);
  *sector_out = stream->next_sector + 1;
  stream->next_sector += 1 + sectors;
  free (bytes);
  return status;
}

static int
stream_finish (struct rp_sink *sink, struct rp_fault *fault)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  uint8_t tail[3 * RP_SECTOR_BYTES];
  uint64_t directory_sector = 0, end;
  int status = end_table (stream, fault);

  if (status == RP_OK)
    status = write_directory (stream, &directory_sector, fault);
  if (status == RP_OK && !RP_SABOTAGED (23))   /* a footer before its data */
    status = rp_file_sync (stream->file, fault);
  if (status != RP_OK)
    return status;
  end = stream->next_sector * RP_SECTOR_BYTES;
  rp_file_note (stream->file, RP_NOTE_POINTS_TO, 0, end);
  fill_marker (tail, 1, RP_STREAM_FOOTER);
  fill_header (tail + RP_SECTOR_BYTES, &stream->layout.info, directory_sector);
  fill_marker (tail + 2 * RP_SECTOR_BYTES, 0, RP_STREAM_END);
  status = rp_file_pwrite (stream->file, tail, sizeof tail, end, fault);
  return status == RP_OK ? rp_file_sync (stream->file, fault) : status;
}

static int
write_head (struct stream_sink *stream, const struct rp_stream_create *how,
            struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &stream->layout.info;
  const size_t length = info->overhead_sectors * RP_SECTOR_BYTES;
  uint8_t *head = calloc (1, length);
  int status;

  if (!head)
    return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", stream->file->name);
  fill_header (head, info, RP_KDMV_AT_END);
  if (how->descriptor_bytes)
    memcpy (head + RP_SECTOR_BYTES, how->descriptor, how->descriptor_bytes);
  status = rp_file_pwrite (stream->file, head, length, 0, fault);
  free (head);
  return status;
}

/* ---- one of them ---- */

static void
stream_destroy (struct rp_sink *sink)
{
  struct stream_sink *stream = (struct stream_sink *) sink;
  struct press *press, *next;

  for (press = stream->idle; press; press = next) {
    next = press->next;
    free_press (press);
  }
  pthread_mutex_destroy (&stream->pooling);
  free (stream->directory);
  free (stream);
}

static const struct rp_sink_functions stream_functions = {
  .name = "stream",
  .destroy = stream_destroy,
  .scratch_create = stream_scratch_create,
  .scratch_destroy = stream_scratch_destroy,
  .prepare = stream_prepare,
  .place = stream_place,
  .write = stream_write,
  .finish = stream_finish,
};

static int
check_create (struct rp_file *file, const struct rp_stream_create *how,
              struct rp_fault *fault)
{
  uint64_t file_bytes;
  int status;

  if (how->capacity_sectors == 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: an empty disk",
                    file->name);
  if (!rp_is_power_of_two (how->grain_sectors)
      || how->grain_sectors < GRAIN_MIN
      || how->grain_sectors > RP_SPARSE_GRAIN_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: a grain of %" PRIu64 " sectors; it is a power of two "
                    "from %u to %u", file->name, how->grain_sectors, GRAIN_MIN,
                    RP_SPARSE_GRAIN_MAX);
  if (how->level > LEVEL_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: compression level %" PRIu32 "; at most %u",
                    file->name, how->level, LEVEL_MAX);
  if (how->descriptor_sectors == 0
      || how->descriptor_sectors > DESCRIPTOR_MAX
      || how->descriptor_bytes > how->descriptor_sectors * RP_SECTOR_BYTES)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "%s: a descriptor of %" PRIu64 " bytes in %" PRIu64
                    " sectors", file->name, how->descriptor_bytes,
                    how->descriptor_sectors);
  status = rp_file_size (file, &file_bytes, fault);
  if (status == RP_OK && file_bytes != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s is not empty", file->name);
  return status;
}

static int
plan (struct stream_sink *stream, const struct rp_stream_create *how,
      struct rp_fault *fault)
{
  struct rp_sparse_info *info = &stream->layout.info;

  info->version = VERSION;
  info->flags = FLAGS;
  info->capacity_sectors = how->capacity_sectors;
  info->grain_sectors = how->grain_sectors;
  info->descriptor_offset_sectors = 1;
  info->descriptor_sectors = how->descriptor_sectors;
  info->entries_per_table = TABLE_ENTRIES;
  info->overhead_sectors = rp_divide_up (1 + how->descriptor_sectors,
                                         HEAD_SECTORS) * HEAD_SECTORS;
  info->compress_algorithm = 1;
  if (rp_sparse_derive (stream->file, &stream->layout, fault) != RP_OK)
    return rp_fail (fault, RP_FULL, 0,
                    "%s: %" PRIu64 " sectors in grains of %" PRIu64
                    " are more than the format can hold", stream->file->name,
                    how->capacity_sectors, how->grain_sectors);
  return RP_OK;
}

static void
set_up (struct stream_sink *stream)
{
  const uint32_t unit = (uint32_t) (stream->layout.info.grain_sectors
                                    * RP_SECTOR_BYTES);
  const uint32_t chunk = unit < CHUNK_BYTES ? CHUNK_BYTES : unit;
  /* what it takes grows with the effort: measured of libdeflate 1.14 */
  const uint64_t press_bytes = stream->level < 10 ? UINT64_C (1) << 20
                                                  : UINT64_C (10) << 20;

  stream->record_bytes
    = rp_divide_up (RP_STREAM_MARKER_BYTES
                    + libdeflate_zlib_compress_bound (NULL, unit),
                    RP_SECTOR_BYTES) * RP_SECTOR_BYTES;
  stream->next_sector = stream->layout.info.overhead_sectors;
  stream->sink = (struct rp_sink) {
    .functions = &stream_functions,
    .size_bytes = stream->layout.info.capacity_sectors * RP_SECTOR_BYTES,
    .unit_bytes = unit,
    .chunk_bytes = chunk,
    .scratch_bytes = chunk / unit * stream->record_bytes + unit + press_bytes,
    .serial = rp_file_is_watched (stream->file),
  };
  pthread_mutex_init (&stream->pooling, NULL);
}

int
rp_stream_sink_create (struct rp_file *file,
                       const struct rp_stream_create *how,
                       struct rp_sink **out, struct rp_fault *fault)
{
  struct stream_sink *stream;
  int status;

  *out = NULL;
  status = check_create (file, how, fault);
  if (status != RP_OK)
    return status;
  stream = calloc (1, sizeof *stream);
  if (!stream)
    return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", file->name);
  stream->file = file;
  rp_file_stream (file);
  stream->level = how->level;
  status = plan (stream, how, fault);
  if (status == RP_OK) {
    stream->directory = calloc (stream->layout.directory_count,
                                sizeof *stream->directory);
    if (!stream->directory)
      status = rp_fail (fault, RP_NO_MEMORY, 0, "writing %s", file->name);
  }
  set_up (stream);
  if (status == RP_OK)
    status = write_head (stream, how, fault);
  if (status != RP_OK) {
    if (!RP_SABOTAGED (37))      /* forgets its memory */
      stream_destroy (&stream->sink);
    return status;
  }
  *out = &stream->sink;
  return RP_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Checking a compressed extent: tables against grains and the file.
 *
 * What something points at is kept as one bit a sector, in pieces that are
 * made when they are needed.  Space that nothing points to is no finding:
 * markers and what a writer skipped lie between the grains.
 */
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "image_report.h"
#include "stream_inside.h"

#define PIECE_BYTES   4096u
#define PIECE_SECTORS (PIECE_BYTES * 8u)

struct check {
  struct rp_stream *stream;
  struct rp_stream_worker *worker;
  uint64_t   start_bytes;
  bool       deep;
  uint64_t   sectors;            /* of the file that an entry can name */
  uint8_t  **used;
  uint32_t  *redundant;          /* directory */
  uint32_t  *table, *other;
  uint8_t   *grain;
  struct rp_reporter reporter;
};

/* Of one thing in the file, which no place on the disk belongs to. */
static void
report_file (struct check *check, const char *kind, uint64_t position,
             uint64_t length)
{
  rp_report (&check->reporter, kind, position, UINT64_MAX, length, NULL);
}

static int
no_memory (struct check *check, struct rp_fault *fault)
{
  return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s",
                  check->stream->file->name);
}

/* Of the disk: grains, cut at what the extent shows of it. */
struct range {
  uint64_t start, length;        /* start UINT64_MAX: none */
};

static const struct range nowhere = { .start = UINT64_MAX };

static struct range
grain_range (const struct check *check, uint64_t grain, uint64_t count)
{
  const struct rp_stream *stream = check->stream;
  const uint64_t start = grain << stream->layout.grain_shift;
  const uint64_t length = count << stream->layout.grain_shift;
  const uint64_t left = start < stream->size_bytes
                        ? stream->size_bytes - start : 0;

  return (struct range) {
    .start = check->start_bytes + start,
    .length = length < left ? length : left,
  };
}

static struct range
table_range (const struct check *check, uint64_t index)
{
  const uint32_t shift = check->stream->layout.table_shift;

  return grain_range (check, index << shift, UINT64_C (1) << shift);
}

static void
report_range (struct check *check, const char *kind, uint64_t position,
              struct range range, const char *detail)
{
  rp_report (&check->reporter, kind, position, range.start, range.length,
             detail);
}

/* Something lies at [sector, sector + sectors); reported where something else
 * does, too. */
static int
mark (struct check *check, uint64_t sector, uint64_t sectors,
      struct range range, struct rp_fault *fault)
{
  uint64_t stop = sector + sectors;
  bool fresh = true;

  if (stop > check->sectors)
    stop = check->sectors;
  for (uint64_t at = sector; at < stop; at++) {
    uint8_t **piece = &check->used[at / PIECE_SECTORS];
    const uint8_t bit = (uint8_t) (1u << (at % 8));

    if (!*piece)
      *piece = calloc (1, PIECE_BYTES);
    if (!*piece)
      return no_memory (check, fault);
    fresh &= !((*piece)[at % PIECE_SECTORS / 8] & bit);
    (*piece)[at % PIECE_SECTORS / 8] |= bit;
  }
  if (!fresh)
    report_range (check, "overlap", sector * RP_SECTOR_BYTES, range, NULL);
  return RP_OK;
}

/* ---- header, directories, tables ---- */

static int
check_head (struct check *check, struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &check->stream->layout.info;
  int status = mark (check, 0, 1, nowhere, fault);

  if (info->unclean_shutdown)
    report_file (check, "unclean", RP_KDMV_UNCLEAN_OFFSET, 1);
  if (status == RP_OK && info->descriptor_offset_sectors)
    status = mark (check, info->descriptor_offset_sectors,
                   info->descriptor_sectors, nowhere, fault);
  if (status == RP_OK)
    status = mark (check, info->directory_sector,
                   rp_sparse_directory_sectors (&check->stream->layout),
                   nowhere, fault);
  return status;
}

/* The place of a table; *readable false where there is none. */
static int
check_table_place (struct check *check, uint64_t index, uint32_t sector,
                   bool *readable, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->stream->layout;

  *readable = sector > 1 && rp_inside (sector, layout->table_sectors,
                                       check->stream->file_sectors);
  if (sector != 0 && !*readable)
    report_range (check, "table", (uint64_t) sector * RP_SECTOR_BYTES,
                  table_range (check, index), NULL);
  if (!*readable)
    return RP_OK;
  return mark (check, sector, layout->table_sectors,
               table_range (check, index), fault);
}

static int
compare_tables (struct check *check, uint32_t index, struct rp_fault *fault)
{
  struct rp_stream *stream = check->stream;
  const uint32_t redundant = check->redundant[index];
  int status;

  status = rp_stream_read_table (stream, stream->directory[index],
                                 check->table, fault);
  if (status == RP_OK)
    status = rp_stream_read_table (stream, redundant, check->other, fault);
  if (status == RP_OK
      && memcmp (check->table, check->other,
                 sizeof (uint32_t) << stream->layout.table_shift) != 0)
    report_range (check, "redundant", (uint64_t) redundant * RP_SECTOR_BYTES,
                  table_range (check, index), NULL);
  return status;
}

/* *out false where the redundant directory is no good at all. */
static int
load_redundant (struct check *check, bool *out, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->stream->layout;
  const uint64_t sector = layout->info.redundant_directory_sector;
  const size_t count = layout->directory_count;
  const uint64_t sectors = rp_sparse_directory_sectors (layout);
  int status;

  *out = layout->redundant;
  if (!layout->redundant)
    return RP_OK;
  if (!rp_inside (sector, sectors, check->stream->file_sectors)) {
    report_file (check, "redundant", RP_KDMV_REDUNDANT_OFFSET, 8);
    *out = false;
    return RP_OK;
  }
  check->redundant = malloc (count * sizeof *check->redundant);
  if (!check->redundant)
    return no_memory (check, fault);
  status = mark (check, sector, sectors, nowhere, fault);
  if (status == RP_OK)
    status = rp_file_pread_all (check->stream->file, check->redundant,
                                count * sizeof *check->redundant,
                                sector * RP_SECTOR_BYTES, fault);
  if (status == RP_OK)
    for (size_t i = 0; i < count; i++)
      check->redundant[i] = le32toh (check->redundant[i]);
  return status;
}

static int
check_tables (struct check *check, struct rp_fault *fault)
{
  struct rp_stream *stream = check->stream;
  bool twice, primary, redundant;
  int status = load_redundant (check, &twice, fault);

  for (uint32_t i = 0; status == RP_OK && i < stream->layout.directory_count;
       i++) {
    status = check_table_place (check, i, stream->directory[i], &primary,
                                fault);
    if (!twice || status != RP_OK)
      continue;
    status = check_table_place (check, i, check->redundant[i], &redundant,
                                fault);
    if (status == RP_OK && primary && redundant)
      status = compare_tables (check, i, fault);
    else if (status == RP_OK
             && !stream->directory[i] != !check->redundant[i])
      report_range (check, "redundant",
                    stream->layout.info.redundant_directory_sector
                    * RP_SECTOR_BYTES + 4 * (uint64_t) i,
                    table_range (check, i), NULL);
  }
  return status;
}

/* ---- grains ---- */

/* Read it as far as is wanted; RP_CORRUPT is for what is wrong with it. */
static int
read_grain (struct check *check, uint64_t grain, uint32_t entry,
            struct rp_stream_record *record, struct rp_fault *fault)
{
  int status;

  if (!check->deep)
    return rp_stream_read_marker (check->stream, grain, entry, record, fault);
  status = rp_stream_load_record (check->stream, check->worker, grain,
                                  grain + 1, entry, record, fault);
  if (status == RP_OK)
    status = rp_stream_inflate (check->stream, check->worker, grain, record,
                                check->grain, fault);
  return status;
}

static int
check_entry (struct check *check, uint64_t grain, uint32_t entry,
             struct rp_fault *fault)
{
  struct rp_stream *stream = check->stream;
  const struct range range = grain_range (check, grain, 1);
  struct rp_stream_record record;
  enum rp_segment_kind kind;
  uint64_t bytes;
  int status = rp_stream_classify (stream, grain, entry, &kind, fault);

  if (status != RP_OK) {
    report_range (check, "outside", (uint64_t) entry * RP_SECTOR_BYTES, range,
                  fault->message);
    return RP_OK;
  }
  if (kind != RP_SEGMENT_DATA)
    return RP_OK;
  status = read_grain (check, grain, entry, &record, fault);
  if (status == RP_CORRUPT) {
    report_range (check, "grain", (uint64_t) entry * RP_SECTOR_BYTES, range,
                  fault->message);
    return RP_OK;
  }
  if (status != RP_OK)
    return status;
  bytes = stream->marker_bytes + (uint64_t) record.size;
  return mark (check, entry, rp_divide_up (bytes, RP_SECTOR_BYTES), range,
               fault);
}

static int
check_grains (struct check *check, struct rp_fault *fault)
{
  struct rp_stream *stream = check->stream;
  const struct rp_sparse_layout *layout = &stream->layout;
  const uint64_t grains = rp_divide_up (layout->info.capacity_sectors,
                                        layout->info.grain_sectors);
  const uint64_t span = UINT64_C (1) << layout->table_shift;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint64_t first = (uint64_t) i * span;
    const uint32_t sector = stream->directory[i];

    if (sector < 2
        || !rp_inside (sector, layout->table_sectors, stream->file_sectors))
      continue;                  /* absent, or reported */
    status = rp_stream_read_table (stream, sector, check->table, fault);
    for (uint64_t k = 0; status == RP_OK && k < span && first + k < grains;
         k++)
      status = check_entry (check, first + k, check->table[k], fault);
  }
  return status;
}

static int
run_check (struct check *check, struct rp_fault *fault)
{
  struct rp_stream *stream = check->stream;
  const size_t table_bytes = sizeof (uint32_t) << stream->layout.table_shift;
  int status = rp_stream_take_worker (stream, &check->worker, fault);

  if (status != RP_OK)
    return status;
  check->used = calloc (check->sectors / PIECE_SECTORS + 1,
                        sizeof *check->used);
  check->table = malloc (table_bytes);
  check->other = malloc (table_bytes);
  check->grain = malloc (rp_stream_grain_bytes (stream));
  if (!check->used || !check->table || !check->other || !check->grain)
    status = no_memory (check, fault);
  else
    status = check_head (check, fault);
  if (status == RP_OK)
    status = check_tables (check, fault);
  if (status == RP_OK)
    status = check_grains (check, fault);
  if (status == RP_OK)
    rp_report_flush (&check->reporter);
  rp_stream_give_worker (stream, check->worker);
  return status;
}

int
rp_stream_check (struct rp_stream *stream, uint32_t extent,
                 uint64_t start_bytes, bool deep,
                 rp_finding_each *each, void *context, struct rp_fault *fault)
{
  struct check check = {
    .stream = stream, .start_bytes = start_bytes, .deep = deep,
    .reporter = { .each = each, .context = context, .extent = extent },
    .sectors = stream->file_sectors < RP_SPARSE_SECTORS_MAX
               ? stream->file_sectors : RP_SPARSE_SECTORS_MAX,
  };
  const int status = run_check (&check, fault);

  if (check.used)
    for (uint64_t i = 0; i <= check.sectors / PIECE_SECTORS; i++)
      free (check.used[i]);
  free (check.used);
  free (check.redundant);
  free (check.table);
  free (check.other);
  free (check.grain);
  return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Reading everything that an input makes, with limits on how much. */
#include <string.h>

#include "bytes.h"
#include "extent.h"
#include "fuzz.h"

#define RUNS_MAX    192u
#define ERRORS_MAX  24u
#define PIECE_BYTES 5000u        /* no multiple of a sector, on purpose */
#define WHOLE_BYTES 20000u
#define WINDOWS     12u
#define WINDOW_SECTORS 20u
#define PACKED_SECTORS 3u        /* each of which inflates its grain anew */

/* Exactly so large that a byte too many is seen. */
static uint8_t *
exact (size_t length)
{
  uint8_t *bytes = malloc (length);

  FUZZ_CHECK (bytes != NULL);
  memset (bytes, 0x5a, length);
  return bytes;
}

static bool
all_zero (const uint8_t *bytes, size_t length)
{
  for (size_t i = 0; i < length; i++)
    if (bytes[i])
      return false;
  return true;
}

/* A range that lies inside a run reads as the run says. */
static void
check_against_run (struct rp_disk *disk, const struct rp_run *run,
                   uint64_t offset, size_t length)
{
  uint8_t *bytes = exact (length), *there;
  struct rp_fault fault;
  int status = rp_disk_pread (disk, bytes, length, offset, &fault), other;

  if (run->kind != RP_RUN_DATA) {
    FUZZ_CHECK (status == RP_OK && all_zero (bytes, length));
  } else if (!run->packed) {
    FUZZ_CHECK (run->file != NULL);
    there = exact (length);
    other = rp_file_pread_all (run->file, there, length,
                               run->file_offset_bytes
                               + (offset - run->offset_bytes), &fault);
    FUZZ_CHECK ((status == RP_OK) == (other == RP_OK));
    FUZZ_CHECK (status != RP_OK || memcmp (bytes, there, length) == 0);
    free (there);
  }
  free (bytes);
}

static void
check_run (struct rp_disk *disk, const struct rp_run *run, uint64_t offset,
           uint64_t limit)
{
  const uint64_t length = run->length_bytes;
  const size_t piece = length < PIECE_BYTES ? length : PIECE_BYTES;

  FUZZ_CHECK (run->offset_bytes == offset);
  FUZZ_CHECK (length >= 1 && length <= limit);
  FUZZ_CHECK (run->kind == RP_RUN_DATA || (!run->packed && !run->file));
  check_against_run (disk, run, offset, piece);
  if (length > piece)
    check_against_run (disk, run, offset + length - piece, piece);
}

/* One read gives what many small ones give, and fails where one of them does. */
static void
check_pieces (struct rp_disk *disk, uint64_t offset, size_t length,
              size_t piece)
{
  uint8_t *whole = exact (length), *part;
  struct rp_fault fault;
  const int status = rp_disk_pread (disk, whole, length, offset, &fault);
  bool failed = false;

  for (size_t at = 0, size; at < length; at += size) {
    size = length - at < piece ? length - at : piece;
    part = exact (size);
    if (rp_disk_pread (disk, part, size, offset + at, &fault) != RP_OK)
      failed = true;
    else if (status == RP_OK)
      FUZZ_CHECK (memcmp (part, whole + at, size) == 0);
    free (part);
  }
  FUZZ_CHECK (failed == (status != RP_OK));
  free (whole);
}

void
fuzz_walk (struct rp_disk *disk)
{
  const uint64_t size = disk->size_bytes;
  const size_t whole = size < WHOLE_BYTES ? size : WHOLE_BYTES;
  uint64_t at = 0, middle = size / 2;
  uint32_t errors = 0;
  struct rp_fault fault;
  struct rp_run run;

  for (uint32_t i = 0; at < size && i < RUNS_MAX; i++) {
    if (rp_disk_run (disk, at, size - at, &run, &fault) == RP_OK) {
      check_run (disk, &run, at, size - at);
      at += run.length_bytes;
    } else if (++errors == ERRORS_MAX) {
      break;
    } else {
      at += 4096 - at % 4096;
    }
  }
  if (middle > size - whole)
    middle = size - whole;
  check_pieces (disk, 0, whole, 3001);
  check_pieces (disk, middle, whole, 4999);
  check_pieces (disk, size - whole, whole, 7001);
  FUZZ_CHECK (rp_disk_pread (disk, &run, 1, size, &fault)
              == RP_OUT_OF_RANGE);
}

/* ---- an image of one extent ---- */

/* The reader may refuse what the naive one takes; never the other way round,
 * and what both read is equal. */
static void
check_window (struct rp_disk *disk, const struct rp_extent_spec *spec,
              uint64_t sector)
{
  const uint64_t left = spec->sectors - sector;
  const size_t most = spec->kind == RP_EXTENT_STREAM ? PACKED_SECTORS
                                                     : WINDOW_SECTORS;
  const size_t count = left < most ? left : most;
  const bool strict = spec->kind != RP_EXTENT_SESPARSE
                      && spec->kind != RP_EXTENT_STREAM;
  uint8_t *bytes = exact (count * RP_SECTOR_BYTES);
  uint8_t wanted[RP_SECTOR_BYTES];
  struct rp_fault fault;
  const int status = rp_disk_pread (disk, bytes, count * RP_SECTOR_BYTES,
                                    sector * RP_SECTOR_BYTES, &fault);
  bool failed = false;

  for (size_t i = 0; i < count; i++) {
    const enum fuzz_naive kind = fuzz_naive_sector (spec, sector + i, wanted);

    if (kind == FUZZ_NAIVE_ERROR)
      failed = true;
    else if (kind != FUZZ_NAIVE_DATA)
      memset (wanted, 0, sizeof wanted);
    if (status == RP_OK && kind != FUZZ_NAIVE_ERROR)
      FUZZ_CHECK (memcmp (bytes + i * RP_SECTOR_BYTES, wanted, sizeof wanted)
                  == 0);
  }
  FUZZ_CHECK (!failed || status != RP_OK);
  FUZZ_CHECK (!strict || failed || status == RP_OK);
  free (bytes);
}

static void
check_windows (struct rp_disk *disk, const struct rp_extent_spec *spec)
{
  const uint64_t sectors = spec->sectors;
  uint64_t step = sectors / (WINDOWS - 1);
  struct rp_fault fault;
  struct rp_run run;
  uint64_t at = 0;

  step = step < WINDOW_SECTORS ? WINDOW_SECTORS : step;
  for (uint64_t i = 0; i < WINDOWS && i * step < sectors; i++)
    check_window (disk, spec, i * step);
  check_window (disk, spec, sectors - 1);
  for (uint32_t i = 0; i < WINDOWS && at < disk->size_bytes; i++) {
    if (rp_disk_run (disk, at, disk->size_bytes - at, &run, &fault) != RP_OK)
      break;
    if (run.kind == RP_RUN_DATA)
      check_window (disk, spec, at / RP_SECTOR_BYTES);
    at += run.length_bytes;
  }
}

static void
note_finding (void *context, const struct rp_finding *finding)
{
  static const char *const kinds[] = {
    "leak", "overlap", "outside", "redundant", "unclean", "freesector",
    "table",
  };
  unsigned *found = context, bit = FUZZ_OTHER;

  for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strcmp (finding->kind, kinds[i]) == 0)
      bit = 1u << i;
  *found |= bit;
}

unsigned
fuzz_check_image (struct rp_image *image)
{
  struct rp_fault fault;
  unsigned found = 0;

  if (rp_image_check (image, note_finding, &found, &fault) != RP_OK)
    found |= FUZZ_NOT_CHECKED;
  return found;
}

void
fuzz_walk_image (const struct rp_extent_spec *spec)
{
  const struct rp_extent_place place = {
    .file = spec->file, .kind = spec->kind, .sectors = spec->sectors,
    .offset_sectors = spec->offset_sectors,
  };
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;
  unsigned found = 0;

  FUZZ_CHECK (rp_extent_check (&place, true, note_finding, &found, &fault)
              == RP_OK);
  if (rp_image_open (spec, 1, false, &image, &fault) != RP_OK)
    return;
  FUZZ_CHECK (rp_image_size_bytes (image) == spec->sectors * RP_SECTOR_BYTES);
  FUZZ_CHECK (rp_chain_create (&image, 1, &disk, &fault) == RP_OK);
  fuzz_walk (disk);
  check_windows (disk, spec);
  rp_disk_destroy (disk);
  (void) fuzz_check_image (image);
  rp_image_destroy (image);
}

void
fuzz_walk_kind (const uint8_t *data, size_t size, enum rp_extent_kind kind)
{
  struct fuzz_input input;
  struct rp_extent_spec spec;

  if (!fuzz_input_open (data, size, &input))
    return;
  if (fuzz_spec_of (&input.files[0], &spec) && spec.kind == kind)
    fuzz_walk_image (&spec);
  fuzz_input_close (&input);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Damaged hosted and ESX extents, repaired.
 *
 * Planning and carrying out never break, whatever the tables say.  A sector
 * that could be read reads as it did, but where it was read through a table
 * that others share, and where the redundant table knows of a grain and the
 * primary one is not trusted; a check afterwards finds what the plan foretold.
 * The first byte of the operations: bit 0, the primary tables are trusted; bit
 * 1, the repair is cut short and taken back.
 */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "extent.h"
#include "fuzz.h"
#include "simulate.h"

#define SECTORS_MAX 512u         /* that are watched */
#define DATA_MAX    (UINT64_C (4) << 20)
#define TABLES_MAX  64u
#define TAG         7u
#define BACKUP      "disk.repair"

struct sector {
  uint64_t        number;
  enum fuzz_naive kind;
  uint8_t         bytes[RP_SECTOR_BYTES];
};

struct stage {
  struct rp_io   *io;            /* simulated: it has directories */
  struct rp_io   *breaking;      /* around it */
  struct rp_dir  *dir;
  struct rp_file *file;
  uint32_t        count;
  struct sector  *sectors;
};

/* ---- the file on a simulated disk ---- */

static void
fill_file (struct rp_file *from, struct rp_file *to)
{
  uint8_t piece[4096];
  uint64_t size, at = 0;
  struct rp_fault fault;
  size_t done;

  FUZZ_CHECK (rp_file_size (from, &size, &fault) == RP_OK);
  FUZZ_CHECK (rp_file_truncate (to, size, &fault) == RP_OK);
  while (rp_file_seek (from, at, true, &at, &fault) == RP_OK && at < size) {
    FUZZ_CHECK (rp_file_pread (from, piece, sizeof piece, at, &done, &fault)
                == RP_OK);
    FUZZ_CHECK (rp_file_pwrite (to, piece, done, at, &fault) == RP_OK);
    at += done;
  }
}

static void
open_stage (struct stage *stage, struct rp_file *given, uint64_t failing_call)
{
  const struct rp_fault_plan plan = {
    .call = failing_call, .kinds = RP_FAULT_WRITE | RP_FAULT_SYNC
                                   | RP_FAULT_META,
    .os_errno = EIO, .sticky = true,
  };
  struct rp_fault fault;
  struct rp_file *file;
  struct rp_dir *dir;

  memset (stage, 0, sizeof *stage);
  stage->sectors = calloc (SECTORS_MAX, sizeof *stage->sectors);
  FUZZ_CHECK (stage->sectors != NULL);
  FUZZ_CHECK (rp_io_simulate_create (&stage->io, &fault) == RP_OK);
  FUZZ_CHECK (rp_dir_open (stage->io, "/", &dir, &fault) == RP_OK);
  FUZZ_CHECK (rp_file_open (dir, "disk", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                            &file, &fault) == RP_OK);
  fill_file (given, file);
  rp_file_close (file);
  rp_dir_close (dir);
  FUZZ_CHECK (rp_io_fault_create (stage->io, &plan, &stage->breaking, &fault)
              == RP_OK);
}

/* Through the io that breaks, or past it. */
static bool
open_disk (struct stage *stage, bool breaking)
{
  struct rp_fault fault;

  return rp_dir_open (breaking ? stage->breaking : stage->io, "/", &stage->dir,
                      &fault) == RP_OK
         && rp_file_open (stage->dir, "disk", RP_OPEN_WRITE, 0, &stage->file,
                          &fault) == RP_OK;
}

static void
close_disk (struct stage *stage)
{
  rp_file_close (stage->file);
  rp_dir_close (stage->dir);
  stage->file = NULL;
  stage->dir = NULL;
}

static void
close_stage (struct stage *stage)
{
  close_disk (stage);
  rp_io_destroy (stage->breaking);
  rp_io_destroy (stage->io);
  free (stage->sectors);
}

/* ---- what is read ---- */

/* A grain that is cut off by the end of the file cannot be read. */
static void
watch (struct stage *stage, struct rp_extent_spec spec, uint64_t number,
       uint64_t grain)
{
  struct sector *sector = &stage->sectors[stage->count];
  uint64_t last = number | (grain - 1);

  if (stage->count == SECTORS_MAX || number >= spec.sectors)
    return;
  last = last < spec.sectors ? last : spec.sectors - 1;
  stage->count++;
  sector->number = number;
  spec.file = stage->file;
  sector->kind = fuzz_naive_sector (&spec, last, sector->bytes);
  if (sector->kind != FUZZ_NAIVE_ERROR)
    sector->kind = fuzz_naive_sector (&spec, number, sector->bytes);
}

/* Some of each grain at the start, and of what lies far behind. */
static void
watch_all (struct stage *stage, const struct rp_extent_spec *spec,
           uint64_t grain)
{
  const uint64_t grains = rp_divide_up (spec->sectors, grain);
  const uint64_t near = grains < SECTORS_MAX / 2 ? grains : SECTORS_MAX / 2;
  const uint64_t step = grains / (SECTORS_MAX / 4) + 1;

  for (uint64_t i = 0; i < near; i++)
    watch (stage, *spec, i * grain + i % grain, grain);
  for (uint64_t i = near; i < grains; i += step)
    watch (stage, *spec, i * grain, grain);
}

static void
check_all (struct stage *stage, struct rp_extent_spec spec, bool absent)
{
  uint8_t bytes[RP_SECTOR_BYTES];

  spec.file = stage->file;
  for (uint32_t i = 0; i < stage->count; i++) {
    const struct sector *sector = &stage->sectors[i];
    enum fuzz_naive kind;

    if (sector->kind == FUZZ_NAIVE_ERROR
        || (sector->kind == FUZZ_NAIVE_ABSENT && !absent))
      continue;
    kind = fuzz_naive_sector (&spec, sector->number, bytes);
    FUZZ_CHECK (kind == sector->kind);
    FUZZ_CHECK (kind != FUZZ_NAIVE_DATA
                || memcmp (bytes, sector->bytes, sizeof bytes) == 0);
  }
}

/* ---- what the tables say ---- */

/* The primary directory has every table, so it says itself what is absent. */
static bool
has_all_tables (struct rp_file *file, const struct rp_sparse_info *info)
{
  const uint64_t span = info->grain_sectors * info->entries_per_table;
  const uint64_t count = rp_divide_up (info->capacity_sectors, span);
  struct rp_fault fault;
  uint8_t field[4];

  for (uint64_t i = 0; i < count; i++)
    if (i == TABLES_MAX
        || rp_file_pread_all (file, field, 4, info->directory_sector * 512
                              + 4 * i, &fault) != RP_OK
        || rp_load32 (field) == 0)
      return false;
  return true;
}

/* An entry of a table points into one of `used` places where tables are. */
static bool
points_into_tables (struct rp_file *file, const struct rp_sparse_info *info,
                    uint64_t table, const uint64_t *places, uint32_t used)
{
  const uint64_t sectors = info->entries_per_table / 128;
  struct rp_fault fault;
  uint8_t entries[4 * RP_COWD_TABLE_ENTRIES];
  size_t done;

  if (rp_file_pread (file, entries, 4 * (size_t) info->entries_per_table,
                     table * RP_SECTOR_BYTES, &done, &fault) != RP_OK)
    return true;
  for (size_t i = 0; i < done / 4; i++) {
    const uint64_t grain = rp_load32 (entries + 4 * i);

    for (uint32_t k = 0; grain && k < used; k++)
      if (grain < places[k] + sectors
          && places[k] < grain + info->grain_sectors)
        return true;
  }
  return false;
}

/* A table that lies over another, or over a grain, is read through both; and
 * one that lies among the grains may be taken for one, and given up. */
static bool
tables_are_shared (struct rp_file *file, const struct rp_sparse_info *info,
                   const struct rp_repair *repair)
{
  const uint64_t span = info->grain_sectors * info->entries_per_table;
  const uint64_t count = rp_divide_up (info->capacity_sectors, span);
  const uint64_t sectors = info->entries_per_table / 128;
  uint64_t places[2 * TABLES_MAX];
  uint32_t used = 0;

  if (count > TABLES_MAX)
    return true;
  for (uint32_t i = 0; i < 2 * count; i++) {
    const bool second = i >= count;
    uint8_t field[4];
    struct rp_fault fault;

    if (second && !(info->flags & 2))
      break;
    if (rp_file_pread_all (file, field, 4,
                           (second ? info->redundant_directory_sector
                                   : info->directory_sector) * 512
                           + 4 * (i % count), &fault) == RP_OK
        && rp_load32 (field) != 0)
      places[used++] = rp_load32 (field);
  }
  for (uint32_t i = 0; i < used; i++)
    for (uint32_t k = 0; k < i; k++)
      if (places[i] < places[k] + sectors && places[k] < places[i] + sectors)
        return true;
  for (uint32_t i = 0; i < used; i++)
    if (points_into_tables (file, info, places[i], places, used)
        || (info->flags & 2 && places[i] >= info->overhead_sectors))
      return true;
  for (uint64_t i = 0; i < rp_repair_finding_count (repair, false); i++)
    if (strcmp (rp_repair_finding (repair, false, i)->kind, "overlap") == 0)
      return true;
  return false;
}

struct expected {
  const struct rp_repair *repair;
  uint64_t                count;
};

static void
expect (void *context, const struct rp_finding *finding)
{
  struct expected *expected = context;

  (void) finding;
  expected->count++;
}

/* ---- repairs ---- */

static struct rp_extent_place
place_of (const struct rp_extent_spec *spec, struct rp_file *file)
{
  return (struct rp_extent_place) {
    .file = file, .kind = spec->kind, .sectors = spec->sectors,
  };
}

static void
check_outcome (struct stage *stage, const struct rp_extent_spec *spec,
               const struct rp_repair *done, bool trust)
{
  const struct rp_extent_place place = place_of (spec, stage->file);
  struct expected expected = { .repair = done };
  struct rp_repair *again;
  struct rp_fault fault;
  struct rp_stat stat;

  FUZZ_CHECK (rp_extent_check (&place, false, expect, &expected, &fault)
              == RP_OK);
  FUZZ_CHECK (expected.count == rp_repair_finding_count (done, true));
  FUZZ_CHECK (rp_dir_stat (stage->dir, BACKUP, &stat, &fault) != RP_OK);
  if (rp_repair_create (&place, trust, &again, &fault) == RP_OK)
    rp_repair_destroy (again);
}

static void
repair (struct stage *stage, const struct rp_extent_spec *spec,
        const struct rp_sparse_info *info, bool trust, bool breaking)
{
  struct rp_extent_place place;
  struct rp_repair *repair;
  enum rp_recovery recovery;
  struct rp_fault fault;
  bool shared, absent;
  int status;

  if (!open_disk (stage, false))
    return;
  watch_all (stage, spec, info->grain_sectors);
  close_disk (stage);
  if (!open_disk (stage, breaking))
    return;
  place = place_of (spec, stage->file);
  if (rp_repair_create (&place, trust, &repair, &fault) != RP_OK)
    return;
  shared = tables_are_shared (stage->file, info, repair);
  absent = (trust || info->unclean_shutdown)
           && has_all_tables (stage->file, info);
  status = rp_repair_run (repair, stage->dir, BACKUP, stage->file, TAG, NULL,
                          &fault);
  FUZZ_CHECK (breaking || status == RP_OK);
  close_disk (stage);
  FUZZ_CHECK (open_disk (stage, false));
  FUZZ_CHECK (rp_repair_recover (stage->dir, BACKUP, stage->file, TAG, "stale",
                                 &recovery, &fault) == RP_OK);
  FUZZ_CHECK (recovery != RP_RECOVERY_STALE);
  if (!shared)
    check_all (stage, *spec, absent);
  if (status == RP_OK)
    check_outcome (stage, spec, repair, trust);
  rp_repair_destroy (repair);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct fuzz_input input;
  struct rp_extent_spec spec;
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct rp_fault fault;
  struct stage stage;
  uint8_t how[2] = { 0 };
  uint64_t bytes;

  if (!fuzz_input_open (data, size, &input))
    return 0;
  memcpy (how, input.operations ? input.operations : how,
          input.operations_bytes < 2 ? input.operations_bytes : 2);
  if (fuzz_spec_of (&input.files[0], &spec)
      && (spec.kind == RP_EXTENT_SPARSE || spec.kind == RP_EXTENT_COWD)
      && rp_sparse_read_header (spec.file, &kind, &info, &fault) == RP_OK
      && spec.sectors <= info.capacity_sectors
      && rp_file_size (spec.file, &bytes, &fault) == RP_OK
      && bytes <= DATA_MAX) {
    const bool breaking = how[0] & 2;

    open_stage (&stage, spec.file, breaking ? 1 + how[1] % 32 : 0);
    repair (&stage, &spec, &info, how[0] & 1, breaking);
    close_stage (&stage);
  }
  fuzz_input_close (&input);
  return 0;
}

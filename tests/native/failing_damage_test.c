/* SPDX-License-Identifier: Apache-2.0 */
/* Extents that are damaged, odd or made by others, while memory or storage
 * fails: each allocation and each call of the storage in turn, once and for
 * ever, while they are mended, a mending is taken back, they are opened,
 * written, checked and compared; and the disks that stand before others.
 *
 * Then, with memory and storage again: a mending can be asked for again and
 * leaves nothing to mend, all sectors that were written read as they did or
 * as they were to, and no block of memory is forgotten.
 *
 * Argument: only jobs whose name begins so.  The environment: see failing.h.
 */
#include "failing.h"
#include "failing_jobs.h"

#include <string.h>

#include "bytes.h"
#include "copy.h"
#include "extent.h"
#include "image.h"
#include "scratch.h"
#include "sesparse_maker.h"
#include "slice.h"
#include "stream_maker.h"
#include "swap.h"

#define STEP   9u
#define SECTOR RP_SECTOR_BYTES
#define WRITES 40u
#define APART  23u               /* grains from one written grain to the next */

struct scene {
  struct rp_io *sim, *io;
  bool done;                     /* the job says so */
};

struct shape {
  enum rp_extent_kind kind;
  uint32_t grain, sectors;       /* a grain's and the extent's sectors */
  bool     redundant;
};

struct job {
  const char *name;
  int  (*run) (struct scene *scene, struct rp_fault *fault);
  void (*set) (struct scene *scene);
  void (*check) (struct scene *scene);
  bool threads;                  /* calls have no order: memory alone fails */
};

/* ---- one extent and its disk ---- */

struct one {
  struct rp_dir   *dir;
  struct rp_file  *file;
  struct rp_image *image;
  struct rp_disk  *disk;
};

static void
close_one (struct one *one)
{
  rp_disk_destroy (one->disk);
  rp_image_destroy (one->image);
  rp_file_close (one->file);
  rp_dir_close (one->dir);
  memset (one, 0, sizeof *one);
}

static int
open_file (struct rp_io *io, const char *name, uint32_t flags, struct one *one,
           struct rp_fault *fault)
{
  int status;

  memset (one, 0, sizeof *one);
  status = rp_dir_open (io, "/", &one->dir, fault);
  return status == RP_OK
         ? rp_file_open (one->dir, name, flags, 0600, &one->file, fault)
         : status;
}

static int
open_one (struct rp_io *io, const char *name, const struct shape *shape,
          bool writable, struct one *one, struct rp_fault *fault)
{
  struct rp_extent_spec spec = {
    .kind = shape->kind, .sectors = shape->sectors,
  };
  int status = open_file (io, name, writable ? RP_OPEN_WRITE : RP_OPEN_READ,
                          one, fault);

  spec.file = one->file;
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, writable, &one->image, fault);
  return status == RP_OK ? rp_chain_create (&one->image, 1, &one->disk, fault)
                         : status;
}

static void
fill (uint8_t *sector, uint32_t number)
{
  for (uint32_t i = 0; i < SECTOR; i += 4)
    rp_store32 (sector + i, number * 977 + i + 1);
}

static int
create (struct rp_io *io, const char *name, const struct shape *shape,
        const char *text, struct rp_fault *fault)
{
  const struct rp_sparse_create how = {
    .kind = shape->kind, .capacity_sectors = shape->sectors,
    .grain_sectors = shape->grain, .redundant = shape->redundant,
    .descriptor = text, .descriptor_bytes = text ? strlen (text) : 0,
    .descriptor_sectors = text ? 4 : 0,
  };
  struct one one;
  int status = open_file (io, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                          | RP_OPEN_TRUNCATE, &one, fault);

  if (status == RP_OK)
    status = rp_sparse_create (one.file, &how, fault);
  if (status == RP_OK)
    status = rp_dir_sync (one.dir, fault);
  close_one (&one);
  return status;
}

static uint64_t
guest (const struct shape *shape, uint32_t i)
{
  return (uint64_t) i * APART * shape->grain * SECTOR;
}

/* Every APART-th grain gets one sector. */
static int
write_some (const struct shape *shape, struct rp_disk *disk,
            struct rp_fault *fault)
{
  uint8_t sector[SECTOR];
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < WRITES; i++) {
    fill (sector, i);
    status = rp_disk_pwrite (disk, sector, SECTOR, guest (shape, i), fault);
  }
  return status == RP_OK ? rp_chain_close_clean (disk, fault) : status;
}

static void
make (struct rp_io *io, const struct shape *shape)
{
  struct one one;
  struct rp_fault fault;

  OK (create (io, "odd", shape, NULL, &fault));
  OK (open_one (io, "odd", shape, true, &one, &fault));
  OK (write_some (shape, one.disk, &fault));
  close_one (&one);
}

static uint32_t
load (struct rp_file *file, uint64_t at)
{
  struct rp_fault fault;
  uint8_t field[4];

  OK (rp_file_pread_all (file, field, sizeof field, at, &fault));
  return rp_load32 (field);
}

static void
store (struct rp_file *file, uint64_t at, uint32_t value)
{
  struct rp_fault fault;
  uint8_t field[4];

  rp_store32 (field, value);
  OK (rp_file_pwrite (file, field, sizeof field, at, &fault));
}

static void
ignore_finding (void *context, const struct rp_finding *finding)
{
  (void) context;
  (void) finding;
}

static void
count_finding (void *context, const struct rp_finding *finding)
{
  (void) finding;
  ++*(uint64_t *) context;
}

/* All that was written reads so; but for `lost`, of which nothing is known. */
static void
check_written (struct scene *scene, const struct shape *shape, uint32_t lost)
{
  uint8_t found[SECTOR], wanted[SECTOR];
  struct one one;
  struct rp_fault fault;

  OK (open_one (scene->sim, "odd", shape, false, &one, &fault));
  for (uint32_t i = 0; i < WRITES; i++) {
    OK (rp_disk_pread (one.disk, found, SECTOR, guest (shape, i), &fault));
    fill (wanted, i);
    CHECK (i == lost || memcmp (found, wanted, SECTOR) == 0);
  }
  close_one (&one);
}

/* ---- mending ---- */

static const struct shape plain = {
  .kind = RP_EXTENT_SPARSE, .grain = 8, .sectors = 2 * 4096,
};
static const struct shape twice = {
  .kind = RP_EXTENT_SPARSE, .grain = 1, .sectors = 2 * 512, .redundant = true,
};
static const struct shape cowd = {
  .kind = RP_EXTENT_COWD, .grain = 1, .sectors = 2 * 4096,
};

static int
mend (struct rp_io *io, const struct shape *shape, bool *planned,
      struct rp_fault *fault)
{
  struct rp_extent_place place = {
    .kind = shape->kind, .sectors = shape->sectors,
  };
  struct rp_repair *repair = NULL;
  enum rp_recovery recovery;
  struct one one;
  int status = open_file (io, "odd", RP_OPEN_WRITE, &one, fault);

  place.file = one.file;
  if (status == RP_OK)
    status = rp_repair_recover (one.dir, "odd.repair", one.file, 7,
                                "odd.stale", &recovery, fault);
  if (status == RP_OK)
    status = rp_repair_create (&place, false, &repair, fault);
  if (status == RP_OK)
    *planned = rp_repair_finding_count (repair, true)
               < rp_repair_finding_count (repair, false);
  if (status == RP_OK)
    status = rp_repair_run (repair, one.dir, "odd.repair", one.file, 7, NULL,
                            fault);
  rp_repair_destroy (repair);
  close_one (&one);
  return status;
}

/* Asked for again, nothing is left to mend. */
static void
check_mended (struct scene *scene, const struct shape *shape, uint32_t lost)
{
  struct rp_extent_place place = {
    .kind = shape->kind, .sectors = shape->sectors,
  };
  struct one one;
  struct rp_fault fault;
  uint64_t findings = 0;
  bool planned = true;

  if (!scene->done)
    OK (mend (scene->sim, shape, &planned, &fault));
  OK (open_file (scene->sim, "odd", RP_OPEN_READ, &one, &fault));
  place.file = one.file;
  OK (rp_extent_check (&place, true, count_finding, &findings, &fault));
  CHECK (findings == 0);
  close_one (&one);
  check_written (scene, shape, lost);
}

static int
mend_job (struct scene *scene, const struct shape *shape,
          struct rp_fault *fault)
{
  bool planned = false;
  const int status = mend (scene->io, shape, &planned, fault);

  scene->done = status == RP_OK;
  CHECK (status != RP_OK || planned);
  return status;
}

/* Three grains share the last one. */
static void
set_shared (struct scene *scene)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  struct rp_fault fault;
  uint64_t table;
  uint32_t last;

  make (scene->sim, &plain);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_sparse_read_header (one.file, &kind, &info, &fault));
  table = (uint64_t) load (one.file, info.directory_sector * SECTOR + 4)
          * SECTOR;
  last = load (one.file, table + ((WRITES - 1) * APART - 512) * 4);
  CHECK (last > 0);
  for (uint32_t k = 1; k < 4; k++)
    store (one.file, table + ((WRITES - 1) * APART - 512 - k) * 4, last);
  close_one (&one);
}

static int
job_shared (struct scene *scene, struct rp_fault *fault)
{
  return mend_job (scene, &plain, fault);
}

static void
check_shared (struct scene *scene)
{
  check_mended (scene, &plain, UINT32_MAX);
}

/* A grain that nothing points to any more, and something behind the end. */
static void
set_leaks (struct scene *scene)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  struct rp_fault fault;
  uint64_t table, bytes;
  const uint8_t rest[5000] = { 1 };

  make (scene->sim, &plain);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_sparse_read_header (one.file, &kind, &info, &fault));
  table = (uint64_t) load (one.file, info.directory_sector * SECTOR) * SECTOR;
  store (one.file, table + 4 * 5 * APART, 0);
  OK (rp_file_size (one.file, &bytes, &fault));
  OK (rp_file_pwrite (one.file, rest, sizeof rest, bytes + 9000, &fault));
  close_one (&one);
}

static void
check_leaks (struct scene *scene)
{
  check_mended (scene, &plain, 5);
}

/* An entry of either directory is wrong. */
static void
set_twice (struct scene *scene)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  struct rp_fault fault;

  make (scene->sim, &twice);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_sparse_read_header (one.file, &kind, &info, &fault));
  store (one.file, info.directory_sector * SECTOR + 4, 0x00ffffff);
  store (one.file, info.redundant_directory_sector * SECTOR, 0);
  store (one.file, RP_KDMV_UNCLEAN_OFFSET, 0x0d200a01);
  close_one (&one);
}

static int
job_twice (struct scene *scene, struct rp_fault *fault)
{
  return mend_job (scene, &twice, fault);
}

static void
check_twice (struct scene *scene)
{
  check_mended (scene, &twice, UINT32_MAX);
}

static bool
has_backup (struct rp_io *io)
{
  struct rp_stat stat;
  struct rp_dir *dir;
  struct rp_fault fault;
  bool found;

  OK (rp_dir_open (io, "/", &dir, &fault));
  found = rp_dir_stat (dir, "odd.repair", &stat, &fault) == RP_OK;
  rp_dir_close (dir);
  return found;
}

/* From this call on nothing works; whether that was before the end. */
static bool
cut_off (struct scene *scene, uint64_t call)
{
  const struct rp_fault_plan plan = {
    .call = call, .kinds = RP_FAULT_WRITE | RP_FAULT_SYNC | RP_FAULT_META,
    .os_errno = EIO, .sticky = true,
  };
  struct rp_io *faulty;
  struct rp_fault fault;
  bool planned, cut;

  OK (rp_io_fault_create (scene->sim, &plan, &faulty, &fault));
  cut = mend (faulty, &twice, &planned, &fault) != RP_OK;
  rp_io_destroy (faulty);
  return cut;
}

/* The mending was cut short as late as it can be taken back: all is written,
 * but the backup is there. */
static void
set_cut (struct scene *scene)
{
  static uint64_t latest;
  uint64_t call = latest > 0 ? latest : 1;
  struct rp_fault fault;
  bool cut;

  for (;; call++) {
    set_twice (scene);
    cut = cut_off (scene, call);
    if (call == latest)
      break;
    if (cut && has_backup (scene->sim))
      latest = call;
    rp_io_destroy (scene->sim);
    OK (rp_io_simulate_create (&scene->sim, &fault));
    if (!cut) {
      CHECK (latest > 0);
      call = latest - 1;
    }
  }
  CHECK (has_backup (scene->sim));
}

static int
job_odd_header (struct scene *scene, struct rp_fault *fault)
{
  bool planned = false;
  const int status = mend (scene->io, &plain, &planned, fault);

  CHECK (!planned);
  return status;
}

/* What kind of file it is nobody can tell: nothing is planned. */
static void
set_odd_header (struct scene *scene)
{
  struct one one;
  struct rp_fault fault;

  make (scene->sim, &plain);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  store (one.file, 0, 0x12345678);
  close_one (&one);
}

static void
check_nothing (struct scene *scene)
{
  (void) scene;
}

/* ---- opening and writing what others have left ---- */

static int
look_through (struct one *one, struct rp_fault *fault)
{
  const uint64_t size = one->disk->size_bytes;
  struct rp_run run;
  int status = RP_OK;

  for (uint64_t at = 0; status == RP_OK && at < size; at += run.length_bytes)
    status = rp_disk_run (one->disk, at, size - at, &run, fault);
  return status == RP_OK
         ? rp_image_check (one->image, ignore_finding, NULL, fault) : status;
}

/* Over what is there, the same again. */
static int
write_again (struct scene *scene, const struct shape *shape,
             struct rp_fault *fault)
{
  struct one one;
  int status = open_one (scene->io, "odd", shape, true, &one, fault);

  if (status == RP_OK)
    status = write_some (shape, one.disk, fault);
  if (status == RP_OK)
    status = look_through (&one, fault);
  close_one (&one);
  return status;
}

/* ESX lets a COWD file grow ahead of its freeSector. */
static void
set_longer (struct scene *scene)
{
  struct one one;
  struct rp_fault fault;
  uint64_t bytes;

  make (scene->sim, &cowd);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_file_size (one.file, &bytes, &fault));
  OK (rp_file_truncate (one.file, bytes + (64 << 10), &fault));
  close_one (&one);
}

static int
job_longer (struct scene *scene, struct rp_fault *fault)
{
  return write_again (scene, &cowd, fault);
}

static void
check_longer (struct scene *scene)
{
  check_written (scene, &cowd, UINT32_MAX);
}

/* Left unclean: one redundant table is not there, and the other is old. */
static void
set_unclean (struct scene *scene)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  struct rp_fault fault;
  uint64_t at;

  make (scene->sim, &twice);
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_sparse_read_header (one.file, &kind, &info, &fault));
  at = info.redundant_directory_sector * SECTOR;
  store (one.file, (uint64_t) load (one.file, at) * SECTOR, 0);
  store (one.file, at + 4, 0);
  store (one.file, RP_KDMV_UNCLEAN_OFFSET, 0x0d200a01);
  close_one (&one);
}

static int
job_unclean (struct scene *scene, struct rp_fault *fault)
{
  return write_again (scene, &twice, fault);
}

static void
check_unclean (struct scene *scene)
{
  check_written (scene, &twice, UINT32_MAX);
}

/* No table is there yet, as others make extents; the directories are full
 * while they are written.  All sectors are written before, or none. */
static void
set_no_tables (struct scene *scene)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  struct rp_fault fault;

  OK (create (scene->sim, "odd", &twice, NULL, &fault));
  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE, &one, &fault));
  OK (rp_sparse_read_header (one.file, &kind, &info, &fault));
  for (uint32_t i = 0; i < 2; i++) {
    store (one.file, info.directory_sector * SECTOR + 4 * i, 0);
    store (one.file, info.redundant_directory_sector * SECTOR + 4 * i, 0);
  }
  close_one (&one);
}

static int
job_no_tables (struct scene *scene, struct rp_fault *fault)
{
  const int status = write_again (scene, &twice, fault);

  scene->done = status == RP_OK;
  return status;
}

static void
check_no_tables (struct scene *scene)
{
  struct one one;
  struct rp_fault fault;

  if (scene->done)
    check_written (scene, &twice, UINT32_MAX);
  OK (open_one (scene->sim, "odd", &twice, false, &one, &fault));
  close_one (&one);
}

/* One link, with a text inside: zeros over data and beside it, no parent. */
static int
job_alone (struct scene *scene, struct rp_fault *fault)
{
  uint8_t byte = 0;
  struct one one;
  int status = create (scene->io, "odd", &plain, "# Disk DescriptorFile\n",
                       fault);

  if (status != RP_OK)
    return status;
  status = open_one (scene->io, "odd", &plain, true, &one, fault);
  if (status == RP_OK)
    status = write_some (&plain, one.disk, fault);
  if (status == RP_OK)
    status = rp_disk_zero (one.disk, SECTOR, guest (&plain, 3), false, fault);
  if (status == RP_OK)
    status = rp_chain_close_clean (one.disk, fault);
  if (status == RP_OK)
    status = rp_disk_pread (one.disk, &byte, 1, guest (&plain, 3), fault);
  CHECK (status != RP_OK || byte == 0);
  scene->done = status == RP_OK;
  close_one (&one);
  return status;
}

static void
check_alone (struct scene *scene)
{
  if (scene->done)
    check_written (scene, &plain, 3);
}

static int
check_job (struct scene *scene, const struct shape *shape,
           struct rp_fault *fault)
{
  struct one one;
  int status = open_one (scene->io, "odd", shape, false, &one, fault);

  if (status == RP_OK)
    status = look_through (&one, fault);
  close_one (&one);
  return status;
}

static const struct shape five = {
  .kind = RP_EXTENT_SPARSE, .grain = 1, .sectors = 5 * 512, .redundant = true,
};

static int
job_header (struct scene *scene, struct rp_fault *fault)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct one one;
  int status = open_file (scene->io, "odd", RP_OPEN_READ, &one, fault);

  if (status == RP_OK)
    status = rp_sparse_read_header (one.file, &kind, &info, fault);
  CHECK (status != RP_OK || info.capacity_sectors == 5 * 512);
  close_one (&one);
  return status == RP_OK ? check_job (scene, &five, fault) : status;
}

/* Five tables, one behind the other. */
static void
set_header (struct scene *scene)
{
  make (scene->sim, &five);
}

/* ---- compressed extents and those of snapshots ---- */

#define STREAM_SECTORS   640u
#define REDUNDANT_OFFSET 48u     /* of the header's field */

/* A compressed extent that says it had a second directory. */
static void
set_stream (struct scene *scene)
{
  static const char text[] = "# Disk DescriptorFile\nversion=1\n";
  const struct rp_stream_create how = {
    .capacity_sectors = STREAM_SECTORS, .grain_sectors = 16,
    .descriptor = text, .descriptor_bytes = sizeof text - 1,
    .descriptor_sectors = 1, .level = 1,
  };
  uint8_t *disk = stream_disk (STREAM_SECTORS, 16);
  struct rp_sink *sink;
  struct one one;
  struct rp_fault fault;
  uint64_t bytes;

  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE | RP_OPEN_CREATE, &one,
                 &fault));
  OK (rp_stream_sink_create (one.file, &how, &sink, &fault));
  OK (stream_pour (sink, disk, 2, &fault));
  OK (sink->functions->finish (sink, &fault));
  sink->functions->destroy (sink);
  free (disk);
  OK (rp_file_size (one.file, &bytes, &fault));
  for (uint32_t i = 0; i < 2; i++) {
    const uint64_t at = i == 0 ? 0 : bytes - 2 * SECTOR;

    store (one.file, at + 8, load (one.file, at + 8) | RP_KDMV_REDUNDANT);
    store (one.file, at + REDUNDANT_OFFSET, 2);
    store (one.file, at + REDUNDANT_OFFSET + 4, 0);
  }
  close_one (&one);
}

static int
job_stream (struct scene *scene, struct rp_fault *fault)
{
  const struct shape shape = { RP_EXTENT_STREAM, 16, STREAM_SECTORS, false };

  return check_job (scene, &shape, fault);
}

#define FULL_SECTORS  16384u
#define FAILS_TO_GROW 4u

static bool
every_other (uint64_t grain)
{
  return grain % 2;
}

/* So many changes in one table that it is kept as it is. */
static void
set_full_table (struct scene *scene)
{
  struct one one;
  struct rp_fault fault;

  OK (open_file (scene->sim, "odd", RP_OPEN_WRITE | RP_OPEN_CREATE, &one,
                 &fault));
  OK (se_make (one.file, FULL_SECTORS, every_other, &fault));
  close_one (&one);
}

static int
job_full_table (struct scene *scene, struct rp_fault *fault)
{
  const struct shape shape = { RP_EXTENT_SESPARSE, 8, FULL_SECTORS, false };
  struct one one;
  uint8_t found[SE_GRAIN], wanted[SE_GRAIN];
  int status = open_one (scene->io, "odd", &shape, false, &one, fault);

  if (status == RP_OK)
    status = rp_disk_pread (one.disk, found, SE_GRAIN, 501 * SE_GRAIN, fault);
  se_fill (wanted, 501);
  CHECK (status != RP_OK || memcmp (found, wanted, SE_GRAIN) == 0);
  close_one (&one);
  return status;
}

/* The whole size is too much for the file system: the file ends sooner.  The
 * call's number counts opening and looking at it. */
static int
job_too_large (struct scene *scene, struct rp_fault *fault)
{
  const struct rp_fault_plan plan = {
    .call = FAILS_TO_GROW, .kinds = RP_FAULT_META, .os_errno = EFBIG,
  };
  struct rp_sink *sink = NULL;
  struct rp_io *faulty;
  struct one one;
  int status = rp_io_fault_create (scene->io, &plan, &faulty, fault);

  if (status != RP_OK)
    return status;
  status = open_file (faulty, "odd", RP_OPEN_WRITE | RP_OPEN_CREATE, &one,
                      fault);
  if (status == RP_OK)
    status = rp_sesparse_sink_create (one.file, FULL_SECTORS, &sink, fault);
  if (status == RP_OK)
    status = sink->functions->finish (sink, fault);
  CHECK (status != RP_OK || rp_io_fault_calls (faulty) > FAILS_TO_GROW);
  rp_sink_destroy (sink);
  close_one (&one);
  rp_io_destroy (faulty);
  return status;
}

/* ---- comparing ---- */

#define BIG (UINT64_C (3) << 20)

static const struct shape flat = {
  .kind = RP_EXTENT_FLAT, .sectors = BIG / SECTOR,
};

static void
make_flat (struct scene *scene, const char *name)
{
  struct one one;
  struct rp_fault fault;

  OK (open_file (scene->sim, name, RP_OPEN_WRITE | RP_OPEN_CREATE, &one,
                 &fault));
  OK (rp_file_truncate (one.file, BIG, &fault));
  for (uint64_t at = 0; at < BIG; at += BIG / 4)
    OK (rp_file_pwrite (one.file, "something", 9, at, &fault));
  close_one (&one);
}

static void
set_flat (struct scene *scene)
{
  make_flat (scene, "a");
  make_flat (scene, "b");
}

static int
compare (struct scene *scene, const char *other, uint32_t workers,
         struct rp_fault *fault)
{
  const struct rp_copy_options options = { .workers = workers };
  struct one a, b = { .dir = NULL };
  uint64_t differs = 0;
  int status = open_one (scene->io, "a", &flat, false, &a, fault);

  if (status == RP_OK)
    status = open_one (scene->io, other, &flat, false, &b, fault);
  if (status == RP_OK)
    status = rp_compare (a.disk, b.disk, BIG, &options, &differs, fault);
  CHECK (status != RP_OK || differs == BIG);
  close_one (&b);
  close_one (&a);
  return status;
}

static int
job_same (struct scene *scene, struct rp_fault *fault)
{
  return compare (scene, "a", 1, fault);
}

static int
job_crew (struct scene *scene, struct rp_fault *fault)
{
  return compare (scene, "b", 3, fault);
}

/* ---- files and disks that stand before others ---- */

static int
job_slice (struct scene *scene, struct rp_fault *fault)
{
  struct rp_file *slice = NULL;
  struct rp_stat stat;
  uint8_t bytes[9];
  uint64_t at;
  struct one one;
  int status = open_file (scene->io, "a", RP_OPEN_READ, &one, fault);

  if (status == RP_OK)
    status = rp_file_slice (one.file, "part", BIG / 4, BIG / 2, &slice, fault);
  if (status == RP_OK)
    status = rp_file_lock (slice, false, fault);
  if (status == RP_OK)
    status = rp_file_pread_all (slice, bytes, sizeof bytes, BIG / 4, fault);
  CHECK (status != RP_OK || memcmp (bytes, "something", 9) == 0);
  if (status == RP_OK)
    status = rp_file_seek (slice, 0, true, &at, fault);
  CHECK (status != RP_OK || at == 0);
  if (status == RP_OK)
    status = rp_file_stat (slice, &stat, fault);
  CHECK (status != RP_OK || stat.size_bytes == BIG / 2);
  rp_file_close (slice);
  close_one (&one);
  return status;
}

/* A disk that is thrown away, stretches of it, and what stands for them. */
static int
stack (struct scene *scene, struct one *one, struct one *scratch,
       struct rp_disk **disks, struct rp_fault *fault)
{
  struct rp_slice_piece pieces[2] = {
    { .offset_bytes = BIG / 2, .length_bytes = BIG / 2 },
    { .offset_bytes = 0, .length_bytes = BIG / 2 },
  };
  int status = open_one (scene->io, "a", &flat, false, one, fault);

  if (status == RP_OK)
    status = open_file (scene->io, "scratch", RP_OPEN_WRITE | RP_OPEN_CREATE,
                        scratch, fault);
  if (status == RP_OK)
    status = rp_scratch_create (one->disk, scratch->file, &disks[0], fault);
  pieces[0].disk = pieces[1].disk = disks[0];
  if (status == RP_OK)
    status = rp_slice_create (pieces, 2, &disks[1], fault);
  return status == RP_OK ? rp_swap_create (disks[1], &disks[2], fault)
                         : status;
}

static int
job_before (struct scene *scene, struct rp_fault *fault)
{
  struct rp_disk *disks[3] = { NULL };
  struct one one = { .dir = NULL }, scratch = { .dir = NULL };
  uint8_t bytes[3000], found[3000];
  int status = stack (scene, &one, &scratch, disks, fault);

  memset (bytes, 0x5a, sizeof bytes);
  if (status == RP_OK)
    status = rp_disk_pwrite (disks[2], bytes, sizeof bytes, BIG / 2 - 1500,
                             fault);
  if (status == RP_OK)
    status = rp_disk_zero (disks[2], 100, BIG / 2 - 50, true, fault);
  if (status == RP_OK)
    status = rp_disk_zero (disks[2], 20000, 20, true, fault);
  if (status == RP_OK)
    status = rp_disk_pread (disks[2], found, sizeof found, BIG / 2 - 1500,
                            fault);
  memset (bytes + 1450, 0, 100);
  CHECK (status != RP_OK || memcmp (bytes, found, sizeof found) == 0);
  if (status == RP_OK)
    status = rp_disk_pread (disks[2], found, 9, BIG / 4, fault);
  CHECK (status != RP_OK || memcmp (found, "something", 9) == 0);
  for (unsigned i = 3; i-- > 0;)
    rp_disk_destroy (disks[i]);
  close_one (&scratch);
  close_one (&one);
  return status;
}

/* What is in front of a disk changes nothing of it. */
static void
check_before (struct scene *scene)
{
  scene->io = scene->sim;
  CHECK (job_same (scene, &(struct rp_fault) { .message = "" }) == RP_OK);
  CHECK (compare (scene, "b", 1, &(struct rp_fault) { .message = "" })
         == RP_OK);
}

/* ---- trying all ---- */

static const struct job jobs[] = {
  { "shared grains", job_shared, set_shared, check_shared, false },
  { "leaks", job_shared, set_leaks, check_leaks, false },
  { "tables", job_twice, set_twice, check_twice, false },
  { "taking back", job_twice, set_cut, check_twice, false },
  { "odd header", job_odd_header, set_odd_header, check_nothing, false },
  { "longer", job_longer, set_longer, check_longer, false },
  { "unclean", job_unclean, set_unclean, check_unclean, false },
  { "no tables", job_no_tables, set_no_tables, check_no_tables, false },
  { "alone", job_alone, check_nothing, check_alone, false },
  { "looking along", job_header, set_header, check_nothing, false },
  { "compressed", job_stream, set_stream, check_nothing, false },
  { "full table", job_full_table, set_full_table, check_nothing, false },
  { "too large", job_too_large, check_nothing, check_nothing, false },
  { "same file", job_same, set_flat, check_before, false },
  { "crew", job_crew, set_flat, check_before, true },
  { "slice", job_slice, set_flat, check_before, false },
  { "before", job_before, set_flat, check_before, false },
};

static struct scene scene;

static const char *
job_name (const struct job *job)
{
  return job->name;
}

static struct rp_io *
job_set (const struct job *job)
{
  struct rp_fault fault;

  memset (&scene, 0, sizeof scene);
  OK (rp_io_simulate_create (&scene.sim, &fault));
  scene.io = scene.sim;
  job->set (&scene);
  OK (rp_sim_settle (scene.sim, &fault));
  return scene.sim;
}

static int
job_run (const struct job *job, struct rp_io *io, struct rp_fault *fault)
{
  scene.io = io;
  return job->run (&scene, fault);
}

static void
job_check (const struct job *job)
{
  job->check (&scene);
}

int
main (int argc, char **argv)
{
  const uint64_t step = failing_step (STEP);

  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
    if (argc < 2 || strncmp (jobs[i].name, argv[1], strlen (argv[1])) == 0)
      failing_try (&jobs[i], !jobs[i].threads, step);
  failing_summary ("failing_damage_test");
  return EXIT_SUCCESS;
}

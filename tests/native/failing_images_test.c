/* SPDX-License-Identifier: Apache-2.0 */
/* Images whose memory or storage fails: each allocation and each call of the
 * storage in turn, once and for ever, while extents of every kind are made,
 * written, copied, compared, merged, checked and mended.
 *
 * A job says what it has done only when it has.  Then, with memory and storage
 * again: each sector reads as one of its versions, none older than the last
 * one that was flushed; a copy that was said to be done equals its source; a
 * repair can be asked for again; and no block of memory is forgotten.
 *
 * Argument: only jobs whose name begins so.  The environment: see failing.h.
 */
#include "failing.h"
#include "failing_jobs.h"

#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "copy.h"
#include "extent.h"
#include "image.h"
#include "sesparse.h"
#include "stream.h"

#define STEP    11u
#define SECTOR  RP_SECTOR_BYTES
#define SECTORS 264u
#define SIZE    (SECTORS * SECTOR)
#define OPS     24u
#define SPAN    512u             /* sectors of a table with grains of one */

static char folder[64] = "/";    /* where the files are */

struct scene {
  struct rp_io *sim, *io;        /* io: what the job works on */
  uint32_t floor[SECTORS];       /* last flushed version of each */
  struct { uint32_t first, stop; bool zeros, tried; } ops[OPS + 1];
  bool     done;                 /* the job says so */
};

/* ---- bytes ---- */

static uint32_t
mix (uint32_t value)
{
  value = (value ^ value >> 16) * 0x7feb352d;
  value = (value ^ value >> 15) * 0x846ca68b;
  return value ^ value >> 16;
}

/* Version 0 is the parent, a third of which is zeros. */
static void
fill (uint8_t *sector, uint32_t number, uint32_t version)
{
  memset (sector, 0, SECTOR);
  if (version > 0 || number / 8 % 3 != 0)
    for (uint32_t i = 0; i < SECTOR; i += 8) {
      rp_store32 (sector + i, version + 1);
      rp_store32 (sector + i + 4, number);
    }
}

static bool
is_version (const struct scene *scene, uint32_t number, uint32_t version,
            const uint8_t *found)
{
  uint8_t wanted[SECTOR] = { 0 };

  if (version > 0 && (!scene->ops[version].tried
                      || number < scene->ops[version].first
                      || number >= scene->ops[version].stop))
    return false;
  if (version == 0 || !scene->ops[version].zeros)
    fill (wanted, number, version);
  return memcmp (wanted, found, SECTOR) == 0;
}

static void
check_versions (const struct scene *scene, const uint8_t *found)
{
  for (uint32_t i = 0; i < SECTORS; i++) {
    uint32_t version = scene->floor[i];

    while (version <= OPS
           && !is_version (scene, i, version, found + i * SECTOR))
      version++;
    CHECK (version <= OPS);
  }
}

/* ---- a chain ---- */

struct rig {
  struct rp_dir   *dir;
  struct rp_file  *files[2];     /* top, base */
  struct rp_image *links[2];
  struct rp_disk  *disk;
};

static int
open_link (struct rp_dir *dir, const char *name, enum rp_extent_kind kind,
           bool writable, struct rp_file **file, struct rp_image **image,
           struct rp_fault *fault)
{
  struct rp_extent_spec spec = { .kind = kind, .sectors = SECTORS };
  int status = rp_file_open (dir, name, writable ? RP_OPEN_WRITE
                                                 : RP_OPEN_READ, 0, file,
                             fault);

  spec.file = *file;
  return status == RP_OK ? rp_image_open (&spec, 1, writable, image, fault)
                         : status;
}

static void
close_rig (struct rig *rig)
{
  rp_disk_destroy (rig->disk);
  for (int i = 0; i < 2; i++) {
    rp_image_destroy (rig->links[i]);
    rp_file_close (rig->files[i]);
  }
  rp_dir_close (rig->dir);
  memset (rig, 0, sizeof *rig);
}

/* kind 0: the base alone. */
static int
open_rig (struct rp_io *io, enum rp_extent_kind kind, bool writable,
          struct rig *rig, struct rp_fault *fault)
{
  int status;

  memset (rig, 0, sizeof *rig);
  status = rp_dir_open (io, folder, &rig->dir, fault);
  if (status == RP_OK)
    status = open_link (rig->dir, "base", RP_EXTENT_FLAT, writable && !kind,
                        &rig->files[1], &rig->links[1], fault);
  if (status == RP_OK && kind)
    status = open_link (rig->dir, "top", kind, writable, &rig->files[0],
                        &rig->links[0], fault);
  if (status == RP_OK)
    status = rp_chain_create (kind ? rig->links : rig->links + 1,
                              kind ? 2 : 1, &rig->disk, fault);
  return status;
}

static int
make_top (struct rp_io *io, enum rp_extent_kind kind, uint32_t grain,
          const char *name, struct rp_fault *fault)
{
  const struct rp_sparse_create how = {
    .kind = kind, .capacity_sectors = SECTORS, .grain_sectors = grain,
    .redundant = kind == RP_EXTENT_SPARSE,
    .zero_grains = kind == RP_EXTENT_SPARSE,
  };
  struct rp_file *file = NULL;
  struct rp_dir *dir;
  int status = rp_dir_open (io, folder, &dir, fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                         | RP_OPEN_TRUNCATE, 0600, &file, fault);
  if (status == RP_OK)
    status = rp_sparse_create (file, &how, fault);
  rp_file_close (file);
  if (status == RP_OK)
    status = rp_dir_sync (dir, fault);
  rp_dir_close (dir);
  return status;
}

/* ---- jobs: writing ---- */

static int
write_op (struct scene *scene, struct rp_disk *disk, uint32_t op,
          struct rp_fault *fault)
{
  const uint32_t dice = mix (op * 77 + 5);
  const uint32_t first = dice % SECTORS;
  const uint32_t length = 1 + (dice >> 9) % (op % 4 == 0 ? 60 : 9);
  const uint32_t stop = length < SECTORS - first ? first + length : SECTORS;
  uint8_t data[60 * SECTOR];

  scene->ops[op].first = first;
  scene->ops[op].stop = stop;
  scene->ops[op].zeros = op % 5 == 2;
  scene->ops[op].tried = true;
  if (scene->ops[op].zeros)
    return rp_disk_zero (disk, (stop - first) * SECTOR, first * SECTOR,
                         op % 2 == 0, fault);
  for (uint32_t i = first; i < stop; i++)
    fill (data + (i - first) * SECTOR, i, op);
  return rp_disk_pwrite (disk, data, (stop - first) * SECTOR, first * SECTOR,
                         fault);
}

/* All up to this op was flushed. */
static void
flushed (struct scene *scene, uint32_t op)
{
  for (uint32_t v = 1; v <= op; v++)
    for (uint32_t i = scene->ops[v].first; i < scene->ops[v].stop; i++)
      scene->floor[i] = v;
}

/* A sector is written whole or not at all; but a failed write of several may
 * leave some of them, so none is known from then on. */
static int
write_ops (struct scene *scene, enum rp_extent_kind kind, uint32_t first,
           uint32_t stop, struct rp_fault *fault)
{
  struct rig rig;
  int status = open_rig (scene->io, kind, true, &rig, fault);

  for (uint32_t op = first; status == RP_OK && op < stop; op++) {
    status = write_op (scene, rig.disk, op, fault);
    if (status == RP_OK && op % 6 == 0) {
      status = rp_disk_flush (rig.disk, fault);
      if (status == RP_OK)
        flushed (scene, op);
    }
  }
  if (status == RP_OK)
    status = rp_chain_close_clean (rig.disk, fault);
  if (status == RP_OK)
    flushed (scene, stop - 1);
  close_rig (&rig);
  return status;
}

static void
ignore_finding (void *context, const struct rp_finding *finding)
{
  (void) context;
  (void) finding;
}

/* The map from one end to the other, all data, and a check. */
static int
look_through (struct rig *rig, struct rp_fault *fault)
{
  uint8_t data[SIZE];
  struct rp_run run;
  int status = RP_OK;

  for (uint64_t at = 0; status == RP_OK && at < SIZE; at += run.length_bytes)
    status = rp_disk_run (rig->disk, at, SIZE - at, &run, fault);
  if (status == RP_OK)
    status = rp_disk_pread (rig->disk, data, SIZE, 0, fault);
  for (int i = 0; status == RP_OK && i < 2; i++)
    if (rig->links[i])
      status = rp_image_check (rig->links[i], ignore_finding, NULL, fault);
  return status;
}

static int
overlay (struct scene *scene, enum rp_extent_kind kind, uint32_t grain,
         struct rp_fault *fault)
{
  struct rig rig;
  int status = make_top (scene->io, kind, grain, "top", fault);

  if (status == RP_OK)
    status = write_ops (scene, kind, 1, OPS / 2, fault);
  if (status == RP_OK)
    status = write_ops (scene, kind, OPS / 2, OPS + 1, fault);
  if (status != RP_OK)
    return status;
  status = open_rig (scene->io, kind, false, &rig, fault);
  if (status == RP_OK)
    status = look_through (&rig, fault);
  close_rig (&rig);
  return status;
}

static int
job_hosted (struct scene *scene, struct rp_fault *fault)
{
  return overlay (scene, RP_EXTENT_SPARSE, 8, fault);
}

static int
job_cowd (struct scene *scene, struct rp_fault *fault)
{
  return overlay (scene, RP_EXTENT_COWD, 1, fault);
}

static int
job_large_grains (struct scene *scene, struct rp_fault *fault)
{
  return overlay (scene, RP_EXTENT_SPARSE, 64, fault);
}

/* The last writer had ended without closing: its tables are looked through. */
static int
job_unclean (struct scene *scene, struct rp_fault *fault)
{
  return write_ops (scene, RP_EXTENT_SPARSE, OPS / 2 + 1, OPS + 1, fault);
}

/* Nothing that could be opened over the base is there: read what can be. */
static void
check_overlay (struct scene *scene, enum rp_extent_kind kind)
{
  uint8_t found[SIZE];
  struct rp_fault fault;
  struct rig rig;
  bool written = false;

  for (uint32_t i = 0; i < SECTORS; i++)
    written |= scene->floor[i] > 0;
  if (open_rig (scene->sim, kind, false, &rig, &fault) == RP_OK) {
    OK (rp_disk_pread (rig.disk, found, SIZE, 0, &fault));
    check_versions (scene, found);
  } else
    CHECK (!written && !scene->done);
  close_rig (&rig);
}

static void
check_hosted (struct scene *scene)
{
  check_overlay (scene, RP_EXTENT_SPARSE);
}

static void
check_cowd (struct scene *scene)
{
  check_overlay (scene, RP_EXTENT_COWD);
}

/* ---- jobs: copying ---- */

static int
open_target (struct scene *scene, const char *name, struct rp_dir **dir,
             struct rp_file **file, struct rp_fault *fault)
{
  int status = rp_dir_open (scene->io, folder, dir, fault);

  *file = NULL;
  return status == RP_OK
         ? rp_file_open (*dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                         file, fault)
         : status;
}

static int
make_sink (struct rp_file *file, enum rp_extent_kind kind,
           struct rp_sink **out, struct rp_fault *fault)
{
  static const char text[] = "# Disk DescriptorFile\nversion=1\n";
  const struct rp_stream_create how = {
    .capacity_sectors = SECTORS, .grain_sectors = 16, .descriptor = text,
    .descriptor_bytes = sizeof text - 1, .descriptor_sectors = 1, .level = 1,
  };

  return kind == RP_EXTENT_STREAM
         ? rp_stream_sink_create (file, &how, out, fault)
         : rp_sesparse_sink_create (file, SECTORS, out, fault);
}

/* The chain into a new extent, and both compared. */
static int
convert (struct scene *scene, enum rp_extent_kind kind, uint32_t workers,
         struct rp_fault *fault)
{
  const struct rp_copy_options options = { .workers = workers };
  struct rp_extent_spec spec = { .kind = kind, .sectors = SECTORS };
  struct rp_image *image = NULL;
  struct rp_disk *copied = NULL;
  struct rp_sink *sink = NULL;
  struct rp_copy_counts counts;
  struct rp_dir *dir = NULL;
  struct rig rig;
  uint64_t differs = SIZE;
  int status = open_rig (scene->io, RP_EXTENT_SPARSE, false, &rig, fault);

  if (status == RP_OK)
    status = open_target (scene, "copy", &dir, &spec.file, fault);
  if (status == RP_OK)
    status = make_sink (spec.file, kind, &sink, fault);
  if (status == RP_OK)
    status = rp_copy (rig.disk, sink, &options, &counts, fault);
  rp_sink_destroy (sink);
  if (status == RP_OK)
    status = rp_dir_sync (dir, fault);
  scene->done = status == RP_OK;
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, false, &image, fault);
  if (status == RP_OK)
    status = rp_chain_create (&image, 1, &copied, fault);
  if (status == RP_OK)
    status = rp_compare (rig.disk, copied, SIZE, &options, &differs, fault);
  CHECK (status != RP_OK || differs == SIZE);
  if (status == RP_OK)
    status = rp_image_check (image, ignore_finding, NULL, fault);
  rp_disk_destroy (copied);
  rp_image_destroy (image);
  rp_file_close (spec.file);
  rp_dir_close (dir);
  close_rig (&rig);
  return status;
}

static int
job_stream (struct scene *scene, struct rp_fault *fault)
{
  return convert (scene, RP_EXTENT_STREAM, 1, fault);
}

static int
job_stream_two (struct scene *scene, struct rp_fault *fault)
{
  return convert (scene, RP_EXTENT_STREAM, 2, fault);
}

static int
job_sesparse (struct scene *scene, struct rp_fault *fault)
{
  return convert (scene, RP_EXTENT_SESPARSE, 1, fault);
}

/* A disk of one link, in a file of its own. */
static void
check_copy (struct scene *scene, const char *name, enum rp_extent_kind kind)
{
  struct rp_extent_spec spec = { .kind = kind, .sectors = SECTORS };
  uint8_t wanted[SIZE], found[SIZE];
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->sim, RP_EXTENT_SPARSE, false, &rig, &fault));
  OK (rp_disk_pread (rig.disk, wanted, SIZE, 0, &fault));
  check_versions (scene, wanted);        /* a copy changes no source */
  if (scene->done) {
    OK (rp_file_open (rig.dir, name, RP_OPEN_READ, 0, &spec.file, &fault));
    OK (rp_image_open (&spec, 1, false, &image, &fault));
    OK (rp_chain_create (&image, 1, &disk, &fault));
    OK (rp_disk_pread (disk, found, SIZE, 0, &fault));
    CHECK (memcmp (wanted, found, SIZE) == 0);
    rp_disk_destroy (disk);
    rp_image_destroy (image);
    rp_file_close (spec.file);
  }
  close_rig (&rig);
}

static void
check_stream (struct scene *scene)
{
  check_copy (scene, "copy", RP_EXTENT_STREAM);
}

static void
check_sesparse (struct scene *scene)
{
  check_copy (scene, "copy", RP_EXTENT_SESPARSE);
}

static int
job_copy (struct scene *scene, struct rp_fault *fault)
{
  const struct rp_copy_options options = { .workers = 1 };
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SPARSE, .sectors = SECTORS,
  };
  struct rp_image *image = NULL;
  struct rp_disk *target = NULL;
  struct rp_sink *sink = NULL;
  struct rp_copy_counts counts;
  struct rp_dir *dir = NULL;
  struct rig rig;
  int status = open_rig (scene->io, RP_EXTENT_SPARSE, false, &rig, fault);

  if (status == RP_OK)
    status = make_top (scene->io, RP_EXTENT_SPARSE, 16, "copy", fault);
  if (status == RP_OK)
    status = open_target (scene, "copy", &dir, &spec.file, fault);
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, true, &image, fault);
  if (status == RP_OK)
    status = rp_chain_create (&image, 1, &target, fault);
  if (status == RP_OK)
    status = rp_disk_sink_create (target, 16 * SECTOR, &sink, fault);
  if (status == RP_OK)
    status = rp_copy (rig.disk, sink, &options, &counts, fault);
  rp_sink_destroy (sink);
  if (status == RP_OK)
    status = rp_chain_close_clean (target, fault);
  scene->done = status == RP_OK;
  rp_disk_destroy (target);
  rp_image_destroy (image);
  rp_file_close (spec.file);
  rp_dir_close (dir);
  close_rig (&rig);
  return status;
}

static void
check_job_copy (struct scene *scene)
{
  check_copy (scene, "copy", RP_EXTENT_SPARSE);
}

/* ---- a job: merging ---- */

static int
job_merge (struct scene *scene, struct rp_fault *fault)
{
  const struct rp_copy_options options = { .workers = 1 };
  struct rig from, to = { .dir = NULL };
  int status = open_rig (scene->io, RP_EXTENT_SPARSE, false, &from, fault);

  if (status == RP_OK)
    status = open_rig (scene->io, 0, true, &to, fault);
  if (status == RP_OK)
    status = rp_merge (from.disk, 1, to.disk, &options, fault);
  if (status == RP_OK)
    status = rp_chain_close_clean (to.disk, fault);
  scene->done = status == RP_OK;
  close_rig (&to);
  close_rig (&from);
  return status;
}

/* Read through the overlay nothing has changed; when it is done, the base is
 * what the overlay shows. */
static void
check_merge (struct scene *scene)
{
  uint8_t wanted[SIZE], found[SIZE];
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->sim, RP_EXTENT_SPARSE, false, &rig, &fault));
  OK (rp_disk_pread (rig.disk, wanted, SIZE, 0, &fault));
  check_versions (scene, wanted);
  OK (rp_file_pread_all (rig.files[1], found, SIZE, 0, &fault));
  CHECK (!scene->done || memcmp (wanted, found, SIZE) == 0);
  close_rig (&rig);
}

/* ---- a job: checking and mending ---- */

/* Two tables of one-sector grains; some sectors of both are written. */
static void
make_harmed (struct rp_io *io)
{
  const struct rp_sparse_create how = {
    .kind = RP_EXTENT_SPARSE, .capacity_sectors = 2 * SPAN,
    .grain_sectors = 1, .redundant = true,
  };
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SPARSE, .sectors = 2 * SPAN,
  };
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_dir *dir;
  struct rp_fault fault;
  uint8_t sector[SECTOR], field[4];
  uint64_t directory, table, bytes;

  OK (rp_dir_open (io, folder, &dir, &fault));
  OK (rp_file_open (dir, "harmed", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &spec.file, &fault));
  OK (rp_sparse_create (spec.file, &how, &fault));
  OK (rp_image_open (&spec, 1, true, &image, &fault));
  OK (rp_chain_create (&image, 1, &disk, &fault));
  for (uint32_t i = 0; i < 40; i++) {
    fill (sector, i, i + 1);
    OK (rp_disk_pwrite (disk, sector, SECTOR, i * 23 * SECTOR, &fault));
  }
  OK (rp_chain_close_clean (disk, &fault));
  rp_disk_destroy (disk);
  rp_image_destroy (image);
  OK (rp_sparse_read_header (spec.file, &kind, &info, &fault));
  directory = info.directory_sector * SECTOR;
  OK (rp_file_pread_all (spec.file, field, 4, directory, &fault));
  table = (uint64_t) rp_load32 (field) * SECTOR;
  OK (rp_file_pread_all (spec.file, field, 4, table, &fault));
  OK (rp_file_pwrite (spec.file, field, 4, table + 4 * 23, &fault));
  rp_store32 (field, 0x00ffffff);
  OK (rp_file_pwrite (spec.file, field, 4, directory + 4, &fault));
  OK (rp_file_pwrite (spec.file, field, 4, table + 4 * 46, &fault));
  OK (rp_file_size (spec.file, &bytes, &fault));
  OK (rp_file_truncate (spec.file, bytes + 20000, &fault));
  OK (rp_file_sync (spec.file, &fault));
  rp_file_close (spec.file);
  rp_dir_close (dir);
}

static int
mend (struct rp_io *io, struct rp_fault *fault)
{
  struct rp_extent_place place = {
    .kind = RP_EXTENT_SPARSE, .sectors = 2 * SPAN,
  };
  struct rp_repair *repair = NULL;
  enum rp_recovery recovery;
  struct rp_file *file = NULL;
  struct rp_dir *dir;
  int status = rp_dir_open (io, folder, &dir, fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, "harmed", RP_OPEN_WRITE, 0, &file, fault);
  place.file = file;
  if (status == RP_OK)
    status = rp_repair_recover (dir, "harmed.repair", file, 7,
                                "harmed.stale", &recovery, fault);
  if (status == RP_OK)
    status = rp_repair_create (&place, false, &repair, fault);
  if (status == RP_OK)
    status = rp_repair_run (repair, dir, "harmed.repair", file, 7,
                            "harmed.kept", fault);
  rp_repair_destroy (repair);
  if (status == RP_OK)
    status = rp_extent_check (&place, true, ignore_finding, NULL, fault);
  rp_file_close (file);
  rp_dir_close (dir);
  return status;
}

static int
job_repair (struct scene *scene, struct rp_fault *fault)
{
  const int status = mend (scene->io, fault);

  scene->done = status == RP_OK;
  return status;
}

static void
count_finding (void *context, const struct rp_finding *finding)
{
  (void) finding;
  ++*(uint64_t *) context;
}

/* Asked for again, nothing is left to mend, and no data was lost. */
static void
check_repair (struct scene *scene)
{
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SPARSE, .sectors = 2 * SPAN,
  };
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_dir *dir;
  struct rp_fault fault;
  uint8_t sector[SECTOR], wanted[SECTOR];
  uint64_t findings = 0;

  if (!scene->done)
    OK (mend (scene->sim, &fault));
  OK (rp_dir_open (scene->sim, folder, &dir, &fault));
  OK (rp_file_open (dir, "harmed", RP_OPEN_READ, 0, &spec.file, &fault));
  OK (rp_image_open (&spec, 1, false, &image, &fault));
  OK (rp_chain_create (&image, 1, &disk, &fault));
  OK (rp_image_check (image, count_finding, &findings, &fault));
  CHECK (findings == 0);
  for (uint32_t i = 0; i < 40; i++)
    if (i != 1) {                /* of which two entries had claimed one */
      fill (wanted, i, i + 1);
      OK (rp_disk_pread (disk, sector, SECTOR, i * 23 * SECTOR, &fault));
      CHECK (memcmp (sector, wanted, SECTOR) == 0);
    }
  rp_disk_destroy (disk);
  rp_image_destroy (image);
  rp_file_close (spec.file);
  rp_dir_close (dir);
}

/* ---- trying all ---- */

struct job {
  const char *name;
  int  (*run) (struct scene *scene, struct rp_fault *fault);
  void (*check) (struct scene *scene);
  bool over;                     /* over an overlay that is there already */
  bool alone;                    /* one thread: calls have an order */
  bool again;                    /* after one that was cut short */
  bool unclean;
};

static const struct job jobs[] = {
  { "hosted", job_hosted, check_hosted, .alone = true },
  { "unclean", job_unclean, check_hosted, .over = true, .alone = true,
    .unclean = true },
  { "large grains", job_large_grains, check_hosted, .alone = true },
  { "cowd", job_cowd, check_cowd, .alone = true },
  { "copy", job_copy, check_job_copy, .over = true, .alone = true },
  { "stream", job_stream, check_stream, .over = true, .alone = true },
  { "stream, two workers", job_stream_two, check_stream, .over = true },
  { "sesparse", job_sesparse, check_sesparse, .over = true, .alone = true },
  { "merge", job_merge, check_merge, .over = true, .alone = true },
  { "repair", job_repair, check_repair, .alone = true },
  { "repair again", job_repair, check_repair, .alone = true, .again = true },
};

static bool
has_backup (struct rp_io *io)
{
  struct rp_stat stat;
  struct rp_dir *dir;
  struct rp_fault fault;
  bool found;

  OK (rp_dir_open (io, folder, &dir, &fault));
  found = rp_dir_stat (dir, "harmed.repair", &stat, &fault) == RP_OK;
  rp_dir_close (dir);
  return found;
}

/* A repair that was cut short, so that its backup is still there. */
static void
cut_repair (struct rp_io **sim)
{
  struct rp_fault_plan plan = {
    .call = 1, .kinds = RP_FAULT_WRITE | RP_FAULT_META, .os_errno = EIO,
    .sticky = true,
  };
  struct rp_io *faulty;
  struct rp_fault fault;

  for (;; plan.call++) {
    OK (rp_io_fault_create (*sim, &plan, &faulty, &fault));
    CHECK (mend (faulty, &fault) != RP_OK);
    rp_io_destroy (faulty);
    if (has_backup (*sim) && plan.call > 12)
      return;
    rp_io_destroy (*sim);
    OK (rp_io_simulate_create (sim, &fault));
    make_harmed (*sim);
  }
}

static void
leave_unclean (struct scene *scene)
{
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->io, RP_EXTENT_SPARSE, true, &rig, &fault));
  OK (write_op (scene, rig.disk, OPS / 2, &fault));
  OK (rp_disk_flush (rig.disk, &fault));
  flushed (scene, OPS / 2);
  close_rig (&rig);
}

static void
fill_place (struct scene *scene, const struct job *job)
{
  uint8_t sector[SECTOR];
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_fault fault;

  scene->io = scene->sim;
  OK (rp_dir_open (scene->sim, folder, &dir, &fault));
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  for (uint32_t i = 0; i < SECTORS; i++) {
    fill (sector, i, 0);
    OK (rp_file_pwrite (file, sector, SECTOR, i * SECTOR, &fault));
  }
  rp_file_close (file);
  rp_dir_close (dir);
  scene->io = scene->sim;
  if (job->over) {
    OK (make_top (scene->sim, RP_EXTENT_SPARSE, 8, "top", &fault));
    OK (write_ops (scene, RP_EXTENT_SPARSE, 1,
                   job->unclean ? OPS / 2 : OPS + 1, &fault));
    if (job->unclean)
      leave_unclean (scene);
  } else {
    make_harmed (scene->sim);
    if (job->again)
      cut_repair (&scene->sim);
  }
}

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
  fill_place (&scene, job);
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

static void
unlink_one (void *context, const char *name)
{
  struct rp_fault fault;

  OK (rp_dir_unlink (context, name, &fault));
}

/* On real files: below the door memory fails, too. */
static bool
without_memory_below (const struct job *job, uint64_t call)
{
  const int64_t blocks = failing_blocks;
  struct rp_dir *dir;
  struct rp_fault fault;
  uint64_t struck;
  int status;

  memset (&scene, 0, sizeof scene);
  snprintf (folder, sizeof folder, "/dev/shm/rp-failing-XXXXXX");
  if (!mkdtemp (folder)) {
    snprintf (folder, sizeof folder, "/tmp/rp-failing-XXXXXX");
    CHECK (mkdtemp (folder));
  }
  OK (rp_io_posix_create (&scene.sim, &fault));
  fill_place (&scene, job);
  OK (rp_dir_open (scene.sim, folder, &dir, &fault));
  failing_arm_below (call);
  status = job->run (&scene, &fault);
  struck = failing_disarm ();
  CHECK (status == RP_OK || status == RP_NO_MEMORY || status == RP_FAILED);
  CHECK (struck > 0 || status == RP_OK);
  job->check (&scene);
  OK (rp_dir_list (dir, unlink_one, dir, &fault));
  rp_dir_close (dir);
  rp_io_destroy (scene.sim);
  CHECK (rmdir (folder) == 0);
  snprintf (folder, sizeof folder, "/");
  CHECK (failing_blocks == blocks);
  failing_runs++;
  return struck > 0;
}

static void
try_all (const struct job *job, uint64_t step)
{
  for (uint64_t call = 1; !job->again && without_memory_below (job, call);)
    call += step;
  failing_try (job, job->alone, step);
}

int
main (int argc, char **argv)
{
  const uint64_t step = failing_step (STEP);

  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
    if (argc < 2 || strncmp (jobs[i].name, argv[1], strlen (argv[1])) == 0)
      try_all (&jobs[i], step);
  failing_summary ("failing_images_test");
  return EXIT_SUCCESS;
}

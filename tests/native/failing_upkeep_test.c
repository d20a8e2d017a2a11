/* SPDX-License-Identifier: Apache-2.0 */
/* Looking after a journal while memory or storage fails: making, opening,
 * reading, scrubbing, mending, digesting, destaging, recovering, rolling back
 * and looking at a point; each allocation and each call of the storage in turn,
 * once and for ever.
 *
 * Whatever fails, it says so; then, with memory and storage again, the disk
 * reads as before, each point that is listed is exact, damage is found, and no
 * block of memory is forgotten.
 *
 * Argument: only jobs whose name begins so.  The environment: see failing.h.
 */
#include "failing.h"
#include "failing_jobs.h"

#include "copy.h"
#include "gate.h"
#include "image.h"
#include "journal_format.h"
#include "journal_model.h"

#define STEP    11u
#define GRAIN   4096u
#define GRAINS  48u
#define BYTES   (GRAINS * GRAIN)
#define SEGMENT 65536u
#define WRITES  90u
#define POINTS  3u
#define REGION  (5 * GRAIN)
#define REGIONS ((BYTES + REGION - 1) / REGION)

static uint8_t model[POINTS + 1][BYTES];     /* at each point; at the end */
static uint8_t bytes[BYTES];

struct damage {
  uint64_t segment, position;
  uint32_t count;
};

struct scene {
  struct rp_io *sim, *io;
  struct damage damage;          /* that was found in the damaged grain */
  bool done;
};

static char folder[64] = "/";    /* where the files are */

struct rig {
  struct rp_dir   *dir;
  struct rp_file  *log, *base_file;
  struct rp_image *image;
  struct rp_disk  *base;
  struct rp_journal *journal;
};

static void
close_rig (struct rig *rig)
{
  rp_journal_destroy (rig->journal);
  rp_disk_destroy (rig->base);
  rp_image_destroy (rig->image);
  rp_file_close (rig->base_file);
  rp_file_close (rig->log);
  rp_dir_close (rig->dir);
  memset (rig, 0, sizeof *rig);
}

static int
open_rig (struct rp_io *io, int flags, struct rig *rig, struct rp_fault *fault)
{
  const uint32_t how = flags == RP_JOURNAL_WRITE ? RP_OPEN_WRITE
                                                 : RP_OPEN_READ;
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_FLAT, .sectors = BYTES / 512,
  };
  int status;

  memset (rig, 0, sizeof *rig);
  status = rp_dir_open (io, folder, &rig->dir, fault);
  if (status == RP_OK)
    status = rp_file_open (rig->dir, "base", how, 0, &rig->base_file, fault);
  spec.file = rig->base_file;
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, flags == RP_JOURNAL_WRITE, &rig->image,
                            fault);
  if (status == RP_OK)
    status = rp_chain_create (&rig->image, 1, &rig->base, fault);
  if (status == RP_OK)
    status = rp_file_open (rig->dir, "log", how, 0, &rig->log, fault);
  if (status == RP_OK)
    status = rp_journal_open (rig->log, rig->base, flags, 0, &rig->journal,
                              fault);
  return status;
}

/* ---- the journal ---- */

static int
make_log (struct rp_io *io, const char *name, struct rp_fault *fault)
{
  const struct rp_journal_options options = {
    .capacity_bytes = BYTES, .grain_bytes = GRAIN, .segment_bytes = SEGMENT,
    .id = "failing upkeep", .epoch = 1,
  };
  struct rp_file *file = NULL;
  struct rp_dir *dir;
  int status = rp_dir_open (io, folder, &dir, fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                         &file, fault);
  if (status == RP_OK)
    status = rp_journal_create (file, &options, fault);
  rp_file_close (file);
  if (status == RP_OK)
    status = rp_dir_sync (dir, fault);
  rp_dir_close (dir);
  return status;
}

static void
write_journal (struct rp_journal *journal)
{
  struct rp_disk *disk = rp_journal_disk (journal);
  uint64_t seed = 7;
  struct rp_fault fault;
  uint32_t points = 0;

  for (uint32_t i = 0; i < WRITES; i++) {
    const uint64_t at = random_below (&seed, BYTES - 9000);
    const uint64_t length = 1 + random_below (&seed, 9000);

    memset (model[POINTS] + at, (int) (i % 5 ? i + 1 : 0), length);
    if (i % 5)
      OK (rp_disk_pwrite (disk, model[POINTS] + at, length, at, &fault));
    else
      OK (rp_disk_zero (disk, length, at, true, &fault));
    if (i % 7 == 6)
      OK (rp_journal_commit (journal, &fault));
    if (i % (WRITES / POINTS) == WRITES / POINTS - 5) {
      const struct rp_point point = make_point (points + 1);

      memcpy (model[points++], model[POINTS], BYTES);
      OK (rp_journal_mark (journal, &point, &fault));
    }
  }
  CHECK (points == POINTS);
  OK (rp_journal_close_clean (journal, &fault));
}

static void
fill_place (struct scene *scene)
{
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_fault fault;
  struct rig rig;

  scene->io = scene->sim;
  memset (model[POINTS], 0xb5, BYTES);
  OK (rp_dir_open (scene->sim, folder, &dir, &fault));
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_file_pwrite (file, model[POINTS], BYTES, 0, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  OK (make_log (scene->sim, "log", &fault));
  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  write_journal (rig.journal);
  close_rig (&rig);
}

static void
find_damage (void *context, const struct rp_journal_damage *damage)
{
  struct damage *found = context;

  found->count++;
  if (damage->guest_offset_bytes != UINT64_MAX) {
    found->segment = damage->segment;
    found->position = damage->position;
  }
}

/* Flip a byte of the grain that shows this guest grain; returns what it held
 * before in bytes[0 .. GRAIN). */
static void
harm (struct scene *scene)
{
  struct rp_run run;
  struct rp_fault fault;
  struct rig rig;
  uint8_t byte;

  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  for (uint64_t at = 0; ; at += run.length_bytes) {
    CHECK (at < BYTES);
    OK (rp_disk_run (rp_journal_disk (rig.journal), at, BYTES - at, &run,
                     &fault));
    if (run.kind == RP_RUN_DATA && run.depth == 0 && run.file)
      break;
  }
  OK (rp_file_pread_all (rig.log, bytes, GRAIN, run.file_offset_bytes
                         / GRAIN * GRAIN, &fault));
  byte = (uint8_t) ~bytes[100];
  OK (rp_file_pwrite (rig.log, &byte, 1, run.file_offset_bytes / GRAIN * GRAIN
                      + 100, &fault));
  OK (rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                          .each = find_damage, .context = &scene->damage,
                        }, &fault));
  CHECK (scene->damage.count == 1);
  close_rig (&rig);
}

/* ---- the jobs ---- */

static int
job_create (struct scene *scene, struct rp_fault *fault)
{
  const int status = make_log (scene->io, "fresh", fault);

  scene->done = status == RP_OK;
  return status;
}

static int
job_read (struct scene *scene, struct rp_fault *fault)
{
  struct rp_disk *disk;
  struct rp_point point;
  struct rp_run run;
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_READ, &rig, fault);

  if (status == RP_OK) {
    disk = rp_journal_disk (rig.journal);
    status = rp_disk_pread (disk, bytes, BYTES, 0, fault);
    CHECK (status != RP_OK || memcmp (bytes, model[POINTS], BYTES) == 0);
    for (uint64_t at = 0; status == RP_OK && at < BYTES;
         at += run.length_bytes)
      status = rp_disk_run (disk, at, BYTES - at, &run, fault);
    if (status == RP_OK)
      status = rp_journal_point (rig.journal, POINTS - 1, &point, fault);
  }
  close_rig (&rig);
  return status;
}

/* All is read; the damaged grain is not passed over. */
static int
job_scrub (struct scene *scene, struct rp_fault *fault)
{
  struct rp_affected affected = {
    .segment = scene->damage.segment, .position = scene->damage.position,
  };
  struct damage found = { .count = 0 };
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_READ, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                                 .each = find_damage, .context = &found,
                               }, fault);
  CHECK (status != RP_OK || found.count >= 1);
  if (status == RP_OK)
    status = rp_journal_affected (rig.journal, &affected, 1, fault);
  CHECK (status != RP_OK || affected.end || affected.last_point > 0);
  close_rig (&rig);
  return status;
}

static int
job_mend (struct scene *scene, struct rp_fault *fault)
{
  uint8_t wrong[GRAIN], right[GRAIN];
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_WRITE, &rig, fault);

  memcpy (right, bytes, GRAIN);
  memset (wrong, 0x3e, GRAIN);
  if (status == RP_OK) {
    status = rp_journal_mend (rig.journal, scene->damage.segment,
                              scene->damage.position, wrong, fault);
    CHECK (status != RP_OK);     /* not proven */
    if (status == RP_CORRUPT)
      status = rp_journal_mend (rig.journal, scene->damage.segment,
                                scene->damage.position, right, fault);
  }
  if (status == RP_OK)
    status = rp_file_sync (rig.log, fault);
  scene->done = status == RP_OK;
  close_rig (&rig);
  return status;
}

static int
job_digest (struct scene *scene, struct rp_fault *fault)
{
  static struct rp_region regions[REGIONS], wanted[REGIONS];
  const struct rp_copy_options one = { .workers = 1 };
  struct rig rig, quiet;
  int status = open_rig (scene->io, RP_JOURNAL_READ, &rig, fault);

  if (status == RP_OK)
    status = rp_digest_regions (rp_journal_disk (rig.journal), REGION, 0,
                                REGIONS, &one, regions, fault);
  close_rig (&rig);
  if (status != RP_OK)
    return status;
  (void) failing_disarm ();
  CHECK (open_rig (scene->sim, RP_JOURNAL_READ, &quiet, fault) == RP_OK);
  CHECK (rp_digest_regions (rp_journal_disk (quiet.journal), REGION, 0,
                            REGIONS, &one, wanted, fault) == RP_OK);
  close_rig (&quiet);
  for (uint32_t i = 0; i < REGIONS; i++)
    CHECK (regions[i].status != RP_OK
           || regions[i].digest == wanted[i].digest);
  return RP_OK;
}

static int
job_destage (struct scene *scene, struct rp_fault *fault)
{
  struct rp_checkpoint shown;
  struct rp_destage done;
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_WRITE, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_checkpoint (rig.journal, &shown, fault);
  if (status == RP_OK)
    status = rp_journal_destage (rig.journal, 2, rig.base, NULL, NULL, &done,
                                 fault);
  scene->done = status == RP_OK;
  if (status == RP_OK)
    status = rp_journal_close_clean (rig.journal, fault);
  close_rig (&rig);
  return status;
}

static int
job_gate (struct scene *scene, struct rp_fault *fault)
{
  struct rp_journal *journals[1];
  const struct rp_point point = make_point (POINTS + 1);
  struct rp_gate *gate;
  uint64_t barrier;
  struct rig rig;
  int status = rp_gate_create (&gate, fault);

  if (status != RP_OK)
    return status;
  status = open_rig (scene->io, RP_JOURNAL_WRITE, &rig, fault);
  journals[0] = rig.journal;
  if (status == RP_OK)
    status = rp_gate_cut (gate, journals, 1, &point, &barrier, fault);
  close_rig (&rig);
  rp_gate_destroy (gate);
  scene->done = status == RP_OK;
  return status;
}

/* ---- metadata that is damaged ---- */

static void
find_any (void *context, const struct rp_journal_damage *damage)
{
  struct damage *found = context;

  found->count++;
  found->segment = damage->segment;
  found->position = damage->position;
}

/* Flip a byte there; `bytes` holds what was in its block before.  The damages
 * that are found then: how many, and the last one. */
static void
spoil (struct scene *scene, uint64_t position, uint64_t within)
{
  struct rp_fault fault;
  struct rig rig;
  uint8_t byte;

  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  OK (rp_file_pread_all (rig.log, bytes, GRAIN, position, &fault));
  byte = (uint8_t) ~bytes[within];
  OK (rp_file_pwrite (rig.log, &byte, 1, position + within, &fault));
  close_rig (&rig);
  OK (open_rig (scene->sim, RP_JOURNAL_READ, &rig, &fault));
  OK (rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                          .each = find_any, .context = &scene->damage,
                        }, &fault));
  CHECK (scene->damage.count > 0);
  close_rig (&rig);
}

/* The end of the first segment that is closed. */
static struct rp_log_trailer
first_trailer (struct rp_io *io)
{
  uint8_t page[RP_LOG_PAGE_BYTES];
  struct rp_log_trailer trailer;
  struct rp_fault fault;
  struct rig rig;
  uint64_t end = RP_LOG_HEAD_BYTES;

  OK (open_rig (io, RP_JOURNAL_READ, &rig, &fault));
  do {
    end += SEGMENT;
    OK (rp_file_pread_all (rig.log, page, sizeof page, end - sizeof page,
                           &fault));
  } while (!rp_log_get_trailer (page, &trailer));
  close_rig (&rig);
  return trailer;
}

/* The second batch of a segment. */
static void
harm_header (struct scene *scene)
{
  const struct rp_log_trailer trailer = first_trailer (scene->sim);
  struct rp_log_batch batch;
  struct rp_fault fault;
  struct rig rig;
  uint64_t position = trailer.position;
  uint32_t seen = 0;

  OK (open_rig (scene->sim, RP_JOURNAL_READ, &rig, &fault));
  while (seen < 2) {
    position += GRAIN;
    CHECK (position < trailer.end_position);
    OK (rp_file_pread_all (rig.log, bytes, GRAIN, position, &fault));
    seen += rp_log_get_batch (bytes, GRAIN, &batch);
  }
  close_rig (&rig);
  spoil (scene, position, 77);
}

static void
harm_summary (struct scene *scene)
{
  spoil (scene, first_trailer (scene->sim).summary_position, 33);
}

static void
harm_root (struct scene *scene)
{
  struct rp_journal_info info;
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->sim, RP_JOURNAL_READ, &rig, &fault));
  rp_journal_info (rig.journal, &info);
  close_rig (&rig);
  spoil (scene, info.root_sector * 512, 5);
}

/* The block, or NULL: out of the batches. */
static int
mend_block (struct scene *scene, const uint8_t *right, struct rp_fault *fault)
{
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_WRITE, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_mend (rig.journal, scene->damage.segment,
                              scene->damage.position, right, fault);
  if (status == RP_OK)
    status = rp_file_sync (rig.log, fault);
  scene->done = status == RP_OK;
  close_rig (&rig);
  return status;
}

static int
job_mend_header (struct scene *scene, struct rp_fault *fault)
{
  uint8_t right[GRAIN];

  memcpy (right, bytes, GRAIN);
  return mend_block (scene, right, fault);
}

static int
job_mend_summary (struct scene *scene, struct rp_fault *fault)
{
  return mend_block (scene, NULL, fault);
}

static int
job_damaged_root (struct scene *scene, struct rp_fault *fault)
{
  struct damage found = { .count = 0 };
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_READ, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                                 .each = find_any, .context = &found,
                               }, fault);
  CHECK (status != RP_OK || found.count >= 1);
  close_rig (&rig);
  return status;
}

/* A sparse extent that never was a journal. */
static void
set_no_journal (struct scene *scene)
{
  const struct rp_sparse_create how = {
    .kind = RP_EXTENT_SPARSE, .capacity_sectors = 1 << 20,
    .grain_sectors = 8,
  };
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_fault fault;

  OK (rp_dir_open (scene->sim, folder, &dir, &fault));
  OK (rp_file_open (dir, "none", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_sparse_create (file, &how, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
}

/* What cannot be read is not called damaged. */
static int
job_no_journal (struct scene *scene, struct rp_fault *fault)
{
  struct rp_journal *journal;
  struct rp_file *file = NULL;
  struct rp_dir *dir;
  int status = rp_dir_open (scene->io, folder, &dir, fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, "none", RP_OPEN_READ, 0, &file, fault);
  if (status == RP_OK) {
    status = rp_journal_open (file, NULL, RP_JOURNAL_READ, 0, &journal, fault);
    CHECK (status != RP_OK);
    if (status == RP_FORMAT)
      status = RP_OK;
  }
  rp_file_close (file);
  rp_dir_close (dir);
  return status;
}

/* ---- a scrub of a bad disk ---- */

static int
scrub_over (struct scene *scene, uint64_t call, uint64_t *calls,
            struct rp_fault *fault)
{
  const struct rp_fault_plan plan = {
    .call = call, .kinds = RP_FAULT_READ, .os_errno = EIO,
  };
  struct damage found = { .count = 0 };
  struct rp_io *bad;
  struct rig rig;
  int status = rp_io_fault_create (scene->io, &plan, &bad, fault);

  if (status != RP_OK)
    return status;
  status = open_rig (bad, RP_JOURNAL_READ, &rig, fault);
  if (status == RP_OK)
    status = rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                                 .each = find_damage, .context = &found,
                               }, fault);
  CHECK (status != RP_OK || found.count >= 1);
  close_rig (&rig);
  *calls = rp_io_fault_calls (bad);
  rp_io_destroy (bad);
  return status;
}

/* A long read fails, the one that costs the most others: each grain of it is
 * read for itself. */
static uint64_t
find_worst (struct scene *scene)
{
  uint64_t worst = 0, most = 0, calls = 0;
  struct rp_fault fault;

  for (uint64_t call = 1; call < 80; call++)
    if (scrub_over (scene, call, &calls, &fault) == RP_OK && calls > most) {
      most = calls;
      worst = call;
    }
  return worst;
}

static uint64_t worst_read;

static void
harm_window (struct scene *scene)
{
  harm (scene);
  if (worst_read == 0)
    worst_read = find_worst (scene);
  CHECK (worst_read > 0);
}

static int
job_bad_window (struct scene *scene, struct rp_fault *fault)
{
  uint64_t calls;

  return scrub_over (scene, worst_read, &calls, fault);
}

/* ---- what a writer left that was killed, after a destage ---- */

static void
leave_open (struct scene *scene)
{
  struct rp_destage done;
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  OK (rp_journal_destage (rig.journal, 2, rig.base, NULL, NULL, &done,
                          &fault));
  CHECK (done.freed_bytes > 0);
  for (uint32_t i = 0; i < 5; i++) {
    memset (model[POINTS] + i * 30000, (int) (i + 0x31), 3000);
    OK (rp_disk_pwrite (rp_journal_disk (rig.journal),
                        model[POINTS] + i * 30000, 3000, i * 30000, &fault));
    OK (rp_journal_commit (rig.journal, &fault));
  }
  close_rig (&rig);
}

static int
job_recover (struct scene *scene, struct rp_fault *fault)
{
  struct rp_destage done;
  struct rp_roll shown;
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_WRITE, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_roll (rig.journal, POINTS, &shown, fault);
  if (status == RP_OK)
    status = rp_journal_destage (rig.journal, POINTS, rig.base, NULL, NULL,
                                 &done, fault);
  if (status == RP_OK)
    status = rp_disk_pread (rp_journal_disk (rig.journal), bytes, BYTES, 0,
                            fault);
  CHECK (status != RP_OK || memcmp (bytes, model[POINTS], BYTES) == 0);
  if (status == RP_OK)
    status = rp_journal_close_clean (rig.journal, fault);
  close_rig (&rig);
  return status;
}

/* What had been committed is there. */
static void
check_recovered (struct scene *scene)
{
  struct damage found = { .count = 0 };
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  OK (rp_disk_pread (rp_journal_disk (rig.journal), bytes, BYTES, 0, &fault));
  CHECK (memcmp (bytes, model[POINTS], BYTES) == 0);
  OK (rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                          .each = find_damage, .context = &found,
                        }, &fault));
  CHECK (found.count == 0);
  close_rig (&rig);
}

static int
job_view (struct scene *scene, struct rp_fault *fault)
{
  struct rig rig;
  int status = open_rig (scene->io, RP_JOURNAL_READ, &rig, fault);

  if (status == RP_OK)
    status = rp_journal_view (rig.journal, 2, fault);
  if (status == RP_OK)
    status = rp_disk_pread (rp_journal_disk (rig.journal), bytes, BYTES, 0,
                            fault);
  CHECK (status != RP_OK || memcmp (bytes, model[1], BYTES) == 0);
  close_rig (&rig);
  return status;
}

/* ---- a large disk, whose map is long ---- */

#define LARGE   (UINT64_C (10) << 30)   /* five pages of the directory */
#define ZEROS   ((UINT64_C (4) << 30) + (64 << 20))

static int
nothing_change (struct rp_disk *disk, const void *data, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  (void) disk; (void) data; (void) length; (void) offset; (void) fault;
  return RP_OK;
}

static int
nothing_pread (struct rp_disk *disk, void *data, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  (void) disk; (void) offset; (void) fault;
  memset (data, 0, length);
  return RP_OK;
}

static int
nothing_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
              bool may_trim, struct rp_fault *fault)
{
  (void) disk; (void) length; (void) offset; (void) may_trim; (void) fault;
  return RP_OK;
}

static int
nothing_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  (void) disk; (void) fault;
  return RP_OK;
}

static int
nothing_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
             struct rp_run *out, struct rp_fault *fault)
{
  (void) disk; (void) fault;
  *out = (struct rp_run) {
    .offset_bytes = offset, .length_bytes = length, .kind = RP_RUN_DATA,
  };
  return RP_OK;
}

/* A base of that size that keeps nothing. */
static const struct rp_disk_functions nothing_functions = {
  .name = "nothing", .pread = nothing_pread, .pwrite = nothing_change,
  .zero = nothing_zero, .flush = nothing_flush, .run = nothing_run,
};
static struct rp_disk nothing = {
  .functions = &nothing_functions, .size_bytes = LARGE,
};

/* ---- what a failback does ---- */

/* What was written since a point is proven, compared and sent. */
static int
job_send (struct scene *scene, struct rp_fault *fault)
{
  const struct rp_copy_options one = { .workers = 1 };
  const uint64_t all[2] = { 0, BYTES };
  struct rp_spans written = { .count = 0 }, differ = { .count = 0 };
  struct rp_sent sent;
  struct rig now, then = { .journal = NULL };
  int status = open_rig (scene->io, RP_JOURNAL_READ, &now, fault);

  if (status == RP_OK)
    status = open_rig (scene->io, RP_JOURNAL_READ, &then, fault);
  if (status == RP_OK)
    status = rp_journal_view (then.journal, 2, fault);
  if (status == RP_OK)
    status = rp_journal_prove (then.journal, all, 1, fault);
  if (status == RP_OK)
    status = rp_journal_written (now.journal, 2, &written, fault);
  CHECK (status != RP_OK || written.count > 0);
  if (status == RP_OK)
    status = rp_differ (rp_journal_disk (now.journal),
                        rp_journal_disk (then.journal), all, 1, &one, &differ,
                        fault);
  CHECK (status != RP_OK || differ.count > 0);
  if (status == RP_OK)
    status = rp_copy_spans (rp_journal_disk (now.journal), &nothing,
                            written.pairs, written.count, &one, &sent, fault);
  CHECK (status != RP_OK || sent.read_bytes > 0);
  free (written.pairs);
  free (differ.pairs);
  close_rig (&then);
  close_rig (&now);
  return status;
}

struct large {
  struct rp_dir  *dir;
  struct rp_file *log;
  struct rp_journal *journal;
};

static void
close_large (struct large *large)
{
  rp_journal_destroy (large->journal);
  rp_file_close (large->log);
  rp_dir_close (large->dir);
}

static int
open_large (struct rp_io *io, struct large *large, struct rp_fault *fault)
{
  int status;

  memset (large, 0, sizeof *large);
  status = rp_dir_open (io, folder, &large->dir, fault);
  if (status == RP_OK)
    status = rp_file_open (large->dir, "large", RP_OPEN_WRITE, 0, &large->log,
                           fault);
  return status == RP_OK
         ? rp_journal_open (large->log, &nothing, RP_JOURNAL_WRITE, 0,
                            &large->journal, fault) : status;
}

static void
set_large (struct scene *scene)
{
  const struct rp_journal_options options = {
    .capacity_bytes = LARGE, .grain_bytes = GRAIN, .segment_bytes = SEGMENT,
    .id = "failing, large", .epoch = 1,
  };
  static const uint8_t zeros[RP_LOG_PAGE_BYTES];
  const struct rp_point point = make_point (1);
  struct rp_roll shown;
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_fault fault;
  struct large large;

  OK (rp_dir_open (scene->sim, folder, &dir, &fault));
  OK (rp_file_open (dir, "large", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_journal_create (file, &options, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  OK (open_large (scene->sim, &large, &fault));
  OK (rp_disk_pwrite (rp_journal_disk (large.journal), "one", 3, LARGE - 5000,
                      &fault));
  OK (rp_journal_mark (large.journal, &point, &fault));
  OK (rp_journal_roll (large.journal, 1, &shown, &fault));
  /* zeros in a hole are a hole's zeros */
  OK (rp_file_pwrite (large.log, zeros, sizeof zeros,
                      shown.root_sector * 512 + 2 * RP_LOG_PAGE_BYTES,
                      &fault));
  OK (rp_file_sync (large.log, &fault));
  close_large (&large);
}

/* A writer beside the one who writes a root, in the same thread: between its
 * hold of the lock and the first call for the root's space. */
static void
write_beside (void *context, const char *call)
{
  struct rp_journal *journal = context;
  struct rp_fault ignored;

  if (strcmp (call, "rp_file_punch") != 0)
    return;
  failing_meanwhile = NULL;
  (void) rp_disk_pwrite (rp_journal_disk (journal), "two", 3, LARGE - 5000,
                         &ignored);
}

static int
job_large (struct scene *scene, struct rp_fault *fault)
{
  const struct rp_point point = make_point (2);
  struct rp_destage done;
  struct large large;
  uint8_t found[3];
  int status = open_large (scene->io, &large, fault);

  if (status == RP_OK)
    status = rp_disk_zero (rp_journal_disk (large.journal), ZEROS, 0, false,
                           fault);
  if (status == RP_OK)
    status = rp_journal_mark (large.journal, &point, fault);
  failing_context = large.journal;
  failing_meanwhile = status == RP_OK ? write_beside : NULL;
  if (status == RP_OK)
    status = rp_journal_destage (large.journal, 2, &nothing, NULL, NULL, &done,
                                 fault);
  CHECK (status != RP_OK || !failing_meanwhile);
  failing_meanwhile = NULL;
  if (status == RP_OK)
    status = rp_disk_pread (rp_journal_disk (large.journal), found, 3,
                            LARGE - 5000, fault);
  CHECK (status != RP_OK || memcmp (found, "two", 3) == 0
         || memcmp (found, "one", 3) == 0);
  close_large (&large);
  return status;
}

static void
check_large (struct scene *scene)
{
  struct damage found = { .count = 0 };
  struct large large;
  struct rp_fault fault;

  OK (open_large (scene->sim, &large, &fault));
  OK (rp_journal_scrub (large.journal, &(struct rp_scrub) {
                          .each = find_damage, .context = &found,
                        }, &fault));
  CHECK (found.count == 0);
  close_large (&large);
}

/* ---- afterwards ---- */

static void
check_scene (struct scene *scene, bool harmed)
{
  struct damage found = { .count = 0 };
  struct rp_point point;
  struct rp_fault fault;
  struct rig rig;
  uint64_t listed = 0;

  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  OK (rp_journal_scrub (rig.journal, &(struct rp_scrub) {
                          .each = find_damage, .context = &found,
                        }, &fault));
  CHECK (found.count == (harmed ? 1 : 0));
  if (!harmed) {
    OK (rp_disk_pread (rp_journal_disk (rig.journal), bytes, BYTES, 0,
                       &fault));
    CHECK (memcmp (bytes, model[POINTS], BYTES) == 0);
  }
  while (!harmed && rp_journal_point (rig.journal, listed, &point, &fault)
                    == RP_OK) {
    struct rp_extent_spec spec = {
      .kind = RP_EXTENT_SPARSE, .sectors = BYTES / 512, .file = rig.log,
    };
    struct rp_image *links[2];
    struct rp_disk *chain;
    struct rp_roll roll;

    listed++;
    OK (rp_journal_roll (rig.journal, point.id, &roll, &fault));
    OK (rp_image_open (&spec, 1, false, &links[0], &fault));
    spec.kind = RP_EXTENT_FLAT;
    spec.file = rig.base_file;
    OK (rp_image_open (&spec, 1, false, &links[1], &fault));
    OK (rp_chain_create (links, 2, &chain, &fault));
    OK (rp_disk_pread (chain, bytes, BYTES, 0, &fault));
    CHECK (memcmp (bytes, model[point.id > POINTS ? POINTS : point.id - 1],
                   BYTES) == 0);
    rp_disk_destroy (chain);
    rp_image_destroy (links[0]);
    rp_image_destroy (links[1]);
  }
  CHECK (harmed || listed >= POINTS - 1);
  close_rig (&rig);
}

static void
check_plain (struct scene *scene)
{
  check_scene (scene, false);
}

static void
check_harmed (struct scene *scene)
{
  check_scene (scene, true);
}

static void
check_mended (struct scene *scene)
{
  if (scene->done)
    check_scene (scene, false);
}

static void
check_nothing (struct scene *scene)
{
  (void) scene;
}

struct job {
  const char *name;
  int  (*run) (struct scene *scene, struct rp_fault *fault);
  void (*set) (struct scene *scene);     /* after the journal was written */
  void (*check) (struct scene *scene);
};

static const struct job jobs[] = {
  { "create", job_create, check_nothing, check_plain },
  { "read", job_read, check_nothing, check_plain },
  { "scrub", job_scrub, harm, check_harmed },
  { "mend", job_mend, harm, check_mended },
  { "digest", job_digest, check_nothing, check_plain },
  { "destage", job_destage, check_nothing, check_plain },
  { "gate", job_gate, check_nothing, check_plain },
  { "header", job_mend_header, harm_header, check_mended },
  { "summary", job_mend_summary, harm_summary, check_mended },
  { "root", job_damaged_root, harm_root, check_nothing },
  { "no journal", job_no_journal, set_no_journal, check_nothing },
  { "bad window", job_bad_window, harm_window, check_harmed },
  { "recover", job_recover, leave_open, check_recovered },
  { "view", job_view, check_nothing, check_plain },
  { "send", job_send, check_nothing, check_plain },
  { "large", job_large, set_large, check_large },
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
  fill_place (&scene);
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

/* ---- on real files ---- */

static void
unlink_one (void *context, const char *name)
{
  struct rp_fault fault;

  OK (rp_dir_unlink (context, name, &fault));
}

/* A file system that reserves nothing, so that zeros are written. */
static int
allocate (struct rp_fault *fault)
{
  const struct rp_posix_limits limits = { .no_fallocate = true };
  struct rp_file *file = NULL;
  struct rp_dir *dir = NULL;
  struct rp_io *io;
  int status = rp_io_posix_create_limited (&limits, &io, fault);

  if (status != RP_OK)
    return status;
  status = rp_dir_open (io, folder, &dir, fault);
  if (status == RP_OK)
    status = rp_file_open (dir, "zeros", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                           &file, fault);
  if (status == RP_OK)
    status = rp_file_truncate (file, 10000, fault);
  if (status == RP_OK)
    status = rp_file_punch (file, 100, 9000, fault);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
  return status;
}

/* There a scrub has a thread that reads ahead.  Memory below the door fails in
 * `allocate` alone. */
static bool
without_memory_below (uint64_t call, bool scrub, bool sticky)
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
  OK (rp_dir_open (scene.sim, folder, &dir, &fault));
  if (scrub) {
    fill_place (&scene);
    harm (&scene);
  }
  failing_arm (call, sticky);
  failing.below = !scrub;
  status = scrub ? job_scrub (&scene, &fault) : allocate (&fault);
  struck = failing_disarm ();
  CHECK (status == RP_OK || (struck > 0 && status == RP_NO_MEMORY));
  OK (rp_dir_list (dir, unlink_one, dir, &fault));
  rp_dir_close (dir);
  rp_io_destroy (scene.sim);
  CHECK (rmdir (folder) == 0);
  snprintf (folder, sizeof folder, "/");
  CHECK (failing_blocks == blocks);
  failing_runs++;
  return struck > 0;
}

int
main (int argc, char **argv)
{
  const uint64_t step = failing_step (STEP);

  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
    if (argc < 2 || strncmp (jobs[i].name, argv[1], strlen (argv[1])) == 0)
      failing_try (&jobs[i], true, step);
  for (unsigned way = 0; argc < 2 && way < 4; way++)
    for (uint64_t call = 1; without_memory_below (call, way / 2, way % 2);)
      call += step;
  failing_summary ("failing_upkeep_test");
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Looking after a journal while memory or storage fails: making, opening,
 * reading, scrubbing, mending, digesting, destaging; each allocation and each
 * call of the storage in turn, once and for ever.
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
#include "journal_model.h"

#define STEP    5u
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
  status = rp_dir_open (io, "/", &rig->dir, fault);
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
  int status = rp_dir_open (io, "/", &dir, fault);

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
set (struct scene *scene)
{
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_fault fault;
  struct rig rig;

  memset (scene, 0, sizeof *scene);
  OK (rp_io_simulate_create (&scene->sim, &fault));
  scene->io = scene->sim;
  memset (model[POINTS], 0xb5, BYTES);
  OK (rp_dir_open (scene->sim, "/", &dir, &fault));
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_file_pwrite (file, model[POINTS], BYTES, 0, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  OK (make_log (scene->sim, "log", &fault));
  OK (open_rig (scene->sim, RP_JOURNAL_WRITE, &rig, &fault));
  write_journal (rig.journal);
  close_rig (&rig);
  OK (rp_sim_settle (scene->sim, &fault));
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

struct job {
  const char *name;
  int  (*run) (struct scene *scene, struct rp_fault *fault);
  bool harmed;                   /* a grain is damaged */
  bool mends;
};

static const struct job jobs[] = {
  { "create", job_create, false, false },
  { "read", job_read, false, false },
  { "scrub", job_scrub, true, false },
  { "mend", job_mend, true, true },
  { "digest", job_digest, false, false },
  { "destage", job_destage, false, false },
  { "gate", job_gate, false, false },
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
  set (&scene);
  if (job->harmed)
    harm (&scene);
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
  if (!job->mends || scene.done)
    check_scene (&scene, job->harmed && !job->mends);
}

int
main (int argc, char **argv)
{
  const uint64_t step = failing_step (STEP);

  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++)
    if (argc < 2 || strncmp (jobs[i].name, argv[1], strlen (argv[1])) == 0)
      failing_try (&jobs[i], true, step);
  failing_summary ("failing_upkeep_test");
  return EXIT_SUCCESS;
}

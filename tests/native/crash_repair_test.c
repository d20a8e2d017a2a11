/* SPDX-License-Identifier: Apache-2.0 */
/* Repairs of damaged extents, and a power cut at every moment of them.
 *
 * Whatever is left: each sector that could be read reads as it did; a repair
 * that is asked for then takes back what was half done, mends everything, and
 * may be cut short as well.  Nor does a call that fails change what is read.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.
 */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crash_tell.h"
#include "chain.h"
#include "extent.h"
#include "simulate.h"

#define SECTOR RP_SECTOR_BYTES
#define LOOK   64u               /* sectors looked at in each table's range */
#define TAG    0x1234u
#define TABLES 32768u            /* bytes of metadata that are watched */

struct shape {
  const char         *name;
  enum rp_extent_kind kind;
  uint32_t            grain, span;     /* sectors; of a table */
  bool                redundant;
};

static const struct shape shapes[] = {
  { "hosted", RP_EXTENT_SPARSE, 1, 512, true },
  { "hosted, larger grains", RP_EXTENT_SPARSE, 8, 4096, true },
  { "hosted, plain", RP_EXTENT_SPARSE, 1, 512, false },
  { "COWD", RP_EXTENT_COWD, 1, 4096, false },
};

/* What is planted; each is mended whole. */
enum damage {
  ENTRY_OUTSIDE = 1, REDUNDANT_ENTRY = 2, SHARED_GRAIN = 4, DIRECTORY = 8,
  REDUNDANT_DIRECTORY = 16, LEAK = 32, LONGER = 64, UNCLEAN = 128,
  FREE_SECTOR = 256, SHARED_TABLE = 512,
};

struct extent {
  struct rp_dir  *dir;
  struct rp_file *file;
};

struct model {
  const struct shape *shape;
  uint8_t  data[2 * LOOK][SECTOR];
  bool     readable[2 * LOOK];
  uint8_t  tables[2][TABLES];    /* of a hosted extent: before, and after */
  struct rp_sim_seen *seen;
  uint64_t recovery_budget;
  uint64_t states, recoveries;
};

static uint32_t
guest_of (const struct shape *shape, uint32_t i)
{
  return i < LOOK ? i : shape->span + i - LOOK;
}

static struct rp_extent_place
place_of (const struct shape *shape, struct rp_file *file)
{
  return (struct rp_extent_place) {
    .file = file, .kind = shape->kind, .sectors = shape->span + LOOK,
  };
}

static int
open_extent (struct rp_io *io, bool writable, struct extent *out,
             struct rp_fault *fault)
{
  int status;

  memset (out, 0, sizeof *out);
  status = rp_dir_open (io, "/", &out->dir, fault);
  if (status == RP_OK)
    status = rp_file_open (out->dir, "disk", writable ? RP_OPEN_WRITE
                                                      : RP_OPEN_READ, 0,
                           &out->file, fault);
  return status;
}

static void
close_extent (struct extent *extent)
{
  rp_file_close (extent->file);
  rp_dir_close (extent->dir);
}

static uint32_t
load (struct rp_file *file, uint64_t offset)
{
  struct rp_fault fault;
  uint8_t field[4];

  OK (rp_file_pread_all (file, field, sizeof field, offset, &fault));
  return rp_load32 (field);
}

static void
store (struct rp_file *file, uint64_t offset, uint32_t value)
{
  struct rp_fault fault;
  uint8_t field[4];

  rp_store32 (field, value);
  OK (rp_file_pwrite (file, field, sizeof field, offset, &fault));
}

/* ---- making and harming ---- */

static void
make_extent (struct rp_io *io, const struct shape *shape)
{
  const struct rp_sparse_create how = {
    .kind = shape->kind, .capacity_sectors = shape->span + LOOK,
    .grain_sectors = shape->grain, .redundant = shape->redundant,
  };
  const struct rp_extent_place place = place_of (shape, NULL);
  struct rp_extent_spec spec = { .kind = place.kind, .sectors = place.sectors };
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_dir *dir;
  struct rp_fault fault;
  uint8_t sector[SECTOR];

  OK (rp_dir_open (io, "/", &dir, &fault));
  OK (rp_file_open (dir, "disk", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &spec.file, &fault));
  OK (rp_sparse_create (spec.file, &how, &fault));
  OK (rp_image_open (&spec, 1, true, &image, &fault));
  OK (rp_chain_create (&image, 1, &disk, &fault));
  for (uint32_t i = 0; i < 2 * LOOK; i++)
    if (i % 3 != 1) {
      memset (sector, (int) (i + 1), sizeof sector);
      OK (rp_disk_pwrite (disk, sector, SECTOR,
                          (uint64_t) guest_of (shape, i) * SECTOR, &fault));
    }
  OK (rp_chain_close_clean (disk, &fault));
  rp_disk_destroy (disk);
  rp_image_destroy (image);
  rp_file_close (spec.file);
  rp_dir_close (dir);
}

static void
harm_entries (const struct shape *shape, uint32_t damage, struct rp_file *file,
              const struct rp_sparse_info *info)
{
  const uint64_t table = (uint64_t) load (file, info->directory_sector
                                                * SECTOR) * SECTOR;
  const uint64_t other = shape->redundant
                         ? (uint64_t) load (file,
                                            info->redundant_directory_sector
                                            * SECTOR) * SECTOR : table;

  if (damage & ENTRY_OUTSIDE)
    store (file, table, 0x00ffffff);
  if (damage & REDUNDANT_ENTRY)
    store (file, other + 4 * 3, 0);
  if (damage & SHARED_GRAIN) {
    store (file, table + 4 * 5, load (file, table + 4 * 2));
    store (file, other + 4 * 5, load (file, table + 4 * 2));
  }
  if (damage & LEAK) {
    store (file, table + 4 * 6, 0);
    store (file, other + 4 * 6, 0);
  }
}

static void
harm (struct rp_io *io, const struct shape *shape, uint32_t damage)
{
  const bool cowd = shape->kind == RP_EXTENT_COWD;
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct extent extent;
  struct rp_fault fault;
  uint64_t bytes;

  OK (open_extent (io, true, &extent, &fault));
  OK (rp_sparse_read_header (extent.file, &kind, &info, &fault));
  harm_entries (shape, damage, extent.file, &info);
  if (damage & DIRECTORY)
    store (extent.file, info.directory_sector * SECTOR + 4, 0x00ffffff);
  if (damage & REDUNDANT_DIRECTORY)
    store (extent.file, info.redundant_directory_sector * SECTOR, 0);
  if (damage & SHARED_TABLE)
    store (extent.file, info.directory_sector * SECTOR + 4,
           load (extent.file, info.directory_sector * SECTOR));
  if (damage & LONGER) {
    OK (rp_file_size (extent.file, &bytes, &fault));
    OK (rp_file_truncate (extent.file, bytes + 20000, &fault));
  }
  if (damage & UNCLEAN)
    store (extent.file, cowd ? RP_COWD_UNCLEAN_OFFSET : 72,
           cowd ? 1 : 0x0d200a01);
  if (damage & FREE_SECTOR)
    store (extent.file, RP_COWD_FREE_OFFSET, 9);
  close_extent (&extent);
}

/* ---- looking ---- */

/* Read all sectors; with compare they are what the model has, where it has
 * anything. */
static int
look (struct rp_io *io, struct model *model, bool compare,
      struct rp_fault *fault)
{
  const struct rp_extent_place place = place_of (model->shape, NULL);
  struct rp_extent_spec spec = { .kind = place.kind, .sectors = place.sectors };
  struct rp_image *image = NULL;
  struct rp_disk *disk = NULL;
  struct extent extent;
  struct rp_fault ignored;
  uint8_t sector[SECTOR];
  int status = open_extent (io, false, &extent, fault);

  spec.file = extent.file;
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, false, &image, fault);
  if (status == RP_OK)
    status = rp_chain_create (&image, 1, &disk, fault);
  for (uint32_t i = 0; status == RP_OK && i < 2 * LOOK; i++) {
    const bool fine = rp_disk_pread (disk, sector, SECTOR,
                                     (uint64_t) guest_of (model->shape, i)
                                     * SECTOR, &ignored) == RP_OK;

    if (!compare) {
      model->readable[i] = fine;
      memcpy (model->data[i], sector, SECTOR);
    } else if (model->readable[i]
               && (!fine || memcmp (model->data[i], sector, SECTOR) != 0))
      status = rp_fail (fault, RP_CORRUPT, i * SECTOR,
                        "sector %u reads otherwise",
                        guest_of (model->shape, i));
  }
  rp_disk_destroy (disk);
  rp_image_destroy (image);
  close_extent (&extent);
  return status;
}

/* Header, directories and tables, but for the unclean flag. */
static int
read_tables (struct rp_file *file, const struct shape *shape, uint8_t *out,
             struct rp_fault *fault)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  int status = RP_OK;

  memset (out, 0, TABLES);
  if (shape->kind == RP_EXTENT_SPARSE)
    status = rp_sparse_read_header (file, &kind, &info, fault);
  if (status == RP_OK && shape->kind == RP_EXTENT_SPARSE) {
    CHECK (info.overhead_sectors * SECTOR <= TABLES);
    status = rp_file_pread_all (file, out, info.overhead_sectors * SECTOR, 0,
                                fault);
  }
  out[RP_KDMV_UNCLEAN_OFFSET] = 0;
  return status;
}

static void
keep_tables (struct rp_io *io, struct model *model, int which)
{
  struct extent extent;
  struct rp_fault fault;

  OK (open_extent (io, false, &extent, &fault));
  OK (read_tables (extent.file, model->shape, model->tables[which], &fault));
  close_extent (&extent);
}

/* All of the tables are old, or all of them are new. */
static int
check_whole (struct rp_io *io, struct model *model, struct rp_fault *fault)
{
  static uint8_t now[TABLES];
  enum rp_recovery recovery;
  struct extent extent;
  int status = open_extent (io, true, &extent, fault);

  if (status == RP_OK)
    status = rp_repair_recover (extent.dir, "disk.repair", extent.file, TAG,
                                "disk.repair-stale", &recovery, fault);
  if (status == RP_OK)
    status = read_tables (extent.file, model->shape, now, fault);
  close_extent (&extent);
  return status == RP_OK && memcmp (now, model->tables[0], TABLES) != 0
         && memcmp (now, model->tables[1], TABLES) != 0
         ? rp_fail (fault, RP_CORRUPT, 0, "some of the tables are mended")
         : status;
}

static void
count_finding (void *context, const struct rp_finding *finding)
{
  (void) finding;
  (*(uint64_t *) context)++;
}

static int
check_clean (struct rp_io *io, const struct shape *shape,
             struct rp_fault *fault)
{
  struct rp_extent_place place;
  struct extent extent;
  uint64_t count = 0;
  int status = open_extent (io, false, &extent, fault);

  place = place_of (shape, extent.file);
  if (status == RP_OK)
    status = rp_extent_check (&place, false, count_finding, &count, fault);
  close_extent (&extent);
  return status == RP_OK && count > 0
         ? rp_fail (fault, RP_CORRUPT, 0, "not everything is mended") : status;
}

/* As repair.py does it. */
static int
mend (struct rp_io *io, const struct shape *shape, struct rp_fault *fault)
{
  struct rp_extent_place place;
  struct rp_repair *repair = NULL;
  enum rp_recovery recovery;
  struct extent extent;
  int status = open_extent (io, true, &extent, fault);

  if (status == RP_OK)
    status = rp_repair_recover (extent.dir, "disk.repair", extent.file, TAG,
                                "disk.repair-stale", &recovery, fault);
  if (status == RP_OK && recovery == RP_RECOVERY_STALE)
    status = rp_fail (fault, RP_CORRUPT, 0, "nobody else has written");
  place = place_of (shape, extent.file);
  if (status == RP_OK)
    status = rp_repair_create (&place, false, &repair, fault);
  if (status == RP_OK)
    status = rp_repair_run (repair, extent.dir, "disk.repair", extent.file,
                            TAG, NULL, fault);
  rp_repair_destroy (repair);
  close_extent (&extent);
  return status;
}

/* ---- power cuts ---- */

static int
check_again (void *context, struct rp_io *io, const struct rp_sim_state *state,
             struct rp_fault *fault)
{
  struct model *model = context;
  int status = look (io, model, true, fault);

  (void) state;
  model->recoveries++;
  if (status == RP_OK)
    status = mend (io, model->shape, fault);
  if (status == RP_OK)
    status = look (io, model, true, fault);
  return status == RP_OK ? check_clean (io, model->shape, fault) : status;
}

static int
check_state (void *context, struct rp_io *io, const struct rp_sim_state *state,
             struct rp_fault *fault)
{
  struct model *model = context;
  struct rp_sim_options options = {
    .budget = 40, .seed = state->point, .flags = RP_SIM_TEAR,
    .seen = model->seen,
  };
  struct rp_sim_counts counts;
  struct rp_sim_state failed;
  int status = look (io, model, true, fault);

  model->states++;
  if (status == RP_OK && model->states % 2)    /* else mend has to do it */
    status = check_whole (io, model, fault);
  if (status == RP_OK)
    status = mend (io, model->shape, fault);
  if (status == RP_OK)
    status = look (io, model, true, fault);
  if (status == RP_OK)
    status = check_clean (io, model->shape, fault);
  if (status == RP_OK && model->states % 8 == 0
      && model->recoveries < model->recovery_budget)
    status = rp_sim_crash_states (io, &options, check_again, model, &counts,
                                  &failed, fault);
  return status;
}

static void
test_power_cuts (const struct shape *shape, uint32_t damage, uint64_t budget,
                 struct rp_sim_seen *seen)
{
  const struct rp_sim_options options = {
    .budget = budget, .seed = damage, .flags = RP_SIM_TEAR, .seen = seen,
  };
  static struct model model;
  struct rp_sim_counts counts;
  struct rp_sim_state failed;
  struct rp_fault fault;
  struct rp_io *io;
  char text[4000];

  memset (&model, 0, sizeof model);
  model.shape = shape;
  model.seen = seen;
  model.recovery_budget = budget / 4;
  OK (rp_io_simulate_create (&io, &fault));
  make_extent (io, shape);
  harm (io, shape, damage);
  OK (rp_sim_settle (io, &fault));
  OK (look (io, &model, false, &fault));
  keep_tables (io, &model, 0);
  OK (mend (io, shape, &fault));
  keep_tables (io, &model, 1);
  OK (look (io, &model, true, &fault));
  OK (check_clean (io, shape, &fault));
  if (rp_sim_crash_states (io, &options, check_state, &model, &counts,
                           &failed, &fault) != RP_OK) {
    rp_sim_state_text (io, &failed, text, sizeof text);
    fprintf (stderr, "violation: %s, damage %x: crash after operation %llu: "
             "%s\n%s\n", shape->name, damage,
             (unsigned long long) failed.point, fault.message, text);
    exit (EXIT_FAILURE);
  }
  rp_io_destroy (io);
}

/* ---- failing calls ---- */

static bool
run_with_failure (const struct shape *shape, uint32_t damage, uint64_t call,
                  enum rp_fault_effect effect)
{
  const struct rp_fault_plan plan = {
    .call = call, .effect = effect, .os_errno = 28,
    .kinds = effect == RP_FAULT_LOST ? RP_FAULT_SYNC
             : RP_FAULT_WRITE | RP_FAULT_SYNC | RP_FAULT_META,
  };
  static struct model model;
  struct rp_fault fault;
  struct rp_io *sim, *io;
  bool struck;

  memset (&model, 0, sizeof model);
  model.shape = shape;
  OK (rp_io_simulate_create (&sim, &fault));
  make_extent (sim, shape);
  harm (sim, shape, damage);
  OK (rp_sim_settle (sim, &fault));
  OK (look (sim, &model, false, &fault));
  OK (rp_io_fault_create (sim, &plan, &io, &fault));
  (void) mend (io, shape, &fault);
  struck = rp_io_fault_calls (io) >= call;
  rp_io_destroy (io);
  if (look (sim, &model, true, &fault) != RP_OK
      || mend (sim, shape, &fault) != RP_OK
      || look (sim, &model, true, &fault) != RP_OK
      || check_clean (sim, shape, &fault) != RP_OK) {
    fprintf (stderr, "violation: %s, damage %x: call %llu fails (effect %d): "
             "%s\n", shape->name, damage, (unsigned long long) call,
             (int) effect, fault.message);
    exit (EXIT_FAILURE);
  }
  rp_io_destroy (sim);
  return struck;
}

/* A disk that was written after its repair was cut short keeps what was
 * written. */
static void
test_a_backup_grows_stale (void)
{
  const struct shape *shape = &shapes[0];
  const struct rp_sim_options options = { .budget = 400, .seed = 3 };
  struct rp_sim_sweep *sweep;
  struct rp_sim_state state;
  enum rp_recovery recovery;
  struct extent extent;
  struct rp_fault fault;
  struct rp_io *io, *cut;
  uint64_t stale = 0;

  OK (rp_io_simulate_create (&io, &fault));
  make_extent (io, shape);
  harm (io, shape, REDUNDANT_ENTRY | SHARED_GRAIN);
  OK (rp_sim_settle (io, &fault));
  OK (mend (io, shape, &fault));
  OK (rp_sim_sweep_create (io, &options, &sweep, &fault));
  while (rp_sim_sweep_next (sweep, &cut, &state, &fault) == RP_OK) {
    OK (open_extent (cut, true, &extent, &fault));
    store (extent.file, 30000, 0x77777777);   /* grain data: no matter */
    OK (rp_repair_recover (extent.dir, "disk.repair", extent.file, TAG + 1,
                           "disk.repair-stale", &recovery, &fault));
    CHECK (recovery != RP_RECOVERY_UNDONE);
    CHECK (load (extent.file, 30000) == 0x77777777);
    if (recovery == RP_RECOVERY_STALE) {
      struct rp_stat stat;

      stale++;
      OK (rp_dir_stat (extent.dir, "disk.repair-stale", &stat, &fault));
      CHECK (rp_dir_stat (extent.dir, "disk.repair", &stat, &fault) == RP_IO);
    }
    close_extent (&extent);
    rp_io_destroy (cut);
  }
  CHECK (stale > 0);
  rp_sim_sweep_destroy (sweep);
  rp_io_destroy (io);
}

/* ---- any damage ---- */

static uint32_t
next_random (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return (uint32_t) (*state >> 33);
}

/* Fields of the header, directories and tables get random values. */
static void
harm_at_random (struct rp_io *io, const struct shape *shape, uint64_t *random)
{
  static const uint64_t values[] = {
    0, 1, 2, 5, 30, 60, 70, 90, 200, 0x7fffffff, 0xffffffff,
  };
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct extent extent;
  struct rp_fault fault;

  OK (open_extent (io, true, &extent, &fault));
  OK (rp_sparse_read_header (extent.file, &kind, &info, &fault));
  for (uint32_t i = next_random (random) % 12 + 1; i > 0; i--) {
    const uint64_t tables = (info.overhead_sectors + LOOK) * SECTOR / 4;
    uint64_t at = next_random (random) % tables * 4;
    const uint32_t directory = next_random (random) % 4;

    if (directory == 0)
      at = info.directory_sector * SECTOR + next_random (random) % 2 * 4;
    else if (directory == 1 && shape->redundant)
      at = info.redundant_directory_sector * SECTOR
           + next_random (random) % 2 * 4;
    if (at < SECTOR && next_random (random) % 8)
      at += SECTOR;              /* seldom the header */
    store (extent.file, at, next_random (random) % 3
                            ? (uint32_t) values[next_random (random) % 11]
                            : next_random (random) % 500);
  }
  close_extent (&extent);
}

static int
count_findings (struct rp_io *io, const struct shape *shape, uint64_t *count,
                struct rp_fault *fault)
{
  struct rp_extent_place place;
  struct extent extent;
  int status = open_extent (io, false, &extent, fault);

  *count = 0;
  place = place_of (shape, extent.file);
  if (status == RP_OK)
    status = rp_extent_check (&place, false, count_finding, count, fault);
  close_extent (&extent);
  return status;
}

/* Whatever the damage: without redundant tables every sector that could be
 * read reads the same, and a second repair finds nothing more to do. */
static void
test_any_damage (uint64_t seed)
{
  const struct shape *shape = &shapes[seed % 4];
  static struct model model;
  uint64_t random = seed, before, after, again;
  struct rp_fault fault;
  struct rp_io *io;
  int status;

  memset (&model, 0, sizeof model);
  model.shape = shape;
  OK (rp_io_simulate_create (&io, &fault));
  make_extent (io, shape);
  harm_at_random (io, shape, &random);
  status = look (io, &model, false, &fault);
  OK (count_findings (io, shape, &before, &fault));
  OK (mend (io, shape, &fault));
  OK (count_findings (io, shape, &after, &fault));
  if (status == RP_OK && !shape->redundant)
    status = look (io, &model, true, &fault);
  else
    status = RP_OK;
  OK (mend (io, shape, &fault));
  OK (count_findings (io, shape, &again, &fault));
  if (status != RP_OK || again > after) {
    fprintf (stderr, "violation: %s, seed %llu: %llu, %llu, %llu findings: "
             "%s\n", shape->name, (unsigned long long) seed,
             (unsigned long long) before, (unsigned long long) after,
             (unsigned long long) again, fault.message);
    exit (EXIT_FAILURE);
  }
  rp_io_destroy (io);
}

static const struct {
  uint32_t shape, damage;
} cases[] = {
  { 0, ENTRY_OUTSIDE | REDUNDANT_ENTRY | SHARED_GRAIN | DIRECTORY | LEAK
       | LONGER | UNCLEAN },
  { 0, SHARED_GRAIN | REDUNDANT_DIRECTORY },
  { 0, UNCLEAN | LONGER },
  { 1, ENTRY_OUTSIDE | SHARED_GRAIN | DIRECTORY | LEAK },
  { 1, REDUNDANT_ENTRY | LEAK | UNCLEAN },
  { 2, SHARED_GRAIN | LEAK | LONGER | UNCLEAN },
  { 3, SHARED_GRAIN | LEAK | FREE_SECTOR | UNCLEAN },
  { 3, SHARED_TABLE },
};

int
main (void)
{
  const size_t count = sizeof cases / sizeof *cases;
  const uint64_t wanted = crash_budget (8000);
  static const enum rp_fault_effect effects[] = {
    RP_FAULT_PLAIN, RP_FAULT_PARTIAL, RP_FAULT_LOST,
  };
  struct rp_sim_seen *seen;
  uint64_t runs = 0;
  struct rp_fault fault;
  char calls[64];

  OK (rp_sim_seen_create (&seen, &fault));
  test_a_backup_grows_stale ();
  for (uint64_t seed = 0; seed < 300; seed++)
    test_any_damage (seed);
  for (size_t i = 0; i < count; i++)
    test_power_cuts (&shapes[cases[i].shape], cases[i].damage,
                     wanted / count + 1, seen);
  for (size_t i = 0; i < count; i++)
    for (size_t k = 0; k < (i % 3 ? 1 : sizeof effects / sizeof *effects); k++)
      for (uint64_t call = 1; run_with_failure (&shapes[cases[i].shape],
                                                cases[i].damage, call,
                                                effects[k]); call++)
        runs++;
  snprintf (calls, sizeof calls, ", %llu failing calls",
            (unsigned long long) runs);
  crash_tell ("crash_repair_test", seen, count, calls);
  rp_sim_seen_destroy (seen);
  return EXIT_SUCCESS;
}

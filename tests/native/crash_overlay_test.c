/* SPDX-License-Identifier: Apache-2.0 */
/* An overlay over a parent, and a power cut at every moment of its writing.
 *
 * Whatever is left: each sector reads as the parent or as one of its versions
 * that is not older than the last flushed one; the tables are sound (nothing
 * but leaks, and tables that differ where the writer says it was unclean); and
 * the next writer goes on from there.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.  Argument: added to the
 * seed; with it no calls fail.
 */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crash_tell.h"
#include "image.h"
#include "simulate.h"

#define SECTORS     72u
#define OPS         60u
#define FLUSHES_MAX 12u
#define SEED        20261122u
#define SECTOR      RP_SECTOR_BYTES

struct shape {
  const char         *name;
  enum rp_extent_kind kind;
  uint32_t            grain;
  bool                redundant, zero_grains;
  bool                no_tables; /* directory entries of 0 */
};

static const struct shape shapes[] = {
  { "hosted", RP_EXTENT_SPARSE, 8, true, true, false },
  { "hosted, plain", RP_EXTENT_SPARSE, 8, false, false, false },
  { "hosted, tiny grains", RP_EXTENT_SPARSE, 1, true, true, false },
  { "hosted, no tables", RP_EXTENT_SPARSE, 8, true, true, true },
  { "COWD", RP_EXTENT_COWD, 8, false, false, false },
  { "COWD, tiny grains", RP_EXTENT_COWD, 1, false, false, false },
};

/* What was written where: op i, counted from 1, wrote versions of its range. */
struct op {
  uint32_t first, stop;          /* sectors */
  bool     zeros;
};

struct history {
  const struct shape *shape;
  uint64_t  seed;
  struct op ops[OPS + 1];
  uint32_t  floor[FLUSHES_MAX + 1][SECTORS];  /* by the tag of the flush */
  uint32_t  latest[SECTORS];
  uint32_t  flushes;
  bool      half[SECTORS];       /* a write failed half-way through it */
  uint64_t  checked;
};

static uint32_t
next_random (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return (uint32_t) (*state >> 33);
}

/* Version 0 is the parent, half of which is zeros. */
static void
fill (uint8_t *sector, uint32_t number, uint32_t version)
{
  if (version == 0 && number / 4 % 2) {
    memset (sector, 0, SECTOR);
    return;
  }
  for (uint32_t i = 0; i < SECTOR; i += 8) {
    rp_store32 (sector + i, version + 1);
    rp_store32 (sector + i + 4, number + i);
  }
}

/* ---- the pieces ---- */

struct rig {
  struct rp_dir   *dir;
  struct rp_file  *top, *base;
  struct rp_image *links[2];
  struct rp_disk  *disk;
};

static int
open_rig (struct rp_io *io, const struct shape *shape, bool writable,
          struct rig *rig, struct rp_fault *fault)
{
  struct rp_extent_spec spec = { .kind = shape->kind, .sectors = SECTORS };
  int status;

  memset (rig, 0, sizeof *rig);
  status = rp_dir_open (io, "/", &rig->dir, fault);
  if (status == RP_OK)
    status = rp_file_open (rig->dir, "top",
                           writable ? RP_OPEN_WRITE : RP_OPEN_READ, 0,
                           &rig->top, fault);
  if (status == RP_OK)
    status = rp_file_open (rig->dir, "base", RP_OPEN_READ, 0, &rig->base,
                           fault);
  if (status != RP_OK)
    return status;
  spec.file = rig->top;
  status = rp_image_open (&spec, 1, writable, &rig->links[0], fault);
  spec.kind = RP_EXTENT_FLAT;
  spec.file = rig->base;
  if (status == RP_OK)
    status = rp_image_open (&spec, 1, false, &rig->links[1], fault);
  if (status == RP_OK)
    status = rp_chain_create (rig->links, 2, &rig->disk, fault);
  return status;
}

static void
close_rig (struct rig *rig)
{
  rp_disk_destroy (rig->disk);
  rp_image_destroy (rig->links[0]);
  rp_image_destroy (rig->links[1]);
  rp_file_close (rig->top);
  rp_file_close (rig->base);
  rp_dir_close (rig->dir);
}

static void
make_files (struct rp_io *io, const struct shape *shape)
{
  const struct rp_sparse_create how = {
    .kind = shape->kind, .capacity_sectors = SECTORS,
    .grain_sectors = shape->grain, .redundant = shape->redundant,
    .zero_grains = shape->zero_grains,
  };
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct rp_file *base, *top;
  struct rp_dir *dir;
  struct rp_fault fault;
  uint8_t sector[SECTOR], none[4] = { 0 };

  OK (rp_dir_open (io, "/", &dir, &fault));
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &base,
                    &fault));
  OK (rp_file_open (dir, "top", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &top,
                    &fault));
  for (uint32_t i = 0; i < SECTORS; i++) {
    fill (sector, i, 0);
    OK (rp_file_pwrite (base, sector, SECTOR, i * SECTOR, &fault));
  }
  OK (rp_sparse_create (top, &how, &fault));
  if (shape->no_tables) {
    OK (rp_sparse_read_header (top, &kind, &info, &fault));
    OK (rp_file_pwrite (top, none, 4, info.directory_sector * SECTOR, &fault));
    OK (rp_file_pwrite (top, none, 4,
                        info.redundant_directory_sector * SECTOR, &fault));
  }
  rp_file_close (top);
  rp_file_close (base);
  rp_dir_close (dir);
  OK (rp_sim_settle (io, &fault));
}

/* ---- the workload ---- */

static int
write_op (struct rig *rig, const struct history *history, uint32_t op,
          struct rp_fault *fault)
{
  const uint32_t first = history->ops[op].first, stop = history->ops[op].stop;
  uint8_t data[SECTORS * SECTOR];

  if (history->ops[op].zeros)
    return rp_disk_zero (rig->disk, (stop - first) * SECTOR, first * SECTOR,
                         op % 4 != 0, fault);
  for (uint32_t i = first; i < stop; i++)
    fill (data + (i - first) * SECTOR, i, op);
  return rp_disk_pwrite (rig->disk, data, (stop - first) * SECTOR,
                         first * SECTOR, fault);
}

static void
choose_ops (struct history *history)
{
  uint64_t random = history->seed + history->shape->grain
                    + history->shape->kind;

  for (uint32_t op = 1; op <= OPS; op++) {
    const uint32_t first = next_random (&random) % SECTORS;
    const uint32_t length = 1 + next_random (&random)
                            % (op % 5 == 0 ? 20 : 3);

    history->ops[op] = (struct op) {
      .first = first,
      .stop = first + length < SECTORS ? first + length : SECTORS,
      .zeros = next_random (&random) % 5 == 0,
    };
  }
}

static void
acknowledge (struct rp_io *io, struct history *history)
{
  struct rp_fault fault;

  history->flushes++;
  CHECK (history->flushes <= FLUSHES_MAX);
  memcpy (history->floor[history->flushes], history->latest,
          sizeof history->latest);
  if (io)
    OK (rp_sim_acknowledge (io, history->flushes, &fault));
}

/* One write, and what comes after it: a flush, or a close and a new opening.
 * sim is told of what was acknowledged. */
static int
step (struct rp_io *io, struct rp_io *sim, struct rig *rig, uint32_t op,
      struct history *history, struct rp_fault *fault)
{
  int status = write_op (rig, history, op, fault);

  for (uint32_t i = history->ops[op].first; i < history->ops[op].stop; i++) {
    history->half[i] = status != RP_OK;
    if (status == RP_OK)
      history->latest[i] = op;
  }
  if (status != RP_OK)
    return status;
  if (op == OPS / 2 || op == OPS)
    status = rp_chain_close_clean (rig->disk, fault);
  else if (op % 6 == 0)
    status = rp_disk_flush (rig->disk, fault);
  else
    return RP_OK;
  if (status != RP_OK)
    return status;
  acknowledge (sim, history);
  if (op == OPS / 2) {
    close_rig (rig);
    status = open_rig (io, history->shape, true, rig, fault);
  }
  return status;
}

/* ---- the checker ---- */

/* A version of the sector that is at least floor reads like this. */
static bool
is_allowed (const struct history *history, uint32_t number, uint32_t floor,
            const uint8_t *found)
{
  uint8_t wanted[SECTOR];

  for (uint32_t version = floor; version <= OPS; version++) {
    const struct op *op = &history->ops[version];

    if (version > 0 && (number < op->first || number >= op->stop))
      continue;
    if (version > 0 && op->zeros)
      memset (wanted, 0, SECTOR);
    else
      fill (wanted, number, version);
    if (memcmp (wanted, found, SECTOR) == 0)
      return true;
  }
  return false;
}

static int
check_sectors (const struct history *history, struct rp_disk *disk,
               uint64_t tag, struct rp_fault *fault)
{
  uint8_t found[SECTORS * SECTOR];
  int status;

  status = rp_disk_pread (disk, found, sizeof found, 0, fault);
  for (uint32_t i = 0; status == RP_OK && i < SECTORS; i++)
    if (!history->half[i]
        && !is_allowed (history, i, history->floor[tag][i],
                        found + i * SECTOR))
      return rp_fail (fault, RP_CORRUPT, i * SECTOR,
                      "sector %u: none of its versions from %u on", i,
                      history->floor[tag][i]);
  return status;
}

struct verdict {
  bool unclean, torn, wrong;
};

static void
judge (void *context, const struct rp_finding *finding)
{
  struct verdict *verdict = context;

  if (strcmp (finding->kind, "unclean") == 0)
    verdict->unclean = true;
  else if (strcmp (finding->kind, "redundant") == 0)
    verdict->torn = true;
  else if (strcmp (finding->kind, "leak") != 0)
    verdict->wrong = true;
}

static int
check_tables (struct rig *rig, bool clean, struct rp_fault *fault)
{
  struct verdict verdict = { false, false, false };
  const int status = rp_image_check (rig->links[0], judge, &verdict, fault);

  if (status == RP_OK && (verdict.wrong || (verdict.torn && !verdict.unclean)
                          || (clean && verdict.unclean)))
    return rp_fail (fault, RP_CORRUPT, 0, "the tables are not sound");
  return status;
}

/* The next writer: its write lands, nothing else changes. */
static int
go_on (struct rp_io *io, const struct history *history, uint64_t tag,
       struct rp_fault *fault)
{
  const uint32_t number = (uint32_t) (tag * 11 + 5) % SECTORS;
  uint8_t before[SECTORS * SECTOR], after[SECTORS * SECTOR];
  struct rig rig;
  int status;

  status = open_rig (io, history->shape, true, &rig, fault);
  if (status == RP_OK)
    status = rp_disk_pread (rig.disk, before, sizeof before, 0, fault);
  memset (before + number * SECTOR + 7, 0x5c, 100);
  if (status == RP_OK)
    status = rp_disk_pwrite (rig.disk, before + number * SECTOR + 7, 100,
                             number * SECTOR + 7, fault);
  if (status == RP_OK)
    status = rp_chain_close_clean (rig.disk, fault);
  close_rig (&rig);
  if (status != RP_OK)
    return status;
  status = open_rig (io, history->shape, false, &rig, fault);
  if (status == RP_OK)
    status = rp_disk_pread (rig.disk, after, sizeof after, 0, fault);
  if (status == RP_OK && memcmp (before, after, sizeof after) != 0)
    status = rp_fail (fault, RP_CORRUPT, 0,
                      "the next writer's close changed other data");
  if (status == RP_OK)
    status = check_tables (&rig, true, fault);
  close_rig (&rig);
  return status;
}

static int
check_state (void *context, struct rp_io *io, const struct rp_sim_state *state,
             struct rp_fault *fault)
{
  struct history *history = context;
  struct rig rig;
  int status;

  history->checked++;
  status = open_rig (io, history->shape, false, &rig, fault);
  if (status == RP_OK)
    status = check_sectors (history, rig.disk, state->last_tag, fault);
  if (status == RP_OK)
    status = check_tables (&rig, false, fault);
  close_rig (&rig);
  if (status == RP_OK)
    status = go_on (io, history, state->point, fault);
  return status;
}

static void
test_power_cuts (const struct shape *shape, uint64_t seed, uint64_t budget,
                 struct rp_sim_seen *seen)
{
  const struct rp_sim_options options = {
    .budget = budget, .seed = seed, .flags = RP_SIM_TEAR, .seen = seen,
  };
  static struct history history;
  struct rp_sim_counts counts;
  struct rp_sim_state failed;
  struct rp_fault fault;
  struct rp_io *io;
  struct rig rig;
  char text[4000];

  memset (&history, 0, sizeof history);
  history.shape = shape;
  history.seed = seed;
  choose_ops (&history);
  OK (rp_io_simulate_create (&io, &fault));
  make_files (io, shape);
  OK (open_rig (io, shape, true, &rig, &fault));
  for (uint32_t op = 1; op <= OPS; op++)
    OK (step (io, io, &rig, op, &history, &fault));
  close_rig (&rig);
  if (rp_sim_crash_states (io, &options, check_state, &history, &counts,
                           &failed, &fault) != RP_OK) {
    rp_sim_state_text (io, &failed, text, sizeof text);
    fprintf (stderr,
             "%s, seed %llu: crash after operation %llu, flush %llu: %s\n%s\n",
             shape->name, (unsigned long long) seed,
             (unsigned long long) failed.point,
             (unsigned long long) failed.last_tag, fault.message, text);
    exit (EXIT_FAILURE);
  }
  rp_io_destroy (io);
}

/* Call number `call` fails; what was flushed before is there, and what failed
 * leaves old or new sectors.  Returns whether there was such a call. */
static bool
run_with_failure (const struct shape *shape, uint64_t call,
                  enum rp_fault_effect effect, bool sticky)
{
  const struct rp_fault_plan plan = {
    .call = call, .effect = effect, .os_errno = 28, .sticky = sticky,
    .kinds = effect == RP_FAULT_LOST ? RP_FAULT_SYNC
             : RP_FAULT_WRITE | RP_FAULT_SYNC | RP_FAULT_META,
  };
  static struct history history;
  struct rp_fault fault;
  struct rp_io *sim, *io;
  struct rig rig;
  bool struck, open;

  memset (&history, 0, sizeof history);
  history.shape = shape;
  history.seed = SEED;
  choose_ops (&history);
  OK (rp_io_simulate_create (&sim, &fault));
  make_files (sim, shape);
  OK (rp_io_fault_create (sim, &plan, &io, &fault));
  open = open_rig (io, shape, true, &rig, &fault) == RP_OK;
  for (uint32_t op = 1; op <= OPS && open; op++) {
    const int status = step (io, NULL, &rig, op, &history, &fault);

    if (status != RP_OK && rig.disk == NULL)
      break;                     /* it could not be opened again */
  }
  if (effect != RP_FAULT_PARTIAL)
    memset (history.half, 0, sizeof history.half);
  close_rig (&rig);
  struck = rp_io_fault_calls (io) >= call;
  rp_io_destroy (io);
  OK (open_rig (sim, shape, false, &rig, &fault));
  if (check_sectors (&history, rig.disk, history.flushes, &fault) != RP_OK
      || check_tables (&rig, false, &fault) != RP_OK) {
    fprintf (stderr, "%s: call %llu fails (effect %d): %s\n", shape->name,
             (unsigned long long) call, (int) effect, fault.message);
    exit (EXIT_FAILURE);
  }
  close_rig (&rig);
  rp_io_destroy (sim);
  return struck;
}

static uint64_t
test_failing_calls (const struct shape *shape)
{
  uint64_t runs = 0;

  static const enum rp_fault_effect effects[] = {
    RP_FAULT_PLAIN, RP_FAULT_PARTIAL, RP_FAULT_LOST,
  };

  for (size_t i = 0; i < sizeof effects / sizeof *effects; i++)
    for (uint64_t call = 1; run_with_failure (shape, call, effects[i],
                                              call % 2); call++)
      runs++;
  return runs;
}

int
main (int argc, char **argv)
{
  const size_t count = sizeof shapes / sizeof *shapes;
  const uint64_t wanted = crash_budget (16000);
  const uint64_t first = argc > 1 ? strtoull (argv[1], NULL, 10) : 0;
  uint64_t share = wanted / count + 1, runs = 0, workloads = 0;
  uint64_t seed = SEED + first;
  char calls[64];
  struct rp_sim_seen *seen;
  struct rp_fault fault;

  if (share > 4000)
    share = 4000;
  OK (rp_sim_seen_create (&seen, &fault));
  for (; rp_sim_seen_count (seen) < wanted; seed += 1000)
    for (size_t i = 0; i < count; i++, workloads++)
      test_power_cuts (&shapes[i], seed, share, seen);
  for (size_t i = 0; i < count && first == 0; i++)
    runs += test_failing_calls (&shapes[i]);
  snprintf (calls, sizeof calls, ", %llu failing calls",
            (unsigned long long) runs);
  crash_tell ("crash_overlay_test", seen, workloads, calls);
  rp_sim_seen_destroy (seen);
  return EXIT_SUCCESS;
}

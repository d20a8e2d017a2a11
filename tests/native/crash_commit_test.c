/* SPDX-License-Identifier: Apache-2.0 */
/* Every short life of a snapshot that is committed into its parent, and a
 * power cut at every moment of it.
 *
 *   base (flat)  <-  middle (a snapshot with data)  <-  top (a new one)
 *
 * The acts, in every sequence of one, two and three: writes, zeroes, flushes,
 * and a commit: what top holds is merged into middle (as convert.commit and the
 * expiry of long-term points do), after which top is removed, and made anew.
 * Whatever a cut leaves:
 *
 *   while top is there, the chain reads as it did: each sector is one of its
 *   versions, and none older than the last that was flushed; a commit that is
 *   asked for again ends with the same, also when that is cut short
 *   when top has gone, middle by itself reads as the chain had
 *   the base never changes
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.  Arguments: part, and of
 * how many, so that many can share the work.
 */
#include <string.h>

#include "bytes.h"
#include "copy.h"
#include "crash_tell.h"
#include "image.h"
#include "simulate.h"

#define SECTORS   40u
#define SECTOR    RP_SECTOR_BYTES
#define SIZE      (SECTORS * SECTOR)
#define LONGEST   3u
#define VERSIONS  16u
#define ACKS      16u
#define SWEEP     500u           /* states of one life at most */
#define RECOVER   6u             /* each n-th state's recovery is cut, too */

struct shape {
  const char         *name;
  enum rp_extent_kind middle, top;
  uint32_t            middle_grain, top_grain;
};

static const struct shape shapes[] = {
  { "hosted into hosted", RP_EXTENT_SPARSE, RP_EXTENT_SPARSE, 8, 8 },
  { "hosted into COWD", RP_EXTENT_COWD, RP_EXTENT_SPARSE, 1, 8 },
  { "COWD into hosted", RP_EXTENT_SPARSE, RP_EXTENT_COWD, 16, 1 },
};

enum act { ACT_WRITE, ACT_LONG_WRITE, ACT_ZERO, ACT_FLUSH, ACT_COMMIT, ACTS };

struct history {
  const struct shape *shape;
  uint32_t number, length;       /* which life */
  struct { uint32_t first, stop; bool zeros; } versions[VERSIONS];
  uint32_t version_count;        /* version 0: middle over base */
  uint32_t latest[SECTORS];
  uint32_t floor[ACKS][SECTORS]; /* by the tag */
  uint32_t acks;
  uint64_t states;
  unsigned depth;
  struct rp_sim_seen *seen;
  struct rp_io *swept[2];
};

/* ---- bytes ---- */

/* kind 0: of the base; 1: of middle; 2 on: version kind - 1. */
static void
fill (uint8_t *sector, uint32_t number, uint32_t kind)
{
  for (uint32_t i = 0; i < SECTOR; i += 8) {
    rp_store32 (sector + i, kind + 1);
    rp_store32 (sector + i + 4, number + i);
  }
}

static void
fill_version (const struct history *history, uint32_t number, uint32_t version,
              uint8_t *sector)
{
  if (version == 0)
    fill (sector, number, number / 5 % 2);
  else if (history->versions[version].zeros)
    memset (sector, 0, SECTOR);
  else
    fill (sector, number, version + 1);
}

/* ---- the chain ---- */

struct rig {
  struct rp_dir   *dir;
  struct rp_file  *files[3];     /* top, middle, base */
  struct rp_image *links[3];
  struct rp_disk  *disk;
};

static const char *const names[] = { "top", "middle", "base" };

static void
close_rig (struct rig *rig)
{
  rp_disk_destroy (rig->disk);
  for (int i = 0; i < 3; i++) {
    rp_image_destroy (rig->links[i]);
    rp_file_close (rig->files[i]);
  }
  rp_dir_close (rig->dir);
  memset (rig, 0, sizeof *rig);
}

/* From this link downwards. */
static int
open_rig (struct rp_io *io, const struct shape *shape, int first,
          bool writable, struct rig *rig, struct rp_fault *fault)
{
  const enum rp_extent_kind kinds[] = { shape->top, shape->middle,
                                        RP_EXTENT_FLAT };
  int status;

  memset (rig, 0, sizeof *rig);
  status = rp_dir_open (io, "/", &rig->dir, fault);
  for (int i = first; status == RP_OK && i < 3; i++) {
    struct rp_extent_spec spec = { .kind = kinds[i], .sectors = SECTORS };
    const bool writes = writable && i == first;

    status = rp_file_open (rig->dir, names[i], writes ? RP_OPEN_WRITE
                                                      : RP_OPEN_READ, 0,
                           &rig->files[i], fault);
    spec.file = rig->files[i];
    if (status == RP_OK)
      status = rp_image_open (&spec, 1, writes, &rig->links[i], fault);
  }
  if (status == RP_OK)
    status = rp_chain_create (rig->links + first, 3 - (uint32_t) first,
                              &rig->disk, fault);
  return status;
}

static int
make_link (struct rp_io *io, const char *name, enum rp_extent_kind kind,
           uint32_t grain, struct rp_fault *fault)
{
  const struct rp_sparse_create how = {
    .kind = kind, .capacity_sectors = SECTORS, .grain_sectors = grain,
    .redundant = kind == RP_EXTENT_SPARSE,
    .zero_grains = kind == RP_EXTENT_SPARSE,
  };
  struct rp_file *file = NULL;
  struct rp_dir *dir;
  int status = rp_dir_open (io, "/", &dir, fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, "new", RP_OPEN_WRITE | RP_OPEN_CREATE
                         | RP_OPEN_TRUNCATE, 0600, &file, fault);
  if (status == RP_OK)
    status = rp_sparse_create (file, &how, fault);
  rp_file_close (file);
  if (status == RP_OK)           /* its name appears when it is whole */
    status = rp_dir_rename (dir, "new", name, fault);
  if (status == RP_OK)
    status = rp_dir_sync (dir, fault);
  rp_dir_close (dir);
  return status;
}

static bool
has_top (struct rp_io *io)
{
  struct rp_stat stat;
  struct rp_dir *dir;
  struct rp_fault fault;
  bool found;

  OK (rp_dir_open (io, "/", &dir, &fault));
  found = rp_dir_stat (dir, "top", &stat, &fault) == RP_OK;
  rp_dir_close (dir);
  return found;
}

/* Merge top into middle, and let it go; as often as it is asked for. */
static int
commit (struct rp_io *io, const struct shape *shape, struct rp_fault *fault)
{
  const struct rp_copy_options options = { .workers = 1 };
  struct rig from, to = { .dir = NULL };
  int status = open_rig (io, shape, 0, false, &from, fault);

  if (status == RP_OK)
    status = open_rig (io, shape, 1, true, &to, fault);
  if (status == RP_OK)
    status = rp_merge (from.disk, 1, to.disk, &options, fault);
  if (status == RP_OK)
    status = rp_chain_close_clean (to.disk, fault);
  close_rig (&to);
  if (status == RP_OK)
    status = rp_dir_unlink (from.dir, "top", fault);
  if (status == RP_OK)
    status = rp_dir_sync (from.dir, fault);
  close_rig (&from);
  return status;
}

/* ---- a life ---- */

static void
set (struct rp_io *io, const struct shape *shape)
{
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_fault fault;
  struct rig rig;
  uint8_t sector[SECTOR];

  OK (rp_dir_open (io, "/", &dir, &fault));
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  for (uint32_t i = 0; i < SECTORS; i++) {
    fill (sector, i, 0);
    OK (rp_file_pwrite (file, sector, SECTOR, i * SECTOR, &fault));
  }
  rp_file_close (file);
  rp_dir_close (dir);
  OK (make_link (io, "middle", shape->middle, shape->middle_grain, &fault));
  OK (open_rig (io, shape, 1, true, &rig, &fault));
  for (uint32_t i = 0; i < SECTORS; i++)
    if (i / 5 % 2) {
      fill (sector, i, 1);
      OK (rp_disk_pwrite (rig.disk, sector, SECTOR, i * SECTOR, &fault));
    }
  OK (rp_chain_close_clean (rig.disk, &fault));
  close_rig (&rig);
  OK (make_link (io, "top", shape->top, shape->top_grain, &fault));
  OK (rp_sim_settle (io, &fault));
}

static void
acknowledge (struct rp_io *io, struct history *history)
{
  struct rp_fault fault;

  CHECK (++history->acks < ACKS);
  memcpy (history->floor[history->acks], history->latest,
          sizeof history->latest);
  OK (rp_sim_acknowledge (io, history->acks, &fault));
}

static void
change (struct history *history, struct rp_disk *disk, enum act act)
{
  const uint32_t version = ++history->version_count;
  const uint32_t first = (version * 7 + history->number) % 30;
  const uint32_t stop = first + (act == ACT_WRITE ? 3 : 10);
  uint8_t data[10 * SECTOR];
  struct rp_fault fault;

  CHECK (version < VERSIONS);
  history->versions[version].first = first;
  history->versions[version].stop = stop;
  history->versions[version].zeros = act == ACT_ZERO;
  for (uint32_t i = first; i < stop; i++) {
    fill_version (history, i, version, data + (i - first) * SECTOR);
    history->latest[i] = version;
  }
  if (act == ACT_ZERO)
    OK (rp_disk_zero (disk, (stop - first) * SECTOR, first * SECTOR, true,
                      &fault));
  else
    OK (rp_disk_pwrite (disk, data, (stop - first) * SECTOR, first * SECTOR,
                        &fault));
}

/* The acts of a life, and a commit at its end. */
static void
live (struct rp_io *io, struct rp_io *sim, struct history *history)
{
  const struct shape *shape = history->shape;
  uint32_t number = history->number;
  struct rp_fault fault;
  struct rig rig;

  OK (open_rig (io, shape, 0, true, &rig, &fault));
  change (history, rig.disk, ACT_WRITE);
  for (uint32_t i = 0; i <= history->length; i++) {
    const enum act act = i < history->length ? number % ACTS : ACT_COMMIT;

    number /= ACTS;
    if (act == ACT_FLUSH)
      OK (rp_disk_flush (rig.disk, &fault));
    else if (act == ACT_COMMIT) {
      OK (rp_chain_close_clean (rig.disk, &fault));
      acknowledge (sim, history);
      close_rig (&rig);
      OK (commit (io, shape, &fault));
      acknowledge (sim, history);
      OK (make_link (io, "top", shape->top, shape->top_grain, &fault));
      OK (open_rig (io, shape, 0, true, &rig, &fault));
    } else
      change (history, rig.disk, act);
    if (act == ACT_FLUSH)
      acknowledge (sim, history);
  }
  close_rig (&rig);
}

/* ---- what must be left ---- */

static bool
is_allowed (const struct history *history, uint32_t number, uint32_t floor,
            const uint8_t *found)
{
  uint8_t wanted[SECTOR];

  for (uint32_t v = floor; v <= history->version_count; v++) {
    if (v > 0 && (number < history->versions[v].first
                  || number >= history->versions[v].stop))
      continue;
    fill_version (history, number, v, wanted);
    if (memcmp (wanted, found, SECTOR) == 0)
      return true;
  }
  return false;
}

static void
judge (void *context, const struct rp_finding *finding)
{
  if (strcmp (finding->kind, "leak") != 0
      && strcmp (finding->kind, "unclean") != 0
      && strcmp (finding->kind, "redundant") != 0)
    *(bool *) context = false;
}

static int
read_chain (struct rp_io *io, const struct shape *shape, int first,
            uint8_t out[SIZE], struct rp_fault *fault)
{
  bool sound = true;
  struct rig rig;
  int status = open_rig (io, shape, first, false, &rig, fault);

  if (status == RP_OK)
    status = rp_disk_pread (rig.disk, out, SIZE, 0, fault);
  for (int i = first; status == RP_OK && i < 3; i++)
    status = rp_image_check (rig.links[i], judge, &sound, fault);
  for (uint32_t i = 0; status == RP_OK && i < SECTORS; i++) {
    uint8_t found[SECTOR], wanted[SECTOR];

    fill (wanted, i, 0);
    status = rp_file_pread_all (rig.files[2], found, SECTOR, i * SECTOR,
                                fault);
    sound = sound && memcmp (found, wanted, SECTOR) == 0;
  }
  close_rig (&rig);
  return status == RP_OK && !sound
         ? rp_fail (fault, RP_CORRUPT, 0, "the tables or the base") : status;
}

static rp_sim_checker check_state;

/* What recovers is cut short as well. */
static int
cut_again (struct history *history, struct rp_io *io, struct rp_fault *fault)
{
  const struct rp_sim_options options = {
    .budget = 30, .seed = history->states, .flags = RP_SIM_TEAR,
    .seen = history->seen,
  };
  struct rp_sim_counts counts;
  int status;

  history->depth = 1;
  history->swept[1] = io;
  status = rp_sim_crash_states (io, &options, check_state, history, &counts,
                                NULL, fault);
  history->depth = 0;
  return status;
}

static int
check_all (struct history *history, struct rp_io *io, uint64_t tag,
           struct rp_fault *fault)
{
  const bool top = has_top (io);
  uint8_t before[SIZE], after[SIZE];
  int status = read_chain (io, history->shape, top ? 0 : 1, before, fault);

  for (uint32_t i = 0; status == RP_OK && i < SECTORS; i++)
    if (!is_allowed (history, i, history->floor[tag][i], before + i * SECTOR))
      status = rp_fail (fault, RP_CORRUPT, i, "sector %u", i);
  if (status != RP_OK || !top)
    return status;
  status = commit (io, history->shape, fault);
  if (status == RP_OK)
    status = read_chain (io, history->shape, 1, after, fault);
  if (status == RP_OK && memcmp (before, after, SIZE) != 0)
    status = rp_fail (fault, RP_CORRUPT, 0, "a commit changes what is read");
  if (status == RP_OK && history->depth == 0
      && history->states % RECOVER == 0)
    status = cut_again (history, io, fault);
  return status;
}

static int
check_state (void *context, struct rp_io *io, const struct rp_sim_state *state,
             struct rp_fault *fault)
{
  struct history *history = context;
  char text[4000];

  history->states++;
  if (check_all (history, io, state->last_tag, fault) == RP_OK)
    return RP_OK;
  rp_sim_state_text (history->swept[history->depth], state, text, sizeof text);
  fprintf (stderr, "violation: %s, life %u of %u, depth %u: %s (%llu)\n%s\n",
           history->shape->name, history->number, history->length,
           history->depth, fault->message,
           (unsigned long long) fault->position, text);
  exit (EXIT_FAILURE);
}

static void
sweep (const struct shape *shape, uint32_t number, uint32_t length,
       struct rp_sim_seen *seen)
{
  const struct rp_sim_options options = {
    .budget = SWEEP, .seed = number, .flags = RP_SIM_TEAR, .seen = seen,
  };
  static struct history history;
  struct rp_sim_counts counts;
  struct rp_io *order;
  struct rp_fault fault;

  memset (&history, 0, sizeof history);
  history.shape = shape;
  history.number = number;
  history.length = length;
  history.seen = seen;
  OK (rp_io_simulate_create (&history.swept[0], &fault));
  OK (rp_io_order_create (history.swept[0], &order, &fault));
  set (history.swept[0], shape);
  live (order, history.swept[0], &history);
  rp_io_destroy (order);
  OK (rp_sim_crash_states (history.swept[0], &options, check_state, &history,
                           &counts, NULL, &fault));
  rp_io_destroy (history.swept[0]);
}

int
main (int argc, char **argv)
{
  const size_t shape_count = sizeof shapes / sizeof *shapes;
  const uint64_t wanted = crash_budget (6000);
  const uint32_t part = argc > 2 ? (uint32_t) atoi (argv[1]) : 0;
  const uint32_t parts = argc > 2 ? (uint32_t) atoi (argv[2]) : 1;
  struct rp_sim_seen *seen;
  uint64_t workloads = 0;
  uint32_t count = (uint32_t) shape_count;
  struct rp_fault fault;

  OK (rp_sim_seen_create (&seen, &fault));
  for (uint32_t length = 1; length <= LONGEST; length++) {
    count *= ACTS;
    for (uint32_t i = part; i < count && rp_sim_seen_count (seen) < wanted;
         i += parts, workloads++)
      sweep (&shapes[i % shape_count], i / (uint32_t) shape_count, length,
             seen);
  }
  crash_tell ("crash_commit_test", seen, workloads, "");
  rp_sim_seen_destroy (seen);
  return EXIT_SUCCESS;
}

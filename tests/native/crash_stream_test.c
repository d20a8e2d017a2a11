/* SPDX-License-Identifier: Apache-2.0 */
/* A compressed stream is written, and the power is cut at every moment: what
 * is left opens as the whole disk or not at all.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.
 */
#include "simulate.h"
#include "crash_tell.h"
#include "stream_maker.h"

#define SECTORS 44u              /* 6 grains of 8 sectors, the last one short */
#define SEED    20261122u

struct shape {
  const char *name;
  uint64_t    sectors, grain, stretch;   /* stretch 0: a disk of zeros */
  uint32_t    level;
};

static const struct shape shapes[] = {
  { "some grains", SECTORS, 8, 8, 6 },
  { "stored grains", SECTORS, 8, 3, 0 },
  { "no grains", SECTORS, 8, 0, 6 },
  /* 3 chunks, 2 tables */
  { "two tables", 5000, 8, 700, 1 },
};

struct history {
  const struct shape *shape;
  uint8_t  *disk, *read;
  uint64_t  whole;               /* states that held all of it */
};

static struct rp_file *
open_file (struct rp_io *io, uint32_t flags, struct rp_dir **dir_out,
           struct rp_fault *fault)
{
  struct rp_file *file = NULL;

  if (rp_dir_open (io, "/", dir_out, fault) == RP_OK
      && rp_file_open (*dir_out, "disk", flags, 0600, &file, fault) != RP_OK)
    file = NULL;
  return file;
}

static void
close_file (struct rp_dir *dir, struct rp_file *file)
{
  rp_file_close (file);
  rp_dir_close (dir);
}

static int
check_state (void *context, struct rp_io *io, const struct rp_sim_state *state,
             struct rp_fault *fault)
{
  struct history *history = context;
  const uint64_t sectors = history->shape->sectors;
  struct rp_dir *dir = NULL;
  struct rp_file *file = open_file (io, RP_OPEN_READ, &dir, fault);
  int status;

  if (!file) {
    rp_dir_close (dir);
    return RP_OK;                /* its name was lost */
  }
  status = stream_read_all (file, sectors, history->read, fault);
  close_file (dir, file);
  if (status == RP_OK) {
    history->whole++;
    return memcmp (history->read, history->disk, sectors * 512) == 0 ? RP_OK
           : rp_fail (fault, RP_CORRUPT, 0, "opens, and reads as another disk");
  }
  if (state->acknowledged > 0)
    return status;
  /* It was said to be cut short when it was opened, not in the middle of it. */
  return strstr (fault->message, "footer") || status == RP_FORMAT ? RP_OK
         : status;
}

static void
test_shape (const struct shape *shape, uint64_t seed, uint64_t budget,
            struct rp_sim_seen *seen)
{
  const struct rp_sim_options options = {
    .budget = budget, .seed = seed, .flags = RP_SIM_TEAR | RP_SIM_GARBAGE,
    .seen = seen,
  };
  struct history history = { .shape = shape };
  struct rp_sim_counts counts;
  struct rp_sim_state failed;
  struct rp_fault fault;
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_io *io;

  history.read = malloc (shape->sectors * 512);
  history.disk = shape->stretch
                 ? stream_disk (shape->sectors, shape->stretch)
                 : calloc (shape->sectors, 512);
  CHECK (history.read && history.disk);
  OK (rp_io_simulate_create (&io, &fault));
  file = open_file (io, RP_OPEN_WRITE | RP_OPEN_CREATE, &dir, &fault);
  CHECK (file);
  OK (rp_dir_sync (dir, &fault));
  OK (rp_sim_settle (io, &fault));
  OK (stream_make (file, history.disk, shape->sectors, shape->grain,
                   shape->level, 2, &fault));
  OK (rp_sim_acknowledge (io, 1, &fault));
  if (rp_sim_crash_states (io, &options, check_state, &history, &counts,
                           &failed, &fault) != RP_OK) {
    static char text[8192];

    rp_sim_state_text (io, &failed, text, sizeof text);
    fprintf (stderr, "violation: %s, seed %llu: crash after operation %llu: "
             "%s\n%s\n", shape->name, (unsigned long long) seed,
             (unsigned long long) failed.point, fault.message, text);
    exit (EXIT_FAILURE);
  }
  CHECK (history.whole > 0);
  close_file (dir, file);
  rp_io_destroy (io);
  free (history.disk);
  free (history.read);
}

/* Call number `call` fails: making it says so, and what is left opens as the
 * whole disk or not at all.  Returns whether there was such a call. */
static bool
run_with_failure (const struct shape *shape, uint64_t call,
                  enum rp_fault_effect effect)
{
  const struct rp_fault_plan plan = {
    .call = call, .effect = effect, .os_errno = 28,
    .kinds = effect == RP_FAULT_LOST ? RP_FAULT_SYNC
             : RP_FAULT_WRITE | RP_FAULT_SYNC,
  };
  uint8_t *disk = stream_disk (shape->sectors, 700);
  uint8_t *read = malloc (shape->sectors * 512);
  struct rp_fault fault;
  struct rp_file *file;
  struct rp_io *sim, *io;
  struct rp_dir *dir;
  bool struck;
  int status;

  OK (rp_io_simulate_create (&sim, &fault));
  OK (rp_io_fault_create (sim, &plan, &io, &fault));
  file = open_file (io, RP_OPEN_WRITE | RP_OPEN_CREATE, &dir, &fault);
  CHECK (file && read);
  status = stream_make (file, disk, shape->sectors, shape->grain, shape->level,
                        3, &fault);
  struck = rp_io_fault_calls (io) >= call;
  CHECK (struck == (status != RP_OK));
  status = stream_read_all (file, shape->sectors, read, &fault);
  CHECK (struck || status == RP_OK);
  if (status == RP_OK)           /* the very last sync may be what failed */
    CHECK (memcmp (disk, read, shape->sectors * 512) == 0);
  close_file (dir, file);
  rp_io_destroy (io);
  rp_io_destroy (sim);
  free (read);
  free (disk);
  return struck;
}

int
main (void)
{
  static const enum rp_fault_effect effects[] = {
    RP_FAULT_PLAIN, RP_FAULT_PARTIAL, RP_FAULT_LOST,
  };
  const size_t count = sizeof shapes / sizeof *shapes;
  const uint64_t wanted = crash_budget (4000);
  struct rp_sim_seen *seen;
  struct rp_fault fault;
  uint64_t runs = 0;
  char calls[64];

  OK (rp_sim_seen_create (&seen, &fault));
  for (size_t i = 0; i < count; i++)
    test_shape (&shapes[i], SEED, wanted / count + 1, seen);
  for (size_t i = 0; i < sizeof effects / sizeof *effects; i++)
    for (uint64_t call = 1;
         run_with_failure (&shapes[3], call, effects[i]); call++)
      runs++;
  CHECK (runs > 10);
  snprintf (calls, sizeof calls, ", %llu failing calls",
            (unsigned long long) runs);
  crash_tell ("crash_stream_test", seen, count, calls);
  rp_sim_seen_destroy (seen);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A restore point that is read while the log is written and its horizon moves:
 * what is read is exact, or it is said that it is not; and a point that is
 * still kept can always be read again. */
#include <pthread.h>
#include <stdatomic.h>

#include "journal_model.h"

#define DISK_BYTES (160 * 1024 + 512)
#define POINTS_MAX 400u
#define VIEWS      4
#define READERS    3
#define READS      500u          /* of each thread */

/* The base is read by some and written by others. */
struct base {
  struct rp_disk disk;           /* first */
  struct memory_disk memory;
  pthread_mutex_t lock;
};

struct world {
  struct place place;
  struct rp_io *plain_io;
  struct rp_dir *dir;
  struct base base;
  struct rp_file *file;
  struct rp_journal *journal;
  uint8_t *now;
  uint8_t *points[POINTS_MAX + 1];   /* by id */
  _Atomic uint64_t point_count;  /* durable */
  _Atomic uint64_t first;        /* id of the oldest that may be kept: it is
                                    raised before the horizon is */
  uint64_t kept;                 /* the same, after */
  uint64_t seed;
  _Atomic bool over;
};

struct view {
  struct rp_file *file;
  struct rp_journal *journal;    /* NULL: not open */
  uint64_t point;
};

static _Atomic unsigned checks, stale, gone;

/* ---- a base that is shared ---- */

static struct base *
lock_base (struct rp_disk *disk)
{
  struct base *base = (struct base *) disk;

  pthread_mutex_lock (&base->lock);
  return base;
}

static int
unlock_base (struct base *base, int status)
{
  pthread_mutex_unlock (&base->lock);
  return status;
}

static int
base_pread (struct rp_disk *disk, void *buffer, size_t length,
            uint64_t offset, struct rp_fault *fault)
{
  struct base *base = lock_base (disk);

  return unlock_base (base, memory_pread (&base->memory.disk, buffer, length,
                                          offset, fault));
}

static int
base_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  struct base *base = lock_base (disk);

  return unlock_base (base, memory_pwrite (&base->memory.disk, buffer, length,
                                           offset, fault));
}

static int
base_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
           bool may_trim, struct rp_fault *fault)
{
  struct base *base = lock_base (disk);

  return unlock_base (base, memory_zero (&base->memory.disk, length, offset,
                                         may_trim, fault));
}

static int
base_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  (void) disk;
  (void) fault;
  return RP_OK;
}

static const struct rp_disk_functions base_functions = {
  .name = "base", .pread = base_pread, .pwrite = base_pwrite,
  .zero = base_zero, .flush = base_flush, .run = memory_run,
};

/* ---- the writer ---- */

static void
world_begin (struct world *world, uint64_t seed)
{
  struct rp_fault fault;

  memset (world, 0, sizeof *world);
  world->seed = seed;
  world->first = world->kept = 1;
  place_make (&world->place);
  OK (rp_io_posix_create (&world->plain_io, &fault));
  OK (rp_dir_open (world->plain_io, world->place.path, &world->dir, &fault));
  memory_disk_init (&world->base.memory, DISK_BYTES, 7);
  world->base.disk = (struct rp_disk) {
    .functions = &base_functions, .size_bytes = DISK_BYTES,
  };
  pthread_mutex_init (&world->base.lock, NULL);
  rp_file_close (place_create_log (&world->place, "log", DISK_BYTES, 4096,
                                   65536));
  OK (rp_file_open (world->dir, "log", RP_OPEN_WRITE, 0600, &world->file,
                    &fault));
  world->journal = journal_open (world->file, &world->base.disk,
                                 RP_JOURNAL_WRITE);
  world->now = malloc (DISK_BYTES);
  memset (world->now, 7, DISK_BYTES);
}

static void
world_end (struct world *world)
{
  rp_journal_destroy (world->journal);
  rp_file_close (world->file);
  rp_dir_close (world->dir);
  rp_io_destroy (world->plain_io);
  place_remove (&world->place);
  pthread_mutex_destroy (&world->base.lock);
  free (world->base.memory.bytes);
  free (world->now);
  for (uint64_t i = 0; i <= POINTS_MAX; i++)
    free (world->points[i]);
}

static void
write_some (struct world *world)
{
  static const uint64_t length_max = 30000;
  uint64_t length = 1 + random_below (&world->seed, length_max);
  uint64_t offset = random_below (&world->seed, DISK_BYTES);
  struct rp_disk *disk = rp_journal_disk (world->journal);
  struct rp_fault fault;

  if (length > DISK_BYTES - offset)
    length = DISK_BYTES - offset;
  if (random_below (&world->seed, 4) == 0) {
    OK (rp_disk_zero (disk, length, offset, true, &fault));
    memset (world->now + offset, 0, length);
  } else {
    for (uint64_t i = 0; i < length; i++)
      world->now[offset + i] = (uint8_t) next_random (&world->seed);
    OK (rp_disk_pwrite (disk, world->now + offset, length, offset, &fault));
  }
}

static void
mark (struct world *world)
{
  const struct rp_point point = make_point (world->point_count + 1);
  struct rp_fault fault;

  if (world->point_count == POINTS_MAX)
    return;
  world->points[point.id] = malloc (DISK_BYTES);
  memcpy (world->points[point.id], world->now, DISK_BYTES);
  OK (rp_journal_mark (world->journal, &point, &fault));
  OK (rp_journal_commit (world->journal, &fault));
  world->point_count = point.id;
}

static void
destage (struct world *world)
{
  struct rp_destage done;
  struct rp_fault fault;

  if (world->point_count < world->kept)
    return;
  world->kept += random_below (&world->seed,
                               world->point_count - world->kept + 1);
  world->first = world->kept;
  OK (rp_journal_destage (world->journal, world->kept, &world->base.disk, NULL,
                          NULL, &done, &fault));
}

static void
step (struct world *world)
{
  const uint64_t what = random_below (&world->seed, 100);
  struct rp_checkpoint ignored;
  struct rp_roll roll;
  struct rp_fault fault;

  if (what < 60)
    write_some (world);
  else if (what < 85)
    mark (world);
  else if (what < 92)
    destage (world);
  else if (what < 96)
    OK (rp_journal_checkpoint (world->journal, &ignored, &fault));
  else
    OK (rp_journal_roll (world->journal, RP_POINT_END, &roll, &fault));
}

/* ---- views ---- */

static void
view_close (struct view *view)
{
  if (!view->journal)
    return;
  rp_journal_destroy (view->journal);
  rp_file_close (view->file);
  view->journal = NULL;
}

static int
view_open (struct world *world, struct view *view)
{
  struct rp_fault fault;
  int status;

  OK (rp_file_open (world->dir, "log", RP_OPEN_READ, 0600, &view->file,
                    &fault));
  view->journal = journal_open (view->file, &world->base.disk,
                                RP_JOURNAL_READ);
  status = rp_journal_view (view->journal, view->point, &fault);
  if (status != RP_OK)
    view_close (view);
  return status;
}

/* A random stretch is what the disk held at the point, or the answer says why
 * not; true when it is to be asked again. */
static bool
view_read (struct world *world, struct view *view, uint64_t *seed)
{
  uint64_t length = 1 + random_below (seed, 50000);
  uint64_t offset = random_below (seed, DISK_BYTES);
  uint8_t *got = malloc (length);
  struct rp_fault fault;
  struct rp_run run;
  int status;

  if (length > DISK_BYTES - offset)
    length = DISK_BYTES - offset;
  status = rp_disk_pread (rp_journal_disk (view->journal), got, length, offset,
                          &fault);
  if (status == RP_OK) {
    CHECK (memcmp (got, world->points[view->point] + offset, length) == 0);
    status = rp_disk_run (rp_journal_disk (view->journal), offset, length,
                          &run, &fault);
    for (uint64_t i = 0; status == RP_OK && run.kind != RP_RUN_DATA
                         && i < run.length_bytes; i++)
      CHECK (world->points[view->point][offset + i] == 0);
  }
  free (got);
  checks++;
  CHECK (status == RP_OK || status == RP_STATE);
  if (status == RP_OK)
    return false;
  stale++;
  view_close (view);
  return true;
}

static void
choose (struct world *world, struct view *view, uint64_t *seed)
{
  const uint64_t first = world->first, count = world->point_count;

  view->point = first + random_below (seed, count - first + 1);
}

/* Open it, as often as it takes, and read. */
static void
view_step (struct world *world, struct view *view, uint64_t *seed)
{
  bool again = true;

  if (random_below (seed, 20) == 0)
    view_close (view);
  if (world->point_count < world->first)
    return;
  while (again) {
    if (!view->journal) {
      int status;

      if (view->point == 0 || random_below (seed, 4) == 0)
        choose (world, view, seed);
      status = view_open (world, view);
      CHECK (status == RP_OK || status == RP_STATE || status == RP_NOT_FOUND);
      CHECK (status != RP_NOT_FOUND || view->point < world->first);
      gone += status == RP_NOT_FOUND;
      if (status != RP_OK)
        continue;
    }
    again = view_read (world, view, seed);
  }
}

/* ---- tests ---- */

/* One thread: every change of the log lies between two reads. */
static void
test_between_changes (uint64_t seed)
{
  struct view views[VIEWS] = { { .journal = NULL } };
  struct world world;

  world_begin (&world, seed);
  mark (&world);
  for (unsigned i = 0; i < 1000; i++) {
    step (&world);
    view_step (&world, &views[random_below (&world.seed, VIEWS)],
               &world.seed);
  }
  for (int i = 0; i < VIEWS; i++)
    view_close (&views[i]);
  world_end (&world);
}

struct reader {
  struct world *world;
  uint64_t seed;
};

static void *
read_on (void *context)
{
  struct reader *reader = context;
  struct view view = { .journal = NULL };

  for (unsigned i = 0; i < READS && !reader->world->over; i++)
    view_step (reader->world, &view, &reader->seed);
  view_close (&view);
  return NULL;
}

/* Some threads read while another changes the log. */
static void
test_beside_a_writer (uint64_t seed)
{
  struct reader readers[READERS];
  pthread_t threads[READERS];
  struct world world;

  world_begin (&world, seed);
  mark (&world);
  for (int i = 0; i < READERS; i++) {
    readers[i] = (struct reader) { &world, seed * 10 + (uint64_t) i };
    CHECK (pthread_create (&threads[i], NULL, read_on, &readers[i]) == 0);
  }
  while (world.point_count < POINTS_MAX / 2)
    step (&world);
  world.over = true;
  for (int i = 0; i < READERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  world_end (&world);
}

/* What a view is not for. */
static void
test_refusals (void)
{
  struct rp_fault fault;
  struct world world;
  struct view view = { .point = 1 };
  uint8_t byte;

  world_begin (&world, 99);
  write_some (&world);
  mark (&world);
  CHECK (rp_journal_view (world.journal, 1, &fault) == RP_BAD_ARGUMENT);
  view.point = 2;
  CHECK (view_open (&world, &view) == RP_NOT_FOUND);
  view.point = RP_POINT_END;
  CHECK (view_open (&world, &view) == RP_BAD_ARGUMENT);
  view.point = RP_POINT_LATEST;
  CHECK (view_open (&world, &view) == RP_OK);
  CHECK (rp_journal_view (view.journal, 1, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_disk_pwrite (rp_journal_disk (view.journal), "x", 1, 0, &fault)
         == RP_READ_ONLY);
  OK (rp_disk_pread (rp_journal_disk (view.journal), &byte, 1, 0, &fault));
  CHECK (byte == world.points[1][0]);
  checks += 7;
  view_close (&view);
  world_end (&world);
}

int
main (void)
{
  test_refusals ();
  for (uint64_t seed = 1; seed <= 3; seed++)
    test_between_changes (seed);
  CHECK (stale > 10 && gone > 10);
  test_beside_a_writer (1);
  printf ("journal_view_threads_test: %u checks, %u stale, %u gone\n",
          (unsigned) checks, (unsigned) stale, (unsigned) gone);
  return 0;
}

/* crash_journal.h - a journal's life on simulated storage, and what must be
 * left of it: shared by the tests that cut the power and that fail calls.
 *
 * Seeded workloads of small writes, zeroes, points, commits, roll backs,
 * checkpoints, destages, epochs and reopenings, with the smallest segments, and
 * a base that lies on the same storage.  A state that a crash may leave is
 * recovered and held against the history of the workload:
 *
 *   J1  what was acknowledged is there
 *   J2  the disk is as it was after some write, and not before the last
 *   J3  acknowledged one: a prefix of the history, nothing else
 *   J4  each listed point shows exactly what was written before it, through
 *       the root that a VMDK reader follows; none is missing but those that a
 *       destage was asked to let go
 *   J7  what is shown when the power fails is whole before anybody recovers it:
 *       no byte of the base has changed that it reads through
 *   J5  recovering again gives the same, also when recovery itself is cut
 *   J6  the epoch never goes back
 *   J10 the journal takes writes afterwards, and keeps them
 */
#ifndef RP_TEST_CRASH_JOURNAL_H
#define RP_TEST_CRASH_JOURNAL_H

#include "journal_model.h"
#include "simulate.h"

#define GRAIN     4096u
#define GRAINS    14u
#define SECTORS   (GRAINS * 8 - 3)   /* the last grain is a short one */
#define BYTES     (SECTORS * 512u)
#define SEGMENT   65536u
#define STEPS     22
#define VERSIONS  1024u
#define ACKS      256u
#define POINTS    32u
#define ROLLS     96u
#define HORIZONS  32u

/* The disk as stamps, one a sector. */
typedef uint32_t stamps[SECTORS];

/* What had happened when something was acknowledged. */
struct ack {
  uint32_t version, points, shown, horizons;
  uint64_t epoch;
};

struct history {
  stamps   versions[VERSIONS];   /* after each grain that was written */
  uint32_t version_count;
  uint32_t points[POINTS];       /* version of each; its id is index + 1 */
  uint32_t point_count;
  uint32_t rolls[ROLLS];         /* version that each roll back shows; 0: base */
  uint32_t roll_count;
  uint32_t shown;                /* the last of them that was done */
  uint32_t horizons[HORIZONS];   /* index of the point that stays the oldest; of
                                    the first: 0 */
  uint32_t horizon_count;
  uint64_t epoch;
  struct ack acks[ACKS];         /* the tag is the index */
  uint32_t ack_count;
};

struct lab {
  struct history history;
  struct memory_disk base;
  uint64_t seed;
  unsigned warm_steps;           /* whose crashes are not looked at */
  bool     base_failed;          /* the workload ended with that */
  bool     no_destage;           /* it has none */
  unsigned depth;                /* of crashes in recovery */
  uint64_t states, deep;
  struct rp_sim_seen *seen;
  struct rp_io *simulate;        /* of the workload */
  void (*after_failure) (struct lab *lab, struct rp_journal *journal,
                         int status);
};

/* ---- stamps and bytes ---- */

static void
fill_sector (uint8_t *at, uint32_t stamp)
{
  for (unsigned i = 0; i < 64; i++)
    memcpy (at + i * 8, &(uint64_t) { stamp * UINT64_C (0x9e3779b97f4a7c15) },
            8);
}

/* Stamps of a whole disk; false where a sector is no stamp's. */
static bool
read_stamps (const uint8_t *bytes, stamps out)
{
  for (unsigned i = 0; i < SECTORS; i++) {
    uint64_t first;

    memcpy (&first, bytes + i * 512, 8);
    if (memcmp (bytes + i * 512, bytes + i * 512 + 8, 504) != 0)
      return false;
    out[i] = (uint32_t) (first * UINT64_C (0xf1de83e19937733d));
    if (out[i] * UINT64_C (0x9e3779b97f4a7c15) != first)
      return false;
  }
  return true;
}

static bool
shows (const uint8_t *bytes, const stamps wanted)
{
  stamps found;

  return read_stamps (bytes, found)
         && memcmp (found, wanted, sizeof found) == 0;
}

/* ---- the base: a file beside the log ---- */

struct base {
  struct rp_disk disk;
  struct rp_file *file;
  bool failed;                   /* a write or a sync of it has */
};

static int
base_change (struct rp_disk *disk, int status)
{
  ((struct base *) disk)->failed |= status != RP_OK;
  return status;
}

static int
base_pread (struct rp_disk *disk, void *buffer, size_t length, uint64_t offset,
            struct rp_fault *fault)
{
  return rp_file_pread_all (((struct base *) disk)->file, buffer, length,
                            offset, fault);
}

static int
base_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  return base_change (disk, rp_file_pwrite (((struct base *) disk)->file,
                                            buffer, length, offset, fault));
}

static int
base_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
           bool may_trim, struct rp_fault *fault)
{
  static const uint8_t zeros[BYTES];

  (void) may_trim;
  return base_pwrite (disk, zeros, length, offset, fault);
}

static int
base_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  return base_change (disk, rp_file_sync (((struct base *) disk)->file,
                                          fault));
}

static const struct rp_disk_functions base_functions = {
  .name = "base", .pread = base_pread, .pwrite = base_pwrite,
  .zero = base_zero, .flush = base_flush, .run = memory_run,
};

/* ---- the workload ---- */

static uint32_t *
next_version (struct history *history)
{
  CHECK (history->version_count < VERSIONS);
  memcpy (history->versions[history->version_count],
          history->versions[history->version_count - 1], sizeof (stamps));
  return history->versions[history->version_count++];
}

/* What succeeded has promised something to somebody. */
static int
acknowledged (struct lab *lab, int status)
{
  struct history *history = &lab->history;
  struct ack *ack = &history->acks[history->ack_count];
  struct rp_fault fault;

  if (status != RP_OK)
    return status;
  CHECK (history->ack_count < ACKS);
  ack->version = history->version_count - 1;
  ack->points = history->point_count;
  ack->shown = history->shown;
  ack->horizons = history->horizon_count - 1;
  ack->epoch = history->epoch;
  OK (rp_sim_acknowledge (lab->simulate, history->ack_count++, &fault));
  return RP_OK;
}

static int
step_write (struct lab *lab, struct rp_disk *disk, uint64_t *seed)
{
  const uint32_t sector = (uint32_t) random_below (seed, SECTORS);
  uint32_t count = 1 + (uint32_t) random_below (seed, 20);
  uint32_t *version = NULL;
  uint8_t data[20 * 512];
  struct rp_fault fault;

  if (count > SECTORS - sector)
    count = SECTORS - sector;
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t stamp = lab->history.version_count * 131 + i + 1;

    if (i == 0 || (sector + i) % 8 == 0)  /* each grain is a version */
      version = next_version (&lab->history);
    version[sector + i] = stamp;
    fill_sector (data + i * 512, stamp);
  }
  return rp_disk_pwrite (disk, data, count * 512, sector * 512, &fault);
}

static int
step_zero (struct lab *lab, struct rp_disk *disk, uint64_t *seed)
{
  const uint32_t sector = (uint32_t) random_below (seed, SECTORS);
  uint32_t count = 1 + (uint32_t) random_below (seed, 60);
  uint32_t *version = NULL;
  struct rp_fault fault;

  if (count > SECTORS - sector)
    count = SECTORS - sector;
  for (uint32_t i = 0; i < count; i++) {
    if (i == 0 || (sector + i) % 8 == 0)
      version = next_version (&lab->history);
    version[sector + i] = 0;
  }
  return rp_disk_zero (disk, count * 512, sector * 512, true, &fault);
}

/* Many entries without much data: a batch header of several sectors. */
static int
step_burst (struct lab *lab, struct rp_disk *disk, uint64_t *seed)
{
  struct rp_fault fault;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < 32; i++) {
    const uint32_t grain = (uint32_t) random_below (seed, GRAINS - 1);
    uint32_t *version = next_version (&lab->history);
    uint8_t data[512];

    if (i % 8 != 7) {
      memset (version + grain * 8, 0, 8 * sizeof *version);
      status = rp_disk_zero (disk, GRAIN, grain * GRAIN, true, &fault);
    } else {
      version[grain * 8] = lab->history.version_count * 131;
      fill_sector (data, version[grain * 8]);
      status = rp_disk_pwrite (disk, data, 512, grain * GRAIN, &fault);
    }
  }
  return status;
}

/* This version is about to be shown. */
static void
add_roll (struct history *history, uint32_t version)
{
  CHECK (history->roll_count < ROLLS);
  history->rolls[history->roll_count++] = version;
}

/* A point that may be asked for, or POINTS. */
static uint32_t
pick_point (const struct history *history, uint64_t *seed)
{
  const uint32_t first = history->horizons[history->horizon_count - 1];

  if (history->point_count == first)
    return POINTS;
  return first + (uint32_t) random_below (seed, history->point_count - first);
}

static inline int
step_roll (struct lab *lab, struct rp_journal *journal,
           uint64_t *seed)
{
  struct history *history = &lab->history;
  uint64_t id = RP_POINT_END;
  uint32_t version = history->version_count - 1;
  const uint32_t point = pick_point (history, seed);
  struct rp_roll roll;
  struct rp_fault fault;
  int status;

  if (point < POINTS && random_below (seed, 3) != 0) {
    id = point + 1;
    version = history->points[point];
  }
  add_roll (history, version);
  status = rp_journal_roll (journal, id, &roll, &fault);
  if (status == RP_OK)
    history->shown = history->roll_count - 1;
  return acknowledged (lab, status);
}

static int
try_open (struct rp_io *io, const char *name, uint32_t flags,
          struct rp_file **out)
{
  struct rp_dir *dir;
  struct rp_fault fault;
  int status = rp_dir_open (io, "/", &dir, &fault);

  if (status != RP_OK)
    return status;
  status = rp_file_open (dir, name, flags, 0600, out, &fault);
  rp_dir_close (dir);
  return status;
}

static int
try_open_log (struct rp_io *io, uint32_t flags, struct rp_file **out)
{
  return try_open (io, "log", flags, out);
}

static struct rp_file *
open_log (struct rp_io *io, uint32_t flags)
{
  struct rp_file *file;

  CHECK (try_open_log (io, flags, &file) == RP_OK);
  return file;
}

static int
try_open_base (struct rp_io *io, struct base *base)
{
  memset (base, 0, sizeof *base);
  base->disk.functions = &base_functions;
  base->disk.size_bytes = BYTES;
  return try_open (io, "base", RP_OPEN_WRITE, &base->file);
}

static void
close_base (struct base *base)
{
  rp_file_close (base->file);
  base->file = NULL;
}

/* A log with its base and its journal, all open. */
struct opened {
  struct rp_file *file;
  struct base base;
  struct rp_journal *journal;
};

static void
close_all (struct opened *opened)
{
  rp_journal_destroy (opened->journal);
  rp_file_close (opened->file);
  close_base (&opened->base);
  memset (opened, 0, sizeof *opened);
}

static int
try_open_all (struct rp_io *io, struct opened *opened)
{
  struct rp_fault fault;
  int status;

  memset (opened, 0, sizeof *opened);
  status = try_open_log (io, RP_OPEN_WRITE, &opened->file);
  if (status == RP_OK)
    status = try_open_base (io, &opened->base);
  if (status == RP_OK)
    status = rp_journal_open (opened->file, &opened->base.disk,
                              RP_JOURNAL_WRITE, 0, &opened->journal, &fault);
  if (status != RP_OK)
    close_all (opened);
  return status;
}

static void
open_all (struct rp_io *io, struct opened *opened)
{
  struct rp_fault fault;

  memset (opened, 0, sizeof *opened);
  opened->file = open_log (io, RP_OPEN_WRITE);
  CHECK (try_open_base (io, &opened->base) == RP_OK);
  OK (rp_journal_open (opened->file, &opened->base.disk, RP_JOURNAL_WRITE, 0,
                       &opened->journal, &fault));
}

/* What was done may have shown the end of the log, or not. */
static int
note_shown (struct lab *lab, struct rp_journal *journal, uint64_t before,
            int status)
{
  struct rp_journal_info info;

  rp_journal_info (journal, &info);
  if (status == RP_OK && info.root_sector != before)
    lab->history.shown = lab->history.roll_count - 1;
  return acknowledged (lab, status);
}

static int
step_checkpoint (struct lab *lab, struct rp_journal *journal)
{
  struct rp_checkpoint done;
  struct rp_journal_info before;
  struct rp_fault fault;

  rp_journal_info (journal, &before);
  add_roll (&lab->history, lab->history.version_count - 1);
  return note_shown (lab, journal, before.root_sector,
                     rp_journal_checkpoint (journal, &done, &fault));
}

static int
step_destage (struct lab *lab, struct opened *opened, uint64_t *seed)
{
  struct history *history = &lab->history;
  const uint32_t point = pick_point (history, seed);
  struct rp_destage done;
  struct rp_journal_info before;
  struct rp_fault fault;

  if (point == POINTS || lab->no_destage)
    return RP_OK;
  rp_journal_info (opened->journal, &before);
  CHECK (history->horizon_count < HORIZONS);
  history->horizons[history->horizon_count++] = point;
  add_roll (history, history->version_count - 1);
  return note_shown (lab, opened->journal, before.root_sector,
                     rp_journal_destage (opened->journal, point + 1,
                                         &opened->base.disk, NULL, NULL, &done,
                                         &fault));
}

static int
step_close (struct lab *lab, struct rp_journal *journal, bool clean)
{
  struct history *history = &lab->history;
  struct rp_fault fault;
  int status;

  if (!clean)
    return acknowledged (lab, rp_journal_commit (journal, &fault));
  add_roll (history, history->version_count - 1);
  status = rp_journal_close_clean (journal, &fault);
  if (status == RP_OK)
    history->shown = history->roll_count - 1;
  return acknowledged (lab, status);
}

static int
step_mark (struct lab *lab, struct rp_journal *journal)
{
  struct history *history = &lab->history;
  const struct rp_point point = make_point (history->point_count + 1);
  struct rp_fault fault;

  CHECK (history->point_count < POINTS);
  history->points[history->point_count++] = history->version_count - 1;
  return rp_journal_mark (journal, &point, &fault);
}

static inline int
one_step (struct lab *lab, struct opened *opened, uint64_t *seed, bool *reopen)
{
  const uint64_t what = random_below (seed, 110);
  struct rp_journal *journal = opened->journal;
  struct rp_disk *disk = rp_journal_disk (journal);
  struct rp_fault fault;

  *reopen = false;
  if (what < 34)
    return step_write (lab, disk, seed);
  if (what < 37)
    return step_burst (lab, disk, seed);
  if (what < 44)
    return step_zero (lab, disk, seed);
  if (what < 66)
    return acknowledged (lab, rp_journal_commit (journal, &fault));
  if (what < 80)
    return step_mark (lab, journal);
  if (what < 88)
    return step_roll (lab, journal, seed);
  if (what < 92)
    return acknowledged (lab, rp_journal_set_epoch (journal,
                                                    ++lab->history.epoch,
                                                    false, &fault));
  if (what >= 103)
    return step_destage (lab, opened, seed);
  if (what >= 100)
    return step_checkpoint (lab, journal);
  *reopen = true;
  return step_close (lab, journal, what < 96);
}

/* Run on io; what is acknowledged is told to lab->simulate.  Ends at the first
 * failure and returns it. */
static inline int
run_workload (struct lab *lab, struct rp_io *io)
{
  struct opened opened = { .file = NULL };
  uint64_t seed = lab->seed;
  struct rp_fault fault;
  int status = RP_OK;

  for (unsigned i = 0; status == RP_OK && i < STEPS + lab->warm_steps; i++) {
    bool reopen;

    if (i > 0 && i == lab->warm_steps) {
      OK (rp_sim_settle (lab->simulate, &fault));
      OK (rp_sim_acknowledge (lab->simulate, lab->history.ack_count - 1,
                              &fault));
    }
    if (!opened.journal)
      status = try_open_all (io, &opened);
    if (status != RP_OK)
      break;
    status = one_step (lab, &opened, &seed, &reopen);
    if (reopen && status == RP_OK)
      close_all (&opened);
  }
  lab->base_failed = opened.base.failed;
  if (status != RP_OK && opened.journal)
    lab->after_failure (lab, opened.journal, status);
  close_all (&opened);
  return status;
}

/* ---- checking a state ---- */

/* What the shown root says, read as any VMDK reader would. */
static void
read_shown (struct rp_file *file, struct base *base, uint8_t *out)
{
  uint8_t sector[512], grain[GRAIN];
  uint32_t table_at, table[512] = { 0 };
  uint64_t directory;
  struct rp_fault fault;

  OK (rp_file_pread_all (file, sector, 512, 0, &fault));
  memcpy (&directory, sector + 56, 8);
  OK (rp_file_pread_all (file, &table_at, 4, directory * 512, &fault));
  if (table_at != 0)
    OK (rp_file_pread_all (file, table, sizeof table,
                           (uint64_t) table_at * 512, &fault));
  for (uint32_t g = 0; g < GRAINS; g++) {
    const uint32_t length = g == GRAINS - 1 ? BYTES - g * GRAIN : GRAIN;

    if (table[g] == 0)
      OK (base_pread (&base->disk, out + g * GRAIN, length, g * GRAIN,
                      &fault));
    else if (table[g] == 1)
      memset (out + g * GRAIN, 0, length);
    else {
      OK (rp_file_pread_all (file, grain, GRAIN, (uint64_t) table[g] * 512,
                             &fault));
      memcpy (out + g * GRAIN, grain, length);
    }
  }
}

/* The version that these bytes are, newest first; 0 where they are none.  (A
 * version is at least 1: 0 is the base, which comes first.) */
static uint32_t
find_version (const struct history *history, const uint8_t *bytes,
              uint32_t first)
{
  stamps found;

  if (!read_stamps (bytes, found))
    return UINT32_MAX;
  for (uint32_t v = history->version_count; v-- > first;)
    if (memcmp (found, history->versions[v], sizeof found) == 0)
      return v;
  return UINT32_MAX;
}

static void
check_shown (const struct lab *lab, struct opened *opened,
             const struct ack *ack)
{
  const struct history *history = &lab->history;
  uint8_t bytes[BYTES];
  bool found = false;

  read_shown (opened->file, &opened->base, bytes);
  for (uint32_t i = ack->shown; i < history->roll_count && !found; i++)
    found = shows (bytes, history->versions[history->rolls[i]]);
  CHECK (found);
}

/* Points [first, stop) of the history are listed. */
struct listed {
  uint32_t first, stop;
};

static struct listed
list_points (struct rp_journal *journal)
{
  struct rp_point point, wanted;
  struct rp_fault fault;
  struct listed listed = { .first = 0 };

  while (rp_journal_point (journal, listed.stop - listed.first, &point, &fault)
         == RP_OK) {
    if (listed.stop == 0)
      listed.first = listed.stop = (uint32_t) point.id - 1;
    wanted = make_point (++listed.stop);
    CHECK (memcmp (&point, &wanted, sizeof point) == 0);
  }
  return listed;
}

/* What is listed is a promise from now on. */
static inline void
promise_listed (const struct history *history, struct listed listed,
                struct ack *ack)
{
  ack->points = listed.stop;
  for (uint32_t i = ack->horizons; i < history->horizon_count; i++)
    if (history->horizons[i] == listed.first)
      ack->horizons = i;
}

/* None is missing that was promised, and none is there that was let go. */
static void
check_listed (const struct history *history, struct listed listed,
              const struct ack *ack)
{
  bool found = false;

  CHECK (listed.stop >= ack->points && listed.stop <= history->point_count);
  for (uint32_t i = ack->horizons; i < history->horizon_count && !found; i++)
    found = history->horizons[i] == listed.first;
  CHECK (found);
  CHECK (listed.first == 0 || listed.stop > listed.first);
}

static void
check_point (const struct lab *lab, struct opened *opened, uint32_t point)
{
  uint8_t bytes[BYTES];
  struct rp_roll roll;
  struct rp_fault fault;

  OK (rp_journal_roll (opened->journal, point + 1, &roll, &fault));
  read_shown (opened->file, &opened->base, bytes);
  CHECK (shows (bytes, lab->history.versions[lab->history.points[point]]));
}

static void
reopen_all (struct rp_io *io, struct opened *opened)
{
  close_all (opened);
  open_all (io, opened);
}

/* J10: a write after recovery, and it stays, and nothing else comes with it. */
static void
check_goes_on (struct lab *lab, struct rp_io *io, struct opened *opened)
{
  uint8_t before[BYTES], after[BYTES];
  struct rp_point point = make_point (POINTS + 1);
  struct rp_disk *disk = rp_journal_disk (opened->journal);
  struct rp_fault fault;

  OK (rp_disk_pread (disk, before, BYTES, 0, &fault));
  fill_sector (before + 5 * 512, 0x7fffffff);
  OK (rp_disk_pwrite (disk, before + 5 * 512, 512, 5 * 512, &fault));
  if (lab->states % 2)           /* so that batches end in other places */
    OK (rp_journal_mark (opened->journal, &point, &fault));
  OK (rp_journal_commit (opened->journal, &fault));
  reopen_all (io, opened);
  OK (rp_disk_pread (rp_journal_disk (opened->journal), after, BYTES, 0,
                     &fault));
  CHECK (memcmp (before, after, BYTES) == 0);
}

static uint64_t
mix (uint64_t a, uint64_t b)
{
  uint64_t state = (a + 1) * 0x9e3779b97f4a7c15 ^ (b + 7);

  next_random (&state);
  return next_random (&state) >> 20;
}

static rp_sim_checker check_state;

/* Cut the recovery of this state, too: all that it, a destage that is finished
 * or made, and a first commit write. */
static void
crash_recovery (struct lab *lab, struct rp_io *io, uint64_t dice)
{
  struct rp_sim_options options = {
    .budget = 24, .seed = lab->seed, .flags = RP_SIM_TEAR, .seen = lab->seen,
  };
  struct rp_sim_counts counts;
  struct opened opened;
  struct listed listed;
  struct rp_roll roll;
  struct rp_destage done;
  struct rp_fault fault;
  const uint32_t horizons = lab->history.horizon_count;

  open_all (io, &opened);
  listed = list_points (opened.journal);
  if (listed.stop > listed.first && dice % 2) {
    const uint32_t point = listed.first
                           + (uint32_t) (dice / 2 % (listed.stop
                                                     - listed.first));

    CHECK (horizons < HORIZONS);
    lab->history.horizons[lab->history.horizon_count++] = point;
    OK (rp_journal_destage (opened.journal, point + 1, &opened.base.disk, NULL,
                            NULL, &done, &fault));
  } else
    OK (rp_journal_roll (opened.journal, listed.stop > listed.first
                                         ? RP_POINT_LATEST : RP_POINT_END,
                         &roll, &fault));
  OK (rp_journal_close_clean (opened.journal, &fault));
  close_all (&opened);
  lab->depth++;
  OK (rp_sim_crash_states (io, &options, check_state, lab, &counts, NULL,
                           &fault));
  lab->depth--;
  lab->history.horizon_count = horizons;
  lab->deep += counts.distinct;
}

/* The points of a recovered state, all or one; then again when there was a
 * destage, and when there were writes. */
static void
check_points (struct lab *lab, struct rp_io *io, struct opened *opened,
              struct listed listed, uint64_t dice)
{
  const uint32_t count = listed.stop - listed.first;
  struct rp_destage done;
  struct rp_fault fault;

  for (uint32_t i = 0; i < count; i++)
    if (dice % 8 == 0 || i == dice / 16 % count)
      check_point (lab, opened, listed.first + i);
  if (dice % 5 == 0 && count > 0) {
    const uint32_t point = (uint32_t) (dice / 64 % count);

    OK (rp_journal_destage (opened->journal, listed.first + point + 1,
                            &opened->base.disk, NULL, NULL, &done, &fault));
    listed.first += point;
    if (dice % 3 == 0)
      reopen_all (io, opened);
    CHECK (list_points (opened->journal).first == listed.first);
    check_point (lab, opened, listed.first);
    check_point (lab, opened, listed.stop - 1);
  }
  if (dice % 4 != 0)
    return;
  check_goes_on (lab, io, opened);
  for (uint32_t i = listed.first; i < listed.stop; i++)
    if (dice % 16 == 0)
      check_point (lab, opened, i);
}

static int
check_state (void *context, struct rp_io *io,
             const struct rp_sim_state *state, struct rp_fault *fault_out)
{
  struct lab *lab = context;
  const struct history *history = &lab->history;
  static const struct ack nothing = { .epoch = 1 };
  const struct ack *ack = state->acknowledged > 0
                          ? &history->acks[state->last_tag] : &nothing;
  const uint64_t dice = mix (++lab->states, lab->seed);
  struct opened opened = { .file = open_log (io, RP_OPEN_WRITE) };
  struct rp_journal_info info;
  struct rp_fault fault;
  uint8_t bytes[BYTES];
  uint32_t version;
  struct listed listed;

  (void) fault_out;
  CHECK (try_open_base (io, &opened.base) == RP_OK);
  if (lab->depth == 0)           /* recovery rolls on its own */
    check_shown (lab, &opened, ack);
  OK (rp_journal_open (opened.file, &opened.base.disk, RP_JOURNAL_WRITE, 0,
                       &opened.journal, &fault));
  OK (rp_disk_pread (rp_journal_disk (opened.journal), bytes, BYTES, 0,
                     &fault));
  version = find_version (history, bytes, ack->version);
  CHECK (version != UINT32_MAX);
  listed = list_points (opened.journal);
  check_listed (history, listed, ack);
  rp_journal_info (opened.journal, &info);
  CHECK (info.options.epoch >= ack->epoch
         && info.options.epoch <= history->epoch);
  CHECK (!info.failed);

  /* J5: asked again, the same */
  close_all (&opened);
  if (lab->depth == 0 && dice % 40 == 0)
    crash_recovery (lab, io, dice / 40);
  open_all (io, &opened);
  OK (rp_disk_pread (rp_journal_disk (opened.journal), bytes, BYTES, 0,
                     &fault));
  CHECK (shows (bytes, history->versions[version]));
  if (lab->depth > 0 || dice % 40 != 0)  /* a recovery may have destaged */
    CHECK (list_points (opened.journal).stop == listed.stop
           && list_points (opened.journal).first == listed.first);
  check_points (lab, io, &opened, list_points (opened.journal), dice);
  close_all (&opened);
  return RP_OK;
}

/* ---- a lab ---- */

static void
lab_init (struct lab *lab)
{
  struct rp_fault fault;

  memory_disk_init (&lab->base, BYTES, 0);
  for (unsigned i = 0; i < SECTORS; i++)
    fill_sector (lab->base.bytes + i * 512, 0x40000000 + i);
  OK (rp_sim_seen_create (&lab->seen, &fault));
}

static void
lab_end (struct lab *lab)
{
  rp_sim_seen_destroy (lab->seen);
  free (lab->base.bytes);
}

/* New storage with an empty log, durable, and an empty history. */
static void
lab_start (struct lab *lab, uint64_t seed)
{
  struct rp_journal_options how = {
    .capacity_bytes = BYTES, .grain_bytes = GRAIN, .segment_bytes = SEGMENT,
    .id = "crash test 4567", .epoch = 1,
  };
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_fault fault;

  memset (&lab->history, 0, sizeof lab->history);
  lab->seed = seed;
  lab->history.version_count = 1;
  lab->history.roll_count = 1;   /* the base is shown, and is version 0 */
  lab->history.horizon_count = 1;
  lab->history.epoch = 1;
  CHECK (read_stamps (lab->base.bytes, lab->history.versions[0]));
  OK (rp_io_simulate_create (&lab->simulate, &fault));
  OK (rp_dir_open (lab->simulate, "/", &dir, &fault));
  OK (rp_file_open (dir, "log", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_journal_create (file, &how, &fault));
  rp_file_close (file);
  OK (rp_file_open (dir, "base", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_file_pwrite (file, lab->base.bytes, BYTES, 0, &fault));
  OK (rp_file_sync (file, &fault));
  OK (rp_dir_sync (dir, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  OK (rp_sim_settle (lab->simulate, &fault));
}

#endif /* RP_TEST_CRASH_JOURNAL_H */

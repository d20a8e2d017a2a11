/* SPDX-License-Identifier: Apache-2.0 */
/* The ring against a plain model: each point from the horizon on is exact
 * through log and base after every step, also where a destage was cut short;
 * slots are used again; the log stays within its limit. */
#include "journal_model.h"

#define DISK_BYTES (300 * 1024 + 512)   /* no multiple of any grain */
#define POINTS_MAX 400u

static unsigned checks, cut_short_count;

struct world {
  struct place *place;
  struct memory_disk base;
  struct rp_file *file;
  struct rp_journal *journal;
  uint8_t *now;
  uint8_t *points[POINTS_MAX];   /* index = id - 1; NULL: behind the horizon */
  uint64_t point_count, first;   /* first: index of the oldest that is listed */
  uint64_t seed, shown;          /* shown: index of a point, or the end */
  uint32_t grain;
  uint64_t freed;
};

#define SHOWN_END UINT64_MAX

static struct rp_disk *
disk_of (struct world *world)
{
  return rp_journal_disk (world->journal);
}

static void
compare (struct world *world)
{
  uint8_t *got = malloc (DISK_BYTES);
  struct rp_fault fault;

  OK (rp_disk_pread (disk_of (world), got, DISK_BYTES, 0, &fault));
  CHECK (memcmp (got, world->now, DISK_BYTES) == 0);
  checks++;
  free (got);
}

/* Read the disk as a VMDK reader would: through the shown root. */
static void
compare_shown (struct world *world, const uint8_t *expected)
{
  uint8_t sector[512], *got = malloc (world->grain);
  uint32_t directory[1024], table[512];
  struct rp_fault fault;
  uint64_t gd;

  OK (rp_file_pread_all (world->file, sector, 512, 0, &fault));
  memcpy (&gd, sector + 56, 8);
  OK (rp_file_pread_all (world->file, directory, 4096, gd * 512, &fault));
  for (uint64_t g = 0; g * world->grain < DISK_BYTES; g++) {
    const uint64_t offset = g * world->grain;
    const uint64_t length = DISK_BYTES - offset < world->grain
                            ? DISK_BYTES - offset : world->grain;
    uint32_t place = 0;

    if (directory[g / 512] != 0) {
      OK (rp_file_pread_all (world->file, table, 2048,
                             (uint64_t) directory[g / 512] * 512, &fault));
      place = table[g % 512];
    }
    if (place == 0)
      memcpy (got, world->base.bytes + offset, length);
    else if (place == 1)
      memset (got, 0, length);
    else
      OK (rp_file_pread_all (world->file, got, world->grain,
                             (uint64_t) place * 512, &fault));
    CHECK (memcmp (got, expected + offset, length) == 0);
  }
  checks++;
  free (got);
}

static void
print_damage (void *context, const struct rp_journal_damage *damage)
{
  fprintf (stderr, "damage at %llu: %s\n",
           (unsigned long long) damage->position, damage->message);
  ++*(unsigned *) context;
}

static void
verify_clean (struct world *world)
{
  struct rp_fault fault;
  unsigned damages = 0;

  OK (rp_journal_scrub (world->journal, &(struct rp_scrub) {
                          .each = print_damage, .context = &damages,
                        }, &fault));
  CHECK (damages == 0);
  checks++;
}

/* ---- steps ---- */

static void
step_write (struct world *world, uint64_t length_max)
{
  uint8_t *data = malloc (length_max);
  uint64_t length = 1 + random_below (&world->seed, length_max);
  uint64_t offset = random_below (&world->seed, DISK_BYTES);
  struct rp_fault fault;

  if (random_below (&world->seed, 3) == 0)
    offset -= offset % 4096, length = length_max < 4096 ? length_max : 4096;
  if (length > DISK_BYTES - offset)
    length = DISK_BYTES - offset;
  if (random_below (&world->seed, 4) == 0) {
    OK (rp_disk_zero (disk_of (world), length, offset, true, &fault));
    memset (world->now + offset, 0, length);
  } else {
    for (uint64_t i = 0; i < length; i++)
      data[i] = (uint8_t) next_random (&world->seed);
    OK (rp_disk_pwrite (disk_of (world), data, length, offset, &fault));
    memcpy (world->now + offset, data, length);
  }
  free (data);
}

static void
step_mark (struct world *world)
{
  const struct rp_point point = make_point (world->point_count + 1);
  struct rp_fault fault;

  if (world->point_count == POINTS_MAX)
    return;
  OK (rp_journal_mark (world->journal, &point, &fault));
  world->points[world->point_count] = malloc (DISK_BYTES);
  memcpy (world->points[world->point_count++], world->now, DISK_BYTES);
}

static void
check_points (struct world *world)
{
  struct rp_point point;
  struct rp_fault fault;

  OK (rp_journal_commit (world->journal, &fault));
  for (uint64_t i = world->first; i < world->point_count; i++) {
    const struct rp_point wanted = make_point (i + 1);

    OK (rp_journal_point (world->journal, i - world->first, &point, &fault));
    CHECK (memcmp (&point, &wanted, sizeof point) == 0);
  }
  CHECK (rp_journal_point (world->journal, world->point_count - world->first,
                           &point, &fault) == RP_NOT_FOUND);
  checks++;
}

static void
roll_to (struct world *world, uint64_t index)
{
  struct rp_roll roll;
  struct rp_fault fault;

  if (index == SHOWN_END) {
    OK (rp_journal_roll (world->journal, RP_POINT_END, &roll, &fault));
    compare_shown (world, world->now);
  } else {
    OK (rp_journal_roll (world->journal, index + 1, &roll, &fault));
    compare_shown (world, world->points[index]);
  }
}

static void
step_roll (struct world *world)
{
  const uint64_t count = world->point_count - world->first;

  roll_to (world, count == 0 || random_below (&world->seed, 5) == 0
                  ? SHOWN_END
                  : world->first + random_below (&world->seed, count));
}

/* G1 for all that is listed. */
static void
check_all_points (struct world *world)
{
  const bool down = random_below (&world->seed, 2) == 0;
  const uint64_t count = world->point_count - world->first;

  check_points (world);
  roll_to (world, SHOWN_END);
  for (uint64_t i = 0; i < count; i++)
    roll_to (world, world->first + (down ? count - 1 - i : i));
  roll_to (world, SHOWN_END);
  compare (world);
}

static void
step_checkpoint (struct world *world)
{
  struct rp_checkpoint done;
  struct rp_journal_info info;
  struct rp_fault fault;

  OK (rp_journal_checkpoint (world->journal, &done, &fault));
  rp_journal_info (world->journal, &info);
  CHECK (info.root_entry == info.entry_count);
  CHECK (done.root_sector == info.root_sector);
  compare_shown (world, world->now);
  OK (rp_journal_checkpoint (world->journal, &done, &fault));
  CHECK (done.entries_since == 0 && done.bytes_written == 0);
}

static bool
refuse (void *context, uint64_t done_bytes, uint64_t total_bytes)
{
  (void) context;
  CHECK (done_bytes <= total_bytes);
  return false;
}

/* Points before index are gone for good, and asking for one says so. */
static void
forget_points (struct world *world, uint64_t index)
{
  struct rp_roll roll;
  struct rp_fault fault;

  for (; world->first < index; world->first++) {
    free (world->points[world->first]);
    world->points[world->first] = NULL;
    CHECK (rp_journal_roll (world->journal, world->first + 1, &roll, &fault)
           == RP_NOT_FOUND);
  }
}

/* A destage that stops in the middle: nothing that is listed is harmed. */
static void
cut_short (struct world *world, uint64_t index)
{
  struct rp_destage done;
  struct rp_journal_info info;
  struct rp_fault fault;

  if (random_below (&world->seed, 2) == 0)
    CHECK (rp_journal_destage (world->journal, index + 1, &world->base.disk,
                               refuse, NULL, &done, &fault)
           != RP_NOT_FOUND);
  else {
    world->base.fail_change = world->base.changes + 1
                              + random_below (&world->seed, 12);
    (void) rp_journal_destage (world->journal, index + 1, &world->base.disk,
                               NULL, NULL, &done, &fault);
    world->base.fail_change = 0;
  }
  rp_journal_info (world->journal, &info);
  CHECK (!info.failed && info.based_entry <= info.horizon_entry);
  cut_short_count += info.based_entry < info.horizon_entry;
  forget_points (world, index);
  compare (world);
  if (random_below (&world->seed, 2) == 0)
    check_all_points (world);
}

static void
step_destage (struct world *world)
{
  const uint64_t count = world->point_count - world->first;
  uint64_t index;
  struct rp_destage done;
  struct rp_journal_info before, info;
  struct rp_fault fault;

  if (count == 0)
    return;
  index = world->first + random_below (&world->seed, count);
  if (random_below (&world->seed, 3) == 0)
    cut_short (world, index);
  rp_journal_info (world->journal, &before);
  OK (rp_journal_destage (world->journal, index + 1, &world->base.disk, NULL,
                          NULL, &done, &fault));
  rp_journal_info (world->journal, &info);
  CHECK (info.horizon_entry == info.based_entry);
  CHECK (done.entries == info.based_entry - before.based_entry);
  CHECK (done.freed_bytes % info.options.segment_bytes == 0);
  CHECK (info.root_entry >= info.horizon_entry);
  world->freed += done.freed_bytes;
  forget_points (world, index);
  CHECK (memcmp (world->base.bytes, world->points[index], DISK_BYTES) == 0);
  compare (world);
  OK (rp_journal_destage (world->journal, index + 1, &world->base.disk, NULL,
                          NULL, &done, &fault));
  CHECK (done.entries == 0 && done.bytes_written == 0);
  if (random_below (&world->seed, 2) == 0)
    for (int i = 0; i < 3; i++)  /* into slots that were just given back */
      step_write (world, 40000);
  if (random_below (&world->seed, 2) == 0)
    check_all_points (world);
}

static void
reopen (struct world *world, bool clean)
{
  struct rp_fault fault;

  if (clean)
    OK (rp_journal_close_clean (world->journal, &fault));
  else
    OK (rp_journal_commit (world->journal, &fault));
  rp_journal_destroy (world->journal);
  rp_file_close (world->file);
  world->file = place_open (world->place, "ring");
  world->journal = journal_open (world->file, &world->base.disk,
                                 RP_JOURNAL_WRITE);
}

/* ---- worlds ---- */

static void
world_begin (struct world *world, struct place *place, uint64_t seed,
             uint32_t grain, uint32_t segment)
{
  memset (world, 0, sizeof *world);
  world->place = place;
  world->seed = seed;
  world->grain = grain;
  memory_disk_init (&world->base, DISK_BYTES, 0xb5);
  world->base.disk.read_only = false;
  world->now = malloc (DISK_BYTES);
  memcpy (world->now, world->base.bytes, DISK_BYTES);
  world->file = place_create_log (place, "ring", DISK_BYTES, grain, segment);
  world->journal = journal_open (world->file, &world->base.disk,
                                 RP_JOURNAL_WRITE);
}

static void
world_end (struct world *world)
{
  struct rp_fault fault;

  rp_journal_destroy (world->journal);
  rp_file_close (world->file);
  OK (rp_dir_unlink (world->place->dir, "ring", &fault));
  for (uint64_t i = 0; i < world->point_count; i++)
    free (world->points[i]);
  free (world->now);
  free (world->base.bytes);
}

static void
test_model (struct place *place, uint64_t seed, uint32_t grain,
            uint32_t segment)
{
  struct world world;
  struct rp_journal_info info;
  struct rp_fault fault;
  uint64_t size;

  world_begin (&world, place, seed, grain, segment);
  for (int i = 0; i < 500; i++) {
    const uint64_t what = random_below (&world.seed, 100);

    if (what < 64)
      step_write (&world, 40000);
    else if (what < 72)
      OK (rp_journal_commit (world.journal, &fault));
    else if (what < 80)
      step_mark (&world);
    else if (what < 84)
      step_roll (&world);
    else if (what < 88)
      step_checkpoint (&world);
    else if (what < 94)
      step_destage (&world);
    else if (what < 98) {
      reopen (&world, what < 96);
      check_points (&world);
    } else
      verify_clean (&world);
  }
  step_mark (&world);
  check_all_points (&world);
  verify_clean (&world);
  rp_journal_info (world.journal, &info);
  OK (rp_file_size (world.file, &size, &fault));
  /* what was given back is used again */
  CHECK (world.freed > 0 && size < world.freed + info.used_bytes);
  world_end (&world);
}

/* The limit holds at every moment, a writer is told, and a point that is
 * destaged to makes room again. */
static void
test_limit (struct place *place, uint64_t seed, uint32_t grain,
            uint32_t segment, uint32_t slots)
{
  const uint64_t limit = (uint64_t) slots * segment;
  struct world world;
  struct rp_journal_info info;
  struct rp_destage done;
  struct rp_fault fault;
  uint8_t data[512];
  unsigned full = 0;

  world_begin (&world, place, seed, grain, segment);
  OK (rp_journal_set_limit (world.journal, limit, false, &fault));
  for (int i = 0; i < 1500; i++) {
    const uint64_t offset = random_below (&world.seed, DISK_BYTES / 512) * 512;
    int status;

    memset (data, i, sizeof data);
    status = rp_disk_pwrite (disk_of (&world), data, sizeof data, offset,
                             &fault);
    rp_journal_info (world.journal, &info);
    CHECK (info.used_bytes <= limit && info.limit_bytes == limit);
    if (status == RP_OK)
      memcpy (world.now + offset, data, sizeof data);
    else {
      CHECK (status == RP_FULL && !info.failed);
      CHECK (strncmp (fault.message, "the journal is full: ", 21) == 0);
      full++;
      compare (&world);
      step_mark (&world);
      OK (rp_journal_destage (world.journal, RP_POINT_LATEST,
                              &world.base.disk, NULL, NULL, &done, &fault));
      CHECK (done.freed_bytes > 0);
      forget_points (&world, world.point_count - 1);
    }
    if (i % 400 == 399) {
      reopen (&world, i % 800 == 799);
      OK (rp_journal_set_limit (world.journal, limit, false, &fault));
    }
  }
  CHECK (full > 3);
  check_all_points (&world);
  verify_clean (&world);
  world_end (&world);
}

/* A grain whose data is damaged in the log does not reach the base. */
static void
test_damage (struct place *place)
{
  struct world world;
  struct rp_destage done;
  struct rp_journal_info info;
  struct rp_fault fault;
  uint8_t byte, *data = malloc (40 * 4096);

  world_begin (&world, place, 7, 4096, 1 << 20);
  for (unsigned i = 0; i < 40 * 4096; i++)
    data[i] = (uint8_t) (i / 4096 + 1);
  OK (rp_disk_pwrite (disk_of (&world), data, 40 * 4096, 0, &fault));
  step_mark (&world);
  OK (rp_journal_commit (world.journal, &fault));
  /* slot 1: header page, batch header, then grains in order */
  OK (rp_file_pread_all (world.file, &byte, 1,
                         65536 + (1 << 20) + 2 * 4096 + 9 * 4096 + 77,
                         &fault));
  CHECK (byte == 10);
  byte ^= 0x10;
  OK (rp_file_pwrite (world.file, &byte, 1,
                      65536 + (1 << 20) + 2 * 4096 + 9 * 4096 + 77, &fault));
  CHECK (rp_journal_destage (world.journal, 1, &world.base.disk, NULL, NULL,
                             &done, &fault) == RP_CORRUPT);
  CHECK (fault.position == 65536 + (1 << 20) + 2 * 4096 + 9 * 4096);
  CHECK (strstr (fault.message, "from 36864 on") != NULL);
  CHECK (world.base.bytes[9 * 4096 + 77] == 0xb5);
  rp_journal_info (world.journal, &info);
  CHECK (!info.failed && info.based_entry == 0 && info.horizon_entry == 40);
  byte ^= 0x10;
  OK (rp_file_pwrite (world.file, &byte, 1,
                      65536 + (1 << 20) + 2 * 4096 + 9 * 4096 + 77, &fault));
  OK (rp_journal_destage (world.journal, 1, &world.base.disk, NULL, NULL,
                          &done, &fault));
  CHECK (done.entries == 40 && done.grains == 40
         && done.bytes_written == 40 * 4096);
  CHECK (memcmp (world.base.bytes, data, 40 * 4096) == 0);
  checks++;
  free (data);
  world_end (&world);
}

/* Tables that the shown root stores. */
static uint32_t
count_shown_tables (struct rp_file *file, uint32_t tables)
{
  uint8_t sector[512];
  uint32_t directory[1024], count = 0;
  uint64_t gd;
  struct rp_fault fault;

  OK (rp_file_pread_all (file, sector, 512, 0, &fault));
  memcpy (&gd, sector + 56, 8);
  OK (rp_file_pread_all (file, directory, 4096, gd * 512, &fault));
  for (uint32_t i = 0; i < tables; i++)
    count += directory[i] != 0;
  return count;
}

/* A disk that was trimmed as a whole: once the base has those zeros, a root
 * holds only what was written since. */
static void
test_trimmed (struct place *place)
{
  enum { TABLES = 12, BYTES = TABLES * 512 * 4096 };
  struct memory_disk base;
  struct rp_file *file = place_create_log (place, "ring", BYTES, 4096, 65536);
  struct rp_journal *journal;
  struct rp_disk *disk;
  struct rp_point point = make_point (1);
  struct rp_destage done;
  struct rp_checkpoint checkpoint;
  struct rp_fault fault;
  uint8_t *now = calloc (1, BYTES), *got = malloc (BYTES), data[4096];

  memory_disk_init (&base, BYTES, 0xb5);
  base.disk.read_only = false;
  journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  disk = rp_journal_disk (journal);
  OK (rp_disk_zero (disk, BYTES, 0, true, &fault));
  for (unsigned i = 0; i < 60; i++) {      /* into the first three tables */
    memset (data, (int) i + 1, sizeof data);
    memcpy (now + (i * 25) * 4096, data, sizeof data);
    OK (rp_disk_pwrite (disk, data, sizeof data, (i * 25) * 4096, &fault));
  }
  OK (rp_journal_checkpoint (journal, &checkpoint, &fault));
  CHECK (count_shown_tables (file, TABLES) == TABLES);
  OK (rp_journal_mark (journal, &point, &fault));
  for (unsigned i = 0; i < 30; i++) {      /* into the eighth */
    memset (data, (int) i + 101, sizeof data);
    memcpy (now + (7 * 512 + i) * 4096, data, sizeof data);
    OK (rp_disk_pwrite (disk, data, sizeof data, (7 * 512 + i) * 4096,
                        &fault));
  }
  OK (rp_disk_zero (disk, 512 * 4096, 0, true, &fault));
  memset (now, 0, 512 * 4096);
  OK (rp_journal_destage (journal, 1, &base.disk, NULL, NULL, &done, &fault));
  CHECK (done.freed_bytes > 0 && done.zeroed_bytes > BYTES / 2);
  CHECK (base.bytes[BYTES - 1] == 0 && base.bytes[25 * 4096] == 2);
  /* the first is zeros again, the second and third have places still where
     their segment is kept, the eighth is new; the others are the base's */
  CHECK (count_shown_tables (file, TABLES) <= 4);
  for (int i = 0; i < 2; i++) {
    OK (rp_disk_pread (disk, got, BYTES, 0, &fault));
    CHECK (memcmp (got, now, BYTES) == 0);
    rp_journal_destroy (journal);
    journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
    disk = rp_journal_disk (journal);
  }
  rp_journal_destroy (journal);
  rp_file_close (file);
  OK (rp_dir_unlink (place->dir, "ring", &fault));
  free (base.bytes);
  free (now);
  free (got);
  checks++;
}

/* Misuse is told, and harms nothing. */
static void
test_misuse (struct place *place)
{
  struct memory_disk other;
  struct world world;
  struct rp_destage done;
  struct rp_checkpoint checkpoint;
  struct rp_journal *reader;
  struct rp_fault fault;

  memory_disk_init (&other, DISK_BYTES, 0);
  world_begin (&world, place, 9, 4096, 65536);
  step_write (&world, 30000);
  CHECK (rp_journal_destage (world.journal, RP_POINT_LATEST, &world.base.disk,
                             NULL, NULL, &done, &fault) == RP_NOT_FOUND);
  step_mark (&world);
  CHECK (rp_journal_destage (world.journal, RP_POINT_END, &world.base.disk,
                             NULL, NULL, &done, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_journal_destage (world.journal, 1, &other.disk, NULL, NULL, &done,
                             &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_journal_destage (world.journal, 2, &world.base.disk, NULL, NULL,
                             &done, &fault) == RP_NOT_FOUND);
  world.base.disk.read_only = true;
  CHECK (rp_journal_destage (world.journal, 1, &world.base.disk, NULL, NULL,
                             &done, &fault) == RP_READ_ONLY);
  check_all_points (&world);
  reader = journal_open (world.file, &world.base.disk, RP_JOURNAL_READ);
  CHECK (rp_journal_destage (reader, 1, &world.base.disk, NULL, NULL, &done,
                             &fault) == RP_READ_ONLY);
  CHECK (rp_journal_checkpoint (reader, &checkpoint, &fault) == RP_READ_ONLY);
  CHECK (rp_journal_set_limit (reader, 0, true, &fault) == RP_READ_ONLY);
  rp_journal_destroy (reader);
  world.base.disk.read_only = false;
  OK (rp_journal_set_epoch (world.journal, 2, true, &fault));
  CHECK (rp_journal_destage (world.journal, 1, &world.base.disk, NULL, NULL,
                             &done, &fault) == RP_HELD);
  CHECK (rp_journal_checkpoint (world.journal, &checkpoint, &fault)
         == RP_HELD);
  OK (rp_journal_set_epoch (world.journal, 2, false, &fault));
  OK (rp_journal_destage (world.journal, 1, &world.base.disk, NULL, NULL,
                          &done, &fault));
  world_end (&world);
  free (other.bytes);
  checks++;
}

/* A reader without the lock never shows what a destage has changed. */
static void
test_passed_reader (struct place *place)
{
  struct world world;
  struct rp_destage done;
  struct rp_journal *reader;
  struct rp_fault fault;
  uint8_t *got = malloc (DISK_BYTES);
  unsigned passed = 0;

  world_begin (&world, place, 31, 4096, 65536);
  for (int i = 0; i < 20; i++) {
    const uint8_t fill = (uint8_t) (i + 1);
    int status;

    OK (rp_journal_commit (world.journal, &fault));
    reader = journal_open (world.file, &world.base.disk, RP_JOURNAL_READ);
    OK (rp_disk_pread (rp_journal_disk (reader), got, DISK_BYTES, 0, &fault));
    CHECK (memcmp (got, world.now, DISK_BYTES) == 0);
    memset (got, fill, DISK_BYTES);
    OK (rp_disk_pwrite (disk_of (&world), got, DISK_BYTES, 0, &fault));
    if (i % 2) {
      memset (world.now, fill, DISK_BYTES);
      step_mark (&world);
      OK (rp_journal_destage (world.journal, RP_POINT_LATEST,
                              &world.base.disk, NULL, NULL, &done, &fault));
    }
    status = rp_disk_pread (rp_journal_disk (reader), got, DISK_BYTES, 0,
                            &fault);
    CHECK (status == RP_STATE
           || (status == RP_OK && memcmp (got, world.now, DISK_BYTES) == 0));
    CHECK (status == RP_STATE || i % 2 == 0);
    passed += status == RP_STATE;
    memset (world.now, fill, DISK_BYTES);
    rp_journal_destroy (reader);
  }
  CHECK (passed == 10);
  free (got);
  world_end (&world);
  checks++;
}

int
main (void)
{
  struct place place;

  place_make (&place);
  test_damage (&place);
  test_misuse (&place);
  test_trimmed (&place);
  test_passed_reader (&place);
  for (uint64_t seed = 1; seed <= 3; seed++) {
    test_model (&place, seed * 7919, 4096, 65536);
    test_model (&place, seed * 1299709, 8192, 131072);
    test_model (&place, seed * 15485863, 65536, 512 * 1024);
    test_limit (&place, seed * 104729, 4096, 65536, 6);
    test_limit (&place, seed * 32452843, 8192, 131072, 9);
  }
  CHECK (cut_short_count > 0);
  place_remove (&place);
  printf ("journal_destage_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Roots of a large disk: what of the directory is stored, what the rest reads
 * as, and the map in memory that is made of the same pages.  The seeds are
 * fixed. */
#include "journal_format.h"
#include "journal_map.h"
#include "journal_model.h"

#define GRAIN       4096u
#define SEGMENT     (256u << 10)
#define PAGES       32u            /* of the directory: 64 GiB */
#define DISK_BYTES  (PAGES * PAGE_GRAINS * GRAIN)
#define PAGE_GRAINS (UINT64_C (512) * RP_MAP_PAGE_TABLES)
#define DIRECTORY   (PAGES * RP_LOG_PAGE_BYTES)

static unsigned checks;

/* ---- the map ---- */

#define MAP_PAGES  3u
#define MAP_GRAINS ((MAP_PAGES - 1) * PAGE_GRAINS + 700)

/* A map against an array; `then`: what was frozen. */
struct pair {
  struct rp_map map;
  uint32_t *now, *then;
};

static void
change_map (struct pair *pair, uint64_t *seed)
{
  uint64_t grain = random_below (seed, MAP_GRAINS);
  uint64_t count = random_below (seed, 5) == 0
                   ? random_below (seed, MAP_GRAINS) : random_below (seed, 9);
  const uint32_t place = (uint32_t) random_below (seed, 2);
  struct rp_fault fault;

  if (random_below (seed, 2) == 0) {
    pair->now[grain] = 8 * (1 + (uint32_t) random_below (seed, 1000));
    OK (rp_map_set (&pair->map, grain, pair->now[grain], &fault));
    return;
  }
  if (count > MAP_GRAINS - grain)
    count = MAP_GRAINS - grain;
  OK (rp_map_fill (&pair->map, grain, count, place, &fault));
  for (; count > 0; count--)
    pair->now[grain++] = place;
}

static void
compare_map (const struct pair *pair, const struct rp_map *map)
{
  uint64_t stored = 0;

  for (uint64_t at = 0, run; at < MAP_GRAINS; at += run) {
    uint32_t place;

    run = rp_map_run (map, at, MAP_GRAINS, 8, &place);
    CHECK (run > 0);
    for (uint64_t i = 0; i < run; i++) {
      CHECK (rp_map_get (map, at + i) == place);
      CHECK (pair->now[at + i] == place);
      place += place > RP_PLACE_ZEROS ? 8 : 0;
    }
  }
  for (uint64_t i = 0; i < map->table_count; i++) {
    CHECK (rp_map_next (map, i) == i || !rp_map_peek (map, i));
    stored += rp_map_peek (map, i) != NULL;
  }
  CHECK (stored == map->stored_count);
  checks++;
}

static void
compare_frozen (const struct pair *pair)
{
  for (uint64_t i = 0; i < MAP_GRAINS; i++) {
    const uint32_t *table = rp_map_frozen (&pair->map, i / 512);

    CHECK ((table ? table[i % 512] : 0) == pair->then[i]);
  }
  checks++;
}

static void
test_map (uint64_t seed)
{
  struct pair pair = { .now = calloc (MAP_GRAINS, sizeof *pair.now),
                       .then = malloc (MAP_GRAINS * sizeof *pair.then) };
  struct rp_map_freeze freeze;
  struct rp_map copy;
  struct rp_fault fault;

  OK (rp_map_create (&pair.map, MAP_GRAINS, &fault));
  CHECK (rp_map_next (&pair.map, 0) == pair.map.table_count);
  for (int round = 0; round < 6; round++) {
    OK (rp_map_freeze_create (&pair.map, &freeze, &fault));
    for (int i = 0; i < round; i++)
      change_map (&pair, &seed);
    rp_map_freeze_begin (&pair.map, &freeze);
    memcpy (pair.then, pair.now, MAP_GRAINS * sizeof *pair.now);
    for (int i = 0; i < 12; i++)
      change_map (&pair, &seed);
    compare_map (&pair, &pair.map);
    compare_frozen (&pair);
    rp_map_freeze_end (&pair.map);
    rp_map_freeze_release (&pair.map, &freeze, 0, pair.map.table_count);
    rp_map_freeze_destroy (&freeze);
    OK (rp_map_copy (&copy, &pair.map, &fault));
    compare_map (&pair, &copy);
    CHECK (copy.own_count == pair.map.own_count);
    rp_map_destroy (&copy);
  }
  rp_map_destroy (&pair.map);
  free (pair.now);
  free (pair.then);
}

/* ---- the root ---- */

/* Grains that are written before each point: 1, 2. */
static const uint64_t grains[2][3] = {
  { 3, 5 * PAGE_GRAINS + 512, 31 * PAGE_GRAINS + 7 },
  { 4, 9 * PAGE_GRAINS, 10 * PAGE_GRAINS + 1 },
};

struct world {
  struct rp_io *io;
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_journal *journal;
};

static void
note_damage (void *context, const struct rp_journal_damage *damage)
{
  (void) damage;
  ++*(unsigned *) context;
}

static unsigned
count_damages (struct rp_journal *journal)
{
  struct rp_fault fault;
  unsigned damages = 0;

  OK (rp_journal_scrub (journal, &(struct rp_scrub) {
                          .each = note_damage, .context = &damages,
                        }, &fault));
  return damages;
}

static void
make_world (struct world *world, const char *path, bool no_fallocate)
{
  const struct rp_posix_limits limits = { .no_fallocate = no_fallocate };
  const struct rp_journal_options options = {
    .capacity_bytes = DISK_BYTES, .grain_bytes = GRAIN,
    .segment_bytes = SEGMENT, .id = "0123456789abcde", .epoch = 1,
  };
  struct rp_fault fault;

  OK (rp_io_posix_create_limited (&limits, &world->io, &fault));
  OK (rp_dir_open (world->io, path, &world->dir, &fault));
  OK (rp_file_open (world->dir, "log", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &world->file, &fault));
  OK (rp_journal_create (world->file, &options, &fault));
  world->journal = journal_open (world->file, NULL, RP_JOURNAL_WRITE);
  for (unsigned i = 0; i < 2; i++) {
    const struct rp_point point = make_point (i + 1);
    uint8_t data[GRAIN];

    for (unsigned k = 0; k < 3; k++) {
      memset (data, (int) (i * 3 + k + 1), sizeof data);
      OK (rp_disk_pwrite (rp_journal_disk (world->journal), data,
                          sizeof data, grains[i][k] * GRAIN, &fault));
    }
    OK (rp_journal_mark (world->journal, &point, &fault));
  }
}

static void
end_world (struct world *world)
{
  struct rp_fault fault;

  rp_journal_destroy (world->journal);
  rp_file_close (world->file);
  OK (rp_dir_unlink (world->dir, "log", &fault));
  rp_dir_close (world->dir);
  rp_io_destroy (world->io);
}

static uint64_t
directory_position (struct rp_file *file)
{
  uint8_t sector[512];
  struct rp_fault fault;

  OK (rp_file_pread_all (file, sector, sizeof sector, 0, &fault));
  return rp_load64 (sector + 56) * 512;
}

/* What any VMDK reader sees of the directory and what the header says of it:
 * the tables of the grains before this point, and nothing else. */
static void
check_shown (struct rp_file *file, unsigned point)
{
  const uint64_t position = directory_position (file);
  uint8_t *directory = malloc (DIRECTORY), page[RP_LOG_PAGE_BYTES];
  bool wanted[PAGES] = { false };
  uint32_t tables = 0, stored = 0;
  struct rp_log_root root;
  struct rp_fault fault;

  OK (rp_file_pread_all (file, directory, DIRECTORY, position, &fault));
  OK (rp_file_pread_all (file, page, sizeof page, position - sizeof page,
                         &fault));
  CHECK (rp_log_get_root (page, &root));
  for (unsigned i = 0; i < point; i++)
    for (unsigned k = 0; k < 3; k++) {
      const uint64_t grain = grains[i][k];
      const uint64_t table = rp_load32 (directory + grain / 512 * 4);
      uint8_t data[GRAIN], place[4];

      wanted[grain / PAGE_GRAINS] = true;
      OK (rp_file_pread_all (file, place, 4, table * 512 + grain % 512 * 4,
                             &fault));
      OK (rp_file_pread_all (file, data, GRAIN,
                             (uint64_t) rp_load32 (place) * 512, &fault));
      CHECK (data[0] == i * 3 + k + 1 && data[GRAIN - 1] == data[0]);
    }
  for (unsigned i = 0; i < PAGES * RP_MAP_PAGE_TABLES; i++)
    tables += rp_load32 (directory + i * 4) != 0;
  CHECK (tables == root.table_count && tables == (point == 1 ? 3 : 5));
  for (unsigned i = 0; i < PAGES; i++) {
    CHECK (rp_log_is_stored (root.stored, i) == wanted[i]);
    stored += wanted[i];
  }
  CHECK (stored == (point == 1 ? 3 : 5));
  free (directory);
  checks++;
}

static void
roll (struct world *world, unsigned point)
{
  struct rp_roll done;
  struct rp_fault fault;

  OK (rp_journal_roll (world->journal, point, &done, &fault));
  check_shown (world->file, point);
  CHECK (count_damages (world->journal) == 0);
}

static void
reopen (struct world *world)
{
  rp_journal_destroy (world->journal);
  world->journal = journal_open (world->file, NULL, RP_JOURNAL_WRITE);
}

/* Fill the slots that hold neither a segment nor the shown root. */
static void
spoil_free_slots (struct rp_file *file)
{
  const uint64_t shown = directory_position (file) - RP_LOG_PAGE_BYTES;
  uint8_t *bytes = malloc (SEGMENT), magic[8];
  uint64_t size;
  unsigned spoiled = 0;
  struct rp_fault fault;

  memset (bytes, 0xee, SEGMENT);
  OK (rp_file_size (file, &size, &fault));
  for (uint64_t at = RP_LOG_HEAD_BYTES; at < size; at += SEGMENT) {
    OK (rp_file_pread_all (file, magic, sizeof magic, at, &fault));
    if (at == shown || memcmp (magic, "RPSEGMT1", 8) == 0)
      continue;
    OK (rp_file_pwrite (file, bytes, SEGMENT, at, &fault));
    spoiled++;
  }
  CHECK (spoiled > 0);
  free (bytes);
}

/* Whatever was in the slots that a root takes, nobody sees it. */
static void
test_used_slots (const char *path, bool no_fallocate)
{
  struct world world;

  make_world (&world, path, no_fallocate);
  roll (&world, 1);
  roll (&world, 2);
  for (unsigned round = 0; round < 4; round++) {
    spoil_free_slots (world.file);
    if (round % 2 == 1)
      reopen (&world);
    roll (&world, 1 + round % 2);
  }
  reopen (&world);
  CHECK (count_damages (world.journal) == 0);
  end_world (&world);
}

/* A page that should be a hole is part of what is shown: damage there is found,
 * and mended by rolling back again. */
static void
test_damaged_hole (const char *path)
{
  static const uint8_t wrong[4] = { 9 };
  static const unsigned pages[] = { 1, 17, 30 };
  struct world world;
  struct rp_fault fault;

  make_world (&world, path, false);
  for (unsigned i = 0; i < 3; i++) {
    roll (&world, 1);
    OK (rp_file_pwrite (world.file, wrong, sizeof wrong,
                        directory_position (world.file)
                        + pages[i] * RP_LOG_PAGE_BYTES + 400, &fault));
    CHECK (count_damages (world.journal) == 1);
    roll (&world, 1);
  }
  end_world (&world);
}

/* A root as it was written before pages could be left out. */
static void
test_first_kind (const char *path)
{
  struct world world;
  struct rp_log_root root;
  struct rp_fault fault;
  uint8_t *content, page[RP_LOG_PAGE_BYTES];
  uint64_t position;

  make_world (&world, path, false);
  roll (&world, 2);
  position = directory_position (world.file);
  OK (rp_file_pread_all (world.file, page, sizeof page,
                         position - sizeof page, &fault));
  CHECK (rp_log_get_root (page, &root));
  content = malloc (root.content_bytes);
  OK (rp_file_pread_all (world.file, content, root.content_bytes, position,
                         &fault));
  memcpy (page, "RPROOTS1", 8);
  memset (page + 88, 0, sizeof page - 88);
  rp_store64 (page + 80, rp_log_hash (content, root.content_bytes));
  rp_store64 (page + 8, rp_log_hash (page + 16, sizeof page - 16));
  OK (rp_file_pwrite (world.file, page, sizeof page, position - sizeof page,
                      &fault));
  reopen (&world);
  CHECK (count_damages (world.journal) == 0);
  OK (rp_disk_pread (rp_journal_disk (world.journal), page, GRAIN,
                     grains[1][1] * GRAIN, &fault));
  CHECK (page[0] == 5);
  roll (&world, 1);
  free (content);
  end_world (&world);
}

int
main (void)
{
  struct place place;

  place_make (&place);
  for (uint64_t seed = 1; seed <= 3; seed++)
    test_map (seed * 7919);
  test_used_slots (place.path, false);
  test_used_slots (place.path, true);
  test_damaged_hole (place.path);
  test_first_kind (place.path);
  place_remove (&place);
  printf ("journal_root_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The journal against a plain model: bytes in memory, one copy a point. */
#include "journal_model.h"

#define DISK_BYTES (600 * 1024 + 512)   /* no multiple of any grain */
#define POINTS_MAX 64

static unsigned checks;

struct model {
  uint8_t *now;
  uint8_t *points[POINTS_MAX];
  uint64_t ids[POINTS_MAX];
  unsigned point_count;
};

static void
compare (struct rp_disk *disk, const uint8_t *expected)
{
  uint8_t *got = malloc (DISK_BYTES);
  struct rp_fault fault;

  OK (rp_disk_pread (disk, got, DISK_BYTES, 0, &fault));
  CHECK (memcmp (got, expected, DISK_BYTES) == 0);
  checks++;
  free (got);
}

/* Read the disk as a VMDK reader would: through the shown root. */
static void
compare_shown (struct rp_file *file, const struct memory_disk *base,
               uint32_t grain, const uint8_t *expected)
{
  uint8_t sector[512], *got = malloc (grain);
  uint32_t directory[8192], table[512];
  struct rp_fault fault;
  uint64_t gd;

  OK (rp_file_pread_all (file, sector, 512, 0, &fault));
  memcpy (&gd, sector + 56, 8);
  OK (rp_file_pread_all (file, directory, 4096, gd * 512, &fault));
  for (uint64_t g = 0; g * grain < DISK_BYTES; g++) {
    const uint64_t offset = g * grain;
    const uint64_t length = DISK_BYTES - offset < grain
                            ? DISK_BYTES - offset : grain;
    uint32_t place = 0;

    if (directory[g / 512] != 0) {
      OK (rp_file_pread_all (file, table, 2048,
                             (uint64_t) directory[g / 512] * 512, &fault));
      place = table[g % 512];
    }
    if (place == 0)
      memcpy (got, base->bytes + offset, length);
    else if (place == 1)
      memset (got, 0, length);
    else
      OK (rp_file_pread_all (file, got, grain, (uint64_t) place * 512,
                             &fault));
    CHECK (memcmp (got, expected + offset, length) == 0);
  }
  checks++;
  free (got);
}

static void
count_damage (void *context, const struct rp_journal_damage *damage)
{
  fprintf (stderr, "damage at %llu: %s\n",
           (unsigned long long) damage->position, damage->message);
  ++*(unsigned *) context;
}

static void
verify_clean (struct rp_journal *journal)
{
  struct rp_fault fault;
  unsigned damages = 0;

  OK (rp_journal_scrub (journal, &(struct rp_scrub) {
                          .each = count_damage, .context = &damages,
                        }, &fault));
  CHECK (damages == 0);
  checks++;
}

static void
random_write (struct rp_disk *disk, struct model *model, uint64_t *seed)
{
  uint8_t *data = malloc (96 * 1024);
  uint64_t length = 1 + random_below (seed, random_below (seed, 8) ? 9000
                                                                  : 90000);
  uint64_t offset = random_below (seed, DISK_BYTES);
  struct rp_fault fault;

  if (random_below (seed, 3) == 0)
    offset -= offset % 4096, length = 4096 * (1 + random_below (seed, 4));
  if (length > DISK_BYTES - offset)
    length = DISK_BYTES - offset;
  if (random_below (seed, 4) == 0) {
    OK (rp_disk_zero (disk, length, offset, random_below (seed, 2), &fault));
    memset (model->now + offset, 0, length);
  } else {
    for (uint64_t i = 0; i < length; i++)
      data[i] = (uint8_t) next_random (seed);
    OK (rp_disk_pwrite (disk, data, length, offset, &fault));
    memcpy (model->now + offset, data, length);
  }
  free (data);
}

static void
mark (struct rp_journal *journal, struct model *model, uint64_t id)
{
  struct rp_point point = make_point (id);
  struct rp_fault fault;

  if (model->point_count == POINTS_MAX)
    return;
  OK (rp_journal_mark (journal, &point, &fault));
  model->ids[model->point_count] = id;
  model->points[model->point_count] = malloc (DISK_BYTES);
  memcpy (model->points[model->point_count++], model->now, DISK_BYTES);
}

static void
check_points (struct rp_journal *journal, const struct model *model)
{
  struct rp_point point;
  struct rp_fault fault;

  for (unsigned i = 0; i < model->point_count; i++) {
    const struct rp_point wanted = make_point (model->ids[i]);

    OK (rp_journal_point (journal, i, &point, &fault));
    CHECK (memcmp (&point, &wanted, sizeof point) == 0);
  }
  CHECK (rp_journal_point (journal, model->point_count, &point, &fault)
         == RP_NOT_FOUND);
}

static void
roll_random (struct rp_journal *journal, struct rp_file *file,
             const struct memory_disk *base, const struct model *model,
             uint32_t grain, uint64_t *seed)
{
  struct rp_roll roll;
  struct rp_fault fault;
  unsigned i;

  if (model->point_count == 0 || random_below (seed, 5) == 0) {
    OK (rp_journal_roll (journal, RP_POINT_END, &roll, &fault));
    compare_shown (file, base, grain, model->now);
    return;
  }
  i = (unsigned) random_below (seed, model->point_count);
  OK (rp_journal_roll (journal, model->ids[i], &roll, &fault));
  CHECK (roll.point_id == model->ids[i]);
  compare_shown (file, base, grain, model->points[i]);
}

static void
test_model (struct place *place, uint64_t seed, uint32_t grain,
            uint32_t segment)
{
  struct memory_disk base;
  struct model model = { .point_count = 0 };
  struct rp_file *file;
  struct rp_journal *journal;
  struct rp_fault fault;
  uint64_t id = 0;

  memory_disk_init (&base, DISK_BYTES, 0xb5);
  model.now = malloc (DISK_BYTES);
  memcpy (model.now, base.bytes, DISK_BYTES);
  file = place_create_log (place, "log", DISK_BYTES, grain, segment);
  journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  for (int i = 0; i < 400; i++) {
    const uint64_t what = random_below (&seed, 100);

    if (what < 70)
      random_write (rp_journal_disk (journal), &model, &seed);
    else if (what < 80)
      OK (rp_journal_commit (journal, &fault));
    else if (what < 86)
      mark (journal, &model, ++id);
    else if (what < 90)
      compare (rp_journal_disk (journal), model.now);
    else if (what < 94)
      roll_random (journal, file, &base, &model, grain, &seed);
    else if (what < 98) {
      if (what < 96)
        OK (rp_journal_commit (journal, &fault));
      else
        OK (rp_journal_close_clean (journal, &fault));
      rp_journal_destroy (journal);
      rp_file_close (file);
      file = place_open (place, "log");
      journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
      check_points (journal, &model);
    }
  }
  compare (rp_journal_disk (journal), model.now);
  for (unsigned i = 0; i < model.point_count; i++) {
    struct rp_roll roll;

    OK (rp_journal_roll (journal, model.ids[i], &roll, &fault));
    compare_shown (file, &base, grain, model.points[i]);
    free (model.points[i]);
    if (i % 4 == 0)
      verify_clean (journal);
  }
  rp_journal_destroy (journal);
  rp_file_close (file);
  OK (rp_dir_unlink (place->dir, "log", &fault));
  free (model.now);
  free (base.bytes);
}

/* ---- flipped bits ---- */

#define FLIP_BYTES (32 * 4096u)

struct flips {
  struct rp_file *file;
  struct memory_disk base;
  uint8_t *image;                /* the whole log */
  uint64_t image_bytes;
  uint8_t  states[3][FLIP_BYTES];  /* at the point, before the end, the end */
  unsigned refused, found, harmless;
};

static void
note_damage (void *context, const struct rp_journal_damage *damage)
{
  CHECK (damage->message[0] != '\0');
  ++*(unsigned *) context;
}

/* Three commits over the same grains, a point after the first. */
static void
make_flips (struct flips *flips, struct place *place)
{
  const struct rp_point point = make_point (1);
  struct rp_journal *journal;
  struct rp_disk *disk;
  struct rp_fault fault;
  static uint8_t data[20 * 4096];

  memory_disk_init (&flips->base, FLIP_BYTES, 0xb5);
  flips->file = place_create_log (place, "flips", FLIP_BYTES, 4096, 131072);
  journal = journal_open (flips->file, &flips->base.disk, RP_JOURNAL_WRITE);
  disk = rp_journal_disk (journal);
  for (unsigned i = 0; i < 3; i++) {
    memset (data, 0x10 + (int) i, sizeof data);
    OK (rp_disk_pwrite (disk, data, (i == 0 ? 20 : 3) * 4096, i * 8192,
                        &fault));
    OK (rp_disk_zero (disk, 3 * 4096, (7 + i) * 8192, true, &fault));
    if (i == 0)
      OK (rp_journal_mark (journal, &point, &fault));
    OK (rp_journal_commit (journal, &fault));
    OK (rp_disk_pread (disk, flips->states[i], FLIP_BYTES, 0, &fault));
  }
  rp_journal_destroy (journal);
  rp_file_close (flips->file);
  flips->file = place_open (place, "flips");
  OK (rp_file_size (flips->file, &flips->image_bytes, &fault));
  flips->image = malloc (flips->image_bytes);
  CHECK (flips->image);
  OK (rp_file_pread_all (flips->file, flips->image, flips->image_bytes, 0,
                         &fault));
}

/* The end is right, or batches of the last commit were dropped, which nothing
 * proves; and the point is right, reached backwards. */
static void
check_harmless (struct flips *flips, struct rp_journal *journal)
{
  struct rp_disk *disk = rp_journal_disk (journal);
  uint8_t *got = malloc (FLIP_BYTES);
  struct rp_roll roll;
  struct rp_fault fault;
  int status = rp_disk_pread (disk, got, FLIP_BYTES, 0, &fault);

  CHECK (status == RP_OK || status == RP_CORRUPT);
  if (status == RP_OK) {
    for (unsigned at = 0; at < FLIP_BYTES; at += 4096)
      CHECK (memcmp (got + at, flips->states[2] + at, 4096) == 0
             || memcmp (got + at, flips->states[1] + at, 4096) == 0);
    OK (rp_journal_roll (journal, 1, &roll, &fault));
    CHECK (roll.backwards);
    flips->harmless++;
  } else
    flips->refused++;
  free (got);
}

static void
check_point_shown (struct flips *flips)
{
  uint8_t sector[512], grain[4096];
  uint32_t table_at, table[512] = { 0 };
  uint64_t directory;
  struct rp_fault fault;

  OK (rp_file_pread_all (flips->file, sector, 512, 0, &fault));
  memcpy (&directory, sector + 56, 8);
  OK (rp_file_pread_all (flips->file, &table_at, 4, directory * 512, &fault));
  CHECK (table_at != 0);
  OK (rp_file_pread_all (flips->file, table, 2048, (uint64_t) table_at * 512,
                         &fault));
  for (uint32_t g = 0; g < FLIP_BYTES / 4096; g++) {
    if (table[g] == 0)
      memcpy (grain, flips->base.bytes + g * 4096, 4096);
    else if (table[g] == 1)
      memset (grain, 0, 4096);
    else
      OK (rp_file_pread_all (flips->file, grain, 4096,
                             (uint64_t) table[g] * 512, &fault));
    CHECK (memcmp (grain, flips->states[0] + g * 4096, 4096) == 0);
  }
}

static void
flip_one (struct flips *flips, uint64_t position, uint8_t bit)
{
  struct rp_journal *journal;
  struct rp_fault fault;
  unsigned damages = 0;
  uint8_t byte = flips->image[position] ^ bit;
  int status;

  OK (rp_file_pwrite (flips->file, flips->image, flips->image_bytes, 0,
                      &fault));
  OK (rp_file_pwrite (flips->file, &byte, 1, position, &fault));
  status = rp_journal_open (flips->file, &flips->base.disk, RP_JOURNAL_WRITE,
                            0, &journal, &fault);
  if (status != RP_OK) {
    CHECK (status == RP_CORRUPT || status == RP_FORMAT);
    flips->refused++;
    return;
  }
  OK (rp_journal_scrub (journal, &(struct rp_scrub) {
                          .each = note_damage, .context = &damages,
                        }, &fault));
  if (damages > 0)
    flips->found++;
  else {
    check_harmless (flips, journal);
    check_point_shown (flips);
  }
  rp_journal_destroy (journal);
}

/* G8: no flipped bit goes unseen and changes what is shown. */
static void
test_flips (struct place *place)
{
  static struct flips flips;
  struct rp_fault fault;
  uint64_t seed = 99;

  make_flips (&flips, place);
  for (uint64_t at = 0; at < flips.image_bytes;
       at += 1 + random_below (&seed, 90))
    if (flips.image[at] != 0 || random_below (&seed, 50) == 0)
      flip_one (&flips, at, (uint8_t) (1u << random_below (&seed, 8)));
  CHECK (flips.refused > 0 && flips.found > 0 && flips.harmless > 0);
  checks += flips.refused + flips.found + flips.harmless;
  free (flips.image);
  free (flips.base.bytes);
  rp_file_close (flips.file);
  OK (rp_dir_unlink (place->dir, "flips", &fault));
}

int
main (void)
{
  struct place place;

  place_make (&place);
  test_flips (&place);
  for (uint64_t seed = 1; seed <= 3; seed++) {
    test_model (&place, seed * 7919, 4096, 65536);
    test_model (&place, seed * 104729, 4096, 1 << 20);
    test_model (&place, seed * 1299709, 8192, 131072);
    test_model (&place, seed * 15485863, 65536, 512 * 1024);
  }
  place_remove (&place);
  printf ("journal_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

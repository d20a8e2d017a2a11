/* SPDX-License-Identifier: Apache-2.0 */
/* Pairs of a random life of a journal and one of its restore points: what is
 * recovered equals what was there, byte for byte.
 *
 * A life has its own sizes, grains and segments, starts over a base of noise,
 * and does whatever a source and an operator do: writes of any length at any
 * byte, zeroes, commits, marks, roll backs, checkpoints, destages into the
 * base, endings in order and without.  The plain model is an array, kept at
 * each mark.  A point is recovered as a VMDK reader does: the root that the log's
 * header shows, over the base.
 *
 * Arguments: pairs (default 300), first seed (1), and a directory into which
 * some of them (default 20) are put for another reader: <n>.vmdk beside
 * <n>.raw, what it has to be.
 */
#include <inttypes.h>

#include "image.h"
#include "journal_model.h"

#define BYTES_MAX  (UINT64_C (512) << 10)
#define POINTS     10u
#define STEPS_MAX  90u

struct life {
  uint64_t  seed, random;
  uint64_t  bytes;               /* of the disk */
  uint32_t  grain, segment;
  struct place     place;
  struct rp_file  *log, *base_file;
  struct rp_image *base_image;
  struct rp_disk  *base;
  struct rp_journal *journal;
  uint8_t  *model;
  uint8_t  *points[POINTS];      /* the model at each; its id is index + 1 */
  uint32_t  point_count;
  uint32_t  first_point;         /* those before are gone */
};

struct tally {
  uint64_t pairs, wanted, lives, bytes;
  uint64_t exported, exports;
  const char *folder;            /* NULL: nothing is exported */
};

static void
fill_noise (uint64_t *random, uint8_t *out, uint64_t length)
{
  for (uint64_t i = 0; i < length; i += 8) {
    const uint64_t word = next_random (random);

    memcpy (out + i, &word, length - i < 8 ? length - i : 8);
  }
}

/* ---- a life ---- */

static void
open_life (struct life *life)
{
  life->log = place_open (&life->place, "log");
  life->journal = journal_open (life->log, life->base, RP_JOURNAL_WRITE);
}

static void
close_life (struct life *life)
{
  rp_journal_destroy (life->journal);
  rp_file_close (life->log);
  life->journal = NULL;
  life->log = NULL;
}

static void
begin (struct life *life, uint64_t seed)
{
  static const uint32_t grains[] = { 4096, 4096, 8192, 16384, 65536 };
  uint64_t *random = &life->random;
  struct rp_extent_spec spec = { .kind = RP_EXTENT_FLAT };
  struct rp_fault fault;

  memset (life, 0, sizeof *life);
  life->seed = seed;
  *random = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
  life->grain = grains[random_below (random, 5)];
  life->segment = UINT32_C (65536) << random_below (random, 4);
  if (life->segment < life->grain * 8)
    life->segment = life->grain * 8;
  life->bytes = 512 * (1 + random_below (random, BYTES_MAX / 512));
  life->model = malloc (life->bytes);
  CHECK (life->model);
  fill_noise (random, life->model, life->bytes);
  place_make (&life->place);
  life->base_file = place_open (&life->place, "base");
  OK (rp_file_pwrite (life->base_file, life->model, life->bytes, 0, &fault));
  OK (rp_file_sync (life->base_file, &fault));
  spec.file = life->base_file;
  spec.sectors = life->bytes / 512;
  OK (rp_image_open (&spec, 1, true, &life->base_image, &fault));
  OK (rp_chain_create (&life->base_image, 1, &life->base, &fault));
  rp_file_close (place_create_log (&life->place, "log", life->bytes,
                                   life->grain, life->segment));
  open_life (life);
}

static void
end (struct life *life)
{
  close_life (life);
  rp_disk_destroy (life->base);
  rp_image_destroy (life->base_image);
  rp_file_close (life->base_file);
  place_remove (&life->place);
  for (uint32_t i = 0; i < life->point_count; i++)
    free (life->points[i]);
  free (life->model);
}

static void
step_write (struct life *life)
{
  struct rp_disk *disk = rp_journal_disk (life->journal);
  uint64_t *random = &life->random;
  const uint64_t at = random_below (random, life->bytes);
  uint64_t length = 1 + random_below (random, random_below (random, 4)
                                              ? 5000 : 60000);
  struct rp_fault fault;

  if (length > life->bytes - at)
    length = life->bytes - at;
  if (random_below (random, 5) == 0) {
    memset (life->model + at, 0, length);
    OK (rp_disk_zero (disk, length, at, random_below (random, 2) == 0,
                      &fault));
  } else {
    fill_noise (random, life->model + at, length);
    OK (rp_disk_pwrite (disk, life->model + at, length, at, &fault));
  }
}

static void
step_mark (struct life *life)
{
  const struct rp_point point = make_point (life->point_count + 1);
  uint8_t *kept = malloc (life->bytes);
  struct rp_fault fault;

  CHECK (kept && life->point_count < POINTS);
  memcpy (kept, life->model, life->bytes);
  life->points[life->point_count++] = kept;
  OK (rp_journal_mark (life->journal, &point, &fault));
}

/* Index of one that is there. */
static uint32_t
pick_point (struct life *life)
{
  const uint32_t count = life->point_count - life->first_point;

  return life->first_point + (uint32_t) random_below (&life->random, count);
}

static void
step_roll (struct life *life)
{
  struct rp_roll roll;
  struct rp_fault fault;
  uint64_t id = RP_POINT_END;

  if (life->point_count > life->first_point)
    id = 1 + pick_point (life);
  OK (rp_journal_roll (life->journal, id, &roll, &fault));
}

/* A point becomes the oldest one; what is older goes into the base. */
static void
step_destage (struct life *life)
{
  struct rp_destage done;
  struct rp_fault fault;

  if (life->point_count == life->first_point)
    return;
  OK (rp_journal_commit (life->journal, &fault));
  life->first_point = pick_point (life);
  OK (rp_journal_destage (life->journal, life->first_point + 1, life->base,
                          NULL, NULL, &done, &fault));
}

static void
step_checkpoint (struct life *life)
{
  struct rp_checkpoint done;
  struct rp_fault fault;

  OK (rp_journal_checkpoint (life->journal, &done, &fault));
}

static void
step_reopen (struct life *life)
{
  struct rp_fault fault;

  if (random_below (&life->random, 2) == 0)
    OK (rp_journal_close_clean (life->journal, &fault));
  else
    OK (rp_journal_commit (life->journal, &fault));
  close_life (life);
  open_life (life);
}

static void
one_step (struct life *life)
{
  const uint64_t what = random_below (&life->random, 100);
  struct rp_fault fault;

  if (what < 58)
    step_write (life);
  else if (what < 60)
    step_destage (life);
  else if (what < 63)
    step_checkpoint (life);
  else if (what < 72)
    OK (rp_journal_commit (life->journal, &fault));
  else if (what < 90 && life->point_count < POINTS)
    step_mark (life);
  else if (what < 95)
    step_roll (life);
  else
    step_reopen (life);
}

/* ---- recovering ---- */

static void
describe (const char *path, const char *type, const char *parent,
          const char *extent)
{
  FILE *file = fopen (path, "w");

  CHECK (file);
  fprintf (file, "# Disk DescriptorFile\nversion=1\nCID=%s\nparentCID=%s\n"
           "createType=\"%s\"\n", parent ? "00000002" : "00000001",
           parent ? "00000001" : "ffffffff", type);
  if (parent)
    fprintf (file, "parentFileNameHint=\"%s\"\n", parent);
  fprintf (file, "%s\n", extent);
  CHECK (fclose (file) == 0);
}

static void
copy_out (struct rp_file *from, const char *path)
{
  FILE *file = fopen (path, "w");
  struct rp_fault fault;
  uint64_t bytes;
  uint8_t *data;

  OK (rp_file_size (from, &bytes, &fault));
  data = malloc (bytes);
  CHECK (file && data);
  OK (rp_file_pread_all (from, data, bytes, 0, &fault));
  CHECK (fwrite (data, 1, bytes, file) == bytes);
  CHECK (fclose (file) == 0);
  free (data);
}

static void
export_pair (struct tally *tally, const struct life *life,
             const uint8_t *wanted)
{
  const unsigned long long n = tally->exported++;
  const uint64_t sectors = life->bytes / 512;
  char path[4200], name[64], extent[160];
  FILE *file;

  snprintf (path, sizeof path, "%s/%llu-base-flat.vmdk", tally->folder, n);
  copy_out (life->base_file, path);
  snprintf (path, sizeof path, "%s/%llu-log.vmdk", tally->folder, n);
  copy_out (life->log, path);
  snprintf (path, sizeof path, "%s/%llu-base.vmdk", tally->folder, n);
  snprintf (extent, sizeof extent, "RW %" PRIu64 " FLAT \"%llu-base-flat.vmdk"
            "\" 0", sectors, n);
  describe (path, "monolithicFlat", NULL, extent);
  snprintf (path, sizeof path, "%s/%llu.vmdk", tally->folder, n);
  snprintf (name, sizeof name, "%llu-base.vmdk", n);
  snprintf (extent, sizeof extent, "RW %" PRIu64 " SPARSE \"%llu-log.vmdk\"",
            sectors, n);
  describe (path, "twoGbMaxExtentSparse", name, extent);
  snprintf (path, sizeof path, "%s/%llu.raw", tally->folder, n);
  file = fopen (path, "w");
  CHECK (file && fwrite (wanted, 1, life->bytes, file) == life->bytes);
  CHECK (fclose (file) == 0);
}

/* Roll to a point, and read it as any reader would. */
static void
check_pair (struct tally *tally, struct life *life, uint32_t point)
{
  const uint8_t *wanted = life->points[point];
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SPARSE, .sectors = life->bytes / 512, .file = life->log,
  };
  struct rp_image *links[2];
  uint8_t *found = malloc (life->bytes);
  struct rp_disk *chain;
  struct rp_roll roll;
  struct rp_fault fault;

  CHECK (found);
  OK (rp_journal_roll (life->journal, point + 1, &roll, &fault));
  OK (rp_image_open (&spec, 1, false, &links[0], &fault));
  spec.kind = RP_EXTENT_FLAT;
  spec.file = life->base_file;
  OK (rp_image_open (&spec, 1, false, &links[1], &fault));
  OK (rp_chain_create (links, 2, &chain, &fault));
  OK (rp_disk_pread (chain, found, life->bytes, 0, &fault));
  if (memcmp (found, wanted, life->bytes) != 0) {
    fprintf (stderr, "violation: seed %" PRIu64 ", point %u of %u\n",
             life->seed, point + 1, life->point_count);
    exit (EXIT_FAILURE);
  }
  rp_disk_destroy (chain);
  rp_image_destroy (links[0]);
  rp_image_destroy (links[1]);
  free (found);
  tally->bytes += life->bytes;
  if (tally->folder && tally->exported < tally->exports
      && tally->pairs * tally->exports / tally->wanted >= tally->exported)
    export_pair (tally, life, wanted);
  tally->pairs++;
}

/* All points in any order, now and then with more of life in between. */
static void
check_life (struct tally *tally, struct life *life)
{
  uint8_t *found = malloc (life->bytes);
  struct rp_fault fault;
  uint32_t order[POINTS] = { 0 };

  CHECK (found);
  for (uint32_t i = 0; i < life->point_count; i++) {
    const uint32_t k = (uint32_t) random_below (&life->random, i + 1);

    order[i] = order[k];
    order[k] = i;
  }
  for (uint32_t i = 0; i < life->point_count; i++) {
    if (tally->pairs == tally->wanted)
      break;
    if (order[i] < life->first_point)
      continue;
    check_pair (tally, life, order[i]);
    if (random_below (&life->random, 6) == 0)
      step_write (life);
    if (random_below (&life->random, 12) == 0)
      step_reopen (life);
    if (random_below (&life->random, 12) == 0)
      step_destage (life);
  }
  OK (rp_disk_pread (rp_journal_disk (life->journal), found, life->bytes, 0,
                     &fault));
  CHECK (memcmp (found, life->model, life->bytes) == 0);
  free (found);
}

static void
live (struct tally *tally, uint64_t seed)
{
  struct life life;
  uint64_t steps;

  begin (&life, seed);
  steps = 10 + random_below (&life.random, STEPS_MAX - 10);
  for (uint64_t i = 0; i < steps; i++)
    one_step (&life);
  if (life.point_count == life.first_point)
    step_mark (&life);
  check_life (tally, &life);
  end (&life);
  tally->lives++;
}

int
main (int argc, char **argv)
{
  struct tally tally = {
    .wanted = argc > 1 ? strtoull (argv[1], NULL, 10) : 300,
    .folder = argc > 3 ? argv[3] : NULL,
    .exports = argc > 4 ? strtoull (argv[4], NULL, 10) : 20,
  };
  uint64_t seed = argc > 2 ? strtoull (argv[2], NULL, 10) : 1;

  while (tally.pairs < tally.wanted)
    live (&tally, seed++);
  printf ("pairs_test: %" PRIu64 " pairs of %" PRIu64 " lives, %" PRIu64
          " MiB compared, 0 violations, %" PRIu64 " for another reader\n",
          tally.pairs, tally.lives, tally.bytes >> 20, tally.exported);
  return EXIT_SUCCESS;
}

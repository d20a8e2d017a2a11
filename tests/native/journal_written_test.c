/* SPDX-License-Identifier: Apache-2.0 */
/* What was written since a point is exactly what the model saw, whoever asks,
 * through segments, a closing and a destage; and no grain is read for it. */
#include "journal_model.h"

#define DISK_BYTES (900 * 1024 + 512)   /* no multiple of any grain */
#define POINTS     14u

static unsigned checks;
static struct rp_fault fault;

struct world {
  struct place *place;
  struct memory_disk base;
  struct rp_file *file;
  struct rp_journal *journal;
  uint64_t seed, grain, grains;
  uint64_t marked;               /* points so far; their ids are 1, 2, ... */
  uint64_t *written_at;          /* of a grain: 1 + marked when it was written
                                    last; 0: never */
  bool *zeros;                   /* it is, and so is not written as zeros */
};

static void
note (struct world *world, uint64_t offset, uint64_t length, bool zero)
{
  for (uint64_t g = offset / world->grain;
       g <= (offset + length - 1) / world->grain; g++) {
    const uint64_t end = (g + 1) * world->grain;
    const bool whole = offset <= g * world->grain
                       && (offset + length >= end
                           || offset + length == DISK_BYTES);

    if (zero && world->zeros[g])
      continue;
    world->zeros[g] = zero && whole;
    world->written_at[g] = world->marked + 1;
  }
}

static void
write_some (struct world *world, bool may_zero)
{
  uint64_t offset = random_below (&world->seed, DISK_BYTES);
  uint64_t length = 1 + random_below (&world->seed, 20000);
  const bool zero = may_zero && random_below (&world->seed, 4) == 0;
  uint8_t data[20001];

  if (length > DISK_BYTES - offset)
    length = DISK_BYTES - offset;
  if (zero)
    OK (rp_disk_zero (rp_journal_disk (world->journal), length, offset, true,
                      &fault));
  else {
    for (uint64_t i = 0; i < length; i++)
      data[i] = (uint8_t) next_random (&world->seed);
    OK (rp_disk_pwrite (rp_journal_disk (world->journal), data, length, offset,
                        &fault));
  }
  note (world, offset, length, zero);
}

static void
mark (struct world *world)
{
  struct rp_point point = make_point (++world->marked);

  OK (rp_journal_mark (world->journal, &point, &fault));
  OK (rp_journal_commit (world->journal, &fault));
}

/* The list for a point holds these grains, and no other byte. */
static void
expect (struct rp_journal *journal, const struct world *world, uint64_t id)
{
  struct rp_spans spans = { .count = 0 };
  uint64_t at = 0;

  OK (rp_journal_written (journal, id, &spans, &fault));
  OK (rp_spans_check (spans.pairs, spans.count, DISK_BYTES, &fault));
  for (uint64_t g = 0; g < world->grains; g++) {
    const uint64_t start = g * world->grain;

    while (at < spans.count && spans.pairs[2 * at + 1] <= start)
      at++;
    CHECK ((at < spans.count && spans.pairs[2 * at] <= start)
           == (world->written_at[g] > id));
  }
  if (spans.count > 0)
    CHECK (spans.pairs[2 * spans.count - 1] % world->grain == 0
           || spans.pairs[2 * spans.count - 1] == DISK_BYTES);
  checks++;
  free (spans.pairs);
}

static void
expect_all (struct world *world, uint64_t first)
{
  struct rp_file *file = place_open (world->place, "log");
  struct rp_journal *reader = journal_open (file, NULL, RP_JOURNAL_READ);
  struct rp_spans none = { .count = 0 };

  for (uint64_t id = first; id <= world->marked; id++) {
    expect (world->journal, world, id);
    expect (reader, world, id);
  }
  CHECK (rp_journal_written (world->journal, world->marked + 1, &none, &fault)
         == RP_NOT_FOUND);
  if (first > 1)
    CHECK (rp_journal_written (reader, first - 1, &none, &fault)
           == RP_NOT_FOUND);
  expect (reader, world, first > 1 ? first : 0);
  CHECK (none.pairs == NULL);
  rp_journal_destroy (reader);
  rp_file_close (file);
}

/* What is below the journal does not have it: as since the oldest point. */
static void
expect_base (const struct world *world, uint64_t oldest)
{
  struct rp_spans base = { .count = 0 }, since = { .count = 0 };

  OK (rp_journal_written (world->journal, RP_POINT_BASE, &base, &fault));
  OK (rp_journal_written (world->journal, oldest, &since, &fault));
  CHECK (base.count == since.count && base.count > 0);
  CHECK (memcmp (base.pairs, since.pairs, base.count * 16) == 0);
  checks++;
  free (base.pairs);
  free (since.pairs);
}

static void
flip (const struct place *place, uint64_t position)
{
  char path[128];
  FILE *file;
  int byte;

  snprintf (path, sizeof path, "%s/log", place->path);
  file = fopen (path, "r+b");
  CHECK (file && fseek (file, (long) position, SEEK_SET) == 0);
  byte = fgetc (file);
  CHECK (byte != EOF && fseek (file, (long) position, SEEK_SET) == 0);
  CHECK (fputc (byte ^ 1, file) != EOF && fclose (file) == 0);
}

/* Every grain of the log that a point shows is proven, and no other. */
static void
expect_proof (struct world *world, uint64_t id)
{
  struct rp_file *file = place_open (world->place, "log");
  struct rp_journal *reader = journal_open (file, &world->base.disk,
                                            RP_JOURNAL_READ);
  const uint64_t all[] = { 0, DISK_BYTES };
  uint64_t tried = 0;

  CHECK (rp_journal_prove (reader, all, 1, &fault) == RP_BAD_ARGUMENT);
  OK (rp_journal_view (reader, id, &fault));
  OK (rp_journal_prove (reader, all, 1, &fault));
  for (uint64_t at = 0; at < DISK_BYTES; at += world->grain) {
    const uint64_t end = at + world->grain < DISK_BYTES
                         ? at + world->grain : DISK_BYTES;
    const uint64_t here[] = { at, end }, apart[] = { 0, at, end, DISK_BYTES };
    const uint64_t first = at == 0, last = end == DISK_BYTES;
    struct rp_run run;

    OK (rp_disk_run (rp_journal_disk (reader), at, end - at, &run, &fault));
    if (!run.file || ++tried % 7 != 0)
      continue;
    flip (world->place, run.file_offset_bytes + tried % 512);
    CHECK (rp_journal_prove (reader, here, 1, &fault) == RP_CORRUPT);
    CHECK (rp_journal_prove (reader, all, 1, &fault) == RP_CORRUPT);
    OK (rp_journal_prove (reader, apart + 2 * first, 2 - first - last,
                          &fault));
    flip (world->place, run.file_offset_bytes + tried % 512);
    checks += 3;
  }
  CHECK (tried > 0);
  rp_journal_destroy (reader);
  rp_file_close (file);
}

static void
reopen (struct world *world, bool clean)
{
  if (clean)
    OK (rp_journal_close_clean (world->journal, &fault));
  rp_journal_destroy (world->journal);
  world->journal = journal_open (world->file, &world->base.disk,
                                 RP_JOURNAL_WRITE);
}

static void
live (struct place *place, uint32_t grain, uint64_t seed)
{
  struct world world = {
    .place = place, .seed = seed, .grain = grain,
    .grains = (DISK_BYTES + grain - 1) / grain,
  };
  struct rp_destage destaged;

  world.written_at = calloc (world.grains, sizeof *world.written_at);
  world.zeros = calloc (world.grains, sizeof *world.zeros);
  CHECK (world.written_at && world.zeros);
  memory_disk_init (&world.base, DISK_BYTES, 0x5a)->read_only = false;
  world.file = place_create_log (place, "log", DISK_BYTES, grain,
                                 grain > 8192 ? 1 << 20 : 64 << 10);
  world.journal = journal_open (world.file, &world.base.disk,
                                RP_JOURNAL_WRITE);
  while (world.marked < POINTS) {
    for (uint64_t i = random_below (&world.seed, 8); i > 0; i--)
      write_some (&world, true);
    mark (&world);
    if (world.marked % 4 == 0)
      reopen (&world, world.marked % 8 == 0);
  }
  expect_all (&world, 1);
  expect_proof (&world, POINTS / 2);
  expect_proof (&world, POINTS);
  write_some (&world, true);           /* not committed: asking commits */
  expect (world.journal, &world, POINTS);
  OK (rp_journal_destage (world.journal, POINTS / 2, &world.base.disk, NULL,
                          NULL, &destaged, &fault));
  write_some (&world, false);
  OK (rp_journal_commit (world.journal, &fault));
  expect_all (&world, POINTS / 2);
  expect_base (&world, POINTS / 2);
  expect_proof (&world, POINTS / 2 + 1);
  rp_journal_destroy (world.journal);
  rp_file_close (world.file);
  OK (rp_dir_unlink (place->dir, "log", &fault));
  free (world.base.bytes);
  free (world.written_at);
  free (world.zeros);
}

int
main (void)
{
  struct place place;

  place_make (&place);
  for (uint64_t seed = 1; seed <= 6; seed++)
    live (&place, seed % 3 ? 4096 : 16384, seed * 7919);
  place_remove (&place);
  printf ("journal_written_test: %u checks\n", checks);
  return 0;
}

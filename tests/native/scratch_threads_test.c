/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that is thrown away against a plain model; and writers side by side. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "memory_disk.h"
#include "scratch.h"
#include "simulate.h"

#define SIZE    (3 * 1024 * 1024 + 512)   /* three stretches, and some */
#define WRITERS 4

static unsigned checks;

struct place {
  struct rp_io *io;
  struct rp_dir *dir;
  struct rp_file *file;
  struct memory_disk *below;
  struct rp_disk *disk;
};

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (2685821657736338717) >> 16;
}

static void
place_make (struct place *place)
{
  struct rp_fault fault;

  OK (rp_io_simulate_create (&place->io, &fault));
  OK (rp_dir_open (place->io, "/", &place->dir, &fault));
  OK (rp_file_open (place->dir, "scratch", RP_OPEN_WRITE | RP_OPEN_CREATE,
                    0600, &place->file, &fault));
  place->below = memory_disk_create (SIZE);
  for (size_t i = 0; i < SIZE; i++)
    place->below->bytes[i] = (uint8_t) (i * 7 + i / 4096);
  place->below->disk.read_only = true;
  OK (rp_scratch_create (&place->below->disk, place->file, &place->disk,
                         &fault));
}

static void
place_remove (struct place *place)
{
  rp_disk_destroy (place->disk);
  rp_disk_destroy (&place->below->disk);
  rp_file_close (place->file);
  rp_dir_close (place->dir);
  rp_io_destroy (place->io);
}

/* One random change, here and in the model. */
static void
change_one (struct rp_disk *disk, uint8_t *model, uint64_t *seed)
{
  uint64_t length = 1 + next_random (seed) % (next_random (seed) % 8 == 0
                                              ? 1500000 : 20000);
  uint64_t offset = next_random (seed) % SIZE;
  struct rp_fault fault;

  if (next_random (seed) % 3 == 0)
    offset -= offset % 4096;
  if (length > SIZE - offset)
    length = SIZE - offset;
  if (next_random (seed) % 4 == 0) {
    OK (rp_disk_zero (disk, length, offset, next_random (seed) % 2, &fault));
    memset (model + offset, 0, length);
  } else {
    for (uint64_t i = 0; i < length; i++)
      model[offset + i] = (uint8_t) (next_random (seed) >> 3);
    OK (rp_disk_pwrite (disk, model + offset, length, offset, &fault));
  }
}

static void
test_it_shows_what_was_written_above_what_was_there (uint64_t seed)
{
  uint8_t *model = malloc (SIZE), *before = malloc (SIZE);
  uint8_t *got = malloc (SIZE);
  struct place place;
  struct rp_fault fault;

  place_make (&place);
  memcpy (model, place.below->bytes, SIZE);
  memcpy (before, model, SIZE);
  CHECK (!place.disk->read_only && place.disk->size_bytes == SIZE);
  for (int i = 0; i < 120; i++) {
    const uint64_t offset = next_random (&seed) % SIZE;
    const uint64_t length = 1 + next_random (&seed) % (SIZE - offset);
    struct rp_run run;

    change_one (place.disk, model, &seed);
    OK (rp_disk_pread (place.disk, got, length, offset, &fault));
    CHECK (memcmp (got, model + offset, length) == 0);
    OK (rp_disk_run (place.disk, offset, length, &run, &fault));
    CHECK (run.offset_bytes == offset && run.length_bytes >= 1
           && run.length_bytes <= length);
    if (run.depth == 0) {
      CHECK (run.file == place.file && run.file_offset_bytes == offset);
      OK (rp_file_pread_all (run.file, got, run.length_bytes, offset, &fault));
      CHECK (memcmp (got, model + offset, run.length_bytes) == 0);
    } else
      CHECK (memcmp (before + offset, model + offset, run.length_bytes) == 0);
    checks += 4;
  }
  OK (rp_disk_flush (place.disk, &fault));
  CHECK (memcmp (place.below->bytes, before, SIZE) == 0);
  CHECK (place.below->writes == 0 && place.below->flushes == 0);
  free (model);
  free (before);
  free (got);
  place_remove (&place);
}

static void
test_what_goes_wrong_is_told (void)
{
  struct place place;
  struct rp_disk *again;
  struct rp_fault fault;
  uint8_t bytes[4096] = { 1 };

  place_make (&place);
  CHECK (rp_scratch_create (&place.below->disk, place.file, &again, &fault)
         == RP_BAD_ARGUMENT);
  place.below->fail = RP_IO;
  CHECK (rp_disk_pwrite (place.disk, bytes, 100, 5000, &fault) == RP_IO);
  CHECK (rp_disk_pread (place.disk, bytes, 1, 4096, &fault) == RP_IO);
  OK (rp_disk_pwrite (place.disk, bytes, 4096, 4096, &fault));
  place.below->fail = RP_OK;
  OK (rp_disk_pread (place.disk, bytes, 4096, 0, &fault));
  CHECK (memcmp (bytes, place.below->bytes, 4096) == 0);
  checks += 4;
  place_remove (&place);
}

struct writer {
  struct rp_disk *disk;
  unsigned number;
};

/* Each has every fourth sector, so that all of them share every block. */
static void *
write_on (void *context)
{
  const struct writer *writer = context;
  uint8_t bytes[512], got[512];
  struct rp_fault fault;

  memset (bytes, (int) writer->number + 1, sizeof bytes);
  for (uint64_t at = writer->number * 512; at < 300 * 4096; at += 4 * 512) {
    OK (rp_disk_pwrite (writer->disk, bytes, sizeof bytes, at, &fault));
    OK (rp_disk_pread (writer->disk, got, sizeof got, at, &fault));
    CHECK (memcmp (bytes, got, sizeof got) == 0);
  }
  return NULL;
}

static void
test_writers_that_share_a_block_lose_nothing (void)
{
  struct writer writers[WRITERS];
  pthread_t threads[WRITERS];
  struct place place;
  struct rp_fault fault;
  uint8_t got[512];

  place_make (&place);
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer) { place.disk, i };
    CHECK (pthread_create (&threads[i], NULL, write_on, &writers[i]) == 0);
  }
  for (unsigned i = 0; i < WRITERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  for (uint64_t at = 0; at < 300 * 4096; at += 512) {
    OK (rp_disk_pread (place.disk, got, sizeof got, at, &fault));
    CHECK (got[0] == at / 512 % 4 + 1 && got[511] == got[0]);
    checks++;
  }
  place_remove (&place);
}

int
main (void)
{
  for (uint64_t seed = 1; seed <= 4; seed++)
    test_it_shows_what_was_written_above_what_was_there (seed);
  test_what_goes_wrong_is_told ();
  test_writers_that_share_a_block_lose_nothing ();
  printf ("scratch_threads_test: %u checks\n", checks);
  return 0;
}

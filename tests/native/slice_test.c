/* SPDX-License-Identifier: Apache-2.0 */
/* Stretches of disks as a disk, against a copy of its bytes. */
#include <stdio.h>

#include "check.h"
#include "memory_disk.h"
#include "slice.h"

#define DISKS  3
#define SIZE   65536u
#define PIECES 12
#define STEPS  400
#define SEEDS  60

static uint64_t checks;

static uint64_t
random_next (uint64_t *state)
{
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

static void
fill (struct memory_disk *memory, uint64_t *random)
{
  for (size_t i = 0; i < SIZE; i++)
    memory->bytes[i] = (uint8_t) random_next (random);
}

/* Pieces that do not overlap: parts of the disks in a random order. */
static size_t
random_pieces (struct memory_disk **memory, struct rp_slice_piece *pieces,
               uint64_t *random)
{
  const size_t count = 1 + random_next (random) % PIECES;
  const uint64_t room = SIZE / 4;

  for (size_t i = 0; i < count; i++) {
    const size_t place = (i * 5) % PIECES;   /* 5 and 12 share no divisor */
    const uint64_t gap = random_next (random) % (room / 1024) * 512;

    pieces[i] = (struct rp_slice_piece) {
      .disk = &memory[place % DISKS]->disk,
      .offset_bytes = place / DISKS * room + gap,
      .length_bytes = 512 + random_next (random) % ((room - gap) / 512) * 512,
    };
    if (pieces[i].length_bytes > room - gap)
      pieces[i].length_bytes = room - gap;
  }
  return count;
}

static void
compare (const uint8_t *model, const struct rp_slice_piece *pieces,
         size_t count)
{
  for (size_t i = 0; i < count; i++) {
    const struct memory_disk *memory = (struct memory_disk *) pieces[i].disk;

    CHECK (memcmp (memory->bytes + pieces[i].offset_bytes, model,
                   pieces[i].length_bytes) == 0);
    model += pieces[i].length_bytes;
    checks++;
  }
}

static void
test_it_is_what_its_pieces_are (uint64_t seed)
{
  struct memory_disk *memory[DISKS];
  struct rp_slice_piece pieces[PIECES];
  static uint8_t model[DISKS * SIZE], bytes[DISKS * SIZE];
  struct rp_disk *slice;
  struct rp_fault fault;
  uint64_t random = seed, size = 0;
  size_t count;

  for (int i = 0; i < DISKS; i++) {
    memory[i] = memory_disk_create (SIZE);
    fill (memory[i], &random);
  }
  count = random_pieces (memory, pieces, &random);
  for (size_t i = 0; i < count; i++) {
    memcpy (model + size, ((struct memory_disk *) pieces[i].disk)->bytes
                            + pieces[i].offset_bytes, pieces[i].length_bytes);
    size += pieces[i].length_bytes;
  }
  OK (rp_slice_create (pieces, count, &slice, &fault));
  CHECK (slice->size_bytes == size && !slice->read_only && slice->fast_zero);
  for (int step = 0; step < STEPS; step++) {
    const uint64_t offset = random_next (&random) % size;
    const uint64_t length = random_next (&random) % (size - offset) + 1;
    struct rp_run run;

    switch (random_next (&random) % 4) {
    case 0:
      memset (model + offset, step, length);
      OK (rp_disk_pwrite (slice, model + offset, length, offset, &fault));
      break;
    case 1:
      memset (model + offset, 0, length);
      OK (rp_disk_zero (slice, length, offset, true, &fault));
      break;
    case 2:
      OK (rp_disk_run (slice, offset, length, &run, &fault));
      CHECK (run.offset_bytes == offset && run.length_bytes <= length);
      for (uint64_t i = 0; i < run.length_bytes; i++)
        CHECK (run.kind == RP_RUN_DATA || model[offset + i] == 0);
      break;
    default:
      OK (rp_disk_pread (slice, bytes, length, offset, &fault));
      CHECK (memcmp (bytes, model + offset, length) == 0);
    }
    checks++;
  }
  compare (model, pieces, count);
  rp_disk_destroy (slice);
  for (int i = 0; i < DISKS; i++)
    rp_disk_destroy (&memory[i]->disk);
}

static void
test_a_flush_reaches_each_disk_once (void)
{
  struct memory_disk *a = memory_disk_create (SIZE);
  struct memory_disk *b = memory_disk_create (SIZE);
  const struct rp_slice_piece pieces[] = {
    { &a->disk, 512, 512 }, { &b->disk, 0, 1024 }, { &a->disk, 2048, 512 },
  };
  struct rp_disk *slice;
  struct rp_fault fault;

  OK (rp_slice_create (pieces, 3, &slice, &fault));
  OK (rp_disk_flush (slice, &fault));
  CHECK (a->flushes == 1 && b->flushes == 1);
  a->fail_flush = RP_FAILED;
  CHECK (rp_disk_flush (slice, &fault) == RP_FAILED);
  CHECK (a->flushes == 2 && b->flushes == 2);
  a->fail_flush = RP_OK;
  b->fail = RP_IO;
  CHECK (rp_disk_flush (slice, &fault) == RP_IO);
  CHECK (rp_disk_zero (slice, 1024, 0, false, &fault) == RP_IO);
  b->fail = RP_OK;
  rp_disk_destroy (&a->disk);
  rp_disk_destroy (&b->disk);
  rp_disk_destroy (slice);       /* its disks may have gone before it */
  checks += 5;
}

static void
test_what_does_not_fit_is_refused (void)
{
  struct memory_disk *memory = memory_disk_create (SIZE);
  const struct {
    struct rp_slice_piece piece;
    int                   status;
  } cases[] = {
    { { &memory->disk, 0, 0 }, RP_BAD_ARGUMENT },
    { { &memory->disk, 0, 511 }, RP_BAD_ARGUMENT },
    { { &memory->disk, 1, 512 }, RP_BAD_ARGUMENT },
    { { &memory->disk, SIZE, 512 }, RP_OUT_OF_RANGE },
    { { &memory->disk, SIZE - 512, 1024 }, RP_OUT_OF_RANGE },
    { { &memory->disk, UINT64_MAX - 511, 512 }, RP_OUT_OF_RANGE },
    { { &memory->disk, 512, UINT64_MAX - 511 }, RP_OUT_OF_RANGE },
  };
  struct rp_slice_piece good = { &memory->disk, SIZE - 512, 512 };
  struct rp_disk *slice;
  struct rp_fault fault;
  uint8_t byte = 1;

  CHECK (rp_slice_create (&good, 0, &slice, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_slice_create (&good, RP_SLICE_PIECES_MAX + 1, &slice, &fault)
         == RP_BAD_ARGUMENT);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const struct rp_slice_piece pieces[] = { good, cases[i].piece };

    CHECK (rp_slice_create (pieces, 2, &slice, &fault) == cases[i].status);
    CHECK (slice == NULL);
    checks++;
  }
  memory->disk.size_bytes = INT64_MAX - 511;   /* never read */
  {
    const struct rp_slice_piece pieces[] = {
      { &memory->disk, 0, INT64_MAX - 511 }, { &memory->disk, 0, 512 },
    };

    CHECK (rp_slice_create (pieces, 2, &slice, &fault) == RP_BAD_ARGUMENT);
  }
  memory->disk.size_bytes = SIZE;
  memory->disk.read_only = true;
  OK (rp_slice_create (&good, 1, &slice, &fault));
  CHECK (slice->read_only && slice->size_bytes == 512);
  CHECK (rp_disk_pwrite (slice, &byte, 1, 0, &fault) == RP_READ_ONLY);
  CHECK (rp_disk_pread (slice, &byte, 1, 512, &fault) == RP_OUT_OF_RANGE);
  rp_disk_destroy (slice);
  rp_disk_destroy (&memory->disk);
}

int
main (void)
{
  for (uint64_t seed = 1; seed <= SEEDS; seed++)
    test_it_is_what_its_pieces_are (seed);
  test_a_flush_reaches_each_disk_once ();
  test_what_does_not_fit_is_refused ();
  printf ("slice_test: %llu checks\n", (unsigned long long) checks);
  return 0;
}

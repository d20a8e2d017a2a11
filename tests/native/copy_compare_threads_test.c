/* SPDX-License-Identifier: Apache-2.0 */
/* Comparing finds the first difference whatever the number of workers, and
 * merging makes a base equal to its chain.
 */
#include <pthread.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "copy.h"
#include "image.h"
#include "memory_disk.h"
#include "simulate.h"

#define SIZE (UINT64_C (2) * 1024 * 1024 + 512 * 5)
#define SEED 20261122u

static uint64_t checks;
static struct rp_fault fault;

static uint32_t
next_random (uint32_t *state)
{
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static void
scribble (uint8_t *bytes, uint32_t seed, bool holes)
{
  for (uint64_t at = 0; at < SIZE;) {
    uint64_t length = 1 + next_random (&seed) % (200 * 1024);

    if (length > SIZE - at)
      length = SIZE - at;
    if (!holes || next_random (&seed) % 2)
      for (uint64_t i = 0; i < length; i += 1 + next_random (&seed) % 3)
        bytes[at + i] = (uint8_t) next_random (&seed);
    at += length;
  }
}

/* ---- compare ---- */

static uint64_t
first (struct memory_disk *a, struct memory_disk *b, uint32_t workers,
       uint64_t length)
{
  const struct rp_copy_options options = { .workers = workers };
  uint64_t at;

  OK (rp_compare (&a->disk, &b->disk, length, &options, &at, &fault));
  checks++;
  return at;
}

static void
test_compare (uint32_t workers)
{
  struct memory_disk *a = memory_disk_create (SIZE);
  struct memory_disk *b = memory_disk_create (SIZE + 4096);
  uint32_t seed = SEED;

  scribble (a->bytes, SEED, true);
  memcpy (b->bytes, a->bytes, SIZE);
  CHECK (first (a, b, workers, SIZE) == SIZE);
  for (int i = 0; i < 5; i++) {
    const uint64_t at = ((uint64_t) next_random (&seed) << 8 | i) % SIZE;
    const uint64_t later = at + next_random (&seed) % (SIZE - at);

    b->bytes[at] ^= 0x40;
    b->bytes[later] ^= 0x41;
    CHECK (first (a, b, workers, SIZE) == at);
    CHECK (first (b, a, workers, SIZE) == at);
    CHECK (first (a, b, workers, at) == at);   /* the end, not a difference */
    b->bytes[at] ^= 0x40;
    b->bytes[later] ^= 0x41;
  }
  a->bytes[SIZE - 1] ^= 1;
  CHECK (first (a, b, workers, SIZE) == SIZE - 1);
  rp_disk_destroy (&a->disk);
  rp_disk_destroy (&b->disk);
}

static struct memory_disk *unreadable;

static void
fail_from_now (void)
{
  unreadable->fail = RP_IO;
}

/* A disk that cannot be read is an error; behind a difference it is not. */
static void
test_compare_failures (uint32_t workers)
{
  struct memory_disk *a = memory_disk_create (SIZE);
  struct memory_disk *b = memory_disk_create (SIZE);
  const struct rp_copy_options options = { .workers = workers };
  uint64_t at;

  scribble (a->bytes, SEED, false);
  memcpy (b->bytes, a->bytes, SIZE);
  a->fail = RP_CORRUPT;
  CHECK (rp_compare (&a->disk, &b->disk, SIZE, &options, &at, &fault)
         == RP_CORRUPT);
  a->fail = RP_OK;
  b->bytes[0] ^= 1;
  unreadable = b;
  CHECK (rp_compare (&a->disk, &b->disk, SIZE + 1, &options, &at, &fault)
         == RP_BAD_ARGUMENT);
  a->before_read = fail_from_now;
  CHECK (rp_compare (&a->disk, &b->disk, SIZE, &options, &at, &fault)
         == RP_IO);
  rp_disk_destroy (&a->disk);
  rp_disk_destroy (&b->disk);
  checks += 3;
}

/* ---- merge ---- */

#define LINKS 3

struct links {
  struct rp_io    *io;
  struct rp_dir   *dir;
  struct rp_file  *files[LINKS];
  struct rp_image *images[LINKS];   /* top first */
};

static struct rp_file *
open_file (struct links *links, const char *name, bool make)
{
  struct rp_file *file;

  OK (rp_file_open (links->dir, name, RP_OPEN_WRITE
                    | (make ? RP_OPEN_CREATE : 0), 0600, &file, &fault));
  return file;
}

static struct rp_image *
open_image (struct rp_file *file, enum rp_extent_kind kind, bool writable)
{
  const struct rp_extent_spec spec = { kind, SIZE / 512, file, 0 };
  struct rp_image *image;

  OK (rp_image_open (&spec, 1, writable, &image, &fault));
  return image;
}

/* Write some of `model` into the top of a chain, and some zeros. */
static void
write_some (struct rp_disk *disk, uint8_t *model, uint32_t seed)
{
  for (int i = 0; i < 25; i++) {
    const uint64_t at = ((uint64_t) next_random (&seed) << 4) % SIZE;
    uint64_t length = 1 + next_random (&seed) % 150000;

    if (length > SIZE - at)
      length = SIZE - at;
    if (i % 5 == 4) {
      memset (model + at, 0, length);
      OK (rp_disk_zero (disk, length, at, i % 2, &fault));
    } else {
      for (uint64_t k = 0; k < length; k++)   /* zeros inside of data */
        model[at + k] = k / 70000 % 2 ? 0 : (uint8_t) next_random (&seed);
      OK (rp_disk_pwrite (disk, model + at, length, at, &fault));
    }
  }
}

static void
make_links (struct links *links, uint8_t *model, uint32_t seed)
{
  static const char *names[LINKS] = { "top", "middle", "base" };
  static const uint64_t grains[LINKS] = { 128, 1, 0 };
  struct rp_disk *disk;

  OK (rp_io_simulate_create (&links->io, &fault));
  OK (rp_dir_open (links->io, "/", &links->dir, &fault));
  for (int i = LINKS - 1; i >= 0; i--) {
    const struct rp_sparse_create how = {
      .kind = i ? RP_EXTENT_COWD : RP_EXTENT_SPARSE,
      .capacity_sectors = SIZE / 512, .grain_sectors = grains[i],
      .zero_grains = i == 0,
    };
    const enum rp_extent_kind kind = i == LINKS - 1 ? RP_EXTENT_FLAT
                                                    : how.kind;

    links->files[i] = open_file (links, names[i], true);
    if (kind == RP_EXTENT_FLAT)
      OK (rp_file_truncate (links->files[i], SIZE, &fault));
    else
      OK (rp_sparse_create (links->files[i], &how, &fault));
    links->images[i] = open_image (links->files[i], kind, true);
    OK (rp_chain_create (&links->images[i], (uint32_t) (LINKS - i), &disk,
                         &fault));
    write_some (disk, model, seed + (uint32_t) i);
    OK (rp_chain_close_clean (disk, &fault));
    rp_disk_destroy (disk);
    rp_image_destroy (links->images[i]);
    links->images[i] = open_image (links->files[i], kind, false);
  }
}

static void
test_merge (uint32_t workers, uint32_t seed)
{
  const struct rp_copy_options options = { .workers = workers };
  uint8_t *model = calloc (1, SIZE), *seen = malloc (SIZE);
  struct rp_disk *chain, *target;
  struct links links;
  struct rp_file *file;
  struct rp_image *base;

  CHECK (model && seen);
  make_links (&links, model, seed);
  OK (rp_chain_create (links.images, LINKS, &chain, &fault));
  file = open_file (&links, "base", false);
  base = open_image (file, RP_EXTENT_FLAT, true);
  OK (rp_chain_create (&base, 1, &target, &fault));
  CHECK (rp_merge (chain, 0, target, &options, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_merge (chain, LINKS + 1, target, &options, &fault)
         == RP_BAD_ARGUMENT);
  for (int twice = 0; twice < 2; twice++) {
    OK (rp_merge (chain, LINKS - 1, target, &options, &fault));
    OK (rp_disk_pread (target, seen, SIZE, 0, &fault));
    CHECK (memcmp (model, seen, SIZE) == 0);
    OK (rp_disk_pread (chain, seen, SIZE, 0, &fault));
    CHECK (memcmp (model, seen, SIZE) == 0);
  }
  rp_disk_destroy (target);
  rp_disk_destroy (chain);
  rp_image_destroy (base);
  rp_file_close (file);
  for (int i = 0; i < LINKS; i++) {
    rp_image_destroy (links.images[i]);
    rp_file_close (links.files[i]);
  }
  rp_dir_close (links.dir);
  rp_io_destroy (links.io);
  free (seen);
  free (model);
  checks += 6;
}

int
main (void)
{
  for (uint32_t workers = 1; workers < 4; workers += 2) {
    test_compare (workers);
    test_compare_failures (workers);
    test_merge (workers, SEED + workers);
  }
  printf ("copy_compare_threads_test: %llu checks\n",
          (unsigned long long) checks);
  return 0;
}

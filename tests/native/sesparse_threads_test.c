/* SPDX-License-Identifier: Apache-2.0 */
/* Many readers of extents whose tables nobody has loaded yet: each sees what
 * is there, whoever loads a table first and in whatever form it is kept.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "image.h"
#include "sesparse_maker.h"

#define READERS  4u
#define SECTORS  (8u * 32768u)
#define GRAINS   (SECTORS / 8)
#define ROUNDS   16u
#define LOOKS    250u

static atomic_bool go;

/* Runs, a table of its own, a few grains, nothing: by table. */
static bool
pattern (uint64_t grain)
{
  switch ((grain >> 12) % 4) {
  case 0: return grain % 4096 < 1500;
  case 1: return grain % 3 == 0;
  case 2: return grain % 1000 == 5;
  default: return false;
  }
}

struct work {
  struct rp_disk *disk;
  uint64_t        state;
};

static uint64_t
next_random (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return *state >> 33;
}

static void
check_run (struct rp_disk *disk, uint64_t grain)
{
  struct rp_fault fault;
  struct rp_run run;

  OK (rp_disk_run (disk, grain * SE_GRAIN, disk->size_bytes - grain * SE_GRAIN,
                   &run, &fault));
  CHECK ((run.kind == RP_RUN_DATA) == pattern (grain));
  for (uint64_t i = 0; i < run.length_bytes / SE_GRAIN; i++)
    CHECK (pattern (grain + i) == pattern (grain));
}

static void *
look (void *context)
{
  struct work *work = context;
  uint8_t found[SE_GRAIN], wanted[SE_GRAIN];
  struct rp_fault fault;

  while (!atomic_load (&go))
    ;
  for (uint32_t i = 0; i < LOOKS; i++) {
    const uint64_t grain = next_random (&work->state) % GRAINS;

    if (i % 8 == 0) {
      check_run (work->disk, grain);
      continue;
    }
    memset (wanted, 0, sizeof wanted);
    if (pattern (grain))
      se_fill (wanted, grain);
    OK (rp_disk_pread (work->disk, found, sizeof found, grain * SE_GRAIN,
                       &fault));
    CHECK (memcmp (found, wanted, sizeof found) == 0);
  }
  return NULL;
}

static void
run_round (struct rp_file *file, enum rp_extent_kind kind, uint32_t round)
{
  const struct rp_extent_spec spec = {
    .kind = kind, .sectors = SECTORS, .file = file,
  };
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;
  pthread_t threads[READERS];
  struct work works[READERS];

  OK (rp_image_open (&spec, 1, false, &image, &fault));
  OK (rp_chain_create (&image, 1, &disk, &fault));
  atomic_store (&go, false);
  for (uint32_t i = 0; i < READERS; i++) {
    works[i] = (struct work) { disk, round * READERS + i };
    CHECK (pthread_create (&threads[i], NULL, look, &works[i]) == 0);
  }
  atomic_store (&go, true);
  for (uint32_t i = 0; i < READERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  rp_disk_destroy (disk);
  rp_image_destroy (image);
}

static struct rp_file *
open_file (struct rp_dir *dir, const char *name)
{
  struct rp_file *file;
  struct rp_fault fault;

  OK (rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  return file;
}

/* The same disk, written at random into an extent of another kind. */
static void
write_extent (struct rp_file *file, enum rp_extent_kind kind)
{
  const struct rp_sparse_create how = {
    .kind = kind, .capacity_sectors = SECTORS, .grain_sectors = 8,
  };
  const struct rp_extent_spec spec = {
    .kind = kind, .sectors = SECTORS, .file = file,
  };
  uint8_t bytes[SE_GRAIN];
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;

  OK (rp_sparse_create (file, &how, &fault));
  OK (rp_image_open (&spec, 1, true, &image, &fault));
  OK (rp_chain_create (&image, 1, &disk, &fault));
  for (uint64_t grain = 0; grain < GRAINS; grain++)
    if (pattern (grain)) {
      se_fill (bytes, grain);
      OK (rp_disk_pwrite (disk, bytes, sizeof bytes, grain * SE_GRAIN,
                          &fault));
    }
  OK (rp_chain_close_clean (disk, &fault));
  rp_disk_destroy (disk);
  rp_image_destroy (image);
}

int
main (void)
{
  static const enum rp_extent_kind kinds[] = {
    RP_EXTENT_SESPARSE, RP_EXTENT_SPARSE, RP_EXTENT_COWD,
  };
  struct rp_dir *dir;
  struct rp_io *io;
  struct rp_fault fault;

  OK (rp_io_posix_create (&io, &fault));
  OK (rp_dir_open (io, ".", &dir, &fault));
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    struct rp_file *file = open_file (dir, "extent");

    if (kinds[k] == RP_EXTENT_SESPARSE)
      OK (se_make (file, SECTORS, pattern, &fault));
    else
      write_extent (file, kinds[k]);
    for (uint32_t round = 0; round < ROUNDS; round++)
      run_round (file, kinds[k], round);
    rp_file_close (file);
  }
  rp_dir_close (dir);
  rp_io_destroy (io);
  printf ("sesparse_threads_test: %u readers, %u rounds\n", READERS, ROUNDS);
  return EXIT_SUCCESS;
}

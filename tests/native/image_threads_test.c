/* SPDX-License-Identifier: Apache-2.0 */
/* Writers that share new grains, with flushes, zeroes and readers beside
 * them: every byte ends as its own writer left it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "image.h"
#include "io.h"

#define WRITERS     4u
#define PIECE_BYTES 1536u        /* no multiple of a grain or of a page */
#define PIECES      2048u
#define TRIES_MAX   10000000u    /* a write that never ends is a mistake */
#define SECTORS     (PIECES * (PIECE_BYTES / 512u))

static const uint32_t grains[] = { 1, 8, 128 };

struct work {
  struct rp_disk *disk;
  uint32_t        writer;
  atomic_bool    *stop;
};

static void
fill (uint8_t *piece, uint32_t index)
{
  for (uint32_t i = 0; i < PIECE_BYTES; i++)
    piece[i] = (uint8_t) (index * 7 + i * 13 + 1);
}

/* Piece i belongs to writer i % WRITERS, so each grain has many writers. */
static void *
write_pieces (void *context)
{
  const struct work *work = context;
  uint8_t piece[PIECE_BYTES];
  struct rp_fault fault;

  for (uint32_t i = work->writer; i < PIECES; i += WRITERS) {
    fill (piece, i);
    if (i % 16 == 5)             /* zeroed first, by its own writer */
      OK (rp_disk_zero (work->disk, PIECE_BYTES, (uint64_t) i * PIECE_BYTES,
                        true, &fault));
    OK (rp_disk_pwrite (work->disk, piece, PIECE_BYTES,
                        (uint64_t) i * PIECE_BYTES, &fault));
    if (i % 128 == work->writer)
      OK (rp_disk_flush (work->disk, &fault));
  }
  return NULL;
}

/* Is the sector one of the three?  A read beside a write of the same sector may
 * see part of it, in pieces of 32 bytes, as the kernel copies them: then each
 * byte is of one of the three, and the read is to be done again.
 */
static bool
is_whole (const uint8_t *sector, const uint8_t *written,
          const uint8_t *parent, const uint8_t *none)
{
  if (memcmp (sector, written, 512) == 0 || memcmp (sector, parent, 512) == 0
      || memcmp (sector, none, 512) == 0)
    return true;
  for (int i = 0; i < 512; i++)
    CHECK (sector[i] == written[i] || sector[i] == parent[i]
           || sector[i] == none[i]);
  return false;
}

/* What is read is the parent, zeros in between, or the writer's, by sector. */
static void *
read_pieces (void *context)
{
  const struct work *work = context;
  uint8_t sector[512], piece[PIECE_BYTES], parent[512], none[512] = { 0 };
  struct rp_fault fault;
  struct rp_run run;

  memset (parent, 0xaa, sizeof parent);
  for (uint32_t i = 0; !atomic_load (work->stop); i = (i + 37) % PIECES) {
    uint32_t tries = 0;

    fill (piece, i);
    do {
      CHECK (tries++ < TRIES_MAX);
      OK (rp_disk_pread (work->disk, sector, sizeof sector,
                         (uint64_t) i * PIECE_BYTES + 512, &fault));
    } while (!is_whole (sector, piece + 512, parent, none));
    OK (rp_disk_run (work->disk, (uint64_t) i * PIECE_BYTES,
                     work->disk->size_bytes - (uint64_t) i * PIECE_BYTES,
                     &run, &fault));
  }
  return NULL;
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

static void
verify (struct rp_disk *disk)
{
  uint8_t piece[PIECE_BYTES], found[PIECE_BYTES];
  struct rp_fault fault;

  for (uint32_t i = 0; i < PIECES; i++) {
    fill (piece, i);
    OK (rp_disk_pread (disk, found, PIECE_BYTES, (uint64_t) i * PIECE_BYTES,
                       &fault));
    CHECK (memcmp (piece, found, PIECE_BYTES) == 0);
  }
}

static void
no_finding (void *context, const struct rp_finding *finding)
{
  (void) context;
  /* space that two writers reserved for one grain would be a leak */
  fprintf (stderr, "finding: %s\n", finding->kind);
  CHECK (false);
}

static struct rp_disk *
open_chain (struct rp_file *top, enum rp_extent_kind kind, bool writable,
            struct rp_file *base, struct rp_image *images[2])
{
  const struct rp_extent_spec top_spec = {
    .kind = kind, .sectors = SECTORS, .file = top,
  };
  const struct rp_extent_spec base_spec = {
    .kind = RP_EXTENT_FLAT, .sectors = SECTORS, .file = base,
  };
  struct rp_disk *disk;
  struct rp_fault fault;

  OK (rp_image_open (&top_spec, 1, writable, &images[0], &fault));
  OK (rp_image_open (&base_spec, 1, false, &images[1], &fault));
  OK (rp_chain_create (images, 2, &disk, &fault));
  return disk;
}

static void
close_chain (struct rp_disk *disk, struct rp_image *images[2])
{
  rp_disk_destroy (disk);
  rp_image_destroy (images[0]);
  rp_image_destroy (images[1]);
}

static void
run_case (struct rp_dir *dir, enum rp_extent_kind kind, uint32_t grain,
          struct rp_file *base)
{
  const struct rp_sparse_create how = {
    .kind = kind, .capacity_sectors = SECTORS, .grain_sectors = grain,
    .redundant = kind == RP_EXTENT_SPARSE,
    .zero_grains = kind == RP_EXTENT_SPARSE,
  };
  struct rp_file *top = open_file (dir, "top");
  pthread_t threads[WRITERS + 1];
  struct work works[WRITERS + 1];
  struct rp_image *images[2];
  struct rp_disk *disk;
  struct rp_fault fault;
  atomic_bool stop;

  atomic_init (&stop, false);
  OK (rp_sparse_create (top, &how, &fault));
  disk = open_chain (top, kind, true, base, images);
  for (uint32_t i = 0; i <= WRITERS; i++) {
    works[i] = (struct work) { .disk = disk, .writer = i, .stop = &stop };
    CHECK (pthread_create (&threads[i], NULL,
                           i < WRITERS ? write_pieces : read_pieces,
                           &works[i]) == 0);
  }
  for (uint32_t i = 0; i < WRITERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  atomic_store (&stop, true);
  CHECK (pthread_join (threads[WRITERS], NULL) == 0);
  verify (disk);
  OK (rp_chain_close_clean (disk, &fault));
  close_chain (disk, images);

  disk = open_chain (top, kind, false, base, images);
  verify (disk);
  OK (rp_image_check (images[0], no_finding, NULL, &fault));
  close_chain (disk, images);
  rp_file_close (top);
}

int
main (void)
{
  struct rp_file *base;
  struct rp_dir *dir;
  struct rp_io *io;
  struct rp_fault fault;
  uint8_t block[4096];

  OK (rp_io_posix_create (&io, &fault));
  OK (rp_dir_open (io, ".", &dir, &fault));
  base = open_file (dir, "base");
  memset (block, 0xaa, sizeof block);
  for (uint64_t at = 0; at < SECTORS * 512u; at += sizeof block)
    OK (rp_file_pwrite (base, block, sizeof block, at, &fault));
  for (size_t i = 0; i < sizeof grains / sizeof *grains; i++) {
    run_case (dir, RP_EXTENT_SPARSE, grains[i], base);
    run_case (dir, RP_EXTENT_COWD, grains[i], base);
  }
  rp_file_close (base);
  rp_dir_close (dir);
  rp_io_destroy (io);
  printf ("image_threads_test: %zu cases of %u pieces\n",
          2 * sizeof grains / sizeof *grains, PIECES);
  return EXIT_SUCCESS;
}

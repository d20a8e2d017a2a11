/* SPDX-License-Identifier: Apache-2.0 */
/* Copies between files of the posix backend: clones and what replaces them,
 * files that are streamed.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "copy.h"
#include "image.h"
#include "io.h"

#define SIZE    (UINT64_C (3) * 1024 * 1024 + 512)
#define STREAM  (UINT64_C (88) << 20)   /* far enough for pages to be given up */
#define STEP    (UINT64_C (1) << 20)
#define SEED    20261122u

static uint64_t checks;
static struct rp_fault fault;

static uint32_t
next_random (uint32_t *state)
{
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static struct rp_file *
open_file (struct rp_dir *dir, const char *name)
{
  struct rp_file *file;

  OK (rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  return file;
}

/* A disk of two flat extents; the second begins inside of its file. */
struct flat {
  struct rp_file  *files[2];
  struct rp_image *image;
  struct rp_disk  *disk;
};

static struct flat
flat_make (struct rp_dir *dir, const char *first, const char *second,
           uint64_t split, uint32_t shift)
{
  struct flat flat = {
    .files = { open_file (dir, first), open_file (dir, second) },
  };
  const struct rp_extent_spec specs[] = {
    { RP_EXTENT_FLAT, split / 512, flat.files[0], 0 },
    { RP_EXTENT_FLAT, (SIZE - split) / 512, flat.files[1], shift },
  };

  OK (rp_file_truncate (flat.files[0], split, &fault));
  OK (rp_file_truncate (flat.files[1], SIZE - split + shift * 512, &fault));
  OK (rp_image_open (specs, 2, true, &flat.image, &fault));
  OK (rp_chain_create (&flat.image, 1, &flat.disk, &fault));
  return flat;
}

static void
flat_end (struct flat *flat)
{
  rp_disk_destroy (flat->disk);
  rp_image_destroy (flat->image);
  rp_file_close (flat->files[0]);
  rp_file_close (flat->files[1]);
}

static uint8_t *
fill (struct rp_disk *disk, uint32_t seed)
{
  uint8_t *bytes = calloc (1, SIZE);

  CHECK (bytes);
  for (uint64_t at = 0; at < SIZE;) {
    uint64_t length = (1 + next_random (&seed) % 200) * 4096;

    if (length > SIZE - at)
      length = SIZE - at;
    if (next_random (&seed) % 2) {
      for (uint64_t i = 0; i < length; i++)
        bytes[at + i] = (uint8_t) next_random (&seed);
      OK (rp_disk_pwrite (disk, bytes + at, length, at, &fault));
    }
    at += length;
  }
  return bytes;
}

/* ---- a sink that can clone ---- */

struct cloner {
  struct rp_sink   sink;
  uint8_t         *bytes;
  _Atomic uint32_t clones, writes, most;
};

static int
cloner_clone (struct rp_sink *sink, uint64_t length, uint64_t offset,
              struct rp_file *from, uint64_t from_offset, struct rp_fault *why)
{
  struct cloner *cloner = (struct cloner *) sink;

  CHECK (length % 4096 == 0 && offset % 4096 == 0 && from_offset % 4096 == 0);
  CHECK (length % sink->unit_bytes == 0 && offset % sink->unit_bytes == 0);
  if (atomic_fetch_add (&cloner->clones, 1) >= cloner->most)
    return rp_fail (why, RP_UNSUPPORTED, 0, "no more");
  return rp_file_pread_all (from, cloner->bytes + offset, length, from_offset,
                            why);
}

static int
cloner_write (struct rp_sink *sink, struct rp_chunk *chunk,
              struct rp_fault *unused)
{
  struct cloner *cloner = (struct cloner *) sink;

  (void) unused;
  atomic_fetch_add (&cloner->writes, 1);
  for (uint64_t at = 0; at < chunk->length_bytes; at += sink->unit_bytes)
    if (chunk->marked[at / sink->unit_bytes]) {
      const uint64_t left = chunk->length_bytes - at;

      memcpy (cloner->bytes + chunk->offset_bytes + at, chunk->data + at,
              left < sink->unit_bytes ? left : sink->unit_bytes);
    }
  return RP_OK;
}

static int
cloner_finish (struct rp_sink *sink, struct rp_fault *unused)
{
  (void) sink;
  (void) unused;
  return RP_OK;
}

static const struct rp_sink_functions cloner_functions = {
  .name = "cloner", .write = cloner_write, .clone = cloner_clone,
  .finish = cloner_finish,
};

/* Whatever the sink takes as clones, the bytes are the same. */
static void
test_clones (struct rp_dir *dir)
{
  static const uint32_t most[] = { 0, 1, 3, 1000000 };
  static const uint32_t units[] = { 512, 4096, 65536 };

  for (uint32_t seed = SEED; seed < SEED + 2; seed++) {
    struct flat source = flat_make (dir, "a", "b", SIZE / 1024 * 512 + 512 * (seed % 2),
                                    seed % 2 ? 1 : 8);
    uint8_t *bytes = fill (source.disk, seed);

    for (int u = 0; u < 3; u++)
      for (int m = 0; m < 4; m++)
        for (uint32_t workers = 1; workers < 4; workers += 2) {
          const struct rp_copy_options options = { .workers = workers };
          struct rp_copy_counts counts;
          struct cloner cloner = {
            .sink = { .functions = &cloner_functions, .size_bytes = SIZE,
                      .unit_bytes = units[u] },
            .bytes = calloc (1, SIZE), .most = most[m],
          };

          CHECK (cloner.bytes);
          OK (rp_copy (source.disk, &cloner.sink, &options, &counts, &fault));
          CHECK (memcmp (bytes, cloner.bytes, SIZE) == 0);
          CHECK (units[u] > 4096 || cloner.clones > 0);
          CHECK (cloner.writes > 0);   /* the end is no multiple of a page */
          free (cloner.bytes);
          checks += 3;
        }
    free (bytes);
    flat_end (&source);
  }
}

/* On this file system, whichever it is: shared, or refused and copied. */
static void
test_real_clones (struct rp_dir *dir)
{
  struct flat source = flat_make (dir, "a", "b", SIZE / 1024 * 512 + 1024, 8);
  struct flat target = flat_make (dir, "c", "d", SIZE - 66048, 0);
  uint8_t *bytes = fill (source.disk, SEED + 9), *seen = malloc (SIZE);
  struct rp_copy_counts counts;
  struct rp_sink *sink;
  int status;

  CHECK (seen);
  OK (rp_disk_sink_create (target.disk, 4096, &sink, &fault));
  OK (rp_copy (source.disk, sink, NULL, &counts, &fault));
  OK (rp_disk_pread (target.disk, seen, SIZE, 0, &fault));
  CHECK (memcmp (bytes, seen, SIZE) == 0);
  rp_sink_destroy (sink);
  status = rp_file_clone (target.files[0], 0, source.files[0], 65536, 65536,
                          &fault);
  CHECK (status == RP_OK || status == RP_UNSUPPORTED);
  OK (rp_disk_pread (target.disk, seen, 65536, 0, &fault));
  CHECK (memcmp (bytes + (status == RP_OK ? 65536 : 0), seen, 65536) == 0);
  CHECK (rp_file_clone (target.files[0], UINT64_MAX, source.files[0], 0, 1,
                        &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_disk_clone (target.disk, 4096, SIZE, source.files[0], 0, &fault)
         == RP_OUT_OF_RANGE);
  /* over the end of an extent */
  CHECK (rp_disk_clone (target.disk, 8192, SIZE - 66048 - 4096,
                        source.files[0], 0, &fault) == RP_UNSUPPORTED);
  free (seen);
  free (bytes);
  flat_end (&target);
  flat_end (&source);
  checks += 6;
}

/* ---- streaming ---- */

struct stretch {
  struct rp_file *file;
  uint64_t        first;         /* every second step */
};

static void
step_bytes (uint8_t *bytes, uint64_t at)
{
  memset (bytes, (int) (at / STEP + 1), STEP);
}

static void *
write_steps (void *context)
{
  const struct stretch *stretch = context;
  uint8_t *bytes = malloc (STEP);
  struct rp_fault why;

  CHECK (bytes);
  for (uint64_t at = stretch->first; at < STREAM; at += 2 * STEP) {
    step_bytes (bytes, at);
    CHECK (rp_file_pwrite (stretch->file, bytes, STEP, at, &why) == RP_OK);
    if (at == STREAM / 2)        /* back to the front, once */
      CHECK (rp_file_pwrite (stretch->file, bytes, 4096, 0, &why) == RP_OK);
  }
  free (bytes);
  return NULL;
}

static void
test_streaming (struct rp_dir *dir)
{
  struct rp_file *file = open_file (dir, "s");
  struct stretch stretches[] = { { file, 0 }, { file, STEP } };
  uint8_t *bytes = malloc (STEP), *seen = malloc (STEP);
  pthread_t threads[2];
  uint64_t size;

  CHECK (bytes && seen);
  rp_file_stream (file);
  for (int i = 0; i < 2; i++)
    CHECK (pthread_create (&threads[i], NULL, write_steps, &stretches[i])
           == 0);
  for (int i = 0; i < 2; i++)
    pthread_join (threads[i], NULL);
  OK (rp_file_sync (file, &fault));
  OK (rp_file_size (file, &size, &fault));
  CHECK (size == STREAM);
  for (uint64_t at = 0; at < STREAM; at += STEP) {
    OK (rp_file_pread_all (file, seen, STEP, at, &fault));
    step_bytes (bytes, at);
    if (at == 0)
      memset (bytes, (int) (STREAM / 2 / STEP + 1), 4096);
    CHECK (memcmp (seen, bytes, STEP) == 0);
    checks++;
  }
  free (seen);
  free (bytes);
  rp_file_close (file);
}

int
main (void)
{
  struct rp_io *io;
  struct rp_dir *dir;

  OK (rp_io_posix_create (&io, &fault));
  OK (rp_dir_open (io, ".", &dir, &fault));
  test_clones (dir);
  test_real_clones (dir);
  test_streaming (dir);
  for (const char *name = "abcds"; *name; name++) {
    const char one[2] = { *name, '\0' };

    OK (rp_dir_unlink (dir, one, &fault));
  }
  rp_dir_close (dir);
  rp_io_destroy (io);
  printf ("copy_disk_threads_test: %llu checks\n", (unsigned long long) checks);
  return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Copies by one worker and by many: the bytes are the same, the order of a
 * sink is kept, memory stays in its bounds, the first failure stops all.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "copy.h"
#include "copy_crew.h"
#include "memory_disk.h"

#define SIZE     (UINT64_C (3) * 1024 * 1024 + 512 * 3)
#define SEED     20261122u

static uint64_t checks;
static struct rp_fault fault;

static uint32_t
next_random (uint32_t *state)
{
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

/* Stretches of holes, data, and zeros that are only found by looking. */
static struct memory_disk *
source_disk (uint32_t seed)
{
  struct memory_disk *disk = memory_disk_create (SIZE);
  uint64_t at = 0;

  while (at < SIZE) {
    uint64_t length = 1 + next_random (&seed) % (300 * 1024);
    const bool data = next_random (&seed) % 3 == 0;

    if (length > SIZE - at)
      length = SIZE - at;
    for (uint64_t i = 0; data && i < length; i++)
      disk->bytes[at + i] = (uint8_t) next_random (&seed);
    at += length;
  }
  return disk;
}

/* ---- a sink that watches ---- */

struct watcher {
  struct rp_sink   sink;
  uint8_t         *bytes;
  _Atomic uint32_t placing;      /* more than one at once is wrong */
  uint64_t         placed;       /* end of the last */
  uint32_t         places;
  _Atomic uint32_t prepares, writes, finishes, scratches, scratches_most;
  uint32_t         fail_place, fail_write;   /* the how manieth; 0 none */
};

static int
watch_scratch (struct rp_sink *sink, void **out, struct rp_fault *unused)
{
  struct watcher *watcher = (struct watcher *) sink;
  const uint32_t now = atomic_fetch_add (&watcher->scratches, 1) + 1;

  (void) unused;
  if (now > watcher->scratches_most)
    watcher->scratches_most = now;
  *out = malloc (sink->scratch_bytes);
  return RP_OK;
}

static void
watch_scratch_end (struct rp_sink *sink, void *scratch)
{
  atomic_fetch_sub (&((struct watcher *) sink)->scratches, 1);
  free (scratch);
}

static int
watch_prepare (struct rp_sink *sink, struct rp_chunk *chunk,
               struct rp_fault *unused)
{
  struct watcher *watcher = (struct watcher *) sink;

  (void) unused;
  CHECK (chunk->scratch && (uintptr_t) chunk->data % 4096 == 0);
  CHECK (chunk->offset_bytes % sink->chunk_bytes == 0);
  CHECK (chunk->length_bytes == sink->chunk_bytes
         || chunk->offset_bytes + chunk->length_bytes == SIZE);
  memset (chunk->scratch, 1, sink->scratch_bytes);
  for (uint64_t at = 0; at < chunk->length_bytes; at += sink->unit_bytes) {
    const uint64_t left = chunk->length_bytes - at;

    CHECK (chunk->marked[at / sink->unit_bytes]
           == !rp_is_zero (chunk->data + at,
                           left < sink->unit_bytes ? left : sink->unit_bytes));
  }
  atomic_fetch_add (&watcher->prepares, 1);
  return RP_OK;
}

static int
watch_place (struct rp_sink *sink, struct rp_chunk *chunk,
             struct rp_fault *why)
{
  struct watcher *watcher = (struct watcher *) sink;

  CHECK (atomic_fetch_add (&watcher->placing, 1) == 0);
  CHECK (chunk->offset_bytes >= watcher->placed);
  watcher->placed = chunk->offset_bytes + chunk->length_bytes;
  chunk->place = chunk->offset_bytes + 1;
  atomic_fetch_sub (&watcher->placing, 1);
  if (++watcher->places == watcher->fail_place)
    return rp_fail (why, RP_FULL, 7, "place");
  return RP_OK;
}

static int
watch_write (struct rp_sink *sink, struct rp_chunk *chunk,
             struct rp_fault *why)
{
  struct watcher *watcher = (struct watcher *) sink;

  CHECK (chunk->place == chunk->offset_bytes + 1);
  memcpy (watcher->bytes + chunk->offset_bytes, chunk->data,
          chunk->length_bytes);
  if (atomic_fetch_add (&watcher->writes, 1) + 1 == watcher->fail_write)
    return rp_fail (why, RP_IO, 8, "write");
  return RP_OK;
}

static int
watch_finish (struct rp_sink *sink, struct rp_fault *unused)
{
  struct watcher *watcher = (struct watcher *) sink;

  (void) unused;
  CHECK (watcher->placing == 0 && watcher->writes == watcher->prepares);
  atomic_fetch_add (&watcher->finishes, 1);
  return RP_OK;
}

static const struct rp_sink_functions watch_functions = {
  .name = "watch", .scratch_create = watch_scratch,
  .scratch_destroy = watch_scratch_end, .prepare = watch_prepare,
  .place = watch_place, .write = watch_write, .finish = watch_finish,
};

static struct watcher
watcher_make (void)
{
  struct watcher watcher = {
    .sink = {
      .functions = &watch_functions, .size_bytes = SIZE, .unit_bytes = 4096,
      .chunk_bytes = 128 * 1024, .scratch_bytes = 1000,
    },
    .bytes = calloc (1, SIZE),
  };

  CHECK (watcher.bytes);
  return watcher;
}

/* ---- tests ---- */

struct told {
  uint64_t calls, last, stop_at;   /* stop_at: this call says no */
};

static bool
tell (void *context, uint64_t done)
{
  struct told *told = context;

  CHECK (done >= told->last && done <= SIZE);
  told->last = done;
  return ++told->calls != told->stop_at;
}

static void
test_bytes (uint32_t workers, uint32_t seed)
{
  struct memory_disk *source = source_disk (seed);
  struct memory_disk *target = memory_disk_create (SIZE);
  struct told told = { 0 };
  const struct rp_copy_options options = {
    .workers = workers, .progress = tell, .context = &told,
  };
  struct rp_copy_counts counts;
  struct rp_sink *sink;
  uint64_t data = 0, runs = 0;

  OK (rp_disk_sink_create (&target->disk, 4096, &sink, &fault));
  OK (rp_copy (&source->disk, sink, &options, &counts, &fault));
  CHECK (memcmp (source->bytes, target->bytes, SIZE) == 0);
  CHECK (told.last == SIZE && target->flushes == 1);
  for (uint64_t at = 0; at < SIZE; at += 4096)
    if (!rp_is_zero (source->bytes + at, SIZE - at < 4096 ? SIZE - at : 4096))
      data += SIZE - at < 4096 ? SIZE - at : 4096;
  for (uint64_t at = 0; at < SIZE; at += 65536)
    if (!rp_is_zero (source->bytes + at, SIZE - at < 65536 ? SIZE - at : 65536))
      runs += SIZE - at < 65536 ? SIZE - at : 65536;
  CHECK (counts.written_bytes == data && counts.read_bytes == runs);
  rp_sink_destroy (sink);
  rp_disk_destroy (&target->disk);
  rp_disk_destroy (&source->disk);
  checks += 4;
}

static void
test_order (uint32_t workers, uint32_t seed)
{
  struct memory_disk *source = source_disk (seed);
  struct watcher watcher = watcher_make ();
  const struct rp_copy_options options = { .workers = workers };
  struct rp_copy_counts counts;

  OK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault));
  CHECK (memcmp (source->bytes, watcher.bytes, SIZE) == 0);
  CHECK (watcher.finishes == 1 && watcher.places == watcher.writes);
  CHECK (watcher.scratches == 0);
  free (watcher.bytes);
  rp_disk_destroy (&source->disk);
  checks += 3;
}

/* Room for two chunks: two workers, whatever was asked for. */
static void
test_memory (void)
{
  struct memory_disk *source = source_disk (SEED);
  struct watcher watcher = watcher_make ();
  const uint64_t slot = watcher.sink.chunk_bytes
                        + watcher.sink.chunk_bytes / watcher.sink.unit_bytes
                        + watcher.sink.scratch_bytes;
  struct rp_copy_options options = {
    .workers = 16, .memory_bytes = 2 * slot + slot / 2,
  };
  struct rp_copy_counts counts;

  OK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault));
  CHECK (watcher.scratches_most == 2);
  watcher.scratches_most = 0;
  watcher.placed = 0;
  options.memory_bytes = 1;      /* less than one: one */
  OK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault));
  CHECK (watcher.scratches_most == 1);
  free (watcher.bytes);
  rp_disk_destroy (&source->disk);
  checks += 2;
}

static void
test_failures (uint32_t workers)
{
  struct memory_disk *source = source_disk (SEED);
  struct rp_copy_options options = { .workers = workers };
  struct rp_copy_counts counts;

  for (uint32_t at = 1; at < 8; at += 3) {
    struct watcher watcher = watcher_make ();

    watcher.fail_place = at;
    CHECK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault)
           == RP_FULL);
    CHECK (fault.position == 7 && watcher.finishes == 0);
    CHECK (watcher.places == at && watcher.scratches == 0);
    watcher.fail_place = watcher.places = watcher.placed = 0;
    atomic_store (&watcher.writes, 0);
    watcher.fail_write = at;
    CHECK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault)
           == RP_IO);
    CHECK (fault.position == 8 && watcher.finishes == 0);
    free (watcher.bytes);
    checks += 5;
  }
  source->fail = RP_CORRUPT;
  {
    struct memory_disk *target = memory_disk_create (SIZE);
    struct rp_sink *sink;

    OK (rp_disk_sink_create (&target->disk, 512, &sink, &fault));
    CHECK (rp_copy (&source->disk, sink, &options, &counts, &fault)
           == RP_CORRUPT);
    source->fail = RP_OK;
    target->fail_flush = RP_FAILED;
    CHECK (rp_copy (&source->disk, sink, &options, &counts, &fault)
           == RP_FAILED);
    target->disk.size_bytes = SIZE + 512;
    rp_sink_destroy (sink);
    OK (rp_disk_sink_create (&target->disk, 512, &sink, &fault));
    CHECK (rp_copy (&source->disk, sink, &options, &counts, &fault)
           == RP_BAD_ARGUMENT);
    rp_sink_destroy (sink);
    target->disk.read_only = true;
    CHECK (rp_disk_sink_create (&target->disk, 512, &sink, &fault)
           == RP_READ_ONLY);
    rp_disk_destroy (&target->disk);
  }
  rp_disk_destroy (&source->disk);
  checks += 4;
}

/* One worker tells after every piece, so every call can be the last. */
static void
test_cancelling (void)
{
  struct memory_disk *source = source_disk (SEED + 5);
  struct told told = { 0 };
  struct rp_copy_options options = {
    .workers = 1, .progress = tell, .context = &told,
  };
  struct rp_copy_counts counts;
  struct watcher watcher = watcher_make ();
  uint64_t calls;

  OK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault));
  calls = told.calls;
  CHECK (calls > 5);
  for (uint64_t at = 1; at <= calls; at++) {
    told = (struct told) { .stop_at = at };
    watcher.finishes = watcher.placed = watcher.writes = watcher.prepares = 0;
    CHECK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault)
           == RP_CANCELLED);
    CHECK (told.calls == at && watcher.scratches == 0);
    CHECK (watcher.finishes == (at == calls));
    checks += 3;
  }
  for (uint32_t workers = 2; workers < 5; workers++) {
    options.workers = workers;
    told = (struct told) { .stop_at = 1 };
    watcher.placed = watcher.writes = watcher.prepares = 0;
    CHECK (rp_copy (&source->disk, &watcher.sink, &options, &counts, &fault)
           == RP_CANCELLED);
    CHECK (told.calls == 1 && watcher.scratches == 0);
    checks += 2;
  }
  free (watcher.bytes);
  rp_disk_destroy (&source->disk);
}

static void
test_zeros (void)
{
  uint8_t bytes[700] = { 0 };

  for (size_t start = 0; start < 40; start++)
    for (size_t length = 0; length < 600; length += 1 + length / 9) {
      CHECK (rp_is_zero (bytes + start, length));
      if (length == 0)
        continue;
      for (size_t at = start; at < start + length; at += 1 + length / 5) {
        bytes[at] = 1;
        CHECK (!rp_is_zero (bytes + start, length));
        bytes[at] = 0;
      }
      bytes[start + length - 1] = 0x80;
      CHECK (!rp_is_zero (bytes + start, length));
      bytes[start + length - 1] = 0;
      bytes[start + length] = 1;
      CHECK (rp_is_zero (bytes + start, length));
      bytes[start + length] = 0;
      checks += 4;
    }
}

int
main (void)
{
  test_zeros ();
  for (uint32_t workers = 1; workers < 5; workers += 3) {
    for (uint32_t seed = SEED; seed < SEED + 3; seed++) {
      test_bytes (workers, seed);
      test_order (workers, seed);
    }
    test_failures (workers);
  }
  test_memory ();
  test_cancelling ();
  printf ("copy_threads_test: %llu checks\n", (unsigned long long) checks);
  return 0;
}

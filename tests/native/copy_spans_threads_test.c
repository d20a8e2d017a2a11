/* SPDX-License-Identifier: Apache-2.0 */
/* Ranges are sent and compared exactly, whatever their number and threads. */
#include <inttypes.h>

#include "bytes.h"
#include "check.h"
#include "copy.h"
#include "memory_disk.h"

#define SIZE   (UINT64_C (5) * 1024 * 1024 + 1536)
#define PAIRS  400
#define UNIT   UINT64_C (4096)

static uint64_t checks;
static struct rp_fault fault;

static uint32_t
next_random (uint32_t *state)
{
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static uint64_t
random_below (uint32_t *state, uint64_t limit)
{
  return ((uint64_t) next_random (state) << 24 | next_random (state)) % limit;
}

static void
randomise (uint8_t *bytes, uint64_t length, uint32_t *state)
{
  for (uint64_t i = 0; i < length; i++)
    bytes[i] = (uint8_t) next_random (state);
}

/* Pairs in order, most of them small. */
static uint64_t
random_pairs (uint64_t *pairs, uint32_t *state)
{
  const uint64_t count = 1 + random_below (state, PAIRS);

  for (uint64_t i = 0; i < count; i++) {
    const uint64_t most = random_below (state, 20) ? 9000 : 1500000;

    pairs[2 * i] = random_below (state, SIZE);
    pairs[2 * i + 1] = pairs[2 * i] + random_below (state, most);
    if (pairs[2 * i + 1] > SIZE)
      pairs[2 * i + 1] = SIZE;
  }
  return rp_spans_join (pairs, count);
}

static bool
inside (const uint64_t *pairs, uint64_t count, uint64_t at)
{
  for (uint64_t i = 0; i < count && pairs[2 * i] <= at; i++)
    if (at < pairs[2 * i + 1])
      return true;
  return false;
}

static bool
note_progress (void *context, uint64_t done)
{
  uint64_t *last = context;

  CHECK (done >= *last);
  *last = done;
  return true;
}

/* Send, and look at every byte. */
static void
try_send (uint32_t seed, uint32_t workers)
{
  uint32_t state = seed;
  struct memory_disk *source = memory_disk_create (SIZE);
  struct memory_disk *target = memory_disk_create (SIZE + 512 * (seed % 3));
  uint8_t *before = malloc (SIZE);
  uint64_t pairs[2 * PAIRS], told = 0, total = 0;
  const uint64_t count = random_pairs (pairs, &state);
  const struct rp_copy_options options = {
    .workers = workers, .progress = note_progress, .context = &told,
  };
  struct rp_sent sent;

  randomise (source->bytes, SIZE, &state);
  memset (source->bytes + 3 * UNIT, 0, 900000);
  randomise (target->bytes, SIZE, &state);
  memcpy (before, target->bytes, SIZE);
  for (uint64_t i = 0; i < count; i++)
    total += pairs[2 * i + 1] - pairs[2 * i];
  OK (rp_copy_spans (&source->disk, &target->disk, pairs, count, &options,
                     &sent, &fault));
  CHECK (sent.sent_bytes + sent.zeroed_bytes == total);
  CHECK (sent.read_bytes <= total && told == total);
  CHECK (target->flushes == 1);
  for (uint64_t i = 0, at = 0; i <= count; i++) {
    const uint64_t start = i < count ? pairs[2 * i] : SIZE;
    const uint64_t stop = i < count ? pairs[2 * i + 1] : SIZE;

    CHECK (memcmp (target->bytes + at, before + at, start - at) == 0);
    CHECK (memcmp (target->bytes + start, source->bytes + start,
                   stop - start) == 0);
    at = stop;
    checks++;
  }
  free (before);
  rp_disk_destroy (&source->disk);
  rp_disk_destroy (&target->disk);
}

/* Find what was changed, unit for unit. */
static void
try_differ (uint32_t seed, uint32_t workers)
{
  uint32_t state = seed;
  struct memory_disk *a = memory_disk_create (SIZE);
  struct memory_disk *b = memory_disk_create (SIZE);
  uint64_t pairs[2 * PAIRS], wanted = 0, found = 0;
  const uint64_t count = random_pairs (pairs, &state);
  const struct rp_copy_options options = { .workers = workers };
  struct rp_spans out = { .count = 0 };

  randomise (a->bytes, SIZE, &state);
  memcpy (b->bytes, a->bytes, SIZE);
  for (int i = 0; i < 60; i++)
    b->bytes[random_below (&state, SIZE)] ^= 0x40;
  OK (rp_differ (&a->disk, &b->disk, pairs, count, &options, &out, &fault));
  OK (rp_spans_check (out.pairs, out.count, SIZE, &fault));
  for (uint64_t at = 0; at < SIZE; at++)
    if (a->bytes[at] != b->bytes[at] && inside (pairs, count, at)) {
      CHECK (inside (out.pairs, out.count, at));
      wanted++;
    }
  for (uint64_t i = 0; i < out.count; i++)
    found += out.pairs[2 * i + 1] - out.pairs[2 * i];
  CHECK (found <= wanted * UNIT);
  checks += wanted + 1;
  free (out.pairs);
  rp_disk_destroy (&a->disk);
  rp_disk_destroy (&b->disk);
}

static bool
refuse (void *context, uint64_t done)
{
  (void) context;
  (void) done;
  return false;
}

static void
what_cannot_be_is_refused (void)
{
  struct memory_disk *source = memory_disk_create (SIZE);
  struct memory_disk *target = memory_disk_create (SIZE - 512);
  const uint64_t bad[][4] = {
    { 0, SIZE, 0, 0 }, { 4096, 4096, 0, 0 }, { 8192, 9000, 9000, 9100 },
    { 8192, 9000, 0, 4096 },
  };
  const uint64_t good[] = { 0, 4 << 20 };
  const struct rp_copy_options stopping = {
    .workers = 1, .progress = refuse,
  };
  struct rp_sent sent;
  struct rp_spans out = { .count = 0 };

  for (int i = 0; i < 4; i++) {
    const uint64_t count = bad[i][2] || bad[i][3] ? 2 : 1;

    CHECK (rp_copy_spans (&source->disk, &target->disk, bad[i], count, NULL,
                          &sent, &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_differ (&source->disk, &target->disk, bad[i], count, NULL, &out,
                      &fault) == RP_BAD_ARGUMENT);
    checks += 2;
  }
  CHECK (target->writes == 0);
  OK (rp_copy_spans (&source->disk, &target->disk, good, 0, NULL, &sent,
                     &fault));
  target->fail = RP_IO;
  CHECK (rp_copy_spans (&source->disk, &target->disk, good, 1, NULL, &sent,
                        &fault) == RP_IO);
  CHECK (rp_differ (&source->disk, &target->disk, good, 1, NULL, &out,
                    &fault) == RP_IO);
  target->fail = RP_OK;
  target->fail_flush = RP_FAILED;
  CHECK (rp_copy_spans (&source->disk, &target->disk, good, 1, NULL, &sent,
                        &fault) == RP_FAILED);
  target->fail_flush = RP_OK;
  CHECK (rp_copy_spans (&source->disk, &target->disk, good, 1, &stopping,
                        &sent, &fault) == RP_CANCELLED);
  checks += 4;
  free (out.pairs);
  rp_disk_destroy (&source->disk);
  rp_disk_destroy (&target->disk);
}

int
main (void)
{
  for (uint32_t seed = 1; seed <= 5; seed++) {
    try_send (seed, seed % 4);
    try_differ (seed + 100, seed % 4);
  }
  what_cannot_be_is_refused ();
  printf ("copy_spans_threads_test: %" PRIu64 " checks\n", checks);
  return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Writers, readers, committers and a marker at once, each on what it may use.
 *
 * Each writer owns every WRITERS-th grain and writes rising numbers into it, so
 * that a reader can tell a torn grain (two numbers) from a whole one, and one
 * that went back in time.  What was committed is there after a crash.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "journal_model.h"

#define WRITERS   3
#define GRAINS    96u
#define GRAIN     4096u
#define ROUNDS    400

struct shared {
  struct rp_journal *journal;
  struct rp_disk *disk;
  atomic_bool finished;
  _Atomic uint64_t durable[GRAINS];  /* number known to be committed */
};

struct writer {
  struct shared *shared;
  unsigned number;
};

static void
write_number (struct rp_disk *disk, uint64_t grain, uint64_t number)
{
  uint64_t words[GRAIN / 8];
  struct rp_fault fault;

  for (unsigned i = 0; i < GRAIN / 8; i++)
    words[i] = number;
  OK (rp_disk_pwrite (disk, words, GRAIN, grain * GRAIN, &fault));
}

/* The number in a grain; all its words agree. */
static uint64_t
read_number (struct rp_disk *disk, uint64_t grain)
{
  uint64_t words[GRAIN / 8];
  struct rp_fault fault;

  OK (rp_disk_pread (disk, words, GRAIN, grain * GRAIN, &fault));
  for (unsigned i = 1; i < GRAIN / 8; i++)
    CHECK (words[i] == words[0]);
  return words[0];
}

static void *
write_all (void *context)
{
  struct writer *writer = context;
  struct shared *shared = writer->shared;
  uint64_t written[GRAINS] = { 0 };
  uint64_t seed = 77 + writer->number;
  struct rp_fault fault;

  for (uint64_t round = 1; round <= ROUNDS; round++) {
    const uint64_t grain
      = random_below (&seed, GRAINS / WRITERS) * WRITERS + writer->number;

    write_number (shared->disk, grain, round);
    written[grain] = round;
    CHECK (read_number (shared->disk, grain) == round);
    if (random_below (&seed, 12) == 0) {
      OK (rp_disk_flush (shared->disk, &fault));
      for (unsigned g = writer->number; g < GRAINS; g += WRITERS)
        atomic_store (&shared->durable[g], written[g]);
    }
  }
  return NULL;
}

static void *
read_all (void *context)
{
  struct shared *shared = context;
  uint64_t last[GRAINS] = { 0 };
  uint64_t seed = 5;
  struct rp_fault fault;

  while (!atomic_load (&shared->finished)) {
    const uint64_t grain = random_below (&seed, GRAINS);
    const uint64_t number = read_number (shared->disk, grain);
    struct rp_run run;

    CHECK (number >= last[grain]);
    last[grain] = number;
    OK (rp_disk_run (shared->disk, grain * GRAIN, GRAIN, &run, &fault));
  }
  return NULL;
}

static void *
mark_all (void *context)
{
  struct shared *shared = context;
  struct rp_fault fault;

  for (uint64_t id = 1; !atomic_load (&shared->finished); id++) {
    const struct rp_point point = make_point (id);
    struct rp_journal_info info;
    struct rp_point listed;

    OK (rp_journal_mark (shared->journal, &point, &fault));
    OK (rp_journal_commit (shared->journal, &fault));
    OK (rp_journal_point (shared->journal, id - 1, &listed, &fault));
    CHECK (listed.id == id);
    rp_journal_info (shared->journal, &info);
    CHECK (info.point_count == id);
    (void) rp_journal_pending_bytes (shared->journal);
  }
  return NULL;
}

int
main (void)
{
  struct place place;
  struct memory_disk base;
  struct shared shared = { .finished = false };
  struct writer writers[WRITERS];
  pthread_t threads[WRITERS], reader, marker;
  struct rp_file *file;
  struct rp_journal *journal;
  unsigned checks = 0;

  place_make (&place);
  memory_disk_init (&base, GRAINS * GRAIN, 0);
  file = place_create_log (&place, "log", GRAINS * GRAIN, GRAIN, 1 << 19);
  shared.journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  shared.disk = rp_journal_disk (shared.journal);
  for (unsigned i = 0; i < WRITERS; i++) {
    writers[i] = (struct writer) { &shared, i };
    CHECK (!pthread_create (&threads[i], NULL, write_all, &writers[i]));
  }
  CHECK (!pthread_create (&reader, NULL, read_all, &shared));
  CHECK (!pthread_create (&marker, NULL, mark_all, &shared));
  for (unsigned i = 0; i < WRITERS; i++)
    CHECK (!pthread_join (threads[i], NULL));
  atomic_store (&shared.finished, true);
  CHECK (!pthread_join (reader, NULL));
  CHECK (!pthread_join (marker, NULL));

  rp_journal_destroy (shared.journal);     /* as in a crash: no commit */
  rp_file_close (file);
  file = place_open (&place, "log");
  journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  for (unsigned g = 0; g < GRAINS; g++, checks++)
    CHECK (read_number (rp_journal_disk (journal), g)
           >= atomic_load (&shared.durable[g]));
  rp_journal_destroy (journal);
  rp_file_close (file);
  place_remove (&place);
  free (base.bytes);
  printf ("journal_threads_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Writers and readers beside one who marks, checkpoints and destages without
 * pause, in a log so small that writers wait for room all the time.
 *
 * Each writer owns every WRITERS-th grain and writes rising numbers into it: a
 * torn grain has two of them, and one from a slot that was used again too early
 * another grain's.  What a checkpoint shows is no older than what had been
 * committed before it; the base never goes back.  What was committed is there
 * after a crash.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "journal_model.h"

#define WRITERS   3
#define READERS   2
#define GRAINS    96u
#define GRAIN     4096u
#define SEGMENT   65536u
#define LIMIT     (10 * SEGMENT)
#define ROUNDS    1200

/* Bytes in memory, whole grains at a time, like a disk below a page cache. */
struct base {
  struct rp_disk disk;
  pthread_mutex_t lock;
  uint8_t bytes[GRAINS * GRAIN];
};

struct shared {
  struct rp_journal *journal;
  struct rp_disk *disk;
  struct rp_file *file;
  struct base *base;
  atomic_bool finished;
  _Atomic uint64_t durable[GRAINS];  /* number known to be committed */
  uint64_t limit, destages, freed;
};

struct worker {
  struct shared *shared;
  unsigned number;
};

static int
base_pread (struct rp_disk *disk, void *buffer, size_t length, uint64_t offset,
            struct rp_fault *fault)
{
  struct base *base = (struct base *) disk;

  (void) fault;
  pthread_mutex_lock (&base->lock);
  memcpy (buffer, base->bytes + offset, length);
  pthread_mutex_unlock (&base->lock);
  return RP_OK;
}

static int
base_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  struct base *base = (struct base *) disk;

  (void) fault;
  pthread_mutex_lock (&base->lock);
  memcpy (base->bytes + offset, buffer, length);
  pthread_mutex_unlock (&base->lock);
  return RP_OK;
}

static int
base_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  (void) disk;
  (void) fault;
  return RP_OK;
}

static const struct rp_disk_functions base_functions = {
  .name = "base", .pread = base_pread, .pwrite = base_pwrite,
  .flush = base_flush, .run = memory_run,
};

/* A grain holds its own number and the round, over and over. */
static void
write_number (struct rp_disk *disk, uint64_t grain, uint64_t number)
{
  uint64_t words[GRAIN / 8];
  struct rp_fault fault;

  for (unsigned i = 0; i < GRAIN / 8; i++)
    words[i] = number << 8 | grain;
  OK (rp_disk_pwrite (disk, words, GRAIN, grain * GRAIN, &fault));
}

static uint64_t
number_in (const uint64_t *words, uint64_t grain)
{
  for (unsigned i = 1; i < GRAIN / 8; i++)
    CHECK (words[i] == words[0]);
  CHECK (words[0] == 0 || (words[0] & 0xff) == grain);
  return words[0] >> 8;
}

static uint64_t
read_number (struct rp_disk *disk, uint64_t grain)
{
  uint64_t words[GRAIN / 8];
  struct rp_fault fault;

  OK (rp_disk_pread (disk, words, GRAIN, grain * GRAIN, &fault));
  return number_in (words, grain);
}

static void *
write_all (void *context)
{
  struct worker *writer = context;
  struct shared *shared = writer->shared;
  uint64_t written[GRAINS] = { 0 };
  uint64_t seed = 77 + writer->number;
  struct rp_fault fault;

  for (uint64_t round = 1; round <= ROUNDS; round++) {
    const uint64_t grain
      = random_below (&seed, GRAINS / WRITERS) * WRITERS + writer->number;
    const uint64_t half = round << 8 | grain;

    write_number (shared->disk, grain, round);
    written[grain] = round;
    if (random_below (&seed, 4) == 0)  /* part of a grain, the same again */
      OK (rp_disk_pwrite (shared->disk, &half, 8, grain * GRAIN + 512,
                          &fault));
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
  struct worker *reader = context;
  struct shared *shared = reader->shared;
  uint64_t last[GRAINS] = { 0 }, words[4 * GRAIN / 8];
  uint64_t seed = 5 + reader->number;
  struct rp_journal_info info;
  struct rp_fault fault;

  while (!atomic_load (&shared->finished)) {
    const uint64_t grain = random_below (&seed, GRAINS - 3);

    OK (rp_disk_pread (shared->disk, words, 4 * GRAIN, grain * GRAIN, &fault));
    for (unsigned i = 0; i < 4; i++) {
      const uint64_t number = number_in (words + i * GRAIN / 8, grain + i);

      CHECK (number >= last[grain + i]);
      last[grain + i] = number;
    }
    rp_journal_info (shared->journal, &info);
    /* also while a root is written */
    CHECK (shared->limit == 0 || info.used_bytes <= shared->limit);
  }
  return NULL;
}

/* Every grain as a VMDK reader would see it, at least as new as wanted. */
static void
check_shown (struct shared *shared, const uint64_t *wanted)
{
  uint8_t sector[512];
  uint32_t table_at, table[512] = { 0 };
  uint64_t directory, words[GRAIN / 8];
  struct rp_fault fault;

  OK (rp_file_pread_all (shared->file, sector, 512, 0, &fault));
  memcpy (&directory, sector + 56, 8);
  OK (rp_file_pread_all (shared->file, &table_at, 4, directory * 512, &fault));
  if (table_at != 0)
    OK (rp_file_pread_all (shared->file, table, 2048,
                           (uint64_t) table_at * 512, &fault));
  for (uint64_t g = 0; g < GRAINS; g++) {
    if (table[g] == 0)
      OK (base_pread (&shared->base->disk, words, GRAIN, g * GRAIN, &fault));
    else
      OK (rp_file_pread_all (shared->file, words, GRAIN,
                             (uint64_t) table[g] * 512, &fault));
    CHECK (number_in (words, g) >= wanted[g]);
  }
}

static void
one_turn (struct shared *shared, uint64_t id, uint64_t *based)
{
  const struct rp_point point = make_point (id);
  uint64_t wanted[GRAINS];
  struct rp_checkpoint checkpoint;
  struct rp_destage destage;
  struct rp_journal_info info;
  struct rp_fault fault;
  int status;

  for (unsigned g = 0; g < GRAINS; g++)
    wanted[g] = atomic_load (&shared->durable[g]);
  OK (rp_journal_mark (shared->journal, &point, &fault));
  status = rp_journal_checkpoint (shared->journal, &checkpoint, &fault);
  CHECK (status == RP_OK || status == RP_FULL);
  if (status == RP_OK)
    check_shown (shared, wanted);
  OK (rp_journal_destage (shared->journal, id > 2 ? id - 1 : id,
                          &shared->base->disk, NULL, NULL, &destage, &fault));
  rp_journal_info (shared->journal, &info);
  CHECK (info.based_entry == info.horizon_entry);
  OK (rp_journal_destage (shared->journal, id, &shared->base->disk, NULL, NULL,
                          &destage, &fault));
  shared->destages++;
  shared->freed += destage.freed_bytes;
  for (unsigned g = 0; g < GRAINS; g++) {
    const uint64_t number = read_number (&shared->base->disk, g);

    CHECK (number >= based[g] && number >= wanted[g]);
    based[g] = number;
  }
}

static void *
turn_ring (void *context)
{
  struct shared *shared = context;
  uint64_t based[GRAINS] = { 0 };

  for (uint64_t id = 1; !atomic_load (&shared->finished); id++)
    one_turn (shared, id, based);
  return NULL;
}

static void
run (struct shared *shared)
{
  struct worker workers[WRITERS + READERS];
  pthread_t threads[WRITERS + READERS], ring;

  for (unsigned i = 0; i < WRITERS + READERS; i++) {
    workers[i] = (struct worker) { shared, i };
    CHECK (!pthread_create (&threads[i], NULL,
                            i < WRITERS ? write_all : read_all, &workers[i]));
  }
  CHECK (!pthread_create (&ring, NULL, turn_ring, shared));
  for (unsigned i = 0; i < WRITERS; i++)
    CHECK (!pthread_join (threads[i], NULL));
  atomic_store (&shared->finished, true);
  for (unsigned i = WRITERS; i < WRITERS + READERS; i++)
    CHECK (!pthread_join (threads[i], NULL));
  CHECK (!pthread_join (ring, NULL));
}

/* Limit 0: none, and the file grows while segments are given back. */
static uint64_t
test_ring (struct place *place, uint64_t limit)
{
  static struct base base;
  static struct shared shared;
  struct rp_journal *journal;
  struct rp_fault fault;

  memset (&base, 0, sizeof base);
  base.disk.functions = &base_functions;
  base.disk.size_bytes = GRAINS * GRAIN;
  CHECK (!pthread_mutex_init (&base.lock, NULL));
  memset (&shared, 0, sizeof shared);
  shared.base = &base;
  shared.limit = limit;
  shared.file = place_create_log (place, "log", GRAINS * GRAIN, GRAIN,
                                  SEGMENT);
  shared.journal = journal_open (shared.file, &base.disk, RP_JOURNAL_WRITE);
  shared.disk = rp_journal_disk (shared.journal);
  OK (rp_journal_set_limit (shared.journal, limit, true, &fault));
  run (&shared);
  CHECK (shared.destages > 0 && (limit == 0 || shared.freed > 10 * SEGMENT));

  rp_journal_destroy (shared.journal);     /* as in a crash: no commit */
  rp_file_close (shared.file);
  shared.file = place_open (place, "log");
  journal = journal_open (shared.file, &base.disk, RP_JOURNAL_WRITE);
  for (unsigned g = 0; g < GRAINS; g++)
    CHECK (read_number (rp_journal_disk (journal), g)
           >= atomic_load (&shared.durable[g]));
  rp_journal_destroy (journal);
  rp_file_close (shared.file);
  OK (rp_dir_unlink (place->dir, "log", &fault));
  CHECK (!pthread_mutex_destroy (&base.lock));
  return shared.destages;
}

int
main (void)
{
  struct place place;
  uint64_t destages;

  place_make (&place);
  destages = test_ring (&place, LIMIT);
  destages += test_ring (&place, 0);
  place_remove (&place);
  printf ("journal_ring_threads_test: %u checks, %llu destages\n", 2 * GRAINS,
          (unsigned long long) destages);
  return EXIT_SUCCESS;
}

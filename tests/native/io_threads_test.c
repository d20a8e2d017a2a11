/* SPDX-License-Identifier: Apache-2.0 */
/* Any number of threads on one io: files of their own, one file that all
 * write, names made and removed, and a sweep meanwhile. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "simulate.h"

#define THREADS 4
#define ROUNDS 60u
#define BLOCK 1024u

struct work {
  struct rp_dir  *dir;
  struct rp_file *common;
  unsigned        number;
};

static void *
write_and_sync (void *context)
{
  const struct work *work = context;
  struct rp_fault fault;
  struct rp_file *own;
  struct rp_stat stat;
  uint8_t bytes[BLOCK], back[BLOCK];
  char name[16];

  memset (bytes, 'a' + (int) work->number, sizeof bytes);
  snprintf (name, sizeof name, "own%u", work->number);
  OK (rp_file_open (work->dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &own,
                    &fault));
  OK (rp_dir_sync (work->dir, &fault));
  for (uint64_t i = 0; i < ROUNDS; i++) {
    const uint64_t at = (i * THREADS + work->number) * BLOCK;

    OK (rp_file_pwrite (own, bytes, BLOCK, i * BLOCK, &fault));
    OK (rp_file_pwrite (work->common, bytes, BLOCK, at, &fault));
    OK (rp_file_sync (work->common, &fault));
    rp_file_note (work->common, RP_NOTE_ACKNOWLEDGE, at, BLOCK);
    OK (rp_file_pread_all (work->common, back, BLOCK, at, &fault));
    CHECK (memcmp (back, bytes, BLOCK) == 0);
    if (i % 16 == 0) {
      OK (rp_file_sync (own, &fault));
      rp_file_note (own, RP_NOTE_ACKNOWLEDGE, 0, (i + 1) * BLOCK);
      snprintf (name, sizeof name, "temp%u", work->number);
      OK (rp_dir_replace (work->dir, name, bytes, BLOCK, 0600, &fault));
      OK (rp_dir_stat (work->dir, name, &stat, &fault));
      OK (rp_dir_unlink (work->dir, name, &fault));
    }
  }
  rp_file_close (own);
  return NULL;
}

static void
run_threads (struct rp_io *io, const char *path,
             void (*meanwhile) (struct rp_io *simulated),
             struct rp_io *simulated)
{
  pthread_t threads[THREADS];
  struct work work[THREADS];
  struct rp_fault fault;
  struct rp_file *common;
  struct rp_dir *dir;

  OK (rp_dir_open (io, path, &dir, &fault));
  OK (rp_file_open (dir, "common", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &common, &fault));
  OK (rp_dir_sync (dir, &fault));
  for (unsigned i = 0; i < THREADS; i++) {
    work[i] = (struct work) { .dir = dir, .common = common, .number = i };
    CHECK (pthread_create (&threads[i], NULL, write_and_sync, &work[i]) == 0);
  }
  if (meanwhile)
    meanwhile (simulated);
  for (unsigned i = 0; i < THREADS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  for (unsigned i = 0; i < THREADS; i++) {
    char name[16];

    snprintf (name, sizeof name, "own%u", i);
    OK (rp_dir_unlink (dir, name, &fault));
  }
  rp_file_close (common);
  OK (rp_dir_unlink (dir, "common", &fault));
  rp_dir_close (dir);
}

static int
look_at_state (void *context, struct rp_io *io,
               const struct rp_sim_state *state, struct rp_fault *found)
{
  struct rp_fault fault;
  struct rp_dir *dir;

  (void) context;
  (void) state;
  (void) found;
  OK (rp_dir_open (io, "/", &dir, &fault));
  OK (rp_dir_replace (dir, "recovered", "x", 1, 0600, &fault));
  rp_dir_close (dir);
  return RP_OK;
}

static void
sweep_meanwhile (struct rp_io *io)
{
  const struct rp_sim_options options = {
    .budget = 300, .seed = 1, .flags = RP_SIM_TEAR | RP_SIM_GARBAGE,
  };
  struct rp_sim_counts counts;
  struct rp_fault fault;

  for (unsigned i = 0; i < 5; i++)
    OK (rp_sim_crash_states (io, &options, look_at_state, NULL, &counts, NULL,
                             &fault));
}

int
main (void)
{
  const struct rp_fault_plan never = { .call = 0, .kinds = RP_FAULT_ANY };
  struct rp_io *base, *bad, *record, *order;
  struct rp_fault fault;

  OK (rp_io_simulate_create (&base, &fault));
  OK (rp_io_fault_create (base, &never, &bad, &fault));
  OK (rp_io_record_create (bad, &record, &fault));
  OK (rp_io_order_create (record, &order, &fault));
  run_threads (order, "/", sweep_meanwhile, base);
  CHECK (rp_io_fault_calls (bad) > THREADS * ROUNDS * 3);
  CHECK (rp_io_record_count (record) > THREADS * ROUNDS * 3);
  rp_io_destroy (order);
  rp_io_destroy (record);
  rp_io_destroy (bad);
  rp_io_destroy (base);

  OK (rp_io_posix_create (&base, &fault));
  OK (rp_io_order_create (base, &order, &fault));
  run_threads (order, ".", NULL, NULL);
  rp_io_destroy (order);
  rp_io_destroy (base);
  printf ("io_threads_test: %u writes\n", 2 * 2 * THREADS * ROUNDS);
  return EXIT_SUCCESS;
}

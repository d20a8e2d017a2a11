/* SPDX-License-Identifier: Apache-2.0 */
/* Readers and a writer of a disk that is exchanged under them, again and again. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "check.h"
#include "memory_disk.h"
#include "swap.h"

#define SIZE    65536u
#define READERS 4
#define TURNS   500

static uint64_t checks;

struct table {
  struct rp_disk  *swap;
  _Atomic bool     over;
  _Atomic uint64_t reads;
};

/* Every disk holds the same bytes, and is freed when it has been taken out. */
static void *
reader (void *context)
{
  struct table *table = context;
  struct rp_fault fault;
  uint8_t bytes[4096];

  while (!table->over) {
    struct rp_run run;

    OK (rp_disk_pread (table->swap, bytes, sizeof bytes, 8192, &fault));
    for (size_t i = 0; i < sizeof bytes; i++)
      CHECK (bytes[i] == 7);
    OK (rp_disk_run (table->swap, 0, SIZE, &run, &fault));
    CHECK (run.kind == RP_RUN_DATA);
    table->reads++;
  }
  return NULL;
}

static void *
writer (void *context)
{
  struct table *table = context;
  struct rp_fault fault;
  uint8_t bytes[512];

  memset (bytes, 7, sizeof bytes);
  while (!table->over) {
    OK (rp_disk_pwrite (table->swap, bytes, sizeof bytes, 8192, &fault));
    OK (rp_disk_flush (table->swap, &fault));
  }
  return NULL;
}

static struct memory_disk *
filled (void)
{
  struct memory_disk *memory = memory_disk_create (SIZE);

  memset (memory->bytes, 7, SIZE);
  return memory;
}

static void
test_an_exchange_leaves_nobody_in_the_old_disk (void)
{
  struct memory_disk *memory = filled ();
  struct table table = { .swap = NULL };
  pthread_t threads[READERS + 1];
  struct rp_fault fault;

  OK (rp_swap_create (&memory->disk, &table.swap, &fault));
  for (int i = 0; i < READERS; i++)
    CHECK (pthread_create (&threads[i], NULL, reader, &table) == 0);
  CHECK (pthread_create (&threads[READERS], NULL, writer, &table) == 0);
  for (int turn = 0; turn < TURNS || table.reads < 100; turn++) {
    struct memory_disk *next = filled ();

    OK (rp_swap_put (table.swap, &next->disk, &fault));
    rp_disk_destroy (&memory->disk);
    memory = next;
    checks++;
  }
  table.over = true;
  for (int i = 0; i <= READERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  rp_disk_destroy (table.swap);
  rp_disk_destroy (&memory->disk);
}

static void
test_what_does_not_fit_is_refused (void)
{
  struct memory_disk *memory = filled ();
  struct memory_disk *other = memory_disk_create (SIZE * 2);
  struct rp_disk *swap;
  struct rp_fault fault;
  uint8_t byte;

  OK (rp_swap_create (&memory->disk, &swap, &fault));
  CHECK (rp_swap_put (swap, &other->disk, &fault) == RP_BAD_ARGUMENT);
  other->disk.size_bytes = SIZE;
  other->disk.read_only = true;
  CHECK (rp_swap_put (swap, &other->disk, &fault) == RP_BAD_ARGUMENT);
  OK (rp_disk_pread (swap, &byte, 1, 0, &fault));
  CHECK (byte == 7);
  other->disk.read_only = false;
  OK (rp_swap_put (swap, &other->disk, &fault));
  OK (rp_disk_zero (swap, 512, 0, true, &fault));
  OK (rp_disk_flush (swap, &fault));
  OK (rp_disk_pread (swap, &byte, 1, SIZE - 1, &fault));
  CHECK (byte == 0 && other->writes == 1 && other->flushes == 1);
  other->fail = RP_IO;
  CHECK (rp_disk_pread (swap, &byte, 1, 0, &fault) == RP_IO);
  rp_disk_destroy (swap);
  rp_disk_destroy (&memory->disk);
  rp_disk_destroy (&other->disk);
  checks += 8;
}

static void *
patient (void *context)
{
  struct rp_fault fault;
  uint8_t byte = 0;

  OK (rp_disk_pread (context, &byte, 1, 0, &fault));
  CHECK (byte == 7);
  return NULL;
}

/* Who reads a stale disk gets what the next one says, or is told in the end. */
static void
test_a_patient_one_waits_for_the_next_disk (void)
{
  struct memory_disk *memory = filled (), *next = filled ();
  struct rp_disk *swap;
  struct rp_fault fault;
  struct rp_run run;
  pthread_t thread;
  uint8_t byte;

  OK (rp_swap_create (&memory->disk, &swap, &fault));
  CHECK (!rp_swap_await (swap, 60000));        /* nobody is patient */
  memory->fail = RP_STATE;
  CHECK (rp_disk_pread (swap, &byte, 1, 0, &fault) == RP_STATE);
  rp_swap_be_patient (swap, 60000);
  CHECK (!rp_swap_await (swap, 1));            /* and nobody waits */
  CHECK (pthread_create (&thread, NULL, patient, swap) == 0);
  while (!rp_swap_await (swap, 10000))
    ;
  OK (rp_swap_put (swap, &next->disk, &fault));
  CHECK (!rp_swap_await (swap, 1));
  CHECK (pthread_join (thread, NULL) == 0);
  next->fail = RP_IO;                          /* that is no matter of time */
  CHECK (rp_disk_pread (swap, &byte, 1, 0, &fault) == RP_IO);
  next->fail = RP_STATE;
  rp_swap_be_patient (swap, 1);
  CHECK (rp_disk_pread (swap, &byte, 1, 0, &fault) == RP_STATE);
  CHECK (rp_disk_run (swap, 0, SIZE, &run, &fault) == RP_STATE);
  rp_disk_destroy (swap);
  rp_disk_destroy (&memory->disk);
  rp_disk_destroy (&next->disk);
  checks += 8;
}

int
main (void)
{
  test_a_patient_one_waits_for_the_next_disk ();
  test_an_exchange_leaves_nobody_in_the_old_disk ();
  test_what_does_not_fit_is_refused ();
  printf ("swap_threads_test: %llu checks\n", (unsigned long long) checks);
  return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Eight writers against holds, releases and cuts. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "check.h"
#include "gate.h"

enum { WRITERS = 8, HOLDS = 4000 };

static struct rp_gate *gate;
static atomic_uint inside, refused, finished;
static uint64_t plain[WRITERS];       /* each written inside only */

static void *
writer (void *argument)
{
  uint64_t *mine = argument;

  while (!finished) {
    if (rp_gate_enter (gate, NULL) != RP_OK) {
      refused++;
      usleep (50);
      continue;
    }
    inside++;
    (*mine)++;
    inside--;
    rp_gate_leave (gate);
  }
  return NULL;
}

static uint64_t
sum (void)
{
  uint64_t total = 0;

  for (int i = 0; i < WRITERS; i++)
    total += plain[i];                /* the gate orders this; TSan watches */
  return total;
}

/* After a hold nobody is inside, and nothing more is written. */
static unsigned
hold_means_hold (void)
{
  unsigned checks = 0;

  for (int round = 0; round < HOLDS; round++) {
    uint64_t before;

    rp_gate_hold (gate);
    CHECK (inside == 0);
    CHECK (rp_gate_is_held (gate));
    before = sum ();
    if (round % 16 == 0)
      usleep (100);
    CHECK (sum () == before);
    CHECK (inside == 0);
    rp_gate_release (gate);
    checks += 4;
  }
  return checks;
}

static void *
holder (void *unused)
{
  (void) unused;
  for (int round = 0; round < HOLDS; round++)
    rp_gate_hold (gate);
  return NULL;
}

/* A release that overtakes a hold must not leave it waiting for ever. */
static void
hold_against_release (void)
{
  pthread_t thread;

  CHECK (pthread_create (&thread, NULL, holder, NULL) == 0);
  for (int round = 0; round < HOLDS; round++)
    rp_gate_release (gate);
  CHECK (pthread_join (thread, NULL) == 0);
  rp_gate_release (gate);
  CHECK (!rp_gate_is_held (gate));
}

int
main (void)
{
  pthread_t threads[WRITERS];
  struct rp_fault fault;
  unsigned checks;

  OK (rp_gate_create (&gate, &fault));
  for (int i = 0; i < WRITERS; i++)
    CHECK (pthread_create (&threads[i], NULL, writer, &plain[i]) == 0);
  checks = hold_means_hold ();
  hold_against_release ();
  finished = 1;
  for (int i = 0; i < WRITERS; i++)
    CHECK (pthread_join (threads[i], NULL) == 0);
  CHECK (refused > 0);
  rp_gate_hold (gate);
  CHECK (rp_gate_enter (gate, &fault) == RP_HELD);
  CHECK (fault.status == RP_HELD);
  rp_gate_release (gate);
  OK (rp_gate_enter (gate, &fault));
  rp_gate_leave (gate);
  rp_gate_destroy (gate);
  rp_gate_destroy (NULL);
  printf ("gate_threads_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

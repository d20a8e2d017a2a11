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

/* A cut in steps: writers wait, and are not refused, from begin to end. */
static unsigned
cut_in_steps (void)
{
  struct rp_fault fault;
  unsigned checks = 0;

  for (int round = 0; round < HOLDS / 4; round++) {
    const unsigned refused_before = refused;
    uint64_t before;

    OK (rp_gate_begin (gate, 0, &fault));
    CHECK (inside == 0);
    before = sum ();
    if (round % 16 == 0)
      usleep (100);
    CHECK (sum () == before);
    CHECK (rp_gate_end (gate) > 0);
    CHECK (rp_gate_end (gate) == 0);
    CHECK (refused == refused_before);
    checks += 5;
  }
  return checks;
}

static void *
come_late (void *argument)
{
  atomic_uint *come = argument;
  struct rp_fault fault;

  *come = 1;
  OK (rp_gate_enter (gate, &fault));
  *come = 2;
  rp_gate_leave (gate);
  return NULL;
}

/* The writers above mostly wait within the gate when a cut ends, where an
 * alarm keeps them whatever the gate's state is: this one comes afterwards.
 */
static void
nobody_comes_in_after_a_cut (void)
{
  struct rp_fault fault;
  pthread_t thread;
  atomic_uint come = 0;

  rp_gate_alarm (gate);
  OK (rp_gate_begin (gate, 0, &fault));
  rp_gate_end (gate);
  CHECK (pthread_create (&thread, NULL, come_late, &come) == 0);
  while (come == 0)
    usleep (100);
  for (int i = 0; i < 50 && come == 1; i++)
    usleep (1000);
  CHECK (come == 1);
  rp_gate_heed (gate);
  CHECK (pthread_join (thread, NULL) == 0);
}

/* An alarm keeps newcomers out until it is heeded, without refusing them. */
static unsigned
alarms (void)
{
  struct rp_fault fault;
  unsigned checks = 0;

  rp_gate_alarm (gate);
  CHECK (!rp_gate_is_alarmed (gate));         /* nobody watches */
  rp_gate_watch (gate, true);
  nobody_comes_in_after_a_cut ();
  for (int round = 0; round < HOLDS / 4; round++) {
    const unsigned refused_before = refused;
    uint64_t before;

    rp_gate_alarm (gate);
    CHECK (rp_gate_is_alarmed (gate));
    OK (rp_gate_begin (gate, 0, &fault));     /* a cut is possible, */
    before = sum ();
    rp_gate_end (gate);                       /* and does not open it */
    if (round % 16 == 0)
      usleep (100);
    CHECK (sum () == before);
    CHECK (refused == refused_before);
    if (round % 2)
      rp_gate_heed (gate);
    else {
      rp_gate_watch (gate, false);
      rp_gate_watch (gate, true);
    }
    CHECK (!rp_gate_is_alarmed (gate));
    checks += 4;
  }
  rp_gate_hold (gate);
  rp_gate_alarm (gate);
  CHECK (!rp_gate_is_alarmed (gate));         /* it is closed anyway */
  rp_gate_release (gate);
  rp_gate_watch (gate, false);
  return checks + 3;
}

static void *
begin_in_vain (void *unused)
{
  struct rp_fault fault;

  (void) unused;
  CHECK (rp_gate_begin (gate, 5, &fault) == RP_STATE);
  return NULL;
}

/* Who begins a cut gives up where a writer stays inside, and lets others in. */
static void
begin_gives_up (void)
{
  struct rp_fault fault;
  pthread_t thread;

  OK (rp_gate_enter (gate, &fault));
  CHECK (pthread_create (&thread, NULL, begin_in_vain, NULL) == 0);
  CHECK (pthread_join (thread, NULL) == 0);
  rp_gate_leave (gate);
  OK (rp_gate_enter (gate, &fault));
  rp_gate_leave (gate);
  OK (rp_gate_begin (gate, 0, &fault));
  CHECK (pthread_create (&thread, NULL, begin_in_vain, NULL) == 0);
  CHECK (pthread_join (thread, NULL) == 0);
  rp_gate_end (gate);
  CHECK (rp_gate_mark (gate, NULL, 0, NULL, &fault) == RP_STATE);
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
  checks += cut_in_steps () + alarms ();
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
  begin_gives_up ();
  rp_gate_destroy (gate);
  rp_gate_destroy (NULL);
  printf ("gate_threads_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

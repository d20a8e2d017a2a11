/* SPDX-License-Identifier: Apache-2.0 */
/* Holds while sixteen writers are at it: no acknowledgement is late, none lost.
 *
 * A writer passes the gate twice, as the NBD server does: once to apply a
 * write, once to acknowledge it, and waits for a sync in between.  All numbers
 * are plain ones, written inside only, so the thread sanitizer watches, too.
 *
 *   late   an acknowledgement or an application after a hold has returned
 *   lost   something acknowledged that was not applied when it returned
 *
 * First against the gate alone; then with a journal, whose grains are read
 * while the gate is closed.
 *
 * Arguments: holds of the gate alone (default 1200), and with a journal (20).
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "gate.h"
#include "journal_model.h"

#define WRITERS    16
#define GRAIN      4096u
#define CAPACITY   (WRITERS * GRAIN)
#define SEGMENT    (UINT64_C (1) << 20)
#define BUCKETS    640u          /* of times: 16 for each power of two */

struct writer {
  pthread_t  thread;
  uint64_t   applied, acknowledged;    /* numbers of writes; inside only */
  uint64_t   unanswered;         /* applied, and then the gate was closed */
  uint32_t   index;
  uint8_t    room[64];           /* no line of memory is shared by two */
};

struct hall {
  struct rp_gate    *gate;
  struct rp_journal *journal;    /* NULL: the gate alone */
  struct writer      writers[WRITERS];
  atomic_bool        finished;
  _Atomic uint64_t   round;      /* one more at each release */
  _Atomic uint64_t   synced;     /* the round whose writes may be answered */
  _Atomic uint32_t   in_flight;  /* applied, not acknowledged */
  uint64_t           in_flight_sum, checks;
  uint64_t           times[BUCKETS];
};

static void
wait_for_release (const struct hall *hall, uint64_t round)
{
  while (hall->round == round && !hall->finished)
    sched_yield ();
}

/* Now and then somebody is caught inside. */
static void
linger (const struct writer *writer, uint64_t number)
{
  if ((number + writer->index) % 64 == 0)
    sched_yield ();
}

static int
apply (const struct hall *hall, struct writer *writer, uint64_t number)
{
  uint8_t grain[GRAIN];
  struct rp_fault fault;

  linger (writer, number);
  writer->applied = number;
  if (!hall->journal)
    return RP_OK;
  memset (grain, (int) number, sizeof grain);
  memcpy (grain, &number, sizeof number);
  return rp_disk_pwrite (rp_journal_disk (hall->journal), grain, GRAIN,
                         writer->index * GRAIN, &fault);
}

/* What a client waits for between the two passages: all who wait are woken at
 * once, and then race with the hold. */
static void
wait_for_sync (const struct hall *hall, uint64_t round)
{
  struct rp_fault fault;

  if (hall->journal)
    OK (rp_journal_commit (hall->journal, &fault));
  while (hall->synced <= round && !hall->finished)
    sched_yield ();
}

struct task {
  struct hall   *hall;
  struct writer *writer;
};

static void *
write_on (void *argument)
{
  const struct task *task = argument;
  struct hall *hall = task->hall;
  struct writer *writer = task->writer;
  struct rp_fault fault;
  uint64_t number = 0;

  while (!hall->finished) {
    uint64_t round = hall->round;

    if (rp_gate_enter (hall->gate, NULL) != RP_OK) {
      wait_for_release (hall, round);
      continue;
    }
    CHECK (apply (hall, writer, ++number) == RP_OK);
    hall->in_flight++;
    rp_gate_leave (hall->gate);
    wait_for_sync (hall, round);
    round = hall->round;
    if (rp_gate_enter (hall->gate, &fault) == RP_OK) {
      linger (writer, number + 32);
      writer->acknowledged = number;
      hall->in_flight--;
      rp_gate_leave (hall->gate);
      sched_yield ();            /* the next one is for the next round */
      continue;
    }
    CHECK (fault.status == RP_HELD);
    writer->unanswered++;        /* the client hears an error */
    hall->in_flight--;
    wait_for_release (hall, round);
  }
  return NULL;
}

/* ---- the holder ---- */

static uint64_t
now_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

static uint32_t
bucket_of (uint64_t ns)
{
  uint32_t power = 4;

  while (ns >> (power + 1) != 0)
    power++;
  return ns < 16 ? 0 : (power - 4) * 16 + (uint32_t) (ns >> (power - 4)) % 16;
}

static double
bucket_us (uint32_t bucket)
{
  return (double) ((UINT64_C (16) + bucket % 16) << bucket / 16) / 1000;
}

static double
percentile (const struct hall *hall, uint64_t holds, double share)
{
  const uint64_t wanted = (uint64_t) ((double) holds * share);
  uint64_t seen = hall->times[0];
  uint32_t bucket = 0;

  while (bucket < BUCKETS - 1 && seen < wanted)
    seen += hall->times[++bucket];
  return bucket_us (bucket);
}

/* The last number of each writer that the journal has, committed or not. */
static void
read_journal (const struct hall *hall, uint64_t numbers[WRITERS])
{
  uint8_t bytes[CAPACITY];
  struct rp_fault fault;

  OK (rp_disk_pread (rp_journal_disk (hall->journal), bytes, CAPACITY, 0,
                     &fault));
  for (int i = 0; i < WRITERS; i++)
    memcpy (&numbers[i], bytes + (size_t) i * GRAIN, sizeof numbers[i]);
}

static void
hold_once (struct hall *hall, uint64_t round)
{
  uint64_t applied[WRITERS], acknowledged[WRITERS], numbers[WRITERS];
  uint64_t began, took;

  while (hall->in_flight < WRITERS)
    sched_yield ();
  hall->synced = round + 1;
  for (uint64_t i = round % 5; i-- > 1;)
    sched_yield ();              /* some are answered before the hold */
  began = now_ns ();
  rp_gate_hold (hall->gate);
  took = now_ns () - began;
  hall->times[bucket_of (took)]++;
  hall->in_flight_sum += hall->in_flight;
  for (int i = 0; i < WRITERS; i++) {
    applied[i] = hall->writers[i].applied;
    acknowledged[i] = hall->writers[i].acknowledged;
    CHECK (acknowledged[i] <= applied[i]);
  }
  if (hall->journal) {
    read_journal (hall, numbers);
    for (int i = 0; i < WRITERS; i++)
      CHECK (numbers[i] == applied[i] && acknowledged[i] <= numbers[i]);
  }
  for (int i = 0; i < (round % 16 == 0 ? 40 : 1); i++)
    sched_yield ();              /* whoever is late may be so now */
  for (int i = 0; i < WRITERS; i++) {
    CHECK (hall->writers[i].applied == applied[i]);
    CHECK (hall->writers[i].acknowledged == acknowledged[i]);
  }
  CHECK (rp_gate_is_held (hall->gate));
  hall->checks++;
  rp_gate_release (hall->gate);
  hall->round++;                 /* who was refused before may come again */
}

static void
run (struct hall *hall, uint64_t holds)
{
  struct task tasks[WRITERS];
  uint64_t applied = 0, acknowledged = 0, unanswered = 0;
  struct rp_fault fault;

  OK (rp_gate_create (&hall->gate, &fault));
  for (uint32_t i = 0; i < WRITERS; i++) {
    hall->writers[i].index = i;
    tasks[i] = (struct task) { hall, &hall->writers[i] };
    CHECK (pthread_create (&hall->writers[i].thread, NULL, write_on,
                           &tasks[i]) == 0);
  }
  for (uint64_t round = 0; round < holds; round++)
    hold_once (hall, round);
  hall->finished = true;
  for (int i = 0; i < WRITERS; i++)
    CHECK (pthread_join (hall->writers[i].thread, NULL) == 0);
  for (int i = 0; i < WRITERS; i++) {
    applied += hall->writers[i].applied;
    acknowledged += hall->writers[i].acknowledged;
    unanswered += hall->writers[i].unanswered;
    CHECK (hall->writers[i].acknowledged <= hall->writers[i].applied);
  }
  CHECK (holds < 100 || unanswered > 0);    /* some were caught in flight */
  printf ("%s: %llu holds, %llu writes, %llu of them caught in flight (%.1f "
          "at a hold), 0 late, 0 lost; a hold takes p50 %.1f, p99 %.1f, max "
          "%.1f us\n", hall->journal ? "with a journal" : "the gate",
          (unsigned long long) holds, (unsigned long long) applied,
          (unsigned long long) unanswered,
          (double) hall->in_flight_sum / (double) (holds ? holds : 1),
          percentile (hall, holds, 0.5), percentile (hall, holds, 0.99),
          percentile (hall, holds, 1));
  rp_gate_destroy (hall->gate);
}

/* What was acknowledged is there when the log is opened again. */
static void
run_with_journal (struct hall *hall, uint64_t holds)
{
  struct memory_disk base;
  struct place place;
  struct rp_file *file;
  uint64_t numbers[WRITERS];

  memory_disk_init (&base, CAPACITY, 0);
  place_make (&place);
  file = place_create_log (&place, "log", CAPACITY, GRAIN, SEGMENT);
  hall->journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  run (hall, holds);
  rp_journal_destroy (hall->journal);
  hall->journal = journal_open (file, &base.disk, RP_JOURNAL_WRITE);
  read_journal (hall, numbers);
  for (int i = 0; i < WRITERS; i++)
    CHECK (numbers[i] >= hall->writers[i].acknowledged
           && numbers[i] <= hall->writers[i].applied);
  rp_journal_destroy (hall->journal);
  rp_file_close (file);
  place_remove (&place);
  free (base.bytes);
}

int
main (int argc, char **argv)
{
  const uint64_t holds = argc > 1 ? strtoull (argv[1], NULL, 10) : 1200;
  const uint64_t logged = argc > 2 ? strtoull (argv[2], NULL, 10) : 20;
  static struct hall gate, journal;

  run (&gate, holds);
  run_with_journal (&journal, logged);
  printf ("hold_threads_test: %llu checks\n",
          (unsigned long long) (gate.checks + journal.checks));
  return EXIT_SUCCESS;
}

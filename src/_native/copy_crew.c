/* SPDX-License-Identifier: Apache-2.0 */
/* Workers that walk over a disk together. */
#include "copy_crew.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define TELL_NANOSECONDS 50000000L   /* between two calls of progress */

struct worker {
  pthread_t           thread;
  struct rp_crew_slot slot;
};

/* ---- under lock ---- */

static void
fail_locked (struct rp_crew *crew, int status, const struct rp_fault *fault)
{
  if (crew->status == RP_OK) {
    crew->status = status;
    crew->fault = *fault;
  }
  pthread_cond_broadcast (&crew->turned);
}

static bool
take_locked (struct rp_crew *crew, struct rp_crew_slot *slot)
{
  const uint64_t from = crew->cursor;
  struct rp_fault fault;
  bool more = true;
  int status;

  if (crew->status != RP_OK || crew->no_more)
    return false;
  status = crew->functions->next (crew, slot, from, &more, &fault);
  if (status != RP_OK) {
    fail_locked (crew, status, &fault);
    return false;
  }
  if (!more) {
    crew->no_more = true;
    crew->done_bytes += crew->stop - from;
    return false;
  }
  RP_CHECK (slot->start >= from && slot->stop > slot->start);
  crew->done_bytes += slot->start - from;
  crew->cursor = slot->stop;
  slot->ticket = crew->tickets++;
  return true;
}

/* ---- workers ---- */

/* One piece; false at the end. */
static bool
work_once (struct rp_crew *crew, struct rp_crew_slot *slot)
{
  struct rp_fault fault;
  int status;
  bool taken;

  pthread_mutex_lock (&crew->lock);
  taken = take_locked (crew, slot);
  pthread_mutex_unlock (&crew->lock);
  if (!taken)
    return false;
  status = crew->functions->work (crew, slot, &fault);
  pthread_mutex_lock (&crew->lock);
  if (status == RP_OK)
    crew->done_bytes += slot->stop - slot->start;
  else
    fail_locked (crew, status, &fault);
  pthread_mutex_unlock (&crew->lock);
  return status == RP_OK;
}

static void
finish (struct rp_crew *crew)
{
  struct rp_fault fault;
  int status;

  pthread_mutex_lock (&crew->lock);
  status = crew->status;
  pthread_mutex_unlock (&crew->lock);
  if (!crew->functions->finish || status != RP_OK)
    return;
  status = crew->functions->finish (crew, &fault);
  if (status != RP_OK) {
    pthread_mutex_lock (&crew->lock);
    fail_locked (crew, status, &fault);
    pthread_mutex_unlock (&crew->lock);
  }
}

static void *
work (void *context)
{
  struct rp_crew_slot *slot = context;
  struct rp_crew *crew = slot->crew;
  bool last;

  while (work_once (crew, slot))
    ;
  pthread_mutex_lock (&crew->lock);
  last = --crew->running == 0;
  pthread_mutex_unlock (&crew->lock);
  if (last) {
    finish (crew);
    pthread_mutex_lock (&crew->lock);
    crew->over = true;
    pthread_cond_signal (&crew->ended);
    pthread_mutex_unlock (&crew->lock);
  }
  return NULL;
}

bool
rp_crew_turn (struct rp_crew_slot *slot)
{
  struct rp_crew *crew = slot->crew;
  bool mine;

  pthread_mutex_lock (&crew->lock);
  while (crew->turn != slot->ticket && crew->status == RP_OK)
    pthread_cond_wait (&crew->turned, &crew->lock);
  mine = crew->status == RP_OK;
  pthread_mutex_unlock (&crew->lock);
  return mine;
}

void
rp_crew_turn_over (struct rp_crew_slot *slot)
{
  struct rp_crew *crew = slot->crew;

  pthread_mutex_lock (&crew->lock);
  crew->turn = slot->ticket + 1;
  pthread_cond_broadcast (&crew->turned);
  pthread_mutex_unlock (&crew->lock);
}

/* ---- the calling thread ---- */

static void
tell (struct rp_crew *crew, uint64_t done)
{
  struct rp_fault fault;

  if (!crew->options || !crew->options->progress
      || crew->options->progress (crew->options->context, done))
    return;
  rp_fail (&fault, RP_CANCELLED, done, "after %" PRIu64 " of %" PRIu64
           " bytes", done, crew->stop);
  pthread_mutex_lock (&crew->lock);
  fail_locked (crew, RP_CANCELLED, &fault);
  pthread_mutex_unlock (&crew->lock);
}

static void
run_alone (struct rp_crew *crew, struct rp_crew_slot *slot)
{
  while (work_once (crew, slot))
    tell (crew, crew->done_bytes);
  finish (crew);
}

static void
wait_and_tell (struct rp_crew *crew, struct worker *workers, uint32_t started)
{
  struct timespec until;
  uint64_t done;

  pthread_mutex_lock (&crew->lock);
  while (!crew->over) {
    clock_gettime (CLOCK_MONOTONIC, &until);
    until.tv_nsec += TELL_NANOSECONDS;
    if (until.tv_nsec >= 1000000000L) {
      until.tv_nsec -= 1000000000L;
      until.tv_sec++;
    }
    while (!crew->over)
      if (pthread_cond_timedwait (&crew->ended, &crew->lock, &until) != 0)
        break;
    if (crew->over)
      break;
    done = crew->done_bytes;
    pthread_mutex_unlock (&crew->lock);
    tell (crew, done);
    pthread_mutex_lock (&crew->lock);
  }
  pthread_mutex_unlock (&crew->lock);
  for (uint32_t i = 0; i < started; i++)
    pthread_join (workers[i].thread, NULL);
}

/* Returns how many were started: a system may give fewer than asked for.
 * Signals are for the caller's threads. */
static uint32_t
start (struct rp_crew *crew, struct worker *workers, uint32_t count)
{
  sigset_t all, before;
  uint32_t started = 0;

  sigfillset (&all);
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &all, &before) == 0);
  pthread_mutex_lock (&crew->lock);     /* none ends before all are counted */
  while (started < count
         && pthread_create (&workers[started].thread, NULL, work,
                            &workers[started].slot) == 0)
    started++;
  crew->running = started;
  pthread_mutex_unlock (&crew->lock);
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &before, NULL) == 0);
  return started;
}

static uint32_t
count_workers (const struct rp_crew *crew)
{
  const uint64_t pieces = crew->stop / crew->piece_bytes + 1;
  const uint64_t slots = rp_crew_memory (crew->options) / crew->slot_bytes;
  uint64_t count = crew->options ? crew->options->workers : 0;
  const long cores = sysconf (_SC_NPROCESSORS_ONLN);

  if (count == 0) {
    count = crew->serial || cores < 1 ? 1 : (uint64_t) cores;
    /* Who waits for its turn leaves a core idle: random data is compressed in
     * a twentieth of the time of the text before it. */
    if (crew->ordered && !crew->serial)
      count += count / 2 + 1;
  }
  if (count > pieces)
    count = pieces;
  if (count > slots)
    count = slots;
  if (count > RP_COPY_WORKERS_MAX)
    count = RP_COPY_WORKERS_MAX;
  return count ? (uint32_t) count : 1;
}

static void
crew_init (struct rp_crew *crew)
{
  pthread_condattr_t attributes;

  pthread_condattr_init (&attributes);
  pthread_condattr_setclock (&attributes, CLOCK_MONOTONIC);
  pthread_mutex_init (&crew->lock, NULL);
  pthread_cond_init (&crew->turned, NULL);
  pthread_cond_init (&crew->ended, &attributes);
  pthread_condattr_destroy (&attributes);
  crew->cursor = crew->tickets = crew->turn = crew->done_bytes = 0;
  crew->running = 0;
  crew->no_more = crew->over = false;
  crew->status = RP_OK;
}

int
rp_crew_run (struct rp_crew *crew, struct rp_fault *fault)
{
  const uint32_t count = count_workers (crew);
  struct worker *workers = calloc (count, sizeof *workers);
  int status = RP_OK;

  if (!workers)
    return rp_fail (fault, RP_NO_MEMORY, 0, "starting to copy");
  crew_init (crew);
  for (uint32_t i = 0; status == RP_OK && i < count; i++) {
    workers[i].slot.crew = crew;
    status = crew->functions->slot_create (crew, &workers[i].slot.own, fault);
  }
  if (status == RP_OK) {
    const uint32_t started = count > 1 ? start (crew, workers, count) : 0;

    if (started > 0)
      wait_and_tell (crew, workers, started);
    else
      run_alone (crew, &workers[0].slot);
    if (crew->status == RP_OK)
      tell (crew, crew->stop);
    status = crew->status;
    if (status != RP_OK)
      *fault = crew->fault;
  }
  for (uint32_t i = 0; i < count; i++)
    crew->functions->slot_destroy (crew, workers[i].slot.own);
  free (workers);
  pthread_cond_destroy (&crew->ended);
  pthread_cond_destroy (&crew->turned);
  pthread_mutex_destroy (&crew->lock);
  return status;
}

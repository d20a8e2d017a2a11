/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* The top bit of state: newcomers have to look closer.  The rest counts who
 * is inside, and for an instant also who has just come to a closed gate.
 */
#define CLOSED (UINT64_C (1) << 63)

struct rp_gate {
  _Atomic uint64_t state;
  pthread_mutex_t  lock;         /* guards what follows */
  pthread_cond_t   changed;
  bool             held;
  bool             cutting;      /* one cut at a time */
  bool             watched, alarmed;
  uint64_t         alarms;       /* ever */
  int64_t          alarm_time_ns;
  uint64_t         closed_ns;    /* of the cut */
};

int
rp_gate_create (struct rp_gate **out, struct rp_fault *fault)
{
  struct rp_gate *gate = calloc (1, sizeof *gate);
  pthread_condattr_t attributes;

  *out = NULL;
  if (!gate)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a gate");
  atomic_init (&gate->state, 0);
  RP_CHECK (pthread_mutex_init (&gate->lock, NULL) == 0);
  RP_CHECK (pthread_condattr_init (&attributes) == 0);
  RP_CHECK (pthread_condattr_setclock (&attributes, CLOCK_MONOTONIC) == 0);
  RP_CHECK (pthread_cond_init (&gate->changed, &attributes) == 0);
  pthread_condattr_destroy (&attributes);
  *out = gate;
  return RP_OK;
}

void
rp_gate_destroy (struct rp_gate *gate)
{
  if (!gate)
    return;
  pthread_cond_destroy (&gate->changed);
  pthread_mutex_destroy (&gate->lock);
  free (gate);
}

void
rp_gate_leave (struct rp_gate *gate)
{
  const uint64_t before = atomic_fetch_sub (&gate->state, 1);

  RP_CHECK ((before & ~CLOSED) != 0);
  if (before != (CLOSED | 1))
    return;
  pthread_mutex_lock (&gate->lock);
  pthread_cond_broadcast (&gate->changed);
  pthread_mutex_unlock (&gate->lock);
}

int
rp_gate_enter (struct rp_gate *gate, struct rp_fault *fault)
{
  bool held;

  while (atomic_fetch_add (&gate->state, 1) & CLOSED) {
    rp_gate_leave (gate);
    pthread_mutex_lock (&gate->lock);
    while ((gate->cutting || gate->alarmed) && !gate->held)
      pthread_cond_wait (&gate->changed, &gate->lock);
    held = gate->held;
    pthread_mutex_unlock (&gate->lock);
    if (held)
      return rp_fail (fault, RP_HELD, 0, "the gate is closed");
  }
  return RP_OK;
}

static uint64_t
now_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

/* With the lock: until something changes.  False: it is until_ns (0: never). */
static bool
wait_until (struct rp_gate *gate, uint64_t until_ns)
{
  const struct timespec until = {
    .tv_sec = (time_t) (until_ns / 1000000000u),
    .tv_nsec = (long) (until_ns % 1000000000u),
  };

  if (until_ns == 0)
    return pthread_cond_wait (&gate->changed, &gate->lock) == 0;
  return pthread_cond_timedwait (&gate->changed, &gate->lock, &until) == 0;
}

/* With the lock: keep newcomers out and wait until nobody is inside, or until
 * a release has overtaken the hold that waits.  False: it is until_ns.
 */
static bool
close_and_wait (struct rp_gate *gate, uint64_t until_ns)
{
  atomic_fetch_or (&gate->state, CLOSED);
  while ((gate->held || gate->cutting) && !RP_SABOTAGED (34)   /* no waiting */
         && (atomic_load (&gate->state) & ~CLOSED) != 0)
    if (!wait_until (gate, until_ns))
      return false;
  return true;
}

/* With the lock: open unless somebody else keeps it closed. */
static void
open_again (struct rp_gate *gate)
{
  if (!gate->held && !gate->cutting
      && (!gate->alarmed || RP_SABOTAGED (41)))
    atomic_fetch_and (&gate->state, ~CLOSED);
  pthread_cond_broadcast (&gate->changed);
}

void
rp_gate_hold (struct rp_gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  gate->held = true;
  pthread_cond_broadcast (&gate->changed);   /* who waits for a cut may go */
  close_and_wait (gate, 0);
  pthread_mutex_unlock (&gate->lock);
}

void
rp_gate_release (struct rp_gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  gate->held = false;
  open_again (gate);
  pthread_mutex_unlock (&gate->lock);
}

bool
rp_gate_is_held (struct rp_gate *gate)
{
  bool held;

  pthread_mutex_lock (&gate->lock);
  held = gate->held;
  pthread_mutex_unlock (&gate->lock);
  return held;
}

/* ---- cuts ---- */

int
rp_gate_begin (struct rp_gate *gate, uint32_t timeout_ms,
               struct rp_fault *fault)
{
  const uint64_t until_ns = timeout_ms
                            ? now_ns () + timeout_ms * UINT64_C (1000000) : 0;
  bool fine = true;

  pthread_mutex_lock (&gate->lock);
  while (fine && gate->cutting)
    fine = wait_until (gate, until_ns);
  if (fine) {
    gate->cutting = true;
    gate->closed_ns = now_ns ();
    fine = close_and_wait (gate, until_ns);
    if (!fine) {
      gate->cutting = false;
      open_again (gate);
    }
  }
  pthread_mutex_unlock (&gate->lock);
  if (!fine)
    return rp_fail (fault, RP_STATE, 0,
                    "a write or another cut did not end in %u ms",
                    timeout_ms);
  return RP_OK;
}

int
rp_gate_mark (struct rp_gate *gate, struct rp_journal *const *journals,
              uint32_t journal_count, const struct rp_point *point,
              struct rp_fault *fault)
{
  int status = RP_OK;

  pthread_mutex_lock (&gate->lock);
  if (!gate->cutting)
    status = rp_fail (fault, RP_STATE, 0, "the gate: no cut has begun");
  pthread_mutex_unlock (&gate->lock);
  for (uint32_t i = 0; i < journal_count && status == RP_OK; i++)
    status = rp_journal_mark (journals[i], point, fault);
  return status;
}

uint64_t
rp_gate_end (struct rp_gate *gate)
{
  uint64_t barrier_ns = 0;

  pthread_mutex_lock (&gate->lock);
  if (gate->cutting) {
    gate->cutting = false;
    open_again (gate);
    barrier_ns = now_ns () - gate->closed_ns;
  }
  pthread_mutex_unlock (&gate->lock);
  return barrier_ns;
}

static int64_t
time_of_day_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  return now.tv_sec * INT64_C (1000000000) + now.tv_nsec;
}

int
rp_gate_cut_now (struct rp_gate *gate, struct rp_journal *const *journals,
                 uint32_t journal_count, struct rp_point *point,
                 uint64_t *barrier_ns_out, struct rp_fault *fault)
{
  int status = rp_gate_begin (gate, 0, fault);
  int64_t time_ns = time_of_day_ns ();

  *barrier_ns_out = 0;
  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&gate->lock);
  if (gate->alarmed)
    time_ns = gate->alarm_time_ns;
  pthread_mutex_unlock (&gate->lock);
  time_ns -= time_ns % 1000;
  if (point->time_ns < time_ns)
    point->time_ns = time_ns;
  status = rp_gate_mark (gate, journals, journal_count, point, fault);
  *barrier_ns_out = rp_gate_end (gate);
  return status;
}

int
rp_gate_cut (struct rp_gate *gate, struct rp_journal *const *journals,
             uint32_t journal_count, const struct rp_point *point,
             uint64_t *barrier_ns_out, struct rp_fault *fault)
{
  int status = rp_gate_begin (gate, 0, fault);

  *barrier_ns_out = 0;
  if (status != RP_OK)
    return status;
  status = rp_gate_mark (gate, journals, journal_count, point, fault);
  *barrier_ns_out = rp_gate_end (gate);
  for (uint32_t i = 0; i < journal_count && status == RP_OK; i++)
    status = rp_journal_commit (journals[i], fault);
  return status;
}

/* ---- alarms ---- */

void
rp_gate_watch (struct rp_gate *gate, bool on)
{
  pthread_mutex_lock (&gate->lock);
  gate->watched = on;
  if (!on) {
    gate->alarmed = false;
    open_again (gate);
  }
  pthread_mutex_unlock (&gate->lock);
}

void
rp_gate_alarm (struct rp_gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  if (!gate->held)
    gate->alarms++;
  if (gate->watched && !gate->held && !gate->alarmed) {
    gate->alarmed = true;
    atomic_fetch_or (&gate->state, CLOSED);
    gate->alarm_time_ns = time_of_day_ns ();
  }
  pthread_mutex_unlock (&gate->lock);
}

bool
rp_gate_is_alarmed (struct rp_gate *gate)
{
  bool alarmed;

  pthread_mutex_lock (&gate->lock);
  alarmed = gate->alarmed;
  pthread_mutex_unlock (&gate->lock);
  return alarmed;
}

uint64_t
rp_gate_alarms (struct rp_gate *gate)
{
  uint64_t alarms;

  pthread_mutex_lock (&gate->lock);
  alarms = gate->alarms;
  pthread_mutex_unlock (&gate->lock);
  return alarms;
}

int64_t
rp_gate_alarm_time_ns (struct rp_gate *gate)
{
  int64_t time_ns;

  pthread_mutex_lock (&gate->lock);
  time_ns = gate->alarm_time_ns;
  pthread_mutex_unlock (&gate->lock);
  return time_ns;
}

void
rp_gate_heed (struct rp_gate *gate)
{
  pthread_mutex_lock (&gate->lock);
  gate->alarmed = false;
  open_again (gate);
  pthread_mutex_unlock (&gate->lock);
}

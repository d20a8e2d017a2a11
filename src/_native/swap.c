/* SPDX-License-Identifier: Apache-2.0 */
#include "swap.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct rp_swap {
  struct rp_disk   disk;         /* first */
  pthread_rwlock_t lock;         /* held to read by who is in the inner disk */
  struct rp_disk  *inner;        /* borrowed */
  uint64_t         turn;         /* how many were put; read under the lock */
  /* who waits for another disk, without the lock above */
  pthread_mutex_t  waiting;
  pthread_cond_t   changed;      /* any of these: */
  uint64_t         seen_turn;    /* turn, as those who wait see it */
  uint64_t         wanted_turn;  /* that somebody waits, or waited, for */
  unsigned         patience_ms;
};

static struct rp_disk *
enter (struct rp_disk *disk)
{
  struct rp_swap *swap = (struct rp_swap *) disk;

  RP_CHECK (pthread_rwlock_rdlock (&swap->lock) == 0);
  return swap->inner;
}

static int
leave (struct rp_disk *disk, int status)
{
  pthread_rwlock_unlock (&((struct rp_swap *) disk)->lock);
  return status;
}

static struct timespec
after (unsigned ms)
{
  struct timespec at;

  RP_CHECK (clock_gettime (CLOCK_MONOTONIC, &at) == 0);
  at.tv_sec += ms / 1000;
  at.tv_nsec += (long) (ms % 1000) * 1000000;
  if (at.tv_nsec >= 1000000000) {
    at.tv_sec++;
    at.tv_nsec -= 1000000000;
  }
  return at;
}

/* Wait for the disk that follows the one of this turn; false: nobody put it
 * in time. */
static bool
await_next (struct rp_swap *swap, uint64_t turn)
{
  struct timespec stop;
  bool came;

  pthread_mutex_lock (&swap->waiting);
  stop = after (swap->patience_ms);
  if (swap->patience_ms > 0 && swap->wanted_turn <= turn)
    swap->wanted_turn = turn + 1;
  pthread_cond_broadcast (&swap->changed);
  while (swap->seen_turn == turn && swap->patience_ms > 0)
    if (pthread_cond_timedwait (&swap->changed, &swap->waiting, &stop) != 0)
      break;
  came = swap->seen_turn != turn;
  pthread_mutex_unlock (&swap->waiting);
  return came;
}

/* Leave the inner disk; true: another came in its place, which may know
 * better. */
static bool
leave_stale (struct rp_disk *disk, int status)
{
  struct rp_swap *swap = (struct rp_swap *) disk;
  const uint64_t turn = swap->turn;

  return leave (disk, status) == RP_STATE && await_next (swap, turn);
}

static int
swap_pread (struct rp_disk *disk, void *buffer, size_t length,
            uint64_t offset, struct rp_fault *fault)
{
  int status;

  do
    status = rp_disk_pread (enter (disk), buffer, length, offset, fault);
  while (leave_stale (disk, status));
  return status;
}

static int
swap_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
             uint64_t offset, struct rp_fault *fault)
{
  return leave (disk, rp_disk_pwrite (enter (disk), buffer, length, offset,
                                      fault));
}

static int
swap_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
           bool may_trim, struct rp_fault *fault)
{
  return leave (disk, rp_disk_zero (enter (disk), length, offset, may_trim,
                                    fault));
}

static int
swap_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  return leave (disk, rp_disk_flush (enter (disk), fault));
}

static int
swap_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
          struct rp_run *out, struct rp_fault *fault)
{
  int status;

  do
    status = rp_disk_run (enter (disk), offset, length, out, fault);
  while (leave_stale (disk, status));
  return status;
}

static void
swap_stream (struct rp_disk *disk)
{
  rp_disk_stream (enter (disk));
  (void) leave (disk, RP_OK);
}

/* Does not touch the inner disk: it may have been destroyed before. */
static void
swap_destroy (struct rp_disk *disk)
{
  struct rp_swap *swap = (struct rp_swap *) disk;

  pthread_cond_destroy (&swap->changed);
  pthread_mutex_destroy (&swap->waiting);
  pthread_rwlock_destroy (&swap->lock);
  free (swap);
}

static const struct rp_disk_functions swap_functions = {
  .name = "swap",
  .destroy = swap_destroy,
  .pread = swap_pread,
  .pwrite = swap_pwrite,
  .zero = swap_zero,
  .flush = swap_flush,
  .run = swap_run,
  .stream = swap_stream,
};

int
rp_swap_create (struct rp_disk *first, struct rp_disk **out,
                struct rp_fault *fault)
{
  struct rp_swap *swap = calloc (1, sizeof *swap);
  pthread_rwlockattr_t how;
  pthread_condattr_t clock;

  *out = NULL;
  if (!swap)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a disk that can be exchanged");
  swap->disk = *first;
  swap->disk.functions = &swap_functions;
  swap->inner = first;
  /* readers that never pause must not keep an exchange out for ever */
  RP_CHECK (pthread_rwlockattr_init (&how) == 0);
  RP_CHECK (pthread_rwlockattr_setkind_np (
              &how, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP) == 0);
  RP_CHECK (pthread_rwlock_init (&swap->lock, &how) == 0);
  pthread_rwlockattr_destroy (&how);
  RP_CHECK (pthread_mutex_init (&swap->waiting, NULL) == 0);
  RP_CHECK (pthread_condattr_init (&clock) == 0);
  RP_CHECK (pthread_condattr_setclock (&clock, CLOCK_MONOTONIC) == 0);
  RP_CHECK (pthread_cond_init (&swap->changed, &clock) == 0);
  pthread_condattr_destroy (&clock);
  *out = &swap->disk;
  return RP_OK;
}

int
rp_swap_put (struct rp_disk *disk, struct rp_disk *next,
             struct rp_fault *fault)
{
  struct rp_swap *swap = (struct rp_swap *) disk;

  if (next->size_bytes != disk->size_bytes
      || next->read_only != disk->read_only)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a %s disk of %" PRIu64 " bytes in the place of a %s one "
                    "of %" PRIu64, next->read_only ? "read-only" : "writable",
                    next->size_bytes,
                    disk->read_only ? "read-only" : "writable",
                    disk->size_bytes);
  RP_CHECK (pthread_rwlock_wrlock (&swap->lock) == 0);
  swap->inner = next;
  swap->turn++;
  pthread_mutex_lock (&swap->waiting);
  swap->seen_turn = swap->turn;
  pthread_cond_broadcast (&swap->changed);
  pthread_mutex_unlock (&swap->waiting);
  pthread_rwlock_unlock (&swap->lock);
  return RP_OK;
}

void
rp_swap_be_patient (struct rp_disk *disk, unsigned timeout_ms)
{
  struct rp_swap *swap = (struct rp_swap *) disk;

  pthread_mutex_lock (&swap->waiting);
  swap->patience_ms = timeout_ms;
  pthread_cond_broadcast (&swap->changed);
  pthread_mutex_unlock (&swap->waiting);
}

bool
rp_swap_await (struct rp_disk *disk, unsigned timeout_ms)
{
  struct rp_swap *swap = (struct rp_swap *) disk;
  const struct timespec stop = after (timeout_ms);
  bool wanted;

  pthread_mutex_lock (&swap->waiting);
  while (swap->wanted_turn <= swap->seen_turn && swap->patience_ms > 0)
    if (pthread_cond_timedwait (&swap->changed, &swap->waiting, &stop) != 0)
      break;
  wanted = swap->wanted_turn > swap->seen_turn && swap->patience_ms > 0;
  pthread_mutex_unlock (&swap->waiting);
  return wanted;
}

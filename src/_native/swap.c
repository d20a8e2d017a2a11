/* SPDX-License-Identifier: Apache-2.0 */
#include "swap.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>

struct rp_swap {
  struct rp_disk   disk;         /* first */
  pthread_rwlock_t lock;         /* held to read by who is in the inner disk */
  struct rp_disk  *inner;        /* borrowed */
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

static int
swap_pread (struct rp_disk *disk, void *buffer, size_t length,
            uint64_t offset, struct rp_fault *fault)
{
  return leave (disk, rp_disk_pread (enter (disk), buffer, length, offset,
                                     fault));
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
  return leave (disk, rp_disk_run (enter (disk), offset, length, out, fault));
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
  pthread_rwlock_destroy (&((struct rp_swap *) disk)->lock);
  free (disk);
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
  pthread_rwlock_unlock (&swap->lock);
  return RP_OK;
}

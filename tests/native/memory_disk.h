/* memory_disk.h - a disk in memory, for tests of what stands on a disk. */
#ifndef RP_TEST_MEMORY_DISK_H
#define RP_TEST_MEMORY_DISK_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"

struct memory_disk {
  struct rp_disk   disk;
  uint8_t         *bytes;
  pthread_mutex_t  lock;              /* of the bytes */
  _Atomic uint64_t writes, flushes;
  _Atomic int      fail;              /* a status that every call returns */
  _Atomic int      fail_flush;        /* the same, of flush alone */
  void (*before_read) (void);         /* may be NULL */
};

static void
memory_destroy (struct rp_disk *disk)
{
  struct memory_disk *memory = (struct memory_disk *) disk;

  pthread_mutex_destroy (&memory->lock);
  free (memory->bytes);
  free (memory);
}

static int
memory_failure (struct rp_disk *disk, struct rp_fault *fault)
{
  const int status = ((struct memory_disk *) disk)->fail;

  if (status == RP_IO)
    return rp_fail_os (fault, EIO, 0, "memory disk");
  return status == RP_OK ? RP_OK : rp_fail (fault, status, 0, "memory disk");
}

static int
memory_pread (struct rp_disk *disk, void *buffer, size_t length,
              uint64_t offset, struct rp_fault *fault)
{
  struct memory_disk *memory = (struct memory_disk *) disk;

  if (memory->before_read)
    memory->before_read ();
  pthread_mutex_lock (&memory->lock);
  memcpy (buffer, memory->bytes + offset, length);
  pthread_mutex_unlock (&memory->lock);
  return memory_failure (disk, fault);
}

static int
memory_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  struct memory_disk *memory = (struct memory_disk *) disk;

  pthread_mutex_lock (&memory->lock);
  memcpy (memory->bytes + offset, buffer, length);
  pthread_mutex_unlock (&memory->lock);
  memory->writes++;
  return memory_failure (disk, fault);
}

static int
memory_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
             bool may_trim, struct rp_fault *fault)
{
  struct memory_disk *memory = (struct memory_disk *) disk;

  (void) may_trim;
  pthread_mutex_lock (&memory->lock);
  memset (memory->bytes + offset, 0, length);
  pthread_mutex_unlock (&memory->lock);
  memory->writes++;
  return memory_failure (disk, fault);
}

static int
memory_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  struct memory_disk *memory = (struct memory_disk *) disk;
  const int status = memory->fail_flush;

  memory->flushes++;
  if (status != RP_OK)
    return rp_fail (fault, status, 0, "memory disk");
  return memory_failure (disk, fault);
}

/* looks at the bytes, in pieces of 64 KiB */
static int
memory_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
            struct rp_run *out, struct rp_fault *fault)
{
  const uint64_t block = 65536;
  const uint64_t left = block - offset % block;
  struct memory_disk *memory = (struct memory_disk *) disk;

  *out = (struct rp_run) {
    .offset_bytes = offset,
    .length_bytes = length < left ? length : left,
    .kind = RP_RUN_ZERO,
  };
  pthread_mutex_lock (&memory->lock);
  for (uint64_t i = 0; i < out->length_bytes; i++)
    if (memory->bytes[offset + i]) {
      out->kind = RP_RUN_DATA;
      break;
    }
  pthread_mutex_unlock (&memory->lock);
  return memory_failure (disk, fault);
}

static const struct rp_disk_functions memory_functions = {
  .name = "memory",
  .destroy = memory_destroy,
  .pread = memory_pread,
  .pwrite = memory_pwrite,
  .zero = memory_zero,
  .flush = memory_flush,
  .run = memory_run,
};

static inline struct memory_disk *
memory_disk_create (uint64_t size_bytes)
{
  struct memory_disk *memory = calloc (1, sizeof *memory);

  if (!memory || (memory->bytes = calloc (1, size_bytes)) == NULL)
    abort ();
  pthread_mutex_init (&memory->lock, NULL);
  memory->disk.functions = &memory_functions;
  memory->disk.size_bytes = size_bytes;
  memory->disk.fast_zero = true;
  return memory;
}

#endif /* RP_TEST_MEMORY_DISK_H */

/* SPDX-License-Identifier: Apache-2.0 */
#include "scratch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define BLOCK_BYTES    4096u
#define STRETCH_BYTES  (UINT64_C (1) << 20)  /* that one lock guards */
#define LOCKS          64u
#define WORD_BITS      64u

struct rp_scratch {
  struct rp_disk   disk;         /* first */
  struct rp_disk  *below;
  struct rp_file  *file;
  pthread_mutex_t  locks[LOCKS]; /* of who writes; reads need none */
  _Atomic uint64_t present[];    /* a bit for each block: it is in the file */
};

static bool
is_present (const struct rp_scratch *scratch, uint64_t block)
{
  return atomic_load_explicit (&scratch->present[block / WORD_BITS],
                               memory_order_acquire)
         >> block % WORD_BITS & 1;
}

/* Its bytes are in the file. */
static void
set_present (struct rp_scratch *scratch, uint64_t block)
{
  atomic_fetch_or_explicit (&scratch->present[block / WORD_BITS],
                            UINT64_C (1) << block % WORD_BITS,
                            memory_order_release);
}

/* How many of length bytes from offset on lie in the same place. */
static uint64_t
find_run (const struct rp_scratch *scratch, uint64_t offset, uint64_t length,
          bool *present_out)
{
  const uint64_t stop = offset + length;
  uint64_t block = offset / BLOCK_BYTES, end;

  *present_out = is_present (scratch, block);
  do
    end = ++block * BLOCK_BYTES;
  while (end < stop && is_present (scratch, block) == *present_out);
  return end < stop ? end - offset : length;
}

static int
scratch_pread (struct rp_disk *disk, void *buffer, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  struct rp_scratch *scratch = (struct rp_scratch *) disk;
  uint8_t *to = buffer;
  int status = RP_OK;

  while (status == RP_OK && length > 0) {
    bool present;
    const uint64_t here = find_run (scratch, offset, length, &present);

    status = present
             ? rp_file_pread_all (scratch->file, to, here, offset, fault)
             : rp_disk_pread (scratch->below, to, here, offset, fault);
    to += here;
    offset += here;
    length -= here;
  }
  return status;
}

/* ---- writing ---- */

/* Bring a block up that is to be written in part. */
static int
copy_up (struct rp_scratch *scratch, uint64_t block, struct rp_fault *fault)
{
  const uint64_t offset = block * BLOCK_BYTES;
  const uint64_t left = scratch->disk.size_bytes - offset;
  const uint64_t length = left < BLOCK_BYTES ? left : BLOCK_BYTES;
  uint8_t bytes[BLOCK_BYTES];
  int status;

  if (is_present (scratch, block))
    return RP_OK;
  status = rp_disk_pread (scratch->below, bytes, length, offset, fault);
  if (status == RP_OK)
    status = rp_file_pwrite (scratch->file, bytes, length, offset, fault);
  if (status == RP_OK)
    set_present (scratch, block);
  return status;
}

/* data NULL: zeros.  Inside one stretch, whose lock is held. */
static int
change_locked (struct rp_scratch *scratch, const uint8_t *data,
               uint64_t length, uint64_t offset, struct rp_fault *fault)
{
  const uint64_t stop = offset + length;
  const uint64_t last = (stop - 1) / BLOCK_BYTES;
  int status = RP_OK;

  if (offset % BLOCK_BYTES != 0)
    status = copy_up (scratch, offset / BLOCK_BYTES, fault);
  if (status == RP_OK && stop % BLOCK_BYTES != 0
      && stop != scratch->disk.size_bytes)
    status = copy_up (scratch, last, fault);
  if (status == RP_OK)
    status = data ? rp_file_pwrite (scratch->file, data, length, offset, fault)
                  : rp_file_punch (scratch->file, offset, length, fault);
  for (uint64_t block = offset / BLOCK_BYTES;
       status == RP_OK && block <= last; block++)
    set_present (scratch, block);
  return status;
}

static int
change (struct rp_scratch *scratch, const uint8_t *data, uint64_t length,
        uint64_t offset, struct rp_fault *fault)
{
  int status = RP_OK;

  while (status == RP_OK && length > 0) {
    const uint64_t stretch = offset / STRETCH_BYTES;
    const uint64_t left = (stretch + 1) * STRETCH_BYTES - offset;
    const uint64_t here = length < left ? length : left;
    pthread_mutex_t *lock = &scratch->locks[stretch % LOCKS];

    pthread_mutex_lock (lock);
    status = change_locked (scratch, data, here, offset, fault);
    pthread_mutex_unlock (lock);
    data = data ? data + here : NULL;
    offset += here;
    length -= here;
  }
  return status;
}

static int
scratch_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  return change ((struct rp_scratch *) disk, buffer, length, offset, fault);
}

static int
scratch_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
              bool may_trim, struct rp_fault *fault)
{
  (void) may_trim;               /* a hole in the file is zeros either way */
  return change ((struct rp_scratch *) disk, NULL, length, offset, fault);
}

static int
scratch_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  (void) disk;
  (void) fault;
  return RP_OK;
}

static int
scratch_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
             struct rp_run *out, struct rp_fault *fault)
{
  struct rp_scratch *scratch = (struct rp_scratch *) disk;
  bool present;
  const uint64_t here = find_run (scratch, offset, length, &present);
  int status;

  if (!present) {
    status = rp_disk_run (scratch->below, offset, here, out, fault);
    out->depth++;
    return status;
  }
  *out = (struct rp_run) {
    .offset_bytes = offset, .length_bytes = here, .kind = RP_RUN_DATA,
    .file = scratch->file, .file_offset_bytes = offset,
  };
  return RP_OK;
}

/* Does not touch what is borrowed: that may have been destroyed before. */
static void
scratch_destroy (struct rp_disk *disk)
{
  struct rp_scratch *scratch = (struct rp_scratch *) disk;

  for (unsigned i = 0; i < LOCKS; i++)
    pthread_mutex_destroy (&scratch->locks[i]);
  free (scratch);
}

static const struct rp_disk_functions scratch_functions = {
  .name = "scratch",
  .destroy = scratch_destroy,
  .pread = scratch_pread,
  .pwrite = scratch_pwrite,
  .zero = scratch_zero,
  .flush = scratch_flush,
  .run = scratch_run,
};

int
rp_scratch_create (struct rp_disk *below, struct rp_file *file,
                   struct rp_disk **out, struct rp_fault *fault)
{
  const uint64_t words = rp_divide_up (rp_divide_up (below->size_bytes,
                                                     BLOCK_BYTES), WORD_BITS);
  struct rp_scratch *scratch;
  uint64_t size;
  int status = rp_file_size (file, &size, fault);

  *out = NULL;
  if (status != RP_OK)
    return status;
  if (size != 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: the file is not empty",
                    file->name);
  status = rp_file_truncate (file, below->size_bytes, fault);
  if (status != RP_OK)
    return status;
  scratch = calloc (1, sizeof *scratch + words * sizeof *scratch->present);
  if (!scratch)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a disk that is thrown away");
  scratch->disk.functions = &scratch_functions;
  scratch->disk.size_bytes = below->size_bytes;
  scratch->disk.serial = below->serial;
  scratch->below = below;
  scratch->file = file;
  for (unsigned i = 0; i < LOCKS; i++)
    RP_CHECK (pthread_mutex_init (&scratch->locks[i], NULL) == 0);
  *out = &scratch->disk;
  return RP_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A window on a file, as a file: the member of an archive, read in place. */
#include "io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct slice {
  struct rp_file         file;   /* first; its io is the one below */
  struct rp_io           io;
  struct rp_io_functions functions;
  struct rp_file        *inner;  /* borrowed */
  uint64_t               start, length;
  char                   name[];
};

static struct slice *
slice_of (struct rp_file *file)
{
  return (struct slice *) file;
}

static int
refuse (struct rp_file *file, struct rp_fault *fault)
{
  return rp_fail (fault, RP_READ_ONLY, 0, "%s is part of another file",
                  file->name);
}

static void
slice_close (struct rp_file *file)
{
  free (slice_of (file));
}

static int
slice_pread (struct rp_file *file, void *buffer, size_t length,
             uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  const struct slice *slice = slice_of (file);

  if (offset >= slice->length)
    return RP_OK;                /* rp_file_pread has set *done_out to 0 */
  if (length > slice->length - offset)
    length = (size_t) (slice->length - offset);
  return rp_file_pread (slice->inner, buffer, length, slice->start + offset,
                        done_out, fault);
}

static int
slice_pwritev (struct rp_file *file, const struct iovec *parts, int part_count,
               uint64_t offset, struct rp_fault *fault)
{
  (void) parts; (void) part_count; (void) offset;
  return refuse (file, fault);
}

static int
slice_sync (struct rp_file *file, struct rp_fault *fault)
{
  (void) file; (void) fault;
  return RP_OK;                  /* nothing was written through it */
}

static int
slice_truncate (struct rp_file *file, uint64_t size, struct rp_fault *fault)
{
  (void) size;
  return refuse (file, fault);
}

static int
slice_change (struct rp_file *file, uint64_t offset, uint64_t length,
              struct rp_fault *fault)
{
  (void) offset; (void) length;
  return refuse (file, fault);
}

static int
slice_stat (struct rp_file *file, struct rp_stat *out, struct rp_fault *fault)
{
  const struct slice *slice = slice_of (file);
  const int status = rp_file_stat (slice->inner, out, fault);

  if (status != RP_OK)
    return status;
  out->size_bytes = slice->length;
  if (out->allocated_bytes > slice->length)
    out->allocated_bytes = slice->length;
  return RP_OK;
}

static int
slice_seek (struct rp_file *file, uint64_t offset, bool want_data,
            uint64_t *out, struct rp_fault *fault)
{
  const struct slice *slice = slice_of (file);
  uint64_t found;
  int status;

  *out = slice->length;
  if (offset >= slice->length)
    return RP_OK;
  status = rp_file_seek (slice->inner, slice->start + offset, want_data,
                         &found, fault);
  if (status == RP_OK && found - slice->start < slice->length)
    *out = found - slice->start;
  return status;
}

static int
slice_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  return exclusive ? refuse (file, fault)
                   : rp_file_lock (slice_of (file)->inner, false, fault);
}

int
rp_file_slice (struct rp_file *file, const char *label, uint64_t offset,
               uint64_t length, struct rp_file **out, struct rp_fault *fault)
{
  const size_t room = strlen (file->name) + strlen (label) + 2;
  uint64_t file_bytes;
  struct slice *slice;
  int status;

  *out = NULL;
  status = rp_file_size (file, &file_bytes, fault);
  if (status != RP_OK)
    return status;
  if (length > file_bytes || offset > file_bytes - length)
    return rp_fail (fault, RP_CORRUPT, offset,
                    "%s:%s is %llu bytes at byte %llu, and the file has %llu",
                    file->name, label, (unsigned long long) length,
                    (unsigned long long) offset,
                    (unsigned long long) file_bytes);
  slice = calloc (1, sizeof *slice + room);
  if (!slice)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s:%s", file->name, label);
  slice->functions = (struct rp_io_functions) {
    .name = file->io->functions->name,   /* as watched as the file is */
    .file_close = slice_close, .file_pread = slice_pread,
    .file_pwritev = slice_pwritev, .file_sync = slice_sync,
    .file_truncate = slice_truncate, .file_allocate = slice_change,
    .file_punch = slice_change, .file_stat = slice_stat,
    .file_seek = slice_seek, .file_lock = slice_lock,
  };
  slice->io.functions = &slice->functions;
  slice->inner = file;
  slice->start = offset;
  slice->length = length;
  snprintf (slice->name, room, "%s:%s", file->name, label);
  slice->file.io = &slice->io;
  slice->file.name = slice->name;
  atomic_init (&slice->file.failed, false);
  *out = &slice->file;
  return RP_OK;
}

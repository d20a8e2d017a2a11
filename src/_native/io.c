/* SPDX-License-Identifier: Apache-2.0 */
/* What is the same for every backend: names and ranges are checked, and a
 * failed sync sticks. */
#include "io.h"

#include <errno.h>
#include <string.h>

#define NEW_SUFFIX ".new"

static int
check_name (const struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  const char *why;

  if (name[0] == '\0')
    why = "is empty";
  else if (strcmp (name, ".") == 0 || strcmp (name, "..") == 0)
    why = "is not a file of the directory";
  else if (strchr (name, '/'))
    why = "holds a /";
  else if (strlen (name) >= RP_NAME_BYTES)
    why = "is longer than 255 bytes";
  else
    return RP_OK;
  return rp_fail (fault, RP_BAD_ARGUMENT, 0, "the name \"%.64s\" in %s %s",
                  name, dir->path, why);
}

static int
check_range (const struct rp_file *file, uint64_t offset, uint64_t length,
             struct rp_fault *fault)
{
  if (offset > INT64_MAX || length > INT64_MAX - offset)
    return rp_fail (fault, RP_BAD_ARGUMENT, offset,
                    "%s: a range of %llu bytes at %llu ends past 2^63",
                    file->name, (unsigned long long) length,
                    (unsigned long long) offset);
  return RP_OK;
}

static int
check_file_alive (const struct rp_file *file, struct rp_fault *fault)
{
  if (atomic_load (&file->failed))
    return rp_fail (fault, RP_FAILED, 0, "%s", file->name);
  return RP_OK;
}

static int
check_dir_alive (const struct rp_dir *dir, struct rp_fault *fault)
{
  if (atomic_load (&dir->failed))
    return rp_fail (fault, RP_FAILED, 0, "%s", dir->path);
  return RP_OK;
}

static int
check_change (const struct rp_dir *dir, const char *name,
              struct rp_fault *fault)
{
  int status = check_name (dir, name, fault);

  return status == RP_OK ? check_dir_alive (dir, fault) : status;
}

static int
check_write (const struct rp_file *file, uint64_t offset, uint64_t length,
             struct rp_fault *fault)
{
  int status = check_range (file, offset, length, fault);

  return status == RP_OK ? check_file_alive (file, fault) : status;
}

void
rp_io_destroy (struct rp_io *io)
{
  if (io)
    io->functions->destroy (io);
}

int
rp_dir_open (struct rp_io *io, const char *path, struct rp_dir **out,
             struct rp_fault *fault)
{
  *out = NULL;
  return io->functions->dir_open (io, path, out, fault);
}

void
rp_dir_close (struct rp_dir *dir)
{
  if (dir)
    dir->io->functions->dir_close (dir);
}

int
rp_dir_make (struct rp_dir *dir, const char *name, uint32_t mode,
             struct rp_fault *fault)
{
  int status = check_change (dir, name, fault);

  if (status != RP_OK)
    return status;
  return dir->io->functions->dir_make (dir, name, mode, fault);
}

int
rp_dir_remove (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  int status = check_change (dir, name, fault);

  if (status != RP_OK)
    return status;
  return dir->io->functions->dir_remove (dir, name, fault);
}

int
rp_dir_sync (struct rp_dir *dir, struct rp_fault *fault)
{
  int status = check_dir_alive (dir, fault);

  if (status != RP_OK)
    return status;
  status = dir->io->functions->dir_sync (dir, fault);
  if (status != RP_OK)
    atomic_store (&dir->failed, true);
  return status;
}

int
rp_dir_rename (struct rp_dir *dir, const char *from, const char *to,
               struct rp_fault *fault)
{
  int status = check_change (dir, from, fault);

  if (status == RP_OK)
    status = check_name (dir, to, fault);
  if (status != RP_OK)
    return status;
  return dir->io->functions->dir_rename (dir, from, to, fault);
}

int
rp_dir_unlink (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  int status = check_change (dir, name, fault);

  if (status != RP_OK)
    return status;
  return dir->io->functions->dir_unlink (dir, name, fault);
}

int
rp_dir_list (struct rp_dir *dir, void (*each) (void *, const char *),
             void *context, struct rp_fault *fault)
{
  return dir->io->functions->dir_list (dir, each, context, fault);
}

int
rp_dir_stat (struct rp_dir *dir, const char *name, struct rp_stat *out,
             struct rp_fault *fault)
{
  int status = check_name (dir, name, fault);

  if (status != RP_OK)
    return status;
  return dir->io->functions->dir_stat (dir, name, out, fault);
}

/* A name.new that an earlier crash left is not ours to write into: its mode
 * may be another, or it may be a link that somebody planted. */
static int
open_new (struct rp_dir *dir, const char *name, uint32_t mode,
          struct rp_file **out, struct rp_fault *fault)
{
  const uint32_t flags = RP_OPEN_WRITE | RP_OPEN_CREATE | RP_OPEN_EXCLUSIVE
                         | RP_OPEN_BENEATH;
  struct rp_fault seen;
  int status;

  status = rp_file_open (dir, name, flags, mode, out, &seen);
  if (status == RP_IO && seen.os_errno == EEXIST) {
    status = rp_dir_unlink (dir, name, fault);
    if (status == RP_OK)
      status = rp_file_open (dir, name, flags, mode, out, fault);
    return status;
  }
  if (status != RP_OK && fault)
    *fault = seen;
  return status;
}

int
rp_dir_replace (struct rp_dir *dir, const char *name, const void *data,
                size_t length, uint32_t mode, struct rp_fault *fault)
{
  char aside[RP_NAME_BYTES + sizeof NEW_SUFFIX];
  struct rp_file *file;
  size_t name_bytes;
  int status;

  status = check_change (dir, name, fault);
  if (status != RP_OK)
    return status;
  name_bytes = strlen (name);
  memcpy (aside, name, name_bytes);
  memcpy (aside + name_bytes, NEW_SUFFIX, sizeof NEW_SUFFIX);
  status = open_new (dir, aside, mode, &file, fault);
  if (status != RP_OK)
    return status;
  status = rp_file_pwrite (file, data, length, 0, fault);
  if (status == RP_OK && !RP_SABOTAGED (2))   /* forgets to sync the file */
    status = rp_file_sync (file, fault);
  rp_file_close (file);
  if (status == RP_OK)
    status = rp_dir_rename (dir, aside, name, fault);
  if (status != RP_OK) {
    (void) rp_dir_unlink (dir, aside, NULL);   /* the first failure counts */
    return status;
  }
  if (RP_SABOTAGED (1))          /* forgets to sync the directory */
    return RP_OK;
  return rp_dir_sync (dir, fault);
}

static int
check_flags (const struct rp_dir *dir, const char *name, uint32_t flags,
             struct rp_fault *fault)
{
  const uint32_t known = RP_OPEN_READ | RP_OPEN_WRITE | RP_OPEN_CREATE
                         | RP_OPEN_EXCLUSIVE | RP_OPEN_TRUNCATE
                         | RP_OPEN_BENEATH;

  if ((flags & ~known) == 0 && (flags & (RP_OPEN_READ | RP_OPEN_WRITE))
      && ((flags & RP_OPEN_WRITE)
          || !(flags & (RP_OPEN_CREATE | RP_OPEN_TRUNCATE)))
      && ((flags & RP_OPEN_CREATE) || !(flags & RP_OPEN_EXCLUSIVE)))
    return RP_OK;
  return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                  "%s/%s: open flags %u do not go together", dir->path, name,
                  flags);
}

int
rp_file_open (struct rp_dir *dir, const char *name, uint32_t flags,
              uint32_t mode, struct rp_file **out, struct rp_fault *fault)
{
  int status = check_name (dir, name, fault);

  *out = NULL;
  if (status == RP_OK)
    status = check_flags (dir, name, flags, fault);
  if (status == RP_OK && (flags & RP_OPEN_CREATE))
    status = check_dir_alive (dir, fault);
  if (status != RP_OK)
    return status;
  return dir->io->functions->file_open (dir, name, flags, mode, out, fault);
}

void
rp_file_close (struct rp_file *file)
{
  if (file)
    file->io->functions->file_close (file);
}

int
rp_file_pread (struct rp_file *file, void *buffer, size_t length,
               uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  int status = check_range (file, offset, length, fault);

  *done_out = 0;
  if (status != RP_OK || length == 0)
    return status;
  return file->io->functions->file_pread (file, buffer, length, offset,
                                          done_out, fault);
}

int
rp_file_pread_all (struct rp_file *file, void *buffer, size_t length,
                   uint64_t offset, struct rp_fault *fault)
{
  size_t done;
  int status = rp_file_pread (file, buffer, length, offset, &done, fault);

  if (status == RP_OK && done < length)
    return rp_fail (fault, RP_CORRUPT, offset + done,
                    "%s ends at byte %llu, inside the %zu bytes needed at %llu",
                    file->name, (unsigned long long) (offset + done), length,
                    (unsigned long long) offset);
  return status;
}

int
rp_file_pwrite (struct rp_file *file, const void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  const struct iovec part = { .iov_base = (void *) buffer, .iov_len = length };

  return rp_file_pwritev (file, &part, 1, offset, fault);
}

int
rp_file_pwritev (struct rp_file *file, const struct iovec *parts,
                 int part_count, uint64_t offset, struct rp_fault *fault)
{
  uint64_t length = 0;
  int status;

  RP_CHECK (part_count >= 0);
  for (int i = 0; i < part_count; i++)
    if (__builtin_add_overflow (length, parts[i].iov_len, &length))
      length = UINT64_MAX;
  status = check_write (file, offset, length, fault);
  if (status != RP_OK || length == 0)
    return status;
  return file->io->functions->file_pwritev (file, parts, part_count, offset,
                                            fault);
}

int
rp_file_sync (struct rp_file *file, struct rp_fault *fault)
{
  int status = check_file_alive (file, fault);

  if (status != RP_OK)
    return status;
  status = file->io->functions->file_sync (file, fault);
  if (status != RP_OK)
    atomic_store (&file->failed, true);
  return status;
}

int
rp_file_truncate (struct rp_file *file, uint64_t size, struct rp_fault *fault)
{
  int status = check_write (file, size, 0, fault);

  if (status != RP_OK)
    return status;
  return file->io->functions->file_truncate (file, size, fault);
}

int
rp_file_allocate (struct rp_file *file, uint64_t offset, uint64_t length,
                  struct rp_fault *fault)
{
  int status = check_write (file, offset, length, fault);

  if (status != RP_OK || length == 0)
    return status;
  return file->io->functions->file_allocate (file, offset, length, fault);
}

int
rp_file_punch (struct rp_file *file, uint64_t offset, uint64_t length,
               struct rp_fault *fault)
{
  int status = check_write (file, offset, length, fault);

  if (status != RP_OK || length == 0)
    return status;
  return file->io->functions->file_punch (file, offset, length, fault);
}

int
rp_file_stat (struct rp_file *file, struct rp_stat *out,
              struct rp_fault *fault)
{
  return file->io->functions->file_stat (file, out, fault);
}

int
rp_file_size (struct rp_file *file, uint64_t *out, struct rp_fault *fault)
{
  struct rp_stat stat;
  int status = rp_file_stat (file, &stat, fault);

  if (status == RP_OK)
    *out = stat.size_bytes;
  return status;
}

int
rp_file_seek (struct rp_file *file, uint64_t offset, bool want_data,
              uint64_t *out, struct rp_fault *fault)
{
  int status = check_range (file, offset, 0, fault);

  if (status != RP_OK)
    return status;
  return file->io->functions->file_seek (file, offset, want_data, out, fault);
}

int
rp_file_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  return file->io->functions->file_lock (file, exclusive, fault);
}

void
rp_file_note (struct rp_file *file, enum rp_note note, uint64_t offset,
              uint64_t length)
{
  if (file->io->functions->file_note)
    file->io->functions->file_note (file, note, offset, length);
}

bool
rp_file_is_watched (const struct rp_file *file)
{
  return strcmp (file->io->functions->name, "posix") != 0;
}

void
rp_file_stream (struct rp_file *file)
{
  if (file->io->functions->file_stream)
    file->io->functions->file_stream (file);
}

int
rp_file_clone (struct rp_file *to, uint64_t to_offset, struct rp_file *from,
               uint64_t from_offset, uint64_t length, struct rp_fault *fault)
{
  int status = check_write (to, to_offset, length, fault);

  if (status == RP_OK)
    status = check_range (from, from_offset, length, fault);
  if (status != RP_OK)
    return status;
  if (!to->io->functions->file_clone
      || to->io->functions != from->io->functions)
    return rp_fail (fault, RP_UNSUPPORTED, to_offset, "sharing blocks of %s",
                    from->name);
  return to->io->functions->file_clone (to, to_offset, from, from_offset,
                                        length, fault);
}

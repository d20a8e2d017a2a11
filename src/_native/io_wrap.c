/* SPDX-License-Identifier: Apache-2.0 */
#include "io_wrap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct wrap_io *
io_of (struct rp_io *io)
{
  return (struct wrap_io *) io;
}

static struct wrap_dir *
dir_of (struct rp_dir *dir)
{
  return (struct wrap_dir *) dir;
}

static struct wrap_file *
file_of (struct rp_file *file)
{
  return (struct wrap_file *) file;
}

/* true: ask the inner io */
static bool
before (struct rp_io *io, struct wrap_call *call, int *status,
        struct rp_fault *fault)
{
  bool done = false;

  *status = io_of (io)->hooks->before (io_of (io), call, &done, fault);
  return !done && *status == RP_OK;
}

static int
after (struct rp_io *io, struct wrap_call *call, int status,
       struct rp_fault *fault)
{
  return io_of (io)->hooks->after (io_of (io), call, status, fault);
}

/* A call that is passed on with nothing around it but the hooks. */
#define PASS_ON(io, call, inner_call)              \
  do {                                             \
    int status;                                    \
    if (before (io, &(call), &status, fault))      \
      status = inner_call;                         \
    return after (io, &(call), status, fault);     \
  } while (0)

static const char *
entry_verb (const struct wrap_call *call)
{
  switch (call->kind) {
  case WRAP_DIR_MAKE:
    return "make";
  case WRAP_DIR_REMOVE:
  case WRAP_DIR_UNLINK:
    return "unlink";
  case WRAP_DIR_RENAME:
    return "rename";
  case WRAP_FILE_OPEN:
    return call->flags & RP_OPEN_CREATE ? "make"
           : call->flags & RP_OPEN_TRUNCATE ? "truncate" : NULL;
  default:
    return NULL;
  }
}

static const char *
range_verb (const struct wrap_call *call)
{
  switch (call->kind) {
  case WRAP_FILE_PWRITEV:
    return "write";
  case WRAP_FILE_ALLOCATE:
    return "allocate";
  case WRAP_FILE_PUNCH:
    return "punch";
  default:
    return NULL;
  }
}

void
wrap_call_text (const struct wrap_call *call, char *buffer, size_t buffer_bytes)
{
  const char *path = call->dir ? call->dir->dir.path : call->file->file.name;
  const unsigned long long offset = call->offset;

  buffer[0] = '\0';
  if (entry_verb (call))
    snprintf (buffer, buffer_bytes, "%s %s%s%s%s%s", entry_verb (call), path,
              strcmp (path, "/") == 0 ? "" : "/", call->name,
              call->to ? " to " : "", call->to ? call->to : "");
  else if (range_verb (call))
    snprintf (buffer, buffer_bytes, "%s %s [%llu, %llu)", range_verb (call),
              path, offset, offset + call->length);
  else if (call->kind == WRAP_FILE_TRUNCATE)
    snprintf (buffer, buffer_bytes, "truncate %s to %llu", path, offset);
  else if (call->kind == WRAP_DIR_SYNC || call->kind == WRAP_FILE_SYNC)
    snprintf (buffer, buffer_bytes, "sync %s", path);
}

void
wrap_destroy (struct rp_io *io)
{
  io_of (io)->hooks->destroy (io_of (io));
}

int
wrap_dir_open (struct rp_io *io, const char *path, struct rp_dir **out,
               struct rp_fault *fault)
{
  struct wrap_dir *dir = calloc (1, sizeof *dir);
  struct wrap_call call = { .kind = WRAP_DIR_OPEN, .dir = dir, .name = path };
  int status;

  if (!dir)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", path);
  dir->dir.io = io;
  dir->dir.path = path;          /* for messages of the hooks */
  atomic_init (&dir->dir.failed, false);
  if (before (io, &call, &status, fault)) {
    status = rp_dir_open (io_of (io)->inner, path, &dir->inner, fault);
    if (status == RP_OK)
      dir->dir.path = dir->inner->path;
  }
  status = after (io, &call, status, fault);
  if (status == RP_OK) {
    *out = &dir->dir;
  } else {
    rp_dir_close (dir->inner);
    free (dir);
  }
  return status;
}

void
wrap_dir_close (struct rp_dir *dir)
{
  rp_dir_close (dir_of (dir)->inner);
  free (dir);
}

int
wrap_dir_make (struct rp_dir *dir, const char *name, uint32_t mode,
               struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_DIR_MAKE, .dir = dir_of (dir), .name = name,
  };

  PASS_ON (dir->io, call,
           rp_dir_make (dir_of (dir)->inner, name, mode, fault));
}

int
wrap_dir_remove (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_DIR_REMOVE, .dir = dir_of (dir), .name = name,
  };

  PASS_ON (dir->io, call, rp_dir_remove (dir_of (dir)->inner, name, fault));
}

int
wrap_dir_sync (struct rp_dir *dir, struct rp_fault *fault)
{
  struct wrap_call call = { .kind = WRAP_DIR_SYNC, .dir = dir_of (dir) };

  PASS_ON (dir->io, call, rp_dir_sync (dir_of (dir)->inner, fault));
}

int
wrap_dir_rename (struct rp_dir *dir, const char *from, const char *to,
                 struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_DIR_RENAME, .dir = dir_of (dir), .name = from, .to = to,
  };

  PASS_ON (dir->io, call, rp_dir_rename (dir_of (dir)->inner, from, to, fault));
}

int
wrap_dir_unlink (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_DIR_UNLINK, .dir = dir_of (dir), .name = name,
  };

  PASS_ON (dir->io, call, rp_dir_unlink (dir_of (dir)->inner, name, fault));
}

int
wrap_dir_list (struct rp_dir *dir, void (*each) (void *, const char *),
               void *context, struct rp_fault *fault)
{
  struct wrap_call call = { .kind = WRAP_DIR_LIST, .dir = dir_of (dir) };

  PASS_ON (dir->io, call,
           rp_dir_list (dir_of (dir)->inner, each, context, fault));
}

int
wrap_dir_stat (struct rp_dir *dir, const char *name, struct rp_stat *out,
               struct rp_fault *fault)
{
  struct rp_dir *inner = dir_of (dir)->inner;
  struct wrap_call call = {
    .kind = WRAP_DIR_STAT, .dir = dir_of (dir), .name = name,
  };

  /* by the table: a wrapper around this one may ask for "." */
  PASS_ON (dir->io, call,
           inner->io->functions->dir_stat (inner, name, out, fault));
}

int
wrap_file_open (struct rp_dir *dir, const char *name, uint32_t flags,
                uint32_t mode, struct rp_file **out, struct rp_fault *fault)
{
  struct wrap_file *file = calloc (1, sizeof *file);
  struct wrap_call call = {
    .kind = WRAP_FILE_OPEN, .dir = dir_of (dir), .file = file, .name = name,
    .flags = flags,
  };
  int status;

  if (!file)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s/%s", dir->path, name);
  file->file.io = dir->io;
  file->file.name = name;
  atomic_init (&file->file.failed, false);
  if (before (dir->io, &call, &status, fault)) {
    status = rp_file_open (dir_of (dir)->inner, name, flags, mode,
                           &file->inner, fault);
    if (status == RP_OK)
      file->file.name = file->inner->name;
  }
  status = after (dir->io, &call, status, fault);
  if (status == RP_OK) {
    *out = &file->file;
  } else {
    rp_file_close (file->inner);
    free (file);
  }
  return status;
}

void
wrap_file_close (struct rp_file *file)
{
  struct wrap_io *io = io_of (file->io);

  if (io->hooks->file_closing)
    io->hooks->file_closing (io, file_of (file));
  rp_file_close (file_of (file)->inner);
  free (file);
}

int
wrap_file_pread (struct rp_file *file, void *buffer, size_t length,
                 uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_PREAD, .file = file_of (file), .offset = offset,
    .length = length,
  };

  PASS_ON (file->io, call,
           rp_file_pread (file_of (file)->inner, buffer, length, offset,
                          done_out, fault));
}

int
wrap_file_pwritev (struct rp_file *file, const struct iovec *parts,
                   int part_count, uint64_t offset, struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_PWRITEV, .file = file_of (file), .offset = offset,
    .parts = parts, .part_count = part_count,
  };

  for (int i = 0; i < part_count; i++)
    call.length += parts[i].iov_len;
  PASS_ON (file->io, call,
           rp_file_pwritev (file_of (file)->inner, parts, part_count, offset,
                            fault));
}

int
wrap_file_sync (struct rp_file *file, struct rp_fault *fault)
{
  struct wrap_call call = { .kind = WRAP_FILE_SYNC, .file = file_of (file) };

  PASS_ON (file->io, call, rp_file_sync (file_of (file)->inner, fault));
}

int
wrap_file_truncate (struct rp_file *file, uint64_t size,
                    struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_TRUNCATE, .file = file_of (file), .offset = size,
  };

  PASS_ON (file->io, call,
           rp_file_truncate (file_of (file)->inner, size, fault));
}

int
wrap_file_allocate (struct rp_file *file, uint64_t offset, uint64_t length,
                    struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_ALLOCATE, .file = file_of (file), .offset = offset,
    .length = length,
  };

  PASS_ON (file->io, call,
           rp_file_allocate (file_of (file)->inner, offset, length, fault));
}

int
wrap_file_punch (struct rp_file *file, uint64_t offset, uint64_t length,
                 struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_PUNCH, .file = file_of (file), .offset = offset,
    .length = length,
  };

  PASS_ON (file->io, call,
           rp_file_punch (file_of (file)->inner, offset, length, fault));
}

int
wrap_file_stat (struct rp_file *file, struct rp_stat *out,
                struct rp_fault *fault)
{
  struct wrap_call call = { .kind = WRAP_FILE_STAT, .file = file_of (file) };

  PASS_ON (file->io, call, rp_file_stat (file_of (file)->inner, out, fault));
}

int
wrap_file_seek (struct rp_file *file, uint64_t offset, bool want_data,
                uint64_t *out, struct rp_fault *fault)
{
  struct wrap_call call = {
    .kind = WRAP_FILE_SEEK, .file = file_of (file), .offset = offset,
  };

  PASS_ON (file->io, call,
           rp_file_seek (file_of (file)->inner, offset, want_data, out, fault));
}

int
wrap_file_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  struct wrap_call call = { .kind = WRAP_FILE_LOCK, .file = file_of (file) };

  PASS_ON (file->io, call,
           rp_file_lock (file_of (file)->inner, exclusive, fault));
}

void
wrap_file_note (struct rp_file *file, enum rp_note note, uint64_t offset,
                uint64_t length)
{
  struct wrap_io *io = io_of (file->io);

  if (io->hooks->note)
    io->hooks->note (io, file_of (file), note, offset, length);
  rp_file_note (file_of (file)->inner, note, offset, length);
}

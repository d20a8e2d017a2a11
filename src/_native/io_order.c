/* SPDX-License-Identifier: Apache-2.0 */
/* The order backend: for each file that passes through, the ranges whose last
 * write no sync has covered.  A sync covers a write that had returned when the
 * sync began; so each range carries how many syncs of its file had begun when
 * its write returned, and the n-th sync, once it succeeds, covers the ranges
 * below n. */
#include "io_wrap.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IN_FLIGHT UINT64_MAX     /* syncs begun: the write has not returned */
#define MERGE_LOOKS 8u           /* ranges looked at to grow one of them */

struct identity {
  uint64_t device, inode;
};

struct range {
  uint64_t start, stop;
  uint64_t syncs_begun;
  uint64_t token;                /* of the call while in flight */
};

struct order_file {
  struct identity    id;
  uint32_t           open_count;
  bool               unlinked;
  bool               sync_failed;
  uint64_t           syncs_begun;
  struct range      *ranges;
  size_t             range_count, range_room;
  /* the directory sync that the file's name still needs */
  bool               name_pending;
  struct identity    name_dir;
  uint64_t           name_syncs_begun;
  struct order_file *next;
};

struct order_dir {               /* kept until the io ends: few */
  struct identity   id;
  uint64_t          syncs_begun;
  struct order_dir *next;
};

struct order_io {
  struct wrap_io     wrap;
  pthread_mutex_t    lock;
  struct order_file *files;
  struct order_dir  *dirs;
  uint64_t           next_token;
};

static struct order_io *
order_of (struct wrap_io *io)
{
  return (struct order_io *) io;
}

static void
lock (struct order_io *io)
{
  RP_CHECK (pthread_mutex_lock (&io->lock) == 0);
}

static void
unlock (struct order_io *io)
{
  RP_CHECK (pthread_mutex_unlock (&io->lock) == 0);
}

static _Noreturn void __attribute__ ((format (printf, 1, 2)))
broken (const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  fputs ("rollpoint: write order broken: ", stderr);
  vfprintf (stderr, format, arguments);
  fputc ('\n', stderr);
  va_end (arguments);
  abort ();
}

static bool
same (struct identity a, struct identity b)
{
  return a.device == b.device && a.inode == b.inode;
}

static struct identity
identify (const struct rp_stat *stat)
{
  return (struct identity) { stat->device, stat->inode };
}

/* ---- files ---- */

static struct order_file *
find_file (struct order_io *io, struct identity id)
{
  struct order_file *file = io->files;

  while (file && !same (file->id, id))
    file = file->next;
  return file;
}

static void
drop_file (struct order_io *io, struct order_file *file)
{
  struct order_file **link = &io->files;

  while (*link != file)
    link = &(*link)->next;
  *link = file->next;
  free (file->ranges);
  free (file);
}

/* A new file may have the inode number of one that is gone. */
static void
forget_old (struct order_file *file)
{
  file->unlinked = file->sync_failed = file->name_pending = false;
  file->range_count = 0;
}

static struct order_file *
need_file (struct order_io *io, struct identity id)
{
  struct order_file *file = find_file (io, id);

  if (file)
    return file;
  file = calloc (1, sizeof *file);
  if (file) {
    file->id = id;
    file->next = io->files;
    io->files = file;
  }
  return file;
}

static int
add_range (struct order_file *file, struct range range)
{
  struct range *ranges;
  size_t room;

  if (file->range_count == file->range_room) {
    room = file->range_room ? file->range_room * 2 : 16;
    ranges = realloc (file->ranges, room * sizeof *ranges);
    if (!ranges)
      return RP_NO_MEMORY;
    file->ranges = ranges;
    file->range_room = room;
  }
  file->ranges[file->range_count++] = range;
  return RP_OK;
}

static void
drop_range (struct order_file *file, size_t index)
{
  file->ranges[index] = file->ranges[--file->range_count];
}

/* The write with this token has returned: its range waits for the next sync.
 * Ranges that touch and wait for the same one become one. */
static void
land_range (struct order_file *file, uint64_t token)
{
  size_t at = 0;
  struct range landed;

  while (at < file->range_count
         && (file->ranges[at].syncs_begun != IN_FLIGHT
             || file->ranges[at].token != token))
    at++;
  if (at == file->range_count)
    return;                      /* another file has taken the inode over */
  landed = file->ranges[at];
  landed.syncs_begun = file->syncs_begun;
  drop_range (file, at);
  for (size_t n = 0, i = file->range_count; n < MERGE_LOOKS && i-- > 0; n++) {
    struct range *other = &file->ranges[i];

    if (other->syncs_begun == landed.syncs_begun
        && other->start <= landed.stop && landed.start <= other->stop) {
      if (landed.start < other->start)
        other->start = landed.start;
      if (landed.stop > other->stop)
        other->stop = landed.stop;
      return;
    }
  }
  RP_CHECK (add_range (file, landed) == RP_OK);  /* there is room: see above */
}

static void
cover_ranges (struct order_file *file, uint64_t sync)
{
  for (size_t i = file->range_count; i-- > 0;)
    if (file->ranges[i].syncs_begun < sync)
      drop_range (file, i);
}

static const struct range *
find_range (const struct order_file *file, uint64_t start, uint64_t stop)
{
  for (size_t i = 0; i < file->range_count; i++)
    if (file->ranges[i].start < stop && start < file->ranges[i].stop)
      return &file->ranges[i];
  return NULL;
}

/* ---- directories ---- */

static struct order_dir *
need_dir (struct order_io *io, struct identity id)
{
  struct order_dir *dir = io->dirs;

  while (dir && !same (dir->id, id))
    dir = dir->next;
  if (dir)
    return dir;
  dir = calloc (1, sizeof *dir);
  if (dir) {
    dir->id = id;
    dir->next = io->dirs;
    io->dirs = dir;
  }
  return dir;
}

static void
cover_names (struct order_io *io, const struct order_dir *dir, uint64_t sync)
{
  for (struct order_file *file = io->files; file; file = file->next)
    if (file->name_pending && same (file->name_dir, dir->id)
        && file->name_syncs_begun < sync)
      file->name_pending = false;
}

static void
name_changed (struct order_file *file, const struct order_dir *dir)
{
  file->name_pending = true;
  file->name_dir = dir->id;
  file->name_syncs_begun = dir->syncs_begun;
}

/* ---- hooks ---- */

static int
look (const struct wrap_call *call, const char *name, struct rp_stat *out)
{
  struct rp_dir *inner = call->dir->inner;

  return inner->io->functions->dir_stat (inner, name, out,
                                         &(struct rp_fault) { 0 });
}

/* Renaming publishes: what the name leads to from then on must be whole. */
static void
check_rename (struct order_io *io, const struct wrap_call *call)
{
  struct rp_stat stat;
  const struct order_file *file;
  const struct range *range;

  if (look (call, call->name, &stat) != RP_OK || !stat.is_regular)
    return;
  file = find_file (io, identify (&stat));
  range = file ? find_range (file, 0, UINT64_MAX) : NULL;
  if (range)
    broken ("%s/%s is renamed to %s while its bytes [%llu, %llu) are not "
            "synced", call->dir->dir.path, call->name, call->to,
            (unsigned long long) range->start,
            (unsigned long long) range->stop);
}

/* The tokens become the identity of the file that the name leads to, for
 * after_name_gone. */
static void
before_name_gone (struct wrap_call *call, const char *name)
{
  struct rp_stat stat;

  call->token = UINT64_MAX;
  if (look (call, name, &stat) == RP_OK && stat.is_regular) {
    call->token = stat.inode;
    call->token_device = stat.device;
  }
}

static void
after_name_gone (struct order_io *io, const struct wrap_call *call)
{
  const struct identity id = { call->token_device, call->token };
  struct order_file *file = call->token != UINT64_MAX ? find_file (io, id)
                                                      : NULL;

  if (!file)
    return;
  file->unlinked = true;
  if (file->open_count == 0)
    drop_file (io, file);
}

/* The write is not durable from before it is issued. */
static int
begin_range (struct order_io *io, struct wrap_call *call, uint64_t stop,
             struct rp_fault *fault)
{
  struct order_file *file = call->file->state;
  struct range range = {
    .start = call->offset, .stop = stop, .syncs_begun = IN_FLIGHT,
    .token = io->next_token++,
  };

  call->token = range.token;
  if (add_range (file, range) != RP_OK)
    return rp_fail (fault, RP_NO_MEMORY, call->offset, "tracking %s",
                    call->file->file.name);
  return RP_OK;
}

static int
order_before (struct wrap_io *wrap, struct wrap_call *call, bool *done,
              struct rp_fault *fault)
{
  struct order_io *io = order_of (wrap);
  int status = RP_OK;
  struct rp_stat stat;

  (void) done;
  lock (io);
  switch (call->kind) {
  case WRAP_FILE_OPEN:           /* token: it will be made */
    call->token = (call->flags & RP_OPEN_CREATE)
                  && look (call, call->name, &stat) != RP_OK;
    break;
  case WRAP_FILE_PWRITEV:
  case WRAP_FILE_PUNCH:
    status = begin_range (io, call, call->offset + call->length, fault);
    break;
  case WRAP_FILE_TRUNCATE:
    status = begin_range (io, call, UINT64_MAX, fault);
    break;
  case WRAP_FILE_SYNC:
    call->token = ++((struct order_file *) call->file->state)->syncs_begun;
    break;
  case WRAP_DIR_SYNC:
    call->token = ++((struct order_dir *) call->dir->state)->syncs_begun;
    break;
  case WRAP_DIR_RENAME:
    check_rename (io, call);
    before_name_gone (call, call->to);
    break;
  case WRAP_DIR_UNLINK:
    before_name_gone (call, call->name);
    break;
  default:
    break;
  }
  unlock (io);
  return status;
}

static int
after_open_dir (struct order_io *io, struct wrap_call *call,
                struct rp_fault *fault)
{
  struct rp_dir *inner = call->dir->inner;
  struct rp_stat stat;
  int status = inner->io->functions->dir_stat (inner, ".", &stat, fault);

  if (status != RP_OK)
    return status;
  call->dir->state = need_dir (io, identify (&stat));
  if (!call->dir->state)
    return rp_fail (fault, RP_NO_MEMORY, 0, "tracking %s", inner->path);
  return RP_OK;
}

static int
after_open_file (struct order_io *io, struct wrap_call *call,
                 struct rp_fault *fault)
{
  struct rp_stat stat;
  struct order_file *file;
  int status = rp_file_stat (call->file->inner, &stat, fault);

  if (status != RP_OK)
    return status;
  file = need_file (io, identify (&stat));
  if (!file)
    return rp_fail (fault, RP_NO_MEMORY, 0, "tracking %s", call->name);
  if (call->token) {
    if (file->open_count == 0)
      forget_old (file);
    name_changed (file, call->dir->state);
  }
  if ((call->flags & RP_OPEN_TRUNCATE)
      && add_range (file, (struct range) {
                      .stop = UINT64_MAX, .syncs_begun = file->syncs_begun,
                    }) != RP_OK)
    return rp_fail (fault, RP_NO_MEMORY, 0, "tracking %s", call->name);
  file->open_count++;
  call->file->state = file;
  return RP_OK;
}

static void
after_rename (struct order_io *io, struct wrap_call *call)
{
  struct order_file *file;
  struct rp_stat stat;

  if (look (call, call->to, &stat) != RP_OK || !stat.is_regular)
    return;
  /* renamed to itself, or over another link to it */
  if (stat.inode != call->token || stat.device != call->token_device)
    after_name_gone (io, call);
  file = find_file (io, identify (&stat));
  if (file)
    name_changed (file, call->dir->state);
}

static void
after_sync (struct order_file *file, uint64_t sync, int status)
{
  if (status == RP_OK)
    cover_ranges (file, sync);
  else
    file->sync_failed = true;
}

static int
order_after (struct wrap_io *wrap, struct wrap_call *call, int status,
             struct rp_fault *fault)
{
  struct order_io *io = order_of (wrap);

  lock (io);
  switch (call->kind) {
  case WRAP_DIR_OPEN:
    if (status == RP_OK)
      status = after_open_dir (io, call, fault);
    break;
  case WRAP_FILE_OPEN:
    if (status == RP_OK)
      status = after_open_file (io, call, fault);
    break;
  case WRAP_FILE_PWRITEV:
  case WRAP_FILE_PUNCH:
  case WRAP_FILE_TRUNCATE:       /* a failed one may have been done in part */
    land_range (call->file->state, call->token);
    break;
  case WRAP_FILE_SYNC:
    after_sync (call->file->state, call->token, status);
    break;
  case WRAP_DIR_SYNC:
    if (status == RP_OK)
      cover_names (io, call->dir->state, call->token);
    break;
  case WRAP_DIR_RENAME:
    if (status == RP_OK)
      after_rename (io, call);
    break;
  case WRAP_DIR_UNLINK:
    if (status == RP_OK)
      after_name_gone (io, call);
    break;
  default:
    break;
  }
  unlock (io);
  return status;
}

static void
order_note (struct wrap_io *wrap, struct wrap_file *handle, enum rp_note note,
            uint64_t offset, uint64_t length)
{
  struct order_io *io = order_of (wrap);
  const struct order_file *file = handle->state;
  const char *what = note == RP_NOTE_ACKNOWLEDGE ? "acknowledged"
                                                 : "pointed to";
  const char *name = handle->file.name;
  const struct range *range;

  lock (io);
  range = find_range (file, offset, offset + length);
  if (range)
    broken ("bytes [%llu, %llu) of %s are %s while [%llu, %llu) is not synced",
            (unsigned long long) offset, (unsigned long long) (offset + length),
            name, what, (unsigned long long) range->start,
            (unsigned long long) range->stop);
  if (file->sync_failed)
    broken ("bytes of %s are %s after a sync of it has failed", name, what);
  if (note == RP_NOTE_ACKNOWLEDGE && file->name_pending && !file->unlinked)
    broken ("bytes of %s are %s while its name is not synced: sync the "
            "directory", name, what);
  unlock (io);
}

static void
order_file_closing (struct wrap_io *wrap, struct wrap_file *handle)
{
  struct order_io *io = order_of (wrap);
  struct order_file *file = handle->state;

  lock (io);
  if (--file->open_count == 0) {
    /* opening it again reads what the disk has: a new start */
    file->sync_failed = false;
    if (file->unlinked)
      drop_file (io, file);
  }
  unlock (io);
}

static void
order_destroy (struct wrap_io *wrap)
{
  struct order_io *io = order_of (wrap);
  struct order_dir *dir;

  while (io->files)
    drop_file (io, io->files);
  while ((dir = io->dirs) != NULL) {
    io->dirs = dir->next;
    free (dir);
  }
  pthread_mutex_destroy (&io->lock);
  free (io);
}

static const struct wrap_hooks order_hooks = {
  .before = order_before,
  .after = order_after,
  .note = order_note,
  .file_closing = order_file_closing,
  .destroy = order_destroy,
};

static const struct rp_io_functions order_functions = WRAP_FUNCTIONS ("order");

int
rp_io_order_create (struct rp_io *inner, struct rp_io **out,
                    struct rp_fault *fault)
{
  struct order_io *io = calloc (1, sizeof *io);

  *out = NULL;
  if (!io)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the order backend");
  io->wrap = (struct wrap_io) {
    .io.functions = &order_functions, .inner = inner, .hooks = &order_hooks,
  };
  RP_CHECK (pthread_mutex_init (&io->lock, NULL) == 0);
  *out = &io->wrap.io;
  return RP_OK;
}

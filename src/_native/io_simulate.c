/* SPDX-License-Identifier: Apache-2.0 */
/* The simulate backend: a tree in memory, and a log of all that changed it. */
#include "io_simulate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sim_dir {
  struct rp_dir   dir;
  uint32_t        inode;
  struct rp_name *path;
};

struct sim_file {
  struct rp_file   file;
  uint32_t         inode;
  bool             writable;
  enum { UNLOCKED, LOCKED_SHARED, LOCKED_EXCLUSIVE } lock;
  struct rp_name  *path;
  struct sim_file *next, **link;
};

static const struct rp_io_functions simulate_functions;

struct sim_io *
sim_of (struct rp_io *io)
{
  RP_CHECK (io->functions == &simulate_functions);
  return (struct sim_io *) io;
}

static struct sim_dir *
dir_of (struct rp_dir *dir)
{
  return (struct sim_dir *) dir;
}

static struct sim_file *
file_of (struct rp_file *file)
{
  return (struct sim_file *) file;
}

void
sim_lock (struct sim_io *io)
{
  RP_CHECK (pthread_mutex_lock (&io->lock) == 0);
}

void
sim_unlock (struct sim_io *io)
{
  RP_CHECK (pthread_mutex_unlock (&io->lock) == 0);
}

/* ---- operations ---- */

static void
op_destroy (struct sim_op *op)
{
  if (!op)
    return;
  for (uint32_t i = 0; i < op->page_count; i++)
    rp_page_release (op->pages[i]);
  rp_name_release (op->path);
  rp_name_release (op->name);
  rp_name_release (op->to);
  free (op);
}

static struct sim_op *
op_create (enum sim_kind kind, uint32_t inode, struct rp_name *path,
           uint32_t page_count)
{
  struct sim_op *op = calloc (1, sizeof *op + page_count * sizeof *op->pages);

  if (!op)
    return NULL;
  op->kind = kind;
  op->inode = inode;
  op->path = path ? rp_name_share (path) : NULL;
  for (; op->page_count < page_count; op->page_count++) {
    op->pages[op->page_count] = rp_page_create ();
    if (!op->pages[op->page_count]) {
      op_destroy (op);
      return NULL;
    }
  }
  return op;
}

void
sim_op_text (const struct sim_op *op, char *buffer, size_t buffer_bytes)
{
  static const char *const doing[] = {
    [SIM_MAKE] = "make", [SIM_GROW] = "grow", [SIM_CUT] = "truncate",
    [SIM_WRITE] = "write", [SIM_LINK] = "link", [SIM_UNLINK] = "unlink",
    [SIM_RENAME] = "rename", [SIM_SYNC] = "sync", [SIM_LOSE] = "lose",
    [SIM_ACKNOWLEDGE] = "acknowledge",
  };
  const char *verb = doing[op->kind];
  const char *path = op->path ? op->path->text : "";
  const char *slash = strcmp (path, "/") == 0 ? "" : "/";

  switch (op->kind) {
  case SIM_GROW:
  case SIM_CUT:
    snprintf (buffer, buffer_bytes, "%s %s to %" PRIu64, verb, path,
              op->offset);
    break;
  case SIM_WRITE:
    snprintf (buffer, buffer_bytes, "%s %s [%" PRIu64 ", %" PRIu64 ")",
              op->page_count ? verb : "punch", path, op->offset,
              op->offset + op->length);
    break;
  case SIM_LINK:
  case SIM_UNLINK:
    snprintf (buffer, buffer_bytes, "%s %s%s%s", verb, path, slash,
              op->name->text);
    break;
  case SIM_RENAME:
    snprintf (buffer, buffer_bytes, "%s %s%s%s to %s", verb, path, slash,
              op->name->text, op->to->text);
    break;
  case SIM_ACKNOWLEDGE:
    snprintf (buffer, buffer_bytes, "%s %" PRIu64, verb, op->offset);
    break;
  default:
    snprintf (buffer, buffer_bytes, "%s %s", verb, path);
  }
}

static int
apply_rename (struct rp_tree *tree, const struct sim_op *op)
{
  int status = RP_OK;

  if (rp_tree_find (tree, op->inode, op->name->text) == op->target)
    status = rp_tree_unlink (tree, op->inode, op->name->text);
  if (status == RP_OK)
    status = rp_tree_link (tree, op->inode, op->to, op->target);
  return status;
}

int
sim_apply (struct rp_tree *tree, const struct sim_op *op)
{
  int status;

  switch (op->kind) {
  case SIM_MAKE:
    return rp_tree_add (tree, op->inode, op->is_directory);
  case SIM_GROW:
    if (rp_tree_size (tree, op->inode) >= op->offset)
      return RP_OK;
    return rp_tree_set_size (tree, op->inode, op->offset);
  case SIM_CUT:
    status = rp_tree_set_size (tree, op->inode, op->offset);
    return status == RP_OK ? rp_tree_clip (tree, op->inode) : status;
  case SIM_WRITE:
    return rp_tree_put (tree, op->inode, op->offset, op->length,
                        op->page_count ? op->pages : NULL,
                        op->offset / RP_PAGE_BYTES);
  case SIM_LINK:
    return rp_tree_link (tree, op->inode, op->name, op->target);
  case SIM_UNLINK:
    return rp_tree_unlink (tree, op->inode, op->name->text);
  case SIM_RENAME:
    return apply_rename (tree, op);
  case SIM_SYNC:
  case SIM_LOSE:
  case SIM_ACKNOWLEDGE:
    break;
  }
  return RP_OK;
}

/* Append to the log and change what programs see.  Takes the operation over;
 * NULL is "no memory". */
static int
commit_op (struct sim_io *io, struct sim_op *op)
{
  struct sim_op **ops;
  uint64_t room;

  if (!op)
    return RP_NO_MEMORY;
  if (io->op_count == io->op_room) {
    room = io->op_room ? io->op_room * 2 : 16;
    ops = realloc (io->ops, room * sizeof *ops);
    if (!ops) {
      op_destroy (op);
      return RP_NO_MEMORY;
    }
    io->ops = ops;
    io->op_room = room;
  }
  io->ops[io->op_count++] = op;
  return sim_apply (&io->now, op);
}

static int
commit_at (struct sim_io *io, enum sim_kind kind, uint32_t inode,
           struct rp_name *path, uint64_t offset)
{
  struct sim_op *op = op_create (kind, inode, path, 0);

  if (op)
    op->offset = offset;
  return commit_op (io, op);
}

static int
commit_name (struct sim_io *io, enum sim_kind kind, const struct sim_dir *dir,
             const char *name, const char *to, uint32_t target)
{
  struct sim_op *op = op_create (kind, dir->inode, dir->path, 0);

  if (!op)
    return RP_NO_MEMORY;
  op->target = target;
  op->name = rp_name_create (name);
  op->to = to ? rp_name_create (to) : NULL;
  if (!op->name || (to && !op->to)) {
    op_destroy (op);
    return RP_NO_MEMORY;
  }
  return commit_op (io, op);
}

/* ---- replay ---- */

int
sim_replay_start (struct sim_replay *replay, const struct sim_io *io)
{
  *replay = (struct sim_replay) { .pending = NULL };
  return rp_tree_copy (&io->first, &replay->base);
}

void
sim_replay_end (struct sim_replay *replay)
{
  rp_tree_clear (&replay->base);
  free (replay->pending);
  *replay = (struct sim_replay) { .pending = NULL };
}

static int
add_pending (struct sim_replay *replay, const struct sim_op *op)
{
  const struct sim_op **pending;
  uint32_t room;

  if (replay->count == replay->room) {
    room = replay->room ? replay->room * 2 : 16;
    pending = realloc (replay->pending, room * sizeof *pending);
    if (!pending)
      return RP_NO_MEMORY;
    replay->pending = pending;
    replay->room = room;
  }
  replay->pending[replay->count++] = op;
  return RP_OK;
}

/* Pending operations of the inode become durable (or, with keep_sizes, only
 * what is no write does, some day; the writes are gone). */
static int
take_pending (struct sim_replay *replay, uint32_t inode, bool lose)
{
  uint32_t kept = 0;
  int status = RP_OK;

  for (uint32_t i = 0; i < replay->count; i++) {
    const struct sim_op *op = replay->pending[i];
    const bool size = op->kind == SIM_GROW || op->kind == SIM_CUT;

    if (op->inode != inode || (lose && size))
      replay->pending[kept++] = op;
    else if (!lose && status == RP_OK)
      status = sim_apply (&replay->base, op);
  }
  replay->count = kept;
  return status;
}

/* A sync that leaves out the bytes of one sector: they stay as they were. */
static int
take_but_one (struct sim_replay *replay, const struct sim_op *op)
{
  const uint64_t within = op->offset % RP_PAGE_BYTES;
  struct rp_page *before = rp_page_create ();
  int status;

  if (!before)
    return RP_NO_MEMORY;
  rp_tree_get (&replay->base, op->inode, before->bytes + within, op->length,
               op->offset);
  status = take_pending (replay, op->inode, false);
  if (status == RP_OK)
    status = rp_tree_put (&replay->base, op->inode, op->offset, op->length,
                          &before, op->offset / RP_PAGE_BYTES);
  rp_page_release (before);
  return status;
}

int
sim_replay_step (struct sim_replay *replay, const struct sim_op *op)
{
  switch (op->kind) {
  case SIM_MAKE:
    return sim_apply (&replay->base, op);
  case SIM_SYNC:
    return op->length ? take_but_one (replay, op)
                      : take_pending (replay, op->inode, false);
  case SIM_LOSE:
    return take_pending (replay, op->inode, true);
  case SIM_ACKNOWLEDGE:
    return RP_OK;
  default:
    return add_pending (replay, op);
  }
}

static int
replay_all (struct sim_replay *replay, const struct sim_io *io)
{
  int status = sim_replay_start (replay, io);

  for (uint64_t i = 0; i < io->op_count && status == RP_OK; i++)
    status = sim_replay_step (replay, io->ops[i]);
  return status;
}

/* ---- the io ---- */

static void
clear_log (struct sim_io *io)
{
  for (uint64_t i = 0; i < io->op_count; i++)
    op_destroy (io->ops[i]);
  free (io->ops);
  io->ops = NULL;
  io->op_count = io->op_room = 0;
}

static void
simulate_destroy (struct rp_io *rp)
{
  struct sim_io *io = sim_of (rp);

  RP_CHECK (io->sweeps == 0);
  RP_CHECK (io->open == NULL);
  clear_log (io);
  rp_tree_clear (&io->now);
  rp_tree_clear (&io->first);
  pthread_mutex_destroy (&io->lock);
  free (io);
}

int
sim_create (struct rp_tree *tree, struct rp_io **out, struct rp_fault *fault)
{
  struct sim_io *io = calloc (1, sizeof *io);

  *out = NULL;
  if (!io || rp_tree_copy (tree, &io->first) != RP_OK) {
    rp_tree_clear (tree);
    if (io)
      rp_tree_clear (&io->first);
    free (io);
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the simulate backend");
  }
  io->now = *tree;
  *tree = (struct rp_tree) { .inodes = NULL };
  io->io.functions = &simulate_functions;
  RP_CHECK (pthread_mutex_init (&io->lock, NULL) == 0);
  io->next_inode = io->now.count;
  *out = &io->io;
  return RP_OK;
}

int
rp_io_simulate_create (struct rp_io **out, struct rp_fault *fault)
{
  struct rp_tree tree;

  *out = NULL;
  if (rp_tree_create (&tree) != RP_OK)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the simulate backend");
  return sim_create (&tree, out, fault);
}

bool
rp_io_is_simulate (const struct rp_io *io)
{
  return io->functions == &simulate_functions;
}

static int
finish (struct sim_io *io, int status, const char *path,
        struct rp_fault *fault)
{
  sim_unlock (io);
  if (status == RP_NO_MEMORY)
    return rp_fail (fault, status, 0, "simulating %s", path);
  return status;
}

int
rp_sim_acknowledge (struct rp_io *rp, uint64_t tag, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp);

  sim_lock (io);
  return finish (io, commit_at (io, SIM_ACKNOWLEDGE, 0, NULL, tag),
                 "an acknowledgement", fault);
}

int
rp_sim_settle (struct rp_io *rp, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp);
  struct rp_tree durable;
  int status;

  sim_lock (io);
  if (io->sweeps > 0) {
    sim_unlock (io);
    return rp_fail (fault, RP_STATE, 0, "a sweep still reads the log");
  }
  status = rp_tree_copy (&io->now, &durable);
  if (status == RP_OK) {
    for (uint64_t i = 0; i < io->op_count; i++)
      if (io->ops[i]->kind == SIM_ACKNOWLEDGE) {
        io->acknowledged_before++;
        io->last_tag = io->ops[i]->offset;
      }
    clear_log (io);
    rp_tree_clear (&io->first);
    io->first = durable;
  }
  return finish (io, status, "a settled disk", fault);
}

uint64_t
rp_sim_operation_count (struct rp_io *rp)
{
  struct sim_io *io = sim_of (rp);
  uint64_t count;

  sim_lock (io);
  count = io->op_count;
  sim_unlock (io);
  return count;
}

void
rp_sim_operation_text (struct rp_io *rp, uint64_t index, char *buffer,
                       size_t buffer_bytes)
{
  struct sim_io *io = sim_of (rp);

  sim_lock (io);
  RP_CHECK (index < io->op_count);
  sim_op_text (io->ops[index], buffer, buffer_bytes);
  sim_unlock (io);
}

/* ---- directories ---- */

static struct rp_name *
join (const char *path, const char *name)
{
  const size_t room = strlen (path) + strlen (name) + 2;
  char *text = malloc (room);
  struct rp_name *joined;

  if (!text)
    return NULL;
  snprintf (text, room, "%s%s%s", path, strcmp (path, "/") == 0 ? "" : "/",
            name);
  joined = rp_name_create (text);
  free (text);
  return joined;
}

/* "/", "" and "." are the root; ".." is not known here. */
static int
walk (const struct sim_io *io, const char *path, uint32_t *out)
{
  char name[RP_NAME_BYTES];
  uint32_t inode = RP_TREE_ROOT;

  while (*path) {
    const size_t length = strcspn (path, "/");

    if (length >= sizeof name)
      return ENAMETOOLONG;
    memcpy (name, path, length);
    name[length] = '\0';
    if (length > 0 && strcmp (name, ".") != 0) {
      inode = rp_tree_find (&io->now, inode, name);
      if (inode == 0)
        return ENOENT;
      if (!rp_tree_is_directory (&io->now, inode))
        return ENOTDIR;
    }
    path += length + (path[length] == '/');
  }
  *out = inode;
  return 0;
}

static int
simulate_dir_open (struct rp_io *rp, const char *path, struct rp_dir **out,
                   struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp);
  struct sim_dir *dir = calloc (1, sizeof *dir);
  int os_errno;

  if (dir)
    dir->path = rp_name_create (path);
  if (!dir || !dir->path) {
    free (dir);
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", path);
  }
  sim_lock (io);
  os_errno = walk (io, path, &dir->inode);
  sim_unlock (io);
  if (os_errno != 0) {
    rp_name_release (dir->path);
    free (dir);
    return rp_fail_os (fault, os_errno, 0, "opening the directory %s", path);
  }
  dir->dir.io = rp;
  dir->dir.path = dir->path->text;
  atomic_init (&dir->dir.failed, false);
  *out = &dir->dir;
  return RP_OK;
}

static void
simulate_dir_close (struct rp_dir *dir)
{
  rp_name_release (dir_of (dir)->path);
  free (dir);
}

/* The inode behind a name, 0 where there is none. */
static uint32_t
find (struct sim_io *io, struct rp_dir *dir, const char *name)
{
  if (strcmp (name, ".") == 0)
    return dir_of (dir)->inode;
  return rp_tree_find (&io->now, dir_of (dir)->inode, name);
}

static int
make_inode (struct sim_io *io, struct rp_dir *dir, const char *name,
            bool is_directory, uint32_t *inode_out)
{
  const uint32_t inode = io->next_inode++;
  struct rp_name *path = join (dir->path, name);
  struct sim_op *op = path ? op_create (SIM_MAKE, inode, path, 0) : NULL;
  int status;

  if (op)
    op->is_directory = is_directory;
  rp_name_release (path);
  status = commit_op (io, op);
  if (status == RP_OK)
    status = commit_name (io, SIM_LINK, dir_of (dir), name, NULL, inode);
  *inode_out = inode;
  return status;
}

static int
simulate_dir_make (struct rp_dir *dir, const char *name, uint32_t mode,
                   struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  uint32_t inode;
  int status;

  (void) mode;
  sim_lock (io);
  if (find (io, dir, name) != 0)
    status = rp_fail_os (fault, EEXIST, 0, "making the directory %s/%s",
                         dir->path, name);
  else
    status = make_inode (io, dir, name, true, &inode);
  return finish (io, status, dir->path, fault);
}

static int
remove_entry (struct rp_dir *dir, const char *name, bool want_directory,
              struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  uint32_t inode;
  int status, os_errno = 0;

  sim_lock (io);
  inode = find (io, dir, name);
  if (inode == 0)
    os_errno = ENOENT;
  else if (rp_tree_is_directory (&io->now, inode) != want_directory)
    os_errno = want_directory ? ENOTDIR : EISDIR;
  else if (want_directory && rp_tree_entry_count (&io->now, inode) > 0)
    os_errno = ENOTEMPTY;
  if (os_errno)
    status = rp_fail_os (fault, os_errno, 0, "removing %s/%s", dir->path, name);
  else
    status = commit_name (io, SIM_UNLINK, dir_of (dir), name, NULL, inode);
  return finish (io, status, dir->path, fault);
}

static int
simulate_dir_remove (struct rp_dir *dir, const char *name,
                     struct rp_fault *fault)
{
  return remove_entry (dir, name, true, fault);
}

static int
simulate_dir_unlink (struct rp_dir *dir, const char *name,
                     struct rp_fault *fault)
{
  return remove_entry (dir, name, false, fault);
}

static int
simulate_dir_sync (struct rp_dir *dir, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);

  sim_lock (io);
  return finish (io, commit_at (io, SIM_SYNC, dir_of (dir)->inode,
                                dir_of (dir)->path, 0),
                 dir->path, fault);
}

static int
rename_error (struct sim_io *io, uint32_t from, uint32_t to)
{
  if (from == 0)
    return ENOENT;
  if (to == 0)
    return 0;
  if (!rp_tree_is_directory (&io->now, to))
    return rp_tree_is_directory (&io->now, from) ? ENOTDIR : 0;
  if (!rp_tree_is_directory (&io->now, from))
    return EISDIR;
  return rp_tree_entry_count (&io->now, to) > 0 ? ENOTEMPTY : 0;
}

static int
simulate_dir_rename (struct rp_dir *dir, const char *from, const char *to,
                     struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  uint32_t inode;
  int status = RP_OK, os_errno;

  sim_lock (io);
  inode = find (io, dir, from);
  os_errno = rename_error (io, inode, find (io, dir, to));
  if (os_errno)
    status = rp_fail_os (fault, os_errno, 0, "renaming %s/%s to %s", dir->path,
                         from, to);
  else if (strcmp (from, to) != 0)
    status = commit_name (io, SIM_RENAME, dir_of (dir), from, to, inode);
  return finish (io, status, dir->path, fault);
}

/* The names are called back without the lock, so that the callee may use the
 * io. */
static int
simulate_dir_list (struct rp_dir *dir, void (*each) (void *, const char *),
                   void *context, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  struct rp_name **names;
  uint32_t count;

  sim_lock (io);
  count = rp_tree_entry_count (&io->now, dir_of (dir)->inode);
  names = calloc (count + 1u, sizeof *names);
  for (uint32_t i = 0; names && i < count; i++)
    names[i] = rp_name_share (rp_tree_entry (&io->now, dir_of (dir)->inode, i));
  sim_unlock (io);
  if (!names)
    return rp_fail (fault, RP_NO_MEMORY, 0, "listing %s", dir->path);
  for (uint32_t i = 0; i < count; i++) {
    each (context, names[i]->text);
    rp_name_release (names[i]);
  }
  free (names);
  return RP_OK;
}

static void
fill_stat (struct sim_io *io, uint32_t inode, struct rp_stat *out)
{
  const bool is_directory = rp_tree_is_directory (&io->now, inode);

  *out = (struct rp_stat) {
    .size_bytes = rp_tree_size (&io->now, inode),
    .allocated_bytes = rp_tree_allocated (&io->now, inode),
    .device = 1,
    .inode = inode,
    .is_directory = is_directory,
    .is_regular = !is_directory,
  };
}

static int
simulate_dir_stat (struct rp_dir *dir, const char *name, struct rp_stat *out,
                   struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  uint32_t inode;

  sim_lock (io);
  inode = find (io, dir, name);
  if (inode != 0)
    fill_stat (io, inode, out);
  sim_unlock (io);
  if (inode == 0)
    return rp_fail_os (fault, ENOENT, 0, "looking at %s/%s", dir->path, name);
  return RP_OK;
}

/* ---- files ---- */

/* Find or make the inode as the flags say. */
static int
open_inode (struct sim_io *io, struct rp_dir *dir, const char *name,
            uint32_t flags, struct sim_file *file, struct rp_fault *fault)
{
  int os_errno = 0;

  file->inode = find (io, dir, name);
  if (file->inode == 0) {
    if (flags & RP_OPEN_CREATE)
      return make_inode (io, dir, name, false, &file->inode);
    os_errno = ENOENT;
  } else if (flags & RP_OPEN_EXCLUSIVE)
    os_errno = EEXIST;
  if (os_errno)
    return rp_fail_os (fault, os_errno, 0, "opening %s/%s", dir->path, name);
  if (rp_tree_is_directory (&io->now, file->inode))
    return rp_fail (fault, RP_FORMAT, 0, "%s/%s is not a regular file",
                    dir->path, name);
  if ((flags & RP_OPEN_TRUNCATE) && rp_tree_size (&io->now, file->inode) > 0)
    return commit_at (io, SIM_CUT, file->inode, file->path, 0);
  return RP_OK;
}

static int
simulate_file_open (struct rp_dir *dir, const char *name, uint32_t flags,
                    uint32_t mode, struct rp_file **out,
                    struct rp_fault *fault)
{
  struct sim_io *io = sim_of (dir->io);
  struct sim_file *file = calloc (1, sizeof *file);
  int status;

  (void) mode;
  if (file)
    file->path = join (dir->path, name);
  if (!file || !file->path) {
    free (file);
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s/%s", dir->path, name);
  }
  file->file.io = dir->io;
  file->file.name = file->path->text;
  atomic_init (&file->file.failed, false);
  file->writable = (flags & RP_OPEN_WRITE) != 0;
  sim_lock (io);
  status = open_inode (io, dir, name, flags, file, fault);
  if (status == RP_OK) {
    file->next = io->open;
    file->link = &io->open;
    if (file->next)
      file->next->link = &file->next;
    io->open = file;
    *out = &file->file;
  }
  status = finish (io, status, dir->path, fault);
  if (status != RP_OK) {
    rp_name_release (file->path);
    free (file);
  }
  return status;
}

static void
simulate_file_close (struct rp_file *rp)
{
  struct sim_io *io = sim_of (rp->io);
  struct sim_file *file = file_of (rp);

  sim_lock (io);
  *file->link = file->next;
  if (file->next)
    file->next->link = file->link;
  sim_unlock (io);
  rp_name_release (file->path);
  free (file);
}

static int
simulate_file_pread (struct rp_file *file, void *buffer, size_t length,
                     uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);
  const uint32_t inode = file_of (file)->inode;
  uint64_t size;

  (void) fault;
  sim_lock (io);
  size = rp_tree_size (&io->now, inode);
  if (offset >= size)
    length = 0;
  else if (length > size - offset)
    length = size - offset;
  rp_tree_get (&io->now, inode, buffer, length, offset);
  sim_unlock (io);
  *done_out = length;
  return RP_OK;
}

static int
check_writable (struct rp_file *file, const char *doing, struct rp_fault *fault)
{
  if (file_of (file)->writable)
    return RP_OK;
  return rp_fail_os (fault, EBADF, 0, "%s %s", doing, file->name);
}

static int
commit_grow (struct sim_io *io, const struct sim_file *file, uint64_t size,
             bool joined)
{
  struct sim_op *op;

  if (size <= rp_tree_size (&io->now, file->inode))
    return RP_OK;
  op = op_create (SIM_GROW, file->inode, file->path, 0);
  if (op) {
    op->offset = size;
    op->joined = joined;
  }
  return commit_op (io, op);
}

static void
fill_pages (struct sim_op *op, const struct iovec *parts, int part_count)
{
  const uint64_t first = op->offset / RP_PAGE_BYTES;
  uint64_t offset = op->offset;

  for (int i = 0; i < part_count; i++) {
    const char *from = parts[i].iov_base;
    size_t left = parts[i].iov_len;

    while (left > 0) {
      const size_t within = offset % RP_PAGE_BYTES;
      const size_t room = RP_PAGE_BYTES - within;
      const size_t piece = left < room ? left : room;

      memcpy (op->pages[offset / RP_PAGE_BYTES - first]->bytes + within, from,
              piece);
      from += piece;
      offset += piece;
      left -= piece;
    }
  }
}

static int
simulate_file_pwritev (struct rp_file *rp, const struct iovec *parts,
                       int part_count, uint64_t offset, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp->io);
  struct sim_file *file = file_of (rp);
  uint64_t length = 0;
  struct sim_op *op;
  int status;

  status = check_writable (rp, "writing", fault);
  if (status != RP_OK)
    return status;
  for (int i = 0; i < part_count; i++)
    length += parts[i].iov_len;
  op = op_create (SIM_WRITE, file->inode, file->path,
                  (uint32_t) (rp_divide_up (offset + length, RP_PAGE_BYTES)
                              - offset / RP_PAGE_BYTES));
  if (!op)
    return rp_fail (fault, RP_NO_MEMORY, offset, "writing %s", rp->name);
  op->offset = offset;
  op->length = length;
  fill_pages (op, parts, part_count);
  sim_lock (io);
  status = commit_grow (io, file, offset + length, true);
  if (status == RP_OK)
    status = commit_op (io, op);
  else
    op_destroy (op);
  return finish (io, status, rp->name, fault);
}

static int
simulate_file_sync (struct rp_file *file, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);

  sim_lock (io);
  return finish (io, commit_at (io, SIM_SYNC, file_of (file)->inode,
                                file_of (file)->path, 0),
                 file->name, fault);
}

static int
simulate_file_truncate (struct rp_file *rp, uint64_t size,
                        struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp->io);
  struct sim_file *file = file_of (rp);
  int status = check_writable (rp, "setting the size of", fault);

  if (status != RP_OK)
    return status;
  sim_lock (io);
  if (size < rp_tree_size (&io->now, file->inode))
    status = commit_at (io, SIM_CUT, file->inode, file->path, size);
  else
    status = commit_grow (io, file, size, false);
  return finish (io, status, rp->name, fault);
}

static int
simulate_file_allocate (struct rp_file *rp, uint64_t offset, uint64_t length,
                        struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp->io);
  int status = check_writable (rp, "reserving space in", fault);

  if (status != RP_OK)
    return status;
  sim_lock (io);
  status = commit_grow (io, file_of (rp), offset + length, false);
  return finish (io, status, rp->name, fault);
}

static int
simulate_file_punch (struct rp_file *rp, uint64_t offset, uint64_t length,
                     struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp->io);
  struct sim_file *file = file_of (rp);
  int status = check_writable (rp, "punching a hole in", fault);
  struct sim_op *op;
  uint64_t size;

  if (status != RP_OK)
    return status;
  sim_lock (io);
  size = rp_tree_size (&io->now, file->inode);
  if (offset < size) {
    op = op_create (SIM_WRITE, file->inode, file->path, 0);
    if (op) {
      op->offset = offset;
      op->length = length < size - offset ? length : size - offset;
    }
    status = commit_op (io, op);
  }
  return finish (io, status, rp->name, fault);
}

static int
simulate_file_stat (struct rp_file *file, struct rp_stat *out,
                    struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);

  (void) fault;
  sim_lock (io);
  fill_stat (io, file_of (file)->inode, out);
  sim_unlock (io);
  return RP_OK;
}

static int
simulate_file_seek (struct rp_file *file, uint64_t offset, bool want_data,
                    uint64_t *out, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);

  (void) fault;
  sim_lock (io);
  *out = rp_tree_seek (&io->now, file_of (file)->inode, offset, want_data);
  sim_unlock (io);
  return RP_OK;
}

static int
simulate_file_lock (struct rp_file *rp, bool exclusive, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp->io);
  struct sim_file *file = file_of (rp);
  bool taken = false;

  sim_lock (io);
  for (struct sim_file *other = io->open; other; other = other->next)
    if (other != file && other->inode == file->inode
        && (other->lock == LOCKED_EXCLUSIVE
            || (exclusive && other->lock == LOCKED_SHARED)))
      taken = true;
  if (!taken)
    file->lock = exclusive ? LOCKED_EXCLUSIVE : LOCKED_SHARED;
  sim_unlock (io);
  return taken ? rp_fail (fault, RP_LOCKED, 0, "%s", rp->name) : RP_OK;
}

/* ---- failing syncs ---- */

/* What the disk has of one file becomes what programs see. */
static int
forget_cache (struct sim_io *io, uint32_t inode)
{
  struct sim_replay replay;
  int status = replay_all (&replay, io);

  for (uint32_t i = 0; i < replay.count && status == RP_OK; i++)
    if (replay.pending[i]->inode == inode)
      status = sim_apply (&replay.base, replay.pending[i]);
  if (status == RP_OK)
    status = rp_tree_take (&io->now, inode, &replay.base);
  sim_replay_end (&replay);
  return status;
}

int
rp_sim_file_lose (struct rp_file *file, bool forget, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);
  const uint32_t inode = file_of (file)->inode;
  int status;

  sim_lock (io);
  status = commit_at (io, SIM_LOSE, inode, file_of (file)->path, 0);
  if (status == RP_OK && forget)
    status = forget_cache (io, inode);
  return finish (io, status, file->name, fault);
}

/* Aim a lying sync at one sector of the last pending write. */
static int
aim (struct sim_io *io, struct sim_op *lie, uint64_t seed)
{
  struct sim_replay replay;
  const struct sim_op *last = NULL;
  uint64_t first, count, stop;
  int status = replay_all (&replay, io);

  for (uint32_t i = 0; i < replay.count && status == RP_OK; i++)
    if (replay.pending[i]->inode == lie->inode
        && replay.pending[i]->kind == SIM_WRITE)
      last = replay.pending[i];
  if (last) {
    first = last->offset / RP_SECTOR_BYTES;
    stop = last->offset + last->length;
    count = rp_divide_up (stop, RP_SECTOR_BYTES) - first;
    first = (first + seed % count) * RP_SECTOR_BYTES;
    lie->offset = first > last->offset ? first : last->offset;
    lie->length = first + RP_SECTOR_BYTES < stop
                  ? first + RP_SECTOR_BYTES - lie->offset : stop - lie->offset;
  }
  sim_replay_end (&replay);
  return status;
}

int
rp_sim_file_lie (struct rp_file *file, uint64_t seed, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (file->io);
  struct sim_op *op = op_create (SIM_SYNC, file_of (file)->inode,
                                 file_of (file)->path, 0);
  int status;

  sim_lock (io);
  status = op ? aim (io, op, seed) : RP_NO_MEMORY;
  if (status == RP_OK)
    status = commit_op (io, op);
  else
    op_destroy (op);
  return finish (io, status, file->name, fault);
}

static const struct rp_io_functions simulate_functions = {
  .name = "simulate",
  .destroy = simulate_destroy,
  .dir_open = simulate_dir_open,
  .dir_close = simulate_dir_close,
  .dir_make = simulate_dir_make,
  .dir_remove = simulate_dir_remove,
  .dir_sync = simulate_dir_sync,
  .dir_rename = simulate_dir_rename,
  .dir_unlink = simulate_dir_unlink,
  .dir_list = simulate_dir_list,
  .dir_stat = simulate_dir_stat,
  .file_open = simulate_file_open,
  .file_close = simulate_file_close,
  .file_pread = simulate_file_pread,
  .file_pwritev = simulate_file_pwritev,
  .file_sync = simulate_file_sync,
  .file_truncate = simulate_file_truncate,
  .file_allocate = simulate_file_allocate,
  .file_punch = simulate_file_punch,
  .file_stat = simulate_file_stat,
  .file_seek = simulate_file_seek,
  .file_lock = simulate_file_lock,
};

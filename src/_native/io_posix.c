/* SPDX-License-Identifier: Apache-2.0 */
/* The production backend: the only file of the core that asks the kernel for
 * persistent storage. */
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define ZERO_BYTES 65536u        /* written at once where there are no holes */

/* Of a file that is streamed: write-back begins whenever so much was written,
 * and what lies so far behind the furthest write is waited for and given up. */
#define STREAM_STEP_BYTES   (UINT64_C (8) << 20)
#define STREAM_BEHIND_BYTES (UINT64_C (64) << 20)

struct posix_io {
  struct rp_io           io;
  struct rp_posix_limits limits; /* of the tests; all zero otherwise */
  bool                   unsynced;
  atomic_bool            no_openat2; /* the kernel said so */
  atomic_uint            calls;  /* limited: every other one is interrupted */
};

struct posix_dir {
  struct rp_dir dir;
  int           fd;
  char          path[];
};

struct posix_file {
  struct rp_file   file;
  int              fd;
  atomic_bool      streaming;
  atomic_flag      pushing;      /* a thread is writing back */
  _Atomic uint64_t stretch;      /* bytes written since that began */
  _Atomic uint64_t furthest;     /* end of the furthest write */
  uint64_t         given_up;     /* all before is clean; under pushing */
  char             name[];
};

static struct posix_io *
io_of (struct rp_io *io)
{
  return (struct posix_io *) io;
}

static struct posix_dir *
dir_of (struct rp_dir *dir)
{
  return (struct posix_dir *) dir;
}

static struct posix_file *
file_of (struct rp_file *file)
{
  return (struct posix_file *) file;
}

static int
fail_entry (struct rp_dir *dir, const char *name, const char *doing,
            struct rp_fault *fault)
{
  return rp_fail_os (fault, errno, 0, "%s %s/%s", doing, dir->path, name);
}

static int
fail_file (struct rp_file *file, const char *doing, uint64_t offset,
           struct rp_fault *fault)
{
  return rp_fail_os (fault, errno, offset, "%s %s at byte %llu", doing,
                     file->name, (unsigned long long) offset);
}

/* With a limit, every other call pretends that a signal came. */
static bool
interrupted (struct rp_file *file)
{
  struct posix_io *io = io_of (file->io);

  return io->limits.call_bytes > 0
         && atomic_fetch_add (&io->calls, 1) % 2 == 0;
}

static size_t
limit (struct rp_file *file, size_t length)
{
  const size_t most = io_of (file->io)->limits.call_bytes;

  return most > 0 && length > most ? most : length;
}

static void
posix_destroy (struct rp_io *io)
{
  free (io);
}

static int
posix_dir_open (struct rp_io *io, const char *path, struct rp_dir **out,
                struct rp_fault *fault)
{
  const size_t path_bytes = strlen (path) + 1;
  struct posix_dir *dir = malloc (sizeof *dir + path_bytes);

  if (!dir)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening the directory %s", path);
  dir->fd = open (path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir->fd < 0) {
    const int os_errno = errno;
    free (dir);
    return rp_fail_os (fault, os_errno, 0, "opening the directory %s", path);
  }
  memcpy (dir->path, path, path_bytes);
  dir->dir.io = io;
  dir->dir.path = dir->path;
  atomic_init (&dir->dir.failed, false);
  *out = &dir->dir;
  return RP_OK;
}

static void
posix_dir_close (struct rp_dir *dir)
{
  close (dir_of (dir)->fd);
  free (dir);
}

static int
posix_dir_make (struct rp_dir *dir, const char *name, uint32_t mode,
                struct rp_fault *fault)
{
  if (mkdirat (dir_of (dir)->fd, name, (mode_t) mode) != 0)
    return fail_entry (dir, name, "making the directory", fault);
  return RP_OK;
}

static int
posix_dir_remove (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  if (unlinkat (dir_of (dir)->fd, name, AT_REMOVEDIR) != 0)
    return fail_entry (dir, name, "removing the directory", fault);
  return RP_OK;
}

static int
posix_dir_sync (struct rp_dir *dir, struct rp_fault *fault)
{
  int result;

  if (io_of (dir->io)->unsynced)
    return RP_OK;
  do
    result = fsync (dir_of (dir)->fd);
  while (result != 0 && errno == EINTR);
  if (result != 0)
    return rp_fail_os (fault, errno, 0, "syncing the directory %s", dir->path);
  return RP_OK;
}

static int
posix_dir_rename (struct rp_dir *dir, const char *from, const char *to,
                  struct rp_fault *fault)
{
  const int fd = dir_of (dir)->fd;

  if (renameat (fd, from, fd, to) != 0)
    return rp_fail_os (fault, errno, 0, "renaming %s/%s to %s", dir->path,
                       from, to);
  return RP_OK;
}

static int
posix_dir_unlink (struct rp_dir *dir, const char *name, struct rp_fault *fault)
{
  if (unlinkat (dir_of (dir)->fd, name, 0) != 0)
    return fail_entry (dir, name, "removing", fault);
  return RP_OK;
}

static int
posix_dir_list (struct rp_dir *dir, void (*each) (void *, const char *),
                void *context, struct rp_fault *fault)
{
  /* a descriptor of its own: the position of dir's is shared by all threads */
  const int fd = openat (dir_of (dir)->fd, ".",
                         O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *stream = fd >= 0 ? fdopendir (fd) : NULL;
  struct dirent *entry;
  int os_errno;

  if (!stream) {
    os_errno = errno;
    if (fd >= 0)
      close (fd);
    return rp_fail_os (fault, os_errno, 0, "listing %s", dir->path);
  }
  while (errno = 0, (entry = readdir (stream)) != NULL)
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
      each (context, entry->d_name);
  os_errno = errno;
  closedir (stream);
  if (os_errno != 0)
    return rp_fail_os (fault, os_errno, 0, "listing %s", dir->path);
  return RP_OK;
}

static void
copy_stat (const struct stat *from, struct rp_stat *to)
{
  *to = (struct rp_stat) {
    .size_bytes = (uint64_t) from->st_size,
    .allocated_bytes = (uint64_t) from->st_blocks * 512,
    .device = from->st_dev,
    .inode = from->st_ino,
    .is_directory = S_ISDIR (from->st_mode),
    .is_regular = S_ISREG (from->st_mode),
    .mode = from->st_mode & 07777,
  };
}

static int
posix_dir_stat (struct rp_dir *dir, const char *name, struct rp_stat *out,
                struct rp_fault *fault)
{
  struct stat stat;

  if (fstatat (dir_of (dir)->fd, name, &stat, 0) != 0)
    return fail_entry (dir, name, "looking at", fault);
  copy_stat (&stat, out);
  return RP_OK;
}

static int
system_flags (uint32_t flags)
{
  /* NONBLOCK: opening a FIFO that somebody planted must not wait for its
     other end.  Regular files do not care. */
  int result = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

  result |= flags & RP_OPEN_WRITE ? O_RDWR : O_RDONLY;
  if (flags & RP_OPEN_CREATE)
    result |= O_CREAT;
  if (flags & RP_OPEN_EXCLUSIVE)
    result |= O_EXCL;
  if (flags & RP_OPEN_TRUNCATE)
    result |= O_TRUNC;
  return result;
}

/* Name is one component, so O_NOFOLLOW says nearly all of it; openat2 also
 * refuses the links of /proc, and will mean the same when names grow. */
static int
open_beneath (struct rp_dir *dir, const char *name, int flags, mode_t mode)
{
  struct posix_io *io = io_of (dir->io);
  const struct open_how how = {
    .flags = (uint64_t) (flags | O_NOFOLLOW),
    .mode = flags & O_CREAT ? mode : 0,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
  };
  long fd;

  if (!atomic_load (&io->no_openat2)) {
    fd = syscall (SYS_openat2, dir_of (dir)->fd, name, &how, sizeof how);
    /* EPERM: what containers with an old seccomp filter answer */
    if (fd >= 0 || (errno != ENOSYS && errno != EPERM))
      return (int) fd;
    if (errno == ENOSYS)
      atomic_store (&io->no_openat2, true);
  }
  return openat (dir_of (dir)->fd, name, flags | O_NOFOLLOW, mode);
}

static int
open_entry (struct rp_dir *dir, const char *name, uint32_t flags,
            uint32_t mode, int *fd_out, struct rp_fault *fault)
{
  const int how = system_flags (flags);
  struct stat stat;
  int fd, os_errno;
  bool looked;

  do
    if (flags & RP_OPEN_BENEATH)
      fd = open_beneath (dir, name, how, (mode_t) mode & 07777);
    else
      fd = openat (dir_of (dir)->fd, name, how, (mode_t) mode & 07777);
  while (fd < 0 && errno == EINTR);
  if (fd < 0 && errno == ELOOP && (flags & RP_OPEN_BENEATH))
    return rp_fail (fault, RP_UNSUPPORTED, 0,
                    "%s/%s is a symbolic link, which a name that was read "
                    "from a file may not be", dir->path, name);
  looked = fd >= 0 && fstat (fd, &stat) == 0;
  os_errno = errno;
  if (looked && S_ISREG (stat.st_mode)) {
    *fd_out = fd;
    return RP_OK;
  }
  if (fd >= 0)
    close (fd);
  /* EISDIR, ENXIO: what opening a directory or socket for writing says */
  if (looked || os_errno == EISDIR || os_errno == ENXIO)
    return rp_fail (fault, RP_FORMAT, 0, "%s/%s is not a regular file",
                    dir->path, name);
  return rp_fail_os (fault, os_errno, 0, "opening %s/%s", dir->path, name);
}

static int
posix_file_open (struct rp_dir *dir, const char *name, uint32_t flags,
                 uint32_t mode, struct rp_file **out, struct rp_fault *fault)
{
  const size_t room = strlen (dir->path) + strlen (name) + 2;
  struct posix_file *file = malloc (sizeof *file + room);
  int status;

  if (!file)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s/%s", dir->path, name);
  status = open_entry (dir, name, flags, mode, &file->fd, fault);
  if (status != RP_OK) {
    free (file);
    return status;
  }
  snprintf (file->name, room, "%s%s%s", dir->path,
            strcmp (dir->path, "/") == 0 ? "" : "/", name);
  file->file.io = dir->io;
  file->file.name = file->name;
  atomic_init (&file->file.failed, false);
  atomic_init (&file->streaming, false);
  atomic_flag_clear (&file->pushing);
  atomic_init (&file->stretch, 0);
  atomic_init (&file->furthest, 0);
  file->given_up = 0;
  *out = &file->file;
  return RP_OK;
}

static void
posix_file_close (struct rp_file *file)
{
  close (file_of (file)->fd);
  free (file);
}

static int
posix_file_pread (struct rp_file *file, void *buffer, size_t length,
                  uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  size_t done = 0;
  ssize_t count;

  while (done < length) {
    if (interrupted (file))
      continue;
    count = pread (file_of (file)->fd, (char *) buffer + done,
                   limit (file, length - done), (off_t) (offset + done));
    if (count == 0)
      break;
    if (count > 0)
      done += (size_t) count;
    else if (errno != EINTR)
      return fail_file (file, "reading", offset + done, fault);
    if (RP_SABOTAGED (38))       /* a short count is taken for the end */
      break;
  }
  *done_out = done;
  return RP_OK;
}

/* ---- streaming ---- */

static void
posix_file_stream (struct rp_file *file)
{
  if (!io_of (file->io)->unsynced)
    atomic_store (&file_of (file)->streaming, true);
}

static int
sync_range (struct posix_file *file, uint64_t offset, uint64_t length,
            unsigned flags)
{
  int result;

  do
    result = sync_file_range (file->fd, (off_t) offset, (off_t) length, flags);
  while (result != 0 && errno == EINTR);
  return result;
}

/* Begin to write back all that is dirty; wait for what lies far behind.  The
 * wait takes the error of a failed write-back, which no later sync will see:
 * so it is final here. */
static int
push (struct posix_file *file, struct rp_fault *fault)
{
  const uint64_t furthest = atomic_load (&file->furthest);
  const uint64_t from = file->given_up;
  int result = sync_range (file, 0, 0, SYNC_FILE_RANGE_WRITE);

  if (result == 0 && furthest > from
      && furthest - from >= STREAM_BEHIND_BYTES + STREAM_STEP_BYTES) {
    const uint64_t length = furthest - from - STREAM_BEHIND_BYTES;

    result = sync_range (file, from, length, SYNC_FILE_RANGE_WAIT_BEFORE
                         | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    if (result == 0)
      posix_fadvise (file->fd, (off_t) from, (off_t) length,
                     POSIX_FADV_DONTNEED);
    file->given_up = from + length;
  }
  /* ENOSYS, ESPIPE and the like: not here; the sync at the end does it all */
  if (result == 0 || (errno != EIO && errno != ENOSPC && errno != EDQUOT))
    return RP_OK;
  result = errno;
  atomic_store (&file->file.failed, true);
  return rp_fail_os (fault, result, from, "writing back %s", file->name);
}

/* After a write. */
static int
stream_on (struct rp_file *rp_file, uint64_t end, uint64_t length,
           struct rp_fault *fault)
{
  struct posix_file *file = file_of (rp_file);
  uint64_t furthest = atomic_load (&file->furthest);
  int status = RP_OK;

  while (end > furthest
         && !atomic_compare_exchange_weak (&file->furthest, &furthest, end))
    ;
  if (atomic_fetch_add (&file->stretch, length) + length < STREAM_STEP_BYTES
      || atomic_flag_test_and_set (&file->pushing))
    return RP_OK;
  atomic_store (&file->stretch, 0);
  status = push (file, fault);
  atomic_flag_clear (&file->pushing);
  return status;
}

/* Fill batch with what is left of the parts, from byte skip of *parts on, and
 * no more than the limit.  Returns how many were filled. */
static int
take_parts (struct rp_file *file, const struct iovec *parts, int part_count,
            size_t skip, struct iovec batch[IOV_MAX])
{
  size_t room = limit (file, SSIZE_MAX);
  int count = 0;

  for (int i = 0; i < part_count && count < IOV_MAX && room > 0; i++) {
    size_t length = parts[i].iov_len - skip;

    if (length > room)
      length = room;
    if (length > 0)
      batch[count++] = (struct iovec) {
        .iov_base = (char *) parts[i].iov_base + skip, .iov_len = length,
      };
    room -= length;
    skip = 0;
  }
  return count;
}

static int
posix_file_pwritev (struct rp_file *file, const struct iovec *parts,
                    int part_count, uint64_t offset, struct rp_fault *fault)
{
  const uint64_t begin = offset;
  struct iovec batch[IOV_MAX];
  size_t skip = 0;
  ssize_t written;
  int count;

  for (;;) {
    while (part_count > 0 && skip >= parts->iov_len) {
      skip -= parts->iov_len;
      parts++;
      part_count--;
    }
    if (part_count == 0)
      return atomic_load_explicit (&file_of (file)->streaming,
                                   memory_order_relaxed)
             ? stream_on (file, offset, offset - begin, fault) : RP_OK;
    if (interrupted (file))
      continue;
    count = take_parts (file, parts, part_count, skip, batch);
    written = pwritev (file_of (file)->fd, batch, count, (off_t) offset);
    if (written < 0 && errno == EINTR)
      continue;
    if (written == 0)
      errno = EIO;
    if (written <= 0)
      return fail_file (file, "writing", offset, fault);
    offset += (uint64_t) written;
    skip += (size_t) written;
  }
}

/* EINTR is no verdict about the data: the error of a failed write-back would
 * have been returned in its place.  Any other failure is never retried. */
static int
posix_file_sync (struct rp_file *file, struct rp_fault *fault)
{
  int result;

  if (io_of (file->io)->unsynced)
    return RP_OK;
  do
    result = fdatasync (file_of (file)->fd);
  while (result != 0 && errno == EINTR);
  if (result != 0)
    return rp_fail_os (fault, errno, 0, "syncing %s", file->name);
  return RP_OK;
}

static int
posix_file_truncate (struct rp_file *file, uint64_t size,
                     struct rp_fault *fault)
{
  int result;

  do
    result = ftruncate (file_of (file)->fd, (off_t) size);
  while (result != 0 && errno == EINTR);
  if (result != 0)
    return fail_file (file, "setting the size of", size, fault);
  return RP_OK;
}

static int
write_zeros (struct rp_file *file, uint64_t offset, uint64_t stop,
             struct rp_fault *fault)
{
  void *zeros = calloc (1, ZERO_BYTES);
  int status = RP_OK;

  if (!zeros)
    return rp_fail (fault, RP_NO_MEMORY, offset, "zeroing %s", file->name);
  while (status == RP_OK && offset < stop) {
    const uint64_t left = stop - offset;
    const struct iovec part = {
      .iov_base = zeros, .iov_len = left < ZERO_BYTES ? left : ZERO_BYTES,
    };
    status = posix_file_pwritev (file, &part, 1, offset, fault);
    offset += part.iov_len;
  }
  free (zeros);
  return status;
}

static int
posix_file_stat (struct rp_file *file, struct rp_stat *out,
                 struct rp_fault *fault)
{
  struct stat stat;

  if (fstat (file_of (file)->fd, &stat) != 0)
    return rp_fail_os (fault, errno, 0, "looking at %s", file->name);
  copy_stat (&stat, out);
  return RP_OK;
}

static int
change_space (struct rp_file *file, int mode, uint64_t offset, uint64_t length)
{
  int result;

  if (io_of (file->io)->limits.no_fallocate) {
    errno = EOPNOTSUPP;
    return -1;
  }
  do
    result = fallocate (file_of (file)->fd, mode, (off_t) offset,
                        (off_t) length);
  while (result != 0 && errno == EINTR);
  return result;
}

static int
posix_file_allocate (struct rp_file *file, uint64_t offset, uint64_t length,
                     struct rp_fault *fault)
{
  struct rp_stat stat;
  int status;

  if (change_space (file, 0, offset, length) == 0)
    return RP_OK;
  if (errno != EOPNOTSUPP)
    return fail_file (file, "reserving space in", offset, fault);
  /* No fallocate here (NFS 3).  What lies inside the file stays as it is:
     zeros written there could overtake another thread's data. */
  status = posix_file_stat (file, &stat, fault);
  if (status == RP_OK && stat.size_bytes < offset + length)
    status = write_zeros (file, stat.size_bytes, offset + length, fault);
  return status;
}

static int
posix_file_punch (struct rp_file *file, uint64_t offset, uint64_t length,
                  struct rp_fault *fault)
{
  struct rp_stat stat;
  uint64_t stop = offset + length;
  int status;

  if (change_space (file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
                    length) == 0)
    return RP_OK;
  if (errno != EOPNOTSUPP)
    return fail_file (file, "punching a hole in", offset, fault);
  status = posix_file_stat (file, &stat, fault);
  if (status != RP_OK)
    return status;
  if (stop > stat.size_bytes)
    stop = stat.size_bytes;
  return write_zeros (file, offset, stop, fault);
}

static int
posix_file_seek (struct rp_file *file, uint64_t offset, bool want_data,
                 uint64_t *out, struct rp_fault *fault)
{
  const off_t found = lseek (file_of (file)->fd, (off_t) offset,
                             want_data ? SEEK_DATA : SEEK_HOLE);
  const int os_errno = errno;
  struct rp_stat stat;
  int status;

  if (found >= 0) {
    *out = (uint64_t) found;
    return RP_OK;
  }
  if (os_errno != ENXIO && os_errno != EINVAL)
    return fail_file (file, "looking for data or holes in", offset, fault);
  status = posix_file_stat (file, &stat, fault);
  if (status != RP_OK)
    return status;
  /* ENXIO: nothing more; EINVAL: this file system knows no holes */
  *out = os_errno == EINVAL && want_data && offset < stat.size_bytes
         ? offset : stat.size_bytes;
  return RP_OK;
}

static int
posix_file_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  struct flock lock = {
    .l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET,
    .l_start = RP_LOCK_OFFSET_BYTES, .l_len = 1,
  };

  if (fcntl (file_of (file)->fd, F_OFD_SETLK, &lock) == 0)
    return RP_OK;
  if (errno == EAGAIN || errno == EACCES)
    return rp_fail (fault, RP_LOCKED, 0, "%s", file->name);
  return rp_fail_os (fault, errno, 0, "locking %s", file->name);
}

/* ---- clones ---- */

/* A server that copies by itself; on local file systems copy_file_range moves
 * the data through the page cache, more slowly than reading and writing. */
static bool
is_served (int fd)
{
  static const unsigned served[] = {
    0x6969 /* NFS */, 0xff534d42 /* CIFS */, 0xfe534d42 /* SMB 2 */,
    0x00c36400 /* Ceph */,
  };
  struct statfs about;

  if (fstatfs (fd, &about) != 0)
    return false;
  for (size_t i = 0; i < sizeof served / sizeof *served; i++)
    if ((unsigned) about.f_type == served[i])
      return true;
  return false;
}

static int
copy_on_server (struct rp_file *to, uint64_t to_offset, struct rp_file *from,
                uint64_t from_offset, uint64_t length, struct rp_fault *fault)
{
  off_t in = (off_t) from_offset, out = (off_t) to_offset;
  uint64_t left = length;

  while (left > 0) {
    const ssize_t done = copy_file_range (file_of (from)->fd, &in,
                                          file_of (to)->fd, &out, left, 0);
    if (done > 0)
      left -= (uint64_t) done;
    else if (done == 0 || (errno != EINTR && errno != EIO && errno != ENOSPC))
      return rp_fail (fault, RP_UNSUPPORTED, to_offset, "copying from %s on "
                      "its server", from->name);
    else if (errno != EINTR)
      return fail_file (to, "copying to", (uint64_t) out, fault);
  }
  return RP_OK;
}

static int
posix_file_clone (struct rp_file *to, uint64_t to_offset, struct rp_file *from,
                  uint64_t from_offset, uint64_t length,
                  struct rp_fault *fault)
{
  const struct file_clone_range range = {
    .src_fd = file_of (from)->fd, .src_offset = from_offset,
    .src_length = length, .dest_offset = to_offset,
  };
  int result;

  if (length == 0)               /* to the kernel: up to the end */
    return RP_OK;
  do
    result = ioctl (file_of (to)->fd, FICLONERANGE, &range);
  while (result != 0 && errno == EINTR);
  if (result == 0)
    return RP_OK;
  if (errno == EIO || errno == ENOSPC || errno == EDQUOT)
    return fail_file (to, "sharing blocks with", to_offset, fault);
  if (is_served (file_of (to)->fd))
    return copy_on_server (to, to_offset, from, from_offset, length, fault);
  return rp_fail (fault, RP_UNSUPPORTED, to_offset, "%s cannot share blocks "
                  "with %s", to->name, from->name);
}

static const struct rp_io_functions posix_functions = {
  .name = "posix",
  .destroy = posix_destroy,
  .dir_open = posix_dir_open,
  .dir_close = posix_dir_close,
  .dir_make = posix_dir_make,
  .dir_remove = posix_dir_remove,
  .dir_sync = posix_dir_sync,
  .dir_rename = posix_dir_rename,
  .dir_unlink = posix_dir_unlink,
  .dir_list = posix_dir_list,
  .dir_stat = posix_dir_stat,
  .file_open = posix_file_open,
  .file_close = posix_file_close,
  .file_pread = posix_file_pread,
  .file_pwritev = posix_file_pwritev,
  .file_sync = posix_file_sync,
  .file_truncate = posix_file_truncate,
  .file_allocate = posix_file_allocate,
  .file_punch = posix_file_punch,
  .file_stat = posix_file_stat,
  .file_seek = posix_file_seek,
  .file_lock = posix_file_lock,
  .file_stream = posix_file_stream,
  .file_clone = posix_file_clone,
};

int
rp_io_posix_create_limited (const struct rp_posix_limits *limits,
                            struct rp_io **out, struct rp_fault *fault)
{
  struct posix_io *io = calloc (1, sizeof *io);

  *out = NULL;
  if (!io)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the posix backend");
  io->io.functions = &posix_functions;
  io->limits = *limits;
  atomic_init (&io->no_openat2, limits->no_openat2);
  *out = &io->io;
  return RP_OK;
}

int
rp_io_posix_create (struct rp_io **out, struct rp_fault *fault)
{
  const struct rp_posix_limits none = { .call_bytes = 0 };

  return rp_io_posix_create_limited (&none, out, fault);
}

int
rp_io_posix_create_unsynced (struct rp_io **out, struct rp_fault *fault)
{
  const int status = rp_io_posix_create (out, fault);

  if (status == RP_OK)
    io_of (*out)->unsynced = true;
  return status;
}

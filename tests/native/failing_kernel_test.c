/* SPDX-License-Identifier: Apache-2.0 */
/* The posix backend over a kernel that fails: each system call in turn is
 * interrupted (EINTR), does less than it was asked to, or fails with EIO or
 * ENOSPC, once or from then on.
 *
 * What reads, writes, syncs and opens goes on after a signal and after a short
 * count, and nobody notices.  A failure is told with its errno; what was
 * acknowledged before stays; no descriptor is left open.
 *
 * wraps: pread pwritev open openat mkdirat unlinkat renameat fsync fdatasync
 * wraps: ftruncate fallocate fstat fstatat lseek fcntl ioctl syscall
 * wraps: fdopendir sync_file_range
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"
#include "io.h"

#define BYTES  70000u
#define STREAM_PARTS 128         /* of so many bytes: more than 8 MiB */
#define SITES  256u

/* What happens to a call; a bit each, for tests/proof/sites.py. */
enum way {
  INTERRUPTED = 2, SHORT_ONCE = 4, SHORT_ALWAYS = 8, EIO_ONCE = 16,
  EIO_FOREVER = 32, ENOSPC_ONCE = 64, ENOSPC_FOREVER = 128,
};

static struct {
  bool      armed;
  bool      retried;             /* what was interrupted has to be done again */
  enum way  way;
  uint64_t  call, calls, struck;
  struct { uintptr_t at; uint32_t how; } sites[SITES];
} kernel;

static void
note (uintptr_t at, uint32_t how)
{
  uint32_t slot = (uint32_t) (at * UINT64_C (0x9e3779b97f4a7c15) >> 40) % SITES;

  while (kernel.sites[slot].at != 0 && kernel.sites[slot].at != at)
    slot = (slot + 1) % SITES;
  kernel.sites[slot].at = at;
  kernel.sites[slot].how |= how;
}

static bool
strikes (const void *site, bool can_be_short, bool retried)
{
  const bool forever = kernel.way == SHORT_ALWAYS || kernel.way == EIO_FOREVER
                       || kernel.way == ENOSPC_FOREVER;
  bool hit;

  if (!kernel.armed)
    return false;
  kernel.calls++;
  hit = kernel.calls == kernel.call || (forever && kernel.calls > kernel.call);
  if ((kernel.way == SHORT_ONCE || kernel.way == SHORT_ALWAYS)
      && !can_be_short)
    hit = false;
  kernel.struck += hit;
  kernel.retried |= hit && retried && kernel.way == INTERRUPTED;
  note ((uintptr_t) site, 1u | (hit ? kernel.way : 0));
  return hit;
}

static bool
is_short (void)
{
  return kernel.way == SHORT_ONCE || kernel.way == SHORT_ALWAYS;
}

static int
refuse (void)
{
  errno = kernel.way == INTERRUPTED ? EINTR
          : kernel.way == EIO_ONCE || kernel.way == EIO_FOREVER ? EIO : ENOSPC;
  return -1;
}

#define SITE __builtin_return_address (0)

#define WRAP(type, name, parameters, arguments, failure, retried)          \
  type __real_##name parameters;                                           \
  type __wrap_##name parameters;                                           \
  type __wrap_##name parameters                                            \
  {                                                                        \
    return strikes (SITE, false, retried) ? failure                        \
                                          : __real_##name arguments;       \
  }

WRAP (int, mkdirat, (int dir, const char *name, mode_t mode),
      (dir, name, mode), refuse (), false)
WRAP (int, unlinkat, (int dir, const char *name, int flags),
      (dir, name, flags), refuse (), false)
WRAP (int, renameat, (int from, const char *name, int to, const char *other),
      (from, name, to, other), refuse (), false)
WRAP (int, fsync, (int fd), (fd), refuse (), true)
WRAP (int, fdatasync, (int fd), (fd), refuse (), true)
WRAP (int, ftruncate, (int fd, off_t size), (fd, size), refuse (), true)
WRAP (int, fallocate, (int fd, int mode, off_t at, off_t length),
      (fd, mode, at, length), refuse (), true)
WRAP (int, fstat, (int fd, struct stat *out), (fd, out), refuse (), false)
WRAP (int, fstatat, (int dir, const char *name, struct stat *out, int flags),
      (dir, name, out, flags), refuse (), false)
WRAP (off_t, lseek, (int fd, off_t at, int whence), (fd, at, whence),
      refuse (), false)
WRAP (int, sync_file_range, (int fd, off_t at, off_t length, unsigned flags),
      (fd, at, length, flags), refuse (), true)
WRAP (DIR *, fdopendir, (int fd), (fd), (refuse (), NULL), false)

ssize_t __real_pread (int fd, void *buffer, size_t length, off_t at);
ssize_t __wrap_pread (int fd, void *buffer, size_t length, off_t at);
ssize_t
__wrap_pread (int fd, void *buffer, size_t length, off_t at)
{
  if (strikes (SITE, length > 1, true)) {
    if (!is_short ())
      return refuse ();
    length = kernel.way == SHORT_ALWAYS && length > 999 ? 999 : length / 2;
  }
  return __real_pread (fd, buffer, length, at);
}

ssize_t __real_pwritev (int fd, const struct iovec *parts, int count, off_t at);
ssize_t __wrap_pwritev (int fd, const struct iovec *parts, int count, off_t at);
ssize_t
__wrap_pwritev (int fd, const struct iovec *parts, int count, off_t at)
{
  if (strikes (SITE, parts->iov_len > 1, true)) {
    struct iovec part = *parts;

    if (!is_short ())
      return refuse ();
    part.iov_len = kernel.way == SHORT_ALWAYS && part.iov_len > 999
                   ? 999 : part.iov_len / 2;
    return __real_pwritev (fd, &part, 1, at);
  }
  return __real_pwritev (fd, parts, count, at);
}

static mode_t
mode_of (int flags, va_list *more)
{
  return flags & O_CREAT ? va_arg (*more, mode_t) : 0;
}

int __real_open (const char *path, int flags, ...);
int __wrap_open (const char *path, int flags, ...);
int
__wrap_open (const char *path, int flags, ...)
{
  va_list more;
  mode_t mode;

  va_start (more, flags);
  mode = mode_of (flags, &more);
  va_end (more);
  return strikes (SITE, false, false) ? refuse ()
                                      : __real_open (path, flags, mode);
}

int __real_openat (int dir, const char *name, int flags, ...);
int __wrap_openat (int dir, const char *name, int flags, ...);
int
__wrap_openat (int dir, const char *name, int flags, ...)
{
  va_list more;
  mode_t mode;

  va_start (more, flags);
  mode = mode_of (flags, &more);
  va_end (more);
  return strikes (SITE, false, false) ? refuse ()
                                      : __real_openat (dir, name, flags, mode);
}

#define WRAP_ANY(type, name, first, last)                                  \
  type __real_##name (first one, last two, ...);                           \
  type __wrap_##name (first one, last two, ...);                           \
  type __wrap_##name (first one, last two, ...)                            \
  {                                                                        \
    va_list more;                                                          \
    void *argument;                                                        \
                                                                           \
    va_start (more, two);                                                  \
    argument = va_arg (more, void *);                                      \
    va_end (more);                                                         \
    return strikes (SITE, false, false)                                    \
           ? refuse () : __real_##name (one, two, argument);               \
  }

WRAP_ANY (int, fcntl, int, int)
WRAP_ANY (int, ioctl, int, unsigned long)

long __real_syscall (long number, ...);
long __wrap_syscall (long number, ...);
long
__wrap_syscall (long number, ...)
{
  va_list more;
  long arguments[4];

  va_start (more, number);
  for (int i = 0; i < 4; i++)
    arguments[i] = va_arg (more, long);
  va_end (more);
  return strikes (SITE, false, true) ? refuse ()
         : __real_syscall (number, arguments[0], arguments[1], arguments[2],
                           arguments[3]);
}

/* ---- the work ---- */

struct scene {
  char     path[64];
  uint32_t small;                /* number that was said to be in "small" */
  uint32_t tried;                /* and the last one that may be */
  bool     synced;               /* what was written to "data" is durable */
  struct rp_io *io;
  struct rp_dir *dir;
  struct rp_file *data;
};

static uint8_t bytes[BYTES], found[BYTES];

static void
ignore_name (void *context, const char *name)
{
  (void) context;
  (void) name;
}

static int
replace_small (struct scene *scene, struct rp_fault *fault)
{
  const uint32_t number = ++scene->tried;
  const int status = rp_dir_replace (scene->dir, "small", &number,
                                     sizeof number, 0600, fault);

  if (status == RP_OK)
    scene->small = number;
  return status;
}

static int
write_data (struct scene *scene, struct rp_fault *fault)
{
  const struct iovec parts[] = {
    { bytes, 1000 }, { bytes + 1000, 1 }, { bytes + 1001, BYTES - 1001 },
  };
  int status = rp_file_open (scene->dir, "data", RP_OPEN_WRITE
                             | RP_OPEN_CREATE, 0600, &scene->data, fault);

  if (status == RP_OK)
    status = rp_file_lock (scene->data, true, fault);
  if (status == RP_OK)
    status = rp_file_allocate (scene->data, 0, BYTES + 8192, fault);
  if (status == RP_OK)
    status = rp_file_pwritev (scene->data, parts, 3, 0, fault);
  if (status == RP_OK)
    status = rp_file_sync (scene->data, fault);
  if (status == RP_OK)
    status = rp_dir_sync (scene->dir, fault);
  scene->synced = status == RP_OK;
  if (status == RP_OK)
    status = rp_file_pread_all (scene->data, found, BYTES, 0, fault);
  CHECK (status != RP_OK || memcmp (found, bytes, BYTES) == 0);
  return status;
}

static int
change_data (struct scene *scene, struct rp_fault *fault)
{
  struct rp_file *slice = NULL;
  struct rp_stat stat;
  uint64_t at;
  int status = rp_file_punch (scene->data, BYTES, 4096, fault);

  if (status == RP_OK)
    status = rp_file_truncate (scene->data, BYTES, fault);
  if (status == RP_OK)
    status = rp_file_stat (scene->data, &stat, fault);
  CHECK (status != RP_OK || stat.size_bytes == BYTES);
  if (status == RP_OK)
    status = rp_file_seek (scene->data, 0, true, &at, fault);
  if (status == RP_OK)
    status = rp_file_slice (scene->data, "part", 500, 60000, &slice, fault);
  if (status == RP_OK)
    status = rp_file_pread_all (slice, found, 50000, 100, fault);
  CHECK (status != RP_OK || memcmp (found, bytes + 600, 50000) == 0);
  rp_file_close (slice);
  if (status == RP_OK)
    status = rp_file_clone (scene->data, 0, scene->data, 0, 4096, fault);
  return status == RP_UNSUPPORTED ? RP_OK : status;
}

static int
change_names (struct scene *scene, struct rp_fault *fault)
{
  struct rp_file *file = NULL;
  struct rp_stat stat;
  int status = rp_file_open (scene->dir, "other", RP_OPEN_WRITE
                             | RP_OPEN_CREATE | RP_OPEN_BENEATH, 0600, &file,
                             fault);

  rp_file_close (file);
  if (status == RP_OK)
    status = rp_dir_rename (scene->dir, "other", "renamed", fault);
  if (status == RP_OK)
    status = rp_dir_stat (scene->dir, "renamed", &stat, fault);
  if (status == RP_OK)
    status = rp_dir_unlink (scene->dir, "renamed", fault);
  if (status == RP_OK)
    status = rp_dir_make (scene->dir, "folder", 0700, fault);
  if (status == RP_OK)
    status = rp_dir_remove (scene->dir, "folder", fault);
  return status == RP_OK ? rp_dir_list (scene->dir, ignore_name, NULL, fault)
                         : status;
}

/* So much that writing back begins early, and so long that what lies behind
 * is waited for. */
static int
stream_data (struct scene *scene, struct rp_fault *fault)
{
  struct iovec parts[STREAM_PARTS];
  struct rp_file *file = NULL;
  int status = rp_file_open (scene->dir, "stream", RP_OPEN_WRITE
                             | RP_OPEN_CREATE, 0600, &file, fault);

  for (int i = 0; i < STREAM_PARTS; i++)
    parts[i] = (struct iovec) { .iov_base = bytes, .iov_len = BYTES };
  if (status == RP_OK)
    rp_file_stream (file);
  if (status == RP_OK)
    status = rp_file_pwrite (file, bytes, 4096, UINT64_C (90) << 20, fault);
  if (status == RP_OK)
    status = rp_file_pwritev (file, parts, STREAM_PARTS, 0, fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  rp_file_close (file);
  return status;
}

static int
work (struct scene *scene, struct rp_fault *fault)
{
  int status = rp_dir_open (scene->io, scene->path, &scene->dir, fault);

  if (status == RP_OK)
    status = replace_small (scene, fault);
  if (status == RP_OK)
    status = write_data (scene, fault);
  if (status == RP_OK)
    status = replace_small (scene, fault);
  if (status == RP_OK)
    status = change_data (scene, fault);
  if (status == RP_OK)
    status = change_names (scene, fault);
  if (status == RP_OK)
    status = stream_data (scene, fault);
  return status;
}

/* ---- afterwards ---- */

static unsigned
count_descriptors (void)
{
  DIR *dir = opendir ("/proc/self/fd");
  unsigned count = 0;

  CHECK (dir);
  while (readdir (dir))
    count++;
  closedir (dir);
  return count;
}

static void
unlink_one (void *context, const char *name)
{
  struct rp_fault fault;

  if (strcmp (name, "folder") == 0)
    OK (rp_dir_remove (context, name, &fault));
  else
    OK (rp_dir_unlink (context, name, &fault));
}

/* With a kernel that works: what was said to be there is. */
static void
check_place (const struct scene *scene)
{
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_fault fault;
  uint32_t number = 0;

  OK (rp_dir_open (scene->io, scene->path, &dir, &fault));
  if (scene->small > 0) {
    OK (rp_file_open (dir, "small", RP_OPEN_READ, 0, &file, &fault));
    OK (rp_file_pread_all (file, &number, sizeof number, 0, &fault));
    CHECK (number >= scene->small && number <= scene->tried);
    rp_file_close (file);
  }
  if (scene->synced) {
    OK (rp_file_open (dir, "data", RP_OPEN_READ, 0, &file, &fault));
    OK (rp_file_pread_all (file, found, BYTES, 0, &fault));
    CHECK (memcmp (found, bytes, BYTES) == 0);
    rp_file_close (file);
  }
  OK (rp_dir_list (dir, unlink_one, dir, &fault));
  rp_dir_close (dir);
}

/* Whether there was such a call. */
static bool
try_one (enum way way, uint64_t call, bool old_kernel)
{
  const struct rp_posix_limits limits = { .no_openat2 = old_kernel };
  struct scene scene = { .small = 0 };
  const unsigned descriptors = count_descriptors ();
  struct rp_fault fault;
  bool reached;
  int status;

  snprintf (scene.path, sizeof scene.path, "/dev/shm/rp-kernel-XXXXXX");
  if (!mkdtemp (scene.path)) {
    snprintf (scene.path, sizeof scene.path, "/tmp/rp-kernel-XXXXXX");
    CHECK (mkdtemp (scene.path));
  }
  OK (rp_io_posix_create_limited (&limits, &scene.io, &fault));
  kernel.way = way;
  kernel.call = call;
  kernel.calls = kernel.struck = 0;
  kernel.retried = false;
  kernel.armed = true;
  status = work (&scene, &fault);
  kernel.armed = false;
  reached = kernel.calls >= call;
  rp_file_close (scene.data);
  rp_dir_close (scene.dir);
  if (way == SHORT_ONCE || way == SHORT_ALWAYS || kernel.retried
      || kernel.struck == 0)
    CHECK (status == RP_OK);     /* nobody notices */
  if (status != RP_OK && status != RP_IO && status != RP_FAILED) {
    fprintf (stderr, "way %u, call %" PRIu64 ": %s: %s\n", way, call,
             rp_status_text (status), fault.message);
    exit (EXIT_FAILURE);
  }
  if (status == RP_IO && way == INTERRUPTED)
    CHECK (fault.os_errno == EINTR);
  check_place (&scene);
  rp_io_destroy (scene.io);
  CHECK (rmdir (scene.path) == 0);
  CHECK (count_descriptors () == descriptors);
  return reached;
}

static void
tell (void)
{
  extern const char __executable_start;
  const char *path = getenv ("ROLLPOINT_SITES");
  FILE *file = path ? fopen (path, "a") : NULL;

  for (uint32_t i = 0; file && i < SITES; i++)
    if (kernel.sites[i].at)
      fprintf (file, "kernel %" PRIxPTR " %u\n",
               kernel.sites[i].at - (uintptr_t) &__executable_start,
               kernel.sites[i].how);
  if (file)
    CHECK (fclose (file) == 0);
}

int
main (void)
{
  uint64_t runs = 0, sites = 0;

  for (uint32_t i = 0; i < BYTES; i++)
    bytes[i] = (uint8_t) (i * 31 + i / 256 + 1);
  for (uint32_t way = INTERRUPTED; way <= ENOSPC_FOREVER; way *= 2)
    for (unsigned old = 0; old < 2; old++)
      for (uint64_t call = 1; try_one (way, call, old); call++)
        runs++;
  for (uint32_t i = 0; i < SITES; i++)
    sites += kernel.sites[i].how > 1;
  tell ();
  printf ("failing_kernel_test: %" PRIu64 " runs, %" PRIu64 " sites of system "
          "calls failed\n", runs, sites);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The posix backend against the kernel, and what io.c checks for all. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "io.h"

static struct rp_fault fault;
static uint64_t checks;

static struct rp_io *io;
static struct rp_dir *dir;
#define FOLDER "io_posix_test.XXXXXX"
static char folder[sizeof FOLDER];

static struct rp_file *
make_file (const char *name)
{
  struct rp_file *file;

  OK (rp_file_open (dir, name,
                    RP_OPEN_WRITE | RP_OPEN_CREATE | RP_OPEN_TRUNCATE, 0600,
                    &file, &fault));
  return file;
}

static int
open_status (const char *name, uint32_t flags)
{
  struct rp_file *file;
  const int status = rp_file_open (dir, name, flags, 0600, &file, &fault);

  CHECK ((status == RP_OK) == (file != NULL));
  if (status != RP_OK)
    CHECK (strstr (fault.message, folder) != NULL); /* it says where */
  rp_file_close (file);
  checks++;
  return status;
}

static void
test_names_that_are_no_component_are_refused (void)
{
  char longest[RP_NAME_BYTES + 1];
  const char *bad[] = { "", ".", "..", "a/b", "/", "../a", longest };
  struct rp_stat stat;

  memset (longest, 'x', sizeof longest);
  longest[RP_NAME_BYTES] = '\0';
  for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
    CHECK (open_status (bad[i], RP_OPEN_READ) == RP_BAD_ARGUMENT);
    CHECK (open_status (bad[i], RP_OPEN_READ | RP_OPEN_BENEATH)
           == RP_BAD_ARGUMENT);
    CHECK (rp_dir_make (dir, bad[i], 0700, &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_remove (dir, bad[i], &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_unlink (dir, bad[i], &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_rename (dir, bad[i], "a", &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_rename (dir, "a", bad[i], &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_stat (dir, bad[i], &stat, &fault) == RP_BAD_ARGUMENT);
    CHECK (rp_dir_replace (dir, bad[i], "", 0, 0600, &fault)
           == RP_BAD_ARGUMENT);
  }
  /* name.new has to fit as well */
  longest[RP_NAME_BYTES - 1] = '\0';
  CHECK (rp_dir_replace (dir, longest, "", 0, 0600, &fault)
         == RP_BAD_ARGUMENT);
  longest[RP_NAME_BYTES - 5] = '\0';
  OK (rp_dir_replace (dir, longest, "x", 1, 0600, &fault));
  OK (rp_dir_unlink (dir, longest, &fault));
}

static void
test_open_flags_have_to_go_together (void)
{
  const uint32_t bad[] = {
    0, RP_OPEN_BENEATH, RP_OPEN_CREATE, RP_OPEN_READ | RP_OPEN_CREATE,
    RP_OPEN_READ | RP_OPEN_TRUNCATE, RP_OPEN_WRITE | RP_OPEN_EXCLUSIVE,
    RP_OPEN_READ | 64,
  };

  for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
    CHECK (open_status ("flags", bad[i]) == RP_BAD_ARGUMENT);
}

static void
test_beneath_follows_no_link_and_nothing_hangs (void)
{
  char path[PATH_MAX];
  const uint32_t flags[] = { RP_OPEN_READ, RP_OPEN_WRITE };

  rp_file_close (make_file ("target"));
  snprintf (path, sizeof path, "%s/link", folder);
  CHECK (symlink ("target", path) == 0);
  snprintf (path, sizeof path, "%s/out", folder);
  CHECK (symlink ("/etc/passwd", path) == 0);
  snprintf (path, sizeof path, "%s/proc", folder);
  CHECK (symlink ("/proc/self/exe", path) == 0);
  snprintf (path, sizeof path, "%s/fifo", folder);
  CHECK (mkfifo (path, 0600) == 0);
  OK (rp_dir_make (dir, "sub", 0700, &fault));
  for (unsigned i = 0; i < 2; i++) {
    CHECK (open_status ("link", flags[i]) == RP_OK);
    CHECK (open_status ("link", flags[i] | RP_OPEN_BENEATH) == RP_UNSUPPORTED);
    CHECK (open_status ("out", flags[i] | RP_OPEN_BENEATH) == RP_UNSUPPORTED);
    CHECK (open_status ("proc", flags[i] | RP_OPEN_BENEATH) == RP_UNSUPPORTED);
    CHECK (open_status ("fifo", flags[i]) == RP_FORMAT);
    CHECK (open_status ("sub", flags[i]) == RP_FORMAT);
    CHECK (open_status ("target", flags[i] | RP_OPEN_BENEATH) == RP_OK);
  }
  /* a link is never made through, nor written through by replace() */
  CHECK (open_status ("link", RP_OPEN_WRITE | RP_OPEN_CREATE | RP_OPEN_BENEATH)
         == RP_UNSUPPORTED);
  snprintf (path, sizeof path, "%s/small.new", folder);
  CHECK (symlink ("target", path) == 0);
  OK (rp_dir_replace (dir, "small", "content", 7, 0600, &fault));
  CHECK (open_status ("target", RP_OPEN_READ) == RP_OK);
}

static void
test_errors_keep_the_number_of_the_system (void)
{
  struct rp_dir *none;

  CHECK (open_status ("none", RP_OPEN_READ) == RP_IO);
  CHECK (fault.os_errno == ENOENT);
  rp_file_close (make_file ("there"));
  CHECK (open_status ("there", RP_OPEN_WRITE | RP_OPEN_CREATE
                               | RP_OPEN_EXCLUSIVE) == RP_IO);
  CHECK (fault.os_errno == EEXIST);
  CHECK (rp_dir_open (io, "/nowhere/at/all", &none, &fault) == RP_IO);
  CHECK (fault.os_errno == ENOENT && none == NULL);
  CHECK (strstr (fault.message, "/nowhere/at/all") != NULL);
  CHECK (rp_dir_unlink (dir, "none", &fault) == RP_IO);
  CHECK (fault.os_errno == ENOENT);
}

static void
test_ranges_end_below_2_to_63 (void)
{
  struct rp_file *file = make_file ("range");
  char byte = 0;
  size_t done;
  uint64_t at;

  CHECK (rp_file_pread (file, &byte, 1, UINT64_MAX, &done, &fault)
         == RP_BAD_ARGUMENT);
  CHECK (rp_file_pwrite (file, &byte, 1, INT64_MAX, &fault)
         == RP_BAD_ARGUMENT);
  CHECK (rp_file_truncate (file, UINT64_C (1) << 63, &fault)
         == RP_BAD_ARGUMENT);
  CHECK (rp_file_allocate (file, 1, INT64_MAX, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_file_punch (file, UINT64_MAX, UINT64_MAX, &fault)
         == RP_BAD_ARGUMENT);
  CHECK (rp_file_seek (file, UINT64_MAX, true, &at, &fault)
         == RP_BAD_ARGUMENT);
  rp_file_close (file);
}

/* With each call cut to a few bytes and every other one interrupted, reads
 * and writes are whole all the same. */
static void
test_short_counts_and_interrupts_are_hidden (void)
{
  enum { PARTS = 2500, BYTES = PARTS * 3 };
  static uint8_t data[BYTES], back[BYTES + 10];
  static struct iovec parts[PARTS];
  const size_t limits[] = { 0, 1, 7, 1000 };
  size_t done;

  for (unsigned i = 0; i < BYTES; i++)
    data[i] = (uint8_t) (i * 7 + i / 256);
  for (unsigned i = 0; i < PARTS; i++)
    parts[i] = (struct iovec) { data + i * 3, 3 };
  parts[7].iov_len = 6;          /* and an empty one */
  parts[8].iov_len = 0;
  for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++) {
    const struct rp_posix_limits cut = { .call_bytes = limits[i] };
    struct rp_io *limited;
    struct rp_dir *place;
    struct rp_file *file;

    OK (rp_io_posix_create_limited (&cut, &limited, &fault));
    OK (rp_dir_open (limited, folder, &place, &fault));
    OK (rp_file_open (place, "short", RP_OPEN_WRITE | RP_OPEN_CREATE
                                      | RP_OPEN_TRUNCATE, 0600, &file, &fault));
    OK (rp_file_pwritev (file, parts, PARTS, 5, &fault));
    OK (rp_file_pread (file, back, sizeof back, 0, &done, &fault));
    CHECK (done == BYTES + 5);
    CHECK (memcmp (back, "\0\0\0\0\0", 5) == 0);
    CHECK (memcmp (back + 5, data, BYTES) == 0);
    OK (rp_file_pread_all (file, back, BYTES, 5, &fault));
    CHECK (memcmp (back, data, BYTES) == 0);
    CHECK (rp_file_pread_all (file, back, BYTES, 6, &fault) == RP_CORRUPT);
    CHECK (fault.position == BYTES + 5);
    OK (rp_file_pread (file, back, 10, BYTES + 100, &done, &fault));
    CHECK (done == 0);
    rp_file_close (file);
    rp_dir_close (place);
    rp_io_destroy (limited);
    checks += 7;
  }
}

static void
test_space_is_reserved_punched_and_found (void)
{
  const uint64_t mib = 1048576;
  struct rp_file *file = make_file ("space");
  uint8_t bytes[4096], zeros[4096] = { 0 };
  struct rp_stat stat;
  uint64_t at;

  memset (bytes, 'x', sizeof bytes);
  OK (rp_file_truncate (file, 8 * mib, &fault));
  OK (rp_file_pwrite (file, bytes, sizeof bytes, 2 * mib, &fault));
  OK (rp_file_pwrite (file, bytes, sizeof bytes, 5 * mib, &fault));
  OK (rp_file_seek (file, 0, true, &at, &fault));
  CHECK (at <= 2 * mib);
  OK (rp_file_seek (file, 6 * mib, true, &at, &fault));
  CHECK (at == 8 * mib);         /* no data any more: the size */
  OK (rp_file_seek (file, 9 * mib, false, &at, &fault));
  CHECK (at == 8 * mib);
  OK (rp_file_punch (file, 2 * mib, 100 * mib, &fault));
  OK (rp_file_stat (file, &stat, &fault));
  CHECK (stat.size_bytes == 8 * mib && stat.is_regular && !stat.is_directory);
  OK (rp_file_pread_all (file, bytes, sizeof bytes, 5 * mib, &fault));
  CHECK (memcmp (bytes, zeros, sizeof zeros) == 0);
  OK (rp_file_allocate (file, 8 * mib, mib, &fault));
  OK (rp_file_stat (file, &stat, &fault));
  CHECK (stat.size_bytes == 9 * mib);
  CHECK (stat.allocated_bytes >= mib);
  OK (rp_file_pread_all (file, bytes, sizeof bytes, 9 * mib - 4096, &fault));
  CHECK (memcmp (bytes, zeros, sizeof zeros) == 0);
  OK (rp_file_allocate (file, 0, 0, &fault));
  OK (rp_file_punch (file, 0, 0, &fault));
  OK (rp_file_pwrite (file, NULL, 0, 0, &fault));
  rp_file_close (file);
  checks += 9;
}

/* Zeros instead of a hole: exactly the range, and not a byte behind the end. */
static void
test_a_punch_zeroes_its_range_alone (void)
{
  enum { BYTES = 200000 };
  static uint8_t bytes[BYTES], back[BYTES];
  const uint64_t ranges[][2] = {
    { 1, 1 }, { 4096, 8192 }, { 511, 131073 }, { BYTES - 1, 100 },
    { BYTES, 100 }, { 0, BYTES },
  };

  for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    const uint64_t start = ranges[i][0], length = ranges[i][1];
    struct rp_file *file = make_file ("punch");
    uint64_t size;

    memset (bytes, 'x', BYTES);
    OK (rp_file_pwrite (file, bytes, BYTES, 0, &fault));
    OK (rp_file_punch (file, start, length, &fault));
    for (uint64_t k = start; k < start + length && k < BYTES; k++)
      bytes[k] = 0;
    OK (rp_file_pread_all (file, back, BYTES, 0, &fault));
    CHECK (memcmp (bytes, back, BYTES) == 0);
    OK (rp_file_size (file, &size, &fault));
    CHECK (size == BYTES);
    rp_file_close (file);
    checks += 2;
  }
}

/* 0: the lock was taken; 1: it was not, and the status said so */
static int
lock_in_a_child (bool exclusive)
{
  const pid_t child = fork ();
  int how;

  CHECK (child >= 0);
  if (child == 0) {
    struct rp_file *file;
    int status = rp_file_open (dir, "lock", RP_OPEN_WRITE, 0, &file, &fault);

    if (status == RP_OK)
      status = rp_file_lock (file, exclusive, &fault);
    _exit (status == RP_OK ? 0 : status == RP_LOCKED ? 1 : 2);
  }
  CHECK (waitpid (child, &how, 0) == child);
  CHECK (WIFEXITED (how));
  checks++;
  return WEXITSTATUS (how);
}

static void
test_locks_hold_between_processes_and_handles (void)
{
  struct rp_file *one = make_file ("lock"), *two;

  OK (rp_file_open (dir, "lock", RP_OPEN_WRITE, 0, &two, &fault));
  CHECK (lock_in_a_child (true) == 0);
  OK (rp_file_lock (one, true, &fault));
  CHECK (lock_in_a_child (true) == 1);
  CHECK (lock_in_a_child (false) == 1);
  CHECK (rp_file_lock (two, false, &fault) == RP_LOCKED);
  CHECK (strstr (fault.message, "lock") != NULL);
  OK (rp_file_lock (one, false, &fault));
  CHECK (lock_in_a_child (false) == 0);
  CHECK (lock_in_a_child (true) == 1);
  OK (rp_file_lock (one, true, &fault));
  rp_file_close (two);           /* another handle: no lock is lost with it */
  CHECK (lock_in_a_child (true) == 1);
  rp_file_close (one);
  CHECK (lock_in_a_child (true) == 0);
}

static void
test_replace_is_whole_and_cleans_up (void)
{
  struct rp_file *left = make_file ("manifest.new");
  struct rp_stat stat;
  char text[16];

  OK (rp_file_pwrite (left, "left by a crash", 15, 0, &fault));
  OK (rp_dir_replace (dir, "manifest", "one", 3, 0640, &fault));
  OK (rp_dir_stat (dir, "manifest", &stat, &fault));
  CHECK (stat.size_bytes == 3);
  CHECK (stat.mode == 0640);
  CHECK (rp_dir_stat (dir, "manifest.new", &stat, &fault) == RP_IO);
  OK (rp_file_pread_all (left, text, 15, 0, &fault)); /* not written into */
  CHECK (memcmp (text, "left by a crash", 15) == 0);
  rp_file_close (left);
  OK (rp_dir_make (dir, "busy", 0700, &fault));
  CHECK (rp_dir_replace (dir, "busy", "one", 3, 0600, &fault) == RP_IO);
  CHECK (fault.os_errno == EISDIR);
  CHECK (rp_dir_stat (dir, "busy.new", &stat, &fault) == RP_IO);
  checks += 6;
}

static void
remove_one (void *context, const char *name)
{
  char path[PATH_MAX];

  (void) context;
  snprintf (path, sizeof path, "%s/%s", folder, name);
  CHECK (remove (path) == 0);
  checks++;
}

/* All promises, on a kernel with or without what newer ones have. */
static void
test_all (const struct rp_posix_limits *limits)
{
  memcpy (folder, FOLDER, sizeof folder);
  CHECK (mkdtemp (folder) != NULL);
  OK (rp_io_posix_create_limited (limits, &io, &fault));
  OK (rp_dir_open (io, folder, &dir, &fault));
  test_names_that_are_no_component_are_refused ();
  test_open_flags_have_to_go_together ();
  test_beneath_follows_no_link_and_nothing_hangs ();
  test_errors_keep_the_number_of_the_system ();
  test_ranges_end_below_2_to_63 ();
  test_short_counts_and_interrupts_are_hidden ();
  test_space_is_reserved_punched_and_found ();
  test_a_punch_zeroes_its_range_alone ();
  test_locks_hold_between_processes_and_handles ();
  test_replace_is_whole_and_cleans_up ();
  OK (rp_dir_sync (dir, &fault));
  OK (rp_dir_list (dir, remove_one, NULL, &fault));
  rp_dir_close (dir);
  rp_io_destroy (io);
  CHECK (rmdir (folder) == 0);
}

int
main (void)
{
  umask (022);
  test_all (&(struct rp_posix_limits) { .call_bytes = 0 });
  test_all (&(struct rp_posix_limits) { .no_openat2 = true });
  test_all (&(struct rp_posix_limits) { .no_fallocate = true });
  printf ("io_posix_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The order, record and fault backends.  What order forbids ends a child
 * process, with a message. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "simulate.h"

static struct rp_fault fault;
static uint64_t checks;

struct place {
  struct rp_io *disk, *io;
  struct rp_dir *dir;
};

static struct place
open_place (void)
{
  struct place place;

  OK (rp_io_simulate_create (&place.disk, &fault));
  OK (rp_io_order_create (place.disk, &place.io, &fault));
  OK (rp_dir_open (place.io, "/", &place.dir, &fault));
  return place;
}

static void
close_place (struct place place)
{
  rp_dir_close (place.dir);
  rp_io_destroy (place.io);
  rp_io_destroy (place.disk);
}

static struct rp_file *
open_file (struct place place, const char *name)
{
  struct rp_file *file;

  OK (rp_file_open (place.dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &file, &fault));
  return file;
}

/* ---- what is right: none of these ends the process ---- */

static void
test_write_sync_acknowledge_is_right (void)
{
  struct place place = open_place ();
  struct rp_file *file = open_file (place, "log"), *other;
  char bytes[4096] = { 0 };

  OK (rp_dir_sync (place.dir, &fault));
  for (unsigned i = 0; i < 50; i++) {
    OK (rp_file_pwrite (file, bytes, sizeof bytes, i * 4096, &fault));
    if (i % 7 == 6) {
      OK (rp_file_sync (file, &fault));
      rp_file_note (file, RP_NOTE_POINTS_TO, 0, (i + 1) * 4096);
      rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, (i + 1) * 4096);
      checks++;
    }
  }
  /* ranges that are not touched may be acknowledged while others wait */
  OK (rp_file_sync (file, &fault));
  OK (rp_file_pwrite (file, bytes, 10, 100, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 100);
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 110, 4096);
  OK (rp_file_punch (file, 8192, 4096, &fault));
  /* any handle's sync will do */
  other = open_file (place, "log");
  OK (rp_file_sync (other, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 50 * 4096);
  OK (rp_dir_replace (place.dir, "manifest", "1", 1, 0600, &fault));
  rp_file_close (other);
  other = open_file (place, "manifest");
  rp_file_note (other, RP_NOTE_ACKNOWLEDGE, 0, 1);
  rp_file_close (other);
  /* a name that is gone needs no sync, nor does what a new file inherits */
  other = open_file (place, "scratch");
  OK (rp_file_pwrite (other, "x", 1, 0, &fault));
  OK (rp_dir_unlink (place.dir, "scratch", &fault));
  rp_file_close (other);
  OK (rp_dir_rename (place.dir, "log", "log", &fault));
  OK (rp_dir_sync (place.dir, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 4096);
  rp_file_close (file);
  close_place (place);
}

/* ---- what is wrong ---- */

static void
acknowledge_unsynced (struct place place)
{
  struct rp_file *file = open_file (place, "log");

  OK (rp_dir_sync (place.dir, &fault));
  OK (rp_file_pwrite (file, "abc", 3, 512, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 513);
}

static void
acknowledge_without_the_name (struct place place)
{
  struct rp_file *file = open_file (place, "log");

  OK (rp_file_pwrite (file, "abc", 3, 512, &fault));
  OK (rp_file_sync (file, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 515);
}

static void
acknowledge_without_the_new_name (struct place place)
{
  struct rp_file *file = open_file (place, "log.new");

  OK (rp_file_pwrite (file, "abc", 3, 0, &fault));
  OK (rp_file_sync (file, &fault));
  OK (rp_dir_sync (place.dir, &fault));
  OK (rp_dir_rename (place.dir, "log.new", "log", &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 3);
}

static void
point_to_unsynced (struct place place)
{
  struct rp_file *file = open_file (place, "log");

  OK (rp_file_pwrite (file, "table", 5, 65536, &fault));
  rp_file_note (file, RP_NOTE_POINTS_TO, 65536, 5);
}

static void
acknowledge_a_punched_hole (struct place place)
{
  struct rp_file *file = open_file (place, "log");

  OK (rp_file_truncate (file, 65536, &fault));
  OK (rp_file_sync (file, &fault));
  OK (rp_dir_sync (place.dir, &fault));
  OK (rp_file_punch (file, 4096, 4096, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 4000, 100);
}

static void
acknowledge_behind_a_new_end (struct place place)
{
  struct rp_file *file = open_file (place, "log");

  OK (rp_dir_sync (place.dir, &fault));
  OK (rp_file_truncate (file, 65536, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 70000, 1);
}

static void
rename_unsynced (struct place place)
{
  struct rp_file *file = open_file (place, "manifest.new");

  OK (rp_file_pwrite (file, "abc", 3, 0, &fault));
  rp_file_close (file);          /* closing does not sync */
  OK (rp_dir_rename (place.dir, "manifest.new", "manifest", &fault));
}

static void
acknowledge_after_a_failed_sync (struct place place)
{
  const struct rp_fault_plan plan = {
    .call = 2, .kinds = RP_FAULT_SYNC, .os_errno = EIO,
  };
  struct place bad = { .disk = NULL };
  struct rp_file *file;

  OK (rp_io_fault_create (place.disk, &plan, &bad.disk, &fault));
  OK (rp_io_order_create (bad.disk, &bad.io, &fault));
  OK (rp_dir_open (bad.io, "/", &bad.dir, &fault));
  file = open_file (bad, "log");
  OK (rp_dir_sync (bad.dir, &fault));
  OK (rp_file_pwrite (file, "abc", 3, 0, &fault));
  CHECK (rp_file_sync (file, &fault) == RP_IO);
  CHECK (rp_file_pwrite (file, "abc", 3, 0, &fault) == RP_FAILED);
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 1000, 1);
}

static void
test_what_is_wrong_ends_the_process (void (*wrong) (struct place),
                                    const char *message)
{
  char text[4096];
  size_t length = 0;
  ssize_t count;
  int ends[2], how;
  pid_t child;

  CHECK (pipe (ends) == 0);
  child = fork ();
  CHECK (child >= 0);
  if (child == 0) {
    dup2 (ends[1], STDERR_FILENO);
    signal (SIGABRT, SIG_DFL);
    wrong (open_place ());
    _exit (0);
  }
  close (ends[1]);
  while ((count = read (ends[0], text + length, sizeof text - 1 - length)) > 0)
    length += (size_t) count;
  text[length] = '\0';
  close (ends[0]);
  CHECK (waitpid (child, &how, 0) == child);
  if (!strstr (text, message))
    fprintf (stderr, "wanted \"%s\", got \"%s\"\n", message, text);
  CHECK (strstr (text, "rollpoint: write order broken: ") == text);
  CHECK (strstr (text, message) != NULL);
  CHECK (WIFSIGNALED (how) && WTERMSIG (how) == SIGABRT);
  checks++;
}

/* ---- record and fault ---- */

static void
test_record_keeps_a_line_for_each_change (void)
{
  static const char *const wanted[] = {
    "make /a", "write /a [0, 3)", "sync /a", "acknowledge /a [0, 3)",
    "truncate /a to 1", "punch /a [0, 1)", "allocate /a [0, 100)",
    "rename /a to b", "unlink /b", "make /c", "sync /",
    "unlink /nope: the operating system reported an I/O error",
  };
  struct rp_io *disk, *io;
  struct rp_dir *dir;
  struct rp_file *file;
  char line[256];
  size_t done;

  OK (rp_io_simulate_create (&disk, &fault));
  OK (rp_io_record_create (disk, &io, &fault));
  OK (rp_dir_open (io, "/", &dir, &fault));
  OK (rp_file_open (dir, "a", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  OK (rp_file_pwrite (file, "abc", 3, 0, &fault));
  OK (rp_file_pread (file, line, 3, 0, &done, &fault));
  OK (rp_file_sync (file, &fault));
  rp_file_note (file, RP_NOTE_ACKNOWLEDGE, 0, 3);
  OK (rp_file_truncate (file, 1, &fault));
  OK (rp_file_punch (file, 0, 1, &fault));
  OK (rp_file_allocate (file, 0, 100, &fault));
  rp_file_close (file);
  OK (rp_dir_rename (dir, "a", "b", &fault));
  OK (rp_dir_unlink (dir, "b", &fault));
  OK (rp_dir_make (dir, "c", 0700, &fault));
  OK (rp_dir_sync (dir, &fault));
  CHECK (rp_dir_unlink (dir, "nope", &fault) == RP_IO);
  CHECK (rp_io_record_count (io) == sizeof wanted / sizeof *wanted);
  for (uint64_t i = 0; i < rp_io_record_count (io); i++) {
    rp_io_record_text (io, i, line, sizeof line);
    if (strcmp (line, wanted[i]) != 0)
      fprintf (stderr, "%s / %s\n", line, wanted[i]);
    CHECK (strcmp (line, wanted[i]) == 0);
    checks++;
  }
  rp_dir_close (dir);
  rp_io_destroy (io);
  rp_io_destroy (disk);
}

/* The loop of SQLite's tests: fail call 1, 2, 3 ... until the work passes. */
static void
test_replace_survives_a_failure_of_any_call (bool sticky, uint32_t effect)
{
  uint64_t call = 0, calls;
  bool passed = false;

  while (!passed) {
    const struct rp_fault_plan plan = {
      .call = ++call, .kinds = RP_FAULT_ANY, .effect = effect,
      .os_errno = ENOSPC, .sticky = sticky,
    };
    struct rp_io *disk, *bad;
    struct rp_dir *dir, *good;
    struct rp_file *file;
    int status;
    char text[8] = { 0 };
    size_t done;

    OK (rp_io_simulate_create (&disk, &fault));
    OK (rp_dir_open (disk, "/", &good, &fault));
    OK (rp_dir_replace (good, "file", "old", 3, 0600, &fault));
    OK (rp_io_fault_create (disk, &plan, &bad, &fault));
    status = rp_dir_open (bad, "/", &dir, &fault);
    if (status == RP_OK) {
      status = rp_dir_replace (dir, "file", "newer", 5, 0600, &fault);
      rp_dir_close (dir);
    }
    calls = rp_io_fault_calls (bad);
    passed = status == RP_OK;
    CHECK (passed == (calls < call));
    CHECK (passed || (status == RP_IO && fault.os_errno == ENOSPC));
    OK (rp_file_open (good, "file", RP_OPEN_READ, 0, &file, &fault));
    OK (rp_file_pread (file, text, 7, 0, &done, &fault));
    CHECK (strcmp (text, "old") == 0 || strcmp (text, "newer") == 0);
    CHECK (!passed || strcmp (text, "newer") == 0);
    rp_file_close (file);
    rp_dir_close (good);
    rp_io_destroy (bad);
    rp_io_destroy (disk);
    checks++;
  }
  CHECK (call == 7);  /* open dir, open, write, sync, rename, sync dir: all 6 */
}

static void
test_a_partial_write_does_its_half (void)
{
  const struct rp_fault_plan plan = {
    .call = 1, .kinds = RP_FAULT_WRITE, .effect = RP_FAULT_PARTIAL,
    .os_errno = ENOSPC,
  };
  const struct iovec parts[] = {
    { (void *) "ab", 2 }, { (void *) "cdefgh", 6 },
  };
  struct rp_io *disk, *bad;
  struct rp_dir *dir;
  struct rp_file *file;
  char text[16] = { 0 };
  size_t done;

  OK (rp_io_simulate_create (&disk, &fault));
  OK (rp_io_fault_create (disk, &plan, &bad, &fault));
  OK (rp_dir_open (bad, "/", &dir, &fault));
  OK (rp_file_open (dir, "f", RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  CHECK (rp_file_pwritev (file, parts, 2, 0, &fault) == RP_IO);
  CHECK (fault.os_errno == ENOSPC && strstr (fault.message, "/f") != NULL);
  OK (rp_file_pread (file, text, 15, 0, &done, &fault));
  CHECK (strcmp (text, "abcd") == 0);
  OK (rp_file_pwritev (file, parts, 2, 0, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (bad);
  rp_io_destroy (disk);
}

int
main (void)
{
  test_write_sync_acknowledge_is_right ();
  test_what_is_wrong_ends_the_process (acknowledge_unsynced,
    "bytes [0, 513) of /log are acknowledged while [512, 515) is not synced");
  test_what_is_wrong_ends_the_process (acknowledge_without_the_name,
    "/log are acknowledged while its name is not synced");
  test_what_is_wrong_ends_the_process (acknowledge_without_the_new_name,
    "/log.new are acknowledged while its name is not synced");
  test_what_is_wrong_ends_the_process (point_to_unsynced,
    "bytes [65536, 65541) of /log are pointed to");
  test_what_is_wrong_ends_the_process (acknowledge_a_punched_hole,
    "while [4096, 8192) is not synced");
  test_what_is_wrong_ends_the_process (acknowledge_behind_a_new_end,
    "while [65536, ");
  test_what_is_wrong_ends_the_process (rename_unsynced,
    "//manifest.new is renamed to manifest while its bytes [0, 3)");
  test_what_is_wrong_ends_the_process (acknowledge_after_a_failed_sync,
    "bytes of /log are acknowledged after a sync of it has failed");
  test_record_keeps_a_line_for_each_change ();
  test_replace_survives_a_failure_of_any_call (false, RP_FAULT_PLAIN);
  test_replace_survives_a_failure_of_any_call (true, RP_FAULT_PLAIN);
  test_replace_survives_a_failure_of_any_call (false, RP_FAULT_PARTIAL);
  test_replace_survives_a_failure_of_any_call (true, RP_FAULT_LOST);
  test_a_partial_write_does_its_half ();
  printf ("io_order_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

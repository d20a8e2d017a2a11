/* SPDX-License-Identifier: Apache-2.0 */
/* The simulate backend and its sweeps: what a crash may leave, and that a
 * planted bug is found. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "simulate.h"

static struct rp_fault fault;
static uint64_t checks;

static struct rp_io *
simulate (void)
{
  struct rp_io *io;

  OK (rp_io_simulate_create (&io, &fault));
  return io;
}

static struct rp_dir *
root_of (struct rp_io *io)
{
  struct rp_dir *dir;

  OK (rp_dir_open (io, "/", &dir, &fault));
  return dir;
}

static struct rp_file *
open_file (struct rp_dir *dir, const char *name)
{
  struct rp_file *file;

  OK (rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file,
                    &fault));
  return file;
}

/* The whole content, NUL after it; -1 where the file is not there. */
static long
read_small (struct rp_io *io, const char *name, char buffer[64])
{
  struct rp_dir *dir = root_of (io);
  struct rp_file *file;
  size_t done = 0;
  int status = rp_file_open (dir, name, RP_OPEN_READ, 0, &file, &fault);

  memset (buffer, 0, 64);
  rp_dir_close (dir);
  if (status != RP_OK) {
    CHECK (status == RP_IO && fault.os_errno == ENOENT);
    return -1;
  }
  OK (rp_file_pread (file, buffer, 63, 0, &done, &fault));
  rp_file_close (file);
  checks++;
  return (long) done;
}

/* ---- what may survive ---- */

struct seen {
  bool absent, empty, zeros, old, new;
  uint64_t states;
};

static int
note_state (void *context, struct rp_io *io, const struct rp_sim_state *state,
            struct rp_fault *found)
{
  struct seen *seen = context;
  char text[64];
  long length = read_small (io, "file", text);

  (void) state;
  (void) found;
  seen->states++;
  if (length < 0)
    seen->absent = true;
  else if (length == 0)
    seen->empty = true;
  else if (strcmp (text, "old") == 0)
    seen->old = true;
  else if (strcmp (text, "new") == 0)
    seen->new = true;
  else if (length == 3 && text[0] == 0)
    seen->zeros = true;
  else
    CHECK (!"a state that nobody wrote");
  return RP_OK;
}

static struct seen
sweep (struct rp_io *io)
{
  const struct rp_sim_options options = { .seed = 1, .flags = RP_SIM_TEAR };
  struct seen seen = { .states = 0 };
  struct rp_sim_counts counts;

  OK (rp_sim_crash_states (io, &options, note_state, &seen, &counts, NULL,
                           &fault));
  CHECK (counts.distinct == seen.states);
  CHECK (counts.generated >= counts.distinct);
  return seen;
}

static void
test_unsynced_data_may_be_lost (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "file");
  struct seen seen;

  OK (rp_file_pwrite (file, "old", 3, 0, &fault));
  seen = sweep (io);
  CHECK (seen.absent && seen.empty && seen.zeros && seen.old);
  OK (rp_dir_sync (dir, &fault));
  OK (rp_sim_acknowledge (io, 1, &fault));
  seen = sweep (io);             /* the name is safe, the data is not */
  CHECK (seen.empty && seen.zeros && seen.old);
  OK (rp_file_sync (file, &fault));
  OK (rp_sim_settle (io, &fault));
  seen = sweep (io);
  CHECK (seen.states == 1 && seen.old);
  OK (rp_file_pwrite (file, "new", 3, 0, &fault));
  seen = sweep (io);
  CHECK (seen.states == 2 && seen.old && seen.new);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

static void
test_unsynced_rename_may_be_undone (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct seen seen;

  OK (rp_dir_replace (dir, "file", "old", 3, 0600, &fault));
  OK (rp_dir_replace (dir, "aside", "new", 3, 0600, &fault));
  OK (rp_sim_settle (io, &fault));
  OK (rp_dir_rename (dir, "aside", "file", &fault));
  seen = sweep (io);
  CHECK (seen.states == 2 && seen.old && seen.new);
  OK (rp_dir_sync (dir, &fault));
  OK (rp_sim_settle (io, &fault));
  seen = sweep (io);
  CHECK (seen.states == 1 && seen.new);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

static void
test_unsynced_truncate_punch_and_unlink_may_be_undone (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file;
  struct seen seen;

  OK (rp_dir_replace (dir, "file", "old", 3, 0600, &fault));
  OK (rp_sim_settle (io, &fault));
  file = open_file (dir, "file");
  OK (rp_file_punch (file, 0, 100, &fault));
  seen = sweep (io);
  CHECK (seen.states == 2 && seen.old && seen.zeros);
  OK (rp_file_truncate (file, 0, &fault));
  seen = sweep (io);
  CHECK (seen.states == 3 && seen.old && seen.zeros && seen.empty);
  OK (rp_dir_unlink (dir, "file", &fault));
  seen = sweep (io);
  CHECK (seen.states == 4 && seen.absent);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

/* ---- tearing ---- */

#define SECTORS 5u

struct tears {
  bool seen[1u << SECTORS];      /* bit: the sector is new */
  bool garbage;
};

static int
note_tear (void *context, struct rp_io *io, const struct rp_sim_state *state,
           struct rp_fault *found)
{
  struct tears *tears = context;
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "file");
  uint8_t bytes[SECTORS * 512];
  unsigned mask = 0;
  bool garbage = false;

  (void) state;
  (void) found;
  OK (rp_file_pread_all (file, bytes, sizeof bytes, 0, &fault));
  for (unsigned i = 0; i < SECTORS; i++) {
    const uint8_t *sector = bytes + i * 512;

    for (unsigned k = 1; k < 512; k++)
      if (sector[k] != sector[0])
        garbage = true;
    mask |= (sector[0] == 'n') << i;
    checks++;
  }
  if (garbage)
    tears->garbage = true;
  else
    tears->seen[mask] = true;
  rp_file_close (file);
  rp_dir_close (dir);
  return RP_OK;
}

static void
test_a_write_tears_between_sectors (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "file");
  struct rp_sim_options options = { .flags = RP_SIM_TEAR };
  struct tears tears = { .garbage = false };
  struct rp_sim_counts counts;
  uint8_t bytes[SECTORS * 512];

  memset (bytes, 'o', sizeof bytes);
  OK (rp_file_pwrite (file, bytes, sizeof bytes, 0, &fault));
  OK (rp_sim_settle (io, &fault));
  memset (bytes, 'n', sizeof bytes);
  OK (rp_file_pwrite (file, bytes, sizeof bytes, 0, &fault));
  OK (rp_sim_crash_states (io, &options, note_tear, &tears, &counts, NULL,
                           &fault));
  for (unsigned i = 0; i <= SECTORS; i++) {
    CHECK (tears.seen[(1u << i) - 1]);                       /* first i */
    CHECK (tears.seen[((1u << SECTORS) - 1) & ~((1u << i) - 1)]);
    CHECK (i == SECTORS || tears.seen[((1u << SECTORS) - 1) & ~(1u << i)]);
  }
  CHECK (!tears.garbage);
  CHECK (counts.distinct == 2 * SECTORS + (SECTORS - 2));
  options.flags |= RP_SIM_GARBAGE;
  OK (rp_sim_crash_states (io, &options, note_tear, &tears, &counts, NULL,
                           &fault));
  CHECK (tears.garbage);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

/* ---- a sweep over replace(), whole and with a bug planted ---- */

/* As rp_dir_replace, with one of its syncs left out. */
static void
replace_badly (struct rp_dir *dir, const char *data, bool sync_file,
               bool sync_dir)
{
  struct rp_file *file = open_file (dir, "file.new");

  OK (rp_file_pwrite (file, data, strlen (data), 0, &fault));
  if (sync_file)
    OK (rp_file_sync (file, &fault));
  rp_file_close (file);
  OK (rp_dir_rename (dir, "file.new", "file", &fault));
  if (sync_dir)
    OK (rp_dir_sync (dir, &fault));
}

static int
must_be_old_or_new (void *context, struct rp_io *io,
                    const struct rp_sim_state *state, struct rp_fault *found)
{
  char text[64], wanted[64];
  long length = read_small (io, "file", text);

  (void) context;
  /* acknowledged n: generation n at least, n + 1 at most */
  for (uint64_t i = state->acknowledged; i <= state->acknowledged + 1; i++) {
    snprintf (wanted, sizeof wanted, "generation %llu",
              (unsigned long long) i);
    if (length > 0 && strcmp (text, wanted) == 0)
      return RP_OK;
  }
  return rp_fail (found, RP_CORRUPT, 0, "found \"%s\" after %llu", text,
                  (unsigned long long) state->acknowledged);
}

static int
sweep_replace (bool sync_file, bool sync_dir, char *text, int text_bytes)
{
  const struct rp_sim_options options = { .flags = RP_SIM_TEAR
                                                   | RP_SIM_GARBAGE };
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_sim_counts counts;
  struct rp_sim_state failed;
  struct rp_io *again;
  char data[64];
  int status;

  OK (rp_dir_replace (dir, "file", "generation 0", 12, 0600, &fault));
  OK (rp_sim_settle (io, &fault));
  for (uint64_t i = 1; i <= 3; i++) {
    snprintf (data, sizeof data, "generation %llu", (unsigned long long) i);
    if (sync_file && sync_dir)
      OK (rp_dir_replace (dir, "file", data, strlen (data), 0600, &fault));
    else
      replace_badly (dir, data, sync_file, sync_dir);
    OK (rp_sim_acknowledge (io, i, &fault));
  }
  status = rp_sim_crash_states (io, &options, must_be_old_or_new, NULL, &counts,
                                &failed, &fault);
  CHECK (counts.points > 3);
  if (status != RP_OK) {
    CHECK (rp_sim_state_text (io, &failed, text, (size_t) text_bytes)
           < text_bytes);
    /* the same state can be made again, and fails again */
    OK (rp_sim_state_make (io, &failed, &again, &fault));
    CHECK (must_be_old_or_new (NULL, again, &failed, &fault) == status);
    rp_io_destroy (again);
  }
  rp_dir_close (dir);
  rp_io_destroy (io);
  return status;
}

static void
test_replace_leaves_old_or_new_and_bugs_in_it_are_found (void)
{
  char text[4096];

  CHECK (sweep_replace (true, true, text, sizeof text) == RP_OK);
  CHECK (sweep_replace (false, true, text, sizeof text) == RP_CORRUPT);
  CHECK (strstr (text, "LOST write /") != NULL
         || strstr (text, "LOST grow /") != NULL);
  CHECK (sweep_replace (true, false, text, sizeof text) == RP_CORRUPT);
  CHECK (strstr (text, "LOST rename /file.new to file") != NULL);
}

/* ---- recovery, crashed as well ---- */

/* Two counters in two sectors of one file; recovery makes the second equal to
 * the first.  Crashed anywhere, it must get there in the next attempt. */
static uint64_t
counter (struct rp_file *file, uint64_t sector)
{
  uint64_t value = 0;

  OK (rp_file_pread_all (file, &value, sizeof value, sector * 512, &fault));
  return value;
}

struct depth {
  struct rp_sim_seen *seen;
  uint64_t inner_states;
};

static int
check_recovered (void *context, struct rp_io *io,
                 const struct rp_sim_state *state, struct rp_fault *found)
{
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "counters");

  (void) found;
  ((struct depth *) context)->inner_states++;
  CHECK (counter (file, 0) >= state->acknowledged);
  CHECK (state->last_tag == state->acknowledged);
  rp_file_close (file);
  rp_dir_close (dir);
  checks++;
  return RP_OK;
}

static int
recover_and_crash (void *context, struct rp_io *io,
                   const struct rp_sim_state *state, struct rp_fault *found)
{
  struct depth *depth = context;
  const struct rp_sim_options options = { .seen = depth->seen };
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "counters");
  struct rp_sim_counts counts;
  uint64_t value = counter (file, 0);

  (void) state;
  OK (rp_file_pwrite (file, &value, sizeof value, 512, &fault));
  OK (rp_file_sync (file, &fault));
  rp_file_close (file);
  rp_dir_close (dir);
  return rp_sim_crash_states (io, &options, check_recovered, depth, &counts,
                              NULL, found);
}

static void
test_recovery_can_be_crashed_too (void)
{
  const struct rp_sim_options options = { .flags = RP_SIM_TEAR };
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "counters");
  struct depth depth = { .inner_states = 0 };
  struct rp_sim_counts counts;

  OK (rp_sim_seen_create (&depth.seen, &fault));
  OK (rp_file_truncate (file, 1024, &fault));
  OK (rp_sim_settle (io, &fault));
  for (uint64_t i = 1; i <= 4; i++) {
    OK (rp_file_pwrite (file, &i, sizeof i, 0, &fault));
    OK (rp_file_pwrite (file, &i, sizeof i, 512, &fault));
    OK (rp_file_sync (file, &fault));
    OK (rp_sim_acknowledge (io, i, &fault));
  }
  OK (rp_sim_crash_states (io, &options, recover_and_crash, &depth, &counts,
                           NULL, &fault));
  CHECK (counts.distinct > 12);
  CHECK (rp_sim_seen_count (depth.seen) > 12);
  CHECK (depth.inner_states >= rp_sim_seen_count (depth.seen));
  CHECK (rp_sim_seen_deep_count (depth.seen)
         == rp_sim_seen_count (depth.seen));
  CHECK (depth.inner_states > 12);
  rp_sim_seen_destroy (depth.seen);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

/* ---- many pending operations, budgets, seeds ---- */

static int
sum_states (void *context, struct rp_io *io, const struct rp_sim_state *state,
            struct rp_fault *found)
{
  uint64_t *sum = context;
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "many");
  uint8_t bytes[64];

  (void) found;
  for (unsigned i = 0; i < 32; i++) {
    OK (rp_file_pread_all (file, bytes, 1, i * 4096, &fault));
    *sum = *sum * 31 + bytes[0] + state->point;
  }
  rp_file_close (file);
  rp_dir_close (dir);
  return RP_OK;
}

static void
test_samples_follow_the_seed_and_the_budget (void)
{
  struct rp_sim_options options = { .seed = 7, .budget = 500 };
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "many");
  struct rp_sim_counts counts, other;
  uint64_t first = 0, second = 0, third = 0, all = 0;

  OK (rp_file_truncate (file, 32 * 4096, &fault));
  OK (rp_sim_settle (io, &fault));
  for (unsigned i = 0; i < 32; i++)
    OK (rp_file_pwrite (file, "x", 1, i * 4096, &fault));
  OK (rp_sim_crash_states (io, &options, sum_states, &first, &counts, NULL,
                           &fault));
  CHECK (counts.points == 33);
  CHECK (counts.distinct <= 500);
  CHECK (counts.distinct > 300);
  OK (rp_sim_crash_states (io, &options, sum_states, &second, &other, NULL,
                           &fault));
  CHECK (first == second && other.distinct == counts.distinct);
  options.seed = 8;
  OK (rp_sim_crash_states (io, &options, sum_states, &third, &other, NULL,
                           &fault));
  CHECK (first != third);
  options.budget = 0;
  OK (rp_sim_crash_states (io, &options, sum_states, &all, &other, NULL,
                           &fault));
  CHECK (other.distinct > 5000);
  checks += other.distinct;
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

/* ---- failing syncs ---- */

static void
test_a_lost_sync_is_final_and_the_data_is_gone (void)
{
  struct rp_io *io = simulate ();
  const struct rp_fault_plan plan = {
    .call = 2, .kinds = RP_FAULT_SYNC, .effect = RP_FAULT_LOST, .os_errno = EIO,
  };
  struct rp_io *bad;
  struct rp_dir *dir;
  struct rp_file *file;
  char text[64];

  OK (rp_io_fault_create (io, &plan, &bad, &fault));
  dir = root_of (bad);
  file = open_file (dir, "file");
  OK (rp_file_pwrite (file, "old", 3, 0, &fault));
  OK (rp_file_sync (file, &fault));
  OK (rp_file_pwrite (file, "new and longer", 14, 0, &fault));
  CHECK (rp_file_sync (file, &fault) == RP_IO);
  CHECK (fault.os_errno == EIO);
  CHECK (rp_file_sync (file, &fault) == RP_FAILED);
  CHECK (rp_file_pwrite (file, "x", 1, 0, &fault) == RP_FAILED);
  CHECK (rp_file_truncate (file, 0, &fault) == RP_FAILED);
  CHECK (rp_file_punch (file, 0, 1, &fault) == RP_FAILED);
  CHECK (rp_file_allocate (file, 0, 1, &fault) == RP_FAILED);
  rp_file_close (file);
  /* another handle: the sync succeeds now, and the data is not there */
  file = open_file (dir, "file");
  OK (rp_file_sync (file, &fault));
  CHECK (read_small (bad, "file", text) == 14);
  CHECK (memcmp (text, "old\0\0", 5) == 0);
  CHECK (rp_io_fault_calls (bad) == 3);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (bad);
  rp_io_destroy (io);
}

static int
must_have_lost (void *context, struct rp_io *io,
                const struct rp_sim_state *state, struct rp_fault *found)
{
  char text[64];
  bool *lost = context;

  (void) found;
  if (state->acknowledged == 1
      && (read_small (io, "file", text) < 3 || memcmp (text, "new", 3) != 0))
    *lost = true;
  return RP_OK;
}

/* Each liar is seen through by the sweep: data that it called durable is gone
 * in some state. */
static void
test_lying_syncs_lose_data (void)
{
  const uint32_t effects[] = { RP_FAULT_LATE, RP_FAULT_LIE };
  const struct rp_sim_options options = { .seed = 1 };

  for (unsigned i = 0; i < 2; i++) {
    const struct rp_fault_plan plan = {
      .call = 2, .kinds = RP_FAULT_SYNC, .effect = effects[i], .os_errno = EIO,
    };
    struct rp_io *io = simulate (), *bad;
    struct rp_sim_counts counts;
    struct rp_dir *dir;
    struct rp_file *file;
    bool lost = false;
    char text[64];

    OK (rp_io_fault_create (io, &plan, &bad, &fault));
    dir = root_of (bad);
    file = open_file (dir, "file");
    OK (rp_dir_sync (dir, &fault));
    OK (rp_file_pwrite (file, "new", 3, 0, &fault));
    OK (rp_file_sync (file, &fault));
    OK (rp_sim_acknowledge (io, 1, &fault));
    CHECK (read_small (bad, "file", text) == 3);
    CHECK (strcmp (text, "new") == 0);          /* the cache still has it */
    OK (rp_sim_crash_states (io, &options, must_have_lost, &lost, &counts, NULL,
                             &fault));
    CHECK (lost);
    CHECK (rp_file_sync (file, &fault)
           == (effects[i] == RP_FAULT_LATE ? RP_IO : RP_OK));
    rp_file_close (file);
    rp_dir_close (dir);
    rp_io_destroy (bad);
    rp_io_destroy (io);
  }
}

/* ---- the backend as a file system ---- */

static void
count_name (void *context, const char *name)
{
  CHECK (name[0] != '\0');
  ++*(unsigned *) context;
}

static int
expect_errno (int status, int os_errno)
{
  checks++;
  return status == RP_IO && fault.os_errno == os_errno;
}

static void
test_directories_behave (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io), *sub, *none;
  struct rp_stat stat;
  unsigned count = 0;

  OK (rp_dir_make (dir, "sub", 0700, &fault));
  CHECK (expect_errno (rp_dir_make (dir, "sub", 0700, &fault), EEXIST));
  OK (rp_dir_open (io, "/sub/.//", &sub, &fault));
  CHECK (expect_errno (rp_dir_open (io, "/nope", &none, &fault), ENOENT));
  CHECK (none == NULL);
  OK (rp_dir_replace (sub, "a", "1", 1, 0600, &fault));
  CHECK (expect_errno (rp_dir_remove (dir, "sub", &fault), ENOTEMPTY));
  CHECK (expect_errno (rp_dir_unlink (dir, "sub", &fault), EISDIR));
  CHECK (expect_errno (rp_dir_unlink (dir, "nope", &fault), ENOENT));
  CHECK (expect_errno (rp_dir_rename (dir, "nope", "x", &fault), ENOENT));
  OK (rp_dir_replace (dir, "b", "1", 1, 0600, &fault));
  CHECK (expect_errno (rp_dir_rename (dir, "b", "sub", &fault), EISDIR));
  CHECK (expect_errno (rp_dir_rename (dir, "sub", "b", &fault), ENOTDIR));
  OK (rp_dir_stat (dir, "sub", &stat, &fault));
  CHECK (stat.is_directory && !stat.is_regular);
  OK (rp_dir_list (dir, count_name, &count, &fault));
  CHECK (count == 2);
  OK (rp_dir_unlink (sub, "a", &fault));
  OK (rp_dir_remove (dir, "sub", &fault));
  CHECK (expect_errno (rp_dir_stat (dir, "sub", &stat, &fault), ENOENT));
  rp_dir_close (sub);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

/* A file against a plain array, with everything that changes one. */
#define MODEL_BYTES (3u * 262144u)

struct model {
  uint8_t  bytes[MODEL_BYTES];
  uint64_t size;
};

static uint64_t
draw (uint64_t *random)
{
  *random = *random * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return *random >> 33;
}

static void
change_both (struct rp_file *file, struct model *model, uint64_t *random)
{
  static const uint8_t data[20000] = { 1, 2, 3, 5, 8, 13, [5000] = 9 };
  const uint64_t kind = draw (random) % 10;
  const uint64_t length = draw (random) % sizeof data;
  const uint64_t offset = draw (random) % (MODEL_BYTES - length);
  const uint64_t stop = offset + length;

  if (kind < 5) {
    const size_t from = draw (random) % (sizeof data - length);

    OK (rp_file_pwrite (file, data + from, length, offset, &fault));
    memcpy (model->bytes + offset, data + from, length);
    if (length > 0 && stop > model->size)
      model->size = stop;
  } else if (kind < 7) {
    OK (rp_file_punch (file, offset, length, &fault));
    if (offset < model->size)
      memset (model->bytes + offset, 0,
              stop < model->size ? length : model->size - offset);
  } else if (kind < 8) {
    OK (rp_file_truncate (file, offset, &fault));
    if (offset < model->size)
      memset (model->bytes + offset, 0, model->size - offset);
    model->size = offset;
  } else if (kind < 9) {
    OK (rp_file_allocate (file, offset, length, &fault));
    if (length > 0 && stop > model->size)
      model->size = stop;
  } else
    OK (rp_file_sync (file, &fault));
}

static void
test_a_file_equals_a_plain_array (void)
{
  static struct model model;
  static uint8_t bytes[MODEL_BYTES];
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *file = open_file (dir, "file");
  uint64_t random = 20261122, size, data, hole;
  size_t done;

  for (unsigned i = 0; i < 400; i++) {
    change_both (file, &model, &random);
    OK (rp_file_size (file, &size, &fault));
    CHECK (size == model.size);
    OK (rp_file_pread (file, bytes, sizeof bytes, 0, &done, &fault));
    CHECK (done == size && memcmp (bytes, model.bytes, done) == 0);
    for (uint64_t at = 0; at < size; at = hole) {
      OK (rp_file_seek (file, at, true, &data, &fault));
      for (uint64_t k = at; k < data; k++)
        CHECK (model.bytes[k] == 0);
      OK (rp_file_seek (file, data, false, &hole, &fault));
      CHECK (data == size || hole > data);
      checks++;
    }
  }
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

static void
test_locks_and_read_only_handles (void)
{
  struct rp_io *io = simulate ();
  struct rp_dir *dir = root_of (io);
  struct rp_file *one = open_file (dir, "file"), *two = open_file (dir, "file");
  struct rp_file *reader;

  OK (rp_file_lock (one, true, &fault));
  CHECK (rp_file_lock (two, true, &fault) == RP_LOCKED);
  CHECK (rp_file_lock (two, false, &fault) == RP_LOCKED);
  OK (rp_file_lock (one, false, &fault));
  OK (rp_file_lock (two, false, &fault));
  CHECK (rp_file_lock (one, true, &fault) == RP_LOCKED);
  rp_file_close (two);
  OK (rp_file_lock (one, true, &fault));
  OK (rp_file_open (dir, "file", RP_OPEN_READ, 0, &reader, &fault));
  CHECK (expect_errno (rp_file_pwrite (reader, "x", 1, 0, &fault), EBADF));
  rp_file_close (reader);
  rp_file_close (one);
  rp_dir_close (dir);
  rp_io_destroy (io);
}

int
main (void)
{
  test_unsynced_data_may_be_lost ();
  test_unsynced_rename_may_be_undone ();
  test_unsynced_truncate_punch_and_unlink_may_be_undone ();
  test_a_write_tears_between_sectors ();
  test_replace_leaves_old_or_new_and_bugs_in_it_are_found ();
  test_recovery_can_be_crashed_too ();
  test_samples_follow_the_seed_and_the_budget ();
  test_a_lost_sync_is_final_and_the_data_is_gone ();
  test_lying_syncs_lose_data ();
  test_directories_behave ();
  test_a_file_equals_a_plain_array ();
  test_locks_and_read_only_handles ();
  printf ("io_simulate_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

/* failing.h - memory and storage that fail on purpose, and who asked for it.
 *
 * The linker sends every call of the names below to a wrapper in here
 * (native_build.py reads them from this comment), which knows the caller by
 * its return address: a site.  While it is armed, allocation number `call`
 * fails, once or from then on.  Calls of the storage are counted by the fault
 * backend (io_fault.c); which site one came from is found out here.
 *
 * Below the door to storage (rp_file_*, rp_dir_*) memory does not fail and is
 * not counted, for what lies there are the backends of tests; on real files it
 * can.  A repair's view of a file is no such backend.  Doors behind a door (a
 * slice of a file, a view) are sites, too.
 *
 * Every block is counted, too: after a run there are as many as before it.
 *
 * ROLLPOINT_SITES: a file to which the sites are added, for tests/proof/faults.
 * ROLLPOINT_STEP: try only each n-th call (the default of a program is in it).
 *
 * wraps: malloc calloc realloc strdup aligned_alloc free pthread_create
 * wraps: libdeflate_alloc_compressor libdeflate_alloc_decompressor
 * wraps: libdeflate_free_compressor libdeflate_free_decompressor
 * wraps: rp_dir_open rp_dir_make rp_dir_remove rp_dir_sync rp_dir_rename
 * wraps: rp_dir_unlink rp_dir_list rp_dir_stat rp_dir_replace
 * wraps: rp_file_open rp_file_pread rp_file_pread_all rp_file_pwrite
 * wraps: rp_file_pwritev rp_file_sync rp_file_truncate rp_file_allocate
 * wraps: rp_file_punch rp_file_stat rp_file_size rp_file_seek rp_file_lock
 * wraps: rp_file_note rp_sim_acknowledge
 */
#ifndef RP_TEST_FAILING_H
#define RP_TEST_FAILING_H

#include <errno.h>
#include <inttypes.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "io.h"
#include "simulate.h"

#define FAILING_SITES 2048u

/* What a call site went through: a bit each. */
enum failing_how {
  FAILING_REACHED = 1,
  FAILING_ONCE    = 2,           /* memory */
  FAILING_FOREVER = 4,
  FAILING_EIO_ONCE = 2,          /* storage */
  FAILING_EIO_FOREVER = 4,
  FAILING_ENOSPC_ONCE = 8,
  FAILING_ENOSPC_FOREVER = 16,
  FAILING_MEMORY = 32,           /* storage that is kept in memory: a view */
};

struct failing_site {
  uintptr_t at;                  /* where the call returns to; 0 is free */
  uint32_t  how;
};

struct failing {
  pthread_mutex_t lock;          /* over all that follows */
  bool     armed, sticky, below;
  uint64_t call, calls, struck;
  struct rp_io *faulty;          /* NULL: storage does not fail */
  uint64_t faulty_call;
  uint32_t faulty_how;
  struct failing_site memory[FAILING_SITES], storage[FAILING_SITES];
};

static struct failing failing = { .lock = PTHREAD_MUTEX_INITIALIZER };
static _Atomic int64_t failing_blocks;
static _Thread_local unsigned failing_depth;

/* NULL, or what somebody else does before the next call of the storage. */
static void (*failing_meanwhile) (void *context, const char *call);
static void *failing_context;

static void
failing_note (struct failing_site *sites, const void *site, uint32_t how)
{
  const uintptr_t at = (uintptr_t) site;
  uint32_t slot = (uint32_t) (at * UINT64_C (0x9e3779b97f4a7c15) >> 40)
                  % FAILING_SITES;

  while (sites[slot].at != 0 && sites[slot].at != at)
    slot = (slot + 1) % FAILING_SITES;
  sites[slot].at = at;
  sites[slot].how |= how;
}

static bool
failing_strikes (const void *site)
{
  bool strikes = false;

  pthread_mutex_lock (&failing.lock);
  if (failing.armed && (failing_depth == 0 || failing.below)) {
    failing.calls++;
    strikes = failing.call > 0
              && (failing.calls == failing.call
                  || (failing.sticky && failing.calls > failing.call));
    failing.struck += strikes;
    failing_note (failing.memory, site, FAILING_REACHED
                  | (!strikes ? 0 : failing.sticky ? FAILING_FOREVER
                                                   : FAILING_ONCE));
  }
  pthread_mutex_unlock (&failing.lock);
  return strikes;
}

/* ---- what a test calls ---- */

/* From now on allocation number `call` fails (0: none, they are counted). */
static inline void
failing_arm (uint64_t call, bool sticky)
{
  pthread_mutex_lock (&failing.lock);
  failing.armed = true;
  failing.sticky = sticky;
  failing.call = call;
  failing.calls = failing.struck = 0;
  pthread_mutex_unlock (&failing.lock);
}

/* The same, once, also below the door: where no backend of a test lies. */
static inline void
failing_arm_below (uint64_t call)
{
  failing_arm (call, false);
  failing.below = true;
}

/* From now on sites of storage are told by what this io does to them. */
static inline void
failing_watch (struct rp_io *faulty, const struct rp_fault_plan *plan)
{
  pthread_mutex_lock (&failing.lock);
  failing.faulty = faulty;
  failing.faulty_call = plan ? plan->call : 0;
  failing.faulty_how = !plan ? 0
                       : plan->os_errno == EIO
                         ? (plan->sticky ? FAILING_EIO_FOREVER
                                         : FAILING_EIO_ONCE)
                         : (plan->sticky ? FAILING_ENOSPC_FOREVER
                                         : FAILING_ENOSPC_ONCE);
  pthread_mutex_unlock (&failing.lock);
}

/* Everything works again; returns how many allocations failed. */
static inline uint64_t
failing_disarm (void)
{
  uint64_t struck;

  pthread_mutex_lock (&failing.lock);
  failing.armed = failing.below = false;
  failing.faulty = NULL;
  struck = failing.struck;
  pthread_mutex_unlock (&failing.lock);
  return struck;
}

static inline uint64_t
failing_step (uint64_t otherwise)
{
  const char *step = getenv ("ROLLPOINT_STEP");

  return step ? strtoull (step, NULL, 10) : otherwise;
}

static inline uint64_t
failing_count (const struct failing_site *sites)
{
  uint64_t count = 0;

  for (uint32_t i = 0; i < FAILING_SITES; i++)
    count += sites[i].at != 0 && (sites[i].how & ~FAILING_REACHED) != 0;
  return count;
}

/* Where the program begins, so that addresses are those of its file. */
extern const char __executable_start;

static inline void
failing_tell (void)
{
  const char *path = getenv ("ROLLPOINT_SITES");
  FILE *file = path ? fopen (path, "a") : NULL;

  if (!file)
    return;
  for (uint32_t i = 0; i < FAILING_SITES; i++) {
    const uintptr_t start = (uintptr_t) &__executable_start;

    if (failing.memory[i].at)
      fprintf (file, "memory %" PRIxPTR " %u\n", failing.memory[i].at - start,
               failing.memory[i].how);
    if (failing.storage[i].at)
      fprintf (file, "storage %" PRIxPTR " %u\n",
               failing.storage[i].at - start, failing.storage[i].how);
  }
  CHECK (fclose (file) == 0);
}

/* ---- memory ---- */

#define FAILING_SITE __builtin_return_address (0)

static void *
failing_counted (void *block)
{
  failing_blocks += block != NULL;
  return block;
}

#define FAILING_MAKER(type, name, parameters, arguments)                   \
  type __real_##name parameters;                                           \
  type __wrap_##name parameters;                                           \
  type __wrap_##name parameters                                            \
  {                                                                        \
    if (failing_strikes (FAILING_SITE)) {                                  \
      errno = ENOMEM;                                                      \
      return NULL;                                                         \
    }                                                                      \
    return failing_counted (__real_##name arguments);                      \
  }

FAILING_MAKER (void *, malloc, (size_t bytes), (bytes))
FAILING_MAKER (void *, calloc, (size_t count, size_t bytes), (count, bytes))
FAILING_MAKER (void *, aligned_alloc, (size_t to, size_t bytes), (to, bytes))
FAILING_MAKER (char *, strdup, (const char *text), (text))
FAILING_MAKER (struct libdeflate_compressor *, libdeflate_alloc_compressor,
               (int level), (level))
FAILING_MAKER (struct libdeflate_decompressor *,
               libdeflate_alloc_decompressor, (void), ())

void *__real_realloc (void *block, size_t bytes);
void *__wrap_realloc (void *block, size_t bytes);
void *
__wrap_realloc (void *block, size_t bytes)
{
  void *larger;

  if (failing_strikes (FAILING_SITE)) {
    errno = ENOMEM;
    return NULL;
  }
  larger = __real_realloc (block, bytes);
  failing_blocks += larger != NULL && block == NULL;
  return larger;
}

#define FAILING_ENDER(name, type)                                          \
  void __real_##name (type *block);                                        \
  void __wrap_##name (type *block);                                        \
  void __wrap_##name (type *block)                                         \
  {                                                                        \
    failing_blocks -= block != NULL;                                       \
    __real_##name (block);                                                 \
  }

FAILING_ENDER (free, void)
FAILING_ENDER (libdeflate_free_compressor, struct libdeflate_compressor)
FAILING_ENDER (libdeflate_free_decompressor, struct libdeflate_decompressor)

typedef void *failing_start (void *);
int __real_pthread_create (pthread_t *thread, const pthread_attr_t *how,
                           failing_start *start, void *argument);
int __wrap_pthread_create (pthread_t *thread, const pthread_attr_t *how,
                           failing_start *start, void *argument);
int
__wrap_pthread_create (pthread_t *thread, const pthread_attr_t *how,
                       failing_start *start, void *argument)
{
  if (failing_strikes (FAILING_SITE))
    return EAGAIN;
  return __real_pthread_create (thread, how, start, argument);
}

/* ---- storage ---- */

struct failing_visit {
  const void *site;
  bool        view;              /* its memory is the product's */
  uint64_t    before;            /* calls of the fault backend */
  uint64_t    struck;            /* allocations that failed */
};

static inline bool
failing_is_view (const struct rp_file *file)
{
  return strcmp (file->io->functions->name, "view") == 0;
}

static inline bool
failing_is_none (const void *other)
{
  (void) other;
  return false;
}

static struct failing_visit
failing_enter (const void *site, const char *name, bool view)
{
  struct failing_visit visit = { .site = site, .view = view };

  if (failing_meanwhile && failing_depth == 0)
    failing_meanwhile (failing_context, name);
  failing_depth += !view;
  pthread_mutex_lock (&failing.lock);
  if (failing.faulty)
    visit.before = rp_io_fault_calls (failing.faulty);
  visit.struck = failing.struck;
  pthread_mutex_unlock (&failing.lock);
  return visit;
}

static int
failing_leave (struct failing_visit visit, int status)
{
  failing_depth -= !visit.view;
  pthread_mutex_lock (&failing.lock);
  if (visit.view && failing.armed && failing.struck > visit.struck)
    failing_note (failing.storage, visit.site, FAILING_MEMORY);
  if (failing.faulty) {
    const uint64_t after = rp_io_fault_calls (failing.faulty);
    const bool forever = (failing.faulty_how
                          & (FAILING_EIO_FOREVER | FAILING_ENOSPC_FOREVER));
    const bool struck = failing.faulty_call > 0
                        && after >= failing.faulty_call
                        && (visit.before < failing.faulty_call
                            || (forever && after > visit.before));

    failing_note (failing.storage, visit.site, FAILING_REACHED
                  | (struck ? failing.faulty_how : 0));
  }
  pthread_mutex_unlock (&failing.lock);
  return status;
}

#define FAILING_IS_VIEW(first, ...)                                        \
  _Generic ((first), struct rp_file *: failing_is_view,                    \
            default: failing_is_none) (first)

#define FAILING_DOOR(name, parameters, arguments)                          \
  int __real_##name parameters;                                            \
  int __wrap_##name parameters;                                            \
  int __wrap_##name parameters                                             \
  {                                                                        \
    const struct failing_visit visit                                       \
      = failing_enter (FAILING_SITE, #name, FAILING_IS_VIEW arguments);    \
                                                                           \
    return failing_leave (visit, __real_##name arguments);                 \
  }

typedef struct rp_fault failing_fault;
typedef void failing_each (void *, const char *);

FAILING_DOOR (rp_dir_open, (struct rp_io *io, const char *path,
                            struct rp_dir **out, failing_fault *fault),
              (io, path, out, fault))
FAILING_DOOR (rp_dir_make, (struct rp_dir *dir, const char *name,
                            uint32_t mode, failing_fault *fault),
              (dir, name, mode, fault))
FAILING_DOOR (rp_dir_remove, (struct rp_dir *dir, const char *name,
                              failing_fault *fault), (dir, name, fault))
FAILING_DOOR (rp_dir_sync, (struct rp_dir *dir, failing_fault *fault),
              (dir, fault))
FAILING_DOOR (rp_dir_rename, (struct rp_dir *dir, const char *from,
                              const char *to, failing_fault *fault),
              (dir, from, to, fault))
FAILING_DOOR (rp_dir_unlink, (struct rp_dir *dir, const char *name,
                              failing_fault *fault), (dir, name, fault))
FAILING_DOOR (rp_dir_list, (struct rp_dir *dir, failing_each *each,
                            void *context, failing_fault *fault),
              (dir, each, context, fault))
FAILING_DOOR (rp_dir_stat, (struct rp_dir *dir, const char *name,
                            struct rp_stat *out, failing_fault *fault),
              (dir, name, out, fault))
FAILING_DOOR (rp_dir_replace, (struct rp_dir *dir, const char *name,
                               const void *data, size_t length, uint32_t mode,
                               failing_fault *fault),
              (dir, name, data, length, mode, fault))
FAILING_DOOR (rp_file_open, (struct rp_dir *dir, const char *name,
                             uint32_t flags, uint32_t mode,
                             struct rp_file **out, failing_fault *fault),
              (dir, name, flags, mode, out, fault))
FAILING_DOOR (rp_file_pread, (struct rp_file *file, void *buffer,
                              size_t length, uint64_t offset,
                              size_t *done_out, failing_fault *fault),
              (file, buffer, length, offset, done_out, fault))
FAILING_DOOR (rp_file_pread_all, (struct rp_file *file, void *buffer,
                                  size_t length, uint64_t offset,
                                  failing_fault *fault),
              (file, buffer, length, offset, fault))
FAILING_DOOR (rp_file_pwrite, (struct rp_file *file, const void *buffer,
                               size_t length, uint64_t offset,
                               failing_fault *fault),
              (file, buffer, length, offset, fault))
FAILING_DOOR (rp_file_pwritev, (struct rp_file *file,
                                const struct iovec *parts, int part_count,
                                uint64_t offset, failing_fault *fault),
              (file, parts, part_count, offset, fault))
FAILING_DOOR (rp_file_sync, (struct rp_file *file, failing_fault *fault),
              (file, fault))
FAILING_DOOR (rp_file_truncate, (struct rp_file *file, uint64_t size,
                                 failing_fault *fault), (file, size, fault))
FAILING_DOOR (rp_file_allocate, (struct rp_file *file, uint64_t offset,
                                 uint64_t length, failing_fault *fault),
              (file, offset, length, fault))
FAILING_DOOR (rp_file_punch, (struct rp_file *file, uint64_t offset,
                              uint64_t length, failing_fault *fault),
              (file, offset, length, fault))
FAILING_DOOR (rp_file_stat, (struct rp_file *file, struct rp_stat *out,
                             failing_fault *fault), (file, out, fault))
FAILING_DOOR (rp_file_size, (struct rp_file *file, uint64_t *out,
                             failing_fault *fault), (file, out, fault))
FAILING_DOOR (rp_file_seek, (struct rp_file *file, uint64_t offset,
                             bool want_data, uint64_t *out,
                             failing_fault *fault),
              (file, offset, want_data, out, fault))
FAILING_DOOR (rp_file_lock, (struct rp_file *file, bool exclusive,
                             failing_fault *fault), (file, exclusive, fault))
FAILING_DOOR (rp_sim_acknowledge, (struct rp_io *io, uint64_t tag,
                                   failing_fault *fault), (io, tag, fault))

void __real_rp_file_note (struct rp_file *file, enum rp_note note,
                          uint64_t offset, uint64_t length);
void __wrap_rp_file_note (struct rp_file *file, enum rp_note note,
                          uint64_t offset, uint64_t length);
void
__wrap_rp_file_note (struct rp_file *file, enum rp_note note, uint64_t offset,
                     uint64_t length)
{
  failing_depth++;
  __real_rp_file_note (file, note, offset, length);
  failing_depth--;
}

#endif /* RP_TEST_FAILING_H */

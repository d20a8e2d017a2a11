/* journal_model.h - what the C tests of the journal share: a base in memory,
 * a file to put a log in, and the plain model that a journal is held against.
 */
#ifndef RP_TEST_JOURNAL_MODEL_H
#define RP_TEST_JOURNAL_MODEL_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "disk.h"
#include "io.h"
#include "journal.h"

/* ---- random numbers: xorshift64*, seeded by the test ---- */

static inline uint64_t
next_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (2685821657736338717);
}

static inline uint64_t
random_below (uint64_t *state, uint64_t limit)
{
  return (next_random (state) >> 16) % limit;
}

/* ---- a disk in memory ---- */

struct memory_disk {
  struct rp_disk disk;
  uint8_t *bytes;
  uint64_t changes, flushes;     /* calls so far */
  uint64_t fail_change;          /* the change that fails; 0: none */
};

static inline int
memory_pread (struct rp_disk *disk, void *buffer, size_t length,
              uint64_t offset, struct rp_fault *fault)
{
  (void) fault;
  memcpy (buffer, ((struct memory_disk *) disk)->bytes + offset, length);
  return RP_OK;
}

static inline int
memory_change (struct rp_disk *disk, struct rp_fault *fault)
{
  struct memory_disk *memory = (struct memory_disk *) disk;

  if (++memory->changes == memory->fail_change)
    return rp_fail (fault, RP_IO, 0, "memory disk");
  return RP_OK;
}

static inline int
memory_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  const int status = memory_change (disk, fault);

  if (status == RP_OK)
    memcpy (((struct memory_disk *) disk)->bytes + offset, buffer, length);
  return status;
}

static inline int
memory_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
             bool may_trim, struct rp_fault *fault)
{
  const int status = memory_change (disk, fault);

  (void) may_trim;
  if (status == RP_OK)
    memset (((struct memory_disk *) disk)->bytes + offset, 0, length);
  return status;
}

static inline int
memory_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  (void) fault;
  ((struct memory_disk *) disk)->flushes++;
  return RP_OK;
}

static inline int
memory_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
            struct rp_run *out, struct rp_fault *fault)
{
  (void) disk;
  (void) fault;
  memset (out, 0, sizeof *out);
  out->offset_bytes = offset;
  out->length_bytes = length;
  out->kind = RP_RUN_DATA;
  return RP_OK;
}

static const struct rp_disk_functions memory_functions = {
  .name = "memory", .pread = memory_pread, .pwrite = memory_pwrite,
  .zero = memory_zero, .flush = memory_flush, .run = memory_run,
};

static inline struct rp_disk *
memory_disk_init (struct memory_disk *disk, uint64_t bytes, uint8_t fill)
{
  memset (disk, 0, sizeof *disk);
  disk->disk.functions = &memory_functions;
  disk->disk.size_bytes = bytes;
  disk->disk.read_only = true;   /* a test that destages says otherwise */
  disk->bytes = malloc (bytes);
  CHECK (disk->bytes);
  memset (disk->bytes, fill, bytes);
  return &disk->disk;
}

/* ---- a directory of its own ---- */

struct place {
  struct rp_io *posix, *io;      /* io: order, above it */
  struct rp_dir *dir;
  char path[64];
};

static inline void
place_make (struct place *place)
{
  const char *where = getenv ("ROLLPOINT_PLACE");
  struct rp_fault fault;

  /* in memory where there is such a place: syncs cost nothing there */
  snprintf (place->path, sizeof place->path, "%s/rp-journal-XXXXXX",
            where ? where : "/dev/shm");
  if (!mkdtemp (place->path)) {
    snprintf (place->path, sizeof place->path, "/tmp/rp-journal-XXXXXX");
    CHECK (mkdtemp (place->path));
  }
  OK (rp_io_posix_create (&place->posix, &fault));
  OK (rp_io_order_create (place->posix, &place->io, &fault));
  OK (rp_dir_open (place->io, place->path, &place->dir, &fault));
}

static inline void
remove_one (void *context, const char *name)
{
  struct rp_fault fault;

  OK (rp_dir_unlink (context, name, &fault));
}

static inline void
place_remove (struct place *place)
{
  struct rp_fault fault;

  OK (rp_dir_list (place->dir, remove_one, place->dir, &fault));
  rp_dir_close (place->dir);
  rp_io_destroy (place->io);
  rp_io_destroy (place->posix);
  CHECK (rmdir (place->path) == 0);
}

static inline struct rp_file *
place_open (struct place *place, const char *name)
{
  struct rp_file *file;
  struct rp_fault fault;

  OK (rp_file_open (place->dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE, 0600,
                    &file, &fault));
  return file;
}

static inline struct rp_file *
place_create_log (struct place *place, const char *name, uint64_t capacity,
                  uint32_t grain, uint32_t segment)
{
  struct rp_file *file = place_open (place, name);
  struct rp_journal_options options = {
    .capacity_bytes = capacity, .grain_bytes = grain,
    .segment_bytes = segment, .id = "0123456789abcde", .epoch = 1,
  };
  struct rp_fault fault;

  OK (rp_journal_create (file, &options, &fault));
  OK (rp_dir_sync (place->dir, &fault));
  return file;
}

static inline struct rp_journal *
journal_open (struct rp_file *file, struct rp_disk *base, int flags)
{
  struct rp_journal *journal;
  struct rp_fault fault;

  OK (rp_journal_open (file, base, flags, 0, &journal, &fault));
  return journal;
}

static inline struct rp_point
make_point (uint64_t id)
{
  struct rp_point point = {
    .id = id, .time_ns = (int64_t) id * 1000, .kind = RP_POINT_CRASH,
  };

  if (id % 3 == 0)
    snprintf (point.label, sizeof point.label, "point %u", (unsigned) id);
  return point;
}

#endif /* RP_TEST_JOURNAL_MODEL_H */

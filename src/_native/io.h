/* io.h - the one door to persistent storage.
 *
 * Everything the core keeps goes through struct rp_io: files, directories,
 * renames, syncs, locks.  Nothing else in src/_native calls the kernel for
 * persistent data, and there are no memory-mapped writes, so a test can see
 * and break each operation.  Backends:
 *
 *   posix     the real one
 *   record    wraps another and keeps a list of micro-operations
 *   order     wraps another and stops the process when a write-ahead rule is
 *             broken (see rp_io_order_*): on in every test
 *   simulate  files in memory with a durable and a volatile layer; yields
 *             the states that a crash may leave
 *   fault     wraps another and fails call number k
 *
 * Rules for every backend: a short write or EINTR is retried inside; a
 * function fails whole or succeeds whole; the first failed sync of a file is
 * final: every later sync and write of that file returns RP_FAILED without
 * asking the kernel again (a retried fsync can succeed while the data is
 * gone: seen on ext4 and xfs, Linux 6.18).  It is final for the handle; one
 * opened later begins anew.  The same holds for a directory: no name is made,
 * renamed or removed through a handle whose sync has failed.
 *
 * Threads: a file may be used by any number of threads at once; opening,
 *          closing and everything that takes a directory, too.  A handle is
 *          closed once, after its last use.
 */
#ifndef RP_IO_H
#define RP_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "status.h"

#define RP_NAME_BYTES 256        /* one path component with its NUL */

struct rp_io;
struct rp_dir;                   /* an open directory */
struct rp_file;                  /* an open regular file */

enum rp_open_flags {
  RP_OPEN_READ      = 1,
  RP_OPEN_WRITE     = 2,         /* implies READ */
  RP_OPEN_CREATE    = 4,         /* with WRITE: make it when it is missing */
  RP_OPEN_EXCLUSIVE = 8,         /* with CREATE: it must be missing */
  RP_OPEN_TRUNCATE  = 16,        /* with WRITE */
  RP_OPEN_BENEATH   = 32,        /* the name came from a file, not from the
                                    user: one component, no symbolic link */
};

/* The byte of rp_file_lock, clear of bytes 100..203, which QEMU uses. */
#define RP_LOCK_OFFSET_BYTES 1048577u

struct rp_stat {
  uint64_t size_bytes;
  uint64_t allocated_bytes;
  uint64_t device, inode;        /* identity, for loops and double opens */
  bool     is_directory;
  bool     is_regular;
  uint32_t mode;                 /* permission bits; 0 where there are none */
};

/* What code above tells a backend that checks it (order); see rp_file_note. */
enum rp_note {
  /* bytes [offset, offset + length) were promised to somebody as durable */
  RP_NOTE_ACKNOWLEDGE = 1,
  /* the caller is about to write, somewhere, a pointer to these bytes: they
     have to be durable already */
  RP_NOTE_POINTS_TO   = 2,
};

/* One function per operation.  A backend fills all of them; wrappers call the
 * io they wrap.  Callers use the rp_* functions below, never the table.
 * All return RP_OK or a status and fill the fault (never NULL here).
 */
struct rp_io_functions {
  const char *name;              /* "posix", "simulate", ... */
  void (*destroy) (struct rp_io *io);

  /* path is absolute or relative to the working directory (simulate: any
     string names a directory of the simulated tree, "/" is its root) */
  int (*dir_open) (struct rp_io *io, const char *path, struct rp_dir **out,
                   struct rp_fault *fault);
  void (*dir_close) (struct rp_dir *dir);
  int (*dir_make) (struct rp_dir *dir, const char *name, uint32_t mode,
                   struct rp_fault *fault);
  int (*dir_remove) (struct rp_dir *dir, const char *name,
                     struct rp_fault *fault);
  int (*dir_sync) (struct rp_dir *dir, struct rp_fault *fault);
  int (*dir_rename) (struct rp_dir *dir, const char *from, const char *to,
                     struct rp_fault *fault);          /* replaces `to` */
  int (*dir_unlink) (struct rp_dir *dir, const char *name,
                     struct rp_fault *fault);
  /* calls back once for each entry, without . and .., in no order */
  int (*dir_list) (struct rp_dir *dir,
                   void (*each) (void *context, const char *name),
                   void *context, struct rp_fault *fault);
  int (*dir_stat) (struct rp_dir *dir, const char *name, struct rp_stat *out,
                   struct rp_fault *fault);            /* RP_IO + ENOENT */

  int (*file_open) (struct rp_dir *dir, const char *name, uint32_t flags,
                    uint32_t mode, struct rp_file **out,
                    struct rp_fault *fault);
  /* closes without syncing; errors of close are reported by the last sync */
  void (*file_close) (struct rp_file *file);
  /* done_out < length only at the end of the file */
  int (*file_pread) (struct rp_file *file, void *buffer, size_t length,
                     uint64_t offset, size_t *done_out,
                     struct rp_fault *fault);
  int (*file_pwritev) (struct rp_file *file, const struct iovec *parts,
                       int part_count, uint64_t offset,
                       struct rp_fault *fault);
  int (*file_sync) (struct rp_file *file,               /* fdatasync */
                    struct rp_fault *fault);
  int (*file_truncate) (struct rp_file *file, uint64_t size,
                        struct rp_fault *fault);
  /* reserve space: ENOSPC shows here and not at write-back; grows the size */
  int (*file_allocate) (struct rp_file *file, uint64_t offset, uint64_t length,
                        struct rp_fault *fault);
  /* make the range read as zeros and give its space back; size stays */
  int (*file_punch) (struct rp_file *file, uint64_t offset, uint64_t length,
                     struct rp_fault *fault);
  int (*file_stat) (struct rp_file *file, struct rp_stat *out,
                    struct rp_fault *fault);
  /* the next offset >= offset that holds data (want_data) or a hole; the
     file's size where there is none */
  int (*file_seek) (struct rp_file *file, uint64_t offset, bool want_data,
                    uint64_t *out, struct rp_fault *fault);
  /* open-file-description lock on one byte, held until close;
     RP_LOCKED where somebody else holds it */
  int (*file_lock) (struct rp_file *file, bool exclusive,
                    struct rp_fault *fault);
  /* what the caller promises about its files; NULL where nobody listens */
  void (*file_note) (struct rp_file *file, enum rp_note note, uint64_t offset,
                     uint64_t length);
  /* see rp_file_stream; NULL where it changes nothing */
  void (*file_stream) (struct rp_file *file);
  /* see rp_file_clone; NULL where nothing can be; both are of one io */
  int (*file_clone) (struct rp_file *to, uint64_t to_offset,
                     struct rp_file *from, uint64_t from_offset,
                     uint64_t length, struct rp_fault *fault);
};

/* The part of each object that the functions below need; a backend puts it
 * first in its own struct.
 */
struct rp_io {
  const struct rp_io_functions *functions;
};

struct rp_dir {
  struct rp_io *io;
  const char   *path;            /* for messages; owned by the backend */
  atomic_bool   failed;          /* set by rp_dir_sync, never cleared */
};

struct rp_file {
  struct rp_io *io;
  const char   *name;            /* with its directory, for messages; owned by
                                    the backend */
  atomic_bool   failed;          /* set by rp_file_sync, never cleared */
};

/* ---- what the rest of the core calls ----
 *
 * A name is one path component: empty, ".", "..", longer than 255 bytes or
 * holding "/" is RP_BAD_ARGUMENT everywhere.  Offsets and sizes end below
 * 2^63.  Without RP_OPEN_BENEATH a symbolic link is followed, by open and by
 * stat.  What is not a regular file is RP_FORMAT, a symbolic link where
 * BENEATH forbids it RP_UNSUPPORTED.
 */

void rp_io_destroy (struct rp_io *io);                 /* NULL is allowed */

int  rp_dir_open (struct rp_io *io, const char *path, struct rp_dir **out,
                  struct rp_fault *fault);
void rp_dir_close (struct rp_dir *dir);                /* NULL is allowed */
int  rp_dir_make (struct rp_dir *dir, const char *name, uint32_t mode,
                  struct rp_fault *fault);
int  rp_dir_remove (struct rp_dir *dir, const char *name,
                    struct rp_fault *fault);
int  rp_dir_sync (struct rp_dir *dir, struct rp_fault *fault);
int  rp_dir_rename (struct rp_dir *dir, const char *from, const char *to,
                    struct rp_fault *fault);
int  rp_dir_unlink (struct rp_dir *dir, const char *name,
                    struct rp_fault *fault);
int  rp_dir_list (struct rp_dir *dir, void (*each) (void *, const char *),
                  void *context, struct rp_fault *fault);
int  rp_dir_stat (struct rp_dir *dir, const char *name, struct rp_stat *out,
                  struct rp_fault *fault);

/* Replace or make a small file whole: write name.new, sync it, rename it over
 * name, sync the directory.  At any crash the old or the new content is there.
 */
int  rp_dir_replace (struct rp_dir *dir, const char *name, const void *data,
                     size_t length, uint32_t mode, struct rp_fault *fault);

int  rp_file_open (struct rp_dir *dir, const char *name, uint32_t flags,
                   uint32_t mode, struct rp_file **out, struct rp_fault *fault);
void rp_file_close (struct rp_file *file);             /* NULL is allowed */
int  rp_file_pread (struct rp_file *file, void *buffer, size_t length,
                    uint64_t offset, size_t *done_out, struct rp_fault *fault);
/* as pread, but a file that ends early is RP_CORRUPT */
int  rp_file_pread_all (struct rp_file *file, void *buffer, size_t length,
                        uint64_t offset, struct rp_fault *fault);
int  rp_file_pwrite (struct rp_file *file, const void *buffer, size_t length,
                     uint64_t offset, struct rp_fault *fault);
int  rp_file_pwritev (struct rp_file *file, const struct iovec *parts,
                      int part_count, uint64_t offset, struct rp_fault *fault);
int  rp_file_sync (struct rp_file *file, struct rp_fault *fault);
int  rp_file_truncate (struct rp_file *file, uint64_t size,
                       struct rp_fault *fault);
int  rp_file_allocate (struct rp_file *file, uint64_t offset, uint64_t length,
                       struct rp_fault *fault);
int  rp_file_punch (struct rp_file *file, uint64_t offset, uint64_t length,
                    struct rp_fault *fault);
int  rp_file_stat (struct rp_file *file, struct rp_stat *out,
                   struct rp_fault *fault);
int  rp_file_size (struct rp_file *file, uint64_t *out, struct rp_fault *fault);
int  rp_file_seek (struct rp_file *file, uint64_t offset, bool want_data,
                   uint64_t *out, struct rp_fault *fault);
int  rp_file_lock (struct rp_file *file, bool exclusive,
                   struct rp_fault *fault);

/* A window on an open file, as a file for reading: bytes [offset, offset +
 * length) are its bytes from 0 on.  label: what it is called in messages,
 * behind the name of the file.  The file is borrowed, outlives the window, and
 * is not closed with it.  Writes are RP_READ_ONLY.
 * Returns RP_OK, RP_CORRUPT (it ends behind the file), RP_NO_MEMORY, RP_IO.
 */
int  rp_file_slice (struct rp_file *file, const char *label, uint64_t offset,
                    uint64_t length, struct rp_file **out,
                    struct rp_fault *fault);

/* Say what is being promised about a range, so that the order backend can stop
 * the process when it does not hold: every write to the range must be covered
 * by a sync that began after the write returned.  One branch elsewhere.
 */
void rp_file_note (struct rp_file *file, enum rp_note note, uint64_t offset,
                   uint64_t length);

/* From now on the file is written in long stretches, mostly from front to
 * back, and not read soon: writing back begins early, so that the sync at the
 * end is short, and pages that are clean are given up, so that a copy pushes
 * nobody else out of memory (and uses warm memory again: see docs/io.md).
 * A failure to write back fails a later write or sync, and is final.
 */
void rp_file_stream (struct rp_file *file);

/* Let a range of one file show what a range of another holds, without the data
 * passing through here: blocks are shared where the file system can (reflink),
 * and a file server copies for itself.  Not durable before a sync of `to`.
 * Returns RP_OK, RP_UNSUPPORTED (nothing was done: read and write instead: the
 * file system cannot, or not between these two, or not at this alignment), or
 * RP_IO.
 */
int  rp_file_clone (struct rp_file *to, uint64_t to_offset,
                    struct rp_file *from, uint64_t from_offset,
                    uint64_t length, struct rp_fault *fault);

/* Storage of a test, which counts calls, checks their order or fails some: not
 * the posix backend.  Work that could be spread over threads is done in one. */
bool rp_file_is_watched (const struct rp_file *file);

/* ---- backends ---- */

int rp_io_posix_create (struct rp_io **out, struct rp_fault *fault);

/* The same, whose syncs do nothing: for what can be made again, such as the
 * target of a conversion.  A machine that crashes may leave any of its files
 * torn, under their final names. */
int rp_io_posix_create_unsynced (struct rp_io **out, struct rp_fault *fault);

/* For tests: a kernel that does less than ours. */
struct rp_posix_limits {
  size_t call_bytes;             /* most bytes in one call, and every other call
                                    is as if a signal had come; 0 = no limit */
  bool   no_openat2, no_fallocate;
};
int rp_io_posix_create_limited (const struct rp_posix_limits *limits,
                                struct rp_io **out, struct rp_fault *fault);

/* The next three wrap another io, which is borrowed and outlives them; what
 * was opened through a wrapper is closed before it is destroyed.  The backend
 * simulate is in simulate.h.
 */

/* record: a line for each change, sync and note, in the order they returned. */
int rp_io_record_create (struct rp_io *inner, struct rp_io **out,
                         struct rp_fault *fault);
/* From now on, before anything is opened: also for each read. */
void rp_io_record_reads (struct rp_io *io);
uint64_t rp_io_record_count (struct rp_io *io);
void rp_io_record_text (struct rp_io *io, uint64_t index, char *buffer,
                        size_t buffer_bytes);

/* order: stops the process, with a message, when
 *   - a file is renamed while writes to it are not synced,
 *   - an acknowledged or pointed-to range (rp_file_note) is not synced, or a
 *     sync of its file has failed,
 *   - an acknowledged file's own name is not synced (the directory's sync).
 * Knows what passes through it alone: what was there before counts as durable.
 */
int rp_io_order_create (struct rp_io *inner, struct rp_io **out,
                        struct rp_fault *fault);

/* fault: fails call number `call` of the given kinds. */
enum rp_fault_kinds {
  RP_FAULT_READ  = 1,            /* pread */
  RP_FAULT_WRITE = 2,            /* pwritev */
  RP_FAULT_SYNC  = 4,            /* of files and directories */
  RP_FAULT_META  = 8,            /* all else but closing */
  RP_FAULT_ANY   = 15,
};

enum rp_fault_effect {
  RP_FAULT_PLAIN   = 0,          /* the call does nothing and fails */
  RP_FAULT_PARTIAL = 1,          /* a write does its first half and fails */
  /* for syncs of files, with simulate directly inside: */
  RP_FAULT_LOST    = 2,          /* fails, the data is gone, and a later sync
                                    would succeed (as ext4 and xfs do) */
  RP_FAULT_LATE    = 3,          /* succeeds, the data is gone, and the next
                                    sync of any file reports it */
  RP_FAULT_LIE     = 4,          /* succeeds, but one sector is not written */
};

struct rp_fault_plan {
  uint64_t call;                 /* from 1; 0 fails nothing and counts */
  uint32_t kinds;                /* enum rp_fault_kinds */
  uint32_t effect;               /* enum rp_fault_effect; PLAIN for calls that
                                    cannot have it */
  int      os_errno;
  bool     sticky;               /* every later call of the kinds fails too */
};

int rp_io_fault_create (struct rp_io *inner, const struct rp_fault_plan *plan,
                        struct rp_io **out, struct rp_fault *fault);
/* Calls of the kinds so far.  A plan for a call above it has not struck. */
uint64_t rp_io_fault_calls (struct rp_io *io);

#endif /* RP_IO_H */

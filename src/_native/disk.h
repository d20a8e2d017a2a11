/* disk.h - a disk that can be read and written at any byte.
 *
 * The common face of a VMDK chain and of a journal, and all that the NBD
 * export and the copy pipelines know of them.  No alignment is asked of the
 * caller: an implementation widens to its own grains.
 *
 * Threads: any thread may call anything at any time, except destroy, which is
 *          the last call.  Two writes that overlap and run at once leave each
 *          sector as one of them wrote it.
 * Durability: a write is durable after a flush that began after the write
 *          returned.  A flush that fails is final for the disk (RP_FAILED).
 */
#ifndef RP_DISK_H
#define RP_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

enum rp_run_kind {
  RP_RUN_HOLE = 1,               /* never written here or in any parent: zeros */
  RP_RUN_ZERO = 2,               /* written as zeros (or trimmed) */
  RP_RUN_DATA = 3,
};

/* Bytes of the disk that share one answer. */
struct rp_run {
  uint64_t         offset_bytes;
  uint64_t         length_bytes; /* >= 1 */
  enum rp_run_kind kind;
  uint32_t         depth;        /* 0 the top link, 1 its parent, ... */
  bool             packed;       /* data that does not lie in the file as it
                                    reads (compressed); file is NULL */
  /* where the data lies, for `disk map`; file NULL where there is none or
     where it is still in memory */
  struct rp_file  *file;
  uint64_t         file_offset_bytes;
};

struct rp_disk;

struct rp_disk_functions {
  const char *name;              /* "chain", "journal" */
  void (*destroy) (struct rp_disk *disk);
  int (*pread) (struct rp_disk *disk, void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault);
  int (*pwrite) (struct rp_disk *disk, const void *buffer, size_t length,
                 uint64_t offset, struct rp_fault *fault);
  /* the range reads as zeros afterwards; may_trim: its space may go */
  int (*zero) (struct rp_disk *disk, uint64_t length, uint64_t offset,
               bool may_trim, struct rp_fault *fault);
  int (*flush) (struct rp_disk *disk, struct rp_fault *fault);
  /* the longest run that starts at offset, cut at offset + length (so one
     answer may be shorter than the true run, never longer) */
  int (*run) (struct rp_disk *disk, uint64_t offset, uint64_t length,
              struct rp_run *out, struct rp_fault *fault);
  /* see rp_disk_stream; NULL where it changes nothing */
  void (*stream) (struct rp_disk *disk);
  /* see rp_disk_clone; NULL where nothing can be */
  int (*clone) (struct rp_disk *disk, uint64_t length, uint64_t offset,
                struct rp_file *from, uint64_t from_offset,
                struct rp_fault *fault);
  /* see rp_disk_settle; NULL where writes never wait */
  void (*settle) (struct rp_disk *disk);
};

struct rp_disk {
  const struct rp_disk_functions *functions;
  uint64_t size_bytes;           /* a multiple of 512 */
  bool     read_only;
  bool     fast_zero;            /* zeroing never costs as much as writing */
  bool     serial;               /* its storage is watched or broken by a test
                                    (rp_file_is_watched): a copy then keeps to
                                    one thread and one order */
};

/* Check the range and read_only, then call the implementation.  A length of 0
 * is RP_OK.  Trim reads as zeros afterwards (this project promises it).
 */
int  rp_disk_pread (struct rp_disk *disk, void *buffer, size_t length,
                    uint64_t offset, struct rp_fault *fault);
int  rp_disk_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                     uint64_t offset, struct rp_fault *fault);
int  rp_disk_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
                   bool may_trim, struct rp_fault *fault);
int  rp_disk_flush (struct rp_disk *disk, struct rp_fault *fault);
int  rp_disk_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
                  struct rp_run *out, struct rp_fault *fault);
/* From now on the disk takes a long copy: see rp_file_stream. */
void rp_disk_stream (struct rp_disk *disk);

/* Before a writer enters a gate: wait here for memory that earlier writes
 * take, so that the write does not wait in there, where a cut waits for it.
 * Whatever goes wrong shows in the write.
 */
void rp_disk_settle (struct rp_disk *disk);
/* A write of what a range of a file holds, by rp_file_clone; RP_UNSUPPORTED
 * where that cannot be, and then nothing was done. */
int  rp_disk_clone (struct rp_disk *disk, uint64_t length, uint64_t offset,
                    struct rp_file *from, uint64_t from_offset,
                    struct rp_fault *fault);
void rp_disk_destroy (struct rp_disk *disk);           /* NULL is allowed */

#endif /* RP_DISK_H */

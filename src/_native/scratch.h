/* scratch.h - a disk that can be written, and nothing of that is kept.
 *
 *   scratch -> what was written: in a file, at the same place as on the disk
 *           -> everything else: the disk below, which is only read
 *
 * A block of 4 KiB lies in the file from the first write into it on; one bit a
 * block says so (32 MiB of memory for each TiB, as far as it is touched).  The
 * file is sparse: it takes the space of what was written.  Flush makes nothing
 * durable, because nothing is to be.
 *
 * Threads: as a disk.
 * Tests:   tests/native/scratch_threads_test.c
 */
#ifndef RP_SCRATCH_H
#define RP_SCRATCH_H

#include "disk.h"
#include "io.h"

/* A writable disk above `below`.  file: empty, and open for writing.  Both are
 * borrowed.
 * Errors: RP_BAD_ARGUMENT (the file is not empty), RP_NO_MEMORY, RP_IO (the
 * file system has no files as large as the disk).
 */
int rp_scratch_create (struct rp_disk *below, struct rp_file *file,
                       struct rp_disk **out, struct rp_fault *fault);

#endif /* RP_SCRATCH_H */

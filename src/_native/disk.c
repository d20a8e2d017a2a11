/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <inttypes.h>

#include "bytes.h"

static int
check_range (const struct rp_disk *disk, uint64_t length, uint64_t offset,
             struct rp_fault *fault)
{
  if (rp_inside (offset, length, disk->size_bytes))
    return RP_OK;
  return rp_fail (fault, RP_OUT_OF_RANGE, offset,
                  "%" PRIu64 " bytes at %" PRIu64 " of a disk of %" PRIu64
                  " bytes", length, offset, disk->size_bytes);
}

static int
check_writable (const struct rp_disk *disk, uint64_t offset,
                struct rp_fault *fault)
{
  if (!disk->read_only)
    return RP_OK;
  return rp_fail (fault, RP_READ_ONLY, offset,
                  "open it for writing to change it");
}

int
rp_disk_pread (struct rp_disk *disk, void *buffer, size_t length,
               uint64_t offset, struct rp_fault *fault)
{
  int status = check_range (disk, length, offset, fault);

  if (status != RP_OK || length == 0)
    return status;
  return disk->functions->pread (disk, buffer, length, offset, fault);
}

int
rp_disk_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  int status = check_range (disk, length, offset, fault);

  if (status == RP_OK)
    status = check_writable (disk, offset, fault);
  if (status != RP_OK || length == 0)
    return status;
  return disk->functions->pwrite (disk, buffer, length, offset, fault);
}

int
rp_disk_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
              bool may_trim, struct rp_fault *fault)
{
  int status = check_range (disk, length, offset, fault);

  if (status == RP_OK)
    status = check_writable (disk, offset, fault);
  if (status != RP_OK || length == 0)
    return status;
  return disk->functions->zero (disk, length, offset, may_trim, fault);
}

int
rp_disk_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  return disk->read_only ? RP_OK : disk->functions->flush (disk, fault);
}

int
rp_disk_run (struct rp_disk *disk, uint64_t offset, uint64_t length,
             struct rp_run *out, struct rp_fault *fault)
{
  int status;

  if (length == 0)
    return rp_fail (fault, RP_BAD_ARGUMENT, offset, "an empty range has no run");
  status = check_range (disk, length, offset, fault);
  if (status != RP_OK)
    return status;
  status = disk->functions->run (disk, offset, length, out, fault);
  if (status == RP_OK) {
    RP_CHECK (out->offset_bytes == offset);
    RP_CHECK (out->length_bytes >= 1 && out->length_bytes <= length);
  }
  return status;
}

void
rp_disk_stream (struct rp_disk *disk)
{
  if (disk->functions->stream && !disk->read_only)
    disk->functions->stream (disk);
}

void
rp_disk_settle (struct rp_disk *disk)
{
  if (disk->functions->settle && !disk->read_only)
    disk->functions->settle (disk);
}

int
rp_disk_clone (struct rp_disk *disk, uint64_t length, uint64_t offset,
               struct rp_file *from, uint64_t from_offset,
               struct rp_fault *fault)
{
  int status = check_range (disk, length, offset, fault);

  if (status == RP_OK)
    status = check_writable (disk, offset, fault);
  if (status != RP_OK || length == 0)
    return status;
  if (!disk->functions->clone)
    return rp_fail (fault, RP_UNSUPPORTED, offset, "sharing blocks");
  return disk->functions->clone (disk, length, offset, from, from_offset,
                                 fault);
}

void
rp_disk_destroy (struct rp_disk *disk)
{
  if (disk)
    disk->functions->destroy (disk);
}

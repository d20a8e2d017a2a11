/* SPDX-License-Identifier: Apache-2.0 */
/* What the copy rooms share: the run at a place, and writing what was read. */
#include "bytes.h"
#include "copy_parts.h"

#define UNIT_BYTES UINT64_C (65536)

int
rp_copy_look (struct rp_disk *disk, uint64_t at, uint64_t stop,
              struct rp_run *run, struct rp_fault *fault)
{
  if (at >= run->offset_bytes && at - run->offset_bytes < run->length_bytes)
    return RP_OK;
  return rp_disk_run (disk, at, stop - at, run, fault);
}

int
rp_copy_put (struct rp_disk *target, const uint8_t *data, uint64_t at,
             uint64_t stop, struct rp_copy_tally counts,
             struct rp_fault *fault)
{
  const uint64_t length = stop - at;
  _Atomic uint64_t *count = data ? counts.data_bytes : counts.zero_bytes;

  if (count)
    atomic_fetch_add_explicit (count, length, memory_order_relaxed);
  if (!data)
    return rp_disk_zero (target, length, at, length >= UNIT_BYTES, fault);
  return rp_disk_pwrite (target, data, length, at, fault);
}

int
rp_copy_write (struct rp_disk *target, const uint8_t *data, uint64_t at,
               uint64_t stop, struct rp_copy_tally counts,
               struct rp_fault *fault)
{
  uint64_t begin = at, end;
  bool zero = false, was_zero = false;
  int status = RP_OK;

  for (uint64_t unit = at; status == RP_OK && unit < stop; unit = end) {
    end = (unit / UNIT_BYTES + 1) * UNIT_BYTES;
    if (end > stop)
      end = stop;
    zero = rp_is_zero (data + (unit - at), end - unit);
    if (unit > begin && zero != was_zero) {
      status = rp_copy_put (target, was_zero ? NULL : data + (begin - at),
                            begin, unit, counts, fault);
      begin = unit;
    }
    was_zero = zero;
  }
  if (status == RP_OK && begin < stop)
    status = rp_copy_put (target, was_zero ? NULL : data + (begin - at),
                          begin, stop, counts, fault);
  return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Chains: writing the top link. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chain.h"

/* Between two looks at what waits in memory. */
#define SLICE_BYTES (UINT64_C (64) << 20)
/* Copy-up leaves out zeros in units of this size: a page, the block of most
 * file systems. */
#define UNIT_BYTES  4096u
#define UNITS_MAX   (RP_SPARSE_GRAIN_MAX * RP_SECTOR_BYTES / UNIT_BYTES)
#define ZEROS_BYTES 65536u
#define ZEROS_PARTS 16

static const uint8_t zeros[ZEROS_BYTES];

/* A backend that checks write-ahead order is told what is durable.  With
 * writes in flight beside a flush that cannot be told exactly, so under such
 * a backend (tests) a flush keeps writers out. */
static void
lock_writes (struct rp_chain *chain, bool exclusive)
{
  if (!chain->serial)
    return;
  if (exclusive)
    pthread_rwlock_wrlock (&chain->order);
  else
    pthread_rwlock_rdlock (&chain->order);
}

static void
unlock_writes (struct rp_chain *chain)
{
  if (chain->serial)
    pthread_rwlock_unlock (&chain->order);
}

static int
check_failed (struct rp_chain *chain, struct rp_fault *fault)
{
  if (!atomic_load_explicit (&chain->failed, memory_order_relaxed))
    return RP_OK;
  return rp_fail (fault, RP_FAILED, 0, "a flush of this disk failed before");
}

static int
write_zeros (struct rp_file *file, uint64_t offset, uint64_t length,
             struct rp_fault *fault)
{
  struct iovec parts[ZEROS_PARTS];
  int status = RP_OK;

  while (status == RP_OK && length > 0) {
    uint64_t total = 0;
    int count = 0;

    while (count < ZEROS_PARTS && total < length) {
      const uint64_t left = length - total;

      parts[count].iov_base = (void *) zeros;
      parts[count].iov_len = left < ZEROS_BYTES ? left : ZEROS_BYTES;
      total += parts[count++].iov_len;
    }
    status = rp_file_pwritev (file, parts, count, offset, fault);
    offset += total;
    length -= total;
  }
  return status;
}

/* ---- one grain, copied up ---- */

/* Where a write to a sparse extent of the top goes. */
struct target {
  struct rp_chain  *chain;
  struct rp_extent *extent;
  struct rp_sparse *sparse;
};

/* What a new grain will hold; bytes is NULL while nothing came from below. */
struct grain {
  uint64_t start;                /* in the extent */
  uint8_t *bytes;
  uint32_t unit_bytes;
  bool     present[UNITS_MAX];   /* units that are not zero */
};

static void
mark_present (struct grain *grain, uint64_t from, uint64_t to, bool always)
{
  while (from < to) {
    const uint64_t unit = from / grain->unit_bytes;
    uint64_t stop = (unit + 1) * grain->unit_bytes;

    if (stop > to)
      stop = to;
    if (always || !rp_is_zero (grain->bytes + from, stop - from))
      grain->present[unit] = true;
    from = stop;
  }
}

/* Read bytes [from, to) of the grain from the links below the top. */
static int
gather (const struct target *target, struct grain *grain, uint64_t from,
        uint64_t to, struct rp_fault *fault)
{
  struct rp_run run;
  int status;

  while (from < to) {
    status = rp_chain_look (target->chain, 1, target->chain->link_count,
                            RP_LOOK_DATA, target->extent->start_bytes
                            + grain->start + from, to - from, &run, fault);
    if (status != RP_OK)
      return status;
    if (run.kind == RP_RUN_DATA) {
      if (!grain->bytes)
        grain->bytes = calloc (1, rp_sparse_grain_bytes (target->sparse));
      if (!grain->bytes)
        return rp_fail (fault, RP_NO_MEMORY, 0, "writing %s",
                        target->sparse->file->name);
      status = rp_run_read (target->chain, &run, grain->bytes + from, fault);
      if (status != RP_OK)
        return status;
      mark_present (grain, from, from + run.length_bytes, false);
    }
    from += run.length_bytes;
  }
  return RP_OK;
}

static int
write_present (const struct target *target, const struct grain *grain,
               uint64_t valid, uint64_t file_offset, struct rp_fault *fault)
{
  const uint64_t unit_bytes = grain->unit_bytes;
  const uint64_t units = rp_divide_up (valid, unit_bytes);
  uint64_t first = 0, stop, end;
  int status = RP_OK;

  for (; status == RP_OK && first < units; first = stop) {
    stop = first + 1;
    if (!grain->present[first])
      continue;
    while (stop < units && grain->present[stop])
      stop++;
    end = stop * unit_bytes < valid ? stop * unit_bytes : valid;
    status = rp_file_pwrite (target->sparse->file,
                             grain->bytes + first * unit_bytes,
                             end - first * unit_bytes,
                             file_offset + first * unit_bytes, fault);
  }
  return status;
}

/* Write bytes [from, to) of a new grain at a sector, and around them what the
 * parents hold where copy says so.  data NULL: zeros. */
static int
write_part (const struct target *target, uint64_t start, uint64_t sector,
            const uint8_t *data, uint64_t from, uint64_t to, bool copy,
            struct rp_fault *fault)
{
  const uint64_t grain_bytes = rp_sparse_grain_bytes (target->sparse);
  const uint64_t left = target->extent->size_bytes - start;
  const uint64_t valid = left < grain_bytes ? left : grain_bytes;
  const uint64_t file_offset = sector * RP_SECTOR_BYTES;
  struct grain grain = { .start = start };
  int status = RP_OK;

  grain.unit_bytes = grain_bytes < UNIT_BYTES ? (uint32_t) grain_bytes
                                              : UNIT_BYTES;
  if (copy && !RP_SABOTAGED (15))   /* copies up one side only */
    status = gather (target, &grain, 0, from, fault);
  if (status == RP_OK && copy)
    status = gather (target, &grain, to, valid, fault);
  if (status == RP_OK && !grain.bytes && data) {
    status = rp_file_pwrite (target->sparse->file, data, to - from,
                             file_offset + from, fault);
  } else if (status == RP_OK && grain.bytes) {
    if (data) {
      memcpy (grain.bytes + from, data, to - from);
      mark_present (&grain, from, to, true);
    }
    status = write_present (target, &grain, valid, file_offset, fault);
  }
  free (grain.bytes);
  return status;
}

/* ---- new grains; the caller holds their region ---- */

/* Bytes [within, stop) of the extent, none of whose grains has data, go to new
 * grains that follow one another.  data NULL: zeros. */
static int
write_grains (const struct target *target, const uint8_t *data,
              uint64_t within, uint64_t stop, bool copy,
              struct rp_fault *fault)
{
  const uint32_t shift = target->sparse->layout.grain_shift;
  const uint64_t grain_bytes = rp_sparse_grain_bytes (target->sparse);
  const uint64_t size = target->extent->size_bytes;
  const uint64_t first = within >> shift;
  const uint64_t count = ((stop - 1) >> shift) + 1 - first;
  uint64_t sector, next;
  int status;

  status = rp_sparse_reserve (target->sparse, count, &sector, fault);
  for (uint64_t at = within; status == RP_OK && at < stop; at = next) {
    const uint64_t start = at & ~(grain_bytes - 1);
    const uint64_t place = sector + ((start >> shift) - first)
                           * target->sparse->layout.info.grain_sectors;
    const uint8_t *from = data ? data + (at - within) : NULL;
    const uint64_t whole = stop == size ? stop : stop & ~(grain_bytes - 1);

    if (at == start && whole > at) {
      next = whole;
      if (from)
        status = rp_file_pwrite (target->sparse->file, from, next - at,
                                 place * RP_SECTOR_BYTES, fault);
    } else {
      next = start + grain_bytes < stop ? start + grain_bytes : stop;
      status = write_part (target, start, place, from, at - start,
                           next - start, copy, fault);
    }
  }
  if (status == RP_OK)
    status = rp_sparse_publish (target->sparse, first, count,
                                (uint32_t) sector, fault);
  return status;
}

/* As much as lies in one region and has one answer; *done_out 0 when another
 * thread made the first grain meanwhile. */
static int
write_new (const struct target *target, const uint8_t *data, uint64_t within,
           uint64_t length, uint64_t *done_out, struct rp_fault *fault)
{
  struct rp_sparse *sparse = target->sparse;
  pthread_mutex_t *region
    = rp_sparse_region (sparse, within >> sparse->layout.grain_shift);
  struct rp_segment segment;
  int status;

  *done_out = 0;
  pthread_mutex_lock (region);
  status = rp_sparse_map (sparse, within, length, &segment, fault);
  if (status == RP_OK && segment.kind != RP_SEGMENT_DATA) {
    status = write_grains (target, data, within,
                           within + segment.length_bytes,
                           segment.kind == RP_SEGMENT_ABSENT
                           && target->chain->link_count > 1, fault);
    if (status == RP_OK)
      *done_out = segment.length_bytes;
  }
  pthread_mutex_unlock (region);
  return status;
}

/* The same for zeros over grains that are absent here and show data from
 * below. */
static int
zero_new (const struct target *target, uint64_t within, uint64_t length,
          uint64_t *done_out, struct rp_fault *fault)
{
  struct rp_sparse *sparse = target->sparse;
  const uint32_t shift = sparse->layout.grain_shift;
  const uint64_t grain_bytes = rp_sparse_grain_bytes (sparse);
  const uint64_t start = within & ~(grain_bytes - 1);
  pthread_mutex_t *region = rp_sparse_region (sparse, within >> shift);
  struct rp_segment segment;
  uint64_t stop;
  int status;

  *done_out = 0;
  pthread_mutex_lock (region);
  status = rp_sparse_map (sparse, within, length, &segment, fault);
  if (status != RP_OK || segment.kind == RP_SEGMENT_DATA) {
    pthread_mutex_unlock (region);
    return status;
  }
  stop = within + segment.length_bytes;
  if (stop != target->extent->size_bytes && (stop & ~(grain_bytes - 1)) > start)
    stop &= ~(grain_bytes - 1);
  if (segment.kind == RP_SEGMENT_ZERO)
    ;
  else if (within == start && sparse->layout.zero_grains
           && (stop == target->extent->size_bytes
               || stop % grain_bytes == 0))
    status = rp_sparse_publish (sparse, within >> shift,
                                ((stop - 1) >> shift) + 1 - (within >> shift),
                                1, fault);
  else {
    if (within != start && stop > start + grain_bytes)
      stop = start + grain_bytes;
    status = write_grains (target, NULL, within, stop,
                           target->chain->link_count > 1, fault);
  }
  pthread_mutex_unlock (region);
  if (status == RP_OK)
    *done_out = stop - within;
  return status;
}

/* Bytes from within up to the end of its region, at most length. */
static uint64_t
clip_to_region (const struct rp_sparse *sparse, uint64_t within,
                uint64_t length)
{
  const uint64_t region = UINT64_C (1) << (sparse->layout.grain_shift
                                           + sparse->region_shift);
  const uint64_t room = region - (within & (region - 1));

  return length < room ? length : room;
}

/* ---- extents ---- */

static int
write_sparse (const struct target *target, const uint8_t *data,
              uint64_t within, uint64_t length, struct rp_fault *fault)
{
  struct rp_sparse *sparse = target->sparse;
  struct rp_segment segment;
  uint64_t done;
  int status;

  status = rp_sparse_start (sparse, fault);
  while (status == RP_OK && length > 0) {
    status = rp_sparse_map (sparse, within, length, &segment, fault);
    if (status != RP_OK)
      return status;
    if (segment.kind == RP_SEGMENT_DATA) {
      done = segment.length_bytes;
      status = rp_sparse_check_inside (sparse, segment.file_offset_bytes, done,
                                       fault);
      if (status == RP_OK)
        status = rp_file_pwrite (sparse->file, data, done,
                                 segment.file_offset_bytes, fault);
    } else {
      status = write_new (target, data, within,
                          clip_to_region (sparse, within, length), &done,
                          fault);
    }
    rp_sparse_wrote (sparse);
    data += done;
    within += done;
    length -= done;
  }
  return status;
}

static int
zero_data (struct rp_file *file, uint64_t offset, uint64_t length,
           bool may_trim, struct rp_fault *fault)
{
  return may_trim ? rp_file_punch (file, offset, length, fault)
                  : write_zeros (file, offset, length, fault);
}

/* An absent range: skip what shows zeros anyway, hide the rest. */
static int
zero_absent (const struct target *target, uint64_t within, uint64_t length,
             uint64_t *done_out, struct rp_fault *fault)
{
  struct rp_sparse *sparse = target->sparse;
  const uint64_t mask = rp_sparse_grain_bytes (sparse) - 1;
  struct rp_run run;
  uint64_t stop;
  int status;

  status = rp_chain_look (target->chain, 1, target->chain->link_count,
                          RP_LOOK_DATA, target->extent->start_bytes + within,
                          length, &run, fault);
  if (status != RP_OK)
    return status;
  if (run.kind != RP_RUN_DATA) {
    /* where the zeros end inside a grain, that grain is dealt with whole */
    stop = within + run.length_bytes;
    if (run.length_bytes < length)
      stop &= ~mask;
    if (stop > within) {
      *done_out = stop - within;
      return RP_OK;
    }
  }
  return zero_new (target, within, clip_to_region (sparse, within, length),
                   done_out, fault);
}

static int
zero_sparse (const struct target *target, uint64_t within, uint64_t length,
             bool may_trim, struct rp_fault *fault)
{
  struct rp_sparse *sparse = target->sparse;
  struct rp_segment segment;
  uint64_t done;
  int status;

  status = rp_sparse_start (sparse, fault);
  while (status == RP_OK && length > 0) {
    status = rp_sparse_map (sparse, within, length, &segment, fault);
    if (status != RP_OK)
      return status;
    done = segment.length_bytes;
    if (segment.kind == RP_SEGMENT_DATA) {
      status = rp_sparse_check_inside (sparse, segment.file_offset_bytes, done,
                                       fault);
      if (status == RP_OK)
        status = zero_data (sparse->file, segment.file_offset_bytes, done,
                            may_trim, fault);
    } else if (segment.kind == RP_SEGMENT_ABSENT) {
      status = zero_absent (target, within, segment.length_bytes, &done,
                            fault);
    }
    rp_sparse_wrote (sparse);
    within += done;
    length -= done;
  }
  return status;
}

static int
refuse_extent (const struct rp_extent *extent, uint64_t offset,
               struct rp_fault *fault)
{
  return rp_fail (fault, RP_READ_ONLY, offset,
                  "a %s extent of the disk holds no data",
                  extent->kind == RP_EXTENT_ZERO ? "ZERO" : "NOACCESS");
}

/* data NULL: zeros. */
static int
change_slice (struct rp_chain *chain, struct rp_extent *extent,
              const uint8_t *data, uint64_t within, uint64_t length,
              bool may_trim, struct rp_fault *fault)
{
  const struct target target = { chain, extent, extent->sparse };
  const uint64_t at = extent->file_offset_bytes + within;
  int status;

  if (extent->sparse)
    return data ? write_sparse (&target, data, within, length, fault)
                : zero_sparse (&target, within, length, may_trim, fault);
  if (extent->kind == RP_EXTENT_ZERO && !data)
    return RP_OK;
  if (!extent->file)
    return refuse_extent (extent, extent->start_bytes + within, fault);
  status = data ? rp_file_pwrite (extent->file, data, length, at, fault)
                : zero_data (extent->file, at, length, may_trim, fault);
  if (!atomic_load (&extent->data_dirty))
    atomic_store (&extent->data_dirty, true);
  return status;
}

static int
change (struct rp_chain *chain, const uint8_t *data, uint64_t offset,
        uint64_t length, bool may_trim, struct rp_fault *fault)
{
  int status = RP_OK;

  while (status == RP_OK && length > 0) {
    struct rp_extent *extent = rp_image_extent (chain->links[0], offset);
    const uint64_t within = offset - extent->start_bytes;
    uint64_t piece = extent->size_bytes - within;

    /* slices end where a grain does */
    if (piece > SLICE_BYTES - within % SLICE_BYTES)
      piece = SLICE_BYTES - within % SLICE_BYTES;
    if (piece > length)
      piece = length;
    status = check_failed (chain, fault);
    if (status != RP_OK)
      return status;
    lock_writes (chain, false);
    status = change_slice (chain, extent, data, within, piece, may_trim,
                           fault);
    unlock_writes (chain);
    if (status == RP_OK && extent->sparse
        && rp_sparse_wants_flush (extent->sparse))
      status = rp_chain_flush (&chain->disk, fault);
    if (data)
      data += piece;
    offset += piece;
    length -= piece;
  }
  return status;
}

int
rp_chain_pwrite (struct rp_disk *disk, const void *buffer, size_t length,
                 uint64_t offset, struct rp_fault *fault)
{
  return change ((struct rp_chain *) disk, buffer, offset, length, false,
                 fault);
}

int
rp_chain_zero (struct rp_disk *disk, uint64_t length, uint64_t offset,
               bool may_trim, struct rp_fault *fault)
{
  return change ((struct rp_chain *) disk, NULL, offset, length, may_trim,
                 fault);
}

/* Into one flat extent: grains have their own places. */
int
rp_chain_clone (struct rp_disk *disk, uint64_t length, uint64_t offset,
                struct rp_file *from, uint64_t from_offset,
                struct rp_fault *fault)
{
  struct rp_chain *chain = (struct rp_chain *) disk;
  struct rp_extent *extent = rp_image_extent (chain->links[0], offset);
  const uint64_t within = offset - extent->start_bytes;
  int status = check_failed (chain, fault);

  if (status != RP_OK)
    return status;
  if (extent->kind != RP_EXTENT_FLAT || length > extent->size_bytes - within)
    return rp_fail (fault, RP_UNSUPPORTED, offset, "sharing blocks");
  lock_writes (chain, false);
  status = rp_file_clone (extent->file, extent->file_offset_bytes + within,
                          from, from_offset, length, fault);
  if (!atomic_load (&extent->data_dirty))
    atomic_store (&extent->data_dirty, true);
  unlock_writes (chain);
  return status;
}

/* ---- flush and close ---- */

static int
flush_extent (struct rp_extent *extent, struct rp_fault *fault)
{
  int status;

  if (extent->sparse)
    return rp_sparse_flush (extent->sparse, fault);
  if (!extent->file || !atomic_exchange (&extent->data_dirty, false))
    return RP_OK;
  if (RP_SABOTAGED (17))         /* forgets to sync a flat file */
    return RP_OK;
  status = rp_file_sync (extent->file, fault);
  if (status == RP_OK)
    rp_file_note (extent->file, RP_NOTE_ACKNOWLEDGE, extent->file_offset_bytes,
                  extent->size_bytes);
  return status;
}

int
rp_chain_flush (struct rp_disk *disk, struct rp_fault *fault)
{
  struct rp_chain *chain = (struct rp_chain *) disk;
  struct rp_image *top = chain->links[0];
  const uint64_t ticket = atomic_fetch_add (&chain->tickets, 1) + 1;
  uint64_t covered;
  int status;

  pthread_mutex_lock (&chain->flushing);
  status = check_failed (chain, fault);
  if (status != RP_OK || chain->flushed >= ticket) {
    pthread_mutex_unlock (&chain->flushing);
    return status;
  }
  covered = atomic_load (&chain->tickets);
  lock_writes (chain, true);
  for (uint32_t i = 0; status == RP_OK && i < top->extent_count; i++)
    status = flush_extent (&top->extents[i], fault);
  unlock_writes (chain);
  if (status == RP_OK)
    chain->flushed = covered;
  else if (status != RP_NO_MEMORY)
    atomic_store (&chain->failed, true);
  pthread_mutex_unlock (&chain->flushing);
  return status;
}

int
rp_chain_close_clean (struct rp_disk *disk, struct rp_fault *fault)
{
  struct rp_chain *chain = (struct rp_chain *) disk;
  struct rp_image *top = chain->links[0];
  int status;

  if (disk->read_only)
    return RP_OK;
  status = rp_chain_flush (disk, fault);
  for (uint32_t i = 0; status == RP_OK && i < top->extent_count; i++)
    if (top->extents[i].sparse)
      status = rp_sparse_finish (top->extents[i].sparse, fault);
  return status;
}

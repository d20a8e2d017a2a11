/* SPDX-License-Identifier: Apache-2.0 */
/* A file with changes that only memory has; see extent.h. */
#include "extent.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

/* 512 MiB of changed sectors: the tables of more than 2 TiB of 4 KiB grains */
#define SECTORS_MAX (UINT32_C (1) << 20)
#define CHUNK_BYTES (UINT64_C (1) << 20)
#define CHUNKS      (UINT64_C (1) << 21)   /* as far as entries reach */

static struct rp_view *
view_of (struct rp_file *file)
{
  return (struct rp_view *) file;
}

/* ---- changed sectors ---- */

static uint32_t
slot_of (const struct rp_view *view, uint64_t sector)
{
  const uint64_t mixed = sector * UINT64_C (0x9e3779b97f4a7c15);
  uint32_t slot = (uint32_t) (mixed >> 32) & (view->slot_count - 1);

  while (view->slots[slot]
         && view->sectors[view->slots[slot] - 1].sector != sector)
    slot = (slot + 1) & (view->slot_count - 1);
  return slot;
}

static struct rp_view_sector *
find_sector (const struct rp_view *view, uint64_t sector)
{
  uint32_t at;

  if (view->slot_count == 0)
    return NULL;
  at = view->slots[slot_of (view, sector)];
  return at ? &view->sectors[at - 1] : NULL;
}

static int
grow_sectors (struct rp_view *view, struct rp_fault *fault)
{
  const uint32_t room = view->sector_room ? view->sector_room * 2 : 64;
  struct rp_view_sector *sectors;
  uint8_t *blocks;
  uint32_t *slots;

  if (room > SECTORS_MAX)
    return rp_fail (fault, RP_FULL, 0, "%s: more than 512 MiB of its tables "
                    "would have to change", view->base->name);
  sectors = realloc (view->sectors, room * sizeof *sectors);
  if (sectors)
    view->sectors = sectors;
  blocks = realloc (view->blocks, (size_t) room * RP_SECTOR_BYTES);
  if (blocks)
    view->blocks = blocks;
  slots = calloc (2 * (size_t) room, sizeof *slots);
  if (!sectors || !blocks || !slots) {
    free (slots);
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                    view->base->name);
  }
  free (view->slots);
  view->slots = slots;
  view->slot_count = 2 * room;
  view->sector_room = room;
  for (uint32_t i = 0; i < view->sector_count; i++)
    view->slots[slot_of (view, view->sectors[i].sector)] = i + 1;
  return RP_OK;
}

static int view_pread (struct rp_file *file, void *buffer, size_t length,
                       uint64_t offset, size_t *done_out,
                       struct rp_fault *fault);

/* The block of a sector, which keeps what it held; it takes the view's phase
 * where that is later. */
static int
own_sector (struct rp_view *view, uint64_t sector, uint8_t **out,
            struct rp_fault *fault)
{
  struct rp_view_sector *found = find_sector (view, sector);
  uint8_t *block;
  size_t done = 0;
  int status = RP_OK;

  if (!found) {
    if (view->sector_count == view->sector_room)
      status = grow_sectors (view, fault);
    if (status != RP_OK)
      return status;
    block = view->blocks + (size_t) view->sector_count * RP_SECTOR_BYTES;
    status = view_pread (&view->file, block, RP_SECTOR_BYTES,
                         sector * RP_SECTOR_BYTES, &done, fault);
    if (status != RP_OK)
      return status;
    memset (block + done, 0, RP_SECTOR_BYTES - done);
    found = &view->sectors[view->sector_count];
    *found = (struct rp_view_sector) {
      .sector = sector, .block = view->sector_count, .phase = RP_PHASE_NEW,
    };
    view->sector_count++;
    view->slots[slot_of (view, sector)] = view->sector_count;
    if (sector * RP_SECTOR_BYTES / CHUNK_BYTES < CHUNKS) {
      const uint64_t chunk = sector * RP_SECTOR_BYTES / CHUNK_BYTES;
      view->changed[chunk / 8] |= (uint8_t) (1u << (chunk % 8));
    }
  }
  /* what lies behind the old end may be written before all else */
  if (found->phase < view->phase
      && rp_inside (sector, 1, view->base_bytes / RP_SECTOR_BYTES))
    found->phase = (uint8_t) view->phase;
  *out = view->blocks + (size_t) found->block * RP_SECTOR_BYTES;
  return RP_OK;
}

/* ---- the face of a file ---- */

/* The end of the punched range that offset lies in, or offset.  They are kept
 * in order, as the survey finds them. */
static uint64_t
behind_punched (const struct rp_view *view, uint64_t offset)
{
  uint64_t first = 0, stop = view->punched_count;

  while (first < stop) {
    const uint64_t middle = first + (stop - first) / 2;

    if (view->punched[middle].stop <= offset)
      first = middle + 1;
    else
      stop = middle;
  }
  return first < view->punched_count && view->punched[first].start <= offset
         ? view->punched[first].stop : offset;
}

/* Whether something was written near: a bit for each MiB. */
static bool
is_changed (const struct rp_view *view, uint64_t offset)
{
  const uint64_t chunk = offset / CHUNK_BYTES;

  return chunk >= CHUNKS || (view->changed[chunk / 8] & (1u << (chunk % 8)));
}

static int
view_pread (struct rp_file *file, void *buffer, size_t length,
            uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);
  uint8_t *to = buffer;
  uint64_t at = offset;
  size_t done = 0;
  int status = RP_OK;

  *done_out = 0;
  if (offset >= view->size_bytes)
    return RP_OK;
  if (length > view->size_bytes - offset)
    length = view->size_bytes - offset;
  if (offset < view->base_bytes)
    status = rp_file_pread (view->base, buffer, length, offset, &done, fault);
  if (status != RP_OK)
    return status;
  memset (to + done, 0, length - done);
  while (view->sector_count && at < offset + length) {
    const uint64_t sector = at / RP_SECTOR_BYTES;
    const uint64_t within = at % RP_SECTOR_BYTES;
    const uint64_t left = offset + length - at;
    const size_t bytes = left < RP_SECTOR_BYTES - within
                         ? left : RP_SECTOR_BYTES - within;
    const struct rp_view_sector *found = find_sector (view, sector);

    if (found)
      memcpy (to + (at - offset), view->blocks
              + (size_t) found->block * RP_SECTOR_BYTES + within, bytes);
    at += bytes;
  }
  *done_out = length;
  return RP_OK;
}

static int
view_pwritev (struct rp_file *file, const struct iovec *parts, int part_count,
              uint64_t offset, struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);

  for (int i = 0; i < part_count; i++) {
    const uint8_t *from = parts[i].iov_base;
    size_t left = parts[i].iov_len;

    while (left > 0) {
      const uint64_t within = offset % RP_SECTOR_BYTES;
      const size_t bytes = left < RP_SECTOR_BYTES - within
                           ? left : RP_SECTOR_BYTES - within;
      uint8_t *block;
      const int status = own_sector (view, offset / RP_SECTOR_BYTES, &block,
                                     fault);

      if (status != RP_OK)
        return status;
      memcpy (block + within, from, bytes);
      from += bytes;
      left -= bytes;
      offset += bytes;
    }
  }
  if (view->size_bytes < offset)
    view->size_bytes = offset;
  if (view->grown_bytes < view->size_bytes)
    view->grown_bytes = view->size_bytes;
  return RP_OK;
}

static int
view_sync (struct rp_file *file, struct rp_fault *fault)
{
  (void) file; (void) fault;
  return RP_OK;
}

static int
view_truncate (struct rp_file *file, uint64_t size, struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);

  (void) fault;
  view->size_bytes = size;
  if (view->grown_bytes < size)
    view->grown_bytes = size;
  return RP_OK;
}

/* Only what no sector of the view lies in: space that nothing claims. */
static int
view_punch (struct rp_file *file, uint64_t offset, uint64_t length,
            struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);

  if (view->punched_count == view->punched_room) {
    const uint64_t room = view->punched_room ? view->punched_room * 2 : 16;
    struct rp_view_range *grown = realloc (view->punched,
                                           room * sizeof *grown);

    if (!grown)
      return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                      view->base->name);
    view->punched = grown;
    view->punched_room = room;
  }
  view->punched[view->punched_count++] = (struct rp_view_range) {
    .start = offset, .stop = offset + length,
  };
  return RP_OK;
}

static int
view_stat (struct rp_file *file, struct rp_stat *out, struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);
  const int status = rp_file_stat (view->base, out, fault);

  out->size_bytes = view->size_bytes;
  return status;
}

/* Holes of the base are holes where nothing was written; the rest is data.
 * What was punched is a hole for whoever looks for data in it. */
static int
view_seek (struct rp_file *file, uint64_t offset, bool want_data,
           uint64_t *out, struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);
  uint64_t found;
  int status = RP_OK;

  *out = view->size_bytes;
  if (offset >= view->size_bytes)
    return RP_OK;
  if (!want_data) {              /* at the latest where the MiB ends */
    uint64_t stop = (offset / CHUNK_BYTES + 1) * CHUNK_BYTES;

    if (!is_changed (view, offset) && offset < view->base_bytes) {
      status = rp_file_seek (view->base, offset, false, &found, fault);
      stop = found > offset && found < stop ? found : stop;
    }
    *out = stop < view->size_bytes ? stop : view->size_bytes;
    return status;
  }
  found = behind_punched (view, offset);
  if (found < view->base_bytes && found == offset)
    status = rp_file_seek (view->base, found, true, &found, fault);
  for (uint64_t at = offset; at < found; at = (at / CHUNK_BYTES + 1)
                                              * CHUNK_BYTES)
    if (is_changed (view, at) && behind_punched (view, at) == at)
      found = at;
  *out = found < view->size_bytes ? found : view->size_bytes;
  return status;
}

static int
view_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  (void) file; (void) exclusive; (void) fault;
  return RP_OK;
}

static int
view_allocate (struct rp_file *file, uint64_t offset, uint64_t length,
               struct rp_fault *fault)
{
  struct rp_view *view = view_of (file);

  return offset + length > view->size_bytes
         ? view_truncate (file, offset + length, fault) : RP_OK;
}

static const struct rp_io_functions view_functions = {
  .name = "view",
  .file_pread = view_pread, .file_pwritev = view_pwritev,
  .file_sync = view_sync, .file_truncate = view_truncate,
  .file_allocate = view_allocate, .file_punch = view_punch,
  .file_stat = view_stat, .file_seek = view_seek, .file_lock = view_lock,
};

int
rp_view_open (struct rp_view *view, struct rp_file *base,
              struct rp_fault *fault)
{
  int status;

  memset (view, 0, sizeof *view);
  view->io.functions = &view_functions;
  view->file.io = &view->io;
  view->file.name = base->name;
  atomic_init (&view->file.failed, false);
  view->base = base;
  view->changed = calloc (1, CHUNKS / 8);
  if (!view->changed)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s", base->name);
  status = rp_file_size (base, &view->base_bytes, fault);
  view->size_bytes = view->base_bytes;
  view->grown_bytes = view->base_bytes;
  return status;
}

void
rp_view_close (struct rp_view *view)
{
  free (view->changed);
  free (view->punched);
  free (view->copies);
  free (view->slots);
  free (view->blocks);
  free (view->sectors);
}

int
rp_view_copy (struct rp_view *view, uint64_t from, uint64_t to,
              uint64_t bytes, struct rp_fault *fault)
{
  const uint64_t end = to * RP_SECTOR_BYTES + bytes;

  if (view->copy_count == view->copy_room) {
    const uint64_t room = view->copy_room ? view->copy_room * 2 : 16;
    struct rp_view_copy *grown = realloc (view->copies, room * sizeof *grown);

    if (!grown)
      return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                      view->base->name);
    view->copies = grown;
    view->copy_room = room;
  }
  view->copies[view->copy_count++] = (struct rp_view_copy) {
    .from = from, .to = to, .bytes = bytes,
  };
  return end > view->size_bytes ? view_truncate (&view->file, end, fault)
                                : RP_OK;
}

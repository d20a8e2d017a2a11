/* SPDX-License-Identifier: Apache-2.0 */
/* Carrying out a repair, and taking back one that was cut short; the order of
 * writing is in extent.h. */
#include "extent_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "bytes.h"

#define CHUNK_SECTORS 2048u      /* 1 MiB */
#define MAGIC         "RPREPAIR"
#define ENTRY_BYTES   16u
#define COUNT_MAX     (UINT64_C (1) << 20)

/* ---- the sectors of a plan ---- */

static int
compare_sectors (const void *a, const void *b)
{
  const struct rp_view_sector *left = a, *right = b;

  if (left->phase != right->phase)
    return left->phase - right->phase;
  return (left->sector > right->sector) - (left->sector < right->sector);
}

static const uint8_t *
block_of (const struct rp_view *view, uint32_t i)
{
  return view->blocks + (size_t) view->sectors[i].block * RP_SECTOR_BYTES;
}

/* Write the sectors of some phases, neighbours in one call. */
static int
write_phases (const struct rp_view *view, enum rp_repair_phase first_phase,
              enum rp_repair_phase last_phase, struct rp_file *file,
              struct rp_fault *fault)
{
  struct iovec parts[64];
  uint32_t i = 0;
  int status = RP_OK;

  while (status == RP_OK && i < view->sector_count) {
    const uint64_t sector = view->sectors[i].sector;
    int count = 0;

    if (view->sectors[i].phase < first_phase
        || view->sectors[i].phase > last_phase) {
      i++;
      continue;
    }
    do {
      parts[count].iov_base = (void *) block_of (view, i);
      parts[count++].iov_len = RP_SECTOR_BYTES;
      i++;
    } while (count < 64 && i < view->sector_count
             && view->sectors[i].phase <= last_phase
             && view->sectors[i].sector == sector + (uint64_t) count);
    status = rp_file_pwritev (file, parts, count, sector * RP_SECTOR_BYTES,
                              fault);
  }
  return status;
}

static bool
has_phase (const struct rp_view *view, enum rp_repair_phase first,
           enum rp_repair_phase last)
{
  for (uint32_t i = 0; i < view->sector_count; i++)
    if (view->sectors[i].phase >= first && view->sectors[i].phase <= last)
      return true;
  return false;
}

/* ---- the backup ---- */

/* Header, index and old sectors; `hash` runs over all but the header. */
struct backup {
  uint64_t tag, old_bytes, new_bytes, count, checksum;
};

static void
fill_header (uint8_t *header, const struct backup *backup)
{
  memset (header, 0, RP_SECTOR_BYTES);
  memcpy (header, MAGIC, 8);
  rp_store32 (header + 8, 1);
  rp_store64 (header + 16, backup->tag);
  rp_store64 (header + 24, backup->old_bytes);
  rp_store64 (header + 32, backup->new_bytes);
  rp_store64 (header + 40, backup->count);
  rp_store64 (header + 48, backup->checksum);
  rp_store64 (header + 504, XXH3_64bits (header, 504));
}

static uint64_t
index_bytes (uint64_t count)
{
  return rp_divide_up (count * ENTRY_BYTES, RP_SECTOR_BYTES) * RP_SECTOR_BYTES;
}

/* The index of the sectors that are in the old file: where each lies, and a
 * hash of what it will be.  Those of phase NEW come first and are left out. */
static uint8_t *
make_index (const struct rp_view *view, uint32_t first, uint64_t count)
{
  uint8_t *index = calloc (1, index_bytes (count) + 1);

  for (uint64_t i = 0; index && i < count; i++) {
    rp_store64 (index + i * ENTRY_BYTES,
                view->sectors[first + i].sector);
    rp_store64 (index + i * ENTRY_BYTES + 8,
                XXH3_64bits (block_of (view, first + (uint32_t) i),
                             RP_SECTOR_BYTES));
  }
  return index;
}

/* Old sectors from the file into the backup, a MiB at a time. */
static int
save_sectors (struct rp_file *file, const uint8_t *index, uint64_t count,
              struct rp_file *to, uint64_t at, XXH3_state_t *hash,
              struct rp_fault *fault)
{
  uint8_t *buffer = malloc (CHUNK_SECTORS * RP_SECTOR_BYTES);
  int status = RP_OK;

  if (!buffer)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s", file->name);
  for (uint64_t first = 0; status == RP_OK && first < count;
       first += CHUNK_SECTORS) {
    const uint64_t left = count - first;
    const size_t some = left < CHUNK_SECTORS ? left : CHUNK_SECTORS;

    for (size_t i = 0; status == RP_OK && i < some; i++)
      status = rp_file_pread_all (file, buffer + i * RP_SECTOR_BYTES,
                                  RP_SECTOR_BYTES,
                                  rp_load64 (index + (first + i) * ENTRY_BYTES)
                                  * RP_SECTOR_BYTES, fault);
    if (status != RP_OK)
      break;
    XXH3_64bits_update (hash, buffer, some * RP_SECTOR_BYTES);
    status = rp_file_pwrite (to, buffer, some * RP_SECTOR_BYTES,
                             at + first * RP_SECTOR_BYTES, fault);
  }
  free (buffer);
  return status;
}

static int
write_backup (struct rp_repair *repair, struct rp_file *file,
              struct rp_file *to, uint64_t tag, struct rp_fault *fault)
{
  struct rp_view *view = &repair->view;
  struct backup backup = {
    .tag = tag, .old_bytes = view->base_bytes, .new_bytes = view->grown_bytes,
  };
  XXH3_state_t *hash = XXH3_createState ();
  uint8_t header[RP_SECTOR_BYTES], *index;
  uint32_t first = 0;
  int status;

  while (first < view->sector_count
         && view->sectors[first].phase == RP_PHASE_NEW)
    first++;
  backup.count = view->sector_count - first;
  index = make_index (view, first, backup.count);
  if (!hash || !index)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s", file->name);
  else {
    const uint64_t bytes = index_bytes (backup.count);

    XXH3_64bits_reset (hash);
    XXH3_64bits_update (hash, index, bytes);
    status = bytes ? rp_file_pwrite (to, index, bytes, RP_SECTOR_BYTES, fault)
                   : RP_OK;
    if (status == RP_OK)
      status = save_sectors (file, index, backup.count, to,
                             RP_SECTOR_BYTES + bytes, hash, fault);
    backup.checksum = XXH3_64bits_digest (hash);
  }
  fill_header (header, &backup);
  if (status == RP_OK)
    status = rp_file_pwrite (to, header, sizeof header, 0, fault);
  if (status == RP_OK && !RP_SABOTAGED (24))   /* a backup that may be lost */
    status = rp_file_sync (to, fault);
  free (index);
  XXH3_freeState (hash);
  return status;
}

/* ---- applying ---- */

static int
copy_grains (const struct rp_view *view, struct rp_file *file,
             struct rp_fault *fault)
{
  uint8_t *buffer = malloc (RP_SPARSE_GRAIN_MAX * RP_SECTOR_BYTES);
  int status = RP_OK;

  if (!buffer)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s", file->name);
  for (uint64_t i = 0; status == RP_OK && i < view->copy_count; i++) {
    const struct rp_view_copy *copy = &view->copies[i];

    status = rp_file_pread_all (file, buffer, copy->bytes,
                                copy->from * RP_SECTOR_BYTES, fault);
    if (status == RP_OK)
      status = rp_file_pwrite (file, buffer, copy->bytes,
                               copy->to * RP_SECTOR_BYTES, fault);
  }
  free (buffer);
  return status;
}

/* Tell a checking backend what the entries will point at. */
static void
note_new (const struct rp_view *view, struct rp_file *file)
{
  for (uint64_t i = 0; i < view->copy_count; i++)
    rp_file_note (file, RP_NOTE_POINTS_TO,
                  view->copies[i].to * RP_SECTOR_BYTES, view->copies[i].bytes);
  for (uint32_t i = 0; i < view->sector_count; i++)
    if (view->sectors[i].phase == RP_PHASE_NEW)
      rp_file_note (file, RP_NOTE_POINTS_TO,
                    view->sectors[i].sector * RP_SECTOR_BYTES,
                    RP_SECTOR_BYTES);
}

static int
apply (const struct rp_view *view, struct rp_file *file,
       struct rp_fault *fault)
{
  static const enum rp_repair_phase steps[] = {
    RP_PHASE_REDUNDANT, RP_PHASE_PRIMARY, RP_PHASE_DIRECTORY,
  };
  int status = RP_OK;

  if (view->grown_bytes > view->base_bytes)
    status = rp_file_truncate (file, view->grown_bytes, fault);
  if (status == RP_OK)
    status = copy_grains (view, file, fault);
  if (status == RP_OK)
    status = write_phases (view, RP_PHASE_NEW, RP_PHASE_FREE, file, fault);
  if (status == RP_OK && !RP_SABOTAGED (22))   /* entries before data */
    status = rp_file_sync (file, fault);
  note_new (view, file);
  for (size_t i = 0; status == RP_OK && i < sizeof steps / sizeof *steps; i++)
    if (has_phase (view, steps[i], steps[i])) {
      status = write_phases (view, steps[i], steps[i], file, fault);
      if (status == RP_OK)
        status = rp_file_sync (file, fault);
    }
  return status;
}

/* Space that nothing points to any more, then the flag. */
static int
finish (const struct rp_view *view, struct rp_file *file,
        struct rp_fault *fault)
{
  int status = RP_OK;

  for (uint64_t i = 0; status == RP_OK && i < view->punched_count; i++)
    status = rp_file_punch (file, view->punched[i].start,
                            view->punched[i].stop - view->punched[i].start,
                            fault);
  if (status == RP_OK && view->size_bytes < view->grown_bytes)
    status = rp_file_truncate (file, view->size_bytes, fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  if (status == RP_OK && has_phase (view, RP_PHASE_FLAG, RP_PHASE_FLAG)) {
    status = write_phases (view, RP_PHASE_FLAG, RP_PHASE_FLAG, file, fault);
    if (status == RP_OK)
      status = rp_file_sync (file, fault);
  }
  return status;
}

/* ---- taking back ---- */

static int
not_whole (const struct rp_file *from, struct rp_fault *fault)
{
  return rp_fail (fault, RP_FORMAT, 0, "%s is no whole backup", from->name);
}

static int
changed_since (const struct rp_file *file, struct rp_fault *fault)
{
  return rp_fail (fault, RP_STATE, 0,
                  "%s was changed since its repair was cut short", file->name);
}

static int
read_header (struct rp_file *from, struct backup *out, struct rp_fault *fault)
{
  uint8_t header[RP_SECTOR_BYTES];
  uint64_t bytes;
  size_t done = 0;
  int status = rp_file_size (from, &bytes, fault);

  if (status == RP_OK)
    status = rp_file_pread (from, header, sizeof header, 0, &done, fault);
  if (status != RP_OK)
    return status;
  if (done < sizeof header || memcmp (header, MAGIC, 8) != 0
      || rp_load32 (header + 8) != 1
      || rp_load64 (header + 504) != XXH3_64bits (header, 504))
    return not_whole (from, fault);
  *out = (struct backup) {
    .tag = rp_load64 (header + 16), .old_bytes = rp_load64 (header + 24),
    .new_bytes = rp_load64 (header + 32), .count = rp_load64 (header + 40),
    .checksum = rp_load64 (header + 48),
  };
  return out->count <= COUNT_MAX
         && bytes == RP_SECTOR_BYTES + index_bytes (out->count)
                     + out->count * RP_SECTOR_BYTES
         ? RP_OK : not_whole (from, fault);
}

/* Index and old sectors in memory, or NULL. */
static int
read_body (struct rp_file *from, const struct backup *backup, uint8_t **out,
           struct rp_fault *fault)
{
  const size_t bytes = index_bytes (backup->count)
                       + backup->count * RP_SECTOR_BYTES;
  uint8_t *body = malloc (bytes + 1);
  int status;

  *out = body;
  if (!body)
    return rp_fail (fault, RP_NO_MEMORY, 0, "reading %s", from->name);
  status = rp_file_pread_all (from, body, bytes, RP_SECTOR_BYTES, fault);
  if (status == RP_OK && XXH3_64bits (body, bytes) != backup->checksum)
    return not_whole (from, fault);
  return status;
}

/* Every sector is still the old one or the new one. */
static int
check_sectors (struct rp_file *file, const struct backup *backup,
               const uint8_t *body, struct rp_fault *fault)
{
  const uint8_t *old = body + index_bytes (backup->count);
  uint8_t now[RP_SECTOR_BYTES];
  uint64_t file_bytes;
  int status = rp_file_size (file, &file_bytes, fault);

  if (status == RP_OK && (file_bytes < backup->old_bytes
                          || file_bytes > backup->new_bytes))
    return changed_since (file, fault);
  for (uint64_t i = 0; status == RP_OK && i < backup->count; i++) {
    const uint64_t sector = rp_load64 (body + i * ENTRY_BYTES);

    if (!rp_inside (sector, 1, backup->old_bytes / RP_SECTOR_BYTES))
      return not_whole (file, fault);
    status = rp_file_pread_all (file, now, sizeof now,
                                sector * RP_SECTOR_BYTES, fault);
    if (status == RP_OK
        && memcmp (now, old + i * RP_SECTOR_BYTES, sizeof now) != 0
        && XXH3_64bits (now, sizeof now)
           != rp_load64 (body + i * ENTRY_BYTES + 8))
      return changed_since (file, fault);
  }
  return status;
}

static int
undo (struct rp_file *file, struct rp_file *from, uint64_t tag,
      struct rp_fault *fault)
{
  struct backup backup;
  uint8_t *body = NULL;
  int status = read_header (from, &backup, fault);

  if (status == RP_OK)
    status = read_body (from, &backup, &body, fault);
  if (status == RP_OK && backup.tag != tag)
    status = changed_since (file, fault);
  if (status == RP_OK)
    status = check_sectors (file, &backup, body, fault);
  for (uint64_t i = backup.count; status == RP_OK && i > 0; i--)
    status = rp_file_pwrite (file, body + index_bytes (backup.count)
                                   + (i - 1) * RP_SECTOR_BYTES,
                             RP_SECTOR_BYTES,
                             rp_load64 (body + (i - 1) * ENTRY_BYTES)
                             * RP_SECTOR_BYTES, fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  if (status == RP_OK)           /* nothing durable points behind it now */
    status = rp_file_truncate (file, backup.old_bytes, fault);
  if (status == RP_OK)
    status = rp_file_sync (file, fault);
  free (body);
  return status;
}

/* ---- all of it ---- */

static int
drop_backup (struct rp_dir *dir, const char *name, const char *keep_name,
             struct rp_fault *fault)
{
  const int status = keep_name ? rp_dir_rename (dir, name, keep_name, fault)
                               : rp_dir_unlink (dir, name, fault);

  return status == RP_OK ? rp_dir_sync (dir, fault) : status;
}

int
rp_repair_run (struct rp_repair *repair, struct rp_dir *dir, const char *name,
               struct rp_file *file, uint64_t tag, const char *keep_name,
               struct rp_fault *fault)
{
  struct rp_view *view = &repair->view;
  struct rp_file *backup;
  struct rp_fault ignored;
  uint64_t bytes;
  int status = rp_file_size (file, &bytes, fault);

  if (status != RP_OK || !view->base)
    return status;
  if (bytes != view->base_bytes)
    return rp_fail (fault, RP_STATE, bytes, "%s was changed meanwhile",
                    file->name);
  if (view->sector_count > 1)
    qsort (view->sectors, view->sector_count, sizeof *view->sectors,
           compare_sectors);
  status = rp_file_open (dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                         | RP_OPEN_EXCLUSIVE | RP_OPEN_BENEATH, 0600, &backup,
                         fault);
  if (status != RP_OK)
    return status;
  status = write_backup (repair, file, backup, tag, fault);
  if (status == RP_OK)
    status = rp_dir_sync (dir, fault);
  if (status == RP_OK) {
    status = apply (view, file, fault);
    if (status != RP_OK && undo (file, backup, tag, &ignored) == RP_OK)
      (void) drop_backup (dir, name, NULL, &ignored);
  } else
    (void) drop_backup (dir, name, NULL, &ignored);   /* nothing was done */
  rp_file_close (backup);
  if (status == RP_OK)
    status = drop_backup (dir, name, keep_name, fault);
  return status == RP_OK ? finish (view, file, fault) : status;
}

int
rp_repair_recover (struct rp_dir *dir, const char *name, struct rp_file *file,
                   uint64_t tag, const char *stale_name,
                   enum rp_recovery *out, struct rp_fault *fault)
{
  struct rp_file *backup;
  struct rp_fault seen;
  int status;

  *out = RP_RECOVERY_NONE;
  status = rp_file_open (dir, name, RP_OPEN_READ | RP_OPEN_BENEATH, 0, &backup,
                         &seen);
  if (status == RP_IO && seen.os_errno == ENOENT)
    return RP_OK;
  if (status != RP_OK) {
    *fault = seen;
    return status;
  }
  status = undo (file, backup, tag, fault);
  rp_file_close (backup);
  *out = status == RP_OK ? RP_RECOVERY_UNDONE
         : status == RP_FORMAT ? RP_RECOVERY_UNUSED : RP_RECOVERY_STALE;
  if (status == RP_OK || status == RP_FORMAT)
    return drop_backup (dir, name, NULL, fault);
  return status == RP_STATE ? drop_backup (dir, name, stale_name, fault)
                            : status;
}

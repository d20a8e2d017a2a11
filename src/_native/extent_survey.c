/* SPDX-License-Identifier: Apache-2.0 */
/* Who claims which part of a sparse file; see extent.h. */
#include "extent_inside.h"

#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define READ_BYTES 65536u

/* ---- reading ---- */

static int
read_directory (struct rp_survey *survey, uint64_t sector, uint32_t **out,
                struct rp_fault *fault)
{
  const uint32_t count = survey->layout.directory_count;
  uint32_t *entries = malloc ((size_t) count * sizeof *entries);
  int status;

  *out = entries;
  if (!entries)
    return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s",
                    survey->file->name);
  status = rp_file_pread_all (survey->file, entries, (size_t) count * 4,
                              sector * RP_SECTOR_BYTES, fault);
  for (uint32_t i = 0; status == RP_OK && i < count; i++)
    entries[i] = le32toh (entries[i]);
  return status;
}

/* Whether [at, at + bytes) lies in a hole; few calls, for tables lie in a
 * row. */
static int
in_hole (struct rp_survey *survey, uint64_t at, uint64_t bytes, bool *out,
         struct rp_fault *fault)
{
  int status = RP_OK;

  *out = false;
  if (at >= survey->data_start && at < survey->data_stop)
    return RP_OK;
  if (at < survey->hole_start || at >= survey->hole_stop) {
    uint64_t data = 0;

    status = rp_file_seek (survey->file, at, true, &data, fault);
    if (status == RP_OK && data > at) {
      survey->hole_start = at;
      survey->hole_stop = data;
    } else if (status == RP_OK) {
      survey->data_start = at;
      status = rp_file_seek (survey->file, at, false, &survey->data_stop,
                             fault);
    }
  }
  *out = status == RP_OK && at >= survey->hole_start
         && rp_inside (at, bytes, survey->hole_stop);
  return status;
}

int
rp_survey_read_table (struct rp_survey *survey, uint64_t sector, uint32_t *out,
                      bool *empty, struct rp_fault *fault)
{
  const size_t count = (size_t) 1 << survey->layout.table_shift;
  const uint64_t at = sector * RP_SECTOR_BYTES;
  bool *zero = out == survey->table ? &survey->table_zero
                                    : &survey->other_zero;
  int status = in_hole (survey, at, count * sizeof *out, empty, fault);

  if (status == RP_OK && !*empty) {
    status = rp_file_pread_all (survey->file, out, count * sizeof *out, at,
                                fault);
    *empty = true;
    for (size_t i = 0; status == RP_OK && i < count; i++) {
      out[i] = le32toh (out[i]);
      *empty &= out[i] == 0;
    }
    *zero = status == RP_OK && *empty;
  } else if (!*zero) {           /* millions of them may follow each other */
    memset (out, 0, count * sizeof *out);
    *zero = true;
  }
  return status;
}

int
rp_survey_holds_data (struct rp_survey *survey, uint64_t sector,
                      uint64_t sectors, bool *out, struct rp_fault *fault)
{
  const uint64_t stop = (sector + sectors) * RP_SECTOR_BYTES;
  uint64_t at = sector * RP_SECTOR_BYTES;
  uint8_t *buffer = malloc (READ_BYTES);
  int status = RP_OK;

  *out = false;
  if (!buffer)
    return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s",
                    survey->file->name);
  while (status == RP_OK && at < stop && !*out) {
    uint64_t length;
    size_t done = 0;

    status = rp_file_seek (survey->file, at, true, &at, fault);
    if (status != RP_OK || at >= stop)
      break;
    length = stop - at < READ_BYTES ? stop - at : READ_BYTES;
    status = rp_file_pread (survey->file, buffer, length, at, &done, fault);
    if (status != RP_OK || done == 0)
      break;
    *out = buffer[0] != 0 || memcmp (buffer, buffer + 1, done - 1) != 0;
    at += done;
  }
  free (buffer);
  return status;
}

/* ---- opening ---- */

bool
rp_survey_table_inside (const struct rp_survey *survey, uint64_t sector)
{
  return rp_inside (sector, survey->layout.table_sectors,
                    survey->layout.file_bytes / RP_SECTOR_BYTES);
}

/* What the positions of one directory's tables, and of the grains that those
 * of the primary one point at, have in common: their lowest bit. */
static int
see_directory (struct rp_survey *survey, const uint32_t *directory,
               uint64_t *seen, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &survey->layout;
  const size_t count = (size_t) 1 << layout->table_shift;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint32_t sector = directory[i];
    bool empty = true;

    if (sector == 0 || !rp_survey_table_inside (survey, sector))
      continue;
    if (sector + (uint64_t) layout->table_sectors > survey->overhead)
      *seen |= sector | layout->table_sectors;
    status = rp_survey_read_table (survey, sector, survey->table, &empty,
                                   fault);
    for (size_t k = 0; status == RP_OK && !empty && k < count; k++)
      if (survey->table[k] >= survey->overhead)
        *seen |= survey->table[k];
  }
  return status;
}

/* One of no sectors is none: it has a place, and takes none. */
static bool
has_descriptor (const struct rp_sparse_info *info)
{
  return info->descriptor_offset_sectors != 0 && info->descriptor_sectors != 0;
}

static int
find_unit (struct rp_survey *survey, struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &survey->layout.info;
  uint64_t seen = info->grain_sectors;
  int status = see_directory (survey, survey->primary, &seen, fault);

  if (status == RP_OK && survey->redundant)
    status = see_directory (survey, survey->redundant, &seen, fault);
  /* a directory behind the overhead: any sector */
  if (info->directory_sector >= survey->overhead
      || (survey->redundant
          && info->redundant_directory_sector >= survey->overhead)
      || (has_descriptor (info)
          && info->descriptor_offset_sectors >= survey->overhead))
    seen |= 1;
  survey->unit = seen & -seen;
  return status;
}

int
rp_survey_open (struct rp_survey *survey, struct rp_file *file,
                uint64_t sectors, uint64_t start_bytes, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &survey->layout;
  uint64_t reach, units;
  int status;

  memset (survey, 0, sizeof *survey);
  survey->file = file;
  survey->start_bytes = start_bytes;
  survey->size_bytes = sectors * RP_SECTOR_BYTES;
  status = rp_sparse_read_layout (file, &survey->layout, fault);
  if (status != RP_OK)
    return status;
  reach = rp_divide_up (layout->file_bytes, RP_SECTOR_BYTES);
  if (reach > RP_SPARSE_SECTORS_MAX)
    reach = RP_SPARSE_SECTORS_MAX;
  survey->sectors = reach;
  survey->overhead = layout->info.overhead_sectors;
  if (survey->overhead > reach)
    survey->overhead = reach;
  survey->table = malloc (sizeof (uint32_t) << layout->table_shift);
  survey->other = malloc (sizeof (uint32_t) << layout->table_shift);
  if (!survey->table || !survey->other)
    return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s", file->name);
  status = read_directory (survey, layout->info.directory_sector,
                           &survey->primary, fault);
  if (status == RP_OK && layout->redundant)
    status = read_directory (survey, layout->info.redundant_directory_sector,
                             &survey->redundant, fault);
  if (status == RP_OK)
    status = find_unit (survey, fault);
  if (status != RP_OK)
    return status;
  units = reach / survey->unit / 8 + 2;
  survey->head = calloc (1, survey->overhead / 8 + 1);
  survey->body = calloc (1, units);
  survey->metadata = calloc (1, units);
  if (!survey->head || !survey->body || !survey->metadata)
    return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s", file->name);
  return RP_OK;
}

void
rp_survey_close (struct rp_survey *survey)
{
  free (survey->metadata);
  free (survey->body);
  free (survey->head);
  free (survey->redundant);
  free (survey->primary);
  free (survey->other);
  free (survey->table);
}

/* ---- entries ---- */

int
rp_survey_entries (struct rp_survey *survey,
                   void (*each) (void *context, uint64_t grain,
                                 uint32_t entry),
                   void *context, struct rp_fault *fault)
{
  const uint32_t shift = survey->layout.table_shift;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < survey->layout.directory_count;
       i++) {
    const uint32_t sector = survey->primary[i];
    bool empty = true;

    if (sector == 0 || !rp_survey_table_inside (survey, sector))
      continue;
    status = rp_survey_read_table (survey, sector, survey->table, &empty,
                                   fault);
    for (uint64_t k = 0; status == RP_OK && !empty
                         && k < UINT64_C (1) << shift; k++)
      each (context, ((uint64_t) i << shift) + k, survey->table[k]);
  }
  return status;
}

/* ---- claims ---- */

bool
rp_bits_any (const uint8_t *bits, uint64_t first, uint64_t stop)
{
  for (; first < stop; first++)
    if (bits[first / 8] & (1u << (first % 8)))
      return true;
  return false;
}

bool
rp_bits_set (uint8_t *bits, uint64_t first, uint64_t stop)
{
  const bool fresh = !rp_bits_any (bits, first, stop);

  for (; first < stop; first++)
    bits[first / 8] |= (uint8_t) (1u << (first % 8));
  return fresh;
}

bool
rp_survey_claim (struct rp_survey *survey, uint64_t sector, uint64_t sectors,
                 bool metadata)
{
  uint64_t stop = sector + sectors;
  bool fresh = true;

  if (survey->used_end < stop)
    survey->used_end = stop;
  if (stop > survey->sectors)
    stop = survey->sectors;      /* out of reach of entries: no overlap */
  if (sector >= stop)
    return true;
  if (sector < survey->overhead)
    fresh = rp_bits_set (survey->head, sector,
                         stop < survey->overhead ? stop : survey->overhead);
  if (stop > survey->overhead) {
    const uint64_t first = sector > survey->overhead ? sector
                                                     : survey->overhead;
    fresh &= rp_bits_set (survey->body, first / survey->unit,
                          rp_divide_up (stop, survey->unit));
    if (metadata)
      rp_bits_set (survey->metadata, first / survey->unit,
                   rp_divide_up (stop, survey->unit));
  }
  return fresh;
}

bool
rp_survey_is_claimed (const struct rp_survey *survey, uint64_t sector,
                      uint64_t sectors, bool metadata)
{
  uint64_t stop = sector + sectors, first = sector;

  if (stop > survey->sectors)
    stop = survey->sectors;
  if (sector < survey->overhead
      && rp_bits_any (survey->head, sector,
                      stop < survey->overhead ? stop : survey->overhead))
    return true;
  if (first < survey->overhead)
    first = survey->overhead;
  return first < stop
         && rp_bits_any (metadata ? survey->metadata : survey->body,
                         first / survey->unit,
                         rp_divide_up (stop, survey->unit));
}

bool
rp_survey_claim_fixed (struct rp_survey *survey, uint64_t *overlap_out)
{
  const struct rp_sparse_layout *layout = &survey->layout;
  const struct rp_sparse_info *info = &layout->info;
  const uint64_t sectors = rp_sparse_directory_sectors (layout);
  bool fine = true;

  rp_survey_claim (survey, 0, layout->kind == RP_EXTENT_COWD
                              ? RP_COWD_HEADER_SECTORS : 1, true);
  if (has_descriptor (info)
      && !rp_survey_claim (survey, info->descriptor_offset_sectors,
                           info->descriptor_sectors, true)) {
    *overlap_out = info->descriptor_offset_sectors;
    fine = false;
  }
  if (survey->redundant
      && !rp_survey_claim (survey, info->redundant_directory_sector, sectors,
                           true)) {
    *overlap_out = info->redundant_directory_sector;
    fine = false;
  }
  if (!rp_survey_claim (survey, info->directory_sector, sectors, true)) {
    *overlap_out = info->directory_sector;
    fine = false;
  }
  return fine;
}

uint64_t
rp_survey_table_guest (const struct rp_survey *survey, uint32_t index)
{
  return survey->start_bytes
         + ((uint64_t) index << (survey->layout.table_shift
                                 + survey->layout.grain_shift));
}

enum rp_entry
rp_survey_entry (const struct rp_survey *survey, uint64_t grain,
                 uint32_t entry)
{
  const struct rp_sparse_layout *layout = &survey->layout;
  const uint64_t start = grain << layout->grain_shift;
  const uint64_t capacity = layout->info.capacity_sectors * RP_SECTOR_BYTES;
  uint64_t needed = UINT64_C (1) << layout->grain_shift;

  if (entry == 0 || (entry == 1 && layout->zero_grains) || start >= capacity)
    return RP_ENTRY_NONE;
  if (needed > capacity - start)
    needed = capacity - start;
  return entry != 1 && entry >= survey->overhead
         && rp_inside ((uint64_t) entry * RP_SECTOR_BYTES, needed,
                       layout->file_bytes)
         ? RP_ENTRY_GRAIN : RP_ENTRY_WRONG;
}

uint64_t
rp_survey_grain_sectors (const struct rp_survey *survey, uint32_t entry)
{
  const uint64_t left = survey->sectors - entry;

  return left < survey->layout.info.grain_sectors
         ? left : survey->layout.info.grain_sectors;
}

/* ---- leaks ---- */

/* The next unit from `unit` on that is claimed or not, or stop. */
static uint64_t
next_unit (const struct rp_survey *survey, uint64_t unit, uint64_t stop,
           bool claimed)
{
  const uint8_t skip = claimed ? 0 : 0xff;   /* bytes without one */

  while (unit < stop && rp_bits_any (survey->body, unit, unit + 1) != claimed)
    if (unit % 8 == 0 && survey->body[unit / 8] == skip)
      unit += 8;
    else
      unit++;
  return unit < stop ? unit : stop;
}

int
rp_survey_leaks (struct rp_survey *survey,
                 int (*each) (void *context, uint64_t first, uint64_t stop,
                              bool at_end, struct rp_fault *fault),
                 void *context, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &survey->layout;
  const bool cowd = layout->kind == RP_EXTENT_COWD;
  const uint64_t file_end = layout->file_bytes / RP_SECTOR_BYTES;
  const uint64_t used = survey->used_end > survey->overhead
                        ? survey->used_end : survey->overhead;
  uint64_t stop = survey->sectors, unit, first;
  bool data = false;
  int status = RP_OK;

  if (cowd && stop > layout->info.free_sector)
    stop = layout->info.free_sector;   /* ESX grows the file ahead */
  if (!cowd && used < stop)
    stop = used;
  stop /= survey->unit;
  unit = rp_divide_up (survey->overhead, survey->unit);
  while (status == RP_OK && unit < stop) {
    first = unit;
    unit = next_unit (survey, unit, stop, true);
    if ((unit - first) * survey->unit >= layout->info.grain_sectors) {
      status = rp_survey_holds_data (survey, first * survey->unit,
                                     (unit - first) * survey->unit, &data,
                                     fault);
      if (status == RP_OK && data)
        status = each (context, first * survey->unit, unit * survey->unit,
                       false, fault);
    }
    unit = next_unit (survey, unit, stop, false);
  }
  if (status == RP_OK && !cowd && used < file_end
      && file_end - used >= layout->info.grain_sectors)
    status = each (context, used, file_end, true, fault);
  return status;
}

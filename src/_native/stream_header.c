/* SPDX-License-Identifier: Apache-2.0 */
/* Header and footer of compressed extents, read with distrust.
 *
 * A header whose directory is "at the end" is completed by the footer: the
 * last sector but one, between a marker and the end of stream.  The footer is
 * asked for the directory's place only; where it disagrees in anything else
 * two readers could see two disks, so the file is refused.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "bytes.h"
#include "stream_inside.h"

#define VERSION_MAX        3u
#define DEFLATE            1u
#define INCOMPATIBLE_FLAGS 0xffff0000u
#define KNOWN_FLAGS        (RP_KDMV_COMPRESSED | RP_KDMV_MARKERS)
/* Copies that were padded: so many zeros may follow the end of stream. */
#define PADDING_SECTORS    2048u
#define TAIL_SECTORS       3u        /* footer marker, footer, end of stream */

/* A footer with its marker in front and what may be an end of stream behind. */
static bool
is_tail (const uint8_t *tail)
{
  return rp_load32 (tail + 8) == 0 && rp_load32 (tail + 12) == RP_STREAM_FOOTER
         && rp_load32 (tail + RP_SECTOR_BYTES) == RP_KDMV_MAGIC
         && rp_is_zero (tail + 2 * (size_t) RP_SECTOR_BYTES, 16);
}

/* The footer's marker in the last sectors of the file, behind which only zeros
 * follow; NULL where there is none. */
static const uint8_t *
search_tail (const uint8_t *bytes, size_t sectors)
{
  size_t last = sectors;
  const uint8_t *tail;

  while (last > 0
         && rp_is_zero (bytes + (last - 1) * RP_SECTOR_BYTES, RP_SECTOR_BYTES))
    last--;
  /* last sectors are left: the footer is the last of them */
  if (last < 2 || last == sectors)
    return NULL;
  tail = bytes + (last - 2) * RP_SECTOR_BYTES;
  return is_tail (tail) ? tail : NULL;
}

/* Read the footer.  *found_out is false where the file does not end with one;
 * padding says whether zeros may follow. */
static int
read_footer (struct rp_file *file, uint64_t file_sectors, bool padding,
             uint8_t *footer, bool *found_out, struct rp_fault *fault)
{
  uint64_t sectors = TAIL_SECTORS + (padding ? PADDING_SECTORS : 0);
  const uint8_t *tail;
  uint8_t *bytes;
  int status;

  *found_out = false;
  if (sectors > file_sectors)
    sectors = file_sectors;
  if (sectors < TAIL_SECTORS)
    return RP_OK;
  bytes = malloc (sectors * RP_SECTOR_BYTES);
  if (!bytes)
    return rp_fail (fault, RP_NO_MEMORY, 0, "opening %s", file->name);
  status = rp_file_pread_all (file, bytes, sectors * RP_SECTOR_BYTES,
                              (file_sectors - sectors) * RP_SECTOR_BYTES,
                              fault);
  if (status == RP_OK) {
    tail = padding ? search_tail (bytes, sectors)
                   : is_tail (bytes) ? bytes : NULL;
    if (tail) {
      memcpy (footer, tail + RP_SECTOR_BYTES, RP_SECTOR_BYTES);
      *found_out = true;
    }
  }
  free (bytes);
  return status;
}

static int
disagree (struct rp_file *file, const char *what, uint64_t header,
          uint64_t footer, struct rp_fault *fault)
{
  return rp_fail (fault, RP_CORRUPT, 0,
                  "%s: its header and its footer disagree on the %s: %" PRIu64
                  " and %" PRIu64, file->name, what, header, footer);
}

static int
compare_footer (struct rp_file *file, const struct rp_sparse_info *header,
                const struct rp_sparse_info *footer, struct rp_fault *fault)
{
  const struct {
    const char *what;
    uint64_t    header, footer;
  } fields[] = {
    { "version", header->version, footer->version },
    { "flags", header->flags, footer->flags },
    { "capacity", header->capacity_sectors, footer->capacity_sectors },
    { "grain size", header->grain_sectors, footer->grain_sectors },
    { "size of a grain table", header->entries_per_table,
      footer->entries_per_table },
    { "compression", header->compress_algorithm, footer->compress_algorithm },
    { "place of the descriptor", header->descriptor_offset_sectors,
      footer->descriptor_offset_sectors },
    { "size of the descriptor", header->descriptor_sectors,
      footer->descriptor_sectors },
  };

  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    if (fields[i].header != fields[i].footer)
      return disagree (file, fields[i].what, fields[i].header,
                       fields[i].footer, fault);
  if (header->directory_sector != RP_KDMV_AT_END
      && header->directory_sector != footer->directory_sector)
    return disagree (file, "place of the grain directory",
                     header->directory_sector, footer->directory_sector,
                     fault);
  return RP_OK;
}

/* Complete the header by the footer, where there is one or has to be one. */
static int
apply_footer (struct rp_file *file, uint64_t file_sectors,
              struct rp_sparse_info *info, struct rp_fault *fault)
{
  const bool needed = info->directory_sector == RP_KDMV_AT_END;
  uint8_t bytes[RP_SECTOR_BYTES];
  struct rp_sparse_info footer = { 0 };
  bool found;
  int status = read_footer (file, file_sectors, false, bytes, &found, fault);

  if (status == RP_OK && needed && !found)
    status = read_footer (file, file_sectors, true, bytes, &found, fault);
  if (status != RP_OK)
    return status;
  if (!found)
    return !needed ? RP_OK
           : rp_fail (fault, RP_CORRUPT, file_sectors * RP_SECTOR_BYTES,
                      "%s was cut short: its grain directory is found through "
                      "a footer at its end, and it does not end with one",
                      file->name);
  rp_kdmv_load (bytes, &footer);
  status = compare_footer (file, info, &footer, fault);
  if (status != RP_OK)
    return status;
  info->directory_sector = footer.directory_sector;
  if (info->directory_sector == RP_KDMV_AT_END)
    return rp_fail (fault, RP_CORRUPT, file_sectors * RP_SECTOR_BYTES,
                    "%s: its footer does not say where the grain directory "
                    "is", file->name);
  return RP_OK;
}

static int
check_fields (struct rp_file *file, const uint8_t *header,
              const struct rp_sparse_info *info, struct rp_fault *fault)
{
  if (info->version < 1 || info->version > VERSION_MAX)
    return rp_fail (fault, RP_UNSUPPORTED, 4,
                    "%s: compressed sparse version %" PRIu32
                    " (1 to %u are supported)", file->name, info->version,
                    VERSION_MAX);
  if (info->flags & INCOMPATIBLE_FLAGS & ~(uint32_t) KNOWN_FLAGS)
    return rp_fail (fault, RP_UNSUPPORTED, 8,
                    "%s: flags 0x%" PRIx32 ", of which some are unknown",
                    file->name, info->flags);
  if (info->compress_algorithm != DEFLATE)
    return rp_fail (fault, RP_UNSUPPORTED, 77,
                    "%s: compression algorithm %u (1, deflate, is supported)",
                    file->name, info->compress_algorithm);
  return rp_kdmv_check_newlines (file, header, fault);
}

static int
check_area (struct rp_file *file, uint64_t file_sectors, const char *what,
            uint64_t sector, uint64_t sectors, struct rp_fault *fault)
{
  if (sector > 0 && rp_inside (sector, sectors, file_sectors))
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, 0,
                  "%s: %s is at sector %" PRIu64 " (%" PRIu64
                  " sectors) and the file has %" PRIu64 ": it is damaged or "
                  "was cut short", file->name, what, sector, sectors,
                  file_sectors);
}

int
rp_stream_read_layout (struct rp_file *file, struct rp_sparse_layout *out,
                       struct rp_fault *fault)
{
  struct rp_sparse_info *info = &out->info;
  uint8_t header[RP_SECTOR_BYTES];
  uint64_t file_sectors;
  size_t done;
  int status;

  memset (out, 0, sizeof *out);
  out->kind = RP_EXTENT_STREAM;
  status = rp_file_size (file, &out->file_bytes, fault);
  if (status == RP_OK)
    status = rp_file_pread (file, header, sizeof header, 0, &done, fault);
  if (status != RP_OK)
    return status;
  if (done < sizeof header || rp_load32 (header) != RP_KDMV_MAGIC
      || !(rp_load32 (header + 8) & RP_KDMV_COMPRESSED))
    return rp_fail (fault, RP_FORMAT, 0,
                    "%s is no compressed sparse extent", file->name);
  file_sectors = out->file_bytes / RP_SECTOR_BYTES;
  rp_kdmv_load (header, info);
  out->zero_grains = info->flags & RP_KDMV_ZERO_GRAINS;
  out->redundant = (info->flags & RP_KDMV_REDUNDANT)
                   && info->redundant_directory_sector != 0
                   && info->redundant_directory_sector != RP_KDMV_AT_END;
  status = check_fields (file, header, info, fault);
  if (status == RP_OK)
    status = rp_sparse_derive (file, out, fault);
  if (status == RP_OK)
    status = apply_footer (file, file_sectors, info, fault);
  if (status == RP_OK)
    status = check_area (file, file_sectors, "the grain directory",
                         info->directory_sector,
                         rp_sparse_directory_sectors (out), fault);
  if (status == RP_OK && info->descriptor_offset_sectors)
    status = check_area (file, file_sectors, "the descriptor",
                         info->descriptor_offset_sectors,
                         info->descriptor_sectors, fault);
  return status;
}

int
rp_stream_read_header (struct rp_file *file, struct rp_sparse_info *out,
                       struct rp_fault *fault)
{
  struct rp_sparse_layout layout;
  const int status = rp_stream_read_layout (file, &layout, fault);

  if (status == RP_OK)
    *out = layout.info;
  return status;
}

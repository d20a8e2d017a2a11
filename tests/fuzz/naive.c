/* SPDX-License-Identifier: Apache-2.0 */
/* The second opinion: from the header to one sector, nothing kept, nothing
 * shared with the code under test.
 * Source: "VMware Virtual Disk Format 5.0"; for seSparse, what QEMU reads. */
#include <string.h>

#include <libdeflate.h>

#include "bytes.h"
#include "fuzz.h"

static bool
read_at (struct rp_file *file, uint64_t offset, void *out, size_t length)
{
  size_t done = 0;

  return offset < UINT64_C (1) << 62
         && rp_file_pread (file, out, length, offset, &done, NULL) == RP_OK
         && done == length;
}

static enum fuzz_naive
read_data (struct rp_file *file, uint64_t sector, uint8_t *out)
{
  return read_at (file, sector * RP_SECTOR_BYTES, out, RP_SECTOR_BYTES)
         ? FUZZ_NAIVE_DATA : FUZZ_NAIVE_ERROR;
}

/* Both kinds with 32-bit entries. */
struct tables {
  uint64_t grain, per_table, directory, overhead;
  uint64_t header;               /* sectors, in which no table lies */
  uint64_t text, text_sectors;   /* the descriptor, likewise */
  bool     zeros;                /* an entry of 1 is a zero grain */
};

static bool
lies_over_header (const struct tables *tables, uint64_t sector)
{
  const uint64_t end = sector + tables->per_table / 128;

  return sector < tables->header
         || (tables->text != 0 && tables->text_sectors != 0
             && sector < tables->text + tables->text_sectors
             && tables->text < end);
}

static enum fuzz_naive
look (struct rp_file *file, const struct tables *tables, uint64_t sector,
      uint8_t *out)
{
  const uint64_t grain = sector / tables->grain;
  const uint64_t place = tables->directory * RP_SECTOR_BYTES
                         + 4 * (grain / tables->per_table);
  uint64_t table, entry;
  uint8_t field[4];
  uint64_t size = 0;

  if (!read_at (file, place, field, 4))
    return FUZZ_NAIVE_ERROR;
  table = (uint64_t) rp_load32 (field) * RP_SECTOR_BYTES;
  if (table == 0)
    return FUZZ_NAIVE_ABSENT;
  if (lies_over_header (tables, table / RP_SECTOR_BYTES))
    return FUZZ_NAIVE_ERROR;
  /* a table that is cut off is not used at all */
  if (rp_file_size (file, &size, NULL) != RP_OK
      || !rp_inside (table, 4 * tables->per_table, size)
      || !read_at (file, table + 4 * (grain % tables->per_table), field, 4))
    return FUZZ_NAIVE_ERROR;
  entry = rp_load32 (field);
  if (entry == 0)
    return FUZZ_NAIVE_ABSENT;
  if (entry == 1 && tables->zeros)
    return FUZZ_NAIVE_ZERO;
  if (entry == 1 || entry < tables->overhead)
    return FUZZ_NAIVE_ERROR;
  return read_data (file, entry + sector % tables->grain, out);
}

static enum fuzz_naive
look_hosted (struct rp_file *file, uint64_t sector, uint8_t *out)
{
  struct tables tables;
  uint8_t header[512];

  if (!read_at (file, 0, header, sizeof header))
    return FUZZ_NAIVE_ERROR;
  tables = (struct tables) {
    .grain = rp_load64 (header + 20), .per_table = rp_load32 (header + 44),
    .directory = rp_load64 (header + 56), .overhead = rp_load64 (header + 64),
    .header = 1, .text = rp_load64 (header + 28),
    .text_sectors = rp_load64 (header + 36),
    .zeros = rp_load32 (header + 8) & 4,
  };
  return look (file, &tables, sector, out);
}

static enum fuzz_naive
look_cowd (struct rp_file *file, uint64_t sector, uint8_t *out)
{
  struct tables tables;
  uint8_t header[32];

  if (!read_at (file, 0, header, sizeof header)
      || sector / rp_load32 (header + 16) / 4096 >= rp_load32 (header + 24))
    return FUZZ_NAIVE_ERROR;
  tables = (struct tables) {
    .grain = rp_load32 (header + 16), .per_table = 4096,
    .directory = rp_load32 (header + 20),
    .overhead = rp_load32 (header + 20)
                + rp_divide_up (rp_load32 (header + 24), 128),
    .header = 4,
  };
  return look (file, &tables, sector, out);
}

/* ---- streams ---- */

/* The last sector that is not all zeros, of at most 4096; 0 where there is
 * none. */
static uint64_t
find_last (struct rp_file *file, uint64_t size, uint8_t *out)
{
  static const uint8_t zeros[RP_SECTOR_BYTES];
  uint64_t at = size / RP_SECTOR_BYTES;

  for (int i = 0; i < 4096 && at > 1; i++)
    if (read_at (file, --at * RP_SECTOR_BYTES, out, RP_SECTOR_BYTES)
        && memcmp (out, zeros, sizeof zeros) != 0)
      return at;
  return 0;
}

/* The directory's sector, 0 where header and footer do not tell. */
static uint64_t
find_directory (struct rp_file *file, const uint8_t *header)
{
  const uint64_t directory = rp_load64 (header + 56);
  uint8_t footer[RP_SECTOR_BYTES], marker[16];
  uint64_t size, at;

  if (rp_file_size (file, &size, NULL) != RP_OK)
    return 0;
  at = find_last (file, size, footer);
  if (at < 2 || memcmp (footer, "KDMV", 4) != 0
      || !read_at (file, (at - 1) * RP_SECTOR_BYTES, marker, sizeof marker)
      || rp_load32 (marker + 8) != 0 || rp_load32 (marker + 12) != 3)
    return directory == UINT64_MAX ? 0 : directory;
  /* with a place in the header, a footer counts at the very end alone */
  if (directory != UINT64_MAX && at != size / RP_SECTOR_BYTES - 2)
    return directory;
  if (memcmp (header, footer, 48) != 0 || memcmp (header + 77, footer + 77, 2)
      || (directory != UINT64_MAX && memcmp (header + 56, footer + 56, 8)))
    return 0;
  return rp_load64 (footer + 56) == UINT64_MAX ? 0 : rp_load64 (footer + 56);
}

/* One sector of the grain behind a marker (with flags' bit 17, else behind its
 * size alone), of which `needed` bytes have to be there. */
static enum fuzz_naive
inflate (struct rp_file *file, uint64_t position, bool marked, uint64_t lba,
         uint64_t grain_bytes, uint64_t needed, uint64_t within, uint8_t *out)
{
  const size_t head = marked ? 12 : 4;
  struct libdeflate_decompressor *inflater;
  enum libdeflate_result result;
  uint8_t marker[12], *data, *grain;
  size_t length = 0;
  uint32_t size;
  bool good;

  if (!read_at (file, position, marker, head))
    return FUZZ_NAIVE_ERROR;
  size = rp_load32 (marker + head - 4);
  if ((marked && rp_load64 (marker) != lba) || size == 0 || size > 1u << 23)
    return FUZZ_NAIVE_ERROR;
  inflater = libdeflate_alloc_decompressor ();
  data = malloc (size);
  grain = malloc (grain_bytes);
  FUZZ_CHECK (inflater && data && grain);
  good = read_at (file, position + head, data, size);
  if (good) {
    result = libdeflate_zlib_decompress (inflater, data, size, grain,
                                         grain_bytes, &length);
    good = result == LIBDEFLATE_SUCCESS && length >= needed;
  }
  if (good)
    memcpy (out, grain + within, RP_SECTOR_BYTES);
  free (grain);
  free (data);
  libdeflate_free_decompressor (inflater);
  return good ? FUZZ_NAIVE_DATA : FUZZ_NAIVE_ERROR;
}

static enum fuzz_naive
look_stream (const struct rp_extent_spec *spec, uint64_t sector, uint8_t *out)
{
  struct rp_file *file = spec->file;
  uint64_t grain, per_table, directory, start, left, table;
  uint8_t header[RP_SECTOR_BYTES], field[4];
  uint32_t entry, flags;

  if (!read_at (file, 0, header, sizeof header))
    return FUZZ_NAIVE_ERROR;
  flags = rp_load32 (header + 8);
  grain = rp_load64 (header + 20);
  per_table = rp_load32 (header + 44);
  directory = find_directory (file, header);
  start = sector / grain * grain;
  left = (spec->sectors - start < grain ? spec->sectors - start : grain);
  if (directory == 0
      || !read_at (file, directory * RP_SECTOR_BYTES
                         + 4 * (sector / grain / per_table), field, 4))
    return FUZZ_NAIVE_ERROR;
  table = rp_load32 (field);
  if (table == 0)
    return FUZZ_NAIVE_ABSENT;
  if (!read_at (file, table * RP_SECTOR_BYTES
                      + 4 * (sector / grain % per_table), field, 4))
    return FUZZ_NAIVE_ERROR;
  entry = rp_load32 (field);
  if (entry == 0)
    return FUZZ_NAIVE_ABSENT;
  if (entry == 1 && flags & 4)
    return FUZZ_NAIVE_ZERO;
  return inflate (file, (uint64_t) entry * RP_SECTOR_BYTES, flags & 1u << 17,
                  start, grain * RP_SECTOR_BYTES, left * RP_SECTOR_BYTES,
                  (sector - start) * RP_SECTOR_BYTES, out);
}

static enum fuzz_naive
look_sesparse (struct rp_file *file, uint64_t sector, uint8_t *out)
{
  const uint64_t grain = sector / 8;
  uint8_t header[512], field[8];
  uint64_t entry, index;

  if (!read_at (file, 0, header, sizeof header)
      || !read_at (file, rp_load64 (header + 128) * RP_SECTOR_BYTES
                         + 8 * (grain / 4096), field, 8))
    return FUZZ_NAIVE_ERROR;
  entry = rp_load64 (field);
  if (entry == 0)
    return FUZZ_NAIVE_ABSENT;
  if (entry >> 32 != 0x10000000
      || !read_at (file, (rp_load64 (header + 144) + 64 * (entry & UINT32_MAX))
                         * RP_SECTOR_BYTES + 8 * (grain % 4096), field, 8))
    return FUZZ_NAIVE_ERROR;
  entry = rp_load64 (field);
  index = (entry >> 48 & 0xfff) | (entry & UINT64_C (0xffffffffffff)) << 12;
  switch (entry >> 60) {
  case 0:
    return entry == 0 ? FUZZ_NAIVE_ABSENT : FUZZ_NAIVE_ERROR;
  case 1:
  case 2:
    return FUZZ_NAIVE_ZERO;
  case 3:
    if (index > UINT64_C (1) << 50)
      return FUZZ_NAIVE_ERROR;
    return read_data (file, rp_load64 (header + 192) + index * 8 + sector % 8,
                      out);
  }
  return FUZZ_NAIVE_ERROR;
}

enum fuzz_naive
fuzz_naive_sector (const struct rp_extent_spec *spec, uint64_t sector,
                   uint8_t *bytes)
{
  switch (spec->kind) {
  case RP_EXTENT_FLAT:
    return read_data (spec->file, spec->offset_sectors + sector, bytes);
  case RP_EXTENT_SPARSE:
    return look_hosted (spec->file, sector, bytes);
  case RP_EXTENT_COWD:
    return look_cowd (spec->file, sector, bytes);
  case RP_EXTENT_SESPARSE:
    return look_sesparse (spec->file, sector, bytes);
  case RP_EXTENT_STREAM:
    return look_stream (spec, sector, bytes);
  default:
    return FUZZ_NAIVE_ERROR;
  }
}

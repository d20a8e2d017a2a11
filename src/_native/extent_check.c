/* SPDX-License-Identifier: Apache-2.0 */
/* Checking the tables of sparse extents against each other and the file. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chain.h"

/* Which parts of the file something points at.  Metadata in front (tables of
 * 4 sectors at any sector) is kept by the sector, grains by what they are all
 * aligned to. */
struct check {
  struct rp_sparse *sparse;
  struct rp_extent *extent;
  struct rp_sparse_layout layout;    /* as the file has it now */
  uint32_t          index;       /* of the extent */
  void            (*each) (void *context, const struct rp_finding *);
  void             *context;
  uint32_t         *table, *other;   /* one table each */
  uint64_t          overhead;    /* sectors, at most those of the file */
  uint64_t          unit;        /* sectors */
  uint64_t          used_end;    /* sector behind all that is pointed at */
  uint8_t          *head;        /* one bit a sector of [0, overhead) */
  uint8_t          *body;        /* one bit a unit of the file */
};

static void
report (struct check *check, const char *kind, uint64_t position,
        uint64_t guest_offset)
{
  const struct rp_finding finding = {
    .kind = kind, .extent = check->index, .position = position,
    .guest_offset_bytes = guest_offset,
  };

  check->each (check->context, &finding);
}

/* Those that an entry can point at. */
static uint64_t
file_sectors (const struct check *check)
{
  const uint64_t sectors = rp_divide_up (check->layout.file_bytes,
                                         RP_SECTOR_BYTES);

  return sectors < RP_SPARSE_SECTORS_MAX ? sectors : RP_SPARSE_SECTORS_MAX;
}

/* Set bits [first, stop); false when one of them was set. */
static bool
set_bits (uint8_t *bits, uint64_t first, uint64_t stop)
{
  bool fresh = true;

  for (; first < stop; first++) {
    if (bits[first / 8] & (1u << (first % 8)))
      fresh = false;
    bits[first / 8] |= (uint8_t) (1u << (first % 8));
  }
  return fresh;
}

/* Note that something lies at [sector, sector + sectors), inside the file. */
static bool
mark (struct check *check, uint64_t sector, uint64_t sectors)
{
  const uint64_t limit = file_sectors (check);
  uint64_t stop = sector + sectors;
  bool fresh = true;

  if (check->used_end < stop)
    check->used_end = stop;
  if (stop > limit)
    stop = limit;                /* out of reach of entries: no overlap */
  if (sector >= stop)
    return true;
  if (sector < check->overhead)
    fresh = set_bits (check->head, sector,
                      stop < check->overhead ? stop : check->overhead);
  if (stop > check->overhead) {
    const uint64_t first = sector > check->overhead ? sector : check->overhead;
    fresh &= set_bits (check->body, first / check->unit,
                       rp_divide_up (stop, check->unit));
  }
  return fresh;
}

static uint64_t
table_guest_offset (const struct check *check, uint32_t index)
{
  return check->extent->start_bytes
         + ((uint64_t) index << (check->layout.table_shift
                                 + check->layout.grain_shift));
}

static bool
table_is_inside (const struct check *check, uint64_t sector)
{
  return rp_inside (sector, check->layout.table_sectors,
                    check->layout.file_bytes / RP_SECTOR_BYTES);
}

/* The lowest bit of any position is what all are aligned to. */
static int
find_unit (struct check *check, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const size_t count = (size_t) 1 << layout->table_shift;
  uint64_t seen = layout->info.grain_sectors;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint32_t sector = atomic_load (&check->sparse->directory[i]);

    if (sector == 0 || !table_is_inside (check, sector))
      continue;
    if (sector >= check->overhead)
      seen |= sector | layout->table_sectors;
    status = rp_sparse_read_table (check->sparse, sector, check->table, fault);
    for (size_t k = 0; status == RP_OK && k < count; k++)
      if (check->table[k] >= check->overhead)
        seen |= check->table[k];
  }
  check->unit = seen & -seen;
  return status;
}

static void
check_table_place (struct check *check, uint32_t index, uint64_t sector)
{
  if (!table_is_inside (check, sector))
    report (check, "table", sector * RP_SECTOR_BYTES,
            table_guest_offset (check, index));
  else if (!mark (check, sector, check->layout.table_sectors))
    report (check, "overlap", sector * RP_SECTOR_BYTES,
            table_guest_offset (check, index));
}

/* The redundant directory, read here: an image that is open for reading has
 * not loaded it. */
static int
check_redundant (struct check *check, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const size_t table_bytes = sizeof (uint32_t) << layout->table_shift;
  const uint64_t at = layout->info.redundant_directory_sector
                      * RP_SECTOR_BYTES;
  uint8_t field[4];
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint32_t primary = atomic_load (&check->sparse->directory[i]);
    uint32_t redundant;

    status = rp_file_pread_all (check->sparse->file, field, sizeof field,
                                at + 4 * (uint64_t) i, fault);
    if (status != RP_OK)
      break;
    redundant = rp_load32 (field);
    if (redundant)
      check_table_place (check, i, redundant);
    if (!redundant != !primary)
      report (check, "redundant", at + 4 * (uint64_t) i,
              table_guest_offset (check, i));
    if (!redundant || !primary || !table_is_inside (check, primary)
        || !table_is_inside (check, redundant))
      continue;
    status = rp_sparse_read_table (check->sparse, primary, check->table,
                                   fault);
    if (status == RP_OK)
      status = rp_sparse_read_table (check->sparse, redundant, check->other,
                                     fault);
    if (status == RP_OK && memcmp (check->table, check->other, table_bytes))
      report (check, "redundant", (uint64_t) redundant * RP_SECTOR_BYTES,
              table_guest_offset (check, i));
  }
  return status;
}

static void
check_entry (struct check *check, uint64_t grain, uint32_t entry)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const uint64_t start = grain << layout->grain_shift;
  const uint64_t capacity = layout->info.capacity_sectors * RP_SECTOR_BYTES;
  const uint64_t position = (uint64_t) entry * RP_SECTOR_BYTES;
  const uint64_t guest = check->extent->start_bytes + start;
  uint64_t needed = rp_sparse_grain_bytes (check->sparse), sectors;

  if (entry == 0 || (entry == 1 && layout->zero_grains) || start >= capacity)
    return;
  if (needed > capacity - start)
    needed = capacity - start;
  if (!rp_inside (position, needed, layout->file_bytes)) {
    report (check, "outside", position, guest);
    return;
  }
  sectors = file_sectors (check) - entry;
  if (sectors > layout->info.grain_sectors)
    sectors = layout->info.grain_sectors;
  /* never short: mark both, so that a second finding is seen, too */
  if (!mark (check, entry, sectors) || entry < check->overhead)
    report (check, "overlap", position, guest);
}

static int
check_entries (struct check *check, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const size_t count = (size_t) 1 << layout->table_shift;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < layout->directory_count; i++) {
    const uint32_t sector = atomic_load (&check->sparse->directory[i]);

    if (sector == 0 || !table_is_inside (check, sector))
      continue;
    status = rp_sparse_read_table (check->sparse, sector, check->table, fault);
    for (size_t k = 0; status == RP_OK && k < count; k++)
      check_entry (check, ((uint64_t) i << layout->table_shift) + k,
                   check->table[k]);
  }
  return status;
}

static bool
is_marked (const struct check *check, uint64_t unit)
{
  return check->body[unit / 8] & (1u << (unit % 8));
}

/* The next unit from `unit` on that is marked or not, or stop. */
static uint64_t
find_unit_marked (const struct check *check, uint64_t unit, uint64_t stop,
                  bool marked)
{
  const uint8_t skip = marked ? 0 : 0xff;    /* bytes without one */

  while (unit < stop && is_marked (check, unit) != marked)
    if (unit % 8 == 0 && check->body[unit / 8] == skip)
      unit += 8;
    else
      unit++;
  return unit < stop ? unit : stop;
}

/* One finding for each run; what is shorter than a grain is alignment. */
static void
report_leaks (struct check *check)
{
  const struct rp_sparse_layout *layout = &check->layout;
  uint64_t stop = file_sectors (check);
  uint64_t unit = rp_divide_up (check->overhead, check->unit), first;

  if (layout->kind == RP_EXTENT_COWD && stop > layout->info.free_sector)
    stop = layout->info.free_sector;     /* ESX grows the file ahead */
  stop /= check->unit;
  while (unit < stop) {
    first = unit;
    unit = find_unit_marked (check, unit, stop, true);
    if ((unit - first) * check->unit >= layout->info.grain_sectors)
      report (check, "leak", first * check->unit * RP_SECTOR_BYTES,
              UINT64_MAX);
    unit = find_unit_marked (check, unit, stop, false);
  }
}

static void
mark_fixed (struct check *check)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const struct rp_sparse_info *info = &layout->info;
  const uint64_t sectors = rp_sparse_directory_sectors (layout);

  mark (check, 0, layout->kind == RP_EXTENT_COWD ? RP_COWD_HEADER_SECTORS : 1);
  if (info->descriptor_offset_sectors
      && !mark (check, info->descriptor_offset_sectors,
                info->descriptor_sectors))
    report (check, "overlap",
            info->descriptor_offset_sectors * RP_SECTOR_BYTES, UINT64_MAX);
  if (layout->redundant
      && !mark (check, info->redundant_directory_sector, sectors))
    report (check, "overlap",
            info->redundant_directory_sector * RP_SECTOR_BYTES, UINT64_MAX);
  if (!mark (check, info->directory_sector, sectors))
    report (check, "overlap", info->directory_sector * RP_SECTOR_BYTES,
            UINT64_MAX);
}

static int
run_check (struct check *check, struct rp_fault *fault)
{
  const struct rp_sparse_layout *layout = &check->layout;
  const bool cowd = layout->kind == RP_EXTENT_COWD;
  int status;

  status = find_unit (check, fault);
  if (status != RP_OK)
    return status;
  check->head = calloc (1, check->overhead / 8 + 1);
  check->body = calloc (1, file_sectors (check) / check->unit / 8 + 2);
  if (!check->head || !check->body)
    return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s",
                    check->sparse->file->name);
  mark_fixed (check);
  for (uint32_t i = 0; i < layout->directory_count; i++) {
    const uint32_t sector = atomic_load (&check->sparse->directory[i]);
    if (sector)
      check_table_place (check, i, sector);
  }
  if (layout->redundant)
    status = check_redundant (check, fault);
  if (status == RP_OK)
    status = check_entries (check, fault);
  if (status != RP_OK)
    return status;
  if (layout->info.unclean_shutdown)
    report (check, "unclean",
            cowd ? RP_COWD_UNCLEAN_OFFSET : RP_KDMV_UNCLEAN_OFFSET,
            UINT64_MAX);
  if (cowd && layout->info.free_sector < check->used_end)
    report (check, "freesector", RP_COWD_FREE_OFFSET, UINT64_MAX);
  report_leaks (check);
  return RP_OK;
}

static int
check_extent (struct check *check, struct rp_fault *fault)
{
  uint64_t sectors;
  int status;

  status = rp_sparse_read_layout (check->sparse->file, &check->layout, fault);
  if (status != RP_OK)
    return status;
  sectors = file_sectors (check);
  check->overhead = check->layout.info.overhead_sectors;
  if (check->overhead > sectors)
    check->overhead = sectors;
  check->table = malloc (sizeof (uint32_t) << check->layout.table_shift);
  check->other = malloc (sizeof (uint32_t) << check->layout.table_shift);
  if (!check->table || !check->other)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "checking %s",
                      check->sparse->file->name);
  else
    status = run_check (check, fault);
  free (check->body);
  free (check->head);
  free (check->other);
  free (check->table);
  return status;
}

int
rp_image_check (struct rp_image *image,
                void (*each) (void *context, const struct rp_finding *),
                void *context, struct rp_fault *fault)
{
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < image->extent_count; i++) {
    struct check check = {
      .sparse = image->extents[i].sparse, .extent = &image->extents[i],
      .index = i, .each = each, .context = context,
    };

    if (check.sparse)
      status = check_extent (&check, fault);
  }
  return status;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Checking a seSparse extent: its tables against each other and the file, and
 * bitmap, backmap and free table against the tables.
 *
 * What points at a grain is kept as one bit, in pieces that are made when they
 * are needed, so memory goes with what is allocated and not with the disk.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sesparse_inside.h"

#define PIECE_BYTES   4096u
#define PIECE_GRAINS  (PIECE_BYTES * 8u)
#define PAGE_ENTRIES  512u       /* of the backmap, read at once */
#define NOWHERE       UINT64_MAX

struct se_check {
  struct rp_file     *file;
  struct rp_se_layout layout;
  uint32_t            extent;
  uint64_t            start_bytes;
  rp_finding_each    *each;
  void               *context;
  uint64_t   grains;             /* of the file that an entry can name */
  uint64_t   pieces;
  uint8_t  **used;               /* an entry points there */
  uint8_t  **named;              /* an unmapped entry still names it */
  uint32_t  *directory;
  uint8_t   *table;
  uint8_t   *page;               /* of the backmap */
  uint64_t   page_first;         /* grain; NOWHERE before the first */
  uint64_t   bad_grain, bad_guest;       /* the last wrong backmap entry */
};

static void
report (struct se_check *check, const char *kind, uint64_t position,
        uint64_t guest)
{
  const struct rp_finding finding = {
    .kind = kind, .extent = check->extent, .position = position,
    .guest_offset_bytes = guest,
  };

  check->each (check->context, &finding);
}

static int
no_memory (struct se_check *check, struct rp_fault *fault)
{
  return rp_fail (fault, RP_NO_MEMORY, 0, "checking %s", check->file->name);
}

static uint64_t
region_offset (const struct se_check *check, int region)
{
  return check->layout.regions[region].sector * RP_SECTOR_BYTES;
}

static uint64_t
guest_offset (const struct se_check *check, uint64_t grain)
{
  return check->start_bytes + (grain << RP_SE_GRAIN_SHIFT);
}

/* *fresh_out: the bit was not set before. */
static int
set_bit (struct se_check *check, uint8_t **pieces, uint64_t grain,
         bool *fresh_out, struct rp_fault *fault)
{
  uint8_t **piece = &pieces[grain / PIECE_GRAINS];
  const uint32_t bit = grain % PIECE_GRAINS;

  if (!*piece)
    *piece = calloc (1, PIECE_BYTES);
  if (!*piece)
    return no_memory (check, fault);
  *fresh_out = !((*piece)[bit / 8] & (1u << (bit % 8)));
  (*piece)[bit / 8] |= (uint8_t) (1u << (bit % 8));
  return RP_OK;
}

/* ---- directory ---- */

struct owner {
  uint32_t table, number;
};

static int
compare_owners (const void *a, const void *b)
{
  const struct owner *left = a, *right = b;

  if (left->table != right->table)
    return left->table < right->table ? -1 : 1;
  return (left->number > right->number) - (left->number < right->number);
}

/* owners are sorted by table. */
static void
check_owners (struct se_check *check, const struct owner *owners,
              uint64_t count)
{
  const uint64_t room = check->layout.regions[RP_SE_TABLES].sectors
                        / RP_SE_TABLE_SECTORS;
  const uint64_t free_table = check->layout.free_table;
  const uint64_t most = free_table <= room ? free_table : 0;
  uint64_t next = 0;             /* the lowest table that may be owned yet */

  for (uint64_t i = 0; i < count; i++) {
    const uint64_t table = owners[i].table;

    if (i > 0 && owners[i - 1].table == table)
      report (check, "overlap", rp_se_table_offset (&check->layout, table),
              guest_offset (check, (uint64_t) owners[i].number
                                   << RP_SE_TABLE_SHIFT));
    if (table > next && next < most)
      report (check, "leak", rp_se_table_offset (&check->layout, next),
              NOWHERE);
    next = table + 1;
  }
  if (next < most)
    report (check, "leak", rp_se_table_offset (&check->layout, next), NOWHERE);
  if (free_table < next || free_table > room)
    report (check, "freetable", region_offset (check, RP_SE_VOLATILE) + 8,
            NOWHERE);
}

static int
check_directory (struct se_check *check, struct rp_fault *fault)
{
  const uint32_t count = check->layout.directory_count;
  struct owner *owners = malloc (count * sizeof *owners);
  uint64_t used = 0;
  int status;

  if (!owners)
    return no_memory (check, fault);
  status = rp_se_read_directory (check->file, &check->layout, 0, count,
                                 check->directory, fault);
  for (uint32_t i = 0; status == RP_OK && i < count; i++)
    if (check->directory[i] == RP_SE_BAD_TABLE)
      report (check, "table",
              region_offset (check, RP_SE_DIRECTORY) + 8 * (uint64_t) i,
              guest_offset (check, (uint64_t) i << RP_SE_TABLE_SHIFT));
    else if (check->directory[i] != 0)
      owners[used++] = (struct owner) { check->directory[i] - 1, i };
  if (status == RP_OK) {
    qsort (owners, used, sizeof *owners, compare_owners);
    check_owners (check, owners, used);
  }
  free (owners);
  return status;
}

/* ---- entries ---- */

/* The backmap names the disk's grain for each grain of the file.  One finding
 * for each row of wrong ones. */
static int
check_backmap (struct se_check *check, uint64_t grain, uint64_t index,
               struct rp_fault *fault)
{
  const struct rp_se_region *region = &check->layout.regions[RP_SE_BACKMAP];
  const uint64_t first = index / PAGE_ENTRIES * PAGE_ENTRIES;
  int status;

  if (index >= region->sectors * (RP_SECTOR_BYTES / 8))
    return RP_OK;                /* told once, by check_sizes */
  if (first != check->page_first) {
    const uint64_t left = region->sectors * RP_SECTOR_BYTES - 8 * first;

    status = rp_file_pread_all (check->file, check->page,
                                left < PAGE_ENTRIES * 8 ? left
                                : PAGE_ENTRIES * 8,
                                region->sector * RP_SECTOR_BYTES + 8 * first,
                                fault);
    if (status != RP_OK)
      return status;
    check->page_first = first;
  }
  if (rp_load64 (check->page + 8 * (index - first))
      == (UINT64_C (1) << 60 | rp_se_rotate (grain)))
    return RP_OK;
  if (index != check->bad_grain + 1 || grain != check->bad_guest + 1)
    report (check, "backmap", region->sector * RP_SECTOR_BYTES + 8 * index,
            guest_offset (check, grain));
  check->bad_grain = index;
  check->bad_guest = grain;
  return RP_OK;
}

static int
check_entry (struct se_check *check, uint64_t grain, uint64_t entry,
             uint64_t position, struct rp_fault *fault)
{
  const uint64_t index = rp_se_index (entry);
  const uint64_t guest = guest_offset (check, grain);
  bool fresh;
  int status;

  switch (entry >> 60) {
  case 0:
    if (entry)
      report (check, "table", position, guest);
    return RP_OK;
  case 1:
    return index < check->grains ? set_bit (check, check->named, index, &fresh,
                                            fault) : RP_OK;
  case 2:
    return RP_OK;
  case 3:
    break;
  default:
    report (check, "table", position, guest);
    return RP_OK;
  }
  if (index >= check->grains) {
    report (check, "outside", position, guest);
    return RP_OK;
  }
  status = set_bit (check, check->used, index, &fresh, fault);
  if (status != RP_OK)
    return status;
  if (!fresh) {
    report (check, "overlap", region_offset (check, RP_SE_GRAINS)
            + index * RP_SE_GRAIN_BYTES, guest);
    return RP_OK;
  }
  return check_backmap (check, grain, index, fault);
}

static int
check_table (struct se_check *check, uint32_t number, struct rp_fault *fault)
{
  const uint64_t at = rp_se_table_offset (&check->layout,
                                          check->directory[number] - 1);
  const uint64_t first = (uint64_t) number << RP_SE_TABLE_SHIFT;
  const uint64_t left = rp_divide_up (check->layout.capacity_sectors,
                                      RP_SE_GRAIN_SECTORS) - first;
  const uint64_t count = left < RP_SE_TABLE_ENTRIES ? left
                         : RP_SE_TABLE_ENTRIES;
  uint64_t data;
  int status;

  status = rp_file_seek (check->file, at, true, &data, fault);
  if (status != RP_OK || data >= at + RP_SE_TABLE_BYTES)
    return status;
  status = rp_file_pread_all (check->file, check->table, RP_SE_TABLE_BYTES, at,
                              fault);
  for (uint64_t i = 0; status == RP_OK && i < count; i++) {
    const uint64_t entry = rp_load64 (check->table + 8 * i);

    if (entry)
      status = check_entry (check, first + i, entry, at + 8 * i, fault);
  }
  return status;
}

/* ---- bitmap ---- */

static uint8_t
reverse (uint8_t byte)
{
  byte = (uint8_t) (byte >> 4 | byte << 4);
  byte = (uint8_t) ((byte & 0xcc) >> 2 | (byte & 0x33) << 2);
  return (uint8_t) ((byte & 0xaa) >> 1 | (byte & 0x55) << 1);
}

/* One walk over the bitmap: bits that differ are counted, once for each order
 * of the bits in a byte, or reported. */
struct walk {
  bool     report, reversed;
  uint64_t low_first, high_first;        /* wrong bits, counted */
  uint64_t last_leak, last_unset;        /* grains reported last */
};

static void
report_bits (struct se_check *check, struct walk *walk, uint64_t grain,
             uint8_t wrong, uint8_t set)
{
  for (uint32_t i = 0; i < 8; i++) {
    const uint64_t at = grain + i;

    if (!(wrong & (1u << i)))
      continue;
    if (set & (1u << i)) {       /* one finding for each row */
      if (at != walk->last_leak + 1)
        report (check, "leak", region_offset (check, RP_SE_GRAINS)
                + at * RP_SE_GRAIN_BYTES, NOWHERE);
      walk->last_leak = at;
    } else {
      if (at != walk->last_unset + 1)
        report (check, "bitmap", region_offset (check, RP_SE_BITMAP) + at / 8,
                NOWHERE);
      walk->last_unset = at;
    }
  }
}

static void
compare_piece (struct se_check *check, struct walk *walk, uint64_t piece,
               const uint8_t *bits, size_t length)
{
  const uint8_t *used = check->used[piece], *named = check->named[piece];

  for (size_t i = 0; i < length; i++) {
    const uint8_t wanted = used ? used[i] : 0;
    const uint8_t counts = named ? (uint8_t) (~named[i] | wanted) : 0xff;
    const uint8_t back = reverse (bits[i]);
    const uint8_t set = walk->reversed ? back : bits[i];

    if (bits[i] == wanted && back == wanted)
      continue;
    if (!walk->report) {
      walk->low_first += (uint32_t) __builtin_popcount ((bits[i] ^ wanted)
                                                        & counts);
      walk->high_first += (uint32_t) __builtin_popcount ((back ^ wanted)
                                                         & counts);
    } else if ((set ^ wanted) & counts) {
      report_bits (check, walk, piece * PIECE_GRAINS + 8 * i,
                   (set ^ wanted) & counts, set);
    }
  }
}

static int
walk_bitmap (struct se_check *check, struct walk *walk, struct rp_fault *fault)
{
  const struct rp_se_region *region = &check->layout.regions[RP_SE_BITMAP];
  const uint64_t room = region->sectors * RP_SECTOR_BYTES;
  const uint64_t bytes = rp_divide_up (check->grains, 8);
  uint8_t bits[PIECE_BYTES];
  int status = RP_OK;

  for (uint64_t piece = 0; status == RP_OK && piece < check->pieces; piece++) {
    const uint64_t first = piece * PIECE_BYTES;
    const uint64_t at = region->sector * RP_SECTOR_BYTES + first;
    uint64_t length = bytes - first, data;

    if (first >= room)
      break;
    if (length > PIECE_BYTES)
      length = PIECE_BYTES;
    if (length > room - first)
      length = room - first;
    status = rp_file_seek (check->file, at, true, &data, fault);
    if (status != RP_OK)
      break;
    memset (bits, 0, sizeof bits);
    if (data < at + length)
      status = rp_file_pread_all (check->file, bits, length, at, fault);
    else if (!check->used[piece] && !check->named[piece])
      continue;
    if (status == RP_OK)
      compare_piece (check, walk, piece, bits, length);
  }
  return status;
}

/* Which bit of a byte comes first is not known: the order that fits better is
 * taken. */
static int
check_bitmap (struct se_check *check, struct rp_fault *fault)
{
  struct walk walk = { .last_leak = NOWHERE - 1, .last_unset = NOWHERE - 1 };
  int status;

  status = walk_bitmap (check, &walk, fault);
  if (status != RP_OK || (walk.low_first == 0 || walk.high_first == 0))
    return status;
  walk.report = true;
  walk.reversed = walk.high_first < walk.low_first;
  return walk_bitmap (check, &walk, fault);
}

/* ---- all ---- */

static void
check_sizes (struct se_check *check)
{
  const uint64_t grains = check->layout.regions[RP_SE_GRAINS].sectors
                          / RP_SE_GRAIN_SECTORS;

  if (check->layout.regions[RP_SE_BITMAP].sectors * RP_SECTOR_BYTES
      < rp_divide_up (grains, 8))
    report (check, "bitmap", RP_SE_REGIONS_OFFSET + 16 * RP_SE_BITMAP,
            NOWHERE);
  if (check->layout.regions[RP_SE_BACKMAP].sectors * (RP_SECTOR_BYTES / 8)
      < grains)
    report (check, "backmap", RP_SE_REGIONS_OFFSET + 16 * RP_SE_BACKMAP,
            NOWHERE);
}

static int
run_check (struct se_check *check, struct rp_fault *fault)
{
  int status;

  check_sizes (check);
  status = check_directory (check, fault);
  for (uint32_t i = 0; status == RP_OK && i < check->layout.directory_count;
       i++)
    if (check->directory[i] != 0 && check->directory[i] != RP_SE_BAD_TABLE)
      status = check_table (check, i, fault);
  return status == RP_OK ? check_bitmap (check, fault) : status;
}

/* Grains that lie in the region and begin in the file. */
static uint64_t
count_grains (const struct rp_se_layout *layout)
{
  const struct rp_se_region *region = &layout->regions[RP_SE_GRAINS];
  const uint64_t start = region->sector * RP_SECTOR_BYTES;
  const uint64_t there = layout->file_bytes < start ? 0
    : rp_divide_up (layout->file_bytes - start, RP_SE_GRAIN_BYTES);
  const uint64_t room = region->sectors / RP_SE_GRAIN_SECTORS;

  return there < room ? there : room;
}

int
rp_sesparse_check (struct rp_sesparse *sesparse, uint32_t extent,
                   uint64_t start_bytes, rp_finding_each *each, void *context,
                   struct rp_fault *fault)
{
  struct se_check check = {
    .file = sesparse->file, .extent = extent, .start_bytes = start_bytes,
    .each = each, .context = context, .page_first = NOWHERE,
    .bad_grain = NOWHERE - 1, .bad_guest = NOWHERE - 1,
  };
  int status;

  status = rp_se_read_layout (check.file, &check.layout, fault);
  if (status != RP_OK)
    return status;
  check.grains = count_grains (&check.layout);
  check.pieces = rp_divide_up (check.grains, PIECE_GRAINS);
  check.used = calloc (check.pieces + 1, sizeof *check.used);
  check.named = calloc (check.pieces + 1, sizeof *check.named);
  check.directory = malloc (check.layout.directory_count
                            * sizeof *check.directory);
  check.table = malloc (RP_SE_TABLE_BYTES);
  check.page = malloc (PAGE_ENTRIES * 8);
  if (!check.used || !check.named || !check.directory || !check.table
      || !check.page)
    status = no_memory (&check, fault);
  else
    status = run_check (&check, fault);
  for (uint64_t i = 0; i < check.pieces; i++) {
    if (check.used)
      free (check.used[i]);
    if (check.named)
      free (check.named[i]);
  }
  free (check.page);
  free (check.table);
  free (check.directory);
  free (check.named);
  free (check.used);
  return status;
}

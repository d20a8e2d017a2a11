/* SPDX-License-Identifier: Apache-2.0 */
/* seSparse: what is exported reads back, every lie of a file is told, and
 * nothing that a file says makes reading or checking it go wrong.
 * Works in the current directory.
 */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "chain.h"
#include "sesparse_inside.h"
#include "sesparse_maker.h"

#define SECTORS  (5u * 32768u + 3u)      /* 5 tables, and less than a grain */

static uint64_t checks;

struct place {
  struct rp_io  *io;
  struct rp_dir *dir;
};

/* Table 0 fragmented, 1 empty, 2 in one run, 3 a few, 4 all but a few. */
static bool
pattern (uint64_t grain)
{
  switch (grain >> 12) {
  case 0: return grain % 2 == 1;
  case 1: return false;
  case 2: return grain % 4096 < 3000;
  case 3: return grain % 4096 == 7 || grain % 4096 == 4095;
  case 4: return grain % 1000 != 0;
  default: return true;          /* the short last grain */
  }
}

static struct rp_file *
make (struct place *place)
{
  struct rp_file *file;
  struct rp_fault fault;

  OK (rp_file_open (place->dir, "extent", RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  OK (se_make (file, SECTORS, pattern, &fault));
  return file;
}

struct opened {
  struct rp_image *image;
  struct rp_disk  *disk;
};

static int
open_one (struct rp_file *file, uint64_t sectors, bool writable,
          struct opened *out, struct rp_fault *fault)
{
  const struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SESPARSE, .sectors = sectors, .file = file,
  };
  int status = rp_image_open (&spec, 1, writable, &out->image, fault);

  if (status == RP_OK)
    status = rp_chain_create (&out->image, 1, &out->disk, fault);
  return status;
}

static void
close_one (struct opened *opened)
{
  rp_disk_destroy (opened->disk);
  rp_image_destroy (opened->image);
}

struct found {
  uint32_t count;
  struct rp_finding findings[64];
};

static void
collect (void *context, const struct rp_finding *finding)
{
  struct found *found = context;

  if (found->count < 64)
    found->findings[found->count] = *finding;
  found->count++;
}

static void
check_file (struct rp_file *file, struct found *found)
{
  struct rp_sesparse *sesparse;
  struct rp_fault fault;

  found->count = 0;
  OK (rp_sesparse_open (file, SECTORS, &sesparse, &fault));
  OK (rp_sesparse_check (sesparse, 7, 0, collect, found, &fault));
  rp_sesparse_close (sesparse);
}

/* One finding of that kind there, and no other. */
static void
expect_one (struct rp_file *file, const char *kind, uint64_t position,
            uint64_t guest)
{
  struct found found;

  checks++;
  check_file (file, &found);
  for (uint32_t i = 0; i < found.count; i++)
    if (found.count != 1 || strcmp (found.findings[i].kind, kind) != 0)
      fprintf (stderr, "wanted %s: %s at %llu\n", kind, found.findings[i].kind,
               (unsigned long long) found.findings[i].position);
  CHECK (found.count == 1);
  CHECK (strcmp (found.findings[0].kind, kind) == 0);
  CHECK (found.findings[0].extent == 7);
  CHECK (found.findings[0].position == position);
  CHECK (found.findings[0].guest_offset_bytes == guest);
}

/* ---- what is made ---- */

static void
verify (struct rp_disk *disk)
{
  static uint8_t found[256 * SE_GRAIN];
  uint8_t wanted[SE_GRAIN];
  struct rp_fault fault;

  CHECK (disk->size_bytes == SECTORS * 512u);
  for (uint64_t at = 0; at < disk->size_bytes; at += sizeof found) {
    const uint64_t left = disk->size_bytes - at;
    const uint64_t length = left < sizeof found ? left : sizeof found;

    OK (rp_disk_pread (disk, found, length, at, &fault));
    for (uint64_t done = 0; done < length; done += SE_GRAIN) {
      const uint64_t grain = (at + done) / SE_GRAIN;
      const uint64_t rest = length - done;

      memset (wanted, 0, sizeof wanted);
      if (pattern (grain))
        se_fill (wanted, grain);
      CHECK (memcmp (found + done, wanted,
                     rest < SE_GRAIN ? rest : SE_GRAIN) == 0);
    }
  }
}

static void
verify_map (struct rp_disk *disk)
{
  struct rp_fault fault;
  struct rp_run run;
  uint64_t at = 0;

  for (; at < disk->size_bytes; at += run.length_bytes) {
    const uint64_t first = at / SE_GRAIN;

    OK (rp_disk_run (disk, at, disk->size_bytes - at, &run, &fault));
    CHECK (at % SE_GRAIN == 0);
    CHECK ((run.kind == RP_RUN_DATA) == pattern (first));
    for (uint64_t i = 0; i < run.length_bytes; i += SE_GRAIN)
      CHECK (pattern (first + i / SE_GRAIN) == pattern (first));
    if (at + run.length_bytes < disk->size_bytes)
      CHECK (pattern (first + run.length_bytes / SE_GRAIN) != pattern (first));
  }
}

static void
test_export (struct place *place)
{
  struct rp_file *file = make (place);
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct opened opened;
  struct found found;
  struct rp_fault fault;
  uint64_t size;

  OK (rp_sparse_read_header (file, &kind, &info, &fault));
  CHECK (kind == RP_EXTENT_SESPARSE && info.capacity_sectors == SECTORS);
  CHECK (info.grain_sectors == 8 && info.entries_per_table == 4096);
  CHECK (info.version == 2 && !info.unclean_shutdown);
  /* 1 MiB each of headers, journal, directory, tables, bitmap, backmap */
  CHECK (info.directory_sector == 4096 && info.overhead_sectors == 6 * 2048);
  OK (rp_file_size (file, &size, &fault));
  CHECK (size == (6 + 81) << 20);

  OK (open_one (file, SECTORS, false, &opened, &fault));
  verify (opened.disk);
  verify_map (opened.disk);
  close_one (&opened);
  OK (open_one (file, SECTORS, false, &opened, &fault));
  verify_map (opened.disk);      /* with nothing loaded yet */
  close_one (&opened);
  CHECK (open_one (file, SECTORS, true, &opened, &fault) == RP_READ_ONLY);
  CHECK (open_one (file, SECTORS + 1, false, &opened, &fault) == RP_CORRUPT);
  check_file (file, &found);
  CHECK (found.count == 0);
  rp_file_close (file);
  checks++;
}

static bool
nothing (uint64_t grain)
{
  (void) grain;
  return false;
}

static void
test_limits (struct place *place)
{
  struct rp_sesparse *sesparse;
  struct rp_segment segment;
  struct rp_sink *sink;
  struct rp_file *file = make (place);
  struct rp_fault fault;
  uint64_t size, disk = UINT64_C (62) << 40;

  CHECK (rp_sesparse_sink_create (file, 8, &sink, &fault)
         == RP_BAD_ARGUMENT);
  OK (rp_file_truncate (file, 0, &fault));
  CHECK (rp_sesparse_sink_create (file, 0, &sink, &fault) == RP_BAD_ARGUMENT);
  CHECK (rp_sesparse_sink_create (file, disk / 512 + 1, &sink, &fault)
         == RP_FULL);
  OK (rp_sesparse_sink_create (file, disk / 512, &sink, &fault));
  OK (se_put (sink, 5, 1, pattern, &fault));
  OK (se_put (sink, disk / SE_GRAIN - 1, 1, pattern, &fault));
  OK (sink->functions->finish (sink, &fault));
  sink->functions->destroy (sink);

  OK (rp_sesparse_open (file, disk / 512, &sesparse, &fault));
  OK (rp_sesparse_map (sesparse, 0, disk, &segment, &fault));
  CHECK (segment.kind == RP_SEGMENT_ABSENT
         && segment.length_bytes == 5 * SE_GRAIN);
  OK (rp_sesparse_map (sesparse, 5 * SE_GRAIN, disk - 5 * SE_GRAIN, &segment,
                       &fault));
  CHECK (segment.kind == RP_SEGMENT_DATA && segment.length_bytes == SE_GRAIN);
  size = 6 * SE_GRAIN;
  do {
    OK (rp_sesparse_map (sesparse, size, disk - size, &segment, &fault));
    size += segment.length_bytes;
  } while (segment.kind == RP_SEGMENT_ABSENT && size < disk);
  CHECK (segment.kind == RP_SEGMENT_DATA && segment.length_bytes == SE_GRAIN);
  CHECK (size == disk);
  rp_sesparse_close (sesparse);

  OK (rp_file_truncate (file, 0, &fault));
  OK (se_make (file, 1, nothing, &fault));
  OK (rp_sesparse_open (file, 1, &sesparse, &fault));
  OK (rp_sesparse_map (sesparse, 0, 512, &segment, &fault));
  CHECK (segment.kind == RP_SEGMENT_ABSENT && segment.length_bytes == 512);
  rp_sesparse_close (sesparse);
  rp_file_close (file);
  checks++;
}

/* ---- lies in the headers ---- */

static void
poke (struct rp_file *file, uint64_t offset, uint64_t value, uint64_t *old)
{
  uint8_t field[8];
  struct rp_fault fault;

  OK (rp_file_pread_all (file, field, sizeof field, offset, &fault));
  if (old)
    *old = rp_load64 (field);
  rp_store64 (field, value);
  OK (rp_file_pwrite (file, field, sizeof field, offset, &fault));
}

static void
test_headers (struct place *place)
{
  static const struct {
    uint64_t offset, value;
    int      status;
  } lies[] = {
    { 0, 0xcafebabf, RP_FORMAT }, { 0, 0x1cafebabe, RP_FORMAT },
    { 8, 0x0000000200000002, RP_UNSUPPORTED }, { 8, 1, RP_UNSUPPORTED },
    { 16, 0, RP_CORRUPT }, { 16, UINT64_MAX, RP_CORRUPT },
    { 16, (UINT64_C (1) << 37) + 1, RP_CORRUPT },
    { 16, (UINT64_C (131072) << 15) + 1, RP_CORRUPT },  /* directory short */
    { 24, 16, RP_UNSUPPORTED }, { 24, 0, RP_UNSUPPORTED },
    { 32, 128, RP_UNSUPPORTED }, { 32, 0, RP_UNSUPPORTED },
    { 40, 1, RP_UNSUPPORTED }, { 48, 1, RP_UNSUPPORTED },
    { 72, 1, RP_UNSUPPORTED }, { 208, 1, RP_UNSUPPORTED },
    { 504, UINT64_C (1) << 63, RP_UNSUPPORTED },
    { 80, 0, RP_CORRUPT }, { 80, 3, RP_CORRUPT }, { 88, 0, RP_CORRUPT },
    { 80, UINT64_MAX, RP_CORRUPT }, { 88, UINT64_MAX, RP_CORRUPT },
    { 96, 1, RP_CORRUPT }, { 104, UINT64_MAX / 512, RP_CORRUPT },
    { 112, 4095, RP_CORRUPT }, { 120, 4097, RP_CORRUPT },
    { 128, 0, RP_CORRUPT }, { 128, 6143, RP_CORRUPT }, { 136, 0, RP_CORRUPT },
    { 128, UINT64_MAX - 2047, RP_CORRUPT }, { 136, UINT64_MAX, RP_CORRUPT },
    { 144, 1 << 30, RP_CORRUPT }, { 152, 0, RP_CORRUPT },
    { 152, 4096, RP_CORRUPT }, { 160, 8191, RP_CORRUPT },
    { 168, UINT64_C (1) << 40, RP_CORRUPT }, { 176, 8192, RP_CORRUPT },
    { 192, 12287, RP_CORRUPT }, { 192, UINT64_MAX, RP_CORRUPT },
    { 200, 0, RP_CORRUPT }, { 200, UINT64_MAX - 12287, RP_CORRUPT },
    { 512, 0xcafecaff, RP_CORRUPT }, { 536, 1, RP_UNSUPPORTED },
    { 536, UINT64_C (1) << 63, RP_UNSUPPORTED }, { 544, 1, RP_UNSUPPORTED },
    { 1016, UINT64_C (1) << 63, RP_UNSUPPORTED },
  };
  struct rp_file *file = make (place);
  struct rp_sesparse *sesparse;
  struct rp_sparse_info info;
  struct rp_fault fault;
  uint64_t old;

  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++, checks++) {
    int status;

    poke (file, lies[i].offset, lies[i].value, &old);
    status = rp_sesparse_open (file, SECTORS, &sesparse, &fault);
    if (status != lies[i].status)
      fprintf (stderr, "field %llu, lie %zu: status %d\n",
               (unsigned long long) lies[i].offset, i, status);
    CHECK (status == lies[i].status && !sesparse);
    CHECK (strstr (fault.message, "extent"));    /* names the file */
    CHECK (rp_sesparse_read_header (file, &info, &fault) == status);
    poke (file, lies[i].offset, old, NULL);
  }
  /* what an ESXi host leaves there: the journal's header is never looked at */
  poke (file, 3 * 512 + 8, UINT64_C (0x676f6c2064747368), NULL);
  poke (file, 2 * 512, 0, NULL);
  OK (rp_sesparse_open (file, SECTORS, &sesparse, &fault));
  rp_sesparse_close (sesparse);
  rp_file_close (file);
}

static void
test_replay_says_what_to_do (struct place *place)
{
  struct rp_file *file = make (place);
  struct rp_sesparse *sesparse;
  struct rp_fault fault;

  poke (file, 536, 1, NULL);
  CHECK (rp_sesparse_open (file, SECTORS, &sesparse, &fault)
         == RP_UNSUPPORTED);
  CHECK (strstr (fault.message, "ESXi") && strstr (fault.message, "copy"));
  rp_file_close (file);
  checks++;
}

static void
test_truncated (struct place *place)
{
  static const uint64_t sizes[] = {
    0, 1, 511, 512, 1023, 1024, 2048, 1 << 20, (6 << 20) - 1,
  };
  struct rp_file *file = make (place);
  struct rp_sesparse *sesparse;
  struct opened opened;
  struct rp_fault fault;
  struct rp_run run;
  uint8_t byte;

  /* a run ends with the last whole grain of the file, and there it tells:
     grain 2 * 4096 is the 2049th in the file */
  OK (rp_file_truncate (file, (6 << 20) + (2048 + 40) * SE_GRAIN + 100,
                        &fault));
  OK (open_one (file, SECTORS, false, &opened, &fault));
  OK (rp_disk_run (opened.disk, 8192 * SE_GRAIN, 4096 * SE_GRAIN, &run,
                   &fault));
  CHECK (run.kind == RP_RUN_DATA && run.length_bytes == 40 * SE_GRAIN);
  CHECK (rp_disk_run (opened.disk, 8232 * SE_GRAIN, SE_GRAIN, &run, &fault)
         == RP_CORRUPT);
  close_one (&opened);
  /* the grains may end early: what is there reads, what is missing tells */
  OK (rp_file_truncate (file, (6 << 20) + 5 * SE_GRAIN + 100, &fault));
  OK (open_one (file, SECTORS, false, &opened, &fault));
  OK (rp_disk_pread (opened.disk, &byte, 1, 9 * SE_GRAIN + 4095, &fault));
  CHECK (rp_disk_pread (opened.disk, &byte, 1, 11 * SE_GRAIN, &fault)
         == RP_CORRUPT);
  CHECK (strstr (fault.message, "extent") && strstr (fault.message, "end"));
  close_one (&opened);
  for (size_t i = sizeof sizes / sizeof *sizes; i-- > 0; checks++) {
    int status;

    OK (rp_file_truncate (file, sizes[i], &fault));
    status = rp_sesparse_open (file, SECTORS, &sesparse, &fault);
    CHECK (status == RP_CORRUPT || (sizes[i] < 512 && status == RP_FORMAT));
  }
  rp_file_close (file);
}

/* ---- lies in directory and tables ---- */

#define DIRECTORY (UINT64_C (4096) * 512)
#define TABLES    (UINT64_C (6144) * 512)
#define BITMAP    (UINT64_C (8192) * 512)
#define BACKMAP   (UINT64_C (10240) * 512)
#define DATA      (UINT64_C (12288) * 512)
/* 2048 + 3000 + 2 + 4092 + 1 grains */
#define USED      9143u
#define LAST_BYTE (USED / 8)
#define LAST_BITS ((1u << USED % 8) - 1)

static void
test_entries (struct place *place)
{
  static const struct {
    uint64_t offset, value, guest;
    int      status;
    const char *finding;
  } lies[] = {
    { DIRECTORY, 1, 0, RP_CORRUPT, "table" },
    { DIRECTORY, 0x1000000100000000, 0, RP_CORRUPT, "table" },
    { DIRECTORY, 0x2000000000000000, 0, RP_CORRUPT, "table" },
    { DIRECTORY, 0x1000000000000020, 0, RP_CORRUPT, "table" },  /* of 32 */
    { DIRECTORY, 0x10000000ffffffff, 0, RP_CORRUPT, "table" },
    { TABLES, 1, 0, RP_CORRUPT, "table" },       /* grain 0 was absent */
    { TABLES, 0x0fff000000000000, 0, RP_CORRUPT, "table" },
    { TABLES, 0x4000000000000000, 0, RP_CORRUPT, "table" },
    { TABLES, 0xffffffffffffffff, 0, RP_CORRUPT, "table" },
    { TABLES, 0x3fffffffffffffff, 0, RP_CORRUPT, "outside" },
    { TABLES, 0x3000000000000006, 0, RP_CORRUPT, "outside" },
    /* 81 MiB of grains: 20736 */
    { TABLES, 0x3100000000000005, 0, RP_CORRUPT, "outside" },
    { TABLES, 0x30ff000000000005, 0, RP_OK, "backmap" },
    { TABLES, 0x1000000000000000, 0, RP_OK, NULL },
    { TABLES, 0x1fff0fffffffffff, 0, RP_OK, NULL },
    { TABLES, 0x2000000000000000, 0, RP_OK, NULL },
    { TABLES, 0x2fff000000000001, 0, RP_OK, NULL },
  };
  struct rp_file *file = make (place);
  struct opened opened;
  struct rp_fault fault;
  uint64_t old;
  uint8_t byte;

  /* behind the grains' region is not in it, even where the file goes on */
  OK (rp_file_truncate (file, (6 + 81 + 1) << 20, &fault));
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++, checks++) {
    struct found found;
    int status;

    poke (file, lies[i].offset, lies[i].value, &old);
    OK (open_one (file, SECTORS, false, &opened, &fault));
    status = rp_disk_pread (opened.disk, &byte, 1, lies[i].guest, &fault);
    if (status != lies[i].status)
      fprintf (stderr, "lie %zu: status %d\n", i, status);
    CHECK (status == lies[i].status);
    if (status != RP_OK) {
      CHECK (fault.position == lies[i].offset);
      CHECK (strstr (fault.message, "extent"));
    }
    /* elsewhere it still reads */
    OK (rp_disk_pread (opened.disk, &byte, 1, 3 * 4096 * SE_GRAIN, &fault));
    close_one (&opened);
    check_file (file, &found);
    CHECK ((found.count > 0) == (lies[i].finding != NULL));
    if (found.count > 0)
      CHECK (strcmp (found.findings[0].kind, lies[i].finding) == 0
             && found.findings[0].guest_offset_bytes == lies[i].guest);
    poke (file, lies[i].offset, old, NULL);
  }
  rp_file_close (file);
}

static void
test_zero_types_hide_and_absent_shows (struct place *place)
{
  struct rp_file *file = make (place);
  struct rp_sesparse *sesparse;
  struct rp_segment segment;
  struct rp_fault fault;

  poke (file, TABLES, 0x1000000000000000, NULL);         /* unmapped */
  poke (file, TABLES + 16, 0x2000000000000000, NULL);    /* zero */
  OK (rp_sesparse_open (file, SECTORS, &sesparse, &fault));
  OK (rp_sesparse_map (sesparse, 0, 1, &segment, &fault));
  CHECK (segment.kind == RP_SEGMENT_ZERO);
  OK (rp_sesparse_map (sesparse, 2 * SE_GRAIN, 1, &segment, &fault));
  CHECK (segment.kind == RP_SEGMENT_ZERO);
  OK (rp_sesparse_map (sesparse, 4 * SE_GRAIN, 1, &segment, &fault));
  CHECK (segment.kind == RP_SEGMENT_ABSENT);
  rp_sesparse_close (sesparse);
  rp_file_close (file);
  checks++;
}

/* ---- what only a check sees ---- */

static uint64_t
peek (struct rp_file *file, uint64_t offset)
{
  uint8_t field[8];
  struct rp_fault fault;

  OK (rp_file_pread_all (file, field, sizeof field, offset, &fault));
  return rp_load64 (field);
}

static void
with (struct rp_file *file, uint64_t offset, uint64_t value, const char *kind,
      uint64_t position, uint64_t guest)
{
  uint64_t old;

  poke (file, offset, value, &old);
  expect_one (file, kind, position, guest);
  poke (file, offset, old, NULL);
}

static void
test_findings (struct place *place)
{
  struct rp_file *file = make (place);
  struct found found;
  uint8_t byte, flipped;
  struct rp_fault fault;

  /* the volatile header: 5 tables are used */
  with (file, 512 + 8, 4, "freetable", 512 + 8, UINT64_MAX);
  with (file, 512 + 8, 33, "freetable", 512 + 8, UINT64_MAX);
  with (file, 512 + 8, 7, "leak", TABLES + 5 * 32768, UINT64_MAX);
  /* grain 1 is the first in the file */
  with (file, BACKMAP, 0, "backmap", BACKMAP, SE_GRAIN);
  with (file, BACKMAP + 8, 0x1001000000000000, "backmap", BACKMAP + 8,
        3 * SE_GRAIN);
  with (file, BITMAP, peek (file, BITMAP) & ~UINT64_C (0xf00), "bitmap",
        BITMAP + 1, UINT64_MAX);
  with (file, BITMAP + 2500, peek (file, BITMAP + 2500) | 0xff0000, "leak",
        DATA + (2502u * 8) * SE_GRAIN, UINT64_MAX);
  /* the last byte is not full: its bits from the other end are as good */
  OK (rp_file_pread_all (file, &byte, 1, BITMAP + LAST_BYTE, &fault));
  CHECK (byte == LAST_BITS);
  flipped = 0;
  for (uint32_t i = 0; i < 8; i++)
    flipped |= (uint8_t) ((byte >> i & 1) << (7 - i));
  OK (rp_file_pwrite (file, &flipped, 1, BITMAP + LAST_BYTE, &fault));
  check_file (file, &found);
  CHECK (found.count == 0);
  OK (rp_file_pwrite (file, &byte, 1, BITMAP + LAST_BYTE, &fault));
  /* a table in two places: its grains are, too */
  poke (file, DIRECTORY + 8, peek (file, DIRECTORY), NULL);
  check_file (file, &found);
  CHECK (found.count == 1 + 2048);
  CHECK (strcmp (found.findings[0].kind, "overlap") == 0
         && found.findings[0].position == TABLES
         && found.findings[0].guest_offset_bytes == 4096 * SE_GRAIN);
  poke (file, DIRECTORY + 8, 0, NULL);
  /* an unmapped entry may go on to hold its grain, or not */
  poke (file, TABLES + 8, 0x1000000000000000, NULL);
  check_file (file, &found);
  CHECK (found.count == 0);
  poke (file, BITMAP, peek (file, BITMAP) & ~UINT64_C (1), NULL);
  check_file (file, &found);
  CHECK (found.count == 0);
  rp_file_close (file);
}

/* ---- garbage ---- */

static uint32_t
next_random (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return (uint32_t) (*state >> 33);
}

/* Whatever the file says: a status, never a crash or an endless loop. */
static void
use (struct rp_file *file)
{
  static uint8_t buffer[256 * 512];
  struct opened opened;
  struct found found = { .count = 0 };
  struct rp_fault fault;
  struct rp_run run;
  uint64_t at = 0;

  checks++;
  if (open_one (file, SECTORS, false, &opened, &fault) != RP_OK)
    return;
  while (at < opened.disk->size_bytes
         && rp_disk_run (opened.disk, at, opened.disk->size_bytes - at, &run,
                         &fault) == RP_OK)
    at += run.length_bytes;
  for (at = 0; at < opened.disk->size_bytes; at += 4096 * SE_GRAIN) {
    const uint64_t left = opened.disk->size_bytes - at;
    (void) rp_disk_pread (opened.disk, buffer,
                          left < sizeof buffer ? left : sizeof buffer, at,
                          &fault);
  }
  (void) rp_sesparse_check (opened.image->extents[0].sesparse, 0, 0, collect,
                            &found, &fault);
  close_one (&opened);
}

static void
test_garbage (struct place *place)
{
  static const uint64_t areas[][2] = {   /* where the lies go: start, length */
    { 0, 208 }, { 512, 40 }, { DIRECTORY, 64 }, { TABLES, 5 * 32768 },
    { BITMAP, 2600 }, { BACKMAP, 20000 * 8 },
  };
  struct rp_file *file = make (place);
  struct rp_fault fault;
  uint64_t state = 20261122;

  for (uint32_t round = 0; round < 400; round++) {
    const uint64_t *area = areas[round % 6];
    uint8_t bytes[64], old[64];
    const uint32_t length = 1 + next_random (&state) % 24;
    const uint64_t at = area[0] + next_random (&state) % (area[1] - length);

    OK (rp_file_pread_all (file, old, length, at, &fault));
    for (uint32_t i = 0; i < length; i++)
      bytes[i] = (uint8_t) (next_random (&state) % 4 == 0
                            ? next_random (&state) : old[i]);
    OK (rp_file_pwrite (file, bytes, length, at, &fault));
    use (file);
    if (round % 3)
      OK (rp_file_pwrite (file, old, length, at, &fault));
  }
  rp_file_close (file);
}

int
main (void)
{
  struct place place;
  struct rp_io *posix;
  struct rp_fault fault;

  OK (rp_io_posix_create (&posix, &fault));
  /* which stops us where the header could be durable before the rest */
  OK (rp_io_order_create (posix, &place.io, &fault));
  OK (rp_dir_open (place.io, ".", &place.dir, &fault));
  test_export (&place);
  test_limits (&place);
  test_headers (&place);
  test_replay_says_what_to_do (&place);
  test_truncated (&place);
  test_entries (&place);
  test_zero_types_hide_and_absent_shows (&place);
  test_findings (&place);
  test_garbage (&place);
  rp_dir_close (place.dir);
  rp_io_destroy (place.io);
  rp_io_destroy (posix);
  printf ("sesparse_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

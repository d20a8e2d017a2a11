/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed extents: what the sink writes reads back and checks clean, each
 * lie of a file is told, and nothing that a file says makes reading or
 * checking it go wrong.  Works in the current directory.
 */
#include "simulate.h"
#include "stream_inside.h"
#include "stream_maker.h"

#define SECTORS 9000u            /* 3 tables of 8-sector grains */

static uint64_t checks;

struct place {
  struct rp_io  *io;
  struct rp_dir *dir;
};

static struct rp_file *
fresh (struct place *place, const char *name)
{
  struct rp_file *file;
  struct rp_fault fault;

  OK (rp_file_open (place->dir, name, RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  return file;
}

/* ---- what was found ---- */

struct found {
  uint64_t count;
  uint64_t position;             /* of the last */
  uint64_t guest, length;
  bool     said;                 /* with a detail */
  char     kind[16];
};

static void
note_finding (void *context, const struct rp_finding *finding)
{
  struct found *found = context;

  found->count++;
  found->position = finding->position;
  found->guest = finding->guest_offset_bytes;
  found->length = finding->length_bytes;
  found->said = finding->detail != NULL;
  snprintf (found->kind, sizeof found->kind, "%s", finding->kind);
}

static struct found
check (struct rp_file *file, uint64_t sectors, bool deep)
{
  struct found found = { 0 };
  struct rp_stream *stream;
  struct rp_fault fault;

  OK (rp_stream_open (file, sectors, &stream, &fault));
  OK (rp_stream_check (stream, 0, 1 << 20, deep, note_finding, &found,
                       &fault));
  rp_stream_close (stream);
  checks++;
  return found;
}

/* ---- what we write ---- */

static void
test_round_trips (struct place *place)
{
  static const struct {
    uint64_t sectors, grain, stretch;
    uint32_t level, window;
  } cases[] = {
    { 1, 8, 1, 6, 1 }, { 7, 8, 3, 0, 1 }, { SECTORS, 8, 11, 1, 4 },
    { SECTORS, 8, 1000, 9, 3 }, { 128 * 40, 128, 100, 6, 2 },
    { 128 * 40 + 1, 128, 128, 12, 2 }, { 2048 * 5 - 3, 2048, 900, 1, 3 },
  };
  struct rp_fault fault;

  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const uint64_t sectors = cases[i].sectors;
    uint8_t *disk = stream_disk (sectors, cases[i].stretch);
    uint8_t *read = malloc (sectors * 512);
    struct rp_file *file = fresh (place, "made");
    struct rp_sparse_info info;
    enum rp_extent_kind kind;

    CHECK (read);
    OK (stream_make (file, disk, sectors, cases[i].grain, cases[i].level,
                     cases[i].window, &fault));
    OK (stream_read_all (file, sectors, read, &fault));
    CHECK (memcmp (disk, read, sectors * 512) == 0);
    CHECK (check (file, sectors, true).count == 0);
    OK (rp_sparse_read_header (file, &kind, &info, &fault));
    CHECK (kind == RP_EXTENT_STREAM && info.capacity_sectors == sectors
           && info.version == 3 && info.flags == 0x30001);
    rp_file_close (file);
    free (read);
    free (disk);
    checks++;
  }
}

/* Reads of any length at any place, also over the ends of grains. */
static void
test_reads_at_random (struct place *place)
{
  const uint64_t sectors = 128 * 30 + 5, size = sectors * 512;
  uint8_t *disk = stream_disk (sectors, 5 * 128 + 7);
  uint8_t *read = malloc (size);
  struct rp_file *file = fresh (place, "made");
  struct rp_stream *stream;
  struct rp_segment segment;
  struct rp_fault fault;

  CHECK (read);
  OK (stream_make (file, disk, sectors, 128, 3, 2, &fault));
  OK (rp_stream_open (file, sectors, &stream, &fault));
  for (uint64_t i = 0; i < 4000; i++) {
    const uint64_t at = stream_mix (i) % size;
    const uint64_t most = i % 3 ? 5000 : 300000;
    const uint64_t wanted = stream_mix (~i) % most + 1;

    OK (rp_stream_map (stream, at, wanted < size - at ? wanted : size - at,
                       &segment, &fault));
    CHECK (segment.length_bytes >= 1 && segment.length_bytes <= wanted);
    if (segment.kind == RP_SEGMENT_ABSENT) {
      memset (read, 0, segment.length_bytes);
    } else {
      CHECK (segment.kind == RP_SEGMENT_DATA && segment.packed);
      OK (rp_stream_read (stream, read, segment.length_bytes, at, &fault));
    }
    CHECK (memcmp (read, disk + at, segment.length_bytes) == 0);
  }
  CHECK (rp_stream_read (stream, read, 2, size - 1, &fault)
         == RP_OUT_OF_RANGE);
  rp_stream_close (stream);
  rp_file_close (file);
  free (read);
  free (disk);
  checks++;
}

static void
test_bad_arguments (struct place *place)
{
  static const struct rp_stream_create bad[] = {
    { .capacity_sectors = 0, .grain_sectors = 128, .descriptor_sectors = 1 },
    { .capacity_sectors = 1, .grain_sectors = 4, .descriptor_sectors = 1 },
    { .capacity_sectors = 1, .grain_sectors = 100, .descriptor_sectors = 1 },
    { .capacity_sectors = 1, .grain_sectors = 4096, .descriptor_sectors = 1 },
    { .capacity_sectors = 1, .grain_sectors = 8, .descriptor_sectors = 0 },
    { .capacity_sectors = 1, .grain_sectors = 8, .descriptor_sectors = 1,
      .level = 13 },
    { .capacity_sectors = 1, .grain_sectors = 8, .descriptor_sectors = 1,
      .descriptor = "", .descriptor_bytes = 513 },
    { .capacity_sectors = UINT64_MAX, .grain_sectors = 8,
      .descriptor_sectors = 1 },
  };
  struct rp_file *file = fresh (place, "made");
  struct rp_sink *sink;
  struct rp_fault fault;

  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const int status = rp_stream_sink_create (file, &bad[i], &sink, &fault);

    CHECK (status == RP_BAD_ARGUMENT || status == RP_FULL);
    CHECK (sink == NULL);
    checks++;
  }
  rp_file_close (file);
}

/* 2 TiB and a bit of noise: the tables could not say where it is. */
static void
test_full (struct place *place)
{
  const struct rp_stream_create how = {
    .capacity_sectors = UINT64_C (1) << 33, .grain_sectors = 2048,
    .descriptor = "", .descriptor_sectors = 1, .level = 0,
  };
  struct rp_file *file = fresh (place, "made");
  struct rp_chunk chunk = { .marked = (uint8_t[]) { 1 } };
  struct rp_sink *sink;
  struct rp_fault fault;
  uint64_t file_bytes;
  int status = RP_OK;

  OK (rp_stream_sink_create (file, &how, &sink, &fault));
  chunk.data = calloc (1, sink->chunk_bytes);
  CHECK (chunk.data && sink->chunk_bytes == sink->unit_bytes);
  chunk.length_bytes = sink->chunk_bytes;
  OK (sink->functions->scratch_create (sink, &chunk.scratch, &fault));
  OK (sink->functions->prepare (sink, &chunk, &fault));
  for (; status == RP_OK && chunk.offset_bytes < sink->size_bytes;
       chunk.offset_bytes += chunk.length_bytes)
    status = sink->functions->place (sink, &chunk, &fault);
  CHECK (status == RP_FULL);
  CHECK (chunk.place < UINT64_C (1) << 41
         && chunk.place > (UINT64_C (1) << 41) - (UINT64_C (4) << 20));
  OK (sink->functions->finish (sink, &fault));   /* and that still fits */
  OK (rp_file_size (file, &file_bytes, &fault));
  CHECK (file_bytes <= UINT64_C (1) << 41);
  sink->functions->scratch_destroy (sink, chunk.scratch);
  sink->functions->destroy (sink);
  free (chunk.data);
  rp_file_close (file);
  checks++;
}

/* ---- noise ---- */

static void
test_noise_is_told_from_data (void)
{
  const size_t length = 65536;
  uint8_t *bytes = malloc (length);

  CHECK (bytes);
  for (size_t i = 0; i < length; i += 8)
    rp_store64 (bytes + i, stream_mix (i + 99));
  CHECK (rp_stream_is_noise (bytes, length));
  CHECK (rp_stream_is_noise (bytes, 4096));
  memcpy (bytes + 40001, bytes + 3, 1024);    /* one repeat far away */
  CHECK (!rp_stream_is_noise (bytes, length));
  for (size_t i = 0; i < length; i += 8)
    rp_store64 (bytes + i, stream_mix (i + 99));
  memset (bytes + 30000, 'x', 1024);
  CHECK (!rp_stream_is_noise (bytes, length));
  for (size_t i = 0; i < length; i++)
    bytes[i] = (uint8_t) (stream_mix (i) % 250);
  CHECK (!rp_stream_is_noise (bytes, length));
  memset (bytes, 0, length);
  CHECK (!rp_stream_is_noise (bytes, length));
  free (bytes);
  checks += 6;
}

/* ---- files that lie ---- */

/* A stream with its directory in front and a redundant one, as QEMU lays it:
 * header, descriptor (1), redundant directory (2) and table (3..6), directory
 * (7) and table (8..11), grains of 8 sectors from 16 on, 16 apart. */
#define GRAINS      6u
#define TABLE_AT    (8u * 512)
#define GRAIN_AT(i) ((16u + (i) * 16u) * 512u)

static struct rp_file *
lay (struct place *place, uint8_t *disk)
{
  static uint8_t bytes[(16 + GRAINS * 16) * 512];
  struct libdeflate_compressor *compressor = libdeflate_alloc_compressor (6);
  struct rp_file *file = fresh (place, "laid");
  struct rp_fault fault;

  CHECK (compressor);
  memset (bytes, 0, sizeof bytes);
  rp_store32 (bytes, RP_KDMV_MAGIC);
  rp_store32 (bytes + 4, 3);
  rp_store32 (bytes + 8, 0x30003);
  rp_store64 (bytes + 12, GRAINS * 8);
  rp_store64 (bytes + 20, 8);
  rp_store64 (bytes + 28, 1);
  rp_store64 (bytes + 36, 1);
  rp_store32 (bytes + 44, 512);
  rp_store64 (bytes + 48, 2);
  rp_store64 (bytes + 56, 7);
  rp_store64 (bytes + 64, 16);
  memcpy (bytes + 73, "\n \r\n\1", 5);
  rp_store32 (bytes + 2 * 512, 3);
  rp_store32 (bytes + 7 * 512, 8);
  for (uint32_t i = 0; i < GRAINS; i++) {
    uint8_t *grain = bytes + GRAIN_AT (i);
    const size_t size = libdeflate_zlib_compress (compressor,
                                                  disk + i * 4096u, 4096,
                                                  grain + 12, 15 * 512);
    CHECK (size > 0);
    rp_store64 (grain, i * 8);
    rp_store32 (grain + 8, (uint32_t) size);
    rp_store32 (bytes + TABLE_AT + 4 * (size_t) i, GRAIN_AT (i) / 512);
  }
  memcpy (bytes + 3 * 512, bytes + TABLE_AT, 2048);
  OK (rp_file_pwrite (file, bytes, sizeof bytes, 0, &fault));
  libdeflate_free_compressor (compressor);
  return file;
}

static uint8_t *
laid_disk (void)
{
  uint8_t *disk = stream_disk (GRAINS * 8, 3);

  for (uint32_t i = 0; i < GRAINS; i++)
    disk[i * 4096u] = 1;         /* no grain of zeros */
  return disk;
}

static void
put32 (struct rp_file *file, uint64_t offset, uint32_t value)
{
  uint8_t field[4];
  struct rp_fault fault;

  rp_store32 (field, value);
  OK (rp_file_pwrite (file, field, sizeof field, offset, &fault));
}

static void
test_what_a_check_finds (struct place *place)
{
  const struct {
    uint64_t    offset;
    uint32_t    value;
    const char *kind;
    uint64_t    position, guest;
    bool        deep;
  } cases[] = {
    { TABLE_AT + 8, 0x7fffffff, "outside", UINT64_C (0x7fffffff) * 512, 8192,
      false },
    { TABLE_AT + 8, 1, "outside", 512, 8192, false },
    { TABLE_AT + 8, GRAIN_AT (3) / 512, "grain", GRAIN_AT (3), 8192, false },
    { GRAIN_AT (2), 77, "grain", GRAIN_AT (2), 8192, false },
    { GRAIN_AT (2) + 8, 0, "grain", GRAIN_AT (2), 8192, false },
    { GRAIN_AT (2) + 8, 9000, "grain", GRAIN_AT (2), 8192, false },
    { GRAIN_AT (2) + 8, 8192, "overlap", GRAIN_AT (3), 12288, false },
    { GRAIN_AT (2) + 40, 0x12345678, "grain", GRAIN_AT (2), 8192, true },
    { 7 * 512, 0x1234567, "table", UINT64_C (0x1234567) * 512, 0, false },
    { 7 * 512, 3, "overlap", 3 * 512, 0, false },
    { 3 * 512 + 4, 99, "redundant", 3 * 512, 0, false },
    { 2 * 512, 0, "redundant", 2 * 512, 0, false },
    { 48, 0x7fffffff, "redundant", 48, UINT64_MAX, false },
    { 72, 0x0d200a01, "unclean", 72, UINT64_MAX, false },
  };
  uint8_t *disk = laid_disk ();

  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const uint64_t guest = cases[i].guest == UINT64_MAX
                           ? UINT64_MAX : cases[i].guest + (1 << 20);
    struct rp_file *file = lay (place, disk);
    struct found found;

    CHECK (check (file, GRAINS * 8, true).count == 0);
    put32 (file, cases[i].offset, cases[i].value);
    if (cases[i].deep)
      CHECK (check (file, GRAINS * 8, false).count == 0);
    else if (cases[i].offset >= TABLE_AT && cases[i].offset < GRAIN_AT (0))
      put32 (file, cases[i].offset - 5 * 512, cases[i].value);
    found = check (file, GRAINS * 8, cases[i].deep);
    if (found.count == 0 || strcmp (found.kind, cases[i].kind) != 0
        || found.position != cases[i].position || found.guest != guest
        || (guest != UINT64_MAX
            && found.length != (cases[i].offset < TABLE_AT ? GRAINS * 4096u
                                                           : 4096u))) {
      fprintf (stderr, "case %zu: %llu findings, the last %s at %llu, %llu\n",
               i, (unsigned long long) found.count, found.kind,
               (unsigned long long) found.position,
               (unsigned long long) found.guest);
      CHECK (!"found what was wrong");
    }
    rp_file_close (file);
  }
  free (disk);
}

/* Neighbours are one finding, what is alone says what it is. */
static void
test_findings_of_neighbours_are_one (struct place *place)
{
  uint8_t *disk = laid_disk ();
  struct rp_file *file = lay (place, disk);
  struct found found;

  put32 (file, GRAIN_AT (2), 77);
  found = check (file, GRAINS * 8, false);
  CHECK (found.count == 1 && found.said && found.length == 4096);
  put32 (file, GRAIN_AT (3), 77);
  put32 (file, GRAIN_AT (5), 77);
  put32 (file, GRAIN_AT (4), 77);
  found = check (file, GRAINS * 8 - 3, false);
  CHECK (found.count == 1 && !found.said && found.position == GRAIN_AT (2)
         && found.length == 4 * 4096 - 3 * 512
         && found.guest == (1 << 20) + 2 * 4096);
  rp_file_close (file);
  free (disk);
}

/* Whatever the file says: a status, never a crash or an endless loop. */
static void
use (struct rp_file *file)
{
  static uint8_t buffer[70000];
  struct found found = { 0 };
  struct rp_stream *stream;
  struct rp_segment segment;
  struct rp_fault fault;

  checks++;
  for (uint64_t sectors = GRAINS * 8; sectors > 0; sectors /= 7) {
    const uint64_t size = sectors * 512;

    if (rp_stream_open (file, sectors, &stream, &fault) != RP_OK)
      continue;
    for (uint64_t at = 0; at < size; at += segment.length_bytes) {
      if (rp_stream_map (stream, at, size - at, &segment, &fault) != RP_OK)
        break;
      CHECK (segment.length_bytes > 0 && segment.length_bytes <= size - at);
      if (segment.kind == RP_SEGMENT_DATA) {
        const uint64_t length = segment.length_bytes < sizeof buffer
                                ? segment.length_bytes : sizeof buffer;
        (void) rp_stream_read (stream, buffer, length, at, &fault);
        (void) rp_stream_read (stream, buffer, 1, at, &fault);
      }
    }
    (void) rp_stream_check (stream, 0, 0, true, note_finding, &found, &fault);
    rp_stream_close (stream);
  }
}

static const uint64_t values[] = {
  0, 1, 2, 3, 7, 8, 12, 16, 128, 511, 512, 513, 4096, 8192, 8193, 0x10001,
  0x30001, 0x30007, UINT64_C (1) << 31, UINT32_MAX - 1, UINT32_MAX,
  UINT64_C (1) << 32, UINT64_C (1) << 54, UINT64_C (1) << 63, UINT64_MAX - 1,
  UINT64_MAX,
};

static void
test_any_value_in_any_field (struct place *place)
{
  static const struct {
    uint32_t offset, bytes;
  } fields[] = {
    { 0, 4 }, { 4, 4 }, { 8, 4 }, { 12, 8 }, { 20, 8 }, { 28, 8 }, { 36, 8 },
    { 44, 4 }, { 48, 8 }, { 56, 8 }, { 64, 8 }, { 72, 1 }, { 73, 4 },
    { 77, 2 }, { 2 * 512, 4 }, { 7 * 512, 4 }, { 7 * 512 + 4, 4 },
    { TABLE_AT, 4 }, { TABLE_AT + 4, 4 }, { TABLE_AT + 20, 4 },
    { GRAIN_AT (0), 8 }, { GRAIN_AT (0) + 8, 4 }, { GRAIN_AT (0) + 12, 2 },
    { GRAIN_AT (5), 8 }, { GRAIN_AT (5) + 8, 4 }, { GRAIN_AT (5) + 14, 8 },
  };
  uint8_t *disk = laid_disk (), field[8];
  struct rp_fault fault;

  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
      struct rp_file *file = lay (place, disk);

      rp_store64 (field, values[k]);
      OK (rp_file_pwrite (file, field, fields[i].bytes, fields[i].offset,
                          &fault));
      use (file);
      rp_file_close (file);
    }
  free (disk);
}

/* The same of a file with a footer, and that file cut anywhere. */
static void
test_any_footer (struct place *place)
{
  uint8_t *disk = laid_disk (), field[8];
  uint64_t size;
  struct rp_fault fault;

  for (uint32_t at = 0; at < 3 * 512; at += at % 512 < 80 ? 4 : 100)
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
      struct rp_file *file = fresh (place, "made");

      OK (stream_make (file, disk, GRAINS * 8, 8, 1, 1, &fault));
      OK (rp_file_size (file, &size, &fault));
      rp_store64 (field, values[k]);
      OK (rp_file_pwrite (file, field, 8, size - 3 * 512 + at, &fault));
      use (file);
      rp_file_close (file);
      k += at % 3;
    }
  for (uint64_t cut = 0;; cut += 131) {
    struct rp_file *file = fresh (place, "made");
    struct rp_stream *stream;

    OK (stream_make (file, disk, GRAINS * 8, 8, 1, 1, &fault));
    OK (rp_file_size (file, &size, &fault));
    if (cut < size)
      OK (rp_file_truncate (file, cut, &fault));
    use (file);
    CHECK ((rp_stream_open (file, GRAINS * 8, &stream, &fault) == RP_OK)
           == (cut >= size));
    rp_stream_close (stream);
    rp_file_close (file);
    if (cut >= size)
      break;
  }
  free (disk);
}

int
main (void)
{
  struct place place, real;
  struct rp_fault fault;

  /* in memory: a sync for each of thousands of files takes its time */
  OK (rp_io_simulate_create (&place.io, &fault));
  OK (rp_dir_open (place.io, "/", &place.dir, &fault));
  OK (rp_io_posix_create (&real.io, &fault));
  OK (rp_dir_open (real.io, ".", &real.dir, &fault));
  test_round_trips (&real);
  test_full (&real);
  test_reads_at_random (&place);
  test_bad_arguments (&place);
  test_noise_is_told_from_data ();
  test_what_a_check_finds (&place);
  test_findings_of_neighbours_are_one (&place);
  test_any_value_in_any_field (&place);
  test_any_footer (&place);
  rp_dir_close (real.dir);
  rp_io_destroy (real.io);
  rp_dir_close (place.dir);
  rp_io_destroy (place.io);
  printf ("stream_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

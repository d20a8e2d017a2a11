/* SPDX-License-Identifier: Apache-2.0 */
/* Grain tables in little memory: whatever the entries are, and however the
 * file keeps them (written, as holes, missing, out of order), a look at one
 * grain and a look along say what the entries say.
 * Works in the current directory.
 */
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "io.h"
#include "sparse.h"

#define TABLES    97u
#define DATA      4096u          /* first sector of grains */

static uint64_t checks;

static uint32_t
next_random (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005) + 1442695040888963407u;
  return (uint32_t) (*state >> 33);
}

/* ---- runs alone ---- */

static void
test_runs (void)
{
  static const struct rp_runs_rule rule = { .rising = 2, .step = 128 };
  static struct rp_runs_builder builder;
  uint64_t state = 1, values[4096];

  for (uint32_t round = 0; round < 2000; round++, checks++) {
    const uint32_t count = 128u << round % 6;
    const uint32_t length = 1 + next_random (&state) % count;
    struct rp_runs *runs;
    uint32_t i, left, changes = 0;
    bool fits = true;

    for (i = 0; i < count; i++)
      values[i] = i > 0 && next_random (&state) % length > 2
                  ? values[i - 1] + (values[i - 1] > 1 ? 128 : 0)
                  : next_random (&state) % 3 == 0 ? next_random (&state)
                  : next_random (&state) % 2;
    for (i = 0; i < count; i++)
      changes += i == 0 || values[i] != values[i - 1]
                                        + (values[i - 1] > 1 ? 128 : 0);
    rp_runs_start (&builder, rule, count);
    for (i = 0; fits && i < count; i++)
      fits = rp_runs_add (&builder, values[i]);
    CHECK (fits == (changes <= count / 8));
    if (!fits)
      continue;
    runs = rp_runs_finish (&builder);
    CHECK (runs && runs->count == changes && runs->entries == count);
    for (i = 0; i < count; i++) {
      CHECK (rp_runs_find (runs, rule, i, &left) == values[i]);
      CHECK (left >= 1 && i + left <= count);
      CHECK (i + left == count
             || values[i + left] != values[i + left - 1]
                                    + (values[i + left - 1] > 1 ? 128 : 0));
    }
    free (runs);
  }
}

/* ---- an extent ---- */

struct model {
  uint32_t  grain_sectors, entries_per_table;
  uint32_t  first_table;         /* sector: holes may begin inside a table */
  uint64_t  grains;
  uint32_t *entries;
};

/* A table of one of the kinds that disks have. */
static void
fill_table (uint32_t *entries, uint32_t count, uint32_t grain,
            uint32_t *next_sector, uint64_t *state)
{
  const uint32_t kind = next_random (state) % 7;
  const uint32_t odds = 2 + next_random (state) % 200;
  const uint32_t only = next_random (state) % count;

  memset (entries, 0, count * sizeof *entries);
  for (uint32_t i = 0; i < count; i++) {
    const bool data = kind == 2 || (kind == 4 && next_random (state) % 2)
                      || (kind == 3 && next_random (state) % odds == 0)
                      || (kind == 5 && i == only);

    if (kind == 6)
      entries[i] = 1;
    else if (data)
      entries[i] = *next_sector;
    else if (kind == 3 && next_random (state) % odds == 1)
      entries[i] = 1;
    *next_sector += data ? grain : 0;
  }
}

static void
put32 (struct rp_file *file, uint64_t offset, uint32_t value)
{
  uint8_t field[4];
  struct rp_fault fault;

  rp_store32 (field, value);
  OK (rp_file_pwrite (file, field, sizeof field, offset, &fault));
}

/* What is zeros in it is written or left as it was: a hole. */
static void
write_table (struct rp_file *file, const uint8_t *table, uint32_t bytes,
             uint64_t offset, uint64_t *state)
{
  static const uint8_t none[512];
  const bool all = next_random (state) % 2;
  struct rp_fault fault;

  for (uint32_t at = 0; at < bytes; at += 512)
    if (all || memcmp (table + at, none, 512) != 0)
      OK (rp_file_pwrite (file, table + at, 512, offset + at, &fault));
}

/* A hosted extent: directory from sector 1 on, tables behind it, in order
 * (mixed: out of order), those that are empty as holes, as zeros, or none. */
static void
write_extent (struct rp_file *file, const struct model *model, bool mixed,
              uint64_t *state)
{
  const uint32_t table_bytes = model->entries_per_table * 4;
  uint8_t header[512] = { 0 };
  struct rp_fault fault;
  uint8_t *table = calloc (1, table_bytes);

  CHECK (table);
  OK (rp_file_truncate (file, UINT64_C (512) * DATA, &fault));
  rp_store32 (header, RP_KDMV_MAGIC);
  rp_store32 (header + 4, 3);    /* version 3, without compression */
  rp_store32 (header + 8, RP_KDMV_ZERO_GRAINS | 0x8000);  /* and one unknown */
  rp_store64 (header + 12, model->grains * model->grain_sectors);
  rp_store64 (header + 20, model->grain_sectors);
  rp_store32 (header + 44, model->entries_per_table);
  rp_store64 (header + 56, 1);
  rp_store64 (header + 64, DATA);
  OK (rp_file_pwrite (file, header, sizeof header, 0, &fault));
  for (uint32_t i = 0; i < TABLES; i++) {
    const uint32_t slot = mixed ? i ^ 1 : i;
    const uint64_t sector = model->first_table
                            + (uint64_t) slot * table_bytes / 512;
    bool used = false;

    for (uint32_t k = 0; k < model->entries_per_table; k++) {
      const uint64_t grain = (uint64_t) i * model->entries_per_table + k;
      const uint32_t entry = grain < model->grains ? model->entries[grain] : 0;

      rp_store32 (table + 4 * (size_t) k, entry);
      used |= entry != 0;
    }
    if (!used && next_random (state) % 3 == 0)
      continue;                  /* no table */
    put32 (file, 512 + 4 * (uint64_t) i, (uint32_t) sector);
    write_table (file, table, table_bytes, sector * 512, state);
  }
  free (table);
}

static enum rp_segment_kind
kind_of (uint32_t entry)
{
  return entry == 0 ? RP_SEGMENT_ABSENT
         : entry == 1 ? RP_SEGMENT_ZERO : RP_SEGMENT_DATA;
}

static uint64_t
alike (const struct model *model, uint64_t grain)
{
  const uint32_t entry = model->entries[grain];
  const uint32_t step = entry > 1 ? model->grain_sectors : 0;
  uint64_t count = 1;

  while (grain + count < model->grains
         && model->entries[grain + count] == entry + count * step)
    count++;
  return count;
}

static void
verify (struct rp_file *file, const struct model *model, uint32_t looks,
        uint64_t *state)
{
  const uint64_t grain_bytes = model->grain_sectors * UINT64_C (512);
  const uint64_t size = model->grains * grain_bytes;
  struct rp_sparse *sparse;
  struct rp_segment segment;
  struct rp_fault fault;

  CHECK (rp_sparse_open (file, RP_EXTENT_SPARSE, size / 512, true, &sparse,
                         &fault) == RP_READ_ONLY);
  OK (rp_sparse_open (file, RP_EXTENT_SPARSE, size / 512, false, &sparse,
                      &fault));
  /* at random first, so that some are loaded when the walk comes by */
  for (uint32_t i = 0; i < looks; i++, checks++) {
    const uint64_t grain = next_random (state) % model->grains;
    const uint64_t length = 1 + next_random (state)
                                % (size - grain * grain_bytes);
    uint64_t wanted = alike (model, grain) * grain_bytes;
    uint32_t entry;

    OK (rp_sparse_lookup (sparse, grain, &entry, &fault));
    CHECK (entry == model->entries[grain]);
    OK (rp_sparse_map (sparse, grain * grain_bytes, length, &segment, &fault));
    CHECK (segment.kind == kind_of (entry));
    CHECK (segment.length_bytes == (wanted < length ? wanted : length));
  }
  for (uint64_t at = 0; at < size; at += segment.length_bytes, checks++) {
    const uint32_t entry = model->entries[at / grain_bytes];

    OK (rp_sparse_map (sparse, at, size - at, &segment, &fault));
    CHECK (segment.kind == kind_of (entry));
    CHECK (segment.length_bytes == alike (model, at / grain_bytes)
                                   * grain_bytes);
    if (entry > 1)
      CHECK (segment.file == file
             && segment.file_offset_bytes == entry * UINT64_C (512));
  }
  rp_sparse_close (sparse);
}

static void
test_extent (struct rp_dir *dir, uint32_t round, uint64_t seed)
{
  struct model model = {
    .grain_sectors = 1u << round % 8,
    .entries_per_table = 128u << round % 6,
    .first_table = 16 + round % 5,
  };
  struct rp_file *file;
  struct rp_fault fault;
  uint64_t state = seed;
  uint32_t next_sector = DATA;

  CHECK (rp_divide_up (model.entries_per_table * 4, 512) * TABLES + 20 < DATA);
  model.grains = (uint64_t) TABLES * model.entries_per_table
                 - next_random (&state) % model.entries_per_table;
  model.entries = calloc ((size_t) TABLES * model.entries_per_table,
                          sizeof *model.entries);
  CHECK (model.entries);
  for (uint32_t i = 0; i < TABLES; i++)
    if (next_random (&state) % 3 == 0)
      fill_table (model.entries + (size_t) i * model.entries_per_table,
                  model.entries_per_table, model.grain_sectors, &next_sector,
                  &state);
  OK (rp_file_open (dir, "extent", RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  write_extent (file, &model, round % 3 == 2, &state);
  verify (file, &model, 0, &state);
  verify (file, &model, 10, &state);
  verify (file, &model, 200, &state);
  rp_file_close (file);
  free (model.entries);
}

/* ---- lies ---- */

static void
test_lies (struct rp_dir *dir)
{
  static const struct {
    uint64_t offset;
    uint32_t value;
    int      status;             /* of opening */
  } lies[] = {
    { 4, 4, RP_UNSUPPORTED }, { 4, 0, RP_UNSUPPORTED },
    { 8, 1u << 17, RP_UNSUPPORTED }, { 8, 1u << 31, RP_UNSUPPORTED },
    { 12, 0, RP_CORRUPT }, { 44, 64, RP_UNSUPPORTED },
    { 44, 8192, RP_UNSUPPORTED }, { 44, 500, RP_UNSUPPORTED },
    { 512, 1, RP_OK }, { 512, DATA - 3, RP_OK },
  };
  struct model model = {
    .grain_sectors = 8, .entries_per_table = 512, .grains = 512 * TABLES,
    .first_table = 16,
  };
  struct rp_sparse *sparse;
  struct rp_segment segment;
  struct rp_file *file;
  struct rp_fault fault;
  uint64_t state = 3;
  uint32_t entry;

  model.entries = calloc (model.grains, sizeof *model.entries);
  CHECK (model.entries);
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++, checks++) {
    const uint64_t sectors = model.grains * 8;
    int status;

    OK (rp_file_open (dir, "lies", RP_OPEN_WRITE | RP_OPEN_CREATE
                      | RP_OPEN_TRUNCATE, 0600, &file, &fault));
    write_extent (file, &model, false, &state);
    put32 (file, lies[i].offset, lies[i].value);
    status = rp_sparse_open (file, RP_EXTENT_SPARSE, sectors, false, &sparse,
                             &fault);
    if (status != lies[i].status)
      fprintf (stderr, "lie %zu: status %d\n", i, status);
    CHECK (status == lies[i].status);
    if (lies[i].offset == 512) {
      /* a table in the descriptor's sectors, or one that ends the file */
      put32 (file, 28, 1);
      put32 (file, 36, 1);
      rp_sparse_close (sparse);
      OK (rp_sparse_open (file, RP_EXTENT_SPARSE, sectors, false, &sparse,
                          &fault));
      CHECK (rp_sparse_map (sparse, 0, sectors * 512, &segment, &fault)
             == RP_CORRUPT);
      CHECK (rp_sparse_lookup (sparse, 0, &entry, &fault) == RP_CORRUPT);
      CHECK (strstr (fault.message, "lies"));
      OK (rp_sparse_map (sparse, 512 * 4096, 4096, &segment, &fault));
      rp_sparse_close (sparse);
    } else if (lies[i].offset == 12) {
      CHECK (strstr (fault.message, "capacity of 0"));
    }
    rp_file_close (file);
  }
  free (model.entries);
}

int
main (void)
{
  struct rp_io *io;
  struct rp_dir *dir;
  struct rp_fault fault;

  OK (rp_io_posix_create (&io, &fault));
  OK (rp_dir_open (io, ".", &dir, &fault));
  test_runs ();
  for (uint32_t round = 0; round < 24; round++)
    test_extent (dir, round, round + 1);
  test_lies (dir);
  rp_dir_close (dir);
  rp_io_destroy (io);
  printf ("sparse_tables_test: %llu checks\n", (unsigned long long) checks);
  return EXIT_SUCCESS;
}

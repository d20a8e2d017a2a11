/* SPDX-License-Identifier: Apache-2.0 */
/* Grain tables in memory: loaded when they are needed, small where they say
 * little, and looked along quickly.
 */
#include <endian.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "sparse.h"

/* One look along does no more than this: it holds no lock, but its caller may
 * have a client waiting.  An entry of a table kept in full counts 1. */
#define SCAN_WORK  (UINT64_C (1) << 20)
#define LOAD_WORK  1024u

#define BATCH_BYTES 65536u       /* most tables read at once, when looking
                                    along; >= the largest table */

static struct rp_runs_rule
rule_of (const struct rp_sparse *sparse)
{
  return (struct rp_runs_rule) {
    .rising = 2, .step = sparse->layout.info.grain_sectors,
  };
}

static size_t
table_bytes (const struct rp_sparse *sparse)
{
  return sizeof (uint32_t) << sparse->layout.table_shift;
}

/* ---- what is kept ---- */

/* Nobody writes here: the table as runs, or NULL where that is no gain. */
static struct rp_sparse_table *
keep_runs (struct rp_sparse *sparse, const uint32_t *entries, size_t count)
{
  struct rp_runs_builder builder;
  struct rp_runs *runs;

  rp_runs_start (&builder, rule_of (sparse), (uint32_t) count);
  for (size_t i = 0; i < count; i++)
    if (!rp_runs_add (&builder, entries[i]))
      return NULL;
  runs = rp_runs_finish (&builder);
  return runs ? (struct rp_sparse_table *) ((uintptr_t) runs | RP_SPARSE_RUNS)
              : NULL;
}

/* What tables[] gets for a table that was read; NULL: no memory. */
static struct rp_sparse_table *
keep_table (struct rp_sparse *sparse, const uint32_t *entries)
{
  const size_t count = (size_t) 1 << sparse->layout.table_shift;
  struct rp_sparse_table *table;

  if (rp_is_zero (entries, table_bytes (sparse)))
    return sparse->empty;
  table = sparse->writable ? NULL : keep_runs (sparse, entries, count);
  if (table)
    return table;
  table = malloc (sizeof *table + count * sizeof *table->entries);
  if (table) {
    table->dirty = 0;            /* not shared yet: plain stores are fine */
    memcpy ((uint32_t *) (void *) table->entries, entries,
            count * sizeof *entries);
  }
  return table;
}

/* Publish a table; another thread's, if one was faster. */
static struct rp_sparse_table *
publish_table (struct rp_sparse *sparse, uint32_t index,
               struct rp_sparse_table *table)
{
  struct rp_sparse_table *there = NULL;

  atomic_store_explicit (&sparse->touched[index / RP_SPARSE_STRETCH], 1,
                         memory_order_relaxed);
  if (atomic_compare_exchange_strong (&sparse->tables[index], &there, table))
    return table;
  if (table != sparse->empty)
    free ((void *) ((uintptr_t) table & ~RP_SPARSE_RUNS));
  return there;
}

/* ---- loading ---- */

static int
no_memory (struct rp_sparse *sparse, struct rp_fault *fault)
{
  return rp_fail (fault, RP_NO_MEMORY, 0, "reading a grain table of %s",
                  sparse->file->name);
}

/* A table inside the header would show its bytes, or the descriptor, as
 * places of data.  In a file with zero grains an entry of 1 may have been
 * meant as "all zero", which nobody writes down. */
static int
check_place (struct rp_sparse *sparse, uint32_t index, uint32_t sector,
             struct rp_fault *fault)
{
  if (sector == 0 || !rp_sparse_over_header (&sparse->layout, sector,
                                             sparse->layout.table_sectors))
    return RP_OK;
  return rp_fail (fault, RP_CORRUPT, (uint64_t) sector * RP_SECTOR_BYTES,
                  "%s: the grain directory's entry %" PRIu32 " is %" PRIu32
                  ", which lies in the header", sparse->file->name, index,
                  sector);
}

int
rp_sparse_load_table (struct rp_sparse *sparse, uint32_t index,
                      struct rp_sparse_table **out, struct rp_fault *fault)
{
  const uint32_t sector = atomic_load_explicit (&sparse->directory[index],
                                                memory_order_relaxed);
  uint32_t entries[RP_COWD_TABLE_ENTRIES];
  struct rp_sparse_table *table = sparse->empty;
  int status;

  if (sector != 0) {
    status = check_place (sparse, index, sector, fault);
    if (status == RP_OK)
      status = rp_sparse_read_table (sparse, sector, entries, fault);
    if (status != RP_OK)
      return status;
    table = keep_table (sparse, entries);
    if (!table)
      return no_memory (sparse, fault);
  }
  *out = publish_table (sparse, index, table);
  return RP_OK;
}

int
rp_sparse_lookup_slow (struct rp_sparse *sparse, uint64_t grain, uint32_t *out,
                       struct rp_fault *fault)
{
  const uint32_t index = (uint32_t) (grain >> sparse->layout.table_shift);
  const uint32_t entry = (uint32_t) (grain
                         & ((UINT64_C (1) << sparse->layout.table_shift) - 1));
  struct rp_sparse_table *table
    = atomic_load_explicit (&sparse->tables[index], memory_order_acquire);
  const struct rp_runs *runs;
  uint32_t left;
  int status;

  if (!table) {
    status = rp_sparse_load_table (sparse, index, &table, fault);
    if (status != RP_OK)
      return status;
  }
  if (!((uintptr_t) table & RP_SPARSE_RUNS)) {
    *out = atomic_load_explicit (&table->entries[entry], memory_order_acquire);
    return RP_OK;
  }
  runs = (const struct rp_runs *) ((uintptr_t) table & ~RP_SPARSE_RUNS);
  *out = (uint32_t) rp_runs_find (runs, rule_of (sparse), entry, &left);
  return RP_OK;
}

/* How many tables from index on, below stop, are not loaded and lie one behind
 * the other in the file; at most `most`. */
static uint32_t
count_neighbours (struct rp_sparse *sparse, uint32_t index, uint32_t stop,
                  uint64_t most)
{
  const uint32_t first = atomic_load_explicit (&sparse->directory[index],
                                               memory_order_relaxed);
  uint32_t count = 1;

  while (index + count < stop && count < most
         && !atomic_load_explicit (&sparse->tables[index + count],
                                   memory_order_relaxed)
         && atomic_load_explicit (&sparse->directory[index + count],
                                  memory_order_relaxed)
            == first + (uint64_t) count * sparse->layout.table_sectors)
    count++;
  return count;
}

static int
load_batch (struct rp_sparse *sparse, uint32_t index, uint32_t count,
            uint64_t offset, struct rp_fault *fault)
{
  const size_t bytes = table_bytes (sparse);
  uint32_t *entries;
  int status;

  if (!rp_inside (offset, count * bytes, atomic_load (&sparse->file_bytes)))
    count = 1;                   /* which tells where it lies, if it must */
  if (count == 1) {
    struct rp_sparse_table *table;
    return rp_sparse_load_table (sparse, index, &table, fault);
  }
  entries = malloc (count * bytes);
  if (!entries)
    return no_memory (sparse, fault);
  status = rp_file_pread_all (sparse->file, entries, count * bytes, offset,
                              fault);
  for (size_t i = 0; status == RP_OK && i < count * bytes / 4; i++)
    entries[i] = le32toh (entries[i]);
  for (uint32_t i = 0; status == RP_OK && i < count; i++) {
    struct rp_sparse_table *table
      = keep_table (sparse, entries + i * (bytes / 4));

    if (table)
      (void) publish_table (sparse, index + i, table);
    else
      status = no_memory (sparse, fault);
  }
  free (entries);
  return status;
}

/* Load the table at index and some below stop, because all will be looked at:
 * what lies in a hole of the file without reading it, of the rest more in one
 * go with each call. */
static int
load_along (struct rp_sparse *sparse, uint32_t index, uint32_t stop,
            uint32_t *batch, struct rp_fault *fault)
{
  const uint64_t bytes = table_bytes (sparse);
  const uint32_t sector = atomic_load_explicit (&sparse->directory[index],
                                                memory_order_relaxed);
  const uint64_t offset = (uint64_t) sector * RP_SECTOR_BYTES;
  struct rp_sparse_table *table;
  uint64_t data;
  uint32_t count;
  int status;

  if (sector == 0)
    return rp_sparse_load_table (sparse, index, &table, fault);
  status = check_place (sparse, index, sector, fault);
  if (status == RP_OK)
    status = rp_file_seek (sparse->file, offset, true, &data, fault);
  if (status != RP_OK)
    return status;
  if (data >= offset + bytes) {
    count = count_neighbours (sparse, index, stop, (data - offset) / bytes);
    for (uint32_t i = 0; i < count; i++)
      (void) publish_table (sparse, index + i, sparse->empty);
    return RP_OK;
  }
  count = count_neighbours (sparse, index, stop, *batch);
  if (*batch * 2 * bytes <= BATCH_BYTES)
    *batch *= 2;
  return load_batch (sparse, index, count, offset, fault);
}

/* ---- looking along ---- */

/* Entries of one table from `entry` on that go on from value, at most room. */
static uint64_t
count_in_table (struct rp_sparse *sparse, struct rp_sparse_table *table,
                uint32_t entry, uint64_t room, uint64_t value, uint64_t step)
{
  uint64_t count = 0;

  if (table == sparse->empty)
    return value == 0 ? room : 0;
  if ((uintptr_t) table & RP_SPARSE_RUNS) {
    const struct rp_runs *runs
      = (const struct rp_runs *) ((uintptr_t) table & ~RP_SPARSE_RUNS);
    uint32_t left;

    if (rp_runs_find (runs, rule_of (sparse), entry, &left) != value)
      return 0;
    return left < room ? left : room;
  }
  while (count < room
         && atomic_load_explicit (&table->entries[entry + count],
                                  memory_order_acquire)
            == value + count * step)
    count++;
  return count;
}

uint64_t
rp_sparse_count_alike (struct rp_sparse *sparse, uint64_t grain,
                       uint64_t limit, uint32_t entry)
{
  const uint32_t shift = sparse->layout.table_shift;
  const uint64_t span = UINT64_C (1) << shift;
  const uint64_t step = entry < 2 ? 0 : sparse->layout.info.grain_sectors;
  const uint32_t stop = (uint32_t) (((grain + limit - 1) >> shift) + 1);
  uint64_t count = 1, work = 0;
  uint32_t batch = 2;
  struct rp_fault fault;

  while (count < limit && work < SCAN_WORK) {
    const uint64_t at = grain + count;
    const uint32_t index = (uint32_t) (at >> shift);
    struct rp_sparse_table *table
      = atomic_load_explicit (&sparse->tables[index], memory_order_acquire);
    uint64_t room = span - at % span, found;

    if (!table) {
      work += LOAD_WORK;
      if (load_along (sparse, index, stop, &batch, &fault) != RP_OK)
        break;
      continue;
    }
    if (room > limit - count)
      room = limit - count;
    found = count_in_table (sparse, table, (uint32_t) (at % span), room,
                            entry + count * step, step);
    work += 1 + (table == sparse->empty
                 || ((uintptr_t) table & RP_SPARSE_RUNS) ? 0 : found);
    count += found;
    if (found < room)
      break;
  }
  return count;
}

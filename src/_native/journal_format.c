/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_format.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MAGIC_SUPER    "RPJOURN1"
#define MAGIC_SEGMENT  "RPSEGMT1"
#define MAGIC_BATCH    "RPBATCH1"
#define MAGIC_TRAILER  "RPTRAIL1"
#define MAGIC_ROOT     "RPROOTS2"
#define MAGIC_ROOT_FIRST "RPROOTS1"    /* still read: all pages are stored */
#define ROOT_STORED    128      /* where the bits begin */

#define SPARSE_MAGIC   0x564d444bu      /* "KDMV" */
#define SPARSE_FLAGS   0x5u             /* newline test, zero grains */

enum super_flags { SUPER_HELD = 1, SUPER_CLEAN = 2 };

uint64_t
rp_log_hash (const void *data, size_t length)
{
  return XXH3_64bits (data, length);
}

uint64_t
rp_log_chain_start (const uint8_t id[16])
{
  return XXH3_64bits_withSeed (id, 16, 1);
}

struct rp_log_ring
rp_log_ring_start (const uint8_t id[16])
{
  const struct rp_log_ring ring = {
    .first_sequence = 1, .chain = rp_log_chain_start (id),
  };

  return ring;
}

/* Source: "VMware Virtual Disk Format 5.0", "Hosted Sparse Extent Header" */
void
rp_log_put_sparse (void *sector, uint64_t capacity_bytes, uint32_t grain_bytes,
                   uint64_t directory_sector)
{
  uint8_t *at = sector;

  memset (at, 0, RP_SECTOR_BYTES);
  rp_store32 (at, SPARSE_MAGIC);
  rp_store32 (at + 4, 2);
  rp_store32 (at + 8, SPARSE_FLAGS);
  rp_store64 (at + 12, capacity_bytes / RP_SECTOR_BYTES);
  rp_store64 (at + 20, grain_bytes / RP_SECTOR_BYTES);
  rp_store32 (at + 44, RP_LOG_TABLE_ENTRIES);
  rp_store64 (at + 56, directory_sector);
  rp_store64 (at + 64, RP_LOG_HEAD_BYTES / RP_SECTOR_BYTES);
  memcpy (at + 73, "\n \r\n", 4);
}

bool
rp_log_get_sparse (const void *sector, uint64_t *capacity_bytes,
                   uint32_t *grain_bytes, uint64_t *directory_sector)
{
  const uint8_t *at = sector;
  uint8_t again[RP_SECTOR_BYTES];
  const uint64_t sectors = rp_load64 (at + 12);
  const uint64_t grain_sectors = rp_load64 (at + 20);

  if (sectors > UINT64_MAX / RP_SECTOR_BYTES || grain_sectors > 128)
    return false;
  *capacity_bytes = sectors * RP_SECTOR_BYTES;
  *grain_bytes = (uint32_t) grain_sectors * RP_SECTOR_BYTES;
  *directory_sector = rp_load64 (at + 56);
  /* nothing in it is free: whatever differs from what we write is damage */
  rp_log_put_sparse (again, *capacity_bytes, *grain_bytes, *directory_sector);
  return memcmp (again, sector, sizeof again) == 0;
}

/* Close a page of the given magic: checksum over all but the first 16 bytes. */
static void
seal_page (uint8_t *page, const char *magic)
{
  memcpy (page, magic, 8);
  rp_store64 (page + 8, rp_log_hash (page + 16, RP_LOG_PAGE_BYTES - 16));
}

static bool
page_is_whole (const uint8_t *page, const char *magic)
{
  return memcmp (page, magic, 8) == 0
         && rp_load64 (page + 8) == rp_log_hash (page + 16,
                                                 RP_LOG_PAGE_BYTES - 16);
}

void
rp_log_put_super (void *page, const struct rp_log_super *super)
{
  uint8_t *at = page;

  memset (at, 0, RP_LOG_PAGE_BYTES);
  memcpy (at + 16, super->id, 16);
  rp_store32 (at + 32, RP_LOG_VERSION);
  rp_store32 (at + 36, (super->held ? SUPER_HELD : 0)
                       | (super->clean ? SUPER_CLEAN : 0));
  rp_store64 (at + 40, super->capacity_bytes);
  rp_store32 (at + 48, super->grain_bytes);
  rp_store32 (at + 52, super->segment_bytes);
  rp_store64 (at + 56, super->epoch);
  rp_store64 (at + 64, super->generation);
  rp_store64 (at + 72, super->session);
  rp_store64 (at + 80, super->durable_sequence);
  rp_store64 (at + 88, super->ring.horizon_entry);
  rp_store64 (at + 96, super->ring.horizon_sequence);
  rp_store64 (at + 104, super->ring.based_entry);
  rp_store64 (at + 112, super->ring.number);
  rp_store64 (at + 120, super->ring.first_sequence);
  rp_store64 (at + 128, super->ring.chain);
  rp_store64 (at + 136, super->ring.first_entry);
  seal_page (at, MAGIC_SUPER);
}

bool
rp_log_get_super (const void *page, struct rp_log_super *out)
{
  const uint8_t *at = page;
  const uint32_t version = rp_load32 (at + 32);
  uint32_t flags;

  if (!page_is_whole (at, MAGIC_SUPER)
      || (version != RP_LOG_VERSION && version != RP_LOG_VERSION_FIRST))
    return false;
  memcpy (out->id, at + 16, 16);
  flags = rp_load32 (at + 36);
  out->held = (flags & SUPER_HELD) != 0;
  out->clean = (flags & SUPER_CLEAN) != 0;
  out->capacity_bytes = rp_load64 (at + 40);
  out->grain_bytes = rp_load32 (at + 48);
  out->segment_bytes = rp_load32 (at + 52);
  out->epoch = rp_load64 (at + 56);
  out->generation = rp_load64 (at + 64);
  out->session = rp_load64 (at + 72);
  out->durable_sequence = rp_load64 (at + 80);
  out->ring = rp_log_ring_start (out->id);
  if (version == RP_LOG_VERSION_FIRST)
    return true;
  out->ring.horizon_entry = rp_load64 (at + 88);
  out->ring.horizon_sequence = rp_load64 (at + 96);
  out->ring.based_entry = rp_load64 (at + 104);
  out->ring.number = rp_load64 (at + 112);
  out->ring.first_sequence = rp_load64 (at + 120);
  out->ring.chain = rp_load64 (at + 128);
  out->ring.first_entry = rp_load64 (at + 136);
  return true;
}

void
rp_log_put_segment (void *page, const struct rp_log_segment *segment)
{
  uint8_t *at = page;

  memset (at, 0, RP_LOG_PAGE_BYTES);
  memcpy (at + 16, segment->id, 16);
  rp_store64 (at + 32, segment->number);
  rp_store64 (at + 40, segment->position);
  rp_store64 (at + 48, segment->first_sequence);
  rp_store64 (at + 56, segment->chain);
  rp_store64 (at + 64, segment->session);
  rp_store64 (at + 72, segment->epoch);
  rp_store64 (at + 80, segment->durable_sequence);
  rp_store64 (at + 88, segment->first_entry);
  seal_page (at, MAGIC_SEGMENT);
}

bool
rp_log_get_segment (const void *page, struct rp_log_segment *out)
{
  const uint8_t *at = page;

  if (!page_is_whole (at, MAGIC_SEGMENT))
    return false;
  memcpy (out->id, at + 16, 16);
  out->number = rp_load64 (at + 32);
  out->position = rp_load64 (at + 40);
  out->first_sequence = rp_load64 (at + 48);
  out->chain = rp_load64 (at + 56);
  out->session = rp_load64 (at + 64);
  out->epoch = rp_load64 (at + 72);
  out->durable_sequence = rp_load64 (at + 80);
  out->first_entry = rp_load64 (at + 88);
  return true;
}

void
rp_log_put_trailer (void *page, const struct rp_log_trailer *trailer)
{
  uint8_t *at = page;

  memset (at, 0, RP_LOG_PAGE_BYTES);
  memcpy (at + 16, trailer->id, 16);
  rp_store64 (at + 32, trailer->number);
  rp_store64 (at + 40, trailer->position);
  rp_store64 (at + 48, trailer->first_sequence);
  rp_store64 (at + 56, trailer->last_sequence);
  rp_store64 (at + 64, trailer->chain);
  rp_store64 (at + 72, trailer->summary_position);
  rp_store64 (at + 80, trailer->entry_count);
  rp_store64 (at + 88, trailer->point_count);
  rp_store64 (at + 96, trailer->entries_checksum);
  rp_store64 (at + 104, trailer->points_checksum);
  rp_store64 (at + 112, trailer->end_position);
  rp_store64 (at + 120, trailer->session);
  rp_store64 (at + 128, trailer->epoch);
  rp_store64 (at + 136, (uint64_t) trailer->time_ns);
  seal_page (at, MAGIC_TRAILER);
}

bool
rp_log_get_trailer (const void *page, struct rp_log_trailer *out)
{
  const uint8_t *at = page;

  if (!page_is_whole (at, MAGIC_TRAILER))
    return false;
  memcpy (out->id, at + 16, 16);
  out->number = rp_load64 (at + 32);
  out->position = rp_load64 (at + 40);
  out->first_sequence = rp_load64 (at + 48);
  out->last_sequence = rp_load64 (at + 56);
  out->chain = rp_load64 (at + 64);
  out->summary_position = rp_load64 (at + 72);
  out->entry_count = rp_load64 (at + 80);
  out->point_count = rp_load64 (at + 88);
  out->entries_checksum = rp_load64 (at + 96);
  out->points_checksum = rp_load64 (at + 104);
  out->end_position = rp_load64 (at + 112);
  out->session = rp_load64 (at + 120);
  out->epoch = rp_load64 (at + 128);
  out->time_ns = (int64_t) rp_load64 (at + 136);
  return true;
}

void
rp_log_put_root (void *page, const struct rp_log_root *root)
{
  uint8_t *at = page;

  memset (at, 0, RP_LOG_PAGE_BYTES);
  memcpy (at + 16, root->id, 16);
  rp_store64 (at + 32, root->position);
  rp_store64 (at + 40, root->sequence);
  rp_store64 (at + 48, root->entry);
  rp_store64 (at + 56, root->point_id);
  rp_store64 (at + 64, root->table_count);
  rp_store64 (at + 72, root->content_bytes);
  rp_store64 (at + 80, root->content_checksum);
  memcpy (at + ROOT_STORED, root->stored, sizeof root->stored);
  seal_page (at, MAGIC_ROOT);
}

/* Of a root of the first kind, whose directory is stored as a whole. */
static bool
store_all (struct rp_log_root *root)
{
  const uint64_t pages = (root->content_bytes
                          - root->table_count * RP_LOG_TABLE_BYTES)
                         / RP_LOG_PAGE_BYTES;

  if (pages > RP_LOG_DIRECTORY_MAX)
    return false;
  for (uint64_t i = 0; i < pages; i++)
    root->stored[i / 8] |= (uint8_t) (1u << i % 8);
  return true;
}

bool
rp_log_get_root (const void *page, struct rp_log_root *out)
{
  const uint8_t *at = page;
  const bool first = page_is_whole (at, MAGIC_ROOT_FIRST);

  if (!first && !page_is_whole (at, MAGIC_ROOT))
    return false;
  memcpy (out->id, at + 16, 16);
  out->position = rp_load64 (at + 32);
  out->sequence = rp_load64 (at + 40);
  out->entry = rp_load64 (at + 48);
  out->point_id = rp_load64 (at + 56);
  out->table_count = rp_load64 (at + 64);
  out->content_bytes = rp_load64 (at + 72);
  out->content_checksum = rp_load64 (at + 80);
  memcpy (out->stored, at + ROOT_STORED, sizeof out->stored);
  return !first || store_all (out);
}

/* What the checksum of a batch covers: its fields and entries, or its point. */
static uint64_t
batch_bytes (uint32_t entry_count, uint32_t point_count)
{
  return RP_LOG_BATCH_BYTES + (uint64_t) entry_count * RP_LOG_ENTRY_BYTES
         + (uint64_t) point_count * RP_LOG_POINT_BYTES;
}

uint64_t
rp_log_put_batch (void *block, const struct rp_log_batch *batch)
{
  uint8_t *at = block;
  uint64_t checksum;

  memcpy (at, MAGIC_BATCH, 8);
  memcpy (at + 16, batch->id, 16);
  rp_store64 (at + 32, batch->sequence);
  rp_store64 (at + 40, batch->chain);
  rp_store64 (at + 48, batch->epoch);
  rp_store64 (at + 56, (uint64_t) batch->time_ns);
  rp_store64 (at + 64, batch->durable_sequence);
  rp_store64 (at + 72, batch->session);
  rp_store64 (at + 80, batch->position);
  rp_store64 (at + 88, batch->segment);
  rp_store32 (at + 96, batch->entry_count);
  rp_store32 (at + 100, batch->data_count);
  rp_store32 (at + 104, batch->point_count);
  memset (at + 108, 0, RP_LOG_BATCH_BYTES - 108);
  checksum = rp_log_hash (at + 16, batch_bytes (batch->entry_count,
                                                batch->point_count) - 16);
  rp_store64 (at + 8, checksum);
  return checksum;
}

bool
rp_log_is_batch (const void *block)
{
  return memcmp (block, MAGIC_BATCH, 8) == 0;
}

bool
rp_log_get_batch (const void *block, uint32_t block_bytes,
                  struct rp_log_batch *out)
{
  const uint8_t *at = block;
  uint64_t bytes;

  if (!rp_log_is_batch (block))
    return false;
  out->entry_count = rp_load32 (at + 96);
  out->data_count = rp_load32 (at + 100);
  out->point_count = rp_load32 (at + 104);
  bytes = batch_bytes (out->entry_count, out->point_count);
  if (bytes > block_bytes || out->data_count > out->entry_count
      || out->point_count > 1)
    return false;
  out->checksum = rp_load64 (at + 8);
  if (out->checksum != rp_log_hash (at + 16, bytes - 16)
      && !RP_SABOTAGED (31))     /* checks nothing */
    return false;
  memcpy (out->id, at + 16, 16);
  out->sequence = rp_load64 (at + 32);
  out->chain = rp_load64 (at + 40);
  out->epoch = rp_load64 (at + 48);
  out->time_ns = (int64_t) rp_load64 (at + 56);
  out->durable_sequence = rp_load64 (at + 64);
  out->session = rp_load64 (at + 72);
  out->position = rp_load64 (at + 80);
  out->segment = rp_load64 (at + 88);
  return true;
}

void
rp_log_put_point (void *at, const struct rp_point *point)
{
  uint8_t *bytes = at;

  rp_store64 (bytes, point->id);
  rp_store64 (bytes + 8, (uint64_t) point->time_ns);
  rp_store32 (bytes + 16, point->kind);
  rp_store32 (bytes + 20, 0);
  memcpy (bytes + 24, point->label, RP_POINT_LABEL_BYTES);
}

bool
rp_log_get_point (const void *at, struct rp_point *out)
{
  const uint8_t *bytes = at;

  out->id = rp_load64 (bytes);
  out->time_ns = (int64_t) rp_load64 (bytes + 8);
  out->kind = rp_load32 (bytes + 16);
  memcpy (out->label, bytes + 24, RP_POINT_LABEL_BYTES);
  return memchr (out->label, 0, RP_POINT_LABEL_BYTES) != NULL
         && (out->kind == RP_POINT_CRASH || out->kind == RP_POINT_APP);
}

void
rp_log_put_cut (void *at, const struct rp_log_cut *cut)
{
  uint8_t *bytes = at;

  rp_store64 (bytes, cut->sequence);
  rp_store64 (bytes + 8, cut->ordinal);
  rp_log_put_point (bytes + 16, &cut->point);
}

bool
rp_log_get_cut (const void *at, struct rp_log_cut *out)
{
  const uint8_t *bytes = at;

  out->sequence = rp_load64 (bytes);
  out->ordinal = rp_load64 (bytes + 8);
  return rp_log_get_point (bytes + 16, &out->point);
}

/* journal_format.h - the bytes of a journal log, and nothing else.
 *
 * One struct for each kind of block, with a pair of functions that turns it
 * into bytes and back.  Every block begins with 8 bytes of magic and the XXH3
 * of what follows; a decoder returns false where either is wrong, so a block
 * that decodes is whole.  That it is the right block at the right place is for
 * the caller to judge: each carries the journal's id and its own position.
 *
 * Bytes:   docs/formats.md, "Journal log"
 */
#ifndef RP_JOURNAL_FORMAT_H
#define RP_JOURNAL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bytes.h"
#include "journal.h"

#define RP_LOG_VERSION         2u
#define RP_LOG_VERSION_FIRST   1u      /* still read: nothing was destaged */
#define RP_LOG_PAGE_BYTES      4096u   /* superblock, headers, trailer */
#define RP_LOG_HEAD_BYTES      65536u  /* what lies before slot 0 */
#define RP_LOG_SUPER_COUNT     2u      /* at page 1 and page 2 */
#define RP_LOG_BATCH_BYTES     128u    /* before the entries */
#define RP_LOG_ENTRY_BYTES     16u
#define RP_LOG_POINT_BYTES     280u    /* in a batch */
#define RP_LOG_CUT_BYTES       296u    /* in a summary: where, and the point */
#define RP_LOG_TABLE_ENTRIES   512u
#define RP_LOG_TABLE_BYTES     2048u
#define RP_LOG_DIRECTORY_MAX   8192u   /* pages of one: 2^32 grains */
#define RP_LOG_SECTORS_MAX     (UINT64_C (1) << 32)

/* places */
#define RP_PLACE_ABSENT        0u      /* the base shows */
#define RP_PLACE_ZEROS         1u

/* Where the log begins, in entries and in segments.  Entries are numbered from
 * 0 over the whole life of the log.
 *   first_entry <= based_entry <= horizon_entry
 */
struct rp_log_ring {
  uint64_t horizon_entry;        /* cut of the oldest point that may be kept */
  uint64_t horizon_sequence;     /* its batch: points before it are gone */
  uint64_t based_entry;          /* the base holds all before it, synced */
  uint64_t number;               /* of the first segment that is kept: */
  uint64_t first_sequence, chain, first_entry;  /* as in its header */
};

struct rp_log_super {
  uint8_t  id[16];
  uint64_t capacity_bytes;
  uint32_t grain_bytes, segment_bytes;
  uint64_t epoch;
  uint64_t generation;           /* of the superblock: the higher one counts */
  uint64_t session;              /* of writers: one more at each, see batch */
  uint64_t durable_sequence;     /* that was synced when this was written */
  bool     held, clean;
  struct rp_log_ring ring;
};

struct rp_log_segment {          /* the first page of a slot */
  uint8_t  id[16];
  uint64_t number;               /* from 0 */
  uint64_t position;             /* of this page */
  uint64_t first_sequence;       /* of its first batch */
  uint64_t chain;                /* checksum of the batch before that */
  uint64_t session, epoch;
  uint64_t durable_sequence;
  uint64_t first_entry;          /* entries in all segments before */
};

struct rp_log_batch {
  uint8_t  id[16];
  uint64_t sequence;             /* from 1 */
  uint64_t chain;                /* checksum of the batch before; see below */
  uint64_t epoch;
  int64_t  time_ns;
  uint64_t durable_sequence;
  uint64_t session;              /* so that a dropped tail never fits again */
  uint64_t position;             /* of this header */
  uint64_t segment;              /* number */
  uint32_t entry_count, data_count, point_count;
  uint64_t checksum;             /* out of the first 16 bytes */
};

struct rp_log_entry {
  uint32_t grain, place, previous, value;
};

/* Where a point cuts a segment. */
struct rp_log_cut {
  uint64_t sequence;             /* of the batch that carries it */
  uint64_t ordinal;              /* entries of the segment that lie before */
  struct rp_point point;
};

struct rp_log_trailer {          /* the last page of a slot */
  uint8_t  id[16];
  uint64_t number, position;     /* of its segment */
  uint64_t first_sequence, last_sequence;
  uint64_t chain;                /* checksum of the last batch */
  uint64_t summary_position;
  uint64_t entry_count, point_count;
  uint64_t entries_checksum, points_checksum;
  uint64_t end_position;         /* behind the last batch */
  uint64_t session;              /* of its header */
  uint64_t epoch;                /* of the last batch */
  int64_t  time_ns;              /* of the last batch */
};

struct rp_log_root {             /* the page before a grain directory */
  uint8_t  id[16];
  uint64_t position;             /* of this page */
  uint64_t sequence;             /* the last batch that it includes */
  uint64_t entry;                /* entries of the log that it includes */
  uint64_t point_id;             /* RP_POINT_END for the end at that time */
  uint64_t table_count;          /* that are stored */
  uint64_t content_bytes;        /* directory and tables */
  uint64_t content_checksum;     /* of the pages that are stored, and tables */
  /* one bit for each page of the directory; those without are zeros */
  uint8_t  stored[RP_LOG_DIRECTORY_MAX / 8];
};

static inline bool
rp_log_is_stored (const uint8_t *stored, uint64_t page)
{
  return stored[page / 8] >> page % 8 & 1;
}

/* The first page from this one on that is stored, or is not; or stop. */
static inline uint64_t
rp_log_find_page (const uint8_t *stored, uint64_t page, uint64_t stop,
                  bool is_stored)
{
  while (page < stop && rp_log_is_stored (stored, page) != is_stored)
    page++;
  return page;
}

uint64_t rp_log_hash (const void *data, size_t length);

/* The chain value of the first batch of a journal. */
uint64_t rp_log_chain_start (const uint8_t id[16]);
/* Of a journal from which nothing was destaged. */
struct rp_log_ring rp_log_ring_start (const uint8_t id[16]);

/* sector 0: what any VMDK reader sees; 512 bytes */
void rp_log_put_sparse (void *sector, uint64_t capacity_bytes,
                        uint32_t grain_bytes, uint64_t directory_sector);
/* false: not the header of a log of ours */
bool rp_log_get_sparse (const void *sector, uint64_t *capacity_bytes,
                        uint32_t *grain_bytes, uint64_t *directory_sector);

/* Pages are RP_LOG_PAGE_BYTES and written whole. */
void rp_log_put_super (void *page, const struct rp_log_super *super);
bool rp_log_get_super (const void *page, struct rp_log_super *out);
void rp_log_put_segment (void *page, const struct rp_log_segment *segment);
bool rp_log_get_segment (const void *page, struct rp_log_segment *out);
void rp_log_put_trailer (void *page, const struct rp_log_trailer *trailer);
bool rp_log_get_trailer (const void *page, struct rp_log_trailer *out);
void rp_log_put_root (void *page, const struct rp_log_root *root);
bool rp_log_get_root (const void *page, struct rp_log_root *out);

/* A batch's header stands before entries or a point that are in place
 * already; put returns the checksum, which is the next batch's chain.
 * block_bytes bounds what get looks at.
 */
uint64_t rp_log_put_batch (void *block, const struct rp_log_batch *batch);
bool rp_log_get_batch (const void *block, uint32_t block_bytes,
                       struct rp_log_batch *out);
/* Does the block begin like a batch?  For scans. */
bool rp_log_is_batch (const void *block);

void rp_log_put_point (void *at, const struct rp_point *point);
bool rp_log_get_point (const void *at, struct rp_point *out);
void rp_log_put_cut (void *at, const struct rp_log_cut *cut);
bool rp_log_get_cut (const void *at, struct rp_log_cut *out);

static inline void
rp_log_put_entry (void *at, const struct rp_log_entry *entry)
{
  rp_store32 (at, entry->grain);
  rp_store32 ((uint8_t *) at + 4, entry->place);
  rp_store32 ((uint8_t *) at + 8, entry->previous);
  rp_store32 ((uint8_t *) at + 12, entry->value);
}

static inline struct rp_log_entry
rp_log_get_entry (const void *at)
{
  const uint8_t *bytes = at;
  struct rp_log_entry entry = {
    rp_load32 (bytes), rp_load32 (bytes + 4), rp_load32 (bytes + 8),
    rp_load32 (bytes + 12),
  };

  return entry;
}

/* Bytes of the header block of a batch, and of the segment header's block. */
static inline uint32_t
rp_log_block_bytes (uint32_t grain_bytes)
{
  return grain_bytes > RP_LOG_PAGE_BYTES ? grain_bytes : RP_LOG_PAGE_BYTES;
}

static inline uint32_t
rp_log_batch_entries_max (uint32_t grain_bytes)
{
  return (rp_log_block_bytes (grain_bytes) - RP_LOG_BATCH_BYTES)
         / RP_LOG_ENTRY_BYTES;
}

/* Bytes of a summary, in whole pages. */
static inline uint64_t
rp_log_summary_bytes (uint64_t entry_count, uint64_t point_count)
{
  const uint64_t bytes = entry_count * RP_LOG_ENTRY_BYTES
                         + point_count * RP_LOG_CUT_BYTES;

  return rp_divide_up (bytes, RP_LOG_PAGE_BYTES) * RP_LOG_PAGE_BYTES;
}

#endif /* RP_JOURNAL_FORMAT_H */

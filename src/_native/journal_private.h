/* journal_private.h - what the files of the journal room share.
 *
 *   journal.c         create, open, info; the journal as a disk
 *   journal_write.c   appending: segments, batches, entries, points
 *   journal_commit.c  group commit, summaries, superblock
 *   journal_open.c    recovery
 *   journal_roll.c    walking entries, reading and writing roots
 *   journal_ring.c    moving the horizon, giving segments back, checkpoints
 *   journal_destage.c what a stretch of the log leaves, into the base
 *   journal_written.c what was written since a point
 *   journal_verify.c  re-reading everything; journal_reader.c reads ahead
 *   journal_mend.c    whom a damage harms; writing again what was there
 *
 * How an append travels: under the lock, entries and grains are put into the
 * open batch, in a chunk of memory that stands for a stretch of the file.  A
 * commit makes its caller the leader (or lets it wait for one): it takes all
 * chunks, lets go of the lock, fills in checksums, writes, syncs, and comes
 * back to say so.  Writers append to new chunks meanwhile.
 *
 * Who else wants what belongs to the leader (the superblock, the list of
 * segments) becomes one for a moment: rp_journal_lead.  Whatever takes long
 * (roll, checkpoint, destage) is done by one thread at a time:
 * rp_journal_begin_work; it takes the lead only for moments.
 */
#ifndef RP_JOURNAL_PRIVATE_H
#define RP_JOURNAL_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "journal.h"
#include "journal_format.h"
#include "journal_map.h"

#define RP_CHUNK_BYTES_MAX     (4u << 20)
#define RP_PENDING_BYTES_MAX   (32u << 20)  /* then a writer commits itself */
#define RP_SETTLED_BYTES_MAX   (16u << 20)  /* before it enters a gate */

/* How far a closed segment's summary is. */
enum rp_summary_state {
  RP_SUMMARY_NONE = 0,           /* its entries are in memory */
  RP_SUMMARY_WRITTEN,            /* in the file, not synced */
  RP_SUMMARY_DURABLE,            /* synced: the trailer may be written */
  RP_SUMMARY_COMPLETE,           /* with its trailer; not in memory any more */
};

/* A segment of the log.  Fields marked L belong to the leader (or to whoever
 * has the journal to itself); the others are guarded by the lock.
 */
struct rp_segment {
  uint64_t number, position;     /* position: of its slot */
  uint64_t session;              /* of its header */
  uint64_t first_sequence, last_sequence;  /* last: 0 while it has no batch */
  uint64_t first_entry;          /* entries of the log before it */
  uint64_t entry_count, point_count;       /* appended so far */
  uint64_t end;                  /* where the next batch goes */
  bool     closed;               /* takes no more batches */
  bool     allocated;            /* its slot is reserved in the file, by us */
  enum rp_summary_state summary; /* L */
  uint64_t summary_position;     /* L: once it is written */
  uint64_t entries_checksum, points_checksum;  /* L: likewise */
  uint64_t chain_in;             /* L: checksum of the batch before */
  uint64_t chain;                /* L: checksum of its last batch */
  uint64_t epoch;                /* L: of its last batch */
  int64_t  time_ns;              /* L: of its last batch */
  uint8_t *entries;              /* L: raw, until the summary is complete */
  uint64_t prepared, capacity;   /* L: entries in it, room in it */
};

struct rp_chunk {
  struct rp_chunk   *next;
  struct rp_segment *segment;
  uint64_t position;             /* in the file */
  uint64_t used;
  bool     opens_segment;        /* its first block is the segment header */
  uint8_t *data;                 /* chunk_bytes */
};

/* The batch that takes entries now; chunk NULL when there is none. */
struct rp_open_batch {
  struct rp_chunk *chunk;
  uint64_t header;               /* offset in the chunk */
  uint64_t sequence;
  uint32_t entry_count, data_count, point_count;
};

struct rp_point_record {
  uint64_t id;
  int64_t  time_ns;
  uint32_t kind;
  uint64_t segment;              /* number */
  uint64_t ordinal;              /* entries of the segment before it */
  uint64_t sequence;
  char    *label;                /* NULL when empty */
};

struct rp_shown_root {
  uint64_t position;             /* of its header page */
  uint64_t bytes;                /* header page, directory, tables */
  uint64_t sequence, entry, table_count, content_checksum;
  uint8_t  stored[RP_LOG_DIRECTORY_MAX / 8];  /* pages of the directory */
};

/* Part of the file that is neither a segment nor the shown root, and not free
 * either: a root that is being written, or one that is being given back. */
struct rp_area {
  uint64_t position, bytes;      /* bytes 0: none */
};

/* Which segment each slot holds, to judge a place that something old names. */
struct rp_slots {
  uint64_t  count;
  uint32_t  first_sector, sectors;  /* of slot 0; of each */
  uint64_t *next;                /* its segment's number + 1; 0: none */
};

struct rp_journal {
  struct rp_disk   disk;         /* first: rp_journal_disk points here */
  struct rp_file  *file;
  struct rp_disk  *base;         /* or NULL */
  bool             writable;
  uint64_t         epoch;        /* the writer's */
  struct rp_log_super super;     /* as on disk */
  bool             super_stale[RP_LOG_SUPER_COUNT]; /* copy must be rewritten */
  bool             in_session;   /* the superblock says we write */
  bool             was_clean;    /* before that */
  uint64_t         grain_count;
  uint32_t         grain_sectors, block_bytes, batch_entries_max, chunk_bytes;
  uint64_t         slot_count;   /* in the file, the last one may be short */

  pthread_mutex_t  lock;
  pthread_cond_t   flushed;      /* the lead, the work or a read has ended */
  pthread_cond_t   room;         /* writers at the limit look again */
  int              failed;       /* sticky status, RP_OK while all is well */
  struct rp_fault  failure;      /* the first one */

  struct rp_segment **segments;
  uint64_t         segment_count, segment_room;
  uint64_t         next_trailer; /* L: segments before it are complete */
  struct rp_point_record *points;
  uint64_t         point_count, point_room;
  uint64_t         point_first;  /* those before it are behind the horizon */

  struct rp_map    map;
  bool             map_loaded;
  bool             is_view;      /* the map shows a point, not the end: */
  uint64_t         view_entry;   /* its cut */
  uint64_t         next_sequence, durable_sequence;
  uint64_t         chain;        /* L: checksum of the last prepared batch */
  int64_t          last_commit_ns;
  struct rp_open_batch batch;
  struct rp_chunk *open_chunks, *open_last;  /* not yet taken by a leader */
  struct rp_chunk *flight;       /* taken, being written */
  struct rp_chunk *spare;        /* memory to reuse */
  uint64_t         pending_bytes;
  bool             flushing;     /* somebody has the lead */
  bool             working;      /* somebody rolls, destages, ... */
  uint8_t         *scratch;      /* one grain, under the lock */

  uint64_t         limit_bytes;  /* of the slots in use; 0: none */
  bool             limit_waits;  /* a writer at the limit waits for room */
  /* reads of places that were looked up: those that began before the phase
     changed, and those after */
  _Atomic uint64_t readers[2];
  unsigned         read_phase;
  atomic_bool      readers_awaited;

  struct rp_shown_root root;
  bool             root_proven;  /* the sparse header that shows it is durable */
  struct rp_area   building;     /* beside the shown root */
  bool             leftovers_gone;  /* what a crash left in free slots */
};

static inline uint64_t
rp_slot_position (const struct rp_journal *journal, uint64_t slot)
{
  return RP_LOG_HEAD_BYTES + slot * journal->super.segment_bytes;
}

static inline uint64_t
rp_position_slot (const struct rp_journal *journal, uint64_t position)
{
  return (position - RP_LOG_HEAD_BYTES) / journal->super.segment_bytes;
}

/* Bytes of the directory of a disk, in whole pages. */
static inline uint64_t
rp_directory_bytes (uint64_t grain_count)
{
  const uint64_t bytes = rp_divide_up (grain_count, RP_LOG_TABLE_ENTRIES) * 4;

  return rp_divide_up (bytes, RP_LOG_PAGE_BYTES) * RP_LOG_PAGE_BYTES;
}

static inline uint64_t
rp_directory_pages (uint64_t grain_count)
{
  return rp_directory_bytes (grain_count) / RP_LOG_PAGE_BYTES;
}

static inline struct rp_segment *
rp_journal_segment (const struct rp_journal *journal, uint64_t number)
{
  return journal->segments[number - journal->segments[0]->number];
}

/* Bytes of a batch with so many grains, its header block included. */
static inline uint64_t
rp_batch_bytes (const struct rp_journal *journal, uint32_t data_count)
{
  return journal->block_bytes
         + (uint64_t) data_count * journal->super.grain_bytes;
}

/* Where the directory of the shown root begins: gdOffset. */
static inline uint64_t
rp_root_sector (const struct rp_journal *journal)
{
  return (journal->root.position + RP_LOG_PAGE_BYTES) / RP_SECTOR_BYTES;
}

/* How many entries of the log come before a point: where it cuts. */
static inline uint64_t
rp_point_entry (const struct rp_journal *journal,
                const struct rp_point_record *point)
{
  return rp_journal_segment (journal, point->segment)->first_entry
         + point->ordinal;
}

/* Entries of the log, as they are numbered. */
static inline uint64_t
rp_journal_entry_count (const struct rp_journal *journal)
{
  const struct rp_segment *last;

  if (journal->segment_count == 0)
    return 0;
  last = journal->segments[journal->segment_count - 1];
  return last->first_entry + last->entry_count;
}

/* What an old entry or root says, as it is today.  next: 1 + the number of the
 * newest segment that it can have meant.  A slot that holds a later one, or
 * none, was freed meanwhile: then the base has that version. */
static inline uint32_t
rp_valid_place (const struct rp_slots *slots, uint32_t place, uint64_t next)
{
  uint32_t slot;

  if (!slots->next || place <= RP_PLACE_ZEROS)
    return place;
  if (place < slots->first_sector)
    return RP_PLACE_ABSENT;
  slot = (place - slots->first_sector) / slots->sectors;
  return slot < slots->count && slots->next[slot] != 0
         && slots->next[slot] <= next
         ? place : RP_PLACE_ABSENT;
}

static inline const char *
rp_journal_name (const struct rp_journal *journal)
{
  return journal->file->name;
}

/* ---- journal_write.c and journal_commit.c ---- */

/* The sticky failure as a status and a fault; RP_OK when there is none. */
int rp_journal_usable (struct rp_journal *journal, struct rp_fault *fault);
/* With the lock held: that, or RP_HELD. */
int rp_journal_not_held (struct rp_journal *journal, struct rp_fault *fault);
/* Append one grain (all of it), or a run of zeros with one previous place. */
int rp_journal_append_grain (struct rp_journal *journal, uint64_t grain,
                             const void *data, struct rp_fault *fault);
int rp_journal_append_zeros (struct rp_journal *journal, uint64_t grain,
                             uint64_t count, struct rp_fault *fault);
/* The grain's bytes when its place is still in memory, else NULL. */
const uint8_t *rp_journal_pending (const struct rp_journal *journal,
                                   uint32_t place);
/* With the lock held, which it may let go: return when one more grain or zero
 * entry can be appended.  RP_FULL where the limit forbids it and nobody waits. */
int rp_journal_make_room (struct rp_journal *journal, struct rp_fault *fault);
/* Slots that segments and roots use. */
uint64_t rp_journal_used_count (const struct rp_journal *journal);
uint64_t rp_journal_area_slots (const struct rp_journal *journal,
                                uint64_t bytes);
/* Bytes of a root with this many tables. */
uint64_t rp_journal_root_bytes (const struct rp_journal *journal,
                                uint64_t tables);
/* Reserve a stretch of the file, so that a full datastore shows here.  File
 * systems without fallocate show it later, at the write. */
int rp_journal_allocate (struct rp_journal *journal, uint64_t position,
                         uint64_t bytes, struct rp_fault *fault);
/* End the open batch, so that what comes next is behind it. */
void rp_journal_seal_batch (struct rp_journal *journal);
/* With the lock held: bound the memory; may let go of the lock meanwhile. */
int rp_journal_throttle (struct rp_journal *journal, struct rp_fault *fault);
/* With the lock held. */
int rp_journal_commit_locked (struct rp_journal *journal,
                              struct rp_fault *fault);
/* With the lock held: wait until nobody has the lead, and take it; give it
 * back.  The lock may be let go between the two. */
void rp_journal_lead (struct rp_journal *journal);
void rp_journal_end_lead (struct rp_journal *journal);
/* Without the lock: what only one thread does at a time. */
void rp_journal_begin_work (struct rp_journal *journal);
void rp_journal_end_work (struct rp_journal *journal);
/* Write the superblock with these changes, both copies, and sync.  The caller
 * has the journal to itself, or has the lead and the lock.
 */
int rp_journal_put_super (struct rp_journal *journal,
                          const struct rp_log_super *super,
                          struct rp_fault *fault);
/* Without the lock: the same for the ring alone, beside running writers. */
int rp_journal_put_ring (struct rp_journal *journal,
                         const struct rp_log_ring *ring,
                         struct rp_fault *fault);
/* Before the first write of this handle: a new session, not clean.  Where that
 * fails, the journal has failed. */
int rp_journal_begin_session (struct rp_journal *journal,
                              struct rp_fault *fault);
/* Write the summaries that are due; the next sync makes them durable. */
int rp_journal_settle (struct rp_journal *journal, struct rp_fault *fault);
/* Epoch on disk newer than ours?  RP_STALE_EPOCH. */
int rp_journal_check_epoch (struct rp_journal *journal,
                            struct rp_fault *fault);
/* Make a failure final. */
void rp_journal_fail (struct rp_journal *journal, int status,
                      const struct rp_fault *fault);
/* One byte for each slot, 1 where a segment or a root lies; the caller
 * frees it.  NULL: no memory. */
uint8_t *rp_journal_used_slots (const struct rp_journal *journal,
                                struct rp_fault *fault);
/* The lowest free slots in a row, perhaps behind the last one. */
int rp_journal_free_slots (const struct rp_journal *journal, uint64_t count,
                           uint64_t *out, struct rp_fault *fault);
/* Give out memory for a segment at the end of the list. */
int rp_journal_add_segment (struct rp_journal *journal,
                            struct rp_segment **out, struct rp_fault *fault);
int rp_journal_add_point (struct rp_journal *journal,
                          const struct rp_log_cut *cut, uint64_t number,
                          struct rp_fault *fault);
/* Room for count more raw entries in a segment's summary. */
int rp_segment_reserve (struct rp_segment *segment, uint64_t count,
                        struct rp_fault *fault);
void rp_segment_free (struct rp_segment *segment);

/* ---- journal_open.c ---- */

/* Both copies of the superblock; the newest whole one. */
int rp_journal_read_super (struct rp_file *file, struct rp_log_super *out,
                           bool stale[RP_LOG_SUPER_COUNT],
                           struct rp_fault *fault);
/* Hide the points behind the horizon. */
void rp_journal_hide_points (struct rp_journal *journal);
/* Find segments, points, root and the end of the log. */
int rp_journal_recover (struct rp_journal *journal, struct rp_fault *fault);
/* This root, whose header has been read or written, is the shown one. */
void rp_journal_adopt_root (struct rp_journal *journal,
                            const struct rp_log_root *root);
/* Is this header, found at position, the batch that should be there? */
bool rp_journal_owns_batch (const struct rp_journal *journal,
                            const struct rp_log_batch *batch,
                            const struct rp_segment *segment,
                            uint64_t position);

/* ---- journal_roll.c ---- */

/* Fill journal->map with the end of the log, if that is not done yet. */
int rp_journal_load_map (struct rp_journal *journal, struct rp_fault *fault);
/* The raw entries of a segment: from memory, or read and checked into
 * *memory, which the caller frees. */
int rp_journal_entries (struct rp_journal *journal,
                        const struct rp_segment *segment,
                        const uint8_t **out, uint8_t **memory,
                        uint64_t *room, struct rp_fault *fault);
/* RP_CORRUPT: an entry that no writer has put there. */
int rp_journal_bad_entry (struct rp_journal *journal,
                          const struct rp_segment *segment,
                          const struct rp_log_entry *entry,
                          struct rp_fault *fault);
/* Read the shown root into a created, empty map. */
int rp_journal_read_root (struct rp_journal *journal, struct rp_map *map,
                          struct rp_fault *fault);
/* slots->next stays NULL where nothing was ever freed: all places are good. */
int rp_journal_list_slots (const struct rp_journal *journal,
                           struct rp_slots *slots, struct rp_fault *fault);
/* Apply entries [first, stop) of the log forwards. */
int rp_journal_walk_forward (struct rp_journal *journal, struct rp_map *map,
                             uint64_t first, uint64_t stop,
                             struct rp_fault *fault);

/* What to show: a cut of the log. */
struct rp_cut {
  uint64_t point_id, entry, sequence;
  uint64_t segment;              /* number, of a point's record */
};

/* Is a root of so many tables cheaper to read than so many entries to walk? */
bool rp_journal_root_pays (uint64_t tables, uint64_t entries);
/* With the lock held, or the journal to oneself. */
int rp_journal_find_cut (const struct rp_journal *journal, uint64_t point_id,
                         struct rp_cut *out, struct rp_fault *fault);
/* With the lock held: freeze the end of the log, and make what it includes
 * durable.  Not frozen, if that end is shown already and `again` false. */
int rp_journal_freeze_end (struct rp_journal *journal, bool again,
                           struct rp_map_freeze *freeze, struct rp_cut *end,
                           struct rp_fault *fault);
/* Without the lock. */
void rp_journal_thaw (struct rp_journal *journal,
                      struct rp_map_freeze *freeze);
/* Write a root for the end of the log and show it, beside running writers.
 * again: also when that is what is shown already.  limited: RP_FULL where the
 * limit leaves no room for it.  Within begin_work; the map is loaded. */
int rp_journal_show_end (struct rp_journal *journal, bool again, bool limited,
                         struct rp_roll *out, struct rp_fault *fault);

/* Nobody's any more: what was taken as `building`. */
void rp_journal_end_building (struct rp_journal *journal);

/* ---- journal_destage.c ---- */

struct rp_destaging {
  struct rp_disk *target;
  bool (*progress) (void *context, uint64_t done_bytes, uint64_t total_bytes);
  void *context;
};

/* The newest version of each grain in entries [first, stop), all durable, into
 * the target; synced.  Within begin_work. */
int rp_journal_copy_newest (struct rp_journal *journal, uint64_t first,
                            uint64_t stop, const struct rp_destaging *how,
                            struct rp_destage *out, struct rp_fault *fault);
/* touched: a byte for each table, set where entries [first, stop) change it */
int rp_journal_note_touched (struct rp_journal *journal, uint64_t first,
                             uint64_t stop, uint8_t *touched,
                             struct rp_fault *fault);

/* ---- journal.c ---- */

/* With the lock held: wait for every read that has looked up its places. */
void rp_journal_await_readers (struct rp_journal *journal);
/* For a reader: was what it read what it takes it for?  RP_STATE where a
 * writer has destaged it meanwhile. */
int rp_journal_check_not_passed (struct rp_journal *journal,
                                 struct rp_fault *fault);

#endif /* RP_JOURNAL_PRIVATE_H */

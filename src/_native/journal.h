/* journal.h - the log of a replica disk, and the roll back to any point of it.
 *
 * One file, `<disk>-journal-log.vmdk`: a hosted sparse VMDK extent whose
 * grains happen to lie in the order they were written.
 *
 *   head   sector 0: KDMV header, version 2, flags 0x5 (newline test, zero
 *          grains), no redundant directory, grain 8 sectors by default;
 *          its gdOffset is the root that any VMDK reader sees.
 *          4 KiB and 8 KiB: two copies of the superblock, written in turn
 *          (journal id, segment size, epoch, held flag, generation, checksum).
 *   slots  of segment_bytes each, from 64 KiB on.  A slot belongs to a log
 *          segment, to a root, or is free.
 *   segment  4 KiB header (id, segment number, first batch, chain) | batches
 *          | summary of all its entries and points | 4 KiB trailer.
 *   batch  one header block (the size of a grain, at least 4 KiB): magic, id,
 *          sequence, checksum of the batch before it (the chain), epoch, time,
 *          durable sequence, entries of 16 bytes, or one restore point; then
 *          its grains, grain aligned.
 *   entry  grain, place (sector in this file; 1 = zeros), previous place of
 *          the same grain (0 = absent: the base shows), value (XXH3 of the
 *          data, low 32 bits; for zeros the number of grains in the run, all
 *          of which had the same previous place).
 *   root   4 KiB root header (sequence it shows, size, XXH3) | grain directory
 *          | grain tables, in free slots; the sparse header flips to it with
 *          one sector write after it is synced.  Pages of the directory that
 *          name no table are holes: a root costs what was written, however
 *          large the disk is.
 *
 * A batch is valid when its checksums hold and it chains to the one before.
 * Recovery walks the last segment; what follows the last valid batch is a torn
 * tail and is dropped, unless a later valid batch says (durable sequence) that
 * it had been synced: that is damage, and an error.
 *
 * Rolling back copies no data: walk entries from the nearest known map (the
 * empty one of what the base holds, the shown root, or the map in memory),
 * forwards by place or backwards by previous place, write tables and
 * directory, sync, flip, sync.
 *
 * The log is a ring.  A destage moves the horizon up to a restore point, which
 * becomes the oldest: what was written before it goes to the base, newest
 * version only, and segments that hold nothing else are free for new ones.
 * Entries are numbered over the whole life of the log:
 *
 *     first segment kept   based     horizon             end
 *     |--------------------|---------|-------------------|
 *       in the base too      being     points can be
 *                            destaged  rolled back to
 *
 * A place that an old entry or root names may have been freed and used again.
 * Its slot tells: if it holds a later segment today than whoever named it can
 * have known, or none, then the base has that version.
 *
 * Threads: write, zero, pread, run, commit, mark, info, point, checkpoint,
 *          destage, set_limit from any thread; checkpoint and destage wait for
 *          one another.  roll, set_epoch, close_clean, scrub, affected, mend,
 *          written, prove: one thread, with no other call running (a roll or a close beside a
 *          destage would wait for its end).
 * Readers: who opens a log without the lock beside a writer that destages gets
 *          RP_STATE from a read once the horizon has passed what it knows; see
 *          also rp_journal_view.
 * Tests:   tests/native/journal_test.c, journal_destage_test.c,
 *          journal_root_test.c, journal_view_threads_test.c, tests/test_journal.py
 * Bytes:   docs/formats.md, "Journal log"
 */
#ifndef RP_JOURNAL_H
#define RP_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "io.h"
#include "spans.h"

#define RP_POINT_LABEL_BYTES   256   /* UTF-8 with its NUL */
#define RP_JOURNAL_GRAIN_BYTES 4096u
#define RP_POINT_LATEST        UINT64_MAX   /* the newest restore point */
#define RP_POINT_END           (UINT64_MAX - 1)  /* the end of the log */
#define RP_POINT_BASE          UINT64_C (0)  /* what is below the journal */

struct rp_journal;

struct rp_journal_options {
  uint64_t capacity_bytes;       /* multiple of 512; at most 2^32 grains */
  uint32_t grain_bytes;          /* power of two, 4096 .. 65536 */
  uint32_t segment_bytes;        /* multiple of 4096; at least 8 grains; 64 KiB ..
                                    1 GiB */
  uint8_t  id[16];
  uint64_t epoch;                /* >= 1 */
};

enum rp_point_kind { RP_POINT_CRASH = 1, RP_POINT_APP = 2 };

/* A restore point: a cut of the log. */
struct rp_point {
  uint64_t id;                   /* rises; the same in every journal of a replica */
  int64_t  time_ns;              /* wall clock, since 1970, UTC */
  uint32_t kind;                 /* enum rp_point_kind */
  char     label[RP_POINT_LABEL_BYTES];
};

enum rp_journal_flags {
  RP_JOURNAL_READ  = 1,          /* no lock, no recovery; nothing is written */
  RP_JOURNAL_WRITE = 2,          /* takes the lock (RP_LOCKED), recovers the tail */
};

/* Make the log in an empty file and sync it (the caller syncs the directory). */
int rp_journal_create (struct rp_file *file,
                       const struct rp_journal_options *options,
                       struct rp_fault *fault);

/* Open a log.  file and base are borrowed and outlive the journal.
 *   base    what shows where the log has nothing; may be NULL when neither
 *           data is read nor a sub-grain write made (points, roll, scrub)
 *   epoch   the writer's; 0 takes the one on disk.  RP_STALE_EPOCH when the
 *           one on disk is newer.
 * Loads segment trailers and points, not the map: that comes with the first
 * read or write (RP_JOURNAL_WRITE or READ).
 * Returns RP_OK, RP_FORMAT, RP_CORRUPT, RP_LOCKED, RP_STALE_EPOCH, RP_IO, ...
 */
int rp_journal_open (struct rp_file *file, struct rp_disk *base, int flags,
                     uint64_t epoch, struct rp_journal **out,
                     struct rp_fault *fault);
/* Ends without committing: what was not committed is lost, as in a crash. */
void rp_journal_destroy (struct rp_journal *journal);  /* NULL is allowed */

struct rp_journal_info {
  struct rp_journal_options options;   /* options.epoch: the one on disk */
  bool     held, failed;
  uint64_t next_sequence, durable_sequence;
  uint64_t point_count, segment_count;
  uint64_t entry_count;          /* in the whole log */
  uint64_t log_bytes;            /* file bytes used by segments, summaries too */
  uint64_t root_sequence;        /* last batch that the shown root includes */
  uint64_t root_sector;          /* gdOffset */
  int64_t  last_commit_ns;       /* time of the last valid batch; 0 if none */
  bool     closed_clean;         /* the last writer before closed it in order */
  uint64_t entries_since_point;  /* written after the newest point, also those
                                    that are not durable yet */
  uint64_t horizon_entry;        /* entries before the oldest point that may be
                                    restored; 0: nothing was ever destaged */
  uint64_t horizon_sequence;     /* batch of that point; 0 likewise */
  uint64_t based_entry;          /* entries whose effect the base holds; below
                                    horizon_entry: a destage was cut short and
                                    wants to be asked for again */
  uint64_t root_entry;           /* entries that the shown root includes */
  uint64_t used_bytes;           /* slots that segments and roots use */
  uint64_t limit_bytes;          /* of those; 0: none */
};
void rp_journal_info (struct rp_journal *journal, struct rp_journal_info *out);

/* From now on the disk of a journal that is open for reading shows a restore
 * point (its id, or RP_POINT_LATEST) and not the end of the log.  Nothing is
 * written, and a writer may go on beside it.  After each read and run it is
 * looked at the superblock, which tells what a destage has done meanwhile:
 * RP_STATE where that is in the way (told in time on one host, whose page cache
 * both share; a network file system promises no such order).  Open log and base again: the point may
 * still be there.  Any other use of the base than by destages of this log must
 * be kept away.
 * Returns RP_OK, RP_NOT_FOUND, RP_STATE, RP_BAD_ARGUMENT (it is open for
 * writing, or the point is none), RP_CORRUPT, RP_IO, ...
 */
int rp_journal_view (struct rp_journal *journal, uint64_t point_id,
                     struct rp_fault *fault);

/* Which grains were written, or made zeros, since a restore point (its id, or
 * RP_POINT_BASE: all that the log has and what is below it may not have), up to
 * the end of the log, as bytes of the disk.  Commits first where it is open for
 * writing.  Entries are walked, at 16 bytes a write; no grain is read.
 *   out   zeroed; the caller frees out->pairs, whatever is returned
 * Returns RP_OK, RP_NOT_FOUND (no such point), RP_STATE (a destage has got in
 * the way of a reader), RP_CORRUPT, RP_NO_MEMORY, RP_IO, ...
 */
int rp_journal_written (struct rp_journal *journal, uint64_t point_id,
                        struct rp_spans *out, struct rp_fault *fault);

/* Of a journal that shows a restore point (rp_journal_view): does all data of
 * the log that it shows in these ranges (pairs in order, see spans.h) match its
 * checksums?  Entries are walked, and the grains read once.
 * Returns RP_OK, RP_CORRUPT (it names the place in the log and on the disk),
 * RP_BAD_ARGUMENT, RP_NO_MEMORY, RP_IO.
 */
int rp_journal_prove (struct rp_journal *journal, const uint64_t *pairs,
                      uint64_t count, struct rp_fault *fault);

/* The journal as a disk (reads, writes, flush = commit).  Belongs to the
 * journal: do not destroy it.  Writes need RP_JOURNAL_WRITE and a base.
 */
struct rp_disk *rp_journal_disk (struct rp_journal *journal);

/* Make everything written or marked before the call durable: one sequential
 * write and one sync for all that waits (group commit).  The first failure is
 * final: RP_FAILED from then on.  Before each commit the epoch on disk is read
 * again: RP_STALE_EPOCH, final too, when it has grown.
 */
int rp_journal_commit (struct rp_journal *journal, struct rp_fault *fault);
/* bytes written and not yet durable */
uint64_t rp_journal_pending_bytes (struct rp_journal *journal);

/* Append a restore point after everything written so far; durable with the
 * next commit.  The id must be above every earlier one.
 */
int rp_journal_mark (struct rp_journal *journal, const struct rp_point *point,
                     struct rp_fault *fault);

/* Point number index, 0 = oldest.  RP_NOT_FOUND past the end. */
int rp_journal_point (struct rp_journal *journal, uint64_t index,
                      struct rp_point *out, struct rp_fault *fault);
/* The same point's cut: how many entries of the log come before it. */
int rp_journal_point_cut (struct rp_journal *journal, uint64_t index,
                          uint64_t *entries_out, struct rp_fault *fault);

/* Commit, then make the epoch and the held flag durable.  epoch >= the present
 * one.  Held: every later write fails with RP_HELD until set otherwise.
 */
int rp_journal_set_epoch (struct rp_journal *journal, uint64_t epoch, bool held,
                          struct rp_fault *fault);

struct rp_roll {
  uint64_t point_id;             /* that was reached; RP_POINT_END for the end */
  bool     backwards;            /* which way the entries were walked */
  uint64_t entries_walked;
  uint64_t tables_written;
  uint64_t bytes_written;
  uint64_t root_sector;          /* the new gdOffset */
};

/* Show the disk as of a restore point (its id, RP_POINT_LATEST, RP_POINT_END)
 * in the sparse header.  Nothing in the log changes; the old root stays valid
 * until the flip is durable.  Needs RP_JOURNAL_WRITE (the lock), no base.
 * Also commits first.  Rolling to what is shown already writes nothing.
 */
int rp_journal_roll (struct rp_journal *journal, uint64_t point_id,
                     struct rp_roll *out, struct rp_fault *fault);

/* ---- the ring ---- */

/* Write a root for the end of the log and show it, so that opening has to walk
 * only what comes after it; unless reading that root would take longer than the
 * walk (its size is that of the disk's written parts: 2 KiB for each 512 grains,
 * to be held against 32 entries).  Writers go on meanwhile.
 */
struct rp_checkpoint {
  uint64_t entries_since;        /* that the root shown before did not include;
                                    0: nothing was to be done, or to be won */
  uint64_t bytes_written;
  uint64_t root_sector;          /* gdOffset */
};
/* Returns RP_OK, RP_HELD, RP_FULL (the limit leaves no room for a root; nothing
 * is lost), RP_FAILED, ... */
int rp_journal_checkpoint (struct rp_journal *journal,
                           struct rp_checkpoint *out, struct rp_fault *fault);

struct rp_destage {
  uint64_t entries;              /* that the base is ahead of where it was */
  uint64_t grains;               /* distinct ones, written or zeroed */
  uint64_t bytes_written;        /* to the target */
  uint64_t zeroed_bytes;
  uint64_t freed_bytes;          /* of slots that were given back */
};

/* Make a restore point (its id, or RP_POINT_LATEST) the oldest one: the points
 * before it go, and the target then holds the disk as of it.  In this order,
 * each durable before the next:
 *   1 the horizon, in the superblock: older points are gone;
 *   2 a root of a later state is shown, if an earlier one was;
 *   3 the newest version of each grain before the point, in the target;
 *   4 a root that names nothing in segments that end before the point;
 *   5 based_entry and the first segment kept, in the superblock.
 * Then those segments are punched, and their slots are free.  Segments are kept
 * (freed_bytes 0) where a root would cost more than they give back and no
 * limit is near.  Afterwards the end of the log may be shown, whatever was
 * shown before: nobody may be reading through the shown root.
 *
 *   target    what the journal was opened with as its base, open for writing;
 *             flushed here
 *   progress  called by this thread about every MiB, NULL is allowed; may
 *             sleep; false stops with RP_CANCELLED
 * Cut short anywhere (a crash, a cancel, an error of the target), the points
 * from the horizon on are whole, and the same call finishes the work.
 * A grain whose checksum is wrong is RP_CORRUPT, with its place in the log and
 * on the disk, and is not written; the target keeps what it had.
 * On hold (RP_HELD) base and shown root stay as they are, for whoever reads
 * through them.
 * Returns RP_OK, RP_NOT_FOUND, RP_CANCELLED, RP_HELD, RP_CORRUPT, RP_IO,
 * RP_FAILED, ...
 */
int rp_journal_destage (struct rp_journal *journal, uint64_t point_id,
                        struct rp_disk *target,
                        bool (*progress) (void *context, uint64_t done_bytes,
                                          uint64_t total_bytes),
                        void *context, struct rp_destage *out,
                        struct rp_fault *fault);

/* From now on segments and roots use at most limit_bytes (0: no limit; not
 * kept in the file).  A write that needs more waits for room (wait: until a
 * destage frees some, the limit or this choice changes, the journal is held or
 * fails), or gets RP_FULL, which is not final.  A mark never waits: there is
 * room for two more points when writers have to stop, then RP_FULL.
 * Room for one root is set aside; a limit below five segments may let nothing
 * be written at all.
 */
int rp_journal_set_limit (struct rp_journal *journal, uint64_t limit_bytes,
                          bool wait, struct rp_fault *fault);

/* Close in order: commit, show the end of the log, mark the superblock clean. */
int rp_journal_close_clean (struct rp_journal *journal, struct rp_fault *fault);

struct rp_journal_damage {
  uint64_t segment;              /* number; UINT64_MAX: head or root */
  uint64_t position;             /* byte in the log file */
  uint64_t guest_offset_bytes;   /* UINT64_MAX for metadata */
  uint64_t length_bytes;
  char     message[128];
};

struct rp_scrub_progress {
  uint64_t done_bytes, total_bytes;
  uint64_t next_segment, chain;  /* a later scrub may begin here: from_... */
};

struct rp_scrub {
  /* Segments of lower numbers are not read.  from_chain: what the progress of
     that scrub said with it (0: not compared); RP_NOT_FOUND where the segments
     before are still there and are not those. */
  uint64_t from_segment, from_chain;
  uint64_t segment_count;        /* of numbers: these segments and nothing
                                    else; 0: to the end, head and root */
  /* once for each damage */
  void   (*each) (void *context, const struct rp_journal_damage *damage);
  /* NULL is allowed; false stops with RP_CANCELLED */
  bool   (*progress) (void *context, const struct rp_scrub_progress *progress);
  void    *context;
};

/* Re-read headers, entries, summaries, points and grains of segments, and the
 * head and the shown root, against their checksums; what cannot be read is
 * damage too.  A journal that is open for reading may be written by
 * another meanwhile: what it appends is not looked at, but segments that it
 * frees look damaged: see rp_journal_affected.
 * Returns RP_OK when it ran through, whatever it found.
 */
int rp_journal_scrub (struct rp_journal *journal, const struct rp_scrub *scrub,
                      struct rp_fault *fault);

/* Whom a damage harms.  For data these are the points whose map names the
 * place; for anything else of a segment all points in it and behind it, since
 * finding or replaying them may need it. */
struct rp_affected {
  uint64_t segment, position;    /* of the damage */
  bool     gone;                 /* the journal has no such segment any more */
  bool     end;                  /* the end of the log is affected */
  uint64_t first_point, last_point;  /* ids; 0: none */
};
int rp_journal_affected (struct rp_journal *journal,
                         struct rp_affected *items, uint64_t count,
                         struct rp_fault *fault);

/* Write a damaged grain or a batch's header again, if data (grain_bytes of it)
 * is proven to be what was there: the grain by the checksum in its entry (32
 * bits), the header by its chain to the batch before it and that of the next,
 * or the trailer, to it.  data NULL: the entries of the segment's summary,
 * proven by the trailer's checksum, out of its batches.  Not synced: see
 * rp_file_sync.
 * Returns RP_OK, RP_CORRUPT (not proven, nothing was written), RP_NOT_FOUND
 * (no such thing there), RP_READ_ONLY, RP_IO ...
 */
int rp_journal_mend (struct rp_journal *journal, uint64_t segment,
                     uint64_t position, const void *data,
                     struct rp_fault *fault);

#endif /* RP_JOURNAL_H */

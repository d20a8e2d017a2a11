/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_private.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NO_GUEST UINT64_MAX

struct verify {
  struct rp_journal *journal;
  void (*each) (void *context, const struct rp_journal_damage *damage);
  bool (*progress) (void *context, uint64_t done_bytes, uint64_t total_bytes);
  void *context;
  uint64_t done, total;          /* bytes, for progress */
  uint8_t *block, *grain;
};

static void __attribute__ ((format (printf, 5, 6)))
report (struct verify *verify, uint64_t position, uint64_t guest,
        uint64_t length, const char *format, ...)
{
  struct rp_journal_damage damage = {
    .position = position, .guest_offset_bytes = guest, .length_bytes = length,
  };
  va_list arguments;

  va_start (arguments, format);
  vsnprintf (damage.message, sizeof damage.message, format, arguments);
  va_end (arguments);
  verify->each (verify->context, &damage);
}

static int
advance (struct verify *verify, uint64_t bytes, struct rp_fault *fault)
{
  verify->done += bytes;
  if (verify->progress
      && !verify->progress (verify->context, verify->done, verify->total))
    return rp_fail (fault, RP_STATE, verify->done, "stopped on request");
  return RP_OK;
}

/* Read; what lies behind the end of the file is damage and reads as zeros. */
static int
read_some (struct verify *verify, void *buffer, uint64_t length,
           uint64_t position, struct rp_fault *fault)
{
  size_t done = 0;
  int status = rp_file_pread (verify->journal->file, buffer, length, position,
                              &done, fault);

  if (status == RP_OK && done < length)
    memset ((uint8_t *) buffer + done, 0, length - done);
  return status;
}

/* ---- head ---- */

static int
verify_head (struct verify *verify, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  uint64_t capacity, directory;
  uint32_t grain_bytes;
  int status = read_some (verify, verify->block, RP_SECTOR_BYTES, 0, fault);

  if (status != RP_OK)
    return status;
  if (!rp_log_get_sparse (verify->block, &capacity, &grain_bytes, &directory)
      || capacity != journal->super.capacity_bytes
      || grain_bytes != journal->super.grain_bytes
      || directory * RP_SECTOR_BYTES
         != journal->root.position + RP_LOG_PAGE_BYTES)
    report (verify, 0, NO_GUEST, RP_SECTOR_BYTES, "the sparse header");
  for (uint64_t i = 1; i <= RP_LOG_SUPER_COUNT; i++) {
    struct rp_log_super super;

    status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES,
                        i * RP_LOG_PAGE_BYTES, fault);
    if (status != RP_OK)
      return status;
    if (!rp_log_get_super (verify->block, &super)
        || memcmp (super.id, journal->super.id, sizeof super.id) != 0)
      report (verify, i * RP_LOG_PAGE_BYTES, NO_GUEST, RP_LOG_PAGE_BYTES,
              "copy %u of the superblock", (unsigned) i);
  }
  return advance (verify, RP_LOG_HEAD_BYTES, fault);
}

/* ---- batches ---- */

static int
verify_grains (struct verify *verify, const struct rp_log_batch *batch,
               struct rp_fault *fault)
{
  const uint32_t grain_bytes = verify->journal->super.grain_bytes;

  for (uint32_t i = 0; i < batch->entry_count; i++) {
    const struct rp_log_entry entry
      = rp_log_get_entry (verify->block + RP_LOG_BATCH_BYTES
                          + (uint64_t) i * RP_LOG_ENTRY_BYTES);
    const uint64_t position = (uint64_t) entry.place * RP_SECTOR_BYTES;
    int status;

    if (entry.place == RP_PLACE_ZEROS)
      continue;
    status = read_some (verify, verify->grain, grain_bytes, position, fault);
    if (status != RP_OK)
      return status;
    if ((uint32_t) rp_log_hash (verify->grain, grain_bytes) != entry.value)
      report (verify, position, (uint64_t) entry.grain * grain_bytes,
              grain_bytes, "data written by batch %" PRIu64, batch->sequence);
  }
  return RP_OK;
}

/* The batch at position, if it is a batch of this segment at all. */
static int
read_batch (struct verify *verify, const struct rp_segment *segment,
            uint64_t position, struct rp_log_batch *batch, bool *found,
            struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  int status = read_some (verify, verify->block, journal->block_bytes,
                          position, fault);

  *found = status == RP_OK
           && rp_log_get_batch (verify->block, journal->block_bytes, batch)
           && rp_journal_owns_batch (journal, batch, segment, position)
           && batch->sequence >= segment->first_sequence
           && batch->sequence <= segment->last_sequence;
  return status;
}

/* Compare a batch's entries with what the segment's summary says. */
static void
compare_entries (struct verify *verify, const struct rp_log_batch *batch,
                 const uint8_t *entries, uint64_t ordinal, uint64_t count)
{
  const uint64_t bytes = (uint64_t) batch->entry_count * RP_LOG_ENTRY_BYTES;

  if (!entries)
    return;
  if (ordinal > count || batch->entry_count > count - ordinal
      || (bytes > 0
          && memcmp (entries + ordinal * RP_LOG_ENTRY_BYTES,
                     verify->block + RP_LOG_BATCH_BYTES, bytes) != 0))
    report (verify, batch->position, NO_GUEST, verify->journal->block_bytes,
            "batch %" PRIu64 " differs from the summary", batch->sequence);
}

/* Where a walk through the batches of a segment is. */
struct step {
  uint64_t position, sequence, chain, ordinal;
  bool lost;                     /* the batch before was unreadable */
};

static void
check_chain (struct verify *verify, const struct rp_log_batch *batch,
             struct step *step)
{
  if (!step->lost
      && (batch->sequence != step->sequence || batch->chain != step->chain))
    report (verify, batch->position, NO_GUEST, verify->journal->block_bytes,
            "batch %" PRIu64 " does not follow the one before it",
            batch->sequence);
  step->lost = false;
  step->sequence = batch->sequence + 1;
  step->chain = batch->checksum;
  step->ordinal += batch->entry_count;
  step->position += verify->journal->block_bytes
                    + (uint64_t) batch->data_count
                      * verify->journal->super.grain_bytes;
}

static int
verify_batches (struct verify *verify, const struct rp_segment *segment,
                const uint8_t *entries, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  struct step step = {
    .position = segment->position + journal->block_bytes,
    .sequence = segment->first_sequence, .chain = segment->chain_in,
  };
  bool whole = true;

  while (step.position < segment->end) {
    const uint64_t before = step.position;
    struct rp_log_batch batch;
    bool found;
    int status = read_batch (verify, segment, step.position, &batch, &found,
                             fault);

    if (status != RP_OK)
      return status;
    if (!found) {
      /* say it once, and look for the next that can be read */
      if (!step.lost)
        report (verify, step.position, NO_GUEST, journal->block_bytes,
                "the header of batch %" PRIu64, step.sequence);
      step.lost = true;
      whole = false;
      step.position += journal->super.grain_bytes;
    } else {
      if (whole)
        compare_entries (verify, &batch, entries, step.ordinal,
                         segment->prepared);
      status = verify_grains (verify, &batch, fault);
      if (status != RP_OK)
        return status;
      check_chain (verify, &batch, &step);
    }
    status = advance (verify, step.position - before, fault);
    if (status != RP_OK)
      return status;
  }
  if (whole && step.ordinal != segment->prepared)
    report (verify, segment->position, NO_GUEST, segment->end
            - segment->position, "segment %" PRIu64 " holds %" PRIu64
            " entries, its summary says %" PRIu64, segment->number,
            step.ordinal, segment->prepared);
  return RP_OK;
}

/* ---- segments ---- */

/* The summary's points; a damaged one also stops an open. */
static int
verify_points (struct verify *verify, const struct rp_segment *segment,
               struct rp_fault *fault)
{
  const uint64_t page = segment->position
                        + verify->journal->super.segment_bytes
                        - RP_LOG_PAGE_BYTES;
  struct rp_log_trailer trailer;
  uint64_t position, bytes;
  uint8_t *cuts;
  int status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES, page,
                          fault);

  if (status != RP_OK)
    return status;
  if (!rp_log_get_trailer (verify->block, &trailer)
      || trailer.number != segment->number
      || trailer.entry_count != segment->prepared
      || trailer.point_count != segment->point_count) {
    report (verify, page, NO_GUEST, RP_LOG_PAGE_BYTES,
            "the trailer of segment %" PRIu64, segment->number);
    return RP_OK;
  }
  position = segment->summary_position + trailer.entry_count
                                         * RP_LOG_ENTRY_BYTES;
  bytes = trailer.point_count * RP_LOG_CUT_BYTES;
  cuts = malloc (bytes + 1);
  if (!cuts)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the points of a segment");
  status = read_some (verify, cuts, bytes, position, fault);
  if (status == RP_OK && rp_log_hash (cuts, bytes) != trailer.points_checksum)
    report (verify, position, NO_GUEST, bytes,
            "the restore points in the summary of segment %" PRIu64,
            segment->number);
  free (cuts);
  return status;
}

static int
verify_segment (struct verify *verify, const struct rp_segment *segment,
                struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  struct rp_log_segment header;
  const uint8_t *entries = NULL;
  uint8_t *memory = NULL;
  uint64_t room = 0;
  int status = read_some (verify, verify->block, RP_LOG_PAGE_BYTES,
                          segment->position, fault);

  if (status != RP_OK)
    return status;
  if (!rp_log_get_segment (verify->block, &header)
      || memcmp (header.id, journal->super.id, sizeof header.id) != 0
      || header.number != segment->number)
    report (verify, segment->position, NO_GUEST, RP_LOG_PAGE_BYTES,
            "the header of segment %" PRIu64, segment->number);
  status = rp_journal_entries (journal, segment, &entries, &memory, &room,
                               fault);
  if (status == RP_CORRUPT) {
    report (verify, segment->summary_position, NO_GUEST,
            segment->prepared * RP_LOG_ENTRY_BYTES,
            "the summary of segment %" PRIu64, segment->number);
    entries = NULL;
    status = RP_OK;
  }
  if (status == RP_OK && segment->summary == RP_SUMMARY_COMPLETE)
    status = verify_points (verify, segment, fault);
  if (status == RP_OK)
    status = verify_batches (verify, segment, entries, fault);
  free (memory);
  return status;
}

/* ---- root ---- */

static void
compare_maps (struct verify *verify, const struct rp_map *shown,
              const struct rp_map *log)
{
  const uint64_t table_bytes = (uint64_t) RP_LOG_TABLE_ENTRIES
                               * verify->journal->super.grain_bytes;

  for (uint64_t i = 0; i < shown->table_count; i++)
    for (uint64_t g = i * RP_LOG_TABLE_ENTRIES;
         shown->tables[i] != log->tables[i]
         && g < (i + 1) * RP_LOG_TABLE_ENTRIES && g < shown->grain_count; g++)
      if (rp_map_get (shown, g) != rp_map_get (log, g)) {
        report (verify, verify->journal->root.position, i * table_bytes,
                table_bytes, "the shown root differs from the log");
        break;
      }
}

/* The shown root against its checksum, and against what the log says. */
static int
verify_root (struct verify *verify, struct rp_fault *fault)
{
  struct rp_journal *journal = verify->journal;
  const struct rp_shown_root *root = &journal->root;
  struct rp_map shown, log;
  int status = rp_map_create (&shown, journal->grain_count, fault);

  if (status != RP_OK)
    return status;
  status = rp_journal_read_root (journal, &shown, fault);
  if (status == RP_CORRUPT)
    report (verify, root->position, NO_GUEST, root->bytes, "the shown root");
  else if (status == RP_OK) {
    status = rp_map_create (&log, journal->grain_count, fault);
    if (status == RP_OK) {
      status = rp_journal_walk_forward (journal, &log, 0, root->entry, fault);
      if (status == RP_OK)
        compare_maps (verify, &shown, &log);
      rp_map_destroy (&log);
    }
  }
  rp_map_destroy (&shown);
  if (status == RP_CORRUPT)      /* reported, here or with the summaries */
    status = RP_OK;
  return status == RP_OK ? advance (verify, root->bytes, fault) : status;
}

int
rp_journal_verify (struct rp_journal *journal,
                   void (*each) (void *context,
                                 const struct rp_journal_damage *damage),
                   bool (*progress) (void *context, uint64_t done_bytes,
                                     uint64_t total_bytes),
                   void *context, struct rp_fault *fault)
{
  struct verify verify = {
    .journal = journal, .each = each, .progress = progress,
    .context = context, .total = RP_LOG_HEAD_BYTES + journal->root.bytes,
  };
  int status = journal->writable ? rp_journal_commit (journal, fault) : RP_OK;

  if (status != RP_OK)
    return status;
  for (uint64_t i = 0; i < journal->segment_count; i++)
    verify.total += journal->segments[i]->end - journal->segments[i]->position
                    - journal->block_bytes;
  verify.block = malloc (journal->block_bytes);
  verify.grain = malloc (journal->super.grain_bytes);
  if (!verify.block || !verify.grain)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "a buffer");
  else
    status = verify_head (&verify, fault);
  for (uint64_t i = 0; status == RP_OK && i < journal->segment_count; i++)
    status = verify_segment (&verify, journal->segments[i], fault);
  if (status == RP_OK)
    status = verify_root (&verify, fault);
  free (verify.grain);
  free (verify.block);
  return status;
}

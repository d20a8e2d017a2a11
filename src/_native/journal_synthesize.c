/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_synthesize.h"

#include <stdlib.h>
#include <string.h>

#include "journal_private.h"

#define STRETCH_BYTES (UINT64_C (1) << 30)
#define BATCH_NS      INT64_C (1000000)  /* the clock's step for each batch */

struct synthesis {
  struct rp_journal *journal;    /* for its sizes; opened without a lock */
  const struct rp_synthesis *how;
  struct rp_map map;
  uint64_t set_grains, stretch_grains, stretch_step;
  uint64_t random;
  uint64_t written, pointed;     /* entries and points so far */
  uint64_t slot, number, sequence, chain;
  uint32_t zero_value;           /* checksum of a grain of zeros */
  uint8_t *block;
  struct rp_segment segment;     /* the one being filled */
  uint8_t *cuts;
};

static uint64_t
next_grain (struct synthesis *synthesis)
{
  uint64_t x = synthesis->random += UINT64_C (0x9e3779b97f4a7c15);
  uint64_t grain;

  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  x ^= x >> 31;
  grain = (uint64_t) (((__uint128_t) x * synthesis->set_grains) >> 64);
  return grain / synthesis->stretch_grains * synthesis->stretch_step
         + grain % synthesis->stretch_grains;
}

static uint64_t
next_point_at (const struct synthesis *synthesis)
{
  const struct rp_synthesis *how = synthesis->how;

  if (synthesis->pointed == how->points)
    return UINT64_MAX;
  return how->entries / how->points * (synthesis->pointed + 1)
         + (synthesis->pointed + 1 == how->points ? how->entries % how->points
                                                  : 0);
}

static int
open_segment (struct synthesis *synthesis, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  struct rp_segment *segment = &synthesis->segment;
  const uint64_t first_entry = segment->first_entry + segment->prepared;
  uint8_t *entries = segment->entries;
  const uint64_t capacity = segment->capacity;
  struct rp_log_segment header = {
    .number = synthesis->number++,
    .position = rp_slot_position (journal, synthesis->slot++),
    .first_sequence = synthesis->sequence, .chain = synthesis->chain,
    .session = 1, .epoch = journal->super.epoch,
    .durable_sequence = synthesis->sequence - 1, .first_entry = first_entry,
  };
  uint8_t page[RP_LOG_PAGE_BYTES];

  memset (segment, 0, sizeof *segment);
  segment->entries = entries;
  segment->capacity = capacity;
  segment->number = header.number;
  segment->position = header.position;
  segment->first_sequence = header.first_sequence;
  segment->first_entry = first_entry;
  segment->end = header.position + journal->block_bytes;
  segment->session = 1;
  memcpy (header.id, journal->super.id, sizeof header.id);
  rp_log_put_segment (page, &header);
  return rp_file_pwrite (journal->file, page, sizeof page, header.position,
                         fault);
}

static int
close_segment (struct synthesis *synthesis, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  struct rp_segment *segment = &synthesis->segment;
  const uint64_t entry_bytes = segment->prepared * RP_LOG_ENTRY_BYTES;
  const uint64_t cut_bytes = segment->point_count * RP_LOG_CUT_BYTES;
  const uint64_t page = segment->position + journal->super.segment_bytes
                        - RP_LOG_PAGE_BYTES;
  struct rp_log_trailer trailer = {
    .number = segment->number, .position = segment->position,
    .first_sequence = segment->first_sequence,
    .last_sequence = synthesis->sequence - 1, .chain = synthesis->chain,
    .summary_position = page - rp_log_summary_bytes (segment->prepared,
                                                     segment->point_count),
    .entry_count = segment->prepared, .point_count = segment->point_count,
    .entries_checksum = rp_log_hash (segment->entries, entry_bytes),
    .points_checksum = rp_log_hash (synthesis->cuts, cut_bytes),
    .end_position = segment->end, .session = 1, .epoch = journal->super.epoch,
    .time_ns = (int64_t) synthesis->sequence * BATCH_NS,
  };
  uint8_t bytes[RP_LOG_PAGE_BYTES];
  int status;

  memcpy (trailer.id, journal->super.id, sizeof trailer.id);
  rp_log_put_trailer (bytes, &trailer);
  status = rp_file_pwrite (journal->file, segment->entries, entry_bytes,
                           trailer.summary_position, fault);
  if (status == RP_OK && cut_bytes > 0)
    status = rp_file_pwrite (journal->file, synthesis->cuts, cut_bytes,
                             trailer.summary_position + entry_bytes, fault);
  if (status == RP_OK)
    status = rp_file_pwrite (journal->file, bytes, sizeof bytes, page, fault);
  return status;
}

/* Entries of the next batch; as many as fit before the next point. */
static int
fill_batch (struct synthesis *synthesis, uint64_t count,
            struct rp_log_batch *batch, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  struct rp_segment *segment = &synthesis->segment;
  uint64_t position = segment->end + journal->block_bytes;
  uint8_t *entries = synthesis->block + RP_LOG_BATCH_BYTES;
  int status = rp_segment_reserve (segment, count, fault);

  for (uint64_t i = 0; status == RP_OK && i < count; i++) {
    struct rp_log_entry entry = {
      .grain = (uint32_t) next_grain (synthesis),
      .place = (uint32_t) (position / RP_SECTOR_BYTES),
      .value = synthesis->zero_value,
    };

    entry.previous = rp_map_get (&synthesis->map, entry.grain);
    status = rp_map_set (&synthesis->map, entry.grain, entry.place, fault);
    rp_log_put_entry (entries + i * RP_LOG_ENTRY_BYTES, &entry);
    position += journal->super.grain_bytes;
  }
  if (status != RP_OK)
    return status;
  memcpy (segment->entries + segment->prepared * RP_LOG_ENTRY_BYTES, entries,
          count * RP_LOG_ENTRY_BYTES);
  segment->prepared += count;
  synthesis->written += count;
  batch->entry_count = batch->data_count = (uint32_t) count;
  return RP_OK;
}

static void
fill_point (struct synthesis *synthesis, struct rp_log_batch *batch)
{
  struct rp_segment *segment = &synthesis->segment;
  struct rp_log_cut cut = {
    .sequence = synthesis->sequence, .ordinal = segment->prepared,
    .point = {
      .id = ++synthesis->pointed, .kind = RP_POINT_CRASH,
      .time_ns = (int64_t) synthesis->sequence * BATCH_NS,
    },
  };

  rp_log_put_point (synthesis->block + RP_LOG_BATCH_BYTES, &cut.point);
  rp_log_put_cut (synthesis->cuts + segment->point_count++ * RP_LOG_CUT_BYTES,
                  &cut);
  batch->point_count = 1;
}

static int
put_batch (struct synthesis *synthesis, uint64_t count, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  struct rp_segment *segment = &synthesis->segment;
  struct rp_log_batch batch = {
    .sequence = synthesis->sequence, .chain = synthesis->chain,
    .epoch = journal->super.epoch, .session = 1,
    .time_ns = (int64_t) synthesis->sequence * BATCH_NS,
    .durable_sequence = synthesis->sequence - 1,
    .position = segment->end, .segment = segment->number,
  };
  int status = RP_OK;

  memset (synthesis->block, 0, journal->block_bytes);
  if (count > 0)
    status = fill_batch (synthesis, count, &batch, fault);
  else
    fill_point (synthesis, &batch);
  if (status != RP_OK)
    return status;
  memcpy (batch.id, journal->super.id, sizeof batch.id);
  synthesis->chain = rp_log_put_batch (synthesis->block, &batch);
  synthesis->sequence++;
  status = rp_file_pwrite (journal->file, synthesis->block,
                           journal->block_bytes, segment->end, fault);
  segment->end += journal->block_bytes + count * journal->super.grain_bytes;
  return status;
}

/* How many entries the next batch may have: 0 makes it a point. */
static uint64_t
next_count (const struct synthesis *synthesis)
{
  const struct rp_journal *journal = synthesis->journal;
  uint64_t stop = next_point_at (synthesis);

  if (synthesis->written == stop)
    return 0;
  if (stop > synthesis->how->entries)
    stop = synthesis->how->entries;
  stop -= synthesis->written;
  return stop < journal->batch_entries_max ? stop : journal->batch_entries_max;
}

static bool
has_room (const struct synthesis *synthesis, uint64_t count)
{
  const struct rp_journal *journal = synthesis->journal;
  const struct rp_segment *segment = &synthesis->segment;
  const uint64_t bytes = journal->block_bytes
                         + count * journal->super.grain_bytes
                         + RP_LOG_PAGE_BYTES
                         + rp_log_summary_bytes (segment->prepared + count,
                                                 segment->point_count + 1);

  return bytes <= segment->position + journal->super.segment_bytes
                  - segment->end;
}

static int
fill_log (struct synthesis *synthesis, struct rp_fault *fault)
{
  const struct rp_synthesis *how = synthesis->how;
  int status = open_segment (synthesis, fault);

  while (status == RP_OK && (synthesis->written < how->entries
                             || synthesis->pointed < how->points)) {
    uint64_t count = next_count (synthesis);

    while (count > 1 && !has_room (synthesis, count))
      count /= 2;
    if (!has_room (synthesis, count)) {
      status = close_segment (synthesis, fault);
      if (status == RP_OK)
        status = open_segment (synthesis, fault);
    } else
      status = put_batch (synthesis, count, fault);
  }
  return status;
}

/* Close the last segment too, and say that all of it is durable. */
static int
finish (struct synthesis *synthesis, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  struct rp_log_super super = journal->super;
  int status = close_segment (synthesis, fault);

  if (status == RP_OK)
    status = rp_file_truncate (journal->file,
                               rp_slot_position (journal, synthesis->slot),
                               fault);
  if (status == RP_OK)
    status = rp_file_sync (journal->file, fault);
  super.session = 1;
  super.durable_sequence = synthesis->sequence - 1;
  if (status == RP_OK)
    status = rp_journal_put_super (journal, &super, fault);
  return status;
}

static int
prepare (struct synthesis *synthesis, struct rp_fault *fault)
{
  struct rp_journal *journal = synthesis->journal;
  const uint64_t grain_bytes = journal->super.grain_bytes;
  const struct rp_synthesis *how = synthesis->how;
  uint64_t stretches;

  if (journal->segment_count > 0 || journal->root.entry > 0)
    return rp_fail (fault, RP_STATE, 0, "%s: the log is not new",
                    rp_journal_name (journal));
  synthesis->set_grains = how->working_set_bytes / grain_bytes;
  if (synthesis->set_grains == 0
      || synthesis->set_grains > journal->grain_count
      || (how->points > 0 && how->entries < how->points))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "the working set or the points");
  synthesis->stretch_grains = STRETCH_BYTES / grain_bytes;
  stretches = rp_divide_up (synthesis->set_grains, synthesis->stretch_grains);
  synthesis->stretch_step = stretches > 1
                            ? (journal->grain_count
                               - synthesis->stretch_grains) / (stretches - 1)
                            : 0;
  synthesis->random = how->seed;
  synthesis->sequence = 1;
  synthesis->chain = rp_log_chain_start (journal->super.id);
  synthesis->slot = rp_divide_up (journal->root.bytes,
                                  journal->super.segment_bytes);
  synthesis->block = calloc (1, journal->block_bytes);
  synthesis->cuts = calloc (how->points + 1, RP_LOG_CUT_BYTES);
  if (!synthesis->block || !synthesis->cuts)
    return rp_fail (fault, RP_NO_MEMORY, 0, "a buffer");
  synthesis->zero_value = 0;
  {
    uint8_t *zeros = calloc (1, grain_bytes);

    if (!zeros)
      return rp_fail (fault, RP_NO_MEMORY, 0, "a grain");
    synthesis->zero_value = (uint32_t) rp_log_hash (zeros, grain_bytes);
    free (zeros);
  }
  return rp_map_create (&synthesis->map, journal->grain_count, fault);
}

int
rp_journal_synthesize (struct rp_file *file, const struct rp_synthesis *how,
                       struct rp_fault *fault)
{
  struct synthesis synthesis = { .how = how };
  int status = rp_journal_open (file, NULL, RP_JOURNAL_READ, 0,
                                &synthesis.journal, fault);

  if (status == RP_OK)
    status = prepare (&synthesis, fault);
  if (status == RP_OK)
    status = fill_log (&synthesis, fault);
  if (status == RP_OK)
    status = finish (&synthesis, fault);
  rp_map_destroy (&synthesis.map);
  free (synthesis.segment.entries);
  free (synthesis.cuts);
  free (synthesis.block);
  rp_journal_destroy (synthesis.journal);
  return status;
}

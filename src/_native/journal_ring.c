/* SPDX-License-Identifier: Apache-2.0 */
/* The ring: moving the horizon up, giving back segments that hold nothing else
 * than what the base has, and showing the end of the log meanwhile.  The order
 * is in journal.h; what goes to the base, in journal_destage.c. */
#include "journal_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define TABLES_AT_ONCE 16u       /* cleared under one hold of the lock */
#define ZERO_TABLES_AT_ONCE 1024u

/* One move of the horizon. */
struct move {
  struct rp_journal *journal;
  struct rp_destaging how;
  struct rp_destage *out;
  struct rp_cut cut;             /* the new horizon */
  uint64_t first;                /* entry: where the base is */
};

/* ---- giving segments back ---- */

/* Segments before the one that the point lies in: nothing in them is newer. */
static uint64_t
count_done (const struct rp_journal *journal, const struct rp_cut *cut)
{
  return cut->segment - journal->segments[0]->number;
}

/* Giving segments back costs a root.  With the lock held. */
static bool
is_worth_it (const struct rp_journal *journal, uint64_t count)
{
  const uint64_t bytes = count * journal->super.segment_bytes;
  const uint64_t root = rp_journal_root_bytes (journal,
                                               journal->map.stored_count);

  if (count == 0)
    return false;
  if (bytes / 2 >= root)
    return true;
  return journal->limit_bytes != 0
         && rp_journal_used_count (journal) * journal->super.segment_bytes
            > journal->limit_bytes / 4 * 3;
}

/* Slots that are to be given back, one byte each.  There may be more slots by
 * now than when this was made; those are in use. */
struct going {
  uint64_t count;
  uint8_t *slots;
};

static int
list_going (const struct rp_journal *journal, uint64_t segments,
            struct going *going, struct rp_fault *fault)
{
  going->count = journal->slot_count;
  going->slots = calloc (going->count + 1, 1);
  if (!going->slots)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the list of slots");
  for (uint64_t i = 0; i < segments; i++)
    going->slots[rp_position_slot (journal, journal->segments[i]->position)]
      = 1;
  return RP_OK;
}

static bool
is_going (const struct rp_journal *journal, const struct going *going,
          uint32_t place)
{
  const uint64_t position = (uint64_t) place * RP_SECTOR_BYTES;
  uint64_t slot;

  if (place <= RP_PLACE_ZEROS || position < RP_LOG_HEAD_BYTES)
    return false;
  slot = rp_position_slot (journal, position);
  return slot < going->count && going->slots[slot];
}

/* One table: what lies in these slots is in the base.  With the lock held. */
static int
clear_table (struct rp_journal *journal, uint64_t index,
             const struct going *going, struct rp_fault *fault)
{
  uint32_t *table = rp_map_peek (&journal->map, index);
  bool any = false, left = false;

  if (!rp_map_is_writable (table))
    return RP_OK;
  for (uint32_t i = 0; i < RP_LOG_TABLE_ENTRIES; i++) {
    const bool gone = is_going (journal, going, table[i]);

    if (gone && !any) {
      table = rp_map_table (&journal->map, index);
      if (!table)
        return rp_fail (fault, RP_NO_MEMORY, 0, "a table of the block map");
      any = true;
    }
    if (gone)
      table[i] = RP_PLACE_ABSENT;
    left |= table[i] != RP_PLACE_ABSENT;
  }
  if (!left)
    rp_map_forget_table (&journal->map, index);
  return RP_OK;
}

/* Writers that append meanwhile never put anything into these slots. */
static int
clear_places (struct rp_journal *journal, const struct going *going,
              struct rp_fault *fault)
{
  const uint64_t count = journal->map.table_count;
  int status = RP_OK;

  for (uint64_t at = 0, stop; status == RP_OK && at < count;) {
    pthread_mutex_lock (&journal->lock);
    at = rp_map_next (&journal->map, at);
    stop = count - at < TABLES_AT_ONCE ? count : at + TABLES_AT_ONCE;
    for (; status == RP_OK && at < stop; at++)
      status = clear_table (journal, at, going, fault);
    pthread_mutex_unlock (&journal->lock);
  }
  return status;
}

/* Of the tables of zeros, those that no entry from `first` on has touched, and
 * no writer since the map was frozen. */
static void
forget_untouched (struct rp_journal *journal,
                  const struct rp_map_freeze *freeze, const uint8_t *touched)
{
  const uint64_t count = journal->map.table_count;

  for (uint64_t at = 0, stop; at < count; at = stop) {
    pthread_mutex_lock (&journal->lock);
    at = rp_map_next (&journal->map, at);
    stop = count - at < ZERO_TABLES_AT_ONCE ? count : at + ZERO_TABLES_AT_ONCE;
    for (uint64_t i = at; i < stop; i++)
      if (rp_map_peek (&journal->map, i) == rp_map_zeros && !touched[i]
          && !rp_map_is_kept (freeze, i))
        rp_map_forget_table (&journal->map, i);
    pthread_mutex_unlock (&journal->lock);
  }
}

/* A disk that was trimmed as a whole has tables of zeros, which make roots as
 * large as if it was full.  When nothing has touched them since the cut the
 * base has the same zeros, and they can go.  Which ones that is, the entries
 * since then tell, where they are fewer than what it spares. */
static int
forget_zeros (struct rp_journal *journal, uint64_t first,
              struct rp_fault *fault)
{
  uint8_t *touched = calloc (journal->map.table_count, 1);
  struct rp_map_freeze freeze;
  struct rp_cut end;
  bool frozen = false;
  int status = rp_map_freeze_create (&journal->map, &freeze, fault);

  if (status == RP_OK && !touched)
    status = rp_fail (fault, RP_NO_MEMORY, 0, "which tables were written");
  pthread_mutex_lock (&journal->lock);
  if (status == RP_OK
      && (journal->map.stored_count - journal->map.own_count)
         * RP_LOG_TABLE_BYTES
         > (rp_journal_entry_count (journal) - first) * RP_LOG_ENTRY_BYTES) {
    status = rp_journal_freeze_end (journal, true, &freeze, &end, fault);
    frozen = status == RP_OK;
  }
  pthread_mutex_unlock (&journal->lock);
  if (frozen) {
    status = rp_journal_note_touched (journal, first, end.entry, touched,
                                      fault);
    if (status == RP_OK)
      forget_untouched (journal, &freeze, touched);
    rp_journal_thaw (journal, &freeze);
  }
  rp_map_freeze_destroy (&freeze);
  free (touched);
  return status;
}

static void
punch_slots (struct rp_journal *journal, uint64_t count)
{
  const uint64_t bytes = journal->super.segment_bytes;
  struct rp_fault ignored;

  for (uint64_t i = 0; i < count; i++) {
    uint64_t position;

    pthread_mutex_lock (&journal->lock);   /* the list may be growing */
    position = journal->segments[i]->position;
    pthread_mutex_unlock (&journal->lock);
    (void) rp_file_punch (journal->file, position, bytes, &ignored);
  }
}

/* What a crash left in slots that were given back, or in a dropped tail, takes
 * space and is read at each recovery: punch it once.  A stretch of slots is
 * taken like a root while that is done. */
static void
punch_leftovers (struct rp_journal *journal)
{
  uint64_t first = 0, stop;
  struct rp_fault ignored;

  while (!journal->was_clean && !journal->leftovers_gone) {
    uint8_t *used;

    pthread_mutex_lock (&journal->lock);
    used = rp_journal_used_slots (journal, &ignored);
    while (used && first < journal->slot_count && used[first])
      first++;
    for (stop = first; used && stop < journal->slot_count && !used[stop];)
      stop++;
    journal->leftovers_gone = !used || first == journal->slot_count;
    free (used);
    if (!journal->leftovers_gone) {
      journal->building.position = rp_slot_position (journal, first);
      journal->building.bytes = (stop - first) * journal->super.segment_bytes;
    }
    pthread_mutex_unlock (&journal->lock);
    if (journal->leftovers_gone)
      return;
    (void) rp_file_punch (journal->file, journal->building.position,
                          journal->building.bytes, &ignored);
    rp_journal_end_building (journal);
    first = stop;
  }
}

/* With the lead and the lock. */
static void
forget_segments (struct rp_journal *journal, uint64_t count)
{
  const uint64_t first = journal->super.ring.number;
  uint64_t gone = 0;

  for (uint64_t i = 0; i < count; i++)
    rp_segment_free (journal->segments[i]);
  journal->segment_count -= count;
  memmove (journal->segments, journal->segments + count,
           journal->segment_count * sizeof *journal->segments);
  journal->next_trailer -= count;
  while (gone < journal->point_first && journal->points[gone].segment < first)
    free (journal->points[gone++].label);
  journal->point_count -= gone;
  journal->point_first -= gone;
  memmove (journal->points, journal->points + gone,
           journal->point_count * sizeof *journal->points);
}

/* The slots are nobody's on disk any more: wait for reads that have looked
 * their places up, and let others have them. */
static void
free_segments (struct rp_journal *journal, uint64_t count)
{
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  if (journal->next_trailer < count)   /* nobody will read their summaries */
    journal->next_trailer = count;
  rp_journal_end_lead (journal);
  rp_journal_await_readers (journal);
  pthread_mutex_unlock (&journal->lock);
  punch_slots (journal, count);
  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  forget_segments (journal, count);
  rp_journal_end_lead (journal);
  pthread_cond_broadcast (&journal->room);
  pthread_mutex_unlock (&journal->lock);
}

/* A root that names nothing in the first segments. */
static int
leave_segments (struct rp_journal *journal, uint64_t count, uint64_t cut,
                struct rp_fault *fault)
{
  struct rp_roll ignored;
  struct going going;
  int status;

  pthread_mutex_lock (&journal->lock);
  status = list_going (journal, count, &going, fault);
  pthread_mutex_unlock (&journal->lock);
  if (status == RP_OK)
    status = clear_places (journal, &going, fault);
  free (going.slots);
  if (status == RP_OK)
    status = forget_zeros (journal, cut, fault);
  if (status == RP_OK)
    punch_leftovers (journal);
  if (status == RP_OK)
    status = rp_journal_show_end (journal, true, false, &ignored, fault);
  return status;
}

/* The base has everything before the cut, and it is synced. */
static int
settle (struct move *move, struct rp_fault *fault)
{
  struct rp_journal *journal = move->journal;
  struct rp_log_ring ring;
  uint64_t count;
  int status = RP_OK;

  pthread_mutex_lock (&journal->lock);
  ring = journal->super.ring;
  count = count_done (journal, &move->cut);
  if (!is_worth_it (journal, count))
    count = 0;
  else {
    const struct rp_segment *first = journal->segments[count];

    ring.number = first->number;
    ring.first_sequence = first->first_sequence;
    ring.chain = first->chain_in;
    ring.first_entry = first->first_entry;
  }
  pthread_mutex_unlock (&journal->lock);
  if (count == 0 && ring.based_entry == move->cut.entry)
    return RP_OK;
  ring.based_entry = move->cut.entry;
  if (RP_SABOTAGED (25))         /* gives segments back too early */
    punch_slots (journal, count);
  if (count > 0 && !RP_SABOTAGED (27))   /* frees what the root shows */
    status = leave_segments (journal, count, move->cut.entry, fault);
  if (status == RP_OK)
    status = rp_journal_put_ring (journal, &ring, fault);
  if (status != RP_OK)
    return status;
  move->out->entries = move->cut.entry - move->first;
  move->out->freed_bytes = count * journal->super.segment_bytes;
  if (count > 0)
    free_segments (journal, count);
  return RP_OK;
}

/* ---- the calls ---- */

/* What both need: a session, the map, and the lock on the work. */
static int
begin (struct rp_journal *journal, struct rp_fault *fault)
{
  int status;

  pthread_mutex_lock (&journal->lock);
  rp_journal_lead (journal);
  status = rp_journal_not_held (journal, fault);
  if (status == RP_OK)
    status = rp_journal_begin_session (journal, fault);
  if (status == RP_OK)
    status = rp_journal_load_map (journal, fault);
  rp_journal_end_lead (journal);
  pthread_mutex_unlock (&journal->lock);
  return status;
}

/* Would opening read the root in less time than it walks the entries? */
static bool
checkpoint_pays (struct rp_journal *journal)
{
  bool pays;

  pthread_mutex_lock (&journal->lock);
  pays = rp_journal_root_pays (journal->map.stored_count,
                               rp_journal_entry_count (journal)
                               - journal->root.entry);
  pthread_mutex_unlock (&journal->lock);
  return pays;
}

int
rp_journal_checkpoint (struct rp_journal *journal, struct rp_checkpoint *out,
                       struct rp_fault *fault)
{
  struct rp_roll roll;
  uint64_t before;
  int status;

  memset (out, 0, sizeof *out);
  memset (&roll, 0, sizeof roll);
  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  rp_journal_begin_work (journal);
  before = journal->root.entry;
  status = rp_journal_commit (journal, fault);
  if (status == RP_OK)
    status = begin (journal, fault);
  roll.root_sector = rp_root_sector (journal);
  if (status == RP_OK && checkpoint_pays (journal))
    status = rp_journal_show_end (journal, false, true, &roll, fault);
  if (status == RP_OK)
    out->entries_since = journal->root.entry - before;
  out->bytes_written = roll.bytes_written;
  out->root_sector = roll.root_sector;
  rp_journal_end_work (journal);
  return status;
}

/* The horizon moves; points before it are gone once that is durable. */
static int
move_horizon (struct rp_journal *journal, const struct rp_cut *cut,
              struct rp_fault *fault)
{
  struct rp_log_ring ring;

  pthread_mutex_lock (&journal->lock);
  ring = journal->super.ring;
  pthread_mutex_unlock (&journal->lock);
  if (ring.horizon_sequence == cut->sequence)
    return RP_OK;
  ring.horizon_entry = cut->entry;
  ring.horizon_sequence = cut->sequence;
  return rp_journal_put_ring (journal, &ring, fault);
}

static int
move_steps (struct move *move, uint64_t point_id, struct rp_fault *fault)
{
  struct rp_journal *journal = move->journal;
  struct rp_roll ignored;
  int status = rp_journal_commit (journal, fault);

  if (status == RP_OK)
    status = begin (journal, fault);
  if (status != RP_OK)
    return status;
  pthread_mutex_lock (&journal->lock);
  status = rp_journal_find_cut (journal, point_id, &move->cut, fault);
  move->first = journal->super.ring.based_entry;
  if (status == RP_OK && move->cut.sequence > journal->durable_sequence)
    status = rp_journal_commit_locked (journal, fault);  /* just marked */
  pthread_mutex_unlock (&journal->lock);
  if (status == RP_OK && !RP_SABOTAGED (32))   /* the base before the horizon */
    status = move_horizon (journal, &move->cut, fault);
  if (status == RP_OK && journal->root.entry < move->cut.entry
      && !RP_SABOTAGED (33))     /* the base changes under the shown root */
    status = rp_journal_show_end (journal, false, false, &ignored, fault);
  if (status == RP_OK && move->first < move->cut.entry)
    status = rp_journal_copy_newest (journal, move->first, move->cut.entry,
                                     &move->how, move->out, fault);
  if (RP_SABOTAGED (32) && status == RP_OK)
    status = move_horizon (journal, &move->cut, fault);
  return status == RP_OK ? settle (move, fault) : status;
}

static int
check_target (const struct rp_journal *journal, uint64_t point_id,
              const struct rp_disk *target, struct rp_fault *fault)
{
  if (!journal->writable)
    return rp_fail (fault, RP_READ_ONLY, 0, "%s: open it for writing",
                    rp_journal_name (journal));
  if (point_id == RP_POINT_END)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: a restore point is needed, "
                    "not the end of the log", rp_journal_name (journal));
  if (target->size_bytes != journal->disk.size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: a target of %" PRIu64
                    " bytes", rp_journal_name (journal), target->size_bytes);
  if (journal->base && journal->base != target)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "%s: the target is not the disk "
                    "that it reads through", rp_journal_name (journal));
  return RP_OK;
}

int
rp_journal_destage (struct rp_journal *journal, uint64_t point_id,
                    struct rp_disk *target,
                    bool (*progress) (void *context, uint64_t done_bytes,
                                      uint64_t total_bytes),
                    void *context, struct rp_destage *out,
                    struct rp_fault *fault)
{
  struct move move = {
    .journal = journal, .out = out,
    .how = { .target = target, .progress = progress, .context = context },
  };
  int status = check_target (journal, point_id, target, fault);

  memset (out, 0, sizeof *out);
  if (status != RP_OK)
    return status;
  rp_journal_begin_work (journal);
  status = move_steps (&move, point_id, fault);
  rp_journal_end_work (journal);
  return status;
}

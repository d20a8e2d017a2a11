/* SPDX-License-Identifier: Apache-2.0 */
/* Sweeps: the states that a crash may leave.
 *
 * At each moment the log splits into what is durable (the base) and what is
 * pending.  A plan lists the choices for that moment: which pending
 * operations survive, and whether one of the writes is torn.  A moment adds
 * only choices that were not there before it: after a change those that keep
 * it, after an acknowledgement all of them again (for more must be found in
 * them), after a sync none. */
#include "io_simulate.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXHAUSTIVE_MAX   10u     /* pending operations of which all subsets */
#define RANDOM_COUNT     256u    /* subsets drawn where there are more */
#define PAIRS_MAX        512u    /* drop-two choices at one moment */
#define SECTORS_ALL_MAX  64u     /* sectors of a write torn everywhere */
#define CUTS_DRAWN       16u     /* beyond: how many places are drawn */
#define GARBAGE_ALL_MAX  8u
#define PLAN_FIXED       8u      /* choices that a budget drops last */

enum subset_kind {
  KEEP_ALL,
  KEEP_MASK,                     /* bits of subset */
  KEEP_NEW,                      /* the newest change alone */
  KEEP_WITH,                     /* that and the operation `subset` */
  DROP_ONE,                      /* all but the operation `subset` */
  DROP_TWO,                      /* high and low half of subset */
  DRAWN,                         /* by hash of subset (a seed) */
};

enum tear_kind {
  WHOLE,
  FIRST_SECTORS,                 /* the first `sector` sectors survive */
  FIRST_SECTORS_SHORT,           /* and the size grew no further than them */
  LAST_SECTORS,                  /* all but the first `sector` */
  LOST_SECTOR,
  GARBAGE_SECTOR,
};

struct choice {
  uint64_t subset;
  uint8_t  subset_kind;
  uint8_t  tear_kind;
  uint32_t torn;
  uint32_t sector;
};

/* Open addressing; 0 = free. */
struct key_set {
  uint64_t *keys;
  uint64_t  count, room;
};

struct rp_sim_seen {
  struct key_set states;         /* image and how much was acknowledged */
  struct key_set images;         /* the lowest bit: left by a recovery */
  uint64_t deep, generated;
};

struct rp_sim_sweep {
  struct sim_io         *io;
  struct rp_sim_options  options;
  struct rp_sim_seen    *own_seen;
  struct rp_sim_counts   counts;
  struct sim_replay      replay;
  uint64_t               stop;   /* of the log when the sweep began */
  uint64_t               next;   /* operation of the log */
  uint64_t               acknowledged, last_tag;
  uint32_t               fresh;  /* pending operations that this moment added */
  struct choice         *plan;
  uint64_t               plan_count, plan_room, plan_next;
  uint64_t               random;
  bool                   started;
};

/* ---- states seen ---- */

static bool
key_set_init (struct key_set *set)
{
  set->room = 1024;
  set->keys = calloc (set->room, sizeof *set->keys);
  return set->keys != NULL;
}

/* Keys that differ in the lowest bit are one. */
static bool
key_set_put (struct key_set *set, uint64_t key)
{
  uint64_t at = key >> 1 & (set->room - 1);

  while (set->keys[at] != 0 && (set->keys[at] | 1) != (key | 1))
    at = (at + 1) & (set->room - 1);
  if (set->keys[at] != 0)
    return false;
  set->keys[at] = key;
  return true;
}

/* *new_out: the key was not there yet. */
static int
key_set_add (struct key_set *set, uint64_t key, bool *new_out)
{
  struct key_set larger;

  if (set->count >= set->room / 2) {
    larger = (struct key_set) { .room = set->room * 2 };
    larger.keys = calloc (larger.room, sizeof *larger.keys);
    if (!larger.keys)
      return RP_NO_MEMORY;
    for (uint64_t i = 0; i < set->room; i++)
      if (set->keys[i] != 0)
        key_set_put (&larger, set->keys[i]);
    free (set->keys);
    set->keys = larger.keys;
    set->room = larger.room;
  }
  *new_out = key_set_put (set, key > 1 ? key : 2);
  set->count += *new_out;
  return RP_OK;
}

int
rp_sim_seen_create (struct rp_sim_seen **out, struct rp_fault *fault)
{
  struct rp_sim_seen *seen = calloc (1, sizeof *seen);

  *out = NULL;
  if (!seen || !key_set_init (&seen->states) || !key_set_init (&seen->images)) {
    rp_sim_seen_destroy (seen);
    return rp_fail (fault, RP_NO_MEMORY, 0, "making a set of crash states");
  }
  *out = seen;
  return RP_OK;
}

void
rp_sim_seen_destroy (struct rp_sim_seen *seen)
{
  if (!seen)
    return;
  free (seen->states.keys);
  free (seen->images.keys);
  free (seen);
}

uint64_t
rp_sim_seen_count (const struct rp_sim_seen *seen)
{
  return seen->images.count;
}

uint64_t
rp_sim_seen_deep_count (const struct rp_sim_seen *seen)
{
  return seen->deep;
}

uint64_t
rp_sim_seen_generated (const struct rp_sim_seen *seen)
{
  return seen->generated;
}

void
rp_sim_seen_each (const struct rp_sim_seen *seen,
                  void (*each) (void *context, uint64_t image), void *context)
{
  for (uint64_t i = 0; i < seen->images.room; i++)
    if (seen->images.keys[i] != 0)
      each (context, seen->images.keys[i]);
}

/* *new_out: the image was not seen yet with so much acknowledged. */
static int
seen_add (struct rp_sim_seen *seen, uint64_t image, uint64_t acknowledged,
          bool deep, bool *new_out)
{
  bool new_image = false;
  int status;

  seen->generated++;
  status = key_set_add (&seen->states, rp_hash_mix (image, acknowledged)
                                       & ~UINT64_C (1), new_out);
  if (status == RP_OK)
    status = key_set_add (&seen->images, (image & ~UINT64_C (1)) | deep,
                          &new_image);
  seen->deep += new_image && deep;
  return status;
}

/* ---- making a state ---- */

static bool
kept (const struct choice *choice, uint32_t index, uint32_t count,
      uint32_t fresh)
{
  const bool is_new = index >= count - fresh;

  switch ((enum subset_kind) choice->subset_kind) {
  case KEEP_ALL:
    return true;
  case KEEP_MASK:
    return choice->subset >> index & 1;
  case KEEP_NEW:
    return is_new;
  case KEEP_WITH:
    return is_new || index == choice->subset;
  case DROP_ONE:
    return index != choice->subset;
  case DROP_TWO:
    return index != choice->subset >> 32 && index != (uint32_t) choice->subset;
  case DRAWN:
    return is_new || (rp_hash_mix (choice->subset, index) & 1);
  }
  return true;
}

static int
put (struct rp_tree *tree, const struct sim_op *op, uint64_t start,
     uint64_t stop)
{
  if (start >= stop)
    return RP_OK;
  return rp_tree_put (tree, op->inode, start, stop - start,
                      op->page_count ? op->pages : NULL,
                      op->offset / RP_PAGE_BYTES);
}

static uint32_t
sectors_of (const struct sim_op *op)
{
  return (uint32_t) (rp_divide_up (op->offset + op->length, RP_SECTOR_BYTES)
                     - op->offset / RP_SECTOR_BYTES);
}

/* Where sector `sector` of the write begins in the file, inside the write. */
static uint64_t
sector_start (const struct sim_op *op, uint32_t sector)
{
  const uint64_t at = (op->offset / RP_SECTOR_BYTES + sector) * RP_SECTOR_BYTES;
  const uint64_t stop = op->offset + op->length;

  if (at < op->offset)
    return op->offset;
  return at < stop ? at : stop;
}

/* Only bytes of the write are torn or garbled: a disk does not touch the rest
 * of a sector that is written in part ("powersafe overwrite" in SQLite). */
static int
apply_torn (struct rp_tree *tree, const struct sim_op *op,
            const struct choice *choice)
{
  const uint64_t start = op->offset, stop = op->offset + op->length;
  const uint64_t at = sector_start (op, choice->sector);
  const uint64_t after = sector_start (op, choice->sector + 1);
  int status;

  switch ((enum tear_kind) choice->tear_kind) {
  case FIRST_SECTORS:
  case FIRST_SECTORS_SHORT:
    return put (tree, op, start, at);
  case LAST_SECTORS:
    return put (tree, op, at, stop);
  case LOST_SECTOR:
  case GARBAGE_SECTOR:
    status = put (tree, op, start, at);
    if (status == RP_OK)
      status = put (tree, op, after, stop);
    if (status == RP_OK && choice->tear_kind == GARBAGE_SECTOR)
      status = rp_tree_garble (tree, op->inode, at, after - at, op->offset);
    return status;
  case WHOLE:
    break;
  }
  return put (tree, op, start, stop);
}

static int
apply_choice (const struct sim_replay *replay, uint32_t fresh,
              const struct choice *choice, struct rp_tree *tree)
{
  int status = RP_OK;

  for (uint32_t i = 0; i < replay->count && status == RP_OK; i++) {
    const struct sim_op *op = replay->pending[i];

    if (!kept (choice, i, replay->count, fresh))
      continue;
    if (choice->tear_kind == FIRST_SECTORS_SHORT && op->joined
        && i + 1 == choice->torn) {
      const uint64_t size = sector_start (replay->pending[i + 1],
                                          choice->sector);

      if (size > rp_tree_size (tree, op->inode))
        status = rp_tree_set_size (tree, op->inode, size);
    } else if (choice->tear_kind != WHOLE && i == choice->torn)
      status = apply_torn (tree, op, choice);
    else
      status = sim_apply (tree, op);
  }
  for (uint32_t i = 0; i < replay->count && status == RP_OK; i++)
    if (replay->pending[i]->kind == SIM_WRITE)
      status = rp_tree_clip (tree, replay->pending[i]->inode);
  return status;
}

/* ---- plans ---- */

static uint64_t
draw (struct rp_sim_sweep *sweep)
{
  sweep->random += UINT64_C (0x9e3779b97f4a7c15);
  return rp_hash_mix (sweep->random, sweep->options.seed);
}

static int
add_choice (struct rp_sim_sweep *sweep, struct choice choice)
{
  struct choice *plan;
  uint64_t room;

  if (sweep->plan_count == sweep->plan_room) {
    room = sweep->plan_room ? sweep->plan_room * 2 : 64;
    plan = realloc (sweep->plan, room * sizeof *plan);
    if (!plan)
      return RP_NO_MEMORY;
    sweep->plan = plan;
    sweep->plan_room = room;
  }
  sweep->plan[sweep->plan_count++] = choice;
  return RP_OK;
}

static int
add_subset (struct rp_sim_sweep *sweep, enum subset_kind kind, uint64_t subset)
{
  return add_choice (sweep, (struct choice) {
    .subset_kind = (uint8_t) kind, .subset = subset,
  });
}

/* Every subset that keeps something of what is new (with nothing new: every
 * subset), the whole first. */
static int
plan_all_subsets (struct rp_sim_sweep *sweep)
{
  const uint32_t count = sweep->replay.count;
  const uint64_t all = (UINT64_C (1) << count) - 1;
  const uint64_t old = (UINT64_C (1) << (count - sweep->fresh)) - 1;
  int status = add_subset (sweep, KEEP_ALL, 0);

  for (uint64_t mask = all; mask-- > 0 && status == RP_OK;)
    if (sweep->fresh == 0 || (mask & ~old) != 0)
      status = add_subset (sweep, KEEP_MASK, mask);
  return status;
}

static int
plan_pairs (struct rp_sim_sweep *sweep)
{
  const uint64_t count = sweep->replay.count;
  int status = RP_OK;

  if (count * (count - 1) / 2 <= PAIRS_MAX) {
    for (uint64_t i = 0; i < count; i++)
      for (uint64_t k = i + 1; k < count && status == RP_OK; k++)
        status = add_subset (sweep, DROP_TWO, i << 32 | k);
    return status;
  }
  for (uint32_t n = 0; n < PAIRS_MAX && status == RP_OK; n++)
    status = add_subset (sweep, DROP_TWO,
                         draw (sweep) % count << 32 | draw (sweep) % count);
  return status;
}

static int
plan_some_subsets (struct rp_sim_sweep *sweep)
{
  const uint32_t count = sweep->replay.count;
  const uint32_t old = count - sweep->fresh;
  int status = add_subset (sweep, KEEP_ALL, 0);

  /* with nothing new, "the new alone" is the base */
  if (status == RP_OK)
    status = add_subset (sweep, KEEP_NEW, 0);
  for (uint32_t i = 0; i < count && status == RP_OK; i++)
    status = add_subset (sweep, DROP_ONE, i);
  for (uint32_t i = 0; i < old && status == RP_OK; i++)
    status = add_subset (sweep, KEEP_WITH, i);
  if (status == RP_OK)
    status = plan_pairs (sweep);
  for (uint32_t n = 0; n < RANDOM_COUNT && status == RP_OK; n++)
    status = add_subset (sweep, DRAWN, draw (sweep));
  return status;
}

static int
add_tear (struct rp_sim_sweep *sweep, struct choice with, enum tear_kind kind,
          uint32_t sector)
{
  with.tear_kind = (uint8_t) kind;
  with.sector = sector;
  return add_choice (sweep, with);
}

/* All the ways to tear the write with.torn at sector `sector`. */
static int
plan_tear_at (struct rp_sim_sweep *sweep, struct choice with, uint32_t sector,
              uint32_t sectors, bool garbage)
{
  const struct sim_op **pending = sweep->replay.pending;
  int status = RP_OK;

  if (sector > 0) {
    status = add_tear (sweep, with, FIRST_SECTORS, sector);
    if (status == RP_OK && with.torn > 0 && pending[with.torn - 1]->joined)
      status = add_tear (sweep, with, FIRST_SECTORS_SHORT, sector);
    if (status == RP_OK)
      status = add_tear (sweep, with, LAST_SECTORS, sector);
  }
  /* losing the first or the last one is a cut */
  if (status == RP_OK && sector > 0 && sector + 1 < sectors)
    status = add_tear (sweep, with, LOST_SECTOR, sector);
  if (status == RP_OK && garbage)
    status = add_tear (sweep, with, GARBAGE_SECTOR, sector);
  return status;
}

static int
plan_tears_of (struct rp_sim_sweep *sweep, struct choice with)
{
  const struct sim_op *op = sweep->replay.pending[with.torn];
  const uint32_t sectors = sectors_of (op);
  const bool garbage = (sweep->options.flags & RP_SIM_GARBAGE)
                       && op->page_count > 0;
  const bool all = sectors <= SECTORS_ALL_MAX;
  const uint32_t places = all ? sectors : CUTS_DRAWN + 3;
  int status = RP_OK;

  for (uint32_t i = 0; i < places && status == RP_OK; i++) {
    uint32_t sector = i;

    if (!all)
      sector = i == 0 ? 1 : i == 1 ? sectors / 2 : i == 2 ? sectors - 1
               : (uint32_t) (draw (sweep) % sectors);
    status = plan_tear_at (sweep, with, sector, sectors,
                           garbage && (sectors <= GARBAGE_ALL_MAX
                                       || draw (sweep) % sectors < 4));
  }
  return status;
}

static int
plan_tears (struct rp_sim_sweep *sweep)
{
  const struct sim_replay *replay = &sweep->replay;
  int status = RP_OK;

  if (!(sweep->options.flags & (RP_SIM_TEAR | RP_SIM_GARBAGE)))
    return RP_OK;
  for (uint32_t i = 0; i < replay->count && status == RP_OK; i++) {
    struct choice with = { .subset_kind = KEEP_ALL, .torn = i };

    if (replay->pending[i]->kind != SIM_WRITE)
      continue;
    status = plan_tears_of (sweep, with);
    /* the newest one also without anything before it */
    with.subset_kind = KEEP_NEW;
    if (status == RP_OK && i >= replay->count - sweep->fresh
        && replay->count > sweep->fresh)
      status = plan_tears_of (sweep, with);
  }
  return status;
}

/* Keep as many of the plan as the budget has for this moment, so that it lasts
 * to the end of the log: the first few and others by lot, or, where it is too
 * small even for those, any by lot, and none at some moments. */
static void
trim_plan (struct rp_sim_sweep *sweep)
{
  const uint64_t left = sweep->options.budget - sweep->counts.distinct;
  const uint64_t moments = sweep->stop - sweep->next + 1;
  uint64_t share = left / moments;

  if (sweep->options.budget == 0)
    return;
  if (draw (sweep) % moments < left % moments)
    share++;
  if (sweep->plan_count <= share)
    return;
  for (uint64_t i = share < PLAN_FIXED ? 0 : PLAN_FIXED; i < share; i++) {
    const uint64_t k = i + draw (sweep) % (sweep->plan_count - i);
    const struct choice other = sweep->plan[k];

    sweep->plan[k] = sweep->plan[i];
    sweep->plan[i] = other;
  }
  sweep->plan_count = share;
}

static int
plan_moment (struct rp_sim_sweep *sweep)
{
  int status;

  sweep->plan_count = sweep->plan_next = 0;
  status = sweep->replay.count <= EXHAUSTIVE_MAX ? plan_all_subsets (sweep)
                                                 : plan_some_subsets (sweep);
  if (status == RP_OK)
    status = plan_tears (sweep);
  if (status == RP_OK)
    trim_plan (sweep);
  sweep->counts.points++;
  return status;
}

/* Go to the next moment that may leave states not seen yet, and plan it.
 * RP_NOT_FOUND at the end of the log. */
static int
advance (struct rp_sim_sweep *sweep)
{
  struct sim_replay *replay = &sweep->replay;
  uint32_t before;
  int status;

  if (!sweep->started) {
    sweep->started = true;
    return plan_moment (sweep);
  }
  sweep->fresh = 0;
  while (sweep->next < sweep->stop) {
    const struct sim_op *op = sweep->io->ops[sweep->next++];

    before = replay->count;
    status = sim_replay_step (replay, op);
    if (status != RP_OK)
      return status;
    if (op->kind == SIM_ACKNOWLEDGE) {
      sweep->acknowledged++;
      sweep->last_tag = op->offset;
      return plan_moment (sweep);
    }
    if (replay->count > before) {
      sweep->fresh += replay->count - before;
      /* one call of the program: no crash between its two halves, for the
         subsets have each half alone */
      if (op->joined)
        continue;
      return plan_moment (sweep);
    }
    /* after a sync fewer are pending: perhaps few enough for all subsets */
    if (before > EXHAUSTIVE_MAX && replay->count < before)
      return plan_moment (sweep);
    if (op->length > 0 && op->kind == SIM_SYNC)
      return plan_moment (sweep); /* it lied: this was no state before */
  }
  return RP_NOT_FOUND;
}

/* ---- sweeps ---- */

int
rp_sim_sweep_create (struct rp_io *rp, const struct rp_sim_options *options,
                     struct rp_sim_sweep **out, struct rp_fault *fault)
{
  struct rp_sim_sweep *sweep = calloc (1, sizeof *sweep);
  struct sim_io *io = sim_of (rp);
  int status;

  *out = NULL;
  if (!sweep)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making a sweep");
  sweep->io = io;
  sweep->options = *options;
  if (!options->seen) {
    status = rp_sim_seen_create (&sweep->own_seen, fault);
    if (status != RP_OK) {
      free (sweep);
      return status;
    }
    sweep->options.seen = sweep->own_seen;
  }
  sim_lock (io);
  sweep->stop = io->op_count;
  sweep->acknowledged = io->acknowledged_before;
  sweep->last_tag = io->last_tag;
  status = sim_replay_start (&sweep->replay, io);
  io->sweeps++;
  sim_unlock (io);
  if (status != RP_OK) {
    rp_sim_sweep_destroy (sweep);
    return rp_fail (fault, RP_NO_MEMORY, 0, "making a sweep");
  }
  *out = sweep;
  return RP_OK;
}

void
rp_sim_sweep_destroy (struct rp_sim_sweep *sweep)
{
  if (!sweep)
    return;
  sim_lock (sweep->io);
  sweep->io->sweeps--;
  sim_unlock (sweep->io);
  sim_replay_end (&sweep->replay);
  rp_sim_seen_destroy (sweep->own_seen);
  free (sweep->plan);
  free (sweep);
}

void
rp_sim_sweep_counts (const struct rp_sim_sweep *sweep,
                     struct rp_sim_counts *out)
{
  *out = sweep->counts;
}

static void
describe (const struct rp_sim_sweep *sweep, const struct choice *choice,
          struct rp_sim_state *out)
{
  *out = (struct rp_sim_state) {
    .point = sweep->next,
    .acknowledged = sweep->acknowledged,
    .last_tag = sweep->last_tag,
    .subset = choice->subset,
    .subset_kind = choice->subset_kind,
    .tear_kind = choice->tear_kind,
    .torn = choice->torn,
    .sector = choice->sector,
  };
}

/* Make the state of one choice; *out stays NULL where it was seen before. */
static int
try_choice (struct rp_sim_sweep *sweep, const struct choice *choice,
            struct rp_io **out, struct rp_fault *fault)
{
  struct rp_tree tree;
  bool is_new = false;
  int status;

  sweep->counts.generated++;
  status = rp_tree_copy (&sweep->replay.base, &tree);
  if (status == RP_OK)
    status = apply_choice (&sweep->replay, sweep->fresh, choice, &tree);
  if (status == RP_OK)
    status = seen_add (sweep->options.seen, rp_tree_hash (&tree),
                       sweep->acknowledged, sweep->io->crashes > 0, &is_new);
  if (status != RP_OK || !is_new) {
    rp_tree_clear (&tree);
    return status == RP_OK ? RP_OK
           : rp_fail (fault, status, 0, "making a crash state");
  }
  status = sim_create (&tree, out, fault);
  if (status == RP_OK) {
    sim_of (*out)->acknowledged_before = sweep->acknowledged;
    sim_of (*out)->last_tag = sweep->last_tag;
    sim_of (*out)->crashes = sweep->io->crashes + 1;
    sweep->counts.distinct++;
  }
  return status;
}

int
rp_sim_sweep_next (struct rp_sim_sweep *sweep, struct rp_io **io_out,
                   struct rp_sim_state *state_out, struct rp_fault *fault)
{
  const struct choice *choice;
  int status = RP_OK;

  *io_out = NULL;
  if (sweep->options.budget > 0
      && sweep->counts.distinct >= sweep->options.budget)
    return rp_fail (fault, RP_NOT_FOUND, 0, "the budget of states is spent");
  sim_lock (sweep->io);
  while (status == RP_OK && !*io_out) {
    if (sweep->plan_next < sweep->plan_count) {
      choice = &sweep->plan[sweep->plan_next++];
      status = try_choice (sweep, choice, io_out, fault);
      if (*io_out)
        describe (sweep, choice, state_out);
    } else {
      status = advance (sweep);
      if (status != RP_OK)
        rp_fail (fault, status, 0, "the end of the log");
    }
  }
  sim_unlock (sweep->io);
  return status;
}

int
rp_sim_crash_states (struct rp_io *io, const struct rp_sim_options *options,
                     rp_sim_checker *check, void *context,
                     struct rp_sim_counts *counts_out,
                     struct rp_sim_state *failed_out, struct rp_fault *fault)
{
  struct rp_sim_sweep *sweep;
  struct rp_sim_state state;
  struct rp_io *state_io;
  struct rp_fault end;
  int status, made;

  status = rp_sim_sweep_create (io, options, &sweep, fault);
  if (status != RP_OK)
    return status;
  while (status == RP_OK) {
    made = rp_sim_sweep_next (sweep, &state_io, &state, &end);
    if (made != RP_OK) {
      if (made != RP_NOT_FOUND) {
        status = made;
        if (fault)
          *fault = end;
      }
      break;
    }
    status = check (context, state_io, &state, fault);
    rp_io_destroy (state_io);
    if (status != RP_OK && failed_out)
      *failed_out = state;
  }
  rp_sim_sweep_counts (sweep, counts_out);
  rp_sim_sweep_destroy (sweep);
  return status;
}

/* ---- one state again ---- */

/* Replay up to the state's point, as advance() did. */
static int
replay_to (const struct sim_io *io, const struct rp_sim_state *state,
           struct sim_replay *replay, uint32_t *fresh_out)
{
  int status = sim_replay_start (replay, io);
  uint32_t before;

  *fresh_out = 0;
  for (uint64_t i = 0; i < state->point && status == RP_OK; i++) {
    const struct sim_op *op = io->ops[i];

    before = replay->count;
    status = sim_replay_step (replay, op);
    if (i == 0 || !io->ops[i - 1]->joined)
      *fresh_out = 0;
    if (replay->count > before)
      *fresh_out += replay->count - before;
  }
  return status;
}

static struct choice
choice_of (const struct rp_sim_state *state)
{
  return (struct choice) {
    .subset = state->subset,
    .subset_kind = (uint8_t) state->subset_kind,
    .tear_kind = (uint8_t) state->tear_kind,
    .torn = state->torn,
    .sector = state->sector,
  };
}

int
rp_sim_state_make (struct rp_io *rp, const struct rp_sim_state *state,
                   struct rp_io **out, struct rp_fault *fault)
{
  struct sim_io *io = sim_of (rp);
  const struct choice choice = choice_of (state);
  struct sim_replay replay;
  struct rp_tree tree = { .inodes = NULL };
  uint32_t fresh;
  int status;

  *out = NULL;
  sim_lock (io);
  RP_CHECK (state->point <= io->op_count);
  status = replay_to (io, state, &replay, &fresh);
  if (status == RP_OK)
    status = rp_tree_copy (&replay.base, &tree);
  if (status == RP_OK)
    status = apply_choice (&replay, fresh, &choice, &tree);
  sim_replay_end (&replay);
  sim_unlock (io);
  if (status != RP_OK) {
    rp_tree_clear (&tree);
    return rp_fail (fault, status, 0, "making a crash state");
  }
  status = sim_create (&tree, out, fault);
  if (status == RP_OK) {
    sim_of (*out)->acknowledged_before = state->acknowledged;
    sim_of (*out)->last_tag = state->last_tag;
    sim_of (*out)->crashes = io->crashes + 1;
  }
  return status;
}

struct text {
  char  *buffer;
  size_t room;
  int    length;
};

static void __attribute__ ((format (printf, 2, 3)))
say (struct text *text, const char *format, ...)
{
  va_list arguments;
  size_t at = (size_t) text->length;
  int added;

  va_start (arguments, format);
  if (at >= text->room)
    added = vsnprintf (NULL, 0, format, arguments);
  else
    added = vsnprintf (text->buffer + at, text->room - at, format, arguments);
  va_end (arguments);
  if (added > 0)
    text->length += added;
}

static void
say_pending (struct text *text, const struct sim_replay *replay,
             const struct choice *choice, uint32_t fresh)
{
  static const char *const tears[] = {
    [FIRST_SECTORS] = "first %u sectors only: ",
    [FIRST_SECTORS_SHORT] = "first %u sectors only, size too: ",
    [LAST_SECTORS] = "without the first %u sectors: ",
    [LOST_SECTOR] = "without sector %u: ",
    [GARBAGE_SECTOR] = "garbage in sector %u: ",
  };
  char line[512];

  for (uint32_t i = 0; i < replay->count; i++) {
    const bool is_kept = kept (choice, i, replay->count, fresh);

    say (text, is_kept ? "\n  kept " : "\n  LOST ");
    if (is_kept && choice->tear_kind != WHOLE && choice->torn == i) {
      snprintf (line, sizeof line, tears[choice->tear_kind], choice->sector);
      say (text, "TORN %s", line);
    }
    sim_op_text (replay->pending[i], line, sizeof line);
    say (text, "%s", line);
  }
}

int
rp_sim_state_text (struct rp_io *rp, const struct rp_sim_state *state,
                   char *buffer, size_t buffer_bytes)
{
  struct sim_io *io = sim_of (rp);
  const struct choice choice = choice_of (state);
  struct text text = { .buffer = buffer, .room = buffer_bytes };
  struct sim_replay replay;
  char line[512] = "nothing";
  uint32_t fresh;

  sim_lock (io);
  RP_CHECK (state->point <= io->op_count);
  if (state->point > 0)
    sim_op_text (io->ops[state->point - 1], line, sizeof line);
  say (&text, "crash after operation %llu (%s), %llu acknowledged",
       (unsigned long long) state->point, line,
       (unsigned long long) state->acknowledged);
  if (replay_to (io, state, &replay, &fresh) == RP_OK)
    say_pending (&text, &replay, &choice, fresh);
  sim_replay_end (&replay);
  sim_unlock (io);
  return text.length;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A whole operation, and a power cut at every moment of it.
 *
 * A replica in small: two disks (flat base, journal log with the smallest
 * segments, overlay) and a state file that is replaced whole and plays the
 * manifest.  Seeded runs go
 *
 *   replicate -> hold, roll back, overlays -> writes into the overlays
 *     -> undo -> replicate ...          or  -> permanent
 *
 * Every state that a crash may leave is looked at as it lies, resumed by what
 * its state file says, and looked at again:
 *
 *   J1  what was acknowledged is there, in journals and overlays
 *   J4  each point that both journals list shows, on both disks, what was
 *       written before it (G1, G2)
 *   J5  resuming that is cut short comes to the same
 *   J6  the epoch never goes back, and an older writer is refused
 *   J7  while a failover lasts, the bases and all that was logged stay as
 *       they are
 *   J8  undo and permanent are all or nothing: read through the engine there
 *       is exactly the old image or exactly the new one
 *   J10 the replica takes writes after an undo
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.  Argument: first seed.
 */
#include "crash_operation.h"
#include "crash_tell.h"

/* ---- the workload ---- */

static void
acknowledge (struct lab *lab, struct rp_io *io)
{
  struct history *history = &lab->history;
  struct ack *ack = &history->acks[history->ack_count];
  struct rp_fault fault;

  CHECK (history->ack_count < ACKS);
  ack->version = history->version_count - 1;
  ack->overlay = history->overlay_count - 1;
  ack->points = history->point_count;
  ack->serial = history->stage_count - 1;
  OK (rp_sim_acknowledge (io, history->ack_count++, &fault));
}

/* Some sectors of one disk get new stamps, or zeros.  Each grain of a journal
 * is a version of its own, as a batch may end between any two. */
static void
write_some (struct version *versions, uint32_t *count, uint32_t room,
            bool by_grain, int d, struct rp_disk *disk, uint64_t *seed)
{
  const uint32_t sector = (uint32_t) random_below (seed, SECTORS);
  const bool zeros = random_below (seed, 4) == 0;
  uint32_t length = 1 + (uint32_t) random_below (seed, 20);
  struct version *version = NULL;
  uint8_t data[20 * 512];
  struct rp_fault fault;

  if (length > SECTORS - sector)
    length = SECTORS - sector;
  for (uint32_t i = 0; i < length; i++) {
    const uint32_t stamp = zeros ? 0 : *count * 131 + i + 1;

    if (i == 0 || (by_grain && (sector + i) % 8 == 0)) {
      CHECK (*count < room);
      version = &versions[(*count)++];
      *version = version[-1];
    }
    version->disks[d][sector + i] = stamp;
    fill_sector (data + i * 512, stamp);
  }
  if (zeros)
    OK (rp_disk_zero (disk, length * 512, sector * 512, true, &fault));
  else
    OK (rp_disk_pwrite (disk, data, length * 512, sector * 512, &fault));
}

static void
commit_all (struct lab *lab, struct rp_io *io, struct rig rigs[DISKS])
{
  struct rp_fault fault;

  for (int d = 0; d < DISKS; d++)
    OK (rp_journal_commit (rigs[d].journal, &fault));
  acknowledge (lab, io);
}

static void
replicate (struct lab *lab, struct rp_io *io, int steps, uint64_t *seed)
{
  struct history *history = &lab->history;
  const struct record *now = &history->stages[history->stage_count - 1].record;
  struct rig rigs[DISKS];
  struct rp_fault fault;

  for (int d = 0; d < DISKS; d++)
    OK (open_rig (io, d, WITH_JOURNAL, now->epoch, &rigs[d], &fault));
  for (int i = 0; i < steps; i++) {
    const uint64_t what = random_below (seed, 10);
    const int d = (int) random_below (seed, DISKS);

    if (what < 6)
      write_some (history->versions, &history->version_count, VERSIONS, true,
                  d, rp_journal_disk (rigs[d].journal), seed);
    else if (what < 8)
      commit_all (lab, io, rigs);
    else {
      const struct rp_point point = make_point (history->point_count + 1);

      CHECK (history->point_count < POINTS);
      history->points[history->point_count++] = history->version_count - 1;
      for (int k = 0; k < DISKS; k++)
        OK (rp_journal_mark (rigs[k].journal, &point, &fault));
      commit_all (lab, io, rigs);
    }
  }
  commit_all (lab, io, rigs);
  for (int d = 0; d < DISKS; d++)
    close_rig (&rigs[d]);
}

/* Record that the replica is in another phase, and what may be found in it. */
static void
enter (struct lab *lab, struct rp_io *io, enum phase phase, uint32_t point)
{
  struct history *history = &lab->history;
  struct stage *stage = &history->stages[history->stage_count];
  struct rp_fault fault;

  CHECK (history->stage_count < STAGES);
  *stage = stage[-1];
  stage->record.serial = history->stage_count++;
  stage->record.phase = phase;
  if (phase == FAILING) {
    struct failover *failover = &history->failovers[history->failover_count];

    CHECK (history->failover_count < FAILOVERS
           && history->overlay_count < OVERLAYS);
    stage->record.point = point;
    stage->record.epoch++;
    stage->failover = history->failover_count++;
    failover->end = history->version_count - 1;
    failover->points = history->point_count;
    failover->first = failover->last = history->overlay_count;
    history->overlays[history->overlay_count++]
      = history->versions[history->points[point - 1]];
  }
  OK (put_record (io, &stage->record, &fault));
  acknowledge (lab, io);
}

/* The logs as they are when the overlays are handed out. */
static void
remember_logs (struct failover *failover, struct rp_io *io)
{
  struct rig rig;
  struct rp_fault fault;

  for (int d = 0; d < DISKS; d++) {
    OK (open_rig (io, d, WITH_CHAIN, 0, &rig, &fault));
    OK (rp_file_size (rig.log, &failover->log_bytes[d], &fault));
    failover->logs[d] = malloc (failover->log_bytes[d]);
    CHECK (failover->logs[d]);
    OK (rp_file_pread_all (rig.log, failover->logs[d], failover->log_bytes[d],
                           0, &fault));
    close_rig (&rig);
  }
}

static void
write_overlays (struct lab *lab, struct rp_io *io, int steps, uint64_t *seed)
{
  struct history *history = &lab->history;
  struct rig rigs[DISKS];
  struct rp_fault fault;

  for (int d = 0; d < DISKS; d++)
    OK (open_rig (io, d, WITH_CHAIN | WRITABLE, 0, &rigs[d], &fault));
  for (int i = 0; i < steps; i++) {
    const int d = (int) random_below (seed, DISKS);

    write_some (history->overlays, &history->overlay_count, OVERLAYS, false,
                d, rigs[d].chain, seed);
    if (random_below (seed, 4) == 0) {
      for (int k = 0; k < DISKS; k++)
        OK (rp_disk_flush (rigs[k].chain, &fault));
      acknowledge (lab, io);
    }
  }
  for (int d = 0; d < DISKS; d++) {
    OK (rp_chain_close_clean (rigs[d].chain, &fault));
    close_rig (&rigs[d]);
  }
  history->failovers[history->failover_count - 1].last
    = history->overlay_count - 1;
  acknowledge (lab, io);
}

/* A failover to some point, and what comes after it. */
static void
operate (struct lab *lab, struct rp_io *io, bool permanent, uint64_t *seed)
{
  struct history *history = &lab->history;
  const uint32_t point
    = 1 + (uint32_t) random_below (seed, history->point_count);
  struct failover *failover;
  uint32_t listed;
  struct rp_fault fault;

  enter (lab, io, FAILING, point);
  OK (do_failover (io, &history->stages[history->stage_count - 1].record,
                   &listed, &fault));
  if (listed > history->point_count)   /* the fence marked what was not */
    history->points[history->point_count++] = history->version_count - 1;
  failover = &history->failovers[history->failover_count - 1];
  enter (lab, io, FAILED_OVER, 0);
  remember_logs (failover, io);
  write_overlays (lab, io, 2 + (int) random_below (seed, 3), seed);
  enter (lab, io, permanent ? MERGING : UNDOING, 0);
  if (permanent) {
    OK (do_merge (io, &fault));
    enter (lab, io, PERMANENT, 0);
    OK (do_clean_up (io, &fault));
  } else {
    const struct record *now
      = &history->stages[history->stage_count - 1].record;

    OK (do_undo (io, now, &fault));
    enter (lab, io, READY, 0);
  }
}

static void
run_workload (struct lab *lab, struct rp_io *io)
{
  struct history *history = &lab->history;
  uint64_t seed = lab->seed;
  struct rp_fault fault;

  replicate (lab, io, 5 + (int) random_below (&seed, 6), &seed);
  if (history->point_count == 0) {     /* there has to be one to go to */
    struct rig rigs[DISKS];
    const struct rp_point point = make_point (1);

    for (int d = 0; d < DISKS; d++) {
      OK (open_rig (io, d, WITH_JOURNAL, 1, &rigs[d], &fault));
      OK (rp_journal_mark (rigs[d].journal, &point, &fault));
    }
    history->points[history->point_count++] = history->version_count - 1;
    commit_all (lab, io, rigs);
    for (int d = 0; d < DISKS; d++)
      close_rig (&rigs[d]);
  }
  if (lab->seed % 2 == 0) {
    /* half of the runs: all up to the first undo is given */
    operate (lab, io, false, &seed);
    OK (rp_sim_settle (io, &fault));
    acknowledge (lab, io);
    replicate (lab, io, 1 + (int) random_below (&seed, 4), &seed);
  }
  operate (lab, io, lab->seed % 4 < 2, &seed);
}

/* ---- what a state is held against ---- */

/* Bytes of a disk are one version of it, from `first` on. */
static bool
is_version (const struct version *versions, uint32_t first, uint32_t stop,
            int d, const uint8_t *bytes)
{
  stamps found;

  if (!read_stamps (bytes, found))
    return false;
  for (uint32_t v = stop; v-- > first;)
    if (memcmp (found, versions[v].disks[d], sizeof found) == 0)
      return true;
  return false;
}

static int
check_base (const struct lab *lab, struct rp_io *io,
            const struct version *wanted, struct rp_fault *fault)
{
  uint8_t bytes[BYTES];
  struct rig rig;

  (void) lab;
  for (int d = 0; d < DISKS; d++) {
    TRY (open_rig (io, d, 0, 0, &rig, fault));
    TRY (rp_file_pread_all (rig.base, bytes, BYTES, 0, fault));
    close_rig (&rig);
    MUST (is_version (wanted, 0, 1, d, bytes));
  }
  return RP_OK;
}

/* Segments, header and shown root of each log are what they were. */
static int
check_logs (const struct failover *failover, struct rp_io *io,
            struct rp_fault *fault)
{
  struct rig rig;

  for (int d = 0; d < DISKS; d++) {
    const uint64_t size = failover->log_bytes[d];
    const uint8_t *before = failover->logs[d];
    uint8_t *bytes = calloc (1, size);
    uint64_t root_at;
    struct rp_log_root root;
    struct rp_log_segment segment;

    CHECK (bytes);
    TRY (open_rig (io, d, WITH_CHAIN, 0, &rig, fault));
    TRY (rp_file_pread_all (rig.log, bytes, size, 0, fault));
    close_rig (&rig);
    root_at = rp_load64 (before + 56) * 512 - RP_LOG_PAGE_BYTES;
    CHECK (rp_log_get_root (before + root_at, &root));
    MUST (memcmp (bytes, before, RP_LOG_HEAD_BYTES) == 0);
    MUST (memcmp (bytes + root_at, before + root_at,
                  RP_LOG_PAGE_BYTES + root.content_bytes) == 0);
    for (uint64_t at = RP_LOG_HEAD_BYTES; at + SEGMENT <= size; at += SEGMENT)
      if (at != root_at && rp_log_get_segment (before + at, &segment))
        MUST (memcmp (bytes + at, before + at, SEGMENT) == 0);
    free (bytes);
  }
  return RP_OK;
}

static void
judge (void *context, const struct rp_finding *finding)
{
  if (strcmp (finding->kind, "leak") != 0
      && strcmp (finding->kind, "unclean") != 0)
    *(bool *) context = false;
}

/* Read through overlay, log and base, as a hypervisor does: each sector is one
 * of its versions. */
static int
check_overlays (const struct lab *lab, struct rp_io *io, uint32_t floor,
                uint32_t last, struct rp_fault *fault)
{
  const struct version *versions = lab->history.overlays;
  uint8_t bytes[BYTES];
  struct rig rig;

  for (int d = 0; d < DISKS; d++) {
    stamps found;
    bool sound = true;

    TRY (open_rig (io, d, WITH_CHAIN, 0, &rig, fault));
    TRY (rp_disk_pread (rig.chain, bytes, BYTES, 0, fault));
    TRY (rp_image_check (rig.over_image, judge, &sound, fault));
    close_rig (&rig);
    MUST (sound);
    MUST (read_stamps (bytes, found));
    for (uint32_t i = 0; i < SECTORS; i++) {
      uint32_t v = floor;

      while (v <= last && versions[v].disks[d][i] != found[i])
        v++;
      MUST (v <= last);
    }
  }
  return RP_OK;
}

/* The version that a listed point has to show. */
static uint32_t
point_version (const struct history *history, const struct failover *context,
               uint64_t id)
{
  if (context && id > context->points)
    return context->end;         /* marked by the fence */
  CHECK (id <= history->point_count);
  return history->points[id - 1];
}

/* Both journals at one point. */
static int
check_point (const struct lab *lab, struct rp_io *io, struct rig rigs[DISKS],
             uint64_t id, uint32_t version, struct rp_fault *fault)
{
  uint8_t bytes[BYTES];
  struct rp_roll roll;

  (void) io;
  for (int d = 0; d < DISKS; d++) {
    TRY (rp_journal_roll (rigs[d].journal, id, &roll, fault));
    TRY (read_shown (&rigs[d], bytes, fault));
    MUST (is_version (lab->history.versions + version, 0, 1, d, bytes));
  }
  return RP_OK;
}

/* J10: writes are taken, and stay, and nothing else comes with them. */
static int
check_goes_on (struct rp_io *io, uint64_t epoch, struct rig rigs[DISKS],
               struct rp_fault *fault)
{
  uint8_t before[BYTES], after[BYTES];

  for (int d = 0; d < DISKS; d++) {
    TRY (rp_disk_pread (rp_journal_disk (rigs[d].journal), before, BYTES, 0,
                        fault));
    fill_sector (before + 5 * 512, 0x7ffffff);
    TRY (rp_disk_pwrite (rp_journal_disk (rigs[d].journal), before + 5 * 512,
                         512, 5 * 512, fault));
    TRY (rp_journal_commit (rigs[d].journal, fault));
    close_rig (&rigs[d]);
    TRY (open_rig (io, d, WITH_JOURNAL, epoch, &rigs[d], fault));
    TRY (rp_disk_pread (rp_journal_disk (rigs[d].journal), after, BYTES, 0,
                        fault));
    MUST (memcmp (before, after, BYTES) == 0);
  }
  return RP_OK;
}

/* A replica that is Ready. */
static int
check_ready (const struct lab *lab, struct rp_io *io, const struct ack *ack,
             const struct failover *context, uint64_t epoch, uint64_t dice,
             struct rp_fault *fault)
{
  const struct history *history = &lab->history;
  uint64_t ids[POINTS];
  uint32_t count = 0, known = 0;
  uint8_t bytes[BYTES];
  struct rp_journal_info info;
  struct rig rigs[DISKS];

  for (int d = 0; d < DISKS; d++) {
    MUST (!exists (io, d, "over"));
    TRY (open_rig (io, d, WITH_JOURNAL, epoch, &rigs[d], fault));
    rp_journal_info (rigs[d].journal, &info);
    MUST (info.options.epoch == epoch && !info.held && !info.failed);
    TRY (rp_disk_pread (rp_journal_disk (rigs[d].journal), bytes, BYTES, 0,
                        fault));
    MUST (is_version (history->versions, ack->version, history->version_count,
                      d, bytes));
  }
  TRY (list_points (rigs, ids, &count, fault));
  for (uint32_t i = 0; i < count; i++)
    known += ids[i] <= ack->points;
  MUST (known == ack->points);
  for (uint32_t i = 0; i < count; i++)
    if (dice % 8 == 0 || i == dice / 8 % count)
      TRY (check_point (lab, io, rigs, ids[i],
                        point_version (history, context, ids[i]), fault));
  if (dice % 4 == 0)
    TRY (check_goes_on (io, epoch, rigs, fault));
  for (int d = 0; d < DISKS; d++)
    close_rig (&rigs[d]);
  return RP_OK;
}

/* G4, J6: while a failover lasts, nobody writes to a journal. */
static int
check_fenced (struct rp_io *io, uint64_t epoch, struct rp_fault *fault)
{
  struct rp_fault ignored;
  uint8_t sector[512] = { 1 };
  struct rig rig;

  for (int d = 0; d < DISKS; d++) {
    MUST (open_rig (io, d, WITH_JOURNAL, epoch - 1, &rig, &ignored)
          == RP_STALE_EPOCH);
    close_rig (&rig);
    TRY (open_rig (io, d, WITH_JOURNAL, epoch, &rig, fault));
    MUST (rp_disk_pwrite (rp_journal_disk (rig.journal), sector, 512, 0,
                          &ignored) == RP_HELD);
    close_rig (&rig);
  }
  return RP_OK;
}

/* The machine that comes next decides: undo, or permanent. */
static int
end_failover (struct lab *lab, struct rp_io *io, const struct ack *ack,
              const struct record *record, const struct failover *failover,
              uint64_t dice, struct rp_fault *fault)
{
  struct record next = *record;
  struct version seen;

  next.serial++;
  if (dice % 2 == 0) {
    next.phase = UNDOING;
    TRY (put_record (io, &next, fault));
    TRY (do_undo (io, &next, fault));
    TRY (check_base (lab, io, lab->history.versions, fault));
    return check_ready (lab, io, ack, failover, next.epoch, dice / 2, fault);
  }
  for (int d = 0; d < DISKS; d++) {
    uint8_t bytes[BYTES];
    struct rig rig;

    TRY (open_rig (io, d, WITH_CHAIN, 0, &rig, fault));
    TRY (rp_disk_pread (rig.chain, bytes, BYTES, 0, fault));
    close_rig (&rig);
    MUST (read_stamps (bytes, seen.disks[d]));
  }
  next.phase = MERGING;
  TRY (put_record (io, &next, fault));
  TRY (do_merge (io, fault));
  return check_base (lab, io, &seen, fault);
}

/* ---- a state ---- */

static rp_sim_checker check_state;

/* Look at it before anything is done: what a failover promises to leave. */
static int
check_as_it_lies (const struct lab *lab, struct rp_io *io,
                  const struct ack *ack, const struct stage *stage,
                  struct rp_fault *fault)
{
  const struct history *history = &lab->history;
  const struct failover *failover = &history->failovers[stage->failover];
  const uint32_t floor = ack->overlay > failover->first ? ack->overlay
                                                        : failover->first;
  const enum phase phase = stage->record.phase;

  MUST (stage->record.serial >= ack->serial);
  if (phase == PERMANENT)
    return check_base (lab, io, history->overlays + failover->last, fault);
  if (phase == MERGING)
    return check_overlays (lab, io, failover->last, failover->last, fault);
  TRY (check_base (lab, io, history->versions, fault));
  if (phase != FAILED_OVER)
    return RP_OK;
  if (lab->depth == 0)           /* a second recovery may log a point more */
    TRY (check_logs (failover, io, fault));
  return check_overlays (lab, io, floor, failover->last, fault);
}

/* What the phase leads to, as resume does it. */
static int
resume (struct rp_io *io, const struct record *record, struct rp_fault *fault)
{
  struct record next = *record;
  uint32_t listed;

  next.serial++;
  if (record->phase == FAILING) {
    next.phase = FAILED_OVER;
    TRY (do_failover (io, record, &listed, fault));
  } else if (record->phase == UNDOING) {
    next.phase = READY;
    TRY (do_undo (io, record, fault));
  } else if (record->phase == MERGING) {
    next.phase = PERMANENT;
    TRY (do_merge (io, fault));
  }
  if (next.phase != record->phase)
    TRY (put_record (io, &next, fault));
  return next.phase == PERMANENT ? do_clean_up (io, fault) : RP_OK;
}

static int
check_resumed (struct lab *lab, struct rp_io *io, const struct ack *ack,
               const struct stage *stage, uint64_t dice,
               struct rp_fault *fault)
{
  const struct history *history = &lab->history;
  const struct failover *failover = &history->failovers[stage->failover];
  const enum phase was = stage->record.phase;
  struct record now;

  TRY (get_record (io, &now, fault));
  MUST (now.epoch == stage->record.epoch);
  if (was == READY || was == UNDOING) {
    MUST (now.phase == READY);
    TRY (check_base (lab, io, history->versions, fault));
    return check_ready (lab, io, ack, was == UNDOING ? failover : NULL,
                        now.epoch, dice, fault);
  }
  if (was == MERGING || was == PERMANENT) {
    MUST (now.phase == PERMANENT);
    for (int d = 0; d < DISKS; d++)
      MUST (!exists (io, d, "over") && !exists (io, d, "log"));
    return check_base (lab, io, history->overlays + failover->last, fault);
  }
  MUST (now.phase == FAILED_OVER);
  TRY (check_base (lab, io, history->versions, fault));
  if (was == FAILING)
    TRY (check_overlays (lab, io, failover->first, failover->first, fault));
  if (dice % 2 == 0)
    TRY (check_fenced (io, now.epoch, fault));
  if (dice % 4 == 1)
    return end_failover (lab, io, ack, &now, failover, dice / 4, fault);
  return RP_OK;
}

static int
sweep (struct lab *lab, struct rp_io *io, uint64_t budget,
       struct rp_fault *fault)
{
  const struct rp_sim_options options = {
    .budget = budget, .seed = lab->seed, .flags = RP_SIM_TEAR,
    .seen = lab->seen,
  };
  struct rp_sim_counts counts;
  int status;

  lab->swept[lab->depth] = io;
  status = rp_sim_crash_states (io, &options, check_state, lab, &counts, NULL,
                                fault);
  if (lab->depth > 0)
    lab->deep += counts.distinct;
  return status;
}

/* All that can be checked about a state. */
static int
check_all (struct lab *lab, struct rp_io *io, const struct ack *ack,
           struct rp_fault *fault)
{
  const struct history *history = &lab->history;
  uint64_t dice = ++lab->states * 0x9e3779b97f4a7c15 ^ lab->seed;
  const struct stage *stage;
  struct record record;

  dice = next_random (&dice) >> 20;
  TRY (get_record (io, &record, fault));
  MUST (record.serial < history->stage_count);
  stage = &history->stages[record.serial];
  MUST (memcmp (&record, &stage->record, sizeof record) == 0);
  TRY (check_as_it_lies (lab, io, ack, stage, fault));
  TRY (resume (io, &record, fault));
  if (lab->depth == 0 && record.phase != READY
      && record.phase != FAILED_OVER && dice % 8 == 0) {
    lab->depth++;
    TRY (sweep (lab, io, 40, fault));
    lab->depth--;
  }
  return check_resumed (lab, io, ack, stage, dice / 16, fault);
}

static int
check_state (void *context, struct rp_io *io,
             const struct rp_sim_state *state, struct rp_fault *fault)
{
  struct lab *lab = context;
  static const struct ack nothing;
  const struct ack *ack = state->acknowledged > 0
                          ? &lab->history.acks[state->last_tag] : &nothing;
  char text[4000];

  if (check_all (lab, io, ack, fault) == RP_OK)
    return RP_OK;
  rp_sim_state_text (lab->swept[lab->depth], state, text, sizeof text);
  fprintf (stderr, "seed %llu, depth %u: %s (%llu)\n%s\n",
           (unsigned long long) lab->seed, lab->depth, fault->message,
           (unsigned long long) fault->position, text);
  exit (EXIT_FAILURE);
}

/* ---- */

static void
make_replica (struct lab *lab, struct rp_io *io)
{
  const struct rp_journal_options how = {
    .capacity_bytes = BYTES, .grain_bytes = GRAIN, .segment_bytes = SEGMENT,
    .id = "crash test 4567", .epoch = 1,
  };
  struct history *history = &lab->history;
  struct rp_dir *dir;
  struct rp_file *file;
  struct rp_fault fault;
  uint8_t sector[512];
  char name[16];

  OK (rp_dir_open (io, "/", &dir, &fault));
  for (int d = 0; d < DISKS; d++) {
    OK (rp_file_open (dir, file_name (name, d, "base"),
                      RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file, &fault));
    for (uint32_t i = 0; i < SECTORS; i++) {
      history->versions[0].disks[d][i] = 0x40000000 + i * 2 + (uint32_t) d;
      fill_sector (sector, history->versions[0].disks[d][i]);
      OK (rp_file_pwrite (file, sector, 512, i * 512, &fault));
    }
    rp_file_close (file);
    OK (rp_file_open (dir, file_name (name, d, "log"),
                      RP_OPEN_WRITE | RP_OPEN_CREATE, 0600, &file, &fault));
    OK (rp_journal_create (file, &how, &fault));
    rp_file_close (file);
  }
  rp_dir_close (dir);
  history->version_count = history->overlay_count = 1;
  history->stages[0].record = (struct record) {
    .magic = RECORD_MAGIC, .phase = READY, .epoch = 1,
  };
  history->stage_count = 1;
  OK (put_record (io, &history->stages[0].record, &fault));
  OK (rp_sim_settle (io, &fault));
}

/* A writer whose lock was lost and whose epoch is old commits nothing. */
static void
test_stale_writer (void)
{
  static struct lab lab;
  struct rp_io *io;
  struct rig rig;
  struct rp_log_super super;
  struct rp_file *other;
  uint8_t page[RP_LOG_PAGE_BYTES], sector[512] = { 1 };
  struct rp_fault fault;

  OK (rp_io_simulate_create (&io, &fault));
  make_replica (&lab, io);
  OK (open_rig (io, 0, WITH_JOURNAL, 1, &rig, &fault));
  OK (rp_disk_pwrite (rp_journal_disk (rig.journal), sector, 512, 0, &fault));
  OK (rp_file_open (rig.dir, "a-log", RP_OPEN_WRITE, 0, &other, &fault));
  OK (rp_file_pread_all (other, page, sizeof page, RP_LOG_PAGE_BYTES,
                         &fault));
  CHECK (rp_log_get_super (page, &super));
  super.epoch++;
  super.generation += 10;
  rp_log_put_super (page, &super);
  OK (rp_file_pwrite (other, page, sizeof page, RP_LOG_PAGE_BYTES, &fault));
  CHECK (rp_journal_commit (rig.journal, &fault) == RP_STALE_EPOCH);
  CHECK (rp_journal_commit (rig.journal, &fault) == RP_STALE_EPOCH);
  rp_file_close (other);
  close_rig (&rig);
  rp_io_destroy (io);
}

int
main (int argc, char **argv)
{
  const uint64_t wanted = crash_budget (30000);
  uint64_t seed = argc > 1 ? strtoull (argv[1], NULL, 10) : 1;
  static struct lab lab;
  unsigned workloads = 0;
  struct rp_fault fault;
  struct rp_io *io;

  test_stale_writer ();
  OK (rp_sim_seen_create (&lab.seen, &fault));
  for (; rp_sim_seen_count (lab.seen) < wanted; seed++, workloads++) {
    lab.seed = seed;
    memset (&lab.history, 0, sizeof lab.history);
    OK (rp_io_simulate_create (&io, &fault));
    make_replica (&lab, io);
    run_workload (&lab, io);
    OK (sweep (&lab, io, 0, &fault));
    rp_io_destroy (io);
    for (uint32_t i = 0; i < lab.history.failover_count; i++)
      for (int d = 0; d < DISKS; d++)
        free (lab.history.failovers[i].logs[d]);
  }
  crash_tell ("crash_operation_test", lab.seen, workloads, "");
  rp_sim_seen_destroy (lab.seen);
  return EXIT_SUCCESS;
}

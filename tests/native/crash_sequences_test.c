/* SPDX-License-Identifier: Apache-2.0 */
/* Every short sequence of what can be done to a journal, and a power cut at
 * every moment of it: all of one, two and three steps (as ACE does for file
 * systems), after a beginning that is durable.
 *
 * The promises are those of crash_journal.h.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at; sequences are then drawn
 * evenly.  Arguments: part, and of how many, so that many can share the work.
 */
#include "crash_journal.h"
#include "crash_tell.h"

#define LONGEST  3u
#define SWEEP    600u            /* states of one sequence at most */

enum act {
  ACT_WRITE, ACT_LONG_WRITE, ACT_ZERO, ACT_BURST, ACT_COMMIT, ACT_MARK,
  ACT_ROLL_OLDEST, ACT_ROLL_END, ACT_EPOCH, ACT_CLOSE, ACT_REOPEN,
  ACT_CHECKPOINT, ACT_DESTAGE, ACTS,
};

static void
must_not_fail (struct lab *lab, struct rp_journal *journal, int status)
{
  (void) lab;
  (void) journal;
  CHECK (status == RP_OK);
}

static int
write_at (struct lab *lab, struct rp_disk *disk, uint32_t sector,
          uint32_t count)
{
  uint8_t data[24 * 512];
  uint32_t *version = NULL;
  struct rp_fault fault;

  for (uint32_t i = 0; i < count; i++) {
    const uint32_t stamp = lab->history.version_count * 131 + i + 1;

    if (i == 0 || (sector + i) % 8 == 0)
      version = next_version (&lab->history);
    version[sector + i] = stamp;
    fill_sector (data + i * 512, stamp);
  }
  return rp_disk_pwrite (disk, data, count * 512, sector * 512, &fault);
}

static int
roll_to (struct lab *lab, struct rp_journal *journal, bool oldest)
{
  struct history *history = &lab->history;
  const uint32_t first = history->horizons[history->horizon_count - 1];
  const bool point = oldest && history->point_count > first;
  struct rp_roll roll;
  struct rp_fault fault;
  int status;

  add_roll (history, point ? history->points[first]
                           : history->version_count - 1);
  status = rp_journal_roll (journal, point ? first + 1 : RP_POINT_END, &roll,
                            &fault);
  if (status == RP_OK)
    history->shown = history->roll_count - 1;
  return acknowledged (lab, status);
}

static int
do_act (struct lab *lab, struct opened *opened, enum act act, uint64_t *seed,
        bool *reopen)
{
  struct rp_journal *journal = opened->journal;
  struct rp_disk *disk = rp_journal_disk (journal);
  struct rp_fault fault;

  *reopen = act == ACT_CLOSE || act == ACT_REOPEN;
  switch (act) {
  case ACT_WRITE:
    return write_at (lab, disk, 8 + lab->history.version_count % 3, 2);
  case ACT_LONG_WRITE:
    return write_at (lab, disk, 4, 21);
  case ACT_ZERO:
    return step_zero (lab, disk, seed);
  case ACT_BURST:
    return step_burst (lab, disk, seed);
  case ACT_COMMIT:
    return acknowledged (lab, rp_journal_commit (journal, &fault));
  case ACT_MARK:
    return step_mark (lab, journal);
  case ACT_ROLL_OLDEST:
  case ACT_ROLL_END:
    return roll_to (lab, journal, act == ACT_ROLL_OLDEST);
  case ACT_EPOCH:
    return acknowledged (lab, rp_journal_set_epoch (journal,
                                                    ++lab->history.epoch,
                                                    false, &fault));
  case ACT_CLOSE:
  case ACT_REOPEN:
    return step_close (lab, journal, act == ACT_CLOSE);
  case ACT_CHECKPOINT:
    return step_checkpoint (lab, journal);
  case ACT_DESTAGE:
    return step_destage (lab, opened, seed);
  case ACTS:
    break;
  }
  return RP_STATE;
}

/* The beginning: two points, writes before, between and behind them. */
static const enum act beginning[] = {
  ACT_LONG_WRITE, ACT_MARK, ACT_WRITE, ACT_ZERO, ACT_MARK, ACT_WRITE,
  ACT_COMMIT,
};
#define BEGINNING (sizeof beginning / sizeof *beginning)

/* number tells the steps, to the base of ACTS; the last one is a commit,
 * which makes something of what was only written. */
static void
run_sequence (struct lab *lab, struct rp_io *io, uint32_t number,
              uint32_t length)
{
  struct opened opened = { .file = NULL };
  struct rp_fault fault;
  uint64_t seed = 1 + number;

  for (uint32_t i = 0; i < BEGINNING + length + 1; i++) {
    enum act act = i < BEGINNING ? beginning[i] : ACT_COMMIT;
    bool reopen;

    if (i >= BEGINNING && i < BEGINNING + length) {
      act = number % ACTS;
      number /= ACTS;
    }
    if (i == BEGINNING) {
      OK (rp_sim_settle (lab->simulate, &fault));
      OK (rp_sim_acknowledge (lab->simulate, lab->history.ack_count - 1,
                              &fault));
    }
    if (!opened.journal)
      open_all (io, &opened);
    CHECK (do_act (lab, &opened, act, &seed, &reopen) == RP_OK);
    if (reopen)
      close_all (&opened);
  }
  close_all (&opened);
}

static void
sweep (struct lab *lab, uint32_t number, uint32_t length)
{
  struct rp_sim_options options = {
    .budget = SWEEP, .seed = number, .flags = RP_SIM_TEAR, .seen = lab->seen,
  };
  struct rp_sim_counts counts;
  struct rp_io *order;
  struct rp_fault fault;

  lab_start (lab, 1000 * length + number);
  OK (rp_io_order_create (lab->simulate, &order, &fault));
  run_sequence (lab, order, number, length);
  rp_io_destroy (order);
  OK (rp_sim_crash_states (lab->simulate, &options, check_state, lab, &counts,
                           NULL, &fault));
  rp_io_destroy (lab->simulate);
}

int
main (int argc, char **argv)
{
  const uint64_t wanted = crash_budget (6000);
  const uint32_t part = argc > 2 ? (uint32_t) atoi (argv[1]) : 0;
  const uint32_t parts = argc > 2 ? (uint32_t) atoi (argv[2]) : 1;
  static struct lab lab = { .after_failure = must_not_fail };
  uint64_t workloads = 0;
  uint32_t count = 1;

  lab_init (&lab);
  for (uint32_t length = 1; length <= LONGEST; length++) {
    count *= ACTS;
    /* 7919 is a prime: every sequence once, the budget ends anywhere */
    for (uint32_t i = part; i < count && rp_sim_seen_count (lab.seen) < wanted;
         i += parts, workloads++)
      sweep (&lab, (uint32_t) ((uint64_t) i * 7919 % count), length);
  }
  crash_tell ("crash_sequences_test", lab.seen, workloads, "");
  lab_end (&lab);
  return EXIT_SUCCESS;
}

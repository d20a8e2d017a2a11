/* simulate.h - a disk in memory, and everything a power cut may leave of it.
 *
 * The simulate backend keeps what was written and, beside it, a log of
 * micro-operations.  A sweep walks through the log and yields, for each moment
 * between two of them, the states that a crash at that moment may leave, each
 * as a simulate io of its own, ready to be opened, recovered and checked:
 *
 *   workload on an io  ->  sweep  ->  state, state, state ...  ->  checker
 *
 * The model is the portable one (ALICE's default): the only order that a disk
 * keeps is that of syncs.  A sync of a file makes its earlier writes, sizes and
 * holes durable, a sync of a directory its earlier names; of all the rest any
 * subset may survive, also a later write without an earlier one.  A size that
 * grows is one operation and the data another.  A rename is atomic.  A write
 * of several sectors may be torn between any two; a sector of 512 bytes is old
 * or new, or garbage where the sweep is asked for that.
 *
 * A state is itself a recording simulate io, so recovery can be swept too.
 *
 * Threads: an io as io.h says.  A sweep: one thread at a time; while it lives
 *          the workload's io may be used, but not settled or destroyed.
 * Tests:   tests/native/io_simulate_test.c, tests/test_io.py
 * Page:    docs/io.md
 * Source:  Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014,
 *          section 4.2; sectors and garbage after SQLite's crash tests.
 */
#ifndef RP_SIMULATE_H
#define RP_SIMULATE_H

#include "io.h"

int rp_io_simulate_create (struct rp_io **out, struct rp_fault *fault);
bool rp_io_is_simulate (const struct rp_io *io);

/* The functions below take an io made by rp_io_simulate_create or a sweep. */

/* The workload tells that it has promised something to somebody: from here on
 * each state has to keep it.  The tag is the workload's own.
 */
int rp_sim_acknowledge (struct rp_io *io, uint64_t tag, struct rp_fault *fault);

/* All that has been done is durable, and the log is empty: what comes next is
 * swept, what came before is given.  RP_STATE while a sweep lives.
 */
int rp_sim_settle (struct rp_io *io, struct rp_fault *fault);

/* Micro-operations in the log, and one of them for a person to read. */
uint64_t rp_sim_operation_count (struct rp_io *io);
void rp_sim_operation_text (struct rp_io *io, uint64_t index, char *buffer,
                            size_t buffer_bytes);

/* ---- sweeps ---- */

enum rp_sim_flags {
  RP_SIM_TEAR    = 1,            /* tear writes between sectors */
  RP_SIM_GARBAGE = 2,            /* and fill one torn sector with garbage */
};

/* States seen: their image and how much had been acknowledged.  One set can
 * be given to many sweeps (of recoveries, say) so that none repeats another.
 * What is counted are distinct images, whatever had been acknowledged. */
struct rp_sim_seen;
int  rp_sim_seen_create (struct rp_sim_seen **out, struct rp_fault *fault);
void rp_sim_seen_destroy (struct rp_sim_seen *seen);   /* NULL is allowed */
uint64_t rp_sim_seen_count (const struct rp_sim_seen *seen);
/* Of those, the ones that a crash of what recovers from a crash has left. */
uint64_t rp_sim_seen_deep_count (const struct rp_sim_seen *seen);
/* All that were made, those seen before included. */
uint64_t rp_sim_seen_generated (const struct rp_sim_seen *seen);
/* A number for each image; the lowest bit: it was left by a recovery. */
void rp_sim_seen_each (const struct rp_sim_seen *seen,
                       void (*each) (void *context, uint64_t image),
                       void *context);

struct rp_sim_options {
  uint64_t budget;               /* states to yield at most; 0 = no limit */
  uint64_t seed;                 /* of what is sampled where not all can be */
  uint32_t flags;                /* enum rp_sim_flags */
  struct rp_sim_seen *seen;      /* borrowed; NULL: one of the sweep's own */
};

/* Which state this is; enough to make the same one again from the same io. */
struct rp_sim_state {
  uint64_t point;                /* crash after this many micro-operations */
  uint64_t acknowledged;         /* acknowledgements before it, those of the
                                    sweeps around this one included */
  uint64_t last_tag;             /* of the last one; 0 where there is none */
  uint64_t subset;               /* which pending operations survived */
  uint32_t subset_kind;
  uint32_t tear_kind;
  uint32_t torn;                 /* index among the pending operations */
  uint32_t sector;
};

struct rp_sim_counts {
  uint64_t points;               /* moments at which the power was cut */
  uint64_t generated;            /* states made */
  uint64_t distinct;             /* of those, yielded: not seen before */
};

struct rp_sim_sweep;
int  rp_sim_sweep_create (struct rp_io *io,
                          const struct rp_sim_options *options,
                          struct rp_sim_sweep **out, struct rp_fault *fault);
void rp_sim_sweep_destroy (struct rp_sim_sweep *sweep); /* NULL is allowed */
/* The next state, owned by the caller.  RP_NOT_FOUND after the last one. */
int  rp_sim_sweep_next (struct rp_sim_sweep *sweep, struct rp_io **io_out,
                        struct rp_sim_state *state_out, struct rp_fault *fault);
void rp_sim_sweep_counts (const struct rp_sim_sweep *sweep,
                          struct rp_sim_counts *out);

/* A whole sweep: each state goes to the checker and is destroyed after it.
 * The first status other than RP_OK ends the sweep and is returned; failed_out
 * (NULL is allowed) then says at which state, and fault is the checker's.
 */
typedef int rp_sim_checker (void *context, struct rp_io *io,
                            const struct rp_sim_state *state,
                            struct rp_fault *fault);
int rp_sim_crash_states (struct rp_io *io, const struct rp_sim_options *options,
                         rp_sim_checker *check, void *context,
                         struct rp_sim_counts *counts_out,
                         struct rp_sim_state *failed_out,
                         struct rp_fault *fault);

/* Make a state again. */
int rp_sim_state_make (struct rp_io *io, const struct rp_sim_state *state,
                       struct rp_io **out, struct rp_fault *fault);
/* What was lost and torn in it, one line for each pending operation.  Returns
 * the length of the whole text, as snprintf does. */
int rp_sim_state_text (struct rp_io *io, const struct rp_sim_state *state,
                       char *buffer, size_t buffer_bytes);

/* ---- failing syncs, for the fault backend ---- */

/* What the kernel does when write-back fails: writes of the file that were not
 * durable never will be, though its pages count as clean; sizes survive.
 * forget: the cache is dropped too, and reads show what the disk has.
 * Source: measured on ext4 and xfs, Linux 6.18.
 */
int rp_sim_file_lose (struct rp_file *file, bool forget,
                      struct rp_fault *fault);
/* What a lying disk does: a sync that leaves one sector of the last write
 * out. */
int rp_sim_file_lie (struct rp_file *file, uint64_t seed,
                     struct rp_fault *fault);

#endif /* RP_SIMULATE_H */

/* copy_crew.h - workers that walk over a disk together; the insides of copy.h.
 *
 * next() hands out pieces of the disk, ascending, one caller at a time; work()
 * does one piece, with a slot that no other worker has.  What must happen in
 * the order of the pieces waits for its turn.
 *
 *   next -> work ------------------------------------> next ...
 *             \- rp_crew_turn ... rp_crew_turn_over -/
 *
 * The first failure stops everybody.  The calling thread only waits, tells how
 * far they are, and finds out about cancelling that way; with one worker it is
 * the worker, and tells after each piece.
 */
#ifndef RP_COPY_CREW_H
#define RP_COPY_CREW_H

#include <pthread.h>

#include "copy.h"

#define RP_COPY_CHUNK_BYTES  (UINT64_C (1) << 20)
#define RP_COPY_MEMORY_BYTES (UINT64_C (64) << 20)
#define RP_COPY_WORKERS_MAX  256u

struct rp_crew;

/* What one worker has. */
struct rp_crew_slot {
  struct rp_crew *crew;
  uint64_t        ticket;        /* pieces are numbered from 0 */
  uint64_t        start, stop;   /* the piece, bytes of the disk */
  void           *own;           /* made by slot_create */
};

struct rp_crew_functions {
  /* Find the next piece from `from` on, and set start and stop; *more false at
     the end.  What lies before start needs nothing done. */
  int  (*next) (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
                bool *more, struct rp_fault *fault);
  int  (*work) (struct rp_crew *crew, struct rp_crew_slot *slot,
                struct rp_fault *fault);
  /* after the last piece; NULL: nothing */
  int  (*finish) (struct rp_crew *crew, struct rp_fault *fault);
  int  (*slot_create) (struct rp_crew *crew, void **own_out,
                       struct rp_fault *fault);
  void (*slot_destroy) (struct rp_crew *crew, void *own);   /* NULL allowed */
};

struct rp_crew {
  const struct rp_crew_functions *functions;
  void           *job;           /* of whoever made the crew */
  const struct rp_copy_options *options;
  uint64_t        stop;          /* bytes in all */
  uint64_t        piece_bytes;   /* most of a piece */
  uint64_t        slot_bytes;    /* what a slot takes */
  bool            serial;        /* one worker unless options say otherwise */
  bool            ordered;       /* pieces wait for their turn */

  /* the rest is the crew's own */
  pthread_mutex_t lock;
  pthread_cond_t  turned;        /* a turn is over, or all is */
  pthread_cond_t  ended;         /* the last worker has gone */
  uint64_t        cursor;        /* under lock, as all below */
  uint64_t        tickets, turn;
  uint64_t        done_bytes;
  uint32_t        running;
  bool            no_more, over;
  int             status;
  struct rp_fault fault;
};

/* functions, job, options (NULL: all by default), stop, piece_bytes,
 * slot_bytes, serial and ordered are set. */
int rp_crew_run (struct rp_crew *crew, struct rp_fault *fault);

/* Wait until all pieces before this one had their turn.  False: somebody
 * failed, so return any status. */
bool rp_crew_turn (struct rp_crew_slot *slot);
void rp_crew_turn_over (struct rp_crew_slot *slot);

static inline uint64_t
rp_crew_memory (const struct rp_copy_options *options)
{
  return options && options->memory_bytes ? options->memory_bytes
                                          : RP_COPY_MEMORY_BYTES;
}

#endif /* RP_COPY_CREW_H */

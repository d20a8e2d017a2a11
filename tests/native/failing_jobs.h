/* failing_jobs.h - jobs of which each allocation and each call of the storage
 * fails, once and for ever.
 *
 * The program that includes it has its own struct job and its own scene, and
 * defines the four functions that are declared here.
 */
#ifndef FAILING_JOBS_H
#define FAILING_JOBS_H

#include <stdio.h>
#include <stdlib.h>

#include "failing.h"

struct job;

static const char *job_name (const struct job *job);
/* A new scene; its storage, which is simulated and belongs to it. */
static struct rp_io *job_set (const struct job *job);
static int job_run (const struct job *job, struct rp_io *io,
                    struct rp_fault *fault);
/* What is left in the scene's storage is what it may be. */
static void job_check (const struct job *job);

static uint64_t failing_runs;

static void
failing_judge (const struct job *job, struct rp_io *sim, int64_t blocks,
               bool struck, int status, const char *what, uint64_t call)
{
  const bool fine = status == RP_OK || (struck && (status == RP_NO_MEMORY
                                                   || status == RP_IO
                                                   || status == RP_FAILED));

  if (!fine) {
    fprintf (stderr, "%s, %s %" PRIu64 " fails: %s\n", job_name (job), what,
             call, rp_status_text (status));
    exit (EXIT_FAILURE);
  }
  job_check (job);
  rp_io_destroy (sim);
  if (failing_blocks != blocks) {
    fprintf (stderr, "%s, %s %" PRIu64 " fails: %" PRId64 " blocks are "
             "forgotten\n", job_name (job), what, call,
             failing_blocks - blocks);
    exit (EXIT_FAILURE);
  }
  failing_runs++;
}

static bool
failing_memory (const struct job *job, uint64_t call, bool sticky)
{
  const int64_t blocks = failing_blocks;
  struct rp_io *sim = job_set (job), *order;
  struct rp_fault fault;
  uint64_t struck;
  int status;

  OK (rp_io_order_create (sim, &order, &fault));
  failing_arm (call, sticky);
  status = job_run (job, order, &fault);
  struck = failing_disarm ();
  rp_io_destroy (order);
  failing_judge (job, sim, blocks, struck > 0, status,
                 sticky ? "memory from" : "memory", call);
  return struck > 0;
}

static bool
failing_storage (const struct job *job, uint64_t call, int os_errno,
                 bool sticky)
{
  const int64_t blocks = failing_blocks;
  const struct rp_fault_plan plan = {
    .call = call, .kinds = RP_FAULT_ANY, .os_errno = os_errno,
    .sticky = sticky,
  };
  struct rp_io *sim = job_set (job), *faulty;
  struct rp_fault fault;
  bool struck;
  int status;

  OK (rp_io_fault_create (sim, &plan, &faulty, &fault));
  failing_watch (faulty, &plan);
  status = job_run (job, faulty, &fault);
  (void) failing_disarm ();
  struck = rp_io_fault_calls (faulty) >= call;
  rp_io_destroy (faulty);
  failing_judge (job, sim, blocks, struck, status,
                 sticky ? "call from" : "call", call);
  return struck;
}

/* storage: its calls fail, too. */
static void
failing_try (const struct job *job, bool storage, uint64_t step)
{
  for (unsigned way = 0; way < 4; way++) {
    const int os_errno = way < 2 ? EIO : ENOSPC;
    const uint64_t first = 1 + way % step;   /* each way has calls of its own */

    if (way < 2)
      for (uint64_t call = first; failing_memory (job, call, way == 1);)
        call += step;
    if (storage)
      for (uint64_t call = first; failing_storage (job, call, os_errno,
                                                   way % 2 == 1);)
        call += step;
  }
}

static void
failing_summary (const char *program)
{
  failing_tell ();
  printf ("%s: %" PRIu64 " runs, %" PRIu64 " sites of memory and %" PRIu64
          " of storage failed\n", program, failing_runs,
          failing_count (failing.memory), failing_count (failing.storage));
}

#endif /* FAILING_JOBS_H */

/* crash_tell.h - how far a crash test goes, and what it says at its end.
 *
 * ROLLPOINT_CRASH_BUDGET: distinct states to stop at.
 * ROLLPOINT_CRASH_STATES: a file for the number of each, so that those of many
 * runs can be put together and none is counted twice (tests/proof/crash).
 */
#ifndef RP_TEST_CRASH_TELL_H
#define RP_TEST_CRASH_TELL_H

#include "check.h"
#include "simulate.h"

static inline uint64_t
crash_budget (uint64_t otherwise)
{
  const char *budget = getenv ("ROLLPOINT_CRASH_BUDGET");

  return budget ? strtoull (budget, NULL, 10) : otherwise;
}

static inline void
crash_write_one (void *context, uint64_t image)
{
  CHECK (fwrite (&image, sizeof image, 1, context) == 1);
}

/* more: of the test's own, in brackets. */
static inline void
crash_tell (const char *name, const struct rp_sim_seen *seen,
            uint64_t workloads, const char *more)
{
  const char *path = getenv ("ROLLPOINT_CRASH_STATES");

  if (path) {
    FILE *file = fopen (path, "w");

    CHECK (file);
    rp_sim_seen_each (seen, crash_write_one, file);
    CHECK (fclose (file) == 0);
  }
  printf ("%s: %llu distinct states, %llu during recovery, 0 violations "
          "(%llu workloads, %llu generated%s)\n", name,
          (unsigned long long) rp_sim_seen_count (seen),
          (unsigned long long) rp_sim_seen_deep_count (seen),
          (unsigned long long) workloads,
          (unsigned long long) rp_sim_seen_generated (seen), more);
}

#endif /* RP_TEST_CRASH_TELL_H */

/* sparse_runs.h - a table of entries in little memory.
 *
 *   entries   0 0 0 | 900 908 916 | 0 1 1
 *   runs      (0: 0) (3: 900)       (6: 0) (7: 1)        step 8, rising from 2
 *
 * A value below `rising` is repeated by its run, any other goes up by `step`
 * with each entry.  So a table of one grain takes 3 runs, one that was filled
 * in order takes 1, and all entries come back as they were.  Runs are never
 * changed once they are made: readers need no lock.
 *
 * 10 bytes a run; tables that would have more than a run for each 8 entries
 * are kept in full instead.
 */
#ifndef RP_SPARSE_RUNS_H
#define RP_SPARSE_RUNS_H

#include <stdbool.h>
#include <stdint.h>

#define RP_RUNS_MAX 512u         /* of one table */

struct rp_runs_rule {
  uint64_t rising, step;
};

/* The values, and behind them uint16_t firsts[count]. */
struct rp_runs {
  uint32_t count;                /* >= 1 */
  uint32_t entries;              /* of the table, <= 65536 */
  uint64_t values[];
};

struct rp_runs_builder {
  struct rp_runs_rule rule;
  uint32_t count, entries, most;
  uint64_t next;
  uint64_t values[RP_RUNS_MAX];
  uint16_t firsts[RP_RUNS_MAX];
};

void rp_runs_start (struct rp_runs_builder *builder, struct rp_runs_rule rule,
                    uint32_t entries);
/* NULL: no memory; free () takes it. */
struct rp_runs *rp_runs_finish (const struct rp_runs_builder *builder);

/* The value of an entry; *left_out: the entries from there to its run's end. */
uint64_t rp_runs_find (const struct rp_runs *runs, struct rp_runs_rule rule,
                       uint32_t index, uint32_t *left_out);

/* The next entry; false: too many runs, keep the table in full. */
static inline bool
rp_runs_add (struct rp_runs_builder *builder, uint64_t value)
{
  /* one that goes up may wrap to 0, which does not */
  if (builder->count == 0 || value != builder->next
      || (value < builder->rule.rising
          && builder->values[builder->count - 1] >= builder->rule.rising)) {
    if (builder->count == builder->most)
      return false;
    builder->values[builder->count] = value;
    builder->firsts[builder->count++] = (uint16_t) builder->entries;
  }
  builder->next = value + (value < builder->rule.rising
                           ? 0 : builder->rule.step);
  builder->entries++;
  return true;
}

#endif /* RP_SPARSE_RUNS_H */

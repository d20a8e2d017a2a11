/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of entries as runs. */
#include "sparse_runs.h"

#include <stdlib.h>
#include <string.h>

void
rp_runs_start (struct rp_runs_builder *builder, struct rp_runs_rule rule,
               uint32_t entries)
{
  builder->rule = rule;
  builder->count = 0;
  builder->entries = 0;
  builder->most = entries / 8 < RP_RUNS_MAX ? entries / 8 : RP_RUNS_MAX;
}

struct rp_runs *
rp_runs_finish (const struct rp_runs_builder *builder)
{
  const size_t count = builder->count;
  struct rp_runs *runs = malloc (sizeof *runs
                                 + count * (sizeof *runs->values
                                            + sizeof *builder->firsts));

  if (!runs)
    return NULL;
  runs->count = builder->count;
  runs->entries = builder->entries;
  memcpy (runs->values, builder->values, count * sizeof *runs->values);
  memcpy (runs->values + count, builder->firsts,
          count * sizeof *builder->firsts);
  return runs;
}

uint64_t
rp_runs_find (const struct rp_runs *runs, struct rp_runs_rule rule,
              uint32_t index, uint32_t *left_out)
{
  const uint16_t *firsts
    = (const uint16_t *) (const void *) (runs->values + runs->count);
  uint32_t first = 0, stop = runs->count;
  uint64_t value;

  while (stop - first > 1) {
    const uint32_t middle = first + (stop - first) / 2;

    if (firsts[middle] <= index)
      first = middle;
    else
      stop = middle;
  }
  value = runs->values[first];
  if (value >= rule.rising)
    value += (index - firsts[first]) * rule.step;
  *left_out = (stop < runs->count ? firsts[stop] : runs->entries) - index;
  return value;
}

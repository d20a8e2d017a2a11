/* SPDX-License-Identifier: Apache-2.0 */
#include "spans.h"

#include <inttypes.h>
#include <stdlib.h>

int
rp_spans_add (struct rp_spans *spans, uint64_t start, uint64_t stop,
              struct rp_fault *fault)
{
  uint64_t *last = spans->pairs + 2 * spans->count;

  if (start >= stop)
    return RP_OK;
  if (spans->count > 0 && last[-1] == start) {
    last[-1] = stop;
    return RP_OK;
  }
  if (spans->count == spans->room) {
    const uint64_t room = spans->room * 2 + 64;
    uint64_t *more = realloc (spans->pairs, room * 2 * sizeof *more);

    if (!more)
      return rp_fail (fault, RP_NO_MEMORY, start, "a list of ranges");
    spans->pairs = more;
    spans->room = room;
  }
  spans->pairs[2 * spans->count] = start;
  spans->pairs[2 * spans->count + 1] = stop;
  spans->count++;
  return RP_OK;
}

static int
by_start (const void *a, const void *b)
{
  const uint64_t left = *(const uint64_t *) a, right = *(const uint64_t *) b;

  return (left > right) - (left < right);
}

uint64_t
rp_spans_join (uint64_t *pairs, uint64_t count)
{
  uint64_t kept = 0;

  if (count == 0)
    return 0;
  qsort (pairs, count, 2 * sizeof *pairs, by_start);
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t start = pairs[2 * i], stop = pairs[2 * i + 1];

    if (start >= stop)
      continue;
    if (kept > 0 && start <= pairs[2 * kept - 1]) {
      if (pairs[2 * kept - 1] < stop)
        pairs[2 * kept - 1] = stop;
      continue;
    }
    pairs[2 * kept] = start;
    pairs[2 * kept + 1] = stop;
    kept++;
  }
  return kept;
}

int
rp_spans_check (const uint64_t *pairs, uint64_t count, uint64_t limit,
                struct rp_fault *fault)
{
  for (uint64_t i = 0; i < count; i++) {
    const uint64_t start = pairs[2 * i], stop = pairs[2 * i + 1];

    if (start >= stop || stop > limit || (i > 0 && start <= pairs[2 * i - 1]))
      return rp_fail (fault, RP_BAD_ARGUMENT, start, "range %" PRIu64 ", from %"
                      PRIu64 " to %" PRIu64 ", of a disk of %" PRIu64 " bytes",
                      i, start, stop, limit);
  }
  return RP_OK;
}

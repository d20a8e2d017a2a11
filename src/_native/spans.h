/* spans.h - lists of ranges of a disk: pairs of start and stop, in bytes.
 *
 *   spans   start 0, stop 0, start 1, stop 1, ...
 *
 * A list is in order when each start is below its stop, and each stop below
 * the next start: what touches is one span.
 *
 * Threads: none of its own.
 * Tests:   tests/native/spans_test.c, tests/test_spans.py
 */
#ifndef RP_SPANS_H
#define RP_SPANS_H

#include <stdint.h>

#include "status.h"

/* A list that grows; zeroed at first. */
struct rp_spans {
  uint64_t *pairs;               /* whoever made it frees it */
  uint64_t  count;               /* of pairs */
  uint64_t  room;
};

/* At the end of the list, or as part of its last pair where it touches that.
 * The list stays in order if it lies behind all others. */
int rp_spans_add (struct rp_spans *spans, uint64_t start, uint64_t stop,
                  struct rp_fault *fault);

/* Put any pairs in order, in place: sorted, those that overlap or touch
 * joined, empty ones (start >= stop) left out.  Returns how many are left. */
uint64_t rp_spans_join (uint64_t *pairs, uint64_t count);

/* Is the list in order, and does it end at `limit` or before? */
int rp_spans_check (const uint64_t *pairs, uint64_t count, uint64_t limit,
                    struct rp_fault *fault);

#endif /* RP_SPANS_H */

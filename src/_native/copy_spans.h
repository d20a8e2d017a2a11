/* copy_spans.h - walking over ranges of a disk; the insides of copy.h.
 *
 * The ranges laid end to end have places of their own, from 0 to the sum of
 * their lengths, and a crew walks over those: so a piece may hold many small
 * ranges, and progress counts what there is to do.
 *
 *   disk     ......[aaaa]........[b]...[cccccc]....
 *   laid           aaaabcccccc
 */
#ifndef RP_COPY_SPANS_H
#define RP_COPY_SPANS_H

#include <stdint.h>

struct rp_span_cursor {
  const uint64_t *pairs;         /* in order, see spans.h */
  uint64_t count;
  uint64_t index;                /* of the range that is looked at */
  uint64_t base;                 /* the place of its first byte */
};

/* Where a place lies on the disk, and where that range ends there; place is
 * not below an earlier one, and inside. */
static inline uint64_t
rp_span_seek (struct rp_span_cursor *cursor, uint64_t place,
              uint64_t *stop_out)
{
  const uint64_t *pair = cursor->pairs + 2 * cursor->index;

  while (place - cursor->base >= pair[1] - pair[0]) {
    cursor->base += pair[1] - pair[0];
    cursor->index++;
    pair += 2;
  }
  *stop_out = pair[1];
  return pair[0] + (place - cursor->base);
}

static inline uint64_t
rp_span_total (const uint64_t *pairs, uint64_t count)
{
  uint64_t total = 0;

  for (uint64_t i = 0; i < count; i++)
    total += pairs[2 * i + 1] - pairs[2 * i];
  return total;
}

#endif /* RP_COPY_SPANS_H */

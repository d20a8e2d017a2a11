/* sesparse_maker.h - seSparse extents for tests, made by our own sink. */
#ifndef RP_TEST_SESPARSE_MAKER_H
#define RP_TEST_SESPARSE_MAKER_H

#include <string.h>

#include "check.h"
#include "io.h"
#include "sesparse.h"

#define SE_GRAIN 4096u

/* What the grain has at its first byte; every other byte follows from it. */
static inline void
se_fill (uint8_t *grain, uint64_t number)
{
  for (uint32_t i = 0; i < SE_GRAIN; i++)
    grain[i] = (uint8_t) (number * 31 + i * 7 + (i >> 8) + 1);
}

/* Pass the grains of [first, first + count) that `has` names through a sink
 * as one chunk. */
static inline int
se_put (struct rp_sink *sink, uint64_t first, uint32_t count,
        bool (*has) (uint64_t grain), struct rp_fault *fault)
{
  const uint64_t at = first * SE_GRAIN;
  const uint64_t left = sink->size_bytes - at;
  struct rp_chunk chunk = {
    .offset_bytes = at,
    .length_bytes = left < count * (uint64_t) SE_GRAIN
                    ? left : count * (uint64_t) SE_GRAIN,
    .data = calloc (count, SE_GRAIN), .marked = calloc (1, count),
  };
  int status;

  CHECK (chunk.data && chunk.marked);
  for (uint32_t i = 0; i * (uint64_t) SE_GRAIN < chunk.length_bytes; i++)
    if (has (first + i)) {
      chunk.marked[i] = 1;
      se_fill (chunk.data + i * (size_t) SE_GRAIN, first + i);
    }
  status = sink->functions->place (sink, &chunk, fault);
  if (status == RP_OK)
    status = sink->functions->write (sink, &chunk, fault);
  free (chunk.data);
  free (chunk.marked);
  return status;
}

/* A whole extent, in chunks of 1 MiB. */
static inline int
se_make (struct rp_file *file, uint64_t sectors, bool (*has) (uint64_t grain),
         struct rp_fault *fault)
{
  const uint64_t grains = (sectors + 7) / 8;
  struct rp_sink *sink;
  int status;

  status = rp_sesparse_sink_create (file, sectors, &sink, fault);
  if (status != RP_OK)
    return status;
  for (uint64_t first = 0; status == RP_OK && first < grains; first += 256) {
    const uint64_t left = grains - first;
    status = se_put (sink, first, left < 256 ? (uint32_t) left : 256, has,
                     fault);
  }
  if (status == RP_OK)
    status = sink->functions->finish (sink, fault);
  sink->functions->destroy (sink);
  return status;
}

#endif /* RP_TEST_SESPARSE_MAKER_H */

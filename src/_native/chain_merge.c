/* SPDX-License-Identifier: Apache-2.0 */
/* Merging the top links of a chain into another disk. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chain.h"

#define MERGE_BYTES    (UINT64_C (1) << 20)
#define PROGRESS_BYTES (UINT64_C (16) << 20)

struct merge {
  struct rp_chain *chain;
  struct rp_disk  *target;
  uint8_t         *buffer;       /* MERGE_BYTES */
  bool           (*progress) (void *context, uint64_t done_bytes);
  void            *context;
  uint64_t         told;         /* progress was called at this place */
};

static bool
is_zero (const uint8_t *bytes, size_t length)
{
  return bytes[0] == 0 && memcmp (bytes, bytes + 1, length - 1) == 0;
}

/* Data that is all zero is merged as zeros: the target may leave holes. */
static int
merge_data (struct merge *merge, const struct rp_run *run,
            struct rp_fault *fault)
{
  const uint64_t length = run->length_bytes;
  const int status = rp_run_read (merge->chain, run, merge->buffer, fault);

  if (status != RP_OK)
    return status;
  if (is_zero (merge->buffer, length))
    return rp_disk_zero (merge->target, length, run->offset_bytes, true,
                         fault);
  return rp_disk_pwrite (merge->target, merge->buffer, length,
                         run->offset_bytes, fault);
}

static int
tell (struct merge *merge, uint64_t done, struct rp_fault *fault)
{
  const bool last = done == merge->target->size_bytes;

  if (!merge->progress || (!last && done - merge->told < PROGRESS_BYTES))
    return RP_OK;
  merge->told = done;
  if (merge->progress (merge->context, done))
    return RP_OK;
  return rp_fail (fault, RP_STATE, done, "the merge was stopped");
}

int
rp_chain_merge (struct rp_disk *chain, uint32_t links, struct rp_disk *target,
                bool (*progress) (void *context, uint64_t done_bytes),
                void *context, struct rp_fault *fault)
{
  struct merge merge = {
    .chain = (struct rp_chain *) chain, .target = target,
    .progress = progress, .context = context,
  };
  struct rp_run run;
  uint64_t at = 0, length;
  int status = RP_OK;

  if (links == 0 || links > merge.chain->link_count)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "merging %" PRIu32
                    " links of a chain of %" PRIu32, links,
                    merge.chain->link_count);
  if (target->size_bytes != chain->size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0, "merging a disk of %" PRIu64
                    " bytes into one of %" PRIu64, chain->size_bytes,
                    target->size_bytes);
  merge.buffer = malloc (MERGE_BYTES);
  if (!merge.buffer)
    return rp_fail (fault, RP_NO_MEMORY, 0, "merging");
  while (status == RP_OK && at < chain->size_bytes) {
    length = chain->size_bytes - at;
    status = rp_chain_look (merge.chain, RP_SABOTAGED (9) ? 1 : 0, links,
                            RP_LOOK_DATA, at, length, &run, fault);
    if (status != RP_OK)
      break;
    if (run.kind == RP_RUN_DATA) {
      if (run.length_bytes > MERGE_BYTES)
        run.length_bytes = MERGE_BYTES;
      status = merge_data (&merge, &run, fault);
    } else if (run.depth < links && !RP_SABOTAGED (10)) {
      /* zeros, or a hole of a flat link */
      status = rp_disk_zero (target, run.length_bytes, at, true, fault);
    }
    at += run.length_bytes;
    if (status == RP_OK)
      status = tell (&merge, at, fault);
  }
  free (merge.buffer);
  return status;
}

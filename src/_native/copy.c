/* SPDX-License-Identifier: Apache-2.0 */
/* Copying a disk into a sink. */
#include "copy.h"

int
rp_copy (struct rp_disk *source, struct rp_sink *sink,
         const struct rp_copy_options *options,
         struct rp_copy_counts *counts, struct rp_fault *fault)
{
  (void) source; (void) sink; (void) options; (void) counts;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "copying");
}

int
rp_disk_sink_create (struct rp_disk *target, uint32_t unit_bytes,
                     struct rp_sink **out, struct rp_fault *fault)
{
  (void) target; (void) unit_bytes;
  *out = NULL;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "copying");
}

void
rp_sink_destroy (struct rp_sink *sink)
{
  if (sink)
    sink->functions->destroy (sink);
}

int
rp_compare (struct rp_disk *a, struct rp_disk *b, uint64_t length,
            const struct rp_copy_options *options, uint64_t *offset_out,
            struct rp_fault *fault)
{
  (void) a; (void) b; (void) length; (void) options; (void) offset_out;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "comparing");
}

int
rp_merge (struct rp_disk *chain, uint32_t links, struct rp_disk *target,
          const struct rp_copy_options *options, struct rp_fault *fault)
{
  (void) chain; (void) links; (void) target; (void) options;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "merging");
}

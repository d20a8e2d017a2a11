/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"
int
rp_stream_check (struct rp_stream *stream, uint32_t extent,
                 uint64_t start_bytes, bool deep,
                 void (*each) (void *context, const struct rp_finding *),
                 void *context, struct rp_fault *fault)
{
  (void) stream; (void) extent; (void) start_bytes; (void) deep; (void) each;
  (void) context;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "compressed");
}

int
rp_stream_sink_create (struct rp_file *file,
                       const struct rp_stream_create *how,
                       struct rp_sink **out, struct rp_fault *fault)
{
  (void) how;
  *out = NULL;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is compressed", file->name);
}

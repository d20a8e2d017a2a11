/* SPDX-License-Identifier: Apache-2.0 */
/* Reading compressed sparse extents. */
#include "stream.h"

int
rp_stream_open (struct rp_file *file, uint64_t sectors,
                struct rp_stream **out, struct rp_fault *fault)
{
  (void) sectors;
  *out = NULL;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is compressed", file->name);
}

void
rp_stream_close (struct rp_stream *stream)
{
  (void) stream;
}

int
rp_stream_map (struct rp_stream *stream, uint64_t offset, uint64_t length,
               struct rp_segment *out, struct rp_fault *fault)
{
  (void) stream; (void) length; (void) out;
  return rp_fail (fault, RP_UNSUPPORTED, offset, "compressed");
}

int
rp_stream_read (struct rp_stream *stream, void *buffer, size_t length,
                uint64_t offset, struct rp_fault *fault)
{
  (void) stream; (void) length; (void) buffer;
  return rp_fail (fault, RP_UNSUPPORTED, offset, "compressed");
}

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
rp_stream_read_header (struct rp_file *file, struct rp_sparse_info *out,
                       struct rp_fault *fault)
{
  (void) out;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is compressed", file->name);
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

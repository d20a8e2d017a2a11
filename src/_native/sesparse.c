/* SPDX-License-Identifier: Apache-2.0 */
/* Reading seSparse extents. */
#include "sesparse.h"

int
rp_sesparse_read_header (struct rp_file *file, struct rp_sparse_info *out,
                         struct rp_fault *fault)
{
  (void) out;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is seSparse", file->name);
}

int
rp_sesparse_open (struct rp_file *file, uint64_t sectors,
                  struct rp_sesparse **out, struct rp_fault *fault)
{
  (void) sectors;
  *out = NULL;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is seSparse", file->name);
}

void
rp_sesparse_close (struct rp_sesparse *sesparse)
{
  (void) sesparse;
}

int
rp_sesparse_map (struct rp_sesparse *sesparse, uint64_t offset,
                 uint64_t length, struct rp_segment *out,
                 struct rp_fault *fault)
{
  (void) sesparse; (void) length; (void) out;
  return rp_fail (fault, RP_UNSUPPORTED, offset, "seSparse");
}

int
rp_sesparse_check (struct rp_sesparse *sesparse, uint32_t extent,
                   uint64_t start_bytes,
                   void (*each) (void *context, const struct rp_finding *),
                   void *context, struct rp_fault *fault)
{
  (void) sesparse; (void) extent; (void) start_bytes; (void) each;
  (void) context;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "seSparse");
}

int
rp_sesparse_sink_create (struct rp_file *file, uint64_t capacity_sectors,
                         struct rp_sink **out, struct rp_fault *fault)
{
  (void) capacity_sectors;
  *out = NULL;
  return rp_fail (fault, RP_UNSUPPORTED, 0, "%s is seSparse", file->name);
}

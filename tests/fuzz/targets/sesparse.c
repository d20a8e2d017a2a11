/* SPDX-License-Identifier: Apache-2.0 */
/* ESXi space-efficient sparse extents. */
#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct fuzz_input input;
  struct rp_extent_spec spec;

  if (!fuzz_input_open (data, size, &input))
    return 0;
  if (fuzz_spec_of (&input.files[0], &spec)
      && spec.kind == RP_EXTENT_SESPARSE)
    fuzz_walk_image (&spec);
  fuzz_input_close (&input);
  return 0;
}

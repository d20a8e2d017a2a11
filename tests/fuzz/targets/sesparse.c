/* SPDX-License-Identifier: Apache-2.0 */
/* ESXi space-efficient sparse extents. */
#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_walk_kind (data, size, RP_EXTENT_SESPARSE);
  return 0;
}

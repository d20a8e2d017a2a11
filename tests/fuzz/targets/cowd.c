/* SPDX-License-Identifier: Apache-2.0 */
/* ESX sparse extents (COWD). */
#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_walk_kind (data, size, RP_EXTENT_COWD);
  return 0;
}

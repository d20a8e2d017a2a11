/* SPDX-License-Identifier: Apache-2.0 */
/* Hosted sparse extents: header, directories, tables, grains. */
#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_walk_kind (data, size, RP_EXTENT_SPARSE);
  return 0;
}

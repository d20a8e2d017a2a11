/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed streams: header, footer, markers, tables, deflate data. */
#include "fuzz.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_walk_kind (data, size, RP_EXTENT_STREAM);
  return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Finding zeros.  Blocks of 128 bytes are read as words and put together with
 * OR, which every compiler turns into vector instructions of the machine's
 * common ground (SSE2 here); wider ones gain nothing, memory is slower. */
#include "bytes.h"

#include <string.h>

#define BLOCK_WORDS 16u
#define BLOCK_BYTES (BLOCK_WORDS * sizeof (uint64_t))

bool
rp_is_zero (const void *bytes, size_t length)
{
  const uint8_t *at = bytes;
  uint64_t words[BLOCK_WORDS], any;

  for (; length >= BLOCK_BYTES; at += BLOCK_BYTES, length -= BLOCK_BYTES) {
    memcpy (words, at, sizeof words);
    any = 0;
    for (size_t i = 0; i < BLOCK_WORDS; i++)
      any |= words[i];
    if (any)
      return false;
  }
  any = 0;
  for (size_t i = 0; i < length; i++)
    any |= at[i];
  return any == 0;
}

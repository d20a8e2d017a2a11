/* SPDX-License-Identifier: Apache-2.0 */
/* Data that deflate cannot make smaller, told in a tenth of the time that
 * trying takes: media files, archives, ciphertext.
 *
 * Noise has all byte values equally often and repeats nothing.  Both are
 * looked at in samples so dense that what they miss saves less than the sector
 * to which grains are rounded.
 */
#include "bytes.h"
#include "stream_inside.h"

#define PIECE_BYTES  64u         /* counted of each stride */
#define STRIDE_BYTES 256u
#define PAGE_BYTES   4096u
/* Chi square of 256 equally likely values is 255 give or take 23.  A sector
 * less of a grain of 64 KiB would show as 1400 more. */
#define EVEN_EXCESS  500u
#define SLOTS_SHIFT  10u
#define REPEATS_MAX  1u

static bool
is_even (const uint8_t *bytes, size_t length)
{
  uint16_t counts[4][256] = { 0 };     /* four: no store waits for another */
  uint64_t total = 0, squares = 0;

  for (size_t at = 0; at + PIECE_BYTES <= length; at += STRIDE_BYTES) {
    for (size_t i = 0; i < PIECE_BYTES; i += 4) {
      counts[0][bytes[at + i]]++;
      counts[1][bytes[at + i + 1]]++;
      counts[2][bytes[at + i + 2]]++;
      counts[3][bytes[at + i + 3]]++;
    }
    total += PIECE_BYTES;
  }
  for (size_t i = 0; i < 256; i++) {
    const uint64_t count = (uint64_t) counts[0][i] + counts[1][i]
                           + counts[2][i] + counts[3][i];
    squares += count * count;
  }
  /* 256 * squares / total - total < EVEN_EXCESS */
  return squares * 256 < (total + EVEN_EXCESS) * total;
}

/* Positions are chosen by what stands there (one byte value in 64), so that a
 * repeat is seen at any distance and alignment. */
static bool
has_repeats (const uint8_t *bytes, size_t length)
{
  const uint64_t ones = UINT64_C (0x0101010101010101);
  const uint64_t wanted = ones * 0x2a, mask = ones * 0x3f;
  uint32_t seen[1u << SLOTS_SHIFT] = { 0 };    /* position and 1 */
  uint32_t repeats = 0;

  for (size_t at = 0; at + 16 <= length; at += 8) {
    const uint64_t differ = (rp_load64 (bytes + at) & mask) ^ wanted;
    uint64_t chosen = (differ - ones) & ~differ & ones * 0x80;

    for (; chosen; chosen &= chosen - 1) {
      const size_t here = at + (unsigned) __builtin_ctzll (chosen) / 8;
      const uint64_t word = rp_load64 (bytes + here);
      uint32_t *slot = &seen[(word * UINT64_C (0x9e3779b97f4a7c15))
                             >> (64 - SLOTS_SHIFT)];

      if (*slot && rp_load64 (bytes + *slot - 1) == word
          && ++repeats > REPEATS_MAX)
        return true;
      *slot = (uint32_t) here + 1;
    }
  }
  return false;
}

bool
rp_stream_is_noise (const uint8_t *bytes, size_t length)
{
  /* the first page tells most: text costs next to nothing */
  return length <= UINT32_C (1) << 20
         && is_even (bytes, length < PAGE_BYTES ? length : PAGE_BYTES)
         && is_even (bytes, length) && !has_repeats (bytes, length);
}

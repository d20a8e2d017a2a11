/* SPDX-License-Identifier: Apache-2.0 */
/* One state of two words; each word of the data goes through it. */
#include "marvin.h"

#include "bytes.h"

#define SEED_LOW  UINT32_C (0x7a4e55c5)
#define SEED_HIGH UINT32_C (0x82ef4d88)

struct state {
  uint32_t low;
  uint32_t high;
};

static uint32_t
turned (uint32_t word, unsigned bits)
{
  return word << bits | word >> (32 - bits);
}

static void
take (struct state *state, uint32_t word)
{
  state->low += word;
  state->high ^= state->low;
  state->low = turned (state->low, 20) + state->high;
  state->high = turned (state->high, 9) ^ state->low;
  state->low = turned (state->low, 27) + state->high;
  state->high = turned (state->high, 19);
}

uint64_t
rp_marvin32 (const void *data, size_t length)
{
  struct state state = { SEED_LOW, SEED_HIGH };
  const uint8_t *at = data;
  uint32_t last = 0x80;

  for (; length >= 4; length -= 4, at += 4)
    take (&state, rp_load32 (at));
  while (length > 0)
    last = last << 8 | at[--length];
  take (&state, last);
  take (&state, 0);
  return (uint64_t) state.high << 32 | state.low;
}

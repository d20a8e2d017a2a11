/* SPDX-License-Identifier: Apache-2.0 */
/* The hash of registry logs, against what Windows 10 and an older form say. */
#include <stdio.h>

#include "check.h"
#include "marvin.h"

/* The head of an entry that Windows 10 wrote; Hash-2 follows it there. */
static const uint8_t entry_head[32] = {
  0x48, 0x76, 0x4c, 0x45, 0x00, 0x1e, 0x00, 0x00, 0x00, 0x00, 0x00,
  0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x50, 0x00, 0x00, 0x01, 0x00,
  0x00, 0x00, 0x5d, 0x1e, 0x70, 0x07, 0x17, 0xa8, 0x46, 0x47,
};

int
main (void)
{
  uint8_t data[64 + 8];
  uint64_t checks = 1;

  CHECK (rp_marvin32 (entry_head, sizeof entry_head)
         == UINT64_C (0xe637dcaff6877267));
  for (size_t i = 0; i < sizeof data; i++)
    data[i] = (uint8_t) (i * 37);
  for (size_t length = 0; length <= 64; length++) {
    const uint64_t whole = rp_marvin32 (data, length);

    for (size_t i = 0; i < length; i++) {
      data[i] ^= 1;
      CHECK (rp_marvin32 (data, length) != whole);
      data[i] ^= 1;
      checks++;
    }
    CHECK (rp_marvin32 (data, length + 1) != whole);
    checks++;
  }
  CHECK (rp_marvin32 (NULL, 0) == rp_marvin32 (data, 0));
  printf ("marvin_test: %llu checks\n", (unsigned long long) checks);
  return 0;
}

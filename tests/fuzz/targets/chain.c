/* SPDX-License-Identifier: Apache-2.0 */
/* Chains of images of all kinds, read. */
#include <string.h>

#include "bytes.h"
#include "fuzz.h"

#define WINDOWS        16u
#define WINDOW_SECTORS 24u

/* As in walk.c: what both read is equal, and nothing is read where a link
 * cannot be. */
static void
check_window (struct fuzz_chain *chain, uint64_t first)
{
  const uint64_t left = chain->sectors - first;
  const size_t count = left < WINDOW_SECTORS ? left : WINDOW_SECTORS;
  uint8_t *bytes = malloc (count * RP_SECTOR_BYTES);
  uint8_t wanted[RP_SECTOR_BYTES];
  struct rp_fault fault;
  bool failed = false, known = true;
  int status;

  FUZZ_CHECK (bytes != NULL);
  status = rp_disk_pread (chain->disk, bytes, count * RP_SECTOR_BYTES,
                          first * RP_SECTOR_BYTES, &fault);
  for (size_t i = 0; i < count; i++) {
    const enum fuzz_naive kind = fuzz_chain_sector (chain, first + i, wanted,
                                                    &known);

    if (kind == FUZZ_NAIVE_ZERO)
      memset (wanted, 0, sizeof wanted);
    failed |= kind == FUZZ_NAIVE_ERROR;
    if (status == RP_OK && kind != FUZZ_NAIVE_ERROR)
      FUZZ_CHECK (memcmp (bytes + i * RP_SECTOR_BYTES, wanted, sizeof wanted)
                  == 0);
  }
  FUZZ_CHECK (!failed || status != RP_OK);
  FUZZ_CHECK (!known || failed || status == RP_OK);
  free (bytes);
}

static void
check_windows (struct fuzz_chain *chain)
{
  const uint64_t size = chain->disk->size_bytes;
  uint64_t step = chain->sectors / (WINDOWS - 1), at = 0;
  struct rp_fault fault;
  struct rp_run run;

  step = step < WINDOW_SECTORS ? WINDOW_SECTORS : step;
  for (uint64_t i = 0; i < WINDOWS && i * step < chain->sectors; i++)
    check_window (chain, i * step);
  check_window (chain, chain->sectors - 1);
  for (uint32_t i = 0; i < WINDOWS && at < size; i++) {
    if (rp_disk_run (chain->disk, at, size - at, &run, &fault) != RP_OK)
      break;
    FUZZ_CHECK (run.depth < chain->link_count);
    check_window (chain, at / RP_SECTOR_BYTES);
    at += run.length_bytes;
  }
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct fuzz_input input;
  struct fuzz_chain chain;

  if (!fuzz_input_open (data, size, &input))
    return 0;
  if (fuzz_chain_plan (&input, &chain) && fuzz_chain_open (&chain, false)) {
    fuzz_walk (chain.disk);
    check_windows (&chain);
    for (uint32_t i = 0; i < chain.link_count; i++)
      (void) fuzz_check_image (chain.images[i]);
    fuzz_chain_close (&chain);
  }
  fuzz_input_close (&input);
  return 0;
}

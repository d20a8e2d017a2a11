/* SPDX-License-Identifier: Apache-2.0 */
/* Chains of any content copied into each kind of new disk, compared, and
 * merged into their base.
 *
 * Where a copy succeeds, the new disk reads as its source does; it fails only
 * where the source cannot be read.  A byte that is changed afterwards is the
 * one that a comparison finds.  The first byte of the operations chooses what
 * is done, the next three the place that is changed.
 */
#include <string.h>

#include "bytes.h"
#include "copy.h"
#include "fuzz.h"
#include "sesparse.h"
#include "stream.h"

#define SIZE_BYTES_MAX  (UINT64_C (8) << 30)
#define DATA_BYTES_MAX  (UINT64_C (1) << 20)
#define SMALL_BYTES_MAX (UINT64_C (256) << 10)
#define RUNS_MAX        256u

enum {
  TO_HOSTED, TO_ESX, TO_FLAT, TO_STREAM, TO_SESPARSE, MERGE, COMPARE, CHOICES,
};

static const struct rp_copy_options options = { .workers = 1 };

/* How a source reads. */
struct facts {
  bool     bounded;              /* a copy does not take long */
  bool     readable;
  uint64_t first_data;           /* size where there is none */
};

static struct facts
look_at (struct rp_disk *disk)
{
  struct facts facts = { .readable = true, .first_data = disk->size_bytes };
  uint64_t at = 0, total = 0;
  uint8_t *buffer = malloc (DATA_BYTES_MAX);
  struct rp_fault fault;
  struct rp_run run;

  FUZZ_CHECK (buffer != NULL);
  for (uint32_t i = 0; i < RUNS_MAX && facts.readable
       && at < disk->size_bytes && total <= DATA_BYTES_MAX; i++) {
    facts.readable = rp_disk_run (disk, at, disk->size_bytes - at, &run,
                                  &fault) == RP_OK;
    if (facts.readable && run.kind == RP_RUN_DATA) {
      total += run.length_bytes;
      if (facts.first_data > at)
        facts.first_data = at;
      if (run.length_bytes <= DATA_BYTES_MAX)
        facts.readable = rp_disk_pread (disk, buffer, run.length_bytes, at,
                                        &fault) == RP_OK;
    }
    at += run.length_bytes;
  }
  free (buffer);
  facts.bounded = !facts.readable || at >= disk->size_bytes;
  facts.bounded = facts.bounded && total <= DATA_BYTES_MAX;
  return facts;
}

/* ---- copies ---- */

static bool
make_extent (struct rp_file *file, int choice, uint64_t sectors)
{
  const struct rp_sparse_create how = {
    .kind = choice == TO_ESX ? RP_EXTENT_COWD : RP_EXTENT_SPARSE,
    .capacity_sectors = sectors, .grain_sectors = choice == TO_ESX ? 1 : 16,
    .redundant = choice == TO_HOSTED, .zero_grains = choice == TO_HOSTED,
  };
  struct rp_fault fault;

  if (choice == TO_FLAT)
    return rp_file_truncate (file, sectors * RP_SECTOR_BYTES, &fault) == RP_OK;
  return rp_sparse_create (file, &how, &fault) == RP_OK;
}

static int
copy_to_disk (struct rp_disk *source, struct rp_file *file, int choice,
              struct rp_extent_spec *made)
{
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_sink *sink;
  struct rp_copy_counts counts;
  struct rp_fault fault;
  int status;

  made->kind = choice == TO_FLAT ? RP_EXTENT_FLAT
               : choice == TO_ESX ? RP_EXTENT_COWD : RP_EXTENT_SPARSE;
  if (!make_extent (file, choice, made->sectors))
    return RP_FULL;
  FUZZ_CHECK (rp_image_open (made, 1, true, &image, &fault) == RP_OK);
  FUZZ_CHECK (rp_chain_create (&image, 1, &disk, &fault) == RP_OK);
  FUZZ_CHECK (rp_disk_sink_create (disk, 4096, &sink, &fault) == RP_OK);
  status = rp_copy (source, sink, &options, &counts, &fault);
  if (status == RP_OK)
    FUZZ_CHECK (rp_chain_close_clean (disk, &fault) == RP_OK);
  rp_sink_destroy (sink);
  rp_disk_destroy (disk);
  rp_image_destroy (image);
  return status;
}

static int
copy_to_stream (struct rp_disk *source, struct rp_file *file, int choice,
                struct rp_extent_spec *made)
{
  const struct rp_stream_create how = {
    .capacity_sectors = made->sectors, .grain_sectors = 8,
    .descriptor = "text", .descriptor_bytes = 4, .descriptor_sectors = 1,
    .level = 1,
  };
  struct rp_sink *sink;
  struct rp_copy_counts counts;
  struct rp_fault fault;
  int status;

  made->kind = choice == TO_STREAM ? RP_EXTENT_STREAM : RP_EXTENT_SESPARSE;
  status = choice == TO_STREAM
           ? rp_stream_sink_create (file, &how, &sink, &fault)
           : rp_sesparse_sink_create (file, made->sectors, &sink, &fault);
  if (status != RP_OK)
    return RP_FULL;
  status = rp_copy (source, sink, &options, &counts, &fault);
  rp_sink_destroy (sink);
  return status;
}

static void
check_equal (struct rp_disk *source, const struct rp_extent_spec *made)
{
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;
  uint64_t found;

  FUZZ_CHECK (rp_image_open (made, 1, false, &image, &fault) == RP_OK);
  FUZZ_CHECK (fuzz_check_image (image) == 0);
  FUZZ_CHECK (rp_chain_create (&image, 1, &disk, &fault) == RP_OK);
  FUZZ_CHECK (rp_compare (source, disk, disk->size_bytes, &options, &found,
                          &fault) == RP_OK);
  FUZZ_CHECK (found == disk->size_bytes);
  rp_disk_destroy (disk);
  rp_image_destroy (image);
}

/* Change one byte: that is where the comparison stops. */
static void
check_difference (struct rp_disk *source, const struct rp_extent_spec *made,
                  uint64_t place)
{
  struct rp_image *image;
  struct rp_disk *disk;
  struct rp_fault fault;
  uint64_t found;
  uint8_t byte;

  FUZZ_CHECK (rp_image_open (made, 1, true, &image, &fault) == RP_OK);
  FUZZ_CHECK (rp_chain_create (&image, 1, &disk, &fault) == RP_OK);
  FUZZ_CHECK (rp_disk_pread (disk, &byte, 1, place, &fault) == RP_OK);
  byte ^= 0x40;
  if (rp_disk_pwrite (disk, &byte, 1, place, &fault) == RP_OK) {
    FUZZ_CHECK (rp_compare (disk, source, disk->size_bytes, &options, &found,
                            &fault) == RP_OK);
    FUZZ_CHECK (found == place);
  }
  rp_disk_destroy (disk);
  rp_image_destroy (image);
}

static void
copy (struct fuzz_input *input, struct fuzz_chain *chain, int choice,
      uint32_t place)
{
  const struct facts facts = look_at (chain->disk);
  struct rp_extent_spec made = { .sectors = chain->sectors };
  struct rp_file *file;
  int status;

  if (!facts.bounded)
    return;
  fuzz_memory_open (input->io, "made", &file);
  made.file = file;
  status = choice <= TO_FLAT
           ? copy_to_disk (chain->disk, file, choice, &made)
           : copy_to_stream (chain->disk, file, choice, &made);
  FUZZ_CHECK (facts.readable || status != RP_OK);
  if (!fuzz_memory_ran_full (input->io) && status != RP_FULL) {
    FUZZ_CHECK (!facts.readable || status == RP_OK);
    if (status == RP_OK) {
      check_equal (chain->disk, &made);
      if (choice <= TO_FLAT)
        check_difference (chain->disk, &made,
                          place % chain->disk->size_bytes);
    }
  }
  rp_file_close (file);
}

/* ---- a chain and its base ---- */

/* The links above the base, merged into it: it then reads as the chain did. */
static void
merge (struct fuzz_chain *chain)
{
  const uint32_t first = chain->first[chain->link_count - 1];
  const uint32_t count = chain->first[chain->link_count] - first;
  const size_t size = chain->disk->size_bytes;
  uint8_t *before = malloc (size), *after = malloc (size);
  struct rp_image *image;
  struct rp_disk *base;
  struct rp_fault fault;

  FUZZ_CHECK (before != NULL && after != NULL);
  if (!(fuzz_check_image (chain->images[chain->link_count - 1])
        & ~(unsigned) (FUZZ_LEAK | FUZZ_UNCLEAN))
      && rp_disk_pread (chain->disk, before, size, 0, &fault) == RP_OK
      && rp_image_open (&chain->extents[first], count, true, &image, &fault)
         == RP_OK) {
    FUZZ_CHECK (rp_chain_create (&image, 1, &base, &fault) == RP_OK);
    for (int i = 0; i < 2; i++)      /* asked twice it happens once */
      if (rp_merge (chain->disk, chain->link_count - 1, base, &options,
                    &fault) == RP_OK) {
        FUZZ_CHECK (rp_disk_pread (base, after, size, 0, &fault) == RP_OK);
        FUZZ_CHECK (memcmp (before, after, size) == 0);
      }
    (void) rp_chain_close_clean (base, &fault);
    rp_disk_destroy (base);
    rp_image_destroy (image);
  }
  free (after);
  free (before);
}

/* The chain beside its base alone, both ways, and beside a plain look. */
static void
compare (struct fuzz_chain *chain)
{
  const size_t size = chain->disk->size_bytes;
  uint8_t *whole = malloc (size), *below = malloc (size);
  struct rp_disk *base;
  struct rp_fault fault;
  uint64_t found, other, wanted = 0;
  int status, swapped;

  FUZZ_CHECK (whole != NULL && below != NULL);
  FUZZ_CHECK (rp_chain_create (&chain->images[chain->link_count - 1], 1, &base,
                               &fault) == RP_OK);
  status = rp_compare (chain->disk, base, size, &options, &found, &fault);
  swapped = rp_compare (base, chain->disk, size, &options, &other, &fault);
  FUZZ_CHECK ((status == RP_OK) == (swapped == RP_OK)
              && (status != RP_OK || found == other));
  if (rp_disk_pread (chain->disk, whole, size, 0, &fault) == RP_OK
      && rp_disk_pread (base, below, size, 0, &fault) == RP_OK) {
    while (wanted < size && whole[wanted] == below[wanted])
      wanted++;
    FUZZ_CHECK (status == RP_OK && found == wanted);
  }
  rp_disk_destroy (base);
  free (below);
  free (whole);
}

static void
do_one (struct fuzz_input *input, struct fuzz_chain *chain)
{
  uint8_t head[4] = { 0 };
  const size_t given = input->operations_bytes < 4 ? input->operations_bytes
                                                   : 4;
  const bool small = chain->disk->size_bytes <= SMALL_BYTES_MAX;

  if (given > 0)
    memcpy (head, input->operations, given);
  switch (head[0] % CHOICES) {
  case MERGE:
    if (small && chain->link_count > 1)
      merge (chain);
    break;
  case COMPARE:
    if (small)
      compare (chain);
    break;
  default:
    if (chain->disk->size_bytes <= SIZE_BYTES_MAX)
      copy (input, chain, head[0] % CHOICES, rp_load32 (head) >> 8);
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
    do_one (&input, &chain);
    fuzz_chain_close (&chain);
  }
  fuzz_input_close (&input);
  return 0;
}

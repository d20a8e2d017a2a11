/* SPDX-License-Identifier: Apache-2.0 */
/* Mutations that know the chunks of fuzz.h: one field, entry or chunk at a
 * time, and the rest stays a valid image. */
#include <string.h>

#include "bytes.h"
#include "fuzz.h"

#define EDITABLE_MAX (UINT64_C (1) << 20)

size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t room,
                                unsigned seed);
size_t LLVMFuzzerCustomCrossOver (const uint8_t *a, size_t a_size,
                                  const uint8_t *b, size_t b_size,
                                  uint8_t *out, size_t room, unsigned seed);

/* Fields of the headers: where and how wide. */
static const struct field {
  uint16_t offset;
  uint8_t  width;
} hosted[] = {
  { 4, 4 }, { 8, 4 }, { 12, 8 }, { 20, 8 }, { 28, 8 }, { 36, 8 }, { 44, 4 },
  { 48, 8 }, { 56, 8 }, { 64, 8 }, { 72, 1 }, { 73, 4 }, { 77, 2 },
}, cowd[] = {
  { 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 4 }, { 20, 4 }, { 24, 4 }, { 28, 4 },
  { 1648, 4 },
}, sesparse[] = {
  { 8, 8 }, { 16, 8 }, { 24, 8 }, { 32, 8 }, { 40, 8 }, { 80, 8 }, { 88, 8 },
  { 96, 8 }, { 104, 8 }, { 112, 8 }, { 120, 8 }, { 128, 8 }, { 136, 8 },
  { 144, 8 }, { 152, 8 }, { 160, 8 }, { 168, 8 }, { 176, 8 }, { 184, 8 },
  { 192, 8 }, { 200, 8 }, { 512, 8 }, { 520, 8 }, { 528, 8 }, { 536, 8 },
};

struct mutation {
  uint8_t *data;
  size_t   size, room;
  uint64_t state;
};

/* xorshift64* */
static uint64_t
next (struct mutation *mutation)
{
  uint64_t x = mutation->state;

  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  mutation->state = x;
  return x * UINT64_C (0x2545f4914f6cdd1d);
}

static uint64_t
below (struct mutation *mutation, uint64_t limit)
{
  return (next (mutation) >> 11) % limit;
}

static uint64_t
odd_value (struct mutation *mutation, uint64_t old)
{
  static const uint64_t values[] = {
    0, 1, 2, 3, 4, 7, 8, 9, 16, 21, 64, 100, 127, 128, 129, 511, 512, 513,
    2048, 2049, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
    0x100000000, 1u << 22, 1u << 23, 1u << 24, UINT64_C (1) << 40,
    UINT64_C (1) << 54, (UINT64_C (1) << 54) - 1, UINT64_C (1) << 55,
    INT64_MAX, UINT64_C (1) << 63, UINT64_MAX - 1, UINT64_MAX,
  };

  switch (below (mutation, 6)) {
  case 0:
    return old + 1 + below (mutation, 8);
  case 1:
    return old - 1 - below (mutation, 8);
  case 2:
    return old ^ UINT64_C (1) << below (mutation, 64);
  case 3:
    return below (mutation, 20000);
  default:
    return values[below (mutation, sizeof values / sizeof *values)];
  }
}

/* The chunk with index `index`: where it begins, and its length with its head.
 * */
static size_t
find_chunk (const struct mutation *mutation, uint32_t index, size_t *length)
{
  struct fuzz_chunk chunks[FUZZ_CHUNKS_MAX];

  (void) fuzz_input_chunks (mutation->data, mutation->size, chunks);
  *length = 3 + (size_t) chunks[index].length;
  return (size_t) (chunks[index].payload - 3 - mutation->data);
}

/* Replace bytes [at, at + old) by `length` others; false without room. */
static bool
splice (struct mutation *mutation, size_t at, size_t old, const void *bytes,
        size_t length)
{
  if (mutation->size - old + length > mutation->room)
    return false;
  memmove (mutation->data + at + length, mutation->data + at + old,
           mutation->size - at - old);
  memcpy (mutation->data + at, bytes, length);
  mutation->size += length - old;
  return true;
}

static bool
mutate_payload (struct mutation *mutation, size_t at, size_t length)
{
  const size_t old = length - 3;
  size_t room = old + 64;
  uint8_t *copy;
  bool done;

  if (room > UINT16_MAX)
    room = UINT16_MAX;
  copy = malloc (room + 3);
  FUZZ_CHECK (copy != NULL);
  memcpy (copy, mutation->data + at, length);
  length = LLVMFuzzerMutate (copy + 3, old, room);
  rp_store16 (copy + 1, (uint16_t) length);
  done = splice (mutation, at, old + 3, copy, length + 3);
  free (copy);
  return done;
}

/* Change one aligned integer of a patch. */
static bool
mutate_integer (struct mutation *mutation, size_t at, size_t length)
{
  const size_t head = mutation->data[at] == 'P' ? 8 : 3;
  const size_t width = below (mutation, 3) ? 4 : 8;
  uint8_t *field;

  if (length < head + width)
    return false;
  field = mutation->data + at + head
          + below (mutation, (length - head) / width) * width;
  if (width == 8)
    rp_store64 (field, odd_value (mutation, rp_load64 (field)));
  else
    rp_store32 (field, (uint32_t) odd_value (mutation, rp_load32 (field)));
  return true;
}

/* Copy one entry of a table over another: overlaps. */
static bool
copy_entry (struct mutation *mutation, size_t at, size_t length)
{
  const size_t head = 8, width = below (mutation, 2) ? 4 : 8;
  const size_t count = length > head ? (length - head) / width : 0;
  uint8_t *bytes = mutation->data + at + head;

  if (mutation->data[at] != 'P' || count < 2)
    return false;
  memmove (bytes + below (mutation, count) * width,
           bytes + below (mutation, count) * width, width);
  return true;
}

/* Add a patch of one field behind a chunk. */
static bool
add_field (struct mutation *mutation, size_t at, size_t length)
{
  uint8_t chunk[3 + 5 + 8] = { 'P' };
  const struct field *fields = hosted;
  size_t count = sizeof hosted / sizeof *hosted, width;

  switch (below (mutation, 4)) {
  case 0:
    fields = cowd;
    count = sizeof cowd / sizeof *cowd;
    break;
  case 1:
    fields = sesparse;
    count = sizeof sesparse / sizeof *sesparse;
    break;
  }
  fields += below (mutation, count);
  width = fields->width;
  rp_store16 (chunk + 1, (uint16_t) (5 + width));
  rp_store32 (chunk + 3, fields->offset);
  rp_store64 (chunk + 8, odd_value (mutation, below (mutation, 256)));
  return splice (mutation, at + length, 0, chunk, 8 + width);
}

/* Add a patch of one entry or sector number anywhere in front. */
static bool
add_entry (struct mutation *mutation, size_t at, size_t length)
{
  uint8_t chunk[3 + 5 + 8] = { 'P' };
  const size_t width = below (mutation, 2) ? 4 : 8;
  uint64_t offset = below (mutation, 64) * RP_SECTOR_BYTES
                    + below (mutation, 4) * width;

  if (mutation->data[at] == 'P' && length >= 8)
    offset += rp_load32 (mutation->data + at + 3);
  rp_store16 (chunk + 1, (uint16_t) (5 + width));
  rp_store32 (chunk + 3, (uint32_t) (offset % EDITABLE_MAX));
  rp_store64 (chunk + 8, odd_value (mutation, below (mutation, 4096)));
  return splice (mutation, at + length, 0, chunk, 8 + width);
}

static bool
move_patch (struct mutation *mutation, size_t at, size_t length)
{
  uint8_t *field = mutation->data + at + 3;
  const uint32_t sector = (uint32_t) below (mutation, 4) * RP_SECTOR_BYTES;

  if (length < 8 || mutation->data[at] == 'O' || mutation->data[at] == 'F')
    return false;
  rp_store32 (field, rp_load32 (field) + (below (mutation, 2) ? sector
                                                              : -sector));
  return true;
}

static bool
duplicate (struct mutation *mutation, size_t at, size_t length)
{
  uint8_t *copy = malloc (length);
  bool done;

  FUZZ_CHECK (copy != NULL);
  memcpy (copy, mutation->data + at, length);
  done = splice (mutation, at, 0, copy, length);
  free (copy);
  return done;
}

static bool
set_size (struct mutation *mutation, size_t at, size_t length)
{
  uint8_t chunk[3 + 8] = { 'S', 8 };

  rp_store64 (chunk + 3, below (mutation, 4) ? below (mutation, 65536)
                         : below (mutation, UINT64_C (1) << 24));
  if (mutation->data[at] == 'S')
    return splice (mutation, at, length, chunk, sizeof chunk);
  return splice (mutation, at + length, 0, chunk, sizeof chunk);
}

static bool
mutate_once (struct mutation *mutation, uint32_t chunk_count)
{
  size_t length, at = find_chunk (mutation, (uint32_t)
                                  below (mutation, chunk_count), &length);

  switch (below (mutation, 16)) {
  case 0: case 1: case 2: case 3:
    return mutate_payload (mutation, at, length);
  case 4: case 5: case 6:
    return mutate_integer (mutation, at, length);
  case 7: case 8:
    return add_field (mutation, at, length);
  case 9: case 10:
    return add_entry (mutation, at, length);
  case 11:
    return copy_entry (mutation, at, length);
  case 12:
    return move_patch (mutation, at, length);
  case 13:
    return duplicate (mutation, at, length);
  case 14:
    return set_size (mutation, at, length);
  default:
    return chunk_count > 1 && splice (mutation, at, length, "", 0);
  }
}

size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t room,
                         unsigned seed)
{
  struct mutation mutation = {
    .data = data, .size = size, .room = room,
    .state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1,
  };
  struct fuzz_chunk chunks[FUZZ_CHUNKS_MAX];
  uint64_t rounds = 1 + below (&mutation, 3);

  if (size == 0 || fuzz_input_is_file (data, size)
      || below (&mutation, 32) == 0)
    return LLVMFuzzerMutate (data, size, room);
  for (int tries = 0; rounds > 0 && tries < 8; tries++) {
    const uint32_t count = fuzz_input_chunks (data, mutation.size, chunks);

    if (count == 0)
      break;
    if (mutate_once (&mutation, count))
      rounds--;
  }
  return mutation.size;
}

/* Some chunks of one, then some of the other. */
size_t
LLVMFuzzerCustomCrossOver (const uint8_t *a, size_t a_size, const uint8_t *b,
                           size_t b_size, uint8_t *out, size_t room,
                           unsigned seed)
{
  struct mutation mutation = {
    .data = out, .room = room,
    .state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1,
  };
  struct fuzz_chunk chunks[FUZZ_CHUNKS_MAX];
  const uint8_t *const inputs[2] = { a, b };
  const size_t sizes[2] = { a_size, b_size };

  for (int i = 0; i < 2; i++) {
    const uint32_t count = fuzz_input_chunks (inputs[i], sizes[i], chunks);

    for (uint32_t k = 0; k < count; k++)
      if (below (&mutation, 3))
        (void) splice (&mutation, mutation.size, 0, chunks[k].payload - 3,
                       3 + (size_t) chunks[k].length);
  }
  return mutation.size;
}

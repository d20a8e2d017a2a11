/* SPDX-License-Identifier: Apache-2.0 */
/* From an input to files: see fuzz.h. */
#include <string.h>

#include <libdeflate.h>

#include "bytes.h"
#include "fuzz.h"

/* A directory has to lie inside its file, and reading one of 128 MiB (what
 * the formats allow) for every input would leave time for little else. */
#define SIZE_MAX_BYTES   (UINT64_C (16) << 20)
#define OFFSET_BYTES     5u
#define REPEAT_BYTES_MAX 131072u
#define STORED_MAX       65535u  /* of one deflate block */

bool
fuzz_input_is_file (const uint8_t *data, size_t size)
{
  static const uint8_t magics[3][4] = {
    { 'K', 'D', 'M', 'V' }, { 'C', 'O', 'W', 'D' }, { 0xbe, 0xba, 0xfe, 0xca },
  };

  for (size_t i = 0; size >= 4 && i < 3; i++)
    if (memcmp (data, magics[i], 4) == 0)
      return true;
  return false;
}

uint32_t
fuzz_input_chunks (const uint8_t *data, size_t size, struct fuzz_chunk *out)
{
  uint32_t count = 0;

  while (size >= 3 && count < FUZZ_CHUNKS_MAX) {
    struct fuzz_chunk *chunk = &out[count++];

    chunk->tag = data[0];
    chunk->length = rp_load16 (data + 1);
    if (chunk->length > size - 3)
      chunk->length = (uint16_t) (size - 3);
    chunk->payload = data + 3;
    data += 3 + chunk->length;
    size -= 3 + chunk->length;
  }
  return count;
}

static uint64_t
load40 (const uint8_t *at)
{
  return rp_load32 (at) | (uint64_t) at[4] << 32;
}

/* Where a file is too large it ends: what lies behind is left out. */
static void
write_bytes (struct rp_file *file, uint64_t offset, const uint8_t *bytes,
             size_t length)
{
  if (offset >= SIZE_MAX_BYTES || length == 0)
    return;
  if (length > SIZE_MAX_BYTES - offset)
    length = SIZE_MAX_BYTES - offset;
  (void) rp_file_pwrite (file, bytes, length, offset, NULL);
}

static void
write_repeated (struct rp_file *file, const struct fuzz_chunk *chunk)
{
  const uint64_t offset = load40 (chunk->payload);
  const uint32_t count = rp_load16 (chunk->payload + OFFSET_BYTES);
  const uint8_t *bytes = chunk->payload + OFFSET_BYTES + 2;
  const size_t length = chunk->length - OFFSET_BYTES - 2u;
  const size_t total = count * length < REPEAT_BYTES_MAX ? count * length
                                                         : REPEAT_BYTES_MAX;
  uint8_t *all;

  if (total == 0)
    return;
  all = malloc (total);
  FUZZ_CHECK (all != NULL);
  memcpy (all, bytes, length < total ? length : total);
  for (size_t done = length; done < total; done *= 2)
    memcpy (all + done, all, done < total - done ? done : total - done);
  write_bytes (file, offset, all, total);
  free (all);
}

static void
write_series (struct rp_file *file, const uint8_t *payload)
{
  const uint32_t count = rp_load16 (payload + OFFSET_BYTES) % 8193;
  const size_t width = payload[OFFSET_BYTES + 2] % 2 ? 8 : 4;
  const uint64_t step = rp_load64 (payload + OFFSET_BYTES + 11);
  uint64_t value = rp_load64 (payload + OFFSET_BYTES + 3);
  uint8_t *all = malloc (count * width + 1);

  FUZZ_CHECK (all != NULL);
  for (uint32_t i = 0; i < count; i++, value += step)
    if (width == 8)
      rp_store64 (all + 8 * (size_t) i, value);
    else
      rp_store32 (all + 4 * (size_t) i, (uint32_t) value);
  write_bytes (file, load40 (payload), all, count * width);
  free (all);
}

/* Source: RFC 1950; RFC 1951, "Non-compressed blocks". */
static void
write_grain (struct rp_file *file, const struct fuzz_chunk *chunk)
{
  const uint8_t *bytes = chunk->payload + OFFSET_BYTES + 8;
  const size_t length = chunk->length - OFFSET_BYTES - 8u;
  const uint16_t stored = (uint16_t) (length < STORED_MAX ? length
                                                          : STORED_MAX);
  const uint32_t sum = libdeflate_adler32 (1, bytes, stored);
  const uint32_t size = 2 + 5 + stored + 4u;
  uint8_t *grain = malloc (12 + size);

  FUZZ_CHECK (grain != NULL);
  memcpy (grain, chunk->payload + OFFSET_BYTES, 8);
  rp_store32 (grain + 8, size);
  memcpy (grain + 12, "\x78\x01\x01", 3);
  rp_store16 (grain + 15, stored);
  rp_store16 (grain + 17, (uint16_t) ~stored);
  memcpy (grain + 19, bytes, stored);
  for (int i = 0; i < 4; i++)
    grain[19 + stored + i] = (uint8_t) (sum >> (24 - 8 * i));
  write_bytes (file, load40 (chunk->payload), grain, 12 + size);
  free (grain);
}

static void
apply (struct fuzz_file *file, const struct fuzz_chunk *chunk)
{
  const uint8_t *payload = chunk->payload;

  switch (chunk->tag) {
  case 'S':
    if (chunk->length >= 8)
      (void) rp_file_truncate (file->file, rp_load64 (payload)
                               % (SIZE_MAX_BYTES + 1), NULL);
    break;
  case 'P':
    if (chunk->length > OFFSET_BYTES)
      write_bytes (file->file, load40 (payload), payload + OFFSET_BYTES,
                   chunk->length - OFFSET_BYTES);
    break;
  case 'R':
    if (chunk->length > OFFSET_BYTES + 2)
      write_repeated (file->file, chunk);
    break;
  case 'A':
    if (chunk->length >= OFFSET_BYTES + 19)
      write_series (file->file, payload);
    break;
  case 'Z':
    if (chunk->length >= OFFSET_BYTES + 8)
      write_grain (file->file, chunk);
    break;
  }
}

static void
add_file (struct fuzz_input *input)
{
  char name[16];

  snprintf (name, sizeof name, "file%u", (unsigned) input->file_count);
  fuzz_memory_open (input->io, name, &input->files[input->file_count++].file);
}

/* A size that nobody gave is a whole number of sectors. */
static void
round_up (struct rp_file *file, bool sized)
{
  uint64_t size;

  if (!sized && rp_file_size (file, &size, NULL) == RP_OK
      && size % RP_SECTOR_BYTES != 0)
    (void) rp_file_truncate (file, rp_divide_up (size, RP_SECTOR_BYTES)
                             * RP_SECTOR_BYTES, NULL);
}

static void
read_chunks (struct fuzz_input *input, const uint8_t *data, size_t size)
{
  struct fuzz_chunk chunks[FUZZ_CHUNKS_MAX];
  const uint32_t count = fuzz_input_chunks (data, size, chunks);
  struct fuzz_file *file = &input->files[0];
  bool sized = false;

  for (uint32_t i = 0; i < count; i++) {
    const struct fuzz_chunk *chunk = &chunks[i];

    if (chunk->tag == 'O') {
      input->operations = chunk->payload;
      input->operations_bytes = chunk->length;
      continue;
    }
    if (chunk->tag == 'F' && input->file_count == FUZZ_FILES_MAX)
      break;
    if (chunk->tag == 'F' || input->file_count == 0) {
      if (input->file_count > 0)
        round_up (file->file, sized);
      file = &input->files[input->file_count];
      add_file (input);
      sized = false;
    }
    if (chunk->tag == 'F' && chunk->length >= 10) {
      file->kind = chunk->payload[0];
      file->flags = chunk->payload[1];
      file->sectors = rp_load64 (chunk->payload + 2);
    }
    apply (file, chunk);
    sized |= chunk->tag == 'S';
  }
  if (input->file_count > 0)
    round_up (file->file, sized);
}

bool
fuzz_input_open (const uint8_t *data, size_t size, struct fuzz_input *out)
{
  memset (out, 0, sizeof *out);
  fuzz_memory_create (&out->io);
  if (fuzz_input_is_file (data, size)) {
    add_file (out);
    write_bytes (out->files[0].file, 0, data, size);
  } else {
    read_chunks (out, data, size);
  }
  if (out->file_count > 0)
    return true;
  fuzz_input_close (out);
  return false;
}

void
fuzz_input_close (struct fuzz_input *input)
{
  for (uint32_t i = 0; i < input->file_count; i++)
    rp_file_close (input->files[i].file);
  rp_io_destroy (input->io);
}

bool
fuzz_spec_of (const struct fuzz_file *file, struct rp_extent_spec *out)
{
  struct rp_sparse_info info = { 0 };
  struct rp_fault fault;
  uint64_t size;

  *out = (struct rp_extent_spec) { .file = file->file };
  switch (file->kind) {
  case RP_EXTENT_FLAT:
    out->kind = RP_EXTENT_FLAT;
    out->offset_sectors = file->flags >> FUZZ_OFFSET_SHIFT;
    FUZZ_CHECK (rp_file_size (file->file, &size, &fault) == RP_OK);
    info.capacity_sectors = size / RP_SECTOR_BYTES;
    break;
  case RP_EXTENT_ZERO:
  case RP_EXTENT_NOACCESS:
    out->kind = file->kind;
    out->file = NULL;
    info.capacity_sectors = 8;
    break;
  default:
    if (rp_sparse_read_header (file->file, &out->kind, &info, &fault) != RP_OK)
      return false;
  }
  out->sectors = file->sectors ? file->sectors : info.capacity_sectors;
  return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A backend of struct rp_io for one thread: files in memory, without names. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "fuzz.h"

#define PAGE_BYTES 4096u
#define PAGES_MAX  4096u         /* of all files of an io */

struct page {
  uint64_t index;
  uint32_t slot;                 /* in the store */
};

struct memory_file {
  struct rp_file file;           /* first */
  char           name[16];
  uint64_t       size;
  struct page   *pages;          /* ascending */
  uint32_t       page_count, page_room;
  uint8_t       *store;
  uint32_t       slot_count, slot_room;
};

struct memory_io {
  struct rp_io io;               /* first */
  uint32_t     page_count;
  bool         ran_full;
};

static struct memory_io *
io_of (struct memory_file *file)
{
  return (struct memory_io *) file->file.io;
}

/* Index of the first page at or behind `index`. */
static uint32_t
find_page (const struct memory_file *file, uint64_t index)
{
  uint32_t first = 0, stop = file->page_count;

  while (first < stop) {
    const uint32_t middle = first + (stop - first) / 2;

    if (file->pages[middle].index < index)
      first = middle + 1;
    else
      stop = middle;
  }
  return first;
}

static uint8_t *
page_bytes (struct memory_file *file, uint64_t index)
{
  const uint32_t at = find_page (file, index);

  if (at == file->page_count || file->pages[at].index != index)
    return NULL;
  return file->store + (size_t) file->pages[at].slot * PAGE_BYTES;
}

static void *
grow (void *array, uint32_t *room, size_t size)
{
  *room = *room ? *room * 2 : 16;
  array = realloc (array, *room * size);
  FUZZ_CHECK (array != NULL);
  return array;
}

/* NULL where the io is full. */
static uint8_t *
make_page (struct memory_file *file, uint64_t index)
{
  const uint32_t at = find_page (file, index);
  uint8_t *bytes;

  if (io_of (file)->page_count == PAGES_MAX) {
    io_of (file)->ran_full = true;
    return NULL;
  }
  io_of (file)->page_count++;
  if (file->page_count == file->page_room)
    file->pages = grow (file->pages, &file->page_room, sizeof *file->pages);
  if (file->slot_count == file->slot_room)
    file->store = grow (file->store, &file->slot_room, PAGE_BYTES);
  memmove (file->pages + at + 1, file->pages + at,
           (file->page_count - at) * sizeof *file->pages);
  file->pages[at] = (struct page) { index, file->slot_count++ };
  file->page_count++;
  bytes = file->store + (size_t) file->pages[at].slot * PAGE_BYTES;
  memset (bytes, 0, PAGE_BYTES);
  return bytes;
}

static int
memory_pread (struct rp_file *generic, void *buffer, size_t length,
              uint64_t offset, size_t *done_out, struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;
  uint8_t *to = buffer;

  (void) fault;
  if (offset >= file->size)
    length = 0;
  else if (length > file->size - offset)
    length = file->size - offset;
  *done_out = length;
  while (length > 0) {
    const size_t within = offset % PAGE_BYTES;
    const size_t room = PAGE_BYTES - within;
    const size_t piece = length < room ? length : room;
    const uint8_t *from = page_bytes (file, offset / PAGE_BYTES);

    if (from)
      memcpy (to, from + within, piece);
    else
      memset (to, 0, piece);
    to += piece;
    offset += piece;
    length -= piece;
  }
  return RP_OK;
}

/* bytes NULL: zeros */
static int
put (struct memory_file *file, const uint8_t *bytes, uint64_t length,
     uint64_t offset, struct rp_fault *fault)
{
  while (length > 0) {
    const size_t within = offset % PAGE_BYTES;
    const size_t room = PAGE_BYTES - within;
    const size_t piece = length < room ? length : room;
    uint8_t *to = page_bytes (file, offset / PAGE_BYTES);

    if (!to && bytes)
      to = make_page (file, offset / PAGE_BYTES);
    if (!to && bytes)
      return rp_fail_os (fault, ENOSPC, offset, "%s", file->name);
    if (to && bytes)
      memcpy (to + within, bytes, piece);
    else if (to)
      memset (to + within, 0, piece);
    bytes = bytes ? bytes + piece : NULL;
    offset += piece;
    length -= piece;
  }
  return RP_OK;
}

static int
memory_pwritev (struct rp_file *generic, const struct iovec *parts,
                int part_count, uint64_t offset, struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;
  int status = RP_OK;

  for (int i = 0; status == RP_OK && i < part_count; i++) {
    const uint64_t end = offset + parts[i].iov_len;

    status = put (file, parts[i].iov_base, parts[i].iov_len, offset, fault);
    if (status == RP_OK && parts[i].iov_len > 0 && file->size < end)
      file->size = end;
    offset = end;
  }
  return status;
}

static int
memory_sync (struct rp_file *file, struct rp_fault *fault)
{
  (void) file; (void) fault;
  return RP_OK;
}

/* Zeros, without a look at places where nothing was ever written. */
static void
clear (struct memory_file *file, uint64_t offset, uint64_t length)
{
  const uint64_t stop = offset + length;

  for (uint32_t i = find_page (file, offset / PAGE_BYTES);
       i < file->page_count && file->pages[i].index * PAGE_BYTES < stop; i++) {
    const uint64_t start = file->pages[i].index * PAGE_BYTES;
    const uint64_t from = start < offset ? offset : start;
    const uint64_t end = stop - start < PAGE_BYTES ? stop : start + PAGE_BYTES;

    (void) put (file, NULL, end - from, from, NULL);
  }
}

static int
memory_truncate (struct rp_file *generic, uint64_t size,
                 struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;

  (void) fault;
  if (size < file->size)
    clear (file, size, file->size - size);
  file->size = size;
  return RP_OK;
}

static int
memory_allocate (struct rp_file *generic, uint64_t offset, uint64_t length,
                 struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;

  (void) fault;
  if (file->size < offset + length)
    file->size = offset + length;
  return RP_OK;
}

static int
memory_punch (struct rp_file *generic, uint64_t offset, uint64_t length,
              struct rp_fault *fault)
{
  (void) fault;
  clear ((struct memory_file *) generic, offset, length);
  return RP_OK;
}

static int
memory_stat (struct rp_file *generic, struct rp_stat *out,
             struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;

  (void) fault;
  *out = (struct rp_stat) {
    .size_bytes = file->size,
    .allocated_bytes = (uint64_t) file->page_count * PAGE_BYTES,
    .device = 1, .inode = (uintptr_t) file, .is_regular = true,
  };
  return RP_OK;
}

static int
memory_seek (struct rp_file *generic, uint64_t offset, bool want_data,
             uint64_t *out, struct rp_fault *fault)
{
  struct memory_file *file = (struct memory_file *) generic;
  uint32_t at = find_page (file, offset / PAGE_BYTES);
  uint64_t found = offset;

  (void) fault;
  if (want_data && at == file->page_count)
    found = file->size;
  else if (want_data && file->pages[at].index > offset / PAGE_BYTES)
    found = file->pages[at].index * PAGE_BYTES;
  else if (!want_data)
    for (; at < file->page_count
           && file->pages[at].index == found / PAGE_BYTES; at++)
      found = (file->pages[at].index + 1) * PAGE_BYTES;
  *out = found < file->size ? found : file->size;
  return RP_OK;
}

static int
memory_lock (struct rp_file *file, bool exclusive, struct rp_fault *fault)
{
  (void) file; (void) exclusive; (void) fault;
  return RP_OK;
}

static void
memory_close (struct rp_file *generic)
{
  struct memory_file *file = (struct memory_file *) generic;

  io_of (file)->page_count -= file->page_count;
  free (file->store);
  free (file->pages);
  free (file);
}

static void
memory_destroy (struct rp_io *io)
{
  free (io);
}

/* Nothing here has a name: the functions of directories are never called. */
static const struct rp_io_functions memory_functions = {
  .name = "memory",
  .destroy = memory_destroy,
  .file_close = memory_close,
  .file_pread = memory_pread,
  .file_pwritev = memory_pwritev,
  .file_sync = memory_sync,
  .file_truncate = memory_truncate,
  .file_allocate = memory_allocate,
  .file_punch = memory_punch,
  .file_stat = memory_stat,
  .file_seek = memory_seek,
  .file_lock = memory_lock,
};

int
fuzz_memory_create (struct rp_io **out)
{
  struct memory_io *io = calloc (1, sizeof *io);

  FUZZ_CHECK (io != NULL);
  io->io.functions = &memory_functions;
  *out = &io->io;
  return RP_OK;
}

int
fuzz_memory_open (struct rp_io *io, const char *name, struct rp_file **out)
{
  struct memory_file *file = calloc (1, sizeof *file);

  FUZZ_CHECK (file != NULL);
  snprintf (file->name, sizeof file->name, "%s", name);
  file->file.io = io;
  file->file.name = file->name;
  *out = &file->file;
  return RP_OK;
}

bool
fuzz_memory_ran_full (const struct rp_io *io)
{
  return ((const struct memory_io *) io)->ran_full;
}

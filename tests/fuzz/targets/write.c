/* SPDX-License-Identifier: Apache-2.0 */
/* Sparse extents of any content, written: over parents or alone.
 *
 * Where the check finds nothing that matters and every byte can be read, the
 * image is trusted: from then on it has to read as a plain array of bytes
 * does, through flushes, reopening and an end without a flush, and the check
 * has to find nothing new.  An image that is not trusted may read as anything,
 * but nothing may break.
 *
 * An operation is 8 bytes: code u8, place u24, length u24, fill u8.  Places are
 * in two windows, at the start and at the end of the disk.
 */
#include <string.h>

#include "bytes.h"
#include "fuzz.h"

#define WINDOW_BYTES     (UINT64_C (32) << 10)
#define OPERATIONS_MAX   64u
#define OPERATION_BYTES  8u
#define CHECKED_BYTES_MAX (UINT64_C (64) << 20)
#define HARMLESS         (FUZZ_LEAK | FUZZ_UNCLEAN | FUZZ_FREESECTOR)

/* Bytes of the disk, and what they have to be. */
struct window {
  uint64_t start, length;
  uint8_t *now;
  bool     dirty[2 * WINDOW_BYTES / RP_SECTOR_BYTES];  /* since the last
                                                          flush */
};

struct session {
  struct fuzz_input input;
  struct fuzz_chain chain;
  struct window     windows[2];
  bool              trusted, failed;
  bool              dropped;     /* there may be leaks */
  bool              wrote;       /* since it was opened */
  unsigned          findings;    /* when it was opened */
};

/* ---- the array of bytes ---- */

static void
make_windows (struct session *session)
{
  const uint64_t size = session->chain.disk->size_bytes;
  struct window *low = &session->windows[0], *high = &session->windows[1];

  low->length = size <= 2 * WINDOW_BYTES ? size : WINDOW_BYTES;
  high->length = size <= 2 * WINDOW_BYTES ? 0 : WINDOW_BYTES;
  high->start = size - high->length;
  for (int i = 0; i < 2; i++) {
    session->windows[i].now = calloc (1, session->windows[i].length + 1);
    FUZZ_CHECK (session->windows[i].now != NULL);
  }
}

static bool
load_windows (struct session *session)
{
  struct rp_fault fault;

  for (int i = 0; i < 2; i++) {
    struct window *window = &session->windows[i];

    if (rp_disk_pread (session->chain.disk, window->now, window->length,
                       window->start, &fault) != RP_OK)
      return false;
  }
  return true;
}

/* Compare all; where dirty sectors may be old or new, take what is there. */
static void
check_windows (struct session *session, bool dirty_is_free)
{
  struct rp_fault fault;

  for (int i = 0; session->trusted && i < 2; i++) {
    struct window *window = &session->windows[i];
    uint8_t *there = malloc (window->length + 1);

    FUZZ_CHECK (there != NULL);
    FUZZ_CHECK (rp_disk_pread (session->chain.disk, there, window->length,
                               window->start, &fault) == RP_OK);
    for (uint64_t at = 0; at < window->length; at += RP_SECTOR_BYTES)
      if (!dirty_is_free || !window->dirty[at / RP_SECTOR_BYTES])
        FUZZ_CHECK (memcmp (there + at, window->now + at, RP_SECTOR_BYTES)
                    == 0);
    memcpy (window->now, there, window->length);
    free (there);
  }
}

static void
set_clean (struct session *session)
{
  for (int i = 0; i < 2; i++)
    memset (session->windows[i].dirty, 0, sizeof session->windows[i].dirty);
}

/* ---- opening and closing ---- */

/* The check keeps a bit for each sector or grain of a file: with one of 2 TiB,
 * which is mostly hole, it takes seconds. */
static bool
is_large (const struct rp_extent_spec *extent)
{
  struct rp_fault fault;
  uint64_t size;

  return rp_file_size (extent->file, &size, &fault) != RP_OK
         || size > CHECKED_BYTES_MAX;
}

static unsigned
find_all (struct session *session)
{
  struct rp_image *image;
  struct rp_fault fault;
  unsigned found;

  if (is_large (&session->chain.extents[0])
      || rp_image_open (session->chain.extents, session->chain.first[1], false,
                     &image, &fault) != RP_OK)
    return FUZZ_NOT_CHECKED;
  found = fuzz_check_image (image);
  rp_image_destroy (image);
  return found;
}

static void
check_findings (struct session *session, bool clean)
{
  unsigned allowed = session->findings, found;

  if (!session->trusted)
    return;
  if (session->dropped || session->failed || allowed & HARMLESS)
    allowed |= FUZZ_LEAK;
  if (!clean)
    allowed |= FUZZ_UNCLEAN | FUZZ_LEAK;
  if (clean && session->wrote)
    allowed &= ~(unsigned) (FUZZ_UNCLEAN | FUZZ_FREESECTOR);
  if (is_large (&session->chain.extents[0]))
    return;
  found = find_all (session);
  if (found & ~allowed)
    fprintf (stderr, "findings 0x%x, before 0x%x\n", found,
             session->findings);
  FUZZ_CHECK ((found & ~allowed) == 0);
  session->findings = found;
  session->wrote = false;
}

/* Close, cleanly or as a process ends that is killed, and open again. */
static bool
reopen (struct session *session, bool clean)
{
  struct rp_fault fault;
  int status = RP_OK;

  if (clean)
    status = rp_chain_close_clean (session->chain.disk, &fault);
  FUZZ_CHECK (status == RP_OK || !session->trusted || session->failed);
  clean = clean && status == RP_OK;
  fuzz_chain_close (&session->chain);
  if (fuzz_memory_ran_full (session->input.io))
    return false;
  session->dropped |= !clean;
  check_findings (session, clean);
  if (!fuzz_chain_open (&session->chain, true)) {
    FUZZ_CHECK (!session->trusted);
    return false;
  }
  check_windows (session, !clean);
  set_clean (session);
  return true;
}

/* ---- operations ---- */

static void
change (struct session *session, uint8_t code, struct window *window,
        uint64_t place, uint64_t length, uint8_t fill)
{
  struct rp_disk *disk = session->chain.disk;
  uint8_t *data = malloc (length + 1);
  struct rp_fault fault;
  int status;

  FUZZ_CHECK (data != NULL);
  for (uint64_t i = 0; i < length; i++)
    data[i] = code == 0 ? (uint8_t) (fill + i / 509) : 0;
  status = code == 0
           ? rp_disk_pwrite (disk, data, length, window->start + place, &fault)
           : rp_disk_zero (disk, length, window->start + place, code == 2,
                           &fault);
  session->wrote |= length > 0;
  if (length > 0)
    memset (window->dirty + place / RP_SECTOR_BYTES, true,
            (place + length - 1) / RP_SECTOR_BYTES + 1
            - place / RP_SECTOR_BYTES);
  if (status == RP_OK) {
    memcpy (window->now + place, data, length);
  } else {
    /* full; what the range holds now is anybody's guess */
    FUZZ_CHECK (!session->trusted || status == RP_FULL || status == RP_IO
                || status == RP_READ_ONLY);
    session->failed = true;
    session->trusted = session->trusted
                       && rp_disk_pread (disk, window->now + place, length,
                                         window->start + place, &fault)
                          == RP_OK;
  }
  free (data);
}

static void
check_read (struct session *session, const struct window *window,
            uint64_t place, uint64_t length)
{
  uint8_t *there = malloc (length + 1);
  struct rp_fault fault;
  int status;

  FUZZ_CHECK (there != NULL);
  status = rp_disk_pread (session->chain.disk, there, length,
                          window->start + place, &fault);
  if (session->trusted)
    FUZZ_CHECK (status == RP_OK
                && memcmp (there, window->now + place, length) == 0);
  free (there);
}

static bool
perform (struct session *session, const uint8_t *operation)
{
  struct window *window
    = &session->windows[session->windows[1].length && operation[3] & 0x80];
  const uint64_t place = (rp_load32 (operation) >> 8 & 0x7fffff)
                         % window->length;
  uint64_t length = rp_load32 (operation + 4) & 0xffffff;
  struct rp_fault fault;
  const uint8_t code = operation[0] % 8;

  if (length > window->length - place)
    length = window->length - place;
  switch (code) {
  case 0: case 1: case 2:
    change (session, code, window, place, length, operation[7]);
    return true;
  case 3:
    check_read (session, window, place, length);
    return true;
  case 4:
    if (rp_disk_flush (session->chain.disk, &fault) == RP_OK)
      set_clean (session);
    else
      FUZZ_CHECK (!session->trusted || session->failed);
    return true;
  case 5:
    return reopen (session, true);
  case 6:
    return reopen (session, false);
  default:
    fuzz_walk (session->chain.disk);
    return true;
  }
}

static void
write_all (struct session *session)
{
  const uint8_t *operation = session->input.operations;
  const size_t count = session->input.operations_bytes / OPERATION_BYTES;
  bool open = true;

  for (size_t i = 0; open && i < count && i < OPERATIONS_MAX;
       i++, operation += OPERATION_BYTES)
    open = perform (session, operation)
           && !fuzz_memory_ran_full (session->input.io);
  if (open && reopen (session, true))
    fuzz_walk (session->chain.disk);
}

/* New grains begin at a whole grain behind the end of the file; what lies
 * between is no leak until the file has grown.  Those of COWD may begin at any
 * sector: then the check sees smaller leaks than before. */
static bool
leaves_a_gap (const struct rp_extent_spec *extent)
{
  struct rp_sparse_info info;
  enum rp_extent_kind kind;
  struct rp_fault fault;
  uint64_t size;

  return rp_sparse_read_header (extent->file, &kind, &info, &fault) == RP_OK
         && rp_file_size (extent->file, &size, &fault) == RP_OK
         && (kind == RP_EXTENT_COWD
             || size % (info.grain_sectors * RP_SECTOR_BYTES) != 0);
}

static bool
is_whole (const struct rp_extent_spec *extent)
{
  struct rp_fault fault;
  uint64_t size;

  if (extent->kind == RP_EXTENT_NOACCESS || extent->kind == RP_EXTENT_STREAM)
    return false;
  return extent->kind != RP_EXTENT_FLAT
         || (rp_file_size (extent->file, &size, &fault) == RP_OK
             && rp_inside (extent->offset_sectors, extent->sectors,
                           size / RP_SECTOR_BYTES));
}

/* A copy-up may read any byte of a parent. */
static bool
parents_are_whole (struct fuzz_chain *chain)
{
  for (uint32_t i = 1; i < chain->link_count; i++)
    if (fuzz_check_image (chain->images[i])
        & ~(unsigned) (HARMLESS | FUZZ_REDUNDANT))
      return false;
  for (uint32_t i = 1; i < chain->first[chain->link_count]; i++)
    if (!is_whole (&chain->extents[i]))
      return false;
  return true;
}

static bool
is_writable_kind (const struct fuzz_chain *chain)
{
  return chain->first[1] == 1
         && (chain->extents[0].kind == RP_EXTENT_SPARSE
             || chain->extents[0].kind == RP_EXTENT_COWD);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct session session;

  memset (&session, 0, sizeof session);
  if (!fuzz_input_open (data, size, &session.input))
    return 0;
  if (fuzz_chain_plan (&session.input, &session.chain)
      && is_writable_kind (&session.chain)) {
    session.findings = find_all (&session);
    session.dropped = leaves_a_gap (&session.chain.extents[0]);
    if (fuzz_chain_open (&session.chain, true)) {
      make_windows (&session);
      session.trusted = !(session.findings & ~(unsigned) HARMLESS)
                        && parents_are_whole (&session.chain)
                        && load_windows (&session);
      write_all (&session);
      fuzz_chain_close (&session.chain);
      free (session.windows[0].now);
      free (session.windows[1].now);
    }
  }
  fuzz_input_close (&session.input);
  return 0;
}

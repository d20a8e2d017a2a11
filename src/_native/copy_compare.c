/* SPDX-License-Identifier: Apache-2.0 */
/* Comparing two disks: maps first, then data. */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "copy_crew.h"
#include "copy_parts.h"
#include "io.h"

#define PAGE_BYTES 4096u

/* Two handles, and whether they are of one file. */
struct same_file {
  struct rp_file *a, *b;
  bool            same;
};

/* What is known of both disks at a place. */
struct pair {
  struct rp_run    a, b;
  struct same_file file;
};

struct job {
  struct rp_disk  *a, *b;
  struct pair      pair;         /* of the cursor */
  _Atomic uint64_t found;        /* smallest place that differs, or length */
  _Atomic uint64_t failed;       /* smallest start of a piece that failed */
};

struct load {
  uint8_t    *a, *b;             /* RP_COPY_CHUNK_BYTES each */
  struct pair pair;
};

/* ---- maps ---- */

static int
is_same_file (struct same_file *known, struct rp_file *a, struct rp_file *b,
              bool *out, struct rp_fault *fault)
{
  struct rp_stat stat_a, stat_b;
  int status;

  if (known->a != a || known->b != b) {
    status = rp_file_stat (a, &stat_a, fault);
    if (status == RP_OK)
      status = rp_file_stat (b, &stat_b, fault);
    if (status != RP_OK)
      return status;
    *known = (struct same_file) {
      .a = a, .b = b,
      .same = stat_a.device == stat_b.device && stat_a.inode == stat_b.inode,
    };
  }
  *out = known->same;
  return RP_OK;
}

/* What both hold at a place up to *end; *differ false where they are equal
 * without a look at the data. */
static int
look_at_both (const struct job *job, struct pair *pair, uint64_t at,
              uint64_t stop, uint64_t *end, bool *differ,
              struct rp_fault *fault)
{
  struct rp_run *a = &pair->a, *b = &pair->b;
  bool same = false;
  int status;

  status = rp_copy_look (job->a, at, stop, a, fault);
  if (status == RP_OK)
    status = rp_copy_look (job->b, at, stop, b, fault);
  if (status != RP_OK)
    return status;
  *end = a->offset_bytes + a->length_bytes;
  if (*end > b->offset_bytes + b->length_bytes)
    *end = b->offset_bytes + b->length_bytes;
  if (*end > stop)
    *end = stop;
  *differ = a->kind == RP_RUN_DATA || b->kind == RP_RUN_DATA;
  if (a->kind == RP_RUN_DATA && b->kind == RP_RUN_DATA && a->file && b->file
      && a->file_offset_bytes - a->offset_bytes
         == b->file_offset_bytes - b->offset_bytes) {
    status = is_same_file (&pair->file, a->file, b->file, &same, fault);
    *differ = !same;
  }
  return status;
}

/* ---- the cursor ---- */

static int
next_piece (struct rp_crew *crew, struct rp_crew_slot *slot, uint64_t from,
            bool *more, struct rp_fault *fault)
{
  struct job *job = crew->job;
  const uint64_t found = atomic_load (&job->found);
  uint64_t end = from;
  bool differ = false;
  int status;

  while (from < found && !differ) {
    status = look_at_both (job, &job->pair, from, crew->stop, &end, &differ,
                           fault);
    if (status != RP_OK)
      return status;
    if (!differ)
      from = end;
  }
  *more = from < found;
  if (!*more)
    return RP_OK;
  slot->start = from;
  end = (from / RP_COPY_CHUNK_BYTES + 1) * RP_COPY_CHUNK_BYTES;
  slot->stop = end < crew->stop ? end : crew->stop;
  ((struct load *) slot->own)->pair = job->pair;
  return RP_OK;
}

/* ---- data ---- */

static void
found_at (_Atomic uint64_t *smallest, uint64_t at)
{
  uint64_t known = atomic_load (smallest);

  while (at < known && !atomic_compare_exchange_weak (smallest, &known, at))
    ;
}

/* The first byte in which they differ, length where there is none; b NULL is
 * zeros. */
static size_t
first_difference (const uint8_t *a, const uint8_t *b, size_t length)
{
  size_t at = 0;

  for (; at < length; at += PAGE_BYTES) {
    const size_t left = length - at;
    const size_t part = left < PAGE_BYTES ? left : PAGE_BYTES;

    if (b ? memcmp (a + at, b + at, part) != 0 : !rp_is_zero (a + at, part))
      break;
  }
  while (at < length && a[at] == (b ? b[at] : 0))
    at++;
  return at < length ? at : length;
}

/* Compare [at, end), which may differ. */
static int
compare_data (struct job *job, struct load *load, uint64_t at, uint64_t end,
              struct rp_fault *fault)
{
  const bool data_a = load->pair.a.kind == RP_RUN_DATA;
  const bool data_b = load->pair.b.kind == RP_RUN_DATA;
  const size_t length = end - at;
  size_t equal;
  int status = RP_OK;

  if (data_a)
    status = rp_disk_pread (job->a, load->a, length, at, fault);
  if (status == RP_OK && data_b)
    status = rp_disk_pread (job->b, load->b, length, at, fault);
  if (status != RP_OK)
    return status;
  equal = first_difference (data_a ? load->a : load->b,
                            data_a && data_b ? load->b : NULL, length);
  if (equal < length)
    found_at (&job->found, at + equal);
  return RP_OK;
}

static int
compare_piece (struct rp_crew *crew, struct rp_crew_slot *slot,
               struct rp_fault *fault)
{
  struct job *job = crew->job;
  struct load *load = slot->own;
  uint64_t end;
  bool differ;
  int status = RP_OK;

  for (uint64_t at = slot->start;
       status == RP_OK && at < slot->stop && at < atomic_load (&job->found);
       at = end) {
    status = look_at_both (job, &load->pair, at, slot->stop, &end, &differ,
                           fault);
    if (status == RP_OK && differ)
      status = compare_data (job, load, at, end, fault);
  }
  if (status != RP_OK)
    found_at (&job->failed, slot->start);
  return status;
}

/* ---- all of it ---- */

static void
load_destroy (struct rp_crew *crew, void *own)
{
  struct load *load = own;

  (void) crew;
  if (!load)
    return;
  free (load->b);
  free (load->a);
  free (load);
}

static int
load_create (struct rp_crew *crew, void **own_out, struct rp_fault *fault)
{
  struct load *load = calloc (1, sizeof *load);

  (void) crew;
  *own_out = load;
  if (load) {
    load->a = aligned_alloc (PAGE_BYTES, RP_COPY_CHUNK_BYTES);
    load->b = aligned_alloc (PAGE_BYTES, RP_COPY_CHUNK_BYTES);
  }
  if (!load || !load->a || !load->b)
    return rp_fail (fault, RP_NO_MEMORY, 0, "comparing");
  return RP_OK;
}

static const struct rp_crew_functions compare_functions = {
  .next = next_piece,
  .work = compare_piece,
  .slot_create = load_create,
  .slot_destroy = load_destroy,
};

int
rp_compare (struct rp_disk *a, struct rp_disk *b, uint64_t length,
            const struct rp_copy_options *options, uint64_t *offset_out,
            struct rp_fault *fault)
{
  struct job job = { .a = a, .b = b };
  struct rp_crew crew = {
    .functions = &compare_functions, .job = &job, .options = options,
    .stop = length, .piece_bytes = RP_COPY_CHUNK_BYTES,
    .slot_bytes = 2 * RP_COPY_CHUNK_BYTES, .serial = a->serial || b->serial,
  };
  int status;

  *offset_out = 0;
  if (length > a->size_bytes || length > b->size_bytes)
    return rp_fail (fault, RP_BAD_ARGUMENT, length, "comparing %" PRIu64
                    " bytes of disks of %" PRIu64 " and %" PRIu64, length,
                    a->size_bytes, b->size_bytes);
  atomic_init (&job.found, length);
  atomic_init (&job.failed, length);
  status = rp_crew_run (&crew, fault);
  *offset_out = atomic_load (&job.found);
  /* what could not be read lies behind a difference: that is the answer */
  if (status != RP_CANCELLED && *offset_out < atomic_load (&job.failed))
    status = RP_OK;
  return status;
}

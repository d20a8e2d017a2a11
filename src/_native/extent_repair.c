/* SPDX-License-Identifier: Apache-2.0 */
/* Planning a repair, and whether the plan is any good; see extent.h. */
#include "extent_inside.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

#define FINDINGS_MAX (UINT64_C (1) << 16)

/* ---- findings ---- */

static void
keep_finding (void *context, const struct rp_finding *finding)
{
  struct rp_findings *findings = context;

  if (findings->count == findings->room) {
    const uint64_t room = findings->room ? findings->room * 2 : 64;
    struct rp_finding *grown = room > FINDINGS_MAX ? NULL
      : realloc (findings->list, room * sizeof *grown);

    if (!grown) {
      findings->status = room > FINDINGS_MAX ? RP_FULL : RP_NO_MEMORY;
      return;
    }
    findings->list = grown;
    findings->room = room;
  }
  findings->list[findings->count] = *finding;
  findings->list[findings->count++].detail = NULL;
}

static int
check_file (const struct rp_repair *repair, struct rp_file *file,
            struct rp_findings *out, struct rp_fault *fault)
{
  struct rp_extent_place place = repair->place;
  int status;

  free (out->list);
  memset (out, 0, sizeof *out);
  place.file = file;
  status = rp_extent_check (&place, false, keep_finding, out, fault);
  if (status == RP_OK && out->status != RP_OK)
    status = rp_fail (fault, out->status, 0, "%s: too much is wrong with it",
                      file->name);
  return status;
}

static int
check_view (struct rp_repair *repair, struct rp_fault *fault)
{
  return check_file (repair, &repair->view.file, &repair->after, fault);
}

static bool
is_kind (const struct rp_finding *finding, const char *kind)
{
  return strcmp (finding->kind, kind) == 0;
}

/* ---- comparing findings ---- */

static bool
on_disk (const struct rp_finding *finding)
{
  return finding->guest_offset_bytes != UINT64_MAX;
}

static uint64_t
start_of (const struct rp_finding *finding)
{
  return on_disk (finding) ? finding->guest_offset_bytes : finding->position;
}

static int
compare_findings (const void *a, const void *b)
{
  const struct rp_finding *left = a, *right = b;
  const int kinds = strcmp (left->kind, right->kind);

  if (kinds)
    return kinds;
  if (on_disk (left) != on_disk (right))
    return on_disk (left) - on_disk (right);
  return (start_of (left) > start_of (right))
         - (start_of (left) < start_of (right));
}

/* How much is wrong: grains, tables, header fields; leaks apart. */
static uint64_t
weigh (const struct rp_findings *findings, uint64_t grain_bytes,
       uint64_t *leaks_out)
{
  uint64_t weight = 0;

  *leaks_out = 0;
  for (uint64_t i = 0; i < findings->count; i++) {
    const struct rp_finding *finding = &findings->list[i];

    if (is_kind (finding, "leak"))
      *leaks_out += finding->length_bytes;
    else if (is_kind (finding, "outside") || is_kind (finding, "overlap"))
      weight += 1 + finding->length_bytes / grain_bytes;
    else
      weight++;
  }
  return weight;
}

/* Every finding (but leaks, which are only space) lies in one of the same kind
 * that was there before; both lists are sorted. */
static bool
nothing_new (const struct rp_findings *before, const struct rp_findings *after)
{
  for (uint64_t i = 0; i < after->count; i++) {
    const struct rp_finding *now = &after->list[i];
    uint64_t first = 0, stop = before->count;
    const struct rp_finding *old;

    if (is_kind (now, "leak"))
      continue;
    while (first < stop) {       /* the first that sorts behind it */
      const uint64_t middle = first + (stop - first) / 2;

      if (compare_findings (&before->list[middle], now) <= 0)
        first = middle + 1;
      else
        stop = middle;
    }
    if (first == 0)
      return false;
    old = &before->list[first - 1];
    if (strcmp (old->kind, now->kind) != 0 || on_disk (old) != on_disk (now)
        || (start_of (old) != start_of (now)
            && !rp_inside (start_of (now) - start_of (old), now->length_bytes,
                           old->length_bytes)))
      return false;
  }
  return true;
}

static void
sort_findings (struct rp_findings *findings)
{
  if (findings->count > 1)
    qsort (findings->list, findings->count, sizeof *findings->list,
           compare_findings);
}

/* Strictly less is wrong, and nothing that was not wrong before. */
static bool
is_better (struct rp_repair *repair, uint64_t grain_bytes)
{
  uint64_t leaks_before, leaks_after;
  const uint64_t before = weigh (&repair->before, grain_bytes, &leaks_before);
  const uint64_t after = weigh (&repair->after, grain_bytes, &leaks_after);

  sort_findings (&repair->before);
  sort_findings (&repair->after);
  return nothing_new (&repair->before, &repair->after)
         && (after < before || (after == before && leaks_after < leaks_before));
}

/* ---- the last steps ---- */

static bool
only_kinds (const struct rp_findings *findings, const char *one,
            const char *other)
{
  for (uint64_t i = 0; i < findings->count; i++)
    if (!is_kind (&findings->list[i], one)
        && !is_kind (&findings->list[i], other))
      return false;
  return true;
}

int
rp_repair_write_field (struct rp_repair *repair, enum rp_repair_phase phase,
                       uint64_t offset, uint32_t value, size_t bytes,
                       struct rp_fault *fault)
{
  uint8_t field[4];

  rp_store32 (field, value);
  repair->view.phase = phase;
  return rp_file_pwrite (&repair->view.file, field, bytes, offset, fault);
}

/* Review the view: COWD's freeSector lies behind all that is used. */
static int
raise_free_sector (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_review review;
  int status = rp_review_open (&review, repair, fault);

  if (status == RP_OK)
    status = rp_review_claim_all (&review, fault);
  if (status == RP_OK
      && review.survey.layout.info.free_sector < review.survey.used_end
      && review.survey.used_end <= UINT32_MAX) {
    repair->counts.free_sector = 1;
    status = rp_repair_write_field (repair, RP_PHASE_FREE, RP_COWD_FREE_OFFSET,
                                    (uint32_t) review.survey.used_end, 4,
                                    fault);
  }
  rp_review_close (&review);
  return status;
}

static int
give_back (void *context, uint64_t first, uint64_t stop, bool at_end,
           struct rp_fault *fault)
{
  struct rp_repair *repair = context;
  const uint64_t from = first * RP_SECTOR_BYTES;
  const uint64_t length = (stop - first) * RP_SECTOR_BYTES;

  repair->counts.freed_bytes += length;
  return at_end ? rp_file_truncate (&repair->view.file, from, fault)
                : rp_file_punch (&repair->view.file, from, length, fault);
}

static int
free_leaks (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_review review;
  int status = rp_review_open (&review, repair, fault);

  if (status == RP_OK)
    status = rp_review_claim_all (&review, fault);
  if (status == RP_OK)
    status = rp_survey_leaks (&review.survey, give_back, repair, fault);
  rp_review_close (&review);
  return status == RP_OK ? check_view (repair, fault) : status;
}

/* ---- the plan ---- */

/* Where new grains and tables may go; RP_STATE where there is no saying. */
static int
find_space (struct rp_repair *repair, uint64_t *grain_bytes,
            struct rp_fault *fault)
{
  struct rp_review review;
  int status = rp_review_open (&review, repair, fault);

  if (status == RP_OK)
    status = rp_review_claim_all (&review, fault);
  if (status == RP_OK) {
    const struct rp_sparse_layout *layout = &review.survey.layout;
    const uint64_t grain = layout->info.grain_sectors;

    *grain_bytes = grain * RP_SECTOR_BYTES;
    if (layout->kind == RP_EXTENT_COWD) {
      const uint64_t end = rp_divide_up (layout->file_bytes,
                                         RP_SECTOR_BYTES);

      repair->next = layout->info.free_sector < end
                     ? layout->info.free_sector : end;
      if (repair->next < review.survey.used_end)
        repair->next = review.survey.used_end;
    } else
      repair->next = rp_divide_up (layout->file_bytes, *grain_bytes) * grain;
  }
  rp_review_close (&review);
  return status;
}

static int
mend_view (struct rp_repair *repair, struct rp_fault *fault)
{
  int status = rp_repair_tables (repair, fault);

  if (status == RP_OK)
    status = rp_repair_entries (repair, fault);
  if (status == RP_OK)
    status = rp_repair_overlaps (repair, fault);
  if (status == RP_OK)           /* of those that kept their grain */
    status = rp_repair_entries (repair, fault);
  if (status == RP_OK && repair->place.kind == RP_EXTENT_COWD)
    status = raise_free_sector (repair, fault);
  if (status == RP_OK)
    status = check_view (repair, fault);
  /* while anything else is wrong, what nothing points to may be the last copy
     of something */
  if (status == RP_OK && only_kinds (&repair->after, "leak", "unclean"))
    status = free_leaks (repair, fault);
  if (status == RP_OK && repair->after.count > 0
      && only_kinds (&repair->after, "unclean", "unclean")) {
    const bool cowd = repair->place.kind == RP_EXTENT_COWD;

    repair->counts.flag = 1;
    status = rp_repair_write_field (repair, RP_PHASE_FLAG,
                                    cowd ? RP_COWD_UNCLEAN_OFFSET
                                         : RP_KDMV_UNCLEAN_OFFSET, 0,
                                    cowd ? 4 : 1, fault);
    if (status == RP_OK)
      status = check_view (repair, fault);
  }
  return status;
}

/* Nothing is to be done: after is before. */
static int
drop_plan (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_findings *after = &repair->after;
  const struct rp_findings *before = &repair->before;

  rp_view_close (&repair->view);
  memset (&repair->view, 0, sizeof repair->view);
  memset (&repair->counts, 0, sizeof repair->counts);
  free (after->list);
  memset (after, 0, sizeof *after);
  if (before->count == 0)
    return RP_OK;
  after->list = malloc (before->count * sizeof *after->list);
  if (!after->list)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                    repair->place.file->name);
  memcpy (after->list, before->list, before->count * sizeof *after->list);
  after->count = after->room = before->count;
  return RP_OK;
}

static bool
can_be_planned (const struct rp_repair *repair)
{
  if (repair->place.kind != RP_EXTENT_SPARSE
      && repair->place.kind != RP_EXTENT_COWD)
    return false;
  for (uint64_t i = 0; i < repair->before.count; i++)
    if (is_kind (&repair->before.list[i], "header")
        || is_kind (&repair->before.list[i], "unsupported"))
      return false;
  return repair->before.count > 0;
}

static int
make_plan (struct rp_repair *repair, struct rp_fault *fault)
{
  uint64_t grain_bytes = 0;
  int status;

  status = check_file (repair, repair->place.file, &repair->before, fault);
  if (status != RP_OK)
    return status;
  if (!can_be_planned (repair))
    return drop_plan (repair, fault);
  status = rp_view_open (&repair->view, repair->place.file, fault);
  if (status == RP_OK)
    status = find_space (repair, &grain_bytes, fault);
  if (status == RP_OK)
    status = mend_view (repair, fault);
  if (status == RP_STATE)        /* directories that overlap: see review */
    return drop_plan (repair, fault);
  if (status == RP_OK && !is_better (repair, grain_bytes))
    return drop_plan (repair, fault);
  return status;
}

int
rp_repair_create (const struct rp_extent_place *place, bool trust_primary,
                  struct rp_repair **out, struct rp_fault *fault)
{
  struct rp_repair *repair = calloc (1, sizeof *repair);
  int status;

  *out = NULL;
  if (!repair)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                    place->file->name);
  repair->place = *place;
  repair->trust_primary = trust_primary;
  status = make_plan (repair, fault);
  if (status != RP_OK) {
    rp_repair_destroy (repair);
    return status;
  }
  *out = repair;
  return RP_OK;
}

void
rp_repair_destroy (struct rp_repair *repair)
{
  if (!repair)
    return;
  rp_view_close (&repair->view);
  free (repair->before.list);
  free (repair->after.list);
  free (repair);
}

uint64_t
rp_repair_finding_count (const struct rp_repair *repair, bool after)
{
  return after ? repair->after.count : repair->before.count;
}

const struct rp_finding *
rp_repair_finding (const struct rp_repair *repair, bool after, uint64_t index)
{
  return after ? &repair->after.list[index] : &repair->before.list[index];
}

void
rp_repair_counts (const struct rp_repair *repair,
                  struct rp_repair_counts *out)
{
  *out = repair->counts;
}

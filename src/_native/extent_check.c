/* SPDX-License-Identifier: Apache-2.0 */
/* Checking the tables of sparse extents against each other and the file. */
#include "extent.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "chain.h"
#include "image_report.h"

struct check {
  struct rp_survey   survey;
  struct rp_reporter reporter;
};

static void
report (struct check *check, const char *kind, uint64_t position,
        uint64_t guest_offset, uint64_t length)
{
  rp_report (&check->reporter, kind, position, guest_offset, length, NULL);
}

static const char outside[] = "outside", overlapping[] = "overlap",
                  wrong_table[] = "table", redundant_differs[] = "redundant";

/* Of the disk, that a table covers; cut at its end. */
static void
report_table (struct check *check, const char *kind, uint64_t position,
              uint32_t index)
{
  const struct rp_survey *survey = &check->survey;
  const uint64_t span = UINT64_C (1) << (survey->layout.table_shift
                                         + survey->layout.grain_shift);
  const uint64_t at = rp_survey_table_guest (survey, index);
  const uint64_t left = survey->start_bytes + survey->size_bytes > at
                        ? survey->start_bytes + survey->size_bytes - at : 0;

  report (check, kind, position, at, span < left ? span : left);
}

static void
check_table_place (struct check *check, uint32_t index, uint64_t sector)
{
  struct rp_survey *survey = &check->survey;

  if (!rp_survey_table_inside (survey, sector))
    report_table (check, wrong_table, sector * RP_SECTOR_BYTES, index);
  else if (!rp_survey_claim (survey, sector, survey->layout.table_sectors,
                             true))
    report_table (check, overlapping, sector * RP_SECTOR_BYTES, index);
}

static int
compare_tables (struct check *check, uint32_t index, struct rp_fault *fault)
{
  struct rp_survey *survey = &check->survey;
  const uint32_t primary = survey->primary[index];
  const uint32_t redundant = survey->redundant[index];
  bool empty, other_empty;
  int status;

  if (!rp_survey_table_inside (survey, primary)
      || !rp_survey_table_inside (survey, redundant))
    return RP_OK;
  status = rp_survey_read_table (survey, primary, survey->table, &empty,
                                 fault);
  if (status == RP_OK)
    status = rp_survey_read_table (survey, redundant, survey->other,
                                   &other_empty, fault);
  if (status == RP_OK && !(empty && other_empty)
      && memcmp (survey->table, survey->other,
                 sizeof (uint32_t) << survey->layout.table_shift) != 0)
    report_table (check, redundant_differs,
                  (uint64_t) redundant * RP_SECTOR_BYTES, index);
  return status;
}

static int
check_redundant (struct check *check, struct rp_fault *fault)
{
  struct rp_survey *survey = &check->survey;
  const uint64_t at = survey->layout.info.redundant_directory_sector
                      * RP_SECTOR_BYTES;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < survey->layout.directory_count;
       i++) {
    const uint32_t primary = survey->primary[i];
    const uint32_t redundant = survey->redundant[i];

    if (!redundant != !primary)
      report_table (check, redundant_differs, at + 4 * (uint64_t) i, i);
    else if (redundant)
      status = compare_tables (check, i, fault);
  }
  return status;
}

static void
check_entry (void *context, uint64_t grain, uint32_t entry)
{
  struct check *check = context;
  struct rp_survey *survey = &check->survey;
  const uint32_t shift = survey->layout.grain_shift;
  const uint64_t start = grain << shift;
  const uint64_t position = (uint64_t) entry * RP_SECTOR_BYTES;
  const uint64_t guest = survey->start_bytes + start;
  const uint64_t left = survey->size_bytes > start
                        ? survey->size_bytes - start : 0;
  const uint64_t length = left < UINT64_C (1) << shift
                          ? left : UINT64_C (1) << shift;
  const enum rp_entry means = rp_survey_entry (survey, grain, entry);
  uint64_t sectors;

  if (means == RP_ENTRY_NONE)
    return;
  if (means == RP_ENTRY_WRONG) {
    report (check, outside, position, guest, length);
    return;
  }
  sectors = rp_survey_grain_sectors (survey, entry);
  if (rp_survey_is_claimed (survey, entry, sectors, true))
    report (check, outside, position, guest, length);
  else if (!rp_survey_claim (survey, entry, sectors, false))
    report (check, overlapping, position, guest, length);
}

static int
report_leak (void *context, uint64_t first, uint64_t stop, bool at_end,
             struct rp_fault *fault)
{
  (void) at_end; (void) fault;
  report (context, "leak", first * RP_SECTOR_BYTES, UINT64_MAX,
          (stop - first) * RP_SECTOR_BYTES);
  return RP_OK;
}

static int
check_tables (struct check *check, struct rp_fault *fault)
{
  struct rp_survey *survey = &check->survey;
  const struct rp_sparse_layout *layout = &survey->layout;
  const bool cowd = layout->kind == RP_EXTENT_COWD;
  uint64_t overlap;
  int status = RP_OK;

  if (!rp_survey_claim_fixed (survey, &overlap))
    report (check, overlapping, overlap * RP_SECTOR_BYTES, UINT64_MAX, 0);
  for (uint32_t i = 0; i < layout->directory_count; i++)
    if (survey->primary[i])
      check_table_place (check, i, survey->primary[i]);
  for (uint32_t i = 0; survey->redundant && i < layout->directory_count; i++)
    if (survey->redundant[i])
      check_table_place (check, i, survey->redundant[i]);
  if (survey->redundant)
    status = check_redundant (check, fault);
  if (status == RP_OK)
    status = rp_survey_entries (survey, check_entry, check, fault);
  if (status != RP_OK)
    return status;
  if (layout->info.unclean_shutdown)
    report (check, "unclean",
            cowd ? RP_COWD_UNCLEAN_OFFSET : RP_KDMV_UNCLEAN_OFFSET,
            UINT64_MAX, 0);
  if (cowd && layout->info.free_sector < survey->used_end)
    report (check, "freesector", RP_COWD_FREE_OFFSET, UINT64_MAX, 0);
  return rp_survey_leaks (survey, report_leak, check, fault);
}

/* ---- extents ---- */

/* What the header says is a finding; what the system says is a failure. */
static int
judge_header (const struct rp_extent_place *place, int status,
              rp_finding_each *each, void *context, struct rp_fault *fault)
{
  const struct rp_finding finding = {
    .kind = status == RP_UNSUPPORTED ? "unsupported" : "header",
    .extent = place->index, .position = fault->position,
    .guest_offset_bytes = place->start_bytes,
    .length_bytes = place->sectors * RP_SECTOR_BYTES,
    .detail = fault->message,
  };

  if (status != RP_CORRUPT && status != RP_FORMAT && status != RP_UNSUPPORTED)
    return status;
  each (context, &finding);
  return RP_OK;
}

static int
check_sparse (const struct rp_extent_place *place, rp_finding_each *each,
              void *context, struct rp_fault *fault)
{
  struct check check = {
    .reporter = { .each = each, .context = context, .extent = place->index },
  };
  uint64_t capacity;
  int status;

  status = rp_survey_open (&check.survey, place->file, place->sectors,
                           place->start_bytes, fault);
  capacity = check.survey.layout.info.capacity_sectors;
  if (status == RP_OK && check.survey.layout.kind != place->kind)
    status = rp_fail (fault, RP_FORMAT, 0,
                      "%s is another kind of sparse extent than the "
                      "descriptor says", place->file->name);
  if (status == RP_OK && capacity < place->sectors)
    status = rp_fail (fault, RP_CORRUPT, 0,
                      "%s: the descriptor gives it %" PRIu64
                      " sectors, its header %" PRIu64, place->file->name,
                      place->sectors, capacity);
  if (status != RP_OK)
    status = judge_header (place, status, each, context, fault);
  else
    status = check_tables (&check, fault);
  rp_report_flush (&check.reporter);
  rp_survey_close (&check.survey);
  return status;
}

static int
check_flat (const struct rp_extent_place *place, rp_finding_each *each,
            void *context, struct rp_fault *fault)
{
  const uint64_t start = place->offset_sectors * RP_SECTOR_BYTES;
  const uint64_t length = place->sectors * RP_SECTOR_BYTES;
  uint64_t file_bytes, there;
  int status = rp_file_size (place->file, &file_bytes, fault);

  if (status != RP_OK || rp_inside (start, length, file_bytes))
    return status;
  there = file_bytes > start ? file_bytes - start : 0;
  each (context, &(struct rp_finding) {
    .kind = "short", .extent = place->index, .position = file_bytes,
    .guest_offset_bytes = place->start_bytes + there,
    .length_bytes = length - there,
  });
  return RP_OK;
}

static int
check_stream (const struct rp_extent_place *place, bool deep,
              rp_finding_each *each, void *context, struct rp_fault *fault)
{
  struct rp_stream *stream = NULL;
  int status = rp_stream_open (place->file, place->sectors, &stream, fault);

  if (status == RP_OK)
    status = rp_stream_check (stream, place->index, place->start_bytes, deep,
                              each, context, fault);
  rp_stream_close (stream);
  return status == RP_OK
         ? status : judge_header (place, status, each, context, fault);
}

static int
check_sesparse (const struct rp_extent_place *place, rp_finding_each *each,
                void *context, struct rp_fault *fault)
{
  struct rp_sesparse *sesparse = NULL;
  int status = rp_sesparse_open (place->file, place->sectors, &sesparse,
                                 fault);

  if (status == RP_OK)
    status = rp_sesparse_check (sesparse, place->index, place->start_bytes,
                                each, context, fault);
  rp_sesparse_close (sesparse);
  return status == RP_OK
         ? status : judge_header (place, status, each, context, fault);
}

int
rp_extent_check (const struct rp_extent_place *place, bool deep,
                 rp_finding_each *each, void *context, struct rp_fault *fault)
{
  switch (place->kind) {
  case RP_EXTENT_FLAT:
    return check_flat (place, each, context, fault);
  case RP_EXTENT_SPARSE:
  case RP_EXTENT_COWD:
    return check_sparse (place, each, context, fault);
  case RP_EXTENT_STREAM:
    return check_stream (place, deep, each, context, fault);
  case RP_EXTENT_SESPARSE:
    return check_sesparse (place, each, context, fault);
  case RP_EXTENT_ZERO:
  case RP_EXTENT_NOACCESS:
    break;
  }
  return RP_OK;
}

int
rp_image_check (struct rp_image *image,
                rp_finding_each *each, void *context, struct rp_fault *fault)
{
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < image->extent_count; i++) {
    const struct rp_extent *extent = &image->extents[i];
    const struct rp_extent_place place = {
      .file = extent->file, .kind = extent->kind, .index = i,
      .sectors = extent->size_bytes / RP_SECTOR_BYTES,
      .offset_sectors = extent->file_offset_bytes / RP_SECTOR_BYTES,
      .start_bytes = extent->start_bytes,
    };

    status = rp_extent_check (&place, false, each, context, fault);
  }
  return status;
}

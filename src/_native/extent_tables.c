/* SPDX-License-Identifier: Apache-2.0 */
/* Mending directories, tables and shared grains on a view; see extent.h. */
#include "extent_inside.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

/* ---- space and writing ---- */

/* Free sectors, or 0 where the file has reached its largest size. */
static uint64_t
take_space (struct rp_repair *repair, uint64_t sectors, uint64_t align)
{
  const uint64_t at = rp_divide_up (repair->next, align) * align;

  if (!rp_inside (at, sectors, RP_SPARSE_SECTORS_MAX))
    return 0;
  repair->next = at + sectors;
  return at;
}

static int
write_entry (struct rp_repair *repair, enum rp_repair_phase phase,
             uint64_t table_sector, uint64_t entry, uint32_t value,
             struct rp_fault *fault)
{
  return rp_repair_write_field (repair, phase, table_sector * RP_SECTOR_BYTES
                                               + 4 * entry, value, 4, fault);
}

static int
set_directory (struct rp_repair *repair, const struct rp_review *review,
               uint32_t index, bool redundant, uint32_t sector,
               struct rp_fault *fault)
{
  const struct rp_sparse_info *info = &review->survey.layout.info;

  repair->counts.tables++;
  return write_entry (repair, redundant ? RP_PHASE_REDUNDANT
                                        : RP_PHASE_DIRECTORY,
                      redundant ? info->redundant_directory_sector
                                : info->directory_sector,
                      index, sector, fault);
}

/* ---- directories ---- */

/* A new table that holds what the one at `from` holds. */
static int
copy_table (struct rp_repair *repair, struct rp_review *review,
            uint32_t index, uint64_t from, bool redundant,
            struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const size_t bytes = (size_t) survey->layout.table_sectors
                       * RP_SECTOR_BYTES;
  uint64_t to;
  bool empty;
  int status;

  status = rp_survey_read_table (survey, from, survey->table, &empty, fault);
  if (status != RP_OK
      || !rp_review_is_plausible (review, index, survey->table))
    return status;
  to = take_space (repair, survey->layout.table_sectors, 1);
  if (to == 0)
    return RP_OK;
  for (size_t i = 0; i < bytes / 4; i++)
    rp_store32 (&survey->table[i], survey->table[i]);
  repair->view.phase = RP_PHASE_NEW;
  status = rp_file_pwrite (&repair->view.file, survey->table, bytes,
                           to * RP_SECTOR_BYTES, fault);
  return status == RP_OK ? set_directory (repair, review, index, redundant,
                                          (uint32_t) to, fault) : status;
}

static int
mend_directory_entry (struct rp_repair *repair, struct rp_review *review,
                      uint32_t index, struct rp_fault *fault)
{
  const struct rp_survey *survey = &review->survey;
  const enum rp_table_state primary = rp_review_state (review, index, false);
  const enum rp_table_state redundant = rp_review_state (review, index, true);

  if (!survey->redundant)
    return primary == RP_TABLE_SHARED
           ? copy_table (repair, review, index, survey->primary[index], false,
                         fault)
           : RP_OK;
  if (primary == RP_TABLE_GOOD
      && (redundant == RP_TABLE_BAD || redundant == RP_TABLE_NONE))
    return copy_table (repair, review, index, survey->primary[index], true,
                       fault);
  if (redundant != RP_TABLE_GOOD
      || (primary != RP_TABLE_BAD && primary != RP_TABLE_NONE))
    return RP_OK;
  return copy_table (repair, review, index, survey->redundant[index], false,
                     fault);
}

int
rp_repair_tables (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_review review;
  int status = rp_review_open (&review, repair, fault);

  for (uint32_t i = 0; status == RP_OK
                       && i < review.survey.layout.directory_count; i++)
    status = mend_directory_entry (repair, &review, i, fault);
  rp_review_close (&review);
  return status;
}

/* ---- entries ---- */

/* Two passes over the entries that differ: which grains more than one
 * redundant entry is wanted for, and then the mending. */
struct pass {
  struct rp_repair *repair;
  struct rp_review *review;
  uint8_t          *wanted;      /* one bit a unit */
  bool              writing;
};

static void
units_of (const struct rp_survey *survey, uint32_t entry, uint64_t *first,
          uint64_t *stop)
{
  *first = entry / survey->unit;
  *stop = rp_divide_up (entry + rp_survey_grain_sectors (survey, entry),
                        survey->unit);
}

/* A primary entry: it may be read, and nobody else has its grain. */
static bool
is_alone (const struct rp_review *review, uint64_t grain, uint32_t entry)
{
  const struct rp_survey *survey = &review->survey;
  const enum rp_entry means = rp_survey_entry (survey, grain, entry);
  uint64_t first, stop;

  if (means != RP_ENTRY_GRAIN)
    return means == RP_ENTRY_NONE;
  units_of (survey, entry, &first, &stop);
  return !rp_survey_is_claimed (survey, entry, stop * survey->unit - entry,
                                true)
         && !rp_bits_any (review->twice, first, stop);
}

/* A grain that no primary entry has. */
static bool
is_free_grain (const struct rp_review *review, uint64_t grain, uint32_t entry)
{
  const struct rp_survey *survey = &review->survey;

  return rp_survey_entry (survey, grain, entry) == RP_ENTRY_GRAIN
         && !rp_survey_is_claimed (survey, entry,
                                   rp_survey_grain_sectors (survey, entry),
                                   false);
}

/* The redundant entry names data, and the primary one that there is none: who
 * is right cannot be known, unless the writer was cut short between them. */
static int
is_hidden (struct pass *pass, uint64_t grain, uint32_t primary,
           uint32_t redundant, bool *out, struct rp_fault *fault)
{
  struct rp_survey *survey = &pass->review->survey;

  *out = false;
  if (primary != 0 || pass->repair->trust_primary
      || survey->layout.info.unclean_shutdown
      || !is_free_grain (pass->review, grain, redundant))
    return RP_OK;
  return rp_survey_holds_data (survey, redundant,
                               rp_survey_grain_sectors (survey, redundant),
                               out, fault);
}

static int
take_redundant (struct pass *pass, uint32_t index, uint64_t k,
                uint32_t redundant, struct rp_fault *fault)
{
  struct rp_survey *survey = &pass->review->survey;
  const uint64_t grain = ((uint64_t) index << survey->layout.table_shift) + k;
  uint64_t first, stop;

  if (rp_survey_entry (survey, grain, redundant) == RP_ENTRY_GRAIN) {
    units_of (survey, redundant, &first, &stop);
    if (!is_free_grain (pass->review, grain, redundant))
      return RP_OK;
    if (!pass->writing) {
      if (!rp_bits_set (pass->wanted, first, stop))
        rp_bits_set (pass->review->twice, first, stop);
      return RP_OK;
    }
    if (rp_bits_any (pass->review->twice, first, stop))
      return RP_OK;
  } else if (rp_survey_entry (survey, grain, redundant) == RP_ENTRY_WRONG)
    return RP_OK;
  if (!pass->writing || !rp_review_may_write (pass->review, index, false))
    return RP_OK;
  pass->repair->counts.entries++;
  return write_entry (pass->repair, RP_PHASE_PRIMARY, survey->primary[index],
                      k, redundant, fault);
}

static int
mend_entry (struct pass *pass, uint32_t index, uint64_t k, uint32_t primary,
            uint32_t redundant, struct rp_fault *fault)
{
  struct rp_survey *survey = &pass->review->survey;
  const uint64_t grain = ((uint64_t) index << survey->layout.table_shift) + k;
  const enum rp_entry means = rp_survey_entry (survey, grain, primary);
  const bool alone = is_alone (pass->review, grain, primary);
  bool hidden;
  int status;

  /* a grain that is shared: only another grain is better than a copy of it */
  if (!alone && (means == RP_ENTRY_WRONG
                 || rp_survey_is_claimed (survey, primary, 1, true)
                 || is_free_grain (pass->review, grain, redundant)))
    return take_redundant (pass, index, k, redundant, fault);
  if (!pass->writing || !alone
      || !rp_review_may_write (pass->review, index, true))
    return RP_OK;
  status = is_hidden (pass, grain, primary, redundant, &hidden, fault);
  if (status != RP_OK || hidden)
    return status;
  pass->repair->counts.redundant_entries++;
  return write_entry (pass->repair, RP_PHASE_REDUNDANT,
                      survey->redundant[index], k, primary, fault);
}

static int
mend_entries (struct pass *pass, struct rp_fault *fault)
{
  struct rp_survey *survey = &pass->review->survey;
  const uint64_t count = UINT64_C (1) << survey->layout.table_shift;
  int status = RP_OK;

  for (uint32_t i = 0; status == RP_OK && i < survey->layout.directory_count;
       i++) {
    bool empty, other_empty;

    if (rp_review_state (pass->review, i, false) != RP_TABLE_GOOD
        || rp_review_state (pass->review, i, true) != RP_TABLE_GOOD)
      continue;
    status = rp_survey_read_table (survey, survey->primary[i], survey->table,
                                   &empty, fault);
    if (status == RP_OK)
      status = rp_survey_read_table (survey, survey->redundant[i],
                                     survey->other, &other_empty, fault);
    if (status != RP_OK || (empty && other_empty))
      continue;
    for (uint64_t k = 0; status == RP_OK && k < count; k++)
      if (survey->table[k] != survey->other[k])
        status = mend_entry (pass, i, k, survey->table[k], survey->other[k],
                             fault);
  }
  return status;
}

int
rp_repair_entries (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_review review;
  struct pass pass = { .repair = repair, .review = &review };
  int status = rp_review_open (&review, repair, fault);

  if (status == RP_OK && review.survey.redundant) {
    pass.wanted = calloc (1, review.survey.sectors / review.survey.unit / 8
                             + 2);
    if (!pass.wanted)
      status = rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                        repair->view.file.name);
    if (status == RP_OK)
      status = rp_review_claim_all (&review, fault);
    if (status == RP_OK)
      status = mend_entries (&pass, fault);
    pass.writing = true;
    if (status == RP_OK)
      status = mend_entries (&pass, fault);
  }
  free (pass.wanted);
  rp_review_close (&review);
  return status;
}

/* ---- shared grains ---- */

/* A copy of the grain for one more entry that points at it. */
static int
copy_grain (struct rp_repair *repair, struct rp_review *review,
            uint32_t index, uint64_t k, uint32_t entry,
            struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const struct rp_sparse_layout *layout = &survey->layout;
  const uint64_t from = (uint64_t) entry * RP_SECTOR_BYTES;
  const uint64_t left = layout->file_bytes - from;
  uint64_t bytes = UINT64_C (1) << layout->grain_shift;
  uint64_t to;
  int status;

  if (!rp_review_may_write (review, index, false))
    return RP_OK;
  to = take_space (repair, layout->info.grain_sectors,
                   layout->kind == RP_EXTENT_COWD
                   ? 1 : layout->info.grain_sectors);
  if (to == 0)
    return RP_OK;
  if (bytes > left)
    bytes = left;
  status = rp_view_copy (&repair->view, entry, to, bytes, fault);
  /* a whole grain of space, also where the file ends in a short one */
  if (status == RP_OK
      && repair->view.size_bytes < repair->next * RP_SECTOR_BYTES)
    status = rp_file_truncate (&repair->view.file,
                               repair->next * RP_SECTOR_BYTES, fault);
  if (status == RP_OK)
    status = write_entry (repair, RP_PHASE_PRIMARY, survey->primary[index], k,
                          (uint32_t) to, fault);
  if (status == RP_OK && survey->redundant
      && rp_review_may_write (review, index, true))
    status = write_entry (repair, RP_PHASE_REDUNDANT,
                          survey->redundant[index], k, (uint32_t) to, fault);
  repair->counts.grains++;
  return status;
}

static int
separate (struct rp_repair *repair, struct rp_review *review, uint32_t index,
          struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const uint32_t shift = survey->layout.table_shift;
  bool empty = true;
  int status;

  status = rp_survey_read_table (survey, survey->primary[index],
                                 survey->table, &empty, fault);
  for (uint64_t k = 0; status == RP_OK && !empty && k < UINT64_C (1) << shift;
       k++) {
    const uint32_t entry = survey->table[k];
    const uint64_t grain = ((uint64_t) index << shift) + k;
    uint64_t first, stop;

    if (rp_survey_entry (survey, grain, entry) != RP_ENTRY_GRAIN)
      continue;
    units_of (survey, entry, &first, &stop);
    /* review.twice is used anew: what an earlier entry has */
    if (!rp_survey_is_claimed (survey, entry, stop * survey->unit - entry,
                               true)
        && !rp_bits_set (review->twice, first, stop))
      status = copy_grain (repair, review, index, k, entry, fault);
  }
  return status;
}

int
rp_repair_overlaps (struct rp_repair *repair, struct rp_fault *fault)
{
  struct rp_review review;
  int status = rp_review_open (&review, repair, fault);

  if (status == RP_OK)
    status = rp_review_claim_all (&review, fault);
  if (status == RP_OK)
    memset (review.twice, 0, review.survey.sectors / review.survey.unit / 8
                             + 2);
  for (uint32_t i = 0; status == RP_OK
                       && i < review.survey.layout.directory_count; i++)
    if (rp_survey_table_inside (&review.survey, review.survey.primary[i])
        && review.survey.primary[i])
      status = separate (repair, &review, i, fault);
  rp_review_close (&review);
  return status;
}

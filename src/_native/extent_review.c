/* SPDX-License-Identifier: Apache-2.0 */
/* Which tables of a damaged sparse extent are to be believed; see extent.h. */
#include "extent_inside.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"

struct claim {
  uint32_t sector, index;
  bool     redundant;
};

static uint8_t *
state_of (const struct rp_review *review, uint32_t index, bool redundant)
{
  return &review->state[2 * (size_t) index + redundant];
}

enum rp_table_state
rp_review_state (const struct rp_review *review, uint32_t index,
                 bool redundant)
{
  return *state_of (review, index, redundant);
}

static uint32_t
sector_of (const struct rp_review *review, uint32_t index, bool redundant)
{
  const struct rp_survey *survey = &review->survey;

  return !redundant ? survey->primary[index]
         : survey->redundant ? survey->redundant[index] : 0;
}

bool
rp_review_is_plausible (const struct rp_review *review, uint32_t index,
                        const uint32_t *entries)
{
  const uint32_t shift = review->survey.layout.table_shift;

  for (uint64_t k = 0; k < UINT64_C (1) << shift; k++)
    if (rp_survey_entry (&review->survey, ((uint64_t) index << shift) + k,
                         entries[k]) == RP_ENTRY_WRONG)
      return false;
  return true;
}

/* ---- tables that claim one place ---- */

static int
compare_claims (const void *a, const void *b)
{
  const struct claim *left = a, *right = b;

  if (left->sector != right->sector)
    return left->sector < right->sector ? -1 : 1;
  if (left->redundant != right->redundant)
    return left->redundant - right->redundant;
  return (left->index > right->index) - (left->index < right->index);
}

/* Whether a table says the same as its other copy, which lies elsewhere. */
static int
agrees (struct rp_review *review, const struct claim *claim, bool *out,
        struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const uint32_t sectors = survey->layout.table_sectors;
  const uint32_t other = sector_of (review, claim->index, !claim->redundant);
  bool empty;
  int status;

  *out = false;
  if (*state_of (review, claim->index, !claim->redundant) != RP_TABLE_GOOD
      || (other < claim->sector + (uint64_t) sectors
          && claim->sector < other + (uint64_t) sectors))
    return RP_OK;
  status = rp_survey_read_table (survey, claim->sector, survey->table, &empty,
                                 fault);
  if (status == RP_OK)
    status = rp_survey_read_table (survey, other, survey->other, &empty,
                                   fault);
  *out = status == RP_OK
         && memcmp (survey->table, survey->other,
                    (size_t) sectors * RP_SECTOR_BYTES) == 0;
  return status;
}

/* Tables that overlap: the first whose other copy says the same has the
 * place.  Without other copies the one of the lowest guest offset keeps it. */
static int
judge_group (struct rp_review *review, const struct claim *claims,
             size_t count, struct rp_fault *fault)
{
  const bool copies = review->survey.redundant != NULL;
  const bool twins = count == 2 && claims[0].index == claims[1].index;
  size_t owner = count;
  bool fits = false;

  for (size_t i = 0; copies && i < count && owner == count; i++) {
    const int status = agrees (review, &claims[i], &fits, fault);

    if (status != RP_OK)
      return status;
    if (fits)
      owner = i;
  }
  if (twins)
    owner = 0;                   /* the primary one: it sorts first */
  for (size_t i = 0; !copies && i < count; i++)
    if (owner == count || claims[i].index < claims[owner].index)
      owner = i;
  for (size_t i = 0; i < count; i++)
    *state_of (review, claims[i].index, claims[i].redundant)
      = (uint8_t) (owner == count ? RP_TABLE_DOUBT
                   : i == owner ? RP_TABLE_GOOD
                   : copies ? RP_TABLE_BAD : RP_TABLE_SHARED);
  return RP_OK;
}

static int
judge_places (struct rp_review *review, struct claim *claims, size_t count,
              struct rp_fault *fault)
{
  const uint32_t sectors = review->survey.layout.table_sectors;
  int status = RP_OK;
  bool sorted = true;
  size_t stop;

  for (size_t i = 1; sorted && i < count; i++)
    sorted = compare_claims (&claims[i - 1], &claims[i]) <= 0;
  if (!sorted)
    qsort (claims, count, sizeof *claims, compare_claims);
  for (size_t first = 0; status == RP_OK && first < count; first = stop) {
    stop = first + 1;
    while (stop < count && claims[stop].sector - claims[stop - 1].sector
                           < sectors)
      stop++;
    if (stop - first > 1)
      status = judge_group (review, claims + first, stop - first, fault);
  }
  return status;
}

/* ---- tables among the grains ---- */

/* Data in a table's place is wrong in most of what is not zeros.  A table with
 * some wrong entries stays one: its other entries are what readers see. */
static bool
looks_like_data (const struct rp_review *review, uint32_t index,
                 const uint32_t *entries)
{
  const uint32_t shift = review->survey.layout.table_shift;
  uint64_t wrong = 0, grains = 0;

  for (uint64_t k = 0; k < UINT64_C (1) << shift; k++)
    switch (rp_survey_entry (&review->survey,
                             ((uint64_t) index << shift) + k, entries[k])) {
    case RP_ENTRY_WRONG:
      wrong++;
      break;
    case RP_ENTRY_GRAIN:
      grains++;
      break;
    default:
      break;
    }
  return wrong > grains;
}

/* A directory entry may point at data, which looks like no table.  Where the
 * other copy does look like one, that is the table. */
static int
judge_content (struct rp_review *review, uint32_t index,
               struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const uint32_t primary = survey->primary[index];
  const uint32_t redundant = survey->redundant[index];
  bool empty;
  int status;

  if (*state_of (review, index, false) != RP_TABLE_GOOD
      || *state_of (review, index, true) != RP_TABLE_GOOD
      || (primary < survey->overhead && redundant < survey->overhead))
    return RP_OK;
  status = rp_survey_read_table (survey, primary, survey->table, &empty,
                                 fault);
  if (status == RP_OK)
    status = rp_survey_read_table (survey, redundant, survey->other, &empty,
                                   fault);
  if (status != RP_OK)
    return status;
  if (primary >= survey->overhead
      && looks_like_data (review, index, survey->table)
      && rp_review_is_plausible (review, index, survey->other))
    *state_of (review, index, false) = RP_TABLE_BAD;
  if (redundant >= survey->overhead
      && looks_like_data (review, index, survey->other)
      && rp_review_is_plausible (review, index, survey->table))
    *state_of (review, index, true) = RP_TABLE_BAD;
  return RP_OK;
}

static int
judge_tables (struct rp_review *review, struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  const uint32_t count = survey->layout.directory_count;
  struct claim *claims = malloc (2 * (size_t) count * sizeof *claims);
  size_t used = 0;
  int status;

  if (!claims)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                    survey->file->name);
  /* the redundant ones come first in most files: then they are in order */
  for (int redundant = 1; redundant >= 0; redundant--)
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t sector = sector_of (review, i, redundant);
      uint8_t *state = state_of (review, i, redundant);

      if (sector == 0)
        continue;
      *state = RP_TABLE_BAD;
      if (!rp_survey_table_inside (survey, sector)
          || rp_survey_is_claimed (survey, sector,
                                   survey->layout.table_sectors, true))
        continue;
      *state = RP_TABLE_GOOD;
      claims[used++] = (struct claim) {
        .sector = sector, .index = i, .redundant = redundant,
      };
    }
  status = judge_places (review, claims, used, fault);
  free (claims);
  for (uint32_t i = 0; status == RP_OK && survey->redundant && i < count; i++)
    status = judge_content (review, i, fault);
  return status;
}

/* ---- opening ---- */

int
rp_review_open (struct rp_review *review, const struct rp_repair *repair,
                struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;
  uint64_t units, overlap;
  int status;

  memset (review, 0, sizeof *review);
  status = rp_survey_open (survey, (struct rp_file *) &repair->view.file,
                           repair->place.sectors, repair->place.start_bytes,
                           fault);
  if (status != RP_OK)
    return status;
  units = survey->sectors / survey->unit / 8 + 2;
  review->state = calloc (2, survey->layout.directory_count);
  review->twice = calloc (1, units);
  review->pointed = calloc (1, units);
  if (!review->state || !review->twice || !review->pointed)
    return rp_fail (fault, RP_NO_MEMORY, 0, "repairing %s",
                    survey->file->name);
  if (!rp_survey_claim_fixed (survey, &overlap))
    return rp_fail (fault, RP_STATE, 0, "%s: its directories overlap",
                    survey->file->name);
  return judge_tables (review, fault);
}

void
rp_review_close (struct rp_review *review)
{
  free (review->pointed);
  free (review->twice);
  free (review->state);
  rp_survey_close (&review->survey);
}

static void
claim_entry (void *context, uint64_t grain, uint32_t entry)
{
  struct rp_review *review = context;
  struct rp_survey *survey = &review->survey;
  uint64_t sectors, first, stop;

  if (rp_survey_entry (survey, grain, entry) != RP_ENTRY_GRAIN)
    return;
  sectors = rp_survey_grain_sectors (survey, entry);
  first = entry / survey->unit;
  stop = rp_divide_up (entry + sectors, survey->unit);
  if (rp_survey_is_claimed (survey, entry, sectors, true))
    rp_bits_set (review->pointed, first, stop);
  else if (!rp_survey_claim (survey, entry, sectors, false))
    rp_bits_set (review->twice, first, stop);
}

int
rp_review_claim_all (struct rp_review *review, struct rp_fault *fault)
{
  struct rp_survey *survey = &review->survey;

  for (uint32_t i = 0; i < survey->layout.directory_count; i++)
    for (int redundant = 0; redundant < 2; redundant++) {
      const uint32_t sector = sector_of (review, i, redundant);

      if (sector && rp_survey_table_inside (survey, sector))
        rp_survey_claim (survey, sector, survey->layout.table_sectors, true);
    }
  return rp_survey_entries (survey, claim_entry, review, fault);
}

bool
rp_review_may_write (const struct rp_review *review, uint32_t index,
                     bool redundant)
{
  const struct rp_survey *survey = &review->survey;
  const uint32_t sector = sector_of (review, index, redundant);

  return rp_review_state (review, index, redundant) == RP_TABLE_GOOD
         && !rp_bits_any (review->pointed, sector / survey->unit,
                          rp_divide_up (sector + (uint64_t)
                                        survey->layout.table_sectors,
                                        survey->unit));
}

/* extent_inside.h - what the files of a repair share; see extent.h. */
#ifndef RP_EXTENT_INSIDE_H
#define RP_EXTENT_INSIDE_H

#include "extent.h"

struct rp_findings {
  struct rp_finding *list;
  uint64_t count, room;
  int      status;               /* RP_OK, or why there are not all */
};

/* What is known of a table that a directory points at. */
enum rp_table_state {
  RP_TABLE_NONE = 0,             /* no table */
  RP_TABLE_GOOD,
  RP_TABLE_BAD,                  /* not there, or somebody else's: another
                                    copy has to be used */
  RP_TABLE_SHARED,               /* no other copy, and a lower one has it */
  RP_TABLE_DOUBT,                /* two claim it, and nothing tells whose */
};

/* A survey with all claims in it, and what its tables are worth. */
struct rp_review {
  struct rp_survey survey;
  uint8_t *state;                /* enum rp_table_state: primary, redundant */
  uint8_t *twice;                /* one bit a unit: two entries claim it */
  uint8_t *pointed;              /* likewise: a table that an entry points
                                    into */
};

struct rp_repair {
  struct rp_extent_place  place;
  bool                    trust_primary;
  struct rp_view          view;
  struct rp_findings      before, after;
  struct rp_repair_counts counts;
  uint64_t                next;  /* sector: free from here on */
};

/* extent_survey.c: bits [first, stop); set says that none of them was */
bool rp_bits_any (const uint8_t *bits, uint64_t first, uint64_t stop);
bool rp_bits_set (uint8_t *bits, uint64_t first, uint64_t stop);

/* extent_review.c */
/* Read directories and judge their tables; nothing is claimed but what is
 * fixed.  Close it in any case. */
int  rp_review_open (struct rp_review *review, const struct rp_repair *repair,
                     struct rp_fault *fault);
/* Claim all tables and all grains of primary tables. */
int  rp_review_claim_all (struct rp_review *review, struct rp_fault *fault);
void rp_review_close (struct rp_review *review);
enum rp_table_state rp_review_state (const struct rp_review *review,
                                     uint32_t index, bool redundant);
/* A table that may be written where it lies. */
bool rp_review_may_write (const struct rp_review *review, uint32_t index,
                          bool redundant);
/* Every entry is none or may be a grain. */
bool rp_review_is_plausible (const struct rp_review *review, uint32_t index,
                             const uint32_t *entries);

/* extent_repair.c: change a field of bytes (at most 4) of the view */
int rp_repair_write_field (struct rp_repair *repair,
                           enum rp_repair_phase phase, uint64_t offset,
                           uint32_t value, size_t bytes,
                           struct rp_fault *fault);

/* extent_tables.c: the steps of a plan, each on the view */
int rp_repair_tables (struct rp_repair *repair, struct rp_fault *fault);
int rp_repair_entries (struct rp_repair *repair, struct rp_fault *fault);
int rp_repair_overlaps (struct rp_repair *repair, struct rp_fault *fault);

#endif /* RP_EXTENT_INSIDE_H */

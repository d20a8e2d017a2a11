/* journal_synthesize.h - a long log without the hours that writing it takes.
 *
 * For benchmarks and tests only.  Lays out a log of random 4 KiB writes as the
 * journal itself would have left it: segment headers, batch headers with their
 * chain, entries, points, summaries and trailers are real, and recovery, roll
 * back and verify take it for what it is.  Only the grains are holes: each
 * entry carries the checksum of zeros.
 *
 * Tests:   tests/test_rollback.py, bench/bench_rollback.py
 */
#ifndef RP_JOURNAL_SYNTHESIZE_H
#define RP_JOURNAL_SYNTHESIZE_H

#include "io.h"

struct rp_synthesis {
  uint64_t entries;              /* writes of one grain each */
  uint64_t working_set_bytes;    /* they fall into; spread over the disk in
                                    stretches of 1 GiB */
  uint64_t points;               /* at even distances; the last behind all */
  uint64_t seed;
};

/* file: a new log of rp_journal_create, open for writing, not open as a
 * journal.  Syncs it.  Returns RP_OK, RP_STATE (it is not new), RP_IO, ...
 */
int rp_journal_synthesize (struct rp_file *file,
                           const struct rp_synthesis *how,
                           struct rp_fault *fault);

#endif /* RP_JOURNAL_SYNTHESIZE_H */

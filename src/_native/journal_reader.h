/* journal_reader.h - the batches of a log, read ahead in large pieces.
 *
 * A thread reads the stretches between segment headers and summaries, one
 * after the other as the log goes, while the caller looks at what was read
 * before.  Storage that a test watches is read by the caller, in one order.
 *
 * Threads: one caller.  The journal is not changed meanwhile.
 */
#ifndef RP_JOURNAL_READER_H
#define RP_JOURNAL_READER_H

#include "journal_private.h"

struct rp_window {
  uint64_t position;             /* in the file */
  uint64_t length;               /* whole units: of the journal's block_bytes */
  int      status;               /* why there are no bytes; the file's end is
                                    none, behind it are zeros */
  uint8_t *bytes;
};

struct rp_reader;

/* Of segments [first, stop) of the journal's list. */
int rp_reader_create (struct rp_reader **out,
                      const struct rp_journal *journal, uint64_t first,
                      uint64_t stop, struct rp_fault *fault);
/* The next window, which lies in one segment; it is the caller's until the
 * next call.  Not called behind the last one. */
const struct rp_window *rp_reader_next (struct rp_reader *reader);
void rp_reader_destroy (struct rp_reader *reader);     /* NULL is allowed */

#endif /* RP_JOURNAL_READER_H */

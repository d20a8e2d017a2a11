/* status.h - how every native room says what went wrong.
 *
 * A function that can fail returns a status: RP_OK (0) or a negative code.
 * It never prints and keeps no "last error" anywhere: all else that is known
 * about the failure goes into the fault that the caller passed in, so two
 * threads can never read each other's errors.
 *
 * A broken promise inside our own code is not a status.  It is RP_CHECK.
 */
#ifndef RP_STATUS_H
#define RP_STATUS_H

#include <stdint.h>

/* One line per status: name, value, the sentence a person reads.
 * A value is never reused and never renumbered.
 */
#define RP_STATUS_LIST(ITEM)                                                  \
  ITEM (OK,             0, "success")                                         \
  ITEM (BAD_ARGUMENT,  -1, "an argument is outside its documented range")     \
  ITEM (OUT_OF_RANGE,  -2, "the range ends past the end of the disk")         \
  ITEM (NO_MEMORY,     -3, "memory could not be allocated")                   \
  ITEM (CORRUPT,       -4, "stored data does not match its checksum or format") \
  ITEM (IO,            -5, "the operating system reported an I/O error")      \
  ITEM (FORMAT,        -6, "the file is not in the format it should be in")   \
  ITEM (UNSUPPORTED,   -7, "the format uses a feature that is not supported") \
  ITEM (READ_ONLY,     -8, "the disk was opened read-only")                   \
  ITEM (LOCKED,        -9, "another process has the file open for writing")   \
  ITEM (STALE_EPOCH,  -10, "a newer epoch has been set: this writer is fenced off") \
  ITEM (HELD,         -11, "replication is on hold: no write is accepted")    \
  ITEM (FAILED,       -12, "an earlier sync failed, and that is final")       \
  ITEM (NOT_FOUND,    -13, "there is no such entry")                          \
  ITEM (STATE,        -14, "the object is not in a state that allows this")   \
  ITEM (FULL,         -15, "the file has reached the largest size its format allows") \
  ITEM (CANCELLED,    -16, "it was cancelled, as was asked")

enum rp_status {
#define RP_STATUS_ENUM(name, value, text) RP_##name = (value),
  RP_STATUS_LIST (RP_STATUS_ENUM)
#undef RP_STATUS_ENUM
};

#define RP_FAULT_MESSAGE_BYTES 320

/* What is known about a failure beyond its status.  Filled only when the
 * status is not RP_OK; a function need not clear it first.
 */
struct rp_fault {
  int      status;     /* the status that was returned */
  int      os_errno;   /* errno with RP_IO, else 0 */
  uint64_t position;   /* bytes from the start of the file or disk */
  char     message[RP_FAULT_MESSAGE_BYTES]; /* what, in which file, where */
};

/* The sentence for a status; "unknown status" for any other number.
 * The string is static: never free it.
 */
const char *rp_status_text (int status);

/* Fill the fault (NULL is allowed) and return status, so that a failing
 * function can end with `return rp_fail (fault, RP_CORRUPT, position, ...)`.
 * The format completes "<status text>: <message>"; it names the file.
 */
int rp_fail (struct rp_fault *fault, int status, uint64_t position,
             const char *format, ...) __attribute__ ((format (printf, 4, 5)));

/* The same for RP_IO; os_errno is kept, so that the caller sees ENOSPC etc. */
int rp_fail_os (struct rp_fault *fault, int os_errno, uint64_t position,
                const char *format, ...) __attribute__ ((format (printf, 4, 5)));

/* RP_CHECK holds in every build: CPython's flags carry -DNDEBUG, which would
 * silence assert(), and a disk engine that runs on after a broken invariant
 * is worse than one that stops.
 */
#define RP_CHECK(condition)                                               \
  do {                                                                    \
    if (__builtin_expect (!(condition), 0))                               \
      rp_check_failed (#condition, __FILE__, __LINE__);                   \
  } while (0)

_Noreturn void rp_check_failed (const char *condition, const char *file,
                                int line);

/* Tests of the tests: RP_SABOTAGED (n) is true in a build with -DRP_SABOTAGE=n
 * and otherwise a constant false that costs nothing.  Each number is a mistake
 * that a crash test has to find; tests/test_sabotage.py tries all.
 */
#ifdef RP_SABOTAGE
#define RP_SABOTAGED(n) (RP_SABOTAGE == (n))
#else
#define RP_SABOTAGED(n) 0
#endif

#endif /* RP_STATUS_H */

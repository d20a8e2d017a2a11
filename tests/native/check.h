/* check.h - what every C test checks with. */
#ifndef RP_TEST_CHECK_H
#define RP_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "status.h"

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      fprintf (stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__,    \
               #condition);                                                \
      exit (EXIT_FAILURE);                                                 \
    }                                                                      \
  } while (0)

/* a status that must be RP_OK; prints the fault's message otherwise */
#define OK(call)                                                           \
  do {                                                                     \
    int status_ = (call);                                                  \
    if (status_ != RP_OK) {                                                \
      fprintf (stderr, "%s:%d: %s: %s: %s\n", __FILE__, __LINE__, #call,   \
               rp_status_text (status_), fault.message);                   \
      exit (EXIT_FAILURE);                                                 \
    }                                                                      \
  } while (0)

#endif /* RP_TEST_CHECK_H */

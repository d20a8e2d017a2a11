/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *
rp_status_text (int status)
{
  switch (status) {
#define RP_STATUS_TEXT(name, value, text) case (value): return text;
    RP_STATUS_LIST (RP_STATUS_TEXT)
#undef RP_STATUS_TEXT
  }
  return "unknown status";
}

static void
fill (struct rp_fault *fault, int status, int os_errno, uint64_t position,
      const char *format, va_list arguments)
{
  if (!fault)
    return;
  fault->status = status;
  fault->os_errno = os_errno;
  fault->position = position;
  if (vsnprintf (fault->message, sizeof fault->message, format, arguments) < 0)
    fault->message[0] = '\0';
}

int
rp_fail (struct rp_fault *fault, int status, uint64_t position,
         const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  fill (fault, status, 0, position, format, arguments);
  va_end (arguments);
  return status;
}

int
rp_fail_os (struct rp_fault *fault, int os_errno, uint64_t position,
            const char *format, ...)
{
  va_list arguments;

  va_start (arguments, format);
  fill (fault, RP_IO, os_errno, position, format, arguments);
  va_end (arguments);
  return RP_IO;
}

_Noreturn void
rp_check_failed (const char *condition, const char *file, int line)
{
  fprintf (stderr, "rollpoint: %s:%d: broken invariant: %s\n", file, line,
           condition);
  abort ();
}

/* SPDX-License-Identifier: Apache-2.0 */
/* Findings of a check, on their way to whoever asked. */
#include "image_report.h"

#include <stdio.h>
#include <string.h>

void
rp_report_flush (struct rp_reporter *reporter)
{
  if (reporter->pending.kind)
    reporter->each (reporter->context, &reporter->pending);
  reporter->pending.kind = NULL;
}

void
rp_report (struct rp_reporter *reporter, const char *kind, uint64_t position,
           uint64_t guest_offset, uint64_t length, const char *detail)
{
  struct rp_finding *pending = &reporter->pending;

  if (pending->kind && strcmp (pending->kind, kind) == 0 && length != 0
      && guest_offset != UINT64_MAX
      && pending->guest_offset_bytes != UINT64_MAX
      && pending->guest_offset_bytes + pending->length_bytes == guest_offset) {
    pending->length_bytes += length;
    pending->detail = NULL;
    return;
  }
  rp_report_flush (reporter);
  *pending = (struct rp_finding) {
    .kind = kind, .extent = reporter->extent, .position = position,
    .guest_offset_bytes = guest_offset, .length_bytes = length,
  };
  if (detail) {
    snprintf (reporter->detail, sizeof reporter->detail, "%s", detail);
    pending->detail = reporter->detail;
  }
}

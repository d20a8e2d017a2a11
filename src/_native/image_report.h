/* image_report.h - findings of a check: those that follow each other on the
 * disk are told as one.
 */
#ifndef RP_IMAGE_REPORT_H
#define RP_IMAGE_REPORT_H

#include "image.h"

struct rp_reporter {
  rp_finding_each  *each;
  void             *context;
  uint32_t          extent;      /* index, for the findings */
  struct rp_finding pending;     /* kind NULL: none */
  char              detail[RP_FAULT_MESSAGE_BYTES];  /* of it */
};

/* As the fields of a finding; guest_offset UINT64_MAX: of the file alone.
 * detail (may be NULL) is of one finding: two that are joined lose it. */
void rp_report (struct rp_reporter *reporter, const char *kind,
                uint64_t position, uint64_t guest_offset, uint64_t length,
                const char *detail);
/* Tell the last one; once, at the end. */
void rp_report_flush (struct rp_reporter *reporter);

#endif /* RP_IMAGE_REPORT_H */

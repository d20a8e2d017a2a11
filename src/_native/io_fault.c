/* SPDX-License-Identifier: Apache-2.0 */
#include "io_wrap.h"
#include "simulate.h"

#include <stdlib.h>

struct fault_io {
  struct wrap_io       wrap;
  struct rp_fault_plan plan;
  atomic_ullong        calls;
  atomic_bool          late;     /* the next sync has an error to report */
};

static struct fault_io *
fault_of (struct rp_io *io)
{
  return (struct fault_io *) io;
}

static uint32_t
kind_of (const struct wrap_call *call)
{
  switch (call->kind) {
  case WRAP_FILE_PREAD:
    return RP_FAULT_READ;
  case WRAP_FILE_PWRITEV:
    return RP_FAULT_WRITE;
  case WRAP_FILE_SYNC:
  case WRAP_DIR_SYNC:
    return RP_FAULT_SYNC;
  default:
    return RP_FAULT_META;
  }
}

static int
fail (const struct fault_io *io, const struct wrap_call *call,
      struct rp_fault *fault)
{
  const bool entry = call->dir && call->name && call->kind != WRAP_DIR_OPEN;

  return rp_fail_os (fault, io->plan.os_errno, call->offset,
                     "%s%s%s (a planned fault)",
                     call->dir ? call->dir->dir.path : call->file->file.name,
                     entry ? "/" : "", entry ? call->name : "");
}

static int
write_half (const struct fault_io *io, const struct wrap_call *call,
            struct rp_fault *fault)
{
  const uint64_t half = call->length / 2;
  uint64_t done = 0;

  for (int i = 0; i < call->part_count && done < half; i++) {
    const uint64_t length = call->parts[i].iov_len < half - done
                            ? call->parts[i].iov_len : half - done;
    const int status = rp_file_pwrite (call->file->inner,
                                       call->parts[i].iov_base, length,
                                       call->offset + done, fault);
    if (status != RP_OK)
      return status;
    done += length;
  }
  return fail (io, call, fault);
}

static int
strike (struct fault_io *io, const struct wrap_call *call,
        struct rp_fault *fault)
{
  const bool is_write = call->kind == WRAP_FILE_PWRITEV;
  const bool is_sync = call->kind == WRAP_FILE_SYNC;
  int status;

  switch ((enum rp_fault_effect) io->plan.effect) {
  case RP_FAULT_PARTIAL:
    if (is_write)
      return write_half (io, call, fault);
    break;
  case RP_FAULT_LOST:
  case RP_FAULT_LATE:
    if (!is_sync)
      break;
    status = rp_sim_file_lose (call->file->inner,
                               io->plan.effect == RP_FAULT_LOST, fault);
    if (status != RP_OK || io->plan.effect == RP_FAULT_LOST)
      return status == RP_OK ? fail (io, call, fault) : status;
    atomic_store (&io->late, true);
    return RP_OK;
  case RP_FAULT_LIE:
    if (!is_sync)
      break;
    return rp_sim_file_lie (call->file->inner, atomic_load (&io->calls),
                            fault);
  case RP_FAULT_PLAIN:
    break;
  }
  return fail (io, call, fault);
}

static int
fault_before (struct wrap_io *wrap, struct wrap_call *call, bool *done,
              struct rp_fault *fault)
{
  struct fault_io *io = fault_of (&wrap->io);
  const uint32_t kind = kind_of (call);
  unsigned long long number;

  if (kind == RP_FAULT_SYNC && atomic_exchange (&io->late, false)) {
    *done = true;
    return fail (io, call, fault);
  }
  if (!(io->plan.kinds & kind))
    return RP_OK;
  number = atomic_fetch_add (&io->calls, 1) + 1;
  if (io->plan.call == 0
      || (number != io->plan.call
          && !(io->plan.sticky && number > io->plan.call)))
    return RP_OK;
  *done = true;
  return strike (io, call, fault);
}

static int
fault_after (struct wrap_io *io, struct wrap_call *call, int status,
             struct rp_fault *fault)
{
  (void) io;
  (void) call;
  (void) fault;
  return status;
}

static void
fault_destroy (struct wrap_io *io)
{
  free (io);
}

static const struct wrap_hooks fault_hooks = {
  .before = fault_before,
  .after = fault_after,
  .destroy = fault_destroy,
};

static const struct rp_io_functions fault_functions = WRAP_FUNCTIONS ("fault");

int
rp_io_fault_create (struct rp_io *inner, const struct rp_fault_plan *plan,
                    struct rp_io **out, struct rp_fault *fault)
{
  struct fault_io *io;

  *out = NULL;
  if ((plan->kinds & ~(uint32_t) RP_FAULT_ANY) != 0
      || plan->effect > RP_FAULT_LIE)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a fault of kinds %u, effect %u", plan->kinds,
                    plan->effect);
  if (plan->effect >= RP_FAULT_LOST && !rp_io_is_simulate (inner))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "a sync that loses data needs simulate directly inside");
  io = calloc (1, sizeof *io);
  if (!io)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the fault backend");
  io->wrap = (struct wrap_io) {
    .io.functions = &fault_functions, .inner = inner, .hooks = &fault_hooks,
  };
  io->plan = *plan;
  *out = &io->wrap.io;
  return RP_OK;
}

uint64_t
rp_io_fault_calls (struct rp_io *io)
{
  RP_CHECK (io->functions == &fault_functions);
  return atomic_load (&fault_of (io)->calls);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <string.h>

#include "bytes.h"

uint32_t
nbd_error_of (int status, const struct rp_fault *fault)
{
  switch (status) {
  case RP_OK:
    return NBD_OK;
  case RP_READ_ONLY:
    return NBD_EPERM;
  case RP_HELD:
  case RP_STALE_EPOCH:
    return NBD_ESHUTDOWN;
  case RP_OUT_OF_RANGE:
    return NBD_EINVAL;
  case RP_NO_MEMORY:
    return NBD_ENOMEM;
  case RP_FULL:
    return NBD_ENOSPC;
  case RP_IO:
    if (fault->os_errno == ENOSPC || fault->os_errno == EDQUOT
        || fault->os_errno == EFBIG)
      return NBD_ENOSPC;
    return NBD_EIO;
  default:
    return NBD_EIO;
  }
}

/* The flags that may come with a command.  FUA may come with any. */
static uint16_t
allowed_flags (const struct nbd_connection *connection, uint16_t type)
{
  switch (type) {
  case NBD_CMD_READ:
    return NBD_CMD_FLAG_FUA | (connection->structured ? NBD_CMD_FLAG_DF : 0);
  case NBD_CMD_WRITE_ZEROES:
    return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
  case NBD_CMD_BLOCK_STATUS:
    return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
  default:
    return NBD_CMD_FLAG_FUA;
  }
}

uint32_t
nbd_check (struct nbd_connection *connection,
           const struct nbd_request *request)
{
  const struct nbd_export *export = connection->export;
  const bool inside = rp_inside (request->offset, request->length,
                                 export->disk->size_bytes);

  if (request->flags & ~allowed_flags (connection, request->type))
    return NBD_EINVAL;
  if (nbd_is_write (request) && (export->flags & NBD_FLAG_READ_ONLY))
    return NBD_EPERM;
  switch (request->type) {
  case NBD_CMD_READ:
    if (request->length > NBD_PAYLOAD_MAX)
      return connection->structured ? NBD_EOVERFLOW : NBD_EINVAL;
    return inside ? NBD_OK : NBD_EINVAL;
  case NBD_CMD_WRITE:
    return inside ? NBD_OK : NBD_ENOSPC;
  case NBD_CMD_WRITE_ZEROES:
    if (!inside)
      return NBD_ENOSPC;
    if ((request->flags & NBD_CMD_FLAG_FAST_ZERO) && !export->disk->fast_zero)
      return NBD_ENOTSUP;
    return NBD_OK;
  case NBD_CMD_TRIM:
    return inside ? NBD_OK : NBD_EINVAL;
  case NBD_CMD_FLUSH:
    return request->offset == 0 && request->length == 0 ? NBD_OK : NBD_EINVAL;
  case NBD_CMD_BLOCK_STATUS:
    if (!connection->allocation || request->length == 0)
      return NBD_EINVAL;
    return inside ? NBD_OK : NBD_EINVAL;
  default:
    return NBD_EINVAL;
  }
}

void
nbd_answer_simple (struct nbd_out *out, const uint8_t *cookie, uint32_t error,
                   bool ack)
{
  uint8_t *at = out->bytes + out->length;

  RP_CHECK (out->room - out->length >= NBD_SIMPLE_REPLY_BYTES);
  if (ack && error == NBD_OK) {
    RP_CHECK (out->ack_count < out->ack_room);
    out->acks[out->ack_count++] = out->length;
  }
  at = nbd_store32 (at, NBD_SIMPLE_REPLY_MAGIC);
  at = nbd_store32 (at, error);
  nbd_store_bytes (at, cookie, NBD_COOKIE_BYTES);
  out->length += NBD_SIMPLE_REPLY_BYTES;
}

static uint8_t *
put_chunk (uint8_t *at, const struct nbd_request *request, uint16_t type,
           uint32_t payload_bytes)
{
  at = nbd_store32 (at, NBD_STRUCTURED_REPLY_MAGIC);
  at = nbd_store16 (at, NBD_REPLY_FLAG_DONE);
  at = nbd_store16 (at, type);
  at = nbd_store_bytes (at, request->cookie, NBD_COOKIE_BYTES);
  return nbd_store32 (at, payload_bytes);
}

static const char *
error_text (uint32_t error)
{
  switch (error) {
  case NBD_EINVAL:
    return "the request breaks the protocol or ends past the export";
  case NBD_EOVERFLOW:
    return "the request is longer than the largest payload";
  case NBD_ENOMEM:
    return "memory could not be allocated";
  default:
    return "the disk could not be read";
  }
}

void
nbd_answer (struct nbd_connection *connection,
            const struct nbd_request *request, uint32_t error,
            struct nbd_out *out)
{
  const char *text = error_text (error);
  const uint16_t text_bytes = (uint16_t) strlen (text);
  uint8_t *at = out->bytes + out->length;

  if (error != NBD_OK)
    nbd_count (&connection->server->errors, 1);
  if (!connection->structured || (request->type != NBD_CMD_READ
                                  && request->type != NBD_CMD_BLOCK_STATUS)) {
    nbd_answer_simple (out, request->cookie, error, nbd_is_write (request));
    return;
  }
  RP_CHECK (out->room - out->length >= NBD_REPLY_EXTRA);
  if (error == NBD_OK) {
    put_chunk (at, request, NBD_REPLY_TYPE_NONE, 0);
    out->length += NBD_CHUNK_BYTES;
    return;
  }
  at = put_chunk (at, request, NBD_REPLY_TYPE_ERROR, 6u + text_bytes);
  at = nbd_store32 (at, error);
  at = nbd_store16 (at, text_bytes);
  at = nbd_store_bytes (at, text, text_bytes);
  out->length = (uint32_t) (at - out->bytes);
}

static void
note_read_time (struct nbd_connection *connection, int64_t taken_ns)
{
  const int cold = connection->cold;

  if (taken_ns > NBD_SLOW_READ_NS)
    connection->cold = cold < 48 ? cold + 16 : 64;
  else if (cold > 0)
    connection->cold = cold - 1;
}

void
nbd_read (struct nbd_connection *connection, const struct nbd_request *request,
          struct nbd_out *out)
{
  const uint32_t before = connection->structured ? NBD_CHUNK_BYTES + 8u
                                                 : NBD_SIMPLE_REPLY_BYTES;
  uint8_t *at = out->bytes + out->length;
  struct rp_fault fault;
  int64_t begun_ns;
  int status;

  RP_CHECK (out->room - out->length >= request->length + NBD_REPLY_EXTRA);
  nbd_count (&connection->server->reads, 1);
  if (request->length == 0) {         /* a content chunk cannot be empty */
    nbd_answer (connection, request, NBD_OK, out);
    return;
  }
  begun_ns = nbd_now_ns ();
  status = rp_disk_pread (connection->export->disk, at + before,
                          request->length, request->offset, &fault);
  if (request->length <= NBD_INLINE_MAX)
    note_read_time (connection, nbd_now_ns () - begun_ns);
  if (status != RP_OK) {
    nbd_answer (connection, request, nbd_error_of (status, &fault), out);
    return;
  }
  nbd_count (&connection->server->bytes_read, request->length);
  if (connection->structured) {
    at = put_chunk (at, request, NBD_REPLY_TYPE_OFFSET_DATA,
                    request->length + 8u);
    nbd_store64 (at, request->offset);
    out->length += before;
  } else
    nbd_answer_simple (out, request->cookie, NBD_OK, false);
  out->length += request->length;
}

/* The client was told that its change did not fit, and may never send it again:
 * as with one that left, no restore point may be marked before that is known.
 */
static void
note_refusal (struct nbd_connection *connection, int status)
{
  struct nbd_export *export = connection->export;

  if (status != RP_FULL)
    return;
  nbd_count (&export->refused, 1);
  if (export->gate)
    rp_gate_alarm (export->gate);
}

uint32_t
nbd_write (struct nbd_connection *connection,
           const struct nbd_request *request, const uint8_t *payload)
{
  struct rp_fault fault;
  const int status = rp_disk_pwrite (connection->export->disk, payload,
                                     request->length, request->offset,
                                     &fault);

  if (status == RP_OK)
    nbd_count (&connection->server->bytes_written, request->length);
  note_refusal (connection, status);
  return nbd_error_of (status, &fault);
}

uint32_t
nbd_zero (struct nbd_connection *connection,
          const struct nbd_request *request, uint64_t offset, uint64_t length)
{
  struct rp_fault fault;
  const bool may_trim = !(request->flags & NBD_CMD_FLAG_NO_HOLE);
  const int status = rp_disk_zero (connection->export->disk, length, offset,
                                   may_trim, &fault);

  note_refusal (connection, status);
  return nbd_error_of (status, &fault);
}

uint32_t
nbd_flush (struct nbd_connection *connection)
{
  struct rp_fault fault;

  return nbd_error_of (rp_disk_flush (connection->export->disk, &fault),
                       &fault);
}

static uint32_t
state_of (const struct rp_run *run)
{
  return run->kind == RP_RUN_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
}

/* Fill descriptors of 8 bytes at `at`; neighbours of one state become one.
 * *error tells of a failure before the first run.
 */
static uint32_t
put_descriptors (struct nbd_connection *connection,
                 const struct nbd_request *request, uint8_t *at,
                 uint32_t *error)
{
  const uint32_t most = request->flags & NBD_CMD_FLAG_REQ_ONE
                        ? 1 : NBD_DESCRIPTORS_MAX;
  uint32_t done = 0, length = 0, state = 0, count = 0;
  struct rp_fault fault;
  struct rp_run run;
  int status = RP_OK;

  while (done < request->length) {
    status = rp_disk_run (connection->export->disk, request->offset + done,
                          request->length - done, &run, &fault);
    if (status != RP_OK)
      break;
    if (length != 0 && state_of (&run) != state) {
      at = nbd_store32 (nbd_store32 (at, length), state);
      length = 0;
      if (++count == most)
        return count;
    }
    state = state_of (&run);
    length += (uint32_t) run.length_bytes;
    done += (uint32_t) run.length_bytes;
  }
  if (length != 0) {
    nbd_store32 (nbd_store32 (at, length), state);
    count++;
  }
  *error = count == 0 ? nbd_error_of (status, &fault) : NBD_OK;
  return count;
}

void
nbd_block_status (struct nbd_connection *connection,
                  const struct nbd_request *request, struct nbd_out *out)
{
  uint8_t *at = out->bytes + out->length;
  uint32_t error = NBD_OK, count;

  RP_CHECK (out->room - out->length
            >= NBD_REPLY_EXTRA + 8u * NBD_DESCRIPTORS_MAX);
  count = put_descriptors (connection, request, at + NBD_CHUNK_BYTES + 4u,
                           &error);
  if (count == 0) {
    nbd_answer (connection, request, error, out);
    return;
  }
  at = put_chunk (at, request, NBD_REPLY_TYPE_BLOCK_STATUS, 4u + 8u * count);
  nbd_store32 (at, NBD_CONTEXT_ID);
  out->length += NBD_CHUNK_BYTES + 4u + 8u * count;
}

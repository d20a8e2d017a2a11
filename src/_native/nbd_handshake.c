/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define CONTEXT "base:allocation"
#define CONTEXT_BYTES (sizeof CONTEXT - 1)

/* ---- replies ---- */

static uint8_t *
grow_reply (struct nbd_handshake *h, size_t by)
{
  if (h->reply_room - h->reply_bytes < by) {
    const size_t room = 2 * h->reply_room + by;
    uint8_t *grown = realloc (h->reply, room);

    if (!grown) {
      h->no_memory = true;
      return NULL;
    }
    h->reply = grown;
    h->reply_room = room;
  }
  h->reply_bytes += by;
  return h->reply + h->reply_bytes - by;
}

/* The header of a reply to the present option; where its data goes, or NULL */
static uint8_t *
put_reply (struct nbd_handshake *h, uint32_t type, uint32_t data_bytes)
{
  uint8_t *at = grow_reply (h, NBD_OPTION_REPLY_BYTES + data_bytes);

  if (!at)
    return NULL;
  at = nbd_store64 (at, NBD_OPTION_REPLY_MAGIC);
  at = nbd_store32 (at, h->option);
  at = nbd_store32 (at, type);
  return nbd_store32 (at, data_bytes);
}

static void
put_error (struct nbd_handshake *h, uint32_t type, const char *text)
{
  const uint32_t text_bytes = (uint32_t) strlen (text);
  uint8_t *at = put_reply (h, type, text_bytes);

  if (at)
    nbd_store_bytes (at, text, text_bytes);
}

static uint16_t
flags_of (const struct nbd_connection *c, const struct nbd_export *export)
{
  return export->flags | (c->structured ? NBD_FLAG_SEND_DF : 0);
}

/* ---- options ---- */

/* A string with its length before it, at *at and before end. */
static bool
take_string (const uint8_t **at, const uint8_t *end, const uint8_t **string,
             uint32_t *bytes)
{
  if (end - *at < 4)
    return false;
  *bytes = nbd_load32 (*at);
  *at += 4;
  if (*bytes > NBD_STRING_BYTES_MAX || *bytes > (size_t) (end - *at))
    return false;
  *string = *at;
  *at += *bytes;
  return true;
}

static void
go (struct nbd_connection *c)
{
  c->allocation = c->structured && c->handshake->context_export == c->export;
  c->handshake->then = NBD_THEN_GO;
}

static void
export_name (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;
  struct nbd_export *export = nbd_find_export (c->server, h->payload,
                                               h->payload_bytes);
  uint8_t *at;

  h->then = NBD_THEN_CLOSE;           /* the option knows no error reply */
  if (!export || !nbd_door_admit (c, export))
    return;
  at = grow_reply (h, 8 + 2 + (h->no_zeroes ? 0 : NBD_EXPORT_ZEROES));
  if (!at)
    return;
  at = nbd_store64 (at, export->disk->size_bytes);
  at = nbd_store16 (at, flags_of (c, export));
  if (!h->no_zeroes)
    memset (at, 0, NBD_EXPORT_ZEROES);
  go (c);
}

static void
list (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;

  if (h->payload_bytes) {
    put_error (h, NBD_REP_ERR_INVALID, "LIST takes no data");
    return;
  }
  for (uint32_t i = 0; i < c->server->export_count; i++) {
    const struct nbd_export *export = c->server->exports[i];
    uint8_t *at = put_reply (h, NBD_REP_SERVER, 4 + export->name_bytes);

    if (at)
      nbd_store_bytes (nbd_store32 (at, export->name_bytes), export->name,
                       export->name_bytes);
  }
  put_reply (h, NBD_REP_ACK, 0);
}

static void
put_info (struct nbd_connection *c, const struct nbd_export *export,
          bool block_size)
{
  struct nbd_handshake *h = c->handshake;
  uint8_t *at = put_reply (h, NBD_REP_INFO, 12);

  if (at) {
    at = nbd_store16 (at, NBD_INFO_EXPORT);
    at = nbd_store64 (at, export->disk->size_bytes);
    nbd_store16 (at, flags_of (c, export));
  }
  if (block_size && (at = put_reply (h, NBD_REP_INFO, 14)) != NULL) {
    at = nbd_store16 (at, NBD_INFO_BLOCK_SIZE);
    at = nbd_store32 (at, 1);
    at = nbd_store32 (at, 4096);
    nbd_store32 (at, NBD_PAYLOAD_MAX);
  }
  put_reply (h, NBD_REP_ACK, 0);
}

static void
info_or_go (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;
  const uint8_t *at = h->payload, *end = at + h->payload_bytes, *name;
  uint32_t name_bytes, count;
  struct nbd_export *export;
  bool block_size = false;

  if (!take_string (&at, end, &name, &name_bytes) || end - at < 2) {
    put_error (h, NBD_REP_ERR_INVALID, "the export name has a bad length");
    return;
  }
  count = nbd_load16 (at);
  at += 2;
  if ((size_t) (end - at) != 2 * (size_t) count) {
    put_error (h, NBD_REP_ERR_INVALID, "the requests have a bad length");
    return;
  }
  for (uint32_t i = 0; i < count; i++)
    if (nbd_load16 (at + 2 * i) == NBD_INFO_BLOCK_SIZE)
      block_size = true;
  export = nbd_find_export (c->server, name, name_bytes);
  if (!export) {
    put_error (h, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
    return;
  }
  if (h->option == NBD_OPT_GO) {
    if (!nbd_door_admit (c, export)) {
      put_error (h, NBD_REP_ERR_POLICY,
                 "the export has as many connections as it may");
      return;
    }
    go (c);
  }
  put_info (c, export, block_size);
}

static void
structured_reply (struct nbd_connection *c)
{
  if (c->handshake->payload_bytes) {
    put_error (c->handshake, NBD_REP_ERR_INVALID,
               "STRUCTURED_REPLY takes no data");
    return;
  }
  c->structured = true;
  put_reply (c->handshake, NBD_REP_ACK, 0);
}

static bool
query_matches (const uint8_t *query, uint32_t bytes, bool wildcard)
{
  if (bytes == CONTEXT_BYTES)
    return memcmp (query, CONTEXT, CONTEXT_BYTES) == 0;
  return wildcard && bytes == 5 && memcmp (query, "base:", 5) == 0;
}

/* LIST_META_CONTEXT and SET_META_CONTEXT.  A bad request selects nothing. */
static void
meta_context (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;
  const bool is_list = h->option == NBD_OPT_LIST_META_CONTEXT;
  const uint8_t *at = h->payload, *end = at + h->payload_bytes, *string;
  struct nbd_export *export;
  uint32_t bytes, count;
  bool found, fine;
  uint8_t *data;

  if (!is_list)
    h->context_export = NULL;
  fine = c->structured && take_string (&at, end, &string, &bytes)
         && end - at >= 4;
  if (!fine) {
    put_error (h, NBD_REP_ERR_INVALID, c->structured
               ? "the export name has a bad length"
               : "structured replies have not been negotiated");
    return;
  }
  export = nbd_find_export (c->server, string, bytes);
  count = nbd_load32 (at);
  at += 4;
  found = is_list && count == 0;
  for (uint32_t i = 0; i < count && fine; i++) {
    fine = take_string (&at, end, &string, &bytes);
    if (fine && query_matches (string, bytes, is_list))
      found = true;
  }
  if (!fine || at != end) {
    put_error (h, NBD_REP_ERR_INVALID, "the queries have a bad length");
    return;
  }
  if (!export) {
    put_error (h, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
    return;
  }
  if (found && (data = put_reply (h, NBD_REP_META_CONTEXT,
                                  4 + CONTEXT_BYTES)) != NULL)
    nbd_store_bytes (nbd_store32 (data, is_list ? 0 : NBD_CONTEXT_ID),
                     CONTEXT, CONTEXT_BYTES);
  if (found && !is_list)
    h->context_export = export;
  put_reply (h, NBD_REP_ACK, 0);
}

static void
take_option (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;

  switch (h->option) {
  case NBD_OPT_EXPORT_NAME:
    export_name (c);
    break;
  case NBD_OPT_ABORT:
    put_reply (h, NBD_REP_ACK, 0);
    h->then = NBD_THEN_CLOSE;
    break;
  case NBD_OPT_LIST:
    list (c);
    break;
  case NBD_OPT_INFO:
  case NBD_OPT_GO:
    info_or_go (c);
    break;
  case NBD_OPT_STRUCTURED_REPLY:
    structured_reply (c);
    break;
  case NBD_OPT_LIST_META_CONTEXT:
  case NBD_OPT_SET_META_CONTEXT:
    meta_context (c);
    break;
  default:
    put_error (h, NBD_REP_ERR_UNSUP, "the option is not known");
  }
  free (h->payload);
  h->payload = NULL;
  h->want = NBD_WANT_OPTION;
}

/* ---- the state machine ---- */

static bool
take_flags (struct nbd_handshake *h)
{
  const uint32_t flags = nbd_load32 (h->header);

  if (flags & ~(uint32_t) (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
    return false;
  h->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
  h->want = NBD_WANT_OPTION;
  return true;
}

static bool
take_header (const struct rp_nbd_limits *limits, struct nbd_handshake *h)
{
  h->option = nbd_load32 (h->header + 8);
  h->payload_bytes = nbd_load32 (h->header + 12);
  if (nbd_load64 (h->header) != NBD_OPTION_MAGIC
      || h->payload_bytes > limits->option_bytes
      || ++h->option_count > limits->options)
    return false;
  h->payload = malloc (h->payload_bytes ? h->payload_bytes : 1);
  h->want = NBD_WANT_PAYLOAD;
  return h->payload != NULL;
}

static uint8_t *
wanted (struct nbd_handshake *h, uint32_t *bytes)
{
  switch (h->want) {
  case NBD_WANT_FLAGS:
    *bytes = NBD_CLIENT_FLAGS_BYTES;
    return h->header;
  case NBD_WANT_OPTION:
    *bytes = NBD_OPTION_HEADER_BYTES;
    return h->header;
  default:
    *bytes = h->payload_bytes;
    return h->payload;
  }
}

/* Take in what is wanted, and never a byte more: what follows GO belongs to
 * the transmission.  NBD_GO: whole, and understood.
 */
static enum nbd_progress
read_wanted (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;
  bool fine = true;
  uint32_t bytes;
  uint8_t *into = wanted (h, &bytes);

  while (h->have < bytes) {
    const ssize_t got = recv (c->fd, into + h->have, bytes - h->have,
                              MSG_DONTWAIT);

    if (got > 0)
      h->have += (uint32_t) got;
    else if (got < 0 && errno == EINTR)
      continue;
    else
      return got < 0 && errno == EAGAIN ? NBD_READABLE : NBD_CLOSE;
  }
  h->have = 0;
  if (h->want == NBD_WANT_FLAGS)
    fine = take_flags (h);
  else if (h->want == NBD_WANT_OPTION)
    fine = take_header (&c->server->limits, h);
  else
    take_option (c);
  return fine ? NBD_GO : NBD_CLOSE;
}

static enum nbd_progress
write_reply (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;

  while (h->reply_sent < h->reply_bytes) {
    const ssize_t done = send (c->fd, h->reply + h->reply_sent,
                               h->reply_bytes - h->reply_sent,
                               MSG_DONTWAIT | MSG_NOSIGNAL);

    if (done > 0)
      h->reply_sent += (size_t) done;
    else if (errno != EINTR)
      return errno == EAGAIN ? NBD_WRITABLE : NBD_CLOSE;
  }
  h->reply_sent = h->reply_bytes = 0;
  return NBD_GO;
}

enum nbd_progress
nbd_handshake_advance (struct nbd_connection *c)
{
  struct nbd_handshake *h = c->handshake;

  for (;;) {
    enum nbd_progress progress = h->no_memory ? NBD_CLOSE : write_reply (c);

    if (progress != NBD_GO)
      return progress;
    if (h->then != NBD_THEN_READ)
      return h->then == NBD_THEN_GO ? NBD_GO : NBD_CLOSE;
    progress = read_wanted (c);
    if (progress != NBD_GO)
      return progress;
  }
}

bool
nbd_handshake_begin (struct nbd_connection *c)
{
  struct nbd_handshake *h = calloc (1, sizeof *h);
  uint8_t *at;

  c->handshake = h;
  if (!h || (at = grow_reply (h, NBD_GREETING_BYTES)) == NULL)
    return false;
  at = nbd_store64 (at, NBD_MAGIC);
  at = nbd_store64 (at, NBD_OPTION_MAGIC);
  nbd_store16 (at, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  return true;
}

void
nbd_handshake_end (struct nbd_connection *c)
{
  if (!c->handshake)
    return;
  free (c->handshake->payload);
  free (c->handshake->reply);
  free (c->handshake);
  c->handshake = NULL;
}

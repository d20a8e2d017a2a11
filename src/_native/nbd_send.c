/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>

enum sent { ALL_SENT, WOULD_BLOCK, BROKEN };

struct nbd_reply *
nbd_reply_create (uint32_t bytes, uint32_t acks, uint64_t charged)
{
  const size_t head = sizeof (struct nbd_reply);
  const size_t ack_bytes = acks * sizeof (uint32_t);
  struct nbd_reply *reply = malloc (head + ack_bytes + bytes);

  if (!reply)
    return NULL;
  reply->next = NULL;
  reply->charged = charged;
  reply->out = (struct nbd_out) {
    .acks = (uint32_t *) (reply + 1),
    .ack_room = acks,
    .bytes = (uint8_t *) (reply + 1) + ack_bytes,
    .room = bytes,
  };
  return reply;
}

void
nbd_reply_destroy (struct rp_nbd_server *server, struct nbd_reply *reply)
{
  if (reply->charged)
    nbd_budget_give (server, reply->charged);
  free (reply);
}

static enum sent
send_now (int fd, struct nbd_out *out)
{
  while (out->sent < out->length) {
    const ssize_t done = send (fd, out->bytes + out->sent,
                               out->length - out->sent,
                               MSG_DONTWAIT | MSG_NOSIGNAL);

    if (done > 0)
      out->sent += (uint32_t) done;
    else if (errno == EAGAIN || errno == EWOULDBLOCK)
      return WOULD_BLOCK;
    else if (errno != EINTR)
      return BROKEN;
  }
  return ALL_SENT;
}

/* The first acknowledgement whose error field has not left whole; its last
 * byte is the one that tells.
 */
static uint32_t
first_unsent_ack (const struct nbd_out *out)
{
  uint32_t index = 0;

  while (index < out->ack_count && out->acks[index] + 8u <= out->sent)
    index++;
  return index;
}

/* A hold came before these acknowledgements left. */
static void
take_back_acks (struct nbd_out *out)
{
  for (uint32_t i = first_unsent_ack (out); i < out->ack_count; i++)
    out->bytes[out->acks[i] + 7u] = NBD_ESHUTDOWN;
  out->ack_count = 0;
}

/* Send without blocking, and inside the gate where it matters.  inside: this
 * thread is inside already.
 */
static enum sent
send_gated (struct nbd_connection *connection, struct nbd_out *out,
            bool inside)
{
  struct rp_gate *gate = connection->export->gate;
  bool entered = false;
  enum sent sent;

  if (gate && !inside && first_unsent_ack (out) < out->ack_count) {
    entered = rp_gate_enter (gate, NULL) == RP_OK;
    if (!entered)
      take_back_acks (out);
  }
  sent = send_now (connection->fd, out);
  if (entered)
    rp_gate_leave (gate);
  return sent;
}

static struct nbd_reply *
queue_head (struct nbd_connection *connection)
{
  struct nbd_reply *reply;

  pthread_mutex_lock (&connection->lock);
  reply = connection->queue;
  pthread_mutex_unlock (&connection->lock);
  return reply;
}

static void
queue_pop (struct nbd_connection *connection)
{
  struct nbd_reply *reply;

  pthread_mutex_lock (&connection->lock);
  reply = connection->queue;
  connection->queue = reply->next;
  if (!connection->queue)
    connection->queue_end = &connection->queue;
  pthread_mutex_unlock (&connection->lock);
  nbd_reply_destroy (connection->server, reply);
}

/* With send_lock. */
static enum sent
send_queued (struct nbd_connection *connection, bool inside)
{
  struct nbd_reply *reply;

  while ((reply = queue_head (connection)) != NULL) {
    const enum sent sent = connection->broken
                           ? ALL_SENT
                           : send_gated (connection, &reply->out, inside);

    if (sent == WOULD_BLOCK)
      return WOULD_BLOCK;
    if (sent == BROKEN)
      connection->broken = true;
    queue_pop (connection);
  }
  return connection->broken ? BROKEN : ALL_SENT;
}

void
nbd_reply_send (struct nbd_connection *connection, struct nbd_reply *reply)
{
  enum sent sent;

  pthread_mutex_lock (&connection->lock);
  *connection->queue_end = reply;
  connection->queue_end = &reply->next;
  pthread_mutex_unlock (&connection->lock);
  /* Who holds send_lock looks at the queue again after letting it go. */
  while (queue_head (connection)
         && pthread_mutex_trylock (&connection->send_lock) == 0) {
    sent = send_queued (connection, false);
    pthread_mutex_unlock (&connection->send_lock);
    if (sent != ALL_SENT) {
      nbd_wake (connection->wake_fd);  /* its own thread waits for room */
      return;
    }
  }
}

bool
nbd_send_queue (struct nbd_connection *connection)
{
  enum sent sent;

  pthread_mutex_lock (&connection->send_lock);
  sent = send_queued (connection, false);
  pthread_mutex_unlock (&connection->send_lock);
  return sent != WOULD_BLOCK && !queue_head (connection);
}

static void
leave_gate (struct nbd_connection *connection)
{
  if (connection->inside)
    rp_gate_leave (connection->export->gate);
  connection->inside = false;
}

static bool
wait_for_room (struct nbd_connection *connection, int64_t deadline_ms)
{
  struct pollfd room = { connection->fd, POLLOUT, 0 };

  for (;;) {
    const int64_t left_ms = deadline_ms - nbd_now_ms ();
    int ready;

    if (left_ms <= 0)
      return false;
    ready = poll (&room, 1, (int) left_ms);
    if (ready > 0)
      return true;
    if (ready < 0 && errno != EINTR)
      return false;
  }
}

/* With send_lock: until everything is out. */
static bool
send_everything (struct nbd_connection *connection)
{
  int64_t deadline_ms = 0;

  for (;;) {
    enum sent sent = connection->broken ? BROKEN : ALL_SENT;

    /* one of the queue may be half out; but once ours is, it goes first */
    if (connection->jobs_about && connection->out.sent == 0)
      sent = send_queued (connection, connection->inside);
    if (sent == ALL_SENT)
      sent = send_gated (connection, &connection->out, connection->inside);
    leave_gate (connection);
    if (sent == ALL_SENT)
      return true;
    if (deadline_ms == 0)
      deadline_ms = nbd_now_ms () + connection->server->limits.send_ms;
    if (sent == BROKEN || !wait_for_room (connection, deadline_ms)) {
      connection->broken = true;
      return false;
    }
  }
}

bool
nbd_send_batch (struct nbd_connection *connection)
{
  bool fine;

  if (connection->out.length == 0) {
    leave_gate (connection);
    fine = true;
  } else if (!connection->jobs_about) {
    fine = send_everything (connection);   /* nobody else can be sending */
  } else {
    pthread_mutex_lock (&connection->send_lock);
    fine = send_everything (connection);
    pthread_mutex_unlock (&connection->send_lock);
    nbd_send_queue (connection);
  }
  connection->out.length = connection->out.sent = 0;
  connection->out.ack_count = 0;
  connection->entered = connection->held = false;
  return fine;
}

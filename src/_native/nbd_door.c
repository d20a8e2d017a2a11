/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_MAX       64     /* then handshakes get their turn */
#define NO_DESCRIPTORS_MS 100    /* pause when the process has none left */

static void
uncount (struct nbd_connection *c)
{
  if (c->dropped)
    return;
  c->dropped = true;
  c->server->open_count--;
  c->server->connections_open = c->server->open_count;
  if (c->export)
    c->export->connections--;
}

static void
drop (struct nbd_connection *c)
{
  uncount (c);
  shutdown (c->fd, SHUT_RDWR);
}

/* Room is made at the cost of who has done least: the oldest handshake, then
 * the oldest connection that never asked for anything.  One that has carried
 * a request is never dropped for a newcomer.
 */
static bool
evict (struct rp_nbd_server *server, const struct nbd_export *export)
{
  if (!export)
    for (struct nbd_connection *c = server->connections; c; c = c->next)
      if (c->handshake && !c->dropped) {
        drop (c);
        return true;
      }
  for (struct nbd_connection *c = server->connections; c; c = c->next)
    if (!c->handshake && !c->dropped && !c->used
        && (!export || c->export == export)) {
      drop (c);
      return true;
    }
  return false;
}

bool
nbd_door_admit (struct nbd_connection *c, struct nbd_export *export)
{
  if (export->connections >= c->server->limits.connections_per_export
      && !evict (c->server, export)) {
    nbd_count (&c->server->connections_refused, 1);
    return false;
  }
  export->connections++;
  c->export = export;
  return true;
}

static void
end_connection (struct nbd_connection *c)
{
  uncount (c);
  nbd_handshake_end (c);
  if (c->wake_fd >= 0)
    close (c->wake_fd);
  close (c->fd);
  pthread_mutex_destroy (&c->send_lock);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

static void
welcome (struct rp_nbd_server *server, int fd)
{
  const int yes = 1;
  struct nbd_connection *c = NULL;

  nbd_count (&server->connections_total, 1);
  if (server->open_count < server->limits.connections
      || evict (server, NULL))
    c = calloc (1, sizeof *c);
  if (!c) {
    nbd_count (&server->connections_refused, 1);
    close (fd);
    return;
  }
  c->server = server;
  c->fd = fd;
  c->wake_fd = -1;
  c->queue_end = &c->queue;
  c->deadline_ms = nbd_now_ms () + server->limits.handshake_ms;
  RP_CHECK (pthread_mutex_init (&c->send_lock, NULL) == 0);
  RP_CHECK (pthread_mutex_init (&c->lock, NULL) == 0);
  /* fails on a Unix socket, which has no delay */
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
  *server->connections_end = c;
  server->connections_end = &c->next;
  server->connections_open = ++server->open_count;
  if (!nbd_handshake_begin (c))
    drop (c);
}

/* False: out of descriptors, so that listening on would spin. */
static bool
accept_some (struct rp_nbd_server *server, int listener)
{
  for (int i = 0; i < ACCEPTS_MAX; i++) {
    const int fd = accept4 (listener, NULL, NULL,
                            SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0)
      welcome (server, fd);
    else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM
             || errno == ENOBUFS) {
      evict (server, NULL);
      return false;
    } else if (errno != EINTR && errno != ECONNABORTED)
      break;
  }
  return true;
}

static void
begin_transmission (struct nbd_connection *c)
{
  int error;

  nbd_handshake_end (c);
  c->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  error = c->wake_fd < 0 ? errno
                         : nbd_thread_start (&c->thread, "rp-nbd-client",
                                             nbd_transmission, c);
  c->has_thread = !error;
  if (error) {
    drop (c);
    nbd_count (&c->server->connections_refused, 1);
  }
}

static void
serve_handshake (struct nbd_connection *c)
{
  const enum nbd_progress progress = nbd_handshake_advance (c);

  if (progress == NBD_GO)
    begin_transmission (c);
  else if (progress == NBD_CLOSE)
    drop (c);
}

/* Join the threads that have ended, and forget dropped handshakes. */
static void
reap (struct rp_nbd_server *server)
{
  struct nbd_connection **link = &server->connections, *c;

  while ((c = *link) != NULL) {
    const bool over = c->has_thread ? c->finished : c->dropped;

    if (!over) {
      link = &c->next;
      continue;
    }
    if (c->has_thread)
      RP_CHECK (pthread_join (c->thread, NULL) == 0);
    *link = c->next;
    end_connection (c);
  }
  server->connections_end = link;
}

/* Fill server->polled: our own bell, the listeners, the handshakes. */
static uint32_t
gather (struct rp_nbd_server *server, bool listening, int64_t *until_ms)
{
  uint32_t count = 0;

  server->polled[count++] = (struct pollfd) { server->wake_fd, POLLIN, 0 };
  for (uint32_t i = 0; i < server->listener_count; i++)
    server->polled[count++] = (struct pollfd) {
      listening ? server->listeners[i] : -1, POLLIN, 0
    };
  for (struct nbd_connection *c = server->connections; c; c = c->next) {
    if (!c->handshake || c->dropped)
      continue;
    RP_CHECK (count < server->polled_room);
    server->polled_who[count] = c;
    server->polled[count++] = (struct pollfd) {
      c->fd, c->handshake->reply_sent < c->handshake->reply_bytes
             ? POLLOUT : POLLIN, 0
    };
    if (*until_ms == 0 || c->deadline_ms < *until_ms)
      *until_ms = c->deadline_ms;
  }
  return count;
}

static int
timeout_of (int64_t until_ms)
{
  const int64_t left_ms = until_ms - nbd_now_ms ();

  if (until_ms == 0)
    return -1;
  return left_ms < 0 ? 0 : left_ms > 60000 ? 60000 : (int) left_ms;
}

/* One round.  Returns whether listening makes sense in the next. */
static bool
serve_round (struct rp_nbd_server *server, bool listening)
{
  int64_t until_ms = listening ? 0 : nbd_now_ms () + NO_DESCRIPTORS_MS;
  const uint32_t count = gather (server, listening, &until_ms);
  int64_t now_ms;

  if (poll (server->polled, count, timeout_of (until_ms)) < 0)
    return listening;
  nbd_unwake (server->wake_fd);
  now_ms = nbd_now_ms ();
  listening = true;
  for (uint32_t i = 1 + server->listener_count; i < count; i++) {
    struct nbd_connection *c = server->polled_who[i];

    if (c->dropped)
      continue;
    if (server->polled[i].revents)
      serve_handshake (c);
    if (!c->dropped && c->handshake && now_ms >= c->deadline_ms)
      drop (c);
  }
  for (uint32_t i = 1; i <= server->listener_count; i++)
    if (server->polled[i].revents)
      listening = accept_some (server, server->polled[i].fd) && listening;
  return listening;
}

/* Let running requests end until the deadline, then cut the lines. */
static void
close_all (struct rp_nbd_server *server)
{
  const int64_t deadline_ms = nbd_now_ms () + server->stop_ms;
  struct pollfd bell = { server->wake_fd, POLLIN, 0 };
  bool cut = false;

  for (struct nbd_connection *c = server->connections; c; c = c->next)
    if (c->has_thread) {
      c->stopping = true;
      nbd_wake (c->wake_fd);
    } else
      drop (c);
  for (;;) {
    reap (server);
    if (!server->connections)
      return;
    if (!cut && nbd_now_ms () >= deadline_ms) {
      for (struct nbd_connection *c = server->connections; c; c = c->next)
        shutdown (c->fd, SHUT_RDWR);
      cut = true;
    }
    poll (&bell, 1, cut ? -1 : timeout_of (deadline_ms));
    nbd_unwake (server->wake_fd);
  }
}

void *
nbd_door (void *argument)
{
  struct rp_nbd_server *server = argument;
  bool listening = true;

  while (!server->stopping) {
    reap (server);
    listening = serve_round (server, listening);
  }
  close_all (server);
  return NULL;
}

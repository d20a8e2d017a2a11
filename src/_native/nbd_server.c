/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NAME_BYTES_MAX 255u

int64_t
nbd_now_ns (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C (1000000000) + now.tv_nsec;
}

int64_t
nbd_now_ms (void)
{
  return nbd_now_ns () / 1000000;
}

int
nbd_thread_start (pthread_t *thread, const char *name,
                  void *(*function) (void *), void *argument)
{
  sigset_t all, before;
  pthread_attr_t attributes;
  int error;

  sigfillset (&all);
  RP_CHECK (pthread_attr_init (&attributes) == 0);
  RP_CHECK (pthread_attr_setstacksize (&attributes, NBD_STACK_BYTES) == 0);
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &all, &before) == 0);
  error = pthread_create (thread, &attributes, function, argument);
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &before, NULL) == 0);
  pthread_attr_destroy (&attributes);
  if (!error)
    pthread_setname_np (*thread, name);
  return error;
}

void
nbd_wake (int event_fd)
{
  const uint64_t one = 1;
  ssize_t done;

  do
    done = write (event_fd, &one, sizeof one);
  while (done < 0 && errno == EINTR);
}

void
nbd_unwake (int event_fd)
{
  uint64_t count;
  ssize_t done;

  do
    done = read (event_fd, &count, sizeof count);
  while (done < 0 && errno == EINTR);
}

uint8_t *
nbd_buffer_take (struct rp_nbd_server *server)
{
  uint8_t *buffer = NULL;

  pthread_mutex_lock (&server->memory_lock);
  if (server->spare_count)
    buffer = server->spare[--server->spare_count];
  pthread_mutex_unlock (&server->memory_lock);
  return buffer ? buffer : malloc (NBD_BUFFER_BYTES);
}

void
nbd_buffer_give (struct rp_nbd_server *server, uint8_t *buffer)
{
  pthread_mutex_lock (&server->memory_lock);
  if (buffer && server->spare_count < NBD_SPARE_BUFFERS) {
    server->spare[server->spare_count++] = buffer;
    buffer = NULL;
  }
  pthread_mutex_unlock (&server->memory_lock);
  free (buffer);
}

bool
nbd_budget_take (struct rp_nbd_server *server, uint64_t bytes)
{
  bool fits;

  pthread_mutex_lock (&server->memory_lock);
  fits = server->charged == 0
         || (server->charged <= server->limits.bytes_in_flight
             && bytes <= server->limits.bytes_in_flight - server->charged);
  if (fits)
    server->charged += bytes;
  pthread_mutex_unlock (&server->memory_lock);
  return fits;
}

void
nbd_budget_give (struct rp_nbd_server *server, uint64_t bytes)
{
  pthread_mutex_lock (&server->memory_lock);
  RP_CHECK (server->charged >= bytes);
  server->charged -= bytes;
  pthread_mutex_unlock (&server->memory_lock);
}

struct nbd_export *
nbd_find_export (struct rp_nbd_server *server, const uint8_t *name,
                 uint32_t name_bytes)
{
  for (uint32_t i = 0; i < server->export_count; i++) {
    struct nbd_export *export = server->exports[i];

    if (export->name_bytes == name_bytes
        && (name_bytes == 0 || memcmp (export->name, name, name_bytes) == 0))
      return export;
  }
  return NULL;
}

static void
set_defaults (struct rp_nbd_limits *limits)
{
#define DEFAULT(field, value) \
  if (limits->field == 0)     \
    limits->field = (value)
  DEFAULT (connections, 64);
  DEFAULT (connections_per_export, 16);
  DEFAULT (handshake_ms, 10000);
  DEFAULT (receive_ms, 30000);
  DEFAULT (send_ms, 30000);
  DEFAULT (options, 32);
  DEFAULT (option_bytes, 65536);
  DEFAULT (bytes_in_flight, UINT64_C (256) << 20);
  DEFAULT (protocol_errors, 16);
  DEFAULT (workers, 4);
#undef DEFAULT
}

int
rp_nbd_server_create (const struct rp_nbd_limits *limits,
                      struct rp_nbd_server **out, struct rp_fault *fault)
{
  struct rp_nbd_server *server = calloc (1, sizeof *server);

  *out = NULL;
  if (!server)
    return rp_fail (fault, RP_NO_MEMORY, 0, "an NBD server");
  server->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (server->wake_fd < 0) {
    const int error = errno;

    free (server);
    return rp_fail_os (fault, error, 0, "an event descriptor");
  }
  if (limits)
    server->limits = *limits;
  set_defaults (&server->limits);
  server->connections_end = &server->connections;
  server->jobs_end = &server->jobs;
  RP_CHECK (pthread_mutex_init (&server->jobs_lock, NULL) == 0);
  RP_CHECK (pthread_mutex_init (&server->memory_lock, NULL) == 0);
  RP_CHECK (pthread_cond_init (&server->jobs_come, NULL) == 0);
  *out = server;
  return RP_OK;
}

static uint16_t
transmission_flags (bool read_only)
{
  const uint16_t all = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH
                       | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN;

  if (read_only)
    return all | NBD_FLAG_READ_ONLY;
  return all | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES
         | NBD_FLAG_SEND_FAST_ZERO;
}

static struct nbd_export *
make_export (const char *name, struct rp_disk *disk, struct rp_gate *gate,
             bool read_only)
{
  struct nbd_export *export = calloc (1, sizeof *export);

  if (!export)
    return NULL;
  export->name = strdup (name);
  if (!export->name) {
    free (export);
    return NULL;
  }
  export->name_bytes = (uint32_t) strlen (name);
  export->disk = disk;
  export->gate = gate;
  export->flags = transmission_flags (read_only || disk->read_only);
  return export;
}

int
rp_nbd_server_add (struct rp_nbd_server *server, const char *name,
                   struct rp_disk *disk, struct rp_gate *gate,
                   bool read_only, struct rp_fault *fault)
{
  const size_t name_bytes = strlen (name);
  struct nbd_export **grown;

  if (server->started)
    return rp_fail (fault, RP_STATE, 0, "the NBD server has been started");
  if (name_bytes > NAME_BYTES_MAX)
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "an export name of %zu bytes; at most %u", name_bytes,
                    NAME_BYTES_MAX);
  if (nbd_find_export (server, (const uint8_t *) name, (uint32_t) name_bytes))
    return rp_fail (fault, RP_BAD_ARGUMENT, 0,
                    "two NBD exports with the name \"%s\"", name);
  grown = realloc (server->exports,
                   (server->export_count + 1) * sizeof *grown);
  if (grown) {
    server->exports = grown;
    grown[server->export_count] = make_export (name, disk, gate, read_only);
  }
  if (!grown || !grown[server->export_count])
    return rp_fail (fault, RP_NO_MEMORY, 0, "the NBD export \"%s\"", name);
  server->export_count++;
  return RP_OK;
}

int
rp_nbd_server_listen (struct rp_nbd_server *server, int socket_fd,
                      struct rp_fault *fault)
{
  const int flags = fcntl (socket_fd, F_GETFL);
  int *grown;

  if (server->started)
    return rp_fail (fault, RP_STATE, 0, "the NBD server has been started");
  if (flags < 0 || fcntl (socket_fd, F_SETFL, flags | O_NONBLOCK) < 0)
    return rp_fail_os (fault, errno, 0, "the listening socket");
  grown = realloc (server->listeners,
                   (server->listener_count + 1) * sizeof *grown);
  if (!grown)
    return rp_fail (fault, RP_NO_MEMORY, 0, "the listening socket");
  server->listeners = grown;
  grown[server->listener_count++] = socket_fd;
  return RP_OK;
}

int
rp_nbd_server_start (struct rp_nbd_server *server, struct rp_fault *fault)
{
  int status, error;

  if (server->started)
    return rp_fail (fault, RP_STATE, 0, "the NBD server has been started");
  server->polled_room = 1 + server->listener_count
                        + server->limits.connections;
  server->polled = calloc (server->polled_room, sizeof *server->polled);
  server->polled_who = calloc (server->polled_room,
                               sizeof *server->polled_who);
  if (!server->polled || !server->polled_who)
    return rp_fail (fault, RP_NO_MEMORY, 0, "%u connections",
                    server->limits.connections);
  status = nbd_workers_start (server, fault);
  if (status != RP_OK)
    return status;
  error = nbd_thread_start (&server->door, "rp-nbd-door", nbd_door, server);
  if (error) {
    nbd_workers_stop (server);
    return rp_fail_os (fault, error, 0, "starting the NBD server's thread");
  }
  server->started = true;
  return RP_OK;
}

static void
close_listeners (struct rp_nbd_server *server)
{
  for (uint32_t i = 0; i < server->listener_count; i++)
    close (server->listeners[i]);
  server->listener_count = 0;
}

void
rp_nbd_server_stop (struct rp_nbd_server *server, uint32_t deadline_ms)
{
  if (!server->started || server->stopping)
    return;
  server->stop_ms = deadline_ms;
  server->stopping = true;
  nbd_wake (server->wake_fd);
  RP_CHECK (pthread_join (server->door, NULL) == 0);
  nbd_workers_stop (server);
  close_listeners (server);
}

void
rp_nbd_server_destroy (struct rp_nbd_server *server)
{
  if (!server)
    return;
  rp_nbd_server_stop (server, 0);
  close_listeners (server);
  RP_CHECK (server->charged == 0);
  for (uint32_t i = 0; i < server->export_count; i++) {
    free (server->exports[i]->name);
    free (server->exports[i]);
  }
  for (uint32_t i = 0; i < server->spare_count; i++)
    free (server->spare[i]);
  free (server->exports);
  free (server->listeners);
  free (server->polled);
  free (server->polled_who);
  close (server->wake_fd);
  pthread_cond_destroy (&server->jobs_come);
  pthread_mutex_destroy (&server->memory_lock);
  pthread_mutex_destroy (&server->jobs_lock);
  free (server);
}

void
rp_nbd_server_stats (struct rp_nbd_server *server, struct rp_nbd_stats *out)
{
  *out = (struct rp_nbd_stats) {
    .connections_open = server->connections_open,
    .connections_total = server->connections_total,
    .connections_refused = server->connections_refused,
    .reads = server->reads,
    .writes = server->writes,
    .flushes = server->flushes,
    .trims = server->trims,
    .zeroes = server->zeroes,
    .errors = server->errors,
    .bytes_read = server->bytes_read,
    .bytes_written = server->bytes_written,
  };
}

uint64_t
rp_nbd_server_lost (struct rp_nbd_server *server, uint32_t index)
{
  return index < server->export_count ? server->exports[index]->lost : 0;
}

uint64_t
rp_nbd_server_refused (struct rp_nbd_server *server, uint32_t index)
{
  return index < server->export_count ? server->exports[index]->refused : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define IDLE_MS   1000           /* then the buffers go back */
#define BUDGET_MS   10           /* between looks at a budget that is spent */

#define LINGER_NS     3000       /* see linger */
#define COMPACT_ABOVE (NBD_BUFFER_BYTES - NBD_INLINE_MAX - NBD_REQUEST_BYTES)
#define LINGER_MISSES   16
#define LINGER_PAUSE   256

static bool
jobs_left (struct nbd_connection *c)
{
  bool left;

  pthread_mutex_lock (&c->lock);
  left = c->jobs != 0;
  pthread_mutex_unlock (&c->lock);
  return left;
}

/* Sleep until the socket is ready for want, or somebody wakes us, or the
 * deadline (0: none), and send meanwhile what workers could not.
 * Returns the socket's events; 0 for anything else that ended the sleep.
 */
static short
wait_once (struct nbd_connection *c, short want, int64_t deadline_ms)
{
  struct pollfd polled[2] = { { -1, want, 0 }, { c->wake_fd, POLLIN, 0 } };
  int64_t timeout_ms = -1;

  if (c->jobs_about && !nbd_send_queue (c)) {
    polled[0].events |= POLLOUT;
    if (c->queue_deadline_ms == 0)
      c->queue_deadline_ms = nbd_now_ms () + c->server->limits.send_ms;
    if (deadline_ms == 0 || deadline_ms > c->queue_deadline_ms)
      deadline_ms = c->queue_deadline_ms;
  } else
    c->queue_deadline_ms = 0;
  if (polled[0].events)
    polled[0].fd = c->fd;
  if (deadline_ms != 0) {
    timeout_ms = deadline_ms - nbd_now_ms ();
    if (timeout_ms < 0)
      timeout_ms = 0;
  }
  if (poll (polled, 2, (int) timeout_ms) < 0)
    return 0;
  if (polled[1].revents)
    nbd_unwake (c->wake_fd);
  if (c->queue_deadline_ms != 0 && nbd_now_ms () >= c->queue_deadline_ms)
    c->broken = true;
  return polled[0].revents;
}

/* Until fewer than `most` jobs are under way. */
static void
wait_for_jobs (struct nbd_connection *c, uint32_t most)
{
  for (;;) {
    bool enough;

    pthread_mutex_lock (&c->lock);
    enough = c->jobs < most;
    c->waiting = !enough;
    pthread_mutex_unlock (&c->lock);
    if (enough)
      return;
    wait_once (c, 0, 0);
  }
}

/* Outside the gate, the batch having been sent. */
static void
submit (struct nbd_connection *c, struct nbd_job *job)
{
  wait_for_jobs (c, NBD_JOBS_MAX);
  pthread_mutex_lock (&c->lock);
  c->jobs++;
  pthread_mutex_unlock (&c->lock);
  c->jobs_about = true;
  nbd_workers_submit (job);
}

/* Send what the batch holds, then start the flush that it waits for. */
static bool
end_batch (struct nbd_connection *c)
{
  const bool fine = nbd_send_batch (c);

  if (c->sync) {
    submit (c, c->sync);
    c->sync = NULL;
  }
  return fine;
}

static bool
make_room (struct nbd_connection *c, uint32_t length)
{
  if (c->out.length < NBD_BATCH_BYTES
      && c->out.ack_count < c->out.ack_room
      && c->out.room - c->out.length >= length + NBD_REPLY_EXTRA)
    return true;
  return end_batch (c);
}

/* Into the gate, once for a batch.  False: the replica is on hold. */
static bool
enter (struct nbd_connection *c)
{
  if (!c->entered && c->export->gate) {
    rp_disk_settle (c->export->disk);
    c->entered = true;
    c->inside = rp_gate_enter (c->export->gate, NULL) == RP_OK;
    c->held = !c->inside;
  }
  return !c->held;
}

static bool
answer_after_flush (struct nbd_connection *c, const struct nbd_request *request)
{
  if (c->sync && c->sync->sync_count == NBD_SYNC_MAX && !end_batch (c))
    return false;
  if (!c->sync) {
    c->sync = calloc (1, sizeof *c->sync
                         + NBD_SYNC_MAX * sizeof c->sync->sync[0]);
    if (!c->sync) {
      nbd_answer (c, request, NBD_ENOMEM, &c->out);
      return true;
    }
    c->sync->connection = c;
    c->sync->kind = NBD_JOB_SYNC;
  }
  memcpy (c->sync->sync[c->sync->sync_count].cookie, request->cookie,
          NBD_COOKIE_BYTES);
  c->sync->sync[c->sync->sync_count++].is_write = nbd_is_write (request);
  return true;
}

static bool
answer_write (struct nbd_connection *c, const struct nbd_request *request,
              uint32_t error)
{
  if (error == NBD_OK && (request->flags & NBD_CMD_FLAG_FUA))
    return answer_after_flush (c, request);
  nbd_answer (c, request, error, &c->out);
  return true;
}

static bool
budget (struct nbd_connection *c, uint64_t bytes)
{
  while (!nbd_budget_take (c->server, bytes)) {
    if (c->stopping || c->broken)
      return false;
    wait_once (c, 0, nbd_now_ms () + BUDGET_MS);
  }
  return true;
}

/* A job for a request without payload; a read is charged for its reply. */
static bool
hand_over (struct nbd_connection *c, const struct nbd_request *request)
{
  const uint64_t charge = request->type == NBD_CMD_READ ? request->length : 0;
  struct nbd_job *job = calloc (1, sizeof *job);

  if (!job) {
    nbd_answer (c, request, NBD_ENOMEM, &c->out);
    return true;
  }
  job->connection = c;
  job->kind = NBD_JOB_COMMAND;
  job->request = *request;
  if (!end_batch (c) || !budget (c, charge)) {
    nbd_job_destroy (job);
    return false;
  }
  job->charged = charge;
  submit (c, job);
  return true;
}

/* length bytes of payload that follow in the stream, to `into` or nowhere. */
static bool
receive_payload (struct nbd_connection *c, uint8_t *into, uint32_t length)
{
  const int64_t deadline_ms = nbd_now_ms () + c->server->limits.receive_ms;
  uint32_t done = c->in_end - c->in_start;

  if (done > length)
    done = length;
  if (into)
    memcpy (into, c->in + c->in_start, done);
  c->in_start += done;
  while (done < length) {             /* then c->in is empty */
    uint32_t most = length - done;
    ssize_t got;

    if (!into && most > NBD_BUFFER_BYTES)
      most = NBD_BUFFER_BYTES;
    got = recv (c->fd, into ? into + done : c->in, most, MSG_DONTWAIT);
    if (got > 0)
      done += (uint32_t) got;
    else if (got == 0 || (errno != EAGAIN && errno != EINTR))
      return false;
    else {
      wait_once (c, POLLIN, deadline_ms);
      if (c->stopping || c->broken || nbd_now_ms () >= deadline_ms)
        return false;
    }
  }
  return true;
}

/* A WRITE whose payload does not fit the buffer. */
static bool
big_write (struct nbd_connection *c, const struct nbd_request *request)
{
  struct nbd_job *job;

  if (!end_batch (c) || !budget (c, request->length))
    return false;
  job = calloc (1, sizeof *job);
  if (job) {
    job->connection = c;
    job->kind = NBD_JOB_COMMAND;
    job->request = *request;
    job->charged = request->length;
    job->payload = malloc (request->length);
  } else
    nbd_budget_give (c->server, request->length);
  if (!job || !job->payload) {
    nbd_job_destroy (job);
    if (!receive_payload (c, NULL, request->length))
      return false;
    nbd_answer (c, request, NBD_ENOMEM, &c->out);
    return true;
  }
  if (!receive_payload (c, job->payload, request->length)) {
    nbd_job_destroy (job);
    return false;
  }
  submit (c, job);
  return true;
}

/* False after too many. */
static bool
refuse (struct nbd_connection *c, const struct nbd_request *request,
        uint32_t error)
{
  nbd_answer (c, request, error, &c->out);
  if (error != NBD_EPERM && error != NBD_ENOTSUP)
    c->protocol_errors++;
  return c->protocol_errors <= c->server->limits.protocol_errors;
}

static bool
serve_flush (struct nbd_connection *c, const struct nbd_request *request)
{
  nbd_count (&c->server->flushes, 1);
  return answer_after_flush (c, request);
}

static bool
serve_zero (struct nbd_connection *c, const struct nbd_request *request)
{
  nbd_count (request->type == NBD_CMD_TRIM ? &c->server->trims
                                           : &c->server->zeroes, 1);
  if (request->length > NBD_INLINE_MAX)
    return hand_over (c, request);
  return answer_write (c, request,
                       enter (c) ? nbd_zero (c, request, request->offset,
                                             request->length)
                                 : NBD_ESHUTDOWN);
}

/* One request; payload is there when it is a WRITE of NBD_INLINE_MAX at most.
 * False ends the connection.
 */
static bool
serve (struct nbd_connection *c, const struct nbd_request *request,
       const uint8_t *payload)
{
  uint32_t error;

  if (!make_room (c, request->type == NBD_CMD_READ
                     && request->length <= NBD_INLINE_MAX
                     ? request->length : 0))
    return false;
  error = nbd_check (c, request);
  if (error != NBD_OK) {
    if (request->type == NBD_CMD_WRITE && !payload
        && !receive_payload (c, NULL, request->length))
      return false;
    return refuse (c, request, error);
  }
  c->changed = c->changed || nbd_is_write (request);
  switch (request->type) {
  case NBD_CMD_READ:
    if (request->length > NBD_INLINE_MAX || c->cold >= NBD_COLD)
      return hand_over (c, request);
    nbd_read (c, request, &c->out);
    return true;
  case NBD_CMD_WRITE:
    if (!payload)
      return big_write (c, request);
    nbd_count (&c->server->writes, 1);
    return answer_write (c, request, enter (c) ? nbd_write (c, request, payload)
                                               : NBD_ESHUTDOWN);
  case NBD_CMD_FLUSH:
    return serve_flush (c, request);
  case NBD_CMD_BLOCK_STATUS:
    return hand_over (c, request);
  default:                            /* nbd_check lets no other through */
    return serve_zero (c, request);
  }
}

/* Everything that is in the buffer whole.  False ends the connection. */
static bool
serve_buffered (struct nbd_connection *c)
{
  while (c->in_end - c->in_start >= NBD_REQUEST_BYTES) {
    const uint8_t *at = c->in + c->in_start;
    struct nbd_request request = {
      .flags = nbd_load16 (at + 4),
      .type = nbd_load16 (at + 6),
      .offset = nbd_load64 (at + 16),
      .length = nbd_load32 (at + 24),
    };
    const bool is_write = request.type == NBD_CMD_WRITE;
    uint32_t whole = NBD_REQUEST_BYTES;

    if (nbd_load32 (at) != NBD_REQUEST_MAGIC)
      return false;
    if (request.type == NBD_CMD_DISC) {
      c->disconnected = true;
      return false;
    }
    if (is_write && request.length > NBD_PAYLOAD_MAX)
      return false;
    if (is_write && request.length <= NBD_INLINE_MAX)
      whole += request.length;
    if (c->in_end - c->in_start < whole)
      break;
    memcpy (request.cookie, at + 8, NBD_COOKIE_BYTES);
    c->in_start += whole;
    c->request_deadline_ms = 0;
    if (!serve (c, &request, is_write && request.length <= NBD_INLINE_MAX
                             ? at + NBD_REQUEST_BYTES : NULL))
      return false;
  }
  return end_batch (c);
}

static void
give_buffers (struct nbd_connection *c)
{
  nbd_buffer_give (c->server, c->in);
  nbd_buffer_give (c->server, c->out.bytes);
  c->in = c->out.bytes = NULL;
}

static bool
take_buffers (struct nbd_connection *c)
{
  if (c->in)
    return true;
  c->in = nbd_buffer_take (c->server);
  c->out.bytes = nbd_buffer_take (c->server);
  c->out.room = NBD_BUFFER_BYTES;
  return c->in && c->out.bytes;
}

/* Move what is left of a request to the front when the rest would not fit. */
static void
compact (struct nbd_connection *c)
{
  const uint32_t left = c->in_end - c->in_start;

  if (left == 0)
    c->in_start = c->in_end = 0;
  else if (c->in_start > COMPACT_ABOVE) {
    memmove (c->in, c->in + c->in_start, left);
    c->in_start = 0;
    c->in_end = left;
  }
}

/* A client with many requests under way sends them in a burst, one call each.
 * Who answers the first at once makes it poll and receive for every single
 * reply; so look a few microseconds for the rest of the burst (fio, 4 KiB
 * reads at queue depth 16: 121,000 a second without, 146,000 with; its CPU
 * time per request 8.0 and 6.7 us).  Where none comes, as at queue depth 1,
 * stop looking for a while.
 */
static void
linger (struct nbd_connection *c)
{
  int64_t until_ns = nbd_now_ns () + LINGER_NS;
  bool more = false;

  while (c->in_end < NBD_BATCH_BYTES && nbd_now_ns () < until_ns) {
    const ssize_t got = recv (c->fd, c->in + c->in_end,
                              NBD_BUFFER_BYTES - c->in_end, MSG_DONTWAIT);

    if (got > 0) {
      c->in_end += (uint32_t) got;
      until_ns = nbd_now_ns () + LINGER_NS;
      more = true;
    } else if (got == 0 || errno != EAGAIN)
      break;
  }
  if (more)
    c->linger_misses = 0;
  else if (++c->linger_misses == LINGER_MISSES) {
    c->linger_misses = 0;
    c->linger_pause = LINGER_PAUSE;
  }
}

/* More bytes of requests.  False: the client has gone, or time is over. */
static bool
receive (struct nbd_connection *c)
{
  for (;;) {
    ssize_t got;

    if (c->stopping || c->broken)
      return false;
    if (!c->in && !wait_once (c, POLLIN, 0))
      continue;
    if (!take_buffers (c))
      return false;
    compact (c);
    got = recv (c->fd, c->in + c->in_end, NBD_BUFFER_BYTES - c->in_end,
                MSG_DONTWAIT);
    if (got > 0) {
      c->in_end += (uint32_t) got;
      if (c->linger_pause == 0)
        linger (c);
      else
        c->linger_pause--;
      return true;
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
      return false;
    if (c->jobs_about && !jobs_left (c) && nbd_send_queue (c))
      c->jobs_about = false;
    if (c->in_end != c->in_start) {   /* a request has begun */
      if (c->request_deadline_ms == 0)
        c->request_deadline_ms = nbd_now_ms () + c->server->limits.receive_ms;
      if (nbd_now_ms () >= c->request_deadline_ms)
        return false;
      wait_once (c, POLLIN, c->request_deadline_ms);
    } else {
      const int64_t idle_ms = nbd_now_ms () + IDLE_MS;

      if (!wait_once (c, POLLIN, idle_ms) && nbd_now_ms () >= idle_ms)
        give_buffers (c);
    }
  }
}

/* A client that wrote and is gone without a word may be writing elsewhere:
 * whoever marks restore points wants to know before it marks another one.
 */
static void
note_loss (struct nbd_connection *c)
{
  if (!c->changed || c->disconnected || c->stopping)
    return;
  nbd_count (&c->export->lost, 1);
  if (c->export->gate)
    rp_gate_alarm (c->export->gate);
}

void *
nbd_transmission (void *argument)
{
  struct nbd_connection *c = argument;

  c->out.acks = c->out_acks;
  c->out.ack_room = NBD_BATCH_ACKS;
  while (receive (c)) {
    if (!c->used)
      c->used = true;
    if (!serve_buffered (c))
      break;
  }
  note_loss (c);
  if (c->in)
    end_batch (c);
  wait_for_jobs (c, 1);
  while (!nbd_send_queue (c))         /* when broken, this drops it */
    wait_once (c, POLLOUT, 0);
  give_buffers (c);
  shutdown (c->fd, SHUT_RDWR);
  c->finished = true;
  nbd_wake (c->server->wake_fd);
  return NULL;
}

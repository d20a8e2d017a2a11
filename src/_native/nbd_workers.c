/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd_inside.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void
nbd_job_destroy (struct nbd_job *job)
{
  if (!job)
    return;
  if (job->charged)
    nbd_budget_give (job->connection->server, job->charged);
  free (job->payload);
  free (job);
}

/* One slice, in one passage through the gate, so that a cut need not wait for
 * long; the acknowledgement has a passage of its own, when it is sent.
 */
static uint32_t
apply (struct nbd_connection *connection, const struct nbd_job *job,
       uint64_t done, uint64_t length)
{
  struct rp_gate *gate = connection->export->gate;
  struct nbd_request slice = job->request;
  uint32_t error;

  slice.offset += done;
  slice.length = (uint32_t) length;
  if (gate) {
    rp_disk_settle (connection->export->disk);
    if (rp_gate_enter (gate, NULL) != RP_OK)
      return NBD_ESHUTDOWN;
  }
  error = slice.type == NBD_CMD_WRITE
          ? nbd_write (connection, &slice, job->payload + done)
          : nbd_zero (connection, &slice, slice.offset, slice.length);
  if (gate)
    rp_gate_leave (gate);
  return error;
}

static uint32_t
apply_all (struct nbd_connection *connection, const struct nbd_job *job)
{
  const struct nbd_request *request = &job->request;
  const bool is_write = request->type == NBD_CMD_WRITE;
  const uint64_t slice = !is_write ? NBD_SLICE_BYTES
                         : connection->export->gate ? NBD_WRITE_SLICE_BYTES
                         : NBD_PAYLOAD_MAX;
  uint32_t error = NBD_OK;

  if (is_write)
    nbd_count (&connection->server->writes, 1);
  for (uint64_t done = 0; done < request->length && error == NBD_OK;
       done += slice) {
    const uint64_t left = request->length - done;

    error = apply (connection, job, done, left < slice ? left : slice);
  }
  if (error == NBD_OK && (request->flags & NBD_CMD_FLAG_FUA))
    error = nbd_flush (connection);
  return error;
}

static struct nbd_reply *
run_command (struct nbd_job *job)
{
  struct nbd_connection *connection = job->connection;
  const struct nbd_request *request = &job->request;
  uint32_t room = NBD_REPLY_EXTRA;
  struct nbd_reply *reply;

  if (request->type == NBD_CMD_READ)
    room += request->length;
  else if (request->type == NBD_CMD_BLOCK_STATUS)
    room += 8u * NBD_DESCRIPTORS_MAX;
  reply = nbd_reply_create (room, 1, 0);
  if (!reply) {
    reply = nbd_reply_create (NBD_REPLY_EXTRA, 1, 0);
    if (reply)
      nbd_answer (connection, request, NBD_ENOMEM, &reply->out);
    return reply;
  }
  if (request->type == NBD_CMD_READ) {
    reply->charged = job->charged;       /* until it has been sent */
    job->charged = 0;
    nbd_read (connection, request, &reply->out);
  } else if (request->type == NBD_CMD_BLOCK_STATUS)
    nbd_block_status (connection, request, &reply->out);
  else
    nbd_answer (connection, request, apply_all (connection, job),
                &reply->out);
  return reply;
}

static struct nbd_reply *
run_sync (struct nbd_job *job)
{
  struct nbd_connection *connection = job->connection;
  const uint32_t error = nbd_flush (connection);
  struct nbd_reply *reply
    = nbd_reply_create (job->sync_count * NBD_SIMPLE_REPLY_BYTES,
                        job->sync_count, 0);

  if (!reply)
    return NULL;
  if (error != NBD_OK)
    nbd_count (&connection->server->errors, job->sync_count);
  for (uint32_t i = 0; i < job->sync_count; i++)
    nbd_answer_simple (&reply->out, job->sync[i].cookie, error,
                       job->sync[i].is_write);
  return reply;
}

static void
run (struct nbd_job *job)
{
  struct nbd_connection *connection = job->connection;
  struct nbd_reply *reply = job->kind == NBD_JOB_SYNC ? run_sync (job)
                                                      : run_command (job);

  nbd_job_destroy (job);
  if (reply)
    nbd_reply_send (connection, reply);
  else {                              /* no memory for 16 bytes of reply */
    connection->broken = true;
    shutdown (connection->fd, SHUT_RDWR);
  }
  pthread_mutex_lock (&connection->lock);
  connection->jobs--;
  if (connection->waiting)
    nbd_wake (connection->wake_fd);
  pthread_mutex_unlock (&connection->lock);
  /* From here on the connection may be gone. */
}

static void *
worker (void *argument)
{
  struct rp_nbd_server *server = argument;
  struct nbd_job *job;

  for (;;) {
    pthread_mutex_lock (&server->jobs_lock);
    while (!server->jobs && !server->jobs_over)
      pthread_cond_wait (&server->jobs_come, &server->jobs_lock);
    job = server->jobs;
    if (job) {
      server->jobs = job->next;
      if (!server->jobs)
        server->jobs_end = &server->jobs;
    }
    pthread_mutex_unlock (&server->jobs_lock);
    if (!job)
      return NULL;
    run (job);
  }
}

void
nbd_workers_submit (struct nbd_job *job)
{
  struct rp_nbd_server *server = job->connection->server;

  pthread_mutex_lock (&server->jobs_lock);
  job->next = NULL;
  *server->jobs_end = job;
  server->jobs_end = &job->next;
  pthread_cond_signal (&server->jobs_come);
  pthread_mutex_unlock (&server->jobs_lock);
}

int
nbd_workers_start (struct rp_nbd_server *server, struct rp_fault *fault)
{
  server->jobs_over = false;
  server->workers = calloc (server->limits.workers, sizeof *server->workers);
  if (!server->workers)
    return rp_fail (fault, RP_NO_MEMORY, 0, "worker threads");
  for (uint32_t i = 0; i < server->limits.workers; i++) {
    const int error = nbd_thread_start (&server->workers[i], "rp-nbd-worker",
                                        worker, server);

    if (error) {
      nbd_workers_stop (server);
      return rp_fail_os (fault, error, 0, "starting a worker thread");
    }
    server->worker_count++;
  }
  return RP_OK;
}

void
nbd_workers_stop (struct rp_nbd_server *server)
{
  pthread_mutex_lock (&server->jobs_lock);
  server->jobs_over = true;
  pthread_cond_broadcast (&server->jobs_come);
  pthread_mutex_unlock (&server->jobs_lock);
  for (uint32_t i = 0; i < server->worker_count; i++)
    RP_CHECK (pthread_join (server->workers[i], NULL) == 0);
  server->worker_count = 0;
  free (server->workers);
  server->workers = NULL;
}

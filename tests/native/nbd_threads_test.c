/* SPDX-License-Identifier: Apache-2.0 */
/* The server under many threads: holds, clients that do not read, starting and
 * stopping with clients attached, a thousand idle connections.
 * Longer: nbd_threads_test HOLDS CYCLES (10000 10000).
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ioctl.h>

#include "memory_disk.h"
#include "nbd_client.h"

enum {
  WRITERS = 8,
  DEPTH = 16,
  BLOCK = 512,
  LONG = 300000,                      /* a job for the workers */
  DISK_BYTES = 1 << 20,
};

struct fixture {
  struct memory_disk   *memory;
  struct rp_gate       *gate;
  struct rp_nbd_server *server;
  struct sockaddr_un    address;
};

static void
set_up (struct fixture *f, const char *name,
        const struct rp_nbd_limits *limits)
{
  struct rp_fault fault;

  f->memory = memory_disk_create (DISK_BYTES);
  OK (rp_gate_create (&f->gate, &fault));
  OK (rp_nbd_server_create (limits, &f->server, &fault));
  OK (rp_nbd_server_add (f->server, "", &f->memory->disk, f->gate, false,
                         &fault));
  OK (rp_nbd_server_listen (f->server, client_listen (&f->address, name),
                            &fault));
  OK (rp_nbd_server_start (f->server, &fault));
}

static void
tear_down (struct fixture *f)
{
  rp_nbd_server_destroy (f->server);
  rp_gate_destroy (f->gate);
  rp_disk_destroy (&f->memory->disk);
}

/* ---- holds, with writers in flight ---- */

/* After a hold, what lies in the socket was acknowledged before it; any
 * success behind that is a broken promise.
 */
struct writer {
  pthread_t       thread;
  int             fd;
  pthread_mutex_t lock;               /* held while receiving */
  bool            on_hold;
  int64_t         allowance;          /* bytes that were in the socket */
  uint64_t        acknowledged, refused, broken_promises;
  atomic_bool     finished;
};

static void
take_reply (struct writer *w)
{
  struct pollfd more = { w->fd, POLLIN, 0 };
  uint64_t cookie;
  uint32_t error = 0;
  int waiting = 0;

  CHECK (poll (&more, 1, -1) >= 0);
  pthread_mutex_lock (&w->lock);
  CHECK (ioctl (w->fd, FIONREAD, &waiting) == 0);
  if (waiting >= (int) NBD_SIMPLE_REPLY_BYTES) {
    CHECK (client_reply (w->fd, &error, &cookie));
    CHECK (error == NBD_OK || error == NBD_ESHUTDOWN);
    if (error != NBD_OK)
      w->refused++;
    else if (w->on_hold && w->allowance < (int64_t) NBD_SIMPLE_REPLY_BYTES)
      w->broken_promises++;
    else
      w->acknowledged++;
    w->allowance -= NBD_SIMPLE_REPLY_BYTES;
  } else
    waiting = 0;
  pthread_mutex_unlock (&w->lock);
  if (waiting > 0)
    CHECK (client_request (w->fd, 0, NBD_CMD_TRIM, 0,
                           (uint64_t) (error % 8) * BLOCK, BLOCK));
}

static void *
write_on (void *argument)
{
  struct writer *w = argument;
  uint8_t bytes[NBD_REQUEST_BYTES + BLOCK] = { 0 };

  for (int i = 0; i < DEPTH; i++) {
    client_put (bytes, i == 0 ? NBD_CMD_FLAG_FUA : 0, NBD_CMD_WRITE, 0,
                (uint64_t) i * BLOCK, BLOCK);
    CHECK (client_send (w->fd, bytes, sizeof bytes));
  }
  while (!w->finished)
    take_reply (w);
  return NULL;
}

static uint64_t
refusals (struct writer *w)
{
  uint64_t refused;

  pthread_mutex_lock (&w->lock);
  refused = w->refused;
  pthread_mutex_unlock (&w->lock);
  return refused;
}

static void
hold_once (struct fixture *f, struct writer *writers)
{
  uint64_t refused[WRITERS], writes;
  int waiting;

  rp_gate_hold (f->gate);
  writes = f->memory->writes;
  for (int i = 0; i < WRITERS; i++) {
    pthread_mutex_lock (&writers[i].lock);
    CHECK (ioctl (writers[i].fd, FIONREAD, &waiting) == 0);
    writers[i].on_hold = true;
    writers[i].allowance = waiting;
    refused[i] = writers[i].refused;
    pthread_mutex_unlock (&writers[i].lock);
  }
  for (int i = 0; i < 2; i++)         /* two of them have come to feel it */
    while (refusals (&writers[i]) == refused[i])
      usleep (20);
  CHECK (f->memory->writes == writes);
  for (int i = 0; i < WRITERS; i++) {
    pthread_mutex_lock (&writers[i].lock);
    writers[i].on_hold = false;
    pthread_mutex_unlock (&writers[i].lock);
  }
  CHECK (f->memory->writes == writes);
  rp_gate_release (f->gate);
}

static unsigned
held_means_held (int holds)
{
  struct writer writers[WRITERS] = { 0 };
  struct fixture f;

  set_up (&f, "holds", NULL);
  for (int i = 0; i < WRITERS; i++) {
    writers[i].fd = client_connect (&f.address);
    CHECK (client_go (writers[i].fd));
    CHECK (pthread_mutex_init (&writers[i].lock, NULL) == 0);
    CHECK (pthread_create (&writers[i].thread, NULL, write_on, &writers[i])
           == 0);
  }
  for (int round = 0; round < holds; round++)
    hold_once (&f, writers);
  for (int i = 0; i < WRITERS; i++) {
    writers[i].finished = true;
    CHECK (pthread_join (writers[i].thread, NULL) == 0);
    CHECK (writers[i].broken_promises == 0);
    CHECK (writers[i].acknowledged > 0);
    close (writers[i].fd);
    pthread_mutex_destroy (&writers[i].lock);
  }
  tear_down (&f);
  return (unsigned) holds * 2;
}

/* ---- a client that does not read ---- */

/* It fills the socket with replies; then a hold must not wait for it, and what
 * had not left turns into ESHUTDOWN.  Replies of workers come in between.
 */
static unsigned
a_client_that_does_not_read_stalls_no_hold (void)
{
  enum { ROUNDS = 200, LENGTH = 60000 };  /* three fill a batch */
  uint8_t bytes[3 * NBD_REQUEST_BYTES + BLOCK] = { 0 };
  static uint8_t data[LENGTH];
  struct rp_nbd_limits limits = { .send_ms = 600000 };
  uint64_t cookie, before, applied;
  int waiting = 0, taken = 0;
  unsigned refused = 0;
  struct fixture f;
  uint32_t error;
  int fd;

  set_up (&f, "deaf", &limits);
  fd = client_connect (&f.address);
  CHECK (client_go (fd));
  for (int i = 0; i < ROUNDS; i++) {
    uint8_t *at = client_put (bytes, 0, NBD_CMD_READ, 2, 0, LENGTH);

    at = client_put (at, 0, NBD_CMD_WRITE, 1, 0, BLOCK);
    client_put (at + BLOCK, 0, NBD_CMD_FLUSH, 3, 0, 0);
    CHECK (client_send (fd, bytes, sizeof bytes));
  }
  do {                                /* until it is stuck in a send */
    before = f.memory->writes;
    usleep (20000);
  } while (before == 0 || before != f.memory->writes);
  rp_gate_hold (f.gate);
  applied = f.memory->writes;
  CHECK (ioctl (fd, FIONREAD, &waiting) == 0);
  for (int i = 0; i < 3 * ROUNDS; i++) {
    CHECK (client_reply (fd, &error, &cookie));
    if (cookie == 1 && error == NBD_OK)
      CHECK (taken + 8 <= waiting);   /* its error field had left before */
    else if (cookie == 1) {
      CHECK (error == NBD_ESHUTDOWN);
      refused++;
    } else
      CHECK (error == NBD_OK);
    taken += (int) NBD_SIMPLE_REPLY_BYTES;
    if (cookie == 2) {
      CHECK (client_receive (fd, data, LENGTH));
      taken += LENGTH;
    }
  }
  CHECK (f.memory->writes == applied);
  CHECK (applied + refused >= ROUNDS);
  CHECK (refused > 0 && applied < ROUNDS);
  close (fd);
  tear_down (&f);
  return 3 * ROUNDS;
}

/* ---- slow reads ---- */

static atomic_int reads_begun, reads_at_once, most_at_once;

/* Slow; and after the first few, none ends before another has begun. */
static void
read_slowly (void)
{
  const int number = ++reads_begun;
  const int at_once = ++reads_at_once;

  usleep (1000);
  if (at_once > most_at_once)
    most_at_once = at_once;
  if (number > 4 && number % 2)
    for (int i = 0; i < 10000 && reads_begun == number; i++)
      usleep (1000);
  reads_at_once--;
}

static unsigned
slow_reads_wait_side_by_side (void)
{
  enum { READS = 40 };
  uint8_t data[512];
  struct fixture f;
  uint64_t cookie;
  uint32_t error;
  int fd;

  set_up (&f, "slow", NULL);
  f.memory->before_read = read_slowly;
  fd = client_connect (&f.address);
  CHECK (client_go (fd));
  for (int i = 0; i < READS; i++)
    CHECK (client_request (fd, 0, NBD_CMD_READ, (uint64_t) i, 0, 512));
  for (int i = 0; i < READS; i++) {
    CHECK (client_reply (fd, &error, &cookie));
    CHECK (error == NBD_OK);
    CHECK (client_receive (fd, data, sizeof data));
  }
  CHECK (most_at_once > 1);
  f.memory->before_read = NULL;
  for (int i = 0; i < 200; i++) {     /* and fast ones come back in order */
    CHECK (client_request (fd, 0, NBD_CMD_READ, (uint64_t) i, 0, 512));
    CHECK (client_reply (fd, &error, &cookie));
    CHECK (cookie == (uint64_t) i && error == NBD_OK);
    CHECK (client_receive (fd, data, sizeof data));
  }
  close (fd);
  tear_down (&f);
  return READS + 200;
}

/* ---- start and stop, with clients attached ---- */

static void *
be_a_nuisance (void *argument)
{
  const struct fixture *f = argument;
  static const uint8_t zeros[LONG];
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  static atomic_uint turn;
  const unsigned kind = turn++ % 8;

  if (connect (fd, (const struct sockaddr *) &f->address, sizeof f->address)
      != 0) {
    close (fd);
    return NULL;
  }
  if (kind == 0)
    client_send (fd, "\0\0", 2);      /* half of the flags */
  else if (kind > 1 && client_go (fd)) {
    uint8_t reply[64];

    if (kind == 2)
      client_request (fd, 0, NBD_CMD_WRITE, 1, 0, 4096);   /* no payload */
    else if (kind == 3)
      for (int i = 0; i < 6; i++)     /* reads, and does not take them */
        client_request (fd, 0, NBD_CMD_READ, 1, 0, LONG);
    else if (kind == 4) {
      client_request (fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 1, 0, LONG);
      client_send (fd, zeros, sizeof zeros);
    } else if (kind == 5)
      while (client_request (fd, 0, NBD_CMD_FLUSH, 1, 0, 0)
             && client_receive (fd, reply, NBD_SIMPLE_REPLY_BYTES))
        ;
    else if (kind == 6)
      while (client_request (fd, NBD_CMD_FLAG_FUA, NBD_CMD_TRIM, 1, 0, LONG)
             && client_receive (fd, reply, NBD_SIMPLE_REPLY_BYTES))
        ;
    else
      client_request (fd, 0, NBD_CMD_DISC, 1, 0, 0);
  }
  if (kind != 1 && kind != 3)
    while (recv (fd, (uint8_t[4096]) { 0 }, 4096, 0) > 0)
      ;
  close (fd);
  return NULL;
}

static unsigned
stopping_never_hangs (int cycles)
{
  enum { CLIENTS = 8 };

  for (int round = 0; round < cycles; round++) {
    pthread_t threads[CLIENTS];
    struct fixture f;

    set_up (&f, "stop", NULL);
    for (int i = 0; i < CLIENTS; i++)
      CHECK (pthread_create (&threads[i], NULL, be_a_nuisance, &f) == 0);
    if (round % 3)
      usleep ((useconds_t) (round % 7) * 200);
    rp_nbd_server_stop (f.server, (uint32_t) (round % 4) * 5);
    rp_nbd_server_stop (f.server, 0);
    for (int i = 0; i < CLIENTS; i++)
      CHECK (pthread_join (threads[i], NULL) == 0);
    tear_down (&f);
  }
  return (unsigned) cycles;
}

/* ---- errors ---- */

static uint32_t
answer_to (int fd, uint16_t flags, uint16_t type, uint32_t length)
{
  static const uint8_t data[LONG];
  uint64_t cookie;
  uint32_t error;

  CHECK (client_request (fd, flags, type, 5, 0, length));
  if (type == NBD_CMD_WRITE)
    CHECK (client_send (fd, data, length));
  CHECK (client_reply (fd, &error, &cookie));
  CHECK (cookie == 5);
  return error;
}

static unsigned
errors_reach_the_client_and_fua_waits_for_the_flush (void)
{
  static const struct { int status; uint32_t error; } cases[] = {
    { RP_READ_ONLY, NBD_EPERM },     { RP_HELD, NBD_ESHUTDOWN },
    { RP_STALE_EPOCH, NBD_ESHUTDOWN }, { RP_OUT_OF_RANGE, NBD_EINVAL },
    { RP_NO_MEMORY, NBD_ENOMEM },    { RP_FULL, NBD_ENOSPC },
    { RP_IO, NBD_EIO },              { RP_FAILED, NBD_EIO },
    { RP_CORRUPT, NBD_EIO },
  };
  struct rp_nbd_limits limits = { .protocol_errors = 1 };
  const unsigned count = sizeof cases / sizeof cases[0];
  struct fixture f;
  int fd;

  set_up (&f, "errors", &limits);
  fd = client_connect (&f.address);
  CHECK (client_go (fd));
  for (unsigned i = 0; i < count; i++) {
    const uint32_t error = cases[i].error;

    f.memory->fail = cases[i].status;
    CHECK (answer_to (fd, 0, NBD_CMD_READ, 512) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_READ, LONG) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_WRITE, 512) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_WRITE, LONG) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_TRIM, 512) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_WRITE_ZEROES, LONG) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_FLUSH, 0) == error);
    f.memory->fail = RP_OK;
    f.memory->fail_flush = cases[i].status;
    CHECK (answer_to (fd, 0, NBD_CMD_FLUSH, 0) == error);
    CHECK (answer_to (fd, 0, NBD_CMD_WRITE, 512) == NBD_OK);
    CHECK (answer_to (fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 512) == error);
    CHECK (answer_to (fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, LONG) == error);
    CHECK (answer_to (fd, NBD_CMD_FLAG_FUA, NBD_CMD_TRIM, LONG) == error);
    f.memory->fail_flush = RP_OK;
  }
  for (unsigned i = 0; i < 20; i++) {
    const uint64_t flushes = f.memory->flushes;

    CHECK (answer_to (fd, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE,
                      i % 2 ? 512 : LONG) == NBD_OK);
    CHECK (f.memory->flushes == flushes + 1);
  }
  close (fd);
  tear_down (&f);
  return 12 * count + 40;
}

/* ---- limits ---- */

/* Who does not take its replies holds the memory of large payloads only until
 * it is cut off.
 */
static unsigned
a_spent_budget_comes_back (void)
{
  struct rp_nbd_limits limits = { .bytes_in_flight = LONG, .send_ms = 100 };
  struct fixture f;
  int deaf, good;

  set_up (&f, "budget", &limits);
  deaf = client_connect (&f.address);
  good = client_connect (&f.address);
  CHECK (client_go (deaf) && client_go (good));
  for (int i = 0; i < 6; i++)
    CHECK (client_request (deaf, 0, NBD_CMD_READ, 1, 0, LONG));
  for (int i = 0; i < 6; i++)
    CHECK (answer_to (good, 0, NBD_CMD_WRITE, LONG) == NBD_OK);
  close (deaf);
  close (good);
  tear_down (&f);
  return 6;
}

static unsigned
idle_connections_do_not_stop_a_good_client (void)
{
  enum { IDLE = 400 };
  int fds[IDLE], good;
  struct fixture f;
  uint64_t cookie;
  uint32_t error;

  set_up (&f, "idle", NULL);
  for (int i = 0; i < IDLE; i++) {    /* one third each: mute, half, gone in */
    fds[i] = client_connect (&f.address);
    if (i % 3 == 1)
      client_send (fds[i], "\0\0\0\3NBD", 7);
    if (i % 3 == 2)
      client_go (fds[i]);
  }
  good = client_connect (&f.address);
  CHECK (client_go (good));
  CHECK (client_request (good, 0, NBD_CMD_FLUSH, 7, 0, 0));
  CHECK (client_reply (good, &error, &cookie));
  CHECK (error == NBD_OK && cookie == 7);
  for (int i = 0; i < IDLE; i++)      /* it has worked, so it stays */
    close (fds[i]);
  for (int i = 0; i < 100; i++) {
    fds[i] = client_connect (&f.address);
    client_go (fds[i]);
  }
  CHECK (client_request (good, 0, NBD_CMD_FLUSH, 8, 0, 0));
  CHECK (client_reply (good, &error, &cookie));
  CHECK (error == NBD_OK && cookie == 8);
  for (int i = 0; i < 100; i++)
    close (fds[i]);
  close (good);
  tear_down (&f);
  return 7;
}

#ifdef __SANITIZE_THREAD__            /* ten times slower */
#define HOLDS  1000
#define CYCLES 60
#else
#define HOLDS  10000
#define CYCLES 300
#endif

int
main (int argc, char **argv)
{
  const int holds = argc > 2 ? atoi (argv[1]) : HOLDS;
  const int cycles = argc > 2 ? atoi (argv[2]) : CYCLES;
  unsigned checks = held_means_held (holds);

  checks += a_client_that_does_not_read_stalls_no_hold ();
  checks += errors_reach_the_client_and_fua_waits_for_the_flush ();
  checks += a_spent_budget_comes_back ();
  checks += slow_reads_wait_side_by_side ();
  checks += idle_connections_do_not_stop_a_good_client ();
  checks += stopping_never_hangs (cycles);
  printf ("nbd_threads_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

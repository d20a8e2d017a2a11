/* nbd_inside.h - what the files of the NBD server share; nobody else sees it.
 *
 *   nbd_server.c        create, add, listen, start, stop: the owner's calls
 *   nbd_door.c          one thread: accepts, serves every handshake, starts
 *                       and joins connections, keeps the limits
 *   nbd_handshake.c     one client's options, without ever blocking
 *   nbd_transmission.c  one thread a connection: takes in many requests with
 *                       one receive, serves them, sends all replies at once
 *   nbd_workers.c       a few threads for what takes long, shared by all
 *   nbd_command.c       one request: check, carry out, make the reply
 *   nbd_send.c          hand replies to the kernel, inside the gate
 *
 * A request that is served fast never leaves its connection's thread.  What
 * may take long (a flush, FUA, large ranges, cold reads) becomes a job.
 *
 * The gate: a write is applied inside it, and no acknowledgement is handed to
 * the kernel outside it.  The thread leaves before it blocks; when it comes
 * back to a hold, acknowledgements that have not left yet turn into
 * ESHUTDOWN.
 */
#ifndef RP_NBD_INSIDE_H
#define RP_NBD_INSIDE_H

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "nbd.h"
#include "nbd_wire.h"

#define NBD_PAYLOAD_MAX     (UINT32_C (1) << 25)   /* advertised */
#define NBD_INLINE_MAX      (UINT32_C (1) << 18)   /* longer ones are jobs */
#define NBD_BUFFER_BYTES    (UINT32_C (1) << 19)   /* in and out, each */
#define NBD_BATCH_BYTES     (UINT32_C (1) << 17)   /* replies: then send */
#define NBD_BATCH_ACKS      256u
#define NBD_JOBS_MAX        16u       /* of one connection, at once */
#define NBD_SYNC_MAX        64u       /* replies that one flush answers */
#define NBD_SLICE_BYTES     (UINT32_C (1) << 25)   /* of a long zeroing */
#define NBD_WRITE_SLICE_BYTES (UINT32_C (1) << 20) /* of a long write */
#define NBD_DESCRIPTORS_MAX 4096u     /* in one answer to BLOCK_STATUS */
#define NBD_CONTEXT_ID      1u        /* of base:allocation */
#define NBD_SPARE_BUFFERS   8u
#define NBD_SLOW_READ_NS    200000    /* not from memory */
#define NBD_COLD            24        /* see cold */
#define NBD_STACK_BYTES     (1024u * 1024u)

/* The largest reply around data or an error text. */
#define NBD_REPLY_EXTRA     128u

struct nbd_export {
  char            *name;
  uint32_t         name_bytes;
  struct rp_disk  *disk;
  struct rp_gate  *gate;              /* may be NULL */
  uint16_t         flags;             /* transmission flags, without DF */
  uint32_t         connections;       /* the door's */
  _Atomic uint64_t lost;              /* writers that left without a word */
  _Atomic uint64_t refused;           /* changes that did not fit */
};

struct nbd_request {
  uint16_t flags, type;
  uint8_t  cookie[NBD_COOKIE_BYTES];
  uint64_t offset;
  uint32_t length;
};

/* Replies on their way out.  acks: where the acknowledgements of writes start
 * (each a simple reply), in rising order.
 */
struct nbd_out {
  uint8_t  *bytes;
  uint32_t  length, sent, room;
  uint32_t *acks;
  uint32_t  ack_count, ack_room;
};

/* A reply made by a worker: one allocation with its acks and bytes. */
struct nbd_reply {
  struct nbd_reply *next;
  struct nbd_out    out;
  uint64_t          charged;          /* to give back to the budget */
};

enum nbd_job_kind { NBD_JOB_COMMAND, NBD_JOB_SYNC };

struct nbd_job {
  struct nbd_job        *next;
  struct nbd_connection *connection;
  enum nbd_job_kind      kind;
  struct nbd_request     request;     /* COMMAND */
  uint8_t               *payload;     /* of a WRITE; owned */
  uint64_t               charged;
  uint32_t               sync_count;  /* SYNC: who waits for the flush */
  struct {
    uint8_t cookie[NBD_COOKIE_BYTES];
    bool    is_write;
  } sync[];
};

/* What a handshake has said so far. */
struct nbd_handshake {
  enum { NBD_WANT_FLAGS, NBD_WANT_OPTION, NBD_WANT_PAYLOAD } want;
  enum { NBD_THEN_READ, NBD_THEN_GO, NBD_THEN_CLOSE } then;
  uint8_t   header[NBD_OPTION_HEADER_BYTES];
  uint32_t  have;                     /* of what is wanted */
  uint32_t  option, payload_bytes;
  uint8_t  *payload;
  uint32_t  option_count;
  bool      no_zeroes;
  struct nbd_export *context_export;  /* that base:allocation was set for */
  uint8_t  *reply;                    /* growing */
  size_t    reply_bytes, reply_room, reply_sent;
  bool      no_memory;
};

struct nbd_connection {
  struct nbd_connection *next;        /* the door's list, oldest first */
  struct rp_nbd_server  *server;
  int                    fd, wake_fd;
  int64_t                deadline_ms; /* of the handshake */
  struct nbd_handshake  *handshake;   /* NULL in transmission */
  struct nbd_export     *export;
  bool                   structured, allocation;
  bool                   dropped;     /* by the door; no longer counted */
  pthread_t              thread;
  bool                   has_thread;
  atomic_bool            used;        /* a request has come */
  atomic_bool            stopping, finished;
  /* Two slow reads of few bring this above NBD_COLD, 40 fast ones below: in
     between reads go to the workers, so that several wait at once. */
  atomic_int             cold;

  /* the connection's thread only */
  uint8_t       *in;                  /* NULL while idle */
  uint32_t       in_start, in_end;
  struct nbd_out out;
  uint32_t       out_acks[NBD_BATCH_ACKS];
  struct nbd_job *sync;               /* being gathered; NULL when empty */
  bool           inside, entered, held;  /* this batch and the gate */
  bool           jobs_about;          /* submitted since jobs was seen 0 */
  uint32_t       linger_misses, linger_pause;  /* see linger */
  int64_t        request_deadline_ms; /* of one that has begun; 0: none has */
  int64_t        queue_deadline_ms;   /* 0 while nothing is stuck in it */
  uint32_t       protocol_errors;
  bool           changed;             /* it has asked for a change */
  bool           disconnected;        /* it said that it would leave */

  atomic_bool     broken;             /* sending failed: drop replies */
  pthread_mutex_t send_lock;          /* who holds it may send */
  pthread_mutex_t lock;               /* guards what follows */
  uint32_t        jobs;
  bool            waiting;            /* wake when a job ends */
  struct nbd_reply *queue, **queue_end;
};

struct rp_nbd_server {
  struct rp_nbd_limits  limits;       /* no zeros */
  struct nbd_export   **exports;
  uint32_t              export_count;
  int                  *listeners;
  uint32_t              listener_count;
  bool                  started;
  atomic_bool           stopping;
  uint32_t              stop_ms;      /* set before stopping */
  int                   wake_fd;
  pthread_t             door;

  /* the door's */
  struct nbd_connection *connections, **connections_end;
  uint32_t               open_count;  /* without dropped ones */
  struct pollfd         *polled;
  uint32_t               polled_room;
  struct nbd_connection **polled_who;

  /* jobs */
  pthread_t      *workers;
  uint32_t        worker_count;
  pthread_mutex_t jobs_lock;
  pthread_cond_t  jobs_come;
  struct nbd_job *jobs, **jobs_end;
  bool            jobs_over;

  /* buffers and the budget of large payloads */
  pthread_mutex_t memory_lock;
  uint64_t        charged;
  uint8_t        *spare[NBD_SPARE_BUFFERS];
  uint32_t        spare_count;

  _Atomic uint64_t connections_open, connections_total, connections_refused;
  _Atomic uint64_t reads, writes, flushes, trims, zeroes, errors;
  _Atomic uint64_t bytes_read, bytes_written;
};

static inline void
nbd_count (_Atomic uint64_t *counter, uint64_t by)
{
  atomic_fetch_add_explicit (counter, by, memory_order_relaxed);
}

/* nbd_server.c */
int64_t  nbd_now_ns (void);
int64_t  nbd_now_ms (void);
/* With all signals blocked: they are for the threads of our caller.
 * Returns 0 or an errno.
 */
int      nbd_thread_start (pthread_t *thread, const char *name,
                           void *(*function) (void *), void *argument);
void     nbd_wake (int event_fd);
void     nbd_unwake (int event_fd);
uint8_t *nbd_buffer_take (struct rp_nbd_server *server);  /* NULL: no memory */
void     nbd_buffer_give (struct rp_nbd_server *server, uint8_t *buffer);
bool     nbd_budget_take (struct rp_nbd_server *server, uint64_t bytes);
void     nbd_budget_give (struct rp_nbd_server *server, uint64_t bytes);
struct nbd_export *nbd_find_export (struct rp_nbd_server *server,
                                    const uint8_t *name, uint32_t name_bytes);

/* nbd_door.c */
void *nbd_door (void *server);
/* Make room for one more connection to an export; false where there is none. */
bool  nbd_door_admit (struct nbd_connection *connection,
                      struct nbd_export *export);

/* nbd_handshake.c */
enum nbd_progress { NBD_READABLE, NBD_WRITABLE, NBD_GO, NBD_CLOSE };
bool nbd_handshake_begin (struct nbd_connection *connection);
/* As far as it goes without blocking; the answer is what to wait for. */
enum nbd_progress nbd_handshake_advance (struct nbd_connection *connection);
void nbd_handshake_end (struct nbd_connection *connection);

/* nbd_transmission.c */
void *nbd_transmission (void *connection);

/* nbd_workers.c */
int  nbd_workers_start (struct rp_nbd_server *server, struct rp_fault *fault);
void nbd_workers_stop (struct rp_nbd_server *server);
void nbd_workers_submit (struct nbd_job *job);
void nbd_job_destroy (struct nbd_job *job);            /* NULL is allowed */

/* nbd_command.c: each returns an NBD error */
uint32_t nbd_check (struct nbd_connection *connection,
                    const struct nbd_request *request);
uint32_t nbd_error_of (int status, const struct rp_fault *fault);
uint32_t nbd_write (struct nbd_connection *connection,
                    const struct nbd_request *request, const uint8_t *payload);
uint32_t nbd_zero (struct nbd_connection *connection,
                   const struct nbd_request *request, uint64_t offset,
                   uint64_t length);
uint32_t nbd_flush (struct nbd_connection *connection);
/* These put the whole reply into out, which has room for it. */
void nbd_read (struct nbd_connection *connection,
               const struct nbd_request *request, struct nbd_out *out);
void nbd_block_status (struct nbd_connection *connection,
                       const struct nbd_request *request, struct nbd_out *out);
void nbd_answer (struct nbd_connection *connection,
                 const struct nbd_request *request, uint32_t error,
                 struct nbd_out *out);
/* A simple reply; an ack is one of a write, and belongs inside the gate. */
void nbd_answer_simple (struct nbd_out *out, const uint8_t *cookie,
                        uint32_t error, bool ack);
static inline bool
nbd_is_write (const struct nbd_request *request)
{
  return request->type == NBD_CMD_WRITE || request->type == NBD_CMD_TRIM
         || request->type == NBD_CMD_WRITE_ZEROES;
}

/* nbd_send.c */
struct nbd_reply *nbd_reply_create (uint32_t bytes, uint32_t acks,
                                    uint64_t charged);
void nbd_reply_destroy (struct rp_nbd_server *server, struct nbd_reply *reply);
/* For workers: put the reply behind the others and send what can be sent. */
void nbd_reply_send (struct nbd_connection *connection,
                     struct nbd_reply *reply);
/* For the connection's thread: send the batch in connection->out (and what
 * workers left).  Leaves the gate.  False: the connection is broken.
 */
bool nbd_send_batch (struct nbd_connection *connection);
/* Send what workers left as far as it goes now.  True: nothing is left. */
bool nbd_send_queue (struct nbd_connection *connection);

#endif /* RP_NBD_INSIDE_H */

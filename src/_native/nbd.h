/* nbd.h - an NBD server in this process, on threads of its own.
 *
 * Fixed newstyle; EXPORT_NAME, GO, INFO, LIST, ABORT, STRUCTURED_REPLY,
 * LIST_META_CONTEXT and SET_META_CONTEXT with base:allocation; READ (DF),
 * WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES (NO_HOLE, FAST_ZERO), BLOCK_STATUS
 * (REQ_ONE), DISC; multi-conn.  Any byte offset and length: minimum block size
 * 1, preferred 4096, largest payload 32 MiB.  No TLS: other addresses than a
 * Unix socket or loopback are put behind nbdkit by the operator.
 *
 * The caller makes, binds and listens on sockets (so that it decides about
 * paths and modes) and hands the descriptors over.
 *
 * Errors to the client: RP_READ_ONLY EPERM, RP_HELD and RP_STALE_EPOCH
 * ESHUTDOWN, RP_OUT_OF_RANGE EINVAL (ENOSPC for writes), RP_NO_MEMORY ENOMEM,
 * RP_IO with ENOSPC ENOSPC, all else EIO.
 *
 * Source: the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd.
 * Threads: create, add, start, stop, destroy from one thread; stats from any.
 * Tests:  tests/native/nbd_test.c, tests/test_nbd.py
 */
#ifndef RP_NBD_H
#define RP_NBD_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "gate.h"

struct rp_nbd_server;

/* 0 takes the default in brackets.  Where there are too many connections, the
 * oldest handshake is dropped for a newcomer, then the oldest connection that
 * has never asked for anything; never one that has.
 */
struct rp_nbd_limits {
  uint32_t connections;          /* in all [64] */
  uint32_t connections_per_export;       /* [16] */
  uint32_t handshake_ms;         /* whole handshake [10000] */
  uint32_t receive_ms;           /* one whole request, from its first byte
                                    [30000] */
  uint32_t send_ms;              /* one whole reply [30000] */
  uint32_t options;              /* options per handshake [32] */
  uint32_t option_bytes;         /* payload of one option [65536] */
  uint64_t bytes_in_flight;      /* payloads over 256 KiB, of all connections
                                    together [256 MiB] */
  uint32_t protocol_errors;      /* then the connection is closed [16] */
  uint32_t workers;              /* threads for slow requests, shared [4] */
};

struct rp_nbd_stats {
  uint64_t connections_open, connections_total, connections_refused;
  uint64_t reads, writes, flushes, trims, zeroes, errors;
  uint64_t bytes_read, bytes_written;
};

int  rp_nbd_server_create (const struct rp_nbd_limits *limits,
                           struct rp_nbd_server **out, struct rp_fault *fault);
/* Before start.  name: at most 255 bytes of UTF-8 ("" is the default export).
 * disk and gate (may be NULL) are borrowed and outlive the server.
 */
int  rp_nbd_server_add (struct rp_nbd_server *server, const char *name,
                        struct rp_disk *disk, struct rp_gate *gate,
                        bool read_only, struct rp_fault *fault);
/* Takes a listening stream socket; the server closes it. */
int  rp_nbd_server_listen (struct rp_nbd_server *server, int socket_fd,
                           struct rp_fault *fault);
int  rp_nbd_server_start (struct rp_nbd_server *server, struct rp_fault *fault);
/* Stop accepting, let running requests end (at most deadline_ms), close all
 * connections, join all threads.  Does not flush disks.  Idempotent.
 */
void rp_nbd_server_stop (struct rp_nbd_server *server, uint32_t deadline_ms);
void rp_nbd_server_destroy (struct rp_nbd_server *server); /* stops; NULL ok */
void rp_nbd_server_stats (struct rp_nbd_server *server,
                          struct rp_nbd_stats *out);
/* How many connections to the export number index, as they were added, ended
 * without NBD_CMD_DISC after they had asked for a change; not those that stop
 * ends.  The export's gate gets an alarm for each.  0 for any other index.
 */
uint64_t rp_nbd_server_lost (struct rp_nbd_server *server, uint32_t index);
/* How many changes to that export did not fit (RP_FULL), which its clients were
 * told by NBD_ENOSPC.  The export's gate gets an alarm for each.
 */
uint64_t rp_nbd_server_refused (struct rp_nbd_server *server, uint32_t index);

#endif /* RP_NBD_H */

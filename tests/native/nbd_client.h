/* nbd_client.h - just enough of an NBD client for the tests of the server. */
#ifndef RP_TEST_NBD_CLIENT_H
#define RP_TEST_NBD_CLIENT_H

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "nbd.h"
#include "nbd_wire.h"

/* A listening socket without a file: the name lives in the kernel only. */
static inline int
client_listen (struct sockaddr_un *address, const char *name)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  memset (address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  snprintf (address->sun_path + 1, sizeof address->sun_path - 1, "rp-%s-%d",
            name, (int) getpid ());
  CHECK (fd >= 0);
  CHECK (bind (fd, (struct sockaddr *) address, sizeof *address) == 0);
  CHECK (listen (fd, 2000) == 0);
  return fd;
}

static inline int
client_connect (const struct sockaddr_un *address)
{
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  CHECK (fd >= 0);
  CHECK (connect (fd, (const struct sockaddr *) address, sizeof *address)
         == 0);
  return fd;
}

static inline bool
client_send (int fd, const void *bytes, size_t length)
{
  for (size_t done = 0; done < length;) {
    const ssize_t sent = send (fd, (const char *) bytes + done, length - done,
                               MSG_NOSIGNAL);

    if (sent <= 0)
      return false;
    done += (size_t) sent;
  }
  return true;
}

static inline bool
client_receive (int fd, void *bytes, size_t length)
{
  for (size_t done = 0; done < length;) {
    const ssize_t got = recv (fd, (char *) bytes + done, length - done, 0);

    if (got <= 0)
      return false;
    done += (size_t) got;
  }
  return true;
}

/* Client flags and GO for the default export, in one piece. */
static inline bool
client_go (int fd)
{
  uint8_t bytes[4 + 16 + 6], *at = bytes, reply[18 + 20 + 12 + 20];

  at = nbd_store32 (at, 3);
  at = nbd_store64 (at, NBD_OPTION_MAGIC);
  at = nbd_store32 (at, NBD_OPT_GO);
  at = nbd_store32 (at, 6);
  at = nbd_store32 (at, 0);
  nbd_store16 (at, 0);
  return client_send (fd, bytes, sizeof bytes)
         && client_receive (fd, reply, sizeof reply)
         && nbd_load32 (reply + 18 + 32 + 12) == NBD_REP_ACK;
}

static inline uint8_t *
client_put (uint8_t *at, uint16_t flags, uint16_t type, uint64_t cookie,
            uint64_t offset, uint32_t length)
{
  at = nbd_store32 (at, NBD_REQUEST_MAGIC);
  at = nbd_store16 (at, flags);
  at = nbd_store16 (at, type);
  at = nbd_store64 (at, cookie);
  at = nbd_store64 (at, offset);
  return nbd_store32 (at, length);
}

static inline bool
client_request (int fd, uint16_t flags, uint16_t type, uint64_t cookie,
                uint64_t offset, uint32_t length)
{
  uint8_t bytes[NBD_REQUEST_BYTES];

  client_put (bytes, flags, type, cookie, offset, length);
  return client_send (fd, bytes, sizeof bytes);
}

/* A simple reply; false when the connection has ended. */
static inline bool
client_reply (int fd, uint32_t *error, uint64_t *cookie)
{
  uint8_t bytes[NBD_SIMPLE_REPLY_BYTES];

  if (!client_receive (fd, bytes, sizeof bytes))
    return false;
  CHECK (nbd_load32 (bytes) == NBD_SIMPLE_REPLY_MAGIC);
  *error = nbd_load32 (bytes + 4);
  *cookie = nbd_load64 (bytes + 8);
  return true;
}

#endif /* RP_TEST_NBD_CLIENT_H */

/* nbd_wire.h - numbers and fields of the NBD protocol.
 *
 * Everything on the wire is big-endian and may be unaligned.  A cookie is
 * opaque: it is copied, never read.
 *
 * Source: doc/proto.md of NetworkBlockDevice/nbd, sections "Newstyle
 *         negotiation", "Transmission" and "Values".
 */
#ifndef RP_NBD_WIRE_H
#define RP_NBD_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC                  UINT64_C (0x4e42444d41474943)
#define NBD_OPTION_MAGIC           UINT64_C (0x49484156454F5054)
#define NBD_OPTION_REPLY_MAGIC     UINT64_C (0x0003e889045565a9)
#define NBD_REQUEST_MAGIC          UINT32_C (0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C (0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C (0x668e33ef)

#define NBD_GREETING_BYTES          18u  /* magic, magic, handshake flags */
#define NBD_CLIENT_FLAGS_BYTES       4u
#define NBD_OPTION_HEADER_BYTES     16u
#define NBD_OPTION_REPLY_BYTES      20u
#define NBD_REQUEST_BYTES           28u
#define NBD_COOKIE_BYTES             8u
#define NBD_SIMPLE_REPLY_BYTES      16u
#define NBD_CHUNK_BYTES             20u  /* a structured reply's header */
#define NBD_STRING_BYTES_MAX      4096u
#define NBD_EXPORT_ZEROES          124u

enum nbd_handshake_flag {
  NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,      /* client flags have the same bits */
  NBD_FLAG_NO_ZEROES      = 1 << 1,
};

enum nbd_transmission_flag {
  NBD_FLAG_HAS_FLAGS         = 1 << 0,
  NBD_FLAG_READ_ONLY         = 1 << 1,
  NBD_FLAG_SEND_FLUSH        = 1 << 2,
  NBD_FLAG_SEND_FUA          = 1 << 3,
  NBD_FLAG_SEND_TRIM         = 1 << 5,
  NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
  NBD_FLAG_SEND_DF           = 1 << 7,
  NBD_FLAG_CAN_MULTI_CONN    = 1 << 8,
  NBD_FLAG_SEND_FAST_ZERO    = 1 << 11,
};

enum nbd_option {
  NBD_OPT_EXPORT_NAME       = 1,
  NBD_OPT_ABORT             = 2,
  NBD_OPT_LIST              = 3,
  NBD_OPT_INFO              = 6,
  NBD_OPT_GO                = 7,
  NBD_OPT_STRUCTURED_REPLY  = 8,
  NBD_OPT_LIST_META_CONTEXT = 9,
  NBD_OPT_SET_META_CONTEXT  = 10,
};

#define NBD_REP_ACK          UINT32_C (1)
#define NBD_REP_SERVER       UINT32_C (2)
#define NBD_REP_INFO         UINT32_C (3)
#define NBD_REP_META_CONTEXT UINT32_C (4)
#define NBD_REP_ERR_UNSUP    UINT32_C (0x80000001)
#define NBD_REP_ERR_POLICY   UINT32_C (0x80000002)
#define NBD_REP_ERR_INVALID  UINT32_C (0x80000003)
#define NBD_REP_ERR_UNKNOWN  UINT32_C (0x80000006)
#define NBD_REP_ERR_TOO_BIG  UINT32_C (0x80000009)

enum nbd_info { NBD_INFO_EXPORT = 0, NBD_INFO_BLOCK_SIZE = 3 };

enum nbd_command {
  NBD_CMD_READ         = 0,
  NBD_CMD_WRITE        = 1,
  NBD_CMD_DISC         = 2,
  NBD_CMD_FLUSH        = 3,
  NBD_CMD_TRIM         = 4,
  NBD_CMD_WRITE_ZEROES = 6,
  NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flag {
  NBD_CMD_FLAG_FUA       = 1 << 0,
  NBD_CMD_FLAG_NO_HOLE   = 1 << 1,
  NBD_CMD_FLAG_DF        = 1 << 2,
  NBD_CMD_FLAG_REQ_ONE   = 1 << 3,
  NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

#define NBD_REPLY_FLAG_DONE 1

enum nbd_chunk {
  NBD_REPLY_TYPE_NONE         = 0,
  NBD_REPLY_TYPE_OFFSET_DATA  = 1,
  NBD_REPLY_TYPE_BLOCK_STATUS = 5,
  NBD_REPLY_TYPE_ERROR        = 0x8001,
};

enum nbd_state { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };

enum nbd_error {
  NBD_OK        = 0,
  NBD_EPERM     = 1,
  NBD_EIO       = 5,
  NBD_ENOMEM    = 12,
  NBD_EINVAL    = 22,
  NBD_ENOSPC    = 28,
  NBD_EOVERFLOW = 75,
  NBD_ENOTSUP   = 95,
  NBD_ESHUTDOWN = 108,
};

static inline uint16_t
nbd_load16 (const void *at)
{
  uint16_t value;

  memcpy (&value, at, sizeof value);
  return be16toh (value);
}

static inline uint32_t
nbd_load32 (const void *at)
{
  uint32_t value;

  memcpy (&value, at, sizeof value);
  return be32toh (value);
}

static inline uint64_t
nbd_load64 (const void *at)
{
  uint64_t value;

  memcpy (&value, at, sizeof value);
  return be64toh (value);
}

/* Each store returns where the next field goes. */
static inline uint8_t *
nbd_store16 (uint8_t *at, uint16_t value)
{
  value = htobe16 (value);
  memcpy (at, &value, sizeof value);
  return at + sizeof value;
}

static inline uint8_t *
nbd_store32 (uint8_t *at, uint32_t value)
{
  value = htobe32 (value);
  memcpy (at, &value, sizeof value);
  return at + sizeof value;
}

static inline uint8_t *
nbd_store64 (uint8_t *at, uint64_t value)
{
  value = htobe64 (value);
  memcpy (at, &value, sizeof value);
  return at + sizeof value;
}

static inline uint8_t *
nbd_store_bytes (uint8_t *at, const void *bytes, size_t length)
{
  if (length)
    memcpy (at, bytes, length);
  return at + length;
}

#endif /* RP_NBD_WIRE_H */

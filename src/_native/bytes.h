/* bytes.h - little-endian fields at any alignment, sums that cannot wrap, and
 *           memory that holds only zeros.
 *
 * Every on-disk integer of VMDK and of our journal is little-endian and may
 * be unaligned; a struct is never laid over a buffer.
 */
#ifndef RP_BYTES_H
#define RP_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RP_SECTOR_BYTES 512u

static inline uint16_t
rp_load16 (const void *at)
{
  uint16_t value;

  memcpy (&value, at, sizeof value);
  return le16toh (value);
}

static inline uint32_t
rp_load32 (const void *at)
{
  uint32_t value;

  memcpy (&value, at, sizeof value);
  return le32toh (value);
}

static inline uint64_t
rp_load64 (const void *at)
{
  uint64_t value;

  memcpy (&value, at, sizeof value);
  return le64toh (value);
}

static inline void
rp_store16 (void *at, uint16_t value)
{
  value = htole16 (value);
  memcpy (at, &value, sizeof value);
}

static inline void
rp_store32 (void *at, uint32_t value)
{
  value = htole32 (value);
  memcpy (at, &value, sizeof value);
}

static inline void
rp_store64 (void *at, uint64_t value)
{
  value = htole64 (value);
  memcpy (at, &value, sizeof value);
}

/* true and *out set, or false where the exact result does not fit 64 bits */
static inline bool
rp_add (uint64_t a, uint64_t b, uint64_t *out)
{
  return !__builtin_add_overflow (a, b, out);
}

static inline bool
rp_multiply (uint64_t a, uint64_t b, uint64_t *out)
{
  return !__builtin_mul_overflow (a, b, out);
}

static inline uint64_t
rp_divide_up (uint64_t value, uint64_t by)
{
  return value / by + (value % by != 0);
}

/* [offset, offset + length) lies inside [0, size) */
static inline bool
rp_inside (uint64_t offset, uint64_t length, uint64_t size)
{
  return offset <= size && length <= size - offset;
}

/* [a, a + a_length) and [b, b + b_length), whose ends do not wrap, share some */
static inline bool
rp_overlap (uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
  return a_length && b_length && a < b + b_length && b < a + a_length;
}

static inline bool
rp_is_power_of_two (uint64_t value)
{
  return value != 0 && (value & (value - 1)) == 0;
}

/* bytes.c: all bytes are 0; length may be 0 */
bool rp_is_zero (const void *bytes, size_t length);

#endif /* RP_BYTES_H */

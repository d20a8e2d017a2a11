/* marvin.h - the hash that Windows puts on the entries of a registry log.
 *
 * Marvin32 with the registry's seed.  It tells a torn entry from a whole
 * one, no more: whoever can write an entry can compute it.
 *
 * Threads: no state.
 * Tests:   tests/native/marvin_test.c
 * Source:  "Windows registry file format specification" by Maxim Suhanov,
 *          section "Log entries", for the seed; US patent 8,555,075,
 *          figure 3, for the function.
 */
#ifndef RP_MARVIN_H
#define RP_MARVIN_H

#include <stddef.h>
#include <stdint.h>

/* The 64-bit hash of length bytes.  data may be NULL when length is 0. */
uint64_t rp_marvin32 (const void *data, size_t length);

#endif /* RP_MARVIN_H */

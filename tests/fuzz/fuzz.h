/* fuzz.h - what the fuzz targets stand on.
 *
 * An input is not an image but a recipe for one or several: a row of chunks
 *
 *   tag u8 | length u16 | payload            (integers little-endian)
 *
 *   F  kind u8, flags u8, sectors u64        the next file begins; what follows
 *                                            is about it.  Kind: as in image.h, 0:
 *                                            ask the header.  Sectors: 0: all.
 *                                            Flags: enum fuzz_flags
 *   S  bytes u64                             its size; without one, the sector
 *                                            behind the last byte written
 *   P  offset u40, bytes                     a patch
 *   R  offset u40, count u16, bytes          the same bytes so often
 *   A  offset u40, count u16, width u8,      count integers of 4 or 8 bytes:
 *      first u64, step u64                   first, first + step, ...
 *   Z  offset u40, lba u64, bytes            a grain of a stream: marker and the
 *                                            bytes, as zlib wraps them
 *   O  bytes                                 what to do with it, for the target
 *
 * so a few hundred bytes make an image whose parts lie megabytes apart, and a
 * mutation changes one field of it and leaves the rest whole.  A chunk that
 * makes no sense is skipped, and none is needed.  An input that begins with
 * the magic of an extent is the file itself.
 *
 * Everything runs in one thread, in memory, through struct rp_io.
 */
#ifndef RP_FUZZ_H
#define RP_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "disk.h"
#include "image.h"
#include "io.h"

#define FUZZ_FILES_MAX  4u
#define FUZZ_CHUNKS_MAX 256u

/* A promise of the code under test; libFuzzer keeps the input that broke it. */
#define FUZZ_CHECK(condition)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      fprintf (stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__,  \
               #condition);                                                \
      abort ();                                                            \
    }                                                                      \
  } while (0)

/* ---- memory.c: files in memory ---- */

/* Sizes are virtual: a file holds what was written and zeros between.  Writing
 * more than 16 MiB is ENOSPC. */
int  fuzz_memory_create (struct rp_io **out);
int  fuzz_memory_open (struct rp_io *io, const char *name,
                       struct rp_file **out);
bool fuzz_memory_ran_full (const struct rp_io *io);

/* ---- input.c: from an input to files ---- */

enum fuzz_flags {
  FUZZ_SAME_LINK    = 1,         /* one more extent of the link before */
  FUZZ_OFFSET_SHIFT = 4,         /* FLAT: begins at this sector */
};

struct fuzz_file {
  struct rp_file *file;
  uint8_t         kind, flags;   /* as the chunk F says */
  uint64_t        sectors;
};

struct fuzz_input {
  struct rp_io    *io;
  struct fuzz_file files[FUZZ_FILES_MAX];
  uint32_t         file_count;
  const uint8_t   *operations;   /* of the last chunk O; NULL without one */
  size_t           operations_bytes;
};

struct fuzz_chunk {
  uint8_t        tag;
  uint16_t       length;
  const uint8_t *payload;
};

/* The chunks of an input; at most FUZZ_CHUNKS_MAX, the rest is left out. */
uint32_t fuzz_input_chunks (const uint8_t *data, size_t size,
                            struct fuzz_chunk *out);
bool fuzz_input_is_file (const uint8_t *data, size_t size);
/* Make the files.  False where there is none. */
bool fuzz_input_open (const uint8_t *data, size_t size,
                      struct fuzz_input *out);
void fuzz_input_close (struct fuzz_input *input);

/* What a file is, and how much of it is shown: what the chunk F says, or the
 * header.  False where no reader takes the header. */
bool fuzz_spec_of (const struct fuzz_file *file, struct rp_extent_spec *out);

/* ---- walk.c: reading everything, with limits ---- */

/* Map a disk, and read the ends of what the map shows: the map and the data
 * have to agree, and so have reads of one range in several ways. */
void fuzz_walk (struct rp_disk *disk);
/* The same for an image of one extent, and its check. */
void fuzz_walk_image (const struct rp_extent_spec *spec);
/* The first file of an input, if it is an extent of that kind. */
void fuzz_walk_kind (const uint8_t *data, size_t size,
                     enum rp_extent_kind kind);

/* Kinds of findings of a check, a bit each. */
enum fuzz_findings {
  FUZZ_LEAK = 1, FUZZ_OVERLAP = 2, FUZZ_OUTSIDE = 4, FUZZ_REDUNDANT = 8,
  FUZZ_UNCLEAN = 16, FUZZ_FREESECTOR = 32, FUZZ_TABLE = 64, FUZZ_OTHER = 128,
  FUZZ_NOT_CHECKED = 256,        /* the check did not run */
};
unsigned fuzz_check_image (struct rp_image *image);

/* ---- naive.c: tables read the slow way, as the specification says ---- */

enum fuzz_naive {
  FUZZ_NAIVE_ABSENT, FUZZ_NAIVE_ZERO, FUZZ_NAIVE_DATA, FUZZ_NAIVE_ERROR,
};
/* Read one sector of an extent by itself; bytes are filled where it is DATA.
 * Not for ZERO and NOACCESS. */
enum fuzz_naive fuzz_naive_sector (const struct rp_extent_spec *spec,
                                   uint64_t sector, uint8_t *bytes);

/* ---- links.c: the files of an input as a chain, top first ---- */

struct fuzz_chain {
  struct rp_extent_spec extents[FUZZ_FILES_MAX];
  uint32_t         first[FUZZ_FILES_MAX + 1];  /* extent of each link */
  uint32_t         link_count;
  uint64_t         sectors;      /* of every link: the smallest has the say */
  struct rp_image *images[FUZZ_FILES_MAX];
  struct rp_disk  *disk;         /* NULL while closed */
};

bool fuzz_chain_plan (const struct fuzz_input *input, struct fuzz_chain *out);
bool fuzz_chain_open (struct fuzz_chain *chain, bool writable);
void fuzz_chain_close (struct fuzz_chain *chain);
/* One sector, link by link, the naive way; what is absent is zero.  *known is
 * false where a link was asked that has no naive reader. */
enum fuzz_naive fuzz_chain_sector (struct fuzz_chain *chain, uint64_t sector,
                                   uint8_t *bytes, bool *known);

/* ---- mutate.c ---- */

/* libFuzzer's own, of one block of bytes. */
size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t room);

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#endif /* RP_FUZZ_H */

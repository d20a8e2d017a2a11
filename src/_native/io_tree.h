/* io_tree.h - directories and files in memory, copied for next to nothing.
 *
 * What the simulate backend calls a disk.  A tree is a table of inodes, each
 * a directory (names and inode numbers) or a file (pages of 4 KiB; NULL is a
 * hole).  Inodes, groups of pages and pages are counted and shared between
 * trees; a change copies what it touches and nothing else, so ten thousand
 * crash states of one workload cost little more than one.  Hashes are kept
 * beside the data they cover, for the same reason.
 *
 * Threads: a tree belongs to one thread at a time; trees that share data may
 *          be used by different threads.
 */
#ifndef RP_IO_TREE_H
#define RP_IO_TREE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

#define RP_PAGE_BYTES 4096u
#define RP_TREE_ROOT  1u         /* the inode number of "/" */

struct rp_page {
  atomic_uint      refs;
  _Atomic uint64_t hash;         /* 0: not known */
  uint8_t          bytes[RP_PAGE_BYTES];
};

struct rp_name {                 /* one path component, shared */
  atomic_uint refs;
  uint32_t    length;
  char        text[];
};

struct rp_inode;

struct rp_tree {
  struct rp_inode **inodes;      /* by number; NULL where there is none */
  uint32_t          count;       /* numbers below it may be in use */
  uint32_t          room;
};

/* Everything that allocates returns RP_OK or RP_NO_MEMORY. */

struct rp_page *rp_page_create (void);                 /* of zeros, or NULL */
void rp_page_release (struct rp_page *page);           /* NULL is allowed */
struct rp_name *rp_name_create (const char *text);     /* or NULL */
struct rp_name *rp_name_share (struct rp_name *name);
void rp_name_release (struct rp_name *name);           /* NULL is allowed */

/* An empty tree: one root directory. */
int  rp_tree_create (struct rp_tree *tree);
int  rp_tree_copy (const struct rp_tree *from, struct rp_tree *to);
void rp_tree_clear (struct rp_tree *tree);
/* the same content, names and sizes give the same hash, whatever the inode
   numbers; what no directory leads to does not count */
uint64_t rp_tree_hash (const struct rp_tree *tree);
uint64_t rp_hash_mix (uint64_t a, uint64_t b);

/* Make inode `number`, which does not exist, in no directory yet. */
int  rp_tree_add (struct rp_tree *tree, uint32_t number, bool is_directory);
/* Make inode `number` what it is in `from` (where it may be missing). */
int  rp_tree_take (struct rp_tree *tree, uint32_t number,
                   const struct rp_tree *from);

bool     rp_tree_is_directory (const struct rp_tree *tree, uint32_t number);
uint64_t rp_tree_size (const struct rp_tree *tree, uint32_t number);
uint64_t rp_tree_allocated (const struct rp_tree *tree, uint32_t number);

/* Directories.  find gives 0 where there is no such name; link replaces. */
uint32_t rp_tree_find (const struct rp_tree *tree, uint32_t directory,
                       const char *name);
int  rp_tree_link (struct rp_tree *tree, uint32_t directory,
                   struct rp_name *name, uint32_t number);
int  rp_tree_unlink (struct rp_tree *tree, uint32_t directory,
                     const char *name);
uint32_t rp_tree_entry_count (const struct rp_tree *tree, uint32_t directory);
struct rp_name *rp_tree_entry (const struct rp_tree *tree, uint32_t directory,
                               uint32_t index);

/* Files.  get reads zeros in holes and behind the end. */
void rp_tree_get (const struct rp_tree *tree, uint32_t number, void *buffer,
                  size_t length, uint64_t offset);
/* Put bytes [offset, offset + length) of pages, whose first one is page number
 * first_page of the file; pages NULL puts zeros.  The size does not change:
 * bytes put behind the end show when it grows.
 */
int  rp_tree_put (struct rp_tree *tree, uint32_t number, uint64_t offset,
                  uint64_t length, struct rp_page *const *pages,
                  uint64_t first_page);
int  rp_tree_garble (struct rp_tree *tree, uint32_t number, uint64_t offset,
                     uint64_t length, uint64_t seed);
int  rp_tree_set_size (struct rp_tree *tree, uint32_t number, uint64_t size);
/* zero what lies behind the end */
int  rp_tree_clip (struct rp_tree *tree, uint32_t number);
uint64_t rp_tree_seek (const struct rp_tree *tree, uint32_t number,
                       uint64_t offset, bool want_data);

#endif /* RP_IO_TREE_H */

/* SPDX-License-Identifier: Apache-2.0 */
#include "io_tree.h"

#include <stdlib.h>
#include <string.h>

#define GROUP_PAGES 64u          /* 256 KiB */

struct group {
  atomic_uint      refs;
  _Atomic uint64_t hash;         /* 0: not known */
  struct rp_page  *pages[GROUP_PAGES];
};

struct entry {
  struct rp_name *name;
  uint32_t        number;
};

struct rp_inode {
  atomic_uint   refs;
  bool          is_directory;
  uint64_t      size;            /* of a file */
  struct group **groups;         /* of a file; NULL is a hole */
  uint64_t      group_count;
  struct entry *entries;         /* of a directory */
  uint32_t      entry_count;
};

/* ---- counting ---- */

static void
share (atomic_uint *refs)
{
  atomic_fetch_add_explicit (refs, 1, memory_order_relaxed);
}

/* true for the last one */
static bool
drop (atomic_uint *refs)
{
  return atomic_fetch_sub_explicit (refs, 1, memory_order_acq_rel) == 1;
}

static bool
shared (atomic_uint *refs)
{
  return atomic_load_explicit (refs, memory_order_acquire) > 1;
}

struct rp_page *
rp_page_create (void)
{
  struct rp_page *page = calloc (1, sizeof *page);

  if (page)
    atomic_init (&page->refs, 1);
  return page;
}

void
rp_page_release (struct rp_page *page)
{
  if (page && drop (&page->refs))
    free (page);
}

struct rp_name *
rp_name_create (const char *text)
{
  const size_t length = strlen (text);
  struct rp_name *name = malloc (sizeof *name + length + 1);

  if (!name)
    return NULL;
  atomic_init (&name->refs, 1);
  name->length = (uint32_t) length;
  memcpy (name->text, text, length + 1);
  return name;
}

struct rp_name *
rp_name_share (struct rp_name *name)
{
  share (&name->refs);
  return name;
}

void
rp_name_release (struct rp_name *name)
{
  if (name && drop (&name->refs))
    free (name);
}

static void
group_release (struct group *group)
{
  if (!group || !drop (&group->refs))
    return;
  for (uint32_t i = 0; i < GROUP_PAGES; i++)
    rp_page_release (group->pages[i]);
  free (group);
}

static void
inode_release (struct rp_inode *inode)
{
  if (!inode || !drop (&inode->refs))
    return;
  for (uint64_t i = 0; i < inode->group_count; i++)
    group_release (inode->groups[i]);
  for (uint32_t i = 0; i < inode->entry_count; i++)
    rp_name_release (inode->entries[i].name);
  free (inode->groups);
  free (inode->entries);
  free (inode);
}

static struct rp_inode *
inode_create (bool is_directory)
{
  struct rp_inode *inode = calloc (1, sizeof *inode);

  if (!inode)
    return NULL;
  atomic_init (&inode->refs, 1);
  inode->is_directory = is_directory;
  return inode;
}

static struct rp_inode *
inode_copy (const struct rp_inode *from)
{
  struct rp_inode *inode = inode_create (from->is_directory);

  if (!inode)
    return NULL;
  inode->size = from->size;
  if (from->group_count > 0) {
    inode->groups = malloc (from->group_count * sizeof *inode->groups);
    if (!inode->groups)
      goto no_memory;
  }
  if (from->entry_count > 0) {
    inode->entries = malloc (from->entry_count * sizeof *inode->entries);
    if (!inode->entries)
      goto no_memory;
  }
  for (; inode->group_count < from->group_count; inode->group_count++) {
    struct group *group = from->groups[inode->group_count];

    if (group)
      share (&group->refs);
    inode->groups[inode->group_count] = group;
  }
  for (; inode->entry_count < from->entry_count; inode->entry_count++) {
    inode->entries[inode->entry_count] = from->entries[inode->entry_count];
    rp_name_share (inode->entries[inode->entry_count].name);
  }
  return inode;

 no_memory:
  inode_release (inode);
  return NULL;
}

/* ---- trees ---- */

static int
make_room (struct rp_tree *tree, uint32_t count)
{
  struct rp_inode **inodes;
  uint32_t room = tree->room ? tree->room : 8;

  if (count > tree->room) {
    while (room < count)
      room *= 2;
    inodes = realloc (tree->inodes, room * sizeof *inodes);
    if (!inodes)
      return RP_NO_MEMORY;
    tree->inodes = inodes;
    tree->room = room;
  }
  while (tree->count < count)
    tree->inodes[tree->count++] = NULL;
  return RP_OK;
}

int
rp_tree_create (struct rp_tree *tree)
{
  int status;

  *tree = (struct rp_tree) { .inodes = NULL };
  status = rp_tree_add (tree, RP_TREE_ROOT, true);
  if (status != RP_OK)
    rp_tree_clear (tree);
  return status;
}

int
rp_tree_copy (const struct rp_tree *from, struct rp_tree *to)
{
  int status;

  *to = (struct rp_tree) { .inodes = NULL };
  status = make_room (to, from->count);
  if (status != RP_OK)
    return status;
  for (uint32_t i = 0; i < from->count; i++) {
    to->inodes[i] = from->inodes[i];
    if (to->inodes[i])
      share (&to->inodes[i]->refs);
  }
  return RP_OK;
}

void
rp_tree_clear (struct rp_tree *tree)
{
  for (uint32_t i = 0; i < tree->count; i++)
    inode_release (tree->inodes[i]);
  free (tree->inodes);
  *tree = (struct rp_tree) { .inodes = NULL };
}

int
rp_tree_add (struct rp_tree *tree, uint32_t number, bool is_directory)
{
  int status = make_room (tree, number + 1);

  if (status != RP_OK)
    return status;
  RP_CHECK (tree->inodes[number] == NULL);
  tree->inodes[number] = inode_create (is_directory);
  return tree->inodes[number] ? RP_OK : RP_NO_MEMORY;
}

int
rp_tree_take (struct rp_tree *tree, uint32_t number,
              const struct rp_tree *from)
{
  struct rp_inode *inode = number < from->count ? from->inodes[number] : NULL;
  int status = make_room (tree, number + 1);

  if (status != RP_OK)
    return status;
  if (inode)
    share (&inode->refs);
  inode_release (tree->inodes[number]);
  tree->inodes[number] = inode;
  return RP_OK;
}

static const struct rp_inode *
look (const struct rp_tree *tree, uint32_t number)
{
  RP_CHECK (number < tree->count);
  RP_CHECK (tree->inodes[number] != NULL);
  return tree->inodes[number];
}

/* The inode for a change, this tree's own; NULL without memory. */
static struct rp_inode *
own (struct rp_tree *tree, uint32_t number)
{
  struct rp_inode *inode = tree->inodes[number];
  struct rp_inode *copy;

  RP_CHECK (number < tree->count);
  RP_CHECK (inode != NULL);
  if (!shared (&inode->refs))
    return inode;
  copy = inode_copy (inode);
  if (!copy)
    return NULL;
  inode_release (inode);
  tree->inodes[number] = copy;
  return copy;
}

/* ---- hashes ---- */

/* Source: the folded 64 x 64 bit product of wyhash. */
uint64_t
rp_hash_mix (uint64_t a, uint64_t b)
{
  const __uint128_t product = (__uint128_t) (a ^ UINT64_C (0xa0761d6478bd642f))
                              * (b ^ UINT64_C (0xe7037ed1a0b428db));

  return (uint64_t) product ^ (uint64_t) (product >> 64);
}

static uint64_t
hash_text (const char *text, size_t length)
{
  uint64_t hash = length;

  for (size_t i = 0; i < length; i++)
    hash = rp_hash_mix (hash, (uint8_t) text[i]);
  return hash;
}

/* 1 for zeros, so that a page of zeros and a hole are the same */
static uint64_t
hash_page (struct rp_page *page)
{
  uint64_t hash = atomic_load_explicit (&page->hash, memory_order_relaxed);
  uint64_t word[4], left = 1, right = 2, any = 0;

  if (hash != 0)
    return hash;
  for (size_t at = 0; at < RP_PAGE_BYTES; at += sizeof word) {
    memcpy (word, page->bytes + at, sizeof word);
    any |= word[0] | word[1] | word[2] | word[3];
    left = rp_hash_mix (left ^ word[0], word[1]);
    right = rp_hash_mix (right ^ word[2], word[3]);
  }
  hash = any ? rp_hash_mix (left, right) : 1;
  if (hash == 0)
    hash = 2;
  atomic_store_explicit (&page->hash, hash, memory_order_relaxed);
  return hash;
}

static uint64_t
hash_group (struct group *group)
{
  uint64_t hash = atomic_load_explicit (&group->hash, memory_order_relaxed);

  if (hash != 0)
    return hash;
  hash = 1;
  for (uint32_t i = 0; i < GROUP_PAGES; i++)
    if (group->pages[i] && hash_page (group->pages[i]) != 1)
      hash += rp_hash_mix (i, hash_page (group->pages[i])) | 1;
  if (hash == 0)
    hash = 2;
  atomic_store_explicit (&group->hash, hash, memory_order_relaxed);
  return hash;
}

static uint64_t
hash_inode (const struct rp_tree *tree, uint32_t number)
{
  const struct rp_inode *inode = look (tree, number);
  uint64_t hash = rp_hash_mix (inode->is_directory, inode->size);

  for (uint64_t i = 0; i < inode->group_count; i++)
    if (inode->groups[i] && hash_group (inode->groups[i]) != 1)
      hash += rp_hash_mix (i, hash_group (inode->groups[i]));
  for (uint32_t i = 0; i < inode->entry_count; i++) {
    const struct entry *entry = &inode->entries[i];

    hash += rp_hash_mix (hash_text (entry->name->text, entry->name->length),
                         hash_inode (tree, entry->number));
  }
  return hash;
}

uint64_t
rp_tree_hash (const struct rp_tree *tree)
{
  return hash_inode (tree, RP_TREE_ROOT);
}

/* ---- directories ---- */

bool
rp_tree_is_directory (const struct rp_tree *tree, uint32_t number)
{
  return look (tree, number)->is_directory;
}

static uint32_t
find_entry (const struct rp_inode *inode, const char *name)
{
  uint32_t i = 0;

  while (i < inode->entry_count
         && strcmp (inode->entries[i].name->text, name) != 0)
    i++;
  return i;
}

uint32_t
rp_tree_find (const struct rp_tree *tree, uint32_t directory, const char *name)
{
  const struct rp_inode *inode = look (tree, directory);
  const uint32_t index = find_entry (inode, name);

  return index < inode->entry_count ? inode->entries[index].number : 0;
}

int
rp_tree_link (struct rp_tree *tree, uint32_t directory, struct rp_name *name,
              uint32_t number)
{
  struct rp_inode *inode = own (tree, directory);
  struct entry *entries;
  uint32_t index;

  if (!inode)
    return RP_NO_MEMORY;
  index = find_entry (inode, name->text);
  if (index == inode->entry_count) {
    entries = realloc (inode->entries, (index + 1) * sizeof *entries);
    if (!entries)
      return RP_NO_MEMORY;
    inode->entries = entries;
    inode->entries[index].name = rp_name_share (name);
    inode->entry_count++;
  }
  inode->entries[index].number = number;
  return RP_OK;
}

int
rp_tree_unlink (struct rp_tree *tree, uint32_t directory, const char *name)
{
  struct rp_inode *inode;
  uint32_t index;

  if (rp_tree_find (tree, directory, name) == 0)
    return RP_OK;
  inode = own (tree, directory);
  if (!inode)
    return RP_NO_MEMORY;
  index = find_entry (inode, name);
  rp_name_release (inode->entries[index].name);
  inode->entries[index] = inode->entries[--inode->entry_count];
  return RP_OK;
}

uint32_t
rp_tree_entry_count (const struct rp_tree *tree, uint32_t directory)
{
  return look (tree, directory)->entry_count;
}

struct rp_name *
rp_tree_entry (const struct rp_tree *tree, uint32_t directory, uint32_t index)
{
  const struct rp_inode *inode = look (tree, directory);

  RP_CHECK (index < inode->entry_count);
  return inode->entries[index].name;
}

/* ---- files ---- */

uint64_t
rp_tree_size (const struct rp_tree *tree, uint32_t number)
{
  return look (tree, number)->size;
}

static struct rp_page *
page_at (const struct rp_inode *inode, uint64_t page)
{
  const uint64_t index = page / GROUP_PAGES;

  if (index >= inode->group_count || !inode->groups[index])
    return NULL;
  return inode->groups[index]->pages[page % GROUP_PAGES];
}

uint64_t
rp_tree_allocated (const struct rp_tree *tree, uint32_t number)
{
  const struct rp_inode *inode = look (tree, number);
  uint64_t pages = 0;

  for (uint64_t i = 0; i < inode->group_count; i++)
    for (uint32_t k = 0; inode->groups[i] && k < GROUP_PAGES; k++)
      pages += inode->groups[i]->pages[k] != NULL;
  return pages * RP_PAGE_BYTES;
}

static uint64_t
smaller (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

void
rp_tree_get (const struct rp_tree *tree, uint32_t number, void *buffer,
             size_t length, uint64_t offset)
{
  const struct rp_inode *inode = look (tree, number);
  uint8_t *to = buffer;

  while (length > 0) {
    const size_t within = offset % RP_PAGE_BYTES;
    const size_t piece = smaller (length, RP_PAGE_BYTES - within);
    const uint64_t room = offset < inode->size ? inode->size - offset : 0;
    const struct rp_page *page = page_at (inode, offset / RP_PAGE_BYTES);
    const size_t known = page ? smaller (piece, room) : 0;

    if (known > 0)
      memcpy (to, page->bytes + within, known);
    memset (to + known, 0, piece - known);
    to += piece;
    offset += piece;
    length -= piece;
  }
}

/* The place of a page for a change; NULL without memory. */
static struct rp_page **
own_place (struct rp_inode *inode, uint64_t page)
{
  const uint64_t index = page / GROUP_PAGES;
  struct group **groups, *group, *old;

  if (index >= inode->group_count) {
    groups = realloc (inode->groups, (index + 1) * sizeof *groups);
    if (!groups)
      return NULL;
    inode->groups = groups;
    while (inode->group_count <= index)
      inode->groups[inode->group_count++] = NULL;
  }
  old = inode->groups[index];
  if (!old || shared (&old->refs)) {
    group = calloc (1, sizeof *group);
    if (!group)
      return NULL;
    atomic_init (&group->refs, 1);
    for (uint32_t i = 0; old && i < GROUP_PAGES; i++) {
      group->pages[i] = old->pages[i];
      if (group->pages[i])
        share (&group->pages[i]->refs);
    }
    group_release (old);
    inode->groups[index] = group;
  }
  group = inode->groups[index];
  atomic_store_explicit (&group->hash, 0, memory_order_relaxed);
  return &group->pages[page % GROUP_PAGES];
}

/* A page for a change, this group's own; NULL without memory. */
static struct rp_page *
own_page (struct rp_page **place)
{
  struct rp_page *old = *place;

  if (!old || shared (&old->refs)) {
    *place = rp_page_create ();
    if (!*place) {
      *place = old;
      return NULL;
    }
    if (old)
      memcpy ((*place)->bytes, old->bytes, RP_PAGE_BYTES);
    rp_page_release (old);
  }
  atomic_store_explicit (&(*place)->hash, 0, memory_order_relaxed);
  return *place;
}

static int
put_piece (struct rp_inode *inode, uint64_t offset, size_t piece,
           struct rp_page *from)
{
  const size_t within = offset % RP_PAGE_BYTES;
  struct rp_page **place, *page;

  if (!from && !page_at (inode, offset / RP_PAGE_BYTES))
    return RP_OK;                /* zeros into a hole */
  place = own_place (inode, offset / RP_PAGE_BYTES);
  if (!place)
    return RP_NO_MEMORY;
  if (piece == RP_PAGE_BYTES) {
    if (from)
      share (&from->refs);
    rp_page_release (*place);
    *place = from;
    return RP_OK;
  }
  page = own_page (place);
  if (!page)
    return RP_NO_MEMORY;
  if (from)
    memcpy (page->bytes + within, from->bytes + within, piece);
  else
    memset (page->bytes + within, 0, piece);
  return RP_OK;
}

int
rp_tree_put (struct rp_tree *tree, uint32_t number, uint64_t offset,
             uint64_t length, struct rp_page *const *pages,
             uint64_t first_page)
{
  struct rp_inode *inode = own (tree, number);
  int status = inode ? RP_OK : RP_NO_MEMORY;

  while (status == RP_OK && length > 0) {
    const uint64_t page = offset / RP_PAGE_BYTES;
    const size_t piece = smaller (length,
                                  RP_PAGE_BYTES - offset % RP_PAGE_BYTES);

    /* holes need no walk through each page of a terabyte */
    if (!pages && page / GROUP_PAGES >= inode->group_count)
      break;
    status = put_piece (inode, offset, piece,
                        pages ? pages[page - first_page] : NULL);
    offset += piece;
    length -= piece;
  }
  return status;
}

int
rp_tree_garble (struct rp_tree *tree, uint32_t number, uint64_t offset,
                uint64_t length, uint64_t seed)
{
  struct rp_inode *inode = own (tree, number);

  for (uint64_t i = 0; inode && i < length; i++) {
    struct rp_page **place = own_place (inode, (offset + i) / RP_PAGE_BYTES);
    struct rp_page *page = place ? own_page (place) : NULL;

    if (!page)
      return RP_NO_MEMORY;
    page->bytes[(offset + i) % RP_PAGE_BYTES] = (uint8_t) rp_hash_mix (seed, i);
  }
  return inode ? RP_OK : RP_NO_MEMORY;
}

int
rp_tree_set_size (struct rp_tree *tree, uint32_t number, uint64_t size)
{
  struct rp_inode *inode;

  if (look (tree, number)->size == size)
    return RP_OK;
  inode = own (tree, number);
  if (!inode)
    return RP_NO_MEMORY;
  inode->size = size;
  return RP_OK;
}

/* Whether something other than zeros may lie behind the end. */
static bool
needs_clip (const struct rp_inode *inode)
{
  const size_t within = inode->size % RP_PAGE_BYTES;
  uint64_t page = inode->size / RP_PAGE_BYTES;
  const struct rp_page *last = page_at (inode, page);

  if (within > 0 && last) {
    for (size_t i = within; i < RP_PAGE_BYTES; i++)
      if (last->bytes[i] != 0)
        return true;
  }
  for (page += within > 0; page < inode->group_count * GROUP_PAGES; page++)
    if (page_at (inode, page))
      return true;
  return false;
}

int
rp_tree_clip (struct rp_tree *tree, uint32_t number)
{
  const struct rp_inode *inode = look (tree, number);
  const uint64_t end = inode->group_count * GROUP_PAGES * RP_PAGE_BYTES;

  if (inode->size >= end || !needs_clip (inode))
    return RP_OK;
  return rp_tree_put (tree, number, inode->size, end - inode->size, NULL, 0);
}

uint64_t
rp_tree_seek (const struct rp_tree *tree, uint32_t number, uint64_t offset,
              bool want_data)
{
  const struct rp_inode *inode = look (tree, number);
  const uint64_t known = inode->group_count * GROUP_PAGES * RP_PAGE_BYTES;

  if (offset >= inode->size)
    return inode->size;
  while (offset < inode->size && offset < known
         && (page_at (inode, offset / RP_PAGE_BYTES) != NULL) != want_data)
    offset += RP_PAGE_BYTES - offset % RP_PAGE_BYTES;
  if (offset >= known && want_data)
    offset = inode->size;
  return smaller (offset, inode->size);
}

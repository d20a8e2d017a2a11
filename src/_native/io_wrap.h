/* io_wrap.h - a backend around another one: record, order and fault.
 *
 * The wrapper passes every call on to the inner io; a backend gives two hooks
 * that see each call before and after, and puts struct wrap_io first in its
 * own struct.
 */
#ifndef RP_IO_WRAP_H
#define RP_IO_WRAP_H

#include "io.h"

enum wrap_kind {
  WRAP_DIR_OPEN = 1, WRAP_DIR_MAKE, WRAP_DIR_REMOVE, WRAP_DIR_SYNC,
  WRAP_DIR_RENAME, WRAP_DIR_UNLINK, WRAP_DIR_LIST, WRAP_DIR_STAT,
  WRAP_FILE_OPEN, WRAP_FILE_PREAD, WRAP_FILE_PWRITEV, WRAP_FILE_SYNC,
  WRAP_FILE_TRUNCATE, WRAP_FILE_ALLOCATE, WRAP_FILE_PUNCH, WRAP_FILE_STAT,
  WRAP_FILE_SEEK, WRAP_FILE_LOCK,
};

struct wrap_dir {
  struct rp_dir  dir;
  struct rp_dir *inner;
  void          *state;          /* the backend's; set in after() of DIR_OPEN */
};

struct wrap_file {
  struct rp_file  file;
  struct rp_file *inner;
  void           *state;         /* the backend's; from after() of FILE_OPEN */
};

struct wrap_call {
  enum wrap_kind      kind;
  struct wrap_dir    *dir;       /* of DIR_* and FILE_OPEN */
  struct wrap_file   *file;      /* of FILE_* */
  const char         *name, *to; /* of DIR_* and FILE_OPEN */
  uint32_t            flags;     /* of FILE_OPEN */
  uint64_t            offset, length;
  const struct iovec *parts;     /* of PWRITEV */
  int                 part_count;
  uint64_t            token;     /* from before() to after(), the backend's */
  uint64_t            token_device;
};

struct wrap_io;

struct wrap_hooks {
  /* *done: the inner io is not asked, and the call returns the status */
  int (*before) (struct wrap_io *io, struct wrap_call *call, bool *done,
                 struct rp_fault *fault);
  /* what the call returns; an open that fails here is undone */
  int (*after) (struct wrap_io *io, struct wrap_call *call, int status,
                struct rp_fault *fault);
  void (*note) (struct wrap_io *io, struct wrap_file *file, enum rp_note note,
                uint64_t offset, uint64_t length);     /* NULL is allowed */
  void (*file_closing) (struct wrap_io *io, struct wrap_file *file); /* same */
  void (*destroy) (struct wrap_io *io);
};

struct wrap_io {
  struct rp_io             io;
  struct rp_io            *inner;
  const struct wrap_hooks *hooks;
};

/* "write /dir/file [0, 512)"; for calls that change nothing, "" */
void wrap_call_text (const struct wrap_call *call, char *buffer,
                     size_t buffer_bytes);

void wrap_destroy (struct rp_io *);
int wrap_dir_open (struct rp_io *, const char *, struct rp_dir **,
                   struct rp_fault *);
void wrap_dir_close (struct rp_dir *);
int wrap_dir_make (struct rp_dir *, const char *, uint32_t, struct rp_fault *);
int wrap_dir_remove (struct rp_dir *, const char *, struct rp_fault *);
int wrap_dir_sync (struct rp_dir *, struct rp_fault *);
int wrap_dir_rename (struct rp_dir *, const char *, const char *,
                     struct rp_fault *);
int wrap_dir_unlink (struct rp_dir *, const char *, struct rp_fault *);
int wrap_dir_list (struct rp_dir *, void (*) (void *, const char *), void *,
                   struct rp_fault *);
int wrap_dir_stat (struct rp_dir *, const char *, struct rp_stat *,
                   struct rp_fault *);
int wrap_file_open (struct rp_dir *, const char *, uint32_t, uint32_t,
                    struct rp_file **, struct rp_fault *);
void wrap_file_close (struct rp_file *);
int wrap_file_pread (struct rp_file *, void *, size_t, uint64_t, size_t *,
                     struct rp_fault *);
int wrap_file_pwritev (struct rp_file *, const struct iovec *, int, uint64_t,
                       struct rp_fault *);
int wrap_file_sync (struct rp_file *, struct rp_fault *);
int wrap_file_truncate (struct rp_file *, uint64_t, struct rp_fault *);
int wrap_file_allocate (struct rp_file *, uint64_t, uint64_t,
                        struct rp_fault *);
int wrap_file_punch (struct rp_file *, uint64_t, uint64_t, struct rp_fault *);
int wrap_file_stat (struct rp_file *, struct rp_stat *, struct rp_fault *);
int wrap_file_seek (struct rp_file *, uint64_t, bool, uint64_t *,
                    struct rp_fault *);
int wrap_file_lock (struct rp_file *, bool, struct rp_fault *);
void wrap_file_note (struct rp_file *, enum rp_note, uint64_t, uint64_t);

#define WRAP_FUNCTIONS(label)                                              \
  {                                                                        \
    .name = label, .destroy = wrap_destroy, .dir_open = wrap_dir_open,     \
    .dir_close = wrap_dir_close, .dir_make = wrap_dir_make,                \
    .dir_remove = wrap_dir_remove, .dir_sync = wrap_dir_sync,              \
    .dir_rename = wrap_dir_rename, .dir_unlink = wrap_dir_unlink,          \
    .dir_list = wrap_dir_list, .dir_stat = wrap_dir_stat,                  \
    .file_open = wrap_file_open, .file_close = wrap_file_close,            \
    .file_pread = wrap_file_pread, .file_pwritev = wrap_file_pwritev,      \
    .file_sync = wrap_file_sync, .file_truncate = wrap_file_truncate,      \
    .file_allocate = wrap_file_allocate, .file_punch = wrap_file_punch,    \
    .file_stat = wrap_file_stat, .file_seek = wrap_file_seek,              \
    .file_lock = wrap_file_lock, .file_note = wrap_file_note,              \
  }

#endif /* RP_IO_WRAP_H */

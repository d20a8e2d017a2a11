/* io_simulate.h - what io_simulate.c (the backend) and io_crash.c (the sweeps)
 * share: the log of micro-operations and how it is replayed. */
#ifndef RP_IO_SIMULATE_H
#define RP_IO_SIMULATE_H

#include <pthread.h>

#include "bytes.h"
#include "io_tree.h"
#include "simulate.h"

enum sim_kind {
  SIM_MAKE = 1,                  /* an inode comes to be; in no directory yet */
  SIM_GROW,                      /* the size becomes at least offset */
  SIM_CUT,                       /* the size becomes offset */
  SIM_WRITE,                     /* without pages: zeros (a hole punched) */
  SIM_LINK,
  SIM_UNLINK,
  SIM_RENAME,
  SIM_SYNC,                      /* barrier; [offset, +length) is left out */
  SIM_LOSE,                      /* pending writes never become durable */
  SIM_ACKNOWLEDGE,               /* tag in offset */
};

struct sim_op {
  enum sim_kind   kind;
  bool            is_directory;  /* of MAKE */
  bool            joined;        /* GROW: the next one is the write it is for */
  uint32_t        inode;         /* the file, or the directory of the names */
  uint32_t        target;        /* the inode that LINK, RENAME name */
  uint64_t        offset, length;
  struct rp_name *path;          /* of the inode, for people */
  struct rp_name *name, *to;     /* in the directory */
  uint32_t        page_count;
  struct rp_page *pages[];       /* of WRITE */
};

struct sim_file;

struct sim_io {
  struct rp_io     io;
  pthread_mutex_t  lock;         /* over everything below */
  struct rp_tree   now;          /* what programs see */
  struct rp_tree   first;        /* what was durable when the log began */
  struct sim_op  **ops;
  uint64_t         op_count, op_room;
  uint32_t         next_inode;
  uint32_t         sweeps;       /* that read the log */
  uint64_t         acknowledged_before; /* by the sweeps that made this state */
  uint64_t         last_tag;     /* of those */
  uint32_t         crashes;      /* that it went through: it is a state */
  struct sim_file *open;         /* list of handles */
};

/* A walk through the log: base is durable, the pending operations are not. */
struct sim_replay {
  struct rp_tree        base;
  const struct sim_op **pending;
  uint32_t              count, room;
};

void sim_lock (struct sim_io *io);
void sim_unlock (struct sim_io *io);
/* An io of the tree, which it takes over, also when it fails. */
int  sim_create (struct rp_tree *tree, struct rp_io **out,
                 struct rp_fault *fault);
struct sim_io *sim_of (struct rp_io *io);
void sim_op_text (const struct sim_op *op, char *buffer, size_t buffer_bytes);

/* RP_OK or RP_NO_MEMORY */
int  sim_apply (struct rp_tree *tree, const struct sim_op *op);
int  sim_replay_start (struct sim_replay *replay, const struct sim_io *io);
int  sim_replay_step (struct sim_replay *replay, const struct sim_op *op);
void sim_replay_end (struct sim_replay *replay);

#endif /* RP_IO_SIMULATE_H */

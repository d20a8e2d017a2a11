/* crash_operation.h - the replica in small of crash_operation_test.c: its
 * files, its state file, and the steps of its operations.
 *
 * The steps are those of src/engine/operation.py, undoing.py and merging.py,
 * in their order; each can be done again.
 */
#ifndef RP_TEST_CRASH_OPERATION_H
#define RP_TEST_CRASH_OPERATION_H

#include "bytes.h"
#include "copy.h"
#include "image.h"
#include "journal_format.h"
#include "journal_model.h"
#include "simulate.h"

#define DISKS     2
#define GRAIN     4096u
#define GRAINS    6u
#define SECTORS   (GRAINS * 8 - 3)   /* the last grain is a short one */
#define BYTES     (SECTORS * 512u)
#define SEGMENT   65536u
#define OVERLAY_GRAIN_SECTORS 16u
#define VERSIONS  512u
#define OVERLAYS  64u
#define ACKS      128u
#define POINTS    32u
#define STAGES    32u
#define FAILOVERS 4u

#define RECORD_MAGIC UINT32_C (0x54415453)

/* For functions that return a status and have a fault. */
#define TRY(call)                                                          \
  do {                                                                     \
    const int status_ = (call);                                            \
    if (status_ != RP_OK)                                                  \
      return status_;                                                      \
  } while (0)
#define MUST(condition)                                                    \
  do {                                                                     \
    if (!(condition))                                                      \
      return rp_fail (fault, RP_CORRUPT, __LINE__, "violation: %s",        \
                      #condition);                                         \
  } while (0)

/* A disk as stamps, one a sector; 0 is a sector of zeros. */
typedef uint32_t stamps[SECTORS];

struct version {
  stamps disks[DISKS];
};

enum phase { READY, FAILING, FAILED_OVER, UNDOING, MERGING, PERMANENT };

/* The state file. */
struct record {
  uint32_t magic;
  uint32_t serial;               /* one more at each replacement */
  uint32_t phase;                /* enum phase */
  uint32_t point;                /* of the failover */
  uint64_t epoch;
};

/* What there was when something was acknowledged. */
struct ack {
  uint32_t version, overlay;     /* the last ones of each */
  uint32_t points, serial;
};

struct failover {
  uint32_t first, last;          /* overlay versions; first: the point */
  uint32_t end;                  /* version at the end of the log */
  uint32_t points;               /* before the fence */
  uint8_t *logs[DISKS];          /* when the overlays were there */
  uint64_t log_bytes[DISKS];
};

struct stage {
  struct record record;
  uint32_t failover;             /* index of the last one that was begun */
};

struct history {
  struct version  versions[VERSIONS];    /* what replication wrote */
  uint32_t        version_count;
  struct version  overlays[OVERLAYS];    /* what overlays showed */
  uint32_t        overlay_count;
  uint32_t        points[POINTS];        /* version of each; id is index + 1 */
  uint32_t        point_count;
  struct failover failovers[FAILOVERS];
  uint32_t        failover_count;
  struct stage    stages[STAGES];        /* by the serial of the state file */
  uint32_t        stage_count;
  struct ack      acks[ACKS];            /* the tag is the index */
  uint32_t        ack_count;
};

struct lab {
  struct history history;
  uint64_t seed, states, deep;
  unsigned depth;                /* of crashes in recovery */
  struct rp_io *swept[2];        /* by depth */
  struct rp_sim_seen *seen;
};

/* ---- stamps and bytes ---- */

static inline void
fill_sector (uint8_t *at, uint32_t stamp)
{
  for (unsigned i = 0; i < 512; i += 8)
    rp_store64 (at + i, stamp * UINT64_C (0x9e3779b97f4a7c15));
}

/* Stamps of a whole disk; false where a sector is no stamp's. */
static inline bool
read_stamps (const uint8_t *bytes, stamps out)
{
  for (unsigned i = 0; i < SECTORS; i++) {
    const uint64_t first = rp_load64 (bytes + i * 512);

    if (memcmp (bytes + i * 512, bytes + i * 512 + 8, 504) != 0)
      return false;
    out[i] = (uint32_t) (first * UINT64_C (0xf1de83e19937733d));
    if (out[i] * UINT64_C (0x9e3779b97f4a7c15) != first)
      return false;
  }
  return true;
}

/* ---- files ---- */

static inline const char *
file_name (char name[16], int d, const char *what)
{
  snprintf (name, 16, "%c-%s", 'a' + d, what);
  return name;
}

static inline bool
exists (struct rp_io *io, int d, const char *what)
{
  struct rp_fault fault;
  struct rp_dir *dir;
  struct rp_stat stat;
  char name[16];
  bool found;

  OK (rp_dir_open (io, "/", &dir, &fault));
  found = rp_dir_stat (dir, file_name (name, d, what), &stat, &fault) == RP_OK;
  rp_dir_close (dir);
  return found;
}

static inline int
put_record (struct rp_io *io, const struct record *record,
            struct rp_fault *fault)
{
  struct rp_dir *dir;

  TRY (rp_dir_open (io, "/", &dir, fault));
  TRY (rp_dir_replace (dir, "state", record, sizeof *record, 0600, fault));
  rp_dir_close (dir);
  return RP_OK;
}

static inline int
get_record (struct rp_io *io, struct record *record, struct rp_fault *fault)
{
  struct rp_dir *dir;
  struct rp_file *file;

  TRY (rp_dir_open (io, "/", &dir, fault));
  TRY (rp_file_open (dir, "state", RP_OPEN_READ, 0, &file, fault));
  TRY (rp_file_pread_all (file, record, sizeof *record, 0, fault));
  MUST (record->magic == RECORD_MAGIC);
  rp_file_close (file);
  rp_dir_close (dir);
  return RP_OK;
}

/* ---- one disk, open ---- */

enum rig_flags {
  WITH_JOURNAL = 1,              /* for writing */
  WITH_CHAIN   = 2,              /* overlay, log, base */
  WRITABLE     = 4,              /* the overlay; without a chain the base */
};

struct rig {
  struct rp_dir     *dir;
  struct rp_file    *base, *log, *over;
  struct rp_image   *base_image, *log_image, *over_image;
  struct rp_disk    *base_disk, *chain;
  struct rp_journal *journal;
};

static inline int
open_link (struct rp_dir *dir, int d, const char *what,
           enum rp_extent_kind kind, bool writable, struct rp_file **file,
           struct rp_image **image, struct rp_fault *fault)
{
  struct rp_extent_spec spec = { .kind = kind, .sectors = SECTORS };
  char name[16];

  TRY (rp_file_open (dir, file_name (name, d, what),
                     writable ? RP_OPEN_WRITE : RP_OPEN_READ, 0, file, fault));
  spec.file = *file;
  return rp_image_open (&spec, 1, writable, image, fault);
}

static inline int
open_rig (struct rp_io *io, int d, unsigned flags, uint64_t epoch,
          struct rig *rig, struct rp_fault *fault)
{
  const bool chain = flags & WITH_CHAIN, writable = flags & WRITABLE;
  char name[16];

  memset (rig, 0, sizeof *rig);
  TRY (rp_dir_open (io, "/", &rig->dir, fault));
  TRY (open_link (rig->dir, d, "base", RP_EXTENT_FLAT, writable && !chain,
                  &rig->base, &rig->base_image, fault));
  TRY (rp_chain_create (&rig->base_image, 1, &rig->base_disk, fault));
  if (chain) {
    struct rp_image *links[3];

    TRY (open_link (rig->dir, d, "log", RP_EXTENT_SPARSE, false, &rig->log,
                    &rig->log_image, fault));
    TRY (open_link (rig->dir, d, "over", RP_EXTENT_SPARSE, writable,
                    &rig->over, &rig->over_image, fault));
    links[0] = rig->over_image;
    links[1] = rig->log_image;
    links[2] = rig->base_image;
    TRY (rp_chain_create (links, 3, &rig->chain, fault));
  }
  if (!(flags & WITH_JOURNAL))
    return RP_OK;
  TRY (rp_file_open (rig->dir, file_name (name, d, "log"), RP_OPEN_WRITE, 0,
                     &rig->log, fault));
  return rp_journal_open (rig->log, rig->base_disk, RP_JOURNAL_WRITE, epoch,
                          &rig->journal, fault);
}

static inline void
close_rig (struct rig *rig)
{
  rp_journal_destroy (rig->journal);
  rp_disk_destroy (rig->chain);
  rp_disk_destroy (rig->base_disk);
  rp_image_destroy (rig->over_image);
  rp_image_destroy (rig->log_image);
  rp_image_destroy (rig->base_image);
  rp_file_close (rig->over);
  rp_file_close (rig->log);
  rp_file_close (rig->base);
  rp_dir_close (rig->dir);
  memset (rig, 0, sizeof *rig);
}

/* What the log's shown root says, above the base, as any reader sees it. */
static inline int
read_shown (const struct rig *rig, uint8_t out[BYTES], struct rp_fault *fault)
{
  struct rp_extent_spec spec = {
    .kind = RP_EXTENT_SPARSE, .sectors = SECTORS, .file = rig->log,
  };
  struct rp_image *links[2] = { NULL, rig->base_image };
  struct rp_disk *chain;

  TRY (rp_image_open (&spec, 1, false, &links[0], fault));
  TRY (rp_chain_create (links, 2, &chain, fault));
  TRY (rp_disk_pread (chain, out, BYTES, 0, fault));
  rp_disk_destroy (chain);
  rp_image_destroy (links[0]);
  return RP_OK;
}

/* Ids of the points that all journals have. */
static inline int
list_points (struct rig rigs[DISKS], uint64_t ids[POINTS], uint32_t *count,
             struct rp_fault *fault)
{
  struct rp_point point, other, wanted;

  *count = 0;
  for (uint64_t i = 0;
       rp_journal_point (rigs[0].journal, i, &point, fault) == RP_OK; i++) {
    bool common = false;

    for (uint64_t k = 0; !common
         && rp_journal_point (rigs[1].journal, k, &other, fault) == RP_OK; k++)
      common = other.id == point.id;
    if (!common)
      continue;
    wanted = make_point (point.id);
    MUST (*count < POINTS);
    MUST (memcmp (&point, &wanted, sizeof point) == 0);
    MUST (memcmp (&other, &wanted, sizeof point) == 0);
    ids[(*count)++] = point.id;
  }
  return RP_OK;
}

/* ---- steps ---- */

/* Mark what no point of all disks covers, then let nobody else write. */
static inline int
fence (struct rig rigs[DISKS], uint64_t epoch, struct rp_fault *fault)
{
  struct rp_journal_info info;
  uint64_t newest[DISKS], id = 0;
  bool news = false;

  for (int d = 0; d < DISKS; d++) {
    struct rp_point point = { .id = 0 };

    rp_journal_info (rigs[d].journal, &info);
    if (info.point_count > 0)
      TRY (rp_journal_point (rigs[d].journal, info.point_count - 1, &point,
                             fault));
    newest[d] = point.id;
    news = news || info.entries_since_point > 0;
    id = point.id > id ? point.id : id;
  }
  if (news || newest[0] != newest[1]) {
    const struct rp_point point = make_point (id + 1);

    for (int d = 0; d < DISKS; d++)
      TRY (rp_journal_mark (rigs[d].journal, &point, fault));
    for (int d = 0; d < DISKS; d++)
      TRY (rp_journal_commit (rigs[d].journal, fault));
  }
  for (int d = 0; d < DISKS; d++)
    TRY (rp_journal_set_epoch (rigs[d].journal, epoch, true, fault));
  return RP_OK;
}

static inline int
remove_files (struct rp_io *io, const char *what, struct rp_fault *fault)
{
  struct rp_dir *dir;
  char name[16];

  TRY (rp_dir_open (io, "/", &dir, fault));
  for (int d = 0; d < DISKS; d++)
    if (exists (io, d, what))
      TRY (rp_dir_unlink (dir, file_name (name, d, what), fault));
  TRY (rp_dir_sync (dir, fault));
  rp_dir_close (dir);
  return RP_OK;
}

static inline int
make_overlays (struct rp_io *io, struct rp_fault *fault)
{
  const struct rp_sparse_create how = {
    .kind = RP_EXTENT_SPARSE, .capacity_sectors = SECTORS,
    .grain_sectors = OVERLAY_GRAIN_SECTORS, .zero_grains = true,
  };
  struct rp_dir *dir;
  char name[16];

  TRY (remove_files (io, "over", fault));
  TRY (rp_dir_open (io, "/", &dir, fault));
  for (int d = 0; d < DISKS; d++) {
    struct rp_file *file;

    TRY (rp_file_open (dir, file_name (name, d, "over"),
                       RP_OPEN_WRITE | RP_OPEN_CREATE | RP_OPEN_EXCLUSIVE,
                       0600, &file, fault));
    TRY (rp_sparse_create (file, &how, fault));
    rp_file_close (file);
  }
  TRY (rp_dir_sync (dir, fault));
  rp_dir_close (dir);
  return RP_OK;
}

static inline int
do_failover (struct rp_io *io, const struct record *record, uint32_t *listed,
             struct rp_fault *fault)
{
  uint64_t ids[POINTS];
  struct rig rigs[DISKS];
  struct rp_roll roll;

  for (int d = 0; d < DISKS; d++)
    TRY (open_rig (io, d, WITH_JOURNAL, record->epoch, &rigs[d], fault));
  TRY (fence (rigs, record->epoch, fault));
  TRY (list_points (rigs, ids, listed, fault));
  for (int d = 0; d < DISKS; d++) {
    TRY (rp_journal_roll (rigs[d].journal, record->point, &roll, fault));
    close_rig (&rigs[d]);
  }
  return make_overlays (io, fault);
}

static inline int
do_undo (struct rp_io *io, const struct record *record, struct rp_fault *fault)
{
  struct rig rigs[DISKS];
  struct rp_roll roll;

  TRY (remove_files (io, "over", fault));
  for (int d = 0; d < DISKS; d++)
    TRY (open_rig (io, d, WITH_JOURNAL, record->epoch, &rigs[d], fault));
  for (int d = 0; d < DISKS; d++)
    TRY (rp_journal_roll (rigs[d].journal, RP_POINT_LATEST, &roll, fault));
  for (int d = 0; d < DISKS; d++) {
    TRY (rp_journal_set_epoch (rigs[d].journal, record->epoch, false, fault));
    close_rig (&rigs[d]);
  }
  return RP_OK;
}

static inline int
do_merge (struct rp_io *io, struct rp_fault *fault)
{
  for (int d = 0; d < DISKS; d++) {
    struct rig from, to;

    TRY (open_rig (io, d, WITH_CHAIN, 0, &from, fault));
    TRY (open_rig (io, d, WRITABLE, 0, &to, fault));
    TRY (rp_merge (from.chain, 2, to.base_disk, NULL, fault));
    TRY (rp_chain_close_clean (to.base_disk, fault));
    close_rig (&to);
    close_rig (&from);
  }
  return RP_OK;
}

static inline int
do_clean_up (struct rp_io *io, struct rp_fault *fault)
{
  TRY (remove_files (io, "over", fault));
  return remove_files (io, "log", fault);
}

#endif /* RP_TEST_CRASH_OPERATION_H */

/* extent.h - looking for damage in an extent, and mending a sparse one.
 *
 * Check reads a file and trusts nothing in it: it goes as far as is safe, also
 * in a file that rp_image_open refuses.
 *
 *   file -> survey (directories, what lies where) -> findings
 *
 * Repair changes nothing that a reader sees, but for ranges that could not be
 * read (or were read through somebody else's table).  It is planned whole on a
 * view of the file, which keeps what is written in memory:
 *
 *   check file -> mend the view -> check the view -> apply, or not at all
 *
 * Order of applying, a sync behind each step:
 *
 *   the backup, and its name
 *   grains and tables behind the old end of the file | COWD's freeSector
 *   redundant tables | primary tables | primary directory
 *   the backup goes, durably: from here on there is no way back
 *   space that nothing points to is given back | the unclean flag is cleared
 *
 * The primary directory and tables are all that a reader follows.  Each
 * sector of them that changes says the same of every grain that could be read,
 * so whatever a crash leaves reads as before; sectors are written whole.
 *
 * The backup (docs/formats.md) is an undo log: the old sectors, with a hash of
 * the new ones.  rp_repair_recover takes a repair back that was cut short,
 * where every sector is still the old or the new one.
 *
 * Memory: a bit (two of them in a file with tables among the grains) for each
 * unit of the file that grains and tables are aligned to: 4 MiB of bits for
 * 2 TiB of 64 KiB grains; 4 bytes for each table and directory; 512 bytes for
 * each sector of metadata that is to change.
 *
 * Threads: one at a time for each object.
 * Tests:   tests/native/crash_repair_test.c, tests/test_image_check.py,
 *          tests/test_repair.py
 */
#ifndef RP_EXTENT_H
#define RP_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "sparse.h"

/* ---- check ---- */

struct rp_extent_place {
  struct rp_file     *file;      /* borrowed */
  enum rp_extent_kind kind;
  uint64_t            sectors;   /* of guest data, as the descriptor says */
  uint64_t            offset_sectors;  /* into the file; FLAT only */
  uint64_t            start_bytes;     /* on the disk */
  uint32_t            index;     /* goes into the findings */
};

/* Check one extent.  A header that cannot be used is a finding ("header"), not
 * a failure.  deep: compressed grains are inflated.
 * Returns RP_OK whatever was found; RP_IO, RP_NO_MEMORY.
 */
int rp_extent_check (const struct rp_extent_place *place, bool deep,
                     rp_finding_each *each, void *context,
                     struct rp_fault *fault);

/* ---- survey: directories and who claims which part of a sparse file ---- */

struct rp_survey {
  struct rp_file *file;
  struct rp_sparse_layout layout;
  uint64_t  start_bytes;
  uint64_t  size_bytes;          /* of guest data that the extent shows */
  uint32_t *primary;             /* directories: sectors of tables */
  uint32_t *redundant;           /* NULL where there is none */
  uint32_t *table, *other;       /* room for one table each */
  bool      table_zero, other_zero;    /* that is what they hold */
  uint64_t  sectors;             /* of the file, as far as entries reach */
  uint64_t  overhead;            /* sectors, at most those of the file */
  uint64_t  unit;                /* sectors that all behind overhead share */
  uint64_t  used_end;            /* sector behind all that is claimed */
  uint8_t  *head;                /* one bit a sector of [0, overhead) */
  uint8_t  *body;                /* one bit a unit of the file: claimed */
  uint8_t  *metadata;            /* likewise: by a table or the directory */
  uint64_t  hole_start, hole_stop, data_start, data_stop;
};

/* Read header and directories.  RP_CORRUPT, RP_FORMAT and RP_UNSUPPORTED are
 * what the header says.  Close it in any case. */
int  rp_survey_open (struct rp_survey *survey, struct rp_file *file,
                     uint64_t sectors, uint64_t start_bytes,
                     struct rp_fault *fault);
void rp_survey_close (struct rp_survey *survey);
/* A table inside the file into survey->table or survey->other, in the byte
 * order of this machine; a table that lies in a hole is not read.  *empty: all
 * zeros. */
int  rp_survey_read_table (struct rp_survey *survey, uint64_t sector,
                           uint32_t *out, bool *empty, struct rp_fault *fault);
/* Claim [sector, sector + sectors).  false: some of it was claimed before. */
bool rp_survey_claim (struct rp_survey *survey, uint64_t sector,
                      uint64_t sectors, bool metadata);
/* Some of it has been claimed (metadata: by metadata). */
bool rp_survey_is_claimed (const struct rp_survey *survey, uint64_t sector,
                           uint64_t sectors, bool metadata);
/* The header, the descriptor and the directories themselves. */
bool rp_survey_claim_fixed (struct rp_survey *survey, uint64_t *overlap_out);
bool rp_survey_table_inside (const struct rp_survey *survey, uint64_t sector);
/* What an entry means on its own. */
enum rp_entry {
  RP_ENTRY_NONE  = 0,            /* absent, zero grain, or behind the disk */
  RP_ENTRY_GRAIN = 1,
  RP_ENTRY_WRONG = 2,            /* outside the file or inside its overhead */
};
enum rp_entry rp_survey_entry (const struct rp_survey *survey, uint64_t grain,
                               uint32_t entry);
/* Call each with every entry of the primary tables that lie in the file; a
 * table of zeros is passed over. */
int rp_survey_entries (struct rp_survey *survey,
                       void (*each) (void *context, uint64_t grain,
                                     uint32_t entry),
                       void *context, struct rp_fault *fault);
/* Sectors of a grain that lie in the file. */
uint64_t rp_survey_grain_sectors (const struct rp_survey *survey,
                                  uint32_t entry);
uint64_t rp_survey_table_guest (const struct rp_survey *survey,
                                uint32_t index);
/* Runs of space that nothing claims, and that hold something (any byte that
 * is not zero) or lie at the end of the file; what is shorter than a grain is
 * alignment.  each returns a status. */
int rp_survey_leaks (struct rp_survey *survey,
                     int (*each) (void *context, uint64_t first, uint64_t stop,
                                  bool at_end, struct rp_fault *fault),
                     void *context, struct rp_fault *fault);
/* RP_OK, and whether any byte of it is not zero. */
int rp_survey_holds_data (struct rp_survey *survey, uint64_t sector,
                          uint64_t sectors, bool *out, struct rp_fault *fault);

/* ---- view: a file with changes that only memory has ---- */

/* When a changed sector is written. */
enum rp_repair_phase {
  RP_PHASE_NEW = 0,              /* behind the old end: nothing points to it */
  RP_PHASE_FREE,                 /* COWD's freeSector */
  RP_PHASE_REDUNDANT,
  RP_PHASE_PRIMARY,
  RP_PHASE_DIRECTORY,
  RP_PHASE_FLAG,                 /* the unclean flag */
};

struct rp_view_sector {
  uint64_t sector;
  uint32_t block;                /* index of its 512 bytes */
  uint8_t  phase;                /* enum rp_repair_phase */
};

struct rp_view_copy {
  uint64_t from, to, bytes;      /* sectors, sectors, bytes */
};

struct rp_view_range {
  uint64_t start, stop;          /* bytes */
};

struct rp_view {
  struct rp_file   file;         /* first: reads and writes as a file does */
  struct rp_io     io;
  struct rp_file  *base;         /* borrowed; read only */
  enum rp_repair_phase phase;    /* of what is written next */
  uint64_t base_bytes, size_bytes;
  uint64_t grown_bytes;          /* size before anything was cut off */
  struct rp_view_sector *sectors;      /* in no order */
  uint8_t  *blocks;
  uint32_t  sector_count, sector_room;
  uint32_t *slots;               /* hash of sectors: index + 1 */
  uint32_t  slot_count;          /* a power of two, or 0 */
  uint8_t  *changed;             /* one bit a MiB: it has changed sectors */
  struct rp_view_copy  *copies;
  uint64_t  copy_count, copy_room;
  struct rp_view_range *punched;
  uint64_t  punched_count, punched_room;
};

int  rp_view_open (struct rp_view *view, struct rp_file *base,
                   struct rp_fault *fault);
void rp_view_close (struct rp_view *view);
/* A grain copied to space behind the end of the base. */
int  rp_view_copy (struct rp_view *view, uint64_t from, uint64_t to,
                   uint64_t bytes, struct rp_fault *fault);

/* ---- repair ---- */

struct rp_repair;

/* Plan the repair of a SPARSE or COWD extent; file is only read, and borrowed.
 * trust_primary: where a primary table says that there is no grain, and the
 * redundant one has one with data, the primary one is right (an image that is
 * marked unclean is always seen so).
 * Any other kind, and a header that cannot be used, gets a plan of nothing.
 */
int  rp_repair_create (const struct rp_extent_place *place, bool trust_primary,
                       struct rp_repair **out, struct rp_fault *fault);
void rp_repair_destroy (struct rp_repair *repair);     /* NULL is allowed */
/* What check says of the file (after: of the file as it would be). */
uint64_t rp_repair_finding_count (const struct rp_repair *repair, bool after);
const struct rp_finding *rp_repair_finding (const struct rp_repair *repair,
                                            bool after, uint64_t index);
struct rp_repair_counts {
  uint64_t entries;              /* of primary tables, taken from redundant */
  uint64_t redundant_entries;    /* of redundant tables, made equal */
  uint64_t tables;               /* new ones, that directory entries got */
  uint64_t grains;               /* copied: they had been shared */
  uint64_t freed_bytes;
  uint64_t free_sector;          /* 1: raised */
  uint64_t flag;                 /* 1: cleared */
};
void rp_repair_counts (const struct rp_repair *repair,
                       struct rp_repair_counts *out);
/* Carry it out.  The backup is made in dir under a name that is free; at the
 * end it is unlinked, or renamed to keep_name (replacing what is there).
 *   file   the extent, open for writing and locked; as it was planned on
 *   tag    of the disk as it is now (its content id): undo asks for the same
 * A failure is taken back at once where the storage still lets us; where not,
 * the backup stays for rp_repair_recover.
 * Returns RP_OK, RP_STATE (the file is not what was planned on), RP_IO, ...
 */
int  rp_repair_run (struct rp_repair *repair, struct rp_dir *dir,
                    const char *name, struct rp_file *file, uint64_t tag,
                    const char *keep_name, struct rp_fault *fault);

enum rp_recovery {
  RP_RECOVERY_NONE  = 0,         /* there is no backup */
  RP_RECOVERY_UNDONE,            /* the repair was taken back */
  RP_RECOVERY_UNUSED,            /* it had changed nothing yet */
  RP_RECOVERY_STALE,             /* the disk was changed since by somebody
                                    else: renamed to stale_name, not used */
};
/* Deal with the backup of a repair that was cut short. */
int  rp_repair_recover (struct rp_dir *dir, const char *name,
                        struct rp_file *file, uint64_t tag,
                        const char *stale_name, enum rp_recovery *out,
                        struct rp_fault *fault);

#endif /* RP_EXTENT_H */

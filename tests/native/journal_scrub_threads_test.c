/* SPDX-License-Identifier: Apache-2.0 */
/* A scrub against a plain model of who reads which write: what it finds, whom
 * that harms, where it goes on, what may be mended; and beside a writer. */
#include <pthread.h>
#include <stdatomic.h>

#include "journal_model.h"

#define GRAIN    4096u
#define GRAINS   96u
#define SEGMENT  (128u << 10)
#define WRITES   300u
#define POINTS   6u
#define DAMAGES  24u

struct world {
  struct place place;
  struct rp_dir *plain;          /* not watched: read ahead by a thread */
  struct rp_file *file;
  struct memory_disk base;
  uint32_t grain_of[WRITES];
  uint64_t position_of[WRITES];
  uint32_t shown[POINTS][GRAINS];  /* write that a point shows; all ones: none */
  uint32_t end[GRAINS];
};

struct finding {
  uint64_t segment, position, guest;
};

struct findings {
  struct finding all[4 * DAMAGES];
  unsigned count;
  unsigned calls, allowed;       /* of progress */
  struct rp_scrub_progress last;
};

static unsigned checks;

static void
fill (uint8_t *data, uint32_t write)
{
  uint64_t seed = write + 1;

  for (unsigned i = 0; i < GRAIN; i++)
    data[i] = (uint8_t) next_random (&seed);
}

static void
note (void *context, const struct rp_journal_damage *damage)
{
  struct findings *findings = context;

  CHECK (findings->count < sizeof findings->all / sizeof findings->all[0]);
  CHECK (damage->message[0] != '\0' && damage->length_bytes > 0);
  findings->all[findings->count++] = (struct finding) {
    damage->segment, damage->position, damage->guest_offset_bytes,
  };
}

static bool
tell (void *context, const struct rp_scrub_progress *progress)
{
  struct findings *findings = context;

  CHECK (progress->done_bytes <= progress->total_bytes);
  findings->last = *progress;
  return ++findings->calls <= findings->allowed;
}

static int
scrub (struct rp_journal *journal, struct findings *findings,
       uint64_t from_segment, uint64_t from_chain)
{
  const struct rp_scrub how = {
    .from_segment = from_segment, .from_chain = from_chain, .each = note,
    .progress = tell, .context = findings,
  };
  struct rp_fault fault;

  findings->count = findings->calls = 0;
  return rp_journal_scrub (journal, &how, &fault);
}

static struct rp_journal *
reopen (struct world *world, int flags)
{
  struct rp_fault fault;

  rp_file_close (world->file);
  OK (rp_file_open (world->plain, "log", RP_OPEN_WRITE, 0600, &world->file,
                    &fault));
  return journal_open (world->file, &world->base.disk, flags);
}

/* Where the data of each write lies. */
static void
find_positions (struct world *world)
{
  uint8_t data[GRAIN], wanted[GRAIN];
  struct rp_fault fault;
  uint64_t size;
  uint32_t write = 0;

  OK (rp_file_size (world->file, &size, &fault));
  for (uint64_t at = 65536; at + GRAIN <= size && write < WRITES; at += GRAIN) {
    OK (rp_file_pread_all (world->file, data, GRAIN, at, &fault));
    fill (wanted, write);
    if (memcmp (data, wanted, GRAIN) == 0)
      world->position_of[write++] = at;
  }
  CHECK (write == WRITES);       /* this log never went round */
}

static void
make (struct world *world)
{
  struct rp_journal *journal;
  struct rp_fault fault;
  uint64_t seed = 4711;
  uint8_t data[GRAIN];

  place_make (&world->place);
  OK (rp_dir_open (world->place.posix, world->place.path, &world->plain,
                   &fault));
  memory_disk_init (&world->base, GRAINS * GRAIN, 0xb5);
  world->file = place_create_log (&world->place, "log", GRAINS * GRAIN, GRAIN,
                                  SEGMENT);
  journal = journal_open (world->file, &world->base.disk, RP_JOURNAL_WRITE);
  memset (world->end, 0xff, sizeof world->end);
  for (uint32_t write = 0; write < WRITES; write++) {
    const uint32_t grain = (uint32_t) random_below (&seed, GRAINS);

    fill (data, write);
    OK (rp_disk_pwrite (rp_journal_disk (journal), data, GRAIN,
                        (uint64_t) grain * GRAIN, &fault));
    world->grain_of[write] = grain;
    world->end[grain] = write;
    if (write % (WRITES / POINTS) == WRITES / POINTS / 2) {
      const unsigned point = write / (WRITES / POINTS);
      const struct rp_point made = make_point (point + 1);

      OK (rp_journal_mark (journal, &made, &fault));
      memcpy (world->shown[point], world->end, sizeof world->end);
    }
    OK (rp_journal_commit (journal, &fault));
  }
  rp_journal_destroy (journal);
  find_positions (world);
}

static void
flip (struct world *world, uint32_t write, uint64_t *seed)
{
  const uint64_t at = world->position_of[write] + random_below (seed, GRAIN);
  struct rp_fault fault;
  uint8_t byte;

  OK (rp_file_pread_all (world->file, &byte, 1, at, &fault));
  byte ^= (uint8_t) (1u << random_below (seed, 8));
  OK (rp_file_pwrite (world->file, &byte, 1, at, &fault));
}

/* Exactly the points that show the write, and the end, if it does. */
static void
check_affected (const struct world *world, struct rp_journal *journal,
                uint32_t write, const struct finding *finding)
{
  struct rp_affected item = {
    .segment = finding->segment, .position = finding->position,
  };
  const uint32_t grain = world->grain_of[write];
  uint64_t first = 0, last = 0;
  struct rp_fault fault;

  OK (rp_journal_affected (journal, &item, 1, &fault));
  for (unsigned point = 0; point < POINTS; point++)
    if (world->shown[point][grain] == write) {
      first = first ? first : point + 1;
      last = point + 1;
    }
  CHECK (!item.gone && item.first_point == first && item.last_point == last);
  CHECK (item.end == (world->end[grain] == write));
  checks++;
}

static void
check_mend (const struct world *world, struct rp_journal *journal,
            uint32_t write, const struct finding *finding)
{
  uint8_t data[GRAIN];
  struct rp_fault fault;

  fill (data, write + 1);
  CHECK (rp_journal_mend (journal, finding->segment, finding->position, data,
                          &fault) == RP_CORRUPT);
  fill (data, write);
  OK (rp_journal_mend (journal, finding->segment, finding->position, data,
                       &fault));
  CHECK (rp_journal_mend (journal, finding->segment,
                          finding->position + GRAIN / 2, data, &fault)
         == RP_NOT_FOUND);
  CHECK (world->position_of[write] == finding->position);
  checks++;
}

static void
test_damage (struct world *world)
{
  static struct findings findings = { .allowed = UINT32_MAX };
  bool damaged[WRITES] = { false };
  struct rp_journal *journal;
  struct rp_fault fault;
  uint64_t seed = 99;
  unsigned at = 0;

  for (unsigned i = 0; i < DAMAGES; i++) {
    const uint32_t write = (uint32_t) random_below (&seed, WRITES);

    if (!damaged[write])
      flip (world, write, &seed);
    damaged[write] = true;
  }
  OK (rp_file_sync (world->file, &fault));
  journal = reopen (world, RP_JOURNAL_WRITE);
  CHECK (scrub (journal, &findings, 0, 0) == RP_OK);
  for (uint32_t write = 0; write < WRITES; write++)
    if (damaged[write]) {
      CHECK (at < findings.count);
      CHECK (findings.all[at].position == world->position_of[write]);
      CHECK (findings.all[at].guest
             == (uint64_t) world->grain_of[write] * GRAIN);
      check_affected (world, journal, write, &findings.all[at]);
      check_mend (world, journal, write, &findings.all[at++]);
    }
  CHECK (at == findings.count);
  OK (rp_file_sync (world->file, &fault));
  CHECK (scrub (journal, &findings, 0, 0) == RP_OK && findings.count == 0);
  rp_journal_destroy (journal);
}

/* What it has read it does not read again, unless it is not what it was. */
static void
test_going_on (struct world *world)
{
  static struct findings findings;
  struct rp_journal *journal = reopen (world, RP_JOURNAL_READ);
  uint64_t seed = 5;

  findings.allowed = 3;
  CHECK (scrub (journal, &findings, 0, 0) == RP_CANCELLED);
  CHECK (findings.count == 0 && findings.last.next_segment > 0);
  flip (world, 0, &seed);
  flip (world, WRITES - 1, &seed);
  findings.allowed = UINT32_MAX;
  CHECK (scrub (journal, &findings, findings.last.next_segment,
                findings.last.chain) == RP_OK);
  CHECK (findings.count == 1
         && findings.all[0].position == world->position_of[WRITES - 1]);
  CHECK (scrub (journal, &findings, 2, 12345) == RP_NOT_FOUND);
  CHECK (scrub (journal, &findings, 0, 0) == RP_OK && findings.count == 2);
  checks += 4;
  rp_journal_destroy (journal);
}

/* ---- beside a writer ---- */

struct beside {
  struct rp_journal *journal;
  atomic_bool ended;
};

static void *
keep_writing (void *context)
{
  struct beside *beside = context;
  uint64_t seed = 8, id = 100;
  uint8_t data[GRAIN];
  struct rp_fault fault;

  for (uint32_t write = WRITES; !atomic_load (&beside->ended); write++) {
    const struct rp_point point = make_point (id++);

    fill (data, write);
    OK (rp_disk_pwrite (rp_journal_disk (beside->journal), data, GRAIN,
                        random_below (&seed, GRAINS) * GRAIN, &fault));
    OK (rp_journal_mark (beside->journal, &point, &fault));
    OK (rp_journal_commit (beside->journal, &fault));
  }
  return NULL;
}

static void
test_beside_a_writer (struct world *world)
{
  static struct findings findings = { .allowed = UINT32_MAX };
  struct beside beside = { .ended = false };
  struct rp_file *file;
  struct rp_fault fault;
  pthread_t thread;
  uint8_t data[GRAIN];

  beside.journal = reopen (world, RP_JOURNAL_WRITE);
  CHECK (scrub (beside.journal, &findings, 0, 0) == RP_OK);
  for (unsigned i = 0; i < findings.count; i++)
    for (uint32_t write = 0; write < WRITES; write++)
      if (world->position_of[write] == findings.all[i].position) {
        fill (data, write);
        OK (rp_journal_mend (beside.journal, findings.all[i].segment,
                             findings.all[i].position, data, &fault));
      }
  CHECK (pthread_create (&thread, NULL, keep_writing, &beside) == 0);
  for (unsigned i = 0; i < 20; i++) {
    struct rp_journal *reader;

    OK (rp_file_open (world->plain, "log", RP_OPEN_READ, 0, &file, &fault));
    reader = journal_open (file, NULL, RP_JOURNAL_READ);
    CHECK (scrub (reader, &findings, 0, 0) == RP_OK && findings.count == 0);
    checks++;
    rp_journal_destroy (reader);
    rp_file_close (file);
  }
  atomic_store (&beside.ended, true);
  pthread_join (thread, NULL);
  rp_journal_destroy (beside.journal);
}

int
main (void)
{
  static struct world world;

  make (&world);
  test_damage (&world);
  test_going_on (&world);
  test_beside_a_writer (&world);
  rp_file_close (world.file);
  rp_dir_close (world.plain);
  free (world.base.bytes);
  place_remove (&world.place);
  printf ("journal_scrub_threads_test: %u checks\n", checks);
  return EXIT_SUCCESS;
}

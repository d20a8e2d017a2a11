/* SPDX-License-Identifier: Apache-2.0 */
/* Many readers of one stream, in whole grains and in parts, and many threads
 * that prepare and write one: every byte is the disk's.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "copy.h"
#include "io.h"
#include "memory_disk.h"
#include "stream_maker.h"

#define READERS 8u
#define ROUNDS  120u
#define SECTORS (128u * 70u + 9u)

struct work {
  struct rp_stream *stream;
  const uint8_t    *disk;
  uint64_t          number;
};

static void *
read_at_random (void *context)
{
  const struct work *work = context;
  const uint64_t size = SECTORS * 512u;
  uint8_t *buffer = malloc (600000);
  struct rp_segment segment;
  struct rp_fault fault;

  CHECK (buffer);
  for (uint64_t i = 0; i < ROUNDS; i++) {
    const uint64_t draw = stream_mix (i * READERS + work->number);
    const bool whole = draw % 3 == 0;
    const uint64_t at = draw % size / (whole ? 65536 : 1)
                        * (whole ? 65536 : 1);
    uint64_t length = whole ? 8 * 65536 : draw >> 40 & 0xffff;

    length = length + 1 < size - at ? length + 1 : size - at;
    OK (rp_stream_map (work->stream, at, length, &segment, &fault));
    if (segment.kind != RP_SEGMENT_DATA)
      continue;
    OK (rp_stream_read (work->stream, buffer, segment.length_bytes, at,
                        &fault));
    CHECK (memcmp (buffer, work->disk + at, segment.length_bytes) == 0);
  }
  free (buffer);
  return NULL;
}

static void
test_readers (struct rp_file *file, const uint8_t *disk)
{
  pthread_t threads[READERS];
  struct work work[READERS];
  struct rp_stream *stream;
  struct rp_fault fault;

  OK (rp_stream_open (file, SECTORS, &stream, &fault));
  for (uint32_t i = 0; i < READERS; i++) {
    work[i] = (struct work) { .stream = stream, .disk = disk, .number = i };
    CHECK (pthread_create (&threads[i], NULL, read_at_random, &work[i]) == 0);
  }
  for (uint32_t i = 0; i < READERS; i++)
    pthread_join (threads[i], NULL);
  rp_stream_close (stream);
}

/* ---- a sink on many threads ---- */

static void
make_in_threads (struct rp_file *file, const uint8_t *disk)
{
  static const char text[] = "# Disk DescriptorFile\nversion=1\n";
  const struct rp_stream_create how = {
    .capacity_sectors = SECTORS, .grain_sectors = 128, .descriptor = text,
    .descriptor_bytes = sizeof text - 1, .descriptor_sectors = 1, .level = 1,
  };
  const struct rp_copy_options options = { .workers = READERS };
  struct rp_disk *source;
  struct rp_copy_counts counts;
  struct rp_sink *sink;
  struct rp_fault fault;

  source = &memory_disk_create (SECTORS * 512u)->disk;
  memcpy (((struct memory_disk *) source)->bytes, disk, SECTORS * 512u);
  OK (rp_stream_sink_create (file, &how, &sink, &fault));
  OK (rp_copy (source, sink, &options, &counts, &fault));
  rp_sink_destroy (sink);
  rp_disk_destroy (source);
}

int
main (void)
{
  uint8_t *disk = stream_disk (SECTORS, 700), *read = malloc (SECTORS * 512u);
  struct rp_fault fault;
  struct rp_file *file;
  struct rp_dir *dir;
  struct rp_io *io;

  CHECK (read);
  OK (rp_io_posix_create (&io, &fault));
  OK (rp_dir_open (io, ".", &dir, &fault));
  OK (rp_file_open (dir, "made", RP_OPEN_WRITE | RP_OPEN_CREATE
                    | RP_OPEN_TRUNCATE, 0600, &file, &fault));
  make_in_threads (file, disk);
  OK (stream_read_all (file, SECTORS, read, &fault));
  CHECK (memcmp (disk, read, SECTORS * 512u) == 0);
  test_readers (file, disk);
  rp_file_close (file);
  rp_dir_close (dir);
  rp_io_destroy (io);
  free (read);
  free (disk);
  printf ("stream_threads_test: %u reads\n", READERS * ROUNDS);
  return EXIT_SUCCESS;
}

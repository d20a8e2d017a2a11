/* SPDX-License-Identifier: Apache-2.0 */
#include "io_wrap.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 1024u

struct record_io {
  struct wrap_io  wrap;
  pthread_mutex_t lock;
  char          **lines;
  uint64_t        count, room;
  bool            reads;         /* set before anything is opened */
};

static struct record_io *
record_of (struct rp_io *io)
{
  return (struct record_io *) io;
}

static int
add_line (struct record_io *io, const char *line)
{
  int status = RP_NO_MEMORY;
  char *copy = strdup (line);
  char **lines;
  uint64_t room;

  if (!copy)
    return status;
  RP_CHECK (pthread_mutex_lock (&io->lock) == 0);
  if (io->count == io->room) {
    room = io->room ? io->room * 2 : 64;
    lines = realloc (io->lines, room * sizeof *lines);
    if (lines) {
      io->lines = lines;
      io->room = room;
    }
  }
  if (io->count < io->room) {
    io->lines[io->count++] = copy;
    copy = NULL;
    status = RP_OK;
  }
  RP_CHECK (pthread_mutex_unlock (&io->lock) == 0);
  free (copy);
  return status;
}

static int
record_before (struct wrap_io *io, struct wrap_call *call, bool *done,
               struct rp_fault *fault)
{
  (void) io;
  (void) call;
  (void) done;
  (void) fault;
  return RP_OK;
}

static int
record_after (struct wrap_io *io, struct wrap_call *call, int status,
              struct rp_fault *fault)
{
  char line[LINE_BYTES];
  size_t length;

  wrap_call_text (call, line, sizeof line);
  if (call->kind == WRAP_FILE_PREAD && record_of (&io->io)->reads)
    snprintf (line, sizeof line, "read %s [%llu, %llu)", call->file->file.name,
              (unsigned long long) call->offset,
              (unsigned long long) (call->offset + call->length));
  if (line[0] == '\0')
    return status;
  length = strlen (line);
  if (status != RP_OK)
    snprintf (line + length, sizeof line - length, ": %s",
              rp_status_text (status));
  if (add_line (record_of (&io->io), line) != RP_OK && status == RP_OK)
    return rp_fail (fault, RP_NO_MEMORY, 0, "recording \"%.200s\"", line);
  return status;
}

static void
record_note (struct wrap_io *io, struct wrap_file *file, enum rp_note note,
             uint64_t offset, uint64_t length)
{
  char line[LINE_BYTES];

  snprintf (line, sizeof line, "%s %s [%llu, %llu)",
            note == RP_NOTE_ACKNOWLEDGE ? "acknowledge" : "point to",
            file->file.name, (unsigned long long) offset,
            (unsigned long long) (offset + length));
  (void) add_line (record_of (&io->io), line);
}

static void
record_destroy (struct wrap_io *io)
{
  struct record_io *record = record_of (&io->io);

  for (uint64_t i = 0; i < record->count; i++)
    free (record->lines[i]);
  free (record->lines);
  pthread_mutex_destroy (&record->lock);
  free (record);
}

static const struct wrap_hooks record_hooks = {
  .before = record_before,
  .after = record_after,
  .note = record_note,
  .destroy = record_destroy,
};

static const struct rp_io_functions record_functions
  = WRAP_FUNCTIONS ("record");

int
rp_io_record_create (struct rp_io *inner, struct rp_io **out,
                     struct rp_fault *fault)
{
  struct record_io *io = calloc (1, sizeof *io);

  *out = NULL;
  if (!io)
    return rp_fail (fault, RP_NO_MEMORY, 0, "making the record backend");
  io->wrap = (struct wrap_io) {
    .io.functions = &record_functions, .inner = inner, .hooks = &record_hooks,
  };
  RP_CHECK (pthread_mutex_init (&io->lock, NULL) == 0);
  *out = &io->wrap.io;
  return RP_OK;
}

void
rp_io_record_reads (struct rp_io *rp)
{
  RP_CHECK (rp->functions == &record_functions);
  record_of (rp)->reads = true;
}

uint64_t
rp_io_record_count (struct rp_io *rp)
{
  struct record_io *io = record_of (rp);
  uint64_t count;

  RP_CHECK (rp->functions == &record_functions);
  RP_CHECK (pthread_mutex_lock (&io->lock) == 0);
  count = io->count;
  RP_CHECK (pthread_mutex_unlock (&io->lock) == 0);
  return count;
}

void
rp_io_record_text (struct rp_io *rp, uint64_t index, char *buffer,
                   size_t buffer_bytes)
{
  struct record_io *io = record_of (rp);

  RP_CHECK (rp->functions == &record_functions);
  RP_CHECK (pthread_mutex_lock (&io->lock) == 0);
  RP_CHECK (index < io->count);
  snprintf (buffer, buffer_bytes, "%s", io->lines[index]);
  RP_CHECK (pthread_mutex_unlock (&io->lock) == 0);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "journal_reader.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_BYTES (2u << 20)  /* a multiple of every grain */
#define WINDOWS      4u

struct rp_reader {
  const struct rp_journal *journal;
  uint64_t segment, stop;        /* where reading is, indexes of the list */
  uint64_t position;             /* in that segment; 0: at its begin */
  struct rp_window windows[WINDOWS];
  bool            threaded;
  pthread_t       thread;
  pthread_mutex_t lock;
  pthread_cond_t  changed;
  uint64_t        filled, taken; /* windows so far; under lock, as below */
  bool            ending;
};

/* Where the next window lies; false behind the last one. */
static bool
next_place (struct rp_reader *reader, struct rp_window *window)
{
  while (reader->segment < reader->stop) {
    const struct rp_segment *segment
      = reader->journal->segments[reader->segment];

    if (reader->position == 0)
      reader->position = segment->position + reader->journal->block_bytes;
    if (reader->position < segment->end) {
      const uint64_t left = segment->end - reader->position;

      window->position = reader->position;
      window->length = left < WINDOW_BYTES ? left : WINDOW_BYTES;
      reader->position += window->length;
      return true;
    }
    reader->segment++;
    reader->position = 0;
  }
  return false;
}

static void
fill (struct rp_reader *reader, struct rp_window *window)
{
  struct rp_fault ignored;
  size_t done = 0;

  window->status = rp_file_pread (reader->journal->file, window->bytes,
                                  window->length, window->position, &done,
                                  &ignored);
  if (window->status == RP_OK && done < window->length)
    memset (window->bytes + done, 0, window->length - done);
}

static void *
read_ahead (void *context)
{
  struct rp_reader *reader = context;

  for (;;) {
    struct rp_window *window;
    bool more;

    pthread_mutex_lock (&reader->lock);
    while (!reader->ending && reader->filled - reader->taken == WINDOWS - 1)
      pthread_cond_wait (&reader->changed, &reader->lock);
    window = &reader->windows[reader->filled % WINDOWS];
    more = !reader->ending && next_place (reader, window);
    pthread_mutex_unlock (&reader->lock);
    if (!more)
      return NULL;
    fill (reader, window);
    pthread_mutex_lock (&reader->lock);
    reader->filled++;
    pthread_cond_broadcast (&reader->changed);
    pthread_mutex_unlock (&reader->lock);
  }
}

/* Signals are for the caller's threads. */
static bool
start (struct rp_reader *reader)
{
  sigset_t all, before;
  bool started;

  sigfillset (&all);
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &all, &before) == 0);
  started = pthread_create (&reader->thread, NULL, read_ahead, reader) == 0;
  RP_CHECK (pthread_sigmask (SIG_SETMASK, &before, NULL) == 0);
  return started;
}

int
rp_reader_create (struct rp_reader **out, const struct rp_journal *journal,
                  uint64_t first, uint64_t stop, struct rp_fault *fault)
{
  struct rp_reader *reader = calloc (1, sizeof *reader);

  *out = NULL;
  if (!reader)
    return rp_fail (fault, RP_NO_MEMORY, 0, "reading a log");
  reader->journal = journal;
  reader->segment = first;
  reader->stop = stop;
  RP_CHECK (pthread_mutex_init (&reader->lock, NULL) == 0);
  RP_CHECK (pthread_cond_init (&reader->changed, NULL) == 0);
  for (unsigned i = 0; i < WINDOWS; i++) {
    reader->windows[i].bytes = malloc (WINDOW_BYTES);
    if (!reader->windows[i].bytes) {
      rp_reader_destroy (reader);
      return rp_fail (fault, RP_NO_MEMORY, 0, "reading a log");
    }
  }
  reader->threaded = !rp_file_is_watched (journal->file) && start (reader);
  *out = reader;
  return RP_OK;
}

const struct rp_window *
rp_reader_next (struct rp_reader *reader)
{
  struct rp_window *window = &reader->windows[reader->taken % WINDOWS];

  if (!reader->threaded) {
    RP_CHECK (next_place (reader, window));
    fill (reader, window);
    return window;
  }
  pthread_mutex_lock (&reader->lock);
  while (reader->filled == reader->taken)
    pthread_cond_wait (&reader->changed, &reader->lock);
  reader->taken++;
  pthread_cond_broadcast (&reader->changed);
  pthread_mutex_unlock (&reader->lock);
  return window;
}

void
rp_reader_destroy (struct rp_reader *reader)
{
  if (!reader)
    return;
  if (reader->threaded) {
    pthread_mutex_lock (&reader->lock);
    reader->ending = true;
    pthread_cond_broadcast (&reader->changed);
    pthread_mutex_unlock (&reader->lock);
    pthread_join (reader->thread, NULL);
  }
  for (unsigned i = 0; i < WINDOWS; i++)
    free (reader->windows[i].bytes);
  pthread_cond_destroy (&reader->changed);
  pthread_mutex_destroy (&reader->lock);
  free (reader);
}

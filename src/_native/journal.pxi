# journal.h for Python.

cdef extern from "<stdbool.h>":
    ctypedef bint journal_bool "bool"  # bint alone is an int in callbacks

cdef extern from "journal.h":
    enum:
        RP_POINT_LABEL_BYTES, RP_JOURNAL_READ, RP_JOURNAL_WRITE
        RP_POINT_CRASH, RP_POINT_APP
    uint64_t RP_POINT_LATEST
    uint64_t RP_POINT_END
    struct rp_journal
    struct rp_journal_options:
        uint64_t capacity_bytes
        uint32_t grain_bytes
        uint32_t segment_bytes
        uint8_t id[16]
        uint64_t epoch
    struct rp_point:
        uint64_t id
        int64_t time_ns
        uint32_t kind
        char label[256]
    struct rp_journal_info_t "rp_journal_info":
        rp_journal_options options
        bint held
        bint failed
        uint64_t next_sequence
        uint64_t durable_sequence
        uint64_t point_count
        uint64_t segment_count
        uint64_t entry_count
        uint64_t log_bytes
        uint64_t root_sequence
        uint64_t root_sector
        int64_t last_commit_ns
        bint closed_clean
        uint64_t entries_since_point
        uint64_t horizon_entry
        uint64_t horizon_sequence
        uint64_t based_entry
        uint64_t root_entry
        uint64_t used_bytes
        uint64_t limit_bytes
    struct rp_checkpoint:
        uint64_t entries_since
        uint64_t bytes_written
        uint64_t root_sector
    struct rp_destage:
        uint64_t entries
        uint64_t grains
        uint64_t bytes_written
        uint64_t zeroed_bytes
        uint64_t freed_bytes
    struct rp_roll:
        uint64_t point_id
        bint backwards
        uint64_t entries_walked
        uint64_t tables_written
        uint64_t bytes_written
        uint64_t root_sector
    struct rp_journal_damage:
        uint64_t segment
        uint64_t position
        uint64_t guest_offset_bytes
        uint64_t length_bytes
        char message[128]
    int rp_journal_create(rp_file *file, const rp_journal_options *options,
                          rp_fault *fault) nogil
    int rp_journal_open(rp_file *file, rp_disk *base, int flags, uint64_t epoch,
                        rp_journal **out, rp_fault *fault) nogil
    void rp_journal_destroy(rp_journal *journal) nogil
    void rp_journal_read_info "rp_journal_info" (rp_journal *journal,
                                                 rp_journal_info_t *out) nogil
    int rp_journal_view(rp_journal *journal, uint64_t point_id, rp_fault *fault) nogil
    int rp_journal_written(rp_journal *journal, uint64_t point_id, rp_spans *out,
                           rp_fault *fault) nogil
    int rp_journal_prove(rp_journal *journal, const uint64_t *pairs, uint64_t count,
                         rp_fault *fault) nogil
    rp_disk *rp_journal_disk(rp_journal *journal) nogil
    int rp_journal_commit(rp_journal *journal, rp_fault *fault) nogil
    uint64_t rp_journal_pending_bytes(rp_journal *journal) nogil
    int rp_journal_mark(rp_journal *journal, const rp_point *point, rp_fault *fault) nogil
    int rp_journal_point(rp_journal *journal, uint64_t index, rp_point *out,
                         rp_fault *fault) nogil
    int rp_journal_point_cut(rp_journal *journal, uint64_t index, uint64_t *entries_out,
                             rp_fault *fault) nogil
    int rp_journal_set_epoch(rp_journal *journal, uint64_t epoch, bint held,
                             rp_fault *fault) nogil
    int rp_journal_roll(rp_journal *journal, uint64_t point_id, rp_roll *out,
                        rp_fault *fault) nogil
    int rp_journal_close_clean(rp_journal *journal, rp_fault *fault) nogil
    int rp_journal_checkpoint(rp_journal *journal, rp_checkpoint *out, rp_fault *fault) nogil
    int rp_journal_destage(rp_journal *journal, uint64_t point_id, rp_disk *target,
                           journal_bool (*progress)(void *, uint64_t, uint64_t) noexcept nogil,
                           void *context, rp_destage *out, rp_fault *fault) nogil
    int rp_journal_set_limit(rp_journal *journal, uint64_t limit_bytes, journal_bool wait,
                             rp_fault *fault) nogil
    struct rp_scrub_progress:
        uint64_t done_bytes
        uint64_t total_bytes
        uint64_t next_segment
        uint64_t chain
    struct rp_scrub:
        uint64_t from_segment
        uint64_t from_chain
        uint64_t segment_count
        void (*each)(void *, const rp_journal_damage *) noexcept nogil
        journal_bool (*progress)(void *, const rp_scrub_progress *) noexcept nogil
        void *context
    int rp_journal_scrub(rp_journal *journal, const rp_scrub *scrub, rp_fault *fault) nogil
    struct rp_affected:
        uint64_t segment
        uint64_t position
        journal_bool gone
        journal_bool end
        uint64_t first_point
        uint64_t last_point
    int rp_journal_affected(rp_journal *journal, rp_affected *items, uint64_t count,
                            rp_fault *fault) nogil
    int rp_journal_mend(rp_journal *journal, uint64_t segment, uint64_t position,
                        const void *data, rp_fault *fault) nogil

cdef extern from "journal_synthesize.h":
    struct rp_synthesis:
        uint64_t entries
        uint64_t working_set_bytes
        uint64_t points
        uint64_t seed
    int rp_journal_synthesize(rp_file *file, const rp_synthesis *how, rp_fault *fault) nogil

POINT_LATEST = RP_POINT_LATEST
POINT_END = RP_POINT_END
POINT_CRASH = RP_POINT_CRASH
POINT_APP = RP_POINT_APP


def journal_create(File file, *, uint64_t capacity_bytes, uint32_t grain_bytes=4096,
                   uint32_t segment_bytes=67108864, bytes id, uint64_t epoch=1):
    """Make an empty log in an empty file and sync it; see journal.h.

    Sizes are bytes; id is 16 random bytes. Raises UsageError, StorageError.
    """
    cdef _FileHandle handle = file.handle()
    cdef rp_journal_options options
    cdef rp_fault fault
    cdef int status
    if len(id) != 16:
        raise _errors.UsageError(f"a journal's id has 16 bytes, not {len(id)}", "use os.urandom(16)")
    options.capacity_bytes = capacity_bytes
    options.grain_bytes = grain_bytes
    options.segment_bytes = segment_bytes
    memcpy(options.id, <const char *>id, 16)
    options.epoch = epoch
    with nogil:
        status = rp_journal_create(handle.file, &options, &fault)
    check(status, &fault)


def journal_synthesize(File file, *, uint64_t entries, uint64_t working_set_bytes,
                       uint64_t points=2, uint64_t seed=1):
    """For benchmarks: fill a new log with random writes whose data are holes.

    Everything but the data is real; see journal_synthesize.h. Raises StateError
    where the log is not new.
    """
    cdef _FileHandle handle = file.handle()
    cdef rp_synthesis how
    cdef rp_fault fault
    cdef int status
    how.entries = entries
    how.working_set_bytes = working_set_bytes
    how.points = points
    how.seed = seed
    with nogil:
        status = rp_journal_synthesize(handle.file, &how, &fault)
    check(status, &fault)


cdef int _fill_point(rp_point *point, uint64_t id, int64_t time_ns, uint32_t kind,
                     str label) except -1:
    """A point for the native side; UsageError where the label is too long."""
    cdef bytes encoded = label.encode("utf-8")
    if len(encoded) >= RP_POINT_LABEL_BYTES or b"\0" in encoded:
        raise _errors.UsageError(
            f"the label {label!r} does not fit", "use at most 255 bytes of UTF-8, without NUL")
    memset(point, 0, sizeof(rp_point))
    point.id = id
    point.time_ns = time_ns
    point.kind = kind
    memcpy(point.label, <const char *>encoded, len(encoded))
    return 0


cdef class _Scrub:
    cdef list found
    cdef object progress
    cdef object error
    cdef uint64_t said               # bytes done when progress was last called

    def __init__(self, list found, progress):
        self.found = found
        self.progress = progress


cdef void _scrub_damage(void *context, const rp_journal_damage *damage) noexcept with gil:
    cdef rp_journal_damage one = damage[0]
    segment = None if one.segment == <uint64_t>-1 else one.segment
    guest = None if one.guest_offset_bytes == <uint64_t>-1 else one.guest_offset_bytes
    (<_Scrub>context).found.append(
        (segment, one.position, guest, one.length_bytes, one.message.decode("utf-8", "replace")))


cdef journal_bool _scrub_progress(void *context, const rp_scrub_progress *at) noexcept with gil:
    cdef _Scrub state = <_Scrub>context
    cdef rp_scrub_progress now = at[0]
    if state.progress is None or (now.done_bytes < now.total_bytes
                                  and now.done_bytes - state.said < 1 << 23):
        return True
    state.said = now.done_bytes
    try:
        return state.progress(now.done_bytes, now.total_bytes, now.next_segment,
                              now.chain) is not False
    except BaseException as error:
        state.error = error
        return False


cdef class _DestageProgress:
    cdef object progress
    cdef object error

    def __init__(self, progress):
        self.progress = progress


cdef journal_bool _destage_progress(void *context, uint64_t done, uint64_t total) noexcept with gil:
    cdef _DestageProgress state = <_DestageProgress>context
    if state.progress is None:
        return True
    try:
        return state.progress(done, total) is not False
    except BaseException as error:
        state.error = error
        return False


cdef class _JournalHandle:
    cdef rp_journal *journal
    cdef _FileHandle file            # borrowed natively: outlives the journal
    cdef Disk base

    def __dealloc__(self):
        rp_journal_destroy(self.journal)


cdef uint64_t _horizon(_JournalHandle handle) noexcept:
    """Changes whenever points go."""
    cdef rp_journal_info_t info
    with nogil:
        rp_journal_read_info(handle.journal, &info)
    return info.horizon_sequence


cdef class Journal:
    """The log of a replica disk; see journal.h.

    Writing takes the file's lock and recovers a torn tail. commit(), mark(),
    checkpoint(), destage(), set_limit() and the disk may be used from any thread; roll(),
    set_epoch(), close_clean(), scrub(), affected(), mend() and written_since() want the
    journal for themselves. Dropping it does not commit.
    """

    cdef _JournalHandle _handle      # None after close

    def __cinit__(self, File file, Disk base=None, *, bint writable=False, uint64_t epoch=0):
        cdef _JournalHandle handle = _JournalHandle.__new__(_JournalHandle)
        cdef rp_disk *base_disk = NULL
        cdef int flags = RP_JOURNAL_WRITE if writable else RP_JOURNAL_READ
        cdef rp_fault fault
        cdef int status
        handle.file = file.handle()
        handle.base = base
        if base is not None:
            base_disk = base.pointer()
        with nogil:
            status = rp_journal_open(handle.file.file, base_disk, flags, epoch,
                                     &handle.journal, &fault)
        check(status, &fault)
        self._handle = handle

    cdef _JournalHandle handle(self):
        """What native users of this journal keep; StateError after close()."""
        if self._handle is None:
            raise _errors.StateError("the journal is closed", "open it again")
        return self._handle

    cdef rp_journal *pointer(self) except NULL:
        return self.handle().journal

    def info(self):
        """Facts as a dict, by the names of struct rp_journal_info and its options."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_journal_info_t info
        with nogil:
            rp_journal_read_info(handle.journal, &info)
        return {
            "capacity_bytes": info.options.capacity_bytes,
            "grain_bytes": info.options.grain_bytes,
            "segment_bytes": info.options.segment_bytes,
            "id": PyBytes_FromStringAndSize(<const char *>info.options.id, 16),
            "epoch": info.options.epoch,
            "held": bool(info.held),
            "failed": bool(info.failed),
            "next_sequence": info.next_sequence,
            "durable_sequence": info.durable_sequence,
            "point_count": info.point_count,
            "segment_count": info.segment_count,
            "entry_count": info.entry_count,
            "log_bytes": info.log_bytes,
            "root_sequence": info.root_sequence,
            "root_sector": info.root_sector,
            "last_commit_ns": info.last_commit_ns,
            "closed_clean": bool(info.closed_clean),
            "entries_since_point": info.entries_since_point,
            "horizon_entry": info.horizon_entry,
            "horizon_sequence": info.horizon_sequence,
            "based_entry": info.based_entry,
            "root_entry": info.root_entry,
            "used_bytes": info.used_bytes,
            "limit_bytes": info.limit_bytes,
        }

    def view(self, uint64_t point_id):
        """Let the disk show a restore point: see rp_journal_view. Once, before it is read."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_view(handle.journal, point_id, &fault)
        check(status, &fault)

    def written_since(self, uint64_t point_id):
        """Spans written after a point's cut (0: all that is not below the journal yet).

        As spans.h packs them; no data is read. The journal must be idle meanwhile.
        """
        cdef _JournalHandle handle = self.handle()
        cdef rp_spans spans
        cdef rp_fault fault
        cdef int status
        memset(&spans, 0, sizeof(spans))
        try:
            with nogil:
                status = rp_journal_written(handle.journal, point_id, &spans, &fault)
            check(status, &fault)
            return PyBytes_FromStringAndSize(<char *>spans.pairs, spans.count * 16)
        finally:
            free(spans.pairs)

    def prove(self, packed):
        """Compare what a viewed point shows in some spans with its checksums: DamagedError."""
        cdef _JournalHandle handle = self.handle()
        cdef _Lease lease = _Lease.take(packed, False)
        cdef uint64_t count = _count_pairs(lease)
        cdef const uint64_t *pairs = <const uint64_t *>lease.view.buf
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_prove(handle.journal, pairs, count, &fault)
        check(status, &fault)

    def disk(self):
        """The journal as a Disk: writes are appended, flush commits."""
        cdef _JournalHandle handle = self.handle()
        cdef Disk made = Disk.__new__(Disk)
        made._disk = rp_journal_disk(handle.journal)
        made._owned = False
        made._keep = handle
        return made

    def commit(self):
        """Return when everything written or marked before is durable. A failure is final."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_commit(handle.journal, &fault)
        check(status, &fault)

    @property
    def pending_bytes(self):
        """Bytes written and not yet durable."""
        cdef _JournalHandle handle = self.handle()
        cdef uint64_t pending
        with nogil:
            pending = rp_journal_pending_bytes(handle.journal)
        return pending

    def mark(self, uint64_t id, int64_t time_ns, uint32_t kind, str label=""):
        """Append a restore point; durable, and listed, with the next commit."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_point point
        cdef rp_fault fault
        cdef int status
        _fill_point(&point, id, time_ns, kind, label)
        with nogil:
            status = rp_journal_mark(handle.journal, &point, &fault)
        check(status, &fault)

    def points(self):
        """Durable restore points, oldest first, as (id, time_ns, kind, label)."""
        cdef _JournalHandle handle = self.handle()
        cdef uint64_t horizon = _horizon(handle)
        cdef rp_point point
        cdef rp_fault fault
        cdef uint64_t index = 0
        cdef int status
        found = []
        while True:
            with nogil:
                status = rp_journal_point(handle.journal, index, &point, &fault)
            if status == RP_NOT_FOUND:
                if horizon == _horizon(handle):
                    return found
                horizon = _horizon(handle)  # it has moved, and with it what an index means
                found = []
                index = 0
                continue
            check(status, &fault)
            found.append((point.id, point.time_ns, point.kind,
                          point.label.decode("utf-8", "replace")))
            index += 1

    def point_cuts(self):
        """For each of points(), how many entries of the log come before it."""
        cdef _JournalHandle handle = self.handle()
        cdef uint64_t horizon = _horizon(handle)
        cdef rp_fault fault
        cdef uint64_t index = 0, entries
        cdef int status
        found = []
        while True:
            with nogil:
                status = rp_journal_point_cut(handle.journal, index, &entries, &fault)
            if status == RP_NOT_FOUND:
                if horizon == _horizon(handle):
                    return found
                horizon = _horizon(handle)
                found = []
                index = 0
                continue
            check(status, &fault)
            found.append(entries)
            index += 1

    def set_epoch(self, uint64_t epoch, bint held):
        """Commit, then make the epoch and the held flag durable."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_set_epoch(handle.journal, epoch, held, &fault)
        check(status, &fault)

    def roll(self, uint64_t point_id):
        """Show the disk as of a point; the fields of struct rp_roll as a dict."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_roll roll
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_roll(handle.journal, point_id, &roll, &fault)
        check(status, &fault)
        return {
            "point_id": roll.point_id,
            "backwards": bool(roll.backwards),
            "entries_walked": roll.entries_walked,
            "tables_written": roll.tables_written,
            "bytes_written": roll.bytes_written,
            "root_sector": roll.root_sector,
        }

    def checkpoint(self):
        """Show the end of the log, while writers go on; struct rp_checkpoint as a dict.

        Raises StorageError where a limit leaves no room for it: nothing is lost then.
        """
        cdef _JournalHandle handle = self.handle()
        cdef rp_checkpoint done
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_checkpoint(handle.journal, &done, &fault)
        check(status, &fault)
        return {
            "entries_since": done.entries_since,
            "bytes_written": done.bytes_written,
            "root_sector": done.root_sector,
        }

    def destage(self, uint64_t point_id, Disk target not None, progress=None):
        """Make a point the oldest: what is before it goes to the base; see journal.h.

        target is the disk that this journal was opened with. progress(done_bytes,
        total_bytes) is called by this thread about every MiB and may sleep; False
        stops with CancelledError, and asked again it finishes. Returns struct
        rp_destage as a dict. Raises DamagedError, NotFoundError, StorageError.
        """
        cdef _JournalHandle handle = self.handle()
        cdef rp_disk *disk = target.pointer()
        cdef _DestageProgress state = _DestageProgress(progress)
        cdef void *context = <void *>state
        cdef rp_destage done
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_destage(handle.journal, point_id, disk, _destage_progress,
                                        context, &done, &fault)
        if state.error is not None:
            raise state.error
        check(status, &fault)
        return {
            "entries": done.entries,
            "grains": done.grains,
            "bytes_written": done.bytes_written,
            "zeroed_bytes": done.zeroed_bytes,
            "freed_bytes": done.freed_bytes,
        }

    def set_limit(self, uint64_t limit_bytes, bint wait):
        """Bound the space of segments and roots, 0: not at all; see journal.h.

        A write that needs more waits (wait), or fails with StorageError.
        """
        cdef _JournalHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_set_limit(handle.journal, limit_bytes, wait, &fault)
        check(status, &fault)

    def close_clean(self):
        """Commit, show the end of the log, and say so in the superblock; then close()."""
        cdef _JournalHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_journal_close_clean(handle.journal, &fault)
        check(status, &fault)
        self._handle = None

    def scrub(self, list found not None, progress=None, *, uint64_t from_segment=0,
              uint64_t from_chain=0, uint64_t segment_count=0):
        """Re-read segments, the head and the shown root; see rp_journal_scrub.

        Each damage is appended to found as (segment or None, position, guest offset or
        None, length, message). progress(done, total, next_segment, chain) is called now
        and then; False stops with CancelledError.
        """
        cdef _JournalHandle handle = self.handle()
        cdef _Scrub state = _Scrub(found, progress)
        cdef rp_scrub how
        cdef rp_fault fault
        cdef int status
        how.from_segment = from_segment
        how.from_chain = from_chain
        how.segment_count = segment_count
        how.each = _scrub_damage
        how.progress = _scrub_progress
        how.context = <void *>state
        with nogil:
            status = rp_journal_scrub(handle.journal, &how, &fault)
        if state.error is not None:
            raise state.error
        check(status, &fault)

    def affected(self, places):
        """Whom damages harm, given as (segment or None, position).

        For each (gone, end of the log too, first point or 0, last point or 0).
        """
        cdef _JournalHandle handle = self.handle()
        cdef list asked = list(places)
        cdef uint64_t count = len(asked)
        cdef rp_affected *items = <rp_affected *>calloc(count + 1, sizeof(rp_affected))
        cdef rp_fault fault
        cdef int status
        if items is NULL:
            raise MemoryError("a list of damage")
        try:
            for i in range(count):
                segment, position = asked[i]
                items[i].segment = <uint64_t>-1 if segment is None else <uint64_t>segment
                items[i].position = position
            with nogil:
                status = rp_journal_affected(handle.journal, items, count, &fault)
            check(status, &fault)
            return [(bool(items[i].gone), bool(items[i].end), items[i].first_point,
                     items[i].last_point) for i in range(count)]
        finally:
            free(items)

    def mend(self, uint64_t segment, uint64_t position, data=None):
        """Write a grain again, or (None) the entries of a summary; see rp_journal_mend.

        DamagedError where it is not proven to be what was there. Not synced.
        """
        cdef _JournalHandle handle = self.handle()
        cdef _Lease lease
        cdef const void *at = NULL
        cdef rp_journal_info_t info
        cdef rp_fault fault
        cdef int status
        if data is not None:
            lease = _Lease.take(data, False)
            at = lease.view.buf
            with nogil:
                rp_journal_read_info(handle.journal, &info)
            if <uint64_t>lease.view.len != info.options.grain_bytes:
                raise _errors.UsageError("a grain is mended whole", "give all bytes of it")
        with nogil:
            status = rp_journal_mend(handle.journal, segment, position, at, &fault)
        check(status, &fault)

    def close(self):
        """Let it go without committing, as in a crash. May be called twice."""
        self._handle = None

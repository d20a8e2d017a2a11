# sink.h, copy.h, and the sinks of stream.h and sesparse.h for Python.

cdef extern from "sink.h":
    struct rp_sink:
        uint64_t size_bytes

cdef extern from "copy.h":
    struct rp_copy_options:
        uint32_t workers
        uint64_t memory_bytes
        rp_bool (*progress)(void *context, uint64_t done_bytes) noexcept nogil
        void *context
    struct rp_copy_counts:
        uint64_t read_bytes
        uint64_t written_bytes
    int rp_copy(rp_disk *source, rp_sink *sink, const rp_copy_options *options,
                rp_copy_counts *counts, rp_fault *fault) nogil
    int rp_disk_sink_create(rp_disk *target, uint32_t unit_bytes, rp_sink **out,
                            rp_fault *fault) nogil
    void rp_sink_destroy(rp_sink *sink) nogil
    int rp_compare(rp_disk *a, rp_disk *b, uint64_t length, const rp_copy_options *options,
                   uint64_t *offset_out, rp_fault *fault) nogil
    int rp_merge(rp_disk *chain, uint32_t links, rp_disk *target,
                 const rp_copy_options *options, rp_fault *fault) nogil
    struct rp_sent:
        uint64_t read_bytes
        uint64_t sent_bytes
        uint64_t zeroed_bytes
    int rp_copy_spans(rp_disk *source, rp_disk *target, const uint64_t *pairs, uint64_t count,
                      const rp_copy_options *options, rp_sent *out, rp_fault *fault) nogil
    int rp_differ(rp_disk *a, rp_disk *b, const uint64_t *pairs, uint64_t count,
                  const rp_copy_options *options, rp_spans *out, rp_fault *fault) nogil
    struct rp_region:
        int status
        uint64_t digest
        char message[320]
    int rp_digest_regions(rp_disk *disk, uint64_t region_bytes, uint64_t first, uint64_t count,
                          const rp_copy_options *options, rp_region *out,
                          rp_fault *fault) nogil

cdef extern from "stream.h":
    struct rp_stream_create:
        uint64_t capacity_sectors
        uint64_t grain_sectors
        const void *descriptor
        uint64_t descriptor_bytes
        uint64_t descriptor_sectors
        uint32_t level
    int rp_stream_sink_create(rp_file *file, const rp_stream_create *how, rp_sink **out,
                              rp_fault *fault) nogil

cdef extern from "sesparse.h":
    int rp_sesparse_sink_create(rp_file *file, uint64_t capacity_sectors, rp_sink **out,
                                rp_fault *fault) nogil


cdef class Sink:
    """What copy() writes to; made by disk_sink, stream_sink or sesparse_sink."""

    cdef rp_sink *_sink              # owned; NULL only while it is made
    cdef tuple _keep                 # what must outlive it

    def __dealloc__(self):
        rp_sink_destroy(self._sink)


def disk_sink(Disk target not None, uint32_t unit_bytes):
    """A sink that writes into a disk that reads as zeros; unit_bytes: its grain."""
    cdef Sink sink = Sink.__new__(Sink)
    cdef rp_disk *disk = target.pointer()
    cdef rp_fault fault
    cdef int status
    sink._keep = (target,)
    with nogil:
        status = rp_disk_sink_create(disk, unit_bytes, &sink._sink, &fault)
    check(status, &fault)
    return sink


def stream_sink(File file not None, *, uint64_t capacity_sectors, uint64_t grain_sectors,
                descriptor, uint64_t descriptor_sectors, uint32_t level):
    """A sink that writes a streamOptimized extent into an empty file."""
    cdef Sink sink = Sink.__new__(Sink)
    cdef _FileHandle handle = file.handle()
    cdef _Lease lease = _Lease.take(descriptor, False)
    cdef rp_stream_create how
    cdef rp_fault fault
    cdef int status
    how.capacity_sectors = capacity_sectors
    how.grain_sectors = grain_sectors
    how.descriptor = lease.view.buf
    how.descriptor_bytes = lease.view.len
    how.descriptor_sectors = descriptor_sectors
    how.level = level
    sink._keep = (handle,)
    with nogil:
        status = rp_stream_sink_create(handle.file, &how, &sink._sink, &fault)
    check(status, &fault)
    return sink


def sesparse_sink(File file not None, uint64_t capacity_sectors):
    """A sink that writes a seSparse extent into an empty file."""
    cdef Sink sink = Sink.__new__(Sink)
    cdef _FileHandle handle = file.handle()
    cdef rp_fault fault
    cdef int status
    sink._keep = (handle,)
    with nogil:
        status = rp_sesparse_sink_create(handle.file, capacity_sectors, &sink._sink, &fault)
    check(status, &fault)
    return sink


cdef void _fill_options(rp_copy_options *options, uint32_t workers, uint64_t memory_bytes,
                        _Progress state) noexcept:
    options.workers = workers
    options.memory_bytes = memory_bytes
    options.progress = _tell
    options.context = <void *>state


def copy(Disk source not None, Sink sink not None, *, uint32_t workers=0,
         uint64_t memory_bytes=0, progress=None):
    """Copy all of a disk into a sink and finish it; returns (bytes read, bytes written).

    progress(done_bytes) is called by this thread; False cancels (CancelledError).
    """
    cdef rp_disk *disk = source.pointer()
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef rp_copy_counts counts
    cdef rp_fault fault
    cdef int status
    state.callback = progress if progress is not None else _always
    _fill_options(&options, workers, memory_bytes, state)
    with nogil:
        status = rp_copy(disk, sink._sink, &options, &counts, &fault)
    if state.error is not None:
        raise state.error
    check(status, &fault)
    return (counts.read_bytes, counts.written_bytes)


def compare(Disk a not None, Disk b not None, uint64_t length, *, uint32_t workers=0,
            uint64_t memory_bytes=0, progress=None):
    """The first byte below length that differs between two disks, or length."""
    cdef rp_disk *left = a.pointer()
    cdef rp_disk *right = b.pointer()
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef uint64_t offset = 0
    cdef rp_fault fault
    cdef int status
    state.callback = progress if progress is not None else _always
    _fill_options(&options, workers, memory_bytes, state)
    with nogil:
        status = rp_compare(left, right, length, &options, &offset, &fault)
    if state.error is not None:
        raise state.error
    check(status, &fault)
    return offset


def merge(Chain chain not None, uint32_t links, Disk target not None, *, uint32_t workers=0,
          uint64_t memory_bytes=0, progress=None):
    """Copy what the topmost links of a chain hold into target, which has the rest; no flush."""
    cdef rp_disk *source = chain.pointer()
    cdef rp_disk *to = target.pointer()
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef rp_fault fault
    cdef int status
    state.callback = progress if progress is not None else _always
    _fill_options(&options, workers, memory_bytes, state)
    with nogil:
        status = rp_merge(source, links, to, &options, &fault)
    if state.error is not None:
        raise state.error
    check(status, &fault)


cdef uint64_t _count_pairs(_Lease lease) except? 0:
    """How many pairs a buffer holds, which is aligned for them."""
    if lease.view.len % 16 or <uint64_t>lease.view.buf % sizeof(uint64_t):
        raise ValueError("pairs of 64 bit numbers")
    return lease.view.len // 16


def copy_spans(Disk source not None, Disk target not None, packed, *, uint32_t workers=0,
               uint64_t memory_bytes=0, progress=None):
    """Send ranges of a disk to another, and flush it; (bytes read, sent, zeroed).

    packed: as spans.h has them. progress(done_bytes), of the ranges; False cancels.
    """
    cdef rp_disk *disk = source.pointer()
    cdef rp_disk *to = target.pointer()
    cdef _Lease lease = _Lease.take(packed, False)
    cdef uint64_t count = _count_pairs(lease)
    cdef const uint64_t *pairs = <const uint64_t *>lease.view.buf
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef rp_sent sent
    cdef rp_fault fault
    cdef int status
    state.callback = progress if progress is not None else _always
    _fill_options(&options, workers, memory_bytes, state)
    with nogil:
        status = rp_copy_spans(disk, to, pairs, count, &options, &sent, &fault)
    if state.error is not None:
        raise state.error
    check(status, &fault)
    return (sent.read_bytes, sent.sent_bytes, sent.zeroed_bytes)


def differ(Disk a not None, Disk b not None, packed, *, uint32_t workers=0,
           uint64_t memory_bytes=0, progress=None):
    """Where two disks differ inside of ranges, byte for byte; packed as spans.h has them.

    progress(done_bytes), of the ranges; False cancels.
    """
    cdef rp_disk *left = a.pointer()
    cdef rp_disk *right = b.pointer()
    cdef _Lease lease = _Lease.take(packed, False)
    cdef uint64_t count = _count_pairs(lease)
    cdef const uint64_t *pairs = <const uint64_t *>lease.view.buf
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef rp_spans found
    cdef rp_fault fault
    cdef int status
    memset(&found, 0, sizeof(found))
    state.callback = progress if progress is not None else _always
    _fill_options(&options, workers, memory_bytes, state)
    try:
        with nogil:
            status = rp_differ(left, right, pairs, count, &options, &found, &fault)
        if state.error is not None:
            raise state.error
        check(status, &fault)
        return PyBytes_FromStringAndSize(<char *>found.pairs, found.count * 16)
    finally:
        free(found.pairs)


def digest_regions(Disk disk not None, uint64_t region_bytes, uint64_t first, uint64_t count, *,
                   uint32_t workers=0, uint64_t memory_bytes=0, progress=None):
    """XXH3 of each region of a disk, or what keeps it from being read, as text.

    progress(done_bytes), counted on the disk, is called by this thread; False cancels.
    """
    cdef rp_disk *source = disk.pointer()
    cdef _Progress state = _Progress.__new__(_Progress)
    cdef rp_copy_options options
    cdef rp_region *regions = <rp_region *>calloc(count + 1, sizeof(rp_region))
    cdef rp_fault fault
    cdef int status
    if regions is NULL:
        raise MemoryError("a list of digests")
    try:
        state.callback = progress if progress is not None else _always
        _fill_options(&options, workers, memory_bytes, state)
        with nogil:
            status = rp_digest_regions(source, region_bytes, first, count, &options, regions,
                                       &fault)
        if state.error is not None:
            raise state.error
        check(status, &fault)
        return [
            regions[i].digest if regions[i].status == RP_OK
            else regions[i].message.decode("utf-8", "replace")
            for i in range(count)
        ]
    finally:
        free(regions)

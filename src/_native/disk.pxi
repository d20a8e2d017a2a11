# disk.h for Python.

cdef extern from "disk.h":
    enum rp_run_kind:
        RP_RUN_HOLE, RP_RUN_ZERO, RP_RUN_DATA
    struct rp_run:
        uint64_t offset_bytes
        uint64_t length_bytes
        rp_run_kind kind
        uint32_t depth
        rp_file *file
        uint64_t file_offset_bytes
    struct rp_disk:
        uint64_t size_bytes
        bint read_only
    int rp_disk_pread(rp_disk *disk, void *buffer, size_t length,
                      uint64_t offset, rp_fault *fault) nogil
    int rp_disk_pwrite(rp_disk *disk, const void *buffer, size_t length,
                       uint64_t offset, rp_fault *fault) nogil
    int rp_disk_zero(rp_disk *disk, uint64_t length, uint64_t offset,
                     bint may_trim, rp_fault *fault) nogil
    int rp_disk_flush(rp_disk *disk, rp_fault *fault) nogil
    int rp_disk_run(rp_disk *disk, uint64_t offset, uint64_t length,
                    rp_run *out, rp_fault *fault) nogil
    void rp_disk_destroy(rp_disk *disk) nogil

RUN_HOLE = RP_RUN_HOLE
RUN_ZERO = RP_RUN_ZERO
RUN_DATA = RP_RUN_DATA


cdef class Disk:
    """A disk that can be read and written at any byte; see disk.h.

    Made by Chain and Journal.disk(), never directly.
    """

    cdef rp_disk *_disk              # NULL after close
    cdef bint _owned                 # destroy it here
    cdef object _keep                # what must outlive it

    def __dealloc__(self):
        if self._owned:
            rp_disk_destroy(self._disk)
        self._disk = NULL

    cdef rp_disk *pointer(self) except NULL:
        if self._disk is NULL:
            raise _errors.StateError("the disk is closed", "open it again")
        return self._disk

    @property
    def size_bytes(self):
        return self.pointer().size_bytes

    @property
    def read_only(self):
        return bool(self.pointer().read_only)

    def pread(self, uint64_t length, uint64_t offset):
        """Return length bytes from offset, both in bytes."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        cdef bytes data
        cdef void *at
        if length > 1 << 31:
            raise _errors.UsageError(f"cannot read {length} bytes in one call", "read at most 2 GiB")
        data = PyBytes_FromStringAndSize(NULL, length)
        at = <void *>PyBytes_AS_STRING(data)
        with nogil:
            status = rp_disk_pread(disk, at, length, offset, &fault)
        check(status, &fault)
        return data

    def pread_into(self, buffer, uint64_t offset):
        """Fill a writable buffer from offset."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        cdef _Lease lease = _Lease.take(buffer, True)
        with nogil:
            status = rp_disk_pread(disk, lease.view.buf, lease.view.len, offset, &fault)
        check(status, &fault)

    def pwrite(self, data, uint64_t offset):
        """Write a bytes-like object at offset."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        cdef _Lease lease = _Lease.take(data, False)
        with nogil:
            status = rp_disk_pwrite(disk, lease.view.buf, lease.view.len, offset, &fault)
        check(status, &fault)

    def zero(self, uint64_t length, uint64_t offset, bint may_trim=True):
        """Make length bytes at offset read as zeros; may_trim lets their space go."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_disk_zero(disk, length, offset, may_trim, &fault)
        check(status, &fault)

    def flush(self):
        """Return when everything written before is durable."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_disk_flush(disk, &fault)
        check(status, &fault)

    def run(self, uint64_t offset, uint64_t length):
        """The run at offset, cut to length, as (length, kind, depth, file name, file offset).

        kind is RUN_HOLE, RUN_ZERO or RUN_DATA; the file name is None where
        there is none.
        """
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef rp_run found
        cdef int status
        with nogil:
            status = rp_disk_run(disk, offset, length, &found, &fault)
        check(status, &fault)
        name = None
        if found.file is not NULL:
            name = found.file.name.decode("utf-8", "surrogateescape")
        return (found.length_bytes, <int>found.kind, found.depth, name,
                found.file_offset_bytes)

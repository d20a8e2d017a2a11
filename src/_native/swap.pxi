# swap.h for Python.

cdef extern from "swap.h":
    int rp_swap_create(rp_disk *first, rp_disk **out, rp_fault *fault) nogil
    int rp_swap_put(rp_disk *swap, rp_disk *next, rp_fault *fault) nogil
    void rp_swap_be_patient(rp_disk *swap, unsigned timeout_ms) nogil
    bint rp_swap_await(rp_disk *swap, unsigned timeout_ms) nogil


cdef class Swap(Disk):
    """A disk that stands for another one, which put() exchanges while it is in use."""

    def __cinit__(self, Disk first not None):
        cdef rp_disk *disk = first.pointer()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_swap_create(disk, &self._disk, &fault)
        check(status, &fault)
        self._owned = True
        self._keep = first

    def put(self, Disk next not None):
        """Exchange the disk behind it; nobody is in the old one when this returns.

        Raises UsageError where sizes or writability differ.
        """
        cdef rp_disk *disk = self.pointer()
        cdef rp_disk *other = next.pointer()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_swap_put(disk, other, &fault)
        check(status, &fault)
        self._keep = next

    def be_patient(self, unsigned timeout_ms):
        """Let reads that find the disk behind it stale wait so long for another; 0: not."""
        cdef rp_disk *disk = self.pointer()
        with nogil:
            rp_swap_be_patient(disk, timeout_ms)

    def wanted(self, unsigned timeout_ms):
        """Wait so long until a read wants another disk; whether one does."""
        cdef rp_disk *disk = self.pointer()
        cdef bint found
        with nogil:
            found = rp_swap_await(disk, timeout_ms)
        return bool(found)

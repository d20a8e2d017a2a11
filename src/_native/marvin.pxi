# marvin.h for Python.

cdef extern from "marvin.h":
    uint64_t rp_marvin32(const void *data, size_t length) nogil


def marvin32(data):
    """The hash of a registry log's entries; see marvin.h."""
    cdef _Lease lease = _Lease.take(data, False)
    cdef uint64_t found
    with nogil:
        found = rp_marvin32(lease.view.buf, lease.view.len)
    return found

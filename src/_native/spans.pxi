# spans.h for Python: lists of ranges travel packed, 16 bytes a range.

cdef extern from "spans.h":
    struct rp_spans:
        uint64_t *pairs
        uint64_t count
        uint64_t room
    uint64_t rp_spans_join(uint64_t *pairs, uint64_t count) nogil


def join_spans(packed):
    """Pairs of start and stop (64 bits each) in order: sorted, joined, none empty."""
    cdef _Lease lease = _Lease.take(packed, False)
    cdef uint64_t count = lease.view.len // 16
    cdef uint64_t *pairs
    if lease.view.len % 16:
        raise ValueError("pairs of 64 bit numbers")
    pairs = <uint64_t *>malloc(count * 16 + 1)
    if pairs is NULL:
        raise MemoryError("a list of ranges")
    try:
        memcpy(pairs, lease.view.buf, count * 16)
        with nogil:
            count = rp_spans_join(pairs, count)
        return PyBytes_FromStringAndSize(<char *>pairs, count * 16)
    finally:
        free(pairs)

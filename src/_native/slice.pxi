# slice.h for Python.

cdef extern from "slice.h":
    struct rp_slice_piece:
        rp_disk *disk
        uint64_t offset_bytes
        uint64_t length_bytes
    int rp_slice_create(const rp_slice_piece *pieces, size_t count, rp_disk **out,
                        rp_fault *fault) nogil


def slice_disk(pieces):
    """Pieces (disk, offset, length) one after another as a disk; see slice.h.

    It keeps the disks in memory, but not open: let go of it before one is closed.
    Raises UsageError where a piece is not whole sectors of its disk.
    """
    cdef Disk disk
    cdef Disk made = Disk.__new__(Disk)
    cdef rp_fault fault
    cdef int status
    cdef list kept = list(pieces)
    cdef size_t count = len(kept), index = 0
    cdef rp_slice_piece *array = <rp_slice_piece *>calloc(max(count, 1), sizeof(rp_slice_piece))
    if array is NULL:
        raise MemoryError()
    try:
        for disk, offset, length in kept:
            array[index].disk = disk.pointer()
            array[index].offset_bytes = offset
            array[index].length_bytes = length
            index += 1
        with nogil:
            status = rp_slice_create(array, count, &made._disk, &fault)
        check(status, &fault)
    finally:
        free(array)
    made._owned = True
    made._keep = [disk for disk, _, _ in kept]
    return made

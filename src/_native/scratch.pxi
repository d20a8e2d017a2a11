# scratch.h for Python.

cdef extern from "scratch.h":
    int rp_scratch_create(rp_disk *below, rp_file *file, rp_disk **out,
                          rp_fault *fault) nogil


def scratch_disk(Disk below not None, File file not None):
    """A writable Disk above one that is only read; what is written goes to an empty file."""
    cdef rp_disk *under = below.pointer()
    cdef _FileHandle handle = file.handle()
    cdef Disk made = Disk.__new__(Disk)
    cdef rp_fault fault
    cdef int status
    with nogil:
        status = rp_scratch_create(under, handle.file, &made._disk, &fault)
    check(status, &fault)
    made._owned = True
    made._keep = (below, handle)
    return made

# Borrowing Python buffers for a call without the GIL: the export is held, so
# nothing can resize the buffer meanwhile.

cdef class _Lease:
    cdef Py_buffer view
    cdef bint held

    @staticmethod
    cdef _Lease take(object exporter, bint writable):
        cdef _Lease lease = _Lease.__new__(_Lease)
        PyObject_GetBuffer(exporter, &lease.view,
                           PyBUF_SIMPLE | (PyBUF_WRITABLE if writable else 0))
        lease.held = True
        return lease

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

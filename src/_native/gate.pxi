# gate.h for Python.

cdef extern from "gate.h":
    struct rp_gate
    int rp_gate_create(rp_gate **out, rp_fault *fault) nogil
    void rp_gate_destroy(rp_gate *gate) nogil
    int rp_gate_enter(rp_gate *gate, rp_fault *fault) nogil
    void rp_gate_leave(rp_gate *gate) nogil
    void rp_gate_hold(rp_gate *gate) nogil
    void rp_gate_release(rp_gate *gate) nogil
    bint rp_gate_is_held(rp_gate *gate) nogil
    int rp_gate_cut(rp_gate *gate, rp_journal **journals, uint32_t journal_count,
                    const rp_point *point, uint64_t *barrier_ns_out, rp_fault *fault) nogil


cdef class Gate:
    """What the writers of a replica pass through; see gate.h."""

    cdef rp_gate *_gate              # owned; NULL only inside __cinit__

    def __cinit__(self):
        cdef rp_fault fault
        check(rp_gate_create(&self._gate, &fault), &fault)

    def __dealloc__(self):
        rp_gate_destroy(self._gate)

    def enter(self):
        """Go inside, or raise HeldError. Each enter needs its leave, from the same thread."""
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_gate_enter(self._gate, &fault)
        check(status, &fault)

    def leave(self):
        with nogil:
            rp_gate_leave(self._gate)

    def hold(self):
        """Close the gate; nobody is inside any more when this returns."""
        with nogil:
            rp_gate_hold(self._gate)

    def release(self):
        with nogil:
            rp_gate_release(self._gate)

    @property
    def held(self):
        return bool(rp_gate_is_held(self._gate))

    def cut(self, journals, uint64_t id, int64_t time_ns, uint32_t kind, str label=""):
        """Mark all journals at one cut and commit; returns the barrier in nanoseconds."""
        cdef list handles = [(<Journal?>journal).handle() for journal in journals]
        cdef uint32_t count = len(handles)
        cdef rp_journal **pointers = <rp_journal **>calloc(count or 1, sizeof(rp_journal *))
        cdef uint64_t barrier_ns = 0
        cdef rp_point point
        cdef rp_fault fault
        cdef int status
        if pointers is NULL:
            raise MemoryError(f"{count} journals")
        try:
            _fill_point(&point, id, time_ns, kind, label)
            for index in range(count):
                pointers[index] = (<_JournalHandle>handles[index]).journal
            with nogil:
                status = rp_gate_cut(self._gate, pointers, count, &point, &barrier_ns, &fault)
            check(status, &fault)
        finally:
            free(pointers)
        return barrier_ns

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
    int rp_gate_cut_now(rp_gate *gate, rp_journal **journals, uint32_t journal_count,
                        rp_point *point, uint64_t *barrier_ns_out, rp_fault *fault) nogil
    int rp_gate_begin(rp_gate *gate, uint32_t timeout_ms, rp_fault *fault) nogil
    int rp_gate_mark(rp_gate *gate, rp_journal **journals, uint32_t journal_count,
                     const rp_point *point, rp_fault *fault) nogil
    uint64_t rp_gate_end(rp_gate *gate) nogil
    void rp_gate_watch(rp_gate *gate, bint on) nogil
    bint rp_gate_is_alarmed(rp_gate *gate) nogil
    uint64_t rp_gate_alarms(rp_gate *gate) nogil
    int64_t rp_gate_alarm_time_ns(rp_gate *gate) nogil
    void rp_gate_heed(rp_gate *gate) nogil


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
        cdef rp_journal **pointers = _journal_pointers(handles)
        cdef uint64_t barrier_ns = 0
        cdef rp_point point
        cdef rp_fault fault
        cdef int status
        try:
            _fill_point(&point, id, time_ns, kind, label)
            with nogil:
                status = rp_gate_cut(self._gate, pointers, count, &point, &barrier_ns, &fault)
            check(status, &fault)
        finally:
            free(pointers)
        return barrier_ns

    def cut_now(self, journals, uint64_t id, int64_t least_ns, uint32_t kind, str label=""):
        """As cut, at the time when the gate had closed; returns (barrier, time) in ns.

        Commits nothing. The time is whole microseconds, and not below least_ns.
        """
        cdef list handles = [(<Journal?>journal).handle() for journal in journals]
        cdef uint32_t count = len(handles)
        cdef rp_journal **pointers = _journal_pointers(handles)
        cdef uint64_t barrier_ns = 0
        cdef rp_point point
        cdef rp_fault fault
        cdef int status
        try:
            _fill_point(&point, id, least_ns, kind, label)
            with nogil:
                status = rp_gate_cut_now(self._gate, pointers, count, &point, &barrier_ns,
                                         &fault)
            check(status, &fault)
        finally:
            free(pointers)
        return barrier_ns, point.time_ns

    def begin(self, uint32_t timeout_ms):
        """Begin a cut: close, with nobody inside. StateError after timeout_ms (0: never)."""
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_gate_begin(self._gate, timeout_ms, &fault)
        check(status, &fault)

    def mark(self, journals, uint64_t id, int64_t time_ns, uint32_t kind, str label=""):
        """Mark all journals at the cut that has begun. They are to be committed after its end."""
        cdef list handles = [(<Journal?>journal).handle() for journal in journals]
        cdef uint32_t count = len(handles)
        cdef rp_journal **pointers = _journal_pointers(handles)
        cdef rp_point point
        cdef rp_fault fault
        cdef int status
        try:
            _fill_point(&point, id, time_ns, kind, label)
            with nogil:
                status = rp_gate_mark(self._gate, pointers, count, &point, &fault)
            check(status, &fault)
        finally:
            free(pointers)

    def end(self):
        """End a cut: open. Returns the barrier in nanoseconds, 0 where none had begun."""
        cdef uint64_t barrier_ns
        with nogil:
            barrier_ns = rp_gate_end(self._gate)
        return barrier_ns

    def watch(self, bint on):
        """Whether a writer that is lost raises the alarm; False ends one that is on."""
        with nogil:
            rp_gate_watch(self._gate, on)

    @property
    def alarmed(self):
        return bool(rp_gate_is_alarmed(self._gate))

    @property
    def alarms(self):
        return rp_gate_alarms(self._gate)

    @property
    def alarm_time_ns(self):
        """When the alarm that is on, or was last on, closed the gate; since 1970."""
        return rp_gate_alarm_time_ns(self._gate)

    def heed(self):
        """Let writers in again after an alarm."""
        with nogil:
            rp_gate_heed(self._gate)


cdef rp_journal **_journal_pointers(list handles) except NULL:
    """The native journals, for one call; the caller frees it, and keeps the handles."""
    cdef rp_journal **pointers = <rp_journal **>calloc(len(handles) or 1, sizeof(rp_journal *))
    if pointers is NULL:
        raise MemoryError(f"{len(handles)} journals")
    for index in range(len(handles)):
        pointers[index] = (<_JournalHandle>handles[index]).journal
    return pointers

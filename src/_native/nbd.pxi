# nbd.h for Python.

cdef extern from "nbd.h":
    struct rp_nbd_server
    struct rp_nbd_limits:
        uint32_t connections
        uint32_t connections_per_export
        uint32_t handshake_ms
        uint32_t receive_ms
        uint32_t send_ms
        uint32_t options
        uint32_t option_bytes
        uint64_t bytes_in_flight
        uint32_t protocol_errors
        uint32_t workers
    struct rp_nbd_stats:
        uint64_t connections_open
        uint64_t connections_total
        uint64_t connections_refused
        uint64_t reads
        uint64_t writes
        uint64_t flushes
        uint64_t trims
        uint64_t zeroes
        uint64_t errors
        uint64_t bytes_read
        uint64_t bytes_written
    int rp_nbd_server_create(const rp_nbd_limits *limits, rp_nbd_server **out,
                             rp_fault *fault) nogil
    int rp_nbd_server_add(rp_nbd_server *server, const char *name, rp_disk *disk,
                          rp_gate *gate, bint read_only, rp_fault *fault) nogil
    int rp_nbd_server_listen(rp_nbd_server *server, int socket_fd, rp_fault *fault) nogil
    int rp_nbd_server_start(rp_nbd_server *server, rp_fault *fault) nogil
    void rp_nbd_server_stop(rp_nbd_server *server, uint32_t deadline_ms) nogil
    void rp_nbd_server_destroy(rp_nbd_server *server) nogil
    void rp_nbd_server_stats(rp_nbd_server *server, rp_nbd_stats *out) nogil
    uint64_t rp_nbd_server_lost(rp_nbd_server *server, uint32_t index) nogil
    uint64_t rp_nbd_server_refused(rp_nbd_server *server, uint32_t index) nogil


cdef class NbdServer:
    """An NBD server on threads of its own; see nbd.h.

    Limits by their names in struct rp_nbd_limits; what is left out or 0 takes
    its default. Disks stay open while the server is there: stop it before
    closing what a disk belongs to.
    """

    cdef rp_nbd_server *_server      # owned; NULL only inside __cinit__
    cdef list _keep                  # disks and gates
    cdef list _names                 # of the exports, as they were added

    def __cinit__(self, *, uint32_t connections=0, uint32_t connections_per_export=0,
                  uint32_t handshake_ms=0, uint32_t receive_ms=0, uint32_t send_ms=0,
                  uint32_t options=0, uint32_t option_bytes=0, uint64_t bytes_in_flight=0,
                  uint32_t protocol_errors=0, uint32_t workers=0):
        cdef rp_fault fault
        cdef rp_nbd_limits limits
        limits.connections = connections
        limits.connections_per_export = connections_per_export
        limits.handshake_ms = handshake_ms
        limits.receive_ms = receive_ms
        limits.send_ms = send_ms
        limits.options = options
        limits.option_bytes = option_bytes
        limits.bytes_in_flight = bytes_in_flight
        limits.protocol_errors = protocol_errors
        limits.workers = workers
        self._keep = []
        self._names = []
        check(rp_nbd_server_create(&limits, &self._server, &fault), &fault)

    def __dealloc__(self):
        with nogil:
            rp_nbd_server_destroy(self._server)

    def add(self, str name, Disk disk not None, *, Gate gate=None, bint read_only=False):
        """Offer a disk under a name; before start."""
        cdef rp_fault fault
        cdef bytes text = name.encode("utf-8")
        cdef rp_gate *pointer = NULL if gate is None else gate._gate
        if b"\0" in text:
            raise _errors.UsageError(f"the export name {name!r} has a NUL in it",
                                     "choose another name")
        check(rp_nbd_server_add(self._server, text, disk.pointer(), pointer, read_only, &fault),
              &fault)
        self._keep.append((disk, gate))
        self._names.append(name)

    def listen(self, int socket_fd):
        """Take over a listening socket; before start. The server closes it."""
        cdef rp_fault fault
        check(rp_nbd_server_listen(self._server, socket_fd, &fault), &fault)

    def start(self):
        cdef rp_fault fault
        check(rp_nbd_server_start(self._server, &fault), &fault)

    def stop(self, uint32_t deadline_ms=5000):
        """Let running requests end, at most deadline_ms, and end all connections."""
        with nogil:
            rp_nbd_server_stop(self._server, deadline_ms)

    def stats(self):
        """Counters by their names in struct rp_nbd_stats."""
        cdef rp_nbd_stats stats
        with nogil:
            rp_nbd_server_stats(self._server, &stats)
        return stats

    def lost(self):
        """For each export, how many clients that had written left without a word."""
        return {name: rp_nbd_server_lost(self._server, index)
                for index, name in enumerate(self._names)}

    def refused(self):
        """For each export, how many writes were answered with ENOSPC, the journal being full."""
        return {name: rp_nbd_server_refused(self._server, index)
                for index, name in enumerate(self._names)}

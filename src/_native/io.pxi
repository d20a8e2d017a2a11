# io.h and simulate.h for Python.
cimport cython

cdef extern from "io.h":
    enum:
        RP_NAME_BYTES
        RP_OPEN_READ, RP_OPEN_WRITE, RP_OPEN_CREATE, RP_OPEN_EXCLUSIVE
        RP_OPEN_TRUNCATE, RP_OPEN_BENEATH
    struct rp_io_functions:
        const char *name
    struct rp_io:
        const rp_io_functions *functions
    struct rp_dir:
        const char *path
    struct rp_file:
        const char *name
    struct rp_stat:
        uint64_t size_bytes
        uint64_t allocated_bytes
        uint64_t device
        uint64_t inode
        bint is_directory
        bint is_regular
        uint32_t mode
    void rp_io_destroy(rp_io *io) nogil
    int rp_dir_open(rp_io *io, const char *path, rp_dir **out, rp_fault *fault) nogil
    void rp_dir_close(rp_dir *dir) nogil
    int rp_dir_make(rp_dir *dir, const char *name, uint32_t mode, rp_fault *fault) nogil
    int rp_dir_remove(rp_dir *dir, const char *name, rp_fault *fault) nogil
    int rp_dir_sync(rp_dir *dir, rp_fault *fault) nogil
    # "from" is a word of Python
    int rp_dir_rename(rp_dir *dir, const char *name, const char *to, rp_fault *fault) nogil
    int rp_dir_unlink(rp_dir *dir, const char *name, rp_fault *fault) nogil
    int rp_dir_list(rp_dir *dir, void (*each)(void *, const char *) noexcept nogil,
                    void *context, rp_fault *fault) nogil
    int rp_dir_stat(rp_dir *dir, const char *name, rp_stat *out, rp_fault *fault) nogil
    int rp_dir_replace(rp_dir *dir, const char *name, const void *data, size_t length,
                       uint32_t mode, rp_fault *fault) nogil
    int rp_file_open(rp_dir *dir, const char *name, uint32_t flags, uint32_t mode,
                     rp_file **out, rp_fault *fault) nogil
    void rp_file_close(rp_file *file) nogil
    int rp_file_pread(rp_file *file, void *buffer, size_t length, uint64_t offset,
                      size_t *done_out, rp_fault *fault) nogil
    int rp_file_pwrite(rp_file *file, const void *buffer, size_t length, uint64_t offset,
                       rp_fault *fault) nogil
    int rp_file_sync(rp_file *file, rp_fault *fault) nogil
    int rp_file_allocate(rp_file *file, uint64_t offset, uint64_t length, rp_fault *fault) nogil
    int rp_file_slice(rp_file *file, const char *label, uint64_t offset, uint64_t length,
                      rp_file **out, rp_fault *fault) nogil
    int rp_file_truncate(rp_file *file, uint64_t size, rp_fault *fault) nogil
    int rp_file_stat(rp_file *file, rp_stat *out, rp_fault *fault) nogil
    int rp_file_size(rp_file *file, uint64_t *out, rp_fault *fault) nogil
    int rp_file_lock(rp_file *file, bint exclusive, rp_fault *fault) nogil
    int rp_io_posix_create(rp_io **out, rp_fault *fault) nogil
    int rp_io_posix_create_unsynced(rp_io **out, rp_fault *fault) nogil
    int rp_io_record_create(rp_io *inner, rp_io **out, rp_fault *fault) nogil
    void rp_io_record_reads(rp_io *io) nogil
    uint64_t rp_io_record_count(rp_io *io) nogil
    void rp_io_record_text(rp_io *io, uint64_t index, char *buffer,
                           size_t buffer_bytes) nogil
    int rp_io_order_create(rp_io *inner, rp_io **out, rp_fault *fault) nogil
    enum:
        RP_FAULT_READ, RP_FAULT_WRITE, RP_FAULT_SYNC, RP_FAULT_META, RP_FAULT_ANY
        RP_FAULT_PLAIN, RP_FAULT_PARTIAL, RP_FAULT_LOST, RP_FAULT_LATE, RP_FAULT_LIE
    struct rp_fault_plan:
        uint64_t call
        uint32_t kinds
        uint32_t effect
        int os_errno
        bint sticky
    int rp_io_fault_create(rp_io *inner, const rp_fault_plan *plan, rp_io **out,
                           rp_fault *fault) nogil
    uint64_t rp_io_fault_calls(rp_io *io) nogil

cdef extern from "simulate.h":
    enum:
        RP_SIM_TEAR, RP_SIM_GARBAGE
    struct rp_sim_seen
    struct rp_sim_options:
        uint64_t budget
        uint64_t seed
        uint32_t flags
        rp_sim_seen *seen
    struct rp_sim_state:
        uint64_t point
        uint64_t acknowledged
    struct rp_sim_counts:
        uint64_t points
        uint64_t generated
        uint64_t distinct
    struct rp_sim_sweep
    int rp_io_simulate_create(rp_io **out, rp_fault *fault) nogil
    int rp_sim_acknowledge(rp_io *io, uint64_t tag, rp_fault *fault) nogil
    int rp_sim_settle(rp_io *io, rp_fault *fault) nogil
    uint64_t rp_sim_operation_count(rp_io *io) nogil
    void rp_sim_operation_text(rp_io *io, uint64_t index, char *buffer,
                               size_t buffer_bytes) nogil
    int rp_sim_sweep_create(rp_io *io, const rp_sim_options *options, rp_sim_sweep **out,
                            rp_fault *fault) nogil
    void rp_sim_sweep_destroy(rp_sim_sweep *sweep) nogil
    int rp_sim_sweep_next(rp_sim_sweep *sweep, rp_io **io_out, rp_sim_state *state_out,
                          rp_fault *fault) nogil
    void rp_sim_sweep_counts(const rp_sim_sweep *sweep, rp_sim_counts *out) nogil
    int rp_sim_state_text(rp_io *io, const rp_sim_state *state, char *buffer,
                          size_t buffer_bytes) nogil

OPEN_READ = RP_OPEN_READ
OPEN_WRITE = RP_OPEN_WRITE
OPEN_CREATE = RP_OPEN_CREATE
OPEN_EXCLUSIVE = RP_OPEN_EXCLUSIVE
OPEN_TRUNCATE = RP_OPEN_TRUNCATE
OPEN_BENEATH = RP_OPEN_BENEATH


cdef bytes _system_name(str name):
    """The bytes the kernel gets for a name or path."""
    cdef bytes encoded = os.fsencode(name)
    if b"\0" in encoded:
        raise _errors.UsageError(f"the name {name!r} holds a NUL", "give another name")
    return encoded


cdef class Stat:
    """What a file is; sizes in bytes, device and inode as its identity."""

    cdef readonly uint64_t size_bytes
    cdef readonly uint64_t allocated_bytes
    cdef readonly uint64_t device
    cdef readonly uint64_t inode
    cdef readonly bint is_directory
    cdef readonly bint is_regular
    cdef readonly uint32_t mode      # permission bits

    @staticmethod
    cdef Stat copy(const rp_stat *stat):
        cdef Stat made = Stat.__new__(Stat)
        made.size_bytes = stat.size_bytes
        made.allocated_bytes = stat.allocated_bytes
        made.device = stat.device
        made.inode = stat.inode
        made.is_directory = stat.is_directory
        made.is_regular = stat.is_regular
        made.mode = stat.mode
        return made


cdef dict _FAULT_KINDS = {
    "any": RP_FAULT_ANY, "read": RP_FAULT_READ, "write": RP_FAULT_WRITE,
    "sync": RP_FAULT_SYNC, "meta": RP_FAULT_META,
}
cdef dict _FAULT_EFFECTS = {
    "plain": RP_FAULT_PLAIN, "partial": RP_FAULT_PARTIAL, "lost": RP_FAULT_LOST,
    "late": RP_FAULT_LATE, "lie": RP_FAULT_LIE,
}


cdef _one_of(dict choices, str what, str given):
    if given not in choices:
        raise _errors.UsageError(f"there is no {what} {given!r}",
                                 f"use one of {', '.join(choices)}")
    return choices[given]


@cython.no_gc_clear
cdef class Io:
    """A door to storage; see io.h. Made by its static methods, ended by Python."""

    cdef rp_io *_io                  # owned
    cdef Io _inner                   # what it wraps, if anything
    cdef list _tags                  # acknowledged, of a simulate one

    def __dealloc__(self):
        rp_io_destroy(self._io)

    cdef rp_io *pointer(self) except NULL:
        if self._io is NULL:
            raise _errors.StateError("this Io was not made by Io.posix() or another maker",
                                     "use Io.posix()")
        return self._io

    @staticmethod
    def posix():
        """The real one."""
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        check(rp_io_posix_create(&made._io, &fault), &fault)
        return made

    @staticmethod
    def posix_unsynced():
        """The real one, whose syncs do nothing: for what can be made again."""
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        check(rp_io_posix_create_unsynced(&made._io, &fault), &fault)
        return made

    @staticmethod
    def simulate():
        """A disk in memory that can be crashed; see simulate.h and docs/io.md."""
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        check(rp_io_simulate_create(&made._io, &fault), &fault)
        made._tags = []
        return made

    @staticmethod
    def order(Io inner not None):
        """Stops the process, with a message, when a write-ahead rule is broken."""
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        check(rp_io_order_create(inner.pointer(), &made._io, &fault), &fault)
        made._inner = inner
        return made

    @staticmethod
    def record(Io inner not None, bint reads=False):
        """Keeps a line for each change and sync, and for each read if so: operations()."""
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        check(rp_io_record_create(inner.pointer(), &made._io, &fault), &fault)
        if reads:
            rp_io_record_reads(made._io)
        made._inner = inner
        return made

    # A method, though the others are static: Io.fault(inner, ...) reads the
    # same, and Cython takes a decorated name for a variable of the module.
    def fault(self, *, uint64_t call, int os_errno, bint sticky=False, str kind="any",
              str effect="plain"):
        """Fails call number `call`, from 1, of a kind: any, read, write, sync, meta.

        Effects: plain; partial (half of a write is done); with simulate
        directly inside, for syncs of files, lost (fails, and the data is
        gone), late (the next sync fails in its place), lie (one sector is not
        written). sticky fails all later calls too. call=0 only counts: calls.
        """
        cdef Io made = Io.__new__(Io)
        cdef rp_fault fault
        cdef rp_fault_plan plan
        plan.call = call
        plan.kinds = _one_of(_FAULT_KINDS, "kind of call", kind)
        plan.effect = _one_of(_FAULT_EFFECTS, "effect", effect)
        plan.os_errno = os_errno
        plan.sticky = sticky
        check(rp_io_fault_create(self.pointer(), &plan, &made._io, &fault), &fault)
        made._inner = self
        return made

    @property
    def name(self):
        """The backend: "posix", "simulate", "order", "record", "fault"."""
        return self.pointer().functions.name.decode("ascii")

    cdef Io find(self, str name):
        """This one or one inside it, by backend."""
        cdef Io at = self
        while at is not None and at.name != name:
            at = at._inner
        if at is None:
            raise _errors.UsageError(f"this needs a {name} Io; this one is {self.name}",
                                     f"make it with Io.{name}()")
        return at

    @property
    def calls(self):
        """Calls of the kind that a fault Io counts, so far."""
        return rp_io_fault_calls(self.find("fault").pointer())

    def operations(self):
        """Changes and syncs so far, a line each, of a record or simulate Io."""
        cdef char line[1024]
        cdef rp_io *io
        cdef list lines = []
        cdef uint64_t index
        if self.name == "record":
            io = self.pointer()
            for index in range(rp_io_record_count(io)):
                rp_io_record_text(io, index, line, sizeof(line))
                lines.append(os.fsdecode(<bytes>line))
            return lines
        io = self.find("simulate").pointer()
        for index in range(rp_sim_operation_count(io)):
            rp_sim_operation_text(io, index, line, sizeof(line))
            lines.append(os.fsdecode(<bytes>line))
        return lines

    def acknowledge(self, uint64_t tag):
        """Something has been promised to somebody: crash states after this have to keep it."""
        cdef Io simulated = self.find("simulate")
        cdef rp_fault fault
        check(rp_sim_acknowledge(simulated.pointer(), tag, &fault), &fault)
        simulated._tags.append(tag)

    def settle(self):
        """All that was done is durable now; crash_states() begins here."""
        cdef rp_fault fault
        check(rp_sim_settle(self.find("simulate").pointer(), &fault), &fault)

    def crash_states(self, uint64_t budget=0, uint64_t seed=0, bint tear=True,
                     bint garbage=True):
        """The states that a power cut may leave, at any moment since settle().

        budget is the largest number of them, 0 for no limit; seed chooses
        which, where there are more. tear splits writes between sectors, garbage
        also fills one sector of a torn write with garbage.
        """
        cdef CrashSweep made = CrashSweep.__new__(CrashSweep)
        cdef rp_sim_options options
        cdef rp_fault fault
        options.budget = budget
        options.seed = seed
        options.flags = (RP_SIM_TEAR if tear else 0) | (RP_SIM_GARBAGE if garbage else 0)
        options.seen = NULL
        made._io = self.find("simulate")
        made._acknowledged = ()
        check(rp_sim_sweep_create(made._io.pointer(), &options, &made._sweep, &fault), &fault)
        return made

    def open_dir(self, str path):
        """Open a directory; NotFoundError or StorageError where it cannot be."""
        cdef rp_io *io = self.pointer()
        cdef bytes encoded = _system_name(path)
        cdef const char *at = encoded
        cdef _DirHandle handle = _DirHandle.__new__(_DirHandle)
        cdef Dir made = Dir.__new__(Dir)
        cdef rp_fault fault
        cdef int status
        handle.io = self
        with nogil:
            status = rp_dir_open(io, at, &handle.dir, &fault)
        check(status, &fault)
        made._handle = handle
        made.path = path
        made.io = self
        return made


cdef class CrashState:
    """One state that a crash may leave, as an Io of its own."""

    cdef readonly Io io              # simulate: use it, change it, crash it again
    cdef readonly tuple acknowledged # tags, oldest first: what it has to keep
    cdef readonly uint64_t point     # micro-operations done before the crash
    cdef Io _workload
    cdef rp_sim_state _state

    def explain(self):
        """What was kept, lost and torn, for a person to read."""
        cdef rp_io *io = self._workload.pointer()
        cdef int length = rp_sim_state_text(io, &self._state, NULL, 0)
        cdef bytearray text = bytearray(length + 1)
        rp_sim_state_text(io, &self._state, <char *>text, length + 1)
        return os.fsdecode(bytes(text[:length]))


@cython.no_gc_clear
cdef class CrashSweep:
    """Iterates over CrashState; none comes twice with as much acknowledged."""

    cdef rp_sim_sweep *_sweep        # owned
    cdef Io _io                      # of the workload
    cdef tuple _acknowledged
    cdef bint _busy

    def __dealloc__(self):
        rp_sim_sweep_destroy(self._sweep)

    def __iter__(self):
        return self

    def __next__(self):
        cdef CrashState made = CrashState.__new__(CrashState)
        cdef rp_fault fault
        cdef int status
        if self._sweep is NULL or self._busy:
            raise _errors.StateError("this sweep is in use by another thread",
                                     "give each thread its own")
        made.io = Io.__new__(Io)
        self._busy = True
        with nogil:
            status = rp_sim_sweep_next(self._sweep, &made.io._io, &made._state, &fault)
        self._busy = False
        if status == RP_NOT_FOUND:
            raise StopIteration
        check(status, &fault)
        if made._state.acknowledged != <uint64_t>len(self._acknowledged):
            self._acknowledged = tuple(self._io._tags[:made._state.acknowledged])
        made.acknowledged = self._acknowledged
        made.io._tags = list(self._acknowledged)
        made.point = made._state.point
        made._workload = self._io
        return made

    cdef rp_sim_counts counts(self):
        cdef rp_sim_counts found
        rp_sim_sweep_counts(self._sweep, &found)
        return found

    @property
    def points(self):
        """Moments at which the power was cut so far."""
        return self.counts().points

    @property
    def generated(self):
        """States made so far."""
        return self.counts().generated

    @property
    def distinct(self):
        """States yielded so far: made and not seen before."""
        return self.counts().distinct


# Handles are objects of their own, and everything that uses one natively keeps
# a reference to it: Python may call close() at any time, from any thread, and
# the C object ends after its last user.

@cython.no_gc_clear
cdef class _DirHandle:
    cdef rp_dir *dir
    cdef Io io

    def __dealloc__(self):
        rp_dir_close(self.dir)


@cython.no_gc_clear
cdef class _FileHandle:
    cdef rp_file *file
    cdef _DirHandle dir
    cdef _FileHandle whole           # what a slice is a window on

    def __dealloc__(self):
        rp_file_close(self.file)


cdef void _collect(void *context, const char *name) noexcept nogil:
    with gil:
        (<list>context).append(os.fsdecode(<bytes>name))


cdef class Dir:
    """An open directory. Every name is one component: no "/", "." or ".."."""

    cdef _DirHandle _handle          # None after close
    cdef readonly str path
    cdef readonly Io io

    cdef _DirHandle handle(self):
        """What native users of this directory keep; StateError after close()."""
        if self._handle is None:
            raise _errors.StateError(f"the directory {self.path} is closed", "open it again")
        return self._handle

    cdef rp_dir *pointer(self) except NULL:
        return self.handle().dir

    def open(self, str name, uint32_t flags=RP_OPEN_READ, uint32_t mode=0o600):
        """Open a regular file.

        Raises NotFoundError, ExistsError (EXCLUSIVE), FormatError (not a
        regular file), UnsupportedError (a symbolic link, BENEATH), StorageError.
        """
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef _FileHandle opened = _FileHandle.__new__(_FileHandle)
        cdef File made = File.__new__(File)
        cdef rp_fault fault
        cdef int status
        opened.dir = handle
        with nogil:
            status = rp_file_open(handle.dir, at, flags, mode, &opened.file, &fault)
        check(status, &fault)
        made._handle = opened
        made.name = name
        made.path = os.fsdecode(<bytes>opened.file.name)
        return made

    def read(self, str name, uint64_t limit_bytes=1048576):
        """The whole content of a small file; FormatError where it is larger."""
        file = self.open(name)
        try:
            size_bytes = file.size_bytes
            if size_bytes > limit_bytes:
                raise _errors.FormatError(
                    f"{file.path} has {size_bytes} bytes; at most {limit_bytes} make sense",
                    "check that it is the right file")
            return file.pread(size_bytes, 0)
        finally:
            file.close()

    def replace(self, str name, data, uint32_t mode=0o600):
        """Make or replace a file whole; durable on return, old or new at any crash."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef _Lease lease = _Lease.take(data, False)
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_replace(handle.dir, at, lease.view.buf, lease.view.len, mode, &fault)
        check(status, &fault)

    def make_dir(self, str name, uint32_t mode=0o700):
        """Make a directory; durable after sync()."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_make(handle.dir, at, mode, &fault)
        check(status, &fault)

    def remove_dir(self, str name):
        """Remove an empty directory; durable after sync()."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_remove(handle.dir, at, &fault)
        check(status, &fault)

    def rename(self, str name, str to):
        """Rename, replacing what `to` names; durable after sync()."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef bytes encoded_to = _system_name(to)
        cdef const char *at = encoded
        cdef const char *at_to = encoded_to
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_rename(handle.dir, at, at_to, &fault)
        check(status, &fault)

    def unlink(self, str name):
        """Remove a file; durable after sync()."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_unlink(handle.dir, at, &fault)
        check(status, &fault)

    def list(self):
        """Names of all entries, sorted."""
        cdef _DirHandle handle = self.handle()
        cdef list names = []
        cdef void *context = <void *>names
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_list(handle.dir, _collect, context, &fault)
        check(status, &fault)
        names.sort()
        return names

    def stat(self, str name):
        """What the entry is, symbolic links followed; NotFoundError where there is none."""
        cdef _DirHandle handle = self.handle()
        cdef bytes encoded = _system_name(name)
        cdef const char *at = encoded
        cdef rp_stat stat
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_stat(handle.dir, at, &stat, &fault)
        check(status, &fault)
        return Stat.copy(&stat)

    def exists(self, str name):
        """Whether stat() finds something."""
        try:
            self.stat(name)
        except _errors.NotFoundError:
            return False
        return True

    def sync(self):
        """Return when every name made, renamed or removed before is durable."""
        cdef _DirHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_dir_sync(handle.dir, &fault)
        check(status, &fault)

    def close(self):
        """Let it go; files opened in it stay open. May be called twice."""
        self._handle = None


cdef class File:
    """An open regular file. Offsets and lengths are bytes."""

    cdef _FileHandle _handle         # None after close
    cdef readonly str name           # as given to open()
    cdef readonly str path           # with its directory

    cdef _FileHandle handle(self):
        """What native users of this file keep; StateError after close()."""
        if self._handle is None:
            raise _errors.StateError(f"the file {self.path} is closed", "open it again")
        return self._handle

    cdef rp_file *pointer(self) except NULL:
        return self.handle().file

    @property
    def size_bytes(self):
        cdef _FileHandle handle = self.handle()
        cdef uint64_t size_bytes = 0
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_size(handle.file, &size_bytes, &fault)
        check(status, &fault)
        return size_bytes

    def pread(self, uint64_t length, uint64_t offset):
        """Up to length bytes from offset: fewer only at the end of the file."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef size_t done = 0
        cdef int status
        cdef bytes data
        cdef void *at
        if length > 1 << 31:
            raise _errors.UsageError(f"cannot read {length} bytes in one call", "read at most 2 GiB")
        data = PyBytes_FromStringAndSize(NULL, length)
        at = <void *>PyBytes_AS_STRING(data)
        with nogil:
            status = rp_file_pread(handle.file, at, length, offset, &done, &fault)
        check(status, &fault)
        return data if done == length else data[:done]

    def pwrite(self, data, uint64_t offset):
        """Write all of a bytes-like object at offset; durable after sync()."""
        cdef _FileHandle handle = self.handle()
        cdef _Lease lease = _Lease.take(data, False)
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_pwrite(handle.file, lease.view.buf, lease.view.len, offset, &fault)
        check(status, &fault)

    def truncate(self, uint64_t size_bytes):
        """Set the size; new bytes read as zeros."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_truncate(handle.file, size_bytes, &fault)
        check(status, &fault)

    def allocate(self, uint64_t offset, uint64_t length):
        """Reserve space, so that ENOSPC shows now; the file grows to hold it."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_allocate(handle.file, offset, length, &fault)
        check(status, &fault)

    def sync(self):
        """Return when all writes before are durable. The first failure is final."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_sync(handle.file, &fault)
        check(status, &fault)

    def slice(self, str label, uint64_t offset, uint64_t length):
        """A window on this file, as a file for reading; this one may be closed before it.

        Raises DamagedError where it ends behind the file, StorageError.
        """
        cdef _FileHandle handle = self.handle()
        cdef bytes encoded = _system_name(label)
        cdef const char *at = encoded
        cdef _FileHandle opened = _FileHandle.__new__(_FileHandle)
        cdef File made = File.__new__(File)
        cdef rp_fault fault
        cdef int status
        opened.whole = handle
        opened.dir = handle.dir
        with nogil:
            status = rp_file_slice(handle.file, at, offset, length, &opened.file, &fault)
        check(status, &fault)
        made._handle = opened
        made.name = label
        made.path = os.fsdecode(<bytes>opened.file.name)
        return made

    def lock(self, bint exclusive=True):
        """Take the lock of the file until it is closed; LockedError where held."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_lock(handle.file, exclusive, &fault)
        check(status, &fault)

    def stat(self):
        """What the file is."""
        cdef _FileHandle handle = self.handle()
        cdef rp_stat stat
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_stat(handle.file, &stat, &fault)
        check(status, &fault)
        return Stat.copy(&stat)

    def close(self):
        """Let it go, with its lock, once native users have too. May be called twice."""
        self._handle = None

# io.h for Python.

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
    int rp_file_truncate(rp_file *file, uint64_t size, rp_fault *fault) nogil
    int rp_file_stat(rp_file *file, rp_stat *out, rp_fault *fault) nogil
    int rp_file_size(rp_file *file, uint64_t *out, rp_fault *fault) nogil
    int rp_file_lock(rp_file *file, bint exclusive, rp_fault *fault) nogil
    int rp_io_posix_create(rp_io **out, rp_fault *fault) nogil

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


cdef class Io:
    """A door to storage; see io.h. Made by its static methods, ended by Python."""

    cdef rp_io *_io                  # owned
    cdef Io _inner                   # what it wraps, if anything

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

    @property
    def name(self):
        """The backend: "posix", "simulate", ..."""
        return self.pointer().functions.name.decode("ascii")

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


# Handles are objects of their own, and everything that uses one natively keeps
# a reference to it: Python may call close() at any time, from any thread, and
# the C object ends after its last user.

cdef class _DirHandle:
    cdef rp_dir *dir
    cdef Io io

    def __dealloc__(self):
        rp_dir_close(self.dir)


cdef class _FileHandle:
    cdef rp_file *file
    cdef _DirHandle dir

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

    def sync(self):
        """Return when all writes before are durable. The first failure is final."""
        cdef _FileHandle handle = self.handle()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_file_sync(handle.file, &fault)
        check(status, &fault)

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

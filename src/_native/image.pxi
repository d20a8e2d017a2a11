# image.h for Python.
from cpython.exc cimport PyErr_CheckSignals

cdef extern from "<stdbool.h>":
    # bint is an int where a function pointer must return a bool
    ctypedef bint rp_bool "bool"

cdef extern from "image.h":
    enum rp_extent_kind:
        RP_EXTENT_FLAT, RP_EXTENT_ZERO, RP_EXTENT_SPARSE, RP_EXTENT_COWD
        RP_EXTENT_STREAM, RP_EXTENT_SESPARSE, RP_EXTENT_NOACCESS
    struct rp_extent_spec:
        rp_extent_kind kind
        uint64_t sectors
        rp_file *file
        uint64_t offset_sectors
    struct rp_image
    struct rp_sparse_info:
        uint32_t version
        uint32_t flags
        uint64_t capacity_sectors
        uint64_t grain_sectors
        uint64_t descriptor_offset_sectors
        uint64_t descriptor_sectors
        uint32_t entries_per_table
        uint64_t redundant_directory_sector
        uint64_t directory_sector
        uint64_t overhead_sectors
        bint unclean_shutdown
        uint16_t compress_algorithm
        uint32_t free_sector
    struct rp_sparse_create:
        rp_extent_kind kind
        uint64_t capacity_sectors
        uint64_t grain_sectors
        const void *descriptor
        uint64_t descriptor_bytes
        uint64_t descriptor_sectors
        bint redundant
        bint zero_grains
    struct rp_finding:
        const char *kind
        uint32_t extent
        uint64_t position
        uint64_t guest_offset_bytes
        uint64_t length_bytes
        const char *detail
    int rp_sparse_read_header(rp_file *file, rp_extent_kind *kind_out, rp_sparse_info *out,
                              rp_fault *fault) nogil
    # a struct has the name, too
    int rp_sparse_create_file "rp_sparse_create"(
        rp_file *file, const rp_sparse_create *how, rp_fault *fault) nogil
    int rp_image_open(const rp_extent_spec *extents, uint32_t extent_count, bint writable,
                      rp_image **out, rp_fault *fault) nogil
    void rp_image_destroy(rp_image *image) nogil
    uint64_t rp_image_size_bytes(const rp_image *image) nogil
    int rp_chain_create(rp_image *const *links, uint32_t link_count, rp_disk **out,
                        rp_fault *fault) nogil
    int rp_chain_close_clean(rp_disk *chain, rp_fault *fault) nogil
    int rp_image_check(rp_image *image,
                       void (*each)(void *context, const rp_finding *finding) noexcept nogil,
                       void *context, rp_fault *fault) nogil

EXTENT_FLAT = RP_EXTENT_FLAT
EXTENT_ZERO = RP_EXTENT_ZERO
EXTENT_SPARSE = RP_EXTENT_SPARSE
EXTENT_COWD = RP_EXTENT_COWD
EXTENT_STREAM = RP_EXTENT_STREAM
EXTENT_SESPARSE = RP_EXTENT_SESPARSE
EXTENT_NOACCESS = RP_EXTENT_NOACCESS


def sparse_info(File file not None):
    """Header fields of a sparse extent of any kind by their names in image.h, and "kind".

    Raises FormatError (none), UnsupportedError, DamagedError, StorageError.
    """
    cdef _FileHandle handle = file.handle()
    cdef rp_extent_kind kind = RP_EXTENT_FLAT
    cdef rp_sparse_info info
    cdef rp_fault fault
    cdef int status
    with nogil:
        status = rp_sparse_read_header(handle.file, &kind, &info, &fault)
    check(status, &fault)
    return {
        "kind": <int>kind,
        "version": info.version,
        "flags": info.flags,
        "capacity_sectors": info.capacity_sectors,
        "grain_sectors": info.grain_sectors,
        "descriptor_offset_sectors": info.descriptor_offset_sectors,
        "descriptor_sectors": info.descriptor_sectors,
        "entries_per_table": info.entries_per_table,
        "redundant_directory_sector": info.redundant_directory_sector,
        "directory_sector": info.directory_sector,
        "overhead_sectors": info.overhead_sectors,
        "unclean_shutdown": int(info.unclean_shutdown),
        "compress_algorithm": info.compress_algorithm,
        "free_sector": info.free_sector,
    }


def sparse_create(File file not None, *, int kind, uint64_t capacity_sectors,
                  uint64_t grain_sectors, descriptor=None, uint64_t descriptor_sectors=0,
                  bint redundant=False, bint zero_grains=False):
    """Write an empty extent into an empty file and sync it; see rp_sparse_create."""
    cdef _FileHandle handle = file.handle()
    cdef _Lease lease = _Lease.take(b"" if descriptor is None else descriptor, False)
    cdef rp_sparse_create how
    cdef rp_fault fault
    cdef int status
    how.kind = <rp_extent_kind>kind
    how.capacity_sectors = capacity_sectors
    how.grain_sectors = grain_sectors
    how.descriptor = lease.view.buf
    how.descriptor_bytes = lease.view.len
    how.descriptor_sectors = descriptor_sectors
    how.redundant = redundant
    how.zero_grains = zero_grains
    with nogil:
        status = rp_sparse_create_file(handle.file, &how, &fault)
    check(status, &fault)


cdef void _collect_finding(void *context, const rp_finding *finding) noexcept nogil:
    with gil:
        (<list>context).append(_finding(finding))


cdef tuple _finding(const rp_finding *finding):
    return (
        finding.kind.decode("ascii"), finding.extent, finding.position,
        None if finding.guest_offset_bytes == <uint64_t>-1 else finding.guest_offset_bytes,
        finding.length_bytes,
        None if finding.detail is NULL else finding.detail.decode("utf-8", "replace"))


cdef class Image:
    """One link: extents (kind, sectors, file or None, offset in sectors) laid end to end.

    Raises UsageError, FormatError, UnsupportedError, DamagedError, StorageError.
    """

    cdef rp_image *_image            # owned; NULL only inside __cinit__
    cdef tuple _files                # handles that it reads

    def __cinit__(self, extents, bint writable=False):
        cdef list listed = list(extents)
        cdef uint32_t count = <uint32_t>len(listed)
        cdef rp_extent_spec *specs
        cdef _FileHandle handle
        cdef rp_fault fault
        cdef int status
        cdef list files = []
        specs = <rp_extent_spec *>calloc(count + 1, sizeof(rp_extent_spec))
        if specs is NULL:
            raise MemoryError("opening an image")
        try:
            for index, (kind, sectors, file, offset_sectors) in enumerate(listed):
                specs[index].kind = <rp_extent_kind><int>kind
                specs[index].sectors = sectors
                specs[index].offset_sectors = offset_sectors
                if file is not None:
                    if not isinstance(file, File):
                        raise TypeError(f"an extent's file is a File, not {type(file).__name__}")
                    handle = (<File>file).handle()
                    files.append(handle)
                    specs[index].file = handle.file
            with nogil:
                status = rp_image_open(specs, count, writable, &self._image, &fault)
            check(status, &fault)
        finally:
            free(specs)
        self._files = tuple(files)

    def __dealloc__(self):
        rp_image_destroy(self._image)

    @property
    def size_bytes(self):
        return rp_image_size_bytes(self._image)

    def check(self):
        """What is wrong with its extents, as rp_image_check says.

        (kind, extent, position, guest offset or None, length, detail or None)
        each; the files are read: flush before.
        """
        cdef list found = []
        cdef void *context = <void *>found
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_image_check(self._image, _collect_finding, context, &fault)
        check(status, &fault)
        return found


cdef class _Progress:
    cdef object callback
    cdef object error                # what the callback raised


cdef rp_bool _tell(void *context, uint64_t done_bytes) noexcept nogil:
    with gil:
        try:
            PyErr_CheckSignals()
            return bool((<_Progress>context).callback(done_bytes))
        except BaseException as error:
            (<_Progress>context).error = error
            return False


cdef class Chain(Disk):
    """A disk of links, top first; writes go to the top, if it was opened writable."""

    def __cinit__(self, links):
        cdef tuple listed = tuple(links)
        cdef uint32_t count = <uint32_t>len(listed)
        cdef rp_image **images = <rp_image **>calloc(count + 1, sizeof(rp_image *))
        cdef rp_fault fault
        cdef int status
        if images is NULL:
            raise MemoryError("making a chain")
        try:
            for index, link in enumerate(listed):
                if not isinstance(link, Image):
                    raise TypeError(f"a link is an Image, not {type(link).__name__}")
                images[index] = (<Image>link)._image
            with nogil:
                status = rp_chain_create(<rp_image *const *>images, count, &self._disk, &fault)
            check(status, &fault)
        finally:
            free(images)
        self._owned = True
        self._keep = listed

    def close_clean(self):
        """Flush and clear uncleanShutdown: the last act of a writer."""
        cdef rp_disk *disk = self.pointer()
        cdef rp_fault fault
        cdef int status
        with nogil:
            status = rp_chain_close_clean(disk, &fault)
        check(status, &fault)


def _always(done_bytes):
    return True

# extent.h for Python.
cdef extern from "extent.h":
    struct rp_extent_place:
        rp_file *file
        rp_extent_kind kind
        uint64_t sectors
        uint64_t offset_sectors
        uint64_t start_bytes
        uint32_t index
    int rp_extent_check(const rp_extent_place *place, bint deep,
                        void (*each)(void *context, const rp_finding *finding) noexcept nogil,
                        void *context, rp_fault *fault) nogil
    struct rp_repair
    struct rp_repair_counts:
        uint64_t entries
        uint64_t redundant_entries
        uint64_t tables
        uint64_t grains
        uint64_t freed_bytes
        uint64_t free_sector
        uint64_t flag
    int rp_repair_create(const rp_extent_place *place, bint trust_primary, rp_repair **out,
                         rp_fault *fault) nogil
    void rp_repair_destroy(rp_repair *repair) nogil
    uint64_t rp_repair_finding_count(const rp_repair *repair, bint after) nogil
    const rp_finding *rp_repair_finding(const rp_repair *repair, bint after,
                                        uint64_t index) nogil
    void rp_repair_get_counts "rp_repair_counts"(const rp_repair *repair,
                                                 rp_repair_counts *out) nogil
    int rp_repair_run(rp_repair *repair, rp_dir *dir, const char *name, rp_file *file,
                      uint64_t tag, const char *keep_name, rp_fault *fault) nogil
    enum rp_recovery:
        RP_RECOVERY_NONE, RP_RECOVERY_UNDONE, RP_RECOVERY_UNUSED, RP_RECOVERY_STALE
    int rp_repair_recover(rp_dir *dir, const char *name, rp_file *file, uint64_t tag,
                          const char *stale_name, rp_recovery *out, rp_fault *fault) nogil

_RECOVERIES = {
    <int>RP_RECOVERY_NONE: "none",
    <int>RP_RECOVERY_UNDONE: "undone",
    <int>RP_RECOVERY_UNUSED: "unused",
    <int>RP_RECOVERY_STALE: "stale",
}


def extent_check(File file not None, *, int kind, uint64_t sectors, uint64_t offset_sectors=0,
                 uint64_t start_bytes=0, bint deep=False):
    """What is wrong with one extent, as Image.check says; also of one that cannot be opened."""
    cdef _FileHandle handle = file.handle()
    cdef list found = []
    cdef void *context = <void *>found
    cdef rp_extent_place place
    cdef rp_fault fault
    cdef int status
    place.file = handle.file
    place.kind = <rp_extent_kind>kind
    place.sectors = sectors
    place.offset_sectors = offset_sectors
    place.start_bytes = start_bytes
    place.index = 0
    with nogil:
        status = rp_extent_check(&place, deep, _collect_finding, context, &fault)
    check(status, &fault)
    return found


cdef class Repair:
    """A planned repair of one sparse extent; nothing is written before run()."""

    cdef rp_repair *_repair          # owned; NULL only inside __cinit__
    cdef _FileHandle _file           # what it was planned on

    def __cinit__(self, File file not None, *, int kind, uint64_t sectors,
                  uint64_t start_bytes=0, bint trust_primary=False):
        cdef rp_extent_place place
        cdef rp_fault fault
        cdef int status
        self._file = file.handle()
        place.file = self._file.file
        place.kind = <rp_extent_kind>kind
        place.sectors = sectors
        place.offset_sectors = 0
        place.start_bytes = start_bytes
        place.index = 0
        with nogil:
            status = rp_repair_create(&place, trust_primary, &self._repair, &fault)
        check(status, &fault)

    def __dealloc__(self):
        rp_repair_destroy(self._repair)

    cdef list _findings(self, bint after):
        return [_finding(rp_repair_finding(self._repair, after, index))
                for index in range(rp_repair_finding_count(self._repair, after))]

    @property
    def before(self):
        """What is wrong now."""
        return self._findings(False)

    @property
    def after(self):
        """What would be wrong after run()."""
        return self._findings(True)

    @property
    def counts(self):
        """What run() does, by the names of struct rp_repair_counts; empty: nothing."""
        cdef rp_repair_counts counts
        rp_repair_get_counts(self._repair, &counts)
        found = {
            "entries": counts.entries, "redundant_entries": counts.redundant_entries,
            "tables": counts.tables, "grains": counts.grains,
            "freed_bytes": counts.freed_bytes, "free_sector": counts.free_sector,
            "flag": counts.flag,
        }
        return {key: value for key, value in found.items() if value}

    def run(self, Dir dir not None, str name, File file not None, uint64_t tag, keep_name=None):
        """Carry it out; see rp_repair_run."""
        cdef _DirHandle folder = dir.handle()
        cdef _FileHandle handle = file.handle()
        cdef bytes encoded = os.fsencode(name)
        cdef const char *text = encoded
        cdef bytes keep_encoded = b"" if keep_name is None else os.fsencode(keep_name)
        cdef const char *keep_text = NULL
        cdef rp_fault fault
        cdef int status
        if keep_name is not None:
            keep_text = keep_encoded
        with nogil:
            status = rp_repair_run(self._repair, folder.dir, text, handle.file, tag, keep_text,
                                   &fault)
        check(status, &fault)


def repair_recover(Dir dir not None, str name, File file not None, uint64_t tag, str stale_name):
    """Deal with the backup of a repair that was cut short; see rp_repair_recover."""
    cdef _DirHandle folder = dir.handle()
    cdef _FileHandle handle = file.handle()
    cdef bytes encoded = os.fsencode(name)
    cdef bytes stale_encoded = os.fsencode(stale_name)
    cdef const char *text = encoded
    cdef const char *stale_text = stale_encoded
    cdef rp_recovery found = RP_RECOVERY_NONE
    cdef rp_fault fault
    cdef int status
    with nogil:
        status = rp_repair_recover(folder.dir, text, handle.file, tag, stale_text, &found, &fault)
    check(status, &fault)
    return _RECOVERIES[<int>found]

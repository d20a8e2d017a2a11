# The one place where a status becomes an exception.

cdef extern from "status.h":
    enum:
        RP_OK, RP_BAD_ARGUMENT, RP_OUT_OF_RANGE, RP_NO_MEMORY, RP_CORRUPT, RP_IO
        RP_FORMAT, RP_UNSUPPORTED, RP_READ_ONLY, RP_LOCKED, RP_STALE_EPOCH
        RP_HELD, RP_FAILED, RP_NOT_FOUND, RP_STATE, RP_FULL, RP_CANCELLED
    struct rp_fault:
        int status
        int os_errno
        uint64_t position
        char message[320]
    const char *rp_status_text(int status) nogil


cdef dict _ERRORS = {
    RP_BAD_ARGUMENT: _errors.UsageError,
    RP_OUT_OF_RANGE: _errors.UsageError,
    RP_CORRUPT: _errors.DamagedError,
    RP_IO: _errors.StorageError,
    RP_FORMAT: _errors.FormatError,
    RP_UNSUPPORTED: _errors.UnsupportedError,
    RP_READ_ONLY: _errors.ReadOnlyError,
    RP_LOCKED: _errors.LockedError,
    RP_STALE_EPOCH: _errors.StaleEpochError,
    RP_HELD: _errors.HeldError,
    RP_FAILED: _errors.FailedError,
    RP_NOT_FOUND: _errors.NotFoundError,
    RP_STATE: _errors.StateError,
    RP_FULL: _errors.StorageError,
    RP_CANCELLED: _errors.CancelledError,
}

cdef dict _HINTS = {
    RP_CORRUPT: "the data is damaged: restore the file from a copy, or fail over to another restore point",
    RP_LOCKED: "stop the other process, or wait until it has ended",
    RP_STALE_EPOCH: "this writer was fenced off by a hold: start it again",
    RP_HELD: "release the hold to go on",
    RP_BAD_ARGUMENT: "give a value that is in its range",
    RP_OUT_OF_RANGE: "stay within the size of the disk",
    RP_FORMAT: "check that the path names the file that is meant",
    RP_UNSUPPORTED: "use a copy of the disk that does without it",
    RP_READ_ONLY: "open it for writing",
    RP_NOT_FOUND: "choose one that is there",
    RP_STATE: "open it again, and do one thing after the other",
    RP_FULL: "free some space or raise the limit, or go on in a new disk or replica",
    RP_CANCELLED: "start it again to do it from the beginning",
    RP_FAILED: "close it and open it again, so that recovery reads what the disk really has",
}


cdef int check(int status, const rp_fault *fault) except -1:
    """Return 0 for RP_OK; raise for anything else."""
    if status == RP_OK:
        return 0
    cdef const char *message = &fault.message[0]
    detail = message.decode("utf-8", "replace")
    text = rp_status_text(status).decode("ascii")
    if status == RP_NO_MEMORY:
        raise MemoryError(f"{text}: {detail}")
    if status == RP_IO:
        if fault.os_errno:
            raise _errors.system_error(detail, fault.os_errno)
        raise _errors.StorageError(f"{text}: {detail}", "look at the host's log for the device")
    kind = _ERRORS.get(status)
    if kind is None:
        raise AssertionError(f"status {status} has no exception: {detail}")
    raise kind(f"{text}: {detail}", _HINTS.get(status, ""))

# The extension module rollpoint._native: one compilation unit, one file a room.
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import errno
import os

from . import errors as _errors

include "status.pxi"
include "lease.pxi"
include "marvin.pxi"
include "io.pxi"
include "disk.pxi"
include "spans.pxi"
include "swap.pxi"
include "slice.pxi"
include "scratch.pxi"
include "image.pxi"
include "extent.pxi"
include "copy.pxi"
include "journal.pxi"
include "gate.pxi"
include "nbd.pxi"

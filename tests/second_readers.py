"""Two readers by other people, for what we write: dissect.hypervisor and libvmdk.

What each is known to read wrong, and is therefore not shown:

  dissect   fails at the end of a disk that is no multiple of 8 KiB (its stream's
            alignment): what lies behind the last 8 KiB is left out. (Type 1 of a
            seSparse entry, unmapped, shows the parent there; we write none.)
  libvmdk   knows no zero grains and returns sector 1 of the file for them, so none
            are made here; refuses hosted grains of 4 KiB and less, and seSparse.
            (It needs the three titles of a descriptor, and takes an OFFSET for
            bytes: we write the titles, and the offset 0.)
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from patterns import PIECE, Content
from tools import require_tool

Read = Callable[[int, int], bytes]  # length, offset


@contextmanager
def dissect(path: Path) -> Iterator[Read]:
    from dissect.hypervisor.disk.vmdk import VMDK

    with open(path, "rb") as file:  # it would leave a descriptor open
        found = VMDK(file)
        try:

            def read(length: int, offset: int) -> bytes:
                found.seek(offset)
                return bytes(found.read(length))

            yield read
        finally:
            for extent in found.disks:
                extent.fh.close()


@contextmanager
def libvmdk(path: Path) -> Iterator[Read]:
    require_tool("vmdkinfo")  # comes with the library
    name = ctypes.util.find_library("vmdk")
    assert name is not None
    library = ctypes.CDLL(name)
    handle, error = ctypes.c_void_p(), ctypes.c_void_p()

    def call(function: str, *arguments: object) -> int:
        done = getattr(library, function)(*arguments, ctypes.byref(error))
        if done < 0:
            text = ctypes.create_string_buffer(4096)
            library.libvmdk_error_backtrace_sprint(error, text, len(text))
            library.libvmdk_error_free(ctypes.byref(error))
            raise AssertionError(f"{function}: {text.value.decode()}")
        return int(done)

    library.libvmdk_handle_read_buffer_at_offset.restype = ctypes.c_ssize_t
    call("libvmdk_handle_initialize", ctypes.byref(handle))
    try:
        call(
            "libvmdk_handle_open",
            handle,
            str(path).encode(),
            library.libvmdk_get_access_flags_read(),
        )
        call("libvmdk_handle_open_extent_data_files", handle)

        def read(length: int, offset: int) -> bytes:
            buffer = ctypes.create_string_buffer(length)
            count = call(
                "libvmdk_handle_read_buffer_at_offset",
                handle,
                buffer,
                ctypes.c_size_t(length),
                ctypes.c_int64(offset),
            )
            return buffer.raw[:count]

        yield read
    finally:
        call("libvmdk_handle_free", ctypes.byref(handle))


def require_equal_for_others(path: Path, type: str, grain: int, content: Content) -> None:
    """All that was written, and 8 KiB on both sides of it, by both."""
    with dissect(path) as read:
        _require_equal(read, content, content.size_bytes // 8192 * 8192)
    if type == "seSparse" or (grain <= 4096 and type != "vmfsSparse"):
        return
    with libvmdk(path) as read:
        _require_equal(read, content, content.size_bytes)


def _require_equal(read: Read, content: Content, stop: int) -> None:
    for start, end in content.written():
        first, last = max(start - 8192, 0), min(end + 8192, stop)
        for at in range(first, last, PIECE):
            length = min(PIECE, last - at)
            same = read(length, at) == content.read(length, at)
            assert same, f"differs in {length} bytes from {at}"

"""The child process that has a registry hive: libhivex on bytes that a guest controls.

Run in a cage (access/sandbox.py), with the standard library alone. It gets the hive's bytes,
and nothing else of the guest or of this host: a hive that breaks libhivex breaks this process.

Messages as the cage has them: two lengths (header, data), the header in JSON, the data.
hives.py is the other side.

    {"op": "open", "writable": bool}, the hive
    {"op": "keys", "path": [...]}                  -> {"keys": [...]}
    {"op": "values", "path": [...]}                -> {"values": [[name, type, hex], ...]}
    {"op": "value", "path", "name"}                -> {"values": [...]}, one or none
    {"op": "set", "path", "name", "type", "data"}  makes the keys that are missing
    {"op": "remove_value", "path", "name"}
    {"op": "remove_key", "path"}
    {"op": "save"}                                 -> {}, the hive, opened anew
Each answers {"missing": true} where there is no such key, {"error": "..."} where it failed.
"""

import ctypes
import errno
import json
import os
import resource
import struct
import sys
from typing import Any, BinaryIO

REQUEST_BYTES_MAX = 1 << 20
HIVE_BYTES_MAX = 512 << 20
VALUE_BYTES_MAX = 1 << 20
PLAIN_BYTES_MAX = 16344  # longer ones are "big data", which libhivex does not write
ANSWER_BYTES_MAX = 64 << 20
ITEMS_MAX = 200_000
_WRITE = 4  # HIVEX_OPEN_WRITE
_PR_SET_NO_NEW_PRIVS, _CAPABILITY_VERSION = 38, 0x20080522  # of prctl.h and capability.h


Reply = dict[str, Any]


class Failed(Exception):
    """An answer of its own: libhivex refused."""


class Missing(Exception):
    """There is no such key."""


class SetValue(ctypes.Structure):
    """hive_set_value of hivex.h."""

    _fields_ = [
        ("key", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("length", ctypes.c_size_t),
        ("value", ctypes.c_char_p),
    ]


def library() -> ctypes.CDLL:
    """libhivex with the signatures of hivex.h."""
    lib = ctypes.CDLL("libhivex.so.0", use_errno=True)
    handle, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    for name, result, arguments in (
        ("open", handle, (text, ctypes.c_int)),
        ("close", ctypes.c_int, (handle,)),
        ("root", size, (handle,)),
        ("node_name", handle, (handle, size)),
        ("node_children", handle, (handle, size)),
        ("node_get_child", size, (handle, size, text)),
        ("node_values", handle, (handle, size)),
        ("node_get_value", size, (handle, size, text)),
        ("value_key", handle, (handle, size)),
        ("value_value", handle, (handle, size, ctypes.c_void_p, ctypes.c_void_p)),
        ("node_add_child", size, (handle, size, text)),
        ("node_delete_child", ctypes.c_int, (handle, size)),
        ("node_set_value", ctypes.c_int, (handle, size, ctypes.c_void_p, ctypes.c_int)),
        ("node_set_values", ctypes.c_int, (handle, size, size, ctypes.c_void_p, ctypes.c_int)),
        ("commit", ctypes.c_int, (handle, text, ctypes.c_int)),
    ):
        function = getattr(lib, "hivex_" + name)
        function.restype, function.argtypes = result, arguments
    return lib


class Hive:
    """An open hive."""

    def __init__(self, data: bytes, writable: bool) -> None:
        self.lib = library()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.free.argtypes = (ctypes.c_void_p,)
        self.file = os.memfd_create("hive")
        with open(self.file, "wb", closefd=False) as file:
            file.write(data)
        path = f"/proc/self/fd/{self.file}".encode()
        self.path = path
        self.handle = 0
        self.open(_WRITE if writable else 0)

    def open(self, flags: int) -> None:
        self.handle = self.lib.hivex_open(self.path, flags)
        if not self.handle:
            raise self.failed("open")
        self.root = self.lib.hivex_root(self.handle)
        if not self.root:
            raise self.failed("root")

    def failed(self, doing: str) -> Failed:
        number = ctypes.get_errno()
        return Failed(f"{doing}: {errno.errorcode.get(number, number)}, {os.strerror(number)}")

    def taken_text(self, pointer: int | None) -> str | None:
        """A string that libhivex allocated; None where it could not make one."""
        if not pointer:
            return None
        try:
            return ctypes.string_at(pointer).decode("utf-8", "replace")
        finally:
            self.libc.free(pointer)

    def taken_list(self, pointer: int | None, doing: str) -> list[int]:
        if not pointer:
            raise self.failed(doing)
        try:
            numbers = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_size_t))
            found: list[int] = []
            while numbers[len(found)]:
                found.append(numbers[len(found)])
                if len(found) > ITEMS_MAX:
                    raise Failed(f"{doing}: more than {ITEMS_MAX}")
            return found
        finally:
            self.libc.free(pointer)

    def child(self, node: int, name: str) -> int:
        ctypes.set_errno(0)
        found: int = self.lib.hivex_node_get_child(self.handle, node, encoded(name))
        if not found and ctypes.get_errno():
            raise self.failed("node_get_child")
        return found

    def find(self, path: list[str]) -> int:
        node: int = self.root
        for name in path:
            node = self.child(node, name)
            if not node:
                raise Missing
        return node

    def make(self, path: list[str]) -> int:
        node: int = self.root
        for name in path:
            below = self.child(node, name)
            if not below:
                below = self.lib.hivex_node_add_child(self.handle, node, encoded(name))
                if not below:
                    raise self.failed("node_add_child")
            node = below
        return node

    def keys(self, path: list[str]) -> Reply:
        node = self.find(path)
        children = self.taken_list(self.lib.hivex_node_children(self.handle, node), "node_children")
        names = [self.taken_text(self.lib.hivex_node_name(self.handle, c)) for c in children]
        return {"keys": [name for name in names if name is not None]}

    def read(self, value: int) -> tuple[int, bytes]:
        """Type and bytes of a value."""
        kind, length = ctypes.c_int(0), ctypes.c_size_t(0)
        pointer = self.lib.hivex_value_value(
            self.handle, value, ctypes.byref(kind), ctypes.byref(length)
        )
        if not pointer:
            raise self.failed("value_value")
        try:
            if length.value > VALUE_BYTES_MAX:
                raise Failed(f"a value is {length.value} bytes long")
            return kind.value & 0xFFFFFFFF, ctypes.string_at(pointer, length.value)
        finally:
            self.libc.free(pointer)

    def all_values(self, node: int) -> list[tuple[str, int, bytes]]:
        values = self.taken_list(self.lib.hivex_node_values(self.handle, node), "node_values")
        found: list[tuple[str, int, bytes]] = []
        total = 0
        for value in values:
            name = self.taken_text(self.lib.hivex_value_key(self.handle, value))
            if name is None:
                raise self.failed("value_key")
            kind, data = self.read(value)
            total += len(data)
            if total > ANSWER_BYTES_MAX // 4:
                raise Failed("the values of a key are too long")
            found.append((name, kind, data))
        return found

    def values(self, path: list[str]) -> Reply:
        found = self.all_values(self.find(path))
        return {"values": [(name, kind, data.hex()) for name, kind, data in found]}

    def value(self, path: list[str], name: str) -> Reply:
        node = self.find(path)
        ctypes.set_errno(0)
        value = self.lib.hivex_node_get_value(self.handle, node, encoded(name))
        if not value:
            if ctypes.get_errno():
                raise self.failed("node_get_value")
            return {"values": []}
        kind, data = self.read(value)
        return {"values": [(name, kind, data.hex())]}

    def rewritable(self, node: int, data: bytes = b"") -> list[tuple[str, int, bytes]]:
        """A key's values. libhivex writes all of them anew, long ones as Windows cannot read."""
        found = self.all_values(node)
        longest = max((len(value[2]) for value in found), default=0)
        if max(longest, len(data)) > PLAIN_BYTES_MAX:
            raise Failed(f"a value of more than {PLAIN_BYTES_MAX} bytes would have to be written")
        return found

    def set(self, path: list[str], name: str, kind: int, data: bytes) -> Reply:
        node = self.make(path)
        self.rewritable(node, data)
        old = self.lib.hivex_node_get_value(self.handle, node, encoded(name))
        if old:  # its name stays as it is spelled
            name = self.taken_text(self.lib.hivex_value_key(self.handle, old)) or name
        wanted = SetValue(encoded(name), signed(kind), len(data), data)
        if self.lib.hivex_node_set_value(self.handle, node, ctypes.byref(wanted), 0) != 0:
            raise self.failed("node_set_value")
        return {}

    def remove_value(self, path: list[str], name: str) -> Reply:
        node = self.find(path)
        kept = [v for v in self.rewritable(node) if v[0].casefold() != name.casefold()]
        array = (SetValue * max(1, len(kept)))(
            *(SetValue(encoded(key), signed(kind), len(data), data) for key, kind, data in kept)
        )
        if self.lib.hivex_node_set_values(self.handle, node, len(kept), array, 0) != 0:
            raise self.failed("node_set_values")
        return {}

    def remove_key(self, path: list[str]) -> Reply:
        if not path:
            raise Failed("the root stays")
        node = self.find(path)
        if self.lib.hivex_node_delete_child(self.handle, node) != 0:
            raise self.failed("node_delete_child")
        return {}

    def save(self) -> bytes:
        if self.lib.hivex_commit(self.handle, None, 0) != 0:
            raise self.failed("commit")
        self.lib.hivex_close(self.handle)
        self.open(0)
        with open(self.path, "rb") as file:
            return file.read()


def encoded(name: str) -> bytes:
    if "\0" in name:
        raise Failed("a name holds a zero byte")
    return name.encode("utf-8")


def signed(kind: int) -> int:
    return kind - (1 << 32) if kind >= 1 << 31 else kind


def answer(hive: Hive, request: dict[str, Any]) -> Reply:
    op, path = request["op"], request.get("path", [])
    if op == "keys":
        return hive.keys(path)
    if op == "values":
        return hive.values(path)
    if op == "value":
        return hive.value(path, request["name"])
    if op == "set":
        return hive.set(path, request["name"], request["type"], bytes.fromhex(request["data"]))
    if op == "remove_value":
        return hive.remove_value(path, request["name"])
    if op == "remove_key":
        return hive.remove_key(path)
    raise Failed(f"there is no {op}")


def read_exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise EOFError
    return data


def serve(source: BinaryIO, target: BinaryIO) -> None:
    hive: Hive | None = None
    while True:
        length, more = struct.unpack("<II", read_exactly(source, 8))
        if length > REQUEST_BYTES_MAX or more > HIVE_BYTES_MAX:
            raise EOFError
        request = json.loads(read_exactly(source, length))
        body = read_exactly(source, more)
        reply: Reply = {}
        out = b""
        try:
            if request["op"] == "open":
                hive = Hive(body, request["writable"])
            elif hive is None:
                raise Failed("no hive is open")
            elif request["op"] == "save":
                out = hive.save()
            else:
                reply = answer(hive, request)
        except Missing:
            reply = {"missing": True}
        except Failed as error:
            reply = {"error": str(error)}
        except (OSError, MemoryError) as error:
            reply = {"error": f"{type(error).__name__}: {error}", "library": hive is None}
        text = json.dumps(reply).encode()
        if len(text) > ANSWER_BYTES_MAX:
            text = json.dumps({"error": "the answer is too long"}).encode()
        target.write(struct.pack("<II", len(text), len(out)) + text + out)
        target.flush()


class CapabilitySet(ctypes.Structure):
    """The kernel's __user_cap_data_struct, twice: version 3."""

    _fields_ = [("words", ctypes.c_uint32 * 6)]


def give_up_rights() -> None:
    """No capability, and no way to a new one: what is read next may take this process over."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = CapabilitySet()
    if libc.capset(ctypes.byref(header), ctypes.byref(none)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (HIVE_BYTES_MAX, HIVE_BYTES_MAX))
    give_up_rights()
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (EOFError, BrokenPipeError):
        os._exit(0)


if __name__ == "__main__":
    main()

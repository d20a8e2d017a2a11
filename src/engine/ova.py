"""OVA files: an archive of a machine, whose disks are read where they lie in it.

An OVA is a tar of plain files: an OVF, which describes the machine, then mostly
a manifest, then disks. Nothing is unpacked. Member names and sizes are
untrusted: a name is never used as a path, and one header asks for little memory.

Source: POSIX.1-2001 (ustar, pax), GNU tar; DSP0243 "Open Virtualization Format".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ._native import File
from .descriptor import require_base_name, short
from .errors import DamagedError, Error, FormatError, NotFoundError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import tarfile

_MEMBERS_MAX = 1000
_HEADER_BYTES_MAX = 16384  # of a long name or a pax header; they have some hundred
_BLOCK_BYTES = 512
_MARK = ".ova:"
_UNPACK = "unpack it with tar -xf, and open the disk that comes out"
_CHUNK = re.compile(r"\.vmdk\.[0-9]{9}")


class Member(NamedTuple):
    """A file in an archive. name: as in the archive, and plain."""

    name: str
    offset_bytes: int
    size_bytes: int

    @property
    def is_disk(self) -> bool:
        """Its name says that it is a VMDK, perhaps packed or in pieces."""
        name = self.name.lower().removesuffix(".gz")
        return name.endswith(".vmdk") or _CHUNK.search(name) is not None


def split_ova(path: str) -> tuple[str, str | None] | None:
    """Path of an OVA and name of a member, None for its only disk; None for other paths.

    ``file.ova:disk1.vmdk`` names a member, ``file.ova`` the only disk. The end
    of the name decides, never what is in the file.
    """
    if path.lower().endswith(".ova"):
        return path, None
    at = path.lower().rfind(_MARK)
    member = path[at + len(_MARK) :]
    if at < 0 or not member or "/" in member:
        return None
    return path[: at + len(_MARK) - 1], member


class _Reader:
    """What tarfile reads from: our file, a header's worth at a time."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= _HEADER_BYTES_MAX or self._at < 0:
            raise FormatError(
                f"{self._file.path} has a header of {length} bytes at byte {self._at}", _UNPACK
            )
        data = self._file.pread(length, self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        if not 0 <= offset < 1 << 62:
            raise FormatError(f"{self._file.path} has a member at byte {offset}", _UNPACK)
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at


def members(file: File) -> list[Member]:
    """The files of an archive, in their order.

    Raises:
        FormatError: It is not a tar, or holds other things than plain files.
        DamagedError: It ends early, or a header in it is broken.
        UnsupportedError: A member's name is no plain name.
    """
    import tarfile  # 14 ms, which a failover has no use for

    try:
        found = _walk(file)
    except Error:
        raise
    # what tarfile lets out on an archive that nobody wrote in earnest
    except (tarfile.TarError, ArithmeticError, LookupError, RecursionError, ValueError) as error:
        reason = f"{file.path} is not an OVA, or a damaged one: {short(str(error))}"
        raise FormatError(reason, "take another copy") from None
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise FormatError(f"{file.path} holds two files named {short(name)}", _UNPACK)
    return found


def _walk(file: File) -> list[Member]:
    import tarfile

    found: list[Member] = []
    size_bytes = file.size_bytes
    # r: never decompresses; mypy wants all of a file object, tarfile uses three calls
    with tarfile.open(fileobj=_Reader(file), mode="r:") as archive:  # type: ignore[call-overload]
        while (header := archive.next()) is not None:
            found.append(_member(file.path, header))
            if found[-1].offset_bytes + found[-1].size_bytes > size_bytes:
                raise DamagedError(
                    f"{file.path} ends inside its member {short(header.name)}", "take another copy"
                )
            if len(found) > _MEMBERS_MAX:
                raise FormatError(f"{file.path} holds more than {_MEMBERS_MAX} files", _UNPACK)
        # tarfile also stops at a broken header, and what is behind it would be missing
        if file.pread(_BLOCK_BYTES, archive.offset).strip(b"\0"):
            raise DamagedError(
                f"{file.path}: the header at byte {archive.offset} is broken", "take another copy"
            )
    return found


def _member(path: str, header: tarfile.TarInfo) -> Member:
    name = header.name.removeprefix("./")
    if not header.isreg() or header.size < 0:
        raise FormatError(
            f"{path}: its member {short(name)} is not a plain file",
            "an OVA holds no links and directories: take another copy",
        )
    if header.issparse():
        raise UnsupportedError(
            f"{path}: its member {short(name)} was packed as a sparse file",
            f"{_UNPACK}; or pack it without --sparse",
        )
    return Member(require_base_name(name, path, "member"), header.offset_data, header.size)


def open_member(file: File, wanted: str | None) -> File:
    """The disk in an archive, as a file for reading.

    Args:
        wanted: Its name; None for the only disk.

    Raises:
        NotFoundError: There is no such member.
        UsageError: No name was given, and there are several disks, or none.
        UnsupportedError: It is compressed or in pieces.
        Error: As ``members``.
    """
    found = members(file)
    disks = [member for member in found if member.is_disk]
    names = ", ".join(short(member.name) for member in disks) or "none"
    if wanted is None:
        if len(disks) != 1:
            raise UsageError(
                f"{file.path} holds {len(disks)} disks: {names}",
                f"name one, as in {file.name}:{disks[0].name if disks else 'disk1.vmdk'}",
            )
        member = disks[0]
    else:
        chosen = [member for member in found if member.name == wanted]
        if not chosen:
            raise NotFoundError(
                f"{file.path} has no member {short(wanted)}", f"its disks are: {names}"
            )
        member = chosen[0]
    return slice_of(file, member)


def slice_of(file: File, member: Member) -> File:
    """A member as a file for reading.

    Raises:
        UnsupportedError: It is compressed or in pieces.
    """
    if _CHUNK.search(member.name.lower()):
        raise UnsupportedError(
            f"{file.path}: {short(member.name)} is one piece of a disk",
            "unpack it with tar -xf, join the pieces in order with cat, and open that",
        )
    made = file.slice(member.name, member.offset_bytes, member.size_bytes)
    if member.name.lower().endswith(".gz") or made.pread(2, 0) == b"\x1f\x8b":
        raise UnsupportedError(
            f"{made.path} is compressed as a whole", "unpack it with tar -xf and gunzip, open that"
        )
    return made

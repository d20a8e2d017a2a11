"""New disks: all their files made and synced before anybody can see the disk.

A disk appears with one durable step, which is its descriptor's rename (or, for
a disk of one file, that file's). A crash before it leaves files that belong to
no disk; a failure takes them away again. Nothing is ever overwritten.

Bytes: docs/formats.md, "VMDK files we write".
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from ._native import (
    EXTENT_FLAT,
    EXTENT_SESPARSE,
    EXTENT_SPARSE,
    EXTENT_ZERO,
    OPEN_CREATE,
    OPEN_EXCLUSIVE,
    OPEN_WRITE,
    Chain,
    Dir,
    File,
    Image,
    Io,
    Sink,
    copy,
    disk_sink,
    sesparse_sink,
    sparse_create,
    sparse_info,
    stream_sink,
)
from .descriptor import Descriptor, Extent, require_base_name
from .descriptor_write import format_descriptor, new_descriptor
from .errors import Error, ExistsError, StateError, UnsupportedError, UsageError
from .layouts import COMPRESS_LEVEL, require_layout, require_level, split
from .link import Link
from .links import open_links, problems, split_path
from .ova import split_ova
from .units import SECTOR_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

DESCRIPTOR_SECTORS = 20  # room of an embedded one, as VMware leaves
PART_SUFFIX = ".part"  # of a disk of one file until it is whole
UNIT_BYTES_MIN = 4096  # a copy leaves out zeros in units of a grain, but not of less
_ONE_FILE = ("raw", "monolithicSparse", "streamOptimized")
_EMBEDDED = ("monolithicSparse", "streamOptimized")  # their descriptor lies inside
_STREAM_DDB = [("toolsVersion", "2147483647")]  # unknown, as VMware's own exports say


def _plain(name: str, dir: Dir) -> str:
    """A name that a descriptor may hold."""
    try:
        return require_base_name(name, dir.path, "new disk's name")
    except UnsupportedError as error:
        raise UsageError(error.message, "choose another name") from None


def _stem(name: str) -> str:
    return name.removesuffix(".vmdk")


class NewDisk:
    """A disk in the making: seen by nobody until ``publish``.

    It is filled through ``chain`` at random, or by one copy into ``sink``; a type
    that is written only once (streamOptimized, seSparse) has the sink alone.
    Leaving it as a context manager without publishing removes its files.
    """

    def __init__(
        self,
        dir: Dir,
        name: str,
        type: str,
        size_bytes: int,
        *,
        parent: tuple[str, int] | None = None,
        grain_bytes: int | None = None,
        adapter: str = "lsilogic",
        split_sectors: int | None = None,
        zero_grains: bool = False,
        redundant: bool = True,
        file_names: Sequence[str] | None = None,
    ) -> None:
        self._layout = require_layout(type, size_bytes, grain_bytes, parent is not None)
        self._dir, self._name, self._type = dir, _plain(name, dir), type
        self._grain_bytes = grain_bytes or self._layout.grain_bytes
        self._zero_grains, self._redundant = zero_grains, redundant
        self._files: list[File] = []
        self._chain: Chain | None = None
        self._sink_taken = False
        self._made: list[str] = []
        self._sectors = size_bytes // SECTOR_BYTES
        self.published = False
        most = self._layout.split_sectors and (split_sectors or self._layout.split_sectors)
        sizes = split(self._sectors, most)
        names = list(file_names or self._part_names(len(sizes)))
        self.descriptor: Descriptor | None = None
        self._text = b""
        if type != "raw":
            self.descriptor = self._describe(sizes, names, parent, adapter)
            self._text = format_descriptor(self.descriptor)
            if len(self._text) > DESCRIPTOR_SECTORS * SECTOR_BYTES and self._one_file:
                raise UsageError(f"the name {name!r} is too long for its descriptor", "shorten it")
        if dir.exists(name):
            raise ExistsError(
                f"{dir.path}/{name} exists", "choose another name, or remove it first"
            )
        try:
            for part, sectors in zip(names, sizes, strict=True):
                self._make(part + PART_SUFFIX if self._one_file else part, sectors)
            dir.sync()  # what is flushed from here on is nothing without the names
            if not self._layout.append_only:
                kind, parts = self._layout.kind, zip(self._files, sizes, strict=True)
                specs = [(kind, count, file, 0) for file, count in parts]
                self._chain = Chain([Image(specs, True)])
        except BaseException:
            self.abandon()
            raise

    @property
    def chain(self) -> Chain:
        """The disk, to be written; StateError once it is published or abandoned."""
        if self._chain is None:
            if self._files:
                raise StateError(
                    f"{self._name} is {self._type}, which is written once", "copy a disk into it"
                )
            raise StateError(f"{self._name} is finished", "open it as a disk")
        return self._chain

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write a bytes-like object at offset."""
        self.chain.pwrite(data, offset)

    def sink(self, compress_level: int | None = None) -> Sink:
        """What one native copy of a whole disk writes to, before ``publish``.

        Args:
            compress_level: 0 (stored), 1 (fastest) to 12 (smallest); streamOptimized only.
        """
        require_level(self._type, compress_level)
        if not self._layout.append_only:
            return disk_sink(self.chain, max(self._grain_bytes, UNIT_BYTES_MIN))
        if self._sink_taken or not self._files:
            raise StateError(f"{self._name} has been written", "make another disk")
        self._sink_taken = True
        if self._layout.kind == EXTENT_SESPARSE:
            return sesparse_sink(self._files[0], self._sectors)
        return stream_sink(
            self._files[0],
            capacity_sectors=self._sectors,
            grain_sectors=self._grain_bytes // SECTOR_BYTES,
            descriptor=self._text,
            descriptor_sectors=DESCRIPTOR_SECTORS,
            level=COMPRESS_LEVEL if compress_level is None else compress_level,
        )

    @property
    def _one_file(self) -> bool:
        return self._type in _ONE_FILE

    def _part_names(self, count: int) -> list[str]:
        if self._one_file:
            return [self._name]
        stem = _stem(self._name)
        return [stem + self._layout.suffix.format(number) for number in range(1, count + 1)]

    def _describe(
        self,
        sizes: Sequence[int],
        names: Sequence[str],
        parent: tuple[str, int] | None,
        adapter: str,
    ) -> Descriptor:
        kind = self._layout.extent_type
        offset = 0 if kind == "FLAT" else None
        access = "RDONLY" if self._type == "streamOptimized" else "RW"  # as ovftool
        ddb = {"vmfsThin": [("thinProvisioned", "1")], "streamOptimized": _STREAM_DDB}
        parts = zip(sizes, names, strict=True)
        return new_descriptor(
            self._type,
            [Extent(access, size, kind, name, offset) for size, name in parts],
            parent=parent,
            adapter=adapter,
            ddb=ddb.get(self._type, []),
        )

    def _make(self, name: str, sectors: int) -> None:
        file = self._dir.open(name, OPEN_WRITE | OPEN_CREATE | OPEN_EXCLUSIVE)
        self._made.append(name)
        self._files.append(file)
        file.lock(exclusive=True)
        if self._layout.append_only:
            return
        if self._layout.kind == EXTENT_FLAT:
            if self._layout.thick:
                file.allocate(0, sectors * SECTOR_BYTES)
            else:
                file.truncate(sectors * SECTOR_BYTES)
            file.sync()
            return
        embedded = self._type in _EMBEDDED
        hosted = self._layout.kind == EXTENT_SPARSE
        sparse_create(
            file,
            kind=self._layout.kind,
            capacity_sectors=sectors,
            grain_sectors=self._grain_bytes // SECTOR_BYTES,
            descriptor=self._text if embedded else None,
            descriptor_sectors=DESCRIPTOR_SECTORS if embedded else 0,
            redundant=hosted and self._redundant,
            zero_grains=hosted and self._zero_grains,
        )

    def publish(self) -> None:
        """Make everything durable, then let the disk be seen; nothing may be written after."""
        if self._layout.append_only:
            self._finish_stream()
        else:
            self.chain.close_clean()
        self._made.insert(0, self._name)  # from here on it may be there
        if self._one_file:
            self._dir.rename(self._name + PART_SUFFIX, self._name)
            self._dir.sync()
        else:
            self._dir.replace(self._name, self._text)
        self.published = True
        self._close()

    def _finish_stream(self) -> None:
        """What nobody copied into is an empty disk; what was written can be read."""
        if not self._files:
            raise StateError(f"{self._name} is finished", "open it as a disk")
        if not self._sink_taken:
            zeros = Chain([Image([(EXTENT_ZERO, self._sectors, None, 0)])])
            copy(zeros, self.sink(), workers=1)
        sparse_info(self._files[0])

    def abandon(self) -> None:
        """Take the files away again, as far as the storage allows."""
        self._close()
        dir = self._dir
        with contextlib.suppress(Error):
            dir = dir.io.open_dir(dir.path)  # a failed sync was final for the other handle
        for name in self._made:
            with contextlib.suppress(Error):
                dir.unlink(name)
        with contextlib.suppress(Error):
            dir.sync()

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []
        self._chain = None

    def __enter__(self) -> NewDisk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.published:
            self.abandon()


def create_disk(
    path: str,
    type: str,
    size_bytes: int | None = None,
    *,
    parent: str | None = None,
    grain_bytes: int | None = None,
    adapter: str = "lsilogic",
    split_sectors: int | None = None,
    zero_grains: bool = False,
    io: Io | None = None,
) -> None:
    """Make an empty disk, or a child that shows its parent.

    Args:
        path: Of the descriptor, or of the one file of a raw or monolithicSparse disk.
        type: One of ``TYPES``.
        size_bytes: A multiple of 512. A child has its parent's size.
        parent: Path of the parent, in the same directory; sparse types only.
        grain_bytes: Of a sparse type; 64 KiB by default, 512 bytes for vmfsSparse.
        adapter: ide, lsilogic, buslogic or legacyESX; decides the geometry written.
        split_sectors: Size of the parts of a twoGbMaxExtent type.
        zero_grains: Let a grain be marked as zeros (header version 2), which not
            every reader knows.

    Raises:
        UsageError: A size or a combination that the type cannot have.
        ExistsError: One of its files is there already. Nothing was changed.
        StorageError: The system refused; what had been made was removed.
    """
    folder, name = split_path(path)
    dir = (io or Io.posix()).open_dir(folder)
    above: tuple[str, int] | None = None
    if parent is not None:
        above, parent_bytes = _parent(dir, parent)
        if size_bytes not in (None, parent_bytes):
            raise UsageError(
                f"{parent} has {parent_bytes} bytes, and its child would have {size_bytes}",
                "leave the size out",
            )
        size_bytes = parent_bytes
    if size_bytes is None:
        raise UsageError(f"no size was given for {path}", "give a size, or a parent")
    with NewDisk(
        dir,
        name,
        type,
        size_bytes,
        parent=above,
        grain_bytes=grain_bytes,
        adapter=adapter,
        split_sectors=split_sectors,
        zero_grains=zero_grains,
    ) as new:
        new.publish()


def _parent(dir: Dir, parent: str) -> tuple[tuple[str, int], int]:
    """Name, content id and size of a chain that gets a child in dir."""
    if split_ova(parent) is not None:
        raise UsageError(
            f"{parent} is a disk in an OVA, which cannot be a parent", "convert the disk first"
        )
    _, name = split_path(parent)
    links: list[Link] = open_links(parent, io=dir.io)
    try:
        for problem in problems(links):
            raise problem
        top = links[0].descriptor
        assert top is not None
        stat = dir.stat(name) if dir.exists(name) else None
        if stat is None or (stat.device, stat.inode) != links[0].identity:
            raise UsageError(
                f"{parent} and its child would lie in two directories",
                "make the child in the directory of its parent",
            )
        return (name, top.cid), links[0].size_bytes
    finally:
        for link in links:
            link.close()

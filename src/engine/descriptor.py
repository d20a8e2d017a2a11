"""VMDK descriptors as plain data, and reading them. No I/O.

A descriptor is the text that says what a disk consists of: its content id, its
parent, its extents, and the disk data base (ddb). It comes from untrusted
places, so a line that is not understood is an error that names file and line,
numbers are checked against 64 bits, and whether a name may be opened at all is
asked of ``require_base_name``.

Source: "VMware Virtual Disk Format 5.0" (descriptor file); what peers accept
where it is silent (QEMU, libvmdk, VirtualBox, dissect.hypervisor).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from .errors import FormatError, UnsupportedError
from .units import SECTOR_BYTES

LIMIT_BYTES = 1 << 20  # of a descriptor, as in QEMU
NO_PARENT = 0xFFFFFFFF
_SECTORS_MAX = (1 << 63) // SECTOR_BYTES - 1

ALIASES = {
    "2GbMaxExtentSparse": "twoGbMaxExtentSparse",
    "2GbMaxExtentFlat": "twoGbMaxExtentFlat",
    "vmfsRDM": "vmfsRawDeviceMap",
    "vmfsRDMP": "vmfsPassthroughRawDeviceMap",
    "vmfsSeSparse": "seSparse",
}
CREATE_TYPES = frozenset(
    {
        "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
        "streamOptimized", "custom", "fullDevice", "partitionedDevice",
        "vmfs", "vmfsPreallocated", "vmfsEagerZeroedThick", "vmfsThin", "vmfsThick",
        "vmfsSparse", "seSparse", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap",
        "vmfsRaw", "vsanSparse",
    }
)  # fmt: skip
ACCESSES = frozenset({"RW", "RDONLY", "NOACCESS"})
# extent type -> it has a file, it may have an offset
EXTENT_TYPES = {
    "FLAT": (True, True),
    "VMFS": (True, False),
    "SPARSE": (True, False),
    "VMFSSPARSE": (True, False),
    "SESPARSE": (True, False),
    "ZERO": (False, False),
    "VMFSRDM": (True, True),
    "VMFSRAW": (True, True),
}

_HEADER_KEYS = {
    key.lower(): key
    for key in (
        "version", "encoding", "CID", "parentCID", "isNativeSnapshot", "createType",
        "parentFileNameHint", "changeTrackPath", "keyID", "encryptionKeys",
    )
}  # fmt: skip
# For lines without blanks at their ends; written so that they never backtrack far.
_KEY_LINE = re.compile(r"([A-Za-z][\w.:-]*)[ \t]*=[ \t]*(.*)")
_EXTENT_LINE = re.compile(r'(\S+)[ \t]+(\S+)[ \t]+([^\s"]+)(?:[ \t]+"([^"]*)"(.*))?')
# the header's line, or where there is none that of the ddb, as VDDK writes it
_ENCODING = [
    re.compile(rb'^[ \t]*%sencoding[ \t]*=[ \t]*"?([^"\r\n]*)' % room, re.I | re.M)
    for room in (rb"", rb"ddb\.")
]
_CHARSETS = re.compile(
    r"utf-8|us-ascii|windows-\d+|iso-8859-\d+|gbk|gb2312|gb18030|big5|shift_jis|euc-(jp|kr)|koi8-r"
)
# slashes, controls, line and paragraph separators, and what turns text around
_NOT_IN_NAMES = re.compile("[/\\\\\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_DECIMAL = re.compile(r"[0-9]{1,19}")
_HEX = re.compile(r"[0-9A-Fa-f]{1,8}")


@dataclass(frozen=True, slots=True)
class Extent:
    """One extent line: ``sectors`` of the disk, and where they lie.

    ``offset_sectors`` is None where the line has no such field. ``rest`` keeps
    what follows it (partition UUID, device), which only device extents have.
    """

    access: str
    sectors: int
    type: str
    file: str | None = None
    offset_sectors: int | None = None
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor. ``ddb`` and ``other`` keep values verbatim, quotes included."""

    create_type: str  # canonical: never an alias
    cid: int
    extents: tuple[Extent, ...]
    parent_cid: int = NO_PARENT
    parent_hint: str | None = None
    version: int = 1
    encoding: str | None = "UTF-8"  # the header's, else the ddb's
    change_track_path: str | None = None
    ddb: tuple[tuple[str, str], ...] = ()  # ("ddb.adapterType", '"ide"'), in file order
    other: tuple[tuple[str, str], ...] = field(default=())  # further header lines

    @property
    def sectors(self) -> int:
        """Size of the disk in sectors."""
        return sum(extent.sectors for extent in self.extents)

    def ddb_text(self, key: str) -> str | None:
        """Value of ``ddb.<key>`` without its quotes; None where it is missing."""
        return _lookup(self.ddb, f"ddb.{key}")

    def other_text(self, key: str) -> str | None:
        """Value of a further header key without its quotes; None where it is missing."""
        return _lookup(self.other, key)


def _lookup(pairs: Iterable[tuple[str, str]], key: str) -> str | None:
    for name, value in pairs:
        if name.lower() == key.lower():
            return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    return None


def is_descriptor(head: bytes) -> bool:
    """The first bytes of a file could be a descriptor: its first statement is version=."""
    text = head.removeprefix(codecs.BOM_UTF8)
    for line in text.split(b"\n"):
        bare = line.strip()
        if bare and not bare.startswith(b"#"):
            return bare.startswith(b"version=")
    return False


def text_of(data: bytes) -> bytes:
    """A descriptor without what is behind its text.

    A descriptor inside an extent is padded with zeros. QEMU pads text files too
    when it changes the content id, and leaves rests of the old text in that: the
    text ends at the first zero, as for C.
    """
    return data.partition(b"\0")[0]


def parse(data: bytes, name: str) -> Descriptor:
    """Read a descriptor.

    Args:
        data: As in the file, padding and all. At most 1 MiB.
        name: Of the file, for messages.

    Raises:
        FormatError: It is none, or a line is wrong, doubled or not understood.
        UnsupportedError: It is for a later version of the format.

    Source: "VMware Virtual Disk Format 5.0", "The Descriptor File".
    """
    if len(data) > LIMIT_BYTES:
        raise FormatError(f"{name} is larger than a descriptor may be (1 MiB)", RAW_HINT)
    data = text_of(data).removeprefix(codecs.BOM_UTF8)
    if not is_descriptor(data):
        raise FormatError(f"{name} is not a VMDK descriptor", RAW_HINT)
    return _Parser(name).run(*_decode(data, name))


RAW_HINT = "open the descriptor that names it; or, if it is a raw disk, say so: --format raw"


def codec_of(encoding: str | None) -> str | None:
    """Python's name of a descriptor's encoding; None where there is none."""
    if encoding is None:
        return "utf-8"
    wanted = encoding.strip().lower()
    if not _CHARSETS.fullmatch(wanted):
        return None
    try:
        codec = codecs.lookup(wanted.replace("windows-", "cp")).name
    except LookupError:
        return None
    return codec if 'a\n"='.encode(codec, "replace") == b'a\n"=' else None


def _decode(data: bytes, name: str) -> tuple[str, str | None]:
    """The text, and the encoding that it names."""
    match = _ENCODING[0].search(data) or _ENCODING[1].search(data)
    encoding = match[1].decode("ascii", "replace") if match else None
    codec = codec_of(encoding)
    if codec is None:
        line = data.count(b"\n", 0, match.start() if match else 0) + 1
        raise FormatError(
            f"{name}, line {line}: encoding {encoding!r} is not known",
            "rewrite the descriptor in UTF-8",
        )
    try:
        return data.decode(codec), encoding
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(
            f"{name}, line {line}: a character is not in the encoding {encoding or 'UTF-8'}",
            'put the right line into it, as in encoding="windows-1252"',
        ) from None


class _Parser:
    """What has been read so far, and the line that is being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.line = 0
        self.header: dict[str, str] = {}
        self.other: list[tuple[str, str]] = []
        self.ddb: list[tuple[str, str]] = []
        self.extents: list[Extent] = []
        self.keys: set[str] = set()
        self.at: dict[str, int] = {}  # header key -> line
        self.sectors = 0

    def wrong(self, what: str, hint: str = "correct the line, or take another copy") -> FormatError:
        return FormatError(f"{self.name}, line {self.line}: {what}", hint)

    def run(self, text: str, encoding: str | None) -> Descriptor:
        for self.line, line in enumerate(text.split("\n"), 1):
            line = line.removesuffix("\r").strip(" \t")
            if "\r" in line:
                raise self.wrong("a carriage return inside a line")
            if not line or line.startswith("#"):
                continue
            match = _KEY_LINE.fullmatch(line)
            if match is not None:
                self.key(match[1], match[2])
            else:
                self.extent(line)
        return self.finish(encoding)

    def key(self, key: str, value: str) -> None:
        folded = key.lower()
        if folded in self.keys:
            raise self.wrong(f"{key} is there a second time")
        self.keys.add(folded)
        if folded.startswith("ddb."):
            self.ddb.append((key, value))
        elif folded in _HEADER_KEYS:
            known = _HEADER_KEYS[folded]
            if known in ("isNativeSnapshot", "keyID", "encryptionKeys"):
                self.other.append((known, value))
            else:
                self.header[known] = self.text(key, value)
                self.at[known] = self.line
        else:
            self.other.append((key, value))

    def text(self, key: str, value: str) -> str:
        if value.startswith('"'):
            if len(value) < 2 or not value.endswith('"'):
                raise self.wrong(f"the value of {key} has no closing quote")
            value = value[1:-1]
        if '"' in value:
            raise self.wrong(f"the value of {key} has a quote inside")
        return value

    def extent(self, line: str) -> None:
        match = _EXTENT_LINE.fullmatch(line)
        if match is None:
            raise self.wrong(f"neither a setting nor an extent: {short(line)}")
        access, sectors, kind, file, tail = match.groups()
        offset, _, rest = (tail or "").replace("\t", " ").strip(" ").partition(" ")
        if access not in ACCESSES:
            raise self.wrong(f"access {short(access)} is not RW, RDONLY or NOACCESS")
        if kind not in EXTENT_TYPES:
            raise self.wrong(f"extent type {short(kind)} is not known")
        count = self.number("the number of sectors", sectors)
        if count == 0:
            raise self.wrong("an extent of 0 sectors")
        self.sectors += count
        if self.sectors > _SECTORS_MAX:
            raise self.wrong("the disk is larger than 64 bits can say")
        has_file, has_offset = EXTENT_TYPES[kind]
        if has_file != (file is not None):
            raise self.wrong(f"an extent of type {kind} has {'a' if has_file else 'no'} file name")
        if file == "":
            raise self.wrong("the file name is empty")
        if tail and not has_offset:
            raise self.wrong(f"an extent of type {kind} ends behind its file name")
        if kind == "FLAT" and rest:
            raise self.wrong("a FLAT extent ends behind its offset")
        place = self.number("the offset", offset) if offset else None
        if place is not None and place + count > _SECTORS_MAX:
            raise self.wrong("the extent ends past what 64 bits can say")
        self.extents.append(Extent(access, count, kind, file, place, rest.strip(" ")))

    def number(self, what: str, text: str) -> int:
        if not _DECIMAL.fullmatch(text) or int(text) > _SECTORS_MAX:
            raise self.wrong(f"{what} is {short(text)}, which is not a number of sectors")
        return int(text)

    def need(self, key: str) -> str:
        if key not in self.header:
            raise FormatError(
                f"{self.name}: there is no {key} line", "correct it, or take another copy"
            )
        self.line = self.at[key]
        return self.header[key]

    def content_id(self, key: str) -> int:
        text = self.need(key)
        if not _HEX.fullmatch(text):
            raise self.wrong(f"{key} is {short(text)}, which is not 8 hexadecimal digits")
        return int(text, 16)

    def finish(self, encoding: str | None) -> Descriptor:
        version = self.need("version")
        if version not in ("1", "2", "3"):
            if _DECIMAL.fullmatch(version):
                raise UnsupportedError(
                    f"{self.name}, line {self.line}: descriptor version {version} is not known",
                    "versions 1 to 3 are; convert it with the product that wrote it",
                )
            raise self.wrong(f"version is {short(version)}, which is not a number")
        create_type = self.need("createType")
        create_type = ALIASES.get(create_type, create_type)
        if create_type not in CREATE_TYPES:
            raise self.wrong(f"createType {short(create_type)} is not known")
        hint = self.header.get("parentFileNameHint")
        parent_cid = self.content_id("parentCID")
        if (hint is None) != (parent_cid == NO_PARENT):
            raise self.wrong(
                "parentCID names a parent, and there is no parentFileNameHint"
                if hint is None
                else "parentFileNameHint names a parent, and parentCID says there is none"
            )
        if not self.extents:
            raise FormatError(f"{self.name}: there is no extent line", "take another copy")
        return Descriptor(
            create_type=create_type,
            cid=self.content_id("CID"),
            extents=tuple(self.extents),
            parent_cid=parent_cid,
            parent_hint=hint,
            version=int(version),
            encoding=encoding,
            change_track_path=self.header.get("changeTrackPath"),
            ddb=tuple(self.ddb),
            other=tuple(self.other),
        )


def short(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def require_base_name(name: str, where: str, what: str) -> str:
    """The name, if it is one plain component of a path.

    Anything else would let a descriptor reach files outside its own directory
    (CVE-2022-47951), or show a person another name than it has.

    Raises:
        UnsupportedError: It has a slash, a backslash, or a character that controls
            a terminal or the direction of text; or is "", "." or "..".
    """
    plain = name not in ("", ".", "..") and not _NOT_IN_NAMES.search(name)
    if plain and len(name.encode("utf-8", "surrogatepass")) < 256:
        return name
    raise UnsupportedError(
        f"{where}: the {what} {short(name)} is not a plain name in the same directory",
        "put the files into one directory and name them so, or allow the directory that holds them",
    )

"""A guest's tree as its converters see it: they read from it, and change it through here.

Each change is recorded with what differs, for conversion.json. What would change nothing is
not written and not recorded: that is what makes a second conversion an empty one.

All that is recorded comes from a hostile guest. Control characters and bytes that are no
UTF-8 are escaped before they are kept, and no text kept here is longer than TEXT_BYTES_MAX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import xxhash

from ..access.tree import GuestTree
from ..errors import GuestError, NotFoundError, PathError
from .base import Change

Tree = GuestTree  # as converters know it
TEXT_BYTES_MAX = 2048  # of the lines before, and of those after
CONFIGURATION_BYTES_MAX = 1 << 20  # more than any configuration file that is edited
CHANGES_MAX = 10_000
WARNINGS_MAX = 200
WARNING_CHARACTERS_MAX = 1000


class Edits:
    """What converters get.

    Attributes:
        tree: For reading. Whoever changes it past this object hides the change.
        changes: In the order they were made.
        warnings: For the operator, without repeats.
    """

    def __init__(self, tree: GuestTree) -> None:
        self.tree = tree
        self.changes: list[Change] = []
        self.warnings: list[str] = []

    def read(self, path: str, limit_bytes: int = CONFIGURATION_BYTES_MAX) -> bytes | None:
        """A file of the guest's configuration; None where there is none.

        One that is no file, too large, or at the end of links that lead in a circle is left
        alone, with a warning: it is no reason not to convert the rest.
        """
        data, problem = read_configuration(self.tree, path, limit_bytes)
        if problem:
            self.warn(f"{path} {problem}: it is left alone")
        return data

    def replace(self, path: str, data: bytes, what: str, mode: int | None = None) -> bool:
        """Give a file this content; a new file gets the mode (0644), and its directories.

        Returns:
            Whether that changed anything.
        """
        stat = self.tree.stat(path)
        old = None if stat is None else self.tree.read(path)
        if old == data:
            return False
        if stat is None:
            parent = path.rsplit("/", 1)[0]
            if parent and not self.tree.is_directory(parent):
                self.tree.make_directories(parent)
        self.tree.replace(path, data, mode)
        before, after = differing(old, data)
        self._note(path, what, before, after)
        return True

    def append(self, path: str, data: bytes, what: str) -> bool:
        """Put bytes behind a file's end, in place. Returns whether there were any."""
        if not data:
            return False
        stat = self.tree.stat(path)
        if stat is None:
            raise GuestError(f"{printable(path)} is not there: nothing can be put behind its end")
        self.tree.append(path, data)
        self._note(path, what, f"{stat.size_bytes} bytes", f"behind them {digest(data)}")
        return True

    def remove(self, path: str, what: str) -> bool:
        """Remove a file, a link or an empty directory. Returns whether it was there."""
        stat = self.tree.stat(path, follow=False)
        if stat is None:
            return False
        before = f"a link to {stat.target}" if stat.kind == "link" else ""
        if stat.kind == "file":
            before = (
                described(self.tree.read(path))
                if stat.size_bytes <= TEXT_BYTES_MAX
                else f"{stat.size_bytes} bytes"
            )
        self.tree.remove(path)
        self._note(path, what, before, "")
        return True

    def make_link(self, path: str, target: str, what: str) -> bool:
        """Make a symbolic link, or turn the one there. Returns whether that changed anything."""
        stat = self.tree.stat(path, follow=False)
        if stat is not None and stat.kind == "link" and stat.target == target:
            return False
        parent = path.rsplit("/", 1)[0]
        if parent and not self.tree.is_directory(parent):
            self.tree.make_directories(parent)
        self.tree.make_link(path, target)
        before = "" if stat is None else f"a {stat.kind} {stat.target}".strip()
        self._note(path, what, before, f"a link to {target}")
        return True

    def warn(self, text: str) -> None:
        """Tell the operator, once."""
        shown = printable(text)
        if len(shown) > WARNING_CHARACTERS_MAX:
            shown = f"{shown[:WARNING_CHARACTERS_MAX]} ..."
        if shown not in self.warnings and len(self.warnings) < WARNINGS_MAX:
            self.warnings.append(shown)

    def _note(self, path: str, what: str, before: str, after: str) -> None:
        if len(self.changes) >= CHANGES_MAX:
            raise GuestError(
                f"more than {CHANGES_MAX} files would have to change",
                "no system is laid out like that: look at the guest",
            )
        self.changes.append(
            Change(
                file=printable(path),
                what=printable(what),
                before=printable(before),
                after=printable(after),
            )
        )


def read_configuration(
    tree: GuestTree, path: str, limit_bytes: int = CONFIGURATION_BYTES_MAX
) -> tuple[bytes | None, str]:
    """A file's bytes, or why there are none to be had; ("" where nothing is there)."""
    try:
        stat = tree.stat(path)
    except PathError:
        return None, "leads in a circle"
    except NotFoundError:
        return None, ""
    if stat is None:
        return None, ""
    if stat.kind != "file":
        return None, "is no file"
    if stat.size_bytes > limit_bytes:
        return None, f"is {stat.size_bytes} bytes long"
    return tree.read(path, limit_bytes), ""


def printable(text: str) -> str:
    """The same with all that could do something on a terminal, or is no UTF-8, escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a surrogate escape: a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]


def digest(data: bytes) -> str:
    """Size and digest, for what is no text."""
    return f"{len(data)} bytes, xxh3 {xxhash.xxh3_64_hexdigest(data)}"


def described(data: bytes) -> str:
    """A file that comes or goes whole: its text, or size and digest."""
    if b"\0" in data:
        return digest(data)
    return _capped([data])


def differing(old: bytes | None, new: bytes) -> tuple[str, str]:
    """The lines that only one of them has.

    Cost: linear in both, whatever they hold.
    """
    if old is None:
        return "", described(new)
    if b"\0" in old or b"\0" in new:
        return digest(old), digest(new)
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    common, shorter = 0, min(len(before), len(after))
    while common < shorter and before[common] == after[common]:
        common += 1
    tail = 0
    while tail < shorter - common and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    before = before[common : len(before) - tail]
    after = after[common : len(after) - tail]
    return _capped(_without(before, after)), _capped(_without(after, before))


def _without(lines: list[bytes], others: list[bytes]) -> list[bytes]:
    """Lines that are not among the others; all of them where only their order differs."""
    left = Counter(others)
    found = []
    for line in lines:
        if left[line]:
            left[line] -= 1
        else:
            found.append(line)
    return found if found or len(lines) != len(others) else lines


def _capped(lines: Iterable[bytes]) -> str:
    """The lines as text, without the last line's end, and no longer than TEXT_BYTES_MAX."""
    data = b"".join(lines)
    if len(data) > TEXT_BYTES_MAX:
        left = len(data) - TEXT_BYTES_MAX
        return _text(data[:TEXT_BYTES_MAX]) + f" ... and {left} bytes more"
    return _text(data.removesuffix(b"\n"))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")

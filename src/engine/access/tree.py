"""A guest's files as the guest sees them: its file systems put together, its links resolved.

No file system here ever follows a link. The tree does, in the guest's own namespace: an
absolute link starts at the guest's "/", ".." never leaves it, and what a link names is
looked up part by part, so nothing of this host can be reached whatever the guest holds.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping

from ..errors import GuestError, NotFoundError, PathError
from ..units import printable
from .base import FileSystem, Space, Stat, close_all

LINKS_MAX = 40  # as Linux: MAXSYMLINKS
PARTS_MAX = 4096  # in one resolution, links included
LIMIT_BYTES = 16 << 20
GLOB_DIRECTORIES_MAX = 5000
GLOB_MATCHES_MAX = 100_000
_CACHE_MAX = 100_000
_ANY_CASE = ("vfat", "exfat")
_Names = list[str]  # list is a method of the class below


class GuestTree:
    """File systems at their mount points. Paths are absolute, with "/" between the parts.

    Every call raises what base.FileSystem says, and:
        NotFoundError: Nothing is there, or a part on the way is no directory.
        PathError: More than LINKS_MAX links, or no path at all.
    """

    def __init__(self, mounts: Mapping[str, FileSystem] | None = None) -> None:
        self._mounts: dict[tuple[str, ...], FileSystem] = {}
        self._cache: dict[tuple[str, ...], Stat | None] = {}
        self._listed: dict[tuple[str, ...], dict[str, Stat]] = {}
        for at, fs in sorted((mounts or {}).items(), key=lambda item: item[0].count("/")):
            self.mount(at, fs)

    @property
    def mounts(self) -> dict[str, FileSystem]:
        """Mount point and file system, outermost first."""
        ordered = sorted(self._mounts.items(), key=lambda item: (len(item[0]), item[0]))
        return {"/" + "/".join(at): fs for at, fs in ordered}

    def mount(self, at: str, fs: FileSystem) -> None:
        """Put a file system at a path (links in it are followed, as mount does).

        Raises:
            PathError: Something is mounted there.
        """
        place = tuple(self._walk(at, True)) if self._mounts else tuple(_parts(at))
        if place in self._mounts:
            raise PathError(f"{at}: a file system is mounted there", "unmount it first")
        self._mounts[place] = fs
        self._forget_all()

    def unmount(self, at: str) -> FileSystem:
        """Take a file system away. It stays open."""
        place = tuple(self._walk(at, True))
        if place not in self._mounts:
            raise PathError(f"{at}: nothing is mounted there", "check the path")
        self._forget_all()
        return self._mounts.pop(place)

    def real(self, path: str, follow_last: bool = True) -> str:
        """The same file's path without links."""
        return "/" + "/".join(self._walk(path, follow_last))

    def resolve(self, path: str, follow_last: bool = True) -> tuple[FileSystem, str]:
        """The file system that holds a path, and the path in it.

        The last part need not exist; what it is in must.
        """
        return self._place(tuple(self._walk(path, follow_last)))

    def stat(self, path: str, follow: bool = True) -> Stat | None:
        """What is there; None when nothing is, also at the end of a link."""
        try:
            return self._lstat(tuple(self._walk(path, follow)))
        except NotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether something is there, links followed."""
        return self.stat(path) is not None

    def is_directory(self, path: str) -> bool:
        """Whether a directory is there, links followed."""
        found = self.stat(path)
        return found is not None and found.kind == "directory"

    def any_case(self, path: str) -> str | None:
        """The path as it is spelled, upper and lower case apart; None when there is none.

        An exact match goes before the first other one.
        """
        found = ""
        for part in _parts(path):
            place = f"{found}/{part}"
            if self.stat(place, follow=False) is None:
                if not self.is_directory(found or "/"):
                    return None
                same = [n for n in self.list(found or "/") if n.casefold() == part.casefold()]
                if not same:
                    return None
                place = f"{found}/{min(same)}"
            found = place
        return found or "/"

    def list(self, path: str) -> dict[str, Stat]:
        """What a directory holds."""
        place = tuple(self._walk(path, True))
        known = self._listed.get(place)
        if known is not None:
            return dict(known)
        fs, relative = self._place(place)
        found = fs.list(relative)
        if len(self._cache) + len(found) < _CACHE_MAX:
            self._cache.update({(*place, name): facts for name, facts in found.items()})
            self._listed[place] = found
        return dict(found)

    def read(self, path: str, limit_bytes: int = LIMIT_BYTES) -> bytes:
        """A file's bytes.

        Raises:
            GuestError: It is larger than limit_bytes.
        """
        facts = self._wanted(path)
        if facts.size_bytes > limit_bytes:
            raise GuestError(
                f"{printable(path)} in the guest is {facts.size_bytes} bytes long; "
                f"{limit_bytes} are read at most",
                "look at the file: it is larger than any of its kind",
            )
        fs, relative = self.resolve(path)
        return fs.read(relative, 0, limit_bytes)

    def read_text(self, path: str, limit_bytes: int = LIMIT_BYTES) -> str:
        """A file's text; bytes that are no UTF-8 become surrogate escapes."""
        return self.read(path, limit_bytes).decode("utf-8", "surrogateescape")

    def read_part(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file, shorter at its end."""
        fs, relative = self.resolve(path)
        return fs.read(relative, offset, length)

    def write(self, path: str, data: bytes, offset: int) -> None:
        """Overwrite or extend a file in place."""
        place = tuple(self._walk(path, True))
        fs, relative = self._place(place)
        with self._changing(place):
            fs.write(relative, data, offset)

    def append(self, path: str, data: bytes) -> None:
        """Extend a file in place."""
        self.write(path, data, self._wanted(path).size_bytes)

    def replace(self, path: str, data: bytes, mode: int | None = None) -> None:
        """A new content, atomically; of a link's target, not in place of the link."""
        place = tuple(self._walk(path, True))
        fs, relative = self._place(place)
        with self._changing(place):
            fs.replace(relative, data, mode)

    def remove(self, path: str) -> None:
        """A file, a link itself, or an empty directory."""
        place = tuple(self._walk(path, False))
        if place in self._mounts:
            raise PathError(
                f"{printable(path)}: a file system is mounted there", "unmount it first"
            )
        fs, relative = self._place(place)
        with self._changing(place):
            fs.remove(relative)

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; it may be there."""
        place = tuple(self._walk(path, True))
        if place in self._mounts:
            return
        fs, relative = self._place(place)
        with self._changing(place):
            fs.make_directory(relative, mode)

    def make_directories(self, path: str, mode: int = 0o755) -> None:
        """A directory and those it is in, as far as they are missing."""
        parts = _parts(path)
        for count in range(1, len(parts) + 1):
            place = "/" + "/".join(parts[:count])
            if not self.is_directory(place):
                self.make_directory(place, mode)

    def make_link(self, path: str, target: str) -> None:
        """A symbolic link, in place of a file or link that is there."""
        place = tuple(self._walk(path, False))
        if place in self._mounts:
            raise PathError(
                f"{printable(path)}: a file system is mounted there", "unmount it first"
            )
        fs, relative = self._place(place)
        with self._changing(place):
            fs.make_link(relative, target)

    def space(self, path: str) -> Space:
        """What is free on the file system that holds a path."""
        return self.resolve(path)[0].space()

    def glob(self, pattern: str) -> _Names:
        """Paths that exist and match, sorted; * and ? stand for characters of one part.

        They match no dot at the start of a name. Other characters stand for themselves.
        What leads in a circle matches nothing.
        """
        found = [""]
        listed = 0
        for part in _parts(pattern):
            if not any(sign in part for sign in "*?"):
                found = [place for place in (f"{base}/{part}" for base in found) if self._is(place)]
                continue
            matches: _Names = []
            for base in found:
                if not self._leads(base or "/"):
                    continue
                listed += 1
                if listed > GLOB_DIRECTORIES_MAX or len(matches) > GLOB_MATCHES_MAX:
                    raise PathError(
                        f"{printable(pattern)} in the guest matches too many files to look at",
                        "look at the file that names it",
                    )
                names = sorted(self.list(base or "/"))
                matches += [f"{base}/{name}" for name in names if matches_name(name, part)]
            found = matches
        return [place or "/" for place in found]

    def sync(self) -> None:
        """Make what was written durable, on every file system."""
        for fs in self._mounts.values():
            if fs.writable:
                fs.sync()

    def close(self) -> None:
        """Close every file system, innermost first; the first error is raised at the end."""
        mounts = sorted(self._mounts.items(), key=lambda item: -len(item[0]))
        self._mounts = {}
        self._forget_all()
        close_all(fs for _, fs in mounts)

    def _is(self, path: str) -> bool:
        with contextlib.suppress(PathError):
            return self.stat(path, follow=False) is not None
        return False

    def _leads(self, path: str) -> bool:
        with contextlib.suppress(PathError):
            return self.is_directory(path)
        return False

    def _wanted(self, path: str) -> Stat:
        found = self.stat(path)
        if found is None:
            raise _missing(path)
        return found

    def _place(self, place: tuple[str, ...]) -> tuple[FileSystem, str]:
        for count in range(len(place), -1, -1):
            fs = self._mounts.get(place[:count])
            if fs is not None:
                return fs, "/".join(place[count:])
        raise NotFoundError("no root is mounted in this guest", "mount one at /")

    def _lstat(self, place: tuple[str, ...]) -> Stat | None:
        if place not in self._cache:
            fs, relative = self._place(place)
            found = fs.lstat(relative)
            if len(self._cache) >= _CACHE_MAX:
                self._forget_all()
            self._cache[place] = found
        return self._cache[place]

    @contextlib.contextmanager
    def _changing(self, place: tuple[str, ...]) -> Iterator[None]:
        try:
            yield
        finally:
            self._cache.pop(place, None)
            self._cache.pop(place[:-1], None)
            for listed in (place, place[:-1], place[:-2]):
                self._listed.pop(listed, None)
            if self._place(place)[0].volume.kind in _ANY_CASE:
                self._forget_all()  # the same file is known under other names

    def _forget_all(self) -> None:
        self._cache.clear()
        self._listed.clear()

    def _walk(self, path: str, follow_last: bool) -> _Names:
        """The parts of a path without links, "." and ".."."""
        ahead = deque(_parts(path, keep_dots=True))
        place: _Names = []
        links = 0
        for _ in range(PARTS_MAX):
            if not ahead:
                return place
            part = ahead.popleft()
            if part == ".":
                continue
            if part == "..":
                del place[-1:]
                continue
            place.append(part)
            key = tuple(place)
            last = not ahead
            if key in self._mounts or (last and not follow_last):
                continue
            facts = self._lstat(key)
            if facts is not None and facts.kind == "link":
                links += 1
                if links > LINKS_MAX:
                    break
                del place[-1 if not facts.target.startswith("/") else 0 :]
                ahead.extendleft(reversed(_split(facts.target)))
            elif not last and (facts is None or facts.kind != "directory"):
                raise _missing(path)
        raise PathError(
            f"{printable(path)} in the guest leads through more than {LINKS_MAX} symbolic links",
            "they may lead in a circle: correct them in the guest",
        )


def matches_name(name: str, pattern: str) -> bool:
    """Whether a name matches; time is bounded by the product of both lengths."""
    if name.startswith(".") and not pattern.startswith("."):
        return False
    at = here = kept = 0
    star = -1
    while here < len(name):
        if at < len(pattern) and pattern[at] == "*":
            star, kept = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", name[here]):
            at += 1
            here += 1
        elif star >= 0:
            kept += 1
            at, here = star + 1, kept
        else:
            return False
    return all(sign == "*" for sign in pattern[at:])


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _parts(path: str, keep_dots: bool = False) -> list[str]:
    if not path.startswith("/") or "\0" in path:
        raise PathError(f"{printable(path)!r} is no absolute path", "give one that starts with /")
    parts = _split(path)
    if not keep_dots and any(part in (".", "..") for part in parts):
        raise PathError(f"{printable(path)} has a . or .. part", "give a path without them")
    return parts


def _missing(path: str) -> NotFoundError:
    return NotFoundError(f"there is no {printable(path)} in the guest", "check the path")

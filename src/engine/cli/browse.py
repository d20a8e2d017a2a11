"""rollpoint replica browse, rollpoint disk mount: look into a guest, copy files out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .. import config
from ..access.base import Stat
from ..disk import open_disk
from ..errors import Error, StateError, UsageError
from ..manifest import FILE_NAME as MANIFEST_NAME
from ..replica import Replica
from ..units import format_size, format_time, printable
from .output import print_json, print_table

if TYPE_CHECKING:  # other commands of these groups do without
    from ..browse import Browser
    from ..copy_out import Copied
    from ..throwaway import Below

_LETTERS = {"file": "-", "directory": "d", "link": "l", "other": "?"}

At = Annotated[
    str | None,
    typer.Option(metavar="POINT", help="latest, an id, a name, or a moment: not after it."),
]
OneVolume = Annotated[
    str, typer.Option("--volume", metavar="NAME", help="That volume alone, not the whole system.")
]
Subvolume = Annotated[str, typer.Option(metavar="PATH", help="Of it, where it is btrfs.")]
List = Annotated[
    str | None, typer.Option("--list", metavar="PATH", help="List a directory, and end.")
]
Cat = Annotated[
    str | None, typer.Option("--cat", metavar="PATH", help="Print a file as it is, and end.")
]
Get = Annotated[
    tuple[str, str] | None,
    typer.Option(metavar="PATH TARGET", help="Copy a file or directory to this host, and end."),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", metavar="MODE", help="How: auto, files, appliance or host."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def browse(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")],
    at: At = None,
    volume: OneVolume = "",
    subvolume: Subvolume = "",
    list_path: List = None,
    cat: Cat = None,
    get: Get = None,
    mode: ModeOption = None,
    as_json: AsJson = False,
) -> None:
    """Look into a restore point: list files, print them, copy them out. Nothing changes.

    Without --list, --cat or --get it asks for commands, or reads them from a pipe.
    """
    from .. import browse as browsing
    from ..view import view

    with Replica.open(directory) as replica:
        settings = config.load(replica.directory).mount
        wish = settings.mode if mode is None else _mode(mode)
        choose = browsing.ways_in(wish, settings.trust_guest)
        with view(replica, "latest" if at is None else at) as shown_point:
            point = shown_point.point
            about = {"replica": replica.name, "point": point.id, "time": point.time}
            with browsing.Browser(
                shown_point.disks, choose, volume=volume, subvolume=subvolume
            ) as browser:
                _Session(browser, about, as_json).act(list_path, cat, get)


def mount(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The descriptor, or the one file.")],
    at: At = None,
    volume: OneVolume = "",
    subvolume: Subvolume = "",
    list_path: List = None,
    cat: Cat = None,
    get: Get = None,
    mode: ModeOption = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="TYPE", help="raw, where it is a raw disk.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look into a disk: list its files, print them, copy them out. Nothing changes.

    A disk of a replica is shown as of a restore point, by default the newest.
    """
    from .. import browse as browsing

    choose = browsing.ways_in("auto" if mode is None else _mode(mode))
    with (
        _disks_of(file, at, format) as (disks, about),
        browsing.Browser(disks, choose, volume=volume, subvolume=subvolume) as browser,
    ):
        _Session(browser, about, as_json).act(list_path, cat, get)


def _mode(text: str) -> config.Mode:
    for known in get_args(config.Mode):
        if text == known:
            mode: config.Mode = known
            return mode
    raise UsageError(f"--mode {text!r} is none", f"take {', '.join(get_args(config.Mode))}")


@contextlib.contextmanager
def _disks_of(
    file: str, at: str | None, format: str | None
) -> Iterator[tuple[Mapping[str, Below], dict[str, object]]]:
    """The disk that a file is, or a replica's disk as of a point."""
    from ..view import disk_of, view

    folder, name = os.path.split(os.path.abspath(file))
    if format is None and os.path.exists(os.path.join(folder, MANIFEST_NAME)):
        with Replica.open(folder) as replica:
            _refuse_running(replica, name)
            disk = disk_of(replica, name) if replica.manifest.state != "Permanent" else None
            if disk is not None:
                with view(replica, "latest" if at is None else at) as seen:
                    facts = {"disk": disk, "point": seen.point.id, "time": seen.point.time}
                    yield {disk: seen.disks[disk]}, facts
                return
    if at is not None:
        raise StateError(
            f"{file} is no disk of a replica, so it has no restore points",
            "leave out --at, or name the base or the journal of a replica's disk",
        )
    with open_disk(file, format=format) as disk_open:
        yield {"disk": disk_open}, {"disk": file}


def _refuse_running(replica: Replica, name: str) -> None:
    recovered = replica.manifest.recovered
    if recovered and recovered.running and name in recovered.interims.values():
        raise StateError(
            f"a machine runs from {name}: what it has not written yet is not there",
            "copy the files out of the machine itself, or look at a restore point",
        )


# ---- what is printed ----


def entry_facts(name: str, facts: Stat) -> dict[str, object]:
    """One line of a listing, for programs. Bytes that are no UTF-8 are lone surrogates."""
    return {
        "name": name,
        "kind": facts.kind,
        "mode": f"{facts.mode:04o}",
        "uid": facts.uid,
        "gid": facts.gid,
        "size_bytes": facts.size_bytes,
        "modified": _moment(facts.modified_ns),
        **({"target": facts.target} if facts.kind == "link" else {}),
    }


def _moment(ns: int) -> str:
    try:
        return format_time(ns)
    except (ValueError, OverflowError, OSError):  # a guest may write any number
        return str(ns)


def _row(name: str, facts: Stat) -> list[str]:
    bits = "".join(
        letter if facts.mode >> (8 - place) & 1 else "-" for place, letter in enumerate("rwxrwxrwx")
    )
    target = f" -> {printable(facts.target)}" if facts.kind == "link" else ""
    return [
        _LETTERS[facts.kind] + bits,
        f"{facts.uid}:{facts.gid}",
        str(facts.size_bytes),
        _moment(facts.modified_ns),
        printable(name) + target,
    ]


class _Session:
    """One call of the command: what was asked for, or what is typed."""

    def __init__(self, browser: Browser, about: dict[str, object], as_json: bool) -> None:
        self._browser = browser
        self._about = about
        self._as_json = as_json
        self._told = 0  # notes

    def act(self, list_path: str | None, cat: str | None, get: tuple[str, str] | None) -> None:
        if sum(option is not None for option in (list_path, cat, get)) > 1:
            raise UsageError("more than one thing at once", "give one of --list, --cat and --get")
        if list_path is not None:
            self.list(list_path)
        elif cat is not None:
            self.cat(cat)
        elif get is not None:
            self.get(*get)
        elif self._as_json:
            self.overview()
        else:
            from .shell import Shell

            Shell(self, self._browser).run()

    def overview(self) -> None:
        """What lies on the disks."""
        with contextlib.suppress(Error):
            _ = self._browser.tree
        guest = self._browser.guest
        if self._as_json:
            from ..browse import volume_facts

            print_json(
                {
                    **self._about,
                    "volumes": volume_facts(self._browser.volumes),
                    "guest": None if guest is None else {"name": guest.name, "os": guest.os},
                    "notes": self._browser.notes,
                }
            )
            return
        typer.echo(", ".join(f"{what} {value}" for what, value in self._about.items()))
        system = "none is known" if guest is None else printable(guest.name or guest.os)
        typer.echo(f"system: {system}")
        self.volumes()
        self._tell_notes()

    def volumes(self) -> None:
        print_table(
            ("volume", "size", "kind", "label", "problem"),
            [
                [
                    *(printable(v.name), format_size(v.size_bytes), v.kind),
                    *(printable(v.label), printable(v.problem)),
                ]
                for v in self._browser.volumes
            ],
        )

    def list(self, path: str) -> None:
        entries = self._browser.list(path)
        if self._as_json:
            rows = [entry_facts(name, facts) for name, facts in entries.items()]
            print_json({**self._about, "path": path, "entries": rows, "notes": self._browser.notes})
            return
        self._tell_notes()
        print_table(
            ("mode", "owner", "size", "modified", "name"),
            [_row(name, facts) for name, facts in entries.items()],
        )

    def cat(self, path: str) -> None:
        data = self._browser.read(path)
        self._tell_notes()
        if sys.stdout.isatty():  # nothing that a terminal would obey
            typer.echo("\n".join(printable(line) for line in _text(data).splitlines()))
            return
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def get(self, path: str, target: str) -> None:
        done = self._browser.copy_out(path, target)
        if self._as_json:
            print_json({**self._about, **_copied_facts(done), "notes": self._browser.notes})
            return
        self._tell_notes()
        for where, why in done.skipped:
            print(f"left out: {where}: {printable(why)}", file=sys.stderr)
        if done.skipped_count > len(done.skipped):
            print(f"and {done.skipped_count - len(done.skipped)} more", file=sys.stderr)
        typer.echo(
            f"{done.files} files, {done.directories} directories, {done.links} links, "
            f"{format_size(done.size_bytes)}; {done.skipped_count} left out"
        )

    def _tell_notes(self) -> None:
        for note in self._browser.notes[self._told :]:
            print(f"note: {printable(note)}", file=sys.stderr)
        self._told = len(self._browser.notes)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _copied_facts(done: Copied) -> dict[str, object]:
    return {
        "files": done.files,
        "directories": done.directories,
        "links": done.links,
        "size_bytes": done.size_bytes,
        "skipped": [{"path": path, "why": why} for path, why in done.skipped],
        "skipped_count": done.skipped_count,
    }

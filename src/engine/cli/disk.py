"""rollpoint disk: look at VMDK chains, make them, copy them, serve them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from .. import convert as copies
from .. import disk as disks
from ..errors import UsageError
from ..layouts import COMPRESS_LEVEL, COMPRESS_LEVEL_MAX
from ..ova import split_ova
from ..units import format_size, parse_size
from .output import print_json, print_json_list, print_table, progress_bar

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="TYPE", help="raw, where the file is a raw disk: that is never guessed."
    ),
]
AllowRoot = Annotated[
    str | None,
    typer.Option(
        "--allow-root",
        metavar="DIR",
        help="A directory in which extents and parents may lie, other than the disk's own.",
    ),
]
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="The descriptor, or the one file; a disk in an OVA: vm.ova:disk1.vmdk."
    ),
]
Grain = Annotated[
    str | None, typer.Option("--grain", metavar="SIZE", help="Grain of a sparse type, as in 64K.")
]
Adapter = Annotated[str, typer.Option(metavar="NAME", help="ide, lsilogic, buslogic or legacyESX.")]
Type = Annotated[
    str, typer.Option("--to", "--type", metavar="TYPE", help=f"One of {', '.join(disks.TYPES)}.")
]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    from .browse import mount
    from .check import run_check

    group = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    commands: dict[str, Callable[..., None]] = {
        "info": show_info,
        "map": show_map,
        "check": run_check,
        "create": run_create,
        "convert": run_convert,
        "compare": run_compare,
        "commit": run_commit,
        "serve": run_serve,
        "mount": mount,
    }
    for name, command in commands.items():
        group.command(name)(command)
    app.add_typer(group, name="disk", help="Look at VMDK chains, make them, copy them, serve them.")


def show_info(
    file: File, format: Format = None, allow_root: AllowRoot = None, as_json: AsJson = False
) -> None:
    """Say what a disk is: its type and size, and the files of its chain; of an OVA its disks."""
    if format != "raw" and split_ova(file) == (file, None):
        _show_ova(disks.describe_ova(file), as_json)
        return
    found = disks.info(file, format=format, allow_root=allow_root)
    if as_json:
        print_json(found)
        return
    typer.echo(f"type       {found['type']}")
    typer.echo(f"size       {format_size(found['size_bytes'])} ({found['size_bytes']} bytes)")
    typer.echo(f"allocated  {format_size(found['allocated_bytes'])}")
    if found["cid"] is not None:
        typer.echo(f"cid        {found['cid']}  parent {found['parent_cid'] or '-'}")
    rows = [
        [str(depth), extent["file"] or extent["name"] or "-", extent["type"], extent["format"],
         link["cid"] or "-",
         format_size(extent["grain_bytes"]) if "grain_bytes" in extent else "-",
         format_size(extent["allocated_bytes"])]
        for depth, link in enumerate(found["chain"])
        for extent in link["extents"]
    ]  # fmt: skip
    print_table(["depth", "extent", "type", "format", "cid", "grain", "allocated"], rows)


def _show_ova(found: disks.OvaInfo, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    typer.echo(f"machine    {found['ovf'] or '-'}")
    rows = [
        [f"{found['path']}:{disk['name']}", disk["error"] or disk["type"] or "-",
         "-" if disk["size_bytes"] is None else format_size(disk["size_bytes"]),
         format_size(disk["length_bytes"])]
        for disk in found["disks"]
    ]  # fmt: skip
    print_table(["disk", "type", "size", "in the archive"], rows)


def show_map(
    file: File, format: Format = None, allow_root: AllowRoot = None, as_json: AsJson = False
) -> None:
    """List the allocated ranges, as qemu-img map does."""
    with disks.open_disk(file, format=format, allow_root=allow_root) as disk:
        batches = _batches(disks.map_ranges(disk))
        if as_json:
            print_json_list(batches)
            return
        for batch in batches:
            rows = [
                [str(entry["start"]), str(entry["length"]), str(entry["depth"]),
                 "data" if entry["data"] else "zero" if entry["present"] else "hole",
                 str(entry.get("offset", "-"))]
                for entry in batch
            ]  # fmt: skip
            print_table(["start", "length", "depth", "kind", "offset"], rows)


def _batches(entries: Iterator[disks.MapEntry]) -> Iterator[list[disks.MapEntry]]:
    """A thousand at a time: a large disk has more than memory should hold."""
    while batch := list(islice(entries, 1000)):
        yield batch


def run_create(
    file: File,
    size: Annotated[
        str | None,
        typer.Argument(metavar="SIZE", help="Bytes, or with K, M, G, T; a child has its parent's."),
    ] = None,
    type: Annotated[str, typer.Option("--type", metavar="TYPE", help=Type.__metadata__[0].help)] = (
        "monolithicSparse"
    ),
    parent: Annotated[
        str | None, typer.Option(metavar="FILE", help="Make a child of this disk beside it.")
    ] = None,
    grain: Grain = None,
    adapter: Adapter = "lsilogic",
    as_json: AsJson = False,
) -> None:
    """Make an empty disk, or a child that shows its parent."""
    disks.create_disk(
        file,
        type,
        None if size is None else parse_size(size),
        parent=parent,
        grain_bytes=None if grain is None else parse_size(grain),
        adapter=adapter,
    )
    found = disks.info(file, format="raw" if type == "raw" else None)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{file}: {type}, {format_size(found['size_bytes'])}")


def run_convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What to read, with its parents.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="What to make.")],
    to: Type,
    format: Format = None,
    grain: Grain = None,
    adapter: Adapter = "lsilogic",
    compress_level: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Of streamOptimized: 0 stored, 1 fastest, {COMPRESS_LEVEL_MAX} smallest;"
            f" else {COMPRESS_LEVEL}.",
        ),
    ] = None,
    allow_root: AllowRoot = None,
    no_sync: Annotated[
        bool,
        typer.Option(
            "--no-sync", help="Return before the target is durable, as cp and qemu-img do."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a disk as a new one of another type, leaving out zeros."""
    with progress_bar("convert", as_json) as progress:
        copies.convert(
            source,
            target,
            to,
            source_format=format,
            grain_bytes=None if grain is None else parse_size(grain),
            adapter=adapter,
            allow_root=allow_root,
            compress_level=compress_level,
            sync=not no_sync,
            progress=progress,
        )
    found = disks.info(target, format="raw" if to == "raw" else None)
    if as_json:
        print_json(found)
    else:
        allocated = format_size(found["allocated_bytes"])
        typer.echo(f"{target}: {to}, {format_size(found['size_bytes'])}, {allocated} allocated")


def run_compare(
    a: Annotated[str, typer.Argument(metavar="A")],
    b: Annotated[str, typer.Argument(metavar="B")],
    a_format: Annotated[
        str | None, typer.Option("--a-format", help="raw, where A is a raw disk.")
    ] = None,
    b_format: Annotated[
        str | None, typer.Option("--b-format", help="raw, where B is a raw disk.")
    ] = None,
    allow_root: AllowRoot = None,
    as_json: AsJson = False,
) -> None:
    """Compare what two disks show. Exit code 1 where they differ."""
    with progress_bar("compare", as_json) as progress:
        found = copies.compare(
            a, b, a_format=a_format, b_format=b_format, allow_root=allow_root, progress=progress
        )
    if as_json:
        print_json({"equal": found.equal, "offset": found.offset_bytes, "reason": found.reason})
    elif found.equal:
        typer.echo("equal")
    elif found.reason == "size":
        typer.echo(f"equal up to byte {found.offset_bytes}, where one of them ends")
    else:
        typer.echo(f"they differ, first at byte {found.offset_bytes}")
    if not found.equal:
        raise typer.Exit(1)


def run_commit(
    child: Annotated[str, typer.Argument(metavar="CHILD", help="A disk that has a parent.")],
    allow_root: AllowRoot = None,
    as_json: AsJson = False,
) -> None:
    """Merge a child into its parent. The child stays, and reads the same."""
    with progress_bar("commit", as_json) as progress:
        parent = copies.commit(child, allow_root=allow_root, progress=progress)
    if as_json:
        print_json({"child": str(Path(child).absolute()), "parent": str(Path(parent).absolute())})
    else:
        typer.echo(f"{child} is merged into {parent}")


def run_serve(
    file: File,
    socket: Annotated[Path, typer.Option(metavar="PATH", help="Unix socket to make, mode 0600.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse writes.")] = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Take writes, and forget them at the end.")
    ] = False,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the export; by default the default one.")
    ] = "",
    scratch: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Where a snapshot's writes go until the end."),
    ] = None,
    format: Format = None,
    allow_root: AllowRoot = None,
    as_json: AsJson = False,
) -> None:
    """Serve a disk over NBD until SIGINT or SIGTERM; then flush and close it."""
    from ..export import Export, serve

    if read_only and snapshot:
        raise UsageError("a disk is served read-only or as a snapshot", "leave one of them out")
    ends = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # the server's threads inherit it
    try:
        if snapshot:
            opened = disks.open_snapshot(
                file, scratch_dir=scratch, format=format, allow_root=allow_root
            )
        else:
            opened = disks.open_disk(
                file, writable=not read_only, format=format, allow_root=allow_root
            )
        with opened as disk:
            written = False
            try:
                export = Export(name, disk.native, read_only=read_only)
                with serve([export], socket=socket) as server:
                    written = True
                    _tell(file, server.uri, name, disk.size_bytes, read_only, snapshot, as_json)
                    signal.sigwait(ends)
                stats = server.stats()
                written = any(stats[key] for key in ("writes", "zeroes", "trims"))
            finally:
                if not written:
                    disk.unwritten()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(
    file: str, uri: str, name: str, size: int, read_only: bool, snapshot: bool, as_json: bool
) -> None:
    if as_json:
        place = {"uri": uri, "name": name, "size_bytes": size}
        print_json({**place, "read_only": read_only, "snapshot": snapshot})
    else:
        typer.echo(f"{file} at {uri}")
    sys.stdout.flush()  # somebody waits for it

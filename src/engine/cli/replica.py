"""rollpoint replica …"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import timers
from ..errors import UsageError
from ..manifest import Retention
from ..replica import Replica, list_replicas
from ..units import format_duration, format_size, parse_duration, parse_size
from .browse import browse
from .output import disk_progress, print_json, print_table, printable
from .rehearse import rehearse
from .resync import resync
from .verify import verify

Directory = Annotated[str, typer.Argument(metavar="DIR", help="The replica's directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Window = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="How far back every moment can be had, as in 4h; to 30d."),
]
JournalLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Of all journals together; 0: no limit.")
]
AtLimit = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help="shorten: older points go. refuse: writes get ENOSPC."),
]
Every = Annotated[
    str | None, typer.Option(metavar="TIME", help="A long-term point so often; 0s: none.")
]
Keep = Annotated[str | None, typer.Option(metavar="TIME", help="How long those are kept.")]
Grain = Annotated[
    str, typer.Option(metavar="SIZE", help="The least that the journals log: 4K to 64K.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Make, look at and remove replicas.", no_args_is_help=True)
    for command in (create, adopt, seed, show, verify, remove):
        group.command(command.__name__)(command)
    group.command("set")(set_retention)
    group.command("list")(list_all)
    group.command("resync")(resync)
    group.command("browse")(browse)
    group.command("rehearse")(rehearse)
    app.add_typer(group, name="replica")


def pairs(options: list[str], what: str, option: str = "--disk") -> list[tuple[str, str]]:
    """NAME=VALUE options as pairs.

    Args:
        option: How it is called.

    Raises:
        UsageError: One has no "=", or nothing on a side of it, or a name comes twice.
    """
    made = []
    for given in options:
        name, found, value = given.partition("=")
        if not (name and found and value):
            raise UsageError(
                f"{option} {given!r} is not NAME={what}", f"as in {option} root={what}"
            )
        made.append((name, value))
    if len({name for name, _ in made}) != len(made):
        raise UsageError("a disk is named twice", f"give every {option} its own name")
    return made


def _retention(
    window: str | None,
    journal_limit: str | None,
    at_limit: str | None,
    every: str | None,
    keep: str | None,
) -> dict[str, Any]:
    """Settings of manifest.Retention that the options say.

    Raises:
        UsageError: One of them is no duration, no size, or no policy.
    """
    settings: dict[str, Any] = {}
    for name, text in (("window", window), ("every", every), ("keep", keep)):
        if text is not None:
            settings[f"{name}_seconds"] = parse_duration(text)
    if journal_limit is not None:
        settings["limit_bytes"] = parse_size(journal_limit)
    if at_limit is not None:
        if at_limit not in ("shorten", "refuse"):
            raise UsageError(f"--at-limit {at_limit!r} is not a policy", "take shorten or refuse")
        settings["at_limit"] = at_limit
    return settings


def create(
    directory: Directory,
    disk: Annotated[
        list[str], typer.Option(metavar="NAME=SIZE", help="For every disk, as in system=40G.")
    ],
    grain: Grain = "4K",
    window: Window = None,
    journal_limit: JournalLimit = None,
    at_limit: AtLimit = None,
    every: Every = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Make a replica with empty disks, in a directory that is missing or empty."""
    sizes = [(name, parse_size(size)) for name, size in pairs(disk, "SIZE")]
    retention = Retention(**_retention(window, journal_limit, at_limit, every, keep))
    with Replica.create(
        directory, sizes, grain_bytes=parse_size(grain), retention=retention
    ) as replica:
        _show(replica, as_json)


def adopt(
    directory: Directory,
    disk: Annotated[
        list[str], typer.Option(metavar="NAME=FILE", help="For every disk: a VMDK that is in DIR.")
    ],
    grain: Grain = "4K",
    window: Window = None,
    journal_limit: JournalLimit = None,
    at_limit: AtLimit = None,
    every: Every = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Make a replica of VMDKs that are in its directory."""
    files = dict(pairs(disk, "FILE"))
    retention = Retention(**_retention(window, journal_limit, at_limit, every, keep))
    with Replica.adopt(
        directory, files, grain_bytes=parse_size(grain), retention=retention
    ) as replica:
        _show(replica, as_json)


def seed(
    directory: Directory,
    disk: Annotated[
        list[str],
        typer.Option(metavar="NAME=FILE", help="A .vmdk; by any other name it is read as raw."),
    ],
    as_json: AsJson = False,
) -> None:
    """Copy first images into the bases, before anything was journaled."""
    with Replica.open(directory) as replica:
        with disk_progress("seed", as_json) as tell:
            replica.seed(dict(pairs(disk, "FILE")), tell)
        _show(replica, as_json)


def set_retention(
    directory: Directory,
    window: Window = None,
    journal_limit: JournalLimit = None,
    at_limit: AtLimit = None,
    every: Every = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Change how long restore points are kept. A running ingest takes it up."""
    settings = _retention(window, journal_limit, at_limit, every, keep)
    if not settings:
        raise UsageError("nothing to set", "give --window, --journal-limit, --at-limit or --every")
    with Replica.open(directory) as replica:
        replica.set_retention(**settings)
        _show(replica, as_json)


def show(directory: Directory, as_json: AsJson = False) -> None:
    """Show a replica: its disks, state, what it keeps, and its operations."""
    with Replica.open(directory) as replica:
        _show(replica, as_json)


def _show(replica: Replica, as_json: bool) -> None:
    timer = timers.show(replica.directory, replica.manifest)
    facts = {**replica.show(), "timer": timer}
    if as_json:
        print_json(facts)
        return
    manifest = replica.manifest
    typer.echo(f"replica {manifest.name} ({manifest.id})")
    held = ", on hold" if manifest.held else ""
    typer.echo(f"state   {manifest.state}{held}, epoch {manifest.epoch}")
    for disk in manifest.disks:
        journal = f", journal {disk.journal}" if disk.journal else ""
        size = format_size(disk.size_bytes)
        typer.echo(f"disk    {disk.name}: {size}, base {disk.base}{journal}")
    if manifest.state != "Permanent":
        _show_kept(facts)
    if manifest.ingest is not None:
        error = f", failed: {manifest.ingest.error}" if manifest.ingest.error else ""
        typer.echo(f"ingest  process {manifest.ingest.pid} at {manifest.ingest.socket}{error}")
    if manifest.recovered is not None:
        typer.echo(f"runs as of restore point {manifest.recovered.point}")
    if timer is not None:
        typer.echo(f"timer   {timers.sentence(timer)}")
    _show_tests(facts["tests"])
    _show_rehearsal(facts["rehearsal"])
    if manifest.operation is not None:
        operation = manifest.operation
        why = f": {operation.error}" if operation.error else ""
        typer.echo(f"open    {operation.kind}, begun {operation.started}{why}")
    elif manifest.history:
        last = manifest.history[-1]
        why = f": {last.error}" if last.error else ""
        typer.echo(f"last    {last.kind}, begun {last.started}, {last.outcome}{why}")


def _show_tests(tests: Any) -> None:
    """Test failovers that are there."""
    for test in tests:
        state = "lost: its disks' process is gone" if test["lost"] else test["state"]
        typer.echo(
            f"test    {test['id']}: {state}, restore point {test['point']}, network "
            f"{printable(test['network'])}, begun {test['started']}"
        )


def _show_rehearsal(found: Any) -> None:
    """Whether a failover would come through, when that was tried."""
    if found is None:
        return
    if "point" not in found:
        typer.echo(f"tried   {printable(found['error'])}")
        return
    came = "would come through" if found["ok"] else f"WOULD FAIL: {printable(found['error'])}"
    typer.echo(
        f"tried   {found['time']}, restore point {found['point']}, {found['seconds']:.1f} s: {came}"
    )
    for warning in (found["converted"] or {}).get("warnings", []):
        typer.echo(f"        warning {printable(warning)}")


def _show_kept(facts: dict[str, Any]) -> None:
    """What is kept and used, and how late it is."""
    keep, rpo = facts["retention"], facts["rpo"]
    asked, kept = format_duration(keep["window_seconds"]), keep["kept_seconds"]
    oldest = keep["oldest"]
    what = (
        f"{format_duration(kept)} kept, from restore point {oldest['id']}, {oldest['time']}"
        if oldest
        else "no restore point yet"
    )
    typer.echo(f"window  {asked} asked, {what}")
    limit = f" of {format_size(keep['limit_bytes'])}" if keep["limit_bytes"] else ", no limit"
    used = format_size(keep["used_bytes"])
    typer.echo(f"journal {used}{limit}; at the limit: {keep['at_limit']}")
    if keep["every_seconds"] or keep["long_term"]:
        every, kept = format_duration(keep["every_seconds"]), keep["keep_seconds"]
        long = f"{kept / 86400:g} d" if kept >= 86400 else format_duration(kept)
        typer.echo(f"long    every {every}, kept for {long}: {keep['long_term']} now")
    if rpo is not None and rpo["target_seconds"] is not None:
        lag = rpo["lag_seconds"]
        late = "no point yet" if lag is None else f"the newest point is {format_duration(lag)} old"
        target = format_duration(rpo["target_seconds"])
        typer.echo(f"RPO     {target} asked, {late}, missed {rpo['missed']} times")
    for warning in keep["warnings"]:
        typer.echo(f"warning {warning}")
    if facts["error"]:
        typer.echo(f"error   {facts['error']}")


def list_all(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A directory of replicas.")],
    as_json: AsJson = False,
) -> None:
    """List the replicas directly under a directory."""
    found = list_replicas(directory)
    if as_json:
        print_json({"replicas": found})
        return
    print_table(
        ("name", "state", "disks", "size"),
        [
            (
                str(row["name"]),
                str(row["state"] or row["error"]),
                str(row["disks"] or ""),
                format_size(row["size_bytes"]) if isinstance(row["size_bytes"], int) else "",
            )
            for row in found
        ],
    )


def remove(
    directory: Directory,
    force: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The replica's name: remove it whatever its state is."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove a replica. Adopted bases, and those of a Permanent one, stay."""
    with Replica.open(directory) as replica:
        kept = replica.remove(force)
        if as_json:
            print_json({"removed": replica.name, "kept": [replica.file(name) for name in kept]})
        else:
            typer.echo(f"removed {replica.name}" + (f"; kept {', '.join(kept)}" if kept else ""))

"""What is noted in a machine's annotation, so that any process knows what was done to it.

One line of words for people, one line of JSON; what stands there besides is left alone.

Source: our own; docs/vsphere.md, "The note".
"""

from __future__ import annotations

import msgspec

from ..errors import HypervisorError
from ..structs import prepared

WORDS = "Rollpoint: "
NOTE = "rollpoint-note: "
VERSION = 1


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a disk hangs: the family of its controller (scsi, ide, sata, nvme), bus, unit."""

    family: str
    bus: int
    unit: int


class Former(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk that the machine had. kind: of its controller, to make it again."""

    place: Place
    file: str
    mode: str = "persistent"
    kind: str = ""


class FormerCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network card as it was: its key, its network (name or "dvportgroup:KEY"), its wire."""

    key: int
    network: str
    connected: bool
    start_connected: bool


@prepared
class Note(msgspec.Struct, kw_only=True):
    """What was done to a machine.

    Attributes:
        machine: The id that it is known by here.
        operation, replica, point: That started it last.
        made: It was registered by us, and is forgotten when it is let go.
        former: The disks that it had; None: none were taken from it.
        cards: Its network cards as they were before they were changed.
        isolated: Its wires were pulled out by isolate.
    """

    version: int = VERSION
    machine: str
    operation: str = ""
    replica: str = ""
    point: int | None = None
    made: bool = False
    former: list[Former] | None = None
    cards: list[FormerCard] = []
    isolated: bool = False

    @property
    def is_idle(self) -> bool:
        """Nothing of ours is left on the machine."""
        return not self.made and self.former is None and not self.cards and not self.isolated


def read(annotation: str, machine: str) -> Note | None:
    """The note in an annotation; None: there is none.

    Args:
        machine: Its name, for messages.

    Raises:
        HypervisorError: There is one that cannot be read: nothing may be guessed then.
    """
    for line in annotation.splitlines():
        if line.startswith(NOTE):
            try:
                note = msgspec.json.decode(line.removeprefix(NOTE), type=Note)
                if note.version != VERSION:
                    raise ValueError(f"version {note.version} is not known")
            except (msgspec.DecodeError, ValueError) as error:
                raise HypervisorError(
                    f"the line {NOTE.strip()!r} in the notes of machine {machine} is damaged:"
                    f" {error}",
                    "mend it from the server's events, or give the machine its disks back by hand"
                    " and remove the line",
                ) from None
            return note
    return None


def others(annotation: str) -> str:
    """What others wrote."""
    lines = [line for line in annotation.splitlines() if not line.startswith((NOTE, WORDS))]
    return "\n".join(lines).rstrip("\n")


def write(annotation: str, note: Note) -> str:
    """The annotation with this note in place of the one that it has."""
    lines = [others(annotation)] if others(annotation) else []
    lines.append(WORDS + _words(note))
    if not note.is_idle:
        lines.append(NOTE + msgspec.json.encode(note).decode())
    return "\n".join(lines)


def _words(note: Note) -> str:
    what = f"replica {note.replica or note.machine}"
    if note.point is not None:
        what += f", restore point {note.point}"
    if note.operation:
        what += f", operation {note.operation}"
    what = " ".join(what.split())
    if note.former is not None or note.made:
        return f"{what}. Leave its disks and the next line as they are until it is let go."
    return f"{what}. It has its own disks."

"""What is known of a machine of QEMU while it does not run: machine.json in its directory.

It is written before the power-on call, so that whatever runs has its record. A crash in
between leaves a record of a machine that is off, which asking for its state tells.
"""

from __future__ import annotations

import os
from dataclasses import replace

import msgspec

from .._native import Io
from ..errors import HypervisorError, NotFoundError
from ..structs import prepared
from .base import Machine

FILE_NAME = "machine.json"


@prepared
class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A machine and what became of it.

    Args:
        made: start made it, so let_go forgets it. One that was known before is kept.
        former: What it was before start gave it other disks; let_go gives that back.
        isolated: Its cards have no wire, whatever the machine says.
        halted: We made it stand still for a moment, and it has to go on.
    """

    machine: Machine
    made: bool = True
    former: Machine | None = None
    isolated: bool = False
    halted: bool = False

    def as_started(self) -> Machine:
        """The machine as QEMU gets it."""
        if not self.isolated:
            return self.machine
        cards = tuple(replace(card, network="none") for card in self.machine.cards)
        return replace(self.machine, cards=cards)


def load(directory: str) -> Record | None:
    """The record in a machine's directory; None when there is none.

    Raises:
        HypervisorError: It is there and cannot be read.
    """
    path = os.path.join(directory, FILE_NAME)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise HypervisorError(f"{path} cannot be read: {error}", "remove it") from error


def store(directory: str, record: Record) -> None:
    """Replace the record, durably."""
    place = Io.posix().open_dir(directory)
    try:
        place.replace(FILE_NAME, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    finally:
        place.close()


def forget(directory: str) -> None:
    """Take the record away, durably."""
    place = Io.posix().open_dir(directory)
    try:
        place.unlink(FILE_NAME)
        place.sync()
    except NotFoundError:
        pass
    finally:
        place.close()


def lent(machine: Machine, known: Record | None) -> Record:
    """The record of a machine that start is asked for, given what is known of it."""
    if known is None or known.made:
        return Record(machine=machine)
    former = known.former
    if former is None and known.machine.drives != machine.drives:
        former = known.machine
    return Record(machine=machine, made=False, former=former)


def given_back(known: Record) -> Record | None:
    """The record after let_go; None: the machine is forgotten."""
    if known.made:
        return None
    return msgspec.structs.replace(known, machine=known.former or known.machine, former=None)

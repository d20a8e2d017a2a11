"""python plan_command.py FOLDER plan run ...: the command line, with the machines that
plan_world.py keeps in FOLDER; a machine does not start while FOLDER/NAME.broken is there."""

from __future__ import annotations

import sys
from pathlib import Path

from plan_world import Power
from rollpoint.cli import main
from rollpoint.plans import running


def run(folder: Path, words: list[str]) -> None:
    """The command, in this process; it exits."""

    def trouble(name: str) -> str:
        return "no memory is left" if (folder / f"{name}.broken").exists() else ""

    power, settings = Power(folder, trouble), running.settings

    def with_power(state: str = "", database: str = "") -> running.Settings:
        return settings(state, database)._replace(hypervisors=power)

    running.settings = with_power
    main(words)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])

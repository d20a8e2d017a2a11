"""The command line. Commands live in the modules beside this one.

Only the module of the command that was asked for is imported: a failover's
time counts from the moment the operator presses return.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
from importlib import import_module
from typing import Any

import typer

from ..errors import Error, StorageError, UsageError, system_error
from .output import report_error

# What the parser raises: a missing argument, an unknown option. (typer does not name it.)
_MISUSE: Any = typer.BadParameter.__mro__[2]

# command or group -> module of this package whose `register(app)` adds it
COMMANDS = {
    "demo": "demo",
    "disk": "disk",
    "replica": "replica",
    "ingest": "ingest",
    "mark": "ingest",
    "hold": "ingest",
    "release": "ingest",
    "points": "points",
    "point": "point",
    "failover": "failover",
    "undo": "failover",
    "permanent": "failover",
    "resume": "failover",
    "timer": "timer",
    "audit": "audit",
    "failback": "failback",
    "bench": "bench",
    "metrics": "metrics",
    "worker": "worker",
    "plan": "plan",
}


def build(arguments: list[str]) -> typer.Typer:
    """The application with the command that arguments name, or with all of them."""
    app = typer.Typer(
        name="rollpoint",
        help="Fail a protected machine over to its replica, at any restore point.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    @app.callback(invoke_without_command=True)
    def _root(
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    ) -> None:
        if version:
            from importlib.metadata import version as installed

            typer.echo(f"rollpoint {installed('rollpoint')}")
            raise typer.Exit

    wanted = next((word for word in arguments if not word.startswith("-")), None)
    modules = [COMMANDS[wanted]] if wanted in COMMANDS else list(dict.fromkeys(COMMANDS.values()))
    for module in modules:
        import_module(f".{module}", __name__).register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with 0 (done), 1 (failed) or 2 (misuse)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _fill_standard_files()
    _allow_many_files()
    as_json = "--json" in arguments
    try:
        code = build(arguments)(args=arguments, prog_name="rollpoint", standalone_mode=False)
        sys.stdout.flush()
    except Error as error:
        code = report_error(error, as_json=as_json)
    except _MISUSE as error:
        code = _report_misuse(error, as_json)
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        code = 1
    except OSError as error:
        code = report_error(_as_error(error), as_json=as_json)
    except MemoryError as error:
        why = str(error) or "memory could not be allocated"
        code = report_error(
            StorageError(why, "end other programs, or raise the limit of memory (ulimit -v)"),
            as_json=as_json,
        )
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _fill_standard_files() -> None:
    """Where standard input, output or error is closed, a disk must not get its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _allow_many_files() -> None:
    """A split disk of 2 TiB is a thousand files, as many as the usual soft limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _report_misuse(error: Any, as_json: bool) -> int:
    """What the parser refuses: a missing argument, an unknown option, a bad number."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return 2
    command = error.ctx.command_path if error.ctx is not None else "rollpoint"
    message = " ".join(error.format_message().split())
    misuse = UsageError(message, f"{command} --help tells what it takes")
    return report_error(misuse, as_json=as_json)


def _as_error(error: OSError) -> Error:
    """An error of the system that no room foresaw."""
    doing = f"working on {error.filename}" if error.filename else "running the command"
    if error.errno == errno.ENOSPC and not error.filename:  # disks name theirs
        doing = "writing to standard output"
        _drop_output()
    return system_error(doing, error.errno or 0)


def _drop_output() -> None:
    """What is left in the buffer goes nowhere: Python would try, and complain, at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

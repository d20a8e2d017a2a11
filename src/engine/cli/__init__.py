"""The command line. Commands live in the modules beside this one.

Only the module of the command that was asked for is imported: a failover's
time counts from the moment the operator presses return.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from ..errors import Error, UsageError
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
    "points": "replica",
    "failover": "failover",
    "undo": "failover",
    "permanent": "failover",
    "resume": "failover",
    "bench": "bench",
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
    try:
        code = build(arguments)(args=arguments, prog_name="rollpoint", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Error as error:
        sys.exit(report_error(error, as_json="--json" in arguments))
    except typer.Abort:
        sys.exit(130)
    except _MISUSE as error:
        if "--json" in arguments:
            sys.exit(report_error(UsageError(error.format_message()), as_json=True))
        error.show()
        sys.exit(2)
    except OSError as error:
        from ..errors import StorageError

        where = f": {error.filename}" if error.filename else ""
        wrapped = StorageError(f"{error.strerror or error}{where}", "", error.errno or 0)
        sys.exit(report_error(wrapped, as_json="--json" in arguments))
    except KeyboardInterrupt:
        sys.exit(130)

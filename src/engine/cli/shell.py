"""The commands that `replica browse` and `disk mount` ask for."""

from __future__ import annotations

import cmd
import re
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import typer

from ..errors import Error, NotFoundError, UsageError
from ..units import printable
from .output import report_error

if TYPE_CHECKING:
    from ..browse import Browser

_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|n|t|r)")


class Session(Protocol):
    """What carries the commands out, and prints."""

    def overview(self) -> None: ...
    def volumes(self) -> None: ...
    def list(self, path: str) -> None: ...
    def cat(self, path: str) -> None: ...
    def get(self, path: str, target: str) -> None: ...


class Shell(cmd.Cmd):
    """Commands on a terminal, or one a line from a pipe: there the first error ends it."""

    prompt = "> "
    doc_header = "Commands (help NAME tells more; 'in quotes' a name may have \\x1b and the like):"

    def __init__(self, session: Session, browser: Browser) -> None:
        self._typed = sys.stdin.isatty()
        super().__init__()
        self.use_rawinput = self._typed
        if not self._typed:
            self.prompt = ""
        self._session = session
        self._browser = browser
        self._here = "/"

    def run(self) -> None:
        if self._typed:
            self._session.overview()
            typer.echo("help lists the commands; exit, or end of file, ends")
        self.cmdloop()

    def onecmd(self, line: str) -> bool:
        """One line. An error on a terminal is printed, and the next line is asked for."""
        try:
            return bool(super().onecmd(line))
        except Error as error:
            if not self._typed:
                raise
            report_error(error, as_json=False)
            return False
        except KeyboardInterrupt:
            if not self._typed:
                raise
            typer.echo("")
            return False

    def emptyline(self) -> bool:
        return False

    def default(self, line: str) -> None:
        word = line.split()[0]
        raise UsageError(f"there is no command {printable(word)!r}", "help lists them")

    def _words(self, line: str, least: int, most: int) -> list[str]:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"{printable(line)!r}: {error}", "close the quotes") from None
        if not least <= len(words) <= most:
            raise UsageError(f"it takes {least} to {most} words, not {len(words)}", "see help")
        return words

    def _path(self, text: str) -> str:
        """A path as it was typed: from where we are, ".." and escapes understood."""
        path = join(self._here, text)
        escaped = join(self._here, unescaped(text))
        if path != escaped and self._browser.tree.stat(path, follow=False) is None:
            return escaped
        return path

    def do_ls(self, line: str) -> None:
        """ls [PATH]: list a directory."""
        words = self._words(line, 0, 1)
        self._session.list(self._path(words[0]) if words else self._here)

    def do_cd(self, line: str) -> None:
        """cd [PATH]: go to a directory."""
        words = self._words(line, 0, 1)
        path = self._path(words[0]) if words else "/"
        if not self._browser.tree.is_directory(path):
            raise NotFoundError(f"there is no directory {printable(path)}", "list with ls")
        self._here = self._browser.tree.real(path)

    def do_pwd(self, line: str) -> None:
        """pwd: where we are."""
        self._words(line, 0, 0)
        typer.echo(printable(self._here))

    def do_cat(self, line: str) -> None:
        """cat PATH: print a file."""
        self._session.cat(self._path(self._words(line, 1, 1)[0]))

    def do_get(self, line: str) -> None:
        """get PATH [TARGET]: copy a file or directory to this host; links as they are."""
        words = self._words(line, 1, 2)
        self._session.get(self._path(words[0]), words[1] if len(words) > 1 else ".")

    def do_volumes(self, line: str) -> None:
        """volumes: what lies on the disks."""
        self._words(line, 0, 0)
        self._session.volumes()

    def do_info(self, line: str) -> None:
        """info: what is being looked at."""
        self._words(line, 0, 0)
        self._session.overview()

    def do_exit(self, line: str) -> bool:
        """exit: end."""
        self._words(line, 0, 0)
        return True

    def do_EOF(self, line: str) -> bool:
        """End of file ends it too."""
        if self._typed:
            typer.echo("")
        return True

    do_quit: Callable[[Shell, str], bool] = do_exit


def join(here: str, text: str) -> str:
    """A path from where we are; "." and ".." are of the text, never of links."""
    parts = [] if text.startswith("/") else [part for part in here.split("/") if part]
    for part in text.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def unescaped(text: str) -> str:
    """A name as `printable` prints it, back."""
    return _ESCAPE.sub(
        lambda match: {"n": "\n", "t": "\t", "r": "\r"}.get(match[1]) or chr(int(match[1][1:], 16)),
        text,
    )

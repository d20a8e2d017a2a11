"""Passwords and tokens, from where the operator keeps them: a variable, a file, or a keyring.

A secret is read when it is needed and kept nowhere. What stands for one prints as "***",
so that no message, log or traceback shows it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from .errors import NotFoundError, ToolMissingError, UsageError, system_error

LIMIT_BYTES = 64 << 10


class Secret:
    """A text that is shown to nobody but who asks for it by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a secret is not stored")


@dataclass(frozen=True)
class SecretPlace:
    """Where a secret is kept: exactly one of them.

    Args:
        variable: Of the environment.
        file: Of mode 0600 or less; the newline at its end is no part of the secret.
        keyring: Name of the service in the user's keyring; user: whose it is there.
        what: It is, for messages: "the password of admin at vc.example".
        settings: Names of the settings that say these, for messages.
    """

    what: str
    variable: str = ""
    file: str = ""
    keyring: str = ""
    user: str = ""
    settings: tuple[str, ...] = ("password_env", "password_file", "keyring")

    def read(self) -> Secret:
        """The secret, as it is there now.

        Raises:
            UsageError: None, or more than one place is named; others can read the file.
            NotFoundError: It is not there.
            ToolMissingError: The keyring library is not installed.
        """
        named = [place for place in (self.variable, self.file, self.keyring) if place]
        if len(named) != 1:
            raise UsageError(
                f"it has to be said once where {self.what} is kept",
                f"set one of {', '.join(self.settings)}",
            )
        if self.variable:
            text = os.environ.get(self.variable, "")
            where = f"the variable {self.variable}"
        elif self.file:
            text, where = _of_file(self.file), self.file
        else:
            text, where = self._of_keyring(), f"the keyring's service {self.keyring}"
        if not text:
            raise NotFoundError(f"{self.what} is not in {where}", "put it there")
        return Secret(text)

    def _of_keyring(self) -> str:
        try:
            import keyring
            from keyring.errors import KeyringError
        except ImportError:
            raise ToolMissingError(
                f"{self.what} is in a keyring, and the keyring library is not installed",
                "pip install 'rollpoint[keyring]'",
            ) from None
        try:
            return keyring.get_password(self.keyring, self.user) or ""
        except KeyringError as error:
            # Its words only: what it holds is not ours to tell.
            raise NotFoundError(
                f"{self.what} cannot be read from the keyring: {type(error).__name__}",
                "unlock the keyring, or keep it in a file of mode 0600",
            ) from None


def _of_file(path: str) -> str:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise system_error(f"opening {path}, which holds a secret", error.errno or 0) from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise UsageError(f"{path} is no file", "give the file that holds the secret")
        if facts.st_mode & 0o077:
            raise UsageError(
                f"{path} holds a secret, and others may read it (mode {facts.st_mode & 0o777:04o})",
                f"chmod 600 {path}",
            )
        if facts.st_uid not in (0, os.geteuid()):
            raise UsageError(
                f"{path} holds a secret, and belongs to another user ({facts.st_uid})",
                "chown it to the user that runs this",
            )
        data = os.read(handle, LIMIT_BYTES)
    finally:
        os.close(handle)
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text", "write the secret as text") from None

"""Which way into a volume is taken: the first one of those allowed that serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import GuestError, ToolMissingError, UnsupportedError
from ..volumes.base import Volume
from .base import Backend, FileSystem, Lacking, Mode, close_all

Wish = Literal["auto", "files", "appliance", "host"]
ORDER: tuple[Mode, ...] = ("files", "appliance", "host")  # the host's kernel when nothing else is
# What files mode refuses here (a Windows that hibernates, a log that cannot be replayed) the
# same driver in the appliance would open all the same, and throw the log away.
ONE_DRIVER = ("ntfs",)


class Ways:
    """All ways into the volumes of a mount. A backend of backends.

    Nothing is launched before it is needed.

    Args:
        socket_path: Of the mount's exports.
        volumes: All that were found.
        disks: Names of the exports that are whole disks, in the machine's order.
        mode: One way for everything; auto takes for each volume the first that serves it:
            one whose driver refuses it (a feature it does not know) is tried by the next.
        trust_guest: Allows this host's kernel to mount what the guest wrote.
        warm: Socket of an appliance that was launched ahead; None without one.

    Raises:
        UnsupportedError: mode is host, without trust_guest.
    """

    def __init__(
        self,
        socket_path: str,
        volumes: Sequence[Volume],
        disks: Sequence[str],
        *,
        mode: Wish = "auto",
        trust_guest: bool = False,
        warm: str | None = None,
    ) -> None:
        if mode == "host" and not trust_guest:
            raise UnsupportedError(
                "mount.mode is host, and the guest is not trusted: this host's kernel would "
                "parse what the guest wrote",
                "set trust_guest = true in [mount] of replica.toml, or take mode auto",
            )
        self._place = (socket_path, tuple(volumes), tuple(disks), warm)
        self._allowed = tuple(
            way for way in ORDER if mode in ("auto", way) and (way != "host" or trust_guest)
        )
        self._backends: dict[Mode, Backend] = {}
        self._used: list[Mode] = []

    @property
    def mode_used(self) -> str:
        """What was opened, by which ways: "files", "files and appliance"."""
        return " and ".join(way for way in ORDER if way in self._used)

    @property
    def launch_seconds(self) -> float:
        """How long was waited for an appliance's launch; 0.0 without one."""
        return float(getattr(self._backends.get("appliance"), "waited_seconds", 0.0))

    def open(self, volume: Volume, *, writable: bool, subvolume: str = "") -> FileSystem:
        """Mount a volume.

        Raises:
            UnsupportedError, ToolMissingError: No way serves it; each one's reason.
            GuestError: The file system's drivers refused it.
        """
        reasons, lacking, refused = [], False, False
        hint = ""
        for way in self._allowed:
            backend = self._backend(way)
            reason = backend.refusal(volume)
            if reason:
                lacking = lacking or isinstance(reason, Lacking)
            else:
                try:
                    opened = backend.open(volume, writable=writable, subvolume=subvolume)
                except GuestError as error:
                    if volume.kind in ONE_DRIVER:
                        raise
                    reason, hint, refused = error.message, error.hint, True
                else:
                    self._used.append(way)
                    return opened
            reasons.append(f"{way}: {reason}")
        kind = GuestError if refused else ToolMissingError if lacking else UnsupportedError
        raise kind(
            f"volume {volume.name} ({volume.kind}) cannot be opened. " + "; ".join(reasons),
            "install what is named" if lacking else hint,
        )

    def _backend(self, way: Mode) -> Backend:
        if way not in self._backends:
            self._backends[way] = self._make(way)
        return self._backends[way]

    def _make(self, way: Mode) -> Backend:
        socket_path, volumes, disks, warm = self._place
        if way == "files":
            from .files import Files

            return Files(socket_path)
        if way == "host":
            from .host import Host

            return Host(socket_path, trust_guest=True)
        from .appliance import Appliance

        return Appliance(socket_path, volumes, disks, warm)

    def close(self) -> None:
        """Close every way; the first error is raised when all are closed."""
        close_all(self._backends.values())

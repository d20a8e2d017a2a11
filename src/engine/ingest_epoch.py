"""An ingest learns from the manifest that replication is held, or released.

Who holds replication raises the epoch in the manifest before anything else, and then
tells the ingest over its control socket. From another host that socket cannot be
reached, and where a call got lost nobody may ask again. So the manifest is looked at
here: a newer epoch there that nobody told of is a hold. The ingest then fences itself
as if told, which frees the journals' locks for whoever waits for them, and takes the
journals again when the manifest says that replication was released.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import manifest as manifests
from . import replication
from .errors import Error, LockedError
from .manifest import Manifest

if TYPE_CHECKING:
    from .intake import Intake

LOOK_SECONDS = 0.5
GRACE_SECONDS = 1.0  # for who is on this host, and tells the ingest over its socket


class EpochWatch:
    """Looks at the manifest for one ingest. Called by its loop.

    Args:
        intake: What is held and released.
        announce: Puts the ingest into the manifest, inside `locked`; the caller saves.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        intake: Intake,
        announce: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._intake = intake
        self._announce = announce
        self._clock = clock
        self._looked = clock()
        self._since: float | None = None  # when it was first seen that something is due
        self._data = b""
        self._manifest: Manifest | None = None

    def look(self) -> None:
        """Hold, or go on, where the manifest has said so for GRACE_SECONDS.

        Raises:
            Error: It could not: that ends the ingest.
        """
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        self._read()
        if not self._is_due():
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since < GRACE_SECONDS:
            return
        self._since = None
        if self._intake.journals is not None:
            self._hold()
        else:
            self._go_on()

    def _read(self) -> None:
        """What cannot be read now is read later: a holder waits for our locks meanwhile."""
        directory = self._intake.replica.directory
        with contextlib.suppress(Error):
            data = directory.read(manifests.FILE_NAME, manifests.LIMIT_BYTES)
            if data != self._data:
                self._manifest = manifests.decode(data, f"{directory.path}/{manifests.FILE_NAME}")
                self._data = data

    def _is_due(self) -> bool:
        found, intake = self._manifest, self._intake
        if found is None:
            return False
        if intake.journals is not None:
            return found.epoch > intake.epoch
        return _is_released(found)

    def _hold(self) -> None:
        found, intake = self._manifest, self._intake
        assert found is not None
        intake.hold(found.epoch, told=False)
        intake.warn(
            f"epoch {found.epoch} is in the manifest, and this ingest had an older one: "
            "replication is on hold"
        )

    def _go_on(self) -> None:
        intake = self._intake
        replica = intake.replica
        with contextlib.suppress(LockedError), replica.locked() as manifest:
            if not _is_released(manifest):
                return
            # Another ingest may have been here meanwhile, and may not have ended in order.
            with replica.journals(writable=True) as journals:
                replication.reconcile(replica, journals.held)
                replication.note_unclean_end(replica, journals)
            if manifest.held:
                return
            intake.write_notes()  # of before the hold
            self._announce()  # before the first write: an end without a word is a gap
            replica.save()
            intake.release(manifest.epoch)
            intake.warn("replication was released: it goes on")


def _is_released(manifest: Manifest) -> bool:
    return manifest.state == "Ready" and manifest.operation is None and not manifest.held

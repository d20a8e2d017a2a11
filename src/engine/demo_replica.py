"""The replica's side of the demo: Rollpoint's own command line, and eyes on its disks.

Every command runs in a process of its own, as an operator's would. What the disks hold
is read with qemu-img as well, which shares no code with us.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from . import config, control, errors
from .disk import open_disk
from .errors import Error, HypervisorError, StorageError, VerificationError
from .hypervisor.qemu import Qemu
from .manifest import CONTROL_NAME

COMMAND_SECONDS_MAX = 60.0
PIECE_BYTES = 1 << 20


class ReplicaSide:
    """A replica, its ingest, and the machine that it becomes.

    Args:
        workspace: Gets the replica and copies of its disks.
    """

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace
        self.path = os.path.join(workspace, "replica")
        self.control_path = os.path.join(self.path, CONTROL_NAME)
        # In a directory of its own, as a socket's path may have no more than 107 bytes.
        self._sockets = tempfile.mkdtemp(prefix="rollpoint-demo-")
        self.socket_path = os.path.join(self._sockets, "n.sock")
        self._ingest: subprocess.Popen[bytes] | None = None
        self.hypervisor = Qemu(os.path.join(self.path, "run"))

    def rollpoint(self, *words: str) -> dict[str, Any]:
        """Run one command to its end and return what it printed.

        Raises:
            Error: It failed; the same error that it told.
        """
        command = [sys.executable, "-m", "rollpoint", *words, "--json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX
            )
        except subprocess.TimeoutExpired:
            raise StorageError(
                f"rollpoint {words[0]} did not end in {COMMAND_SECONDS_MAX:g} s"
            ) from None
        if done.returncode != 0:
            raise _told_error(words[0], done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def configure(self, text: str) -> None:
        """What replica.toml says."""
        with open(os.path.join(self.path, config.FILE_NAME), "w", encoding="utf-8") as file:
            file.write(text)

    def start_ingest(self, rpo: str) -> None:
        """Serve the exports; returns when they answer."""
        with open(os.path.join(self._workspace, "ingest.log"), "wb") as log:
            command = [sys.executable, "-m", "rollpoint", "ingest", self.path]
            self._ingest = subprocess.Popen(
                [*command, "--socket", self.socket_path, "--rpo", rpo, "--json"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + COMMAND_SECONDS_MAX
        while True:
            with contextlib.suppress(control.NotRunningError):
                control.ask(self.control_path, "status")
                return
            if self._ingest.poll() is not None or time.monotonic() >= deadline:
                with open(os.path.join(self._workspace, "ingest.log")) as log:
                    raise _told_error("ingest", log.read())
            time.sleep(0.01)

    def kill_ingest(self) -> None:
        """End it as a crash would."""
        assert self._ingest is not None
        self._ingest.kill()
        self._ingest.wait()

    def ingest_ended(self) -> int | None:
        """Its exit code, when it has ended or does so within a moment."""
        assert self._ingest is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._ingest.wait(COMMAND_SECONDS_MAX)
        return None

    def machine(self) -> str:
        """The id of the machine that was powered on here.

        Raises:
            HypervisorError: There is none, or more than one.
        """
        folder = os.path.join(self.path, "run")
        places = os.scandir(folder) if os.path.isdir(folder) else ()
        names = [place.name for place in places if place.is_dir()]
        if len(names) != 1:
            raise HypervisorError(f"{folder} has the files of {len(names)} machines")
        return names[0]

    def freeze(self) -> None:
        """Stop the replica's guest between two instructions."""
        with self.hypervisor.qmp(self.machine()) as qmp:
            qmp.execute("stop")

    def interims(self) -> dict[str, str]:
        """Where its overlays are, while it is failed over."""
        return {disk["name"]: disk["interim"] for disk in self._show()["disks"]}

    def bases(self) -> dict[str, str]:
        """Where its base disks are."""
        return {disk["name"]: disk["base"] for disk in self._show()["disks"]}

    def state(self) -> str:
        """The replica's state."""
        return str(self._show()["state"])

    def digests(self) -> dict[str, str]:
        """A digest of every file of the bases."""
        made = {}
        for name in os.listdir(self.path):
            if name.endswith(".vmdk") and "-journal" not in name and "-interim" not in name:
                with open(os.path.join(self.path, name), "rb") as file:
                    made[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return made

    def overlays(self) -> list[str]:
        """Names of the overlays' files."""
        return [name for name in os.listdir(self.path) if "-interim" in name]

    def images_by_qemu(self, disks: Mapping[str, str], label: str) -> dict[str, str]:
        """Raw copies of VMDKs, read by qemu-img, also while QEMU has them open.

        Raises:
            VerificationError: qemu-img cannot read one.
        """
        images = {}
        for name, path in disks.items():
            images[name] = os.path.join(self._workspace, f"{label}-{name}.raw")
            done = subprocess.run(
                ["qemu-img", "convert", "-U", "-f", "vmdk", "-O", "raw", path, images[name]],
                capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX,
            )  # fmt: skip
            if done.returncode != 0:
                raise VerificationError(f"qemu-img cannot read {path}: {done.stderr.strip()}")
        return images

    def images_by_us(self, disks: Mapping[str, str], label: str) -> dict[str, str]:
        """Raw copies of VMDKs, read by Rollpoint."""
        images = {}
        for name, path in disks.items():
            images[name] = os.path.join(self._workspace, f"{label}-{name}.raw")
            with open_disk(path) as disk, open(images[name], "wb") as file:
                for offset in range(0, disk.size_bytes, PIECE_BYTES):
                    length = min(PIECE_BYTES, disk.size_bytes - offset)
                    file.write(disk.pread(length, offset))
        return images

    def close(self) -> None:
        """End what runs, whatever state it is in."""
        folder = os.path.join(self.path, "run")
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            self.hypervisor.kill(name)
        if self._ingest is not None and self._ingest.poll() is None:
            self._ingest.send_signal(signal.SIGTERM)
            try:
                self._ingest.wait(10)
            except subprocess.TimeoutExpired:
                self._ingest.kill()
                self._ingest.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _show(self) -> dict[str, Any]:
        return self.rollpoint("replica", "show", self.path)


def _told_error(command: str, text: str) -> Error:
    """The error that a command printed as JSON, as what it was."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(line)["error"]
            kind = getattr(errors, body["type"], Error)
            message = f"rollpoint {command}: {body['message']}"
            if isinstance(kind, type) and issubclass(kind, Error):
                return kind(message, body["hint"])
            return Error(message, body["hint"])
    return StorageError(f"rollpoint {command} failed: {text.strip()[-1000:]}")

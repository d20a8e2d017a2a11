"""QEMU's control protocol with a synchronous face, over the qemu.qmp library.

The library is asynchronous; its loop runs in one thread for each connection, so that
events are taken in while the caller does something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Coroutine
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from ..errors import HypervisorError


class Qmp:
    """One connection to a running QEMU.

    Args:
        directory: Directory of the control socket. The socket is reached through the
            directory's handle, as a socket's path may have no more than 107 bytes.
        name: File name of the socket.
        timeout_seconds: For the connection and for each command.

    Raises:
        HypervisorError: QEMU does not answer.
    """

    def __init__(self, directory: str, name: str, timeout_seconds: float = 10.0) -> None:
        try:
            handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HypervisorError(
                f"QEMU does not answer: {directory}: {(error.strerror or str(error)).lower()}"
            ) from error
        self._client: Any = QMPClient("rollpoint")
        self._timeout_seconds = timeout_seconds
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self._run(self._client.connect(f"/proc/self/fd/{handle}/{name}"), "connect")
            self._pump = asyncio.run_coroutine_threadsafe(self._take_events(), self._loop)
        except BaseException:
            self._stop_loop()
            raise
        finally:
            os.close(handle)

    def execute(self, command: str, **arguments: object) -> Any:
        """Run one command and return its result. Underscores stand for dashes in names.

        Raises:
            HypervisorError: QEMU refused it, is gone, or did not answer in time.
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._run(self._client.execute(command, named or None), command)

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """The next event not taken yet, or None when the time is over."""
        try:
            return self.events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    @property
    def connected(self) -> bool:
        """False once QEMU has gone away."""
        return not self._loop.is_closed() and self._client.runstate == Runstate.RUNNING

    def close(self) -> None:
        """Leave QEMU as it is and end the connection. May be called again."""
        if self._loop.is_closed():
            return
        self._pump.cancel()
        with contextlib.suppress(HypervisorError):
            self._run(self._client.disconnect(), "disconnect")
        self._stop_loop()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _take_events(self) -> None:
        async for event in self._client.events:
            self.events.put(dict(event))

    def _run(self, work: Coroutine[Any, Any, Any], what: str) -> Any:
        if self._loop.is_closed():
            work.close()
            raise HypervisorError(f"the QMP connection is closed, {what!r} was not sent")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._timeout_seconds)
        except ExecuteError as error:
            raise HypervisorError(f"QEMU refused {what!r}: {error}") from error
        except TimeoutError:
            future.cancel()
            raise HypervisorError(
                f"QEMU did not answer {what!r} within {self._timeout_seconds:g} s"
            ) from None
        except (QMPError, OSError, EOFError) as error:
            raise HypervisorError(f"QEMU went away during {what!r}: {error}") from error

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

"""Pages looked at in a real browser: headless Chromium, through its DevTools pipe.

Whatever it asks of a network goes to a proxy that notes it and refuses.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socketserver
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tools import require_tool

TIMEOUT_SECONDS = 60
WIDTH, HEIGHT = 1100, 900

# What Chromium would do of its own: nothing of that is the page's.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--remote-debugging-pipe", "--disable-background-networking", "--disable-component-update",
    "--disable-default-apps", "--disable-domain-reliability", "--disable-extensions",
    "--disable-sync", "--allow-browser-signin=false", "--incognito",
    "--metrics-recording-only", "--no-default-browser-check",
    "--disable-client-side-phishing-detection", "--disable-dev-shm-usage", "--no-pings",
    "--force-device-scale-factor=1", "--force-color-profile=srgb",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,Translate,MediaRouter,AutofillServerCommunication",
)  # fmt: skip

# What it asks for all the same, whatever it shows; refused like all else.
OWN = re.compile(r"\S+ (https?://)?(accounts\.google\.com|clients2\.google\.com|"
                 r"update\.googleapis\.com)[:/]")  # fmt: skip


class Picture(NamedTuple):
    """A PNG, decoded: 8 bits for each of three or four channels."""

    width: int
    height: int
    channels: int
    rows: list[bytearray]

    def at(self, x: float, y: float) -> tuple[int, int, int]:
        start = int(x) * self.channels
        red, green, blue = self.rows[int(y)][start : start + 3]
        return red, green, blue

    def colours(self) -> set[bytes]:
        size = self.channels
        return {
            bytes(row[i : i + 3])
            for row in self.rows
            for i in range(0, len(row), size)
        }


def decode(data: bytes) -> Picture:
    """Source: PNG (Portable Network Graphics) Specification, second edition, 9.2 and 11.2."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    offset = 8
    while offset < len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        name = data[offset + 4 : offset + 8]
        body = data[offset + 8 : offset + 8 + size]
        (crc,) = struct.unpack_from(">I", data, offset + 8 + size)
        assert crc == zlib.crc32(name + body)
        chunks[name] = chunks.get(name, b"") + body
        offset += 12 + size
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, interlaced) == (8, 0)
    channels = {2: 3, 6: 4}[kind]
    raw = zlib.decompress(chunks[b"IDAT"])
    stride = width * channels
    rows: list[bytearray] = []
    above = bytearray(stride)
    for number in range(height):
        start = number * (stride + 1)
        above = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], above, channels)
        rows.append(above)
    return Picture(width, height, channels, rows)


def _unfiltered(how: int, row: bytes, above: bytearray, back: int) -> bytearray:
    out = bytearray(row)
    if how == 1:
        for i in range(back, len(out)):
            out[i] = (out[i] + out[i - back]) & 255
    elif how == 2:
        out = bytearray((a + b) & 255 for a, b in zip(row, above, strict=True))
    elif how in (3, 4):
        for i, value in enumerate(row):
            left = out[i - back] if i >= back else 0
            if how == 3:
                out[i] = (value + (left + above[i]) // 2) & 255
            else:
                corner = above[i - back] if i >= back else 0
                out[i] = (value + _paeth(left, above[i], corner)) & 255
    else:
        assert how == 0
    return out


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    by_left, by_up, by_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if by_left <= by_up and by_left <= by_corner:
        return left
    return up if by_up <= by_corner else corner


class _Proxy(socketserver.ThreadingTCPServer):
    """Notes what it is asked for, and refuses it."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Refuse)


class _Refuse(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Proxy)
        self.server.asked.append(self.rfile.readline(4096).decode(errors="replace").strip())
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 502 refused\r\nContent-Length: 0\r\n\r\n")


class Browser:
    """One process; each page is a tab of its own."""

    def __init__(self) -> None:
        program = require_tool("chromium")
        self._home = tempfile.mkdtemp(prefix="rollpoint-browser-")
        self._proxy = _Proxy()
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self._number = 0
        self._left = b""
        self.events: list[dict[str, Any]] = []
        self._pid = self._spawn(program)

    @property
    def asked(self) -> list[str]:
        """First lines of all requests that left it for a network, but for its own."""
        return [line for line in self._proxy.asked if not OWN.match(line)]

    def _spawn(self, program: str) -> int:
        theirs_in, self._out = (_high(fd) for fd in os.pipe())
        self._in, theirs_out = (_high(fd) for fd in os.pipe())
        log = _high(os.open(f"{self._home}/log", os.O_WRONLY | os.O_CREAT, 0o600))
        port = self._proxy.server_address[1]
        arguments = [
            program, *QUIET, f"--user-data-dir={self._home}/profile",
            f"--proxy-server=http://127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>",
            "about:blank",
        ]  # fmt: skip
        moves = [(theirs_in, 3), (theirs_out, 4), (log, 1), (log, 2)]
        pid = os.posix_spawn(
            program,
            arguments,
            {**os.environ, "HOME": self._home},
            file_actions=[(os.POSIX_SPAWN_DUP2, *move) for move in moves],
            setpgroup=0,
        )
        for fd in (theirs_in, theirs_out, log):
            os.close(fd)
        return pid

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._proxy.shutdown()
        self._proxy.server_close()
        shutil.rmtree(self._home, ignore_errors=True)

    # ---- the protocol: JSON, each message ended by a zero ----

    def call(self, method: str, session: str = "", **params: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            got = self.read(deadline)
            if got.get("id") == self._number:
                assert "error" not in got, (method, got)
                result: dict[str, Any] = got["result"]
                return result
            self.events.append(got)

    def read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the browser does not answer: {self._log()}"
            got = os.read(self._in, 1 << 20)
            assert got, f"the browser has ended: {self._log()}"
            self._left += got
        first, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def _log(self) -> str:
        return Path(self._home, "log").read_text(errors="replace")[-2000:]

    @contextlib.contextmanager
    def page(
        self, path: Path, *, dark: bool = False, width: int = WIDTH, media: str = ""
    ) -> Iterator[Page]:
        """A page that was loaded from a file, with all that it said and asked for meanwhile."""
        self._proxy.asked.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        shown = Page(self, session)
        try:
            shown.load(path, dark=dark, width=width, media=media)
            yield shown
        finally:
            self.call("Target.closeTarget", targetId=target)


class Page:
    """A tab. `says`: errors and warnings of its console; `requests`: all that it asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **params: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def load(self, path: Path, *, dark: bool, width: int, media: str) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=HEIGHT, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while "Page.loadEventFired" not in {event["method"] for event in self._mine()}:
            self._browser.events.append(self._browser.read(deadline))
        # Two frames: all that is drawn was drawn, and what it says was said.
        self.measure("new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))")

    def _mine(self) -> list[dict[str, Any]]:
        return [
            event for event in self._browser.events if event.get("sessionId") == self._session
        ]

    @property
    def says(self) -> list[str]:
        found = []
        for event in self._mine():
            method, params = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] != "verbose":
                found.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled":
                found.append(json.dumps(params["args"]))
        return found

    @property
    def requests(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self._mine()
            if event["method"] == "Network.requestWillBeSent"
        ]

    def measure(self, expression: str) -> Any:
        """What a JavaScript expression is, in the page as it is shown."""
        got = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def shot(self, x: float, y: float, width: float, height: float) -> Picture:
        """A part of the page as a picture, wherever it is."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        got = self.call(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        return decode(base64.b64decode(got["data"]))


def _high(fd: int) -> int:
    """The same descriptor at a number that nothing is moved to."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
    os.close(fd)
    return moved

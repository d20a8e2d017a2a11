"""The control socket of a running ingest: one JSON document a line, each answered by one.

Whatever needs the ingest of a replica, or wants to know how it is, reaches it through
`<replica>/.control.sock` (mode 0600, same user or root only). A request
is {"command": NAME, ...}; an answer {"ok": {...}} or {"error": {"type", "message",
"hint"}}, which `ask` raises again as the class it was. What commands there are is
told in ingest_answers.py.

A Unix socket's address holds 108 bytes; a replica's path may be longer. So the
socket is always named through an open directory, /proc/self/fd/N/.control.sock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import struct
from collections.abc import Callable, Iterator

from . import errors
from .closing import Closing
from .errors import Error, LockedError, NotFoundError, StorageError

LINE_BYTES_MAX = 64 << 10
CLIENTS_MAX = 32
ANSWER_SECONDS = 60.0  # a hold waits for writes in flight
STATUS_SECONDS = 5.0

class NotAnsweringError(StorageError):
    """Somebody listens, and did not answer in time: it may hang, and may not."""

    code = "not-answering"


Handler = Callable[[dict[str, object]], dict[str, object]]


class NotRunningError(Error):
    """No ingest answers in that directory. Never shown: callers act on it."""

    code = "not-running"


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """A name for path, in an existing directory, that fits any socket address."""
    folder, name = os.path.split(os.path.abspath(path))
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{name}"
    finally:
        os.close(handle)


def listen(path: str, backlog: int = 64) -> socket.socket:
    """A listening Unix socket at path, mode 0600. One that nobody answers is replaced.

    Raises:
        LockedError: A process listens there.
        ExistsError: Something else than a socket is there.
        NotFoundError, StorageError: The directory is missing, or refuses.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as place:
            _clear_stale(place, path)
            # It gets its name last: who sees it can connect.
            early = f"{place}.{os.getpid()}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(early)
            listener.bind(early)
            os.chmod(early, 0o600)
            listener.listen(backlog)
            os.rename(early, place)
        listener.setblocking(False)
    except Error:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        if error.errno == errno.ENOENT:
            raise NotFoundError(
                f"cannot listen on {path}: its directory is not there", "make it first"
            ) from None
        raise StorageError(
            f"{error.strerror}: cannot listen on {path}",
            "check who owns its directory and what mode it has",
            error.errno or 0,
        ) from error
    return listener


def _clear_stale(place: str, path: str) -> None:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(place)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        if not os.path.lexists(place) or not _is_socket(place):
            raise errors.ExistsError(
                f"{path} is there, and is not a socket", "choose another path"
            ) from None
        os.unlink(place)
        return
    except OSError:
        return  # let bind say what is wrong
    finally:
        probe.close()
    raise LockedError(f"a process listens on {path} already", "stop it, or choose another path")


def _is_socket(place: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.lstat(place).st_mode)


class Connection(Closing):
    """A connection to the ingest at this control socket. One request at a time.

    Raises:
        NotRunningError: Nobody listens.
    """

    def __init__(self, path: str, timeout_seconds: float = ANSWER_SECONDS) -> None:
        self._path = path
        self._command = "a connection"
        self._timeout_seconds = timeout_seconds
        self._client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._client.settimeout(timeout_seconds)
        try:
            with self._failures(), short_path(path) as place:
                self._client.connect(place)
        except BaseException:
            self._client.close()
            raise

    def send(self, command: str, **values: object) -> None:
        """Send one request.

        Raises:
            NotRunningError: It has died.
        """
        self._command = command
        request = json.dumps({"command": command, **values}).encode() + b"\n"
        with self._failures():
            self._client.sendall(request)

    def receive(self) -> dict[str, object]:
        """The answer to it.

        Raises:
            NotRunningError: It died before it answered.
            NotAnsweringError: It did not answer in time.
            Error: What it answered with, as the class it was there.
        """
        data = b""
        with self._failures():
            while not data.endswith(b"\n"):
                piece = self._client.recv(65536)
                if not piece:
                    break
                data += piece
        if not data.endswith(b"\n"):
            raise NotRunningError(
                f"the ingest at {self._path} ended before it answered {self._command}"
            )
        answer = json.loads(data)
        if "error" in answer:
            raise to_error(answer["error"])
        ok: dict[str, object] = answer["ok"]
        return ok

    def wait_at_most(self, timeout_seconds: float) -> None:
        """How long each answer is waited for from now on."""
        self._timeout_seconds = timeout_seconds
        self._client.settimeout(timeout_seconds)

    def close(self) -> None:
        """Let it go. May be called twice."""
        self._client.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise NotAnsweringError(
                f"the ingest at {self._path} did not answer {self._command} "
                f"in {self._timeout_seconds:g} s",
                "see what it waits for: its storage may hang",
            ) from None
        except (FileNotFoundError, ConnectionError, NotADirectoryError) as error:
            raise NotRunningError(f"no ingest answers at {self._path}: {error}") from None


def ask(
    path: str, command: str, timeout_seconds: float = ANSWER_SECONDS, **values: object
) -> dict[str, object]:
    """Send one request to the ingest at this control socket and return its answer.

    Raises:
        NotRunningError: Nobody listens, or it died before it answered.
        NotAnsweringError: It did not answer in time.
        Error: What the ingest answered with, as the class it was there.
    """
    with Connection(path, timeout_seconds) as connection:
        connection.send(command, **values)
        return connection.receive()


def to_error(body: dict[str, str]) -> Error:
    """What error_body made, as the class that it was."""
    kind = getattr(errors, body.get("type", ""), Error)
    if not (isinstance(kind, type) and issubclass(kind, Error)):
        kind = Error
    return kind(body.get("message", ""), body.get("hint", ""))


def whole(request: dict[str, object], key: str) -> int:
    """A number from 1 in a request.

    Raises:
        UsageError: It is missing, or something else.
    """
    value = request.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise errors.UsageError(f"{key} must be a whole number from 1, not {value!r}")
    return value


def error_body(error: Error) -> dict[str, str]:
    """An error as it crosses the socket, and as --json prints it."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.to_send = b""
        self.finished = False  # nothing more is read: close once all is sent


class ControlServer:
    """Answers control clients inside the caller's selector loop. One thread.

    Args:
        path: Of the socket. It is made here and removed by close().
        selector: Gets the sockets; for keys whose data is this server call `ready`.
        handler: Called with each request; returns the answer or raises Error.
    """

    def __init__(
        self, path: str, selector: selectors.BaseSelector, handler: Handler
    ) -> None:
        self._path = path
        self._selector = selector
        self._handler = handler
        self._clients: dict[int, _Client] = {}
        self._listener = listen(path)
        selector.register(self._listener, selectors.EVENT_READ, self)

    def ready(self, key: selectors.SelectorKey, mask: int) -> None:
        """Serve one socket that the selector found ready."""
        if key.fd == self._listener.fileno():
            self._accept()
            return
        client = self._clients.get(key.fd)
        if client is None:
            return
        try:
            if mask & selectors.EVENT_READ:
                self._receive(client)
            self._send(client)
        except OSError:
            self._drop(client)

    def close(self) -> None:
        """Say what can be said at once, close all connections, remove the socket."""
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.connection.send(client.to_send)
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError), short_path(self._path) as place:
            os.unlink(place)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        _, user, _ = struct.unpack("3i", credentials)
        if user not in (0, os.geteuid()) or len(self._clients) >= CLIENTS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ, self)

    def _receive(self, client: _Client) -> None:
        piece = client.connection.recv(LINE_BYTES_MAX)
        if not piece:
            client.finished = True
            return
        client.received += piece
        while b"\n" in client.received and not client.finished:
            line, client.received = client.received.split(b"\n", 1)
            client.to_send += json.dumps(self._answer(line)).encode() + b"\n"
        if max(len(client.received), len(client.to_send)) > LINE_BYTES_MAX:
            client.finished = True  # a line without end, or a client that never reads

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("command"), str):
                raise errors.UsageError("a request is {'command': NAME, ...} on one line")
            return {"ok": self._handler(request)}
        except (ValueError, RecursionError) as error:
            if isinstance(error, Error):
                return {"error": error_body(error)}
            return {"error": error_body(errors.UsageError(f"a request is not JSON: {error}"))}
        except Error as error:
            return {"error": error_body(error)}

    def _send(self, client: _Client) -> None:
        if client.to_send:
            try:
                sent = client.connection.send(client.to_send)
            except BlockingIOError:
                sent = 0
            client.to_send = client.to_send[sent:]
        if client.to_send:
            self._selector.modify(
                client.connection, selectors.EVENT_READ | selectors.EVENT_WRITE, self
            )
        elif client.finished:
            self._drop(client)
        else:
            self._selector.modify(client.connection, selectors.EVENT_READ, self)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.connection.fileno(), None) is not None:
            self._selector.unregister(client.connection)
            client.connection.close()

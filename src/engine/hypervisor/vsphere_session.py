"""A session with vCenter or an ESXi host: TLS, login, its renewal, questions, tasks.

Questions are asked again when the connection broke. Calls with an effect are not: they
raise LostError, and whoever made them looks at what has become of it. A session that has
expired is renewed under both, as the server did nothing then.
"""

from __future__ import annotations

import http.client
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pyVmomi import SoapStubAdapter, vim, vmodl
from pyVmomi.VmomiSupport import GetServiceVersions, versionIdMap

from ..errors import HypervisorError
from . import vsphere_faults as faults
from .vsphere_faults import LostError
from .vsphere_server import Server, tls_context

VERSIONS_LIMIT_BYTES = 1 << 20
WATCH_SECONDS = 10  # of one question whether something has changed
ASK_TRIES = 3
LOST_SECONDS = 0.2  # between two looks at a server that is not there
LOGOUT_SECONDS = 5
_Collector = vmodl.query.PropertyCollector

T = TypeVar("T")
Clock = Callable[[], float]


class Session:
    """One login. Nothing is connected before the first call.

    Args:
        clock: Seconds, monotonic; for everything that waits.
    """

    def __init__(self, server: Server, clock: Clock = time.monotonic) -> None:
        self.server = server
        self.clock = clock
        self._tls = tls_context(server)
        self._lock = threading.RLock()
        self._content: Any = None
        self._end: Callable[[], object] | None = None

    @property
    def content(self) -> Any:
        """The server's managers, after a login."""
        with self._lock:
            if self._content is None:
                self._content = self._connect()
                self._end = weakref.finalize(self, _log_out, self._content)
            return self._content

    def ask(self, doing: str, call: Callable[[Any], T]) -> T:
        """A call without an effect: made again when no answer comes.

        Args:
            doing: What, as in "looking for the machine".
            call: Gets the server's managers.

        Raises:
            HypervisorError: The server refused, or cannot be reached.
        """
        for _ in range(ASK_TRIES - 1):
            try:
                return self.tell(doing, call)
            except LostError:
                continue
        return self.tell(doing, call)

    def tell(self, doing: str, call: Callable[[Any], T]) -> T:
        """A call with an effect: made once, and again only when the session had expired.

        Raises:
            LostError: No answer came.
            HypervisorError: The server refused; its fault is the cause.
        """
        try:
            content = self.content
            stale = content.sessionManager._stub.cookie
            try:
                return call(content)
            except vim.fault.NotAuthenticated:
                self._renew(content, stale)
                return call(content)
        except Exception as error:
            if faults.is_lost(error):
                raise faults.lost(error, doing, str(self.server)) from error
            if faults.is_fault(error):
                raise faults.explain(error, doing, str(self.server)) from error
            raise

    def close(self) -> None:
        """Log out: also done when nobody has the session any more, and at exit."""
        with self._lock:
            self._content = None
            if self._end is not None:
                self._end()
                self._end = None

    def properties(self, objects: Sequence[Any], paths: Sequence[str]) -> list[dict[str, Any]]:
        """Properties of objects of one type, in their order. What is unset is not in them."""
        if not objects:
            return []
        spec = _Collector.FilterSpec(
            objectSet=[_Collector.ObjectSpec(obj=each) for each in objects],
            propSet=[_Collector.PropertySpec(type=type(objects[0]), pathSet=list(paths))],
        )
        read = self._whole(lambda: list(self._retrieve(spec)))
        found = {key._moId: values for key, values in read}
        return [found.get(each._moId, {}) for each in objects]

    def inventory(self, kind: Any, paths: Sequence[str], root: Any = None) -> list[_Found]:
        """All objects of a type below a folder, each with these of its properties."""
        return self._whole(lambda: self._seen(kind, paths, root))

    def watch(
        self,
        target: Any,
        paths: Sequence[str],
        is_done: Callable[[dict[str, Any]], bool],
        timeout_seconds: float,
    ) -> tuple[dict[str, Any], bool]:
        """Wait until an object's properties are as wanted; returns the last ones, and whether.

        A session or a connection that ends meanwhile is renewed.

        Raises:
            HypervisorError: The object is gone, or the server for the whole time.
        """
        deadline = self.clock() + timeout_seconds
        values: dict[str, Any] = {}
        while True:
            try:
                for values in self._changes(target, paths, deadline):
                    if is_done(values):
                        return values, True
                return values, False
            except HypervisorError as error:
                left = deadline - self.clock()
                if not self._is_stale(error) or left <= 0:
                    raise
                if isinstance(error, LostError):  # a server that is down refuses at once
                    time.sleep(min(LOST_SECONDS, left))

    def finish(self, task: Any, doing: str, timeout_seconds: float) -> Any:
        """Wait for a task to end; returns its result.

        Its properties are read one by one: task.info itself cannot be decoded where the
        task's entity is a FileManager (pyvmomi 9.1).

        Raises:
            LostError: It goes on after that time.
            HypervisorError: It failed; its fault is the cause.
        """
        state, ended = self.watch(
            task,
            ("info.state", "info.error", "info.result"),
            lambda values: values.get("info.state") in ("success", "error"),
            timeout_seconds,
        )
        if not ended:
            raise LostError(
                f"{self.server} has not ended {doing} in {timeout_seconds:g} s",
                "look at its tasks, then try again: what is done is not done twice",
            )
        if state["info.state"] == "error":
            fault = state.get("info.error") or vmodl.RuntimeFault()
            raise faults.explain(fault, doing, str(self.server)) from fault
        return state.get("info.result")

    def _changes(
        self, target: Any, paths: Sequence[str], deadline: float
    ) -> Iterator[dict[str, Any]]:
        """The object's properties, now and after each change, until the deadline."""
        collector = self.ask(
            "watching", lambda content: content.propertyCollector.CreatePropertyCollector()
        )
        try:
            spec = _Collector.FilterSpec(
                objectSet=[_Collector.ObjectSpec(obj=target)],
                propSet=[_Collector.PropertySpec(type=type(target), pathSet=list(paths))],
            )
            self._bound(lambda: collector.CreateFilter(spec, True))
            values: dict[str, Any] = {}
            version = ""
            while True:
                left = min(deadline - self.clock(), self.server.timeout_seconds / 2, WATCH_SECONDS)
                wait = _Collector.WaitOptions(maxWaitSeconds=max(0, -int(-left // 1)))
                update = self._bound(lambda: collector.WaitForUpdatesEx(version, wait))  # noqa: B023
                if update is not None:
                    version = update.version
                    for change in _changes_in(update):
                        values[change.name] = change.val
                    yield values
                if self.clock() >= deadline:
                    return
        finally:
            _forget(collector.DestroyPropertyCollector)

    def _bound(self, call: Callable[[], T]) -> T:
        """A call that belongs to this session: a renewed one does not know the collector."""
        try:
            return call()
        except Exception as error:
            if faults.is_lost(error):
                raise faults.lost(error, "asking", str(self.server)) from error
            if faults.is_fault(error):
                raise faults.explain(error, "asking", str(self.server)) from error
            raise

    def _seen(self, kind: Any, paths: Sequence[str], root: Any) -> list[_Found]:
        view = self.ask(
            "looking through the inventory",
            lambda content: content.viewManager.CreateContainerView(
                root or content.rootFolder, [kind], True
            ),
        )
        try:
            walk = _Collector.TraversalSpec(
                name="all", type=vim.view.ContainerView, path="view", skip=False
            )
            spec = _Collector.FilterSpec(
                objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
                propSet=[_Collector.PropertySpec(type=kind, pathSet=list(paths))],
            )
            return list(self._retrieve(spec))
        finally:
            _forget(view.DestroyView)

    def _retrieve(self, spec: Any) -> Iterator[_Found]:
        collector = self.content.propertyCollector
        page = self._bound(
            lambda: collector.RetrievePropertiesEx([spec], _Collector.RetrieveOptions())
        )
        while page is not None:
            for each in page.objects:
                _require_session(each, str(self.server))
                yield each.obj, {property.name: property.val for property in each.propSet}
            token = page.token
            page = token and self._bound(
                lambda: collector.ContinueRetrievePropertiesEx(token)  # noqa: B023
            )

    def _whole(self, read: Callable[[], T]) -> T:
        """Calls that belong to one session, from the first one again when it has ended."""
        for _ in range(ASK_TRIES - 1):
            stale = self.ask("logging in", lambda content: content.sessionManager._stub.cookie)
            try:
                return read()
            except HypervisorError as error:
                if not self._is_stale(error):
                    raise
                if not isinstance(error, LostError):
                    self.tell("logging in", lambda content: self._renew(content, stale))  # noqa: B023
        return read()

    def _is_stale(self, error: HypervisorError) -> bool:
        """Whether the connection or the session has ended, and not the object that was asked."""
        cause = error.__cause__
        if cause is None or isinstance(error, LostError):
            return isinstance(error, LostError)
        if faults.is_a(cause, "ManagedObjectNotFound"):
            gone = getattr(cause, "obj", None)
            return isinstance(gone, vim.view.View | _Collector)
        return faults.is_a(cause, "NotAuthenticated")

    def _connect(self) -> Any:
        stub = SoapStubAdapter(
            host=f"[{self.server.name}]" if ":" in self.server.name else self.server.name,
            port=self.server.port,
            path="/sdk",
            version=self._version(),
            sslContext=self._tls,
            httpConnectionTimeout=self.server.timeout_seconds,
        )
        try:
            content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
            self._log_in(content)
        except BaseException:
            stub.DropConnections()
            raise
        return content

    def _renew(self, content: Any, stale: str) -> None:
        """A new session in place of one that has expired, unless another thread has made it."""
        with self._lock:
            stub = content.sessionManager._stub
            if stub.cookie == stale:
                stub.SetSessionId("")
                self._log_in(content)

    def _log_in(self, content: Any) -> None:
        password = self.server.password.read()
        content.sessionManager.Login(self.server.user, password.reveal(), None)

    def _version(self) -> str:
        """The newest version of the API that both sides know."""
        import xml.etree.ElementTree as ElementTree

        connection = http.client.HTTPSConnection(
            self.server.name,
            self.server.port,
            timeout=self.server.timeout_seconds,
            context=self._tls,
        )
        try:
            connection.request("GET", "/sdk/vimServiceVersions.xml")
            answer = connection.getresponse()
            text = answer.read(VERSIONS_LIMIT_BYTES)
        finally:
            connection.close()
        try:
            known = {each.text for each in ElementTree.fromstring(text).iter("version")}
        except ElementTree.ParseError:
            known = set()
        for version in GetServiceVersions("vim25"):
            if versionIdMap[version] and versionIdMap[version] in known:
                return str(version)
        raise HypervisorError(
            f"{self.server} does not speak vSphere's API: it answered {answer.status}",
            "check server and port",
        )


_Found = tuple[Any, dict[str, Any]]


def _changes_in(update: Any) -> Iterator[Any]:
    for filter_update in update.filterSet:
        for each in filter_update.objectSet:
            if each.kind == "leave":
                fault = vmodl.fault.ManagedObjectNotFound(obj=each.obj)
                raise faults.explain(fault, "watching", "the server") from fault
            _require_session(each, "the server")
            yield from each.changeSet


def _require_session(seen: Any, server: str) -> None:
    """Properties that are missing since the session has ended are not said to have no value.

    Raises:
        HypervisorError: The session has ended.
    """
    for missing in seen.missingSet or ():
        if faults.is_a(missing.fault, "NotAuthenticated"):
            raise faults.explain(missing.fault, "asking", server) from missing.fault


def _forget(call: Callable[[], Any]) -> None:
    """What the server drops by itself at the end of the session."""
    try:
        call()
    except Exception as error:
        if not faults.is_lost(error) and not faults.is_fault(error):
            raise


def _log_out(content: Any) -> None:
    stub = content.sessionManager._stub
    stub.DropConnections()
    stub.schemeArgs["timeout"] = LOGOUT_SECONDS  # a server that hangs does not hold up our end
    _forget(content.sessionManager.Logout)
    stub.DropConnections()

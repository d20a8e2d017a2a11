"""Between a client and the simulator: answers some calls itself, and drops connections.

It ends TLS with the server's own certificate. A rule is for one method of the API, and is
used once; calls without a rule pass.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vcenter import VCenter

# before: the server never sees it. after: it does, and its answer is lost. half: a part of
# the answer comes. silent: no answer comes, and the connection stays. missing: what the server
# says of powers is missing from its answer.
Action = Literal[
    "cut before", "cut after", "cut half", "silent", "fault", "task fault", "answer", "missing"
]

_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"><soapenv:Body>{}</soapenv:Body>'
    "</soapenv:Envelope>"
)
_POWER = re.compile(rb"<propSet><name>runtime.powerState</name>.*?</propSet>", re.DOTALL)
_MISSING = (
    '<missingSet><path>runtime.powerState</path><fault><fault xsi:type="{}">{}</fault>'
    "<localizedMessage/></fault></missingSet>"
)
# A change that every machine refuses, as a task.
_REFUSED = (
    '<ReconfigVM_Task xmlns="urn:vim25"><_this type="VirtualMachine">{}</_this><spec>'
    '<deviceChange><operation>add</operation><device xsi:type="VirtualDisk"><key>-1</key>'
    '<backing xsi:type="VirtualDiskFlatVer2BackingInfo"><fileName>[LocalDS_0] none/none.vmdk'
    "</fileName><diskMode>persistent</diskMode></backing><controllerKey>1000</controllerKey>"
    "<unitNumber>14</unitNumber><capacityInKB>0</capacityInKB></device></deviceChange></spec>"
    "</ReconfigVM_Task>"
)


class Rule(NamedTuple):
    """What becomes of the next call of a method. xml: the fault's inside, or the answer."""

    method: str
    action: Action
    name: str = ""
    xml: str = ""


class Proxy:
    """Listens on 127.0.0.1. calls: the methods that reached the server, in their order."""

    def __init__(self, vcenter: VCenter) -> None:
        self.vcenter = vcenter
        self.rules: list[Rule] = []
        self.calls: list[str] = []
        self.pending: list[Rule] = []  # faults of tasks that are under way
        self.lock = threading.Lock()
        self.ended = threading.Event()
        proxy = self

        class Handler(_Handler):
            world = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates = vcenter.certificates
        self.context = ssl.create_default_context(cafile=str(certificates.ca))
        context.load_cert_chain(certificates.certificate, certificates.key)
        self._server.context = context
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def add(self, method: str, action: Action, name: str = "", xml: str = "") -> None:
        with self.lock:
            self.rules.append(Rule(method, action, name, xml))

    def take(self, method: str) -> Rule | None:
        with self.lock:
            for rule in self.rules:
                if rule.method == method:
                    self.rules.remove(rule)
                    return rule
        return None

    def accompany(self, body: bytes) -> None:
        """The simulator wants a -flat file beside each disk's descriptor: ESXi does not."""
        for store, file in re.findall(rb"<fileName>\[(\w+)\] ([^<]*)\.vmdk</fileName>", body):
            folder = Path(self.vcenter.datastores[store.decode()])
            if (folder / f"{file.decode()}.vmdk").exists():
                (folder / f"{file.decode()}-flat.vmdk").touch()

    def count(self, method: str) -> int:
        """How often the server was asked for that."""
        return self.calls.count(method)

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    context: ssl.SSLContext

    def get_request(self) -> tuple[Any, Any]:
        raw, address = self.socket.accept()
        raw.settimeout(30)
        return self.context.wrap_socket(raw, True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not like the certificate."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    world: Proxy
    upstream: http.client.HTTPSConnection | None = None

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(*self._forward("GET", b""))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found = re.search(rb"<soapenv:Body[^>]*>\s*<([A-Za-z_]+)", body)
        method = found[1].decode() if found else ""
        rule = self.world.take(method)
        action = "" if rule is None else rule.action
        if action == "cut before":
            return self._cut()
        if rule is not None and action == "fault":
            fault = (
                "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring/><detail>"
                f'<{rule.name}Fault xmlns="urn:vim25" xsi:type="{rule.name}">{rule.xml}'
                f"</{rule.name}Fault></detail></soapenv:Fault>"
            )
            return self._send(500, _ENVELOPE.format(fault).encode(), None)
        if rule is not None and action == "answer":
            return self._send(200, _ENVELOPE.format(rule.xml).encode(), None)
        if rule is not None and action == "task fault":
            target = re.search(rb'<_this[^>]*type="VirtualMachine"[^>]*>([^<]*)<', body)
            assert target is not None, "only of machines"
            self.world.pending.append(rule)
            refused = _ENVELOPE.format(_REFUSED.format(target[1].decode()))
            status, answer, cookie = self._forward("POST", refused.encode())
            named = answer.replace(b"ReconfigVM_Task", method.encode())
            return self._send(status, named, cookie)
        self.world.calls.append(method)
        self.world.accompany(body)
        status, answer, cookie = self._forward("POST", body)
        if method == "WaitForUpdatesEx" and b"FileNotFound" in answer and self.world.pending:
            rule = self.world.pending.pop()
            fault = f'<fault xsi:type="{rule.name}">{rule.xml}</fault>'.encode()
            answer = re.sub(rb"<fault [^>]*FileNotFound.*?</fault>", fault, answer, flags=re.DOTALL)
        if rule is not None and action == "missing":
            answer, found_some = _POWER.subn(b"", answer)
            assert found_some, "only where powers are asked for"
            missing = _MISSING.format(rule.name, rule.xml).encode()
            answer = re.sub(rb"</(objects|objectSet)>", missing + rb"</\1>", answer)
        if action == "cut after":
            return self._cut()
        if action == "cut half":
            self._head(status, len(answer), cookie)
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            return self._cut()
        if action == "silent":
            self.world.ended.wait(30)
            return self._cut()
        return self._send(status, answer, cookie)

    def _forward(self, verb: str, body: bytes) -> tuple[int, bytes, str | None]:
        if self.upstream is None:
            self.upstream = http.client.HTTPSConnection(
                "127.0.0.1", self.world.vcenter.port, context=self.world.context, timeout=30
            )
        kept = ("Cookie", "SOAPAction", "Content-Type")
        headers = {key: value for key, value in self.headers.items() if key in kept}
        self.upstream.request(verb, self.path, body, headers)
        answer = self.upstream.getresponse()
        return answer.status, answer.read(), answer.getheader("Set-Cookie")

    def finish(self) -> None:
        super().finish()
        if self.upstream is not None:
            self.upstream.close()

    def _head(self, status: int, length: int, cookie: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(length))
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()

    def _send(self, status: int, answer: bytes, cookie: str | None) -> None:
        self._head(status, len(answer), cookie)
        self.wfile.write(answer)
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

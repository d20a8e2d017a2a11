"""What vCenter's faults mean, in words that say what to do.

A fault is known by its class alone: its text is empty, or in another language.
"""

from __future__ import annotations

import http.client
import ssl
from typing import Any

from ..errors import HypervisorError


class LostError(HypervisorError):
    """No answer came. Whether the call had its effect is found by asking."""


_HINTS = {
    "InvalidLogin": "check the user and the password",
    "NotAuthenticated": "check the user and the password",
    "NoPermission": "give the account the privilege, see docs/vsphere.md",
    "FileLocked": "another machine or program has the file open: power that off first",
    "FileNotFound": "check [hypervisor.datastores]: the server sees no such file",
    "CannotAccessFile": "check the datastore at the server",
    "NoDiskSpace": "make room on the datastore",
    "InsufficientStorageSpace": "make room on the datastore",
    "InsufficientResourcesFault": "make room in the resource pool, or name another one",
    "InvalidDatastore": "check [hypervisor.datastores]: the server has no such datastore",
    "InvalidDatastorePath": "check [hypervisor.datastores]",
    "InvalidPowerState": "ask again: its power state has just changed",
    "InvalidState": "the machine, or its host, is in a state that does not allow it",
    "InvalidDeviceSpec": "its hardware has changed meanwhile, or does not take the disk",
    "TaskInProgress": "another task runs on the machine: wait for it",
    "ConcurrentAccess": "somebody else has just changed the machine: try again",
    "ManagedObjectNotFound": "it has been removed meanwhile",
    "DuplicateName": "another machine has that name",
    "HostNotConnected": "bring the host back, or name another one",
    "HostCommunication": "bring the host back, or name another one",
    "MethodNotFound": "this server does not know the call: it may be too old",
    "NotSupported": "the server cannot do that with this machine",
}


def is_fault(error: BaseException) -> bool:
    """Whether the server refused: it has answered, and did not do it."""
    from pyVmomi import vmodl

    return isinstance(error, vmodl.MethodFault)


def is_lost(error: BaseException) -> bool:
    """Whether no answer came, or only a part of one."""
    from xml.parsers.expat import ExpatError

    from pyVmomi import SoapAdapter

    torn = getattr(SoapAdapter, "ParserError", ExpatError)  # newer ones have none of their own
    return isinstance(error, OSError | http.client.HTTPException | ExpatError | torn)


def name_of(fault: BaseException) -> str:
    """The fault's class as the vSphere API calls it."""
    return type(fault).__name__.rpartition(".")[2]


def is_a(fault: BaseException, *names: str) -> bool:
    """Whether it is one of these faults, or a more special one."""
    kinds = {kind.__name__.rpartition(".")[2] for kind in type(fault).__mro__}
    return not kinds.isdisjoint(names)


def explain(fault: BaseException, doing: str, server: str) -> HypervisorError:
    """The error for a fault that the server answered with."""
    said = f"{server} refused {doing}: {name_of(fault)}"
    details = [
        f"{name} {value}"
        for name in ("privilegeId", "file", "name", "reason", "deviceIndex", "property")
        if isinstance(value := getattr(fault, name, None), str | int) and value != ""
    ]
    text = " ".join(str(getattr(fault, "msg", None) or "").split())[:300]
    if text and not text.startswith("*"):  # the simulator names its Go types
        details.append(text)
    hints: list[Any] = [
        _HINTS[kind.__name__.rpartition(".")[2]]
        for kind in type(fault).__mro__
        if kind.__name__.rpartition(".")[2] in _HINTS
    ]
    return HypervisorError(
        said + (f" ({', '.join(details)})" if details else ""),
        hints[0] if hints else "look at the machine's tasks and events at the server",
    )


def lost(error: BaseException, doing: str, server: str) -> HypervisorError:
    """The error for an answer that did not come."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return HypervisorError(
            f"{server} is not who it should be: {error.verify_message}",
            "give the certificate that signed the server's as ca_file, or the server's own as"
            " certificate",
        )
    if isinstance(error, ssl.SSLError) and error.reason is not None:
        return LostError(f"no TLS with {server} while {doing}: {error.reason}", "check the port")
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return LostError(
        f"{server} gave no answer while {doing}: {words}", "check that it can be reached, try again"
    )

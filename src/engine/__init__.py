"""Rollpoint: the failover engine. Start at docs/embedding.md.

Public names load on first use, so that a command line that needs few of them
starts fast.
"""

from __future__ import annotations

from importlib import import_module

if __name__ != "rollpoint":  # a second copy would have second exception classes
    raise ImportError(f"this package is imported as rollpoint, not as {__name__}")

_HOME = {
    "Export": "export",
    "serve": "export",
    "Error": "errors",
    "open_disk": "disk",
    "Replica": "replica",
    "failover": "operation",
    "undo": "operation",
    "permanent": "operation",
    "resume": "operation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # 70 ms

        return version("rollpoint")
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module 'rollpoint' has no attribute {name!r}")

"""Small guests in a directory, for the tests of what is changed in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.guest.edits import Edits

SYSTEMD = {"/usr/lib/systemd/network/99-default.link": "[Match]\nOriginalName=*\n"}


class SmallGuest:
    """A guest's tree in a directory of this host.

    Args:
        files: By path: text, bytes, or a link as ("link", target).
    """

    def __init__(self, root: Path, files: Mapping[str, str | bytes | tuple[str, str]]) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, tuple):
                path.symlink_to(content[1])
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.tree = GuestTree({"/": LocalFileSystem(root)})

    def edits(self) -> Edits:
        return Edits(self.tree)

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_bytes().decode()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path.lstrip("/"))

    def files(self) -> dict[str, bytes]:
        """All that is there: what a conversion that refuses leaves as it was."""
        return {
            f"/{path.relative_to(self.root)}": path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }

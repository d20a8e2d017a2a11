"""Guests' disks, made once in a test run and shared by its workers."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

from . import debian, tiny


class Shelf:
    """Args:
    folder: Gets the disks, and packages that are not installed here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def disk(self, name: str, recipe: tiny.Recipe | None = None) -> Path:
        """A tiny guest's disk, a raw image that nobody may write.

        Args:
            name: One of tiny.RECIPES, or a name of its own for another recipe.
        """
        return self._kept(name, lambda made, cache: tiny.build(
            recipe or tiny.RECIPES[name], made, cache
        ))  # fmt: skip

    def debian(self) -> Path:
        """A whole Debian's disk, a raw image that nobody may write."""
        return self._kept("debian", debian.build)

    def _kept(self, name: str, build: Callable[[Path, Path], None]) -> Path:
        disk = self._folder / f"{name}.raw"
        # One after the other: two guests may want the same package.
        with open(self._folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not disk.exists():
                made = disk.with_suffix(".new")
                build(made, self._folder / "packages")
                made.chmod(0o444)
                made.rename(disk)
        return disk

    def copy(self, name: str, target: Path, recipe: tiny.Recipe | None = None) -> Path:
        """A tiny guest's disk to be written."""
        shutil.copyfile(self.disk(name, recipe), target)
        target.chmod(0o644)
        return target

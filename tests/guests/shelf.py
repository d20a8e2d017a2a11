"""Guests' disks, made once in a test run and shared by its workers."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from . import tiny


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
        disk = self._folder / f"{name}.raw"
        # One after the other: two recipes may want the same package.
        with open(self._folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not disk.exists():
                made = disk.with_suffix(".new")
                tiny.build(recipe or tiny.RECIPES[name], made, self._folder / "packages")
                made.chmod(0o444)
                made.rename(disk)
        return disk

    def copy(self, name: str, target: Path, recipe: tiny.Recipe | None = None) -> Path:
        """A tiny guest's disk to be written."""
        shutil.copyfile(self.disk(name, recipe), target)
        target.chmod(0o644)
        return target

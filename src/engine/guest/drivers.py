"""Which drivers a guest needs on new hardware, and where its own kernels keep them.

Only the guest's own files are read: its module index says what a module needs.

Source: modules.dep(5); depmod's modules.softdep and modules.builtin; the drivers' PCI ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..access.tree import GuestTree
from ..errors import NotFoundError, PathError
from .base import Controller, Kernel, Nic

# One of each inner tuple is enough: kernels of different ages have different ones.
Needs = tuple[tuple[str, ...], ...]
_DISKS = ("sd_mod",)
STORAGE: dict[Controller, Needs] = {
    "ide": (("ata_piix", "piix"), ("sd_mod", "ide_disk")),
    "ahci": (("ahci",), _DISKS),
    "nvme": (("nvme",),),
    "virtio-blk": (("virtio_pci",), ("virtio_blk",)),
    "virtio-scsi": (("virtio_pci",), ("virtio_scsi",), _DISKS),
    "pvscsi": (("vmw_pvscsi",), _DISKS),
    "lsilogic": (("mptspi",), _DISKS),
    "lsisas": (("mptsas",), _DISKS),
    "lsi53c895a": (("sym53c8xx",), _DISKS),
}
NETWORK: dict[Nic, Needs] = {
    "vmxnet3": (("vmxnet3",),),
    "e1000": (("e1000",),),
    "e1000e": (("e1000e",),),
    "virtio-net": (("virtio_pci",), ("virtio_net",)),
}
INDEX_BYTES_MAX = 16 << 20
MODULES_MAX = 50_000
NEEDED_MAX = 200  # modules that one needs, and those they need
_MODULE = re.compile(r"[\w./+-]{1,300}\.ko(?:\.xz|\.zst|\.gz|\.bz2)?", re.ASCII)


class Module(NamedTuple):
    """A module's file, and those of the modules it needs, below its kernel's directory."""

    path: str
    needs: tuple[str, ...]


class Drivers:
    """The modules of one kernel.

    Args:
        tree: The guest.
        directory: Of the kernel's modules, as /lib/modules/6.1.0; "" where it has none.
    """

    def __init__(self, tree: GuestTree, directory: str) -> None:
        self.tree = tree
        self.directory = directory
        self.modules: dict[str, Module] = {}
        self.builtin: set[str] = set()
        if directory:
            self._read_index()
        self._soft: dict[str, tuple[str, ...]] | None = None

    @property
    def known(self) -> bool:
        """Whether there is an index at all: a kernel may have all that it needs built in."""
        return bool(self.modules or self.builtin)

    def _read_index(self) -> None:
        for line in self._lines("modules.dep")[:MODULES_MAX]:
            first, colon, rest = line.partition(":")
            paths = [self._relative(path) for path in [first, *rest.split()[:NEEDED_MAX]]]
            if colon and all(paths):
                self.modules.setdefault(module_name(paths[0]), Module(paths[0], tuple(paths[1:])))
        self.builtin = {module_name(line) for line in self._lines("modules.builtin")[:MODULES_MAX]}

    def _lines(self, name: str) -> list[str]:
        path = f"{self.directory}/{name}"
        if not is_file(self.tree, path):
            return []
        data = self.tree.read(path, INDEX_BYTES_MAX)
        return [line for line in data.decode("ascii", "replace").split("\n") if line]

    def _relative(self, path: str) -> str:
        """Below the directory; "" for one that leads elsewhere, or is no module."""
        path = path.strip().removeprefix(f"{self.directory}/")
        good = _MODULE.fullmatch(path) and not path.startswith("/") and ".." not in path.split("/")
        return path if good else ""

    def choose(self, needs: Needs) -> tuple[list[str], list[str]]:
        """The modules to load for these, and what is neither a module here nor built in."""
        chosen: list[str] = []
        missing: list[str] = []
        for either in needs:
            if any(name in self.builtin for name in either):
                continue
            found = next((name for name in either if self._complete(name)), "")
            if found:
                chosen.append(found)
            else:
                missing.append(" or ".join(either))
        return chosen, missing

    def _complete(self, name: str) -> bool:
        module = self.modules.get(name)
        return module is not None and all(
            is_file(self.tree, f"{self.directory}/{path}") for path in (module.path, *module.needs)
        )

    def files(self, names: Iterable[str]) -> list[str]:
        """Files of these modules and of all that they need, each once, below the directory."""
        found: dict[str, None] = {}
        for name in names:
            for soft in (name, *self._softly(name)):
                module = self.modules.get(soft)
                if module is not None and (soft == name or self._complete(soft)):
                    found |= dict.fromkeys((*reversed(module.needs), module.path))
        return list(found)[:NEEDED_MAX]

    def _softly(self, name: str) -> tuple[str, ...]:
        """What modules.softdep names for a module."""
        if self._soft is None:
            self._soft = {}
            for line in self._lines("modules.softdep")[:MODULES_MAX]:
                words = line.split()
                if words[:1] == ["softdep"] and len(words) > 2:
                    others = [w.replace("-", "_") for w in words[2:NEEDED_MAX] if w[-1] != ":"]
                    self._soft[words[1].replace("-", "_")] = tuple(others)
        return self._soft.get(name, ())


def of(tree: GuestTree, kernel: Kernel) -> Drivers:
    """The drivers of an installed kernel."""
    return Drivers(tree, kernel.modules)


def module_name(path: str) -> str:
    """As lsmod prints it."""
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def is_file(tree: GuestTree, path: str) -> bool:
    """Whether a regular file is there, links followed."""
    try:
        stat = tree.stat(path)
    except (NotFoundError, PathError):
        return False
    return stat is not None and stat.kind == "file"

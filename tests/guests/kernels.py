"""Kernels and boot loaders of Debian packages, for guests: installed ones, or unpacked aside.

A kernel for a guest need not be installed on the machine that tests, which may have one of
its own: what is not there is fetched with apt-get and unpacked into a folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools import missing

CLOUD = "linux-image-cloud-amd64"  # has vmw_pvscsi, vmxnet3 and virtio; no SAS, no sym53c8xx
GENERIC = "linux-image-amd64"
FETCH_SECONDS_MAX = 120


class Kernel(NamedTuple):
    """A kernel's files. modules holds modules.dep and the kernel folder."""

    version: str
    image: Path
    modules: Path

    def index(self) -> dict[str, list[str]]:
        """Module name -> its file and those it needs, relative to `modules`."""
        found = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            file, _, rest = line.partition(":")
            found[Path(file).name.split(".ko")[0].replace("-", "_")] = [file, *rest.split()]
        return found

    def files_of(self, names: list[str]) -> list[str]:
        """The modules of those names, as far as the kernel has them, and all that they need."""
        index = self.index()
        files = [file for name in names for file in reversed(index.get(name, []))]
        return list(dict.fromkeys(files))


def kernel(package: str, cache: Path) -> Kernel:
    """A kernel that is installed, or that of a package.

    Args:
        cache: Where packages are unpacked, once.
    """
    ending = "-cloud-amd64" if package == CLOUD else r"\d-amd64"
    for root in (Path("/"), cache / package):
        found = _kernel_in(root, ending)
        if found is not None:
            return found
    answer = subprocess.run(
        ["apt-cache", "depends", package], capture_output=True, text=True, check=True
    )
    names = re.findall(r"Depends: (linux-image-\S+)", answer.stdout)
    if not names:
        missing(f"apt knows no package {package}: apt-get update")
    _unpack(names[0], cache / package)
    found = _kernel_in(cache / package, ending)
    assert found is not None, f"{names[0]} holds no kernel"
    if not (found.modules / "modules.dep").exists():
        subprocess.run(["/usr/sbin/depmod", "-b", cache / package, found.version], check=True)
    return found


def _kernel_in(root: Path, ending: str) -> Kernel | None:
    for image in sorted((root / "boot").glob("vmlinuz-*")):
        version = image.name.removeprefix("vmlinuz-")
        modules = root / "lib" / "modules" / version
        readable = os.access(image, os.R_OK)  # not everywhere by everybody
        if readable and re.search(ending + "$", version) and (modules / "kernel").is_dir():
            return Kernel(version, image, modules)
    return None


def files(package: str, folder: str, cache: Path) -> Path:
    """A folder of a package, on this machine or unpacked aside."""
    for root in (Path("/"), cache / package):
        if (root / folder).is_dir():
            return root / folder
    _unpack(package, cache / package)
    return cache / package / folder


def _unpack(package: str, target: Path) -> None:
    """Fetch a package and unpack it. Nothing is installed."""
    fetched = target.with_name(target.name + ".fetched")
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    done = subprocess.run(
        ["apt-get", "download", "-qq", package],
        cwd=fetched, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX,
    )  # fmt: skip
    debs = list(fetched.glob("*.deb"))
    if done.returncode != 0 or len(debs) != 1:
        missing(f"apt-get download {package} failed: {done.stderr.strip()[-500:]}")
    unpacked = fetched / "tree"
    subprocess.run(["dpkg-deb", "-x", debs[0], unpacked], check=True)
    debs[0].unlink()
    shutil.rmtree(target, ignore_errors=True)
    unpacked.rename(target)
    shutil.rmtree(fetched)

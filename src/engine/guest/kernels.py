"""The kernels that are installed in a guest, and which of them the boot loader starts.

Source: Linux, Documentation/arch/x86/boot.rst (kernel_version), The Boot Loader
Specification (entries), the names that each distribution gives its images.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..access.tree import GuestTree
from ..errors import NotFoundError, PathError
from .base import Kernel
from .loading import Entry, order

KERNELS_MAX = 64
_IMAGES = ("/boot/vmlinuz*", "/boot/vmlinux-*", "/boot/Image-*", "/boot/bzImage-*")
_IMAGE = re.compile(r"(?:vmlinuz|vmlinux|Image|bzImage)(?:-(.{1,128}))?")
# {}: the version. Debian; RHEL; SUSE; Arch.
_INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initramfs-{}")
_HEADER_BYTES = 0x10000


def find(tree: GuestTree, loaded: Iterable[Entry], directory: str = "/boot") -> list[Kernel]:
    """Newest first; the default one is marked: the loader's, else the newest.

    Args:
        loaded: What the boot loaders offer, the default ones first.
    """
    entries = list(loaded)
    found: dict[str, Kernel] = {}
    images = [path for pattern in _IMAGES for path in tree.glob(pattern)]
    named = {entry.image: entry for entry in reversed(entries)}
    for path in [*named, *images]:
        real = _real(tree, path)
        if real is None or real in found or len(found) >= KERNELS_MAX or not path.isprintable():
            continue  # no system names a kernel so that it cannot be told
        entry = named.get(path)
        version = version_of(tree, path)
        initrd = entry.initrd if entry and entry.initrd else _initrd(tree, path, version)
        if initrd and (_real(tree, initrd) is None or not initrd.isprintable()):
            initrd = ""
        modules = f"/lib/modules/{version}" if version else ""
        if modules and not tree.is_directory(modules):
            modules = ""
        if entry is None and _spare(path, version, found.values()):
            continue
        found[real] = Kernel(version=version, image=path, initrd=initrd, modules=modules)
    kernels = sorted(found.values(), key=_order, reverse=True)
    default = next((entry.image for entry in entries if entry.default), "")
    chosen = _real(tree, default) if default else None
    index = next((i for i, k in enumerate(kernels) if _real(tree, k.image) == chosen), None)
    if chosen is None or index is None:
        index = 0
    for number, kernel in enumerate(kernels):
        kernel.default = number == index
    return kernels


def _order(kernel: Kernel) -> tuple[bool, list[tuple[int, int, str]]]:
    return "rescue" not in kernel.image, order(kernel.version)


def _spare(path: str, version: str, kernels: Iterable[Kernel]) -> bool:
    """A second name of a kernel that is listed (vmlinuz.old, a copy), or one without version."""
    name = path.rsplit("/", 1)[1]
    return not version or (
        name in ("vmlinuz", "vmlinuz.old") and any(k.version == version for k in kernels)
    )


def version_of(tree: GuestTree, path: str) -> str:
    """What uname -r says of an image: from its header, else from its name."""
    try:
        head = tree.read_part(path, 0, _HEADER_BYTES)
    except (NotFoundError, PathError):
        return ""
    if head[0x202:0x206] == b"HdrS":
        start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
        text = head[start : start + 128].split(b"\0")[0].split(b" ")[0]
        if start > 0x200 and re.fullmatch(rb"[0-9][\w.+~-]{0,127}", text, re.ASCII):
            return text.decode("ascii")
    named = _IMAGE.fullmatch(path.rsplit("/", 1)[-1])
    version = (named[1] or "") if named else ""
    return version if re.fullmatch(r"[0-9][\w.+~-]*", version, re.ASCII) else ""


def _initrd(tree: GuestTree, image: str, version: str) -> str:
    """By the names that distributions give it, beside the image."""
    directory, name = image.rsplit("/", 1)
    named = _IMAGE.fullmatch(name)
    suffixes = [named[1] or "" if named else "", version]
    for place in dict.fromkeys((directory, "/boot")):
        for suffix in suffixes:
            for pattern in _INITRDS if suffix else ("initrd.img", "initrd"):
                path = f"{place}/{pattern.format(suffix)}"
                if _real(tree, path) is not None:
                    return path
    return ""


def _real(tree: GuestTree, path: str) -> str | None:
    """The file behind links; None when there is none."""
    try:
        stat = tree.stat(path)
        return tree.real(path) if stat is not None and stat.kind == "file" else None
    except (NotFoundError, PathError):
        return None

"""Small trees of Linux systems, laid out as each distribution does, in a directory each."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from rollpoint.access.base import FileSystem
from rollpoint.access.local import LocalFileSystem
from rollpoint.access.tree import GuestTree
from rollpoint.errors import Error, UnsupportedError
from rollpoint.guest.inspect import Found, inspect
from rollpoint.volumes.base import Partition, Piece, Volume

ROOT_UUID = "0a1b2c3d-0000-4000-8000-000000000001"
BOOT_UUID = "0a1b2c3d-0000-4000-8000-000000000002"
SWAP_UUID = "0a1b2c3d-0000-4000-8000-000000000003"
DATA_UUID = "0a1b2c3d-0000-4000-8000-000000000004"
ESP_UUID = "1234-ABCD"
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
DISK_BYTES = 8 << 30
Content = str | bytes | tuple[str]  # a tuple is a link's target


def kernel_image(version: str) -> bytes:
    """As much of a bzImage as tells its version."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{version} (build@host) #1 SMP".encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)


def program(machine: int = 62) -> bytes:
    """The head of an ELF program."""
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 3, machine)


def modules(
    version: str, names: Mapping[str, tuple[str, ...]], suffix: str = ""
) -> dict[str, Content]:
    """A kernel's modules with their index: name with folder -> what each depends on."""
    top = f"lib/modules/{version}"
    files: dict[str, Content] = {}
    lines = []
    for name, needs in names.items():
        path = f"kernel/{name}.ko{suffix}"
        files[f"{top}/{path}"] = f"module {name}".encode() + b"\0" * 100
        lines.append(" ".join([f"{path}:", *(f"kernel/{need}.ko{suffix}" for need in needs)]))
    files[f"{top}/modules.dep"] = "\n".join(lines) + "\n"
    files[f"{top}/modules.dep.bin"] = b"\xb0\x07\xf4\x57" + b"\0" * 60
    files[f"{top}/modules.alias"] = "alias pci:v000015ADd000007C0sv* vmw_pvscsi\n"
    files[f"{top}/modules.alias.bin"] = b"\xb0\x07\xf4\x57" + b"\1" * 60
    files[f"{top}/modules.symbols"] = "# Aliases for symbols\n"
    files[f"{top}/modules.softdep"] = "# Soft dependencies\n"
    files[f"{top}/modules.builtin"] = "kernel/drivers/nvme/host/nvme.ko\n"
    return files


MODULES = {
    "drivers/scsi/vmw_pvscsi": ("drivers/scsi/scsi_mod", "drivers/scsi/scsi_common"),
    "drivers/scsi/scsi_mod": ("drivers/scsi/scsi_common",),
    "drivers/scsi/scsi_common": (),
    "drivers/scsi/sd_mod": ("drivers/scsi/scsi_mod", "drivers/scsi/scsi_common"),
    "drivers/ata/ata_piix": ("drivers/scsi/scsi_mod",),
    "drivers/block/virtio_blk": ("drivers/virtio/virtio",),
    "drivers/virtio/virtio": (),
    "drivers/virtio/virtio_pci": ("drivers/virtio/virtio",),
    "drivers/net/vmxnet3/vmxnet3": (),
    "drivers/net/virtio_net": ("drivers/virtio/virtio",),
}


def write(root: Path, files: Mapping[str, Content]) -> Path:
    """Put files below a directory."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            path.symlink_to(content[0])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def partition(
    number: int,
    kind: str,
    uuid: str = "",
    *,
    disk: str = "system",
    table: str = "mbr",
    type: str = "83",
    label: str = "",
    active: bool = False,
) -> Volume:
    """A partition, as volumes.find tells of it."""
    gpt_uuid = f"00000000-0000-4000-8000-{number:012}"
    part_uuid = f"aabbccdd-{number:02}" if table == "mbr" else gpt_uuid
    return Volume(
        f"{disk}:{number}",
        (Piece(disk, number << 20, 1 << 20),),
        1 << 20,
        kind,
        uuid,
        label,
        Partition(disk, "mbr" if table == "mbr" else "gpt", number, type, part_uuid, "", active),
    )


class Opener:
    """Opens directories for volumes, and counts."""

    def __init__(self, roots: Mapping[str, Path], volumes: list[Volume]) -> None:
        self.roots = dict(roots)
        self.volumes = {volume.name: volume for volume in volumes}
        self.open: list[str] = []

    def __call__(self, volume: Volume, subvolume: str = "") -> FileSystem:
        if volume.name not in self.roots:
            raise UnsupportedError(f"{volume.name} has no driver here")
        assert volume.name not in self.open, f"{volume.name} is opened twice at a time"
        root = self.roots[volume.name]
        self.open.append(volume.name)
        outer = self

        class Counted(LocalFileSystem):
            def close(self) -> None:
                if volume.name in outer.open:
                    outer.open.remove(volume.name)
                super().close()

        try:
            return Counted(root / subvolume if subvolume else root, volume=volume)
        except Error:
            self.open.remove(volume.name)
            raise


def found(roots: Mapping[str, Path], volumes: list[Volume]) -> Found:
    """Inspect directories as if they were volumes."""
    return inspect(volumes, Opener(roots, volumes))


def tree(root: Path) -> GuestTree:
    """One directory as a guest."""
    return GuestTree({"/": LocalFileSystem(root)})

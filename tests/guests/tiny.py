"""The smallest Linux guests that boot as a distribution's do: built from Debian packages.

A disk of 96 MiB: GRUB, Debian's kernel, an initramfs that holds modules for the hardware
the guest came from alone, and a root of busybox that tells what it found and powers off.
No root rights, loop device or mount is used. The source hardware is virtio: the root is
named /dev/vda1 on the kernel's command line and in /etc/fstab.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

from tools import ROOT, require_tool

from . import kernels, lvm_writer

MIB = 1 << 20
READY = "TINY-READY"
NO_ROOT = "TINY-NOROOT"
ROOT_UUID = "11111111-2222-3333-4444-555555555555"
BOOT_UUID = "66666666-7777-8888-9999-aaaaaaaaaaaa"
BOOTS_BEFORE, BOOTS_REPLAYED = 10, 41  # as many digits
EFI_ID = "ABCD1234"
SOURCE_MODULES = ["virtio_pci", "virtio_blk", "ata_piix", "sd_mod"]
# In the guest's /lib/modules, not in its initramfs: where the kernel has them.
OTHER_MODULES = [
    "vmw_pvscsi", "virtio_scsi", "sym53c8xx", "mptsas", "mptspi", "ahci", "nvme",
    "vmxnet3", "virtio_net", "e1000", "e1000e",
]  # fmt: skip
SCRIPTS = ROOT / "tests" / "guests"


class Recipe(NamedTuple):
    """What a guest is made of. The defaults are the usual one.

    Args:
        extra_modules: More for its initramfs: with those of the new hardware, it boots
            there as it is.
        dirty: An ext4 root is as a power cut leaves it: with a transaction in its journal,
            which counts the boots anew, from BOOTS_REPLAYED.
        stays: It goes on running when it has told what it found.
        agent: It answers as QEMU's guest agent does.
    """

    kernel: str = kernels.CLOUD
    boot_apart: bool = False
    root: Literal["ext4", "xfs"] = "ext4"
    lvm: bool = False
    initramfs: Literal["tools", "dracut"] = "tools"
    firmware: Literal["bios", "uefi"] = "bios"
    extra_modules: tuple[str, ...] = ()
    dirty: bool = True
    stays: bool = False
    agent: bool = False

    @property
    def root_device(self) -> str:
        """As the guest's configuration names it."""
        if self.lvm:
            return "/dev/mapper/tiny-root"
        return f"/dev/vda{self.root_number}"

    @property
    def root_number(self) -> int:
        return 1 + self.boot_apart + (self.firmware == "uefi")


RECIPES = {
    "plain": Recipe(),
    "generic": Recipe(kernel=kernels.GENERIC),
    "boot-apart": Recipe(boot_apart=True),
    "lvm": Recipe(boot_apart=True, lvm=True),
    "xfs": Recipe(boot_apart=True, root="xfs"),
    "dracut": Recipe(initramfs="dracut"),
    "uefi": Recipe(firmware="uefi"),
    "staying": Recipe(stays=True),
}


def build(recipe: Recipe, disk: Path, cache: Path) -> None:
    """Make the guest's disk, a raw image.

    Args:
        cache: Where packages that are not installed are unpacked.
    """
    work = disk.with_name(disk.name + ".work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    kernel = kernels.kernel(recipe.kernel, cache)
    root = work / "root"
    make_root(recipe, kernel, root)
    initrd = root / "boot" / f"initrd.img-{kernel.version}"
    if recipe.initramfs == "dracut":
        make_dracut(recipe, kernel, initrd, work)
    else:
        make_initrd(recipe, kernel, initrd, work)
    assemble(recipe, root, disk, work, cache)
    shutil.rmtree(work)


def run(*words: object, cwd: Path | None = None, data: bytes | None = None) -> bytes:
    command = [str(word) for word in words]
    command[0] = require_tool(command[0])
    done = subprocess.run(command, cwd=cwd, input=data, capture_output=True)
    assert done.returncode == 0, (command, done.stderr.decode(errors="replace")[-2000:])
    return done.stdout


def put(path: Path, data: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def merged(root: Path) -> None:
    """/bin, /sbin and /lib as links into /usr, as distributions have it now."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "dev", "root", "run", "tmp"):
        (root / name).mkdir()


def copy_modules(kernel: kernels.Kernel, names: list[str], root: Path) -> None:
    folder = root / "usr" / "lib" / "modules" / kernel.version
    for file in kernel.files_of(names):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kernel.modules / file, folder / file)


def root_modules(recipe: Recipe) -> list[str]:
    more = ["dm_mod"] if recipe.lvm else []
    more += ["virtio_console"] if recipe.agent else []
    return [*SOURCE_MODULES, *more, "crc32c_generic", recipe.root]


def make_root(recipe: Recipe, kernel: kernels.Kernel, root: Path) -> None:
    """The guest's files, the initramfs excepted."""
    merged(root)
    busybox = require_tool("busybox")
    shutil.copy(busybox, root / "usr" / "bin" / "busybox")
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        if applet not in ("busybox", "init"):
            (root / "usr" / "bin" / applet).symlink_to("busybox")
    put(root / "usr" / "sbin" / "init", (SCRIPTS / "root-init.sh").read_bytes(), 0o755)
    copy_modules(kernel, [*root_modules(recipe), *OTHER_MODULES], root)
    for index in kernel.modules.glob("modules.*"):
        target = root / "usr" / "lib" / "modules" / kernel.version / index.name
        shutil.copyfile(index, target)
    (root / "boot").mkdir()
    shutil.copyfile(kernel.image, root / "boot" / f"vmlinuz-{kernel.version}")
    release = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n'
    release += 'VERSION_ID="12"\nVERSION="12 (bookworm)"\nID=debian\n'
    put(root / "usr" / "lib" / "os-release", release)
    (root / "etc").mkdir()
    (root / "etc" / "os-release").symlink_to("../usr/lib/os-release")
    put(root / "etc" / "debian_version", "12.11\n")
    put(root / "etc" / "hostname", "tiny\n")
    put(root / "etc" / "initramfs-tools" / "modules", "# as the guest's owner wrote it\n")
    put(root / "etc" / "fstab", fstab(recipe))
    put(root / "etc" / "mtab", "")
    if recipe.stays:
        put(root / "etc" / "tiny.stay", "")
    if recipe.agent:
        put(root / "etc" / "rc.test", (SCRIPTS / "agent.sh").read_bytes(), 0o755)
    put(root / "var" / "log" / "counter", f"{BOOTS_BEFORE}\n")
    put(root / "boot" / "grub" / "grub.cfg", grub_cfg(recipe, kernel.version))
    put(root / "etc" / "default" / "grub", 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')


def fstab(recipe: Recipe) -> str:
    text = "# <file system> <mount point> <type> <options> <dump> <pass>\n"
    options = "errors=remount-ro" if recipe.root == "ext4" else "defaults"
    text += f"{recipe.root_device} / {recipe.root} {options} 0 1\n"
    if recipe.firmware == "uefi":
        text += "/dev/vda1 /boot/efi vfat umask=0077,noauto 0 1\n"
    if recipe.boot_apart:
        number = recipe.root_number - 1
        text += f"/dev/vda{number} /boot ext4 defaults 0 2\n"
    return text


def grub_cfg(recipe: Recipe, version: str) -> str:
    """What grub-mkconfig writes, without its conditions."""
    folder = "" if recipe.boot_apart else "/boot"
    uuid = BOOT_UUID if recipe.boot_apart else ROOT_UUID
    words = "ro quiet console=ttyS0 no_timer_check panic=-1"
    return f"""#
# DO NOT EDIT THIS FILE
#
set default="0"
set timeout=0
serial --unit=0 --speed=115200
terminal_output serial

menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux' {{
\tsearch --no-floppy --fs-uuid --set=root {uuid}
\techo\t'Loading Linux {version} ...'
\tlinux\t{folder}/vmlinuz-{version} root={recipe.root_device} {words}
\techo\t'Loading initial ramdisk ...'
\tinitrd\t{folder}/initrd.img-{version}
}}
"""


def make_initrd(recipe: Recipe, kernel: kernels.Kernel, target: Path, work: Path) -> None:
    """As initramfs-tools makes one with MODULES=list, but with busybox and little else."""
    tree = work / "initrd"
    merged(tree)
    shutil.copy(require_tool("busybox"), tree / "usr" / "bin" / "busybox")
    (tree / "usr" / "bin" / "sh").symlink_to("busybox")
    put(tree / "init", (SCRIPTS / "initrd-init.sh").read_bytes(), 0o755)
    names = [*root_modules(recipe), *recipe.extra_modules]
    put(tree / "conf" / "modules", "".join(f"{name}\n" for name in names))
    copy_modules(kernel, names, tree)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        place = tree / "usr" / "lib" / "modules" / kernel.version / name
        shutil.copyfile(kernel.modules / name, place)
    run("depmod", "-b", tree, kernel.version)
    if recipe.lvm:
        copy_program(Path(require_tool("lvm")), tree, tree / "usr" / "sbin" / "lvm")
        quiet = (
            "activation {\n udev_sync = 0\n udev_rules = 0\n}\ndevices {\n use_devicesfile = 0\n}\n"
        )
        put(tree / "etc" / "lvm" / "lvm.conf", quiet)
    names_of_files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    archive = run(
        "cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0", "--reproducible",
        cwd=tree, data="\n".join(names_of_files).encode(),
    )  # fmt: skip
    put(target, run("zstd", "-q", "-9", "-c", data=archive))


def copy_program(program: Path, tree: Path, target: Path) -> None:
    """A program with its libraries."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, target)
    for word in subprocess.check_output(["ldd", program], text=True).split():
        if word.startswith("/"):
            place = tree / "usr" / word.removeprefix("/usr").lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, place)


def make_dracut(recipe: Recipe, kernel: kernels.Kernel, target: Path, work: Path) -> None:
    """By dracut itself, for the hardware that the guest came from alone."""
    names = [*root_modules(recipe), *recipe.extra_modules]
    run(
        "dracut", "--force", "--quiet", "--no-hostonly", "--no-early-microcode",
        "--modules", "dash udev-rules rootfs-block kernel-modules base fs-lib",
        "--drivers", " ".join(names), "--kmoddir", kernel.modules, "--kver", kernel.version,
        "--tmpdir", work, "--gzip", target,
    )  # fmt: skip
    target.chmod(0o644)


def assemble(recipe: Recipe, root: Path, disk: Path, work: Path, cache: Path) -> None:
    """Partitions, boot loader and file systems."""
    boot_bytes, root_bytes = 64 * MIB, (320 if recipe.root == "xfs" else 96) * MIB
    if recipe.kernel == kernels.GENERIC:
        root_bytes += 32 * MIB
    parts: list[tuple[int, str]] = []  # size, type
    if recipe.firmware == "uefi":
        parts.append((33 * MIB, "U"))
    if recipe.boot_apart:
        parts.append((boot_bytes, "L"))
    parts.append((root_bytes + 8 * MIB if recipe.lvm else root_bytes, "V" if recipe.lvm else "L"))
    starts, at = [], MIB
    for size, _ in parts:
        starts.append(at)
        at += size
    with open(disk, "wb") as file:
        file.truncate(at + MIB)
    table = f"label: {'gpt' if recipe.firmware == 'uefi' else 'dos'}\n"
    table += "label-id: " + ("0x12345678\n" if recipe.firmware == "bios" else f"{BOOT_UUID}\n")
    for number, ((size, kind), start) in enumerate(zip(parts, starts, strict=True)):
        active = ", bootable" if number == 0 and recipe.firmware == "bios" else ""
        uuid = f", uuid={number:08x}{ROOT_UUID[8:]}" if recipe.firmware == "uefi" else ""
        table += f"start={start // 512}, size={size // 512}, type={kind}{uuid}{active}\n"
    run("sfdisk", "-q", disk, data=table.encode())
    if recipe.firmware == "uefi":
        insert(efi_system(recipe, root, work, cache), disk, starts[0])
    else:
        install_grub(recipe, disk, work, cache)
    if recipe.boot_apart:
        boot = work / "boot"
        (root / "boot").rename(boot)
        (root / "boot").mkdir()
        insert(ext4(boot, boot_bytes, BOOT_UUID, work), disk, starts[-2])
    made = xfs if recipe.root == "xfs" else ext4
    image = made(root, root_bytes, ROOT_UUID, work)
    if recipe.dirty and recipe.root == "ext4":
        leave_a_transaction(image, work)
    if recipe.lvm:
        lvm_writer.write(disk, starts[-1], parts[-1][0], "tiny", "root", image)
    else:
        insert(image, disk, starts[-1])


def insert(image: Path, disk: Path, at: int) -> None:
    with open(image, "rb") as source, open(disk, "r+b") as target:
        while data := source.read(MIB):
            if data.strip(b"\0"):
                target.seek(at + source.tell() - len(data))
                target.write(data)
    image.unlink()


def ext4(tree: Path, size: int, uuid: str, work: Path) -> Path:
    image = work / "image"
    with open(image, "wb") as file:
        file.truncate(size)
    run(
        "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-U", uuid, "-L", tree.name, "-d", tree,
        "-E", f"root_owner=0:0,hash_seed={uuid}", image,
    )  # fmt: skip
    return image


def leave_a_transaction(image: Path, work: Path) -> None:
    """Write a block into the file system's journal alone, as a machine that lost its power."""
    block = run("debugfs", "-R", "blocks /var/log/counter", image).decode().split()[0]
    put(work / "block", f"{BOOTS_REPLAYED}\n".encode().ljust(4096, b"\0"))
    put(work / "commands", f"journal_open\njournal_write -b {block} {work}/block\njournal_close\n")
    run("debugfs", "-w", "-f", work / "commands", image)


def xfs(tree: Path, size: int, uuid: str, work: Path) -> Path:
    image, listing = work / "image", work / "protofile"
    with open(image, "wb") as file:
        file.truncate(size)
    listing.write_text(f"/\n0 0\nd--755 0 0\n{_proto(tree)}$\n")
    run("mkfs.xfs", "-q", "-m", f"uuid={uuid}", "-L", tree.name, "-p", listing, image)
    return image


def _proto(folder: Path) -> str:
    """A folder as mkfs.xfs wants it listed. Source: mkfs.xfs(8), -p protofile."""
    lines = []
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode & 0o777
        if path.is_symlink():
            lines.append(f"{path.name} l--777 0 0 {os.readlink(path)}")
        elif path.is_dir():
            lines.append(f"{path.name} d--{mode:03o} 0 0\n{_proto(path)}$")
        else:
            lines.append(f"{path.name} ---{mode:03o} 0 0 {path}")
    return "".join(f"{line}\n" for line in lines)


_GRUB_MODULES = [
    "part_msdos", "part_gpt", "ext2", "xfs", "linux", "normal", "configfile", "serial",
    "terminal", "echo", "boot", "search", "search_fs_uuid", "test",
]  # fmt: skip


def install_grub(recipe: Recipe, disk: Path, work: Path, cache: Path) -> None:
    """What grub-install does: boot.img in the first sector, the core behind it."""
    folder = kernels.files("grub-pc-bin", "usr/lib/grub/i386-pc", cache)
    prefix = "(hd0,msdos1)/grub" if recipe.boot_apart else "(hd0,msdos1)/boot/grub"
    core = work / "core.img"
    run(
        "grub-mkimage", "-d", folder, "-O", "i386-pc", "-o", core, "-p", prefix,
        "biosdisk", *_GRUB_MODULES,
    )  # fmt: skip
    assert core.stat().st_size < 2047 * 512
    with open(disk, "r+b") as file:
        file.write((folder / "boot.img").read_bytes()[:440])
        file.seek(512)
        file.write(core.read_bytes())


def efi_system(recipe: Recipe, root: Path, work: Path, cache: Path) -> Path:
    """An EFI system partition as Debian's: nothing at the path for removable disks."""
    folder = kernels.files("grub-efi-amd64-bin", "usr/lib/grub/x86_64-efi", cache)
    (root / "boot" / "efi").mkdir()
    loader = work / "grubx64.efi"
    early = f"search.fs_uuid {ROOT_UUID} root\nset prefix=($root)/boot/grub\n"
    early += "configfile $prefix/grub.cfg\n"
    put(work / "early.cfg", early)
    run(
        "grub-mkimage", "-d", folder, "-O", "x86_64-efi", "-o", loader, "-p", "/EFI/debian",
        "-c", work / "early.cfg", "fat", *_GRUB_MODULES,
    )  # fmt: skip
    image = work / "esp"
    with open(image, "wb") as file:
        file.truncate(33 * MIB)
    run("mkfs.vfat", "-F", "32", "-i", EFI_ID, image)
    for name in ("EFI", "EFI/debian"):
        run("mmd", "-i", image, f"::{name}")
    run("mcopy", "-i", image, loader, "::EFI/debian/grubx64.efi")
    put(work / "grub.cfg", early)
    run("mcopy", "-i", image, work / "grub.cfg", "::EFI/debian/grub.cfg")
    return image

"""How long does it take to make a guest bootable on its new hardware?

Question: exports, inspection, drivers into the initramfs, tables and loader: within 2 s.
Sketch:   a sandbox with nbdfuse and e2fsck 50 ms, fuse2fs 20 ms, 4 MB read and written 50 ms.
Peer:     the chain that an administrator would type: qemu-nbd, nbdfuse, a loop device, the
          kernel's mount, cpio and sed. It trusts the guest; files mode does not.
Verified: the tests boot what failover makes of this guest; here, both sides' overlays are
          read with debugfs: the same driver behind the initramfs, the same command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from guests import kernels, protected, tiny
from harness import compare, rollpoint, single
from tools import require_tool

STEPS = ("export", "convert", "close")
SECONDS_GOAL = 2.0
BY_HAND = """set -e
qemu-nbd -k "$W/s" -f vmdk --cache=writeback --persistent --fork --pid-file="$W/q.pid" "$OVER"
mkdir -p "$W/fuse" "$W/mnt"
nbdfuse --pidfile "$W/n.pid" "$W/fuse/nbd" "nbd+unix:///?socket=$W/s" & N=$!
while ! [ -s "$W/n.pid" ]; do sleep 0.005; done
LOOP=$(losetup -f --show -o 1048576 "$W/fuse/nbd")
mount -o nosuid,nodev,noexec "$LOOP" "$W/mnt"
cd "$W/mnt"
V=$(ls lib/modules); I=boot/initrd.img-$V; M=usr/lib/modules/$V
FILES=$(cd "$M" && for m in vmw_pvscsi sd_mod vmxnet3; do
  grep "/$m.ko:" modules.dep | tr -d : | tr ' ' '\\n'; done | sort -u)
mkdir -p "$W/seg/$M"
(cd "$M" && cp --parents $FILES modules.* "$W/seg/$M/")
truncate -s "$(( ($(stat -c %s "$I") + 1023) / 512 * 512 ))" "$I"
(cd "$W/seg" && find usr | cpio -o -H newc --quiet) >>"$I"
UUID=$(blkid -s UUID -o value "$LOOP")
sed -i "s#/dev/vda1#UUID=$UUID#" etc/fstab boot/grub/grub.cfg
sync -f .
cd /
umount "$W/mnt"; losetup -d "$LOOP"; fusermount3 -u "$W/fuse"; wait $N
P=$(cat "$W/q.pid"); kill "$P"; while kill -0 "$P" 2>/dev/null; do sleep 0.005; done
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny guest's disk, as a power cut left it."""
    folder = tmp_path_factory.mktemp("guest")
    tiny.build(tiny.Recipe(kernel=kernels.CLOUD), folder / "guest.raw", folder / "packages")
    return folder / "guest.raw"


def convert(path: Path) -> float:
    """What the steps of a failover took that are there for the guest's sake."""
    done = json.loads(rollpoint("failover", path, "--no-power-on", "--json"))
    seconds = {step["name"]: step["seconds"] for step in done["steps"]}
    assert protected.conversion(path)["outcome"] == "changed"
    check(path / "system-interim.vmdk")
    rollpoint("undo", path, "--json")
    return float(sum(seconds[name] for name in STEPS))


def by_hand(disk: Path) -> float:
    work = disk.parent / "by-hand"
    over = work / "over.vmdk"
    subprocess.run(["rm", "-rf", work], check=True)
    work.mkdir()
    base = disk.with_suffix(".vmdk")
    if not base.exists():
        subprocess.run(["qemu-img", "convert", "-O", "vmdk", disk, base], check=True)
    words = ["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", str(base), str(over)]
    subprocess.run(words, check=True)
    begun = time.perf_counter()
    subprocess.run(
        ["bash", "-c", BY_HAND], check=True, env=os.environ | {"W": str(work), "OVER": str(over)}
    )
    seconds = time.perf_counter() - begun
    check(over)
    return seconds


def check(disk: Path) -> None:
    """What an independent reader sees of the conversion."""
    raw, root = disk.parent / "check.raw", disk.parent / "check.root"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", disk, raw], check=True)
    data = raw.read_bytes()[1 << 20 :]
    root.write_bytes(data)
    shown = subprocess.check_output(
        [require_tool("debugfs"), "-R", "cat /boot/grub/grub.cfg", root], stderr=subprocess.DEVNULL
    )
    assert f"root=UUID={tiny.ROOT_UUID}".encode() in shown
    assert b"kernel/drivers/scsi/vmw_pvscsi.ko\0" in data
    raw.unlink()
    root.unlink()


def test_conversion_in_files_mode(benchmark: Any, guest: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    protected.protect(path, guest)
    protected.configure(path, mode="files")
    single(
        benchmark,
        what="mount: export, convert and close a Linux guest, files mode",
        unit="s",
        run=lambda: convert(path),
        goal=SECONDS_GOAL,
        higher_is_better=False,
        cache="warm",
        verified="debugfs sees the driver behind the initramfs, and the new command line",
        rounds=9,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting by the kernel wants root")
def test_conversion_in_host_mode_beside_the_same_by_hand(
    benchmark: Any, guest: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r"
    protected.protect(path, guest)
    protected.configure(path, mode="host")
    compare(
        benchmark,
        what="mount: export, convert and close a Linux guest, host mode",
        unit="s",
        ours=lambda: convert(path),
        peers={"qemu-nbd, nbdfuse, loop, mount, cpio": lambda: by_hand(guest)},
        goals={"absolute": SECONDS_GOAL},
        higher_is_better=False,
        cache="warm",
        verified="debugfs sees the driver behind both initramfs, and the new command lines",
        rounds=9,
    )

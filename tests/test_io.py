"""The door to storage, from Python: posix semantics, crash states, faults, write order."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rollpoint import _native, errors
from rollpoint._native import (
    OPEN_BENEATH,
    OPEN_CREATE,
    OPEN_EXCLUSIVE,
    OPEN_READ,
    OPEN_TRUNCATE,
    OPEN_WRITE,
    Dir,
    Io,
)

SEED = 20261122
MAKE = OPEN_WRITE | OPEN_CREATE


@pytest.fixture
def folder(tmp_path: Path) -> Dir:
    return Io.order(Io.posix()).open_dir(str(tmp_path))


# --- posix ---


def test_a_file_keeps_what_was_written(folder: Dir, tmp_path: Path) -> None:
    file = folder.open("data", MAKE)
    file.pwrite(b"hello", 3)
    file.pwrite(memoryview(b"--world--")[2:7], 8)
    file.sync()
    assert file.pread(100, 0) == b"\0\0\0helloworld"
    assert file.pread(2, 3) == b"he"
    assert file.pread(10, 100) == b""
    assert file.size_bytes == 13
    file.truncate(4)
    assert (tmp_path / "data").read_bytes() == b"\0\0\0h"
    assert file.name == "data"
    assert file.path == str(tmp_path / "data")
    stat = file.stat()
    assert (stat.size_bytes, stat.is_regular, stat.is_directory) == (4, True, False)
    assert stat.inode == os.stat(tmp_path / "data").st_ino
    assert stat.mode == 0o600


def test_names_are_listed_made_renamed_and_removed(folder: Dir, tmp_path: Path) -> None:
    folder.replace("b", b"1", 0o640)
    folder.replace("a", b"2")
    folder.make_dir("c")
    assert folder.list() == ["a", "b", "c"]
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640
    folder.rename("a", "b")
    assert folder.read("b") == b"2"
    folder.unlink("b")
    folder.remove_dir("c")
    folder.sync()
    assert folder.list() == []
    assert not folder.exists("b")
    assert folder.path == str(tmp_path)
    assert folder.io.name == "order"


def test_names_that_are_not_unicode_survive(folder: Dir, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    folder.replace(name, b"x")
    assert folder.list() == [name]
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../x", "x" * 256, "a\0b"])
def test_a_name_is_one_component(folder: Dir, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: folder.open(name),
        lambda: folder.open(name, MAKE | OPEN_BENEATH),
        lambda: folder.read(name),
        lambda: folder.replace(name, b""),
        lambda: folder.make_dir(name),
        lambda: folder.remove_dir(name),
        lambda: folder.rename(name, "ok"),
        lambda: folder.rename("ok", name),
        lambda: folder.unlink(name),
        lambda: folder.stat(name),
        lambda: folder.exists(name),
    ]
    for call in calls:
        with pytest.raises(errors.UsageError):
            call()
    assert folder.list() == []


def test_beneath_refuses_links_and_open_refuses_what_is_no_file(
    folder: Dir, tmp_path: Path
) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    folder.make_dir("sub")
    assert folder.open("link").pread(1, 0) == b"x"
    for name in ("link", "dangling"):
        for flags in (OPEN_READ, OPEN_WRITE, MAKE):
            with pytest.raises(errors.UnsupportedError, match="symbolic link"):
                folder.open(name, flags | OPEN_BENEATH)
    for name in ("fifo", "sub"):
        for flags in (OPEN_READ, OPEN_WRITE, OPEN_READ | OPEN_BENEATH):
            with pytest.raises(errors.FormatError, match="not a regular file"):
                folder.open(name, flags)
    assert not (tmp_path / "nowhere").exists()


def test_errors_say_what_and_where(folder: Dir, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFoundError, match=str(tmp_path / "none")):
        folder.open("none")
    folder.replace("there", b"x")
    with pytest.raises(errors.ExistsError, match=str(tmp_path / "there")):
        folder.open("there", MAKE | OPEN_EXCLUSIVE)
    with pytest.raises(errors.NotFoundError, match="/nowhere/here"):
        Io.posix().open_dir("/nowhere/here")
    with pytest.raises(errors.StorageError) as caught:
        Io.posix().open_dir(str(tmp_path / "there"))
    assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(errors.StorageError) as caught:
        folder.open("there", OPEN_READ).pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(errors.UsageError):
        folder.open("there", OPEN_READ | OPEN_TRUNCATE)
    with pytest.raises(errors.FormatError, match="1 bytes; at most 0"):
        folder.read("there", limit_bytes=0)
    with pytest.raises(errors.UsageError):
        folder.open("there").pread(1, 1 << 63)
    with pytest.raises(OverflowError):
        folder.open("there").pread(1, -1)


def test_a_lock_holds_against_another_process_until_close(folder: Dir, tmp_path: Path) -> None:
    probe = (
        "import sys\n"
        "from rollpoint import errors\n"
        "from rollpoint._native import Io, OPEN_WRITE\n"
        "try:\n"
        "    Io.posix().open_dir(sys.argv[1]).open('lock', OPEN_WRITE).lock()\n"
        "except errors.LockedError as error:\n"
        "    sys.exit(7 if sys.argv[1] in str(error) and error.hint else 1)\n"
    )

    def outcome() -> int:
        command = [sys.executable, "-c", probe, str(tmp_path)]
        return subprocess.run(command, check=False).returncode

    file = folder.open("lock", MAKE)
    file.lock()
    assert outcome() == 7
    with pytest.raises(errors.LockedError):
        folder.open("lock", OPEN_WRITE).lock(exclusive=False)
    file.close()
    assert outcome() == 0


def test_use_after_close_is_a_state_error_and_close_may_come_twice(folder: Dir) -> None:
    file = folder.open("data", MAKE)
    folder.close()
    folder.close()
    with pytest.raises(errors.StateError, match="closed"):
        folder.list()
    file.pwrite(b"x", 0)  # files outlive their directory
    file.close()
    file.close()
    for call in (file.sync, file.stat, file.lock, lambda: file.pread(1, 0)):
        with pytest.raises(errors.StateError, match="closed"):
            call()
    with pytest.raises(errors.StateError):
        Io().open_dir("/")


def test_handles_keep_what_they_stand_on_alive() -> None:
    file = Io.order(Io.record(Io.simulate())).open_dir("/").open("data", MAKE)
    gc.collect()
    file.pwrite(b"x", 0)
    file.sync()
    assert file.pread(1, 0) == b"x"


def test_threads_may_share_a_file_and_close_it(folder: Dir) -> None:
    file = folder.open("data", MAKE)
    closed = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not closed.is_set():
                file.pwrite(bytes([number]) * 512, number * 512)
                if file.pread(512, number * 512) != bytes([number]) * 512:
                    raise AssertionError(number)
        except errors.StateError:
            pass  # closed between two calls
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        file.sync()
    file.close()
    closed.set()
    for thread in threads:
        thread.join()
    assert failures == []


# --- simulate ---


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except errors.StorageError as error:
        return error.errno
    except errors.Error as error:
        return type(error).__name__


def random_call(folder: Dir, rng: random.Random) -> Callable[[], object]:
    """One operation on few names, so that they meet; drawn the same way for any folder."""
    name, other = rng.choice("abc"), rng.choice("abc")
    size, offset = rng.randrange(9000), rng.randrange(9000)
    flags = rng.choice([OPEN_READ, OPEN_WRITE, MAKE, MAKE | OPEN_EXCLUSIVE, MAKE | OPEN_TRUNCATE])
    data = rng.randbytes(size)

    def write() -> object:
        file = folder.open(name, flags)
        file.pwrite(data, offset)
        file.sync()
        return file.pread(20000, offset // 2)

    def cut() -> object:
        file = folder.open(name, OPEN_WRITE)
        file.truncate(offset)
        return file.stat().size_bytes

    return rng.choice(
        [
            write,
            write,
            cut,
            lambda: folder.read(name),
            lambda: folder.make_dir(name),
            lambda: folder.remove_dir(name),
            lambda: folder.rename(name, other),
            lambda: folder.unlink(name),
            lambda: folder.replace(name, data),
            lambda: folder.stat(name).is_directory,
            folder.sync,
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_simulate_does_what_the_kernel_does(tmp_path: Path, seed: int) -> None:
    """Same calls, same results, same errors, without a crash."""
    folder = Io.posix().open_dir(str(tmp_path))
    simulated = Io.simulate().open_dir("/")
    one, two = random.Random(seed), random.Random(seed)
    for step in range(120):
        real = outcome(random_call(folder, one))
        assert outcome(random_call(simulated, two)) == real, (seed, step)
        assert simulated.list() == folder.list()


def small(io: Io, name: str = "file") -> bytes | None:
    folder = io.open_dir("/")
    return folder.read(name) if folder.exists(name) else None


def after_crashes(io: Io) -> set[bytes | None]:
    return {small(state.io) for state in io.crash_states(seed=SEED, garbage=False)}


def test_what_was_not_synced_may_be_lost() -> None:
    io = Io.simulate()
    folder = io.open_dir("/")
    file = folder.open("file", MAKE)
    file.pwrite(b"data", 0)
    assert after_crashes(io) == {None, b"", b"\0\0\0\0", b"data"}
    file.sync()
    folder.sync()
    io.settle()
    assert after_crashes(io) == {b"data"}
    file.truncate(2)
    assert after_crashes(io) == {b"data", b"da"}


def test_a_rename_is_undone_until_the_directory_is_synced() -> None:
    io = Io.simulate()
    folder = io.open_dir("/")
    folder.replace("file", b"old")
    folder.replace("aside", b"new")
    io.settle()
    folder.rename("aside", "file")
    assert after_crashes(io) == {b"old", b"new"}
    folder.sync()
    io.settle()
    assert after_crashes(io) == {b"new"}


def replace_without(folder: Dir, data: bytes, *, file_sync: bool, dir_sync: bool) -> None:
    """What replace() does, with a bug planted."""
    file = folder.open("file.new", MAKE | OPEN_TRUNCATE)
    file.pwrite(data, 0)
    if file_sync:
        file.sync()
    file.close()
    folder.rename("file.new", "file")
    if dir_sync:
        folder.sync()


def sweep_replace(replace: Callable[[Dir, bytes], None]) -> tuple[int, str]:
    """States swept, and how the first bad one came about, or ""."""
    io = Io.simulate()
    folder = io.open_dir("/")
    folder.replace("file", b"generation 0" * 100)
    io.settle()
    for generation in range(1, 6):
        replace(folder, b"generation %d" % generation * 100)
        io.acknowledge(generation)
    count = 0
    for state in io.crash_states(seed=SEED):
        count += 1
        last = state.acknowledged[-1] if state.acknowledged else 0
        allowed = [b"generation %d" % each * 100 for each in (last, last + 1)]
        if small(state.io) not in allowed:
            return count, state.explain()
    return count, ""


def test_replace_leaves_old_or_new_at_every_crash() -> None:
    count, bad = sweep_replace(lambda folder, data: folder.replace("file", data))
    assert bad == ""
    assert count > 60


def test_the_sweep_finds_replace_without_a_file_sync() -> None:
    _, bad = sweep_replace(
        lambda folder, data: replace_without(folder, data, file_sync=False, dir_sync=True)
    )
    assert "LOST write /file.new" in bad or "LOST grow /file.new" in bad


def test_the_sweep_finds_replace_without_a_directory_sync() -> None:
    _, bad = sweep_replace(
        lambda folder, data: replace_without(folder, data, file_sync=True, dir_sync=False)
    )
    assert "LOST rename /file.new to file" in bad


def test_recovery_can_be_crashed_too_and_owes_what_was_acknowledged() -> None:
    io = Io.simulate()
    folder = io.open_dir("/")
    folder.replace("file", b"1")
    io.acknowledge(41)
    inner_count = 0
    for state in io.crash_states(seed=SEED):
        recovered = state.io.open_dir("/")
        content = small(state.io) or b"none"
        recovered.replace("copy", content)
        state.io.acknowledge(42)
        for inner in state.io.crash_states(seed=SEED):
            inner_count += 1
            assert inner.acknowledged in (state.acknowledged, (*state.acknowledged, 42))
            assert (small(inner.io) or b"none") == content
            if 42 in inner.acknowledged:
                assert small(inner.io, "copy") == content
            if 41 in inner.acknowledged:
                assert content == b"1"
    assert inner_count > 30


def test_sweeps_count_and_follow_seed_and_budget() -> None:
    io = Io.simulate()
    file = io.open_dir("/").open("file", MAKE)
    io.settle()
    for index in range(30):
        file.pwrite(b"x" * 600, index * 1024)

    def images(budget: int, seed: int) -> list[bytes | None]:
        return [small(state.io) for state in io.crash_states(budget, seed)]

    sweep = io.crash_states(budget=200, seed=SEED)
    assert sweep.distinct == 0
    assert len(list(sweep)) == sweep.distinct <= 200
    assert sweep.generated >= sweep.distinct
    assert sweep.points == 31
    assert images(200, SEED) == images(200, SEED)
    assert images(200, SEED) != images(200, SEED + 1)
    assert len(images(0, SEED)) > 2000
    live = io.crash_states()
    with pytest.raises(errors.StateError):
        io.settle()
    del live, sweep
    io.settle()


def test_operations_are_told_line_by_line() -> None:
    io = Io.simulate()
    io.open_dir("/").replace("file", b"data")
    assert io.operations() == [
        "make /file.new",
        "link /file.new",
        "grow /file.new to 4",
        "write /file.new [0, 4)",
        "sync /file.new",
        "rename /file.new to file",
        "sync /",
    ]


def test_posix_and_record_tell_the_order_of_a_replace(tmp_path: Path) -> None:
    io = Io.record(Io.posix())
    io.open_dir(str(tmp_path)).replace("file", b"data")
    assert io.operations() == [
        f"make {tmp_path}/file.new",
        f"write {tmp_path}/file.new [0, 4)",
        f"sync {tmp_path}/file.new",
        f"rename {tmp_path}/file.new to file",
        f"sync {tmp_path}",
    ]


def test_what_needs_another_backend_says_so() -> None:
    for call in (
        lambda: Io.posix().crash_states(),
        lambda: Io.posix().settle(),
        lambda: Io.posix().operations(),
        lambda: Io.simulate().calls,
        lambda: Io.fault(Io.posix(), call=1, os_errno=5, kind="nap"),
        lambda: Io.fault(Io.posix(), call=1, os_errno=5, effect="magic"),
        lambda: Io.fault(Io.posix(), call=1, os_errno=5, kind="sync", effect="lost"),
    ):
        with pytest.raises(errors.UsageError):
            call()


# A crash by hand: files are {number: (bytes, size)}, names {name: number}; an operation is a
# function that changes both, with what has to be synced for it: a file's number, or "/".
# Bytes behind the size are not seen, but are there when it grows.

Disk = tuple[dict[int, tuple[bytes, int]], dict[str, int]]
Step = tuple[int | str, Callable[[Disk], None]]


def shown(disk: Disk) -> frozenset[tuple[str, bytes]]:
    files, names = disk
    contents = {name: files[number] for name, number in names.items()}
    return frozenset(
        (name, content[:size].ljust(size, b"\0")) for name, (content, size) in contents.items()
    )


def grow(number: int, size: int) -> Callable[[Disk], None]:
    def step(disk: Disk) -> None:
        content, old = disk[0][number]
        disk[0][number] = content, max(old, size)

    return step


def put(number: int, offset: int, data: bytes) -> Callable[[Disk], None]:
    def step(disk: Disk) -> None:
        content, size = disk[0][number]
        before = content[:offset].ljust(offset, b"\0")
        disk[0][number] = before + data + content[offset + len(data) :], size

    return step


def cut(number: int, size: int) -> Callable[[Disk], None]:
    def step(disk: Disk) -> None:
        disk[0][number] = disk[0][number][0][:size], size

    return step


def name_is(name: str, number: int | None) -> Callable[[Disk], None]:
    def step(disk: Disk) -> None:
        if number is None:
            disk[1].pop(name, None)
        else:
            disk[1][name] = number

    return step


def renamed(old: str, new: str, number: int) -> Callable[[Disk], None]:
    def step(disk: Disk) -> None:
        if disk[1].get(old) == number:
            del disk[1][old]
        disk[1][new] = number

    return step


def all_crashes(base: Disk, log: list[list[Step] | int | str]) -> set[frozenset[tuple[str, bytes]]]:
    """Every subset of what is pending, at every moment. A log item is a call's steps or a sync."""
    files, names = dict(base[0]), dict(base[1])
    pending: list[Step] = []
    found = {shown((files, names))}
    for item in log:
        if isinstance(item, list):
            pending += item
        else:
            for owner, step in pending:
                if owner == item:
                    step((files, names))
            pending = [each for each in pending if each[0] != item]
        for kept in itertools.product((False, True), repeat=len(pending)):
            disk = (dict(files), dict(names))
            for (_, step), keep in zip(pending, kept, strict=True):
                if keep:
                    step(disk)
            found.add(shown(disk))
    return found


def random_work(folder: Dir, rng: random.Random) -> list[list[Step] | int | str]:
    """Do a few random things to files a, b, c and return what was done, for all_crashes()."""
    log: list[list[Step] | int | str] = []
    names = {"a": 0}
    sizes = [100]
    pending = 0
    for _ in range(12):
        name = rng.choice(sorted(names))
        number = names[name]
        size = sizes[number]
        kind = rng.choice(["write", "write", "cut", "make", "rename", "unlink", "sync", "names"])
        if pending >= 8:  # the sweep tries all subsets of ten
            for number in sorted(set(names.values())):
                folder.open(next(n for n in names if names[n] == number), OPEN_WRITE).sync()
                log.append(number)
            kind, pending = "names", 0
        if kind == "write":
            data, offset = rng.randbytes(rng.randint(1, 40)), rng.randrange(200)
            folder.open(name, OPEN_WRITE).pwrite(data, offset)
            steps: list[Step] = [(number, put(number, offset, data))]
            if offset + len(data) > size:
                steps.insert(0, (number, grow(number, offset + len(data))))
                sizes[number] = offset + len(data)
            log.append(steps)
            pending += len(steps)
        elif kind == "cut" and size > 0:
            sizes[number] = rng.randrange(size)
            folder.open(name, OPEN_WRITE).truncate(sizes[number])
            log.append([(number, cut(number, sizes[number]))])
            pending += 1
        elif kind == "make" and len(names) < 3:
            name = next(each for each in "abc" if each not in names)
            folder.open(name, MAKE)
            names[name] = len(sizes)
            sizes.append(0)
            log.append([("/", name_is(name, names[name]))])
            pending += 1
        elif kind == "rename":
            new = rng.choice([each for each in "abc" if each != name])
            folder.rename(name, new)
            names[new] = names.pop(name)
            log.append([("/", renamed(name, new, number))])
            pending += 1
        elif kind == "unlink" and len(names) > 1:
            folder.unlink(name)
            del names[name]
            log.append([("/", name_is(name, None))])
            pending += 1
        elif kind == "sync":
            folder.open(name, OPEN_WRITE).sync()
            log.append(number)
        elif kind == "names":
            folder.sync()
            log.append("/")
    return log


@pytest.mark.parametrize("seed", range(40))
def test_the_sweep_yields_exactly_what_may_survive(seed: int) -> None:
    """Model: all subsets of pending operations, by hand. No state more, none less."""
    io = Io.simulate()
    folder = io.open_dir("/")
    folder.replace("a", b"x" * 100)
    io.settle()
    log = random_work(folder, random.Random(seed))
    base: Disk = ({n: (b"", 0) for n in range(20)} | {0: (b"x" * 100, 100)}, {"a": 0})
    swept = set()
    for state in io.crash_states(tear=False, garbage=False):
        there = state.io.open_dir("/")
        swept.add(frozenset((name, there.read(name)) for name in there.list()))
    assert swept == all_crashes(base, log)


# --- fault ---


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("kind", ["any", "write", "sync", "meta"])
def test_replace_fails_whole_at_every_call(tmp_path: Path, kind: str, sticky: bool) -> None:
    plain = Io.posix().open_dir(str(tmp_path))
    for call in range(1, {"any": 6, "write": 1, "sync": 2, "meta": 3}[kind] + 1):
        plain.replace("file", b"old")
        io = Io.fault(Io.posix(), call=call, os_errno=errno.ENOSPC, sticky=sticky, kind=kind)
        with pytest.raises(errors.StorageError) as caught:
            io.open_dir(str(tmp_path)).replace("file", b"new")
        assert caught.value.errno == errno.ENOSPC
        assert io.calls >= call
        assert plain.read("file") in (b"old", b"new")
        assert set(plain.list()) <= {"file", "file.new"}
        if plain.exists("file.new"):  # sticky: it could not be removed
            plain.unlink("file.new")
    call += 1  # there is no such call: it passes
    io = Io.fault(Io.posix(), call=call, os_errno=errno.ENOSPC, sticky=sticky, kind=kind)
    io.open_dir(str(tmp_path)).replace("file", b"new")
    assert io.calls == call - 1
    assert plain.read("file") == b"new"


def test_the_first_failed_sync_is_final(tmp_path: Path) -> None:
    io = Io.fault(Io.posix(), call=1, os_errno=errno.EIO, kind="sync")
    folder = io.open_dir(str(tmp_path))
    file = folder.open("data", MAKE)
    file.pwrite(b"x", 0)
    with pytest.raises(errors.StorageError) as caught:
        file.sync()
    assert caught.value.errno == errno.EIO
    for call in (file.sync, lambda: file.pwrite(b"x", 0), lambda: file.truncate(0)):
        with pytest.raises(errors.FailedError, match=str(tmp_path / "data")):
            call()
    assert file.pread(1, 0) == b"x"
    assert io.calls == 1  # the kernel was not asked again
    folder.open("data", OPEN_WRITE).sync()  # opened again, it may go on


def test_a_lost_sync_loses_the_data_as_the_kernel_does() -> None:
    disk = Io.simulate()
    io = Io.fault(disk, call=1, os_errno=errno.EIO, kind="sync", effect="lost")
    folder = io.open_dir("/")
    file = folder.open("file", MAKE)
    file.pwrite(b"data", 0)
    with pytest.raises(errors.StorageError):
        file.sync()
    again = folder.open("file", OPEN_WRITE)
    again.sync()  # succeeds: the lie that makes the first failure final
    assert again.pread(4, 0) == b"\0\0\0\0"


# --- order ---


def test_a_broken_write_order_ends_the_process() -> None:
    code = "f = d.open('a', 6); f.pwrite(b'x', 0); f.close(); d.rename('a', 'b')"
    message = "is renamed to b while its bytes [0, 1) are not synced"
    program = (
        "from rollpoint._native import Io\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"d = Io.order(Io.simulate()).open_dir('/')\n{code}\nprint('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == -6
    assert "rollpoint: write order broken: " in done.stderr
    assert message in done.stderr
    assert "went on" not in done.stdout


def test_the_flags_are_those_of_io_h() -> None:
    header = (Path(__file__).parent.parent / "src" / "_native" / "io.h").read_text()
    for name in ("READ", "WRITE", "CREATE", "EXCLUSIVE", "TRUNCATE", "BENEATH"):
        value = getattr(_native, f"OPEN_{name}")
        assert f"RP_OPEN_{name.ljust(9)} = {value}," in header


def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "io.md").read_text()
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(example, "docs/io.md", "exec"), globals().copy())
    assert "states" in capsys.readouterr().out

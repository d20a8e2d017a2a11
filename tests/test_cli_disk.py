"""rollpoint disk: what scripts rely on, and that misuse is told from failure."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import require_tool
from rollpoint.cli import main
from rollpoint.disk import create_disk, map_ranges, open_disk
from rollpoint.layouts import TYPES

MIB = 1 << 20


class Result:
    """What a command left: exit code, standard output and error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Call ``rollpoint disk`` in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(["disk", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.mark.parametrize("type", TYPES)
def test_create_makes_each_type_and_info_knows_it(type: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = run("create", "a.vmdk", "3M", "--type", type, "--json")
    assert made.code == 0
    more = ["--format", "raw"] if type == "raw" else []
    found = run("info", "a.vmdk", "--json", *more)
    assert found.json == made.json
    assert found.json["type"] == type
    assert found.json["size_bytes"] == 3 * MIB
    assert found.json["path"] == str(tmp_path / "a.vmdk")
    text = run("info", "a.vmdk", *more)
    assert (text.code, "3 MiB (3145728 bytes)" in text.out) == (0, True)
    assert run("check", "a.vmdk", *more, "--json").json == {"findings": [], "clean": True}


def test_a_disk_goes_through_all_commands(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = random.Random(1).randbytes(2 * MIB)
    (tmp_path / "a.raw").write_bytes(data)
    made = run("convert", "a.raw", "base.vmdk", "--to", "vmfs", "--format", "raw")
    assert (made.code, made.err) == (0, "")
    assert run("compare", "base.vmdk", "a.raw", "--b-format", "raw").out == "equal\n"
    assert run("convert", "base.vmdk", "b.raw", "--to", "raw", "--no-sync").code == 0
    assert (tmp_path / "b.raw").read_bytes() == data
    assert run("create", "child.vmdk", "--type", "vmfsSparse", "--parent", "base.vmdk").code == 0
    with open_disk(tmp_path / "child.vmdk", writable=True) as disk:
        disk.pwrite(b"new", 70_000)
    differ = run("compare", "child.vmdk", "a.raw", "--b-format", "raw", "--json")
    assert differ.code == 1
    assert differ.json == {"equal": False, "offset": 70_000, "reason": "data"}
    done = run("commit", "child.vmdk", "--json")
    assert done.json == {
        "child": str(tmp_path / "child.vmdk"),
        "parent": str(tmp_path / "base.vmdk"),
    }
    assert run("compare", "child.vmdk", "base.vmdk", "--json").json["equal"] is True
    assert (tmp_path / "base-flat.vmdk").read_bytes()[70_000:70_003] == b"new"


def test_map_is_the_json_of_qemu_img(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("create", "a.vmdk", "1M")
    with open_disk(tmp_path / "a.vmdk", writable=True) as disk:
        disk.pwrite(b"x" * 65536, 131_072)
    theirs = subprocess.run(
        [require_tool("qemu-img"), "map", "--output=json", "-f", "vmdk", "a.vmdk"],
        capture_output=True,
        check=True,
    )
    assert json.loads(run("map", "a.vmdk", "--json").out) == json.loads(theirs.stdout)
    rows = [line.split("\t") for line in run("map", "a.vmdk").out.splitlines()]
    assert [row[3] for row in rows] == ["hole", "data", "hole"]


def test_a_long_map_is_one_list_however_it_is_written(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """It goes out in batches: the borders between them must not show."""
    run("create", "a.vmdk", "16M", "--grain", "4K")
    with open_disk(tmp_path / "a.vmdk", writable=True) as disk:
        for at in range(0, 1200 * 8192, 8192):
            disk.pwrite(b"x", at)
        expected = list(map_ranges(disk))
    assert len(expected) == 2400
    assert json.loads(run("map", "a.vmdk", "--json").out) == expected
    assert len(run("map", "a.vmdk").out.splitlines()) == 2400


def test_check_ends_with_1_where_something_is_wrong(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("create", "a.vmdk", "1M")
    with open(tmp_path / "a.vmdk", "r+b") as file:
        file.seek(72)
        file.write(b"\1")
    found = run("check", "a.vmdk", "--json")
    assert found.code == 1
    assert [finding["kind"] for finding in found.json["findings"]] == ["unclean"]
    assert found.json["clean"] is False
    assert run("check", "a.vmdk").out.startswith("unclean\t")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["info", "missing.vmdk"], 1, "NotFoundError"),
        (["info", "text.txt"], 1, "FormatError"),
        (["info", "."], 2, "UsageError"),
        (["info", "a.vmdk", "--format", "qcow2"], 2, "UsageError"),
        (["info"], 2, "UsageError"),
        (["map", "missing.vmdk"], 1, "NotFoundError"),
        (["check", "text.txt"], 1, "FormatError"),
        (["create", "a.vmdk", "1M"], 1, "ExistsError"),
        (["create", "b.vmdk", "1000"], 2, "UsageError"),
        (["create", "b.vmdk", "many"], 2, "UsageError"),
        (["create", "b.vmdk"], 2, "UsageError"),
        (["create", "b.vmdk", "1M", "--type", "vdi"], 2, "UsageError"),
        (["create", "missing/b.vmdk", "1M"], 1, "NotFoundError"),
        (["create", "b.vmdk", "--parent", "missing.vmdk"], 1, "NotFoundError"),
        (["convert", "a.vmdk", "b.vmdk"], 2, "UsageError"),
        (["convert", "a.vmdk", "b.vmdk", "--to", "vdi"], 2, "UsageError"),
        (["convert", "a.vmdk", "b.vmdk", "--to", "vmfs", "--compress-level", "1"], 2, "UsageError"),
        (["convert", "a.vmdk", "b.vmdk", "--to", "streamOptimized", "--compress-level", "13"], 2,
         "UsageError"),
        (["convert", "a.vmdk", "text.txt", "--to", "raw"], 1, "ExistsError"),
        (["convert", "text.txt", "b.vmdk", "--to", "raw"], 1, "FormatError"),
        (["compare", "a.vmdk", "text.txt"], 1, "FormatError"),
        (["commit", "a.vmdk"], 2, "UsageError"),
        (["serve", "a.vmdk"], 2, "UsageError"),
        (["serve", "missing.vmdk", "--socket", "s"], 1, "NotFoundError"),
        (["serve", "a.vmdk", "--socket", "s", "--read-only", "--snapshot"], 2, "UsageError"),
        (["serve", "a.vmdk", "--socket", "text.txt"], 1, "ExistsError"),
    ],
)
def test_bad_input_is_a_clear_error_and_changes_nothing(
    arguments: list[str],
    code: int,
    kind: str,
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    run("create", "a.vmdk", "1M", "--type", "vmfs")
    (tmp_path / "text.txt").write_text("hello")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found = run(*arguments, "--json")
    assert found.code == code
    assert found.out == ""
    error = json.loads(found.err)["error"]
    assert error["type"] == kind
    assert error["message"]
    plain = run(*arguments)
    assert plain.code == code
    assert plain.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- serve ---


@contextmanager
def served(folder: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its URI; stopped by SIGTERM if it still runs."""
    command = [sys.executable, "-m", "rollpoint", "disk", "serve", *map(str, arguments)]
    process = subprocess.Popen(
        [*command, "--socket", "nbd.sock", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, json.loads(line)["uri"]
    finally:
        if process.poll() is None:
            process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert errors == ""


def qemu_io(uri: str, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        [require_tool("qemu-io"), "-f", "raw", *arguments, uri], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_and_keeps_what_was_written(
    end: signal.Signals,
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
) -> None:
    run("create", "a.vmdk", "4M")
    cid = run("info", "a.vmdk", "--json").json["cid"]
    with served(tmp_path, "a.vmdk") as (process, uri):
        assert (tmp_path / "nbd.sock").stat().st_mode & 0o777 == 0o600
        qemu_io(uri, "write -P 7 1000 70000", "read -P 7 1000 70000")
        second = run("serve", "a.vmdk", "--socket", "other.sock", "--json")
        assert (second.code, json.loads(second.err)["error"]["type"]) == (1, "LockedError")
        process.send_signal(end)
        assert process.wait(timeout=60) == 0
    assert not (tmp_path / "nbd.sock").exists()
    assert run("check", "a.vmdk").code == 0
    assert run("info", "a.vmdk", "--json").json["cid"] != cid
    with open_disk(tmp_path / "a.vmdk") as disk:
        assert disk.pread(70_002, 999) == b"\0" + b"\7" * 70_000 + b"\0"


def test_serve_without_writes_or_as_a_snapshot_changes_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("create", "a.vmdk", "4M")
    with open_disk(tmp_path / "a.vmdk", writable=True) as disk:
        disk.pwrite(b"\5" * MIB, 0)
    before = (tmp_path / "a.vmdk").read_bytes()
    with served(tmp_path, "a.vmdk", "--read-only", "--name", "disk") as (_, uri):
        said = subprocess.run(
            [require_tool("nbdinfo"), uri], capture_output=True, text=True, check=True
        )
        assert "is_read_only: true" in said.stdout
        assert "export-size: 4194304" in said.stdout
    with served(tmp_path, "a.vmdk") as (_, uri):
        qemu_io(uri, "read -P 5 0 1000", "flush")
    with served(tmp_path, "a.vmdk", "--snapshot", "--scratch", tmp_path) as (_, uri):
        qemu_io(uri, "write -P 7 1000 70000", "read -P 7 1000 70000", "read -P 5 0 1000", "flush")
    assert (tmp_path / "a.vmdk").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.vmdk"]


def test_a_disk_of_more_files_than_the_soft_limit_is_opened(tmp_path: Path) -> None:
    """A split disk of 2 TiB has more parts than the usual limit of open files, 1024."""
    place = tmp_path / "many.vmdk"
    create_disk(str(place), "twoGbMaxExtentFlat", 300 * 512, split_sectors=1)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = subprocess.run(
        [sys.executable, "-m", "rollpoint", "disk", "info", place, "--json"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["chain"][0]["extents"]) == 300

"""Fuzzes the descriptor parser, which is Python: libFuzzer does not reach it.

    python tests/fuzz/descriptor.py --seconds 60 --findings FOLDER
    python tests/fuzz/descriptor.py --replay INPUT

Mutations know the grammar: lines, keys, numbers, quotes, encodings. Where the
package ``atheris`` is installed, coverage guides them: libFuzzer for Python.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import signal
import sys
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

ENGINE = Path(__file__).parent.parent.parent / "src" / "engine"
HANG_SECONDS = 20  # for one input; a MiB takes a tenth of a second
MAX_BYTES = 1 << 20

# The rooms that are tested need no more of the package than each other.
_package = types.ModuleType("rollpoint_rooms")
_package.__path__ = [str(ENGINE)]
sys.modules.setdefault("rollpoint_rooms", _package)


def _rooms() -> tuple[types.ModuleType, types.ModuleType, types.ModuleType]:
    names = ("descriptor", "descriptor_write", "errors")
    return tuple(importlib.import_module(f"rollpoint_rooms.{name}") for name in names)  # type: ignore[return-value]


if importlib.util.find_spec("atheris") is not None and __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["rollpoint_rooms"]):
        reading, writing, errors = _rooms()
else:
    reading, writing, errors = _rooms()

SEEDS = [
    b"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=12345678
parentCID=ffffffff
isNativeSnapshot="no"
createType="monolithicSparse"

# Extent description
RW 4192256 SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
ddb.geometry.cylinders = "4159"
ddb.longContentID = "0123456789abcdef0123456712345678"
ddb.uuid = "60 00 C2 9f 9a b0 9b 9c-13 55 b8 11 fd 2c 92 9b"
""",
    b"""# Disk DescriptorFile\r
version=3\r
encoding="windows-1252"\r
CID=fffffffe\r
parentCID=12345678\r
createType="twoGbMaxExtentFlat"\r
parentFileNameHint="p\xe4rent.vmdk"\r
# Extent description\r
RW 4192256 FLAT "a-f001.vmdk" 0\r
RDONLY 2048 FLAT "a-f002.vmdk" 63\r
NOACCESS 100 ZERO \r
# Change Tracking File\r
changeTrackPath="a-ctk.vmdk"\r
ddb.rollpoint.commit = "00000001"\r
""",
    """version=1
CID=1
parentCID=ffffffff
createType="custom"
encoding="GBK"
RW 63 VMFS "磁盘-flat.vmdk"
RW 1 VMFSRDM "raw" 0 partition /dev/sda 1234
RW 9 SESPARSE "b"
RW 9 VMFSSPARSE "c"
keyID = "x"
something.else=1
""".encode("gbk"),
    # found: the encoding was looked for in capitals, and the value was not
    b"""version=1
CID=12345678
PARENTcid=FFFFFFFF
isNati\xe6eSnapshot="n`"
createType="monolithicSparse"
RW 4192256 SPARSE "disk"
DDB.ENCODING=sHIFT_jis
""",
    b"""version=1
ddb.encoding="UTF-8"raw" 0 w""
CID=12345678
createType="monolithicSparse"
parentCID=ffffffff
RW 4192256 SPARSE "EUC-KR"
""",
]

KEYS = [
    b"version", b"encoding", b"CID", b"parentCID", b"isNativeSnapshot", b"createType",
    b"parentFileNameHint", b"changeTrackPath", b"keyID", b"encryptionKeys", b"ddb.adapterType",
    b"ddb.encoding", b"ddb.longContentID", b"ddb.rollpoint.commit", b"ddb.uuid", b"other",
]  # fmt: skip
WORDS = [
    b"RW", b"RDONLY", b"NOACCESS", b"FLAT", b"VMFS", b"SPARSE", b"ZERO", b"VMFSSPARSE", b"SESPARSE",
    b"VMFSRDM", b"VMFSRAW", b"custom", b"monolithicFlat", b"streamOptimized", b"vmfsSeSparse",
    b"2GbMaxExtentSparse", b"ffffffff", b"fffffffe", b"0", b"1", b"2", b"3", b"-1", b"+1", b"1_0",
    b"9223372036854775807", b"18014398509481983", b"18446744073709551616", b"0" * 19 + b"1",
    b"UTF-8", b"GBK", b"Big5", b"Shift_JIS", b"windows-1252", b"windows-864", b"windows-932",
    b"windows-1361", b"iso-8859-8", b"iso-2022-jp", b"utf-16", b"utf-7", b"EUC-KR", b"gb18030",
    b"koi8-r", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\0", b'"', b'""', b"=", b" = ", b" ",
    b"\t", b"#", b"..", b"../x", b"/etc/hostname", b"\x0b", b"\x0c", b"\x1c", b"\x85",
    b"\xc2\x85", b"\xa0", b"\xe2\x80\xa8", b"\xd9\xa3", b"\xff", b"\x81", b"\x80\\",
    b"\x83\x5c", b"\xc4\xb0", b"\xe2\x84\xaa",
]  # fmt: skip


class Broken(Exception):
    """A promise that did not hold."""


def need(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


# ---- what must hold ----


def check(data: bytes) -> bool:
    """Every promise of the two rooms for one input. True: it was accepted."""
    try:
        parsed = reading.parse(data, "input")
    except errors.Error as error:
        need(error.message and "\n" not in error.message, "a message is one line")
        return False
    _check_values(parsed)
    _check_format(parsed)
    _check_edits(reading.text_of(data), parsed)
    for extent in parsed.extents:
        _check_name(extent.file)
    _check_name(parsed.parent_hint)
    return True


def _check_values(parsed: object) -> None:
    need(parsed.sectors == sum(extent.sectors for extent in parsed.extents), "the sum")
    need(0 < parsed.sectors < 1 << 54, "the size fits")
    need(0 <= parsed.cid < 1 << 32 and 0 <= parsed.parent_cid < 1 << 32, "ids have 32 bits")
    for extent in parsed.extents:
        end = extent.sectors + (extent.offset_sectors or 0)
        need(extent.sectors > 0 and end < 1 << 54, "an extent ends within 64 bits")
        need((extent.file is None) == (extent.type == "ZERO"), "files where they belong")


def _check_format(parsed: object) -> None:
    try:
        again = writing.format_descriptor(parsed)
    except errors.UsageError as error:
        need("1 MiB" in error.message, f"what was read cannot be written: {error.message}")
        return
    need(reading.parse(again, "again") == parsed, "what was written is what was read")


def _check_edits(text: bytes, parsed: object) -> None:
    def edited(**how: object) -> object:
        return reading.parse(writing.edit(text, **how), "edited")

    def rest(one: object, *, but: tuple[str, ...]) -> dict[str, object]:
        found = {name: getattr(one, name) for name in type(one).__slots__ if name not in but}
        found["ddb"] = [
            (key, value)
            for key, value in one.ddb
            if key.lower() != writing.COMMIT_KEY
            and not ("cid" in but and key.lower() == "ddb.longcontentid")
        ]
        return found

    room = MAX_BYTES - len(text) > 200
    changed = edited(cid=0xABCDEF01, parent_cid=0x89ABCDEF) if room and parsed.parent_hint else None
    if changed is not None:
        need((changed.cid, changed.parent_cid) == (0xABCDEF01, 0x89ABCDEF), "both ids change")
        need(
            rest(changed, but=("cid", "parent_cid")) == rest(parsed, but=("cid", "parent_cid")),
            "the ids alone change",
        )
    if room:
        noted = edited(commit=0x12345678)
        need(writing.noted_commit(noted) == 0x12345678, "a commit is noted")
        need(rest(noted, but=()) == rest(parsed, but=()), "the note alone changes")
    ended = edited(end_commit=True)
    need(writing.noted_commit(ended) is None, "a commit is ended")
    need(rest(ended, but=()) == rest(parsed, but=()), "the note alone goes")
    dropped = edited(drop_tracking=True)
    need(dropped.change_track_path is None, "tracking is dropped")
    need(dropped.version != 3, "and the version that says so")
    need(
        rest(dropped, but=("change_track_path", "version"))
        == rest(parsed, but=("change_track_path", "version")),
        "tracking alone goes",
    )


def _check_name(name: str | None) -> None:
    if name is None:
        return
    try:
        kept = reading.require_base_name(name, "input", "extent")
    except errors.Error as error:
        need("\n" not in str(error), "a message is one line")
        return
    need(kept == name and Path(name).name == name, "a base name is one component")
    need(all(character.isprintable() or character == "\u3000" or ord(character) > 127
             for character in name), "and shows itself")  # fmt: skip


# ---- inputs ----


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few changes that know lines, words and numbers."""
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        data = rng.choice(_CHANGES)(data, rng)
    return data[:MAX_BYTES]


def _word(data: bytes, rng: random.Random) -> bytes:
    words = list(re.finditer(rb"[\w.-]+|[^\w\s]", data))
    if not words:
        return data + rng.choice(WORDS)
    at = rng.choice(words)
    return data[: at.start()] + rng.choice(WORDS + KEYS) + data[at.end() :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(WORDS) * rng.choice((1, 1, 1, 2, 9)) + data[at:]


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.randrange(4)
    if action == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 1:
        lines.insert(at, lines[other])
    elif action == 2:
        del lines[at]
    else:
        space = rng.choice((b"", b" ", b"\t", b"  "))
        quote = rng.choice((b"", b'"'))
        value = quote + rng.choice(WORDS) + quote
        lines.insert(at, rng.choice(KEYS) + space + b"=" + space + value + space)
    return b"\n".join(lines)


def _byte(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"v"
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _case(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = lines[at].swapcase()
    return b"\n".join(lines)


def _long(data: bytes, rng: random.Random) -> bytes:
    """Much of one thing, where a slow expression would show."""
    if rng.randrange(50):
        return data
    at = rng.randrange(len(data) + 1)
    count = rng.choice((1000, 10_000, 100_000))
    return data[:at] + rng.choice([*WORDS, b"a=", b'a "', b"\n#", b"\na=1"]) * count + data[at:]


_CHANGES = (_word, _word, _insert, _insert, _line, _line, _line, _byte, _case, _long)


def slow_inputs() -> Iterator[bytes]:
    """A MiB of each thing that could make an expression go back and forth."""
    head = b'version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\nRW 1 ZERO\n'
    units = [
        b" ", b"\t", b"a", b"=", b'"', b"a ", b" a", b'"a', b"\r", b"\n", b"#", b"\n ", b"\na=",
        b"a.", b"RW 1 ", b'RW 1 FLAT "', b"\nCID", b"\nencoding", b" encoding=", b"\n\t", b"0",
        b"ddb.", b"\nddb.encoding", b"=\t", b"\xc3\xa4", b"\ndDb.rollpoint.commit ", b"\nRW 1 ZERO",
    ]  # fmt: skip
    starts = [b"", b"RW", b"RW 1 ", b'RW 1 FLAT "', b'RW 1 FLAT "a"', b"a", b"a=", b"CID="]
    for start in starts:
        for unit in units:
            room = (MAX_BYTES - 300 - len(head) - len(start)) // len(unit)
            yield head + start + unit * room
            yield head + start + unit * room + b"\n!"


# ---- running ----


def _hangs(*_: object) -> NoReturn:
    raise Broken(f"one input takes more than {HANG_SECONDS} seconds")


def try_one(data: bytes) -> bool:
    signal.alarm(HANG_SECONDS)
    try:
        return check(data)
    finally:
        signal.alarm(0)


def fuzz(seconds: float, runs: int, seed: int) -> tuple[int, bytes | None, str]:
    """Executions; then the input that broke a promise, and how."""
    rng = random.Random(seed)
    pool = list(SEEDS)
    slow = slow_inputs() if runs == sys.maxsize else iter(())
    stop = time.monotonic() + seconds
    count = 0
    signal.signal(signal.SIGALRM, _hangs)
    while count < runs and (count % 100 or time.monotonic() < stop):
        data = mutate(rng.choice(pool), rng)
        if count < len(SEEDS):
            data = SEEDS[count]
        elif count % 100 == 99:
            data = next(slow, data)
        count += 1
        try:
            accepted = try_one(data)
        except Exception:
            return count, data, traceback.format_exc()
        if accepted and len(data) < 4096:  # what is accepted leads on
            if len(pool) < 2000:
                pool.append(data)
            else:
                pool[rng.randrange(len(SEEDS), len(pool))] = data
    return count, None, ""


def guided(arguments: argparse.Namespace) -> NoReturn:
    """With atheris: libFuzzer chooses, and keeps a corpus."""

    def change(data: bytes, room: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(3) == 0:
            return atheris.Mutate(data, room)
        return mutate(data, rng)[:room]

    folder = arguments.findings / "descriptor-corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(SEEDS):
        (folder / f"seed-{number}").write_bytes(data)
    options = [
        f"-max_total_time={int(arguments.seconds)}", f"-seed={arguments.seed}", "-max_len=4096",
        f"-artifact_prefix={arguments.findings}/descriptor-", f"-timeout={HANG_SECONDS}",
        f"-runs={arguments.runs}", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(folder)], check, custom_mutator=change)
    atheris.Fuzz()
    sys.exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the descriptor parser.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="no more executions than these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path())
    parser.add_argument("--replay", type=Path, metavar="INPUT")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        print("accepted" if check(arguments.replay.read_bytes()) else "refused")
        return 0
    if "atheris" in sys.modules:
        guided(arguments)
    runs = arguments.runs if arguments.runs >= 0 else sys.maxsize
    start = time.monotonic()
    seed = arguments.seed or random.SystemRandom().getrandbits(32)
    count, broken, how = fuzz(arguments.seconds, runs, seed)
    spent = max(time.monotonic() - start, 0.001)
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
    print(f"stat::average_exec_per_sec: {int(count / spent)}", file=sys.stderr)
    if broken is None:
        return 0
    arguments.findings.mkdir(parents=True, exist_ok=True)
    target = arguments.findings / f"descriptor-crash-{hashlib.sha1(broken).hexdigest()}"
    target.write_bytes(broken)
    print(f"{how}\nseed {seed}\n{target}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The NBD server byte by byte: what the protocol demands, and what hostile clients try.

Source: doc/proto.md of NetworkBlockDevice/nbd; the list of CVEs that each test guards
against is in its name or docstring.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from native_build import PROGRAMS, NativeBuild
from nbd_peers import (
    ABORT,
    ACK,
    DF,
    DISC,
    EINVAL,
    ENOSPC,
    ENOTSUP,
    EOVERFLOW,
    EPERM,
    ESHUTDOWN,
    EXPORT_NAME,
    FAST_ZERO,
    FLUSH,
    FUA,
    GO,
    INFO,
    INVALID,
    LIST,
    LIST_META,
    META,
    NO_HOLE,
    POLICY,
    READ,
    REP_INFO,
    REQ_ONE,
    SERVER,
    SET_META,
    STATUS,
    STRUCTURED_REPLY,
    TRIM,
    UNKNOWN,
    UNSUP,
    WRITE,
    ZEROES,
    Raw,
    flat_disk,
    go,
    meta,
    request,
    text,
)
from rollpoint._native import Chain, Gate
from rollpoint.export import Export, Server, serve

SIZE = 4 << 20
MIB = 1 << 20
LONG = "n" * 255


class Place:
    """A running server with its disk and socket."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.disk: Chain = flat_disk(folder, SIZE)
        self.gate = Gate()
        self.path = folder / "s"
        exports = [
            Export("", self.disk, self.gate),
            Export("ro", self.disk, read_only=True),
            Export(LONG, self.disk),
        ]
        self.server: Server = serve(exports, socket=self.path, **limits)

    def connect(self, **more: int) -> Raw:
        return Raw(self.path, **more)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    with place.server:
        yield place


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(**limits: int) -> Place:
        places.append(Place(tmp_path, **limits))
        return places[-1]

    yield make
    for place in places:
        place.server.stop()


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def cut_off(client: Raw) -> bool:
    """Whether one more byte finds the connection closed."""
    try:
        client.send(b"b")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


# ---- handshake ----


def test_the_greeting_offers_fixed_newstyle_without_zeroes(place: Place) -> None:
    with place.connect() as client:
        assert client.greeting == b"NBDMAGICIHAVEOPT" + b"\0\3"


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xFFFFFFFF])
def test_unknown_client_flags_end_the_connection(place: Place, flags: int) -> None:
    with place.connect(flags=flags) as client:
        assert client.closed()


def test_a_wrong_option_magic_ends_the_connection(place: Place) -> None:
    with place.connect() as client:
        client.send(b"IHAVEOPX" + bytes(8))
        assert client.closed()


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4095, 4096, 4097])
@pytest.mark.parametrize("option", [INFO, GO, LIST_META, SET_META])
def test_names_of_any_length_are_answered_and_never_echoed(
    place: Place, option: int, length: int
) -> None:
    """CVE-2017-15118, CVE-2020-10761."""
    name = b"x" * length
    data = meta(name, "base:allocation") if option in (LIST_META, SET_META) else go(name)
    with place.connect() as client:
        assert client.outcome(STRUCTURED_REPLY) == ACK
        replies = client.option(option, data)
        assert replies[-1][0] == (ACK if length == 0 else INVALID if length > 4096 else UNKNOWN)
        assert not any(b"xxxx" in body for _, body in replies)
        if option != GO or length:
            assert client.outcome(LIST) == ACK


@pytest.mark.parametrize("length", [1, 255, 256, 4096, 4097, 65536])
def test_export_name_of_an_unknown_export_ends_the_connection(place: Place, length: int) -> None:
    with place.connect() as client:
        client.send_option(EXPORT_NAME, b"x" * length)
        assert client.closed()


def test_the_longest_name_is_found(place: Place) -> None:
    with place.connect() as client:
        assert client.outcome(GO, go(LONG)) == ACK
        assert client.read(0, 1) == b"\0"


def test_export_name_ends_with_124_zeroes_unless_agreed_otherwise(place: Place) -> None:
    for flags, zeroes in ((1, 124), (3, 0), (0, 124)):
        with place.connect(flags=flags) as client:
            client.send_option(EXPORT_NAME, b"")
            size, offered = struct.unpack(">QH", client.receive(10))
            assert size == SIZE
            assert offered & 0x80 == 0  # no DF without structured replies
            assert client.receive(zeroes) == bytes(zeroes)
            assert client.error(FLUSH) == 0


def test_an_option_payload_may_have_64_kib_and_no_more(place: Place) -> None:
    """CVE-2017-15119: a payload of 4 GiB must not keep the server busy."""
    with place.connect() as client:
        assert client.outcome(99, bytes(65536)) == UNSUP
    for length in (65537, 0x7FFFFFFF, 0xFFFFFFFF):
        with place.connect() as client:
            client.send_option(99, b"", length)
            assert client.closed()


def test_the_33rd_option_ends_the_connection(place: Place) -> None:
    with place.connect() as client:
        for _ in range(32):
            assert client.outcome(99) == UNSUP
        client.send_option(99)
        assert client.closed()


def test_unknown_options_are_refused_and_the_next_is_understood(place: Place) -> None:
    with place.connect() as client:
        for option in (0, 4, 5, 11, 12, 0xFFFFFFFF):
            assert client.outcome(option, b"data") == UNSUP
        assert client.outcome(LIST) == ACK


def test_options_without_data_refuse_data(place: Place) -> None:
    with place.connect() as client:
        assert client.outcome(LIST, b"x") == INVALID
        assert client.outcome(STRUCTURED_REPLY, b"x") == INVALID
        assert client.outcome(LIST_META, meta("")) == INVALID  # still not structured


def test_abort_is_acknowledged_even_with_data(place: Place) -> None:
    for data in (b"", b"bye"):
        with place.connect() as client:
            assert client.outcome(ABORT, data) == ACK
            assert client.closed()


def test_list_names_all_exports(place: Place) -> None:
    with place.connect() as client:
        replies = client.option(LIST)
        assert [kind for kind, _ in replies] == [SERVER] * 3 + [ACK]
        assert [body for _, body in replies[:-1]] == [text(""), text("ro"), text(LONG)]


def test_info_tells_size_flags_and_block_sizes_when_asked(place: Place) -> None:
    with place.connect() as client:
        plain = client.option(INFO, go(""))
        assert plain == [(REP_INFO, struct.pack(">HQH", 0, SIZE, 0x96D)), (ACK, b"")]
        full = client.option(INFO, go("ro", 3, 1, 2, 77))
        assert full == [
            (REP_INFO, struct.pack(">HQH", 0, SIZE, 0x10F)),
            (REP_INFO, struct.pack(">HIII", 3, 1, 4096, 32 * MIB)),
            (ACK, b""),
        ]
        assert client.outcome(STRUCTURED_REPLY) == ACK
        assert client.option(INFO, go(""))[0][1] == struct.pack(">HQH", 0, SIZE, 0x9ED)


BAD_INNER_LENGTHS = [
    b"",
    b"\0",
    b"\0\0\0",
    struct.pack(">I", 0),
    struct.pack(">IH", 1, 0),
    struct.pack(">IH", 0xFFFFFFFF, 0),
    struct.pack(">IH", 0xFFFFFFFA, 0),
    struct.pack(">IH", 0, 1),
    struct.pack(">IH", 0, 0xFFFF) + bytes(8),
    struct.pack(">IHH", 0, 0, 3),
    struct.pack(">IHHH", 0, 1, 3, 3),
]


@pytest.mark.parametrize("data", BAD_INNER_LENGTHS, ids=bytes.hex)
def test_inner_lengths_are_checked_against_the_outer_one(place: Place, data: bytes) -> None:
    """CVE-2022-26495, CVE-2022-26496."""
    with place.connect() as client:
        assert client.outcome(GO, data) == INVALID
        assert client.outcome(INFO, data) == INVALID
        assert client.outcome(LIST) == ACK


BAD_QUERIES = [
    b"",
    struct.pack(">I", 0),
    struct.pack(">II", 0, 1),
    struct.pack(">III", 0, 1, 1),
    struct.pack(">III", 0, 1, 0xFFFFFFFF),
    struct.pack(">II", 0, 0xFFFFFFFF),
    struct.pack(">II", 0, 0) + b"x",
    struct.pack(">II", 5, 0),
    meta("", "base:allocation") + b"x",
    meta("", "b" * 4097),
]


@pytest.mark.parametrize("data", BAD_QUERIES, ids=lambda data: data[:12].hex())
def test_queries_are_checked_too_and_a_bad_one_selects_nothing(place: Place, data: bytes) -> None:
    with place.connect() as client:
        assert client.outcome(STRUCTURED_REPLY) == ACK
        assert client.outcome(SET_META, meta("", "base:allocation")) == ACK
        assert client.outcome(LIST_META, data) == INVALID
        assert client.outcome(SET_META, data) == INVALID
        client.enter()
        client.request(STATUS, 0, 512)
        assert client.chunk_error() == EINVAL


def test_contexts_need_structured_replies(place: Place) -> None:
    with place.connect() as client:
        assert client.outcome(LIST_META, meta("")) == INVALID
        assert client.outcome(SET_META, meta("", "base:allocation")) == INVALID


def test_contexts_are_listed_and_chosen_as_the_protocol_says(place: Place) -> None:
    with place.connect() as client:
        assert client.outcome(STRUCTURED_REPLY) == ACK
        listed = [(META, struct.pack(">I", 0) + b"base:allocation"), (ACK, b"")]
        chosen = [(META, struct.pack(">I", 1) + b"base:allocation"), (ACK, b"")]
        none = [(ACK, b"")]
        assert client.option(LIST_META, meta("")) == listed
        assert client.option(LIST_META, meta("", "base:")) == listed
        assert client.option(LIST_META, meta("", "x-y:z", "base:allocation", "base:")) == listed
        assert client.option(LIST_META, meta("", "x-y:z", "base:other", "nocolon", "")) == none
        assert client.option(SET_META, meta("", "base:")) == none
        assert client.option(SET_META, meta("")) == none
        assert client.option(SET_META, meta("", "base:allocation", "base:allocation")) == chosen
        assert client.outcome(SET_META, meta("unknown", "base:allocation")) == UNKNOWN


def test_a_context_counts_only_for_the_export_it_was_chosen_for(place: Place) -> None:
    with place.connect() as client:
        assert client.outcome(STRUCTURED_REPLY) == ACK
        assert client.outcome(SET_META, meta("ro", "base:allocation")) == ACK
        client.enter("")
        client.request(STATUS, 0, 512)
        assert client.chunk_error() == EINVAL


# ---- transmission ----


@pytest.mark.parametrize("kind", [5, 8, 9, 255, 0xFFFF])
def test_unknown_commands_are_refused_and_the_next_is_understood(place: Place, kind: int) -> None:
    with place.connect().enter() as client:
        assert client.error(kind, 0, 512) == EINVAL
        assert client.read(0, 4) == bytes(4)


@pytest.mark.parametrize("structured", [False, True])
def test_flags_that_do_not_belong_to_a_command_are_refused(
    place: Place, structured: bool
) -> None:
    bad = {
        READ: [NO_HOLE, REQ_ONE, FAST_ZERO, 32] + ([] if structured else [DF]),
        WRITE: [NO_HOLE, DF, REQ_ONE, FAST_ZERO, 0x8000],
        FLUSH: [NO_HOLE, DF],
        TRIM: [NO_HOLE, FAST_ZERO],
        ZEROES: [DF, REQ_ONE, 64],
    }
    for kind, flags in bad.items():
        with place.connect().enter(structured=structured) as client:
            for flag in flags:
                data = bytes(512) if kind == WRITE else b""
                length = 0 if kind == FLUSH else 512
                client.request(kind, 0, length, flags=flag, data=data)
                if structured and kind == READ:
                    assert client.chunk_error() == EINVAL
                else:
                    assert client.simple() == EINVAL
            assert client.error(FLUSH) == 0


def test_fua_may_come_with_every_command(place: Place) -> None:
    with place.connect().enter(status=True) as client:
        assert client.write(0, b"a" * 512, flags=FUA) == 0
        for kind, length in ((FLUSH, 0), (TRIM, 512), (ZEROES, 512)):
            assert client.error(kind, 0, length, flags=FUA) == 0
        for kind in (READ, STATUS):
            client.request(kind, 0, 512, flags=FUA)
            assert client.chunk()[1] in (1, 5)


@pytest.mark.parametrize("structured", [False, True])
def test_length_zero_does_no_harm(place: Place, structured: bool) -> None:
    with place.connect().enter(structured=structured) as client:
        for offset in (0, 1, SIZE):
            assert client.write(offset, b"") == 0
            assert client.error(TRIM, offset, 0) == 0
            assert client.error(ZEROES, offset, 0) == 0
            client.request(READ, offset, 0)
            if structured:
                assert client.chunk() == (1, 0, b"")
            else:
                assert client.simple() == 0
        assert client.error(FLUSH) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 1), (SIZE - 511, 512), (0, SIZE + 1), (2**64 - 1, 1), (2**64 - 512, 1024), (2**63, 1)],
)
def test_requests_past_the_end_are_refused_whole(place: Place, offset: int, length: int) -> None:
    with place.connect().enter() as client:
        client.write(SIZE - 512, b"z" * 512)
        assert client.error(READ, offset, length) == EINVAL
        assert client.error(TRIM, offset, length) == EINVAL
        assert client.error(ZEROES, offset, length) == ENOSPC
        assert client.write(offset, b"y" * length) == ENOSPC
        assert client.read(SIZE - 512, 512) == b"z" * 512
        assert client.read(0, 512) == bytes(512)


def test_lengths_beyond_the_largest_payload(place: Place) -> None:
    with place.connect().enter() as client:
        assert client.error(READ, 0, 32 * MIB + 1) == EINVAL
        assert client.error(ZEROES, 0, 0xFFFFFFFF) == ENOSPC  # no payload: looked at calmly
        client.request(WRITE, 0, 32 * MIB + 1)
        assert client.closed()
    with place.connect().enter(structured=True) as client:
        client.request(READ, 0, 0xFFFFFFFF)
        assert client.chunk_error() == EOVERFLOW


def test_flush_takes_no_range(place: Place) -> None:
    with place.connect().enter() as client:
        assert client.error(FLUSH, 0, 512) == EINVAL
        assert client.error(FLUSH, 512, 0) == EINVAL
        assert client.error(FLUSH) == 0


def test_a_wrong_request_magic_ends_the_connection(place: Place) -> None:
    with place.connect().enter() as client:
        client.send(struct.pack(">IHHQQI", 0x25609514, 0, READ, 0, 0, 512))
        assert client.closed()


def test_the_17th_protocol_error_ends_the_connection(place: Place) -> None:
    with place.connect().enter() as client:
        for _ in range(16):
            assert client.error(99, 0, 0) == EINVAL
        client.request(99)
        assert client.simple() == EINVAL
        assert client.closed()


def test_disc_is_obeyed_after_what_came_before(place: Place) -> None:
    with place.connect().enter() as client:
        data = b"q" * (300 * 1024)
        client.request(WRITE, 0, len(data), flags=FUA, data=data)
        client.request(TRIM, MIB, MIB, flags=FUA)
        client.request(FLUSH)
        client.request(DISC)
        assert [client.simple() for _ in range(3)] == [0, 0, 0]
        assert client.closed()
    assert place.disk.pread(len(data), 0) == data


def test_cookies_come_back_as_they_were(place: Place) -> None:
    with place.connect().enter(structured=True) as client:
        for cookie in (0, 1, 2**64 - 1, 0x0102030405060708):
            client.request(READ, 0, 1, cookie=cookie)
            assert client.chunk(cookie)[1] == 1
            assert client.error(FLUSH, cookie=cookie) == 0


def test_a_read_only_export_says_so_and_keeps_its_word(place: Place) -> None:
    with place.connect().enter("ro") as client:
        assert client.write(0, b"x" * 512) == EPERM
        assert client.write(0, b"x" * 400_000) == EPERM  # its payload is not taken for requests
        for kind in (TRIM, ZEROES):
            assert client.error(kind, 0, 512) == EPERM
        assert client.error(FLUSH) == 0
        assert client.read(0, 512) == bytes(512)
    assert place.server.stats()["writes"] == 0


def test_a_disk_without_fast_zeroes_refuses_them_and_changes_nothing(place: Place) -> None:
    with place.connect().enter() as client:
        assert client.write(0, b"x" * 512) == 0
        assert client.error(ZEROES, 0, 512, flags=FAST_ZERO) == ENOTSUP
        assert client.read(0, 512) == b"x" * 512
        assert client.error(ZEROES, 0, 512, flags=NO_HOLE) == 0
        assert client.read(0, 512) == bytes(512)


def test_structured_reads_carry_their_offset_and_one_final_chunk(place: Place) -> None:
    with place.connect().enter(structured=True) as client:
        assert client.write(1000, b"hello") == 0
        for flags in (0, DF):
            client.request(READ, 999, 7, flags=flags)
            assert client.chunk() == (1, 1, struct.pack(">Q", 999) + b"\0hello\0")
        client.request(READ, 0, MIB, flags=DF)  # served by a worker
        flags, kind, payload = client.chunk()
        assert (flags, kind, len(payload)) == (1, 1, MIB + 8)


def test_block_status_covers_the_range_it_was_asked_for(place: Place) -> None:
    with place.connect().enter(status=True) as client:
        assert client.write(MIB, b"d" * 65536) == 0
        for offset, length in ((0, SIZE), (1, 511), (MIB + 7, 12345), (SIZE - 1, 1)):
            for flags in (0, REQ_ONE):
                client.request(STATUS, offset, length, flags=flags)
                done, kind, payload = client.chunk()
                assert (done, kind) == (1, 5)
                context, *rest = struct.unpack(f">I{(len(payload) - 4) // 4}I", payload)
                assert context == 1
                lengths, states = rest[::2], rest[1::2]
                assert all(lengths)
                assert sum(lengths) <= length
                if flags:
                    assert len(lengths) == 1
                else:
                    assert sum(lengths) == length
                assert set(states) <= {0, 3}
        client.request(STATUS, 0, 0)
        assert client.chunk_error() == EINVAL
        client.request(STATUS, SIZE, 1)
        assert client.chunk_error() == EINVAL


def test_errors_of_the_disk_reach_the_client_and_the_connection_lives_on(tmp_path: Path) -> None:
    disk = flat_disk(tmp_path, SIZE)
    path = tmp_path / "disk.img"
    os.truncate(path, SIZE // 2)  # behind its back: the rest cannot be read
    with serve([Export("", disk)], socket=tmp_path / "s") as server:
        with Raw(tmp_path / "s").enter(structured=True) as client:
            client.request(READ, SIZE - 4096, 4096)
            assert client.chunk_error() == 5
            client.request(READ, 0, 4096)
            assert client.chunk()[1] == 1
        assert server.stats()["errors"] == 1


def test_a_hold_is_told_as_shutdown_and_reads_go_on(place: Place) -> None:
    with place.connect().enter() as client:
        assert client.write(0, b"before") == 0
        place.gate.hold()
        assert client.write(0, b"behind") == ESHUTDOWN
        assert client.write(0, b"x" * 300_000) == ESHUTDOWN
        assert client.write(0, b"behind", flags=FUA) == ESHUTDOWN
        for kind in (TRIM, ZEROES):
            assert client.error(kind, 0, 4096) == ESHUTDOWN
            assert client.error(kind, 0, 2 * MIB) == ESHUTDOWN
        assert client.error(FLUSH) == 0
        assert client.read(0, 6) == b"before"
        place.gate.release()
        assert client.write(0, b"behind") == 0


# ---- accidents ----


def script() -> bytes:
    """A whole session, with inline commands, jobs, FUA and every option."""
    write = request(WRITE, 0, 700, flags=FUA) + b"w" * 700
    return b"".join(
        [
            struct.pack(">I", 3),
            b"IHAVEOPT" + struct.pack(">II", STRUCTURED_REPLY, 0),
            b"IHAVEOPT" + struct.pack(">II", LIST, 0),
            *(
                b"IHAVEOPT" + struct.pack(">II", option, len(data)) + data
                for option, data in (
                    (SET_META, meta("", "base:allocation")),
                    (INFO, go("", 3)),
                    (GO, go("", 3)),
                )
            ),
            request(READ, 0, 300_000),
            write,
            request(STATUS, 0, SIZE),
            request(TRIM, 0, MIB),
            request(FLUSH, 0, 0),
            request(ZEROES, 0, 4096, flags=FUA),
            request(READ, 0, 4096),
            request(DISC, 0, 0),
        ]
    )


def test_a_client_may_vanish_after_any_byte(place: Place) -> None:
    """As qemu's iotest 083; with the socket closed, and with replies still taken."""
    whole = script()
    for stop in range(len(whole) + 1):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(60)
        client.connect(str(place.path))
        client.sendall(whole[:stop])
        if stop % 2:
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        client.close()
    assert eventually(lambda: place.server.stats()["connections_open"] == 0)
    with place.connect().enter() as client:
        assert client.read(0, 512) is not None


@pytest.mark.parametrize("seed", range(40))
def test_noise_ends_a_connection_and_nothing_else(place: Place, seed: int) -> None:
    """Bytes of a good session with some replaced."""
    rng = random.Random(seed)
    data = bytearray(script())
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] = rng.choice((0, 255, rng.randrange(256)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(place.path))
        client.settimeout(60)
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
    with place.connect().enter() as client:
        assert client.error(FLUSH) == 0


# ---- limits ----


def test_a_handshake_has_a_deadline_however_busy_it_looks(limited: Callable[..., Place]) -> None:
    """CVE-2024-7409; a slow loris sends a byte now and then."""
    place = limited(handshake_ms=500)
    with place.connect(flags=None) as mute, place.connect() as loris:
        loris.send_option(99, b"", 60000)
        assert mute.closed()
        assert eventually(lambda: cut_off(loris))


def test_a_request_that_has_begun_has_a_deadline(limited: Callable[..., Place]) -> None:
    place = limited(receive_ms=150)
    for length in (4096, MIB):  # in the buffer, and as a job
        with place.connect().enter() as client:
            client.request(WRITE, 0, length)
            assert eventually(lambda client=client: cut_off(client))


def test_an_idle_connection_has_none(limited: Callable[..., Place]) -> None:
    place = limited(receive_ms=50, send_ms=50, handshake_ms=1300)
    with place.connect().enter() as client:
        assert client.error(FLUSH) == 0
        with place.connect(flags=None) as mute:
            assert mute.closed()  # by then its buffers have gone back, too
        assert client.error(FLUSH) == 0


def test_a_client_that_takes_no_replies_is_cut_off(limited: Callable[..., Place]) -> None:
    place = limited(send_ms=100)
    for length in (65536, 2 * MIB):  # from the connection's thread, and from workers
        with place.connect().enter() as client:
            for _ in range(60):
                try:
                    client.request(READ, 0, length)
                except (BrokenPipeError, ConnectionResetError):
                    break
            assert eventually(lambda: place.server.stats()["connections_open"] == 0)


def test_an_export_takes_so_many_connections_and_says_so(limited: Callable[..., Place]) -> None:
    place = limited(connections_per_export=3)
    clients = [place.connect().enter() for _ in range(3)]
    for client in clients:
        assert client.error(FLUSH) == 0  # has worked: is not dropped for another
    with place.connect() as another:
        assert another.outcome(GO, go("")) == POLICY
        assert another.outcome(GO, go("ro")) == ACK
    with place.connect() as another:
        another.send_option(EXPORT_NAME, b"")
        assert another.closed()
    clients.pop().socket.close()
    assert eventually(lambda: place.server.stats()["connections_open"] == 2)
    clients.append(place.connect().enter())
    for client in clients:
        assert client.error(FLUSH) == 0
        client.socket.close()


def test_a_thousand_idle_connections_do_not_stop_a_good_client(place: Place) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    idle = []
    for number in range(1000):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(place.path))
        if number % 4 == 1:
            client.send(b"\0\0")
        elif number % 4 == 2:
            client.send(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 99, 60000))
        elif number % 4 == 3:
            client.send(
                struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", GO, 6) + go("")
            )
        idle.append(client)
    with place.connect().enter() as good:
        assert good.error(FLUSH) == 0
        assert resident_bytes() - before < 64 * MIB
        for client in idle:
            client.close()
        assert good.error(FLUSH) == 0


@pytest.mark.long
@pytest.mark.parametrize("way", ["address", "thread"])
def test_ten_thousand_holds_and_ten_thousand_stops_under_sanitizers(
    native: NativeBuild, way: str
) -> None:
    program = native.program(PROGRAMS / "nbd_threads_test.c", way)
    subprocess.run([program, "10000", "10000"], check=True, timeout=3600)

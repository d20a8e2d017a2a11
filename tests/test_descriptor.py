"""Descriptors: what is read, what is refused and where, and that writing loses nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollpoint.descriptor import (
    CREATE_TYPES,
    NO_PARENT,
    Descriptor,
    Extent,
    is_descriptor,
    parse,
    require_base_name,
)
from rollpoint.descriptor_write import edit, format_descriptor, geometry, new_cid, new_descriptor
from rollpoint.errors import Error, FormatError, UnsupportedError, UsageError

WORKSTATION = b"""# Disk DescriptorFile
version=1
encoding="windows-1252"
CID=335db02
parentCID=ffffffff
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"

# Extent description
RW 8323072 SPARSE "Windows 7-s001.vmdk"
RW 8323072 SPARSE "Windows 7-s002.vmdk"
RW 25600 SPARSE "Windows 7-s003.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders="1044"
ddb.longContentID = "0123456789abcdef01234567335db02f"
ddb.uuid = "60 00 C2 9f 9a b0 9b 9c-13 55 b8 11 fd 2c 92 9b"
ddb.somethingNew = "kept"
"""
CHILD = b"""# Disk DescriptorFile
version=3
CID=0000000a
parentCID=0000000b
createType="vmfsSparse"
parentFileNameHint="vm.vmdk"
# Extent description
RW 100 VMFSSPARSE "vm-000001-delta.vmdk"

# Change Tracking File
changeTrackPath="vm-000001-ctk.vmdk"

# The Disk Data Base
ddb.longContentID = "00000000000000000000000000000000"
"""
FLAT = b'version=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'


def refused(data: bytes) -> Error:
    with pytest.raises(Error) as caught:
        parse(data, "x.vmdk")
    assert "x.vmdk" in caught.value.message
    return caught.value


def test_a_descriptor_of_workstation_is_read() -> None:
    found = parse(WORKSTATION, "x.vmdk")
    assert (found.version, found.cid, found.parent_cid) == (1, 0x335DB02, NO_PARENT)
    assert found.create_type == "twoGbMaxExtentSparse"
    assert found.sectors == 2 * 8323072 + 25600
    assert found.extents[2] == Extent("RW", 25600, "SPARSE", "Windows 7-s003.vmdk")
    assert found.ddb_text("adapterType") == "lsilogic"
    assert found.ddb_text("geometry.cylinders") == "1044"
    assert [key for key, _ in found.ddb][-1] == "ddb.somethingNew"
    assert found.other_text("isNativeSnapshot") == "no"


def test_a_child_with_change_tracking_is_read() -> None:
    found = parse(CHILD, "x.vmdk")
    assert (found.parent_hint, found.parent_cid) == ("vm.vmdk", 11)
    assert (found.version, found.change_track_path) == (3, "vm-000001-ctk.vmdk")


def test_line_ends_blanks_padding_and_key_case_do_not_matter() -> None:
    plain = parse(WORKSTATION, "x.vmdk")
    assert parse(WORKSTATION.replace(b"\n", b"\r\n"), "x.vmdk") == plain
    assert parse(re.sub(rb"(?m)$", b" \t", WORKSTATION), "x.vmdk") == plain
    assert parse(WORKSTATION + bytes(5000), "x.vmdk") == plain
    assert parse(WORKSTATION + b"\0e\n\0\0", "x.vmdk") == plain  # QEMU after a shorter CID
    assert parse(b"\xef\xbb\xbf" + WORKSTATION, "x.vmdk") == plain
    assert parse(WORKSTATION.replace(b"createType=", b"CREATETYPE = "), "x.vmdk") == plain
    assert parse(WORKSTATION.replace(b" SPARSE ", b"\tSPARSE\t"), "x.vmdk") == plain


def test_names_are_in_the_encoding_that_the_descriptor_names() -> None:
    text = WORKSTATION.replace(b"Windows 7", b"Caf\xe9")
    assert parse(text, "x.vmdk").extents[0].file == "Café-s001.vmdk"
    assert format_descriptor(parse(text, "x.vmdk")).count(b"Caf\xe9") == 3
    error = refused(text.replace(b'encoding="windows-1252"\n', b""))
    assert "line 9" in error.message
    sjis = WORKSTATION.replace(b"windows-1252", b"Shift_JIS").replace(
        b"Windows 7", "表示".encode("shift_jis")
    )
    assert parse(sjis, "x.vmdk").extents[0].file == "表示-s001.vmdk"
    for name in (b"rot13", b"utf-16", b"hex", b"cp037", b"klingon", b""):
        assert "line 3" in refused(WORKSTATION.replace(b"windows-1252", name)).message


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (b"", "no extent"),
        (b'RX 1 FLAT "a" 0', "line 5: access 'RX'"),
        (b'rw 1 FLAT "a" 0', "line 5: access 'rw'"),
        (b'RW 1 FLOT "a" 0', "line 5: extent type 'FLOT'"),
        (b'RW 0 FLAT "a" 0', "line 5: an extent of 0"),
        (b'RW -1 FLAT "a" 0', "line 5: the number of sectors"),
        (b'RW 1.5 FLAT "a" 0', "line 5: the number of sectors"),
        (b'RW 0x10 FLAT "a" 0', "line 5: the number of sectors"),
        ('RW ٣ FLAT "a" 0'.encode(), "line 5: the number of sectors"),
        (b'RW 9223372036854775808 FLAT "a" 0', "line 5: the number of sectors"),
        (b"RW " + b"9" * 5000 + b' FLAT "a" 0', "line 5: the number of sectors"),
        (b'RW 1 FLAT "a" -1', "line 5: the offset"),
        (b'RW 1 FLAT "a" 18014398509481983', "line 5: the extent ends past"),
        (b'RW 18014398509481983 FLAT "a" 0\nRW 1 FLAT "b" 0', "line 6: the disk is larger"),
        (b'RW 1 FLAT "a" 0 0', "line 5: a FLAT extent ends"),
        (b'RW 1 FLAT "" 0', "line 5: the file name is empty"),
        (b"RW 1 FLAT", "line 5: an extent of type FLAT has a file"),
        (b'RW 1 ZERO "a"', "line 5: an extent of type ZERO has no file"),
        (b'RW 1 VMFS "a" 0', "line 5: an extent of type VMFS ends"),
        (b'RW 1 SPARSE "a" 0', "line 5: an extent of type SPARSE ends"),
        (b'RW 1 FLAT "a', "line 5: neither"),
        (b"RW 1 FLAT a 0", "line 5: neither"),
        (b"what is this", "line 5"),
        (b'RW 1 FLAT "a" 0\rRW 1 FLAT "b" 0', "line 5: a carriage return"),
        (b"version=1", "line 5: version is there a second time"),
        (b"CID=2", "line 5: CID is there a second time"),
        (b"cid=2", "line 5: cid is there a second time"),
        (b'ddb.a = "1"\nddb.A = "2"', "line 6: ddb.A is there a second time"),
        (b'changeTrackPath="a', "line 5: the value of changeTrackPath has no closing quote"),
        (b'changeTrackPath="a"b"', "line 5: the value of changeTrackPath has a quote inside"),
        (b'parentFileNameHint="p"\nRW 1 FLAT "a" 0', "line 3: parentFileNameHint names a parent"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(lines: bytes, says: str) -> None:
    error = refused(FLAT + lines + b"\n")
    assert isinstance(error, FormatError)
    assert says in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"version=1\n", b"", "not a VMDK descriptor"),
        (b"version=1\n", b"version=x\n", "line 1: version"),
        (b"version=1\n", b"version=4\n", "line 1: descriptor version 4"),
        (b"version=1\n", b"version = 1\n", "not a VMDK descriptor"),
        (b"CID=1\n", b"", "no CID line"),
        (b"CID=1\n", b"CID=\n", "line 2: CID is ''"),
        (b"CID=1\n", b"CID=0x1\n", "line 2: CID is '0x1'"),
        (b"CID=1\n", b"CID=123456789\n", "line 2: CID is '123456789'"),
        (b"CID=1\n", b"CID=-1\n", "line 2: CID is '-1'"),
        (b"parentCID=ffffffff\n", b"", "no parentCID line"),
        (b"parentCID=ffffffff\n", b"parentCID=2\n", "line 3: parentCID names a parent"),
        (b'createType="monolithicFlat"\n', b"", "no createType line"),
        (b"monolithicFlat", b"monolithicflat", "line 4: createType 'monolithicflat'"),
        (b"CID=1\n", b"CID=1\n\0\n", "no createType line"),
        (b"CID=1\n", b"# " + b"x" * (1 << 20) + b"\n", "larger than a descriptor may be"),
    ],
)
def test_a_wrong_header_is_named(old: bytes, new: bytes, says: str) -> None:
    assert says in refused((FLAT + b'RW 1 FLAT "a" 0\n').replace(old, new, 1)).message


def test_lines_that_tempt_a_regular_expression_end() -> None:
    room = (1 << 20) - 1000
    for line in (b"a=" + b" " * room + b"x", b"a " * (room // 2), b" " * room + b'"', b"a" * room):
        data = FLAT + line + b"\n"
        with pytest.raises(FormatError):
            parse(data, "x.vmdk")


def test_aliases_become_the_usual_word() -> None:
    text = FLAT.replace(b"monolithicFlat", b"2GbMaxExtentFlat") + b'RW 1 FLAT "a" 0\n'
    assert parse(text, "x.vmdk").create_type == "twoGbMaxExtentFlat"


@pytest.mark.parametrize(
    "head", [b"KDMV", b"", b"\0" * 512, b"# only\n#comments\n", b"CID=1\nversion=1\n", b"\xff\xfe"]
)
def test_other_files_are_no_descriptors(head: bytes) -> None:
    assert not is_descriptor(head)
    assert "format raw" in refused(head).hint


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/b", "..", ".", "", "a\\b", "C:\\x", "x\0y", "n" * 256,
     "x\ry", "x\x1b[2Jy", "x\x9by", "kdmv.\u202exe", "x\u2066y", "x\u2028y", "x\x7f"],
)
def test_only_plain_names_may_be_opened(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"x\.vmdk"):
        require_base_name(name, "x.vmdk", "extent")


def test_a_plain_name_may_be_opened() -> None:
    for name in ("a.vmdk", "..a", "Café 1=2-flat.vmdk", "-x", "a\u3000b", "\U0001f4be"):
        assert require_base_name(name, "x.vmdk", "extent") == name


# --- writing ---

words = st.text(
    st.characters(codec="utf-8", exclude_characters='"\r\n\0', exclude_categories=["Cs"]),
    min_size=1,
    max_size=12,
)
plain_words = words.filter(lambda text: text == text.strip())
cids = st.integers(0, NO_PARENT - 1)
counts = st.integers(1, 1 << 50)
extents = st.one_of(
    st.builds(Extent, st.just("RW"), counts, st.just("FLAT"), words, st.integers(0, 1 << 50)),
    st.builds(Extent, st.just("RDONLY"), counts, st.sampled_from(["VMFS", "SPARSE"]), words),
    st.builds(Extent, st.sampled_from(["RW", "NOACCESS"]), counts, st.just("ZERO")),
)
pairs = st.lists(
    st.tuples(st.from_regex(r"\A[a-zA-Z][a-z.]{0,8}\Z"), words.map(lambda text: f'"{text}"')),
    max_size=5,
    unique_by=lambda pair: pair[0].lower(),
)


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    has_parent = draw(st.booleans())
    return Descriptor(
        create_type=draw(st.sampled_from(sorted(CREATE_TYPES))),
        cid=draw(st.integers(0, NO_PARENT)),
        extents=tuple(draw(st.lists(extents, min_size=1, max_size=6))),
        parent_cid=draw(cids) if has_parent else NO_PARENT,
        parent_hint=draw(words) if has_parent else None,
        version=draw(st.integers(1, 3)),
        encoding=draw(st.sampled_from([None, "UTF-8", "utf-8"])),
        change_track_path=draw(st.none() | words),
        ddb=tuple((f"ddb.{key}", value) for key, value in draw(pairs)),
        other=tuple((f"x{key}", value) for key, value in draw(pairs)),
    )


@settings(max_examples=150, derandomize=True)
@given(descriptors())
def test_what_is_written_is_read_back(descriptor: Descriptor) -> None:
    assert parse(format_descriptor(descriptor), "x.vmdk") == descriptor


@settings(max_examples=300, derandomize=True)
@given(st.data())
def test_any_text_is_read_or_refused_with_its_name(data: st.DataObject) -> None:
    """Mutations of good descriptors: never another exception, and sizes never wrap."""
    text = bytearray(data.draw(st.sampled_from([WORKSTATION, CHILD, FLAT])))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    try:
        found = parse(bytes(text), "x.vmdk")
    except Error as caught:
        refusal = caught.message
    else:
        assert 0 < found.sectors * 512 < 1 << 63
        return
    assert "x.vmdk" in refusal


def test_all_titles_that_readers_look_for_are_written() -> None:
    text = format_descriptor(parse(CHILD, "x.vmdk")).decode()
    lines = text.splitlines()
    assert lines[0] == "# Disk DescriptorFile"
    assert lines[1] == "version=3"
    assert lines.index("# Extent description") < lines.index("# The Disk Data Base")
    assert "CID=0000000a" in lines


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\rb", "a\0b", "a\udc80b"])
def test_a_name_that_cannot_be_written_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        format_descriptor(new_descriptor("vmfs", [Extent("RW", 1, "VMFS", name)]))


def test_a_name_outside_the_encoding_is_refused() -> None:
    latin = parse(WORKSTATION, "x.vmdk")
    changed = [Extent("RW", 1, "SPARSE", "表.vmdk")]
    with pytest.raises(UsageError, match="windows-1252"):
        format_descriptor(Descriptor(latin.create_type, 1, tuple(changed), encoding=latin.encoding))


def test_a_new_descriptor_has_what_readers_need() -> None:
    made = new_descriptor(
        "monolithicFlat",
        [Extent("RW", 2 << 21, "FLAT", "a-flat.vmdk", 0)],
        parent=("p.vmdk", 7),
        adapter="ide",
        ddb=[("thinProvisioned", "1")],
    )
    assert parse(format_descriptor(made), "x.vmdk") == made
    assert made.ddb_text("adapterType") == "ide"
    assert (made.ddb_text("longContentID") or "").endswith(f"{made.cid:08x}")
    assert made.ddb_text("thinProvisioned") == "1"
    with pytest.raises(UsageError, match="adapter"):
        new_descriptor("vmfs", [], adapter="nvme")


def test_a_content_id_is_never_one_with_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([0xFFFFFFFF, 0xFFFFFFFE, 0, 5])
    monkeypatch.setattr("os.urandom", lambda count: next(draws).to_bytes(count))
    assert new_cid() == 5


def test_geometry_stays_in_its_limits() -> None:
    assert geometry(4096, "lsilogic") == (2, 64, 32)
    assert geometry(83886080, "lsilogic") == (5221, 255, 63)
    assert geometry(1 << 40, "lsilogic") == (65535, 255, 63)
    assert geometry(1 << 40, "ide") == (16383, 16, 63)
    assert geometry(1, "ide") == (1, 16, 63)


# --- editing ---


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_new_content_id_changes_nothing_else(end: bytes) -> None:
    text = WORKSTATION.replace(b"\n", end)
    changed = edit(text, cid=0x1234)
    assert changed == text.replace(b"CID=335db02", b"CID=00001234", 1).replace(
        b"335db02f", b"00001234"
    )
    assert parse(changed, "x.vmdk").cid == 0x1234


def test_the_parents_content_id_can_be_changed() -> None:
    changed = edit(CHILD, parent_cid=0xABCDEF)
    assert changed == CHILD.replace(b"parentCID=0000000b", b"parentCID=00abcdef")


def test_a_stale_change_tracking_file_is_dropped() -> None:
    found = parse(edit(CHILD, drop_tracking=True), "x.vmdk")
    assert (found.version, found.change_track_path) == (1, None)
    assert found.extents == parse(CHILD, "x.vmdk").extents
    assert edit(WORKSTATION, drop_tracking=True) == WORKSTATION


@pytest.mark.parametrize("text", [CHILD, CHILD.rstrip(b"\n"), CHILD.replace(b"\n", b"\r\n")])
def test_the_note_of_a_commit_comes_and_goes(text: bytes) -> None:
    noted = edit(text, commit=5)
    assert parse(noted, "x.vmdk").ddb_text("rollpoint.commit") == "00000005"
    assert parse(edit(noted, commit=6), "x.vmdk").ddb_text("rollpoint.commit") == "00000006"
    assert edit(noted, end_commit=True).rstrip(b"\n") == text.rstrip(b"\n")


def test_an_edit_of_a_line_that_is_missing_is_an_error() -> None:
    with pytest.raises(FormatError, match="no CID line"):
        edit(b"version=1\n", cid=1)

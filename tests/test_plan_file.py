"""Plan files: what they say is taken, and each mistake is told with its line and its cure."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from conftest import ROOT
from replicas import rollpoint
from rollpoint import toml_lines
from rollpoint.errors import UsageError
from rollpoint.plans import file, tables
from rollpoint.plans.tables import Plan

EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))
HEAD = 'version = 1\n[[group]]\nname = "a"\nreplicas = ["x"]\n'


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as raised:
        file.parse(text.encode(), "site.toml")
    return raised.value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_of_the_page_are_plans(path: Path) -> None:
    plan = file.load(str(path))
    assert plan.group
    assert plan == file.parse(path.read_bytes(), path.name)


def test_there_are_examples_and_the_page_names_each() -> None:
    page = (ROOT / "docs" / "plans.md").read_text()
    assert len(EXAMPLES) >= 3
    assert all(f"examples/{path.name}" in page for path in EXAMPLES)


def test_every_field_is_on_the_page() -> None:
    page = (ROOT / "docs" / "plans.md").read_text()
    section = page.partition("## The plan file")[2].partition("\n## ")[0]
    section = re.sub(r"```.*?```", "", section, flags=re.DOTALL)
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", section))))
    for kind in (tables.Plan, tables.Limits, tables.Group, tables.Script, tables.Gate):
        for field in msgspec.structs.fields(kind):
            assert field.name in words, f"{kind.__name__}.{field.name}"


def test_the_plans_on_the_page_are_plans() -> None:
    page = (ROOT / "docs" / "plans.md").read_text()
    blocks = re.findall(r"```toml\n(version.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        assert file.parse(block.encode(), "page.toml").name == "page"


def test_what_it_says_is_taken_and_the_rest_has_its_default() -> None:
    plan = file.load(str(ROOT / "docs" / "examples" / "three-tiers.toml"))
    assert (plan.name, plan.rto_target, plan.limits.plan) == ("shop", "30m", 10)
    assert plan.limits.hosts == {"*": 10}
    databases, applications, web = plan.group
    assert databases.same_cut
    assert [gate.name for gate in databases.gate] == ["guest is up", "takes connections"]
    assert applications.after == ["databases"]
    assert applications.before[0].on == ["planned", "unplanned"]
    assert applications.gate[0].status == 200
    assert web.gate[0].env == {"STAGE": "recovery"}
    assert web.after_up[0].shell


def test_a_plan_without_a_name_has_its_files() -> None:
    assert file.parse(HEAD.encode(), "plans/site.east.toml").name == "site.east"
    error = refused_as(HEAD, "plans/my site.toml")
    assert error.message.startswith("plans/my site.toml, line 1: ")
    assert 'name = "..."' in error.hint


def refused_as(text: str, where: str) -> UsageError:
    with pytest.raises(UsageError) as raised:
        file.parse(text.encode(), where)
    return raised.value


def test_scripts_and_gates_without_a_name_get_one_of_their_own() -> None:
    text = HEAD + (
        '[[group.gate]]\nkind = "heartbeat"\n'
        '[[group.gate]]\nkind = "heartbeat"\n'
        '[[group.gate]]\nkind = "tcp"\nname = "heartbeat 2"\nhost = "h"\nport = 1\n'
        '[[group.before]]\ncommand = ["/opt/do", "it"]\n'
        '[[group.after_up]]\ncommand = ["do"]\n'
        '[[group.after_up]]\ncommand = "do"\nshell = true\n'
    )
    group = file.parse(text.encode(), "site.toml").group[0]
    assert [gate.name for gate in group.gate] == ["heartbeat", "heartbeat 3", "heartbeat 2"]
    assert [script.name for script in (*group.before, *group.after_up)] == ["do", "do 2", "shell"]


def test_a_relative_root_is_beside_the_plan(tmp_path: Path) -> None:
    text = (
        'version = 1\nreplicas = "r"\n[[group]]\nname = "a"\nreplicas = ["x"]\n'
        '[[group]]\nname = "b"\nreplicas = ["x"]\nroot = "/srv/r"\n'
        '[[group]]\nname = "c"\nreplicas = ["x"]\nroot = "../s"\n'
    )
    path = tmp_path / "site.toml"
    path.write_text(text)
    plan = file.load(str(path))
    roots = [file.root_of(plan, str(path), group) for group in plan.group]
    assert roots == [str(tmp_path / "r"), "/srv/r", str(tmp_path.parent / "s")]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path / "nor" / "this.toml"):
        with pytest.raises(UsageError, match="there is no plan file") as raised:
            file.load(str(path))
        assert raised.value.hint


def test_a_place_can_be_asked_for_by_others(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('version = 1\n[[group]]\nname = "a"\nreplicas = [\n  "x",\n  "y",\n]\n')
    assert file.place(str(path), ("group", 0, "replicas", 1)) == f"{path}, line 6"
    assert file.place(str(path), ("group", 0, "root")) == f"{path}, line 2"


# Each: a plan, the line of its mistake, words of the message, words of the cure.
MISTAKES = {
    "empty file": ("", 1, "version is missing", "version = 1"),
    "no version": ('# a plan\n[[group]]\nname = "a"\n', 1, "version is missing", "version = 1"),
    "newer": ("\nversion = 2\nnew = 3\n", 2, "this Rollpoint reads 1", "upgrade"),
    "older": ("version = 0\n", 1, "no version 0", "version = 1"),
    "version as text": ('version = "1"\n', 1, "no whole number", "version = 1"),
    "version true": ("version = true\n", 1, "no whole number", "version = 1"),
    "no group": ("version = 1\n", 1, "group is missing", "docs/plans.md"),
    "empty group": ("version = 1\n\ngroup = []\n", 3, "no group", "[[group]]"),
    "group no array": ("version = 1\n[group]\n", 2, "expected an array", ""),
    "unknown at top": ("version = 1\nzork = 1\ngroup = []\n", 2, "unknown field zork", "known"),
    "unknown table": (HEAD + "[limit]\nplan = 1\n", 5, "unknown field limit", "limits"),
    "unknown in group": (HEAD + "\nprioritty = 1\n", 6, "prioritty in group", "priority"),
    "unknown in gate": (HEAD + '[[group.gate]]\nkind = "tcp"\nprot = 1\n', 7, "prot", "port"),
    "unknown in limits": (HEAD + "[limits]\nhots = 1\n", 6, "hots in limits", "hosts"),
    "no group name": ('version = 1\n[[group]]\nreplicas = ["x"]\n', 2, "name is missing", "page"),
    "no replicas": ('version = 1\n[[group]]\nname = "a"\n', 2, "replicas is missing", ""),
    "wrong type": (HEAD + "delay = 5\n", 5, "expected text, got a whole number", "quotes"),
    "moment bare": (HEAD + "point = 2026-01-01T00:00:00Z\n", 5, "got a moment", "quotes"),
    "list for text": (HEAD + 'delay = ["5s"]\n', 5, "expected text, got an array", ""),
    "number in replicas": (HEAD.replace('"x"', '"x",\n1'), 5, "group.replicas", "quotes"),
    "bool for number": (HEAD + "parallelism = true\n", 5, "whole number, got true", ""),
    "network a number": (HEAD + "network = 1\n", 5, "text or a table", ""),
    "one of the networks": (
        HEAD + 'network = { a = "b", c = "d",\n'.rstrip() + ' e = 1 }\n',
        5, "group.network.e", "quotes",
    ),
    "one of the hosts": (
        HEAD + '[limits.hosts]\n"" = 3\n"*" = "many"\n', 7, "limits.hosts.*: expected", ""
    ),
    "unknown word": (HEAD + 'on_failure = "halt"\n', 5, "is halt", "stop, continue, ask"),
    "unknown kind": (HEAD + '[[group.gate]]\nkind = "ping"\n', 6, "is ping", "heartbeat, tcp"),
    "unknown run": (
        HEAD + '[[group.before]]\ncommand = ["x"]\non = ["test",\n  "live"]\n', 8, "live", "test"
    ),
    "bad group name": (HEAD.replace('"a"', '"a/b"'), 3, "cannot name a group", "letters"),
    "bad plan name": ('version = 1\nname = "-x"\n' + HEAD[12:], 2, "cannot name a plan", "letters"),
    "bad queue": (HEAD + 'queue = "plan:x"\n', 5, "cannot name a queue", "letters"),
    "empty root": (HEAD.replace("1\n", '1\nreplicas = ""\n', 1), 2, "replicas is empty", "."),
    "two groups": (HEAD + HEAD[12:].replace('"x"', '"y"'), 6, "first is in line 3", "own"),
    "no such group": (HEAD + 'after = ["b"]\n', 5, "no group 'b'", "a"),
    "twice after": (
        HEAD + HEAD[12:].replace('"a"', '"b"').replace("x", "y") + 'after = ["a",\n"a"]\n',
        9, "twice", "out",
    ),
    "after itself": (HEAD + 'after = ["a"]\n', 5, "a -> a", "after"),
    "nothing in replicas": (HEAD.replace('"x"', ""), 4, "has no replicas", '["*"]'),
    "only left out": (HEAD.replace('"x"', '"!x"'), 4, "only leaves out", '"*"'),
    "a path": (HEAD.replace('"x"', '"y",\n"z/x"'), 5, "'z/x'", "root"),
    "no name at all": (HEAD.replace('"x"', '""'), 4, "blanks", "pattern"),
    "only a mark": (HEAD.replace('"x"', '"a", "!"'), 4, "blanks", "pattern"),
    "not closed": (HEAD.replace('"x"', '"web[12"'), 4, "never closed", "[abc]"),
    "no label": (HEAD.replace('"x"', '"label:"'), 4, "no label", "label:NAME"),
    "bad label": (HEAD.replace('"x"', '"label:a b"'), 4, "no label", "letters"),
    "same twice": (HEAD.replace('"x"', '"x",\n"x"'), 5, "first is in line 4", "name"),
    "in and out": (HEAD.replace('"x"', '"x",\n"!x"'), 5, "left out", "decide"),
    "in two groups": (HEAD + HEAD[12:].replace('"a"', '"b"'), 7, "in group a already (line 4)", ""),
    "no duration": (HEAD + 'delay = "soon"\n', 5, "delay: 'soon' is not a duration", "2s"),
    "no target": (HEAD + 'rpo_target = "0s"\n', 5, "rpo_target is 0s", "more"),
    "no target at top": ('version = 1\nrto_target = "x"\n' + HEAD[12:], 2, "rto_target", "2s"),
    "below nothing": (HEAD + "parallelism = -1\n", 5, "parallelism is -1", "from 0"),
    "huge": (HEAD + "priority = 99999999999999999999\n", 5, "out of range", "from"),
    "no point": (HEAD + 'point = "lastest"\n', 5, "'lastest'", "latest, app"),
    "a number": (HEAD + 'point = "123"\n', 5, "each replica's own", "latest, app"),
    "common nothing": (HEAD + 'point = "common:"\n', 5, "without a name", "nightly"),
    "common not closed": (HEAD + 'point = "common:[a"\n', 5, "never closed", "[abc]"),
    "year of no point": (HEAD + 'point = "1066-10-14T00:00:00Z"\n', 5, "1066", "latest"),
    "empty network": (HEAD + '[group.network]\na = "b"\nb = ""\n', 7, "is empty", "here"),
    "skipped nothing": (HEAD + '[group.skip]\nzork = "x"\n', 6, "zork", "duplicates"),
    "skipped for nothing": (HEAD + '[group.skip]\nroom = " "\n', 6, "without a reason", "why"),
    "limit": (HEAD + "[limits]\nplan = 0\n", 6, "plan is 0", "from 1"),
    "limit of a host": (HEAD + "[limits]\n\nhosts = { '*' = 0 }\n", 7, "is 0", "from 1"),
    "limit of no host": (
        HEAD + 'queue = "mount1"\n[limits.hosts]\nmount2 = 1\n', 7, "no group has", "mount1"
    ),
    "limit of a datastore": (HEAD + "[limits.datastores]\nds1 = -2\n", 6, "is -2", "from 1"),
    "datastore of no name": (HEAD + '[limits.datastores]\n"" = 2\n', 6, "is empty", "name it"),
    "NUL": (HEAD + 'network = "a\\u0000"\n', 5, "NUL", "out"),
    # gates
    "tcp without port": (
        HEAD + '[[group.gate]]\nkind = "tcp"\nhost = "x"\n', 5, "port of the tcp gate is missing",
        "port = 443",
    ),
    "tcp without host": (HEAD + '[[group.gate]]\nkind = "tcp"\nport = 1\n', 5, "host", "{address}"),
    "tcp with empty host": (
        HEAD + '[[group.gate]]\nkind = "tcp"\nport = 1\nhost = ""\n', 8, "is empty", "{address}"
    ),
    "http without url": (HEAD + '[[group.gate]]\nkind = "http"\n', 5, "url", "http://"),
    "marker without it": (HEAD + '[[group.gate]]\nkind = "marker"\n', 5, "marker", "login:"),
    "script without command": (HEAD + '[[group.gate]]\nkind = "script"\n', 5, "command", "["),
    "gate without kind": (HEAD + '[[group.gate]]\nname = "x"\n', 5, "kind is missing", ""),
    "of another kind": (
        HEAD + '[[group.gate]]\nkind = "heartbeat"\nport = 5\n', 7, "has no port", '"tcp"'
    ),
    "of another kind, as by default": (
        HEAD + '[[group.gate]]\nkind = "tcp"\nhost = "h"\nport = 5\nstatus = 200\n',
        9, "has no status", '"http"; tcp has host, port',
    ),
    "port": (HEAD + '[[group.gate]]\nkind = "tcp"\nhost = "h"\nport = 65536\n', 8, "port", "65535"),
    "host": (HEAD + '[[group.gate]]\nkind = "tcp"\nhost = "h://x"\nport = 1\n', 7, "host", "port"),
    "status": (
        HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://h/"\nstatus = 20\n', 8, "20", "100"
    ),
    "scheme": (HEAD + '[[group.gate]]\nkind = "http"\nurl = "ftp://h"\n', 7, "no URL", "http://"),
    "bracket": (HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://[::"\n', 7, "no URL", "http:"),
    "url port": (HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://h:x/"\n', 7, "no URL", "h"),
    "secret": (
        HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://me:it@h/"\n', 7, "password", "script"
    ),
    "ca without tls": (
        HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://h/"\nca_file = "x"\n', 8, "https", ""
    ),
    "checked and not": (
        HEAD + '[[group.gate]]\nkind = "http"\nurl = "https://h"\nca_file = "x"\ninsecure = true\n',
        9, "ca_file", "decide",
    ),
    "marker of lines": (
        HEAD + '[[group.gate]]\nkind = "marker"\nmarker = "a\\nb"\n', 7, "one line", "login"
    ),
    "group's heartbeat": (
        HEAD + '[[group.gate]]\nkind = "heartbeat"\neach = "group"\n', 7, "no machine", "tcp"
    ),
    "interval": (HEAD + '[[group.gate]]\nkind = "heartbeat"\ninterval = "2"\n', 7, "'2'", "2s"),
    "timeout": (HEAD + '[[group.gate]]\nkind = "heartbeat"\ntimeout = "0s"\n', 7, "is 0s", "more"),
    "retries": (HEAD + '[[group.gate]]\nkind = "heartbeat"\nretries = -1\n', 7, "retries", "0"),
    "no runs": (HEAD + '[[group.gate]]\nkind = "heartbeat"\non = []\n', 7, "on is empty", "test"),
    "two gates of a name": (
        HEAD + '[[group.gate]]\nkind = "heartbeat"\nname = "g"\n' * 2, 10, "second g", "own"
    ),
    "name of lines": (
        HEAD + '[[group.gate]]\nkind = "heartbeat"\nname = "a\\nb"\n', 7, "no name", "64"
    ),
    # scripts
    "shell with a vector": (
        HEAD + '[[group.before]]\nshell = true\ncommand = ["x"]\n', 7, "one text", "text"
    ),
    "text without a shell": (
        HEAD + '[[group.after_up]]\ncommand = "x y"\n', 6, "no shell", "shell = true"
    ),
    "gate's text without a shell": (
        HEAD + '[[group.gate]]\nkind = "script"\ncommand = "x y"\n', 7, "no shell", "shell = true"
    ),
    "no command": (HEAD + "[[group.before]]\ncommand = []\n", 6, "no program", "check"),
    "empty command": (HEAD + '[[group.before]]\ncommand = [""]\n', 6, "no program", "check"),
    "command missing": (HEAD + '[[group.before]]\nname = "x"\n', 5, "command is missing", ""),
    "inline": (HEAD + 'before = [{command = ["x"]},\n {command = "y"}]\n', 6, "no shell", "shell"),
    "variable": (HEAD + '[[group.before]]\ncommand = ["x"]\nenv = {"a-b" = ""}\n', 7, "a-b", "_"),
    "ours": (
        HEAD + '[[group.before]]\ncommand = ["x"]\n[group.before.env]\nROLLPOINT_X = ""\n',
        8, "ROLLPOINT_X", "another",
    ),
    "scripts of a name": (
        HEAD + '[[group.before]]\ncommand = ["x"]\nname = "n"\n'
        '[[group.after_up]]\ncommand = ["x"]\nname = "n"\n',
        10, "first is in line 7", "own",
    ),
    "placeholder": (
        HEAD + '[[group.before]]\ncommand = [\n"x",\n"{replcia}"]\n', 8, "{replcia}", "replica?"
    ),
    "placeholder in a url": (
        HEAD + '[[group.gate]]\nkind = "http"\nurl = "http://{ip}/"\n', 7, "{ip}", "address"
    ),
    "placeholder of a replica": (
        HEAD + '[[group.before]]\neach = "group"\ncommand = ["x", "{replica}"]\n',
        7, "{replica} means nothing", "{run}",
    ),
    "address before there is one": (
        HEAD + '[[group.before]]\ncommand = ["x",\n "{address}"]\n',
        7, "{address} means nothing before", "after_up",
    ),
    "in a shell too": (
        HEAD + '[[group.before]]\neach = "group"\nshell = true\ncommand = "x {address}"\n',
        8, "{address} means nothing", "{run}",
    ),
    "no TOML": (HEAD + "this is none\n", 5, "", "docs/plans.md"),
    "key twice": (HEAD + 'name = "b"\n', 5, "overwrite", "docs/plans.md"),
    "open string": (HEAD + 'delay = "5s\n', 5, "", "docs/plans.md"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_told_with_its_line_and_its_cure(name: str) -> None:
    text, line, says, cure = MISTAKES[name]
    error = refused(text)
    assert re.match(rf"site\.toml(, line {line}:| is no TOML: line {line}:) ", error.message), error
    assert says in error.message
    assert error.hint
    assert cure.replace("page", "docs/plans.md") in error.hint


def test_groups_that_wait_for_each_other_are_named() -> None:
    text = 'version = 1\n[[group]]\nname = "free"\nreplicas = ["f"]\nafter = ["b"]\n'
    for name, after in (("a", "c"), ("b", "a"), ("c", "b")):
        text += f'[[group]]\nname = "{name}"\nreplicas = ["{name}"]\nafter = ["{after}"]\n'
    error = refused(text)
    assert "groups wait for each other: b -> a -> c -> b" in error.message
    assert error.message.startswith("site.toml, line 13: ")


def test_many_groups_in_a_row_are_no_circle() -> None:
    text = HEAD + "".join(
        f'[[group]]\nname = "g{n}"\nreplicas = ["r{n}"]\nafter = ["{f"g{n + 1}" if n else "a"}"]\n'
        for n in range(1999, -1, -1)
    ).replace('"g2000"', '"a"')
    assert len(file.parse(text.encode(), "site.toml").group) == 2001


@pytest.mark.parametrize(
    "text",
    [
        '[[group.before]]\ncommand = ["x", "{}", "{\\"a\\": 1}", "${HOME}"]\n',
        "[[group.before]]\nshell = true\ncommand = \"x | awk '{print $1}' > ${OUT}\"\n",
        '[[group.gate]]\nkind = "http"\nurl = "http://[{address}]:8080/?r={replica}"\n',
        '[[group.gate]]\nkind = "http"\nurl = "https://{replica}.example/"\ninsecure = true\n',
        '[[group.gate]]\nkind = "tcp"\nhost = "fe80::1%eth0"\nport = 1\neach = "group"\n',
        'point = "common:[!]]*"\n',
        'point = "2026-11-22 10:15:00+01:00"\n',
    ],
)
def test_what_looks_like_a_mistake_and_is_none_is_taken(text: str) -> None:
    assert file.parse((HEAD + text).encode(), "site.toml").group


def test_the_same_name_elsewhere_is_another_replica() -> None:
    text = HEAD + HEAD[12:].replace('"a"', '"b"') + 'root = "/elsewhere"\n'
    assert len(file.parse(text.encode(), "site.toml").group) == 2


def test_lines_are_right_in_every_way_to_write_toml() -> None:
    text = (
        "a.b = 1 # c = 2\n"  # 1
        '"c d" = """\n'  # 2
        "x = 7\n"
        '[no]"\\""""\n'  # 4
        "'e.f' = '''\n"  # 5
        "[[no]]'''''\n"  # 6
        "g = [ # [\n"  # 7
        '  "]", # ,\n'  # 8
        "  [1,\n"  # 9
        "   2], {h = 1, i.j = [\n"  # 10
        "   3]},\n"  # 11
        "]\n"  # 12
        "k = 1979-05-27 07:32:00\r\n"  # 13
        "[ l . 'm' ]\n"  # 14
        "n = 'x' # [l]\n"  # 15
        "[[o]]\n"  # 16
        "[[o.p]]\n"  # 17
        "[o.p.q]\n"  # 18
        "r = ''\n"  # 19
        "[[o.p]]\n"  # 20
        "[[o]]\n"  # 21
        "[[o.p]]\n"  # 22
        '"\\u0073" = ""\n'  # 23
        "[t.u]\n"  # 24
        "[t]\n"  # 25
        "v = '''\n'''''\n"  # 26
        "w = 1\n"  # 28
    )
    lines = toml_lines.parse(text.encode(), "x.toml", "").lines
    expected = {
        ("a", "b"): 1, ("c d",): 2, ("e.f",): 5, ("g",): 7, ("g", 0): 8, ("g", 1): 9,
        ("g", 1, 0): 9, ("g", 1, 1): 10, ("g", 2, "h"): 10, ("g", 2, "i", "j"): 10,
        ("g", 2, "i", "j", 0): 11,
        ("k",): 13, ("l", "m"): 14, ("l", "m", "n"): 15, ("o", 0): 16, ("o", 0, "p", 0): 17,
        ("o", 0, "p", 0, "q"): 18, ("o", 0, "p", 0, "q", "r"): 19, ("o", 0, "p", 1): 20,
        ("o", 1): 21, ("o", 1, "p", 0): 22, ("o", 1, "p", 0, "s"): 23,
        ("t", "u"): 24, ("t",): 25, ("t", "v"): 26, ("t", "w"): 28,
    }  # fmt: skip
    assert {keys: lines.get(keys) for keys in expected} == expected
    assert set(lines) == {keys[:length] for keys in expected for length in range(len(keys) + 1)}


def test_a_plan_is_what_the_tables_say() -> None:
    assert isinstance(file.parse(HEAD.encode(), "site.toml"), Plan)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (HEAD + 'after = ["b"]\n' + HEAD[12:].replace('"a"', '"b"').replace("x", "y")
         + 'after = ["a"]\n', 5, "a -> b -> a"),
        (HEAD + '[[group.gate]]\nkind = "tcp"\nhost = "h"\n', 5, "port"),
        ("version = 7\n", 1, "this Rollpoint reads 1"),
    ],
    ids=["circle", "gate without a port", "newer"],
)  # fmt: skip
def test_of_a_wrong_plan_nothing_begins(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    state = tmp_path / "state"
    error = rollpoint("plan", "run", path, "--test", "--state", state, code=2)
    assert error["message"].startswith(f"{path}, line {line}: ")
    assert says in error["message"]
    assert error["hint"]
    assert not state.exists()

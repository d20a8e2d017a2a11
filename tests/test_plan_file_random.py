"""Plan files that nobody would think of: any text is a plan or a mistake that is told."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rollpoint import config, toml_lines
from rollpoint.errors import UsageError
from rollpoint.plans import file
from rollpoint.plans.tables import Plan
from toml_writer import CONFUSING, Author, Keys

EXAMPLES = [path.read_text() for path in sorted((ROOT / "docs" / "examples").glob("*.toml"))]
LIKE_A_PLAN = [
    *("version = 1\n", "[[group]]\n", "[[group.gate]]\n", "[group]\n", "[[group.before]]\n", "\n"),
    *('name = "a"\n', 'replicas = ["x"]\n', 'kind = "tcp"\n', "port = 1\n", 'host = "{group}"\n'),
    *("[limits]\n", "plan = 1\n", "hosts = { a = 1 }\n", 'command = ["x"]\n', "shell = true\n"),
    *("[[group.after_up]]\n", 'after = ["a"]\n', 'name = "b"\n', "group.x = 1\n", '"""', "'''"),
    *("point = 1979-05-27\n", "priority = 1e400\n", "delay = nan\n", "[group.skip]\n", "[", "]"),
]
AT_WILL = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=200
)


def plan_or_mistake(data: bytes) -> None:
    mistake: UsageError | None = None
    try:
        plan = file.parse(data, "site.toml")
    except UsageError as error:
        mistake = error
    if mistake is None:
        assert isinstance(plan, Plan)
        assert plan.group
        return
    assert mistake.message.startswith("site.toml")
    assert mistake.hint
    assert "\0" not in mistake.message
    assert len(mistake.message) < 2000
    found = re.match(r"site\.toml(?: is no TOML:|,) line (\d+)", mistake.message)
    if found:
        assert 1 <= int(found[1]) <= data.count(b"\n") + 1


@AT_WILL
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode())))
def test_any_bytes_are_a_plan_or_a_mistake(data: bytes) -> None:
    plan_or_mistake(data)


@AT_WILL
@given(st.lists(st.sampled_from(LIKE_A_PLAN), max_size=14))
def test_parts_of_plans_in_any_order_are_a_plan_or_a_mistake(parts: list[str]) -> None:
    plan_or_mistake("".join(parts).encode())


@AT_WILL
@given(st.sampled_from(EXAMPLES), st.data())
def test_an_example_with_anything_in_it_is_a_plan_or_a_mistake(
    text: str, data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 30)))
        new = data.draw(st.one_of(st.text(max_size=5), st.sampled_from([*CONFUSING, *LIKE_A_PLAN])))
        text = text[:start] + new + text[stop:]
    plan_or_mistake(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 400 + "]" * 400,
        "a = " + "{a = " * 300 + "1" + "}" * 300,
        "a = " + "[" * 100_000,
        "a" + ".a" * 2000 + " = 1",
        "version = 1\ngroup" + ".group" * 500 + " = 1",
        "version = " + "9" * 5000,
        "version = 1\n[[group]]\nname = 'a'\nreplicas = ['x']\npriority = -" + "9" * 4000,
        "version = 1e999",
        "version = 1979-13-45",
        "\ufeffversion = 1",
        'version = 1\n"' + "k" * 10_000 + '" = 1',
        'version = 1\n"a - at `$.group[0].x`" = 1',
        'version = 1\n"` - at `$.group[...]" = 1\ngroup = []',
        'version = 1\n[limits.hosts]\n" - at `$" = "x"\n[[group]]\nname="a"\nreplicas=[]',
        'version = 1\n"\\u0000" = 1',
        'version = 1\n[[group]]\nname="a"\nreplicas=["x"]\nskip={"\\u0000"="a"}',
    ],
    ids=range(16),
)
def test_what_is_meant_to_hurt_is_a_mistake(text: str) -> None:
    plan_or_mistake(text.encode())
    with pytest.raises(UsageError):
        config.parse(text.encode(), "replica.toml")


@AT_WILL
@given(st.integers(0, 1 << 32))
def test_everything_is_found_where_its_author_wrote_it(seed: int) -> None:
    choose = random.Random(seed)
    tables = some_table(choose, 3)
    author = Author(seed)
    text = author.write(tables)
    assert tomllib.loads(text) == tables  # the author writes TOML
    assert toml_lines.parse(text.encode(), "x.toml", "").lines == author.lines


def some_table(choose: random.Random, depth: int) -> dict[str, Any]:
    names = ["a", "b-c", "d e", "", "f.g", 'h"i', "j'k", "l\\", "#", "[m]"]
    return {name: some_value(choose, depth) for name in choose.sample(names, choose.randint(0, 5))}


def some_value(choose: random.Random, depth: int) -> Any:
    kind = choose.randrange(8 if depth else 4)
    if kind < 2:
        return choose.choice([0, 7, True, -1])
    if kind < 4:
        return choose.choice(["\n", " ", "x"]).join(choose.sample(CONFUSING, choose.randint(0, 4)))
    if kind == 4:
        return [some_value(choose, depth - 1) for _ in range(choose.randint(0, 3))]
    if kind == 5:
        return [some_table(choose, depth - 1) for _ in range(choose.randint(1, 3))]
    return some_table(choose, depth - 1)


# Plans that are right, and what can be made wrong of them.


def some_plan(choose: random.Random) -> dict[str, Any]:
    names = [f"g{number}" for number in range(choose.randint(1, 5))]
    groups = [some_group(choose, name, names[:number]) for number, name in enumerate(names)]
    plan: dict[str, Any] = {"version": 1, "name": "site", "group": groups}
    if choose.random() < 0.5:
        plan["limits"] = {"plan": 3, "hosts": {"*": 2, "": 1}, "datastores": {"ds 1": 2}}
    return plan


def some_group(choose: random.Random, name: str, before: list[str]) -> dict[str, Any]:
    group: dict[str, Any] = {
        "name": name,
        "replicas": [f"{name}-db", f"{name}-w*", f"!{name}-w[0-3]", "label:x"],
        "before": [some_script(choose) for _ in range(choose.randint(0, 2))],
        "gate": [some_gate(choose) for _ in range(choose.randint(0, 4))],
        "after_up": [some_script(choose) for _ in range(choose.randint(0, 2))],
    }
    if before:
        group["after"] = choose.sample(before, choose.randint(0, len(before)))
    rest = {
        "delay": "5s", "priority": 7, "parallelism": 2, "network": {"net a": "net b"},
        "point": "common:n*", "on_failure": "ask", "rpo_target": "1h", "same_cut": True,
        "skip": {"room": "it grows", "clock": "no clock"}, "test_network": "lab",
    }  # fmt: skip
    group |= {
        name: rest[name] for name in choose.sample(sorted(rest), choose.randint(0, len(rest)))
    }
    return dict(sorted(group.items(), key=lambda _: choose.random()))


def some_script(choose: random.Random) -> dict[str, Any]:
    script: dict[str, Any] = {"command": ["/bin/do", "{replica}", "--now"]}
    if choose.random() < 0.3:
        script = {"command": 'do "{replica}" | while { read x; }; do :; done', "shell": True}
    if choose.random() < 0.5:
        script |= {"env": {"A": "1", "B": "\n"}, "timeout": "1m"}
    return script


def some_gate(choose: random.Random) -> dict[str, Any]:
    own: dict[str, Any] = choose.choice(
        [
            {"kind": "heartbeat"},
            {"kind": "tcp", "host": "{address}", "port": 22},
            {"kind": "http", "url": "http://{address}:80/{plan}", "status": 204},
            {"kind": "marker", "marker": "{replica} login:"},
            {"kind": "script", "command": ["check", "{address}"]},
        ]
    )
    return own | ({"interval": "1s", "on": ["test", "planned"]} if choose.random() < 0.5 else {})


Planted = tuple[Keys, str]  # where, and words of the message


def plant_unknown(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    places: list[Keys] = [()]
    for number, group in enumerate(plan["group"]):
        places.append(("group", number))
        for family in ("before", "gate", "after_up"):
            places += [("group", number, family, place) for place in range(len(group[family]))]
    place = choose.choice(places)
    at(plan, place)["zork"] = choose.choice([1, "x", [1], {"a": 1}])
    return (*place, "zork"), "zork"


def plant_type(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    texts: list[Keys] = [keys for keys in leaves(plan) if isinstance(at(plan, keys), str)]
    keys = choose.choice(texts)
    at(plan, keys[:-1])[keys[-1]] = 7
    return keys, "7" if keys[-1] in ("kind", "on_failure") else ""


def plant_missing(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    needed = ("name", "replicas", "kind", "port", "host", "url", "marker", "command")
    keys = choose.choice([k for k in leaves(plan, whole=True) if k[-1] in needed and len(k) > 1])
    del at(plan, keys[:-1])[keys[-1]]
    return keys[:-1], f"{keys[-1]}"


def plant_value(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    wrong: dict[str | int, tuple[Any, str]] = {
        "delay": ("5", "delay"), "timeout": ("0s", "timeout"), "interval": ("1 hour", "interval"),
        "rpo_target": ("x", "rpo_target"), "priority": (1 << 70, "priority"),
        "port": (70000, "port"),
        "parallelism": (-1, "parallelism"), "point": ("now", "now"), "url": ("/x", "/x"),
        "status": (99, "status"), "marker": ("\n", "marker"), "plan": (0, "plan"), "*": (0, "is 0"),
        "room": ("", "reason"), "net a": (" ", "network"), "ds 1": (-1, "is -1"),
        "host": ("a b", "a b"), "name": ("a b", "a b"), "on_failure": ("halt", "halt"),
    }  # fmt: skip
    places = [keys for keys in leaves(plan) if keys[-1] in wrong]
    keys = choose.choice(places)
    at(plan, keys[:-1])[keys[-1]], word = wrong[keys[-1]]
    return keys, word


def plant_word(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    places = [
        k for k in leaves(plan) if len(k) > 1 and k[-2] in ("command", "replicas", "on", "after")
    ]
    keys = choose.choice(places)
    wrong = {"command": "{zork}", "replicas": "a/zork", "on": "zork", "after": "zork"}
    at(plan, keys[:-1])[keys[-1]] = wrong[str(keys[-2])]
    return keys, "zork"


def plant_circle(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    number = choose.randrange(len(plan["group"]))
    group = plan["group"][number]
    group.setdefault("after", []).append(group["name"])
    place = ("group", number, "after", len(group["after"]) - 1)
    return place, f"{group['name']} -> {group['name']}"


def plant_second(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    if len(plan["group"]) < 2:
        return None
    first, second = sorted(choose.sample(range(len(plan["group"])), 2))
    plan["group"][second]["name"] = plan["group"][first]["name"]
    return ("group", second, "name"), "a second g"


def plant_foreign(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    gates = [
        ("group", number, "gate", place)
        for number, group in enumerate(plan["group"])
        for place, gate in enumerate(group["gate"])
        if gate["kind"] != "http"
    ]
    if not gates:
        return None
    place: Keys = choose.choice(gates)
    at(plan, place)["text"] = "ok"
    return (*place, "text"), "has no text"


def plant_variable(choose: random.Random, plan: dict[str, Any]) -> Planted | None:
    places = [keys for keys in leaves(plan, whole=True) if keys[-1] == "env"]
    if not places:
        return None
    keys = choose.choice(places)
    at(plan, keys)["ROLLPOINT_RUN"] = "x"
    return (*keys, "ROLLPOINT_RUN"), "ROLLPOINT_RUN"


def at(plan: Any, keys: Keys) -> Any:
    for key in keys:
        plan = plan[key]
    return plan


def leaves(value: Any, keys: Keys = (), *, whole: bool = False) -> list[Keys]:
    """Where its plain values stand; whole: also all that hold others."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    else:
        return [keys]
    here = [keys] if whole and keys else []
    return here + [one for key, v in inside for one in leaves(v, (*keys, key), whole=whole)]


PLANTS: list[Callable[[random.Random, dict[str, Any]], Planted | None]] = [
    *(plant_unknown, plant_type, plant_missing, plant_value, plant_word),
    *(plant_circle, plant_second, plant_foreign, plant_variable),
]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 1 << 32))
def test_what_is_right_is_taken_however_it_is_written(seed: int) -> None:
    plan = some_plan(random.Random(seed))
    read = file.parse(Author(seed).write(plan).encode(), "site.toml")
    assert [group.name for group in read.group] == [group["name"] for group in plan["group"]]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_a_mistake_at_any_place_has_its_own_line(
    plant: Callable[[random.Random, dict[str, Any]], Planted | None], seed: int
) -> None:
    choose = random.Random(seed)
    plan = some_plan(choose)
    planted = plant(choose, plan)
    if planted is None:
        return
    keys, word = planted
    author = Author(seed)
    text = author.write(plan)
    with pytest.raises(UsageError) as raised:
        file.parse(text.encode(), "site.toml")
    line = author.lines[keys]
    assert raised.value.message.startswith(f"site.toml, line {line}: "), (keys, text)
    assert word in raised.value.message
    assert raised.value.hint

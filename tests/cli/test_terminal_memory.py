"""The terminal where models share memory: several are awake, and several switches run."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from llmux.cli.terminal import views
from llmux.cli.terminal.client import Client
from llmux.cli.terminal.picture import Picture
from llmux.cli.terminal.progress import describe
from llmux.cli.terminal.target import Target
from llmux.cli.terminal.top import Feed, Orders, Screen
from llmux.observe.schemas import (
    GroupStatus,
    HeldMemory,
    MemoryChange,
    PhaseChange,
    Pin,
    PinChange,
    PromisedMemory,
    ResourceMemory,
    Shape,
    Status,
    SwitchRecord,
)
from tests.cli.test_terminal import NOW, URL, drawn, model

GIB = 1 << 30


def switch(number: int, target: str, *evicts: str, **fields: Any) -> SwitchRecord:
    return SwitchRecord(
        id=number,
        group="default",
        source=evicts[0] if evicts else None,
        target=target,
        started=NOW - number,
        rule="close",
        reason=f"{target} waits",
        evicts=evicts,
        **fields,
    )


def held(name: str, gib: int, holding: Any = "awake") -> HeldMemory:
    return HeldMemory(model=name, bytes=gib * GIB, holding=holding)


GPU = ResourceMemory(
    resource="gpu0",
    amount=80 * GIB,
    free=10 * GIB,
    held=[held("embed", 10), held("chat", 60, "falling")],
    promised=[PromisedMemory(model="code", bytes=60 * GIB, evicts=["chat", "rank"])],
)

MODELS = {
    "chat": model("sleeping"),
    "code": model(),
    "embed": model("awake"),
    "rank": model("asleep", stopped=True),
    "small": model("waking"),
}

GROUP = GroupStatus(
    state="active", since=NOW - 90, active_model="embed", models=list(MODELS),
    pinned=None, switch=switch(1, "code", "chat", "rank"), standby=None,
    awake_models=["embed"], pins=[], memory=[GPU],
    switches=[switch(1, "code", "chat", "rank", expected_secs=40.0), switch(2, "small")],
)  # fmt: skip

STATUS = Status(
    at=NOW, version="1.2.3", boot="b1", started=NOW - 9000, state="active",
    active_model="embed", mode="auto", policy="adaptive", queue_depth={},
    groups={"default": GROUP}, models=MODELS, estimated_costs={},
)  # fmt: skip


def with_group(**fields: Any) -> Status:
    group = msgspec.structs.replace(GROUP, **fields)
    return msgspec.structs.replace(STATUS, groups={"default": group}, models=dict(MODELS))


def test_a_status_at_80_columns() -> None:
    assert (
        drawn(views.show_status(STATUS, URL))
        == """\
llmux 1.2.3 at http://127.0.0.1:3000, up 2.5 h, policy adaptive, mode auto

GROUP     MODEL              STATE                    IN FLIGHT  WAITING  PINNED
default   embed              active 90 s                      0        0  -
          chat + rank -> c…  sleeping 1.0 s of ~40 s
          nothing -> small   waking 2.0 s

MODEL     STATE      FOR  IN FLIGHT  WAITING  OLDEST  COST  ETA
chat      sleeping  42 s          0        0       -     -    -
code      asleep    42 s          0        0       -     -    -
embed     awake     42 s          0        0       -     -    -
rank      stopped   42 s          0        0       -     -    -
small     waking    42 s          0        0       -     -    -

MEMORY      SIZE    FREE  HELD BY                    PROMISED
gpu0      80 GiB  10 GiB  embed 10 GiB, chat 60 GiB  code 60 GiB after chat +
                          (falling)                  rank

default: switch 1, close: code waits
default: switch 2, close: small waits"""
    )


def test_all_that_are_awake_and_all_pins_are_named() -> None:
    pins = [Pin(model="rank", wait=True), Pin(model="embed", wait=False)]
    status = with_group(
        awake_models=["embed", "rank"], pins=pins, switch=None, switches=[], stays="they have work"
    )
    lines = drawn(views.groups_table(status, NOW), 120).splitlines()
    assert re.split(r" {2,}", lines[1]) == [
        "default", "embed, rank", "active 90 s", "0", "0", "rank, embed, wait",
    ]  # fmt: skip
    assert [str(line) for line in views.remark_lines(status, NOW)] == [
        "default: stays with embed, rank: they have work"
    ]


def test_memory_of_several_groups_and_more_held_than_there_is() -> None:
    over = msgspec.structs.replace(GPU, free=-5 * GIB, held=[], promised=[])
    two = {name: msgspec.structs.replace(GROUP, memory=[over]) for name in ("a", "b")}
    table = views.memory_table(msgspec.structs.replace(STATUS, groups=two))
    assert table is not None
    assert [re.split(r" {2,}", line) for line in drawn(table).splitlines()[1:]] == [
        [f"{name}: gpu0", "80 GiB", "-5 GiB", "-", "-"] for name in ("a", "b")
    ]
    assert views.memory_table(msgspec.structs.replace(STATUS, groups={})) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("code", "sleep hook of chat, 42 s (1.0 s of ~40 s in all)"),
        ("small", "wake hook of small, 42 s"),
        ("chat", "first a switch to code: sleep hook of chat, 42 s (1.0 s of ~40 s in all)"),
        ("embed", ""),
    ],
)
def test_the_progress_of_an_order_is_that_of_its_own_switch(name: str, told: str) -> None:
    assert describe(STATUS, name) == told


# ---- The picture ----


def picture_of(*news: tuple[str, Shape]) -> GroupStatus:
    picture = Picture()
    picture.set_status(with_group())
    for kind, shape in news:
        picture.apply(kind, msgspec.json.encode(shape))
    assert picture.status is not None
    return picture.status.groups["default"]


def phase(name: str, left: Any, state: Any) -> tuple[str, Shape]:
    return "phase", PhaseChange(at=NOW + 1, model=name, state=state, left=left)


def test_the_picture_knows_all_that_are_awake() -> None:
    group = picture_of(phase("small", "waking", "awake"))
    assert (group.active_model, group.awake_models) == ("embed", ["embed", "small"])
    assert group.state == "active"
    group = picture_of(phase("embed", "awake", "draining"))
    assert (group.active_model, group.awake_models, group.state) == (None, [], "switching")


def test_the_picture_knows_all_running_switches() -> None:
    third = switch(3, "chat")
    group = picture_of(("switch", third))
    assert [each.id for each in group.switches] == [1, 2, 3]
    ended = msgspec.structs.replace(GROUP.switches[0], ended=NOW, result="success")
    group = picture_of(("switch", third), ("switch", ended))
    assert [each.id for each in group.switches] == [2, 3]
    assert group.switch == group.switches[0]


def test_the_picture_knows_memory_and_pins() -> None:
    less = msgspec.structs.replace(GPU, free=0)
    pin = Pin(model="embed", wait=False)
    group = picture_of(
        ("memory", MemoryChange(at=NOW, groups={"default": [less], "unknown": []})),
        ("pin", PinChange(at=NOW, group="default", pinned=pin, pins=[pin, pin])),
    )
    assert group.memory == [less]
    assert group.pins == [pin, pin]
    older = picture_of(("pin", PinChange(at=NOW, group="default", pinned=pin)))
    assert older.pins == [pin]


# ---- Keys of top ----


def test_c_cordons_and_uncordons() -> None:
    client = Client(Target(URL, None, None))
    screen = Screen(URL, Feed(lambda: client), Orders(client))
    for cordoned, verb in ((False, "cordon"), (True, "uncordon")):
        status = msgspec.structs.replace(with_group(), cordoned=cordoned)
        assert screen._order(status, "c") == (verb, f"/control/{verb}", None)


@pytest.mark.parametrize(
    ("pinned", "asked"),
    [
        (["embed"], ("unpin group default", {"group": "default"})),
        (["embed", "code"], ("unpin code", {"model": "code"})),
        (["embed", "rank"], ("unpin group default", {"group": "default"})),
    ],
    ids=["one", "several", "others"],
)
def test_u_unpins_the_chosen_model_of_several(
    pinned: list[str], asked: tuple[str, dict[str, str]]
) -> None:
    client = Client(Target(URL, None, None))
    screen = Screen(URL, Feed(lambda: client), Orders(client))
    screen.press("j")  # from chat to code
    status = with_group(pins=[Pin(model=name, wait=False) for name in pinned])
    assert screen._order(status, "u") == (asked[0], "/control/unpin", asked[1])

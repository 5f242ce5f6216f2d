from __future__ import annotations

from typing import Any

import pytest

from llmux.errors import ModelNotFound, NoHost
from llmux.pick.picking import Ask, model_of, pick
from llmux.pick.table import Address
from tests.pick.outlooks import endpoint, model, outlook, table_of

CHAT = b"/v1/chat/completions"
THREE = (outlook(a=model(2.0)), outlook(a=model(0.0)), outlook(a=model(1.0)))


def chosen(table: Any, told: str = "a", **more: Any) -> list[str]:
    return list(pick(table, Ask(target=CHAT, told=told, **more), 0.0).endpoints)


def test_the_shortest_wait_comes_first() -> None:
    assert chosen(table_of(*THREE)) == [endpoint(2), endpoint(3), endpoint(1)]


def test_hosts_without_the_model_or_that_refuse_it_are_left_out() -> None:
    table = table_of(
        outlook(b=model()),
        outlook(a=model(9.0)),
        outlook(a=model(refused="pinned")),
        outlook("cordoned", a=model()),
    )
    assert chosen(table) == [endpoint(2)]


def test_only_hosts_of_the_subset_are_chosen() -> None:
    assert chosen(table_of(*THREE), only={endpoint(1), endpoint(3)}) == [endpoint(3), endpoint(1)]
    assert chosen(table_of(*THREE), only={"10.0.0.1"}) == [endpoint(1)]
    with pytest.raises(NoHost):
        chosen(table_of(*THREE), only={"10.9.9.9:3000"})


def test_an_answer_may_be_limited_to_the_best_hosts() -> None:
    picked = pick(table_of(*THREE), Ask(target=CHAT, told="a"), 0.0, most=1)
    assert list(picked.endpoints) == [endpoint(2)]


def test_no_host_says_why() -> None:
    table = table_of(outlook("cordoned", a=model()), outlook(a=model(refused="queue_full")))
    with pytest.raises(
        NoHost, match=r"No host can serve model a now \(cordoned, queue_full\)"
    ) as caught:
        chosen(table)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (
        503,
        "no_host",
        5,
    )


def test_a_model_that_no_host_knows_is_not_found_once_all_are_heard() -> None:
    with pytest.raises(ModelNotFound, match="Known names: a"):
        chosen(table_of(*THREE), "nobody")
    assert chosen(table_of(THREE[0], None), "nobody")  # the other one may know it
    picked = pick(table_of(*THREE), Ask(target=CHAT, told="nobody"), 0.0, refuses_unknown=False)
    assert len(picked.endpoints) == 3  # one may have a fallback


def test_aliases_and_their_patterns_stand_for_the_model() -> None:
    table = table_of(outlook(a=model(aliases=["gpt-4", "claude-*"])), outlook(b=model()))
    for name in ("gpt-4", "claude-opus", "a:latest"):
        picked = pick(table, Ask(target=CHAT, told=name), 0.0)
        assert (picked.endpoints, picked.model) == ([endpoint(1)], name)


def test_a_name_may_mean_another_model_at_each_host() -> None:
    names = ["gpt-4", "claude-*"]
    here: dict[str, Any] = {"aliases": names, "cost_secs": 2.0}
    table = table_of(
        outlook(a=model(3.0, **here)),
        outlook(b=model(1.0, **here)),
        outlook(c=model(aliases=names)),
    )
    for name in ("gpt-4", "claude-opus"):
        assert chosen(table, name) == [endpoint(3), endpoint(2), endpoint(1)]
    table.note_heard(table.hosts[endpoint(1)], outlook("cordoned", a=model(**here)), 0.0)
    assert chosen(table, "gpt-4") == [endpoint(3), endpoint(2)]
    tagged: dict[str, Any] = {"a:latest": model()}
    assert len(chosen(table_of(outlook(**tagged), outlook(a=model())), "a")) == 2


def test_all_names_of_a_model_lead_to_one_host() -> None:
    alike = outlook(a=model(2.0, aliases=["gpt-4", "claude-*"]))
    names = ("a", "gpt-4", "claude-opus", "a:latest")
    assert len({tuple(chosen(table_of(*[alike] * 5), name)) for name in names}) == 1
    table = table_of(*[alike] * 5)
    for name in names:
        table.note_sent(endpoint(2), name)
    assert table.hosts[endpoint(2)].sent == {"a": 4}
    assert {chosen(table, name)[0] for name in names} == {endpoint(2)}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"told": "b"}, "b"),
        ({"told": "b", "headers": [(b"Model-Override", b"c")]}, "c"),
        ({"told": "b", "target": b"/upstream/c/v1/chat/completions"}, "c"),
        ({"target": b"/v1/realtime?model=c"}, "c"),
        ({"told": "b", "target": b"/v1/realtime?model=c"}, "b"),
        ({"body": b'{"model": "c"}'}, "c"),
        ({"body": b'{"model": "c", "model": "b"}'}, ""),
        ({}, ""),
    ],
    ids=["told", "override", "path", "query", "before query", "body", "ambiguous", "none"],
)
def test_the_model_is_found_as_llmux_does(more: dict[str, Any], name: str) -> None:
    assert (
        model_of(Ask(**{"target": CHAT, **more}), table_of(outlook(b=model(), c=model()))) == name
    )


def test_a_request_without_a_model_goes_to_the_least_busy_host() -> None:
    table = table_of(
        outlook(a=model(running=3)),
        None,
        outlook(a=model(running=1)),
        outlook("stopping", a=model()),
    )
    assert chosen(table, "")[:2] == [endpoint(3), endpoint(1)]
    assert set(chosen(table, "")[2:]) == {endpoint(2), endpoint(4)}


def test_what_was_sent_counts_until_the_next_outlook() -> None:
    table = table_of(*THREE)
    table.note_sent(endpoint(2), "a")
    assert [view.sent for view in table.views()] == [{}, {"a": 1}, {}]
    table.note_heard(table.hosts[endpoint(2)], THREE[1], 0.0)
    assert not any(view.sent for view in table.views())


def test_a_host_that_is_lost_comes_last() -> None:
    table = table_of(*THREE)
    table.note_lost(table.hosts[endpoint(2)], "its event stream has ended")
    assert chosen(table)[:2] == [endpoint(3), endpoint(1)]


def test_the_table_follows_the_addresses() -> None:
    table = table_of(*THREE)
    kept = [Address(endpoint(n), f"http://{endpoint(n)}") for n in (2, 3, 4)]
    moved = Address(endpoint(3), "http://10.0.0.3:3001")
    new, gone = table.keep([kept[0], moved, kept[2]])
    assert [host.address.endpoint for host in new] == [endpoint(3), endpoint(4)]
    assert [host.address.endpoint for host in gone] == [endpoint(1), endpoint(3)]
    assert table.hosts[endpoint(2)].outlook is not None
    assert table.models == ["a"]

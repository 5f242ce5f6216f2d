"""Request filters: what they change in a body, and that nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmux.errors import BadRequest, NotJson
from llmux.openai.filtering import NO_RULES, Filter, Filters, Rules
from llmux.openai.members import read_members
from llmux.openai.scanning import MAX_MATCHES, no_pause


def rules(
    set: dict[str, Any] | None = None,  # noqa: A002
    force: dict[str, Any] | None = None,
    drop: tuple[str, ...] = (),
) -> Rules:
    return Rules(set or {}, force or {}, drop)


CASES: list[tuple[Rules, str, str]] = [
    # set: only what is absent
    (rules({"t": 1}), '{"m": "a"}', '{"t":1,"m": "a"}'),
    (rules({"t": 1}), '{ "t" : 2 }', '{ "t" : 2 }'),
    (rules({"t": 1}), '{"t": null}', '{"t": null}'),
    (rules({"t": 1}), "{}", '{"t":1}'),
    (rules({"t": 1}), " \n{ }\n", ' \n{"t":1 }\n'),
    (rules({"t": None, "s": ["é", "\U0001f600"]}), '{"a":1}',
     '{"t":null,"s":["\\u00e9", "\\ud83d\\ude00"],"a":1}'),
    (rules({'q"\\': 1}), "{}", '{"q\\"\\\\":1}'),
    (rules({"t": 1}), '{"\\u0074": 2}', '{"\\u0074": 2}'),
    (rules({"t": 1}), '{"a": {"t": 2}, "b": "\\"t\\":"}', '{"t":1,"a": {"t": 2}, "b": "\\"t\\":"}'),
    (rules({"o": {}}), '{"a":1}', '{"o":{},"a":1}'),
    # force: always
    (rules(force={"t": 1}), '{"m": "a", "t": 2, "z": 3}', '{"t":1,"m": "a", "z": 3}'),
    (rules(force={"t": 1}), '{"t": [{"t": "}"}], "z": 3}', '{"t":1,"z": 3}'),
    (rules(force={"t": 1}), '{"t": 2}', '{"t":1}'),
    (rules(force={"t": 1}), '{"t": 2, "T": 3, "t": 4}', '{"t":1}'),
    (rules(force={"t": 1}), '{"m": 0}', '{"t":1,"m": 0}'),
    # drop, with one comma
    (rules(drop=("t",)), '{"t": 1}', "{}"),
    (rules(drop=("t",)), '{ "t": 1 , "a": 2 }', '{ "a": 2 }'),
    (rules(drop=("t",)), '{ "a": 2 , "t": 1 }', '{ "a": 2 }'),
    (rules(drop=("t",)), '{"a": 2, "t": 1, "b": 3}', '{"a": 2, "b": 3}'),
    (rules(drop=("t", "u")), '{"t": 1, "u": 2, "a": 3, "t": 4, "u": 5}', '{"a": 3}'),
    (rules(drop=("t", "u")), '{"a": 3, "t": 4, "b": 6, "u": 5}', '{"a": 3, "b": 6}'),
    (rules(drop=("t",)), '{"a": 1}', '{"a": 1}'),
    # Ollama's parser takes a key in any case, and characters that fold to ASCII
    (rules(drop=("mask",)), '{"MASK": 1, "ma\u017f\u212a": 2, "maskk": 3}', '{"maskk": 3}'),
    # a key that differs in case is absent for most servers, and comes last for Ollama's
    (rules({"t": 1}), '{"T": 2}', '{"t":1,"T": 2}'),
    # within objects
    (rules({"o": {"k": 1}}), '{"o": {"x": 2}}', '{"o": {"k":1,"x": 2}}'),
    (rules({"o": {"k": 1}}), '{"o": {"k": 2}}', '{"o": {"k": 2}}'),
    (rules({"o": {"k": 1}}), '{"a": 0}', '{"o":{"k":1},"a": 0}'),
    (rules({"o": {"k": 1}}), '{"o": null}', '{"o": null}'),
    (rules({"o": {"k": {"l": 1}}}), '{"o": {}}', '{"o": {"k":{"l":1}}}'),
    (rules(force={"o": {"k": 1}}), '{"o": {"k": 2, "x": 3}}', '{"o": {"k":1,"x": 3}}'),
    (rules(force={"o": {"k": 1}}), '{"o": null, "a": 0}', '{"o":{"k":1},"a": 0}'),
    (rules({"o": {"j": 2}}, {"o": {"k": 1}}), '{"o": 7}', '{"o":{"k":1,"j":2}}'),
    (rules(drop=("o.k",)), '{"o": {"k": 2, "x": 3}, "k": 1}', '{"o": {"x": 3}, "k": 1}'),
    (rules(drop=("o.k",)), '{"o": 1}', '{"o": 1}'),
    (rules(drop=("o.k",)), '{"a": 1}', '{"a": 1}'),
    (rules(drop=("o.k",)), '{"O": {"K": 1}}', '{"O": {}}'),
    (rules({"o": {"k": 1}}), '{"o": {}, "o": {"k": 2}}', '{"o": {"k":1}, "o": {"k": 2}}'),
    # a field that is dropped and set is forced
    (rules({"t": 1}, drop=("t",)), '{"t": 2}', '{"t":1}'),
    (rules(force={"o": {"k": 1}}, drop=("o",)), '{"o": {"x": 2}}', '{"o":{"k":1}}'),
    # everything else as it came
    (rules({"t": 1}), '\ufeff{"a":1}', '\ufeff{"t":1,"a":1}'),
    (rules({"t": 1}), '{"n": 1e400, "big": 123456789012345678901234567890, "n": -0, "x": NaN}',
     '{"t":1,"n": 1e400, "big": 123456789012345678901234567890, "n": -0, "x": NaN}'),
    (rules({"t": 1}), '[{"a": 1}]', '[{"a": 1}]'),
    (rules({"t": 1}), "", ""),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_changes(number: int) -> None:
    given_rules, before, after = CASES[number]
    found = Filter(given_rules).apply(before.encode())
    assert found == after.encode()
    assert Filter(given_rules).apply(found) == found


def test_an_unchanged_body_is_the_same_object() -> None:
    body = b'{"a": 1}'
    assert Filter(rules({"a": 2}, drop=("b",))).apply(body) is body


def test_bytes_that_are_no_utf8_survive() -> None:
    body = b'{"a": "\xff", "\xff": 1}'
    assert Filter(rules({"t": 1})).apply(body) == b'{"t":1,' + body[1:]


@pytest.mark.parametrize(
    "body", [b"{", b'{"a"}', b'{"a": 1', b'{"a": 1,}', b'{"a": 1 "b": 2}', b"{a: 1}"]
)
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson):
        Filter(rules({"t": 1})).apply(body)


def test_a_body_of_too_many_members_is_refused() -> None:
    body = b'{"a":0%b}' % (b',"b":0' * MAX_MATCHES)
    with pytest.raises(BadRequest, match="more than 10000 fields"):
        Filter(rules({"t": 1})).apply(body)


def test_long_keys_are_skipped() -> None:
    body = b'{"%b": 1, "t": 2}' % (b"x" * 100_000)
    assert [each.key for each in read_members(body, 0, no_pause)] == ["", "t"]
    assert Filter(rules(drop=("t",))).apply(body) == body[:-9] + b"}"


# --- Aliases -------------------------------------------------------------------------------------

OWN = rules({"t": 1, "o": {"k": 1}}, {"n": 5}, ("seed",))


@pytest.mark.parametrize(
    ("more", "before", "after"),
    [
        (NO_RULES, {"seed": 1}, {"t": 1, "n": 5, "o": {"k": 1}}),
        (rules({"t": 2}), {}, {"t": 2, "n": 5, "o": {"k": 1}}),
        (rules(force={"t": 2}), {"t": 3}, {"t": 2, "n": 5, "o": {"k": 1}}),
        (rules({"n": 6}), {"n": 7}, {"n": 7, "t": 1, "o": {"k": 1}}),
        (rules({"o": {"l": 2}}), {}, {"t": 1, "n": 5, "o": {"k": 1, "l": 2}}),
        (rules({"o": 3}), {}, {"t": 1, "n": 5, "o": 3}),
        (rules(drop=("t", "o.k")), {"t": 3, "o": {"k": 4}}, {"n": 5, "o": {}}),
        (rules({"seed": 2}), {"seed": 1}, {"seed": 2, "t": 1, "n": 5, "o": {"k": 1}}),
        (rules({"t": {"x": 1}}), {}, {"t": {"x": 1}, "n": 5, "o": {"k": 1}}),
    ],
)  # fmt: skip
def test_an_alias_wins_against_its_model(
    more: Rules, before: dict[str, Any], after: dict[str, Any]
) -> None:
    found = Filters(OWN, {"fast": more}).find("fast")
    assert found is not None
    assert json.loads(found.apply(json.dumps(before).encode())) == after


def test_the_filter_of_a_name() -> None:
    filters = Filters(
        NO_RULES,
        {"m": NO_RULES, "m-fast": rules({"t": 1}), "m-*": rules({"t": 2}), "m-slow*": NO_RULES},
    )
    made = {}
    for name in ("m", "m-fast", "m-other", "m-slow-1"):
        found = filters.find(name)
        made[name] = found and found.apply(b"{}")
    assert made == {"m": None, "m-fast": b'{"t":1}', "m-other": b'{"t":2}', "m-slow-1": None}


def test_an_alias_is_the_same_with_and_without_the_tag_latest() -> None:
    own, more = rules({"t": 1}), rules({"t": 2})
    by_name = {"m": NO_RULES, "fast": more, "slow:latest": more, "f*": NO_RULES}
    filters, made = Filters(own, by_name), {}
    for name in ("fast", "fast:latest", "slow", "slow:latest", "m:latest", "fast:8b", "fa"):
        found = filters.find(name)
        made[name] = found and found.apply(b"{}")
    one, two = b'{"t":1}', b'{"t":2}'
    assert made == {
        "fast": two, "fast:latest": two, "slow": two, "slow:latest": two,
        "m:latest": one, "fast:8b": one, "fa": one,
    }  # fmt: skip


# --- Any body ------------------------------------------------------------------------------------

KEYS = st.sampled_from(["t", "o", "k", "n", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


def overlaid(body: Any, values: dict[str, Any], *, forced: bool) -> Any:
    """What a filter means, on decoded objects."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            if key not in body or (forced and not isinstance(body[key], dict)):
                body[key] = {}
            if isinstance(body[key], dict):
                overlaid(body[key], value, forced=forced)
        elif forced or key not in body:
            body[key] = value
    return body


@settings(deadline=None)
@given(OBJECTS, OBJECTS, st.lists(KEYS, max_size=2), st.sampled_from([None, 1, "\t"]))
def test_bodies_mean_what_the_filter_says(
    body: dict[str, Any], values: dict[str, Any], drop: list[str], indent: int | str | None
) -> None:
    written = json.dumps(body, indent=indent).encode()
    kept = {key: value for key, value in json.loads(written).items() if key not in drop}
    for forced in (False, True):
        chosen = Filter(rules(None if forced else values, values if forced else None, tuple(drop)))
        expected = overlaid(json.loads(json.dumps(kept)), values, forced=forced)
        assert json.loads(chosen.apply(written)) == expected

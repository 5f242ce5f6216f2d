"""Aliases with asterisks: what they match, which counts, and which are mistakes."""

from __future__ import annotations

import re
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmux.base.wildcards import Names, Patterns, expression, overlap
from llmux.config import parse_config
from llmux.errors import ConfigError
from llmux.openai.fields import read_fields
from llmux.openai.naming import find_model
from tests.downstream.test_lanes import post, status
from tests.lanes import LANES, running_lane

PATTERN = st.text("ab*/", max_size=6)
TEXT = st.text("ab/", max_size=7)


@given(PATTERN, TEXT)
def test_an_asterisk_stands_for_any_text(pattern: str, text: str) -> None:
    found = re.fullmatch(expression(pattern), text, re.DOTALL)
    assert bool(found) is fnmatchcase(text, pattern)
    plain = "[^/]*".join(map(re.escape, pattern.split("*")))
    inside = re.fullmatch(expression(pattern, within_segments=True), text)
    assert bool(inside) is bool(re.fullmatch(plain, text))


@given(PATTERN, PATTERN, TEXT)
def test_what_matches_two_patterns_shows_that_they_overlap(one: str, other: str, text: str) -> None:
    if fnmatchcase(text, one) and fnmatchcase(text, other):
        assert overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other", "does"),
    [
        ("claude-*", "*-latest", True),
        ("claude-*", "gpt-*", False),
        ("*a*", "*b*", True),
        ("*", "*", True),
        ("*-mini", "*-large", False),
        ("a*b", "ab", True),
        ("a*b", "ac", False),
    ],
)
def test_which_patterns_overlap(one: str, other: str, does: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is does


def test_no_name_takes_long_to_match() -> None:
    patterns = Patterns({"*a" * 250 + "*": "a"})
    began = time.perf_counter()
    assert patterns.find("a" * 249 + "b" * 260) is None
    assert time.perf_counter() - began < 1


def test_what_is_too_long_for_a_name_matches_no_pattern() -> None:
    names = Names({"m": "m", "*": "m"})
    assert names.find("x" * 512) == "m"
    assert names.find("x" * 513) is names.find("é" * 257) is None
    fields = read_fields([], b'{"model": "z"}')
    assert find_model(b"/upstream//", [], fields, names).name == "z"
    overlong = find_model(b"/upstream/" + b"x" * 513 + b"/y", [], fields, names)
    assert names.find(overlong.name) is None


def test_a_name_that_is_written_out_wins_then_the_longest_pattern() -> None:
    names = Names({"m": "m", "*": "any", "claude-*": "c", "claude-3-*": "c3", "claude-3-5": "x"})
    asked = ["m", "claude-3-5", "claude-3-opus", "claude-4", "gpt", ""]
    assert [names.find(each) for each in asked] == ["m", "x", "c3", "c", "any", "any"]
    assert names.find("CLAUDE-3-5") == "any"
    assert Names({"m": "m", "x*": "m"}).find("y") is None
    assert Names({"a*": "a*"}).find("ab") is None, "a model's own name is no pattern"


@pytest.mark.parametrize(
    ("path", "model", "rest"),
    [
        (b"/upstream/claude-3/v1/x", "c", b"/v1/x"),
        (b"/upstream/org/any/v1/x", "o", b"/v1/x"),
        (b"/upstream/m/v1/x", "m", b"/v1/x"),
        (b"/upstream/claude-m/v1/x", "c", b"/v1/x"),
        (b"/upstream/org/fixed/v1", "f", b"/v1"),
    ],
)
def test_in_a_path_an_asterisk_stands_for_no_slash(path: bytes, model: str, rest: bytes) -> None:
    names = Names({"m": "m", "claude-*": "c", "org/*": "o", "org/fixed": "f", "m/*": "below m"})
    named = find_model(path, [], read_fields([], b""), names)
    assert (names.find(named.name), named.target) == (model, rest)


def config_of(**models: dict[str, Any]) -> dict[str, Any]:
    about = {"port": 1, "wake": "w", "sleep": "s", "alive": "a"}
    return {"models": {name: {**about, **more} for name, more in models.items()}}


@pytest.mark.parametrize(
    ("models", "mistake"),
    [
        (
            {"a": {"aliases": ["claude-*"]}, "b": {"aliases": ["*-sonnet"]}},
            "models.b.aliases[0]: some names match this and 'claude-*' of 'a', and neither is longer",
        ),
        (
            {"a": {"aliases": ["x*"]}, "b": {"aliases": ["x*"]}},
            "models.b.aliases[0]: 'x*' is an alias of 'a' already",
        ),
        (
            {"a": {"aliases": ["x*"]}, "b": {"aliases": ["x**"]}},
            "models.b.aliases[0]: some names match this and 'x*' of 'a', and neither is longer",
        ),
        ({"a": {"aliases": ["**"]}}, "models.a.aliases[0]: write '*' for every name"),
    ],
)
def test_ambiguous_aliases_are_mistakes(
    models: dict[str, dict[str, Any]], mistake: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_of(**models), directory=tmp_path)
    assert caught.value.mistakes == [mistake]


@pytest.mark.parametrize(
    "models",
    [
        {"a": {"aliases": ["claude-*", "*-sonnet"]}},
        {"a": {"aliases": ["claude-*"]}, "b": {"aliases": ["*"]}},
        {"a": {"aliases": ["claude-*"]}, "b": {"aliases": ["claude-3"]}},
        {"a": {"aliases": ["*-mini"]}, "b": {"aliases": ["gpt-*"]}},
    ],
)
def test_aliases_of_which_one_counts_are_fine(
    models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    parse_config(config_of(**models), directory=tmp_path)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("upstream", "body", "query", "sent"),
    [
        (None, "claude-3", b"", ("claude-3", b"")),
        ("name", "claude-3", b"", ("a", b"")),
        ("name", "a", b"?model=claude-3", ("a", b"?model=a")),
        ("org/a", "gpt-4o", b"?model=claude-9&x=claude-9", ("org/a", b"?model=org/a&x=claude-9")),
        ("name", "gpt-4o", b"?model=llama", ("a", b"?model=llama")),
    ],
)
async def test_what_a_backend_is_told(
    lane: str,
    upstream: str | None,
    body: str,
    query: bytes,
    sent: tuple[str, bytes],
    tmp_path: Path,
) -> None:
    async with running_lane(lane, tmp_path) as site:
        config = site.service.reloader.config
        aliased = {"aliases": ["gpt-4o", "claude-*"], "upstream_model": upstream}
        more = {"port": site.backend.port, **aliased}
        new = parse_config(
            {**config_of(a=more), "state_dir": str(config.state_dir)}, directory=tmp_path
        )
        site.service.reloader.apply(new)
        request = post(b'{"model": "%b", "n": 1}' % body.encode())
        request = request.replace(b"/completions", b"/completions" + query, 1)
        assert status(await site.exchange(request)) == 200
        (received,) = site.backend.received
        assert received.split(b"\r\n")[0] == b"POST /v1/chat/completions%b HTTP/1.1" % sent[1]
        assert received.endswith(b'{"model": "%b", "n": 1}' % sent[0].encode())


@pytest.mark.parametrize("lane", LANES)
async def test_another_models_pattern_is_another_models_name(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b")) as site:
        config = site.service.reloader.config
        port = {"port": site.backend.port}
        new = config_of(a={**port, "aliases": ["claude-*"]}, b=port)
        site.service.reloader.apply(
            parse_config({**new, "state_dir": str(config.state_dir)}, directory=tmp_path)
        )
        answer = await site.exchange(post(b'{"model": "Claude-3"}', b"model-override: b"))
        assert status(answer) == 200
        assert site.backend.received[0].endswith(b'{"model": "b"}')

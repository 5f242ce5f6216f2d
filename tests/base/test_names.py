"""Names, however long: nothing looks at more of one than a name can have, nor says it back."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.base.names import MAX_NAME_BYTES, MAX_SHOWN, folded, nearest, overlong, shown
from llmux.config import parse_config
from llmux.config.schema import config_schema
from llmux.errors import ConfigError, GroupNotFound, LlmuxError, ModelNotFound, RequestNotFound
from llmux.openai.answers import error_answer
from llmux.openai.dialects import MAX_MESSAGE
from llmux.openai.fields import read_fields
from llmux.openai.naming import find_model
from llmux.proxy.access_log import _text
from tests.downstream.test_lanes import body_of, post, status
from tests.http.test_two_readers import FORM, MULTIPART, part
from tests.lanes import LANES, Site, running_lane

LONGEST = "é" * (MAX_NAME_BYTES // 2)
SOME = 1 << 20

BODIES: dict[str, tuple[Callable[[bytes], bytes], bytes]] = {
    "json": (lambda name: b'{"model":"%b"}' % name, b""),
    "json, escaped": (lambda name: b'{"model":"%b"}' % in_json(name), b""),
    "form": (lambda name: b"x=1&model=%b&y" % name, FORM),
    "form, escaped": (lambda name: b"model=" + percent(name), FORM),
    "multipart": (part, MULTIPART),
}


def in_json(name: bytes) -> bytes:
    return b"".join(b"\\u%04x" % ord(letter) for letter in name.decode())


def percent(name: bytes) -> bytes:
    return b"".join(b"%%%02x" % byte for byte in name)


def found(body: bytes, kind: bytes = b"", *more: tuple[bytes, bytes], target: bytes = b"/x") -> str:
    headers = [(b"Content-Type", kind.partition(b": ")[2]), *more]
    return find_model(target, headers, read_fields(headers, body), {LONGEST: LONGEST}).name


@pytest.mark.parametrize("way", BODIES)
def test_the_longest_name_is_found_however_it_is_written(way: str) -> None:
    write, kind = BODIES[way]
    assert found(write(LONGEST.encode()), kind) == LONGEST


def test_the_longest_name_in_head_and_target() -> None:
    raw = LONGEST.encode()
    assert found(b"", b"", (b"model-override", raw)) == LONGEST
    for written in (raw, percent(raw)):
        assert found(b"", target=b"/x?model=" + written) == LONGEST
        assert found(b"", target=b"/upstream/" + written + b"/v1") == LONGEST


@pytest.mark.parametrize("letter", [b"a", b"\1", "é".encode(), "😀".encode()])
@pytest.mark.parametrize("way", BODIES)
def test_of_a_longer_name_only_the_beginning_is_looked_at(way: str, letter: bytes) -> None:
    write, kind = BODIES[way]
    if letter == b"\1" and way == "json":
        return  # a control character must be escaped there
    body = write(letter * SOME)
    tracemalloc.start()
    try:
        name = found(body, kind)
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()
    assert MAX_NAME_BYTES < len(name.encode()) < 16 * MAX_NAME_BYTES


@pytest.mark.parametrize("written", [b"a" * 60_000, b"%61" * 20_000, b"%ff" * 20_000])
def test_a_longer_name_in_head_and_target(written: bytes) -> None:
    for name in (
        found(b"", b"", (b"model-override", written)),
        found(b"", target=b"/x?model=" + written),
        found(b"", target=b"/upstream/" + written + b"/v1"),
    ):
        assert MAX_NAME_BYTES < len(name.encode()) < 16 * MAX_NAME_BYTES


@pytest.mark.parametrize("way", BODIES)
def test_a_longer_name_is_another_name(way: str) -> None:
    """It is not cut to one that is known."""
    write, kind = BODIES[way]
    name = found(write(LONGEST.encode() + b"x"), kind)
    assert name != LONGEST
    assert name.startswith(LONGEST)


def test_a_longer_name_beside_a_short_one_makes_two() -> None:
    for body, kind in [
        (b'{"model":"a","model":"%b"}' % (b"a" * SOME), b""),
        (b"model=a&model=" + b"a" * SOME, FORM),
        (part(b"a" * SOME)[:-5] + b"\r\n" + part(b"a"), MULTIPART),
    ]:
        with pytest.raises(LlmuxError, match="two models"):
            found(body, kind)


def test_names_of_the_config_are_as_long_at_most() -> None:
    def config(name: str, **model: Any) -> dict[str, Any]:
        hooks = {"port": 1, "wake": "w", "sleep": "s", "alive": "a"}
        return {"models": {name: {**hooks, **model}}}

    assert LONGEST in parse_config(config(LONGEST)).models
    for mistake in (config(LONGEST + "x"), config("a", aliases=["b" * 513])):
        with pytest.raises(ConfigError, match="at most 512 bytes"):
            parse_config(mistake)
    model = config_schema()["$defs"]["ModelConfig"]["properties"]
    name, _ = model["aliases"]["items"]["anyOf"]
    assert name["maxLength"] == MAX_NAME_BYTES


def test_shown() -> None:
    assert shown("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert shown("x" * 1000) == "x" * MAX_SHOWN + "…"
    assert folded("B:latest") == folded("b")
    assert len(overlong(b"\xff" * 1000).encode()) > MAX_NAME_BYTES
    for error in (ModelNotFound, GroupNotFound, RequestNotFound):
        assert len(error("\1" * SOME).message) < 2 * MAX_SHOWN
    assert len(_text(b"\1" * SOME)) <= 4 * MAX_SHOWN + 1


def test_no_message_is_longer_than_this() -> None:
    answer = json.loads(error_answer(LlmuxError("\1" * SOME))[2])
    assert len(answer["error"]["message"]) == MAX_MESSAGE + 1


@pytest.fixture(params=LANES)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, access_log=True) as site:
        yield site


@pytest.mark.parametrize("way", BODIES)
async def test_an_unknown_name_comes_back_cut(site: Site, way: str) -> None:
    write, kind = BODIES[way]
    answer = await site.exchange(post(write(b"\x7f" * SOME), kind or b"X: 1"))
    assert status(answer) == 404
    error = json.loads(body_of(answer))["error"]
    assert error["code"] == "model_not_found"
    assert error["message"].endswith("…. Known names: a")
    assert len(answer) < 2500


GET = b"%b HTTP/1.1\r\nHost: localhost\r\n%b\r\nConnection: close\r\n\r\n"
LONG = b"a" * 30_000


@pytest.mark.parametrize(
    ("line", "header", "code"),
    [
        (b"GET /v1/x", b"model-override: " + LONG, 404),
        (b"GET /v1/x?model=" + LONG, b"X: 1", 404),
        (b"GET /upstream/" + LONG + b"/x", b"X: 1", 404),
        (b"GET /v1/models/" + LONG, b"X: 1", 404),
        (b"GET /control/logs/" + LONG, b"X: 1", 404),
        (b"GET /control/" + LONG, b"X: 1", 404),
        (b"GET /control/history?secs=" + LONG, b"X: 1", 400),
        (b"GET /control/status", b"Origin: http://" + LONG, 403),
        (b"DELETE /control/requests/" + LONG, b"X: 1", 404),
        (b"POST /control/switch", b"Content-Length: 30012", 404),
    ],
)  # fmt: skip
async def test_nothing_long_comes_back_or_is_logged(
    site: Site, caplog: pytest.LogCaptureFixture, line: bytes, header: bytes, code: int
) -> None:
    caplog.set_level(logging.DEBUG)
    body = b'{"model":"%b"}' % LONG if line.startswith(b"POST") else b""
    answer = await site.exchange(GET % (line, header) + body)
    assert status(answer) == code
    assert len(answer) < 2500
    assert all(len(record.getMessage()) < 4000 for record in caplog.records)


async def test_an_order_for_an_own_path_is_short(site: Site) -> None:
    """Nobody counts what the framework reads of a body."""
    head = b"POST /control/switch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    body = b"x" * 70_000
    async with await site.connect() as stream:
        await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with trio.fail_after(20):
            answer = bytes(await stream.receive_some())
    assert status(answer) == 413


def test_the_likest_names_come_first() -> None:
    known = ["mistral", "org/Llama-3.1-8B", "llama", "qwen"]
    assert nearest("lama", known, 2) == ["llama", "org/Llama-3.1-8B"]
    assert nearest("llama-3.1-8b", known, 1) == ["org/Llama-3.1-8B"]
    assert nearest("mistrall", known, 1) == ["mistral"]
    assert nearest("QWEN", known, 1) == ["qwen"]
    assert nearest("", known, 9) == sorted(known)
    assert nearest("x" * 10_000, [], 9) == []


def test_an_error_names_ten_models_at_most() -> None:
    assert str(ModelNotFound("c", ["a", "b"])) == "Model not found: c. Known names: a, b"
    text = str(ModelNotFound("m17", [f"m{number}" for number in range(34)]))
    assert text.startswith("Model not found: m17. Known names: m17, m1, m7, m10, ")
    assert text.count(", m") == 9
    assert text.endswith(", and 24 more (GET /v1/models lists all)")
    longest = str(ModelNotFound(LONGEST, [f"{number}{'x' * 511}" for number in range(34)]))
    assert len(longest) < 2_000


FAMILIES: dict[str, Callable[[Any], str]] = {
    "/v1/chat/completions": lambda said: said["error"]["message"],
    "/v1/responses": lambda said: said["error"]["message"],
    "/v1/messages": lambda said: said["error"]["message"],
    "/api/chat": lambda said: said["error"],
    "/v1/rerank": lambda said: said["message"],
    "/embed": lambda said: said["error"],
    "/completion": lambda said: said["error"]["message"],
    "/v1/models/{}": lambda said: said["error"]["message"],
    "/control/logs/{}": lambda said: said["error"]["message"],
}


@pytest.mark.parametrize("lane", LANES)
async def test_every_family_is_told_the_known_names(lane: str, tmp_path: Path) -> None:
    aliased = {"aliases": ["gpt-4o", "claude-*"]}
    async with running_lane(lane, tmp_path, model_settings=aliased) as site:
        model = {**site.backend.place, "wake": "w", "sleep": "s", "alive": "a"}
        for aliases, names in ((False, "b, a"), (True, "b, a, gpt-4o")):
            models = {"a": {**model, **aliased}, "b": model}
            data = {"models": models, "state_dir": str(tmp_path), "list_aliases": aliases}
            site.service.reloader.apply(parse_config(data, directory=tmp_path))
            async with site.client() as client:
                for path, message in FAMILIES.items():
                    if "{}" in path:
                        answer = await client.get(path.format("bb"))
                    else:
                        answer = await client.post(path, json={"model": "bb"})
                    assert answer.status_code == 404
                    assert message(answer.json()) == f"Model not found: bb. Known names: {names}"

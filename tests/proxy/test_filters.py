"""Request filters on both lanes: what the backend gets of a body."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmux.config import parse_config
from tests.downstream.test_lanes import error_code, post, status
from tests.lanes import LANES, OK, Site, play, running_lane
from tests.proxy.test_coded_requests import until_nothing_is_held

SETTINGS: dict[str, Any] = {
    "set": {"temperature": 0.7, "chat_template_kwargs": {"enable_thinking": False}},
    "force": {"seed": 1},
    "drop": ["user", "options.num_ctx"],
    "aliases": [
        "plain",
        {"name": "hot", "set": {"temperature": 1.2}, "drop": ["chat_template_kwargs"]},
        {"name": "cold-*", "force": {"temperature": 0}},
    ],
}

pytestmark = pytest.mark.parametrize("lane", LANES)


def sent(site: Site) -> bytes:
    """The body of the one request that the backend has got; its length must be right."""
    (request,) = site.backend.received
    site.backend.received.clear()
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
    return body


def asking(path: bytes, body: bytes, *headers: bytes) -> bytes:
    return post(body, *headers).replace(b"/v1/chat/completions", path, 1)


@pytest.mark.parametrize(
    "path", [b"/v1/chat/completions", b"/v1/responses", b"/v1/messages", b"/api/chat", b"/completion"]
)  # fmt: skip
async def test_fields_are_put_in_and_removed(lane: str, path: bytes, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings=SETTINGS) as site:
        body = b'{"model": "a", "user": "me", "big": 1e400, "options": {"num_ctx": 9, "x": 1}}'
        assert status(await site.exchange(asking(path, body))) == 200
        assert sent(site) == (
            b'{"seed":1,"temperature":0.7,"chat_template_kwargs":{"enable_thinking":false},'
            b'"model": "a", "big": 1e400, "options": {"x": 1}}'
        )


async def test_every_alias_has_its_own(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings=SETTINGS) as site:
        found = {}
        for name in ("a", "plain", "hot", "cold-1"):
            body = json.dumps({"model": name, "temperature": None}).encode()
            assert status(await site.exchange(post(body))) == 200
            left = json.loads(sent(site))
            assert left.pop("model") == name
            found[name] = left
        thinking = {"chat_template_kwargs": {"enable_thinking": False}}
        assert found["a"] == found["plain"] == {"seed": 1, "temperature": None, **thinking}
        assert found["hot"] == {"seed": 1, "temperature": None}
        assert found["cold-1"] == {"seed": 1, "temperature": 0, **thinking}


async def test_the_name_may_stand_elsewhere(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings=SETTINGS) as site:
        for request in (
            post(b"{}", b"Model-Override: hot"),
            asking(b"/upstream/hot/v1/completions", b"{}"),
            asking(b"/v1/completions?model=hot", b"{}"),
        ):
            assert status(await site.exchange(request)) == 200
            assert sent(site) == b'{"seed":1,"temperature":1.2}'


async def test_the_name_is_replaced_too(lane: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "upstream_model": "org/a", "set": {}, "drop": ["x"]}
    async with running_lane(lane, tmp_path, model_settings=settings) as site:
        for before, after in [
            (b'{"x": 0, "model": "a"}', b'{"seed":1,"model": "org/a"}'),
            # Not plain: found in another way, with offsets from before the change.
            (b'\xef\xbb\xbf{"x": 0, "model": "a"}', b'\xef\xbb\xbf{"seed":1,"model": "org/a"}'),
            (b'{"x": 0, "mod\\u0065l": "a"}', b'{"seed":1,"mod\\u0065l": "org/a"}'),
            (b'{"model": "a", "x": 0, "Model": "a"}', b'{"seed":1,"model": "org/a", "Model": "org/a"}'),
        ]:  # fmt: skip
            assert status(await site.exchange(post(before))) == 200
            assert sent(site) == after


@pytest.mark.parametrize("size", [10, 300_000, 9 << 20])
async def test_large_and_compressed_bodies(lane: str, size: int, tmp_path: Path) -> None:
    settings = {"force": {"seed": 1}, "upstream_model": "org/a"}
    async with running_lane(lane, tmp_path, model_settings=settings) as site:
        text = b"x" * size
        plain = b'{"seed": 2, "text": "%b", "model": "a"}' % text
        for request in (post(plain), post(gzip.compress(plain), b"Content-Encoding: gzip")):
            assert status(await site.exchange(request)) == 200
            assert b"content-encoding" not in site.backend.received[0].lower()[:1000]
            assert sent(site) == b'{"seed":1,"text": "%b", "model": "org/a"}' % text
        await until_nothing_is_held(site)


async def test_utf_16(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings={"force": {"seed": 1}}) as site:
        body = '{"model": "a", "seed": 2}'.encode("utf-16")
        assert status(await site.exchange(post(body, b"Content-Type: application/json"))) == 200
        assert json.loads(sent(site)) == {"model": "a", "seed": 1}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"model=a&user=me", b"application/x-www-form-urlencoded"),
        (
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--b\r\n'
            b'Content-Disposition: form-data; name="user"\r\n\r\nme\r\n--b--\r\n',
            b"multipart/form-data; boundary=b",
        ),
        (b'[{"user": "me"}]', b"application/json"),
        (b'{"user": ', b"text/plain"),
    ],
)
async def test_other_bodies_pass_as_they_came(
    lane: str, body: bytes, kind: bytes, tmp_path: Path
) -> None:
    async with running_lane(lane, tmp_path, model_settings=SETTINGS) as site:
        request = post(body, b"Content-Type: " + kind, b"Model-Override: a")
        assert status(await site.exchange(request)) == 200
        assert sent(site) == body


async def test_no_body_stays_none(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings=SETTINGS) as site:
        request = b"GET /upstream/a/x HTTP/1.1\r\nHost: llmux\r\nConnection: close\r\n\r\n"
        assert status(await site.exchange(request)) == 200
        (request,) = site.backend.received
        assert request.endswith(b"\r\n\r\n")
        assert b"content-length" not in request.lower()


async def test_a_body_is_filtered_once_however_often_it_is_sent(lane: str, tmp_path: Path) -> None:
    settings = {"set": {"t": 1}, "upstream_model": "org/a"}
    async with running_lane(lane, tmp_path, model_settings=settings) as site:
        tries = 0

        async def loads(stream: Any, request: bytes) -> None:
            nonlocal tries
            tries += 1
            loading = b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n"
            await play(OK if tries == 4 else loading)(stream, request)

        site.backend.play = loads
        assert status(await site.exchange(post(b'{"model": "a", "Model": "a"}'))) == 200
        bodies = [each.partition(b"\r\n\r\n")[2] for each in site.backend.received]
        assert bodies == [b'{"t":1,"model": "org/a", "Model": "org/a"}'] * 4


async def test_other_models_and_the_fallback_are_left_alone(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b"), model_settings={}) as site:
        site.service.reloader.apply(
            parse_config(
                {
                    "models": {
                        "a": {**site.backend.place, "wake": "up", "sleep": "down", "alive": "ping"},
                        "b": {**site.backend.place, "wake": "up", "sleep": "down", "alive": "ping",
                              "set": {"t": 1}},
                    },
                    "state_dir": str(tmp_path),
                    "fallback": f"http://127.0.0.1:{site.backend.port}",
                    "fallback_models": ["*"],
                },
                directory=tmp_path,
            )
        )  # fmt: skip
        for name, after in [
            (b"a", b'{"model": "a"}'),
            (b"b", b'{"t":1,"model": "b"}'),
            (b"unknown", b'{"model": "unknown"}'),
        ]:
            assert status(await site.exchange(post(b'{"model": "%b"}' % name))) == 200
            assert sent(site) == after


async def test_memory_for_a_large_body_is_counted(lane: str, tmp_path: Path) -> None:
    limits = {"queued_bytes": 1_500_000}
    settings = {"set": {"t": 1}}
    async with running_lane(lane, tmp_path, limits=limits, model_settings=settings) as site:
        small, large = (b'{"model": "a", "x": "%b"}' % (b"x" * size) for size in (600_000, 900_000))
        assert status(await site.exchange(post(small))) == 200
        assert len(sent(site)) == len(small) + len(b'"t":1,')
        answer = await site.exchange(post(large))  # and a copy with the field in it
        assert (status(answer), error_code(answer)) == (429, "queue_full")
        assert site.backend.received == []
        await until_nothing_is_held(site)


async def test_too_many_members_are_refused(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, model_settings={"set": {"t": 1}}) as site:
        body = b'{"model": "a"%b}' % (b',"x":0' * 10_000)
        answer = await site.exchange(post(body))
        assert (status(answer), error_code(answer)) == (400, "bad_request")
        assert site.backend.received == []

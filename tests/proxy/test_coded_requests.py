"""Requests with a `Content-Encoding`: routed by what is in them, and sent on as they came."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from llmux.errors import BackendRefused
from llmux.openai.codings import Bounds
from llmux.openai.fields import read_coded
from llmux.proxy import reading as proxy
from tests.downstream.test_lanes import error_code, post, status
from tests.fakes import FakeHooks
from tests.http.test_two_readers import FORM, MULTIPART, part
from tests.lanes import LANES, Site, running_lane
from tests.openai.test_codings import ENCODE, raw_deflate
from tests.servers import ALL_FORMS, chat, running_backends, running_llmux

SIZES = [10, 300_000, 9 << 20]
"""Looked through at once, in a thread, in the thread for huge ones."""


def body(size: int = 10, name: str = "a") -> bytes:
    noise = random.Random(size).randbytes(size // 2)
    return b'{"x":"%b","model":"%b"}' % (noise.hex().encode(), name.encode())


def gzipped(data: bytes) -> bytes:
    """Without the time: each worker must name the tests alike."""
    return gzip.compress(data, mtime=0)


def coded(data: bytes, *codings: str) -> tuple[bytes, bytes]:
    """A body, and the header that says how it is compressed."""
    for coding in codings:
        data = ENCODE[coding](data)
    return data, b"Content-Encoding: " + ", ".join(codings).encode()


@pytest.fixture(params=LANES)
async def two(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_lane(request.param, tmp_path, models=("a", "b")) as site:
        yield site
        await until_nothing_is_held(site)


async def until_nothing_is_held(site: Site) -> None:
    """Answers of llmux's own count until their client has taken them."""
    with trio.fail_after(20):
        while site.service.proxy.bodies.held_bytes:
            await trio.sleep(0.001)


def sent(site: Site) -> tuple[bytes, bytes]:
    """Head, in lower case, and body of the one request that the backend has got."""
    (request,) = site.backend.received
    site.backend.received.clear()
    head, _, data = request.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(data) in head.lower() + b"\r\n"
    return head.lower(), data


@pytest.mark.parametrize(
    "codings", [("gzip",), ("deflate",), ("zstd",), ("br",), ("gzip", "zstd"), ("br", "deflate")]
)
async def test_a_compressed_body_passes_as_it_came(two: Site, codings: tuple[str, ...]) -> None:
    for size in SIZES[:2]:
        data, header = coded(body(size), *codings)
        answer = await two.exchange(post(data, header))
        assert (status(answer), b"x-llmux-model: a" in answer.lower()) == (200, True)
        head, passed = sent(two)
        assert (passed == data, header.lower() in head) == (True, True)


@pytest.mark.parametrize("size", SIZES)
async def test_the_name_of_another_model_is_replaced_in_plain(two: Site, size: int) -> None:
    plain = body(size, "b")
    data, header = coded(plain, "gzip", "zstd")
    override = b"model-override: a"
    assert status(await two.exchange(post(data, header, override), seconds=20)) == 200
    head, passed = sent(two)
    assert passed == plain.replace(b'"b"', b'"a"')
    assert b"content-encoding" not in head
    assert status(await two.exchange(post(coded(body(), "br")[0], b"Content-Encoding: BR"))) == 200
    assert b"content-encoding: br" in sent(two)[0]


@pytest.mark.parametrize("lane", LANES)
async def test_upstream_model_replaces_the_name(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path) as site:
        model = site.service.reloader.config.models["a"]
        fields = {name: getattr(model, name) for name in model.__struct_fields__}
        site.service.proxy.use("a", type(model)(**{**fields, "upstream_model": "org/a"}))
        for coding in ENCODE:
            data, header = coded(b'{"model":"a", "x":1}', coding)
            assert status(await site.exchange(post(data, header))) == 200
            head, passed = sent(site)
            assert passed == b'{"model":"org/a", "x":1}'
            assert b"content-encoding" not in head
        # It is named so already.
        data, header = coded(b'{"model":"org/a"}', "gzip")
        assert status(await site.exchange(post(data, header, b"model-override: a"))) == 200
        assert sent(site)[1] == data
        # There is no name to be replaced.
        data, header = coded(b'{"x":1}', "gzip")
        assert status(await site.exchange(post(data, header, b"model-override: a"))) == 200
        assert sent(site)[1] == data


async def test_forms_are_read_too(two: Site) -> None:
    for plain, kind in [(b"x=1&model=b", FORM), (part(b"b"), MULTIPART)]:
        data, header = coded(plain, "gzip")
        answer = await two.exchange(post(data, header, kind))
        assert (status(answer), b"x-llmux-model: b" in answer.lower()) == (200, True)
        assert sent(two)[1] == data
        answer = await two.exchange(post(data, header, kind, b"model-override: a"))
        assert (status(answer), b"x-llmux-model: a" in answer.lower()) == (200, True)
        assert sent(two)[1] == plain.replace(b"=b", b"=a").replace(b"\r\nb\r\n", b"\r\na\r\n")


async def test_lenient_json_is_read_too(two: Site) -> None:
    for plain in (b'\xef\xbb\xbf{"model":"b","x":NaN}', '{"model":"b"}'.encode("utf-16")):
        data, header = coded(plain, "zstd")
        assert b"x-llmux-model: b" in (await two.exchange(post(data, header))).lower()
        assert sent(two)[1] == data
        assert status(await two.exchange(post(data, header, b"model-override: a"))) == 200
        assert json.loads(sent(two)[1])["model"] == "a"


@pytest.mark.parametrize(
    ("data", "header", "code", "error"),
    [
        (b'{"model":"a"}', b"Content-Encoding: compress", 415, "unsupported_encoding"),
        (b'{"model":"a"}', b"content-encoding: gzip, foo", 415, "unsupported_encoding"),
        (b'{"model":"a"}', b"Content-Encoding: gzip", 400, "bad_request"),
        (gzipped(body())[:-1], b"Content-Encoding: gzip", 400, "bad_request"),
        (gzipped(body()) + b"x", b"Content-Encoding: gzip", 400, "bad_request"),
        (gzipped(body()), b"Content-Encoding: zstd", 400, "bad_request"),
        (gzipped(b'{"model":"a"'), b"Content-Encoding: gzip", 400, "bad_request"),
        (gzipped(b'{"x":1}'), b"Content-Encoding: gzip", 404, "no_model"),
        (gzipped(b""), b"Content-Encoding: gzip", 404, "no_model"),
        (b"", b"Content-Encoding: foo", 404, "no_model"),
        (gzipped(body(10, "nobody")), b"Content-Encoding: gzip", 404, "model_not_found"),
    ],
)
async def test_what_cannot_be_read_is_refused(
    two: Site, data: bytes, header: bytes, code: int, error: str
) -> None:
    answer = await two.exchange(post(data, header))
    assert (status(answer), error_code(answer)) == (code, error)
    assert (b"accept-encoding: gzip, deflate, zstd, br" in answer.lower()) is (code == 415)
    if code in {400, 415}:
        named = [header, b"model-override: a", b"Content-Type: application/json"]
        assert status(await two.exchange(post(data, *named))) == code
    assert two.backend.received == []


async def test_identity_and_other_spellings_are_taken(two: Site) -> None:
    plain = body()
    for data, header in [
        (plain, b"Content-Encoding: identity"),
        (plain, b"Content-Encoding:"),
        (gzipped(plain), b"CONTENT-ENCODING: Identity, X-GZIP"),
        (raw_deflate(plain), b"Content-Encoding: deflate"),
    ]:
        assert status(await two.exchange(post(data, header))) == 200
        assert sent(two)[1] == data


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("most", [1000, 1 << 20, 10 << 20])
async def test_more_than_a_body_may_be_is_refused(lane: str, most: int, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, limits={"body_bytes": most}) as site:
        for coding in ENCODE:
            fits = b'{"model":"a"}'.ljust(most)
            data, header = coded(fits, coding)
            assert status(await site.exchange(post(data, header))) == 200
            data, header = coded(fits + b" ", coding)
            answer = await site.exchange(post(data, header))
            assert (status(answer), error_code(answer)) == (413, "body_too_large")
        assert len(site.backend.received) == len(ENCODE)
        await until_nothing_is_held(site)


@pytest.mark.parametrize("lane", LANES)
async def test_the_copy_counts_while_it_is_looked_through(lane: str, tmp_path: Path) -> None:
    limits = {"body_bytes": 64 << 20, "queued_bytes": 65 << 20}
    async with running_lane(lane, tmp_path, limits=limits) as site:
        bodies = site.service.proxy.bodies
        with bodies.streaming(40 << 20):  # others hold so much
            data, header = coded(b'{"model":"a"}'.ljust(30 << 20), "zstd")
            answer = await site.exchange(post(data, header))
            assert (status(answer), error_code(answer)) == (429, "queue_full")
        await until_nothing_is_held(site)
        assert status(await site.exchange(post(data, header))) == 200


@pytest.mark.parametrize("lane", LANES)
async def test_others_are_served_while_a_body_is_decompressed(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, looks = trio.Event(), trio.Event()

    def held_up(headers: Any, data: bytes, codings: Any, bounds: Bounds) -> Any:
        fields = read_coded(headers, data, codings, bounds)
        if bounds.most_bytes > 1 << 20:
            trio.from_thread.run_sync(looks.set)
            trio.from_thread.run(go_on.wait)
        return fields

    monkeypatch.setattr(proxy, "read_coded", held_up)
    data, header = coded(b'{"model":"a"}'.ljust(6 << 20), "gzip")
    async with running_lane(lane, tmp_path) as site, await site.connect() as stream:
        await stream.send_all(post(data, header, close=False))
        with trio.fail_after(10):
            await looks.wait()
            assert 5 << 20 < site.service.proxy.bodies.held_bytes < 8 << 20
            assert status(await site.exchange(post())) == 200
            go_on.set()
            assert b"HTTP/1.1 200 " in bytes(await stream.receive_some())
        await until_nothing_is_held(site)


@pytest.mark.parametrize("lane", LANES)
async def test_who_leaves_while_its_body_is_decompressed_is_forgotten(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = trio.Event()

    def endless(headers: Any, data: bytes, codings: Any, bounds: Bounds) -> Any:
        fields = read_coded(headers, data, codings, bounds)
        trio.from_thread.run_sync(looks.set)
        while fields:  # until nobody waits any more
            bounds.pause()

    monkeypatch.setattr(proxy, "read_coded", endless)
    data, header = coded(b'{"model":"a"}'.ljust(6 << 20), "zstd", "gzip")
    async with running_lane(lane, tmp_path) as site:
        async with await site.connect() as stream:
            await stream.send_all(post(data, header))
            with trio.fail_after(20):
                await looks.wait()
        await until_nothing_is_held(site)


@pytest.mark.parametrize("lane", LANES)
async def test_a_body_that_waits_is_held_as_it_came(lane: str, tmp_path: Path) -> None:
    hooks = FakeHooks()
    hooks.gates = {("a", "wake"): trio.Event()}
    data, header = coded(b'{"model":"b"}'.ljust(6 << 20), "gzip")
    async with running_lane(lane, tmp_path, models=("a", "b"), hooks=hooks) as site:
        async with await site.connect() as stream:
            await stream.send_all(post(data, header, b"model-override: a", close=False))
            with trio.fail_after(10):
                while not site.service.board.queue_depths["a"]:
                    await trio.sleep(0.001)
                assert site.service.proxy.bodies.held_bytes < 100_000
                hooks.gates["a", "wake"].set()
                assert b"HTTP/1.1 200 " in bytes(await stream.receive_some())
        assert sent(site)[1] == b'{"model":"a"}'.ljust(6 << 20)


async def test_what_was_made_plain_stays_so_when_it_is_sent_again(tmp_path: Path) -> None:
    """Its backend accepts no connection the first time."""
    data, header = coded(b'{"model":"b"}', "zstd")
    async with running_lane("fast", tmp_path, models=("a", "b")) as site:
        exchange = site.service.proxy._exchange
        calls = 0

        def refused_once(*args: Any) -> Any:
            nonlocal calls
            sent = exchange(*args)
            calls += 1
            if calls == 1:
                raise BackendRefused("nobody listens")
            return sent

        site.service.proxy._exchange = refused_once  # type: ignore[assignment]
        assert status(await site.exchange(post(data, header, b"model-override: a"))) == 200
        assert calls == 2
        head, passed = sent(site)
        assert passed == b'{"model":"a"}'
        assert b"content-encoding" not in head


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_every_command_reads_compressed_bodies(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a", "b") as rack:
        config = rack.write_config(models={"b": {"upstream_model": "org/b"}})
        async with running_llmux(config, form) as llmux, llmux.client() as client:
            for coding, encode in ENCODE.items():
                for name in ("a", "b"):
                    plain = json.dumps(chat(name, x="x" * 400_000)).encode()
                    data = encode(plain)
                    answer = await client.post(
                        "/v1/chat/completions",
                        content=data,
                        headers={"content-encoding": coding, "content-type": "application/json"},
                    )
                    assert answer.status_code == 200
                    assert answer.headers["x-llmux-model"] == name
                    _, got = rack.backends[name].received[-1]
                    after = plain.replace(b'"model": "b"', b'"model": "org/b"')
                    assert got == (data if name == "a" else after)
            refused = await client.post("/v1/x", content=b"x", headers={"content-encoding": "foo"})
            assert refused.status_code == 415

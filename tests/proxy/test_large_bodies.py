"""Large bodies: looked through in slices, in a thread, so that nothing else waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from llmux.errors import LlmuxError
from llmux.openai import jsonbody, scanning
from llmux.openai.fields import read_fields
from llmux.openai.naming import find_model
from llmux.openai.scanning import SLICE_BYTES, Pause, no_pause
from tests.downstream.test_lanes import body_of, error_code, post, status
from tests.http.test_two_readers import FORM, MULTIPART
from tests.lanes import LANES, running_lane

SIZE = 8 << 20
DASHES = b"-" * 70


HEAD = b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n--%b--\r\n'
DASHED = b"Content-Type: multipart/form-data; boundary=" + DASHES

# What took seconds for 60 MB, or would; and some that are only large. Made when they are used.
LARGE: dict[str, tuple[bytes, Callable[[], bytes]]] = {
    "a long string": (b"", lambda: b'{"model":"a","x":"' + b"A" * SIZE + b'"}'),
    "no ASCII": (b"", lambda: b'{"model":"a","x":"' + "é".encode() * (SIZE // 2) + b'"}'),
    "numbers": (b"", lambda: b'{"x":[' + b"1," * (SIZE // 2) + b'1],"model":"a"}'),
    "arrays": (b"", lambda: b'{"model":"a","x":[' + b"[]," * (SIZE // 3) + b"1]}"),
    "strings": (b"", lambda: b'{"x":[' + b'"",' * (SIZE // 3) + b'1],"model":"a"}'),
    "keys": (b"", lambda: b"{" + b'"":0,' * (SIZE // 5) + b'"model":"a"}'),
    "escapes": (b"", lambda: b'{"x":"' + rb"\\" * (SIZE // 2) + b'","model":"a"}'),
    "space": (b"", lambda: b'{"model":"a",' + b" " * SIZE + b'"x":1}'),
    "twice": (b"", lambda: b'{"model":"a","x":"' + b"A" * SIZE + b'","model":"a"}'),
    "escaped": (b"", lambda: b'{"model":"a","x":"' + rb"\u006d" * (SIZE // 6) + b'"}'),
    "fields": (FORM, lambda: b"&m" * (SIZE // 2) + b"&model=a"),
    "escaped fields": (FORM, lambda: b"&%6d%6f%64%65%6c" * (SIZE // 16) + b"&model=a"),
    "a long field": (FORM, lambda: b"model=a&x=" + b"%61" * (SIZE // 3)),
    "dashes": (DASHED, lambda: HEAD % (DASHES, DASHES) + b"-" * SIZE),
    "line ends": (MULTIPART, lambda: HEAD % (b"b", b"b") + b"\r\n" * (SIZE // 2)),
}

REFUSED = {
    "keys model": (b"", b"{" + b'"model":"a",' * 20_000 + b'"model":"a"}'),
    "broken": (b"", b"{" + b'"model":1,' * 200_000),
    "fields": (FORM, b"model=a&" * 40_000),
    "parts": (MULTIPART, b"--b\r\n\r\n\r\n" * 40_000 + b"--b--"),
    "what begins like parts": (MULTIPART, b"\r\n--bx" * 60_000),
}


@pytest.mark.parametrize("what", LARGE)
def test_work_on_a_large_body_is_done_in_slices(what: str) -> None:
    kind, make = LARGE[what]
    body = make()
    worked_s: list[float] = []

    def pause() -> None:
        worked_s.append(time.thread_time())

    before = time.thread_time()
    headers = [(b"Content-Type", kind.partition(b": ")[2])]
    name = find_model(b"/x", headers, read_fields(headers, body, pause), {"a"}).name
    assert name == "a"
    # Four looks through all of it are the most; and one call to a parser is no slice.
    assert SIZE / SLICE_BYTES <= len(worked_s) < 8 * SIZE / SLICE_BYTES
    assert worked_s[-1] - before < 3, "linear: a tenth of this was measured"


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_too_many_of_anything_is_refused_early(what: str) -> None:
    kind, body = REFUSED[what]
    pauses = 0

    def pause() -> None:
        nonlocal pauses
        pauses += 1

    with pytest.raises(LlmuxError, match="more than"):
        read_fields([(b"Content-Type", kind.partition(b": ")[2])], body, pause)


@pytest.mark.parametrize("size", [100, jsonbody.LARGE_BYTES + 100])
@pytest.mark.parametrize(
    "body",
    [
        b'{"x":"%b","model":"a"}', b'{"model":"a","x":{"y":"%b","model":"b"}}',
        b'{"x":["%b",{"model":"b"}],"model":"a","Model":"a"}', b'{"model":"a","x":"%b\\"","y":"\\""}',
        b'{"x":"%b\\\\","model":"a","model":"a"}', b'{"x":"%b\xc3\xa9","model":"a","m\\u006fdel":"a"}',
    ],
)  # fmt: skip
def test_a_large_body_is_read_as_a_small_one(
    monkeypatch: pytest.MonkeyPatch, body: bytes, size: int
) -> None:
    body = body % (b"x" * size)
    expected = json.loads(body) | {"model": "new"}
    if "Model" in expected:
        expected["Model"] = "new"
    for slice_bytes in (SLICE_BYTES, 64, 67):
        if slice_bytes < 100 < size:
            continue  # it would take long
        for module in (scanning, jsonbody):
            monkeypatch.setattr(module, "SLICE_BYTES", slice_bytes)
        for limit in (jsonbody.MAX_PARSED_WEIGHT, 1):  # parsed, or only looked through
            monkeypatch.setattr(jsonbody, "LARGE_BYTES", 0 if limit == 1 else jsonbody.LARGE_BYTES)
            monkeypatch.setattr(jsonbody, "MAX_PARSED_WEIGHT", limit)
            fields = read_fields([], body)
            assert find_model(b"/x", [], fields, {"a"}).name == "a"
            assert json.loads(fields.replace(body, "new", lambda _: True)) == expected


@pytest.mark.parametrize("slice_bytes", [1, 2, 3, 5, 1000])
def test_nothing_is_missed_between_two_slices(
    monkeypatch: pytest.MonkeyPatch, slice_bytes: int
) -> None:
    for module in (scanning, jsonbody):
        monkeypatch.setattr(module, "SLICE_BYTES", max(2, slice_bytes))
    monkeypatch.setattr("llmux.openai.forms.SLICE_BYTES", slice_bytes)
    body = rb'{"x":"\\\"\\","y":["]{\"model\":1"],"\u006dodel" : "a\n","z":{"model":"b"},"model":"a\n"}'
    assert find_model(b"/x", [], read_fields([], body), set()).name == json.loads(body)["model"]
    form = [(b"Content-Type", FORM.partition(b": ")[2])]
    assert find_model(b"/x", form, read_fields(form, b"x&m%6fdel=%61&y"), set()).name == "a"
    multipart = [(b"Content-Type", b"multipart/form-data; boundary=b")]
    body = b"\r\n\r\n--b\r\nContent-Disposition: form-data; name=model\r\n\r\na\r\n-\r\n--b--"
    assert find_model(b"/x", multipart, read_fields(multipart, body), set()).name == "a\r\n-"


@pytest.mark.parametrize("lane", LANES)
async def test_others_are_served_while_a_large_body_is_looked_through(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is held up until another request has been answered: on the loop it never would."""
    go_on, looks = trio.Event(), trio.Event()

    def held_up(headers: object, body: bytes, pause: Pause = no_pause) -> object:
        if len(body) > jsonbody.LARGE_BYTES:
            trio.from_thread.run_sync(looks.set)
            trio.from_thread.run(go_on.wait)
        return read_fields(headers, body, pause)  # type: ignore[arg-type]

    monkeypatch.setattr("llmux.proxy.reading.read_fields", held_up)
    large = b'{"x":"' + b"x" * 300_000 + b'","model":"a"}'
    async with running_lane(lane, tmp_path) as site, await site.connect() as stream:
        await stream.send_all(post(large, close=False))
        with trio.fail_after(10):
            await looks.wait()
            assert site.service.proxy.bodies.held_bytes > len(large)
            assert status(await site.exchange(post())) == 200
            go_on.set()
            assert b"HTTP/1.1 200 " in bytes(await stream.receive_some())
    assert sorted(map(len, map(body_of, site.backend.received))) == [14, len(large)]


@pytest.mark.parametrize("lane", LANES)
async def test_who_leaves_while_its_body_is_looked_through_is_forgotten(
    lane: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = trio.Event()

    def endless(headers: object, body: bytes, pause: Pause = no_pause) -> object:
        trio.from_thread.run_sync(looks.set)
        while True:  # until nobody waits any more
            pause()

    monkeypatch.setattr("llmux.proxy.reading.read_fields", endless)
    async with running_lane(lane, tmp_path) as site:
        async with await site.connect() as stream:
            await stream.send_all(post(b"x" * 300_000))
            with trio.fail_after(20):
                await looks.wait()
        with trio.fail_after(20):
            while site.service.proxy.bodies.held_bytes:
                await trio.sleep(0.001)


@pytest.mark.parametrize("lane", LANES)
async def test_a_large_body_is_answered_as_a_small_one(lane: str, tmp_path: Path) -> None:
    async with running_lane(lane, tmp_path, models=("a", "b")) as site:
        pad = b'"x":"' + b"x" * 300_000 + b'"'
        answer = await site.exchange(post(b'{"model":"a","Model":"b",' + pad + b"}"))
        assert (status(answer), error_code(answer)) == (400, "bad_request")
        answer = await site.exchange(post(b"{" + pad + b"}"))
        assert (status(answer), error_code(answer)) == (404, "no_model")
        both = post(b'{"model":"b",' + pad + b"}", b"model-override: a")
        assert status(await site.exchange(both)) == 200
        assert body_of(site.backend.received[0]) == b'{"model":"a",' + pad + b"}"

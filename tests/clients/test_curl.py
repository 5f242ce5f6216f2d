"""Plain `curl`, as people type it."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest
import trio

from tests.clients.site import PATIENCE_S, WORDS, Site, needs_tool
from tests.lanes import play

pytestmark = [pytest.mark.slow, needs_tool("curl")]

ASK = '{"model": "a", "prompt": "Who?"}'


async def curl(*arguments: str) -> str:
    """What it prints."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    return done.stdout.decode()


async def test_a_body_with_curls_own_content_type(site: Site) -> None:
    """`-d` says that it is a form, whatever it is."""
    answer = json.loads(await curl(f"{site.api}/completions", "-d", ASK))
    assert answer["choices"][0]["text"] == f"a {WORDS}"


async def test_a_body_from_a_file_that_waits_to_be_asked_for(site: Site) -> None:
    """More than a megabyte: curl sends `Expect: 100-continue`."""
    ask = json.dumps({"model": "scripted", "prompt": "x" * (3 << 20)})
    (site.folder / "ask.json").write_text(ask)
    url, sent = f"{site.api}/completions", f"@{site.folder / 'ask.json'}"
    assert await curl(url, "--data-binary", sent, "-H", "Content-Type: application/json") == "ok"
    assert await curl(url, "--data-binary", sent, "-H", "Transfer-Encoding: chunked") == "ok"
    assert site.bodies() == [ask.encode()] * 2


async def test_a_stream_unbuffered(site: Site) -> None:
    ask = '{"model": "a", "prompt": "Who?", "stream": true, "rate": 10, "max_tokens": 100000}'
    standin = site.standins["a"]
    command = ["curl", "-sN", f"{site.api}/completions", "-d", ask]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with trio.fail_after(PATIENCE_S):
            data = b""
            while data.count(b"\n\n") < 3:
                data += await process.stdout.receive_some()
        assert data.startswith(b'data: {"object":"text_completion"')
        assert (standin.engine.in_flight, standin.engine.served) == (1, 0)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
    await site.until(lambda: standin.engine.in_flight == 0)


async def test_compressed(site: Site) -> None:
    zipped = gzip.compress(b"squeezed")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    site.scripted.play = play(head % len(zipped) + zipped)
    assert await curl("--compressed", f"{site.url}/x?model=scripted") == "squeezed"
    [received] = site.scripted.received
    assert b"\r\naccept-encoding: " in received.lower()
    assert b"gzip" in received


async def test_head(site: Site) -> None:
    site.scripted.play = play(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nX-Odd: 1\r\n\r\n")
    told = await curl("--head", f"{site.url}/x?model=scripted", f"{site.url}/y?model=scripted")
    heads = told.lower().split("\r\n\r\n")
    assert len(heads) == 3  # and nothing behind the last
    for head in heads[:2]:
        assert head.startswith("http/1.1 200")
        assert "\r\ncontent-length: 5000" in head
        assert "\r\nx-odd: 1" in head
    assert [each.split(b" ")[0] for each in site.scripted.received] == [b"HEAD", b"HEAD"]
    assert (await curl("--head", f"{site.url}/health")).startswith("HTTP/1.1 200")


async def test_options(site: Site) -> None:
    site.scripted.play = play(b"HTTP/1.1 204 No Content\r\nAllow: GET, POST\r\n\r\n")
    told = await curl("-i", "-X", "OPTIONS", f"{site.url}/x?model=scripted")
    assert told.startswith("HTTP/1.1 204")
    assert "allow: get, post" in told.lower()
    own = await curl("-i", "-X", "OPTIONS", f"{site.api}/models")
    assert "GET" in own.lower().partition("allow:")[2].partition("\r\n")[0].upper()


async def test_http_1_0(site: Site) -> None:
    answer = json.loads(await curl("--http1.0", f"{site.api}/completions", "-d", ASK))
    assert answer["choices"][0]["text"] == f"a {WORDS}"


async def test_an_error_is_told(site: Site) -> None:
    command = ["curl", "-sS", "--fail-with-body", f"{site.api}/completions", "-d", "{}"]
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 22
    assert b"404" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "no_model"


async def test_a_file_as_a_form(site: Site, tmp_path: Path) -> None:
    sound = tmp_path / "sound.bin"
    sound.write_bytes(bytes(range(256)) * 4)
    url = f"{site.api}/audio/transcriptions"
    told = await curl(url, "-F", f"file=@{sound}", "-F", "model=a")
    assert json.loads(told)["text"].startswith("a heard 1024 bytes")

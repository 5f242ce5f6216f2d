"""Bodies that must arrive byte for byte: uploads, large prompts, compressed answers."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import wave
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.site import (
    PATIENCE_S,
    Site,
    in_thread,
    needs_package,
    openai_client,
    package,
    running_site,
)
from tests.lanes import play

pytestmark = pytest.mark.slow

ANSWER = json.dumps({
    "id": "x", "object": "chat.completion", "created": 0, "model": "x",
    "choices": [
        {
            "index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "squeezed " * 500},
        }
    ],
}).encode()  # fmt: skip


def sound() -> bytes:
    """A second of noise as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(random.Random(1).randbytes(32_000))
    return file.getvalue()


def with_image(base64_bytes: int) -> list[Any]:
    """A question with a picture of so many bytes in base64."""
    picture = base64.b64encode(random.Random(2).randbytes(base64_bytes * 3 // 4)).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]


@pytest.mark.parametrize("upstream", [None, "openai/whisper-large-v3"])
async def test_a_transcription(form: str, upstream: str | None, tmp_path: Path) -> None:
    models = {"a": {"aliases": ["whisper-1"]} | ({"upstream_model": upstream} if upstream else {})}
    async with running_site(tmp_path, form, models) as site:
        file = sound()

        def work() -> str:
            with openai_client(site) as api:
                named = ("zwölf.wav", file, "audio/wav")
                return api.audio.transcriptions.create(
                    model="whisper-1", file=named, language="de", temperature=0.5
                ).text

        digest = hashlib.sha256(file).hexdigest()
        heard = f"{upstream or 'whisper-1'} heard {len(file)} bytes, sha256 {digest}"
        assert await in_thread(work) == heard


async def test_a_large_image_arrives_byte_for_byte(site: Site) -> None:
    site.scripted.play = play(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(ANSWER), ANSWER)
    )
    sent: list[str] = []

    def work() -> None:
        def note(request: httpx.Request) -> None:
            sent.append(hashlib.sha256(request.content).hexdigest())

        with httpx.Client(event_hooks={"request": [note]}, timeout=PATIENCE_S) as http:
            openai_client(site, http_client=http).chat.completions.create(
                model="scripted", messages=with_image(20 << 20)
            )

    await in_thread(work)
    [body] = site.bodies()
    assert len(body) > 20 << 20
    assert [hashlib.sha256(body).hexdigest()] == sent


@pytest.mark.parametrize("megabytes", [2, 20])
async def test_a_body_over_the_limit_is_told_cleanly(
    form: str, megabytes: int, tmp_path: Path
) -> None:
    async with running_site(tmp_path, form, limits={"body_bytes": 1 << 20}) as site:

        def work() -> None:
            with openai_client(site) as api:
                with pytest.raises(openai.APIStatusError) as error:
                    api.chat.completions.create(model="a", messages=with_image(megabytes << 20))
                assert error.value.status_code == 413
                assert error.value.code == "body_too_large"
                # The client goes on, on whatever connection.
                assert api.embeddings.create(model="a", input="x").model == "a"

        await in_thread(work)


@needs_package("brotli")
@pytest.mark.parametrize("encoding", ["gzip", "br"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_compressed_answers_are_untouched(site: Site, encoding: str, framing: str) -> None:
    brotli = package("brotli")
    squeezed = gzip.compress(ANSWER) if encoding == "gzip" else brotli.compress(ANSWER)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: %b\r\n"
    head %= encoding.encode()
    if framing == "length":
        pieces = [head + b"Content-Length: %d\r\n\r\n" % len(squeezed), squeezed]
    else:
        half = len(squeezed) // 2
        chunks = [b"%x\r\n%b\r\n" % (len(p), p) for p in (squeezed[:half], squeezed[half:])]
        pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]
    site.scripted.play = play(*pieces)
    ask = {"model": "scripted", "messages": []}

    async with site.llmux.client() as plain:
        async with plain.stream("POST", "/v1/chat/completions", json=ask) as answer:
            raw = b"".join([data async for data in answer.aiter_raw()])
    assert raw == squeezed
    assert answer.headers["content-encoding"] == encoding
    received = site.scripted.received[0].lower()
    assert b"br" in received.partition(b"\r\naccept-encoding: ")[2].partition(b"\r\n")[0]

    def work() -> str | None:
        with openai_client(site) as api:
            made = api.chat.completions.create(model="scripted", messages=[])
            return made.choices[0].message.content

    assert await in_thread(work) == "squeezed " * 500

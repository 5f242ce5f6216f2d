"""A real llmux and llama.cpp's real `llama-server`, with the recipes `process` and `llama-cpp`.

`tests/real.sh llama-server` builds the server; `tests/real.sh xllamacpp` installs its code from a wheel. Two models of random weights take turns; what can go wrong with a
server is done to a real one: it dies, its file is missing or cut off, its memory runs out, llmux restarts meanwhile.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.real.site import CHAT, PATIENCE_S, Site, ask, gguf, program, status_of, until
from tests.servers import chat

SERVER = program("LLMUX_LLAMA_SERVER") or program("LLMUX_XLLAMACPP")

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(SERVER is None, reason="not set: LLMUX_LLAMA_SERVER, LLMUX_XLLAMACPP"),
]

RECIPES = ("process", "llama-cpp")
SMALL = "--ctx-size 512 --parallel 2 --threads 1 --no-warmup"

PROMPT_S = 20.0
"""Longest time until a failure is told that a server shows at once; without that, it is `hook_timeouts.wake`."""

MakeModel = Callable[..., dict[str, Any]]


def by_process(file: Path | str, options: str = SMALL, **more: Any) -> dict[str, Any]:
    """A model of the recipe `process`."""
    command = f"{shlex.quote(str(SERVER))} -m {shlex.quote(str(file))} --port ${{PORT}} {options}"
    return {"recipe": "process", "with": {"command": command}, **more}


def by_llama_cpp(file: Path | str, options: str = SMALL, **more: Any) -> dict[str, Any]:
    """A model of the recipe `llama-cpp`."""
    needs = {"model": str(file), "server": str(SERVER), "args": options}
    return {"recipe": "llama-cpp", "with": needs, **more}


MAKE: dict[str, MakeModel] = {"process": by_process, "llama-cpp": by_llama_cpp}


@pytest.fixture(params=RECIPES)
def make(request: pytest.FixtureRequest) -> MakeModel:
    return MAKE[request.param]


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make_site(models: dict[str, Any], **settings: Any) -> Site:
        sites.append(Site(tmp_path, models, **settings))
        return sites[-1]

    yield make_site
    for site in sites:
        site.end_servers()


def two(make: MakeModel) -> dict[str, Any]:
    return {name: make(gguf(name)) for name in ("tiny-a", "tiny-b")}


def events(text: str) -> list[Any]:
    """The data of server-sent events; the last must be `[DONE]`."""
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


# ---- As it should be ----


@pytest.mark.parametrize("form", ["llmux", "hypercorn -k trio"])
async def test_two_servers_take_turns(
    make: MakeModel, make_site: Callable[..., Site], form: str
) -> None:
    site = make_site(two(make))
    async with site.running(form) as (_, client):
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            answer = await ask(client, model)
            assert answer.json()["usage"]["completion_tokens"] > 0
            assert site.running_model("tiny-a", "tiny-b") == model
            assert (await ask(client, model)).headers["x-llmux-wait-ms"] == "0"
        metrics = (await client.get("/metrics")).text
        assert 'llmux_switch_total{from="tiny-b",result="success",to="tiny-a"} 1.0' in metrics
        assert (await client.post("/control/sleep", json={"model": "tiny-a"})).status_code < 300
        await until(lambda: _is(client, "tiny-a", "asleep"))
        assert site.leaders() == {}


async def _is(client: httpx.AsyncClient, model: str, state: str) -> bool:
    found: str = (await status_of(client, model))["state"]
    return found == state


async def test_both_recipes_in_one_config(make_site: Callable[..., Site]) -> None:
    models = {"tiny-a": by_process(gguf("tiny-a")), "tiny-b": by_llama_cpp(gguf("tiny-b"))}
    site = make_site(models)
    async with site.running() as (_, client):
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            await ask(client, model)
            assert site.running_model(*models) == model


async def test_streams_and_their_token_counts(
    make: MakeModel, make_site: Callable[..., Site]
) -> None:
    site = make_site(two(make))
    async with site.running() as (_, client):
        for model in ("tiny-a", "tiny-b"):
            answer = await ask(
                client, model, stream=True, stream_options={"include_usage": True}, max_tokens=8
            )
            assert answer.headers["content-type"].startswith("text/event-stream")
            parts = events(answer.text)
            assert parts[-1]["usage"]["completion_tokens"] == 8
        metrics = (await client.get("/metrics")).text
        for model in ("tiny-a", "tiny-b"):
            assert f'llmux_tokens_total{{kind="completion",model="{model}"}} 8.0' in metrics


async def test_the_other_apis_of_the_server(make_site: Callable[..., Site]) -> None:
    site = make_site(
        {"tiny-a": by_llama_cpp(gguf("tiny-a"), f"{SMALL} --embeddings --pooling mean")}
    )
    message = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "Hi", "max_tokens": 4},
        "/completions": {"prompt": "Hi", "n_predict": 4},
        "/completion": {"prompt": "Hi", "n_predict": 4},
        "/chat/completions": message,
        "/v1/messages": message,
        "/v1/messages/count_tokens": message,
        "/v1/responses": {"input": "Hi", "max_output_tokens": 16},
        "/v1/embeddings": {"input": "Hi"},
        "/tokenize": {"content": "Hi"},
        "/detokenize": {"tokens": [75, 108]},
        "/apply-template": message,
    }
    async with site.running() as (_, client):
        codes = {}
        for path, body in bodies.items():
            answer = await client.post(path, json={"model": "tiny-a", **body})
            codes[path] = answer.status_code, answer.text if answer.status_code != 200 else ""
        assert codes == dict.fromkeys(bodies, (200, ""))
        props = await client.get("/upstream/tiny-a/props")
        assert props.json()["model_path"] == str(gguf("tiny-a"))


async def test_a_stream_ends_whole_before_its_model_is_stopped(
    make: MakeModel, make_site: Callable[..., Site]
) -> None:
    site = make_site(two(make))
    long = chat("tiny-a", max_tokens=400, stream=True, ignore_eos=True)
    async with site.running() as (_, client):
        async with client.stream("POST", CHAT, json=long) as stream:
            assert stream.status_code == 200
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, client, "tiny-b")
                await until(lambda: _waiting(client))
                text = "".join([part async for part in stream.aiter_text()])
        assert events(text)[-1]["choices"][0]["finish_reason"] == "length"
        assert site.running_model("tiny-a", "tiny-b") == "tiny-b"


async def _waiting(client: httpx.AsyncClient) -> bool:
    depths: dict[str, int] = (await client.get("/control/status")).json()["queue_depth"]
    return depths["tiny-b"] == 1


async def test_a_client_that_leaves_ends_its_generation(
    make: MakeModel, make_site: Callable[..., Site]
) -> None:
    site = make_site({"tiny-a": make(gguf("tiny-a"), f"{SMALL} --slots")})
    endless = chat("tiny-a", max_tokens=-1, stream=True, ignore_eos=True)
    async with site.running() as (_, client):
        async with client.stream("POST", CHAT, json=endless) as stream:
            await stream.aiter_bytes().__anext__()
        assert (await status_of(client, "tiny-a"))["in_flight"] in (0, 1)

        async def is_idle() -> bool:
            slots = (await client.get("/upstream/tiny-a/slots")).json()
            return not any(slot["is_processing"] for slot in slots)

        await until(is_idle)


async def test_a_server_on_a_unix_socket(make_site: Callable[..., Site], tmp_path: Path) -> None:
    sockets = {name: tmp_path / f"{name}.sock" for name in ("tiny-a", "tiny-b")}
    plain = f"{shlex.quote(str(SERVER))} -m {shlex.quote(str(gguf('tiny-a')))} {SMALL}"
    with_command = {"command": f"{plain} --host {sockets['tiny-a']}"}
    models = {
        "tiny-a": {"recipe": "process", "with": with_command, "url": f"unix:{sockets['tiny-a']}"},
        "tiny-b": by_llama_cpp(gguf("tiny-b"), url=f"unix:{sockets['tiny-b']}"),
    }
    site = make_site(models)
    async with site.running() as (_, client):
        for model in ("tiny-a", "tiny-b", "tiny-a"):
            await ask(client, model)
            assert site.running_model("tiny-a.gguf", "tiny-b.gguf") == f"{model}.gguf"


async def test_a_server_with_a_key_of_its_own(make_site: Callable[..., Site]) -> None:
    options = f"{SMALL} --api-key s3cret"
    headers = {"Authorization": "Bearer s3cret"}
    site = make_site({"tiny-a": by_process(gguf("tiny-a"), options, headers=headers)})
    async with site.running() as (_, client):
        await ask(client, "tiny-a")


# ---- Restarts of llmux ----


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_a_server_is_adopted_after_a_restart(
    make: MakeModel, make_site: Callable[..., Site], end: signal.Signals
) -> None:
    site = make_site(two(make))
    async with site.running(ends_with=0 if end == signal.SIGTERM else -end) as (llmux, client):
        await ask(client, "tiny-b")
        before = site.leaders()
        llmux.process.send_signal(end)
        await llmux.process.wait()
    assert site.leaders() == before
    async with site.running() as (_, client):
        await until(lambda: _is(client, "tiny-b", "awake"))
        assert (await ask(client, "tiny-b")).headers["x-llmux-wait-ms"] == "0"
        assert site.leaders() == before
        await ask(client, "tiny-a")
        assert site.running_model("tiny-a", "tiny-b") == "tiny-a"


@pytest.mark.parametrize("recipe", RECIPES)
async def test_a_server_with_other_options_is_started_again(
    make_site: Callable[..., Site], recipe: str
) -> None:
    """After a restart of llmux: at once by `process`, at the next wake by `llama-cpp`."""
    make = MAKE[recipe]
    site = make_site(two(make))
    async with site.running() as (_, client):
        await ask(client, "tiny-a")
        (before,) = site.leaders()
    site.write({**two(make), "tiny-a": make(gguf("tiny-a"), SMALL.replace("512", "256"))})
    async with site.running() as (_, client):
        if recipe == "llama-cpp":
            await until(lambda: _is(client, "tiny-a", "awake"))
            await ask(client, "tiny-b")
        await ask(client, "tiny-a")
        ((after, command),) = site.leaders().items()
        assert after != before
        assert "--ctx-size 256" in command


# ---- What goes wrong ----


async def fails_soon(client: httpx.AsyncClient, model: str) -> str:
    """Ask a model whose wake fails; return what the status says. It must not take `hook_timeouts.wake`."""
    started = time.monotonic()
    answer = await client.post(CHAT, json=chat(model, max_tokens=4))
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"]["code"] == "hook_failed"
    seconds = time.monotonic() - started
    assert seconds < PROMPT_S
    status = await status_of(client, model)
    return str(status["last_error"])


async def test_a_file_that_is_not_there(make: MakeModel, make_site: Callable[..., Site]) -> None:
    site = make_site({"tiny-a": make(gguf("tiny-a")), "gone": make("/models/gone.gguf")})
    async with site.running() as (_, client):
        await ask(client, "tiny-a")
        told = await fails_soon(client, "gone")
        assert "/models/gone.gguf" in told
        assert "the server ended with exit code 1" in told
        await ask(client, "tiny-a")


async def test_a_file_that_is_cut_off(
    make: MakeModel, make_site: Callable[..., Site], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf("tiny-a").read_bytes()[:200_000])
    site = make_site({"cut": make(cut)})
    async with site.running() as (_, client):
        told = await fails_soon(client, "cut")
    assert "the server ended with exit code 1" in told
    assert "failed to load model" in told


async def test_an_option_that_the_server_does_not_have(
    make: MakeModel, make_site: Callable[..., Site]
) -> None:
    site = make_site({"tiny-a": make(gguf("tiny-a"), f"{SMALL} --no-such-option")})
    async with site.running() as (_, client):
        assert "invalid argument: --no-such-option" in await fails_soon(client, "tiny-a")


async def test_a_server_that_runs_out_of_memory_during_its_load(
    make_site: Callable[..., Site],
) -> None:
    model = by_process(gguf("tiny-a"), f"{SMALL} --no-mmap")
    model["with"]["command"] = f"ulimit -v 60000; {model['with']['command']}"
    site = make_site({"tiny-a": model})
    async with site.running() as (_, client):
        told = await fails_soon(client, "tiny-a")
    assert "the server ended with exit code" in told


async def test_a_server_that_is_killed_while_it_loads(
    make: MakeModel, make_site: Callable[..., Site], tmp_path: Path
) -> None:
    """It loads from a pipe into which nothing is written, so that there is time to kill it."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    site = make_site({"tiny-a": make(pipe), "tiny-b": make(gguf("tiny-b"))})
    told = []
    async with site.running() as (_, client):
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                told.append(await fails_soon(client, "tiny-a"))

            nursery.start_soon(fail)
            with trio.fail_after(PATIENCE_S):
                while not site.leaders():
                    await trio.sleep(0.001)
            (pid,) = site.leaders()
            await trio.sleep(0.3)
            os.killpg(pid, signal.SIGKILL)
        assert "the server ended with exit code 137" in told[0]
        await ask(client, "tiny-b")


async def test_a_server_that_dies_while_it_serves(
    make: MakeModel, make_site: Callable[..., Site]
) -> None:
    """Its stream is cut for the client, and the next request starts it again."""
    site = make_site(two(make))
    endless = chat("tiny-a", max_tokens=-1, stream=True, ignore_eos=True)
    async with site.running() as (_, client):
        async with client.stream("POST", CHAT, json=endless) as stream:
            parts = stream.aiter_text()
            await parts.__anext__()
            (pid,) = site.leaders()
            os.killpg(pid, signal.SIGKILL)
            with suppress(httpx.RemoteProtocolError):
                rest = "".join([part async for part in parts])
                assert "[DONE]" not in rest
        await _ask_again(client)
        assert pid not in site.leaders()


async def _ask_again(client: httpx.AsyncClient) -> None:
    """The first request after a death may still find the dead server's port."""
    with trio.fail_after(PATIENCE_S):
        while True:
            answer = await client.post(CHAT, json=chat("tiny-a", max_tokens=4))
            if answer.status_code == 200:
                return
            assert answer.status_code in (502, 503), answer.text
            await trio.sleep(0.2)

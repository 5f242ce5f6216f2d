"""The blocks of `docs/clients.md` that `tests/docs` does not run, and what those in Python print.

Programs of the shell and of Python are run there too, against `llmux` itself; here it is under Hypercorn.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.install import NODE
from tests.clients.page import ALIASES, BLOCKS, NAMES, aimed_at, config_of, loaded, written_in
from tests.clients.site import PATIENCE_S, QUESTION, WORDS, Site, needs_package, running_site
from tests.documents import Block

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules").is_dir(),
    reason="needs Node and its packages: make test-slow installs them",
)
LONG_S = 4 * PATIENCE_S
CONTINUE = NODE / "node_modules" / "@continuedev" / "cli" / "dist" / "cn.js"
ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it would fetch its list of prices
    "CONTINUE_CLI_ENABLE_TELEMETRY": "0",
    "LANGSMITH_TRACING": "false",
}

# ---- What the page says of itself: without any client, and so in the fast tests ----

BASE_URL = re.compile(r"http://(?:127\.0\.0\.1|host\.docker\.internal):3000(/v1)?")


def test_each_block_is_tested() -> None:
    """Another language, or another's config, needs a test here."""
    assert {block.language for block in BLOCKS} == {"sh", "python", "js", "yaml"}
    marks = {block.mark for block in written_in("yaml")}
    whose = {f"not a config of llmux: {name}'s" for name in ("LiteLLM", "Continue", "LibreChat")}
    assert marks == whose | {"part of a config"}


@pytest.mark.parametrize("index", range(len(written_in("python") + written_in("js"))))
def test_base_urls_end_as_their_apis_want(index: int) -> None:
    """OpenAI's clients add `/chat/completions`, the others their whole path."""
    block = (written_in("python") + written_in("js"))[index]
    wants_v1 = not re.search("anthropic|ollama", block.code, re.IGNORECASE)
    assert set(BASE_URL.findall(block.code)) == {"/v1" if wants_v1 else ""}, block


# ---- With the clients ----

COMMENTS: dict[str, Any] = {"policy": {"waiting_keepalive_secs": 0.02}}
"""All clients must skip them."""


async def run(site: Site, *command: str, folder: Path, **more: str) -> str:
    """What the command prints; it must succeed."""
    environment = os.environ | ENVIRONMENT | {"HOME": str(site.folder)} | more
    with trio.fail_after(LONG_S):
        done = await trio.run_process(
            list(command), cwd=folder, env=environment, check=False, capture_stdout=True, capture_stderr=True,
        )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
    return done.stdout.decode()


def expected(block: Block) -> list[str]:
    """What a program must print, besides other things."""
    if "with_raw_response" in block.code:
        return ["b ", "would_switch"]
    if "model-override" in block.code:
        return [f"b {WORDS}"]
    return [
        f"{model} {WORDS}"
        for name, model in NAMES.items()
        if f'"{name}"' in block.code or f"/{name}" in block.code
    ]


@pytest.mark.slow
@needs_package("langchain_openai")
@needs_package("litellm")
@pytest.mark.parametrize("index", range(len(written_in("python"))))
async def test_python(index: int, tmp_path: Path) -> None:
    block = written_in("python")[index]
    async with running_site(tmp_path, "hypercorn -k trio", ALIASES, **COMMENTS) as site:
        said = await run(site, sys.executable, "-c", aimed_at(site, block.code), folder=tmp_path)
    assert expected(block)
    for words in expected(block):
        assert words in said


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("index", range(len(written_in("js"))))
async def test_javascript(index: int, tmp_path: Path) -> None:
    block = written_in("js")[index]
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    async with running_site(tmp_path, "hypercorn -k trio", ALIASES, **COMMENTS) as site:
        (tmp_path / "block.mjs").write_text(aimed_at(site, block.code))
        said = await run(site, "node", "block.mjs", folder=tmp_path)
    assert expected(block)
    for words in expected(block):
        assert words in said


OPENAI_ASKS = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", fetch: noting });
const ask = { model: "a", messages: [{ role: "user", content: "Who?" }] };
"""
AI_SDK_ASKS = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
const model = createOpenAICompatible({ name: "x", baseURL: process.argv[2], fetch: noting })("a");
"""
NOTING = """
import fs from "node:fs";
const answers = [];
async function noting(...request) {
  const begun = performance.now();
  const answer = await fetch(...request);
  answers.push([begun, performance.now(), answer.status, answer.headers.get("retry-after")]);
  fs.writeFileSync("told", "");
  return answer;
}
"""
STOPS = {
    "openai": OPENAI_ASKS + """
const stream = await client.chat.completions.create({ ...ask, stream: true, max_tokens: 10_000, rate: 20 });
for await (const chunk of stream) break;
""",
    "ai": AI_SDK_ASKS + """
const abort = new AbortController();
const asked = { model, prompt: "Who?", maxOutputTokens: 10_000, abortSignal: abort.signal };
for await (const part of streamText(asked).textStream) abort.abort();
""",
}  # fmt: skip
RETURNS = {
    "openai": OPENAI_ASKS + "console.log((await client.chat.completions.create(ask)).model);",
    "ai": AI_SDK_ASKS + 'console.log((await generateText({ model, prompt: "Who?" })).text);',
}


async def run_javascript(site: Site, program: str) -> str:
    (site.folder / "node_modules").symlink_to(NODE / "node_modules")
    (site.folder / "program.mjs").write_text(NOTING + program)
    return await run(site, "node", "program.mjs", site.api, folder=site.folder)


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("client", STOPS)
async def test_javascript_stops(client: str, tmp_path: Path) -> None:
    wait = "\nawait new Promise((resolve) => setTimeout(resolve, 1e6));"
    async with running_site(tmp_path) as site:
        engine = site.standins["a"].engine
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_javascript, site, STOPS[client] + wait)
            await site.until(lambda: engine.in_flight == 1, LONG_S)
            await site.until(lambda: engine.in_flight == 0, LONG_S)
            nursery.cancel_scope.cancel()  # the program lives on, so that its end is not the reason
        assert engine.served == 0


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("client", RETURNS)
async def test_javascript_comes_back_when_told(client: str, tmp_path: Path) -> None:
    """A 503 with `Retry-After`: too many connections, until one of the others ends."""
    async with running_site(tmp_path, limits={"connections": 1}) as site:
        host, port = site.url.removeprefix("http://").split(":")
        other = await trio.open_tcp_stream(host, int(port))
        await other.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await other.receive_some()).startswith(b"HTTP/1.1 200")

        async def let_in() -> None:
            await site.until((tmp_path / "told").exists, LONG_S)
            await other.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_in)
            said = await run_javascript(
                site, f"{RETURNS[client]}\nconsole.log(JSON.stringify(answers));"
            )
        answers = json.loads(said.splitlines()[-1])
        (_, refused_at, status, after), (back_at, *_), *_ = answers
        assert (status, after, answers[-1][2]) == (503, "1", 200)
        # Left to themselves, they come back after half a second (openai), or after two (ai).
        assert 990 < back_at - refused_at < 2000


@pytest.mark.slow
@needs_package("anthropic")
async def test_claude_codes_variables(tmp_path: Path) -> None:
    """The package of Anthropic reads the first two; the others are names of models."""
    (block,) = (block for block in BLOCKS if "ANTHROPIC_AUTH_TOKEN" in block.code and block.mark)
    async with running_site(tmp_path, "llmux", ALIASES, api_keys=["none"]) as site:
        exports = re.findall(r"^export (\w+)=(\S+)", aimed_at(site, block.code), re.MULTILINE)
        variables = dict(exports)
        models = [variables[name] for name in variables if name.endswith("_MODEL")]
        assert models == ["llama", "llama"]
        program = f"""
from anthropic import Anthropic
for model in {models}:
    ask = dict(model=model, max_tokens=9, messages={QUESTION})
    print(Anthropic(timeout={int(variables["API_TIMEOUT_MS"]) / 1000}).messages.create(**ask).content[0].text)
"""
        said = await run(site, sys.executable, "-c", program, folder=tmp_path, **variables)
    assert said.splitlines() == [f"a {WORDS}"] * 2


# ---- Continue ----


async def run_continue(site: Site, config: object) -> str:
    path = site.folder / "continue.yaml"
    path.write_text(json.dumps(config))
    command = ["node", str(CONTINUE), "--config", str(path), "-p", "Who are you?"]
    state = {"CONTINUE_GLOBAL_DIR": str(site.folder / "continue")}
    environment = os.environ | ENVIRONMENT | state | {"HOME": str(site.folder)}
    with trio.fail_after(LONG_S):
        done = await trio.run_process(
            command, cwd=site.folder, env=environment, check=False, stdin=b"", capture_stdout=True, capture_stderr=True,
        )  # fmt: skip
    return done.stdout.decode() + done.stderr.decode()


@pytest.mark.slow
@needs_node
async def test_continue(tmp_path: Path) -> None:
    """Each model of the config in turn, so with switches, and one that there is not."""
    async with running_site(tmp_path, "llmux", ALIASES) as site:
        config = loaded(site, config_of("Continue"))
        entries = config["models"]
        assert [entry["model"] for entry in entries] == list(NAMES)
        for entry in entries:
            said = await run_continue(site, config | {"models": [entry]})
            assert f"{NAMES[entry['model']]} {WORDS}" in said
        said = await run_continue(site, config | {"models": [entries[0] | {"model": "lama"}]})
        assert "404 Model not found: lama. Known names: " in said
        override = {"requestOptions": {"headers": {"model-override": "b"}}}
        said = await run_continue(site, config | {"models": [entries[0] | override]})
        assert f"b {WORDS}" in said
        assert [standin.engine.served for standin in site.standins.values()] == [1, 2]


@pytest.mark.slow
@needs_node
async def test_continue_takes_its_time_limit_for_milliseconds(tmp_path: Path) -> None:
    """If this fails, Continue counts seconds, and the page's warning can go."""
    models = {"a": ALIASES["a"] | {"held": True}}
    async with running_site(tmp_path, "llmux", models) as site:
        config = loaded(site, config_of("Continue"))
        entry = config["models"][0] | {"requestOptions": {"timeout": 900}}
        assert "Connection error" in await run_continue(site, config | {"models": [entry]})
        async with site.llmux.client() as client:
            metrics = (await client.get("/metrics")).text
        assert 'llmux_requests_total{model="a",status="499",waited="true"} 3.0' in metrics


# ---- LibreChat ----

CHECK = """
import fs from "node:fs";
import { configSchema, Constants } from "librechat-data-provider";
const results = JSON.parse(fs.readFileSync("configs.json")).map((config) => configSchema.safeParse(config));
console.log(JSON.stringify({
  version: Constants.CONFIG_VERSION,
  endpoints: results.map((result) => result.success ? result.data.endpoints.custom[0] : null),
}));
"""


@pytest.mark.slow
@needs_node
async def test_librechats_schema(tmp_path: Path) -> None:
    """Its schema takes the config, and knows all keys: it drops others, and refuses wrong types."""
    async with running_site(tmp_path, "llmux", ALIASES) as site:
        config = loaded(site, config_of("LibreChat"))
        (endpoint,) = config["endpoints"]["custom"]
        wrong = [endpoint | {name: 5} for name in endpoint]
        configs = [config, *({**config, "endpoints": {"custom": [each]}} for each in wrong)]
        (tmp_path / "configs.json").write_text(json.dumps(configs))
        (tmp_path / "check.mjs").write_text(CHECK)
        (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
        said = json.loads(await run(site, "node", "check.mjs", folder=tmp_path))
        taken, *others = said["endpoints"]
        assert endpoint.items() <= taken.items()
        assert others == [None] * len(endpoint)
        assert config["version"] == said["version"]
        # Where it would look for the list of models, and ask.
        async with site.llmux.client() as client:
            listed = (await client.get(f"{endpoint['baseURL']}/models")).json()["data"]
            ask = {"model": endpoint["models"]["default"][0], "messages": QUESTION}
            answer = await client.post(f"{endpoint['baseURL']}/chat/completions", json=ask)
        assert {"a", "b"} <= {model["id"] for model in listed}
        assert answer.json()["choices"][0]["message"]["content"] == f"a {WORDS}"

"""A real browser: pages of an allowed origin use models, others do not (`cors_origins`)."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.clients.site import PATIENCE_S, WORDS, needs_tool, running_site
from tests.lanes import ScriptedBackend, play

pytestmark = [pytest.mark.slow, needs_tool("chromium")]

PAGE = """<!doctype html><title>page</title><pre id="told"></pre><script>
const llmux = %s, key = {Authorization: "Bearer secret"};
const ask = (path, options) => fetch(llmux + path, options)
    .then(async (answer) => [answer.status, answer.headers.get("x-llmux-model"), await answer.text()])
    .catch((error) => error.name);
const chat = (model, more) => ask("/v1/chat/completions", {
    method: "POST",
    headers: {...key, "Content-Type": "application/json"},
    body: JSON.stringify({model, messages: [{role: "user", content: "Hi"}], ...more}),
});
(async () => {
    const told = {
        whole: await chat("a"), stream: await chat("b", {stream: true}),
        missing: await chat("none"), models: await ask("/v1/models", {headers: key}),
        keyless: await ask("/v1/models"), health: await ask("/health"),
        backend: await ask("/x?model=scripted", {method: "PUT", headers: key}),
        control: await ask("/control/status"), metrics: await ask("/metrics"),
    };
    document.getElementById("told").textContent = JSON.stringify(told);
})();
</script>"""

# A backend with an opinion of its own: if both were sent, the browser would refuse the answer.
OPINIONATED = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nAccess-Control-Allow-Origin: https://other\r\n\r\nok"
)


def page_of(llmux: str) -> bytes:
    """The server's answer that is the page."""
    page = (PAGE % json.dumps(llmux)).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"
    return head % len(page) + page


async def told_by(page: str, folder: Path) -> dict[str, Any]:
    """What the page has written when all of its requests have ended."""
    command = [
        "chromium", "--headless", "--disable-gpu", "--no-sandbox", "--no-first-run",
        "--disable-background-networking", "--no-proxy-server", f"--user-data-dir={folder}",
        "--virtual-time-budget=30000", "--dump-dom", page,
    ]  # fmt: skip
    with trio.fail_after(2 * PATIENCE_S):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
    assert found, done.stdout
    assert found[1], done.stderr.decode()
    return dict(json.loads(html.unescape(found[1])))


@pytest.mark.parametrize("to", ["its origin", "all", "another", "none"])
async def test_what_a_page_may_do(form: str, to: str, tmp_path: Path) -> None:
    pages = ScriptedBackend()
    async with trio.open_nursery() as nursery:
        await nursery.start(pages.serve)
        origin = f"http://localhost:{pages.port}"
        shared = {
            "its origin": [origin], "all": "*", "another": ["http://localhost:1"], "none": [],
        }[to]  # fmt: skip
        async with running_site(
            tmp_path, form, cors_origins=shared, api_keys=["secret"], control_keys=["boss"]
        ) as site:
            pages.play = play(page_of(site.url))
            site.scripted.play = play(OPINIONATED)
            told = await told_by(origin, tmp_path / "browser")
            if to in ("its origin", "all"):
                check_all(told)
            else:
                assert set(told.values()) == {"TypeError"}
                # Whatever carries a key or JSON was not even sent.
                assert [each.engine.served for each in site.standins.values()] == [0, 0]
                assert site.scripted.received == []
        nursery.cancel_scope.cancel()


def check_all(told: dict[str, Any]) -> None:
    status, model, body = told["whole"]
    assert (status, model) == (200, "a")
    assert json.loads(body)["choices"][0]["message"]["content"] == f"a {WORDS}"
    status, model, body = told["stream"]
    assert (status, model) == (200, "b")
    assert body.endswith("data: [DONE]\n\n")
    assert (told["missing"][0], json.loads(told["missing"][2])["error"]["code"]) == (
        404, "model_not_found",
    )  # fmt: skip
    assert len(json.loads(told["models"][2])["data"]) == 3
    assert told["keyless"][0] == 401
    assert told["health"] == [200, None, '{"status":"ok"}']
    assert told["backend"] == [200, "scripted", "ok"]
    assert told["control"] == told["metrics"] == "TypeError"

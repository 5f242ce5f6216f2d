"""`llmux import ollama`: the models that an Ollama has."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from llmux.cli.importing.ollama import full_url
from llmux.cli.main import main
from llmux.config import modeline

TAGS = {
    "models": [
        {
            "name": "llama3.2:3b",
            "size": 2_019_393_189,
            "details": {"parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
        },
        {"name": "nomic-embed-text:latest"},
    ]
}


class FakeOllama(ThreadingHTTPServer):
    said: bytes = json.dumps(TAGS).encode()
    status = 200


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    class Handler(BaseHTTPRequestHandler):
        server: FakeOllama

        def do_GET(self) -> None:
            assert self.path == "/api/tags"
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.said)))
            self.end_headers()
            self.wfile.write(self.server.said)

        def log_message(self, *_: object) -> None:
            pass

    with FakeOllama(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_its_models_become_ours(ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    port = ollama.server_port
    monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{port}")
    result = CliRunner().invoke(main, ["import", "ollama"])
    assert result.exit_code == 0
    assert (
        result.stdout
        == f"""\
{modeline()}
# Made by `llmux import ollama http://127.0.0.1:{port}`; `llmux check` says whether it works.

models:
  # - 3.2B, Q4_K_M, 2.0 GB
  "llama3.2:3b":
    recipe: ollama
    port: {port}
  "nomic-embed-text:latest":
    recipe: ollama
    port: {port}
"""
    )


def test_facts_of_another_form_are_left_out(ollama: FakeOllama) -> None:
    models = [{"name": "a", "details": "x", "size": 10**400}, {"name": "b", "details": [1]}]
    ollama.said = json.dumps({"models": models}).encode()
    url = f"http://127.0.0.1:{ollama.server_port}"
    result = CliRunner().invoke(main, ["import", "ollama", url])
    assert result.exit_code == 0
    assert result.stdout.count("recipe: ollama") == 2
    assert " GB" not in result.stdout


@pytest.mark.parametrize(
    ("status", "said", "message"),
    [
        (404, b"", "HTTP 404: is this an Ollama?"),
        (200, b"<html>", "does not answer as Ollama does"),
        (200, b"[]", "does not answer as Ollama does"),
        (200, b'{"models": [{}]}', "does not answer as Ollama does"),
        (200, b'{"models": []}', "has no models"),
    ],
)
def test_another_server(ollama: FakeOllama, status: int, said: bytes, message: str) -> None:
    ollama.status, ollama.said = status, said
    result = CliRunner().invoke(
        main, ["import", "ollama", f"http://127.0.0.1:{ollama.server_port}"]
    )
    assert result.exit_code == 5
    assert message in result.output
    assert len(result.output.splitlines()) == 1


def test_nobody_there() -> None:
    result = CliRunner().invoke(main, ["import", "ollama", "http://127.0.0.1:1"])
    assert (result.exit_code, result.output) == (
        5,
        "Error: cannot reach an Ollama at http://127.0.0.1:1: Connection refused\n",
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"), ("box", "http://box:11434"),
        ("box:1", "http://box:1"), ("http://box", "http://box:80"),
        ("https://box/x/", "https://box:443/x"), ("[::]:5", "http://[::1]:5"),
    ],
)  # fmt: skip
def test_addresses_are_read_as_ollama_reads_them(given: str, meant: str) -> None:
    assert full_url(given) == meant

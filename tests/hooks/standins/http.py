"""The HTTP side of the stand-ins."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hooks.standins.shared import record


class Handler(BaseHTTPRequestHandler):
    """One request to a stand-in; its server's `answer` says what comes back."""

    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one piece: in two, TCP would hold the second back for 40 ms

    def _do(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        url = urlsplit(self.path)
        body = self.rfile.read(length)
        if url.path not in self.server.unrecorded:
            record(f"{self.command} {self.path}{' ' if body else ''}{body.decode()}")
        asked = json.loads(body) if body.startswith(b"{") else {}
        status, answer = self.server.answer(self.command, url.path, parse_qs(url.query), asked)
        is_stream = isinstance(answer, str)
        data = b"" if answer is None else (answer if is_stream else json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/event-stream" if is_stream else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _do  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """An HTTP server on loopback whose subclass says what it answers."""

    daemon_threads = True
    unrecorded: frozenset[str] = frozenset({"/health"})

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: dict[str, Any]
    ) -> tuple[int, Any]:
        """Status and JSON body for a request; a text is the body of an event stream."""
        raise NotImplementedError

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no news."""


def chat_events(model: str, text: str) -> str:
    """The event stream of a chat completion, which begins with a role, as vLLM's do."""
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, {"content": text}]
    parts = [{"model": model, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"


def chat_answer(model: str, text: str) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": model, "choices": [{"message": {"role": "assistant", "content": text}}]}

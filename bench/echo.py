"""The smallest ASGI app: reads a body, and sends the response that the backend would send."""

from __future__ import annotations

from llmux.http.asgi_types import Receive, Scope, Send

ANSWER_BYTES = 300
_START, _END = (
    b'{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"',
    b'"}}]}',
)
ANSWER = _START + b"x" * (ANSWER_BYTES - len(_START) - len(_END)) + _END
"""The response that `native.c` sends and checks."""

HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % ANSWER_BYTES)]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError  # tells the server that the app has no lifespan
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})

"""One stream of ext_proc: the messages that Envoy sends about a request, and their answers.

No network here: `Exchange.answers` is a function of one message at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llmux.errors import BodyTooLarge, LlmuxError
from llmux.openai.answers import error_answer
from llmux.openai.dialects import dialect_of
from llmux.pick.messages import (
    FULL_DUPLEX_STREAMED,
    OVERWRITE_IF_EXISTS_OR_ADD,
    ProcessingResponse,
)
from llmux.pick.picking import Ask, Pick
from llmux.pick.protocol import DESTINATION, LB, OWN, SUBSET, SUBSET_HINT

PIECE_BYTES = 60 << 10
"""Piece of a body that is sent back: Envoy takes 64 KiB at a time."""

MOST_BODY_BYTES = 64 << 20

Choose = Callable[[Ask], Pick]
"""Chooses hosts for a request; raises LlmuxError."""


class Exchange:
    """The answers to the messages about one request.

    Args:
        choose: Chooses hosts.
        model_headers: Headers, in lower case, in which a gateway tells the model.
        note: Told of each pick, and of each error that the client gets instead.
    """

    def __init__(
        self,
        choose: Choose,
        model_headers: tuple[str, ...],
        note: Callable[[Pick | LlmuxError], None] = lambda _: None,
    ) -> None:
        self._choose = choose
        self._model_headers = model_headers
        self._note = note
        self._is_duplex = False
        self._waiting: Any = None  # the message with the head, while its body is collected
        self._body = bytearray()

    def answers(self, message: Any) -> Iterator[Any]:
        """Yield the answers to a message; none while the body is being collected."""
        if message.HasField("request_headers"):
            yield from self._on_head(message)
        elif message.HasField("request_body"):
            yield from self._on_body(message.request_body)
        elif message.HasField("request_trailers"):
            yield from self._on_whole()
            yield ProcessingResponse(request_trailers={})
        elif message.HasField("response_headers"):
            yield ProcessingResponse(response_headers={})
        elif message.HasField("response_body"):
            piece = message.response_body
            echo = _echo(piece.body, is_last=piece.end_of_stream) if self._is_duplex else {}
            yield ProcessingResponse(response_body=echo)
        else:
            yield ProcessingResponse(response_trailers={})

    def _on_head(self, message: Any) -> Iterator[Any]:
        self._is_duplex = message.protocol_config.request_body_mode == FULL_DUPLEX_STREAMED
        ask = ask_of(message, self._model_headers)
        if self._is_duplex and not ask.told and not message.request_headers.end_of_stream:
            self._waiting = message
        else:
            yield self._answer(ask)

    def _on_body(self, piece: Any) -> Iterator[Any]:
        if not self._is_duplex:
            yield ProcessingResponse(request_body={})
        elif self._waiting is None:
            yield ProcessingResponse(request_body=_echo(piece.body, is_last=piece.end_of_stream))
        else:
            self._body += piece.body
            if len(self._body) > MOST_BODY_BYTES:
                self._waiting = None
                yield self._refusal(Ask(target=b"/"), BodyTooLarge(MOST_BODY_BYTES))
            elif piece.end_of_stream:
                yield from self._on_whole(is_last=True)

    def _on_whole(self, *, is_last: bool = False) -> Iterator[Any]:
        """Answer to the head now that the body is there, and send the body back."""
        if self._waiting is None:
            return
        body = bytes(self._body)
        ask = ask_of(self._waiting, self._model_headers, body)
        self._waiting = None
        self._body.clear()
        yield self._answer(ask)
        for start in range(0, max(1, len(body)), PIECE_BYTES):
            is_end = is_last and start + PIECE_BYTES >= len(body)
            piece = body[start : start + PIECE_BYTES]
            yield ProcessingResponse(request_body=_echo(piece, is_last=is_end))

    def _answer(self, ask: Ask) -> Any:
        try:
            picked = self._choose(ask)
        except LlmuxError as error:
            return self._refusal(ask, error)
        self._note(picked)
        return sent_to(",".join(picked.endpoints))

    def _refusal(self, ask: Ask, error: LlmuxError) -> Any:
        self._note(error)
        return refused_with(error, ask)


def ask_of(message: Any, model_headers: tuple[str, ...], body: bytes | None = None) -> Ask:
    """Return the request that a message with a head is about."""
    pairs = [
        (header.key, header.raw_value or header.value.encode())
        for header in message.request_headers.headers.headers
    ]
    found = dict(reversed(pairs))  # the first one of a name
    metadata = message.metadata_context.filter_metadata
    told = metadata[OWN].fields["model"].string_value if OWN in metadata else ""
    for name in model_headers:
        told = told or found.get(name, b"").decode(errors="replace").strip()
    return Ask(
        target=found.get(":path", b"/"),
        headers=[(name.encode(), value) for name, value in pairs if name[:1] != ":"],
        told=told,
        body=body,
        only=_subset(metadata),
    )


def _subset(metadata: Any) -> frozenset[str] | None:
    """Return the endpoints that the gateway allows; None: all."""
    if SUBSET_HINT not in metadata or SUBSET not in metadata[SUBSET_HINT].fields:
        return None
    value = metadata[SUBSET_HINT].fields[SUBSET]
    texts = [each.string_value for each in value.list_value.values] or [value.string_value]
    return frozenset(each.strip() for text in texts for each in text.split(",") if each.strip())


def sent_to(endpoints: str) -> Any:
    """Return the message that sends a request to the first of these endpoints that takes it."""
    mutation = {"set_headers": [_header(DESTINATION, endpoints.encode())]}
    destination = {"fields": {DESTINATION: {"string_value": endpoints}}}
    return ProcessingResponse(
        request_headers={"response": {"header_mutation": mutation, "clear_route_cache": True}},
        dynamic_metadata={"fields": {LB: {"struct_value": destination}}},
    )


def refused_with(error: LlmuxError, ask: Ask) -> Any:
    """Return the message that answers a request with an error, in the words of its API."""
    status, headers, body = error_answer(error, dialect_of(ask.target, ask.headers))
    own = [_header(n.decode(), value) for n, value in headers if n != b"content-length"]
    return ProcessingResponse(
        immediate_response={
            "status": {"code": status},
            "headers": {"set_headers": own},
            "body": body,
            "details": error.code,
        }
    )


def _header(name: str, value: bytes) -> dict[str, Any]:
    return {
        "header": {"key": name, "raw_value": value},
        "append_action": OVERWRITE_IF_EXISTS_OR_ADD,
    }


def _echo(body: bytes, *, is_last: bool) -> dict[str, Any]:
    piece = {"body": body, "end_of_stream": is_last}
    return {"response": {"body_mutation": {"streamed_response": piece}}}

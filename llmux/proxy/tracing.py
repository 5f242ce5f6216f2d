"""OpenTelemetry traces: a span for each request, with what it waited for and where it went.

    request (server) ─┬─ wait ── switch, for each switch of its group while it was in line
                      └─ forward (client): its id is the `traceparent` that the backend gets

One switch serves many requests: each gets a span of its own for it, as long as it waited for it.
The only file that imports OpenTelemetry, and imported only where the config says `tracing: true`.
Where spans go, which are kept and what they are called is for the standard `OTEL_*` variables to
say; a thread of OpenTelemetry's own sends them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import trio
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llmux import __version__
from llmux.base.names import shown
from llmux.config import Config
from llmux.http.socketpath import socket_path
from llmux.http.syntax import Headers
from llmux.observe.clock import WallClock
from llmux.observe.events import SwitchEnded
from llmux.observe.journal import Switch
from llmux.observe.listeners import switch_entry
from llmux.proxy.summary import RequestSummary, milliseconds, path_of
from llmux.switching.admission import Serving

FLUSH_S = 2.0
"""How long a shutdown waits for the last spans to be sent."""

SWITCHES_KEPT = 256
"""Switches whose times are remembered for the requests that waited for them."""

W3C = TraceContextTextMapPropagator()
W3C_HEADERS = (b"traceparent", b"tracestate")

MAX_CARRIED_BYTES = 4096
"""Of a longer header nothing is kept; W3C Trace Context, section 3.3.1.5, wants 512 at least."""

# HTTP methods that may be a span's name; others would be as many names as clients like.
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"}
)


class HasStatus(Protocol):
    """A backend's answer, as far as a trace wants to know."""

    status: int


A = TypeVar("A", bound=HasStatus)


class Tracing:
    """Makes the spans of one app."""

    def __init__(self, config: Config) -> None:
        """Start the thread that sends spans; nothing is sent before there are some."""
        own = Resource({"service.name": "llmux", "service.version": __version__})
        said = OTELResourceDetector().detect()
        self._provider = TracerProvider(
            resource=Resource.create(own.merge(said).attributes),
            shutdown_on_exit=False,  # that would wait for as long as the exporter tries
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer = self._provider.get_tracer("llmux", __version__)
        self.switches: deque[Switch] = deque(maxlen=SWITCHES_KEPT)
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Use another config from now on."""
        self._groups = {model.name: model.group for model in config.models.values()}

    def switch_ended(self, event: SwitchEnded) -> None:
        """Remember a switch for the requests that waited for it."""
        self.switches.append(switch_entry(event)(0.0))  # in Trio's time

    def begin(self, method: bytes, target: bytes, headers: Headers, client: str | None) -> Trace:
        """A request has come."""
        return Trace(self, method, target, headers, client)

    def switches_during(self, model: str, started_at: float, ended_at: float) -> list[Switch]:
        """Those of a model's group that were going on then (Trio's clock, seconds)."""
        group = self._groups.get(model)
        return [
            switch
            for switch in self.switches
            if self._groups.get(switch.target) == group
            and switch.started < ended_at
            and switch.ended > started_at
        ]

    async def close(self) -> None:
        """Send what is there, in a while that ends whatever the collector does."""
        with trio.move_on_after(FLUSH_S, shield=True):
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)


class Trace:
    """The spans of one request."""

    def __init__(
        self,
        tracing: Tracing,
        method: bytes,
        target: bytes,
        headers: Headers,
        client: str | None,
    ) -> None:
        self._tracing = tracing
        self._clock = WallClock()
        self._noted_s = 0.0  # of its wait
        self._serving: Serving | None = None
        self._model = ""
        given = method.decode("latin-1")
        self._method = given if given in METHODS else "_OTHER"
        attributes = {
            "http.request.method": self._method,
            "url.path": shown(_text(path_of(target))),
        }
        if client is not None:
            attributes["client.address"] = client
        self._span = tracing.tracer.start_span(
            self._name(),
            context=W3C.extract(_carrier(headers)),
            kind=SpanKind.SERVER,
            start_time=self._clock.unix_ns(trio.current_time()),
            attributes=attributes,
        )
        self._here = set_span_in_context(self._span)

    def named(self, asked_for: str, model: str, serving: Serving) -> None:
        """The request names a model.

        Args:
            asked_for: As the client calls it.
            model: As the config does.
            serving: Its stay there.
        """
        self._model = model
        self._serving = serving
        self._span.update_name(self._name())
        self._span.set_attribute("gen_ai.request.model", asked_for)
        self._span.set_attribute("llmux.model", model)

    @asynccontextmanager
    async def forward(
        self,
        exchange: Callable[[Headers], AbstractAsyncContextManager[A]],
        headers: Headers,
        *,
        base_url: str,
        target: bytes,
    ) -> AsyncIterator[A]:
        """A span around an exchange with the backend.

        Args:
            exchange: Sends the request with these headers.
            headers: What it would be sent with; now with the span's id.
            base_url: Of the backend.
            target: What it is asked for.
        """
        self._note_wait()
        url, address = _server(base_url)
        span = self._tracing.tracer.start_span(
            "forward",
            context=self._here,
            kind=SpanKind.CLIENT,
            start_time=self._clock.unix_ns(trio.current_time()),
            attributes={
                "http.request.method": self._method,
                "url.full": url + shown(_text(path_of(target))),
                "llmux.model": self._model,
                **address,
            },
        )
        carrier: dict[str, str] = {}
        W3C.inject(carrier, set_span_in_context(span))
        if carrier:
            kept = [field for field in headers if field[0].lower() not in W3C_HEADERS]
            headers = [*kept, *((name.encode(), value.encode()) for name, value in carrier.items())]
        try:
            async with exchange(headers) as answer:
                span.set_attribute("http.response.status_code", answer.status)
                if answer.status >= 400:
                    span.set_status(StatusCode.ERROR)
                    span.set_attribute("error.type", str(answer.status))
                yield answer
        except Exception as error:
            span.set_status(StatusCode.ERROR, shown(str(error)))
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end(self._clock.unix_ns(trio.current_time()))

    def end(self, summary: RequestSummary) -> None:
        """End the spans of a request that has ended."""
        self._note_wait()
        span = self._span
        span.set_attributes(
            {
                "http.response.status_code": summary.status,
                "http.request.body.size": summary.bytes_in,
                "http.response.body.size": summary.bytes_out,
                "llmux.outcome": summary.outcome,
                "llmux.wait_ms": milliseconds(summary.wait_s),
            }
        )
        if summary.first_byte_s is not None:
            span.set_attribute("llmux.first_byte_ms", milliseconds(summary.first_byte_s))
        if summary.tokens_in is not None:
            span.set_attribute("gen_ai.usage.input_tokens", summary.tokens_in)
        if summary.tokens_out is not None:
            span.set_attribute("gen_ai.usage.output_tokens", summary.tokens_out)
        if summary.outcome not in {"done", "client_left"}:
            span.set_attribute("error.type", summary.outcome)
        if summary.status >= 500 or summary.outcome == "cut":
            span.set_status(StatusCode.ERROR)
        span.end(self._clock.unix_ns(trio.current_time()))

    def _note_wait(self) -> None:
        """The request may have been in line since this was called last."""
        if self._serving is None or self._serving.waited_s <= self._noted_s:
            return
        ended_at = self._serving.left_line_at
        began_at = ended_at - (self._serving.waited_s - self._noted_s)
        self._noted_s = self._serving.waited_s
        wait = self._child("wait", self._here, began_at, {"llmux.model": self._model})
        inside = set_span_in_context(wait)
        for switch in self._tracing.switches_during(self._model, began_at, ended_at):
            span = self._child("switch", inside, max(began_at, switch.started), _facts(switch))
            if switch.result == "failure":
                span.set_status(StatusCode.ERROR)
            span.end(self._clock.unix_ns(min(ended_at, switch.ended)))
        wait.end(self._clock.unix_ns(ended_at))

    def _child(
        self, name: str, context: Context, began_at: float, facts: Mapping[str, str | float]
    ) -> Span:
        return self._tracing.tracer.start_span(
            name, context=context, start_time=self._clock.unix_ns(began_at), attributes=facts
        )

    def _name(self) -> str:
        method = "HTTP" if self._method == "_OTHER" else self._method
        return f"{method} {self._model}" if self._model else method


def _facts(switch: Switch) -> dict[str, str | float]:
    return {
        "llmux.switch.from": switch.source or "idle",
        "llmux.switch.to": switch.target,
        "llmux.switch.result": switch.result,
        "llmux.switch.reason": switch.reason,
        "llmux.switch.duration_ms": milliseconds(switch.ended - switch.started),
        "llmux.switch.drain_ms": milliseconds(switch.drain_s),
        "llmux.switch.hooks_ms": milliseconds(switch.hooks_s),
    }


def _carrier(headers: Headers) -> dict[str, list[str]]:
    carrier: dict[str, list[str]] = {}
    for name, value in headers:
        if (lower := name.lower()) in W3C_HEADERS and len(value) <= MAX_CARRIED_BYTES:
            carrier.setdefault(lower.decode(), []).append(_text(value))
    return carrier


@lru_cache
def _server(base_url: str) -> tuple[str, dict[str, str | int]]:
    """What URLs of a backend begin with, and the attributes that say where it is.

    `server.address` of a Unix socket is its path (OpenTelemetry's semantic conventions).
    """
    if (path := socket_path(base_url)) is not None:
        return "http://localhost", {"server.address": path, "network.transport": "unix"}
    parts = urlsplit(base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return base_url, {"server.address": parts.hostname or "", "server.port": port}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")

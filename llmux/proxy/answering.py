"""The answering phase: relay a backend's answer, or tell the client of an error.

Every error is reported here, in the form of the client's API: before the status line as an answer,
after comments as an event. Within a stream it is the stream's last event, line or Close frame, if
the stream was cut between two of its own; the lane then leaves the answer without its end.
"""

from __future__ import annotations

from http import HTTPStatus

from llmux.errors import (
    BackendBroke,
    BackendError,
    InternalError,
    LlmuxError,
    NotReady,
    StreamCut,
)
from llmux.http.paths import UPSTREAM, Whereabouts, may_redirect, merged, relative, segments
from llmux.observe.logs import get_logger
from llmux.openai.answers import error_answer
from llmux.openai.dialects import (
    NOTHING_SENT,
    close_reason,
    dialect_of,
    error_info,
    realtime_event,
    stream_state,
)
from llmux.openai.headers import header, response_headers
from llmux.openai.streams import is_event_stream, is_json_lines, json_line, unbuffered
from llmux.proxy.held import Bodies
from llmux.proxy.journey import Journey
from llmux.proxy.lane import HeaderList
from llmux.proxy.late import LateAnswer, is_event_answer
from llmux.proxy.opening import missing_protocol
from llmux.upstream import Answer

OF_COMMENTS = frozenset({
    b"content-type", b"content-length", b"content-encoding", b"cache-control", b"x-accel-buffering",
})  # fmt: skip
"""Headers that llmux sets itself where comments precede the answer."""

log = get_logger(__name__)


async def relay(journey: Journey, answer: Answer, bodies: Bodies) -> None:
    """Send a backend's answer to its end: as received, or as events behind comments."""
    lane, alive = journey.lane, journey.kept_alive
    kept = _passed_on(journey, answer)
    if alive is not None and not await _comes_in_time(journey, answer, kept):
        journey.answer = answer
        dialect = dialect_of(lane.target, lane.headers)
        events = lane.events
        assert events is not None
        await LateAnswer(events, alive, answer, dialect, bodies).send()
        await events.end_events()
        return
    added = journey.answers(answer.status, answer)
    await lane.relay(answer, [*kept, *added])


async def _comes_in_time(journey: Journey, answer: Answer, kept: HeaderList) -> bool:
    """Return True if no comment preceded the answer, so that its own status line goes out."""
    alive = journey.kept_alive
    assert alive is not None
    if is_event_answer(answer):
        # Comments go on until the first event: some backends send their head at once.
        alive.answered = [each for each in kept if each[0].lower() not in OF_COMMENTS]
        await answer.wait_begun()
    return alive.give_way()


def _passed_on(journey: Journey, answer: Answer) -> list[tuple[bytes, bytes]]:
    """Return the headers of a backend's answer that the client gets."""
    lane = journey.lane
    kept = response_headers(answer.headers, answer.status)
    if answer.is_stream:
        kept = unbuffered(kept)
    if lane.upgrade and answer.stream is not None:
        kept += missing_protocol(lane.headers, answer.headers)
    if may_redirect(answer.status):
        kept = _whereabouts(journey).applied(kept)
    return kept if journey.sharing is None else journey.sharing.applied(kept)


def _whereabouts(journey: Journey) -> Whereabouts:
    """Return the translation of the backend's URLs to those that this client can follow."""
    asked = journey.lane.target.partition(b"?")[0]
    below = b""
    if merged(asked).startswith(UPSTREAM):
        # The path is /upstream/NAME and the backend's own path, apart from surplus slashes.
        count = len(segments(journey.target.partition(b"?")[0]))
        parts = segments(asked)
        below = b"".join(b"/" + part for part in parts[: len(parts) - count])
    own_host = header(journey.lane.headers, b"host")
    return Whereabouts(
        journey.upstream.backend.base_url, asked=asked, below=below, own_host=own_host
    )


async def redirect(journey: Journey) -> None:
    """Send the client to the root of a backend, from which relative links lead further."""
    path, mark, query = journey.lane.target.partition(b"?")
    status = HTTPStatus.PERMANENT_REDIRECT  # which keeps method and body
    location = relative(path, path.lstrip(b"/") + b"/" + mark + query)
    headers = [(b"location", location), (b"content-length", b"0")]
    await journey.lane.reply(status, [*headers, *journey.answers(status)], b"")


# ---- Errors ----


async def fail(journey: Journey, error: Exception, bodies: Bodies) -> None:
    """Tell the client of the error that ended its request; sets the outcome."""
    has_answered = journey.lane.has_answered
    if isinstance(error, BackendBroke | StreamCut):
        if isinstance(error, BackendBroke):
            cause: LlmuxError = BackendError(str(error))
            reason = str(error)
        else:
            cause = error.why or NotReady(journey.model)
            reason = cause.message
        journey.outcome = "cut" if has_answered else cause.code
        log.warning("response_cut", model=journey.model, reason=reason)
        await _say_last(journey, cause)
    elif isinstance(error, LlmuxError):
        # Its traceback would keep frames in memory, perhaps with half a body, for as long as the
        # client takes to receive the error.
        cause = journey.cancelled_with or error.with_traceback(None)
        journey.outcome = cause.code
    else:
        cause = InternalError(error)
        journey.outcome = cause.code
        log.error("internal_error", model=journey.model, exc_info=error)
    await _refuse(journey, cause, bodies)


async def _say_last(journey: Journey, error: LlmuxError) -> None:
    """Tell the client why a stream or WebSocket that it has begun to receive ends."""
    lane = journey.lane
    if not lane.has_answered or journey.hears_events:
        return
    if (tunnel := lane.tunnel) is not None:
        await tunnel.close_websocket(*close_reason(error), realtime_event(lane.target, error))
    elif (events := lane.events) and (last := _last_words(journey, error)):
        await events.send_last_event(last)


def _last_words(journey: Journey, error: LlmuxError) -> bytes:
    """Return the event or line that ends a failed stream; empty if its form has none."""
    lane, answer = journey.lane, journey.answer
    if answer is None:
        return b""
    dialect = dialect_of(lane.target, lane.headers)
    has_comments = journey.kept_alive is not None and journey.kept_alive.has_begun
    if has_comments or is_event_stream(answer.headers):
        stream = stream_state(answer.seen.opening, answer.seen.ending())
        return dialect.events(error_info(error), stream)
    if is_json_lines(answer.headers, dialect):
        return json_line(answer.headers, dialect.line(error_info(error)))
    return b""


async def _refuse(journey: Journey, error: LlmuxError, bodies: Bodies) -> None:
    lane = journey.lane
    lane.body.release()  # the client may take its time to read the answer
    dialect = dialect_of(lane.target, lane.headers)
    if lane.has_answered:
        if journey.hears_events:
            events = lane.events
            assert events is not None
            await events.send_events(dialect.events(error_info(error), NOTHING_SENT))
            await events.end_events()
        return
    status, headers, body = error_answer(error, dialect, was_sent=journey.was_sent)
    with bodies.answering(len(body)):
        await lane.reply(status, [*headers, *journey.answers(status)], body)

"""Log lines: one event per line, as text for people or JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

import msgspec

# structlog imports rich if it is installed, for tracebacks that llmux does not print. That costs 25
# ms of each start and 3 MB. (None in `sys.modules` makes Python report the module as missing.)
_rich = sys.modules.pop("rich", None)
sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    del sys.modules["rich"]
    if _rich is not None:
        sys.modules["rich"] = _rich

from llmux.config.masking import MASKER  # noqa: E402
from llmux.observe.own_log import LAST_LINES  # noqa: E402
from llmux.observe.repeats import Repeats  # noqa: E402

LogFormat = Literal["text", "json"]

OWN = "llmux"
"""Logger above all of llmux's own."""


def configure(log_format: LogFormat = "text", *, verbose: bool = False) -> None:
    """Send every log line of this process, llmux's and its libraries', to standard error.

    Args:
        log_format: `text` (aligned, coloured on a terminal) or `json` (one object per line).
        verbose: Also log llmux's own events at debug level. Those of libraries stay out: hpack logs
            the header fields of requests, credentials among them.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(_to_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            sort_keys=False,
            pad_event_to=0,
            # With rich installed, the default prints local variables, which hold clients' keys.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    finish: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
    ]
    if log_format == "json":
        finish.append(structlog.processors.format_exc_info)
    formatter = MaskedFormatter(foreign_pre_chain=shared, processors=[*finish, renderer])
    output = Output(sys.stderr)
    output.setFormatter(formatter)
    output.addFilter(Repeats())
    output.addFilter(_is_no_cancelled_connection)
    root = logging.getLogger()
    root.handlers = [output]
    root.setLevel(logging.INFO)
    logging.getLogger(OWN).setLevel(logging.DEBUG if verbose else logging.NOTSET)


class Output(logging.StreamHandler[TextIO]):
    """Writes each event, and keeps its text for `GET /control/log`."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        LAST_LINES.add(text)
        return text


class MaskedFormatter(structlog.stdlib.ProcessorFormatter):
    """Masks the config's secrets in the whole log line, including tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return MASKER.mask(super().format(record))


def _is_no_cancelled_connection(record: logging.LogRecord) -> bool:
    """Drop asyncio's error about a cancelled connection, which it logs up to Python 3.11.

    When Hypercorn stops, it cancels connections that outlast its grace period. asyncio considers
    that an error.
    """
    kind = record.exc_info[0] if record.exc_info else None
    # Compared by name, since importing asyncio takes time.
    return record.name != "asyncio" or kind is None or kind.__name__ != "CancelledError"


def _to_json(event: Any, default: Callable[[Any], Any]) -> str:
    """Return one line of JSON, without the invalid `Infinity` that Python's own module writes."""
    try:
        return msgspec.json.encode(event, enc_hook=default).decode()
    except (TypeError, ValueError, OverflowError):  # a lone surrogate, a key that is not a string
        plain = json.loads(json.dumps(event, default=default), parse_constant=lambda _: None)
        return json.dumps(plain)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose events carry fields: `log.info("switch_started", model="a")`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger

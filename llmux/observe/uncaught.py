"""Log warnings and uncaught exceptions, which Python would print as plain text."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

from llmux.observe.logs import get_logger

log = get_logger(__name__)


def log_uncaught() -> None:
    """Log warnings and uncaught exceptions of the whole process from now on."""
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("uncaught_exception", exc_info=(kind, error, traceback))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else None
    log.error("uncaught_exception", thread=name, exc_info=args.exc_value or True)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    log.error("unraisable_exception", where=repr(args.object), exc_info=args.exc_value or True)

"""`llmux top`: the picture, live. One thread reads events, the other one draws and reads keys."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from llmux.cli.terminal import views
from llmux.cli.terminal.client import Client
from llmux.cli.terminal.events import read_events
from llmux.cli.terminal.failures import Failed
from llmux.cli.terminal.picture import Picture
from llmux.cli.terminal.several import pins_of
from llmux.observe.schemas import History, Message, RequestList, Status

FRAME_S = 0.25
"""Interval between frames; keys take effect at once."""

SILENCE_S = 40.0
"""Silence after which the connection is dead; llmux sends a comment every 15 s."""

RETRY_S = 1.0
POLL_S = 2.0

HISTORY_S = 3600

SPARK_WIDTH = 10
WIDE_SPARK_WIDTH = 30

ARROWS = {b"\x1b[A": "k", b"\x1bOA": "k", b"\x1b[B": "j", b"\x1bOB": "j"}

HELP = "q quit  k/j choose  s switch  p pin  u unpin  z sleep  m mode  c cordon"


def run_top(connect: Callable[[], Client]) -> None:
    """Show the state live until q or Ctrl-C is pressed.

    Args:
        connect: Makes a client; each thread has its own.

    Raises:
        Failed: llmux cannot be reached in the first place.
    """
    feed = Feed(connect)
    feed.begin()
    client = connect()
    screen = Screen(client.url, feed, Orders(client))
    console = views.console()
    with (
        _keys_at_once(),
        _signals_noted() as noted,
        Live(screen.draw(*console.size), console=console, screen=True, auto_refresh=False) as live,
    ):
        while not (screen.is_over or noted):
            live.update(screen.draw(*console.size), refresh=True)
            for key in _read_keys(FRAME_S):
                screen.press(key)
    if noted and noted != [signal.SIGINT]:
        sys.exit(128 + noted[0])


class Feed:
    """Keeps the picture up to date, by events and now and then by the whole status.

    The status has what no event tells, such as who is first in line.

    Attributes:
        picture: Changed and read under `lock` only.
        lock: See there.
        trouble: Why nothing comes; empty: all is well.

    Args:
        connect: Makes a client.
    """

    def __init__(self, connect: Callable[[], Client]) -> None:
        self.picture = Picture()
        self.lock = threading.Lock()
        self.trouble = ""
        self._connect = connect

    def begin(self) -> None:
        """Start; raises Failed if llmux cannot be reached at all."""
        self._ask_status(self._connect())
        for work in (self._follow, self._poll):
            threading.Thread(target=work, daemon=True).start()

    def _follow(self) -> None:
        """Follow the events, and connect again whenever they end."""
        client = self._connect()
        while True:
            try:
                self._follow_one(client)
                self.trouble = "the stream of events has ended"
            except Failed as error:
                self.trouble = error.message
            except msgspec.MsgspecError as error:
                self.trouble = f"an event is not understood: {error}"
            time.sleep(RETRY_S)

    def _follow_one(self, client: Client) -> None:
        with client.stream("/control/events", silent_s=SILENCE_S) as pieces:
            # After the stream has begun, so that no event is missed in between.
            self._ask_status(client)
            history = client.get("/control/history", History, secs=HISTORY_S)
            requests = client.get("/control/requests", RequestList)
            with self.lock:
                self.picture.set_history(history)
                self.picture.set_requests(requests)
            self.trouble = ""
            for event in read_events(pieces):
                with self.lock:
                    self.picture.apply(event.name, event.data)

    def _poll(self) -> None:
        client = self._connect()
        while True:
            time.sleep(POLL_S)
            with suppress(Failed):  # who follows the events tells of it
                self._ask_status(client)

    def _ask_status(self, client: Client) -> None:
        status = client.get("/control/status", Status)
        with self.lock:
            self.picture.set_status(status)


class Orders:
    """Sends orders one by one from a thread of its own, since some take minutes.

    Attributes:
        said: What has become of the last one.
    """

    def __init__(self, client: Client) -> None:
        self.said = ""
        self._client = client
        self._waiting: SimpleQueue[tuple[str, str, object]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, what: str, path: str, body: object) -> None:
        """Queue an order."""
        self._waiting.put((what, path, body))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            what, path, body = self._waiting.get()
            self.said = f"{what} ..."
            try:
                answer = self._client.ask("POST", path, body, patient=True)
                self.said = self._client.decode(answer, Message).message
            except Failed as error:
                self.said = f"{what}: {error.message}"


class Screen:
    """Draws the screen and acts on keys.

    Attributes:
        is_over: Whether q was pressed.
    """

    def __init__(self, url: str, feed: Feed, orders: Orders) -> None:
        self.is_over = False
        self._url = url
        self._feed = feed
        self._orders = orders
        self._chosen = 0
        self._asked: tuple[str, str, object] | None = None
        self._sampled = 0.0

    def press(self, key: str) -> None:
        """Act on a key."""
        if self._asked is not None:
            if key == "y":
                self._orders.give(*self._asked)
            self._asked = None
        elif key in {"q", "Q"}:
            self.is_over = True
        elif key in {"k", "j"}:
            self._chosen += 1 if key == "j" else -1
        else:
            with self._feed.lock:
                status = self._feed.picture.status
                self._asked = None if status is None else self._order(status, key)

    def _order(self, status: Status, key: str) -> tuple[str, str, object] | None:
        """Return the order for a key: its words, path and body."""
        if key == "m":
            mode = "manual" if status.mode == "auto" else "auto"
            return f"{mode} mode", "/control/mode", {"mode": mode}
        if key == "c":
            verb = "uncordon" if status.cordoned else "cordon"
            return verb, f"/control/{verb}", None
        model = self._chosen_model(status)
        if model is None:
            return None
        group = status.models[model].group
        unpin = (f"unpin group {group}", "/control/unpin", {"group": group})
        pins = pins_of(status.groups[group]) if group in status.groups else []
        if len(pins) > 1 and model in {pin.model for pin in pins}:
            unpin = (f"unpin {model}", "/control/unpin", {"model": model})
        return {
            "s": (f"switch to {model}", "/control/switch", {"model": model}),
            "p": (f"pin {model}", "/control/pin", {"model": model}),
            "u": unpin,
            "z": (f"sleep {model}", "/control/sleep", {"model": model}),
        }.get(key)

    def _chosen_model(self, status: Status) -> str | None:
        names = list(status.models)
        self._chosen = max(0, min(self._chosen, len(names) - 1))
        return names[self._chosen] if names else None

    def draw(self, width: int, height: int) -> RenderableType:
        """Draw what fits into the given columns and lines."""
        with self._feed.lock:
            picture = self._feed.picture
            if time.monotonic() >= self._sampled + 1.0:
                self._sampled = time.monotonic()
                picture.sample()
            if picture.status is None:
                return Text(f"waiting for {self._url} ...")
            return self._draw(picture, picture.status, width, height)

    def _draw(self, picture: Picture, status: Status, width: int, height: int) -> RenderableType:
        now = picture.now
        bars = SPARK_WIDTH if width < 110 else WIDE_SPARK_WIDTH
        sparks = {name: views.sparkline(values, bars) for name, values in picture.queues.items()}
        chosen = self._chosen_model(status)
        remarks = [_cut(line) for line in views.remark_lines(status, now)]
        tables = [views.groups_table(status, now), views.models_table(status, now, chosen, sparks)]
        if memory := views.memory_table(status):
            tables.append(memory)
        parts: list[RenderableType] = [
            _cut(views.head_line(status, self._url, now)),
            self._last_line(),
        ]
        for table in tables:
            parts += [Text(), table]
        parts += remarks
        used = 3 + sum(2 + table.row_count for table in tables) - 2 + len(remarks)
        # A blank line and a head for each; requests get what switches leave.
        left = max(0, height - used - 4)
        switches = list(picture.switches.values())[::-1][: max(3, left // 2)]
        requests = picture.requests_now()[: max(0, left - len(switches))]
        if switches:
            parts += [Text(), views.switches_table(switches, now)]
        if requests:
            parts += [Text(), views.requests_table(requests, now)]
        return Group(*parts)

    def _last_line(self) -> Text:
        if self._asked is not None:
            return views.word(f"{self._asked[0]}? y or n", "bold reverse")
        if self._feed.trouble:
            return views.word(f"trying again: {self._feed.trouble}", "bold red")
        return views.word(self._orders.said or HELP, "" if self._orders.said else "dim")


def _cut(line: Text) -> Text:
    """Cut a text at the end of its line."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


# ---- The terminal ----


@contextmanager
def _keys_at_once() -> Iterator[None]:
    """Read keys one by one, without echo or Ctrl-Z, which would leave the terminal in raw mode."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        now = termios.tcgetattr(descriptor)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, now)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Restore the terminal when the process is ended, by Ctrl-C or by a signal.

    What is being drawn is drawn to its end: an exception in the midst of it would leave the rest.
    A second signal does not wait for that.
    """
    noted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if noted:
            sys.exit(128 + number)
        noted.append(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield noted
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _read_keys(seconds: float) -> Iterator[str]:
    """Return the keys pressed, after a wait with a limit."""
    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], seconds)[0]:
        return
    pressed = os.read(descriptor, 1024)
    if not pressed:  # the terminal has gone
        yield "q"
    for arrow, key in ARROWS.items():
        pressed = pressed.replace(arrow, key.encode())
    if not pressed.startswith(b"\x1b"):  # other keys without a letter
        yield from pressed.decode(errors="replace")

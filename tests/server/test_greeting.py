"""What people on a terminal are told when llmux serves."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from llmux.api.listeners import PORT, SOCKET
from llmux.server.control_listener import Opened
from llmux.server.greeting import greet, greeting, root_url


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Elsewhere(socket.socket):
    """A socket that says it listens on an address that this machine does not have."""

    def __init__(self, host: str) -> None:
        self._name = (host, 3000)

    def getsockname(self) -> tuple[str, int]:
        return self._name


def listening(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.bind((host, 0))
    except OSError:
        sock.close()
        pytest.skip(f"this machine has no {host}")
    sock.listen()
    return sock


@pytest.fixture
def main() -> Iterator[socket.socket]:
    with closing(listening("127.0.0.1")) as sock:
        yield sock


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")],
)
def test_an_address_is_one_that_a_browser_can_open(host: str, shown: str) -> None:
    with closing(listening(host)) as sock:
        assert root_url(sock) == f"http://{shown}:{sock.getsockname()[1]}"


def test_both_urls_are_told(main: socket.socket) -> None:
    root = f"http://127.0.0.1:{main.getsockname()[1]}"
    assert greeting([main], None) == [f"API  {root}/v1", f"UI   {root}/ui"]
    assert greeting([], None) == []


def test_the_page_is_where_the_control_api_is(main: socket.socket) -> None:
    with closing(listening("127.0.0.1")) as control:
        port = control.getsockname()[1]
        api, page = greeting([main], Opened(control, PORT, ""))
        assert api == f"API  http://127.0.0.1:{main.getsockname()[1]}/v1"
        assert page == f"UI   http://127.0.0.1:{port}/ui"
        # No browser opens a Unix socket.
        assert greeting([main], Opened(control, SOCKET, "")) == [api]


def test_a_page_that_answers_nobody_without_keys_is_told_as_such() -> None:
    elsewhere = Elsewhere("192.0.2.7")
    assert greeting([elsewhere], None)[1] == "UI   http://192.0.2.7:3000/ui (needs control_keys)"
    assert greeting([elsewhere], None, has_keys=True)[1] == "UI   http://192.0.2.7:3000/ui"


def test_only_a_terminal_is_greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), "one\ntwo\n"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stream)
        greet(["one", "two"])
        assert stream.getvalue() == expected


def test_a_terminal_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Terminal):
        def write(self, text: str, /) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    greet(["one"])
    closed = Terminal()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    greet(["one"])

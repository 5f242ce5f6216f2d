"""The control API's client: each failure becomes one clear line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from llmux import __version__
from llmux.cli.terminal.failures import Failed, KeyRefused, NoAnswer
from llmux.cli.terminal.target import UNIX, Target
from llmux.observe.schemas import Error

T = TypeVar("T")

CONNECT_S = 5.0
ANSWER_S = 30.0

LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")


class Client:
    """A connection to one llmux, for one thread at a time.

    Args:
        target: The llmux to talk to.
        transport: Sends the requests instead of the network.
        answer_s: Limit for answers that need no hook, in seconds.
    """

    def __init__(
        self,
        target: Target,
        transport: httpx.BaseTransport | None = None,
        *,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.url = target.url
        self._base = target.url
        if target.url.startswith(UNIX):
            self._base = "http://localhost"
            path = target.url.removeprefix(UNIX)
            transport = transport or httpx.HTTPTransport(verify=False, uds=path)
        key = {} if target.key is None else {"Authorization": f"Bearer {target.key}"}
        self._http = httpx.Client(
            headers={"User-Agent": f"llmux/{__version__}", "Accept-Encoding": "identity", **key},
            timeout=httpx.Timeout(answer_s, connect=min(answer_s, CONNECT_S)),
            transport=transport,
            # Without TLS, reading the system's certificates would double a command's time.
            verify=target.url.startswith("https:"),
            # Ignore `http_proxy` and the like between two programs of one machine.
            mounts=dict.fromkeys(LOOPBACK, None) if transport is None else None,
        )

    def ask(
        self, method: str, path: str, body: object = None, *, patient: bool = False, **query: Any
    ) -> bytes:
        """Send a request; returns the JSON of its answer, as it came.

        Args:
            method: GET, POST or DELETE.
            path: Below the URL, percent-encoded.
            body: Encoded as its JSON body; None for no body.
            patient: Wait as long as it takes, since hooks run.
            **query: Its query.

        Raises:
            Failed: No such answer came.
        """
        options: dict[str, Any] = {"params": query}
        if body is not None:
            options["content"] = msgspec.json.encode(body)
            options["headers"] = {"Content-Type": "application/json"}
        if patient:
            options["timeout"] = httpx.Timeout(None, connect=CONNECT_S)
        with self._told():
            answer = self._http.request(method, self._base + path, **options)
        self._check(answer)
        self.decode(answer.content, msgspec.Raw)
        return answer.content

    def get(self, path: str, kind: type[T], **query: Any) -> T:
        """GET a path; raises Failed."""
        return self.decode(self.ask("GET", path, **query), kind)

    def decode(self, answer: bytes, kind: type[T]) -> T:
        """Decode an answer, ignoring fields of a newer llmux. Raises Failed."""
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.ValidationError as error:
            told = f"{self.url} answers in a way that this llmux ({__version__}) does not know"
            raise NoAnswer(f"{told}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise NoAnswer(f"{self.url} answers with broken JSON") from None

    @contextmanager
    def stream(self, path: str, *, silent_s: float, **query: Any) -> Iterator[Iterator[bytes]]:
        """Yield a long answer piece by piece, as it arrives.

        Args:
            path: Below the URL, percent-encoded.
            silent_s: Longest silence, in seconds.
            **query: Its query.

        Raises:
            Failed: It is refused, or breaks.
        """
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S, read=silent_s)
        with (
            self._told(),
            self._http.stream("GET", self._base + path, params=query, timeout=timeout) as answer,
        ):
            if not answer.is_success:
                answer.read()
            self._check(answer)
            yield answer.iter_raw()

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        try:
            error = msgspec.json.decode(answer.content, type=Error).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = None
        if answer.status_code in {401, 403}:
            said = error.message if error else f"{self.url} answers HTTP {answer.status_code}"
            hint = "give one of its control_keys by --key-file or $LLMUX_CONTROL_KEY"
            raise KeyRefused(f"{said} ({hint})", answer.content if error else b"")
        if error is not None:
            raise Failed(error.message, answer.content)
        kind = answer.headers.get("content-type", "nothing").partition(";")[0]
        told = f"{self.url} does not answer as llmux does (HTTP {answer.status_code}, {kind})"
        raise NoAnswer(f"{told}: is it another server's address?")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn transport errors into Failed."""
        try:
            yield
        except httpx.ConnectTimeout:
            raise NoAnswer(f"nobody answers at {self.url}") from None
        except httpx.TimeoutException:
            raise NoAnswer(f"{self.url} takes too long to answer") from None
        except httpx.ConnectError as error:
            told = f"cannot reach llmux at {self.url}: {_reason(error)}"
            raise NoAnswer(f"{told} (--url or $LLMUX_URL says where it is)") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = f"the connection to {self.url} broke"
            raise NoAnswer(f"{told}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """Word an error of the system or of TLS, without numbers and source lines."""
    text = re.sub(r"^\[(Errno -?\d+|SSL: \w+)\] | \(_ssl\.c:\d+\)$", "", str(error))
    return text or type(error).__name__

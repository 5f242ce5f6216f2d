"""The control API's client: each failure becomes one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ssl import SSLCertVerificationError, SSLError
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from llmux import __version__
from llmux.cli.terminal.dialling import dial
from llmux.cli.terminal.failures import Failed, KeyRefused, NoAnswer
from llmux.cli.terminal.target import UNIX, Target
from llmux.observe.schemas import Error

T = TypeVar("T")

CONNECT_S = 5.0
ANSWER_S = 30.0

HTTPS_NEEDED = b"serves HTTPS on this port"
"""Part of the answer to plain HTTP on a port for TLS (`llmux.http.tls`)."""

NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"})
"""OpenSSL's reasons where the other side does not speak TLS."""

PIECE_BYTES = 65536


class Client:
    """Asks one llmux, over a connection for each question.

    Args:
        target: The llmux to talk to.
        dial: Makes connections.
        answer_s: Limit for answers that need no hook, in seconds.
    """

    def __init__(
        self,
        target: Target,
        dial: Callable[..., tuple[HTTPConnection, str]] = dial,
        *,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.url = target.url
        self._path = "" if target.url.startswith(UNIX) else urlsplit(target.url).path
        self._trust = target.trust
        self._dial = partial(dial, trust=target.trust) if target.trust else dial
        self._answer_s = answer_s
        key = {} if target.key is None else {"Authorization": f"Bearer {target.key}"}
        self._headers = {"User-Agent": f"llmux/{__version__}", "Accept": "*/*", **key}

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
        with self._asking(method, path, query, body, None if patient else self._answer_s) as answer:
            with self._told():
                content = answer.read()
            self._check(answer, content)
        self.decode(content, msgspec.Raw)
        return content

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
        with self._asking("GET", path, query, None, silent_s) as answer:
            if not _is_success(answer):
                with self._told():
                    content = answer.read()
                self._check(answer, content)
            yield self._pieces(answer)

    def _pieces(self, answer: HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._told():
                piece = answer.read1(PIECE_BYTES)
            if not piece:
                return
            yield piece

    @contextmanager
    def _asking(
        self, method: str, path: str, query: dict[str, Any], body: object, silent_s: float | None
    ) -> Iterator[HTTPResponse]:
        """Send a request and yield the answer once its head is there; raises NoAnswer."""
        connection, before = self._dial(self.url, min(self._answer_s, CONNECT_S))
        with closing(connection):
            self._connect(connection)
            with self._told():
                connection.sock.settimeout(silent_s)
                target = before + self._path + path + ("?" + urlencode(query) if query else "")
                headers, content = self._headers, None
                if body is not None:
                    content = msgspec.json.encode(body)
                    headers = {**headers, "Content-Type": "application/json"}
                connection.request(method, target, content, headers)
                answer = connection.getresponse()
            with closing(answer):
                yield answer

    def _connect(self, connection: HTTPConnection) -> None:
        try:
            connection.connect()
        except TimeoutError:
            raise NoAnswer(f"nobody answers at {self.url}") from None
        except (OSError, HTTPException, UnicodeError) as error:
            told = f"cannot reach llmux at {self.url}: {_reason(error)}"
            raise NoAnswer(f"{told} ({self._hint(error)})") from None

    def _hint(self, error: Exception) -> str:
        """Return what to do if llmux cannot be reached."""
        if not isinstance(error, SSLError):
            return "--url or $LLMUX_URL says where it is"
        if getattr(error, "reason", None) in NO_TLS:
            return "nothing there speaks TLS: --url with http:// in place of https://"
        if not isinstance(error, SSLCertVerificationError):
            return "--url or $LLMUX_URL says where it is"
        if self._trust is not None and self._trust.is_own:
            other = f"llmux serves another certificate than {self._trust.file}"
            return f"{other}: if that is a new one, SIGHUP has llmux read it"
        return "--url or $LLMUX_URL says where it is, --cacert or $LLMUX_CACERT whom to trust"

    def _check(self, answer: HTTPResponse, content: bytes) -> None:
        """Raise Failed unless the answer is a success."""
        if _is_success(answer):
            return
        try:
            error = msgspec.json.decode(content, type=Error).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            error = None
        if answer.status in {401, 403}:
            said = error.message if error else f"{self.url} answers HTTP {answer.status}"
            hint = "give one of its control_keys by --key-file or $LLMUX_CONTROL_KEY"
            raise KeyRefused(f"{said} ({hint})", content if error else b"")
        if error is not None:
            raise Failed(error.message, content)
        if answer.status == 400 and HTTPS_NEEDED in content:
            raise NoAnswer(f"llmux serves HTTPS at {self.url}: --url with https://")
        kind = (answer.getheader("content-type") or "nothing").partition(";")[0]
        told = f"{self.url} does not answer as llmux does (HTTP {answer.status}, {kind})"
        raise NoAnswer(f"{told}: is it another server's address?")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn transport errors into Failed."""
        try:
            yield
        except TimeoutError:
            raise NoAnswer(f"{self.url} takes too long to answer") from None
        except (OSError, HTTPException, ValueError) as error:
            told = f"the connection to {self.url} broke"
            raise NoAnswer(f"{told}: {_reason(error)}") from None


def _is_success(answer: HTTPResponse) -> bool:
    return 200 <= answer.status < 300


def _reason(error: Exception) -> str:
    """Word an error of the system or of TLS, without numbers and source lines."""
    text = re.sub(r"^\[(Errno -?\d+|SSL: \w+)\] | \(_ssl\.c:\d+\)$", "", str(error))
    return text or type(error).__name__

"""Whom the terminal trusts over TLS: servers on real sockets, and what they get to read."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from llmux.cli.terminal.client import Client
from llmux.cli.terminal.failures import NoAnswer
from llmux.cli.terminal.target import Target, Trust, find_trust
from llmux.http.served_certificate import FILE, read_served, write_served
from tests.certificates import authority

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def issued(*names: str) -> trustme.LeafCert:
    return authority().issue_cert(*(names or ("127.0.0.1",)))


def pem_of(cert: trustme.LeafCert, *, chain: bool = True) -> bytes:
    """A file as certbot writes it, the issuer behind the certificate."""
    leaf = cert.cert_chain_pems[0].bytes()
    return leaf + authority().cert_pem.bytes() if chain else leaf


def der_of(cert: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.cert_chain_pems[0].bytes().decode())


@dataclass
class Server:
    """Answers over TLS.

    Attributes:
        url: Its address.
        heard: What it got to read.
    """

    url: str
    heard: list[bytes] = field(default_factory=list)


@contextmanager
def serving(cert: trustme.LeafCert) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(f"https://127.0.0.1:{listener.getsockname()[1]}")

    def serve() -> None:
        while True:
            try:
                tcp, _ = listener.accept()
            except OSError:
                return
            tcp.settimeout(5)
            with closing(tcp), suppress(OSError), context.wrap_socket(tcp, server_side=True) as tls:
                server.heard.append(tls.recv(65536))
                tls.sendall(ANSWER)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def config_in(folder: Path, cert: bytes, **more: str) -> Path:
    (folder / "cert.pem").write_bytes(cert)
    path = folder / "llmux.yaml"
    lines = {"tls": "{cert: cert.pem, key: key.pem}", "state_dir": "state", **more}
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


def ask(server: Server, config: Path) -> bytes:
    trust = find_trust(server.url, None, config, {})
    return Client(Target(server.url, "ck-secret", trust)).ask("GET", "/control/status")


@pytest.mark.parametrize("chain", [True, False])
def test_the_certificate_of_the_config_is_trusted_whatever_its_name(
    tmp_path: Path, chain: bool
) -> None:
    cert = issued("llm.example.org")
    with serving(cert) as server:
        assert ask(server, config_in(tmp_path, pem_of(cert, chain=chain))) == b"{}"
    assert b"Bearer ck-secret" in server.heard[0]


def test_another_certificate_of_the_same_issuer_gets_no_key(tmp_path: Path) -> None:
    config = config_in(tmp_path, pem_of(issued()))
    with serving(issued()) as server, pytest.raises(NoAnswer, match="serves another certificate"):
        ask(server, config)
    assert b"".join(server.heard) == b""


def test_the_certificate_being_served_is_trusted_while_its_file_is_renewed(tmp_path: Path) -> None:
    old = issued()
    write_served(tmp_path / "state", der_of(old))
    config = config_in(tmp_path, pem_of(issued()))
    with serving(old) as server:
        assert ask(server, config) == b"{}"
        (tmp_path / "cert.pem").write_bytes(b"half a file")
        assert ask(server, config) == b"{}"
    with serving(issued()) as stranger, pytest.raises(NoAnswer):
        ask(stranger, config)
    assert b"".join(stranger.heard) == b""


def test_what_others_may_have_written_is_not_believed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    write_served(state, b"one")
    assert read_served(state) is not None
    for mode in (0o777, 0o1777, 0o770):
        state.chmod(mode)
        assert read_served(state) is None
    state.chmod(0o700)
    (state / FILE).rename(state / "elsewhere")
    (state / FILE).symlink_to("elsewhere")
    assert read_served(state) is None
    (state / FILE).unlink()
    assert read_served(state) is None
    (state / FILE).write_bytes(b"{broken")
    assert read_served(state) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_every_name_of_this_machine_has_the_certificate_of_the_config(
    tmp_path: Path, host: str
) -> None:
    config = config_in(tmp_path, pem_of(issued()))
    trust = find_trust(f"https://{host}:3000", None, config, {})
    assert trust is not None
    assert (trust.file, trust.is_own) == (tmp_path / "cert.pem", True)
    assert find_trust("https://far.example:3000", None, config, {}) is None


def test_a_variable_that_only_the_service_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMUX_TEST_CRT", raising=False)
    cert = issued()
    tls = '{cert: "${env:LLMUX_TEST_CRT}/cert.pem", key: key.pem}'
    config = config_in(tmp_path, b"", tls=tls)
    with serving(cert) as server:
        with pytest.raises(
            NoAnswer, match=r"tls\.cert: the environment variable LLMUX_TEST_CRT is not set"
        ):
            ask(server, config)
        write_served(tmp_path / "state", der_of(cert))
        assert ask(server, config) == b"{}"


def test_without_a_certificate_in_the_file_nobody_is_trusted(tmp_path: Path) -> None:
    config = config_in(tmp_path, b"hello")
    with pytest.raises(NoAnswer, match=r"cert\.pem.* is not PEM"):
        ask(Server("https://127.0.0.1:1"), config)


def test_a_file_that_the_command_line_names_may_hold_issuers(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    with serving(issued()) as server:
        assert Client(Target(server.url, None, Trust(ca))).ask("GET", "/") == b"{}"

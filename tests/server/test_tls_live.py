"""llmux as a process that serves TLS: reloads of its certificate, its end, its own commands."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from tests.certificates import authority, client_context, write_pair
from tests.servers import (
    FORMS,
    LlmuxProcess,
    Rack,
    chat,
    running_backends,
    running_llmux,
)

CHAT = "/v1/chat/completions"


@pytest.fixture
async def rack(tmp_path: Path) -> AsyncIterator[Rack]:
    async with running_backends(tmp_path, "a", "b") as rack:
        yield rack


def secured(rack: Rack, **settings: Any) -> Path:
    write_pair(rack.folder)
    return rack.write_config(tls={"cert": "cert.pem", "key": "key.pem"}, **settings)


@pytest.fixture
async def llmux(rack: Rack) -> AsyncIterator[LlmuxProcess]:
    async with running_llmux(secured(rack)) as llmux:
        yield llmux


def client(llmux: LlmuxProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=llmux.url, verify=client_context(), timeout=30)


async def serial(llmux: LlmuxProcess) -> int:
    """The serial number of the certificate that a new connection gets."""
    host, port = llmux.url.removeprefix("https://").split(":")
    async with await trio.open_ssl_over_tcp_stream(
        host, int(port), ssl_context=client_context(), https_compatible=True
    ) as stream:
        await stream.do_handshake()
        return int(stream.getpeercert()["serialNumber"], 16)


async def logged(llmux: LlmuxProcess, *parts: str) -> str:
    with trio.fail_after(15):
        while True:
            for line in llmux.lines:
                if all(part in line for part in parts):
                    return line
            await trio.sleep(0.01)


async def test_sighup_takes_a_renewed_certificate_and_cuts_nobody(
    llmux: LlmuxProcess, rack: Rack
) -> None:
    gate = trio.Event()

    async def wait(number: int) -> None:
        if number:
            await gate.wait()

    rack.backends["a"].next_chunk = wait
    assert llmux.url.startswith("https://")
    before = await serial(llmux)
    async with client(llmux) as one:
        async with one.stream("POST", CHAT, json=chat("a", stream=True)) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"data: 0\n\n"
            write_pair(rack.folder)  # in place, as certbot does
            assert await serial(llmux) == before
            llmux.process.send_signal(signal.SIGHUP)
            await logged(llmux, "reloaded")
            assert await serial(llmux) != before
            series = (await one.get("/metrics")).text
            assert "llmux_tls_certificate_expiry_timestamp_seconds 1" in series
            gate.set()
            assert b"".join([piece async for piece in pieces]) == b"data: 1\n\ndata: 2\n\n"
        assert (await one.post(CHAT, json=chat("a"))).status_code == 200


async def test_a_bad_pair_changes_nothing(llmux: LlmuxProcess, rack: Rack) -> None:
    before = await serial(llmux)
    key = rack.folder / "key.pem"
    right = key.read_bytes()
    key.write_bytes(authority().issue_cert("other.example").private_key_pem.bytes())
    async with client(llmux) as one:
        told = await one.post("/control/reload")
        assert told.is_error
        assert "tls.key: is not the key of the certificate in" in told.text
        await logged(llmux, "reload_failed", "tls.key")
        assert await serial(llmux) == before
        key.write_bytes(right)
        assert (await one.post("/control/reload")).is_success


async def test_it_stops_gracefully_with_a_stream_running(rack: Rack) -> None:
    gate = trio.Event()

    async def wait(number: int) -> None:
        if number:
            await gate.wait()

    rack.backends["a"].next_chunk = wait
    async with running_llmux(secured(rack)) as llmux, client(llmux) as one:
        async with one.stream("POST", CHAT, json=chat("a", stream=True)) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            llmux.process.send_signal(signal.SIGTERM)
            await logged(llmux, "stopping")
            gate.set()
            assert b"".join([piece async for piece in pieces]).endswith(b"data: 2\n\n")
        with trio.fail_after(10):
            assert await llmux.process.wait() == 0


async def run(*arguments: str, **environ: str) -> tuple[int, str]:
    done = await trio.run_process(
        [sys.executable, "-m", "llmux", *arguments],
        env={key: value for key, value in os.environ.items() if not key.startswith("LLMUX_")}
        | environ,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    return done.returncode, done.stdout.decode() + done.stderr.decode()


def with_port(rack: Rack, llmux: LlmuxProcess) -> Path:
    """The config with the port that the system has picked."""
    path = rack.folder / "here.json"
    config = json.loads((rack.folder / "llmux.json").read_text())
    path.write_text(json.dumps({**config, "port": int(llmux.url.rpartition(":")[2])}))
    return path


async def test_own_commands_trust_the_certificate_of_the_config(
    llmux: LlmuxProcess, rack: Rack, tmp_path: Path
) -> None:
    config = str(with_port(rack, llmux))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority().cert_pem.bytes())
    plain = llmux.url.replace("https", "http")
    results: dict[str, tuple[int, str]] = {}

    async def note(name: str, *arguments: str, **environ: str) -> None:
        results[name] = await run(*arguments, **environ)

    async with trio.open_nursery() as nursery:
        for name, arguments, environ in (
            ("config", ["status", "-c", config], {}),
            ("doctor", ["doctor", "-c", config], {}),
            ("cacert", ["status", "--url", llmux.url, "--cacert", str(ca)], {}),
            ("variable", ["status", "--url", llmux.url], {"LLMUX_CACERT": str(ca)}),
            ("nobody", ["status", "--url", llmux.url, "-c", str(tmp_path / "none.yaml")], {}),
            ("no file", ["status", "--url", llmux.url, "--cacert", "none.pem"], {}),
            ("plain", ["status", "--url", plain], {}),
        ):
            nursery.start_soon(_noting(note, name, arguments, environ))
    assert results["config"][0] == results["cacert"][0] == results["variable"][0] == 0
    assert f"answers at {llmux.url}" in results["doctor"][1], results
    assert results["nobody"][0] == 5
    assert "--cacert or $LLMUX_CACERT whom to trust" in results["nobody"][1]
    assert results["no file"] == (5, "Error: none.pem cannot be read: No such file or directory\n")
    assert results["plain"] == (5, f"Error: llmux serves HTTPS at {plain}: --url with https://\n")


def _noting(
    note: Any, name: str, arguments: list[str], environ: dict[str, str]
) -> Callable[[], Any]:
    async def run_it() -> None:
        await note(name, *arguments, **environ)

    return run_it


async def test_the_reload_command_renews_the_certificate(rack: Rack) -> None:
    """The file holds the new certificate then, and llmux still serves the old one."""
    async with running_llmux(secured(rack, state_dir=str(rack.folder / "state"))) as llmux:
        config = str(with_port(rack, llmux))
        before = await serial(llmux)
        write_pair(rack.folder)
        code, said = await run("reload", "-c", config)
        assert code == 0, said
        assert await serial(llmux) != before
        code, said = await run("status", "-c", config)
        assert code == 0, said


async def test_own_commands_say_what_is_wrong(rack: Rack) -> None:
    async with running_llmux(secured(rack, state_dir=str(rack.folder / "state"))) as llmux:
        config = str(with_port(rack, llmux))
        made = trustme.CA().issue_cert("127.0.0.1")
        (rack.folder / "cert.pem").write_bytes(made.cert_chain_pems[0].bytes())
        (rack.folder / "state" / "certificate.json").unlink()
        code, said = await run("status", "-c", config)
    assert code == 5
    assert "llmux serves another certificate than" in said
    assert "SIGHUP has llmux read it" in said


async def test_the_control_port_speaks_tls_too(rack: Rack) -> None:
    async with running_llmux(secured(rack, control={"port": 0})) as llmux:
        line = await logged(llmux, "control_listening")
        url = line.rpartition("where=")[2].strip()
        assert url.startswith("https://")
        async with httpx.AsyncClient(base_url=url, verify=client_context()) as one:
            assert (await one.get("/control/status")).status_code == 200
        async with httpx.AsyncClient(base_url=url.replace("https", "http")) as one:
            assert (await one.get("/control/status")).status_code == 400


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hypercorn -k trio", "hypercorn"])
async def test_hypercorn_serves_it_by_its_own_options(
    rack: Rack, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = secured(rack)
    pair = ["--certfile", str(rack.folder / "cert.pem"), "--keyfile", str(rack.folder / "key.pem")]
    monkeypatch.setitem(FORMS, form, [*FORMS[form], *pair])
    async with running_llmux(config, form) as llmux:
        await logged(llmux, "tls_unused", "--certfile")
        assert llmux.url.startswith("https://")
        async with client(llmux) as one:
            answer = await one.post(CHAT, json=chat("a"))
            assert answer.json()["served_by"] == "a"
    (request, _), *_ = rack.backends["a"].received
    assert (b"x-forwarded-proto", b"https") in request.headers


async def test_a_bad_pair_is_a_mistake_of_the_config(rack: Rack) -> None:
    config = secured(rack)
    (rack.folder / "key.pem").unlink()
    code, said = await run(LLMUX_CONFIG=str(config))
    assert code == 2
    assert "tls.key: the file '" in said
    assert "Traceback" not in said

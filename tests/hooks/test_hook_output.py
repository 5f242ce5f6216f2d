"""What hooks print reaches operators, and no secret of the config gets into logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import structlog

from llmux.api.logfile import PIECE_BYTES, LogReader
from llmux.config import ModelConfig, parse_config
from llmux.config.masking import MASKER, Masker, header_secrets
from llmux.errors import HookError
from llmux.hooks.shell import ShellHooks
from llmux.observe import logs
from llmux.observe.events import Events
from tests.servers import ALL_FORMS, LlmuxProcess, chat, running_backends, running_llmux

CHAT = "/v1/chat/completions"

TOKEN = "hf_0123456789abcdef"
KEY = "sk-clients-key-123"

BROKEN = f"set -x; : {TOKEN}; echo no such GPU; exit 7"


async def failed(llmux: LlmuxProcess, **headers: str) -> str:
    async with llmux.client(headers=headers) as client:
        answer = await client.post(CHAT, json=chat("a"))
    assert answer.status_code == 500
    message: str = answer.json()["error"]["message"]
    return message


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_clients_hear_the_hook_its_exit_and_where_its_log_is(
    form: str, tmp_path: Path
) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(models={"a": rack.model("a", wake=BROKEN)})
        async with running_llmux(config, form) as llmux:
            message = await failed(llmux)
            assert message == ("Hook failed for a: wake hook exited with 7 (its log: llmux logs a)")
            async with llmux.client() as client:
                stream = await client.post(CHAT, json=chat("a", stream=True))
                assert TOKEN not in stream.text
                status = (await client.get("/control/status")).text
                assert "no such GPU" in status
                switched = await client.post("/control/switch", json={"model": "a"})
                assert "no such GPU" in switched.json()["error"]["message"]
        assert any("no such GPU" in line for line in llmux.lines)
        assert (tmp_path / "state" / "logs" / "a.log").exists()


async def test_the_config_may_show_it_to_clients(tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        config = rack.write_config(
            models={"a": rack.model("a", wake="echo no such GPU; exit 7")},
            errors={"hook_output": "clients"},
        )
        async with running_llmux(config) as llmux:
            assert await failed(llmux) == (
                "Hook failed for a: wake hook exited with 7: no such GPU"
            )


@pytest.mark.parametrize("form", ALL_FORMS)
async def test_secrets_of_the_config_are_masked_everywhere(form: str, tmp_path: Path) -> None:
    async with running_backends(tmp_path, "a") as rack:
        wake = f"echo got {TOKEN} and {KEY}; exit 7"
        config = rack.write_config(
            models={"a": rack.model("a", wake=wake, headers={"Authorization": f"Bearer {TOKEN}"})},
            api_keys=[KEY],
            errors={"hook_output": "clients"},
        )
        async with running_llmux(config, form) as llmux:
            message = await failed(llmux, authorization=f"Bearer {KEY}")
            assert message.endswith("got *** and ***")
            async with llmux.client() as client:
                for path in ("/control/status", "/control/history", "/control/logs?model=a"):
                    text = (await client.get(path)).text
                    assert TOKEN not in text
                    assert KEY not in text
    text = "\n".join(llmux.lines)
    assert "got *** and ***" in text
    assert TOKEN not in text
    assert KEY not in text


# ---- Masking ----


@pytest.fixture
def masked() -> Iterator[None]:
    MASKER.use([TOKEN])
    yield
    MASKER.use([])
    MASKER.use([])


@pytest.fixture
def root() -> Iterator[None]:
    logger = logging.getLogger()
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.usefixtures("masked", "root")
def test_lines_and_tracebacks(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(form)
    try:
        raise ValueError(f"bad header {TOKEN}")
    except ValueError:
        logging.getLogger("library").exception("oh %s", TOKEN)
    logging.getLogger("library").warning("oh", extra={"x": TOKEN})
    told = capsys.readouterr().err
    assert "bad header ***" in told
    assert TOKEN not in told


def test_forms_of_a_secret() -> None:
    masker = Masker()
    masker.use(['a"b\\c\té-secret', "short", "abcdef", "abcdef-longer"])
    assert masker.mask("short abcdef-longer abcdef") == "short *** ***"
    assert masker.mask(r"a\"b\\c\t\u00e9-secret") == "***"
    masker.use(["another"])
    assert masker.mask("abcdef another") == "*** ***", "what was, may still be told"
    masker.use([])
    assert masker.mask("abcdef another") == "abcdef ***"


def test_headers_with_a_scheme() -> None:
    assert set(header_secrets(["Bearer abc def", "plain"])) == {
        "Bearer abc def",
        "abc def",
        "plain",
    }


def test_what_the_config_holds_of_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEYS", "one-key-1,two-key-2")
    (tmp_path / "keys").write_text("file-key-3\n")
    model = {"port": 1, "wake": "w", "sleep": "s", "alive": "a", "headers": {"X-Key": "header-4"}}
    config = parse_config(
        {
            "models": {"a": model},
            "api_keys": [{"env": "MY_KEYS"}],
            "control_keys": [{"file": "keys"}],
        },
        directory=tmp_path,
    )
    assert config.secrets >= {"one-key-1", "two-key-2", "file-key-3", "header-4"}


@pytest.mark.usefixtures("masked")
async def test_a_secret_at_the_edge_of_the_last_lines(tmp_path: Path) -> None:
    script = f"printf '%s' {TOKEN}; head -c 2040 /dev/zero | tr '\\0' x; exit 1"
    model = ModelConfig(name="m", port=1, wake=script, sleep="true", alive="true")
    shell = ShellHooks({"m": model}, directory=tmp_path, log_dir=tmp_path, events=Events())
    with pytest.raises(HookError) as raised:
        await shell.of("m").run("wake")
    assert TOKEN[-6:] not in raised.value.output
    assert raised.value.output.endswith("xxx")


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize(("size", "between"), [(2400, "\\n"), (500, " "), (9000, " ")])
async def test_many_secrets_leave_no_half_of_one(tmp_path: Path, size: int, between: str) -> None:
    """Masked, what was printed is so short that the place where the log was cut is shown, too."""
    secret = "s" * size + "-end-of-it"
    MASKER.use([secret])
    script = f"for i in $(seq 25); do printf '%s{between}' {secret}; done; exit 1"
    model = ModelConfig(name="m", port=1, wake=script, sleep="true", alive="true")
    shell = ShellHooks({"m": model}, directory=tmp_path, log_dir=tmp_path, events=Events())
    with pytest.raises(HookError) as raised:
        await shell.of("m").run("wake")
    assert "***" in raised.value.output
    assert "end-of-it" not in raised.value.output


@pytest.mark.usefixtures("masked")
async def test_a_secret_where_a_line_without_an_end_is_told_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    for before in range(2 * PIECE_BYTES - len(TOKEN), 2 * PIECE_BYTES + 2):
        path.write_text("." * before + TOKEN + "." * PIECE_BYTES)
        told = b""
        async with aclosing(LogReader(path, lines=1, follow=lambda: False)) as reader:
            async for piece in reader:
                told += piece
        assert told == b"." * before + b"***" + b"." * PIECE_BYTES

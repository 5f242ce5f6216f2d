"""`llmux demo`: two stand-in models that take turns, from the package alone.

Its config, state and pid files are in a temporary folder. Nothing of it outlives the command: the
stand-ins are stopped at the end, and end by themselves if llmux is killed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from llmux.cli.options import with_options_before
from llmux.server import signals
from llmux.server.exits import EXIT_CANNOT_LISTEN, EXIT_CONFIG, print_mistake

if TYPE_CHECKING:
    from llmux.cli.serve import ServeOptions
    from llmux.errors import ConfigError
    from llmux.server.control_listener import Opened

MODELS = ("llama", "mistral")

RATE = 20
"""Tokens per second of an answer: about as fast as people read."""

STOP_S = 20.0
"""Time for a stand-in to stop; `stop` itself kills it after 10 s."""

STANDIN = f"{shlex.quote(sys.executable)} -m llmux.standin"

CONFIG = """\
# The config of `llmux demo`, which removes this folder when it ends.
state_dir: state

models:
  # This server is a process: waking starts it, sleeping stops it.
  llama:
    port: {llama}
    wake: |
      set -e
      {start}
    sleep: {standin} stop --pidfile "$LLMUX_MODEL.pid"
    alive: {awake}

  # This server keeps running, and frees the GPU when it is told to, as vLLM does in sleep mode.
  mistral:
    port: {mistral}
    wake: |
      set -e
      {start}
      {standin} call --port "$LLMUX_PORT" POST /wake_up
    sleep: |
      {awake} || exit 0   # it does not run, or sleeps already
      {standin} call --port "$LLMUX_PORT" POST '/sleep?level=1'
    alive: {awake}
"""

START = f"""\
{STANDIN} wait --timeout 0 --port "$LLMUX_PORT" >/dev/null 2>&1 ||
        {STANDIN} serve --model "$LLMUX_MODEL" --port "$LLMUX_PORT" --rate {RATE} \\
          --wake-secs 1 --pidfile "$LLMUX_MODEL.pid" --while-held demo.pid &
      {STANDIN} wait --port "$LLMUX_PORT\""""

AWAKE = f'{STANDIN} wait --awake --timeout 0 --port "$LLMUX_PORT"'


@click.command("demo")
@click.option("-H", "--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option(
    "-p", "--port", type=click.IntRange(0, 65535), help="The port to listen on.  [default: 3000]"
)
@click.option("-v", "--verbose", is_flag=True, help="Log at debug level.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.pass_context
def demo_command(context: click.Context, /, **options: Any) -> None:
    """Serve two stand-in models that take turns: no GPU, no config, nothing to install.

    Ends with Ctrl-C, and leaves nothing behind.
    """
    signals.hold_back()  # before what takes long to import
    from llmux.cli.serve import ServeOptions  # noqa: PLC0415

    options = with_options_before(context, {"config": None, "watch": False, **options})
    if options["config"] is not None:
        raise click.UsageError("llmux demo has a config of its own: leave out -c")
    sys.exit(run_demo(ServeOptions(**options)))


def offer_demo(error: ConfigError, options: ServeOptions) -> int:
    """Say that there is no config; on a terminal, ask whether to start the demo instead.

    Returns:
        The exit code: the demo's, or that of a bad config.
    """
    print_mistake(error)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return EXIT_CONFIG
    try:
        with signals.let_through():
            wanted = click.confirm("Start the demo now?", err=True)
    except click.Abort:  # Ctrl-C, Ctrl-D
        click.echo(err=True)
        wanted = False
    return run_demo(options) if wanted else EXIT_CONFIG


def run_demo(options: ServeOptions) -> int:
    """Serve the demo until stopped; returns the exit code."""
    from llmux.cli.serve import serve  # noqa: PLC0415

    try:
        with TemporaryDirectory(prefix="llmux-demo-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            with _held(folder / "demo.pid"), _standins_stopped(folder):
                config = _write_config(folder)
                options = replace(options, config=config)
                return serve(options, welcome, ends_with_terminal=True)
    except OSError as error:
        print_mistake(error)
        return EXIT_CANNOT_LISTEN


def welcome(
    sockets: Sequence[socket.socket], control: Opened | None, *, has_keys: bool, scheme: str
) -> list[str]:
    """Return what to try; the arguments are those of `greeting`."""
    from llmux.server.greeting import greeting, root_url  # noqa: PLC0415

    root = root_url(sockets[0], scheme)
    ask = '{"model": "llama", "messages": [{"role": "user", "content": "Who are you?"}]}'
    return [
        "",
        *greeting(sockets, control, has_keys=has_keys, scheme=scheme),
        "",
        "Two stand-in models take turns, as on a GPU with room for one. In another terminal, ask",
        "",
        f"  curl {root}/v1/chat/completions \\",
        f"    -d '{ask}'",
        "",
        'and then the same with "model": "mistral". The UI shows the switch. Ctrl-C ends the demo.',
        "",
    ]


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a pid file, with which the stand-ins end, in the form of `llmux.standin.pidfile`."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextmanager
def _standins_stopped(folder: Path) -> Iterator[None]:
    """Stop the stand-ins at the end, both at once."""
    try:
        yield
    finally:
        stops = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "llmux.standin", "stop", "--pidfile", str(path)]
            )
            for path in (folder / f"{model}.pid" for model in MODELS)
            if path.exists()
        ]
        for stop in stops:
            with suppress(subprocess.TimeoutExpired):  # it ends with this process, too
                stop.wait(STOP_S)


def _write_config(folder: Path) -> Path:
    ports = dict(zip(MODELS, _free_ports(len(MODELS)), strict=True))
    path = folder / "llmux.yaml"
    path.write_text(CONFIG.format(standin=STANDIN, start=START, awake=AWAKE, **ports))
    return path


def _free_ports(count: int) -> list[int]:
    """Return ports that the system has free, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]

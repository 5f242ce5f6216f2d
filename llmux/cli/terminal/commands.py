"""The commands: each sends llmux a request, and prints the answer.

Modules that only some commands need are imported by these, on use.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from llmux.cli.options import cacert_option, config_option
from llmux.cli.terminal.completion import complete_models, complete_requests
from llmux.cli.terminal.failures import EXIT_INTERRUPTED, EXIT_READER_LEFT, Failed, NoAnswer, shown
from llmux.cli.terminal.target import Target, config_of, find_url, target_of
from llmux.errors import ConfigError

if TYPE_CHECKING:
    from llmux.cli.terminal.client import Client

WATCH_S = 1.0
"""Interval of `requests --watch`, in seconds."""

FOLLOW_S = 24 * 3600.0
"""Longest silence of a log that is followed."""

EXIT_CODES = """\b
Exit codes:
  0    done
  1    llmux has refused, or what it tried has failed
  2    a mistake in the command line
  5    no answer of llmux's (nobody there, TLS, a timeout)
  6    the key is missing or wrong
  130  interrupted by Ctrl-C; an order that was given stands"""


def connect(target: Target) -> Client:
    from llmux.cli.terminal.client import Client  # noqa: PLC0415

    return Client(target)


class Terminal:
    """The llmux that a command is for, and the format of the output.

    Args:
        target: The llmux to talk to.
        as_json: True to print llmux's own JSON.
    """

    def __init__(self, target: Target, *, as_json: bool = False) -> None:
        self.target = target
        self.as_json = as_json
        self.client = connect(target)

    def tell(self, answer: bytes, draw: Callable[[], None]) -> None:
        """Print an answer: its JSON as it came, or by calling `draw`."""
        if self.as_json:
            click.echo(answer.rstrip(b"\n"))
        else:
            draw()

    def order(self, path: str, body: object, doing: str, *, method: str = "POST") -> None:
        """Send an order, wait until it is done, and print the result.

        Args:
            path: Below the URL.
            body: Encoded as JSON; None for no body.
            doing: Shown on a terminal in the meantime.
            method: POST or DELETE.
        """
        from rich.console import Console  # noqa: PLC0415 - 50 ms

        waiting = Console(stderr=True).status(doing) if sys.stderr.isatty() else nullcontext()
        with waiting:
            answer = self.client.ask(method, path, body, patient=True)
        self._tell_message(answer)

    def order_model(self, path: str, body: dict[str, Any], doing: str, *, stands: str) -> None:
        """Like `order`, for an order that runs hooks; shows the progress on a terminal.

        Args:
            path: Below the URL.
            body: Encoded as JSON; has the key `model`.
            doing: Shown on a terminal in the meantime.
            stands: Said on a terminal after Ctrl-C: what llmux goes on with.
        """
        with self._progress(body["model"], doing, stands):
            answer = self.client.ask("POST", path, body, patient=True)
        self._tell_message(answer)

    def _progress(self, model: str, doing: str, stands: str) -> AbstractContextManager[None]:
        if not sys.stderr.isatty():
            return nullcontext()
        from llmux.cli.terminal.progress import progress  # noqa: PLC0415 - 50 ms

        return progress(connect(self.target), model, doing, stands)

    def _tell_message(self, answer: bytes) -> None:
        from llmux.observe.schemas import Message  # noqa: PLC0415

        message = self.client.decode(answer, Message).message
        self.tell(answer, lambda: click.echo(shown(message)))


class RemoteCommand(click.Command):
    """A command that talks to llmux; every failure becomes one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except Failed as error:
            if error.answer and ctx.params.get("as_json"):
                click.echo(error.answer.rstrip(b"\n"))
            if isinstance(error, NoAnswer) and (found := _elsewhere(ctx)):
                raise NoAnswer(error.message + found) from None
            raise
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # What is still buffered would fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(EXIT_READER_LEFT)
        except OSError as error:
            raise Failed(f"cannot write: {error.strerror}") from None
        return result


def _elsewhere(context: click.Context) -> str:
    """Return where the llmux of the config listens, if that is not what the config says."""
    if context.params.get("url") or os.environ.get("LLMUX_URL"):
        return ""
    from llmux.cli.doctor.elsewhere import urls_of_config  # noqa: PLC0415 - loads the config
    from llmux.config import default_config_path  # noqa: PLC0415

    try:
        path = config_of(context) or default_config_path(os.environ)
    except ConfigError:
        return ""
    used = find_url(None, path, os.environ)
    others = [url for url in urls_of_config(path) if url != used]
    options = " or ".join(f"--url {url}" for url in others)
    return f"\nthe llmux that serves {path} listens elsewhere: {options}" if others else ""


def remote(name: str, *, has_json: bool = True) -> Callable[[Callable[..., None]], click.Command]:
    """Turn a function into a command; it gets a `Terminal`, and its own options and arguments.

    Args:
        name: Name of the command.
        has_json: True if it can print JSON.
    """

    def make(function: Callable[..., None]) -> click.Command:
        def run(**options: Any) -> None:
            context = click.get_current_context()
            terminal = Terminal(target_of(context), as_json=bool(options.pop("as_json", False)))
            for shared in ("url", "key", "key_file", "config", "cacert"):
                options.pop(shared)
            function(terminal, **options)

        run = update_wrapper(run, function)
        if has_json:
            run = click.option(
                "--json", "as_json", is_flag=True, help="Print llmux's answer as it is."
            )(run)
        for option in (
            config_option,
            cacert_option,
            click.option(
                "--key-file",
                type=click.Path(path_type=Path),
                help="A file whose first line is the key.",
            ),
            click.option(
                "--key",
                help="One of llmux's control_keys; one of its read_keys to look only. Every user "
                "of this machine sees it (ps): rather use --key-file or $LLMUX_CONTROL_KEY.",
            ),
            click.option(
                "--url",
                help="Where llmux is. Default: $LLMUX_URL, the config's host and port, or "
                "http://127.0.0.1:3000.",
            ),
        ):
            run = option(run)
        return click.command(name, cls=RemoteCommand, epilog=EXIT_CODES)(run)

    return make


model_argument = click.argument("model", shell_complete=complete_models)


# ---- See ----


@remote("status")
def status_command(terminal: Terminal) -> None:
    """Show models, waiting requests and the current activity on one screen."""
    from llmux.cli.terminal import views  # noqa: PLC0415
    from llmux.observe.schemas import Status  # noqa: PLC0415

    answer = terminal.client.ask("GET", "/control/status")
    found = terminal.client.decode(answer, Status)
    terminal.tell(
        answer, lambda: views.console().print(views.show_status(found, terminal.target.url))
    )


@remote("top", has_json=False)
def top_command(terminal: Terminal) -> None:
    """Show the status live, with switches and requests; q quits.

    Keys: up and down (or k and j) choose a model, s switches to it, p pins it, u unpins its group
    (only the model, if several are pinned), z puts it to sleep, m changes the mode, c cordons and
    uncordons. Each asks first.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; `llmux status` prints once")
    from llmux.cli.terminal.top import run_top  # noqa: PLC0415

    run_top(lambda: connect(terminal.target))


@remote("requests")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1))
def requests_command(terminal: Terminal, *, watch: bool, limit: int) -> None:
    """List the requests in progress, oldest first."""
    from llmux.cli.terminal import views  # noqa: PLC0415
    from llmux.observe.schemas import RequestList  # noqa: PLC0415

    if not watch:
        answer = terminal.client.ask("GET", "/control/requests", limit=limit)
        found = terminal.client.decode(answer, RequestList)
        terminal.tell(answer, lambda: views.console().print(views.show_requests(found)))
        return
    if terminal.as_json or not sys.stdout.isatty():
        raise click.UsageError("--watch is for people: it needs a terminal, and no --json")
    from rich.live import Live  # noqa: PLC0415

    with Live(console=views.console(), auto_refresh=False) as live:
        while True:
            found = terminal.client.get("/control/requests", RequestList, limit=limit)
            live.update(views.show_requests(found), refresh=True)
            time.sleep(WATCH_S)


@remote("logs", has_json=False)
@model_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows, until Ctrl-C.")
@click.option(
    "-n", "--tail", default=200, show_default=True, type=click.IntRange(0), help="How many lines."
)
def logs_command(terminal: Terminal, *, model: str, follow: bool, tail: int) -> None:
    """Show the output of a model's hooks and of its server."""
    path = f"/control/logs/{quote(model, safe='')}"
    query = {"tail": tail, **({"follow": "true"} if follow else {})}
    output = sys.stdout.buffer
    with terminal.client.stream(path, silent_s=FOLLOW_S, **query) as pieces:
        for piece in pieces:
            output.write(piece)
            output.flush()


# ---- Steer ----


def _model_order(verb: str, doing: str, stands: str, help_text: str) -> click.Command:
    @remote(verb)
    @model_argument
    def command(terminal: Terminal, *, model: str) -> None:
        terminal.order_model(
            f"/control/{verb}", {"model": model}, f"{doing} {shown(model)}", stands=stands
        )

    command.help = help_text
    return command


switch_command = _model_order(
    "switch",
    "switching to",
    "the switch goes on",
    "Switch to a model now; done when it is awake.",
)
wake_command = _model_order(
    "wake", "waking", "the wake goes on", "Wake a model that is asleep; done when it is awake."
)
sleep_command = _model_order(
    "sleep",
    "draining and putting to sleep",
    "llmux still puts it to sleep",
    "Put a model to sleep once its requests have ended.\n\nA request for it wakes it again.",
)


@remote("pin")
@model_argument
@click.option(
    "--wait",
    is_flag=True,
    help="Requests for models that cannot be awake beside it wait; else they get 503.",
)
def pin_command(terminal: Terminal, *, model: str, wait: bool) -> None:
    """Switch to a model and keep it awake.

    Nothing is pinned if that fails.
    """
    body = {"model": model, "wait": wait}
    stands = "the switch and the pin stand (`llmux unpin` ends the pin)"
    terminal.order_model("/control/pin", body, f"pinning {shown(model)}", stands=stands)


@remote("unpin")
@click.argument("model", required=False, shell_complete=complete_models)
@click.option("--group", help="All pins of this group.")
def unpin_command(terminal: Terminal, *, model: str | None, group: str | None) -> None:
    """Remove the pin of a model, or those of a group.

    By default, all pins are removed, and the mode becomes auto.
    """
    if model is not None and group is not None:
        raise click.UsageError("give a model or --group, not both")
    order = {"model": model, "group": group}
    body = {key: name for key, name in order.items() if name is not None}
    terminal.order("/control/unpin", body, "unpinning ...")


@remote("mode")
@click.argument("mode", type=click.Choice(["auto", "manual"]))
def mode_command(terminal: Terminal, *, mode: str) -> None:
    """Set who switches models.

    auto: requests do, as the policy decides; that is the default. manual: only commands do (switch,
    wake, sleep, pin), and requests for a model that is not awake get 503.
    """
    terminal.order("/control/mode", {"mode": mode}, "changing the mode ...")


@remote("cordon")
def cordon_command(terminal: Terminal) -> None:
    """Take no new requests: they get 503, and a balancer sends them elsewhere.

    Those in line or in flight are served to their end, and switch models as usual. `llmux uncordon`
    or a restart ends it; a reload does not.
    """
    terminal.order("/control/cordon", None, "cordoning ...")


@remote("uncordon")
def uncordon_command(terminal: Terminal) -> None:
    """Take new requests again."""
    terminal.order("/control/uncordon", None, "uncordoning ...")


@remote("cancel")
@click.argument("request", metavar="ID", shell_complete=complete_requests)
def cancel_command(terminal: Terminal, *, request: str) -> None:
    """Cancel a request, for its client and its backend.

    `llmux requests` has the ids.
    """
    path = f"/control/requests/{quote(request, safe='')}"
    terminal.order(path, None, "cancelling ...", method="DELETE")


@remote("reload")
def reload_command(terminal: Terminal) -> None:
    """Have llmux read its config again.

    A bad one changes nothing, and its mistakes are printed.
    """
    terminal.order("/control/reload", None, "reloading ...")

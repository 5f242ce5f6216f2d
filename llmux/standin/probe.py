"""`wait` and `call`: send requests to a server on this machine, for hooks without curl."""

from __future__ import annotations

import json
from http.client import HTTPConnection, HTTPException

import click

from llmux.standin.options import HOST
from llmux.standin.param_types import PORT, SECONDS
from llmux.standin.polling import poll

LOOK_TIMEOUT_S = 5.0
"""Time limit for one request: a server that is loading may accept connections and not answer."""


def _ask(port: int, method: str, path: str, timeout_s: float | None) -> tuple[int, bytes]:
    """Send a request; returns the status and the body.

    With the standard library: hooks run these commands often, and httpx takes longer to import
    than the whole rest.

    Raises:
        OSError: The server is not there, or does not answer in time.
        HTTPException: What it answers is not HTTP.
    """
    connection = HTTPConnection(HOST, port, timeout=timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@click.command("wait")
@click.option("--port", type=PORT, required=True)
@click.option("--timeout", "patience_s", type=SECONDS, default=30, help="0: look once.")
@click.option("--path", default="/health", help="Path that must answer with 200.")
@click.option("--awake", is_flag=True, help="Also wait until /is_sleeping says false.")
def wait_command(port: int, patience_s: float, path: str, awake: bool) -> None:
    """Wait until a server is ready."""
    obstacle = poll(lambda: _obstacle(port, path, awake=awake), patience_s)
    if obstacle is not None:
        raise click.ClickException(f"{HOST}:{port} is not ready after {patience_s:g} s: {obstacle}")


def _obstacle(port: int, path: str, *, awake: bool) -> str | None:
    """Return why the server is not ready, or None."""
    try:
        status, _ = _ask(port, "GET", path, LOOK_TIMEOUT_S)
        if status != 200:
            return f"{path} answers {status}"
        if (
            awake
            and json.loads(_ask(port, "GET", "/is_sleeping", LOOK_TIMEOUT_S)[1])["is_sleeping"]
        ):
            return "it sleeps"
    except (OSError, HTTPException) as error:
        return str(error)
    return None


def _sleeps(port: int) -> bool:
    _, body = _ask(port, "GET", "/is_sleeping", LOOK_TIMEOUT_S)
    sleeps: bool = json.loads(body)["is_sleeping"]
    return sleeps


@click.command("call")
@click.option("--port", type=PORT, required=True)
@click.argument("method")
@click.argument("path")
def call_command(port: int, method: str, path: str) -> None:
    """Send a request and print the answer; fail unless its status is 2xx."""
    try:
        status, body = _ask(port, method, path, None)  # a large model wakes slowly
    except (OSError, HTTPException) as error:
        raise click.ClickException(f"{HOST}:{port}: {error}") from None
    click.echo(body.decode(errors="replace"))
    if not 200 <= status < 300:
        raise click.ClickException(f"{method} {path} answers {status}")

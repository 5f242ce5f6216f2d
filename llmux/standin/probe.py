"""`wait` and `call`: send requests to a server on this machine, for hooks without curl."""

from __future__ import annotations

import click
import httpx

from llmux.standin.options import HOST
from llmux.standin.param_types import PORT, SECONDS
from llmux.standin.polling import poll

LOOK_TIMEOUT_S = 5
"""Time limit for one request: a server that is loading may accept connections and not answer."""


def _client(port: int, timeout_s: float | None) -> httpx.Client:
    # Plain HTTP on loopback: ignore the environment's proxies, and do not load certificates.
    return httpx.Client(
        base_url=f"http://{HOST}:{port}",
        timeout=timeout_s,
        trust_env=False,
        verify=False,  # noqa: S501
    )


@click.command("wait")
@click.option("--port", type=PORT, required=True)
@click.option("--timeout", "patience_s", type=SECONDS, default=30, help="0: look once.")
@click.option("--path", default="/health", help="Path that must answer with 200.")
@click.option("--awake", is_flag=True, help="Also wait until /is_sleeping says false.")
def wait_command(port: int, patience_s: float, path: str, awake: bool) -> None:
    """Wait until a server is ready."""
    with _client(port, timeout_s=LOOK_TIMEOUT_S) as client:
        obstacle = poll(lambda: _obstacle(client, path, awake=awake), patience_s)
    if obstacle is not None:
        raise click.ClickException(f"{HOST}:{port} is not ready after {patience_s:g} s: {obstacle}")


def _obstacle(client: httpx.Client, path: str, *, awake: bool) -> str | None:
    """Return why the server is not ready, or None."""
    try:
        status = client.get(path).status_code
        if status != 200:
            return f"{path} answers {status}"
        if awake and client.get("/is_sleeping").json()["is_sleeping"]:
            return "it sleeps"
    except httpx.TransportError as error:
        return str(error)
    return None


@click.command("call")
@click.option("--port", type=PORT, required=True)
@click.argument("method")
@click.argument("path")
def call_command(port: int, method: str, path: str) -> None:
    """Send a request and print the answer; fail unless its status is 2xx."""
    try:
        with _client(port, timeout_s=None) as client:  # a large model wakes slowly
            response = client.request(method, path)
    except httpx.TransportError as error:
        raise click.ClickException(f"{HOST}:{port}: {error}") from None
    click.echo(response.text)
    if not response.is_success:
        raise click.ClickException(f"{method} {path} answers {response.status_code}")

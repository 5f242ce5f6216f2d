"""Find the llmux that a command is for, and the key to send."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from llmux.cli.options import with_options_before
from llmux.config import default_config_path, default_state_dir
from llmux.config.environment import Environment, decode_plainly
from llmux.config.files import decode
from llmux.errors import ConfigError
from llmux.http.clients import is_loopback

DEFAULT_URL = "http://127.0.0.1:3000"

UNIX = "unix:"
"""Prefix of a URL that is the path of a Unix socket."""

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound
"""Addresses that reach, on the same machine, a listener on every address."""


@dataclass(frozen=True)
class Trust:
    """Whom a client believes to be llmux, over TLS.

    Attributes:
        file: PEM file with certificates.
        is_own: True if it is the certificate of llmux's own config: only the first one in the file
            is trusted, whatever the address: that may be 127.0.0.1. False if it may have signed
            others.
        state_dir: Where the running llmux tells which certificate it serves; None if unknown.
        trouble: Why the config does not tell the file; empty if it does.
    """

    file: Path
    is_own: bool = False
    state_dir: Path | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Target:
    """The llmux that a command is for.

    Attributes:
        url: Where it is, without a slash at its end; or `unix:` and the path of a socket.
        key: One of its `control_keys`, or to look only of its `read_keys`; None to send none.
        trust: Whose certificate it has; None: one that the system trusts.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    trust: Trust | None = None


def config_of(context: click.Context) -> Path | None:
    """Return the config that the command line names, before the command or after it."""
    options = {"config": context.params.get("config")}
    path: Path | None = with_options_before(context, options)["config"]
    return path


def target_of(context: click.Context) -> Target:
    """Resolve a command's options; raises click.UsageError."""
    options = context.params
    url = find_url(options.get("url"), config_of(context), os.environ)
    return Target(
        url,
        find_key(options.get("key"), options.get("key_file"), os.environ),
        find_trust(url, options.get("cacert"), config_of(context), os.environ),
    )


def find_url(given: str | None, config: Path | None, environ: Mapping[str, str]) -> str:
    """Return the URL of llmux: given, else `$LLMUX_URL`, else by its config, else the default one.

    Args:
        given: What the command line says.
        config: The config that the command line names.
        environ: The environment.

    Raises:
        click.UsageError: What is given cannot be used.
    """
    if named := given or environ.get("LLMUX_URL"):
        return _checked_url(named)
    if config is not None:
        try:
            return _url_by_config(config)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    try:
        return _url_by_config(default_config_path(environ))
    except ConfigError:  # there is none, or it is being edited
        return DEFAULT_URL


def find_trust(
    url: str, given: Path | None, config: Path | None, environ: Mapping[str, str]
) -> Trust | None:
    """Return whose certificate llmux has: given, else `$LLMUX_CACERT`, else, here, its config's.

    Args:
        url: Where llmux is.
        given: What the command line says.
        config: The config that the command line names.
        environ: The environment.
    """
    if not url.startswith("https://"):
        return None
    if named := given or environ.get("LLMUX_CACERT"):
        return Trust(Path(named))
    try:
        path = config or default_config_path(environ)
        host = urlsplit(url).hostname
        if not (host == "localhost" or is_loopback(host) or url == _url_by_config(path)):
            return None
        return _own_trust(path)
    except (ConfigError, click.UsageError, RuntimeError):  # it is being edited; no such ~user
        return None


def _own_trust(path: Path) -> Trust | None:
    """Return the trust in the certificate that a config names; None if it names none."""
    environment = Environment(os.environ)
    data = _mapping(environment.replaced(decode(path)))
    cert, state_dir = _mapping(data.get("tls")).get("cert"), data.get("state_dir")
    if not isinstance(cert, str):
        return None
    trouble = next((said for keys, said in environment.mistakes if keys == ("tls", "cert")), "")
    folder = path.absolute().parent
    is_given = isinstance(state_dir, str) and not getattr(state_dir, "is_missing", False)
    return Trust(
        folder / Path(cert).expanduser(),
        is_own=True,
        state_dir=folder / Path(str(state_dir)).expanduser()
        if is_given
        else default_state_dir(path),
        trouble=trouble and f"{path}: tls.cert: {trouble}",
    )


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _checked_url(text: str) -> str:
    if text.startswith(UNIX):
        path = "/" + text.removeprefix(UNIX).lstrip("/")
        if not text.removeprefix(UNIX).startswith("/"):
            raise click.UsageError(f"expected {UNIX} and an absolute path, got {text!r}")
        return UNIX + path
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise click.UsageError(f"not a URL: {text!r}: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise click.UsageError(f"not a URL of a llmux, as {DEFAULT_URL} is: {text!r}")
    if parts.username is not None:
        raise click.UsageError("the URL must not hold credentials: give a key")
    return url


def _url_by_config(path: Path) -> str:
    """Return the URL at which a llmux with this config listens.

    Only what is needed is looked at: whatever else is wrong with a file that is being edited, or
    read by somebody who may not read the keys' files, the llmux that runs can be steered.
    """
    data = _mapping(decode_plainly(path))
    scheme = "http" if data.get("tls") is None else "https"
    control = data.get("control")
    if isinstance(control, dict) and isinstance(control.get("socket"), str):
        return f"{UNIX}{path.absolute().parent / Path(control['socket']).expanduser()}"
    if isinstance(control, dict):
        data = {"port": None, **control}
    host, port = data.get("host") or "127.0.0.1", data.get("port", 3000)
    if port == 0:
        raise click.UsageError(f"{path} lets the system pick the port: give --url")
    if not isinstance(host, str) or not isinstance(port, int):
        raise ConfigError([f"{path}: no host and port to be found"])
    host = LOOPBACK.get(host, host)
    return _checked_url(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")


def find_key(given: str | None, file: Path | None, environ: Mapping[str, str]) -> str | None:
    """Return the key to send: as given, else the first of a file, else `$LLMUX_CONTROL_KEY`.

    Raises:
        click.UsageError: What is given cannot be used; the message does not show it.
    """
    if given is not None and file is not None:
        raise click.UsageError("give --key or --key-file, not both")
    key = environ.get("LLMUX_CONTROL_KEY") or None if given is None else given
    if file is not None:
        key = _read_key(file)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise click.UsageError("the key must be visible ASCII characters, without spaces")
    return key


def _read_key(file: Path) -> str:
    """Read the first key of a file, which may also serve as `control_keys: [{file: ...}]`."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:  # it would show what it has met
        raise click.UsageError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from None
    keys = (line.strip() for line in lines)
    key = next((key for key in keys if key and not key.startswith("#")), None)
    if key is None:
        raise click.UsageError(f"{file} holds no key")
    return key

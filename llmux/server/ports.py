"""Choose the ports of backends that the config leaves to llmux.

A model keeps its port across restarts: its server may run on. The choices are in `ports.json` in
`state_dir`, and only a process that holds the lock of that folder makes them.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from llmux.base.plainfiles import open_own, read_own
from llmux.config import Config, ModelConfig
from llmux.config.values import port_range
from llmux.errors import ConfigError
from llmux.hooks.environment import STATE_VARIABLE
from llmux.hooks.orphans import processes_with
from llmux.observe.logs import get_logger

FILE = "ports.json"

MOST_BYTES = 16 << 20

log = get_logger(__name__)


_Claims = dict[str, tuple[int, socket.socket | None]]


def with_ports(config: Config, ports: Mapping[str, int]) -> Config:
    """Return the config with these ports for the models, of them, that leave theirs to llmux."""
    models = {
        name: replace(model, port=ports[name]) if model.chooses_port and name in ports else model
        for name, model in config.models.items()
    }
    return replace(config, models=models)


class PortBook:
    """The ports chosen for one config's models.

    A chosen port is claimed until `close`, or until its model is removed, so that no other llmux on
    the machine chooses it while its server is not running.

    Args:
        state_dir: Folder of the file.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._claims: _Claims = {}
        self._chosen: Mapping[str, int] = {}  # by the last `assign`
        # For an app that is built and never served, which nobody closes.
        weakref.finalize(self, _give_up, self._claims)

    def __repr__(self) -> str:
        chosen = {name: port for name, (port, _) in self._claims.items()}
        return f"<PortBook {chosen}>"

    def close(self) -> None:
        """Give up the claims; the file keeps the choices."""
        _give_up(self._claims)

    def use(self, name: str, model: ModelConfig | None) -> None:
        """Give up the claim of a model that is removed, or has another address from now on.

        Call it once that is in use: until then its server may run.
        """
        port = None if model is None else model.port
        if name in self._claims and self._claims[name][0] != port:
            _give_up_one(self._claims, name)
        elif port is not None and name not in self._claims and self._chosen.get(name) == port:
            # It was removed for good after `assign` had kept its port.
            with suppress(OSError):
                self._claims[name] = port, _claim_on_machine(port)

    def assign(self, config: Config) -> Config:
        """Return the config with a port for every model that leaves it to llmux.

        A model that has got one here before keeps it.

        Raises:
            ConfigError: The range has no free port left.
        """
        choosing = [model for model in config.models.values() if model.chooses_port]
        if not choosing:
            return config
        kept = chosen_ports(self._state_dir)
        allowed, ports = port_range(config.ports), dict(kept)
        for model in choosing:
            ports[model.name] = self._port_of(model.name, ports, config, allowed)
        if ports != kept:
            self._write(ports)
        self._chosen = {model.name: ports[model.name] for model in choosing}
        return with_ports(config, ports)

    def _port_of(self, name: str, ports: Mapping[str, int], config: Config, allowed: range) -> int:
        given = set(_given_ports(config))
        if (
            name in self._claims
            and (port := self._claims[name][0]) in allowed
            and port not in given
        ):
            return port
        before = ports.get(name)
        is_possible = before is not None and before in allowed and before not in given
        if before is not None and is_possible and self._claim(name, before, is_own=True):
            return before
        for port in _candidates(name, ports, config, allowed):
            if port not in given and self._claim(name, port):
                log.info("port_chosen", model=name, port=port, before=before)
                return port
        raise ConfigError([f"ports: no free port is left in {config.ports} for {name!r}"])

    def _claim(self, name: str, port: int, *, is_own: bool = False) -> bool:
        """Claim a port unless it is in use.

        Args:
            name: Name of the model.
            port: The port.
            is_own: True if it is the model's already, so that its own server may use it.
        """
        try:
            claim = _claim_on_machine(port)
        except OSError:  # another llmux has it
            return False
        if not _is_free(port) and not (is_own and self._is_servers(name, port)):
            if claim is not None:
                claim.close()
            return False
        _give_up_one(self._claims, name)
        self._claims[name] = port, claim
        return True

    def _is_servers(self, name: str, port: int) -> bool:
        """Return whether a process that the model's hooks started runs; True if none can be seen.

        Servers inherit the environment of the hook that started them.
        """
        if not Path("/proc/self/environ").exists():
            return True
        about = {
            "LLMUX_MODEL": name,
            "LLMUX_PORT": str(port),
            STATE_VARIABLE: str(self._state_dir),
        }
        return bool(processes_with(about))

    def _write(self, ports: Mapping[str, int]) -> None:
        path = self._state_dir / FILE
        new = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            with os.fdopen(open_own(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(msgspec.json.encode({"ports": ports}) + b"\n")
            new.replace(path)
        except OSError as error:
            hint = "a restarted llmux may choose other ports, and not find servers that run"
            log.error("ports_not_written", path=str(path), error=str(error), hint=hint)


def _give_up(claims: _Claims) -> None:
    for name in list(claims):
        _give_up_one(claims, name)


def _give_up_one(claims: _Claims, name: str) -> None:
    _, claim = claims.pop(name, (0, None))
    if claim is not None:
        claim.close()


def chosen_ports(state_dir: Path) -> dict[str, int]:
    """Return the ports chosen so far, by model name; empty if there is no readable file."""
    path = state_dir / FILE
    try:
        text = read_own(path, MOST_BYTES)
        return msgspec.json.decode(text, type=dict[str, dict[str, int]]).get("ports", {})
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("ports_unreadable", path=str(path), error=str(error))
        return {}


def _given_ports(config: Config) -> Iterator[int]:
    """Yield the ports that the config itself names."""
    yield config.port
    if config.control is not None and config.control.port is not None:
        yield config.control.port
    for model in config.models.values():
        if model.port is not None:
            yield model.port


def _candidates(
    name: str, ports: Mapping[str, int], config: Config, allowed: range
) -> Iterator[int]:
    """Yield the ports to try: first those of no model, then those of models that are gone."""
    others = {other: port for other, port in ports.items() if other != name}
    yield from (port for port in allowed if port not in others.values())
    used = {port for other, port in others.items() if _is_chosen(config.models.get(other))}
    yield from (port for port in allowed if port in others.values() and port not in used)


def _is_chosen(model: ModelConfig | None) -> bool:
    return model is not None and model.chooses_port


def _claim_on_machine(port: int) -> socket.socket | None:
    """Claim a port against every llmux on this machine; None where that is not possible.

    Names in Linux's abstract socket namespace belong to a network namespace, as ports do, and are
    free again when their process ends.

    Raises:
        OSError: It is claimed.
    """
    if sys.platform != "linux":
        return None
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0llmux-backend-port-{port}")
    except OSError:
        claim.close()
        raise
    return claim


def _is_free(port: int) -> bool:
    """Return whether nothing on this machine uses a port, on any IPv4 address."""
    with socket.socket() as probe:
        # Connections of a server that has ended (TIME_WAIT) do no harm.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True

"""What the config says of the control API's listener, of proxies, and of single clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmux.config import parse_config
from llmux.errors import ConfigError
from llmux.observe.events import Events
from llmux.switching.reload import Reloader
from llmux.switching.switchboard import Switchboard
from tests.fakes import FakeHooks

MODELS = {"a": {"port": 8001, "wake": "up", "sleep": "down", "alive": "ping"}}


def config(**settings: Any) -> Any:
    return parse_config({"models": MODELS, "state_dir": "s", **settings}, directory=Path("/srv"))


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"control": {}}, "control: give 'port' or 'socket'"),
        ({"control": {"host": "127.0.0.1"}}, "control: give 'port' or 'socket'"),
        ({"control": {"port": 1, "socket": "s"}}, "control: give 'port' or 'socket', not both"),
        ({"control": {"host": "::1", "socket": "s"}}, "control.host: goes with 'port' only"),
        ({"control": {"port": 3000}}, "control.port: is the main listener's port"),
        ({"control": {"port": 7}, "port": 7}, "control.port: is the main listener's port"),
        ({"control": {"port": 70000}}, "control.port: expected int <= 65535"),
        ({"control": {"socket": " "}}, "control.socket: must not be blank"),
        ({"control": {"socket": "s" * 104}}, "control.socket: a socket's path has 103 bytes"),
        ({"control": {"prot": 1}}, "control.prot: unknown key, did you mean 'port'?"),
        ({"control": 3001}, "control: expected object, got int"),
        ({"trusted_proxies": "unix"}, "trusted_proxies: expected array, got str"),
        ({"trusted_proxies": ["nginx"]}, "trusted_proxies[0]: expected an IP address, a network"),
        (
            {"trusted_proxies": ["unix", "10.0.0.1/8"]},
            "trusted_proxies[1]: 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?",
        ),
        ({"limits": {"queued_per_client": 0}}, "limits.queued_per_client: expected int >= 1"),
        (
            {"limits": {"connections_per_client": "x"}},
            "limits.connections_per_client: expected int, got str",
        ),
    ],
)
def test_mistakes(settings: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    assert [line for line in caught.value.mistakes if line.startswith(mistake)], (
        caught.value.mistakes
    )


def test_defaults_are_as_before() -> None:
    found = config(control=None)
    assert found.control is None
    assert found.control_socket is None
    assert found.trusted_proxies == ()
    assert not found.proxies
    assert found.limits.connections_per_client is found.limits.queued_per_client is None


def test_a_socket_stands_in_the_configs_folder_unless_it_says_otherwise() -> None:
    assert config(control={"socket": "c.sock"}).control_socket == Path("/srv/c.sock")
    assert config(control={"socket": "/run/c"}).control_socket == Path("/run/c")
    home = config(control={"socket": "~/c"}).control_socket
    assert home == Path("~/c").expanduser()
    assert config(control={"port": 0}, port=0).control_socket is None


def test_the_control_listener_needs_a_restart() -> None:
    old = config()
    board = Switchboard(old, FakeHooks(), Events())
    reloader = Reloader(old, board)
    assert reloader.apply(config(control={"port": 3001})) == ["control"]
    assert reloader.apply(config(trusted_proxies=["10.0.0.0/8"])) == []

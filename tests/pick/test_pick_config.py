from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from llmux.cli import pick as pick_cli
from llmux.cli.main import main
from llmux.errors import ConfigError
from llmux.pick.bootstrap import bootstrap, bootstrap_text
from llmux.pick.config import load_pick_config
from llmux.pick.discovery import endpoints_of


@pytest.fixture(autouse=True)
def _leave_logging_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmux.observe.logs.configure", lambda *_, **__: None)


def load(folder: Path, text: str) -> Any:
    path = folder / "pick.yaml"
    path.write_text(text)
    return load_pick_config(path)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "the file is empty"),
        ("web: null", "give 'hosts' or 'eds_file'"),
        ("hosts: ['10.0.0.1:3000']\neds_file: x", "eds_file: give 'hosts' or 'eds_file', not both"),
        ("hosts: ['10.0.0.1']", "hosts[0]: expected an address and a port such as 10.0.0.1:3000"),
        ("hosts: ['10.0.0.1:0']", "hosts[0]: the port must be 1 to 65535"),
        ("hosts: ['h:1', {address: 'h:1'}]", "hosts[1]: 'h:1' is in the list already"),
        ("hosts: ['h:1']\nlisten: 9002", "listen: expected str, got int"),
        ("hosts: ['h:1']\nhost: 1", "host: unknown key, did you mean 'hosts'?"),
        ("hosts: ['h:1']\nread_keys: [{env: NO_SUCH}]", "the environment variable NO_SUCH is not set"),
        ("hosts: [{address: 'h:1', control: 'h:2'}]", "hosts[0].control: must start with http://"),
    ],
    ids=["empty", "none", "both", "no port", "port 0", "twice", "number", "unknown", "no key", "no url"],
)  # fmt: skip
def test_mistakes_say_what_and_where(tmp_path: Path, text: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert mistake in str(caught.value)
    assert "pick.yaml" in str(caught.value)


def test_homes_must_be_hosts(tmp_path: Path) -> None:
    config = load(tmp_path, "hosts: ['10.0.0.1:1']\nenvoy: {homes: {a: ['10.0.0.2:1']}}")
    with pytest.raises(ConfigError, match=r"envoy.homes.a: 10.0.0.2:1 is none of the hosts"):
        bootstrap(config)


def clusters_of(made: Any) -> dict[str, Any]:
    return {each["name"]: each for each in made["static_resources"]["clusters"]}


def test_models_with_the_same_homes_share_a_cluster(tmp_path: Path) -> None:
    text = """
      hosts: ['10.0.0.1:1', '10.0.0.2:1', '10.0.0.3:1']
      envoy:
        homes: {a: ['10.0.0.2:1'], b: ['10.0.0.2:1'], c: ['10.0.0.3:1', '10.0.0.1:1']}
    """
    found = clusters_of(bootstrap(load(tmp_path, text)))
    homes = [name for name in found if name.startswith("homes")]
    assert homes == ["homes-1", "homes-2"]
    order = [
        each["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["address"]
        for each in found["homes-2"]["load_assignment"]["endpoints"]
    ]
    assert order == ["10.0.0.3", "10.0.0.1", "10.0.0.2"]


def test_names_and_files_of_hosts_are_envoys_to_follow(tmp_path: Path) -> None:
    named = clusters_of(bootstrap(load(tmp_path, "hosts: ['llmux.example:3000']")))
    assert named["hosts"]["type"] == "STRICT_DNS"
    in_file = clusters_of(bootstrap(load(tmp_path, "eds_file: hosts.yaml")))
    source = in_file["hosts"]["eds_cluster_config"]["eds_config"]["path_config_source"]
    assert source["path"] == str(tmp_path.resolve() / "hosts.yaml")


def test_the_config_of_envoy_is_printed(tmp_path: Path) -> None:
    config = load(tmp_path, "hosts: ['10.0.0.1:3000']")
    path = str(tmp_path / "pick.yaml")
    for arguments in (["-c", path, "envoy-config"], ["envoy-config", "-c", path]):
        done = CliRunner().invoke(main, ["pick", *arguments])
        assert done.exit_code == 0, done.output
        assert done.stdout == bootstrap_text(config)
    assert yaml.safe_load(done.stdout) == bootstrap(config)


def test_the_extra_is_named_if_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, "hosts: ['10.0.0.1:3000']")
    monkeypatch.setattr(pick_cli, "find_spec", lambda _: None)
    done = CliRunner().invoke(main, ["pick", "-c", str(tmp_path / "pick.yaml")])
    assert done.exit_code == 2
    assert "pip install 'llmux-proxy[fleet]'" in done.stderr


def test_without_a_config_the_command_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["pick"])
    assert (done.exit_code, done.stderr) == (
        2,
        "no config: there is no ./pick.yaml; name one with -c FILE\n",
    )


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"endpoints": 3},
        {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "/x"}}}}]}]},
    ],
    ids=["empty", "number", "pipe"],
)
def test_files_that_are_no_endpoints_are_refused(data: object) -> None:
    with pytest.raises(ConfigError, match=r"hosts.yaml: expected a ClusterLoadAssignment"):
        endpoints_of(Path("hosts.yaml"), data)


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("listen: '127.0.0.1:{taken}'\nweb: null", ["cannot listen on 127.0.0.1:{taken}"]),
        ("web: '127.0.0.1:{taken}'", ["cannot listen on 127.0.0.1:{taken}: Address already in use"]),
        ("listen: '127.0.0.1:{free}'\nweb: '127.0.0.1:{free}'", ["cannot listen on 127.0.0.1:{free}"]),
        ("tls: {{cert: bad.pem, key: bad.pem}}", ["tls: ", "bad.pem", "no certificate"]),
        ("tls: {{cert: none.pem, key: none.pem}}", ["tls: ", "none.pem: No such file"]),
        ("hosts_tls: {{ca: bad.pem}}", ["hosts_tls.ca: ", "bad.pem"]),
    ],
    ids=["gRPC", "site", "same", "no certificate", "no file", "authority"],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, mistakes: list[str]) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        ports = {"taken": taken.getsockname()[1], "free": free}
        text = text.format(**ports)
        rest = "" if "listen:" in text else "\nlisten: '127.0.0.1:0'"
        rest += "" if "web:" in text else "\nweb: null"
        load(tmp_path, f"hosts: ['127.0.0.1:1']\n{text}{rest}")
        done = CliRunner().invoke(main, ["pick", "-c", str(tmp_path / "pick.yaml")])
    assert done.exit_code in {1, 2}
    assert not isinstance(done.exception, OSError), done.exception
    for mistake in mistakes:
        assert mistake.format(**ports) in done.stderr

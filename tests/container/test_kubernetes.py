"""The manifests of deploy/kubernetes: against the schemas of Kubernetes, and against llmux."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmux.config import Config, load_config, recipe_remarks
from llmux.config.remarks import address_remarks
from llmux.hooks.process_group import KILL_AFTER_S
from tests.containerfile import ROOT
from tests.lanes import LANES, running_lane

FOLDER = ROOT / "deploy" / "kubernetes"
DOCUMENTS: list[dict[str, Any]] = [
    document
    for name in ("llmux.yaml", "models.yaml")
    for document in yaml.safe_load_all((FOLDER / name).read_text())
]
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
POD = BY_KIND["StatefulSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
PATHS = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The ConfigMap's config, with the Secret's files in another place."""
    text = BY_KIND["ConfigMap"]["data"]["llmux.yaml"]
    keys = tmp_path / "keys"
    keys.mkdir()
    for name, value in BY_KIND["Secret"]["stringData"].items():
        (keys / name).write_text(value)
    assert PATHS["keys"] in text
    file = tmp_path / "llmux.yaml"
    file.write_text(text.replace(PATHS["keys"], str(keys)))
    return load_config(file)


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_kubernetes_takes_it(number: int) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(DOCUMENTS[number], kubernetes.latest_version(), strict=True)


def test_kubernetes_would_not_take_a_mistake() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    wrong = {**BY_KIND["Service"], "spec": {**BY_KIND["Service"]["spec"], "port": 3000}}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, kubernetes.latest_version(), strict=True)


def test_the_config_is_one_without_warnings(config: Config) -> None:
    assert list(config.models) == ["qwen", "mistral"]
    host = CONTAINER["args"][CONTAINER["args"].index("--host") + 1]
    assert [*recipe_remarks(config), *address_remarks(config, host)] == []
    for model in config.models.values():
        assert "/models/" in model.variables["LLMUX_WITH_COMMAND"]


def test_times_fit_together(config: Config) -> None:
    assert POD["terminationGracePeriodSeconds"] >= config.shutdown_grace_secs + 2 * KILL_AFTER_S


def test_what_is_mounted_is_there_and_what_is_written_is_kept(config: Config) -> None:
    claimed = {
        each["metadata"]["name"] for each in BY_KIND["StatefulSet"]["spec"]["volumeClaimTemplates"]
    }
    volumes = {each["name"]: each for each in POD["volumes"]}
    assert claimed | set(volumes) == set(PATHS)
    assert volumes["config"]["configMap"]["name"] == BY_KIND["ConfigMap"]["metadata"]["name"]
    assert volumes["keys"]["secret"]["secretName"] == BY_KIND["Secret"]["metadata"]["name"]
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == BY_KIND["PersistentVolumeClaim"]["metadata"]["name"]
    assert claimed == {"state"}
    assert str(config.state_dir) == PATHS["state"]
    environment = {each["name"]: each["value"] for each in CONTAINER["env"]}
    assert environment["LLMUX_CONFIG"] == f"{PATHS['config']}/llmux.yaml"
    assert all("subPath" not in mount for mount in CONTAINER["volumeMounts"])
    assert volumes["keys"]["secret"]["defaultMode"] == 0o440  # not for others; fsGroup reads it


def test_models_are_copied_before_there_is_a_llmux() -> None:
    """The volume and the pod that copies are a file of their own, which comes first."""
    models = list(yaml.safe_load_all((FOLDER / "models.yaml").read_text()))
    assert [each["kind"] for each in models] == ["PersistentVolumeClaim", "Pod"]
    pod = BY_KIND["Pod"]["spec"]
    (volume,) = pod["volumes"]
    mine = {each["name"]: each for each in POD["volumes"]}["models"]
    assert volume["persistentVolumeClaim"] == mine["persistentVolumeClaim"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount == {"name": "models", "mountPath": PATHS["models"]}  # it is written to
    (read,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "models")
    assert read["readOnly"] is True
    for key in ("securityContext", "tolerations"):
        assert pod[key] == POD[key]
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    steps = ["models.yaml ", "llmux-copy:/models/", "delete -n llm pod/llmux-copy", "llmux.yaml  "]
    places = [page.index(step, page.index("## Apply")) for step in steps]
    assert places == sorted(places)


def test_the_pages_dockerfile_has_no_comments_behind_instructions() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    dockerfile = page.partition("```dockerfile\n")[2].partition("```")[0]
    assert "FROM " in dockerfile
    assert not [line for line in dockerfile.splitlines() if "#" in line.lstrip("#")]


def test_probes_have_time_while_a_model_loads() -> None:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[kind]["timeoutSeconds"] == 5


def test_names_can_be_looked_up() -> None:
    (rule,) = BY_KIND["NetworkPolicy"]["spec"]["egress"]
    assert {(each["port"], each["protocol"]) for each in rule["ports"]} == {
        (53, "UDP"),
        (53, "TCP"),
    }


def test_there_is_one_and_no_more() -> None:
    assert BY_KIND["StatefulSet"]["spec"]["replicas"] == 1
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_ports_and_labels_agree() -> None:
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) in CONTAINER["args"]
    (service,) = BY_KIND["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    labels = BY_KIND["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert BY_KIND["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert BY_KIND["Service"]["spec"]["selector"] == labels
    policy = BY_KIND["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": port["name"]}]


@pytest.mark.parametrize("lane", LANES)
async def test_probes_need_no_key_and_no_name(lane: str, tmp_path: Path) -> None:
    probes = [
        CONTAINER[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    assert {probe["path"] for probe in probes} == {"/health"}
    async with running_lane(lane, tmp_path, api_keys=["k"]) as site, site.client() as client:
        answer = await client.get("/health", headers={"Host": "10.1.2.3:3000"})
        assert answer.status_code == 200

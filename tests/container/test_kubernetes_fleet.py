"""The manifests of deploy/kubernetes/fleet: against schemas, against each other, and against llmux."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml

from llmux.config import Config, load_config, recipe_remarks
from llmux.config.remarks import address_remarks
from llmux.hooks.process_group import KILL_AFTER_S
from llmux.pick.config import PickConfig, load_pick_config, split_address
from tests.container.apis import SPECS, strict
from tests.containerfile import ROOT
from tests.servers import FORMS, chat, running_backends, running_llmux

FOLDER = ROOT / "deploy" / "kubernetes" / "fleet"
FILES = ("models", "hosts", "picker", "gateway", "monitoring")
DOCUMENTS: list[dict[str, Any]] = [
    document
    for name in FILES
    for document in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
]
BY_NAME = {(each["kind"], each["metadata"]["name"]): each for each in DOCUMENTS}
CORE = [each for each in DOCUMENTS if not re.search(r"\.(x-k8s\.io|com)/", each["apiVersion"])]
CORE = [each for each in CORE if each["kind"] not in {"InferencePool", "Gateway", "HTTPRoute"}]
CUSTOM = [each for each in DOCUMENTS if each not in CORE]

POD = BY_NAME["StatefulSet", "llmux"]["spec"]["template"]["spec"]
PICKER = BY_NAME["Deployment", "llmux-pick"]["spec"]["template"]["spec"]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = pod["containers"]
    return found


def name_of(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def in_other_folder(text: str, folder: Path) -> str:
    """A config with the Secrets' files below a folder, where they are."""
    for secret in ("llmux-keys", "llmux-read-key"):
        place = folder / secret
        place.mkdir(exist_ok=True)
        for name, value in BY_NAME["Secret", secret]["stringData"].items():
            (place / name).write_text(value)
        text = text.replace(f"/etc/{secret}/", f"{place}/")
    return text


@pytest.fixture
def config(tmp_path: Path) -> Config:
    file = tmp_path / "llmux.yaml"
    text = BY_NAME["ConfigMap", "llmux"]["data"]["llmux.yaml"]
    file.write_text(in_other_folder(text, tmp_path))
    return load_config(file)


@pytest.fixture
def pick_config(tmp_path: Path) -> PickConfig:
    file = tmp_path / "pick.yaml"
    text = BY_NAME["ConfigMap", "llmux-pick"]["data"]["pick.yaml"]
    file.write_text(in_other_folder(text, tmp_path))
    return load_pick_config(file)


# ---- Against schemas ----


@pytest.mark.parametrize("document", CORE, ids=name_of)
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(document, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize("document", CUSTOM, ids=name_of)
def test_the_apis_have_these_fields(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(document["spec"], SPECS[f"{document['apiVersion']} {document['kind']}"])


def test_the_apis_would_not_take_a_mistake() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    spec = BY_NAME["InferencePool", "llmux"]["spec"]
    schema = SPECS["inference.networking.k8s.io/v1 InferencePool"]
    for wrong in (
        {**spec, "extensionRef": spec["endpointPickerRef"]},  # as in v1alpha2
        {**spec, "targetPorts": [3000]},
        {key: spec[key] for key in spec if key != "selector"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.skipif("LLMUX_CRDS" not in os.environ, reason="LLMUX_CRDS: a folder with the CRDs")
@pytest.mark.parametrize("document", CUSTOM, ids=name_of)
def test_the_crds_take_it(document: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    group, _, version = document["apiVersion"].partition("/")
    schemas = [
        served["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for path in Path(os.environ["LLMUX_CRDS"]).glob("*.yaml")
        for crd in yaml.safe_load_all(path.read_text())
        if crd["spec"]["group"] == group and crd["spec"]["names"]["kind"] == document["kind"]
        for served in crd["spec"]["versions"]
        if served["name"] == version
    ]
    assert len(schemas) == 1
    jsonschema.validate(document["spec"], strict(schemas[0]))


# ---- Against each other ----


def test_labels_ports_and_names_agree() -> None:
    for kind, name in ("StatefulSet", "llmux"), ("Deployment", "llmux-pick"):
        spec = BY_NAME[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        assert BY_NAME["Service", name]["spec"]["selector"] == labels
        ports = {
            each["name"]: each["containerPort"]
            for each in container(spec["template"]["spec"])["ports"]
        }
        for port in BY_NAME["Service", name]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
        assert BY_NAME["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] == labels
        policy = BY_NAME["NetworkPolicy", name]["spec"]
        assert policy["podSelector"]["matchLabels"] == labels
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        assert opened == set(ports)
        monitor = BY_NAME["PodMonitor", name]["spec"]
        assert monitor["selector"]["matchLabels"] == labels
        assert {each["port"] for each in monitor["podMetricsEndpoints"]} <= set(ports)


def test_the_pool_is_of_llmux_and_its_picker() -> None:
    pool = BY_NAME["InferencePool", "llmux"]["spec"]
    hosts, picker = BY_NAME["Service", "llmux"], BY_NAME["Service", "llmux-pick"]
    assert pool["selector"]["matchLabels"] == hosts["spec"]["selector"]
    (port,) = container(POD)["ports"]
    assert pool["targetPorts"] == [{"number": port["containerPort"]}]
    reference = pool["endpointPickerRef"]
    assert reference["name"] == picker["metadata"]["name"]
    by_name = {each["name"]: each["port"] for each in picker["spec"]["ports"]}
    assert reference["port"]["number"] == by_name["grpc"]
    (rule,) = BY_NAME["HTTPRoute", "models"]["spec"]["rules"]
    assert rule["backendRefs"][0]["name"] == "llmux"
    assert rule["timeouts"] == {"request": "0s"}
    assert [each["path"]["value"] for each in rule["matches"]] == ["/v1"]


def test_the_picker_finds_each_pod(pick_config: PickConfig) -> None:
    service = BY_NAME["Service", "llmux"]["spec"]
    assert service["clusterIP"] == "None"  # headless
    (host,) = pick_config.addresses
    assert split_address(host.address) == ("llmux", service["ports"][0]["port"])
    assert BY_NAME["StatefulSet", "llmux"]["spec"]["serviceName"] == "llmux"
    ports = {each["name"]: each["containerPort"] for each in container(PICKER)["ports"]}
    assert split_address(pick_config.listen) == ("0.0.0.0", ports["grpc"])
    assert pick_config.web is not None
    assert split_address(pick_config.web) == ("0.0.0.0", ports["web"])


def test_the_picker_and_prometheus_have_the_read_key_and_no_other(
    config: Config, pick_config: PickConfig
) -> None:
    assert pick_config.read_keys.texts == config.read_keys.texts
    assert not set(config.api_keys.texts) & set(config.read_keys.texts)
    assert config.metrics_access == "control_key"  # which a read key opens
    secrets = {each["secret"]["secretName"] for each in PICKER["volumes"] if "secret" in each}
    assert secrets == {"llmux-read-key", "llmux-pick-tls"}
    (endpoint,) = BY_NAME["PodMonitor", "llmux"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    data = BY_NAME["Secret", credentials["name"]]["stringData"]
    assert data[credentials["key"]] == config.read_keys.texts[0]  # without a line's end


@pytest.mark.parametrize("pod", [POD, PICKER], ids=["llmux", "picker"])
def test_what_is_mounted_is_there(pod: dict[str, Any]) -> None:
    claims = BY_NAME["StatefulSet", "llmux"]["spec"]["volumeClaimTemplates"] if pod is POD else []
    there = {each["name"] for each in pod["volumes"]} | {
        each["metadata"]["name"] for each in claims
    }
    assert {each["name"] for each in container(pod)["volumeMounts"]} == there
    for volume in pod["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in BY_NAME
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440
            name = volume["secret"]["secretName"]
            assert ("Secret", name) in BY_NAME or name == "llmux-pick-tls"  # from cert-manager
        if "persistentVolumeClaim" in volume:
            assert (
                "PersistentVolumeClaim",
                volume["persistentVolumeClaim"]["claimName"],
            ) in BY_NAME
    security = container(pod)["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]


def test_a_pod_is_as_that_of_one_host() -> None:
    """What is not about several hosts is the same in both folders."""
    single = next(
        each["spec"]["template"]["spec"]
        for each in yaml.safe_load_all((FOLDER.parent / "llmux.yaml").read_text())
        if each["kind"] == "StatefulSet"
    )
    different = {"containers", "volumes", "terminationGracePeriodSeconds"}
    assert {key: POD[key] for key in POD if key not in different} == {
        key: single[key] for key in single if key not in different
    }
    mine, other = container(POD), container(single)
    different = {"lifecycle", "readinessProbe", "volumeMounts"}
    assert {key: mine[key] for key in mine if key not in different} == {
        key: other[key] for key in other if key not in different
    }
    assert all(each in POD["volumes"] for each in single["volumes"])
    for here, there in zip(
        yaml.safe_load_all((FOLDER / "models.yaml").read_text()),
        yaml.safe_load_all((FOLDER.parent / "models.yaml").read_text()),
        strict=True,
    ):
        if here["kind"] == "PersistentVolumeClaim":
            assert here["spec"].pop("accessModes") == ["ReadWriteMany"]
            assert there["spec"].pop("accessModes") == ["ReadWriteOnce"]
        assert here == there


# ---- Against llmux ----


def test_the_config_is_one_without_warnings(config: Config) -> None:
    assert [*recipe_remarks(config), *address_remarks(config, "0.0.0.0")] == []
    assert str(config.state_dir) == "/var/lib/llmux"


PRE_STOP = container(POD)["lifecycle"]["preStop"]["exec"]["command"]


def test_times_fit_together(config: Config) -> None:
    (before_s,) = re.findall(r"sleep (\d+) +#", PRE_STOP[-1])
    (at_most_s,) = re.findall(r"timeout (\d+) ", PRE_STOP[-1])
    stop_s = config.shutdown_grace_secs + 2 * KILL_AFTER_S
    assert POD["terminationGracePeriodSeconds"] >= int(before_s) + int(at_most_s) + stop_s


def test_probes_tell_a_pod_that_takes_no_requests_from_one_that_is_broken() -> None:
    probes = container(POD)
    assert probes["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert probes["livenessProbe"]["httpGet"]["path"] == "/health"
    assert probes["startupProbe"]["httpGet"]["path"] == "/health"
    probes = container(PICKER)
    assert probes["readinessProbe"]["httpGet"] == {"path": "/health", "port": "web"}
    assert probes["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "web"}


async def test_a_pod_that_is_stopped_first_serves_what_it_has(tmp_path: Path) -> None:
    """The preStop hook cordons, and ends once no request is left."""
    async with running_backends(tmp_path, "a") as rack:
        settings = {"api_keys": ["key"], "read_keys": ["look"]}
        async with running_llmux(rack.write_config(**settings)) as llmux:
            (tmp_path / "llmux").write_text(f'#!/bin/sh\nexec {" ".join(FORMS["llmux"])} "$@"\n')
            (tmp_path / "llmux").chmod(0o755)
            script = (
                PRE_STOP[-1]
                .replace("/opt/llmux/bin", str(tmp_path))
                .replace("sleep 5 ", "sleep 0 ")
            )
            environment = {**os.environ, "LLMUX_URL": llmux.url}
            headers = {"Authorization": "Bearer key"}
            async with llmux.client() as client, trio.open_nursery() as nursery:
                ends = trio.Event()
                asked: list[httpx.Response] = []

                async def hold(_: int) -> None:
                    await ends.wait()

                rack.backends["a"].next_chunk = hold

                async def ask() -> None:
                    body = chat("a", stream=True, chunks=1)
                    asked.append(
                        await client.post("/v1/chat/completions", json=body, headers=headers)
                    )

                nursery.start_soon(ask)
                with trio.fail_after(20):
                    while not rack.backends["a"].in_flight:
                        await trio.sleep(0.01)
                    process = await trio.lowlevel.open_process(
                        [*PRE_STOP[:-1], script], env=environment
                    )
                    while (await client.get("/health/ready")).status_code == 200:
                        await trio.sleep(0.01)
                    refused = await client.post(
                        "/v1/chat/completions", json=chat("a"), headers=headers
                    )
                    assert refused.json()["error"]["code"] == "cordoned"
                    assert process.poll() is None
                    ends.set()
                    assert await process.wait() == 0
            assert [answer.status_code for answer in asked] == [200]

"""The dashboard and the alerts in docs/monitoring, held against a running llmux.

Fast: every metric and label that they name is there. Slow: promtool takes the alerts and runs their
tests, and a real Prometheus evaluates every query of the dashboard.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.servers import LlmuxProcess, chat, running_backends, running_llmux

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MONITORING = DOCS / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
GROUPS = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}

Labels = Mapping[str, frozenset[str]]
"""By metric, as it stands in a query: its labels."""

TARGET_LABELS = frozenset({"job", "instance"})
"""What Prometheus adds to everything that it scrapes."""


class Query(NamedTuple):
    """A PromQL expression, and where it stands."""

    place: str
    expression: str
    legend: str = ""


def panels() -> Iterator[Any]:
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            yield panel


def dashboard_queries() -> Iterator[Query]:
    for panel in panels():
        for target in panel["targets"]:
            yield Query(panel["title"], filled_in(target["expr"]), target["legendFormat"])


def queries() -> list[Query]:
    rules = [Query(name, rule["expr"]) for name, rule in ALERTS.items()]
    return [*dashboard_queries(), *rules]


def filled_in(expression: str) -> str:
    """A query with Grafana's variables replaced as it does when all is chosen."""
    for variable, value in {
        "$__rate_interval": "1m",
        "[15m:15s]": "[15m:1s]",  # steps are at whole quarters of a minute
        "$__range": "1h",
        "$instance": ".*",
        "$model": ".*",
    }.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


# ---- Every name is there ----


def mistakes(query: Query, known: Labels) -> Iterator[str]:
    """What a query names that no metric has."""
    text = re.sub(r'"[^"]*"', '""', query.expression)
    selectors = re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", text)
    bare = re.sub(r"\{[^}]*\}", "{}", text)
    for name in re.findall(r"\b((?:llmux|process)_\w+|up)\b(?!\{)", bare):
        if name not in known:  # it needs no braces, but must exist
            yield f"{query.place}: no metric {name}"
        selectors.append((name, ""))
    if not selectors:
        yield f"{query.place}: no metric at all"
    here = set(TARGET_LABELS)
    for name, matchers in selectors:
        if name not in known:
            yield f"{query.place}: no metric {name}"
            continue
        labels = known[name] | TARGET_LABELS
        here |= labels
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            if label not in labels:
                yield f"{query.place}: {name} has no label {label}"
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", bare)
    for label in (each.strip() for labels in lists for each in labels.split(",")):
        if label and label not in here:
            yield f"{query.place}: nothing has a label {label}"
    for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
        if label not in here:
            yield f"{query.place}: nothing has a label {label} for the legend"


def labels_in(text: str) -> Labels:
    """Every metric of a scrape as queries name it: histograms by their parts."""
    found: dict[str, frozenset[str]] = {"up": frozenset()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            before = found.get(sample.name, frozenset(sample.labels))
            assert before == frozenset(sample.labels), sample
            found[sample.name] = before
    return found


@asynccontextmanager
async def busy_llmux(folder: Path) -> AsyncIterator[LlmuxProcess]:
    """A process with some traffic behind it: switches both ways, and a wake that failed.

    Its models share memory, but there is room for one.
    """
    async with running_backends(folder, "a", "b", "broken") as rack:
        models: dict[str, Any] = {name: {"needs": {"gpu": "1GiB"}} for name in rack.backends}
        models["broken"]["wake"] = "exit 1"
        config = rack.write_config(models=models, resources={"gpu": "1GiB"})
        async with running_llmux(config) as llmux:
            await use(llmux, "broken", *ALL)
            async with llmux.client() as client:
                await client.post("/v1/chat/completions", json=chat("b", stream=True))
            yield llmux


ALL = ("nobody", "a", "b", "a", "a", "b")


async def use(llmux: LlmuxProcess, *models: str) -> None:
    async with llmux.client() as client:
        for model in models:
            await client.post("/v1/chat/completions", json=chat(model))


async def test_every_query_names_what_there_is(tmp_path: Path) -> None:
    async with busy_llmux(tmp_path) as llmux, llmux.client() as client:
        text = (await client.get("/metrics")).text
    # Or Prometheus would see no increase in the first failure.
    assert 'llmux_hook_failures_total{hook="wake",model="a"} 0.0' in text
    known = {**labels_in(text), "llmux_memory_promised_bytes": PROMISED}
    assert not [mistake for query in queries() for mistake in mistakes(query, known)]


PROMISED = frozenset({"group", "resource", "model"})
"""Labels of a series that is there during a switch only; `test_metrics` has it, too."""

KNOWN: Labels = {
    "llmux_requests_total": frozenset({"model", "status"}),
    "llmux_switch_total": frozenset({"from", "to"}),
    "up": frozenset(),
}


@pytest.mark.parametrize(
    ("expression", "legend", "mistake"),
    [
        ('sum by (model) (rate(llmux_requests_total{status="200"}[5m]))', "{{model}}", None),
        ('up{job="llmux"} == 0', "", None),
        ("rate(llmux_request_total{}[5m])", "", "no metric llmux_request_total"),
        ("rate(llmux_request_total[5m])", "", "no metric llmux_request_total"),
        ('llmux_switch_total{model="a"}', "", "llmux_switch_total has no label model"),
        ("sum by (modell) (llmux_requests_total{})", "", "nothing has a label modell"),
        ("llmux_switch_total{}", "{{model}}", "nothing has a label model for the legend"),
        ("vector(1)", "", "no metric at all"),
    ],
)
def test_a_wrong_name_is_noticed(expression: str, legend: str, mistake: str | None) -> None:
    found = set(mistakes(Query("here", expression, legend), KNOWN))
    assert found == ({f"here: {mistake}"} if mistake else set())


# ---- What else can be held against the files ----


def test_the_dashboard_is_whole() -> None:
    variables = {each["name"]: each["type"] for each in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "instance": "query", "model": "query"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) > 30
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert "$instance" in target["expr"], panel["title"]
    assert not overlapping(panel["gridPos"] for panel in DASHBOARD["panels"])


def overlapping(places: Iterable[Mapping[str, int]]) -> list[tuple[int, int]]:
    """The cells of the grid that two panels want."""
    taken: set[tuple[int, int]] = set()
    twice = []
    for at in places:
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        twice += sorted(taken & cells)
        taken |= cells
    return twice


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    page = (DOCS / "monitoring.md").read_text()
    for name, rule in ALERTS.items():
        assert rule["for"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert {"summary", "description", "runbook"} <= set(rule["annotations"]), name
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
        assert outcomes == {True, False}, name
        row = rf"\| `{name}` \| .+ \| {rule['labels']['severity']} \|"
        assert re.search(row, page), name
    assert {case["alertname"] for case in cases} == set(ALERTS)


def test_every_event_that_a_runbook_names_is_logged() -> None:
    source = "".join(path.read_text() for path in (ROOT / "llmux").rglob("*.py"))
    text = (MONITORING / "alerts.yml").read_text()
    events = [name for name in re.findall(r"`([a-z]+_[a-z_]+)`", text) if name != "last_error"]
    assert len(events) >= 4
    for event in events:
        assert f'"{event}"' in source, event


# ---- The real tools ----


def tool(name: str) -> str:
    """Where a program is; skips the test if it is not there."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt install prometheus)")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")]
)
def test_promtool_takes_the_alerts(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        [tool("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def scrape_config(target: str) -> str:
    """The scrape config of the page, for another target and at once."""
    (text,) = re.findall(
        r"```yaml\n(# prometheus.yml\n.*?)```", (DOCS / "monitoring.md").read_text(), re.DOTALL
    )
    text = text.replace("rule_files: [alerts.yml]", f"rule_files: [{MONITORING / 'alerts.yml'}]")
    text = text.replace("127.0.0.1:3000", target).replace("15s", "1s")
    return f"global: {{evaluation_interval: 1s}}\n{text}"


@asynccontextmanager
async def running_prometheus(folder: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes the target; yields a client of its API."""
    program = tool("prometheus")
    (folder / "prometheus.yml").write_text(scrape_config(target))
    process = await trio.lowlevel.open_process(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            "--web.listen-address=127.0.0.1:0",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    log = b""
    try:
        with trio.fail_after(30):
            while not (found := re.search(rb"address=(127\.0\.0\.1:[1-9]\d*)", log)):
                data = await process.stderr.receive_some()
                assert data, log.decode()
                log += data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, process.stderr)
            url = f"http://{found.group(1).decode()}"
            async with httpx.AsyncClient(
                base_url=url, timeout=10, trust_env=False, verify=False
            ) as client:
                with trio.fail_after(30):
                    while (await client.get("/-/ready")).status_code != 200:
                        await trio.sleep(0.05)
                yield client
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


MAY_BE_EMPTY = {
    "Error ratio by model",  # of those two, one has had no 429
    "Memory promised",  # in the midst of a switch only
}


@pytest.mark.slow
async def test_prometheus_answers_every_query(tmp_path: Path) -> None:
    async with busy_llmux(tmp_path) as llmux:
        target = llmux.url.removeprefix("http://")
        async with running_prometheus(tmp_path, target) as prometheus:

            async def ask(expression: str) -> list[Any]:
                answer = await prometheus.get("/api/v1/query", params={"query": expression})
                assert answer.status_code == 200, f"{expression}: {answer.text}"
                result: list[Any] = answer.json()["data"]["result"]
                return result

            with trio.fail_after(60):
                # Rates want counters to grow between two scrapes.
                while not await ask("count_over_time(up[1m]) > 1"):
                    await trio.sleep(0.2)
                await use(llmux, "broken")
                while not await ask("count_over_time(up[1m]) > 5"):
                    await use(llmux, *ALL)
                    await trio.sleep(0.2)
                # The last scrape may have met a switch.
                while not await ask('llmux_model_state{state="awake"} == 1'):
                    await trio.sleep(0.2)
            empty = {
                query.place for query in dashboard_queries() if not await ask(query.expression)
            }
            assert empty <= MAY_BE_EMPTY
            for query in dashboard_queries():
                values = [float(each["value"][1]) for each in await ask(query.expression)]
                unit = next(
                    panel["fieldConfig"]["defaults"]["unit"]
                    for panel in panels()
                    if panel["title"] == query.place
                )
                if unit == "percentunit" and query.place != "CPU":
                    assert all(0 <= v <= 1 or math.isnan(v) for v in values), (query, values)

            async def rules() -> dict[str, Any]:
                groups = (await prometheus.get("/api/v1/rules")).json()["data"]["groups"]
                return {rule["name"]: rule for group in groups for rule in group["rules"]}

            with trio.fail_after(10):  # `broken` has just failed
                while (await rules())["LlmuxWakeFails"]["state"] != "pending":
                    await trio.sleep(0.2)
            found = await rules()
            assert set(found) == set(ALERTS)
            assert {rule["health"] for rule in found.values()} == {"ok"}
            assert found["LlmuxDown"]["state"] == found["LlmuxCannotSwitch"]["state"] == "inactive"

"""The soak test in short: `make soak` is the long one, and prints what this one checks."""

from __future__ import annotations

import fcntl
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.soak.ask import Ask, Seen, judge, upstream_name
from bench.soak.backend.answers import MARKER, plain_body
from bench.soak.backend.server import overdrawn
from bench.soak.checks import json_mistakes, logged_faults, text_mistakes
from bench.soak.hostile import Foe
from bench.soak.hostile_clients import ACTS, WEIGHTS
from bench.soak.hostile_http import hidden, malformed
from bench.soak.lines import encode
from bench.soak.process import LANES, Llmux
from bench.soak.record import EXPLAINED, Record, Sample, is_cause
from bench.soak.reloads import MODEL_CHANGES, Reloads
from bench.soak.report import spread
from bench.soak.run import Run
from bench.soak.settings import (
    BODY_BYTES,
    CANCEL_S,
    CODES,
    CONNECTIONS,
    LIES,
    MAY_FOLLOW,
    NEEDS_CAUSE,
    QUEUED_BYTES,
    STOPPED_BODY_S,
    memory_bound_bytes,
)
from bench.soak.sharing import Share, lower_amounts, raise_needs, resources
from bench.soak.stage import Fault, Stage
from llmux.config import parse_config

ASK = Ask("1", "a", "a", body_bytes=0, size=0, chunks=0, gap_s=0, work_s=0)
SEEN = Seen("cut", 200, "a", request_id="r-1", ask=ASK, begun_at=100.0, ended_at=101.0)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that does not begin."""
    return run_of(tmp_path, shares=False)


def run_of(folder: Path, *, shares: bool) -> Run:
    ports = range(20_000, 20_008)
    stage = Stage(folder, models=6, groups=2, ports=ports, http2=True, shares=shares)
    llmux = Llmux(stage, "serve")
    return Run(stage, llmux, Record(llmux), seconds=1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("lane", [*LANES, "serve --shared"])
def test_twenty_seconds_of_faults_break_no_promise(lane: str) -> None:
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.3", "--lane", *lane.split()]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, check=False, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout
    assert "llmux killed" in done.stdout


# ---- What explains what ----


def test_every_fault_has_outcomes_that_may_follow() -> None:
    assert MAY_FOLLOW.keys() == LIES.keys()
    assert set().union(*MAY_FOLLOW.values()) <= {*CODES, "ok", "cut", "left"}
    assert {*EXPLAINED} <= {*CODES}
    assert {*CODES, "cut"} >= NEEDS_CAUSE


def test_only_a_fault_of_the_same_model_and_time_is_a_cause() -> None:
    assert is_cause(Fault(100.5, "backend killed", "a"), SEEN)
    assert not is_cause(Fault(100.5, "backend killed", "b"), SEEN)
    assert not is_cause(Fault(200.0, "backend killed", "a"), SEEN)
    assert not is_cause(Fault(100.5, "backend says 503", "a"), SEEN)


def test_a_failed_hook_is_explained_by_the_model_that_is_named() -> None:
    seen = Seen("hook_failed", detail="Hook failed for b: sleep hook exited with 1", ask=ASK)
    assert is_cause(Fault(0.0, "verify_asleep hook says no", "b"), seen)
    assert not is_cause(Fault(0.0, "wake hook fails", "a"), seen)


def test_only_the_request_that_was_cancelled_may_be_cut_for_it() -> None:
    assert is_cause(Fault(100.5, "cancelled r-1", "a"), SEEN)
    assert not is_cause(Fault(100.5, "cancelled r-10", "a"), SEEN)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Seen("hang"), "must not be"),
        (Seen("wrong", 200), "must not be"),
        (Seen("ok", 200, "a", request_id="r-1"), ""),
        (Seen("pinned", 503), "without pin"),
        (Seen("model_not_found", 404), "without absent"),
        (Seen("switch_timeout", 504), "too early"),
        (Seen("cut", 200), ""),
    ],
)
def test_what_must_not_be(run: Run, seen: Seen, why: str) -> None:
    seen.ask, seen.begun_at, seen.ended_at = ASK, 100.0, 101.0
    run.record.note(seen, since=100.0)
    assert [v.partition(":")[0] for v in run.record.violations] == ([why] if why else [])
    assert (seen in run.record.doubtful) == (seen.outcome == "cut")


def test_requests_are_lost_by_a_llmux_that_ends_only(run: Run) -> None:
    for second in (100.0, 200.0):
        seen = Seen("lost", ask=ASK, begun_at=second, ended_at=second + 1)
        run.record.note(seen, since=second)
    run.llmux.away.append((100.9, 105.0))  # it is known a little later
    assert run.record.judge_lost() == len(run.record.violations) == 1


def test_an_order_explains_errors_for_as_long_as_it_stands(run: Run) -> None:
    run.record.windows["pin"].append((90.0, 99.0))
    seen = Seen("pinned", 503, ask=ASK, begun_at=100.0, ended_at=101.0)
    run.record.note(seen, since=100.0)
    assert len(run.record.violations) == 1
    run.record.windows["pin"].append((99.5, 100.5))
    run.record.note(seen, since=100.0)
    assert len(run.record.violations) == 1


def test_a_client_is_not_held_once_its_request_is_cancelled(run: Run) -> None:
    run.record.cancelled["r-1"] = 101.0 - CANCEL_S - 0.1
    run.record.note(SEEN, since=100.0)
    assert "after it was cancelled" in run.record.violations[0]


def test_a_body_that_stops_falls_at_the_stall_limit(run: Run) -> None:
    ask = Ask("1", "a", "a", 100, 0, 0, 0, 0, stops_after=5, wants="bad_request")
    late = 100 + STOPPED_BODY_S + 0.1
    seen = Seen("bad_request", 408, ask=ask, begun_at=100.0, ended_at=late)
    run.record.note(seen, since=100.0)
    assert "a body that stops" in run.record.violations[0]


# ---- Shared memory ----


def test_what_running_servers_hold_is_summed_up(tmp_path: Path) -> None:
    for name, books in (("a", "g0-x=60"), ("b", "g0-x=40,g0-y=60"), ("ended", "g0-x=50")):
        (tmp_path / f"holds-{name}").write_text(books)
    with (tmp_path / "holds-a").open() as a, (tmp_path / "holds-b").open() as b:
        fcntl.flock(a, fcntl.LOCK_EX)
        fcntl.flock(b, fcntl.LOCK_EX)
        assert overdrawn(tmp_path) == []
        (tmp_path / "holds-b").write_text("g0-x=41,g0-y=60")
        assert overdrawn(tmp_path) == ["g0-x: {'holds-a': 60, 'holds-b': 41}"]


def test_reloads_never_let_llmux_count_less_than_servers_hold() -> None:
    rng = random.Random(1)
    for _ in range(100):
        model = Share.of("g0", "a", rng.randrange(6), is_guest=False).config()
        before = dict(model["needs"])
        raise_needs(rng, model)
        assert all(model["needs"][name] >= size for name, size in before.items())
        config = {"resources": resources(2)}
        lower_amounts(rng, config)
        assert all(config["resources"][name] <= size for name, size in resources(2).items())
        most = max(*model["needs"].values(), *model.get("needs_waking", {"": 0}).values())
        assert most <= min(size for name, size in config["resources"].items() if "ram" not in name)


# ---- Requests ----


def test_an_answer_is_right_with_the_name_that_the_backend_gets() -> None:
    ask = Ask("1", "a", "b", body_bytes=10, size=100, chunks=0, gap_s=0, work_s=0)
    ask.body = ask.make_body()
    as_sent, as_upstream = ask.expected()
    assert as_sent != as_upstream
    header = {"x-llmux-model": "a"}.get
    for body in ask.expected():
        assert judge(ask, 200, lambda name: header(name, ""), body).outcome == "ok"
    assert judge(ask, 200, lambda name: "", as_sent).outcome == "wrong"
    assert judge(ask, 200, lambda name: "a", plain_body("a", "2", 1, 100)).outcome == "wrong"
    assert upstream_name("a") != "a"


def test_a_request_is_framed_as_it_says() -> None:
    ask = Ask("1", "a", "a", 12_000, 0, 0, 0, 0, chunked=True, extra_crlf=True, closes=True)
    ask.body = ask.make_body()
    head, _, body = encode(ask).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Connection: close" in head
    assert body.endswith(b"0\r\n\r\n\r\n")


# ---- Reloads ----


@pytest.mark.parametrize("shares", [False, True])
def test_every_config_of_a_reload_can_be_used(tmp_path: Path, *, shares: bool) -> None:
    run = run_of(tmp_path, shares=shares)
    reloads, rng = Reloads(run), random.Random(1)
    seen: dict[str, set[bool]] = {}

    def note(section: str, keys: dict[str, Any]) -> None:
        for key in {*keys, *MODEL_CHANGES} if section == "model" else keys:
            seen.setdefault(f"{section} {key}", set()).add(key in keys)

    for _ in range(40):
        config = reloads.random_config(rng)
        parse_config(json.loads(json.dumps(config)), directory=tmp_path)
        note("site", dict.fromkeys(config))
        for model in config["models"].values():
            note("model", model)
        note("guest", {"there": run.stage.members[-1].name in config["models"]})
    assert {"site groups", "site api_keys", "site cors_origins", "site access_log"} <= seen.keys()
    usual = ("aliases", "hook_timeouts", "needs")
    assert seen["model needs"] == {shares}
    assert ("model needs_waking" in seen) == ("site resources" in seen) == shares
    assert all(seen[f"model {key}"] == {True, False} for key in MODEL_CHANGES if key not in usual)


# ---- Hostile clients ----


def test_each_smuggled_request_bears_the_mark_that_backends_look_for(run: Run) -> None:
    foe = Foe(run, random.Random(1), "127.0.0.1", None)  # type: ignore[arg-type]
    requests = [*hidden(foe), *malformed(foe)]
    assert len(requests) == len(set(requests)) > 40
    assert all(request.count(MARKER) == 1 for request in requests)


def test_acts_that_come_more_often_exist() -> None:
    assert WEIGHTS.keys() <= ACTS.keys()


# ---- The end ----


def test_the_memory_bound_is_made_of_what_the_config_allows() -> None:
    base = 60_000_000
    bound = memory_bound_bytes(base)
    assert base + QUEUED_BYTES + 2 * BODY_BYTES + CONNECTIONS * (128 << 10) < bound
    assert bound < 500_000_000


TEXT = """\
[2026-01-01 00:00:00 +0000] [7] [INFO] Running on http://127.0.0.1:1 (CTRL + C to quit)
2026-01-01T00:00:00.000000Z [error    ] model_down model='maker/a b' in_flight=1
2026-01-01T00:00:00.000000Z [info     ] drain_cut model=c in_flight=3
"""


def test_a_log_for_people_may_hold_known_errors_but_no_traceback() -> None:
    assert list(text_mistakes(TEXT)) == []
    broken = (
        TEXT + "2026-01-01T00:00:00.000000Z [info     ] x\nTraceback (most recent call last):\n"
    )
    assert len(list(text_mistakes(broken))) == 1
    unknown = TEXT + "2026-01-01T00:00:00.000000Z [error    ] own_path_failed path=/x\n"
    assert len(list(text_mistakes(unknown))) == 1


def test_a_log_in_json_may_hold_known_errors_but_no_traceback() -> None:
    assert list(json_mistakes('{"event": "model_down", "level": "error"}\n')) == []
    for line in (
        '{"event": "x", "level": "error"}', '{"event": "x", "exception": "Traceback"}', "Traceback",
    ):  # fmt: skip
        assert len(list(json_mistakes(line))) == 1


def test_what_llmux_cuts_itself_is_found_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(TEXT)
    assert [(f.kind, f.model) for f in logged_faults(log)] == [
        ("model_down", "maker/a b"),
        ("drain_cut", "c"),
    ]
    entry = {"event": "drain_cut", "model": "c", "timestamp": "2026-01-01T00:00:00.000000Z"}
    log.write_text(json.dumps(entry) + "\n")
    assert [(fault.kind, fault.model) for fault in logged_faults(log)] == [("drain_cut", "c")]


def test_a_table_over_time_has_the_first_and_the_last_sample() -> None:
    samples = [Sample(float(second), 1, 0, 0, 0, 0) for second in range(100)]
    shown = spread(samples, 10)
    assert (len(shown), shown[0].at_s, shown[-1].at_s) == (10, 0.0, 99.0)
    assert math.isclose(shown[5].at_s, 55.0)

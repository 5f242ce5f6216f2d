"""What `llmux simulate` and `llmux replay` say of what they cannot use: one line, no traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llmux.cli.main import main
from llmux.policy import POLICIES
from llmux.simulate.arrivals import Arrival, read_trace

REQUEST = '{"event":"request","model":"a","arrived":1,"admitted":1,"ended":2,"status":200}\n'


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--policy", "fifo"])


def simulated(*arguments: str) -> Result:
    return run("simulate", *arguments)


def says_in_one_line(done: Result, exit_code: int, message: str) -> None:
    assert done.exit_code == exit_code, done.output
    assert isinstance(done.exception, SystemExit)
    assert message in done.output.splitlines()[-1]
    assert done.output.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--slots", ["0", "-1", "1000001"]),
        ("--models", ["0", "1000001"]),
        ("--agents", ["0", "-3"]),
        ("--requests", ["0"]),
        ("--max-in-flight", ["0"]),
        ("--load", ["0", "-1", "nan", "inf"]),
        ("--service-secs", ["0", "nan", "inf", "1e300"]),
        ("--switch-secs", ["-5", "nan", "inf"]),
        ("--max-wait-secs", ["-1", "nan", "inf"]),
        ("--min-active-secs", ["-1", "nan", "inf"]),
        ("--think-secs", ["-1", "nan"]),
        ("--hours", ["0", "nan", "inf"]),
        ("--failing-wakes", ["-0.1", "1", "nan"]),
    ],
)
def test_numbers_out_of_range_are_mistakes(option: str, values: Sequence[str]) -> None:
    for value in values:
        done = simulated("--pattern", "closed", option, value)
        says_in_one_line(done, 2, f"Invalid value for '{option}': ")


@pytest.mark.parametrize("names", ["", " , "])
def test_no_policy_at_all_is_a_mistake(names: str) -> None:
    done = CliRunner().invoke(main, ["simulate", "--policy", names])
    says_in_one_line(done, 2, "'--policy': names none (of: ")


TRACES = [
    ("", ": there is no request in it"),
    ("when,model\n1,a\n", ":1: there is no column arrival_s"),
    ("arrival_s,service_s\n1,2\n", ":1: there is no column model"),
    ("arrival_s,model\n", ": there is no request in it"),
    ("arrival_s,model\n1,a\n2\n", ":3: model is empty"),
    ("arrival_s,model\n1,a\n\n,b\n", ":4: arrival_s is ''"),
    ("arrival_s,model\n1,a\n-2,a\n", ":3: arrival_s is '-2'"),
    ("arrival_s,model\n1,a\nnan,a\n", ":3: arrival_s is 'nan'"),
    ("arrival_s,model\ninf,a\n1,a\n", ":2: arrival_s is 'inf'"),
    ("arrival_s,model\n1e12,a\n", ":2: arrival_s is '1e12': not a number of seconds, 0 to 1"),
    ("arrival_s,model,service_s\n1,a,nan\n", ":2: service_s is 'nan'"),
    ("arrival_s,model,service_s\n1,a,-1\n", ":2: service_s is '-1'"),
    ("arrival_s,model\n1,a,2\n", ":2: has more cells than the first line"),
    ('arrival_s,model\n1,"a\n2,b\n', ":3: unexpected end of data"),
    (f"arrival_s,model\n1,{'a' * 200_000}\n", ":2: field larger than field limit"),
]


@pytest.mark.parametrize(("content", "message"), TRACES)
def test_what_is_no_trace_is_a_mistake_in_one_line(
    content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    says_in_one_line(simulated("--trace", str(path)), 1, f"{path}{message}")


def test_a_trace_begins_at_zero_whatever_its_clock(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbfarrival_s,model\r\n1700000009,caf\xe9\r\n1700000000,b\r\n")
    assert read_trace(path, work_s=2.0) == [Arrival(0, "b", 2), Arrival(9, "caf\ufffd", 2)]
    assert "100 %" not in simulated("--trace", str(path)).output


def test_a_directory_is_no_trace(tmp_path: Path) -> None:
    says_in_one_line(simulated("--trace", str(tmp_path)), 2, "is a directory")


def test_options_that_a_trace_makes_useless_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,model\n1,a\n2,b\n")
    done = simulated("--trace", str(path), "--requests", "5", "--load", "0.5", "--models", "4")
    says_in_one_line(done, 2, "leave out --models, --load, --requests")
    assert simulated("--trace", str(path), "--service-secs", "5").exit_code == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/x.png", "there is no directory"), ("x.foo", "'.foo' is none of"), ("", "is a dir")],
)
def test_a_plot_that_cannot_be_written_is_a_mistake_before_anything_is_run(
    name: str, message: str, tmp_path: Path
) -> None:
    if name == "x.foo":
        pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plot]'")
    journal = tmp_path / "journal.jsonl"
    journal.write_text(REQUEST)
    for command in (["simulate"], ["replay", str(journal)]):
        done = run(*command, "--plot", str(tmp_path / name))
        says_in_one_line(done, 2, message)
        assert "mean wait" not in done.output


# ---- What can be simulated ----

FEW = ("--requests", "200")


def waits(done: Result) -> float:
    """The mean wait that was printed."""
    assert done.exit_code == 0, done.output
    return float(done.output.splitlines()[1].split()[1])


def test_agents_may_think_for_no_time_at_all() -> None:
    assert waits(simulated("--pattern", "closed", "--think-secs", "0", "--hours", "0.2")) > 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_takes_bounds_of_nothing_and_of_years(policy: str) -> None:
    for bounds in (("0", "0"), ("1e10", "0"), ("0", "60"), ("300", "1e10")):
        options = ["--max-wait-secs", bounds[0], "--min-active-secs", bounds[1], *FEW]
        done = CliRunner().invoke(main, ["simulate", *options, "--policy", policy])
        assert done.exit_code == 0, done.output


def test_models_may_have_limits_and_keep_their_requests_and_stay_awake() -> None:
    usual = waits(simulated(*FEW))
    assert waits(simulated(*FEW, "--max-in-flight", "1")) > usual
    assert waits(simulated(*FEW, "--preserves-in-flight")) != usual
    assert waits(simulated(*FEW, "--min-active-secs", "100")) != usual


def test_wakes_may_fail_by_seed() -> None:
    failing = [*FEW, "--failing-wakes", "0.5"]
    done = simulated(*failing)
    assert "fifo: failed wakes refused " in done.output
    assert simulated(*failing).output == done.output
    assert simulated(*failing, "--seed", "1").output != done.output
    says_in_one_line(simulated("--pattern", "closed", *failing), 2, "does not go with")


def test_switches_may_cost_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text("source,target,seconds\n,0,1\n0,1,0\n1,0,0\n")
    two = (*FEW, "--models", "2")
    assert waits(simulated(*two, "--switch-costs", str(path))) < waits(simulated(*two))
    for content, message in (
        ("source,target,seconds\n0,x,1\n", ":2: 'x' is none of the models: 0, 1"),
        ("source,target,seconds\n0,1,1\nx,1,1\n", ":3: 'x' is none of the models: 0, 1"),
        ("source,target,seconds\n0,1,nan\n", ":2: seconds is 'nan'"),
        ("source,target\n0,1\n", ":1: there is no column seconds"),
    ):
        path.write_text(content)
        says_in_one_line(simulated(*two, "--switch-costs", str(path)), 1, f"{path}{message}")


# ---- Models that share memory ----

NEEDS = ("--needs", "60,40,20,4", *FEW)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_several_models_are_awake_as_far_as_they_fit(policy: str) -> None:
    def waited_s(*options: str) -> float:
        return waits(CliRunner().invoke(main, ["simulate", *options, "--policy", policy]))

    alone = waited_s(*FEW, "--models", "4")
    some = waited_s(*NEEDS)
    assert some < alone
    assert waited_s(*NEEDS, "--memory", "124") < some


def test_what_limits_models_that_share_memory() -> None:
    usual = waits(simulated(*NEEDS))
    assert waits(simulated(*NEEDS, "--contention")) > usual
    assert waits(simulated(*NEEDS, "--busy", "1")) > usual
    assert waits(simulated(*NEEDS, "--overlapping-hooks")) < usual
    assert waits(simulated(*NEEDS, "--sleep-secs", "0")) != usual
    assert waits(simulated(*NEEDS, "--max-in-flight", "1")) > usual
    assert "fifo: failed wakes refused " in simulated(*NEEDS, "--failing-wakes", "0.5").output
    closed = ("--pattern", "closed", "--hours", "0.2")
    assert waits(simulated(*NEEDS, *closed)) > 0


def test_models_of_a_trace_have_needs_by_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,model\n0,big\n1,small\n")
    trace = ("--trace", str(path), "--switch-secs", "8", "--overlapping-hooks", "--service-secs")
    # Both fit, and each waits for its own wake.
    assert waits(simulated(*trace, "1", "--needs", "60,20")) == 6
    done = simulated(*trace, "1", "--needs", "60,20,5")
    says_in_one_line(done, 1, "--needs: 3 needs for 2 models")


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--needs", "60,x"], 2, "'60,x' is no list of numbers like 60,40,20,4"),
        (["--needs", ""], 2, "'' is no list of numbers"),
        (["--needs", "60,-1"], 2, "'60,-1' is no list of numbers"),
        (["--needs", "60,nan"], 2, "'60,nan' is no list of numbers"),
        (["--needs", "60,81"], 1, "--needs: number 2 needs more than there is"),
        (["--needs", "6,8", "--models", "3"], 2, "leave out --models"),
        (["--needs", "6,8", "--sharing", "--contention"], 2, "leave out --sharing"),
        (["--needs", "6,8", "--sleep-secs", "11"], 2, "cannot be more"),
        (["--busy", "2", "--memory", "9"], 2, "leave out --memory, --busy"),
        (["--needs", "6,8", "--memory", "0"], 2, "Invalid value for '--memory'"),
        (["--needs", "6,8", "--busy", "0"], 2, "Invalid value for '--busy'"),
    ],
)
def test_options_of_shared_memory_that_make_no_sense(
    options: list[str], exit_code: int, message: str
) -> None:
    says_in_one_line(simulated(*options), exit_code, message)


# ---- Models of a config ----

HOOKS = 'wake: "true", sleep: "true", alive: "true"'
CONFIG = f"""
resources: {{gpu: 80GiB}}
models:
  chat: {{port: 8001, {HOOKS}, needs: {{gpu: 60GiB}}, max_in_flight: 4}}
  code: {{port: 8002, {HOOKS}, needs: {{gpu: 40GiB}}}}
  embed: {{port: 8003, {HOOKS}, needs: {{gpu: 4GiB}}, keep: true}}
  other: {{port: 8004, {HOOKS}, group: alone}}
  more: {{port: 8005, {HOOKS}, group: alone}}
"""


def test_the_models_of_a_config_are_simulated(tmp_path: Path) -> None:
    path = tmp_path / "llmux.yaml"
    path.write_text(CONFIG)
    given = (*FEW, "-c", str(path))
    together = waits(simulated(*given))
    path.write_text(CONFIG.replace("80GiB", "104GiB"))
    assert waits(simulated(*given)) < together
    assert waits(simulated(*given, "--group", "alone")) == waits(simulated(*FEW, "--models", "2"))
    done = simulated(*given, "--group", "x")
    says_in_one_line(done, 1, f"{path} has no group 'x' (of: default, alone)")
    says_in_one_line(simulated(*given, "--needs", "6,8"), 2, "leave out --needs")
    says_in_one_line(simulated(*FEW, "--group", "alone"), 2, "name one with -c")
    closed = ("--pattern", "closed", "--hours", "0.2")
    assert waits(simulated(*given, *closed)) > 0
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,model\n0,chat\n1,x\n")
    done = simulated("-c", str(path), "--trace", str(trace))
    says_in_one_line(done, 1, "--trace: 'x' is none of: chat, code, embed")
    trace.write_text("arrival_s,model\n0,chat\n1,embed\n")
    assert waits(simulated("-c", str(path), "--trace", str(trace))) > 0
    path.write_text("models: []")
    assert simulated(*given).exit_code == 2

# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf bench``: its statistics, its own workloads, and its command line; EEVDF alone needs no sched_ext."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_values import PERCENTILES
from ghostbpf.experiments.bench import report, rounds, workloads
from ghostbpf.experiments.bench.plan import AGAIN, Plan, candidates
from ghostbpf.experiments.bench.summary import read_baseline, summarize
from ghostbpf.experiments.candidates import EEVDF
from ghostbpf.experiments.naming import name_and_options, named_command
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.launch import signals_blocked, termination_signals
from ghostbpf.tools.cli import ghostbpf as command

no_sched_ext = pytest.mark.skipif(Path("/sys/kernel/sched_ext").exists(), reason="this kernel has sched_ext")


def ghostbpf(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "ghostbpf.tools.cli", "bench", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def plan(*texts: str, rounds: int = 3, seed: int = 1, policies: tuple[str, ...] = ()) -> Plan:
    cpus = CpuSet(os.sched_getaffinity(0))
    return Plan([workloads.parse(text) for text in texts], candidates(policies, ()), rounds, seed, cpus)


class Log(rounds.Observer):
    """Keeps the order of the runs, and calls ``at`` when each starts."""

    def __init__(self, at: Any = lambda runs: None) -> None:
        self.runs: list[tuple[int, str, str]] = []
        self.failures: list[rounds.Failure] = []
        self._at = at

    def starts(self, number: int, workload: Any, candidate: Any, left_s: float | None) -> None:
        self.runs.append((number, workload.text, candidate.name))
        self._at(len(self.runs))

    def failed(self, failure: rounds.Failure) -> None:
        self.failures.append(failure)


def measure(of: Plan, log: rounds.Observer | None = None) -> rounds.Results:
    with signals_blocked({signal.SIGCHLD, *termination_signals()}):
        return rounds.measure(of, log or Log())


# ---- rounds ----


@pytest.fixture
def busy() -> Iterator[None]:
    """A process of another session keeps a CPU busy."""
    child = subprocess.Popen(["sh", "-c", "while :; do :; done"], start_new_session=True)
    yield
    child.kill()
    child.wait()


@pytest.mark.usefixtures("busy")
def test_run_beside_a_busy_process_is_marked() -> None:
    of = plan("quiet=sleep 1", rounds=1)
    results = measure(of)
    (one,) = results.measured["quiet=sleep 1", EEVDF].values()
    assert one.others > 0.3
    assert one.is_noisy
    assert summarize(of, results)[0].noisy == 1


def test_wakeup_counts_what_its_rate_says_and_orders_its_percentiles() -> None:
    of = plan("wakeup:m=2,t=2,r=0.5,n=1,F=16", rounds=1)
    results = measure(of)
    assert results.exit_status == 0, results.failures
    (one,) = results.measured[of.workloads[0].text, EEVDF].values()
    values = {metric.name: metric for metric in one.metrics}
    assert [metric.better for metric in one.metrics] == ["lower"] * 8 + ["higher"]
    for what in ("wakeup", "request"):
        latencies = [values[f"{what} {name}"].value for name in PERCENTILES]
        assert latencies == sorted(latencies)
        assert latencies[0] > 0
    # A request sleeps 100 us, so four workers cannot do more than 40,000 requests a second.
    assert values["request p50"].value >= 100
    assert 10 < values["requests"].value < 40_000


def test_each_round_has_each_candidate_once_in_an_order_that_the_seed_decides() -> None:
    def orders(seed: int) -> list[list[str]]:
        of = plan("a=true", rounds=30, seed=seed, policies=("biff", "rr"))
        return [[candidate.name for candidate in order] for _, _, order in of.order()]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert all(sorted(order) == sorted([EEVDF, AGAIN, "biff", "rr"]) for order in orders(1))
    # Each candidate is first in some round: none always runs after the same other one.
    assert {order[0] for order in orders(1)} == {EEVDF, AGAIN, "biff", "rr"}


def test_rounds_are_interleaved_after_a_warm_up_of_each_workload() -> None:
    log = Log()
    results = measure(plan("a=true", "b=true", rounds=2), log)
    assert log.runs[:2] == [(0, "a=true", EEVDF), (0, "b=true", EEVDF)]
    assert [(number, text) for number, text, _ in log.runs[2:]] == [
        (number, text) for number in (1, 2) for text in ("a=true", "b=true") for _ in range(2)
    ]
    assert all([*runs] == [1, 2] for runs in results.measured.values())
    assert results.exit_status == 0


def test_workload_that_fails_is_left_out_and_the_rest_is_measured() -> None:
    of = plan("bad=sh -c 'echo that is why; exit 3'", "a=true", rounds=2)
    log = Log()
    results = measure(of, log)
    assert results.exit_status == 1
    (failure,) = log.failures
    assert (failure.kind, failure.candidate, failure.round) == ("workload", EEVDF, 0)
    assert failure.reason.endswith("ended with status 3: that is why")
    assert {summary.workload for summary in summarize(of, results)} == {"a=true"}
    assert "has no figures: bad=" in report.tables(of, summarize(of, results), results, None)


def test_signal_ends_the_rounds_with_what_was_measured_and_leaves_no_process(tmp_path: Path) -> None:
    """In the third run of the first workload's rounds; the run that it interrupts does not count."""
    script = f"slow=sh -c 'echo $$ >>{tmp_path}/pids; sleep 0.1'"
    of = plan(script, rounds=5)
    log = Log(lambda runs: runs == 4 and os.kill(os.getpid(), signal.SIGTERM))
    results = measure(of, log)
    assert results.exit_status == 128 + signal.SIGTERM
    assert sum(map(len, results.measured.values())) == 2
    table = report.tables(of, summarize(of, results), results, None)
    assert "interrupted: 1 of 5 rounds are complete" in table
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_own_command_runs_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert measure(plan("mine=touch here", rounds=1)).exit_status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_background_processes_of_a_workload_end_with_it(tmp_path: Path) -> None:
    results = measure(plan(f"leaves=sh -c 'sleep 1000 & echo $! >>{tmp_path}/pids'", rounds=1))
    assert results.exit_status == 0
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 3
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# ---- summaries ----


def results_of(of: Plan, times: dict[str, list[float]]) -> rounds.Results:
    """Results with these times of the only workload, by candidate."""
    results = rounds.Results()
    for name, values in times.items():
        for number, value in enumerate(values, 1):
            metrics = [workloads.Metric("time", "s", value)]
            results.measured[of.workloads[0].text, name][number] = rounds.Measurement(metrics, value, 0.0)
    return results


def test_ratios_are_those_of_each_round_so_that_drift_cancels() -> None:
    of = plan("a=true", rounds=5, policies=("biff",))
    eevdf = [1.0, 2.0, 4.0, 8.0, 16.0]
    results = results_of(of, {EEVDF: eevdf, AGAIN: [v * 1.01 for v in eevdf], "biff": [v * 0.5 for v in eevdf]})
    base, again, biff = summarize(of, results)
    assert (base.median, base.min, base.max, base.ratio) == (4.0, 1.0, 16.0, None)
    assert again.ratio == pytest.approx(1.01)
    assert (biff.ratio, biff.low, biff.high, biff.verdict) == (0.5, 0.5, 0.5, "better")
    assert biff.noise == pytest.approx(0.01)


def test_a_machine_that_differs_from_itself_as_much_as_the_candidate_is_too_noisy_to_tell() -> None:
    of = plan("a=true", rounds=5, policies=("biff",))
    results = results_of(of, {EEVDF: [1.0] * 5, AGAIN: [1.3, 0.9, 1.3, 1.2, 1.3], "biff": [1.2] * 5})
    assert summarize(of, results)[-1].verdict == "within noise"
    assert "biff within noise, EEVDF differs from itself by up to 30.0%: too noisy to tell" in report.tables(
        of, summarize(of, results), results, None
    )


def test_candidate_that_was_ejected_has_no_summary_at_all() -> None:
    of = plan("a=true", rounds=5, policies=("biff", "rr"))
    results = results_of(of, {EEVDF: [1.0] * 5, AGAIN: [1.0] * 5, "biff": [0.5] * 4, "rr": [2.0] * 5})
    results.failures.append(rounds.Failure(rounds.LOST, "biff", "a=true", 5, "sysrq"))
    assert [one.candidate for one in summarize(of, results)] == [EEVDF, AGAIN, "rr"]
    assert results.exit_status == 9


def test_tables_have_at_most_80_columns() -> None:
    of = plan("a=true", rounds=5, policies=("fifo_centralized:fastpath=off,slice=10ms",))
    name = of.candidates[-1].name
    results = results_of(of, {EEVDF: [12345.6] * 5, AGAIN: [23456.7] * 5, name: [99999.9, 1, 2, 0.5, 88888.8]})
    text = report.tables(of, summarize(of, results), results, None)
    assert max(map(len, text.splitlines()[:6])) <= 80


def test_baseline_is_what_json_printed(tmp_path: Path) -> None:
    of = plan("a=true", rounds=3, policies=("biff",))
    before = summarize(of, results_of(of, {EEVDF: [1.0] * 3, AGAIN: [1.0] * 3}))
    file = tmp_path / "before.jsonl"
    lines = [report.header(of, "1"), *(one.as_row(None) for one in before)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    results = results_of(of, {EEVDF: [1.5] * 3, AGAIN: [1.0] * 3, "biff": [2.0] * 3})
    now = summarize(of, results)
    baseline = read_baseline(file)
    assert [one.as_row(baseline)["change"] for one in now] == [pytest.approx(50), 0, None]
    table = report.tables(of, now, results, baseline)
    assert "+50.0 %" in table
    assert "(new)" in table


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "has no summary"), ("{}\n", ":1: not a line"), ("x\n", ":1: not a line"), ('{"type": "summary"}', ":1: not")],
)
def test_bad_baseline_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(GhostError, match=reason):
        read_baseline(tmp_path / "file")
    with pytest.raises(GhostError, match="cannot read"):
        read_baseline(tmp_path / "none")


# ---- the command line ----


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("biff", "biff", {}),
        ("biff:slice=5ms", "biff", {"slice": "5ms"}),
        ("sol:a=1,3,b=x=y", "sol", {"a": "1,3", "b": "x=y"}),
        ("./mine.py:Mine:slice=2ms", "./mine.py:Mine", {"slice": "2ms"}),
        ("./mine.py:Mine", "./mine.py:Mine", {}),
        ("a:at=12:30", "a", {"at": "12:30"}),
    ],
)
def test_name_and_options_are_read(text: str, name: str, options: dict[str, str]) -> None:
    assert name_and_options(text) == (name, options)


@pytest.mark.parametrize("text", ["", "biff:=1", "biff:a=1,a=2", "a=b"])
def test_bad_name_and_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not NAME|the same option|without a name"):
        name_and_options(text)


def test_command_is_split_as_in_a_shell() -> None:
    assert named_command("fifo=scx_simple -f 'a b'") == ("fifo", ["scx_simple", "-f", "a b"])
    for text in ("fifo", "=x", "x=", "x='"):
        with pytest.raises(ValueError, match=r"NAME=COMMAND|quotation"):
            named_command(text)


def test_dry_run_tells_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    touch = f"mine=touch {tmp_path}/ran"
    compared = ("--policy", "rr:slice=5ms", "--with", "x=scx_x -f")
    done = ghostbpf("wakeup:r=10", touch, *compared, "--rounds", 2, "--seed", 3, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 rounds, seed 3" in done.stdout
    assert "candidate  rr:slice=5ms: an enclave under rr" in done.stdout
    assert "candidate  x: scx_x -f" in done.stdout
    assert f"workload   {touch}: touch {tmp_path}/ran" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("round ")]) == 4
    assert done.stdout.endswith("16 runs, how long they take depends on your command\n")
    assert not (tmp_path / "ran").exists()
    again = ghostbpf("wakeup:r=10", "--dry-run", "--seed", 3)
    assert "21 runs, about " in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], 'there is no workload "nonsense"'),
        (["pipe:loop=1"], "pipe has no option loop: it has loops"),
        (["pipe:loops=0"], 'pipe: loops is a number above 0, and not "0"'),
        (["pipe:loops=1.5"], "loops is a number above 0"),
        (["pipe", "pipe"], '"pipe" is given twice'),
        (["x='"], "no closing quotation"),
        (["--policy", "bif"], 'there is no policy "bif"'),
        (["--policy", "biff:slice=x"], 'bad duration "x"'),
        (["--policy", "biff", "--policy", "biff"], 'there are two candidates "biff"'),
        (["--with", "EEVDF=x"], 'there are two candidates "EEVDF"'),
        (["--with", "x"], "is not NAME=COMMAND"),
        (["--cpus", ""], "at least one CPU"),
        (["--cpus", "0-x"], "--cpus"),
        (["--rounds", "0"], "--rounds"),
    ],
    ids=str,
)
def test_bad_command_line_is_refused(arguments: list[str], message: str) -> None:
    done = ghostbpf(*arguments, "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, package in (
        ("pipe", "linux-perf"),
        ("stress-yield", "stress-ng"),
        ("hackbench", "rt-tests"),
        ("compile", "gcc"),
    ):
        with pytest.raises(GhostError, match="is missing") as missing:
            workloads.parse(name).command(2)
        assert missing.value.hint == f"apt install {package}"


@no_sched_ext
def test_kernel_without_sched_ext_is_named_with_the_command_that_works() -> None:
    done = ghostbpf("mine=true", "--policy", "rr", "--rounds", 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no sched_ext" in done.stderr
    assert "try: ghostbpf vm -- ghostbpf bench mine=true --policy rr --rounds 1" in done.stderr


def test_help_lists_each_workload() -> None:
    shown = ghostbpf("--help").stdout
    assert all(f"    {name} " in shown for name in workloads.KINDS)
    assert "bench" in command.list_commands(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plot_has_each_candidate_with_a_ratio(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from ghostbpf.experiments.bench import plot

    of = plan("cost=$a$b", "pipe", rounds=3, policies=("biff",))
    results = results_of(of, {EEVDF: [1.0, 1.1, 1.2], AGAIN: [1.0, 1.1, 1.3], "biff": [0.5, 0.6, 30.0]})
    file = tmp_path / f"ratios.{suffix}"
    plot.draw(file, summarize(of, results))
    text = file.read_bytes()
    assert text.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"<!-- time: biff (less is better) -->" in text
        assert b"<!-- cost=$a$b -->" in text


def test_plot_of_another_kind_is_refused_before_anything_runs() -> None:
    done = ghostbpf("mine=true", "--plot", "ratios.pdf")
    assert (done.returncode, done.stdout) == (2, "")
    assert "neither .svg nor .png" in done.stderr

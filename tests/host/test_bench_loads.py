# SPDX-License-Identifier: Apache-2.0
"""The workloads of ``ghostbpf bench`` that are our own: their histogram, and that they measure what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bench_values import PERCENTILES, nearest_rank
from ghostbpf.experiments.bench import programs, workloads
from ghostbpf.loaders.errors import GhostError
from hypothesis import given, settings
from hypothesis import strategies as st

# ---- the histogram of our own loads ----


def histogram(values: list[int]) -> dict[str, float]:
    """What the loads make of these values."""
    text = "\n".join(map(str, values))
    done = subprocess.run([programs.loads(), "percentiles"], input=text, capture_output=True, text=True, check=True)
    shown: dict[str, float] = json.loads(done.stdout)["values"]
    return shown


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1 << 42).map(lambda value: value >> value % 40), min_size=1, max_size=300))
def test_histogram_errs_by_less_than_a_thousandth(values: list[int]) -> None:
    shown = histogram(values)
    assert (shown["count"], shown["max"]) == (len(values), max(values))
    for name, per_mille in PERCENTILES.items():
        assert shown[name] == pytest.approx(nearest_rank(values, per_mille), rel=0.001)
        assert shown[name] <= shown["max"]


def test_histogram_of_two_modes_has_the_known_answer() -> None:
    """99.5 % of 10 us and 0.5 % of 10 ms: p99 is fast and p99.9 slow, where digests interpolate between them."""
    shown = histogram([10_000] * 995 + [10_000_000] * 5)
    fast, slow = pytest.approx(10_000, rel=0.001), pytest.approx(10_000_000, rel=0.001)
    assert [shown[name] for name in PERCENTILES] == [fast, fast, fast, slow]


def test_histogram_is_exact_at_ranks_that_floating_point_misses() -> None:
    assert histogram([*range(1, 1001)])["p99.9"] == 999
    assert histogram([*range(1, 101)])["p90"] == 90


# ---- our own workloads, for real ----


def test_request_latency_grows_with_the_work_and_not_with_the_time_that_is_measured() -> None:
    def request_p50(options: str) -> float:
        words = [programs.loads(), "wakeup", "-t", "1", "-w", "0", *options.split()]
        report = json.loads(subprocess.check_output(words))
        return float(report["request"]["p50"])

    assert request_p50("-r 1 -s 20000 -n 0") >= 20e6
    assert request_p50("-r 0.3 -s 100 -n 0") < 20e6


def test_threads_wake_together_and_each_burst_is_counted() -> None:
    words = [programs.loads(), "threads", "-t", "50", "-b", "30", "-l", "1000"]
    burst = json.loads(subprocess.check_output(words))["burst"]
    assert burst["count"] == 30
    assert 0 < burst["p50"] <= burst["p99"] <= burst["max"]


def test_compile_runs_the_compiler_on_each_file(tmp_path: Path) -> None:
    workload = workloads.parse("compile:files=2,jobs=1")
    workload.prepare(tmp_path)
    subprocess.run(workload.command(2), cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.glob("*.o")) == ["unit0.o", "unit1.o"]


@pytest.mark.parametrize(
    "arguments", [["wakeup", "-t", "0"], ["wakeup", "-r", "x"], ["threads", "-t", "1e9"], ["x"], []]
)
def test_loads_refuse_a_bad_command_line(arguments: list[str]) -> None:
    done = subprocess.run([programs.loads(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert not done.stdout
    assert done.stderr


def test_loads_are_compiled_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "native" / "loads.c"
    source.parent.mkdir()
    for path in programs.SOURCE.parent.glob("*.[ch]"):
        shutil.copy(path, source.parent)
    monkeypatch.setattr(programs, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = programs.loads()
    assert path.parent == tmp_path / "cache" / "ghostbpf" / "programs"
    made = path.stat().st_mtime_ns
    assert programs.loads() == path
    assert path.stat().st_mtime_ns == made
    path.chmod(0o777)  # anyone could have written it
    assert programs.loads().stat().st_mtime_ns > made
    source.write_text("int main(void) { return 7; }\n")
    assert subprocess.run([programs.loads()], check=False).returncode == 7
    source.write_text("nonsense\n")
    with pytest.raises(GhostError, match="fails: "):
        programs.loads()


#: Of the file that stress-ng 0.19.02 writes.
METRICS = """\
metrics:
    - stressor: switch
      bogo-ops: 2000
      bogo-ops-per-second-usr-sys-time: 76675.356540
      bogo-ops-per-second-real-time: 4283.072826
      wall-clock-time: 0.466954
"""


def test_rate_of_stress_ng_is_that_of_real_time(tmp_path: Path) -> None:
    workload = workloads.parse("stress-switch")
    (tmp_path / "metrics.yaml").write_text(METRICS)
    (rate,) = workload.metrics(workloads.Result("", 1, tmp_path))
    assert (rate.value, rate.unit, rate.better) == (4283.072826, "ops/s", "higher")
    (tmp_path / "metrics.yaml").unlink()
    with pytest.raises(GhostError, match="printed no rate: stress-ng: error"):
        workload.metrics(workloads.Result("stress-ng: error", 1, tmp_path))

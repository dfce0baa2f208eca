# SPDX-License-Identifier: Apache-2.0
"""The experiments' programs in C: their database, arrivals, histogram, service times, and shares of CPU time."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from ghostbpf.experiments.rocksdb.programs import ANTAGONIST, ROCKSDB
from ghostbpf.hints import Hints

ENTRIES = 3000
PERCENTILES = {"p50": 500, "p99": 990, "p99.5": 995, "p99.9": 999}


def rocksdb(*arguments: object, text: str = "") -> str:
    words = [ROCKSDB.path(), *map(str, arguments)]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with ENTRIES."""
    made = tmp_path_factory.mktemp("rocksdb") / "db"
    rocksdb("create", made, ENTRIES)
    return made


# ---- database: ghOSt's database_test ----


@pytest.mark.parametrize(
    ("entries", "is_there"),
    [
        pytest.param(f"{ENTRIES}", False, id="GetNoEntry"),
        pytest.param("0", True, id="Get"),
        pytest.param(f"{ENTRIES - 1}", True, id="GetLast"),
        pytest.param(f"{ENTRIES}+2", False, id="RangeNoStartEntry"),
        pytest.param(f"{ENTRIES - 2}+4", False, id="RangeNoMiddleEntry"),
        pytest.param(f"{ENTRIES - 2}+3", False, id="RangeNoEndEntry"),
        pytest.param("7+1", True, id="RangeSizeOne"),
        pytest.param(f"0+{ENTRIES}", True, id="Range"),
    ],
)
def test_database_has_its_entries_and_no_others(path: Path, entries: str, is_there: bool) -> None:
    assert rocksdb("check", path, entries) == f"{is_there:d}\n"


# ---- histogram ----


def values_of(values: list[int], copies: int = 1) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(rocksdb("percentiles", copies, text="\n".join(map(str, values))))
    return shown


def test_percentiles_are_those_of_numpy_within_a_thousandth() -> None:
    rng = numpy.random.default_rng(3)
    # Of these counts no percentile is a whole rank, which numpy's floating point may miss by one.
    for values in (rng.exponential(20_000, 4999), rng.pareto(1.1, 777) * 1e4, rng.integers(0, 3000, 51)):
        numbers = [int(value) for value in values]
        shown = values_of(numbers)
        assert (shown["count"], shown["min"], shown["max"]) == (len(numbers), min(numbers), max(numbers))
        for name, per_mille in PERCENTILES.items():
            exact = numpy.percentile(numbers, per_mille / 10, method="inverted_cdf")
            assert shown[name] == pytest.approx(exact, rel=0.001)
        for fraction, value in shown["distribution"]:
            assert value == pytest.approx(numpy.percentile(numbers, fraction * 100, method="inverted_cdf"), rel=0.001)


def test_two_modes_have_the_known_answer() -> None:
    """99.5 % of 10 us and 0.5 % of 10 ms: up to p99.5 all is fast, and p99.9 is slow."""
    shown = values_of([10_000] * 995 + [10_000_000] * 5)
    fast, slow = pytest.approx(10_000, rel=0.001), pytest.approx(10_000_000, rel=0.001)
    assert [shown[name] for name in PERCENTILES] == [fast, fast, fast, slow]


def test_ten_million_latencies_take_at_most_100_mb() -> None:
    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (100 << 20, 100 << 20))

    values = "\n".join(str(10 + 997 * n) for n in range(1000))
    words = [ROCKSDB.path(), "percentiles", "10000"]
    done = subprocess.run(words, input=values, capture_output=True, text=True, check=True, preexec_fn=limit_memory)
    assert json.loads(done.stdout)["count"] == 10_000_000


# ---- arrivals: ghOSt's synthetic_network_test ----


def arrivals(rate: float, ratio: float = 0, seed: int = 2, count: int = 20_000) -> list[tuple[int, int]]:
    lines = rocksdb("arrivals", rate, ratio, seed, count).split("\n")[:-1]
    return [(int(ns), int(kind)) for ns, kind in (line.split() for line in lines)]


@pytest.mark.parametrize("rate", [1000, 50_000, 1_000_000])
def test_arrivals_are_poisson(rate: int) -> None:
    times = [0, *(ns for ns, _ in arrivals(rate))]
    gaps = [(after - before) * rate / 1e9 for before, after in itertools.pairwise(times)]
    n = len(gaps)
    # Standard errors of an exponential distribution: of the mean 1/sqrt(n), of the deviation about sqrt(2/n).
    assert statistics.fmean(gaps) == pytest.approx(1, abs=4 / math.sqrt(n))
    assert statistics.stdev(gaps) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    ordered = numpy.sort(gaps)
    distance = numpy.abs(1 - numpy.exp(-ordered) - (numpy.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, at 0.1 %; a grid of whole ns is far finer
    assert abs(numpy.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("ratio", [0.0, 0.005, 0.5, 1.0])
def test_mix_of_requests_is_that_of_the_ratio(ratio: float) -> None:
    kinds = [kind for _, kind in arrivals(50_000, ratio)]
    n = len(kinds)
    assert abs(sum(kinds) / n - ratio) <= 4 * math.sqrt(ratio * (1 - ratio) / n)


def test_arrivals_follow_from_the_seed_alone() -> None:
    assert arrivals(1000, 0.5, count=50) == arrivals(1000, 0.5, count=50)
    assert arrivals(1000, 0.5, count=50) != arrivals(1000, 0.5, seed=3, count=50)
    # Another rate stretches the same arrivals.
    slow, quick = arrivals(1000, count=50), arrivals(2000, count=50)
    assert [ns for ns, _ in slow] == [pytest.approx(2 * ns, abs=2) for ns, _ in quick]


# ---- loads ----


def run(path: Path, **options: object) -> dict[str, Any]:
    given = {"entries": ENTRIES, "range_entries": 50, "wait_type": "futex", "seed": 2, **options}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    result: dict[str, Any] = json.loads(rocksdb("run", path, *words, text="go\n").removeprefix("ready\n"))
    return result


MS = 1_000_000


@pytest.mark.parametrize("wait_type", ["futex", "spin"])
def test_get_and_range_requests_are_handled_and_take_their_time(path: Path, wait_type: str) -> None:
    """ghOSt's orchestrator_test: GetRequest, RangeQuery."""
    result = run(path, throughput=200, range_query_ratio=0.5, get_duration=MS // 5, range_duration=MS, num_workers=2,
                 experiment_duration=400 * MS, wait_type=wait_type)  # fmt: skip
    assert result["missing"] == 0
    assert result["unfinished"] + result["all"]["worker_handle"]["count"] == result["generator"]["sent"] > 0
    for kind, least in (("get", MS // 5), ("range", MS)):
        handled = result[kind]["worker_handle"]
        assert handled["count"] > 0
        assert handled["min"] >= least
        assert result[kind]["total"]["min"] >= handled["min"]


def test_stalled_worker_does_not_slow_the_arrival_clock(path: Path) -> None:
    """Coordinated omission: one request takes longer than the whole run, and all others wait behind it."""
    result = run(path, throughput=2000, get_duration=700 * MS, num_workers=1, experiment_duration=500 * MS)
    times = [ns for ns, _ in arrivals(2000, count=2000) if ns < 500 * MS]
    # What this machine runs meanwhile may make the generator late: it then sends at once. Only at the end it may stop.
    assert result["generator"]["reached_ns"] >= 0.8 * 500 * MS
    assert result["generator"]["sent"] == sum(ns <= result["generator"]["reached_ns"] + 10_000 for ns in times)
    assert result["all"]["worker_handle"]["count"] == 1
    total = result["all"]["total"]
    assert total["count"] == result["generator"]["sent"]
    assert result["unfinished"] == total["count"] - 1
    # Their ages are spread over the run; a closed loop would have recorded one request.
    assert total["p50"] >= 200 * MS


def test_all_requests_of_a_batch_are_served(path: Path) -> None:
    result = run(path, throughput=5000, get_duration=1000, num_workers=3, batch=8, experiment_duration=300 * MS)
    assert result["unfinished"] + result["get"]["total"]["count"] >= result["generator"]["sent"]
    assert result["range"]["total"] == {"count": 0}


def test_rate_that_cannot_be_made_is_seen_in_what_is_reached(path: Path) -> None:
    result = run(path, throughput=50_000_000, get_duration=1000, num_workers=1, experiment_duration=300 * MS)
    generator = result["generator"]
    assert generator["reached_ns"] < generator["wanted_ns"] / 2
    assert generator["sent"] + generator["dropped"] < 50_000_000 * 0.3


def test_discarded_requests_are_not_counted(path: Path) -> None:
    result = run(path, throughput=1000, get_duration=1000, experiment_duration=100 * MS, discard_duration=300 * MS)
    assert 0 < result["all"]["total"]["count"] < 200


# ---- the antagonist: ghOSt's orchestrator_test and thread_pool_test ----


@pytest.fixture
def unthrottled() -> Iterator[None]:
    """Real-time tasks may use all of a CPU's time, and not 95 % of it."""
    knob = Path("/proc/sys/kernel/sched_rt_runtime_us")
    if os.geteuid():
        pytest.skip("a real-time priority, so that other load does not matter, needs root")
    before = knob.read_text()
    knob.write_text("-1")
    yield
    knob.write_text(before)


@pytest.mark.usefixtures("unthrottled")
@pytest.mark.parametrize("work_share", [0.1, 0.25, *(pytest.param(n, marks=pytest.mark.soak) for n in (0.9, 1.0))])
def test_antagonist_takes_its_share(work_share: float) -> None:
    words = ["run", "--work_share", work_share, "--experiment_duration", 1000 * MS, "--period", 5 * MS]

    def outrank_others() -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    done = subprocess.run(
        [ANTAGONIST.path(), *map(str, words)], input="go\n", capture_output=True, text=True, check=True,
        preexec_fn=outrank_others,
    )  # fmt: skip
    ((used, took),) = json.loads(done.stdout.removeprefix("ready\n"))
    assert took == pytest.approx(1e9, rel=0.1)
    assert used / took == pytest.approx(work_share, abs=0.005)


@pytest.mark.parametrize("threads", [1, 10, 100, 1000])
def test_launch(threads: int) -> None:
    words = ["run", "--num_threads", threads, "--work_share", 0, "--experiment_duration", 5 * MS]
    done = subprocess.run(
        [ANTAGONIST.path(), *map(str, words)], input="go\n", capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout.removeprefix("ready\n"))) == threads


def started(*words: object) -> subprocess.Popen[str]:
    """The antagonist, whose threads wait for a line."""
    line = [ANTAGONIST.path(), "run", *map(str, words)]
    child = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_gtid(bpffs: Path) -> None:
    Hints.create(bpffs / "hints", items=64, classes=8).close()
    with (
        Hints.open(bpffs / "hints") as table,
        started("--num_threads", 8, "--hints", bpffs / "hints", "--experiment_duration", 20 * MS) as child,
    ):
        items = {item.tid for item in map(table.item, range(64)) if item is not None and item.tid}
        assert items == {int(path.name) for path in Path(f"/proc/{child.pid}/task").iterdir()}
        assert len(items) == 8 + 1, "each thread, and the main thread"
        child.communicate("go\n")


def test_trigger() -> None:
    with started("--num_threads", 4, "--experiment_duration", 50 * MS) as child:
        tasks = [path / "schedstat" for path in Path(f"/proc/{child.pid}/task").iterdir()]

        def ran() -> list[int]:
            return [int(path.read_text().split()[0]) for path in tasks]

        # They sleep in a futex: once they are off their CPUs, nothing makes them run but the line.
        while any(Path(path.parent, "syscall").read_text() == "running\n" for path in tasks):
            pass
        before = ran()
        time.sleep(0.1)
        assert ran() == before, "a thread ran before its trigger"
        out, _ = child.communicate("go\n")
        assert all(used > 0 for used, _ in json.loads(out))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    tmp_path = tmp_path / "full"
    tmp_path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_full_disk_is_named_and_leaves_no_database(small_disk: Path) -> None:
    from ghostbpf.experiments.rocksdb import database
    from ghostbpf.loaders.errors import GhostError

    with pytest.raises(GhostError, match="no space left on device: the database needs 18 MB") as error:
        database.prepare(small_disk / "db", 100_000, lambda line: None)
    assert "fewer --entries" in (error.value.hint or "")
    assert not [*small_disk.iterdir()]

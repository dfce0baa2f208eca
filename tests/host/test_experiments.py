# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment``: tables, plans, results on disk, and sweeps under EEVDF, which needs no sched_ext."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from ghostbpf.experiments.command import command
from ghostbpf.experiments.results import CELLS
from ghostbpf.experiments.rocksdb import calibration, database, options, sweep, sweeps, tables
from ghostbpf.experiments.rocksdb.options import AntagonistOptions, Placement, RocksdbOptions
from ghostbpf.experiments.rocksdb.programs import ROCKSDB
from ghostbpf.experiments.rocksdb.store import Results
from ghostbpf.experiments.rocksdb.sweeps import SWEEPS, Cell
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet

LINE = [sys.executable, "-m", "ghostbpf.tools.cli", "experiment"]


def experiment(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LINE, *map(str, arguments)], capture_output=True, text=True, check=False)


# ---- tables: ghOSt's latency_test and results_test ----

EMPTY = {"count": 0}


def stage(factor: int, unit: int = 1000) -> dict[str, Any]:
    """The values 1 to 1000, times ``factor``, in ``unit``."""
    named = {"min": 1, "p50": 500, "p99": 990, "p99.5": 995, "p99.9": 999, "max": 1000}
    return {"count": 1000, **{name: value * factor * unit for name, value in named.items()}}


def result(stages: dict[str, Any]) -> dict[str, Any]:
    """1000 requests in 4 s."""
    return {"all": stages, "generator": {"wanted_ns": 4_000_000_000}}


STANDARD = result({name: stage(4 if name == "total" else 1) for name in tables.STAGES})
NOTHING = result(dict.fromkeys(tables.STAGES, EMPTY))
FIRST = "Ingress Queue Time 1000 250 1 500 990 995 999 1000"


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize(("unit", "zeros"), [(tables.MICROSECONDS, ""), (tables.NANOSECONDS, "000")])
def test_latency_standard_pretty(unit: tables.Unit, zeros: str) -> None:
    text = tables.rocksdb(STANDARD, ["all"], unit, tables.PRETTY)
    assert zeros or max(map(len, text.splitlines())) <= 80
    shown = rows(text)
    assert shown[:2] == ["Stats:", "All:"]
    assert shown[2] == "Total Min 50% 99% 99.5% 99.9% Max"
    assert shown[3] == "Stage Requests req/s" + f" ({unit.name})" * 6
    same = "1 500 990 995 999 1000".replace(" ", f"{zeros} ") + zeros
    assert shown[4:8] == [f"{name} 1000 250 {same}" for name in list(tables.STAGES.values())[:4]]
    total = "4 2000 3960 3980 3996 4000".replace(" ", f"{zeros} ") + zeros
    assert shown[8:] == [f"Total 1000 250 {total}"]
    assert zeros or shown[4] == FIRST


def test_latency_standard_csv() -> None:
    shown = tables.rocksdb(STANDARD, ["all"], tables.MICROSECONDS, tables.CSV).splitlines()
    assert shown[0] == "All,Ingress Queue Time,1000,250,1,500,990,995,999,1000"
    assert shown[4] == "All,Total,1000,250,4,2000,3960,3980,3996,4000"


@pytest.mark.parametrize("form", [tables.PRETTY, tables.CSV])
def test_latency_print_last_and_distribution(form: str) -> None:
    stages = {name: {**stage(1), "distribution": [[0.5, 500_000], [0.999, 999_000]]} for name in tables.STAGES}
    text = tables.rocksdb(
        result(stages), ["all"], tables.MICROSECONDS, form, stages=tables.LAST, with_distribution=True
    )
    *_, total, head, distribution = rows(text)
    assert total.replace(",", " ").removeprefix("All ") == "Total 1000 250 1 500 990 995 999 1000"
    assert (head, distribution) == ("Distribution:", "50.00%:500 99.90%:999")
    assert "Ingress" not in text
    empty = tables.rocksdb(NOTHING, ["all"], tables.MICROSECONDS, form, with_distribution=True)
    assert "Distribution" not in empty


def test_latency_empty_pretty_and_csv() -> None:
    assert (
        rows(tables.rocksdb(NOTHING, ["all"], tables.MICROSECONDS, tables.PRETTY))[4]
        == "Ingress Queue Time 0 - - - - - - -"
    )
    shown = tables.rocksdb(NOTHING, ["all"], tables.MICROSECONDS, tables.CSV).splitlines()
    assert shown[4] == "All,Total,0,-,-,-,-,-,-,-"


def test_antagonist_results_standard_and_empty() -> None:
    threads = [[(n + 1) * 100_000_000 if n < 7 else 0, 4_000_000_000] for n in range(8)]
    shown = tables.antagonist(threads, tables.CSV).splitlines()
    assert (shown[0], shown[-1]) == ("0,100000000,0.025", "Total,2800000000,0.0875")
    pretty = rows(tables.antagonist(threads, tables.PRETTY))
    assert pretty[0] == "Worker Run Duration (ns) Work Share"
    assert pretty[-1] == "Total 2800000000 0.0875"
    assert tables.antagonist([[0, 0]], tables.CSV).splitlines() == ["0,0,-", "Total,0,-"]


@pytest.mark.parametrize("given", [RocksdbOptions(), AntagonistOptions()])
def test_options_print_in_alphabetical_order(given: RocksdbOptions | AntagonistOptions) -> None:
    lines = options.option_lines(given.as_json())
    assert lines == sorted(lines)
    assert "experiment_duration: 15000000000" in lines
    assert len(lines) == len(given.as_json())


# ---- time scale and placement ----


def test_time_scale_stretches_service_times_and_gaps_together() -> None:
    given = RocksdbOptions(throughput=20_000, time_scale=20, get_exponential_mean=1000)
    words = given.words(Placement.of(CpuSet.parse("0-3")), None)
    value = dict(zip(words[2::2], words[3::2], strict=True))
    assert value["--throughput"] == "1000"
    assert (value["--get_duration"], value["--range_duration"]) == ("200000", "100000000")
    assert value["--get_exponential_mean"] == "20000"
    assert value["--experiment_duration"] == "15000000000"
    assert options.is_saturated(20_000_000, 20)
    assert not options.is_saturated(19_999_999, 20)


def test_measured_time_scale_is_at_least_1_in_two_digits() -> None:
    assert options.rounded(0.3) == options.rounded(1.9) == 1
    assert (options.rounded(8.74), options.rounded(23.7), options.rounded(312)) == (8.7, 24, 310)
    assert calibration.measured() >= 1


def test_placement_is_that_of_the_original() -> None:
    eight = Placement.of(CpuSet.parse("10-17"))
    assert (eight.generator, eight.dispatcher, eight.workers) == (10, 11, tuple(range(12, 18)))
    assert eight.enclave == CpuSet.parse("11-17")
    assert Placement.of(CpuSet.parse("0-1")) == Placement(0, 0, (1,), CpuSet.parse("1"))
    assert Placement.of(CpuSet.parse("3")) == Placement(3, 3, (3,), CpuSet.parse("3"))


# ---- plans ----


def plan(name: str, schedulers: list[str], cpus: str = "10-17", scale: float = 1, **base: Any) -> sweeps.Plan:
    chosen = CpuSet.parse(cpus)
    found = sweeps.candidates(schedulers, (), SWEEPS[name], scale, chosen)
    cells = [*sweeps.cells(found, SWEEPS[name], ())]
    given = RocksdbOptions(time_scale=scale, **base)
    return sweeps.Plan(SWEEPS[name], {one.name: one for one in found}, cells, chosen, given, None, None)


@pytest.mark.parametrize(
    ("name", "scheduler", "cells", "last", "workers"),
    [
        ("centralized", "eevdf", 75, 480_000, 6),
        ("centralized", "ghost", 73, 460_000, 11),
        ("shinjuku", "eevdf", 35, 80_000, 6),
        ("shinjuku", "ghost", 24, 150_000, 200),
        ("shenango", "eevdf", 57, 120_000, 6),
        ("shenango", "ghost", 99, 450_000, 11),
        ("shinjuku-shenango", "ghost", 24, 150_000, 200),
    ],
)
def test_sweeps_are_those_of_the_original(name: str, scheduler: str, cells: int, last: int, workers: int) -> None:
    one = plan(name, [scheduler])
    assert len(one.cells) == cells
    assert [one.cells[0].throughput, one.cells[-1].throughput] == [10_000, last]
    assert one.rocksdb(one.cells[0]).num_workers == workers
    antagonist = one.antagonist(one.cells[0])
    assert (antagonist is not None) == ("shenango" in name)
    if antagonist is not None:
        assert (antagonist.num_threads, antagonist.qos) == (7, 1)
        nice = (one.rocksdb(one.cells[0]).nice, antagonist.nice)
        assert nice == ((-20, 19) if scheduler == "eevdf" else (0, 0))


def test_policy_gets_the_slice_of_the_sweep_times_the_scale_and_spins_on_its_own_cpu() -> None:
    chosen = CpuSet.parse("10-17")
    (one,) = sweeps.candidates(["ghost"], (), SWEEPS["shinjuku"], 20, chosen)
    assert one.policy is not None
    assert (one.policy.values["slice_ns"], one.policy.values["spin"], one.policy.values["agent_cpu"]) == (
        600_000,
        1,
        11,
    )
    (endless,) = sweeps.candidates(["ghost"], (), SWEEPS["centralized"], 20, chosen)
    assert endless.policy is not None
    assert endless.policy.values["slice_ns"] == 0
    own = sweeps.candidates(["ghost"], ("shinjuku:slice=1ms,spin=no", "biff"), SWEEPS["shinjuku"], 1, chosen)
    assert own[0].policy is not None
    assert (own[0].policy.values["slice_ns"], own[0].policy.values["spin"]) == (1_000_000, 0)


@pytest.mark.parametrize("text", ["", "k", "0", "5k-1k/1k", "1k-2k", "1k-2k/0", "1-1000000/1", "10k,x"])
def test_throughputs_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        sweeps.parse_throughputs(text)


def test_throughputs_are_steps_and_single_values_each_once() -> None:
    assert sweeps.parse_throughputs("1k-3k/1k,2500,3k") == [1000, 2000, 3000, 2500]


# ---- results on disk ----


def run_row() -> dict[str, Any]:
    return {**plan("shinjuku", ["eevdf"]).as_json(), "kernel": "k", "command": "c"}


def cell_row(throughput: int, p99_us: float = 50) -> dict[str, Any]:
    kinds = {kind: {name: stage(1) for name in tables.STAGES} for kind in tables.KINDS}
    for one in kinds.values():
        one["total"] = {**stage(1), "p99": p99_us * 1000, "distribution": [[0.5, 10_000], [0.99, p99_us * 1000]]}
    generator = {"wanted_ns": 10**9, "reached_ns": 10**9 - 1, "sent": 1000, "dropped": 0, "lateness": stage(1),
                 "cpu_ns": 10**8}  # fmt: skip
    rocksdb = {**kinds, "generator": generator, "unfinished": 0, "missing": 0}
    return {"type": "cell", "candidate": "EEVDF", "throughput": throughput, "rocksdb": rocksdb, "antagonist": None,
            "has_hints": False, "others": 0.0, "noisy": False}  # fmt: skip


def test_results_are_read_as_they_were_written_and_exported_as_the_original_does(tmp_path: Path) -> None:
    results = Results.create(tmp_path / "r", run_row())
    results.add(cell_row(20_000))
    results.add(cell_row(10_000))
    again = Results.read(tmp_path / "r")
    assert again.cells == results.cells
    assert [cell["throughput"] for cell in again.of("EEVDF")] == [10_000, 20_000]
    first, *lines = (tmp_path / "r" / "EEVDF" / "rocksdb_range").read_text().splitlines()
    assert json.loads(first)["range_query_ratio"] == 0.005
    assert lines[0] == "10000,Ingress Queue Time,1000,1000,1,500,990,995,999,1000"
    assert [line.split(",")[0] for line in lines] == ["10000"] * 5 + ["20000"] * 5
    with pytest.raises(GhostError, match="has results"):
        Results.create(tmp_path / "r", run_row())


def test_cut_off_line_is_measured_again_and_nothing_else_is_lost(tmp_path: Path) -> None:
    results = Results.create(tmp_path, run_row())
    results.add(cell_row(10_000))
    results.add(cell_row(20_000))
    path = tmp_path / CELLS
    path.write_bytes(path.read_bytes()[:-40])
    assert Results.read(tmp_path).journal.is_cut_off
    again = Results.resume(tmp_path, run_row())
    assert [*again.cells] == [("EEVDF", 10_000)]
    again.add(cell_row(20_000))
    assert len(Results.read(tmp_path).cells) == 2


@pytest.mark.parametrize("damage", ["{", "[]", '{"type": "other"}', "\x00", '{"type": "cell", "candidate": "EEVDF"}'])
def test_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    results = Results.create(tmp_path, run_row())
    results.add(cell_row(10_000))
    with (tmp_path / CELLS).open("a") as file:
        file.write(damage + "\n")
    before = (tmp_path / CELLS).read_bytes()
    for use in (lambda: Results.read(tmp_path), lambda: Results.resume(tmp_path, run_row())):
        with pytest.raises(GhostError, match=r"cells.jsonl:3 is damaged"):
            use()
    assert (tmp_path / CELLS).read_bytes() == before


def test_results_of_another_run_are_not_resumed(tmp_path: Path) -> None:
    Results.create(tmp_path, run_row())
    with pytest.raises(GhostError, match=r"another run: its time_scale is 1.*, not 20"):
        Results.resume(tmp_path, {**run_row(), "time_scale": 20})


def test_candidate_that_does_not_start_is_left_out_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plan("shinjuku", ["ghost", "eevdf"])

    class Broken:
        name, policy = "broken", one.candidates["shinjuku"].policy

        def attached(self, cpus: CpuSet) -> Any:
            raise GhostError("no BPF here", hint="a kernel with it")

        def describe(self) -> str:
            return "broken"

    fair = one.candidates["EEVDF"]
    cells = [Cell("broken", 1000), Cell("broken", 2000), Cell("EEVDF", 1000), Cell("EEVDF", 2000)]
    broken: Any = Broken()
    one = sweeps.Plan(one.sweep, {"broken": broken, "EEVDF": fair}, cells, one.cpus, one.base, None, None)
    # The applications themselves run in the sweep below.
    measured = {
        name: value
        for name, value in cell_row(1).items()
        if name in ("rocksdb", "antagonist", "has_hints", "others", "noisy")
    }
    monkeypatch.setattr("ghostbpf.experiments.rocksdb.running.measure", lambda *arguments: measured)
    results = Results.create(tmp_path, one.as_json())
    assert sweep.measure(one, results, sweep.Observer()) is None
    assert [*results.cells] == [("EEVDF", 1000), ("EEVDF", 2000)]
    failure = Results.read(tmp_path).failures["broken"]
    assert (failure["kind"], failure["throughput"], failure["reason"]) == ("start", 1000, "no BPF here")


# ---- the database ----


def test_database_of_another_version_or_size_is_refused(tmp_path: Path) -> None:
    told: list[str] = []
    database.prepare(tmp_path / "db", 100, told.append)
    database.prepare(tmp_path / "db", 100, told.append)
    assert len(told) == 1
    with pytest.raises(GhostError, match="has 100 entries, not 200"):
        database.prepare(tmp_path / "db", 200, told.append)
    (tmp_path / "db" / "ghostbpf.json").write_text('{"version": 7, "entries": 100}')
    with pytest.raises(GhostError, match="is of version 7, not 1"):
        database.prepare(tmp_path / "db", 100, told.append)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(GhostError, match="is no database of this experiment"):
        database.prepare(tmp_path / "other", 100, told.append)


def test_missing_library_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    without = replace(ROCKSDB, libraries=("-lrocksdb", "-lc"), needs=(tmp_path / "c.h", "librocksdb-dev"))
    with pytest.raises(GhostError, match=r"rocksdb cannot be compiled without .*c\.h") as error:
        without.path()
    assert error.value.hint == "apt install librocksdb-dev"


# ---- commands ----

SMALL = ("--entries", 3000, "--range-entries", 50, "--time-scale", 1, "--cpus", "0-1")


@pytest.fixture
def cache(tmp_path: Path) -> tuple[str, Path]:
    return "--rocksdb-db-path", tmp_path / "db"


def test_rocksdb_prints_stages_and_what_it_made(cache: tuple[str, Path]) -> None:
    all_kinds = ("--range-query-ratio", 0.01, "--print-get", "--print-range", "--print-distribution")
    short = ("--experiment-duration", "300ms", "--discard-duration", "0")
    done = experiment("rocksdb", *SMALL, *cache, *all_kinds, *short, "--throughput", "1k")
    assert done.returncode == 0, done.stderr
    heads = [line for line in done.stdout.splitlines() if line.endswith(":") and line != "Distribution:"]
    assert heads == ["Stats:", "Get:", "Range:", "All:"]
    assert "time scale 1: times are as given" in done.stdout
    assert done.stdout.count("Distribution:\n2.00%:") >= 10, "five stages of gets, and of all"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "making a database of 3,000 entries" in done.stderr


def test_rate_that_the_generator_cannot_make_is_told(cache: tuple[str, Path]) -> None:
    done = experiment("rocksdb", *SMALL, *cache, "--throughput", "50000k", "--experiment-duration", "200ms",
                      "--discard-duration", "0", "--print-format", "csv", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["rocksdb"]
    assert tables.is_short(measured)
    notes = tables.notes(measured, 50_000_000)
    assert "of 50,000,000 requests/s" in notes[0]
    assert notes[-1].endswith("% of a CPU")
    assert 0 < tables.cpu_share(measured) < 1.1  # it may be late at the end


def test_antagonist_alone_has_its_share() -> None:
    done = experiment("antagonist", "--experiment-duration", "300ms", "--work-share", 0.2, "--num-threads", 2,
                      "--time-scale", 20, "--print-format", "csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    *workers, total = (line.split(",") for line in done.stdout.splitlines())
    assert [worker[0] for worker in workers] == ["0", "1"]
    assert 0 < float(total[2]) < 0.25  # less, if the machine is busy
    assert "time scale 20: service times, slices and gaps are 20 times as long" in done.stderr


def test_dry_run_tells_the_cells_and_the_time_and_measures_nothing(tmp_path: Path) -> None:
    line = ("shinjuku", "eevdf", "ghost", "--dry-run", "--output", tmp_path / "r", "--cpus", "0-1", "--time-scale", 1)
    done = CliRunner().invoke(command, [*map(str, line)])
    assert done.exit_code == 0, done.output
    assert "35 throughputs: 10,000, 20,000, 30,000, 40,000, … to 80,000 requests/s" in done.output
    assert "59 cells, about 20 min" in done.output
    assert not (tmp_path / "r").exists()


@contextlib.contextmanager
def sweeping(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*LINE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_sweep_that_was_killed_is_resumed_interrupted_and_reported(cache: tuple[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "r"
    line = ("shinjuku-shenango", "eevdf", *SMALL, *cache, "--throughputs", "400-900/100", "--output", output,
            "--experiment-duration", "200ms", "--discard-duration", "0")  # fmt: skip
    path = output / CELLS

    def measured() -> int:
        return path.read_bytes().count(b"\n") - 1 if path.exists() else 0

    with sweeping(*line) as process:
        until(lambda: measured() >= 1)
        process.kill()
    before = measured()
    kept = path.read_bytes().split(b"\n")[1]
    with sweeping(*line, "--resume") as process:
        until(lambda: measured() > before)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in err
        assert f"interrupted: {measured()} of 6 cells are measured" in err
        assert "EEVDF" in out
    done = experiment(*line, "--resume")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().split(b"\n")[1] == kept
    assert [cell["throughput"] for cell in Results.read(output).of("EEVDF")] == [*range(400, 1000, 100)]
    assert "cell 6 of 6: EEVDF, 900 requests/s" in done.stderr
    assert len((output / "EEVDF" / "antagonist").read_text().splitlines()) == 1 + 6 * 2
    assert max(map(len, done.stdout.splitlines())) <= 80
    # Nothing is left to measure, and the scale needs no second calibration.
    assert experiment(*line, "--resume").returncode == 0

    done = experiment("report", output, "--plots", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    assert (
        ElementTree.parse(tmp_path / "plots" / "4-shinjuku-shenango-share-of-the-antagonist.svg")
        .getroot()
        .tag.endswith("svg")
    )
    page = (output / "report.html").read_text()
    for shown in ("shinjuku-shenango", os.uname().release, "time scale 1", "6 of 6", "share of the antagonist", "<svg"):
        assert shown in page
    assert not [address for address in ('src="', 'href="http', "@import", "url(http") if address in page]


def test_report_of_a_damaged_file_names_the_line(tmp_path: Path) -> None:
    (tmp_path / CELLS).write_text("{}\n")
    with pytest.raises(GhostError, match=r"cells.jsonl:1 is damaged"):
        command.main(["report", str(tmp_path)], standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("shinjukku",), "Did you mean 'shinjuku'?"),
        (("shinjuku",), "Missing argument"),
        (("shinjuku", "eevdf", "--resume"), "--resume needs --output DIR"),
        (("shinjuku", "eevdf", "--policy", "sol"), "--policy is for ghost"),
        (("shinjuku", "eevdf", "--throughputs", "1k-2k"), '"1k-2k" is not a throughput'),
        (("rocksdb", "--wait-type", "table"), "table is for ghost"),
        (("rocksdb", "--get-duration", "3x"), 'bad duration "3x"'),
        (("rocksdb", "--entries", "10"), "the database has 10 entries"),
        (("antagonist", "--time-scale", "0"), '"0": write auto'),
    ],
)
def test_bad_command_line_is_refused_with_the_reason(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert message in done.output

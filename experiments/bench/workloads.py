# SPDX-License-Identifier: Apache-2.0
"""The workloads: the command that each runs, and the figures in what it prints."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...loaders.errors import GhostError
from ..naming import name_and_options, named_command
from ..native_programs import find
from . import programs

LOWER, HIGHER = "lower", "higher"

#: C files that `compile` compiles, and the functions in each.
_C_FILES, _C_FUNCTIONS = 16, 12
#: Stressors of stress-ng: what ends a run, the default of that, and what the stressor does. In stress-ng 0.19, yield
#: does not end at a number of operations.
_STRESSORS = {
    "switch": ("ops", 400_000, "two processes that switch by a pipe"),
    "yield": ("seconds", 3, "sched_yield() in a loop"),
    "context": ("ops", 10_000, "swapcontext() between three contexts"),
    "futex": ("ops", 100_000, "futex waits and wakeups"),
    "fork": ("ops", 3_000, "fork and exit"),
    "pthread": ("ops", 20_000, "threads that are created and end"),
}


@dataclass(frozen=True)
class Metric:
    """One figure of a run; ``better`` is LOWER or HIGHER."""

    name: str
    unit: str
    value: float
    better: str = LOWER


@dataclass(frozen=True)
class Result:
    """A run that has ended: what it printed, how long it took, and the directory in which it ran."""

    output: str
    seconds: float
    directory: Path


@dataclass(frozen=True)
class Workload:
    """A workload with its options: ``text`` names both, ``seconds`` is about what a run takes on a real machine.

    ``command`` returns the words to run, given the number of CPUs, and ``prepare`` fills the run's directory, which is
    its current directory unless it ``stays`` in that of the user. ``metrics`` raises GhostError if the output has no
    figures.
    """

    text: str
    seconds: float | None
    command: Callable[[int], list[str]]
    metrics: Callable[[Result], list[Metric]]
    prepare: Callable[[Path], object] = lambda directory: None
    stays: bool = False


@dataclass(frozen=True)
class Kind:
    """A workload by name: its options with their defaults, and how to make a Workload of values.

    A value is a whole number, except those of ``fractions``; the default "cpus" is the number of CPUs.
    """

    summary: str
    options: Mapping[str, str]
    make: Callable[[str, Mapping[str, str]], Workload]
    fractions: frozenset[str] = frozenset()


def parse(text: str) -> Workload:
    """The workload of NAME[:option=value,…] or NAME=CMD; raises ValueError."""
    name, equals, _ = text.partition("=")
    if equals and ":" not in name:  # in NAME:option=value, the colon comes first
        return _by_command(text)
    name, options = name_and_options(text)
    if (kind := KINDS.get(name)) is None:
        raise ValueError(f'there is no workload "{name}"\n  try: {", ".join(KINDS)}, or NAME=CMD')
    for option, value in options.items():
        if option not in kind.options:
            raise ValueError(f"{name} has no option {option}: it has {', '.join(kind.options) or 'none'}")
        number = r"\d{1,9}(\.\d{1,6})?" if option in kind.fractions else r"\d{1,9}"
        if not re.fullmatch(number, value) or not float(value):
            raise ValueError(f'{name}: {option} is a number above 0, and not "{value}"')
    return kind.make(text, {**kind.options, **options})


def _seconds(result: Result) -> list[Metric]:
    return [Metric("time", "s", result.seconds)]


def _by_command(text: str) -> Workload:
    _, words = named_command(text)
    return Workload(text, None, lambda cpus: words, _seconds, stays=True)


def _perf(bench: str, letters: Mapping[str, str], seconds: float) -> Callable[[str, Mapping[str, str]], Workload]:
    def make(text: str, values: Mapping[str, str]) -> Workload:
        def command(cpus: int) -> list[str]:
            options = [word for name, letter in letters.items() for word in (letter, values[name])]
            return [find("perf", "linux-perf"), "bench", "sched", bench, *options]

        return Workload(text, seconds, command, lambda result: [_found(r"Total time: ([\d.]+)", result, "time", "s")])

    return make


def _hackbench(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        return [find("hackbench", "rt-tests"), "-g", values["groups"], "-l", values["loops"]]

    return Workload(text, 2, command, lambda result: [_found(r"Time: ([\d.]+)", result, "time", "s")])


def _stress(stressor: str) -> Callable[[str, Mapping[str, str]], Workload]:
    def make(text: str, values: Mapping[str, str]) -> Workload:
        def command(cpus: int) -> list[str]:
            program = find("stress-ng", "stress-ng")
            workers = str(cpus) if values["workers"] == "cpus" else values["workers"]
            limit = [f"--{stressor}-ops", values["ops"]] if "ops" in values else ["--timeout", values["seconds"]]
            return [program, f"--{stressor}", workers, *limit, "--metrics", "--yaml", "metrics.yaml"]

        def metrics(result: Result) -> list[Metric]:
            try:
                report = (result.directory / "metrics.yaml").read_text(encoding="utf-8")
            except OSError:
                report = ""
            pattern = r"bogo-ops-per-second-real-time: ([\d.]+)"
            return [_found(pattern, Result(report or result.output, 0, result.directory), "rate", "ops/s", HIGHER)]

        return Workload(text, 2, command, metrics)

    return make


def _compile(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        jobs = str(cpus) if values["jobs"] == "cpus" else values["jobs"]
        return ["sh", "-c", f"printf '%s\\n' *.c | xargs -P {jobs} -n 1 {find('cc', 'gcc')} -O2 -c"]

    def prepare(directory: Path) -> None:
        for number in range(int(values["files"])):
            (directory / f"unit{number}.c").write_text(
                "".join(_c_function(n) for n in range(_C_FUNCTIONS)), encoding="utf-8"
            )

    return Workload(text, 3, command, _seconds, prepare)


def _c_function(number: int) -> str:
    """A function that keeps an optimizing compiler busy for milliseconds."""
    return f"""
double work{number}(double *a, const double *b, int n)
{{
	double sum = {number};

	for (int i = 0; i < n; i++)
		for (int j = i; j < n; j += 2)
			switch ((i + j) % 4) {{
			case 0: a[i] += b[j] * {number + 1}; break;
			case 1: a[j] -= b[i] / {number + 2}; break;
			case 2: sum += a[i] * b[j]; break;
			default: sum -= a[j] > sum ? b[i] : b[j];
			}}
	return sum;
}}
"""


def _wakeup(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        workers = str(cpus) if values["t"] == "cpus" else values["t"]
        letters = {"-m": values["m"], "-t": workers, "-r": values["r"], "-n": values["n"], "-F": values["F"]}
        return [str(programs.loads()), "wakeup", *(word for option in letters.items() for word in option)]

    def metrics(result: Result) -> list[Metric]:
        report = _json(result)
        latencies = [
            Metric(f"{what} {name}", "us", report[what][name] / 1e3)
            for what in ("wakeup", "request")
            for name in ("p50", "p90", "p99", "p99.9")
        ]
        return [*latencies, Metric("requests", "1/s", report["requests_per_s"], HIGHER)]

    return Workload(text, float(values["r"]) + 0.6, command, metrics)


def _threads(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        return [str(programs.loads()), "threads", "-t", values["threads"], "-b", values["bursts"]]

    def metrics(result: Result) -> list[Metric]:
        burst = _json(result)["burst"]
        return [Metric(f"burst {name}", "ms", burst[name] / 1e6) for name in ("p50", "p90", "p99")]

    return Workload(text, 2, command, metrics)


def _memcached(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        threads = str(cpus) if values["t"] == "cpus" else values["t"]
        given = {"rate": values["rate"], "seconds": values["r"], "connections": values["c"], "threads": threads}
        server = find("memcached", "memcached")
        options = [word for name, value in given.items() for word in (f"--{name}", value)]
        return [str(programs.memcached_load()), *options, server, "socket"]

    def metrics(result: Result) -> list[Metric]:
        report = _json(result)
        if report["dropped"] or report["lateness"]["p50"] > report["latency"]["p50"] / 2:
            raise GhostError(
                f"the load of {values['rate']} requests/s could not be made: {report['dropped']} were dropped, "
                f"and half were late by {report['lateness']['p50'] / 1e3:,.0f} us or more",
                hint="a lower rate, for example rate=1000",
            )
        latencies = [Metric(name, "us", report["latency"][name] / 1e3) for name in ("p50", "p90", "p99", "p99.9")]
        return [*latencies, Metric("replies", "1/s", report["replies_per_s"], HIGHER)]

    return Workload(text, float(values["r"]) + 1, command, metrics)


def _cyclictest(text: str, values: Mapping[str, str]) -> Workload:
    def command(cpus: int) -> list[str]:
        threads = str(cpus) if values["t"] == "cpus" else values["t"]
        options = ["--quiet", "--policy=other", f"--threads={threads}", f"--interval={values['i']}"]
        options += [f"--loops={values['l']}", f"--histogram={_LONGEST_US}", "--histfile=/dev/null", "--json=latencies"]
        preload = f"LD_PRELOAD={programs.keep_policy()}"
        return ["env", preload, find("cyclictest", "rt-tests"), *options]

    def metrics(result: Result) -> list[Metric]:
        try:
            threads = json.loads((result.directory / "latencies").read_text(encoding="utf-8"))["thread"].values()
            counts: Counter[int] = Counter()
            for thread in threads:
                own = {int(us): count for us, count in thread["histogram"].items()}
                counts.update(own)
                counts[thread["max"]] += thread["cycles"] - sum(own.values())  # longer than the histogram
        except (OSError, ValueError, KeyError):
            raise GhostError(f"it printed no figures: {result.output.strip()[-200:]}") from None
        return [Metric(f"wakeup {name}", "us", _nearest(counts, part)) for name, part in _QUANTILES.items()]

    return Workload(text, float(values["i"]) * float(values["l"]) / 1e6 + 0.5, command, metrics)


#: Of cyclictest's histogram, in microseconds: the most that it takes.
_LONGEST_US = 1_000_000
_QUANTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}


def _nearest(counts: Mapping[int, int], per_mille: int) -> float:
    """The smallest value such that ``per_mille`` of all are at or below it."""
    rank, seen = -(-sum(counts.values()) * per_mille // 1000), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return float(value)
    return 0.0


def _json(result: Result) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(result.output)
    except ValueError:
        raise GhostError(f"it printed no figures: {result.output.strip()[-200:]}") from None
    return report


def _found(pattern: str, result: Result, name: str, unit: str, better: str = LOWER) -> Metric:
    if (match := re.search(pattern, result.output)) is None:
        raise GhostError(f"it printed no {name}: {result.output.strip()[-200:] or 'it printed nothing'}")
    return Metric(name, unit, float(match[1]), better)


#: All workloads but NAME=CMD, in the order of the help text.
KINDS: Mapping[str, Kind] = {
    "messaging": Kind(
        "perf bench sched messaging: 20 senders, 20 receivers",
        {"groups": "4", "loops": "500"},
        _perf("messaging", {"groups": "-g", "loops": "-l"}, 2),
    ),
    "pipe": Kind(
        "perf bench sched pipe: two processes wake each other",
        {"loops": "200000"},
        _perf("pipe", {"loops": "-l"}, 2),
    ),
    "hackbench": Kind("hackbench of rt-tests", {"groups": "4", "loops": "500"}, _hackbench),
    "wakeup": Kind(
        "as schbench: wakeup and request latency, requests/s",
        {"m": "1", "t": "cpus", "r": "5", "n": "5", "F": "256"},
        _wakeup,
        frozenset({"r"}),
    ),
    "memcached": Kind(
        "memcached under an open-loop load: latency",
        {"rate": "20000", "c": "8", "t": "cpus", "r": "5"},
        _memcached,
        frozenset({"r", "rate"}),
    ),
    "cyclictest": Kind(
        "cyclictest of rt-tests: wakeups of timers", {"t": "cpus", "i": "1000", "l": "5000"}, _cyclictest
    ),
    "threads": Kind("threads that all wake at once", {"threads": "1000", "bursts": "100"}, _threads),
    "compile": Kind("a C compiler on 16 files", {"files": str(_C_FILES), "jobs": "cpus"}, _compile),
    **{
        f"stress-{name}": Kind(f"stress-ng: {what}", {"workers": "cpus", limit: str(number)}, _stress(name))
        for name, (limit, number, what) in _STRESSORS.items()
    },
}

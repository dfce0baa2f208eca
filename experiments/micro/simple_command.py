# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment simple-exp``, ``simple-cfs`` and ``simple-edf``, with the output of ghOSt's programs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ...schedulers.tasks import SCHED_EXT
from ...tools.output import json_option
from ..bench.command import check_kernel, parse_cpus
from ..bench.running import Interrupted
from ..candidates import Attached, eevdf
from ..rocksdb.cli_options import cpus_option, interruptible, time_option
from ..rocksdb.options import EEVDF, GHOST
from ..rocksdb.sweeps import tuned
from .programs import MICRO
from .scalability import run

_STATUS = """\b
Exit status: 0; 1 a thread was not scheduled as it should, or a scheduler did
not start; 2 the command line is wrong; 9 the scheduler was ejected or
replaced meanwhile; 128+N after signal N (130: Ctrl-C), with what has ended.
"""
_LINES = """\b
Examples:
  ghostbpf experiment NAME --scheduler eevdf
  sudo ghostbpf experiment NAME --policy POLICY
  sudo ghostbpf experiment NAME --cpus 1-5
  sudo ghostbpf experiment NAME --json
  ghostbpf vm -- ghostbpf experiment NAME

"""
#: The weights of nice 19, 0 and -20 in the kernel.
_WEIGHTS = {19: 15, 0: 1024, -20: 88761}


@dataclass(frozen=True)
class Test:
    """One of ghOSt's tests: its name, the number of threads, and its other options by name."""

    name: str
    threads: int = 1
    options: tuple[tuple[str, str], ...] = ()

    def words(self, policy: int, hints: str | None) -> list[str]:
        """The command line of its program, whose threads must have scheduling ``policy``."""
        more = [*self.options, *([("hints", hints)] if hints is not None else [])]
        given = [("threads", str(self.threads)), ("policy", str(policy)), *more]
        return [str(MICRO.path()), self.name, *(word for name, value in given for word in (f"--{name}", value))]


def _measured(
    tests: Sequence[Test], scheduler: AbstractContextManager[Attached], cpus: CpuSet, *, is_hinted: bool, limit_s: float
) -> Iterator[tuple[Test, dict[str, Any]]]:
    """Each test with its result, once it has ended."""
    with scheduler as attached:
        hints = str(_table(attached)) if is_hinted else None
        policy = SCHED_EXT if attached.join is not None else os.SCHED_OTHER
        for test in tests:
            click.echo(f"{test.name} …", err=True)
            found, others, noisy = run(test.words(policy, hints), attached, cpus, limit_s)
            yield test, {**found, "others": others, "noisy": noisy}


def _table(attached: Attached) -> Path:
    path: Path | None = attached.enclave.hints_path if attached.enclave is not None else None
    if path is None or not path.exists():
        raise GhostError("the policy reads no hints", hint="--policy edf, shinjuku or another that does")
    return path


def _attached(scheduler: str, policy: str, cpus: CpuSet) -> AbstractContextManager[Attached]:
    if scheduler == EEVDF:
        return eevdf()
    try:
        candidate = tuned(policy, {})
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None
    check_kernel()
    return candidate.attached(cpus)


def _run(
    tests: Sequence[Test],
    scheduler: str,
    policy: str,
    cpus: str | None,
    show: Callable[[Test, dict[str, Any]], str],
    *,
    as_json: bool,
    is_hinted: bool = False,
    limit_s: float = 600.0,
) -> int:
    chosen = parse_cpus(cpus)
    attached = _attached(scheduler, policy, chosen)
    with interruptible():
        try:
            for test, row in _measured(tests, attached, chosen, is_hinted=is_hinted, limit_s=limit_s):
                if as_json:
                    click.echo(json.dumps({"test": test.name, "threads": test.threads, "scheduler": scheduler, **row}))
                else:
                    click.echo(show(test, row), nl=False)
        except Interrupted as end:
            return 128 + end.number
    return 0


def _took(test: Test, row: dict[str, Any]) -> str:
    return f"{test.name}\n took {row['ns'] / 1e6:.2f} ms\n"


def _options(policy: str) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in (
            json_option,
            cpus_option,
            click.option("--policy", default=policy, show_default=True, metavar="NAME[:option=value,…]",
                         help="The policy of ghost."),
        ):  # fmt: skip
            function = option(function)
        return function

    return decorate


_scheduler_option = click.option(
    "--scheduler", type=click.Choice([EEVDF, GHOST]), default=GHOST, show_default=True, help="ghost is the policy."
)
_spin_options = (
    click.option(
        "--threads", type=click.IntRange(1, 3000), default=1000, show_default=True, help="Of the tests named Many."
    ),
    click.option("--spin-threads", type=click.IntRange(1, 3000), default=100, show_default=True, help="Of BusyExp."),
    time_option("--spin-duration", "10ms", "CPU time of a thread of BusyExp."),
)


def _busy(threads: int, ns: int) -> Test:
    return Test("BusyExp", threads, (("spin", str(ns)),))


def _epilog(name: str, policy: str, *, with_eevdf: bool = True) -> str:
    text = _LINES.replace("NAME", name).replace("POLICY", policy)
    if not with_eevdf:
        text = text.replace(f"  ghostbpf experiment {name} --scheduler eevdf\n", "")
    return text + _STATUS


@click.command("simple-exp", epilog=_epilog("simple-exp", "fifo_centralized"))
@_spin_options[0]
@_spin_options[1]
@_spin_options[2]
@_scheduler_option
@_options("fifo_centralized")
def simple_exp(
    threads: int, spin_threads: int, spin_duration: int, scheduler: str, policy: str, cpus: str | None, as_json: bool
) -> int:
    """Run threads that nap, that spin, and that leave the enclave, one and many at a time.

    Each test checks that its threads have the policy that they inherit, and prints how long it took. In
    TaskDepartedManyRace, threads are moved out of the enclave while they run, sleep and wake.
    """
    tests = [
        Test("SimpleExp"),
        Test("SimpleExpMany", threads),
        _busy(spin_threads, spin_duration),
        Test("TaskDeparted"),
        Test("TaskDepartedMany", threads),
        Test("TaskDepartedManyRace", threads),
    ]
    return _run(tests, scheduler, policy, cpus, _took, as_json=as_json)


@click.command("simple-edf", epilog=_epilog("simple-edf", "shinjuku", with_eevdf=False))
@_spin_options[0]
@_spin_options[1]
@_spin_options[2]
@_options("edf")
def simple_edf(
    threads: int, spin_threads: int, spin_duration: int, policy: str, cpus: str | None, as_json: bool
) -> int:
    """Run threads with deadlines in a table of hints, some of which say themselves when they have work.

    Each test prints how long it took. A thread of SimpleExpMany spins, and runs only while its item says that it has
    work; SimpleRepeatable has ten pieces of 10 ms of work, one in each period of 100 ms.
    """
    tests = [
        Test("SimpleExp"),
        Test("SimpleExpMany", threads),
        Test("SimpleRepeatable"),
        _busy(spin_threads, spin_duration),
        Test("TaskDeparted"),
        Test("TaskDepartedMany", threads),
    ]
    return _run(tests, GHOST, policy, cpus, _took, as_json=as_json, is_hinted=True)


@click.command("simple-cfs", epilog=_epilog("simple-cfs", "cfs_bpf"))
@time_option("--duration", "10s", "Of each stage of SimpleNice, and of SimpleLoadBalancing.", least_ns=1_000_000)
@_scheduler_option
@_options("cfs")
def simple_cfs(duration: int, scheduler: str, policy: str, cpus: str | None, as_json: bool) -> int:
    """Measure what nice values are worth, and how threads that start on one CPU spread.

    In SimpleNice, three threads share a CPU, with nice 0 and then with 19, -20 and 0; how far each counts is compared
    with the kernel's weights, which needs root. In SimpleLoadBalancing, ten threads start on one CPU; the table has the
    number of threads on each CPU then, at three moments, and at the end.
    """
    seconds = (("seconds", f"{duration / 1e9:g}"),)
    tests = [Test("SimpleNice", 3, seconds), Test("SimpleLoadBalancing", 10, seconds)]
    chosen = parse_cpus(cpus)

    def show(test: Test, row: dict[str, Any]) -> str:
        table = nice_text(row["counters"]) if test.name == "SimpleNice" else balance_text(row["stages"], chosen)
        return f"Running {test.name} ...\n{table}{test.name} Done.\n"

    limit_s = 2 * duration / 1e9 + 60
    return _run(tests, scheduler, policy, cpus, show, as_json=as_json, limit_s=limit_s)


def nice_text(counters: Sequence[Sequence[int]]) -> str:
    """The original's lines for the counters of the threads of nice 19, -20 and 0, each in both stages."""
    nicest, least, default = counters
    lines = ["nicest ghOSt thread:"]
    lines += _stage("first stage as", 0, nicest[0], f"1/{_ratio(default[0], nicest[0])}")
    lines += _stage("second_stage as", 19, nicest[1], f"1/{_ratio(default[1], nicest[1])}")
    lines.append(f"    expected relative weight to nice(0)=1/{_WEIGHTS[0] / _WEIGHTS[19]:.6g}")
    lines.append("least nice ghOSt thread:")
    lines += _stage("first stage as", 0, least[0], _ratio(least[0], default[0]))
    lines += _stage("second_stage as", -20, least[1], _ratio(least[1], default[1]))
    lines.append(f"    expected relative weight to nice(0)={_WEIGHTS[-20] / _WEIGHTS[0]:.6g}")
    lines.append("default nice ghOSt thread:")
    lines += [f"  {stage} nice=0: counter={count}" for stage, count in zip(_STAGES, default, strict=True)]
    return "".join(f"{line}\n" for line in lines)


_STAGES = ("first stage as", "second_stage as")


def _stage(stage: str, nice: int, counter: int, weight: str) -> list[str]:
    return [f"  {stage} nice={nice}: counter={counter}", f"    estimated relative weight to nice(0)={weight}"]


def _ratio(above: int, below: int) -> str:
    return f"{above / below:.6g}" if below else "inf"


def balance_text(stages: Sequence[Sequence[int]], cpus: CpuSet) -> str:
    """The number of threads on each CPU, by stage, of which there are five."""
    counts = [Counter(stage) for stage in stages]
    rows = [["cpu", "first", "second", "third", "fourth", "final"]]
    rows += [[str(cpu), *(str(count[cpu]) for count in counts)] for cpu in cpus]
    return "".join("".join(cell.ljust(8) for cell in row).rstrip() + "\n" for row in rows)

# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment global-scalability``, with the output of ghOSt's global_scalability."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from ...schedulers.topology import Topology
from ...tools.output import json_option, printable
from ..bench.command import check_kernel
from ..bench.report import ProgressLine, tell_left_out
from ..bench.report import duration as in_words
from ..bench.rounds import LOST
from ..journal import Row
from ..other_scheduler import SchedulerLost
from ..provenance import provenance
from ..rocksdb import calibration
from ..rocksdb.cli_options import interruptible
from . import scalability
from .scalability import NONE, Cell, Plan, Results

_EPILOG = """\b
Schedulers: any policy with agents, such as sol, edf and shinjuku, each with
options (sol:slice=1ms); none is EEVDF, the kernel's fair class. Agents spin
on --global-cpu and decide everything, fastpath=off, unless you say otherwise.
With several --threads-per-cpu, the report has the cost against tasks, too.

\b
Examples:
  sudo ghostbpf experiment global-scalability sol edf shinjuku
  sudo ghostbpf experiment global-scalability sol --threads-per-cpu 1,5,20
  ghostbpf experiment global-scalability none --total-loops 100000
  sudo ghostbpf experiment global-scalability sol --output mine --resume
  ghostbpf experiment report mine

\b
Exit status: 0; 1 a scheduler did not start or failed, and the rest was
measured; 2 the command line is wrong; 9 a scheduler was ejected or replaced
while it was measured; 128+N after signal N (130: Ctrl-C), with what was
measured kept.
"""


def _numbers(ctx: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    pieces = text.split(",")
    if not all(piece.isdecimal() and 0 < int(piece) <= 10_000 for piece in pieces):
        raise click.BadParameter(f'"{text}" is not a list of numbers such as 1,5,20')
    return list(dict.fromkeys(map(int, pieces)))


@click.command("global-scalability", epilog=_EPILOG)
@click.argument("scheduler", nargs=-1, required=True)
@click.option("--global-cpu", type=click.IntRange(0), default=1, show_default=True, help="The CPU of the agent.")
@click.option("--max-cpus", type=click.IntRange(1), help="With the agent's and CPU 0.  [default: all]")
@click.option("--min-cpus", type=click.IntRange(1), help="With the agent's and CPU 0.  [default: one for tasks]")
@click.option("--total-loops", type=click.IntRange(1, 10**12), default=5_000_000, show_default=True)
@click.option(
    "--threads-per-cpu",
    callback=_numbers,
    metavar="LIST",
    default="5",
    show_default=True,
    help="Threads for each CPU; they are not pinned.",
)
@click.option("--skip-cpu0/--use-cpu0", default=True, show_default=True, help="Run nothing on CPU 0.")
@click.option("--pack-smt/--no-pack-smt", default=False, show_default=True, help="Fill a core before the next.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Results.  [default: with the date]")
@click.option("--resume", is_flag=True, help="Measure what is missing in --output.")
@click.option("--dry-run", is_flag=True, help="Print what would be measured, and how long it takes.")
@json_option
def global_scalability(
    scheduler: tuple[str, ...],
    output: Path | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    **values: Any,
) -> int:
    """Measure how often a global agent schedules threads that yield, from few CPUs to all.

    The CSV has a line for each number of CPUs that tasks have: how many times a second threads were scheduled, all
    together, and how often each thread has yielded.
    """
    if resume and output is None:
        raise click.UsageError("--resume needs --output DIR")
    plan = _plan(scheduler, **values)
    if dry_run:
        seconds = sum(map(plan.seconds, plan.cells))
        for cell in plan.cells:
            cpus = plan.layout.tasks(cell.task_cpus)
            loops = f"{cell.threads} threads, {plan.loops(cell):,} loops each"
            click.echo(printable(f"{cell.candidate}: CPUs {cpus} for tasks, {loops}"))
        click.echo(f"{len(plan.cells)} cells, about {in_words(seconds)}")
        return 0
    if any(candidate.policy is not None for candidate in plan.candidates.values()):
        check_kernel()
    directory = output or Path(f"{scalability.SWEEP}-{time.strftime('%Y%m%d-%H%M%S')}")
    header = {**plan.as_json(), **provenance()}
    results = (Results.resume if resume else Results.create)(directory, header)
    click.echo(f"results in {directory}", err=True)
    printer = _Printer(plan, as_json=as_json)
    with interruptible():
        number = scalability.measure(plan, results, printer)
        printer.end()
        if number is not None:
            again = "" if resume else " --resume" + ("" if output else f" --output {shlex.quote(str(directory))}")
            done = f"{len(results.cells)} of {len(plan.cells)} cells are measured"
            click.echo(f"interrupted: {done}\n  try: {shlex.join(['ghostbpf', *sys.argv[1:]])}{again}", err=True)
            return 128 + number
    return _status(results)


def _status(results: Results) -> int:
    if any(failure["kind"] == LOST for failure in results.failures.values()):
        return SchedulerLost.exit_status
    return int(bool(results.failures))


def _plan(
    schedulers: tuple[str, ...],
    global_cpu: int,
    max_cpus: int | None,
    min_cpus: int | None,
    total_loops: int,
    threads_per_cpu: list[int],
    skip_cpu0: bool,
    pack_smt: bool,
) -> Plan:
    topology = Topology.from_sysfs()
    online = topology.all_cpus
    if any(name != NONE for name in schedulers) and global_cpu not in online:
        raise click.BadParameter(f"CPU {global_cpu} is not online: {online}", param_hint="--global-cpu")
    if global_cpu == 0 and skip_cpu0:
        raise click.UsageError("CPU 0 is skipped\n  try: another --global-cpu, or --use-cpu0")
    layout = scalability.layout(topology, global_cpu, skip_cpu0=skip_cpu0, pack_smt=pack_smt)
    besides = 2 if skip_cpu0 else 1
    most = len(online) if max_cpus is None else max_cpus
    least = besides + 1 if min_cpus is None else min_cpus
    counts = [count - besides for count in range(least, most + 1) if 0 < count - besides <= len(layout.order)]
    if not counts:
        raise click.UsageError(
            f"{least} to {most} of {len(online)} CPUs leave none for tasks: CPU 0 and the agent's are not for tasks"
            if skip_cpu0
            else f"{least} to {most} of {len(online)} CPUs leave none for tasks: the agent's is not for tasks"
        )
    if doubled := next((name for name in schedulers if schedulers.count(name) > 1), None):
        raise click.BadParameter(f'"{doubled}" is given twice', param_hint="SCHEDULER")
    try:
        candidates = {text: scalability.candidate(text, global_cpu) for text in schedulers}
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SCHEDULER") from None
    cells = list(scalability.cells(schedulers, counts, threads_per_cpu))
    return Plan(candidates, cells, layout, total_loops, calibration.measured())


class _Printer(scalability.Observer):
    """The original's output, progress and failures; with ``as_json``, each row on stdout."""

    def __init__(self, plan: Plan, *, as_json: bool) -> None:
        self._plan, self._as_json, self._block = plan, as_json, ("", 0)
        self._progress = ProgressLine()

    def starts(self, number: int, cell: Cell, left_s: float) -> None:
        what = f"{cell.candidate}, {cell.threads} threads, CPUs {self._plan.layout.tasks(cell.task_cpus)}"
        self._progress.show(f"cell {number} of {len(self._plan.cells)}: {what}, {in_words(left_s)} left")

    def end(self) -> None:
        """Remove the line of progress."""
        self._progress.end()

    def has(self, cell: Cell, row: Row) -> None:
        self.end()
        if self._as_json:
            click.echo(json.dumps({**row, "scheds_per_sec": scalability.rate(row)}))
            return
        if self._block != (cell.candidate, cell.threads_per_cpu):
            if self._block[0]:
                click.echo()
            self._block = cell.candidate, cell.threads_per_cpu
            click.echo(self._head(cell), nl=False)
        click.echo(f"{cell.task_cpus},{scalability.rate(row):f},{row['loops']}")

    def _head(self, cell: Cell) -> str:
        layout = self._plan.layout
        lines = [
            f"testing sched {printable(cell.candidate)}",
            f"global agent on cpu {layout.global_cpu}",
            f"testing up to {max(one.task_cpus for one in self._plan.cells)} worker cpus",
            f"nr_loops total: {self._plan.total_loops}",
            f"nr_threads per cpu: {cell.threads_per_cpu}",
            f"{'not ' if 0 in {layout.global_cpu, *layout.order} else ''}skipping cpu 0",
            "",
            "nr_task_cpus,scheds_per_sec,loops_per_thread",
        ]
        return "".join(f"{line}\n" for line in lines)

    def failed(self, row: Row) -> None:
        self.end()
        if self._as_json:
            click.echo(json.dumps(row))
        tell_left_out(row, f"with {row['task_cpus']} CPUs")

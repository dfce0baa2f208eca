# SPDX-License-Identifier: Apache-2.0
"""The sweeps as commands: ``ghostbpf experiment centralized``, ``shinjuku``, ``shenango``, ``shinjuku-shenango``."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...loaders.errors import GhostError
from ...tools.output import json_option, printable
from ..bench.command import check_kernel, parse_cpus
from ..bench.report import ProgressLine, tell_left_out
from ..bench.report import duration as in_words
from ..bench.rounds import LOST
from ..journal import Row
from ..other_scheduler import SchedulerLost
from ..provenance import provenance
from ..results import CELLS
from . import calibration, database, sweep, tables
from .cli_options import (
    cpus_option,
    discard_duration_option,
    entries_option,
    experiment_duration_option,
    generator_option,
    interruptible,
    path_option,
    range_entries_option,
    resolved_scale,
    scale_line,
    time_scale_option,
    wait_option,
)
from .one_cell import request
from .options import EEVDF, GHOST, RocksdbOptions
from .store import Results, is_over, saturation
from .sweeps import SWEEPS, Cell, Plan, Sweep, candidates, cells, parse_throughputs

_LOCAL = "local"
_EPILOG = """\b
Examples:
  ghostbpf experiment NAME eevdf --dry-run
  sudo ghostbpf experiment NAME eevdf ghost
  sudo ghostbpf experiment NAME ghost --policy sol --policy edf
  ghostbpf experiment NAME eevdf --throughputs 10k-40k/10k,50k
  ghostbpf experiment NAME eevdf --output mine --resume
  ghostbpf experiment NAME eevdf --executor dask:10.0.0.1:8786
  ghostbpf experiment report mine

\b
Exit status: 0; 1 a scheduler did not start or a program failed, and the rest
was measured; 2 the command line is wrong; 9 a scheduler was ejected or
replaced while it was measured; 128+N after signal N (130: Ctrl-C), with what
was measured kept.
"""


def _command(one: Sweep) -> click.Command:
    @click.command(one.name, epilog=_EPILOG.replace("NAME", one.name), help=_help(one))
    @click.argument("scheduler", nargs=-1, required=True, type=click.Choice([EEVDF, GHOST]))
    @click.option(
        "--policy",
        "policies",
        multiple=True,
        metavar="NAME[:option=value,…]",
        help="The policy of ghost; more than one are compared.  [default: shinjuku]",
    )
    @click.option("--throughputs", metavar="LIST", help="Such as 10k-40k/10k,50k.  [default: the original's]")
    @click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Results.  [default: SWEEP-DATE]")
    @click.option("--resume", is_flag=True, help="Measure what is missing in --output.")
    @experiment_duration_option
    @discard_duration_option
    @wait_option
    @generator_option
    @path_option
    @entries_option
    @range_entries_option
    @cpus_option
    @time_scale_option
    @click.option(
        "--executor",
        metavar="local|dask:ADDRESS",
        default="local",
        show_default=True,
        help="What measures cells: this machine, or the workers of a Dask cluster.",
    )
    @click.option("--dry-run", is_flag=True, help="Print what would be measured, and how long it takes.")
    @json_option
    def command(**values: Any) -> int:
        return _run(one, **values)

    return command


def _help(one: Sweep) -> str:
    return f"""{one.summary}

    RocksDB is measured at each throughput under eevdf, the kernel's fair class, and ghost, a policy in an enclave.
    As in the original, the first CPU is the load generator's, the second the dispatcher's or the agent's, and the
    others are the workers'.
    """


def _run(
    one: Sweep,
    scheduler: tuple[str, ...],
    policies: tuple[str, ...],
    throughputs: str | None,
    output: Path | None,
    resume: bool,
    rocksdb_db_path: Path | None,
    wait_type: str | None,
    generator: str | None,
    cpus: str | None,
    time_scale: str,
    executor: str,
    dry_run: bool,
    as_json: bool,
    **values: Any,
) -> int:
    if resume and output is None:
        raise click.UsageError("--resume needs --output DIR")
    if policies and GHOST not in scheduler:
        raise click.UsageError("--policy is for ghost, which is not measured")
    if values["range_entries"] > values["entries"]:
        raise click.BadParameter(f"the database has {values['entries']} entries", param_hint="--range-entries")
    if wait_type == "table" and EEVDF in scheduler:
        raise click.BadParameter("table is for ghost: EEVDF reads no hints", param_hint="--wait-type")
    kind, _, address = executor.partition(":")
    if executor != _LOCAL and (kind != "dask" or not address):
        raise click.BadParameter(f'"{executor}" is neither local nor dask:ADDRESS', param_hint="--executor")
    chosen = parse_cpus(cpus)
    path = rocksdb_db_path or database.default_path(values["entries"])
    if resume and output is not None and time_scale == calibration.AUTO and (output / CELLS).exists():
        # A second calibration would differ a little.
        time_scale = str(Results.read(output).run["time_scale"])
    base = RocksdbOptions(**values, rocksdb_db_path=str(path.absolute()), time_scale=resolved_scale(time_scale))
    try:
        wanted = parse_throughputs(throughputs) if throughputs else []
        compared = candidates(scheduler, policies, one, base.time_scale, chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    named = {candidate.name: candidate for candidate in compared}
    plan = Plan(one, named, list(cells(list(named.values()), one, wanted)), chosen, base, wait_type, generator)
    if dry_run:
        _dry_run(plan)
        return 0
    measure: Callable[[Plan, Results, sweep.Observer], int | None] = sweep.measure
    if address:
        measure = _on_cluster(address, request(plan, scheduler, policies))
    else:
        if GHOST in scheduler:
            check_kernel()
        database.prepare(path, base.entries, lambda line: click.echo(line, err=True))
    directory = output or Path(f"{one.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    results = (Results.resume if resume else Results.create)(directory, {**plan.as_json(), **provenance()})
    click.echo(f"results in {directory}", err=True)
    printer = _Printer(plan, as_json=as_json)
    with interruptible():
        number = measure(plan, results, printer)
        printer.end()
        if not as_json:
            click.echo(summary(results), nl=False)
        if number is not None:
            again = "" if resume else " --resume" + ("" if output else f" --output {shlex.quote(str(directory))}")
            done = f"{len(results.cells)} of {len(plan.cells)} cells are measured"
            click.echo(f"interrupted: {done}\n  try: {shlex.join(['ghostbpf', *sys.argv[1:]])}{again}", err=True)
            return 128 + number
    if any(failure["kind"] == LOST for failure in results.failures.values()):
        return SchedulerLost.exit_status
    return int(bool(results.failures))


def _on_cluster(address: str, what: Row) -> Callable[[Plan, Results, sweep.Observer], int | None]:
    try:
        from . import cluster
    except ImportError:
        raise GhostError("--executor dask needs Dask", hint="pip install 'ghostbpf[dask]'") from None
    return lambda plan, results, observer: cluster.measure(plan, what, results, observer, address)


def _dry_run(plan: Plan) -> None:
    total = 0.0
    for name, candidate in plan.candidates.items():
        own = [cell for cell in plan.cells if cell.candidate == name]
        seconds = sum(plan.seconds(cell) for cell in own)
        total += seconds
        rates = ", ".join(f"{cell.throughput:,}" for cell in own[:4]) + (", …" if len(own) > 4 else "")
        click.echo(printable(f"{name} ({candidate.describe()})"))
        click.echo(f"  {len(own)} throughputs: {rates} to {own[-1].throughput:,} requests/s; {in_words(seconds)}")
    click.echo(scale_line(plan.base.time_scale))
    click.echo(f"{len(plan.cells)} cells, about {in_words(total)}")


class _Printer(sweep.Observer):
    """Progress and failures on stderr; with ``as_json``, each row on stdout."""

    def __init__(self, plan: Plan, *, as_json: bool) -> None:
        self._plan, self._as_json, self._progress = plan, as_json, ProgressLine()

    def starts(self, number: int, cell: Cell, left_s: float) -> None:
        where = f"cell {number} of {len(self._plan.cells)}"
        self._progress.show(f"{where}: {cell.candidate}, {cell.throughput:,} requests/s, {in_words(left_s)} left")

    def end(self) -> None:
        """Remove the line of progress."""
        self._progress.end()

    def measured(self, cell: Cell, row: dict[str, Any]) -> None:
        if self._as_json:
            click.echo(json.dumps(row))
        if tables.is_short(row["rocksdb"]):
            self.end()
            rate = self._plan.rocksdb(cell).rate
            click.echo(f"warning: {tables.notes(row['rocksdb'], rate)[0]}", err=True)

    def failed(self, row: dict[str, Any]) -> None:
        self.end()
        if self._as_json:
            click.echo(json.dumps(row))
        tell_left_out(row, f"at {row['throughput']:,} requests/s")


def summary(results: Results) -> str:
    """A table of all cells, and where each candidate is saturated, within 80 columns."""
    scale = results.run["time_scale"]
    rows = [_summary_row(cell, scale) for name in results.run["candidates"] for cell in results.of(name)]
    if not rows:
        lines = ["nothing was measured"]
    else:
        heads = [["", "wanted", "made", "p50", "p99", "p99.9", "antagonist's", ""]]
        heads += [["candidate", "(req/s)", "(req/s)", "(us)", "(us)", "(us)", "share", ""]]
        if not any(row[6] for row in rows):
            heads, rows = [_without_share(row) for row in heads], [_without_share(row) for row in rows]
        lines = [*tables.table(heads, rows), "S: saturated; n: other processes used more than 0.15 CPU"]
    lines += saturation(results)
    for name, failure in results.failures.items():
        lines.append(f"{name} failed at {failure['throughput']:,} requests/s: {failure['reason']}")
    return "".join(f"{printable(line)}\n" for line in [*lines, scale_line(scale)])


def _summary_row(cell: dict[str, Any], scale: float) -> list[str]:
    total, generator = cell["rocksdb"]["all"]["total"], cell["rocksdb"]["generator"]
    times = [f"{total[key] / 1000:,.0f}" if total["count"] else "-" for key in ("p50", "p99", "p99.9")]
    made = generator["sent"] / generator["wanted_ns"] * 1e9
    share = f"{tables.total_share(cell['antagonist']):.1%}" if cell["antagonist"] is not None else ""
    marks = "S" * is_over(cell, scale) + "n" * cell["noisy"]
    return [cell["candidate"][:18], f"{cell['throughput']:,}", f"{made:,.0f}", *times, share, marks]


def _without_share(row: list[str]) -> list[str]:
    return row[:6] + row[7:]


centralized, shinjuku, shenango, shinjuku_shenango = map(_command, SWEEPS.values())

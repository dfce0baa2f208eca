# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf bench``: the command line, and the order of its steps."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from ...loaders import capabilities, sched_ext
from ...loaders.errors import KernelUnsupported
from ...schedulers.cpuset import CpuListError, CpuSet
from ...schedulers.enclave import check_cpus
from ...schedulers.errors import SchedulerBusy
from ...schedulers.launch import signals_blocked, termination_signals
from ...tools.output import check_plot, json_option
from ...tools.version import version
from .. import journal
from . import kept, report, rounds
from .plan import Plan, candidates
from .summary import Summary, read_baseline, summarize
from .workloads import KINDS, parse

_DEFAULT_WORKLOADS = ("messaging", "pipe", "wakeup")
_DEFAULT_POLICY = "biff"

_LIST = "\n".join(f"  {name:<15} {kind.summary}" for name, kind in KINDS.items())

_EPILOG = f"""\b
Workloads, each with options, such as wakeup:m=2,t=16,r=10:
{_LIST}
  NAME=CMD        the time that your own command takes

The threads of cyclictest would leave SCHED_EXT, and measure the fair class under every policy: they are kept in it.

\b
Examples:
  sudo ghostbpf bench
  sudo ghostbpf bench pipe --policy biff --policy rr:slice=5ms
  sudo ghostbpf bench 'build=make -j8' --policy ./mine.py --rounds 11
  sudo ghostbpf bench --with 'fifo=/opt/scx/scx_simple -f' messaging
  sudo ghostbpf bench wakeup:t=32 --policy sol --json >before.jsonl
  sudo ghostbpf bench wakeup:t=32 --policy sol --baseline before.jsonl
  sudo ghostbpf bench --rounds 100 --output long.jsonl --resume
  ghostbpf bench stress-switch --dry-run
  ghostbpf vm -- ghostbpf bench pipe:loops=5000 --rounds 3

\b
Exit status: 0; 1 a scheduler did not start or a workload failed, and the
rest was measured; 2 the command line is wrong; 9 a scheduler was ejected or
replaced while it was measured; 128+N after signal N (130: Ctrl-C), with the
figures of what was measured.
"""


@click.command("bench", epilog=_EPILOG)
@click.argument("workload", nargs=-1, metavar="[WORKLOAD...]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:option=value,…]",
    help="A policy, or FILE.py, with options, in an enclave.  [default: biff]",
)
@click.option(
    "--with",
    "commands",
    multiple=True,
    metavar="NAME=CMD",
    help="The sched_ext scheduler that CMD attaches until it gets SIGINT.",
)
@click.option("--rounds", "count", type=click.IntRange(1, 1000), default=7, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of the order of candidates.  [default: random]")
@click.option("--cpus", metavar="LIST", help="CPUs that all candidates use, like 0-3,6.  [default: all]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep each measurement in FILE, as --json prints it.",
)
@click.option("--resume", is_flag=True, help="Measure what is missing in --output.")
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add the change of each median since FILE, which --json printed.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the ratios to FILE, .svg or .png; needs matplotlib.",
)
@click.option("--dry-run", is_flag=True, help="Print what would run, in which order, and how long it takes.")
@json_option
def command(
    workload: tuple[str, ...],
    policies: tuple[str, ...],
    commands: tuple[str, ...],
    count: int,
    seed: int | None,
    cpus: str | None,
    output: Path | None,
    resume: bool,
    baseline: Path | None,
    plot: Path | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Compare schedulers on workloads: EEVDF, policies, and any other sched_ext scheduler.

    Each round runs each workload under each candidate, in shuffled order. EEVDF runs twice, which shows how far two
    equal measurements differ. Figures are medians, and ratios to EEVDF of the same round with a bootstrap interval.
    Runs are marked if other processes used more than 0.15 CPU meanwhile.
    """
    if resume and output is None:
        raise click.UsageError("--resume needs --output FILE")
    if resume and output is not None and seed is None:
        seed = kept.seed(output)
    plan = _plan(workload or _DEFAULT_WORKLOADS, policies, commands, count, seed, cpus)
    check_plot(plot)
    earlier = read_baseline(baseline) if baseline is not None else None
    if dry_run:
        click.echo("\n".join(report.dry_run(plan)))
        return 0
    check_kernel()
    for one in plan.workloads:
        one.command(len(plan.cpus))  # a missing program is named before anything runs
    header = report.header(plan, version())
    file, earlier_runs = None, None
    if output is not None and resume:
        file, earlier_runs = kept.resume(output, header)
    elif output is not None:
        file = journal.create(output, header)
    if as_json:
        click.echo(json.dumps(header))
    else:
        click.echo(f"seed {plan.seed}, {plan.rounds} rounds on CPU {plan.cpus}", err=True)
    printer = report.Printer(plan, file, as_json=as_json)
    with signals_blocked({signal.SIGCHLD, *termination_signals()}):
        results = rounds.measure(plan, printer, earlier_runs)
        printer.end()
        summaries = summarize(plan, results)
        printer.summarized(summaries, earlier, is_complete=results.interrupted is None)
        if not as_json:
            click.echo(report.tables(plan, summaries, results, earlier), nl=False)
        if results.interrupted is not None and output is not None:
            again = "" if resume else " --resume"
            click.echo(f"to go on\n  try: {shlex.join(['ghostbpf', *sys.argv[1:]])}{again}", err=True)
    drawn = plot is None or _draw(plot, summaries)
    return results.exit_status or int(not drawn)


def _draw(path: Path, summaries: list[Summary]) -> bool:
    """Draw the ratios, if there are any; returns whether ``path`` could be written."""
    if not any(one.ratio for one in summaries):
        click.echo(f"nothing to draw: {path} is not written", err=True)
        return True
    from . import plot

    try:
        plot.draw(path, summaries)
    except OSError as error:
        click.echo(f"error: cannot draw to {path}: {error.strerror}", err=True)
        return False
    return True


def _plan(
    workloads: tuple[str, ...],
    policies: tuple[str, ...],
    commands: tuple[str, ...],
    count: int,
    seed: int | None,
    cpus: str | None,
) -> Plan:
    try:
        parsed = [parse(text) for text in workloads]
    except ValueError as error:
        _refuse(error, "WORKLOAD")
    if doubled := next((text for text in workloads if workloads.count(text) > 1), None):
        raise click.BadParameter(f'"{doubled}" is given twice', param_hint="WORKLOAD")
    if not policies and not commands:
        policies = (_DEFAULT_POLICY,)
    try:
        compared = candidates(policies, commands)
    except ValueError as error:
        _refuse(error, "--policy, --with")
    return Plan(parsed, compared, count, secrets.randbelow(1_000_000) if seed is None else seed, parse_cpus(cpus))


def _refuse(error: ValueError, where: str) -> NoReturn:
    raise click.BadParameter(str(error), param_hint=where) from None


def parse_cpus(text: str | None) -> CpuSet:
    if text is None:
        return CpuSet(os.sched_getaffinity(0))
    try:
        cpus = CpuSet.parse(text)
    except CpuListError as error:
        _refuse(error, "--cpus")
    if not cpus:
        raise click.BadParameter("at least one CPU is needed, for example 0-3", param_hint="--cpus")
    check_cpus(cpus)
    return cpus


def check_kernel() -> None:
    """Raise GhostError if no scheduler can be attached here."""
    try:
        status = sched_ext.status()
    except KernelUnsupported as error:
        again = shlex.join(["ghostbpf", *sys.argv[1:]])
        raise KernelUnsupported("sched_ext", str(error), hint=f"ghostbpf vm -- {again}") from None
    if status.state != "disabled":
        raise SchedulerBusy(status.ops or "?")
    capabilities.need("attach schedulers", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE")

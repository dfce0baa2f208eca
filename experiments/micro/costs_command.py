# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment costs``: the command line, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import click
from tabulate import tabulate

from ...loaders.errors import GhostError
from ...schedulers.cpuset import CpuSet
from ...tools.output import json_option, printable, with_remedy
from ..bench.command import check_kernel, parse_cpus
from ..bench.plan import Candidate
from ..bench.running import Interrupted, interruption
from ..candidates import EEVDF as FAIR_CLASS
from ..other_scheduler import SchedulerLost
from ..rocksdb.cli_options import cpus_option, interruptible
from ..rocksdb.options import EEVDF, GHOST
from ..rocksdb.sweeps import tuned
from .costs import Cost, check_programs, messages, switches, transactions

_DEFAULT_POLICIES = ("biff", "sol")
_EPILOG = """\b
Calls are null system calls, getppid(). Instructions are those of the CPU's
counter, of user and kernel; "-" is a machine without one. In a guest of
--exact, all figures are instructions, whatever else the host runs:
  ghostbpf vm --exact --cpus 2 -- ghostbpf experiment costs eevdf ghost

\b
Examples:
  ghostbpf experiment costs eevdf
  sudo ghostbpf experiment costs eevdf ghost
  sudo ghostbpf experiment costs ghost --policy rr --policy edf
  sudo ghostbpf experiment costs eevdf ghost --json

\b
Exit status: 0; 1 a part failed, and the others were measured; 2 the command
line is wrong; 9 a scheduler was ejected or replaced while it was measured;
128+N after signal N (130: Ctrl-C), with what was measured.
"""


@click.command("costs", epilog=_EPILOG)
@click.argument("scheduler", nargs=-1, required=True, type=click.Choice([EEVDF, GHOST]))
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME[:option=value,…]",
    help="A policy of ghost.  [default: biff, sol]",
)
@click.option("--loops", type=click.IntRange(10, 10**9), default=20_000, show_default=True, help="Of each measurement.")
@cpus_option
@json_option
def command(scheduler: tuple[str, ...], policies: tuple[str, ...], loops: int, cpus: str | None, as_json: bool) -> int:
    """Measure context switches, an agent's transactions and its messages, in null system calls.

    A switch is one of two threads that share a CPU, and take turns by sched_yield() or by a futex. ghost also measures
    Agent.commit from Python, by the number of transactions together, and messages; both need perf.
    """
    if policies and GHOST not in scheduler:
        raise click.UsageError("--policy is for ghost, which is not measured")
    chosen = parse_cpus(cpus)
    try:
        compared = [Candidate(FAIR_CLASS)] if EEVDF in scheduler else []
        if GHOST in scheduler:
            compared += [tuned(text, {}) for text in policies or _DEFAULT_POLICIES]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None
    if GHOST in scheduler:
        check_kernel()
        check_programs()
    measured = _Measured(as_json)
    with interruptible():
        try:
            for candidate in compared:
                measured.take(candidate.name, lambda one=candidate: _switches(one, chosen, loops))  # type: ignore[misc]
            if GHOST in scheduler:
                is_exact = any(cost.instructions == cost.ns for cost in measured.costs)
                measured.take("transactions", lambda: transactions(is_exact=is_exact))
                null = min((cost.ns for cost in measured.costs if cost.calls == 1), default=float("nan"))
                measured.take("messages", lambda: messages(null, is_exact=is_exact))
        except Interrupted as end:
            measured.status = 128 + end.number
        if not as_json and measured.costs:
            click.echo(table(measured.costs))
    return measured.status


def _switches(candidate: Candidate, cpus: CpuSet, loops: int) -> list[Cost]:
    with candidate.attached(cpus) as attached:
        return list(switches(candidate.name, attached, cpus, loops))


class _Measured:
    """The costs so far, and the exit status; a part that fails is named, and the rest goes on."""

    def __init__(self, as_json: bool) -> None:
        self.costs: list[Cost] = []
        self.status, self._as_json = 0, as_json

    def take(self, what: str, measure: Callable[[], Iterable[Cost]]) -> None:
        """Add what ``measure`` returns; raises Interrupted."""
        interruption()
        click.echo(f"{printable(what)} …", err=True)
        try:
            for cost in measure():
                self.costs.append(cost)
                if self._as_json:
                    click.echo(json.dumps(asdict(cost)))
        except GhostError as error:
            interruption()
            click.echo(with_remedy(f"error: {what}: {error}", error.hint), err=True)
            lost = isinstance(error, SchedulerLost)
            self.status = SchedulerLost.exit_status if lost else self.status or 1


def table(found: Iterable[Cost]) -> str:
    """The costs, in columns."""
    rows = [
        [
            printable(cost.scheduler)[:18],
            cost.what,
            f"{cost.ns:,.0f}",
            f"{cost.calls:,.1f}",
            "-" if cost.instructions is None else f"{cost.instructions:,.0f}",
        ]
        for cost in found
    ]
    heads = ["under", "cost of a", "ns", "calls", "instr."]
    return tabulate(rows, headers=heads, colalign=["left", "left", "right", "right", "right"], disable_numparse=True)

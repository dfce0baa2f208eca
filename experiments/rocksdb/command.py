# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf experiment rocksdb`` and ``antagonist``: one measurement each, with the original's output."""

from __future__ import annotations

import json
import os
import textwrap
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...schedulers.cpuset import CpuSet
from ...tools.output import json_option
from ..bench.command import check_kernel, parse_cpus
from ..bench.running import Interrupted
from ..candidates import Attached, eevdf
from . import database, running, sweeps, tables
from .cli_options import (
    cpus_option,
    discard_duration_option,
    entries_option,
    experiment_duration_option,
    generator_option,
    interruptible,
    path_option,
    range_entries_option,
    rate,
    resolved_scale,
    scale_line,
    time_option,
    time_scale_option,
    wait_option,
)
from .options import EEVDF, GHOST, AntagonistOptions, Placement, RocksdbOptions, with_defaults
from .sweeps import Sweep

_STATUS = """\b
Exit status: 0; 1 a program or a scheduler did not start, or failed; 2 the
command line is wrong; 9 the scheduler was ejected or replaced meanwhile;
128+N after signal N (130: Ctrl-C).
"""
_ROCKSDB_EPILOG = f"""\b
The load generator is a thread of its own, which waits for no reply. Arrival
times follow from throughput and seed alone, and latencies count from them.

\b
Examples:
  ghostbpf experiment rocksdb --throughput 5k
  ghostbpf experiment rocksdb --range-query-ratio 0.005 --print-range
  sudo ghostbpf experiment rocksdb --scheduler ghost --num-workers 200
  sudo ghostbpf experiment rocksdb --scheduler ghost --policy sol
  ghostbpf vm -- ghostbpf experiment rocksdb --entries 10000

{_STATUS}"""
_ANTAGONIST_EPILOG = f"""\b
Examples:
  ghostbpf experiment antagonist --work-share 0.5 --experiment-duration 3s
  sudo ghostbpf experiment antagonist --scheduler ghost

{_STATUS}"""

scheduler_option = click.option(
    "--scheduler",
    type=click.Choice([EEVDF, GHOST]),
    default=EEVDF,
    show_default=True,
    help="ghost: a policy in an enclave.",
)
policy_option = click.option(
    "--policy", default="shinjuku", show_default=True, metavar="NAME[:option=value,…]", help="The policy of ghost."
)
format_option = click.option(
    "--print-format", type=click.Choice([tables.PRETTY, tables.CSV]), default=tables.PRETTY, show_default=True
)


@click.command("rocksdb", epilog=_ROCKSDB_EPILOG)
@click.option(
    "--throughput",
    callback=rate,
    metavar="N",
    default="20k",
    show_default=True,
    help="Requests/s, with Poisson arrivals.",
)
@click.option("--range-query-ratio", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@time_option("--get-duration", "10us", "CPU time of a get.")
@time_option("--get-exponential-mean", "0", "Mean of what is added to it.", least_ns=0)
@time_option("--range-duration", "5ms", "CPU time of a range query.")
@click.option("--num-workers", type=click.IntRange(1, 2900), help="Threads that serve.  [default: one per CPU]")
@click.option(
    "--batch", type=click.IntRange(1, 64), default=1, show_default=True, help="Requests handed over together."
)
@experiment_duration_option
@discard_duration_option
@wait_option
@generator_option
@time_option(
    "--generator-slack",
    "0",
    "A generator that sleeps may be so late, to spare wakeups; latencies include it.",
    least_ns=0,
)
@click.option("--seed", type=click.IntRange(0, 10**9), default=2, show_default=True, help="Of arrivals and requests.")
@click.option("--qos", type=click.IntRange(0, 1000), default=2, show_default=True, help="QoS in the table of hints.")
@path_option
@entries_option
@range_entries_option
@scheduler_option
@policy_option
@cpus_option
@time_scale_option
@format_option
@click.option("--print-last", is_flag=True, help="Only the last stage, Total.")
@click.option("--print-distribution", is_flag=True, help="Also the distribution of each stage.")
@click.option("--print-ns", is_flag=True, help="Times in ns, not us.")
@click.option("--print-get", is_flag=True, help="Also the stages of gets alone.")
@click.option("--print-range", is_flag=True, help="Also the stages of range queries alone.")
@json_option
def rocksdb(
    num_workers: int | None,
    wait_type: str | None,
    generator: str | None,
    rocksdb_db_path: Path | None,
    policy: str,
    cpus: str | None,
    time_scale: str,
    print_format: str,
    print_last: bool,
    print_ns: bool,
    print_get: bool,
    print_range: bool,
    as_json: bool,
    **values: Any,
) -> int:
    """Run RocksDB under an open-loop load, and print the latency of each stage of a request.

    0.5 % range queries of 5 ms among gets of 10 us are the load of the paper: --range-query-ratio 0.005.
    """
    chosen = parse_cpus(cpus)
    placement = Placement.of(chosen)
    path = rocksdb_db_path or database.default_path(values["entries"])
    if values["range_entries"] > values["entries"]:
        raise click.BadParameter(f"the database has {values['entries']} entries", param_hint="--range-entries")
    if values["scheduler"] == EEVDF and wait_type == "table":
        raise click.BadParameter("table is for ghost: EEVDF reads no hints", param_hint="--wait-type")
    options = RocksdbOptions(
        **values,
        num_workers=num_workers or len(placement.workers),
        rocksdb_db_path=str(path.absolute()),
        time_scale=resolved_scale(time_scale),
    )
    options = with_defaults(options, chosen, wait_type, generator)
    scheduler = _scheduler(options.scheduler, policy, options.time_scale, chosen)
    database.prepare(path, options.entries, lambda line: click.echo(line, err=True))
    measured = _measure(options, None, scheduler, placement)
    if isinstance(measured, int):
        return measured
    if as_json:
        click.echo(json.dumps({"options": options.as_json(), "kernel": os.uname().release, **measured}))
        return 0
    kinds = [kind for kind, wanted in (("get", print_get), ("range", print_range), ("all", True)) if wanted]
    unit = tables.NANOSECONDS if print_ns else tables.MICROSECONDS
    shown = tables.rocksdb(
        measured["rocksdb"],
        kinds,
        unit,
        print_format,
        stages=tables.LAST if print_last else tables.STAGES,
        with_distribution=options.print_distribution,
    )
    click.echo(shown, nl=False)
    notes = [scale_line(options.time_scale), *tables.notes(measured["rocksdb"], options.rate)]
    _say(notes, measured, print_format)
    return 0


def _say(notes: list[str], measured: dict[str, Any], print_format: str) -> None:
    """Print notes below a table; CSV has stdout for itself."""
    for note in notes + ["other processes used more than 0.15 CPU meanwhile"] * measured["noisy"]:
        click.echo(textwrap.fill(note, 79, subsequent_indent="  "), err=print_format == tables.CSV)


@click.command("antagonist", epilog=_ANTAGONIST_EPILOG)
@click.option(
    "--work-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Part of a CPU that a thread wants.",
)
@click.option("--num-threads", type=click.IntRange(1, 1000), help="[default: one per CPU]")
@experiment_duration_option
@click.option("--qos", type=click.IntRange(0, 1000), default=1, show_default=True, help="QoS in the table of hints.")
@scheduler_option
@policy_option
@cpus_option
@time_scale_option
@format_option
@json_option
def antagonist(
    num_threads: int | None,
    policy: str,
    cpus: str | None,
    time_scale: str,
    print_format: str,
    as_json: bool,
    **values: Any,
) -> int:
    """Run threads that each want a share of a CPU, and print the share that each has got.

    A thread works and sleeps in periods of 100 us.
    """
    chosen = parse_cpus(cpus)
    placement = replace(Placement.of(chosen), enclave=chosen)
    options = AntagonistOptions(**values, num_threads=num_threads or len(chosen), time_scale=resolved_scale(time_scale))
    scheduler = _scheduler(options.scheduler, policy, options.time_scale, chosen, chosen)
    measured = _measure(None, options, scheduler, placement)
    if isinstance(measured, int):
        return measured
    if as_json:
        click.echo(json.dumps({"options": options.as_json(), "kernel": os.uname().release, **measured}))
        return 0
    click.echo(tables.antagonist(measured["antagonist"], print_format), nl=False)
    _say([scale_line(options.time_scale)], measured, print_format)
    return 0


#: The slice of the policy unless its options say another: that of the paper.
_ALONE = Sweep("alone", "", 0, 0, 0, 30_000, False, {})


def _scheduler(
    name: str, policy: str, scale: float, cpus: CpuSet, enclave: CpuSet | None = None
) -> AbstractContextManager[Attached]:
    if name == EEVDF:
        return eevdf()
    try:
        (candidate,) = sweeps.candidates([GHOST], [policy], _ALONE, scale, cpus)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None
    check_kernel()
    return candidate.attached(enclave or Placement.of(cpus).enclave)


def _measure(
    rocksdb: RocksdbOptions | None,
    antagonist: AntagonistOptions | None,
    scheduler: AbstractContextManager[Attached],
    placement: Placement,
) -> dict[str, Any] | int:
    """The results, or the exit status after a signal."""
    with interruptible():
        try:
            with scheduler as attached:
                return running.measure(rocksdb, antagonist, attached, placement)
        except Interrupted as end:
            click.echo("interrupted: nothing was measured", err=True)
            return 128 + end.number

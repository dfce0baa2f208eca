# SPDX-License-Identifier: Apache-2.0
"""How the statistics of an enclave are shown."""

from __future__ import annotations

from typing import Any

import click

from ..loaders.errors import GhostError
from ..schedulers.enclave import Enclave
from ..schedulers.stats import Histogram, Stats
from .output import human_ns, show, warn
from .trace.histogram import PERCENTILES

#: Each histogram of times, as people read it.
_TIMES = {"wakeup_wait": "wakeup wait", "preempted_wait": "preempted wait", "turn": "turn"}


def option() -> click.Option:
    """``run --stats``."""
    return click.Option(
        ["--stats"],
        type=click.Choice(["on", "off"]),
        help="Whether the core keeps statistics of waits, turns and queues.  [default: on]",
    )


def tell_if_other(enclave: Enclave, wanted: str | None) -> None:
    """Warn if the core, attached before or on a kernel that counts no waits, does not do what --stats asks for."""
    keeps = enclave.core.keeps_stats
    if wanted == "on" and not keeps:
        told = "keeps no statistics: it was attached without, or the kernel has no CONFIG_SCHED_INFO"
    elif wanted == "off" and keeps:
        told = "keeps statistics: it was attached before"
    else:
        return
    warn([GhostError(f"the core {told}", hint="first: ghostbpf enclave destroy --all")])


def document(stats: Stats | None) -> dict[str, Any] | None:
    """What ``--json`` shows: times in ns, and the counts by bucket."""
    if stats is None:
        return None
    return {
        **{name: _histogram(getattr(stats, name), 1e9, "ns") for name in _TIMES},
        "depth": _histogram(stats.depth, 1, "tasks"),
        "class_preemptions": stats.class_preemptions,
        "slice_ends": stats.slice_ends,
        "idle_wait_ns": stats.idle_wait_ns,
        "idle_ticks": stats.idle_ticks,
        "work_conservation": stats.work_conservation,
    }


def _histogram(histogram: Histogram, scale: float, unit: str) -> dict[str, Any]:
    figures = {name: round(histogram.percentile(share) * scale) for name, share in PERCENTILES.items()}
    ends = [round(histogram.end(bucket) * scale) for bucket in range(len(histogram.counts) - 1)]
    total = {"count": histogram.count, "sum": round(histogram.sum * scale)}
    return {"unit": unit, **total, **figures, "ends": ends, "counts": list(histogram.counts)}


def show_stats(stats: Stats | None) -> None:
    """Print statistics for people."""
    if stats is None:
        click.echo("the core keeps no statistics")
        return
    times = {name: getattr(stats, field) for field, name in _TIMES.items()}
    show([{"": name} | _row(histogram) for name, histogram in times.items()], as_json=False)
    click.echo()
    click.echo(
        f"turns ended: {stats.slice_ends} by the slice or the policy, {stats.class_preemptions} by a higher class"
    )
    depth = stats.depth
    if depth.count:
        waiting = ", ".join(f"{name} {depth.percentile(share):.0f}" for name, share in PERCENTILES.items())
        click.echo(f"waiting tasks at ticks: mean {depth.sum / depth.count:.1f}, {waiting}")
    if stats.work_conservation is not None:
        click.echo(
            f"work conservation: {stats.work_conservation:.1%} of ticks; waits with the CPU idle: "
            + human_ns(stats.idle_wait_ns)
        )


def _row(histogram: Histogram) -> dict[str, Any]:
    if not histogram.count:
        return {"count": 0, "mean": "-", **dict.fromkeys(PERCENTILES, "-")}
    figures = {name: human_ns(histogram.percentile(share) * 1e9) for name, share in PERCENTILES.items()}
    return {"count": histogram.count, "mean": human_ns(histogram.sum / histogram.count * 1e9), **figures}

# SPDX-License-Identifier: Apache-2.0
"""Every metric, declared once: OpenMetrics, scx's statistics and the tests of documentation and dashboard read this.

A scope is what a group of metrics is about, such as an enclave: it has one row for each of them. A metric's name is the
scope's prefix and the metric's field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...schedulers.snapshot import STATES, Snapshot, boot_time
from ...schedulers.stats import Histogram
from ..version import version

Number = int | float
Rows = Iterable[tuple[tuple[str, ...], Any]]

#: The one event of the kernel that is a time, in ns.
_BYPASS_NS = "SCX_EV_BYPASS_DURATION"


@dataclass(frozen=True)
class Metric:
    """``value`` takes a row of the scope to a number; of an "info" to its labels, whose names are ``texts``; of a
    "histogram" to a Histogram.
    """

    field: str
    kind: str
    help: str
    value: Callable[[Any], Any]
    is_float: bool = False
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scope:
    """``rows`` takes a snapshot to the values of ``labels``, and the row, of each thing that there is.

    In scx's statistics a scope is the struct ``name``, and one with a label is in the dictionary ``plural``.
    """

    name: str
    plural: str
    prefix: str
    labels: tuple[str, ...]
    rows: Callable[[Snapshot], Rows]
    metrics: tuple[Metric, ...]

    def samples(self, metric: Metric, state: Snapshot) -> Iterator[tuple[tuple[str, ...], Any]]:
        """The values of ``metric``, each with the values of the labels."""
        for labels, row in self.rows(state):
            yield labels, metric.value(row)


def _counter(field: str, help: str, value: Callable[[Any], int]) -> Metric:
    return Metric(field, "counter", help, value)


def _seconds(field: str, help: str, ns: Callable[[Any], int]) -> Metric:
    """A counter of a time, which ``ns`` has in nanoseconds."""
    return Metric(field, "counter", help, lambda row: ns(row) / 1e9, is_float=True)


def _histogram(field: str, help: str, value: Callable[[Any], Histogram]) -> Metric:
    return Metric(field, "histogram", help, value, is_float=True)


def _gauge(field: str, help: str, value: Callable[[Any], Number], *, is_float: bool = False) -> Metric:
    return Metric(field, "gauge", help, value, is_float)


def _info(help: str, field: str = "info", **texts: Callable[[Any], object]) -> Metric:
    def value(row: Any) -> dict[str, str]:
        return {name: str(text(row)) for name, text in texts.items()}

    return Metric(field, "info", help, value, texts=tuple(texts))


_CORE = Scope(
    "Core",
    "",
    "ghostbpf_",
    (),
    lambda state: [((), state)],
    (
        _info("The version of this exporter.", "build_info", version=lambda _: version()),
        _gauge("up", "Whether a core is attached, and was read.", lambda state: int(state.state == "attached")),
        _gauge("full_mode", "Whether the core has every task of the fair class.", lambda state: int(state.full)),
        _seconds(
            "kernel_bypass_seconds_total",
            "Time for which the kernel bypassed the core, summed over CPUs.",
            lambda state: state.events.get(_BYPASS_NS, 0),
        ),
    ),
)

_STATE = Scope(
    "State",
    "states",
    "ghostbpf_core_",
    ("state",),
    lambda state: [((name,), int(name == state.state)) for name in STATES],
    (_gauge("state", "1 for the state of the core: attached, detached, ejected or unreadable.", lambda is_it: is_it),),
)

_EJECTION = Scope(
    "Ejection",
    "ejections",
    "ghostbpf_last_ejection_",
    ("reason",),
    lambda state: [] if state.ejection is None else [((state.ejection.reason,), state.ejection)],
    (
        _gauge(
            "timestamp_seconds",
            "When the kernel last ejected a core since boot, and its reason.",
            lambda ejection: boot_time() + ejection.at_ns / 1e9,
            is_float=True,
        ),
    ),
)

_EVENT = Scope(
    "Event",
    "events",
    "ghostbpf_kernel_",
    ("event",),
    lambda state: [((name,), count) for name, count in state.events.items() if name != _BYPASS_NS],
    (_counter("events_total", "The kernel's events SCX_EV_… since the core was attached.", lambda count: count),),
)

_ENCLAVE = Scope(
    "Enclave",
    "enclaves",
    "ghostbpf_enclave_",
    ("enclave",),
    lambda state: [((str(one.id),), one) for one in state.enclaves],
    (
        _info(
            "Its live policy, its CPUs, and the root of its tree, 0 if it is in none.",
            policy=lambda e: e.policy,
            cpus=lambda e: e.cpus,
            tree=lambda e: e.tree,
        ),
        _gauge(
            "created_timestamp_seconds",
            "When it was made; its counters were 0 then.",
            lambda e: boot_time() + e.created_ns / 1e9,
            is_float=True,
        ),
        _gauge("cpus", "CPUs that run its tasks now.", lambda e: len(e.granted)),
        _gauge("tasks", "Its tasks, runnable or not.", lambda e: e.tasks),
        _seconds("runtime_seconds_total", "CPU time of its tasks.", lambda e: e.counters.runtime_ns),
        _counter("switches_total", "Tasks put on a CPU.", lambda e: e.counters.switches),
        _counter("idle_wakeups_total", "Wakeups that got a CPU at once.", lambda e: e.counters.idle),
        _counter("queued_total", "Tasks put on a queue.", lambda e: e.counters.queued),
        _counter("preemptions_total", "Tasks that the policy took off a CPU.", lambda e: e.counters.preempted),
        _counter(
            "affinity_misses_total",
            "Tasks queued elsewhere: their affinity excludes every CPU of the enclave.",
            lambda e: e.counters.affinity_misses,
        ),
        _seconds("lent_seconds_total", "Time that others' tasks ran on its CPUs.", lambda e: e.counters.lent_ns),
        _seconds("borrowed_seconds_total", "Its runtime on CPUs of lenders.", lambda e: e.counters.borrowed_ns),
        _counter("borrowings_total", "Turns of its tasks on CPUs of lenders.", lambda e: e.counters.borrowings),
        _counter("reclaims_total", "Lent CPUs that its own tasks took back.", lambda e: e.counters.reclaims),
        _counter("departures_total", "Tasks that left the ext class on their own.", lambda e: e.departures),
        _counter("swaps_total", "Replacements of its policy.", lambda e: e.swaps),
        _counter("fallbacks_total", "Policies that lost it to the built-in FIFO.", lambda e: e.fallbacks),
        _gauge("fallback", "Whether the built-in FIFO schedules it now.", lambda e: int(e.fell_back)),
    ),
)

_STATS = Scope(
    "Stats",
    "statistics",
    "ghostbpf_enclave_",
    ("enclave",),
    lambda state: [((str(one.id),), one.stats) for one in state.enclaves if one.stats is not None],
    (
        _histogram("wakeup_wait_seconds", "Times from a wakeup to a CPU.", lambda stats: stats.wakeup_wait),
        _histogram(
            "preempted_wait_seconds",
            "Times from the end of a turn to the next, of tasks still runnable.",
            lambda stats: stats.preempted_wait,
        ),
        _histogram("turn_seconds", "Times on a CPU.", lambda stats: stats.turn),
        _histogram("waiting_tasks", "Numbers of waiting tasks, at each tick of a busy CPU.", lambda stats: stats.depth),
        _counter("class_preemptions_total", "Turns that a higher class ended.", lambda stats: stats.class_preemptions),
        _counter("slice_ends_total", "Turns that the slice or the policy ended.", lambda stats: stats.slice_ends),
        _seconds(
            "idle_wait_seconds_total",
            "The part of all waits in which the CPU that the task then got idled.",
            lambda stats: stats.idle_wait_ns,
        ),
        _counter(
            "idle_ticks_total",
            "Ticks of a busy CPU at which a task waited while another CPU idled.",
            lambda stats: stats.idle_ticks,
        ),
    ),
)

_CPU = Scope(
    "Cpu",
    "",
    "ghostbpf_enclave_cpu_",
    ("enclave", "cpu"),
    lambda state: [((str(e.id), str(cpu)), row) for e in state.enclaves for cpu, row in e.per_cpu.items()],
    (
        _seconds("runtime_seconds_total", "CPU time of the enclave's tasks there.", lambda row: row.runtime_ns),
        _counter("switches_total", "Tasks of the enclave put on that CPU.", lambda row: row.switches),
        _counter("preemptions_total", "Tasks that the policy took off it.", lambda row: row.preempted),
        _seconds("lent_seconds_total", "Time that others' tasks ran there.", lambda row: row.lent_ns),
    ),
)

_AGENT = Scope(
    "Agent",
    "agents",
    "ghostbpf_agent_",
    ("enclave",),
    lambda state: [((str(one.id),), one.agent) for one in state.enclaves if one.agent is not None],
    (
        _gauge("up", "1 while it decides; 0 if it has timed out or gone.", lambda a: int(a.state == "deciding")),
        _counter("messages_total", "Messages that it has read.", lambda a: a.messages),
        _counter("decisions_total", "Transactions that completed.", lambda a: a.committed),
        _counter("failed_commits_total", "Transactions that failed.", lambda a: a.failed),
        _counter("turns_total", "Turns that had something to do.", lambda a: a.turns),
        _seconds("busy_seconds_total", "Time spent in those turns.", lambda a: a.busy_ns),
        _counter("resyncs_total", "Times it read the state of every task.", lambda a: a.resyncs),
        _counter("lost_messages_total", "Messages that its full ring could not take.", lambda a: a.lost),
        _counter("timeouts_total", "Times it timed out, and the core decided.", lambda a: a.timeouts),
    ),
)

_LEAF = Scope(
    "Leaf",
    "leaves",
    "ghostbpf_leaf_",
    ("enclave",),
    lambda state: [((str(leaf.enclave),), (root, leaf)) for root, leaf in state.leaves],
    (
        _info("Its name, and the root of its tree.", leaf=lambda row: row[1].name, tree=lambda row: row[0]),
        _gauge("granted_cpus", "CPUs that the tree's arbiters have given it.", lambda row: len(row[1].granted)),
        _gauge("demand_tasks", "Its tasks that run or wait.", lambda row: row[1].demand),
        _counter("grants_total", "CPUs that it got.", lambda row: row[1].grants),
        _counter("preemptions_total", "Those that ran another leaf's task.", lambda row: row[1].preemptions),
        _counter("turns_total", "Those that it got because a task starved.", lambda row: row[1].turns),
        _counter("self_preempts_total", "Tasks that left a CPU for a priority CPU.", lambda row: row[1].self_preempts),
        _counter("held_pokes_total", "Preemptions that poke-threshold forbade.", lambda row: row[1].pokes_held),
    ),
)

_CGROUP = Scope(
    "Cgroup",
    "cgroups",
    "ghostbpf_cgroup_",
    ("cgroup",),
    lambda state: [((_utf8(usage.cgroup),), usage) for usage in state.cgroups],
    (
        _gauge(
            "limit_cpus", "Its cpu.max, in CPUs.", lambda usage: usage.quota_usec / usage.period_usec, is_float=True
        ),
        _gauge("throttled", "Whether its tasks wait for CPU time now.", lambda usage: int(usage.throttled)),
        _seconds("usage_seconds_total", "CPU time of its tasks in enclaves.", lambda usage: usage.usage_usec * 1000),
        _seconds(
            "throttled_seconds_total", "Time for which its tasks waited.", lambda usage: usage.throttled_usec * 1000
        ),
        _counter("periods_total", "Periods in which its tasks ran.", lambda usage: usage.nr_periods),
        _counter("throttled_periods_total", "Those in which it was throttled.", lambda usage: usage.nr_throttled),
        _counter("bursts_total", "Those in which it used saved CPU time.", lambda usage: usage.nr_bursts),
    ),
)

SCOPES = (_CORE, _STATE, _EJECTION, _EVENT, _ENCLAVE, _STATS, _CPU, _AGENT, _LEAF, _CGROUP)

#: The scopes that only --per-cpu shows.
PER_CPU = (_CPU,)


def scopes(*, per_cpu: bool) -> list[Scope]:
    """The scopes to export."""
    return [scope for scope in SCOPES if per_cpu or scope not in PER_CPU]


def _utf8(name: str) -> str:
    """A file's name, which may be any bytes, as text."""
    return name.encode(errors="surrogateescape").decode(errors="replace")

# SPDX-License-Identifier: Apache-2.0
"""A snapshot with something of everything, for tests of what is made of snapshots."""

from __future__ import annotations

from ghostbpf.schedulers.agents import AgentState
from ghostbpf.schedulers.cgroup_usage import CgroupUsage
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave_view import Counters
from ghostbpf.schedulers.errors import Ejected
from ghostbpf.schedulers.snapshot import EnclaveState, Snapshot
from ghostbpf.schedulers.stats import Histogram, Stats
from ghostbpf.schedulers.trees import Leaf

AGENT = AgentState(
    "deciding", 4711, "sol", "", messages=9, committed=7, failed=2, resyncs=1, lost=3, timeouts=4, turns=5,
    busy_ns=1_500_000_000, age_ns=1,
)  # fmt: skip
PER_CPU = {2: Counters(1, 2, 3, 4, 5, 600_000_000), 3: Counters(10, 20, 30, 40, 50, 400_000_000, 7, 8, 9, 11)}
STATS = Stats(
    wakeup_wait=Histogram((1, 2, *[0] * 29, 3), 0.5, 1.024e-6),
    preempted_wait=Histogram((0, 4, *[0] * 30), 0.25, 1.024e-6),
    turn=Histogram((*[0] * 10, 33, *[0] * 21), 1.0, 1.024e-6),
    depth=Histogram((1, 2, 1, *[0] * 13), 5, 1),
    class_preemptions=1, slice_ends=3, idle_wait_ns=250_000_000, idle_ticks=1,
)  # fmt: skip
#: A name with what OpenMetrics escapes, and a byte that is no UTF-8.
CGROUP = '/a "b"\\c\udcff'

STATE = Snapshot(
    "attached",
    enclaves=(
        EnclaveState(
            id=1,
            policy="sol",
            cpus=CpuSet.parse("2-3"),
            granted=CpuSet.parse("2-3"),
            tree=0,
            created_ns=5_000_000_000,
            tasks=6,
            counters=Counters.total(PER_CPU.values()),
            per_cpu=PER_CPU,
            stats=STATS,
            departures=12,
            swaps=13,
            fallbacks=14,
            fell_back=False,
            agent=AGENT,
        ),
    ),
    leaves=((4, Leaf(5, "batch", "rr", CpuSet([1]), 2, 3, 4, 5, 6, 7, 100, 0, CpuSet([1]), 0)),),
    cgroups=(
        CgroupUsage(
            CGROUP, quota_usec=50_000, period_usec=100_000, burst_usec=0, left_usec=0, throttled=True, wait_usec=1,
            nr_periods=20, nr_throttled=10, throttled_usec=2_500_000, nr_bursts=1, usage_usec=3_000_000,
        ),
    ),
    events={"SCX_EV_DISPATCH_KEEP_LAST": 3, "SCX_EV_BYPASS_DURATION": 2_000_000_000},
    ejection=Ejected("runnable task stall", "x failed to run", "", at_ns=1_000_000_000),
)  # fmt: skip

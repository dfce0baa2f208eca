# SPDX-License-Identifier: Apache-2.0
"""Missed events of sched_ext tasks: a program of the tracer is detached while they happen."""

from __future__ import annotations

import time

import pytest
from ghostbpf.tools.trace.dsqlat import TOOL as DSQLAT
from ghostbpf.tools.trace.filters import Filters
from ghostbpf.tools.trace.report import HistogramSection
from ghostbpf.tools.trace.tool import Request
from workload import Child, MakeEnclave, Workload, until

pytestmark = pytest.mark.usefixtures("quiet")

SLEEP = 0.5


def turn(sleeper: Child) -> None:
    """Let the sleeper run once and sleep again."""
    loops = sleeper.loops
    sleeper.wake()
    until(lambda: sleeper.loops > loops, f"{sleeper} ran")
    sleeper.asleep()


@pytest.mark.soak
def test_dsqlat_counts_no_sleep_as_a_wait_when_switches_are_missed(workload: Workload, enclave: MakeEnclave) -> None:
    sleeper = workload.sleeper(enclave("1"))
    with DSQLAT(Request(Filters(tid=sleeper.pid))) as tool:
        turn(sleeper)
        tool.tracer.links["tp_sched_switch"].close()
        turn(sleeper)
        tool.tracer.attach("tp_sched_switch")
        time.sleep(SLEEP)
        woken = time.monotonic()
        turn(sleeper)
        took = time.monotonic() - woken
        found = [s.histogram for s in tool.report(1.0) if isinstance(s, HistogramSection)]
        missed = tool.tracer.missed()
    assert missed.unended == 1
    assert sum(h.count for h in found) >= 2
    assert max(h.summary()["max"] for h in found) < 1e6 * (took + SLEEP / 2)

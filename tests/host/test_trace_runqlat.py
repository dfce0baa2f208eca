# SPDX-License-Identifier: Apache-2.0
"""Waits for a CPU: runqlat and schedlat compared with the kernel's own counts."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from tracing import Task, run_together, spin, tracing

WAKEUPS = 23

#: Both tools count every wait of a task of no enclave, under these names.
TOOLS = [("runqlat", "wait"), ("schedlat", "runnable_to_run")]


@pytest.mark.parametrize(("tool", "name"), TOOLS)
def test_each_wakeup_is_one_wait_and_each_preemption_another(task: Callable[..., Task], tool: str, name: str) -> None:
    inlet, outlet = os.pipe()
    reader = task(lambda: [os.read(inlet, 1) for _ in range(WAKEUPS)])
    reader.start()
    reader.sleeps()
    with tracing(tool, "-t", reader.pid) as traced:
        before = reader.figures()
        for _ in range(WAKEUPS):
            os.write(outlet, b"!")
            reader.sleeps()
        reader.finish()
        kernel = reader.figures() - before
    assert kernel.blocked == WAKEUPS
    assert kernel.has(traced.count(name), WAKEUPS + kernel.preempted)
    assert kernel.has(traced.count(name))
    assert traced.end["drops"] == 0


@pytest.mark.parametrize(("tool", "name"), TOOLS)
def test_waits_of_spinners_on_one_cpu_add_up_to_the_kernels_run_delay(
    task: Callable[..., Task], cpus: list[int], tool: str, name: str
) -> None:
    spinners = [task(lambda: spin(0.2), cpu=cpus[-1]) for _ in range(2)]
    with tracing(tool, "-L") as traced:
        before = [one.figures() for one in spinners]
        run_together(spinners)
        kernel = [one.figures() - then for one, then in zip(spinners, before, strict=True)]
    for one, figures in zip(spinners, kernel, strict=True):
        assert figures.waited > 0.1
        assert figures.has(traced.count(name, tid=one.pid))
        slack = figures.slack + traced.missed_seconds(name, tid=one.pid)
        assert traced.seconds(name, tid=one.pid) == pytest.approx(figures.waited, rel=0.05, abs=slack)
        assert traced.histogram(name, tid=one.pid)["max"] <= 1e6 * (1.05 * figures.waited + figures.slack)


def test_task_of_no_enclave_is_never_latched(task: Callable[..., Task]) -> None:
    worker = task(lambda: spin(0.01))
    with tracing("schedlat", "-t", worker.pid) as traced:
        worker.run()
    assert [line["name"] for line in traced] == ["runnable_to_run"]

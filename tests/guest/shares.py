# SPDX-License-Identifier: Apache-2.0
"""Shares of CPU time, as the kernel accounts them, compared with those of the nice values."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from workload import Child, Workload, runtime_ns, until

#: The kernel's weights (sched_prio_to_weight) of the nice values that tests use.
WEIGHTS = {-20: 88761, -10: 9548, -5: 3121, 0: 1024, 5: 335, 10: 110, 19: 15}

MS = 10**6


def renice(child: Child, nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, child.pid, nice)


def stopwatch(children: Sequence[Child]) -> Callable[[], list[int]]:
    """A function that returns the CPU time, in ns, of each child since this call."""
    before = [runtime_ns(child.pid) for child in children]
    return lambda: [runtime_ns(child.pid) - ran for child, ran in zip(children, before, strict=True)]


def expect_shares(children: Sequence[Child], nices: Sequence[int], ms: float, tolerance: float) -> None:
    """Let ``children`` run for ``ms`` in total: their shares are those of ``nices``, each within ``tolerance``.

    A virtual CPU that stops charges the time to the task that runs. A fair scheduler makes up for that, so the shares
    may be off at the end of ``ms``, but they converge.
    """
    expected = [WEIGHTS[nice] / sum(WEIGHTS[nice] for nice in nices) for nice in nices]
    ran = stopwatch(children)
    until(lambda: sum(ran()) > ms * MS, f"{ms} ms of run time")

    def shares() -> list[float]:
        now = ran()
        return [ns / sum(now) for ns in now]

    def error() -> float:
        return max(abs(share / weight - 1) for share, weight in zip(shares(), expected, strict=True))

    texts = (", ".join(f"{share:.2%}" for share in given) for given in (shares(), expected))
    print("after {:.0f} ms: {}; by weight: {}; off by {:.1%} at most".format(ms, *texts, error()))
    until(lambda: error() < tolerance, f"shares by weight within {tolerance:.0%}")


def spinners(workload: Workload, *arguments: object, nices: Sequence[int], **options: object) -> list[Child]:
    """A running spinner for each nice value."""
    children = [workload.spinner(*arguments, **options) for _ in nices]  # type: ignore[arg-type]
    for child, nice in zip(children, nices, strict=True):
        renice(child, nice)
    for child in children:
        child.progress()
    return children

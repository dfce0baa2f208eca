# SPDX-License-Identifier: Apache-2.0
"""Shares of CPU time, as the kernel's own accounts have them, beside what nice values promise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from workload import Child, Workload, runtime_ns, until

#: The kernel's weights (sched_prio_to_weight), as far as tests use them.
WEIGHTS = {-20: 88761, -10: 9548, -5: 3121, 0: 1024, 5: 335, 10: 110, 19: 15}

MS = 10**6


def renice(child: Child, nice: int) -> None:
    os.setpriority(os.PRIO_PROCESS, child.pid, nice)


def stopwatch(children: Sequence[Child]) -> Callable[[], list[int]]:
    """A function that gives the CPU time, in ns, that each child has had since this call."""
    before = [runtime_ns(child.pid) for child in children]
    return lambda: [runtime_ns(child.pid) - ran for child, ran in zip(children, before, strict=True)]


def expect_shares(children: Sequence[Child], nices: Sequence[int], ms: float, tolerance: float) -> None:
    """Let ``children`` run for ``ms`` in all: shares are those of the nice values, each within ``tolerance``.

    A machine that stops for a moment gives whoever runs just then too much; a fair scheduler makes up for that
    afterwards, so the shares may be off at the end of ``ms``, but not for long.
    """
    promised = [WEIGHTS[nice] / sum(WEIGHTS[nice] for nice in nices) for nice in nices]
    ran = stopwatch(children)
    until(lambda: sum(ran()) > ms * MS, f"{ms} ms of run time")

    def shares() -> list[float]:
        now = ran()
        return [one / sum(now) for one in now]

    def wrong() -> float:
        return max(abs(is_ / should - 1) for is_, should in zip(shares(), promised, strict=True))

    texts = (", ".join(f"{share:.2%}" for share in given) for given in (shares(), promised))
    print("after {:.0f} ms: {}; by weight: {}; off by {:.1%} at most".format(ms, *texts, wrong()))
    until(lambda: wrong() < tolerance, f"shares by weight within {tolerance:.0%}")


def spinners(workload: Workload, *arguments: object, nices: Sequence[int], **options: object) -> list[Child]:
    """A spinner for each nice value, all of them running."""
    children = [workload.spinner(*arguments, **options) for _ in nices]  # type: ignore[arg-type]
    for child, nice in zip(children, nices, strict=True):
        renice(child, nice)
    for child in children:
        child.progress()
    return children

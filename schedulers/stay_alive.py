# SPDX-License-Identifier: Apache-2.0
"""Stay-alive: the core replaces the policy of an enclave by its built-in FIFO when a runnable task waits for too long.

bpf/core/stay_alive.bpf.h is the kernel's half. This one attaches its pulse, and says why a policy was replaced.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..loaders import kernel_types
from ..loaders.attach import Link, online_cpus
from ..loaders.errors import BpfError
from ..loaders.link import Program
from . import queues

#: The program of the pulse.
PROGRAM = "perf_stay_alive"

#: How many CPUs have a pulse, of which one is needed: a CPU that goes offline loses its pulse for good.
_PULSE_CPUS = 4
#: Seconds between two pulses; PULSE_PERIOD in bpf/core/stay_alive.bpf.h.
PULSE_S = 0.5
#: For how many pulses the core notes whether a CPU was available; the same name there.
PULSES_KEPT = 63
#: From which share of a wait on a CPU counts as available: judge() there.
LEAST_SHARE = 0.25

#: The limits of a runnable timeout, in seconds. The kernel's watchdog acts after 30, and tasks that the FIFO has taken
#: over must run before that.
LEAST_S, MOST_S = 1.0, 25.0
DEFAULT = "15s"
#: CLOCK_MONOTONIC_COARSE advances with each tick.
_COARSE_CLOCK = 6


@dataclass(frozen=True)
class Fallback:
    """Why the core replaced ``policy`` of an enclave by the built-in FIFO, ``ago`` seconds ago.

    Task ``tid`` had been runnable for ``waited`` seconds. It waited on DSQ ``queue`` (0: on none), last ran on
    ``task_cpu``, and could have used ``cpu`` for the share ``available`` of its wait. Now ``running`` runs there, None
    if the CPU is idle.
    """

    policy: str
    has_agent: bool
    tid: int
    pid: int
    comm: str
    queue: int
    waited: float
    task_cpu: int
    cpu: int
    available: float
    running: str | None
    ago: float

    def __str__(self) -> str:
        return (
            f"the built-in FIFO has replaced policy {self.policy}: task {self.comm} ({self.tid}) waited for "
            f"{self.waited:.1f} s {self.where}, although CPU {self.cpu} {self.meanwhile}"
        )

    @property
    def where(self) -> str:
        """Where the task waited, as part of a sentence."""
        return f"on {self.queue_name}" + ("" if self.queue else ": enqueue() of the policy did not insert it")

    @property
    def queue_name(self) -> str:
        """The queue in words."""
        return queues.name(self.queue, self.task_cpu) if self.queue else "no queue"

    @property
    def meanwhile(self) -> str:
        """What the CPU did that the task could have used, as part of a sentence."""
        share = f"was available for {self.available:.0%} of that time"
        return f"{share}, and {'idles' if self.running is None else f'runs {self.running}'}"

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**vars(self), "queue": self.queue_name, "dsq": self.queue, "reason": str(self)}

    @classmethod
    def of(cls, record: Any) -> Self | None:
        """The last one of an enclave, from its ``struct fallback``; None if there was none since it was made."""
        from .core import text

        if not record.count:
            return None
        return cls(
            policy=text(record.policy),
            has_agent=bool(record.has_agent),
            tid=int(record.tid),
            pid=int(record.tgid),
            comm=text(record.comm),
            queue=int(record.queue),
            waited=record.wait_ns / 1e9,
            task_cpu=int(record.task_cpu),
            cpu=int(record.cpu),
            available=min(record.available / max(record.pulses, 1), 1.0),
            running=text(record.running_comm) if record.running else None,
            ago=(time.monotonic_ns() - record.at_ns) / 1e9,
        )


def timeout_ns(text: str) -> int:
    """Nanoseconds from "15s" or "2500ms", 0 from "off"; raises ValueError."""
    from .policy import duration_ns

    if text == "off":
        return 0
    value = duration_ns(text, most_s=MOST_S)
    if value < LEAST_S * 1e9:
        raise ValueError(f'bad duration "{text}": from {LEAST_S:g}s to {MOST_S:g}s, or off')
    return value


def constants() -> Mapping[str, int]:
    """Constants of the core's programs: where the kernel keeps its lists of waiting tasks, and the length of a tick."""
    rq, scx, fair = (kernel_types.struct(name).members for name in ("rq", "scx_rq", "cfs_rq"))
    return {
        # Without CONFIG_FAIR_GROUP_SCHED the fair runqueue has no pointer: is_supported().
        "cfs_rq_rq": fair["rq"].offset if "rq" in fair else 0,
        "rq_runnable_list": rq["scx"].offset + scx["runnable_list"].offset,
        "tick_ns": round(time.clock_getres(_COARSE_CLOCK) * 1e9),
    }


def is_supported() -> bool:
    """Whether this kernel's lists of waiting tasks can be found."""
    return "rq" in kernel_types.struct("cfs_rq").members


def attach_pulses(program: Program) -> dict[str, Link]:
    """Run ``program`` as the pulse on some CPUs, by the name of each pin."""
    links: dict[str, Link] = {}
    if not is_supported():
        return links
    for cpu in online_cpus()[:_PULSE_CPUS]:
        with contextlib.suppress(BpfError):  # the CPU has gone offline
            links[f"pulse_{cpu}"] = Link.clock(program, cpu, PULSE_S)
    return links

# SPDX-License-Identifier: Apache-2.0
"""The names of the queues (DSQs) on which runnable tasks wait."""

from __future__ import annotations

#: Queue ids of the kernel: a bit, SCX_DSQ_LOCAL_ON (with a CPU), and the number of SCX_DSQ_GLOBAL.
_BUILTIN = 1 << 63
_LOCAL_ON = 3 << 62
_GLOBAL = 1


def is_local(queue: int) -> bool:
    """Whether DSQ ``queue`` is a local queue of the kernel, whose tasks only wait until their CPU is free."""
    return queue & _LOCAL_ON == _LOCAL_ON or bool(queue & _BUILTIN and queue & 0xFF != _GLOBAL)


def owner(queue: int) -> int | None:
    """The CPU that DSQ ``queue`` is an own queue of; None for any other queue."""
    from .core import constant

    return queue & 0xFFFF if queue & ~0xFFFF in (constant("CPU_DSQS"), constant("VTIME_DSQS")) else None


def name(queue: int, cpu: int | None = None) -> str:
    """What DSQ ``queue`` is; ``cpu`` is the one of the task that waits there, which a local queue belongs to."""
    from .core import constant

    number, base = queue & 0xFFFF, queue & ~0xFFFF
    if queue & _BUILTIN:
        if queue & _LOCAL_ON == _LOCAL_ON:
            cpu = queue & 0xFFFFFFFF
        elif queue & 0xFF == _GLOBAL:
            return "the kernel's global queue"
        return "the kernel's local queue" + (f" of CPU {cpu}" if cpu is not None else "")
    if queue == constant("FALLBACK_DSQ"):
        return "the fallback queue of the core, which every CPU serves"
    if base == constant("PENDING_DSQS"):
        return f"PENDING, the queue of enclave {number}"
    if base == constant("CPU_DSQS"):
        return f"CPU_DSQ({number}), CPU {number}'s own queue"
    if base == constant("VTIME_DSQS"):
        return f"VTIME_DSQ({number}), CPU {number}'s own queue by vtime"
    return f"DSQ {queue:#x}"

# SPDX-License-Identifier: Apache-2.0
"""Kinds of options that policies have besides durations; see ``duration_ns`` in schedulers/policy.py."""

from __future__ import annotations

from ..cpuset import CpuSet
from ..policy import Option, duration_ns

_NO, _YES = ("no", "off", "false", "0"), ("yes", "on", "true", "1")


def slice_ns(text: str) -> int:
    """Nanoseconds of a slice; 0 for "inf". Raises ValueError."""
    return 0 if text == "inf" else duration_ns(text)


def flag(name: str, field: str, help: str, default: str = "no") -> Option:
    """An option that is "yes" or "no"."""
    return Option(name, field, lambda text: _choice(text, "no", "yes"), default, help)


def agent_options(*, fastpath: bool, per_cpu: bool) -> tuple[Option, ...]:
    """The options that every policy with an agent has."""
    options = (
        Option(
            "fastpath",
            "fastpath",
            lambda text: _choice(text, "off", "idle"),
            "idle" if fastpath else "off",
            "idle: BPF decides where no tasks compete; off: the agent decides everything",
        ),
        Option(
            "agent-timeout",
            "timeout_ns",
            duration_ns,
            "200ms",
            "how long the core waits for a decision of the agent",
        ),
        Option("agent-cpu", "agent_cpu", _cpu, "any", "the agent's CPU; if the agent spins there, it runs no tasks"),
    )
    if per_cpu:
        return options
    return (*options, flag("spin", "spin", "yes: the agent never sleeps, and reserves a CPU for itself"))


def _choice(text: str, zero: str, one: str) -> int:
    """1 for ``one`` and 0 for ``zero``, or for other words for yes and no."""
    for value, words in ((0, (zero, *_NO)), (1, (one, *_YES))):
        if text.lower() in words:
            return value
    raise ValueError(f'"{text}": write {one} or {zero}')


def _cpu(text: str) -> int:
    if text == "any":
        return -1
    try:
        [cpu] = CpuSet.parse(text)
    except ValueError:
        raise ValueError(f'bad CPU "{text}": write a number, or any') from None
    return cpu

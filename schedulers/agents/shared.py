# SPDX-License-Identifier: Apache-2.0
"""The maps that the agents of one enclave share with the core, and the state of each agent in them.

Loading the first policy with an agent pins these maps in ``enclave_<id>/agent``. They stay there until the enclave gets
a policy without an agent: an agent that takes over finds in them all that its predecessor knew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from ...loaders.errors import BpfError
from ...loaders.handle import open_pinned
from ...loaders.link import Module, Program, Target
from ...loaders.maps import Array, Map, MmapArray
from .. import pids
from ..core import Core, constant, ffi, text
from ..pins import ROOT, make_private
from ..tasks import set_policy
from ..topology import nr_cpu_words
from .layout import packer

_SHARED = ("agent_tasks", "status_words", "free_words", "channels", "word_allocator", "rings", "txns", "agents")
#: Only on machines with more than 64 CPUs.
_WIDE = "allowed_rest"
#: How long an agent may take to come back where its successor failed, and how often to look.
_RETURN_S, _POLL_S = 4.0, 0.01
_RT_PRIORITY = 1
_BEST_NICE = -20
_STATES = ("blocked", "waiting", "on CPU")
_COUNTS = ("messages", "committed", "failed", "resyncs", "lost", "timeouts", "turns", "busy_ns")


@dataclass(frozen=True)
class AgentState:
    """The state of an enclave's agent. Where each CPU has an agent, the counts are sums over all agents.

    ``state`` is "deciding", "timed_out" (at least one agent is) or "gone". ``tid`` is 0 where the agent is outside this
    process's pid namespace. The counts start at 0 when the agent takes over.
    """

    state: str
    tid: int
    policy: str
    reason: str
    messages: int
    committed: int
    failed: int
    resyncs: int
    lost: int
    timeouts: int
    turns: int
    busy_ns: int
    age_ns: int

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages * 1e9 / max(self.age_ns, 1)

    @property
    def capacity(self) -> float:
        """Messages per second that it could process if it never waited for one."""
        return self.messages * 1e9 / max(self.busy_ns, 1)

    @property
    def decision_ns(self) -> float:
        """Time per complete transaction: reading messages and failed transactions included."""
        return self.busy_ns / max(self.committed, 1)


class Agents:
    """The agents of enclave ``id``, through its pinned ``maps``."""

    def __init__(self, id: int, maps: Mapping[str, Map]) -> None:
        self.id, self.maps = id, dict(maps)
        self.channels = MmapArray(self.maps["channels"], ffi(), "struct channel")
        self.status_words = MmapArray(self.maps["status_words"], ffi(), "struct status_word")
        #: See ``struct allowed_rest`` in bpf/abi.h; None on machines without such CPUs.
        self.allowed_rest = MmapArray(self.maps[_WIDE], ffi(), "struct allowed_rest") if _WIDE in self.maps else None
        self._word_allocator = Array(self.maps["word_allocator"], ffi(), "struct word_allocator")

    @classmethod
    def open(cls, id: int) -> Self | None:
        """The agents of enclave ``id``; None where its policy has no agent."""
        maps = open_maps(id)
        return cls(id, maps) if maps else None

    @property
    def state(self) -> AgentState:
        """The state of the agent, or of all agents together."""
        first = self.channels[0]
        now = time.monotonic_ns()
        active = [first, *(channel for channel in islice(self.channels, 1, None) if channel.tid)]
        timed_out = any(is_timed_out(channel, now) for channel in active)
        state = ("timed_out" if timed_out else "deciding") if first.tid else "gone"
        counts = {name: sum(int(getattr(channel, name)) for channel in active) for name in _COUNTS}
        age_ns = int(now - first.since_ns)
        tid = pids.to_local([int(first.tid)]).get(int(first.tid), 0)
        return AgentState(state, tid, text(first.policy), text(first.reason), **counts, age_ns=age_ns)

    @property
    def is_abandoned(self) -> bool:
        """Whether the agent has left, and no agent that it replaced may return."""
        first = self.channels[0]
        return not first.tid and bool(first.confirmed)

    def wait_for_return(self) -> None:
        """Wait until the former agent has taken over again, at most _RETURN_S seconds: it may have died."""
        deadline = time.monotonic() + _RETURN_S
        while not self.channels[0].tid and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    @property
    def words_used(self) -> int:
        """How many status words, counted from the first, may belong to a task."""
        return min(int(self._word_allocator[0][0].used) + 1, len(self.status_words))

    def dismiss(self, reason: str = "") -> None:
        """Make every agent leave; from here on, the core decides."""
        self.set_reason(reason)
        for channel in self.channels:
            channel.tid = 0

    def set_reason(self, reason: str) -> None:
        """Record why the enclave has no agent any more."""
        self.channels[0].reason = reason.encode(errors="replace")[:159]

    def depart(self, tid: int) -> None:
        """Send the agent TASK_DEPARTED for a task that left the enclave without leaving its class."""
        self._run("call_depart", packer("agent_task_args").pack(pids.to_initial(tid), 0, 0))

    def report_cpus_changed(self) -> None:
        """Send each agent CPUS_CHANGED."""
        self._run("call_cpus_changed")

    def _run(self, name: str, context: bytes = b"") -> None:
        """Run a pinned program, unless the enclave has no agent any more."""
        try:
            program = Program(open_pinned(_directory(self.id) / name))
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        with program:
            program.run(context)

    def tids(self) -> set[int]:
        """The tasks that have a status word, by their tid in this process's pid namespace."""
        words = islice(self.status_words, self.words_used)
        return set(pids.to_local(int(word.gtid & 0xFFFFFFFF) for word in words if word.gtid).values())

    def task_states(self) -> Iterator[dict[str, Any]]:
        """The tasks that have a status word; "for" is how many seconds each has been in its state."""
        now = time.monotonic_ns()
        words = [word for word in islice(self.status_words, self.words_used) if word.gtid]
        local = pids.to_local(int(word.gtid & 0xFFFFFFFF) for word in words)
        for word in words:
            if (tid := local.get(word.gtid & 0xFFFFFFFF)) is not None:
                yield {
                    "tid": tid,
                    "state": _STATES[word.state],
                    "for": round(max(now - word.since_ns, 0) / 1e9, 3),
                    "seq": word.seq,
                }


def set_agent_class(tid: int, core: Core) -> None:
    """Take agent ``tid`` (0: the caller) out of SCHED_EXT, into a class that runs before its enclave's tasks."""
    core.release(tid or threading.get_native_id())
    if core.full:
        # In full mode every task of the fair class is in an enclave.
        set_policy(tid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, _RT_PRIORITY)
    else:
        set_policy(tid, os.SCHED_OTHER)
        os.setpriority(os.PRIO_PROCESS, tid, _BEST_NICE)


def is_timed_out(channel: Any, now: int) -> bool:
    """Whether the agent of ``channel`` takes longer than its time-out; the same as in bpf/agent/channels.bpf.h."""
    since = max(channel.oldest_pending_ns, channel.heartbeat_ns)
    late = channel.asked != channel.answered and now - since > channel.timeout_ns
    return bool(late or (channel.state == constant("AGENT_BUSY") and now - channel.heartbeat_ns > channel.timeout_ns))


def shared_maps() -> tuple[str, ...]:
    """The maps that successive agents of one enclave share."""
    return (*_SHARED, _WIDE) if nr_cpu_words() > 1 else _SHARED


def has_pins(id: int) -> bool:
    """Whether anything is pinned for the agents of enclave ``id``, though it may be incomplete."""
    return _directory(id).exists()


def forget(id: int) -> None:
    """Dismiss the agents of enclave ``id`` and unpin what they shared."""
    if (agents := Agents.open(id)) is not None:
        agents.dismiss()
    (_directory(id) / "call_depart").unlink(missing_ok=True)  # first: see _pinned()
    shutil.rmtree(_directory(id), ignore_errors=True)


def _directory(id: int) -> Path:
    return ROOT / f"enclave_{id}" / "agent"


def open_maps(id: int) -> dict[str, Map]:
    """The pinned maps of enclave ``id``; empty where there are none."""
    while (pinned := _pinned(id)) is not None:
        try:
            maps = {name: Map.open(_directory(id) / name) for name in shared_maps()}
        except BpfError:
            if _pinned(id) == pinned:
                raise
        else:
            # Otherwise another loader has replaced the pins, and maps may be a mixture.
            if _pinned(id) == pinned:
                return maps
    return {}


def _pinned(id: int) -> int | None:
    """A number that changes with the set of pins; None where there are no pins, or not all of them."""
    # The program is pinned last and unpinned first: without it, the other pins are the rest of a loader that died.
    with contextlib.suppress(FileNotFoundError):
        return (_directory(id) / "call_depart").stat().st_ino
    return None


def pin(id: int, module: Module) -> None:
    """Pin the maps that agents of enclave ``id`` share."""
    shutil.rmtree(_directory(id), ignore_errors=True)
    make_private(_directory(id))
    for name in shared_maps():
        module.own_maps[name].pin(_directory(id) / name)
    for name in ("call_cpus_changed", "call_depart"):
        with module.load(name, Target.syscall()) as program:
            program.pin(_directory(id) / name)

# SPDX-License-Identifier: Apache-2.0
"""An enclave's agents as the kernel knows them: the maps they share with the BPF half, and who is behind a channel.

The maps are made when the enclave first gets a policy with an agent, and stay, in ``enclave_<id>/agent``, until it gets
one without: an agent that takes over finds in them what the one before knew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from ..loaders.errors import BpfError, GhostError
from ..loaders.handle import open_pinned
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Array, Map, MmapArray, possible_cpus
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from . import pids
from .core import ROOT, Core, constant, ffi, make_private, text
from .cpuset import CpuSet
from .policy import LoadedPolicy, Policy
from .tasks import set_policy
from .topology import Topology

#: What successive agents of one enclave share.
SHARED = ("agent_tasks", "status_words", "free_words", "channels", "word_allocator", "rings", "txns", "agents")
_RT_PRIORITY = 1
_BEST_NICE = -20
_STATES = ("blocked", "waiting", "on CPU")
_COUNTS = ("messages", "committed", "failed", "resyncs", "lost", "timeouts", "turns", "busy_ns")


@dataclass(frozen=True)
class AgentState:
    """An enclave's agent; counts are since it took over, and where each CPU has one, those of all of them.

    ``state``: deciding, silent (one of them at least) or gone. ``tid`` is 0 where the agent is outside of this
    process's pid namespace.
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
        """Messages per second that it could take if there were always some."""
        return self.messages * 1e9 / max(self.busy_ns, 1)

    @property
    def decision_ns(self) -> float:
        """What one transaction that was complete cost, all that led to it included."""
        return self.busy_ns / max(self.committed, 1)


class Agents:
    """The agents of enclave ``id``, through its pinned ``maps``."""

    def __init__(self, id: int, maps: Mapping[str, Map]) -> None:
        self.id, self.maps = id, dict(maps)
        self.channels = MmapArray(self.maps["channels"], ffi(), "struct channel")
        self.status_words = MmapArray(self.maps["status_words"], ffi(), "struct status_word")
        self._word_allocator = Array(self.maps["word_allocator"], ffi(), "struct word_allocator")

    @classmethod
    def open(cls, id: int) -> Self | None:
        """Those of enclave ``id``; None where its policy has no agent."""
        maps = _open_maps(id)
        return cls(id, maps) if maps else None

    @property
    def state(self) -> AgentState:
        """What there is to know about the agent, or the agents together."""
        first = self.channels[0]
        now = time.monotonic_ns()
        there = [first, *(channel for channel in islice(self.channels, 1, None) if channel.tid)]
        timed_out = any(_is_timed_out(channel, now) for channel in there)
        state = ("timed_out" if timed_out else "deciding") if first.tid else "gone"
        counts = {name: sum(int(getattr(channel, name)) for channel in there) for name in _COUNTS}
        age_ns = int(now - first.since_ns)
        tid = pids.to_local([int(first.tid)]).get(int(first.tid), 0)
        return AgentState(state, tid, text(first.policy), text(first.reason), **counts, age_ns=age_ns)

    @property
    def words_used(self) -> int:
        """How many status words, from the first on, may have a task."""
        return min(int(self._word_allocator[0][0].used) + 1, len(self.status_words))

    def dismiss(self, reason: str = "") -> None:
        """Have every agent leave, for ``reason``; the core decides from here on."""
        self.tell_why(reason)
        for channel in self.channels:
            channel.tid = 0

    def tell_why(self, reason: str) -> None:
        """Write down, for whoever asks, why there is no agent any more."""
        self.channels[0].reason = reason.encode(errors="replace")[:159]

    def depart(self, tid: int) -> None:
        """Tell the agent of a task that was moved out without leaving its class; there may be none any more."""
        argument = ffi().new("struct agent_task_args *", {"gtid": pids.to_initial(tid)})
        try:
            program = Program(open_pinned(_directory(self.id) / "call_depart"))
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        with program:
            program.run(bytes(ffi().buffer(argument)))

    def tids(self) -> set[int]:
        """The tasks that have a status word, of this process's pid namespace."""
        words = islice(self.status_words, self.words_used)
        return set(pids.to_local(int(word.gtid & 0xFFFFFFFF) for word in words if word.gtid).values())

    def task_states(self) -> Iterator[dict[str, Any]]:
        """The tasks that the agent knows, and since when (seconds) each is in its state."""
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


@dataclass(frozen=True)
class AgentPolicySpec(Policy):
    """The BPF half of a policy whose other half is an agent."""

    program: str = "agent"
    directory: Path = BPF_DIR / "agent"
    queues: bool = True
    agent: Any = None  #: the class of the other half, an AgentPolicy

    def is_hinted(self, compiled: Object) -> bool:
        """Whether either half reads hints."""
        return self.agent.hinted or super().is_hinted(compiled)

    def check(self, values: Mapping[str, int], cpus: CpuSet) -> None:
        """Raise GhostError where an agent with these options cannot decide for ``cpus``."""
        cpu = values["agent_cpu"]
        if cpu >= 0 and cpu not in (online := Topology.from_sysfs().all_cpus):
            raise GhostError(f"CPU {cpu}, for the agent, is not there or not online", hint=f"online are {online}")
        if values.get("spin") and len(cpus) < 2:
            raise GhostError("an agent that spins needs a CPU besides those that run tasks", hint="--cpus with two")

    def load(self, compiled: Object, enclave: int, maps: Mapping[str, Map], values: Mapping[str, int]) -> LoadedPolicy:
        """Like Policy.load; the maps that agents share are those there are, or made and pinned."""
        shared = _open_maps(enclave)
        channels = possible_cpus() + 1
        entries = {"channels": channels, "rings": channels, "agents": channels, "txns": channels * constant("TXNS")}
        module = Module(compiled, maps={**maps, **shared}, constants={"enclave": enclave}, entries=entries)
        if not shared:
            _pin(enclave, module)
        loaded = self._load(module, values)
        return replace(loaded, maps={name: m for name, m in loaded.maps.items() if name not in SHARED})


def set_agent_class(tid: int, core: Core) -> None:
    """Have agent ``tid`` (0: the caller) scheduled before its enclave's tasks, and by nobody's agent."""
    core.release(tid or threading.get_native_id())
    if core.full:
        # Whatever is of the fair class is in an enclave.
        set_policy(tid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, _RT_PRIORITY)
    else:
        set_policy(tid, os.SCHED_OTHER)
        os.setpriority(os.PRIO_PROCESS, tid, _BEST_NICE)


def _is_timed_out(channel: Any, now: int) -> bool:
    """As is_timed_out() of bpf/agent/messages.bpf.h."""
    since = max(channel.oldest_pending_ns, channel.heartbeat_ns)
    late = channel.asked != channel.answered and now - since > channel.timeout_ns
    return bool(late or (channel.state == constant("AGENT_TURNS") and now - channel.heartbeat_ns > channel.timeout_ns))


def is_there(id: int) -> bool:
    """Whether anything is left that agents of enclave ``id`` share, or were to share."""
    return _directory(id).exists()


def forget(id: int) -> None:
    """Dismiss the agents of enclave ``id`` and remove what they shared."""
    if (agents := Agents.open(id)) is not None:
        agents.dismiss()
    (_directory(id) / "call_depart").unlink(missing_ok=True)  # first: without it, the rest counts for nothing
    shutil.rmtree(_directory(id), ignore_errors=True)


def _directory(id: int) -> Path:
    return ROOT / f"enclave_{id}" / "agent"


def _open_maps(id: int) -> dict[str, Map]:
    while (pinned := _pinned(id)) is not None:
        try:
            maps = {name: Map.open(_directory(id) / name) for name in SHARED}
        except BpfError:
            if _pinned(id) == pinned:
                raise
        else:
            # Else others were pinned meanwhile, and some of the maps may be those.
            if _pinned(id) == pinned:
                return maps
    return {}


def _pinned(id: int) -> int | None:
    """What tells these pins from those before and after them; None where there are none, or not all of them."""
    # The program is pinned last, and unpinned first: without it, the rest is what a loader left that died.
    with contextlib.suppress(FileNotFoundError):
        return (_directory(id) / "call_depart").stat().st_ino
    return None


def _pin(id: int, module: Module) -> None:
    shutil.rmtree(_directory(id), ignore_errors=True)
    make_private(_directory(id))
    for name in SHARED:
        module.own_maps[name].pin(_directory(id) / name)
    with module.load("call_depart", Target.syscall()) as program:
        program.pin(_directory(id) / "call_depart")

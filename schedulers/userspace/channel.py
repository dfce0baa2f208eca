# SPDX-License-Identifier: Apache-2.0
"""An agent's side of its channel: the ring it reads, the transactions it writes, the programs it calls."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...hints import Hints
from ...loaders import abi, compiler
from ...loaders.attach import Link, Sampler
from ...loaders.errors import BpfError, GhostError
from ...loaders.link import Module, Program, Target, create_map
from ...loaders.maps import Hash, Map, MmapArray
from ...loaders.object import MapDef
from ...loaders.ring import Ring
from .. import pids
from ..agents import AgentPolicySpec, Agents
from ..core import constant, ffi
from ..cpuset import CpuSet
from ..enclave import Enclave
from ..policy import Policy
from ..topology import Topology, nr_cpu_words
from .task import Transaction, TxnState, message_format

_RINGBUF = 27
_PULSE_HZ = 20
_TXN, _COMMIT, _TASK, _TAKE = (
    struct.Struct("=" + abi.struct_format(ffi(), f"struct {name}"))
    for name in ("txn", "commit_args", "agent_task_args", "take_args")
)
# Offsets in struct channel, in units of u64 and of u32.
_TID, _LOAD, _HEARTBEAT, _STATE, _ASKED, _ANSWERED = (
    ffi().offsetof("struct channel", field) // 8
    for field in ("tid", "load", "heartbeat_ns", "state", "asked", "answered")
)
_MESSAGES, _COMMITTED, _FAILED, _TURNS, _BUSY = (
    ffi().offsetof("struct channel", field) // 8 for field in ("messages", "committed", "failed", "turns", "busy_ns")
)
_SIZE = ffi().sizeof("struct channel") // 8
_AT_REST, _IN_TURN = constant("AGENT_RESTS"), constant("AGENT_TURNS")
_OVERFLOWED = ffi().offsetof("struct channel", "overflowed") // 4


class Channel:
    """Channel ``number`` of ``enclave``, to be taken over by the calling thread; 0 is the enclave's, 1 + n CPU n's."""

    def __init__(self, enclave: Enclave, agents: Agents, half: AgentPolicySpec, number: int, ring_bytes: int) -> None:
        self.number, self.tid = number, pids.to_initial(threading.get_native_id())
        self._agents, self._maps = agents, {**enclave.core.maps, **agents.maps}
        self._load(enclave, half, ring_bytes)
        self.record = agents.channels[number]
        self._words = agents.channels.view(number, 1).cast("Q")
        self._halves = agents.channels.view(number, 1).cast("I")
        # Of the enclave's channel and each of its CPUs', in one piece.
        everyone = agents.channels.view(0, 2 + max(enclave.cpus)).cast("Q")
        self._tids, self._loads = everyone[_TID::_SIZE], everyone[_LOAD::_SIZE]
        self.read = self._ring.read
        self.batch = constant("TXNS")
        self._txns = self._txn_records.view(number * self.batch, self.batch)
        self._states = self._txns.cast("I")[_TXN.size // 4 - 1 :: _TXN.size // 4]

    def _load(self, enclave: Enclave, half: AgentPolicySpec, ring_bytes: int) -> None:
        """Load the programs that it calls, attach those that watch for it, and make its ring."""
        number = self.number
        obj = compiler.compile(half.source, {"NR_CPU_WORDS": nr_cpu_words()})
        module = Module(obj, maps=self._maps, constants={"enclave": enclave.id})
        self._commit = module.load("call_commit", Target.syscall()).prepared(_COMMIT.size)
        self._take_stock = module.load("call_take_stock", Target.syscall())
        self._associate = module.load("call_associate", Target.syscall()).prepared(_TASK.size)
        self._take = module.load("call_take", Target.syscall()).prepared(_TAKE.size)
        self._leave = module.load("call_leave", Target.syscall())
        self._watches: list[Any] = [
            Link.tracepoint(module.load("tp_sched_process_exit", Target.tracepoint("sched_process_exit")))
        ]
        if number == 0:
            self._spin = module.load("call_spin", Target.syscall())
            pulse = module.load("pulse", Target.perf_event())
            if half.agent.watches_cpus:
                switches = module.load("tp_sched_switch", Target.tracepoint("sched_switch"))
                self._watches.append(Link.tracepoint(switches))
            self._pulse = Pulse(pulse, lambda: CpuSet.from_words(enclave.core.state.online))
        self._ring_map = create_map(MapDef("ring", _RINGBUF, 0, 0, ring_bytes, 0, 0, 0, 0))
        self._ring = Ring(self._ring_map, message_format())
        self._txn_records = MmapArray(self._agents.maps["txns"], ffi(), "struct txn")
        self._known = Hash(self._maps["agents"], ffi(), "u32", "u32")

    def _offer_ring(self) -> None:
        """Have the core put messages of this channel into this agent's ring from now on."""
        Hash(self._maps["rings"], ffi(), "u32", "u32")[self.number] = self._ring_map.fd

    def keep_pulse(self) -> None:
        """Have the pulse go on where its CPU has gone; only channel 0 has one."""
        if self.number == 0:
            self._pulse.follow()

    def take_over(self, *, timeout_ns: int, fastpath: bool, spins: bool, policy: str, per_cpu: bool) -> None:
        """Put this thread behind the channel, and any other agent of the enclave out; the last store does it.

        An agent of one CPU puts out only the one before it there.
        """
        self._offer_ring()
        known = self._known
        # Not that of record.tid alone: who was killed, or left, has cleared that and is still known.
        for tid in [tid for tid in known if known.get(tid) == self.number]:
            with contextlib.suppress(KeyError):
                del known[tid]
        known[self.tid] = self.number
        record = self.record
        record.overflowed = record.timed_out = record.ticks = 0
        record.messages = record.committed = record.failed = record.resyncs = record.lost = record.timeouts = 0
        record.turns = record.busy_ns = 0
        record.timeout_ns, record.fastpath, record.spins, record.per_cpu = timeout_ns, fastpath, spins, per_cpu
        record.policy, record.reason = policy.encode()[:31], b""
        if self.number == 0:
            for other in range(1, len(self._agents.channels)):
                self._agents.channels[other].tid = 0
        record.since_ns = self.beat()
        record.tid = self.tid

    def register_waiting(self) -> None:
        """Have every task that waits get a status word."""
        self._take_stock.run()

    def beat(self) -> int:
        """Show that the agent is about to read; when that is."""
        self._words[_HEARTBEAT] = now = time.monotonic_ns()
        self._words[_STATE] = _IN_TURN
        return now

    def rest(self) -> None:
        """Show that it has come to the end of a turn.

        A message has its place in the ring before it is counted: where the ring is empty after a look at the count, all
        that were counted have been read.
        """
        asked = self._words[_ASKED]
        if self._ring.empty:
            self._words[_ANSWERED] = asked
        self._words[_STATE] = _AT_REST

    @property
    def mine(self) -> bool:
        """Whether this thread is still the agent behind it."""
        return bool(self._words[_TID] == self.tid)

    @property
    def overflowed(self) -> bool:
        """Whether messages were lost."""
        return bool(self._halves[_OVERFLOWED])

    def count(self, committed: int, failed: int) -> None:
        """Add transactions to what the agent shows of itself."""
        self._words[_COMMITTED] += committed
        if failed:
            self._words[_FAILED] += failed

    def count_turn(self, messages: int, began_ns: int) -> None:
        """Add a turn in which there was something to do, and which ends here."""
        self._words[_MESSAGES] += messages
        self._words[_TURNS] += 1
        self._words[_BUSY] += time.monotonic_ns() - began_ns

    def wait(self, seconds: float) -> bool:
        """Sleep until there is something to read, ``seconds`` at most; whether there is."""
        return bool(select.select([self._ring], [], [], seconds)[0])  # epoll would count in milliseconds

    @staticmethod
    def check(transactions: Sequence[Transaction]) -> None:
        """Raise TypeError, ValueError or struct.error where commit() would."""
        for task, cpu, slice_ns, flags in transactions:
            gtid, seq = (task.gtid, task.seq) if task else (0, 0)
            _TXN.pack(gtid, slice_ns, seq, cpu, flags, 0)

    def commit(self, transactions: Sequence[Transaction], group: bool = False) -> list[int]:
        """Commit up to ``batch`` transactions; the TxnState of each, in order."""
        offset = 0
        for task, cpu, slice_ns, flags in transactions:
            gtid, seq = (task.gtid, task.seq) if task else (0, 0)
            _TXN.pack_into(self._txns, offset, gtid, slice_ns, seq, cpu, flags, 0)
            offset += _TXN.size
        count = len(transactions)
        _COMMIT.pack_into(self._commit.context, 0, self.number, count, group, 0)
        if self._commit():
            return [TxnState.NOT_PERMITTED] * count
        return self._states[:count].tolist()

    def associate(self, gtid: int, channel: int) -> bool:
        """Have the messages of a task go to another channel from now on; False where it is gone."""
        _TASK.pack_into(self._associate.context, 0, gtid, channel, 0)
        return self._associate() == 0

    def take(self, most: int, channel: int) -> int:
        """Have up to ``most`` tasks that wait for another ``channel`` (0: any) come here; how many there were."""
        _TAKE.pack_into(self._take.context, 0, self.number, channel, most, 0)
        self._take()
        return int(_TAKE.unpack_from(self._take.context)[3])

    def others(self) -> Iterator[int]:
        """The number of each channel that has an agent behind it."""
        return (number for number, tid in enumerate(self._tids.tolist()) if tid)

    def loads(self) -> list[int]:
        """How many tasks run or wait, by the number of the channel that gets their messages."""
        return self._loads.tolist()

    def leave(self, reason: str = "") -> None:
        """Let the core decide from here on, unless another agent has taken over."""
        if self.mine:
            self.record.reason = reason.encode(errors="replace")[:159]
        self._leave.run(self._me())

    def spin_on(self, cpu: int | None) -> None:
        """Have ``cpu`` run no tasks, for this agent, the enclave's, spins there; its other CPUs run them again."""
        self._spin.run(self._me(-1 if cpu is None else cpu))

    def _me(self, cpu: int = -1) -> bytes:
        return bytes(ffi().buffer(ffi().new("struct agent_args *", {"channel": self.number, "cpu": cpu})))


class Pulse:
    """Has ``program`` run _PULSE_HZ times a second, on the first of the CPUs that ``online`` names.

    The kernel ends a sampler whose CPU goes, and does not begin anew when that CPU is back.
    """

    def __init__(self, program: Program, online: Callable[[], CpuSet]) -> None:
        self._program, self._online = program, online
        #: The CPU that it is on.
        self.cpu = -1
        self._start()

    def follow(self) -> None:
        """Go to another CPU if the sampler's has been offline."""
        if self._sampler.is_alive():
            return
        with contextlib.suppress(BpfError):  # that CPU goes just now: the next call finds another
            before = self._sampler
            self._start()
            before.close()

    def _start(self) -> None:
        cpu = min(self._online())
        self._sampler = Sampler.on_cpu(self._program, cpu, _PULSE_HZ)
        self.cpu = cpu


class Kernel:
    """What an agent of ``enclave`` reaches the kernel by. Tests put a model of the kernel in its place.

    ``bank`` is where the BPF ``half`` is, unless it is the live one.
    """

    def __init__(self, enclave: Enclave, half: AgentPolicySpec, bank: int | None = None) -> None:
        there = Agents.open(enclave.id)
        if there is None:
            raise GhostError(f"the policy of enclave {enclave.id} has no agent")
        self._enclave, self._half, self._bank, self.agents = enclave, half, bank, there

    def topology(self) -> Topology:
        """The machine's CPUs."""
        return Topology.from_sysfs()

    def channel(self, number: int, ring_bytes: int) -> Channel:
        """Channel ``number``, for the calling thread."""
        return Channel(self._enclave, self.agents, self._half, number, ring_bytes)

    def params(self) -> tuple[MmapArray, Any]:
        """The parameters of the BPF half, as of params_of()."""
        return params_of(self._enclave, self._half, self._bank)

    def hints(self) -> Hints:
        """What applications say of the enclave's tasks."""
        return Hints.open(self._enclave.hints_path)

    def stay_on(self, cpu: int) -> None:
        """Have the calling thread run on ``cpu`` alone."""
        os.sched_setaffinity(0, {cpu})


def params_of(enclave: Enclave, half: Policy, bank: int | None = None) -> tuple[MmapArray, Any]:
    """The parameters of the enclave's BPF half in ``bank``, or the live one: the map, and its one record."""
    if bank is None:
        bank = int(enclave.core.enclaves[enclave.id].bank)
    kernel = Map.open(Path(enclave.path, f"policy_{bank}", "params"))
    array = MmapArray(kernel, *half.params_type)
    return array, array[0]

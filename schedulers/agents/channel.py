# SPDX-License-Identifier: Apache-2.0
"""One agent's channel to the core: the ring that it reads, the transactions that it writes, the programs it calls."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...loaders.attach import Link, Sampler
from ...loaders.errors import BpfError
from ...loaders.link import Program, create_map
from ...loaders.maps import Hash, MmapArray, possible_cpus
from ...loaders.object import MapDef
from ...loaders.ring import Ring
from ...loaders.uapi import map_type
from .. import pids
from ..core import constant, ffi, synchronize_rcu
from ..cpuset import CpuSet
from .layout import column, packer
from .programs import AgentPrograms
from .shared import Agents, is_timed_out
from .spec import EnclaveView
from .task import Transaction, TxnState, message_format

_PULSE_HZ = 20
_TXN, _COMMIT, _TASK, _TAKE, _AGENT = map(packer, ("txn", "commit_args", "agent_task_args", "take_args", "agent_args"))
_IDLE, _BUSY = constant("AGENT_IDLE"), constant("AGENT_BUSY")


class Channel:
    """Channel ``number`` of ``enclave``, for the calling thread to take over; 0 is the enclave's, 1 + n CPU n's."""

    def __init__(
        self, enclave: EnclaveView, agents: Agents, programs: AgentPrograms, number: int, ring_bytes: int
    ) -> None:
        self.number, self.tid = number, pids.to_initial(threading.get_native_id())
        self._agents, self._programs = agents, programs
        self._connect(enclave, ring_bytes)
        self.record = agents.channels[number]
        # What each turn reads or writes; the members are item 0.
        own = agents.channels.view(number, 1)
        self._tid, self._heartbeat, self._state, self._asked, self._answered, self._overflowed = (
            column(own, "channel", member)
            for member in ("tid", "heartbeat_ns", "state", "asked", "answered", "overflowed")
        )
        self._messages, self._committed, self._failed, self._turns, self._busy_ns = (
            column(own, "channel", member) for member in ("messages", "committed", "failed", "turns", "busy_ns")
        )
        # By channel number: the enclave's and that of each CPU, which may become the enclave's.
        count = min(len(agents.channels), 1 + max(possible_cpus(), 1 + max(enclave.cpus)))
        channels = agents.channels.view(0, count)
        self._tids, self._loads = column(channels, "channel", "tid"), column(channels, "channel", "load")
        #: How many CPUs a message can name.
        self.cpus = count - 1
        self.read = self._ring.read
        self.batch = constant("TXNS")
        self._txns = self._txn_records.view(number * self.batch, self.batch)
        self._txn_states = column(self._txns, "txn", "state")

    def _connect(self, enclave: EnclaveView, ring_bytes: int) -> None:
        """Prepare the calls of programs, attach those that serve the enclave's agent, and create the ring."""
        self._commit = self._programs.commit.prepared(_COMMIT.size)
        self._associate = self._programs.associate.prepared(_TASK.size)
        self._take = self._programs.take.prepared(_TAKE.size)
        if self.number == 0:
            self._pulse = Pulse(self._programs.pulse, lambda: CpuSet.from_words(enclave.core.state.online))
            self._cpu_watch = (
                Link.tracepoint(self._programs.cpu_watch) if self._programs.cpu_watch is not None else None
            )
        self._ring_map = create_map(MapDef("ring", map_type("RINGBUF"), 0, 0, ring_bytes, 0, 0, 0, 0))
        self._ring = Ring(self._ring_map, message_format())
        self._txn_records = MmapArray(self._agents.maps["txns"], ffi(), "struct txn")
        self._known = Hash(self._agents.maps["agents"], ffi(), "u32", "u32")

    def for_native(self) -> dict[str, Any] | None:
        """The arguments of the native ``Turns`` that are this channel's; None if that cannot use it."""
        consumed, produced, data = self._ring.memory
        columns = {
            "tid": self._tid,
            "heartbeat": self._heartbeat,
            "state": self._state,
            "asked": self._asked,
            "answered": self._answered,
            "overflowed": self._overflowed,
            "messages": self._messages,
            "committed": self._committed,
            "failed": self._failed,
            "turns": self._turns,
            "busy_ns": self._busy_ns,
            "consumed": consumed,
            "produced": produced,
            "data": data,
            "txns": self._txns,
        }
        fds = {"ring_fd": self._ring.fileno(), "commit_fd": self._programs.commit.fd}
        return {"columns": columns, **fds, "channel": self.number, "batch": self.batch, "tid": self.tid}

    def _offer_ring(self) -> None:
        """Make the core put this channel's messages into this agent's ring."""
        Hash(self._agents.maps["rings"], ffi(), "u32", "u32")[self.number] = self._ring_map.fd

    def keep_pulse(self) -> None:
        """Move the pulse to another CPU if its CPU went offline; only channel 0 has a pulse."""
        if self.number == 0:
            self._pulse.follow()

    def take_over(
        self, *, timeout_ns: int, fastpath: bool, spins: bool, policy: str, per_cpu: bool, reads_cpus: bool
    ) -> None:
        """Make this thread the channel's agent with one last store, and the enclave's agent so far leaves.

        The agent of one CPU replaces only the agent of that CPU. The enclave's agent replaces those of all CPUs, too;
        the agents that it replaces leave after confirm().
        """
        if self.number == 0:
            self.record.confirmed = 0
        self._offer_ring()
        first, known = self._agents.channels[0], self._known
        # Agents of CPUs take over while the enclave's agent decides.
        self._was_delegated = bool(first.tid) and not is_timed_out(first, time.monotonic_ns()) and not first.fastpath
        # Not record.tid alone: an agent that left or was killed has cleared that, and is still in the table.
        for tid in [tid for tid in known if known.get(tid) == self.number]:
            with contextlib.suppress(KeyError):
                del known[tid]
        known[self.tid] = self.number
        record = self.record
        record.overflowed = record.timed_out = record.ticks = 0
        record.messages = record.committed = record.failed = record.resyncs = record.lost = record.timeouts = 0
        record.turns = record.busy_ns = 0
        record.timeout_ns, record.fastpath, record.spins, record.per_cpu = timeout_ns, fastpath, spins, per_cpu
        record.reads_cpus = reads_cpus
        record.policy, record.reason = policy.encode()[:31], b""
        if self.number == 0:
            for other in range(1, len(self._agents.channels)):
                self._agents.channels[other].tid = 0
        record.since_ns = self.begin_turn()
        record.tid = self.tid

    def confirm(self) -> None:
        """Record that the enclave's agent, and those of its CPUs, have taken over without a failure."""
        self._agents.channels[0].confirmed = 1

    @property
    def successor(self) -> tuple[bool, int]:
        """Whether the enclave's last take-over is complete, and the tid of its agent, or 0 if that has left."""
        first = self._agents.channels[0]
        return bool(first.confirmed), int(first.tid)  # in this order: an agent that returns confirms last

    def register_waiting(self) -> None:
        """Give every waiting task a status word.

        If there was no agent before, or an agent that was not asked about each task, an op that runs now may be about
        to queue a task without a message: wait for these ops first.
        """
        if not self._was_delegated and not self.record.fastpath:
            self._wait_for_ops()
        self._programs.register_waiting.run()

    def _wait_for_ops(self) -> None:
        synchronize_rcu()

    def dismiss(self, number: int) -> None:
        """Make the agent of another channel leave, and wait until no op sends it a message any more."""
        self._agents.channels[number].tid = 0
        self._wait_for_ops()

    def begin_turn(self) -> int:
        """Tell the core that the agent is about to read; returns the time."""
        self._heartbeat[0] = now = time.monotonic_ns()
        self._state[0] = _BUSY
        return now

    def end_turn(self) -> None:
        """Tell the core that the agent has come to the end of a turn.

        The core counts a message after it reserves a place in the ring. So if the ring is empty after the count was
        read, the agent has read every message that was counted.
        """
        asked = self._asked[0]
        if self._ring.empty:
            self._answered[0] = asked
        self._state[0] = _IDLE

    @property
    def is_ours(self) -> bool:
        """Whether this thread is still the channel's agent."""
        return bool(self._tid[0] == self.tid)

    def skip_record(self) -> bool:
        """Skip the next record of the ring if it is discarded or as long as no message; whether it did."""
        return self._ring.skip()

    @property
    def skipped(self) -> tuple[int, int]:
        """How many records of the ring had the length of no message, and the last such length."""
        return self._ring.skipped, self._ring.skipped_length

    def ask_for_resync(self) -> None:
        """Make the next turn read all status words, as after lost messages."""
        self._overflowed[0] = 1

    @property
    def overflowed(self) -> bool:
        """Whether messages were lost."""
        return bool(self._overflowed[0])

    def count(self, committed: int, failed: int) -> None:
        """Add transactions to the agent's counts."""
        self._committed[0] += committed
        if failed:
            self._failed[0] += failed

    def count_turn(self, messages: int, began_ns: int) -> None:
        """Add a turn that read or committed something, and ends now, to the agent's counts."""
        self._messages[0] += messages
        self._turns[0] += 1
        self._busy_ns[0] += time.monotonic_ns() - began_ns

    def wait(self, seconds: float) -> bool:
        """Sleep until there is something to read, at most ``seconds``; whether there is."""
        return bool(select.select([self._ring], [], [], seconds)[0])  # epoll has a resolution of 1 ms

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
        return self._txn_states[:count].tolist()

    def associate(self, gtid: int, channel: int) -> bool:
        """Send the messages of a task to another channel from now on; False where the task is gone."""
        _TASK.pack_into(self._associate.context, 0, gtid, channel, 0)
        return self._associate() == 0

    def take(self, limit: int, channel: int) -> int:
        """Bring up to ``limit`` tasks here that wait for another ``channel`` (0: any); returns how many."""
        _TAKE.pack_into(self._take.context, 0, self.number, channel, limit, 0)
        self._take()
        *_, taken = _TAKE.unpack_from(self._take.context)
        return int(taken)

    def channels_with_agent(self) -> Iterator[int]:
        """The number of each channel that has an agent."""
        return (number for number, tid in enumerate(self._tids.tolist()) if tid)

    def loads(self) -> list[int]:
        """How many tasks run or wait, by the number of the channel that gets their messages."""
        return self._loads.tolist()

    def leave(self, reason: str = "") -> None:
        """Let the core decide from here on, unless another agent has taken over."""
        if self.is_ours:
            self.record.reason = reason.encode(errors="replace")[:159]
        self._programs.leave.run(_AGENT.pack(self.number, -1))

    def spin_on(self, cpu: int | None) -> None:
        """Reserve ``cpu`` for the enclave's agent, which spins there; None: the agent spins nowhere."""
        self._programs.spin.run(_AGENT.pack(self.number, -1 if cpu is None else cpu))


class Pulse:
    """Runs ``program`` _PULSE_HZ times a second, on the first of the CPUs that ``online`` returns.

    The kernel ends a sampler whose CPU goes offline, and does not start it again when that CPU is back.
    """

    def __init__(self, program: Program, online: Callable[[], CpuSet]) -> None:
        self._program, self._online = program, online
        #: The CPU that runs the program.
        self.cpu = -1
        self._start()

    def follow(self) -> None:
        """Start on another CPU if the sampler's CPU has been offline."""
        if self._sampler.is_alive():
            return
        with contextlib.suppress(BpfError):  # the new CPU goes offline right now: the next call chooses another
            before = self._sampler
            self._start()
            before.close()

    def _start(self) -> None:
        cpu = min(self._online())
        self._sampler = Sampler.on_cpu(self._program, cpu, _PULSE_HZ)
        self.cpu = cpu

# SPDX-License-Identifier: Apache-2.0
"""Tasks as an agent knows them, and the structs of bpf/abi.h that agent and core exchange about them."""

from __future__ import annotations

import functools
import struct
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from ..core import constant, ffi
from .extension import native, or_native
from .layout import packer


class MessageType(IntEnum):
    """The kind of a message; see ``enum message_type`` in bpf/abi.h."""

    TASK_NEW = constant("MSG_TASK_NEW")
    TASK_WAKEUP = constant("MSG_TASK_WAKEUP")
    TASK_PREEMPT = constant("MSG_TASK_PREEMPT")
    TASK_YIELD = constant("MSG_TASK_YIELD")
    TASK_BLOCKED = constant("MSG_TASK_BLOCKED")
    TASK_DEAD = constant("MSG_TASK_DEAD")
    TASK_DEPARTED = constant("MSG_TASK_DEPARTED")
    TASK_AFFINITY_CHANGED = constant("MSG_TASK_AFFINITY_CHANGED")
    TASK_PRIORITY_CHANGED = constant("MSG_TASK_PRIORITY_CHANGED")
    CPU_IDLE = constant("MSG_CPU_IDLE")
    CPU_TICK = constant("MSG_CPU_TICK")
    CPU_BUSY = constant("MSG_CPU_BUSY")
    CPU_AVAILABLE = constant("MSG_CPU_AVAILABLE")
    CPUS_CHANGED = constant("MSG_CPUS_CHANGED")


class TxnState(IntEnum):
    """The result of a transaction; see ``enum txn_state`` in bpf/abi.h."""

    READY = constant("TXN_READY")
    COMPLETE = constant("TXN_COMPLETE")
    STALE = constant("TXN_STALE")
    NOT_FOUND = constant("TXN_NOT_FOUND")
    NOT_RUNNABLE = constant("TXN_NOT_RUNNABLE")
    ON_CPU = constant("TXN_ON_CPU")
    INVALID_CPU = constant("TXN_INVALID_CPU")
    CPU_OFFLINE = constant("TXN_CPU_OFFLINE")
    NOT_PERMITTED = constant("TXN_NOT_PERMITTED")
    POISONED = constant("TXN_POISONED")


#: States of a task. Only agents use LATCHED: the task is committed to a CPU, and no message has told yet that it ran.
BLOCKED, WAITING, ON_CPU = (constant(f"TASK_{name}") for name in ("BLOCKED", "WAITING", "ON_CPU"))
LATCHED = 1 + max(BLOCKED, WAITING, ON_CPU)

PREEMPT, HEAD = constant("TXN_PREEMPT"), constant("TXN_HEAD")
BOOSTED = constant("MSG_BOOSTED")


class Message(NamedTuple):
    """One record of the ring: its ``size``, then ``struct message``. Times are in ns of CLOCK_MONOTONIC."""

    size: int
    gtid: int
    runtime_ns: int
    at_ns: int
    allowed: int
    seq: int
    type: int
    flags: int
    word: int
    cpu: int
    tgid: int
    weight: int


class StatusWord(NamedTuple):
    """One status word: see ``struct status_word`` in bpf/abi.h."""

    gtid: int
    runtime_ns: int
    since_ns: int
    allowed: int
    seq: int
    state: int
    channel: int
    weight: int
    cpu: int
    tgid: int
    boosted: int
    reserved: int


@functools.cache
def message_format() -> str:
    """``struct message`` for the struct module, without a byte order."""
    return _checked("message", Message._fields[1:]).format.removeprefix("=")


@functools.cache
def word_struct() -> struct.Struct:
    """``struct status_word`` for the struct module."""
    return _checked("status_word", StatusWord._fields)


def _checked(name: str, fields: tuple[str, ...]) -> struct.Struct:
    members = tuple(member for member, _ in ffi().typeof(f"struct {name}").fields)
    assert members == fields, f"struct {name} has {members}"
    return packer(name)


class TaskQueue(Protocol):
    """A queue that a task can be in."""

    def discard(self, task: Any, /) -> None: ...


@or_native
class Task:
    """A task that has waited at least once since this agent took over.

    A policy may set attributes of its own, or name a subclass in ``AgentPolicy.task_type``.
    """

    gtid: int  #: unique in this enclave, for ever
    tid: int
    tgid: int
    seq: int  #: of the last message about the task
    state: int  #: BLOCKED, WAITING, LATCHED or ON_CPU, as far as the agent knows
    cpu: int  #: the CPU that ran it last
    runtime_ns: int  #: its CPU time since it got its gtid
    since_ns: int  #: when the core sent the last message about it
    weight: int  #: 100 is nice 0
    allowed: int  #: bit n: it may use CPU n
    boosted: bool  #: it was interrupted in its slice, and should run again soon
    word: int  #: the number of its status word
    next_cpu: int  #: the CPU that it is committed to; only while it is LATCHED

    def __init__(self, gtid: int) -> None:
        self.gtid, self.tid = gtid, gtid & 0xFFFFFFFF
        self.tgid = self.seq = self.runtime_ns = self.since_ns = self.word = 0
        self.state, self.cpu, self.next_cpu, self.weight = BLOCKED, -1, -1, 100
        self.allowed, self.boosted = 0, False
        self._queues: dict[TaskQueue, None] = {}  # those that it is in

    def __repr__(self) -> str:
        return f"<task {self.tid}>"

    def may_run_on(self, cpu: int) -> bool:
        """Whether its affinity allows ``cpu``."""
        return bool(self.allowed >> cpu & 1)

    def leave_queues(self) -> None:
        """Remove it from every RunQueue and PriorityQueue that it is in."""
        for queue in tuple(self._queues):
            queue.discard(self)


class Transaction(NamedTuple):
    """A request to run ``task`` next on ``cpu`` for ``slice_ns`` (0: until it blocks, yields or is preempted).

    ``flags``: PREEMPT preempts the task that runs on ``cpu``; HEAD puts ``task`` before others committed to ``cpu``.
    Without a task, the transaction only preempts ``cpu``.
    """

    task: Task | None
    cpu: int
    slice_ns: int = 0
    flags: int = 0


if native is not None:
    # The constructor of a NamedTuple is a function in Python, and each decision calls it.
    Transaction.__new__ = native.new_transaction  # type: ignore[method-assign]

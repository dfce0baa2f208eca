# SPDX-License-Identifier: Apache-2.0
"""What an agent knows of a task, what it is told about it, and what it asks for: bpf/abi.h as Python has it."""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import NamedTuple

from ...loaders import abi
from ..core import constant, ffi


class MessageType(IntEnum):
    """What a message tells; see ``enum message_type`` in bpf/abi.h."""

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


class TxnState(IntEnum):
    """What became of a transaction; see ``enum txn_state`` in bpf/abi.h."""

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


#: Where a task is, as far as its agent knows. LATCHED is the agent's own: committed, and not yet seen to have run.
BLOCKED, WAITING, ON_CPU = (constant(f"TASK_{name}") for name in ("BLOCKED", "WAITING", "ON_CPU"))
LATCHED = 1 + max(BLOCKED, WAITING, ON_CPU)

PREEMPT, HEAD = constant("TXN_PREEMPT"), constant("TXN_HEAD")
BOOSTED = constant("MSG_BOOSTED")


class Message(NamedTuple):
    """One message, as it is in the ring; ``size`` is the ring's own. Times in ns of CLOCK_MONOTONIC."""

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
    """``struct message`` for the struct module."""
    return _format("message", Message._fields[1:])


@functools.cache
def word_format() -> str:
    """``struct status_word`` for the struct module."""
    return _format("status_word", StatusWord._fields)


def _format(name: str, fields: tuple[str, ...]) -> str:
    there = tuple(field for field, _ in ffi().typeof(f"struct {name}").fields)
    assert there == fields, f"struct {name} has {there}"
    return abi.struct_format(ffi(), f"struct {name}")


class Task:
    """A task that has waited at least once since this agent came.

    A policy may set attributes of its own, or have a subclass in ``AgentPolicy.task_type``.
    """

    gtid: int  #: never used again in this enclave
    tid: int
    tgid: int
    seq: int  #: of the last message about it
    state: int  #: BLOCKED, WAITING, LATCHED or ON_CPU, as far as the agent knows
    cpu: int  #: where it ran last
    runtime_ns: int  #: CPU time since it has its gtid
    since_ns: int  #: when the last message about it was sent
    weight: int  #: 100 is nice 0
    allowed: int  #: bit n: CPU n; see may_run_on()
    boosted: bool  #: it was interrupted before its turn was over, and had better go on soon
    word: int  #: number of its status word
    next_cpu: int  #: where it was committed to; only while it is LATCHED
    refusals: int  #: how often it was refused since the last message about it
    refused: int  #: bit n: CPU n, from 64 on, was refused since then, for ``allowed`` does not tell of that

    def __init__(self, gtid: int) -> None:
        self.gtid, self.tid = gtid, gtid & 0xFFFFFFFF
        self.tgid = self.seq = self.runtime_ns = self.since_ns = self.word = self.refusals = self.refused = 0
        self.state, self.cpu, self.next_cpu, self.weight = BLOCKED, -1, -1, 100
        self.allowed, self.boosted = 0, False

    def __repr__(self) -> str:
        return f"<task {self.tid}>"

    def may_run_on(self, cpu: int) -> bool:
        """Whether its affinity allows ``cpu``; one from 64 on may be tried until the kernel refuses it."""
        return bool(self.allowed >> cpu & 1) if cpu < 64 else not self.refused >> cpu & 1


class Transaction(NamedTuple):
    """A request: ``task`` is to run next on ``cpu`` for ``slice_ns`` (0: until it blocks, yields or is preempted).

    ``flags``: PREEMPT has whoever runs there make way; HEAD goes before what else was committed to ``cpu``.
    Without a task, ``cpu`` is preempted and that is all.
    """

    task: Task | None
    cpu: int
    slice_ns: int = 0
    flags: int = 0

# SPDX-License-Identifier: Apache-2.0
"""Agents: scheduling policies written in Python. docs/agents.md builds one from nothing."""

from __future__ import annotations

from ..policy import Option, duration_ns
from .agent import Agent
from .cfs import Cfs
from .crew import AgentError, Crew, UpgradeError
from .edf import Edf
from .fifo_centralized import FifoCentralized
from .fifo_per_cpu import FifoPerCpu
from .policy import AgentPolicy, RunQueue, flag, half_of, slice_ns
from .shinjuku import Shinjuku
from .sol import Sol
from .task import HEAD, PREEMPT, Message, MessageType, StatusWord, Task, Transaction, TxnState
from .words import StatusWords

CFS = half_of(Cfs)
EDF = half_of(Edf)
FIFO_CENTRALIZED = half_of(FifoCentralized)
FIFO_PER_CPU = half_of(FifoPerCpu)
SHINJUKU = half_of(Shinjuku)
SOL = half_of(Sol)

__all__ = [
    "CFS",
    "EDF",
    "FIFO_CENTRALIZED",
    "FIFO_PER_CPU",
    "HEAD",
    "PREEMPT",
    "SHINJUKU",
    "SOL",
    "Agent",
    "AgentError",
    "AgentPolicy",
    "Crew",
    "Message",
    "MessageType",
    "Option",
    "RunQueue",
    "StatusWord",
    "StatusWords",
    "Task",
    "Transaction",
    "TxnState",
    "UpgradeError",
    "duration_ns",
    "flag",
    "half_of",
    "slice_ns",
]

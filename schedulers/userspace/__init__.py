# SPDX-License-Identifier: Apache-2.0
"""Agents: scheduling policies written in Python. docs/agents.md builds one from nothing."""

from __future__ import annotations

from ..policy import Option, duration_ns
from .agent import Agent
from .agent_process import AgentError, AgentProcess, UpgradeError
from .cfs import Cfs
from .edf import Edf
from .fifo_centralized import FifoCentralized
from .fifo_per_cpu import FifoPerCpu
from .policy import AgentPolicy, RunQueue, flag, slice_ns, spec_of
from .shinjuku import Shinjuku
from .sol import Sol
from .status_words import StatusWords
from .task import HEAD, PREEMPT, Message, MessageType, StatusWord, Task, Transaction, TxnState

CFS = spec_of(Cfs)
EDF = spec_of(Edf)
FIFO_CENTRALIZED = spec_of(FifoCentralized)
FIFO_PER_CPU = spec_of(FifoPerCpu)
SHINJUKU = spec_of(Shinjuku)
SOL = spec_of(Sol)

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
    "AgentProcess",
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
    "slice_ns",
    "spec_of",
]

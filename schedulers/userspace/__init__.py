# SPDX-License-Identifier: Apache-2.0
"""Agents: scheduling policies written in Python. docs/tutorial.md builds one from nothing."""

from __future__ import annotations

from ..agents.status_words import StatusWords
from ..agents.task import HEAD, PREEMPT, Message, MessageType, StatusWord, Task, Transaction, TxnState
from ..errors import AgentError, UpgradeError
from ..policy import Option, duration_ns
from .agent import Agent
from .agent_process import AgentProcess
from .cfs import Cfs
from .edf import Edf
from .fifo_centralized import FifoCentralized
from .fifo_per_cpu import FifoPerCpu
from .options import flag, slice_ns
from .policy import AgentPolicy
from .priority_queue import PriorityQueue
from .run_queue import RunQueue
from .shinjuku import Shinjuku
from .sol import Sol
from .spec import spec_of

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
    "PriorityQueue",
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

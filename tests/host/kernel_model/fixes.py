# SPDX-License-Identifier: Apache-2.0
"""Bugs of earlier versions of the core, which the model can have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fixes:
    """Which bugs of earlier versions are fixed; tests switch off one fix to see the model find the bug."""

    #: Both tries of a commit make the iterator before they check task and CPU: whatever changes a task takes it off its
    #: queue meanwhile, and an iterator moves no task that was inserted after the iterator was made.
    checks_each_try: bool = True
    #: A commit finds the queue that a task waits on by reading the task, and not what was noted of it.
    looks_for_queue: bool = True
    #: The core reads a CPU's own queue to learn whether a task waits there; cpu.latched only informs agents.
    asks_queue: bool = True
    #: If the pid of a task differs from that in its gtid, the task departs, and is new.
    follows_exec: bool = True
    #: post() reads the agent's state after its reserved place in the ring is visible.
    posts_in_order: bool = True
    #: A decision is pending until the agent has read the message that asks for it, not until it begins its next turn.
    counts_questions: bool = True
    #: The status word freed last is reused last, and tell() does not write to one that belongs to another task by now.
    words_stay: bool = True
    #: Tasks of the runqueue of a CPU that goes offline leave every queue, even that of another CPU.
    hotplug_empties_all: bool = True
    #: Registering the waiting tasks does not take a task for running because it is on no queue right now.
    stock_does_not_guess: bool = True
    #: An agent that takes over where none was asked waits for what the CPUs are about to queue, and takes stock then.
    waits_for_ops: bool = True


ALL_FIXES = Fixes()

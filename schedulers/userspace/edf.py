# SPDX-License-Identifier: Apache-2.0
"""ghOSt's EDF: earliest deadline first, by estimates of how long work takes."""

from __future__ import annotations

import time
from typing import Any

from ..policy import Option, duration_ns
from .agent import Agent
from .central import Central, HintedTask, Running
from .priority_queue import PriorityQueue

_FIRST_ESTIMATE_NS = 1_000_000
_BARE = -1


class Estimate:
    """How long a piece of work of one class takes: the mean of the pieces that are done, and of a first guess."""

    def __init__(self, guess_ns: int = 0) -> None:
        self.mean_ns = float(guess_ns or _FIRST_ESTIMATE_NS)
        self._count = 1

    def learn(self, ns: int) -> None:
        """Add a piece of work that has taken ``ns``."""
        self._count += 1
        self.mean_ns += (ns - self.mean_ns) / self._count

    def remaining_ns(self, elapsed_ns: int) -> int:
        """How much longer a piece takes that has taken ``elapsed_ns``; one beyond the estimate takes twice as long."""
        estimate = int(self.mean_ns) or 1
        while estimate <= elapsed_ns:
            estimate *= 2
        return estimate - elapsed_ns


class EdfTask(HintedTask):
    """A task with the deadline of its piece of work, and how much of the work is done."""

    def __init__(self, gtid: int) -> None:
        super().__init__(gtid)
        self.due_ns = 0
        self.began_ns = 0  # its CPU time when the work came
        self.estimate = Estimate()

    def start_by_ns(self) -> int:
        """The latest time to run it so that it meets its deadline."""
        return self.due_ns - self.estimate.remaining_ns(self.runtime_ns - self.began_ns)


class DeadlineQueue(PriorityQueue[EdfTask]):
    """Interrupted tasks first, then by QoS, the highest first, then by the latest time to start."""

    def rank(self, task: EdfTask) -> tuple[bool, int, int]:
        return not task.boosted, -task.work_class.qos, task.start_by_ns()


class Edf(Central[EdfTask]):
    """The highest QoS first, then the earliest deadline, less the time that the work will take.

    Applications hint deadlines or, for a repeating class, the period by whose end the work must be done. The policy
    learns how long work of a class takes from earlier work of that class. A task keeps its CPU until its work is done
    or it blocks; only a task of a higher QoS preempts it. A task without a hint is due --bare-deadline after it wakes.

    Good for sets of deadlines that can be met, and pieces of work of about the same length: where lengths differ much,
    a long piece runs before a shorter one with an earlier deadline, which may then be late. Not good where work never
    ends and has no QoS of its own.

    Unlike in ghOSt's EDF, a task of a repeating class gets its next work when its period ends, and not at once.
    """

    name = "edf"
    options = (
        Option("bare-deadline", "bare_ns", duration_ns, "100ms", "by when work without a deadline must be done"),
    )
    task_type = EdfTask
    bare_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, DeadlineQueue(), **options)
        self.estimates: dict[int, Estimate] = {}  # by number of the work class

    # A task that waits or sleeps has had the CPU time of its last message; a wakeup's message also tells its time.

    def on_task_wakeup(self, task: Any) -> None:
        if task.item is None:
            task.began_ns, task.due_ns = task.runtime_ns, task.since_ns + self.bare_ns
        self.enqueue(task)

    def on_task_blocked(self, task: Any) -> None:
        if task.item is None:
            task.estimate.learn(task.runtime_ns - task.began_ns)
        task.leave_queues()

    def begin_work(self, task: EdfTask) -> None:
        task.estimate, task.began_ns = self._estimate(task), self.agent.status_words.runtime_ns(task)
        within_ns = task.work_class.period_ns if task.work_class.repeating else self.bare_ns
        task.due_ns = _deadline_ns(task) or time.monotonic_ns() + within_ns

    def change_work(self, task: EdfTask) -> None:
        if task.estimate is self._estimate(task):
            task.due_ns = _deadline_ns(task) or task.due_ns
        else:
            self.begin_work(task)

    def end_work(self, task: EdfTask) -> None:
        task.estimate.learn(self.agent.status_words.runtime_ns(task) - task.began_ns)

    def next_work_ns(self, task: EdfTask) -> int:
        return task.due_ns

    def _estimate(self, task: EdfTask) -> Estimate:
        number = _BARE if task.item is None else task.item.work_class
        return self.estimates.setdefault(number, Estimate(task.work_class.exectime_ns))

    def should_preempt(self, running: Running[EdfTask], first: EdfTask) -> bool:
        return first.qos > running.task.qos


def _deadline_ns(task: EdfTask) -> int:
    return 0 if task.item is None or task.work_class.repeating else task.item.deadline_ns

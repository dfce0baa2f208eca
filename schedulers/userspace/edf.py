# SPDX-License-Identifier: Apache-2.0
"""ghOSt's EDF: earliest deadline first, as far as one knows how long things take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..policy import Option, duration_ns
from .central import Central, HintedTask, Running
from .priority_queue import PriorityQueue

if TYPE_CHECKING:
    from .agent import Agent

_FIRST_GUESS_NS = 1_000_000
_BARE = -1


class Estimate:
    """How long a piece of work of one class takes: the mean of those that are done, and of a first guess."""

    def __init__(self, guess_ns: int = 0) -> None:
        self.mean_ns = float(guess_ns or _FIRST_GUESS_NS)
        self._count = 1

    def learn(self, ns: int) -> None:
        """One has taken so long."""
        self._count += 1
        self.mean_ns += (ns - self.mean_ns) / self._count

    def remaining_ns(self, elapsed_ns: int) -> int:
        """How long one will take that has taken so long; one that goes on beyond it will take twice the time."""
        estimate = max(int(self.mean_ns), 1)
        while estimate <= elapsed_ns:
            estimate *= 2
        return estimate - elapsed_ns


class EdfTask(HintedTask):
    """A task with its piece of work: by when it is to be done, and what of it is."""

    def __init__(self, gtid: int) -> None:
        super().__init__(gtid)
        self.due_ns = 0
        self.began_ns = 0  # its run time when the work came
        self.estimate = Estimate()

    @property
    def start_by_ns(self) -> int:
        """When it had better be on a CPU, to be done in time."""
        return self.due_ns - self.estimate.remaining_ns(self.runtime_ns - self.began_ns)


class DeadlineQueue(PriorityQueue[EdfTask]):
    """Whose turn was cut short, then the higher QoS, then the earlier deadline, less what remains to be done."""

    def rank(self, task: EdfTask) -> tuple[bool, int, int]:
        return not task.boosted, -task.qos, task.start_by_ns


class Edf(Central[EdfTask]):
    """The highest QoS first, then the earliest deadline, less the time that the work will take.

    Applications hint deadlines, or, for a repeating class, the period by whose end the work is to be done. How long
    work of a class takes is learnt from what it took before. A task keeps its CPU until its work is done or it blocks,
    and makes way for a higher QoS alone.

    Good for sets of deadlines that can be met, of pieces about as long as each other: where they differ much, one that
    is long goes before one that is due earlier, and may make it late. Not good where work never ends and has no QoS of
    its own. A task without a hint is due --bare-deadline after it woke.
    """

    name = "edf"
    options = (
        Option("bare-deadline", "bare_ns", duration_ns, "100ms", "by when work without a deadline is to be done"),
    )
    task_type = EdfTask
    bare_ns: int

    def __init__(self, agent: Agent, **options: int) -> None:
        super().__init__(agent, DeadlineQueue(), **options)
        self.estimates: dict[int, Estimate] = {}

    def on_task_wakeup(self, task: Any) -> None:
        if task.item is None:
            self.begin(task)
        self.enqueue(task)

    def on_task_blocked(self, task: Any) -> None:
        if task.item is None:
            self.end(task)
        self.dequeue(task)

    def begin(self, task: EdfTask) -> None:
        task.estimate, task.began_ns = self._estimate(task), self.agent.status_words.runtime_ns(task)
        within_ns = task.work_class.period_ns if task.work_class.repeating else self.bare_ns
        task.due_ns = _deadline_ns(task) or time.monotonic_ns() + within_ns

    def renew(self, task: EdfTask) -> None:
        if task.estimate is self._estimate(task):
            task.due_ns = _deadline_ns(task) or task.due_ns
        else:
            self.begin(task)

    def end(self, task: EdfTask) -> None:
        task.estimate.learn(self.agent.status_words.runtime_ns(task) - task.began_ns)

    def comes_again_ns(self, task: EdfTask) -> int:
        # ghOSt's has it come at once, and so more often than the period says.
        return task.due_ns

    def _estimate(self, task: EdfTask) -> Estimate:
        number = _BARE if task.item is None else task.item.work_class
        return self.estimates.setdefault(number, Estimate(task.work_class.exectime_ns))

    def should_preempt(self, running: Running[EdfTask], first: EdfTask) -> bool:
        return first.qos > running.task.qos


def _deadline_ns(task: EdfTask) -> int:
    return 0 if task.item is None or task.work_class.repeating else task.item.deadline_ns

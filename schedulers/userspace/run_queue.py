# SPDX-License-Identifier: Apache-2.0
"""A FIFO queue of tasks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from ..agents.extension import or_native
from ..agents.task import Task

#: How many tasks pop_near() looks at.
_SEARCH = 32


@or_native
class RunQueue:
    """A FIFO of tasks, each at most once. add(), discard() and taking the first task are O(1)."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[Task, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def __contains__(self, task: Task) -> bool:
        return task in self._tasks

    def __iter__(self) -> Iterator[Task]:
        """Yield the tasks in order; raises RuntimeError if one that it has yielded was removed."""
        return iter(self._tasks)

    def add(self, task: Task) -> None:
        """Append ``task``, or put it first if it is boosted."""
        self._put(task, is_first=task.boosted)

    def add_if_allowed(self, cpu: int, otherwise: Callable[[Task], object], task: Task) -> None:
        """Like add() for a task that may run on ``cpu``; call ``otherwise(task)`` with one that may not."""
        if task.may_run_on(cpu):
            self.add(task)
        else:
            otherwise(task)

    def add_first(self, task: Task) -> None:
        """Put ``task`` first."""
        self._put(task, is_first=True)

    def _put(self, task: Task, is_first: bool) -> None:
        task._queues[self] = self._tasks[task] = None
        self._tasks.move_to_end(task, last=not is_first)

    def discard(self, task: Task) -> None:
        """Remove ``task`` if it is in the queue."""
        self._tasks.pop(task, None)
        task._queues.pop(self, None)

    def discard_if(self, condition: Callable[[Task], bool]) -> None:
        """Remove the tasks that meet ``condition``."""
        for task in [task for task in self._tasks if condition(task)]:
            self.discard(task)

    def pop(self, cpu: int) -> Task | None:
        """Remove and return the first task that may run on ``cpu``."""
        for task in self._tasks:
            if task.may_run_on(cpu):
                self.discard(task)
                return task
        return None

    def pop_near(self, cpu: int, near: int) -> Task | None:
        """Like pop(), but prefer, among the first tasks, one that last ran on ``cpu``, or else on a CPU of ``near``.

        ``near`` is a mask of CPUs.
        """
        best: Task | None = None
        for count, task in enumerate(self._tasks):
            if not task.may_run_on(cpu):
                continue
            if task.boosted or task.cpu == cpu or count >= _SEARCH:
                best = best if count >= _SEARCH and best else task
                break
            if best is None or (not near >> best.cpu & 1 and near >> task.cpu & 1):
                best = task
        if best is not None:
            self.discard(best)
        return best

    def match(self, cpus: list[int], siblings: dict[int, tuple[int, ...]]) -> list[tuple[Task, int]]:
        """Pair tasks, from the head on, with the nearest() of ``cpus``, until either runs out; removes both."""
        matched = []
        for task in list(self._tasks):
            if not cpus:
                break
            if (cpu := nearest(task, cpus, siblings)) is not None:
                cpus.remove(cpu)
                self.discard(task)
                matched.append((task, cpu))
        return matched


def nearest(task: Task, cpus: list[int], siblings: dict[int, tuple[int, ...]]) -> int | None:
    """The one of ``cpus`` where ``task`` last ran, else a sibling of it, else the first that ``task`` may run on.

    ``siblings`` are the CPUs that share a core with each CPU.
    """
    last = task.cpu
    if last in cpus and task.may_run_on(last):
        return last
    for cpu in siblings.get(last, ()):
        if cpu in cpus and task.may_run_on(cpu):
            return cpu
    return next((cpu for cpu in cpus if task.may_run_on(cpu)), None)

# SPDX-License-Identifier: Apache-2.0
"""What the core refused to an agent: how often each task, and which tasks rest for that."""

from __future__ import annotations

from ..agents.task import Task, Transaction, TxnState

#: For how long a task that was refused rests, when nothing was told of it since it was refused before: twice as long
#: each time. What it may do and what the core does not agree, and the next try would end as the last did.
_REST_LEAST_NS, _REST_MOST_NS = 1_000_000, 64_000_000


class Refusals:
    """The refusals of one agent. A refusal counts until there is news of its task."""

    def __init__(self) -> None:
        #: How often each task was refused since the last news of it.
        self.tasks: dict[Task, int] = {}
        self._resting: dict[Task, tuple[int, Transaction, TxnState]] = {}  # until when

    @property
    def due_ns(self) -> int:
        """When the first of the resting tasks has rested; 0 where none rests."""
        return min((until_ns for until_ns, _, _ in self._resting.values()), default=0)

    def add(self, transaction: Transaction, task: Task, state: TxnState, now_ns: int) -> bool:
        """Count that ``transaction`` of ``task`` failed; whether ``task`` rests for that, until rested() returns it."""
        self.tasks[task] = count = self.tasks.get(task, 0) + 1
        if count > 1:
            rest_ns = min(_REST_LEAST_NS << min(count - 2, 16), _REST_MOST_NS)
            self._resting[task] = now_ns + rest_ns, transaction, state
        return count > 1

    def rested(self, now_ns: int) -> list[tuple[Transaction, TxnState]]:
        """Take out what failed of those tasks that have rested."""
        rested = [task for task, (until_ns, _, _) in self._resting.items() if until_ns <= now_ns]
        return [self._resting.pop(task)[1:] for task in rested]

    def forget(self, task: Task) -> bool:
        """There is news of ``task``, and what was refused may not be any more; whether it rested."""
        if self.tasks.pop(task, None) is None:
            return False
        return self._resting.pop(task, None) is not None

# SPDX-License-Identifier: Apache-2.0
"""The tasks of an enclave: they join it, and leave it with the policy that each had before."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from ..loaders import capabilities
from ..loaders.errors import GhostError
from . import agents, pids, tasks
from .core import Core, Task
from .enclave_view import EnclaveView
from .errors import NoSuchEnclave, NotRestored, TaskError

#: How long to wait before asking again whether a fork has made its child ready.
_FORK_POLL_S = 0.0001


class Membership(EnclaveView):
    """One enclave, by ``id``, and the changes to its tasks."""

    def __init__(self, core: Core, id: int) -> None:
        super().__init__(core, id)
        #: The tasks that this object removed and that did not get back the policy that they had before they joined.
        self.not_restored: list[NotRestored] = []

    def add(self, tid: int) -> None:
        """Move one task in, also out of another enclave; raises TaskError and NoSuchEnclave."""
        if not self.is_active:
            raise NoSuchEnclave(self.id)
        if self.is_root:
            raise TaskError(
                tid,
                f"enclave {self.id} is the root of a tree, and runs no tasks",
                hint=f"add it to a leaf; ghostbpf enclave show {self.id} lists them",
            )
        original = tasks.original_of(tid)
        before = self._join(tid, self.id, self._record.generation)
        try:
            tasks.enter_ext(tid)
        except GhostError:
            self._join(tid, *before)
            raise
        if before[0] not in (0, self.id) and (others := agents.Agents.open(before[0])) is not None:
            others.depart(tid)
        if not self.is_active:
            # A concurrent destroy() may have listed the enclave's tasks before this one was in the list.
            if tasks.policy_of(tid) == tasks.SCHED_EXT:
                tasks.restore(tid, original)
            raise NoSuchEnclave(self.id)

    def add_process(self, pid: int) -> int:
        """Move every thread of process ``pid`` in; returns how many. Raises TaskError."""
        return tasks.each_thread(pid, self.add, self.core.forking)

    def remove(self, tid: int) -> None:
        """Move one task out, with the policy that it had before; raises TaskError if it is not in this enclave."""
        task = next((task for task in self.tasks() if task.tid == tid), None)
        if task is None:
            raise self._not_a_member(tid)
        self._hand_back(task)

    def remove_process(self, pid: int) -> int:
        """Move every thread of process ``pid`` out, as remove() does; returns how many.

        Raises TaskError if none is in this enclave.
        """
        removed = self._remove_all(lambda task: task.pid == pid)
        if not removed:
            raise self._not_a_member(pid)
        return len(removed)

    def _remove_all(self, selected: Callable[[Task], bool]) -> set[int]:
        # Each round finds the children that tasks of the last round forked meanwhile. A fork that was under way when
        # its task left shows its child only when it is done.
        seen: set[int] = set()
        forking: set[int] = set()
        deadline = time.monotonic() + tasks.FORK_TIMEOUT_S
        while (members := [task for task in self.tasks() if selected(task)]) or forking:
            for task in members:
                try:
                    self._hand_back(task)
                except TaskError:
                    if tasks.policy_of(task.tid) is not None:
                        raise
            tids = {task.tid for task in members}
            seen |= tids
            forking = self.core.forking() & (forking | tids)
            if time.monotonic() > deadline:
                raise GhostError(f"enclave {self.id} forks faster than its tasks can be handed back", hint="try again")
        return seen

    def _check_may_move(self) -> None:
        """Raise TaskError if it has a task that this process may not move."""
        if self.id != int(self.core.state.default_enclave) and "CAP_SYS_NICE" not in capabilities.held():
            for task in self.tasks():
                tasks.check_may_move(task.tid)

    def _hidden_tasks(self) -> int:
        if self.id == int(self.core.state.default_enclave):
            return 0  # its tasks are the fair class's, and need not be moved
        return pids.hidden_tasks(self.core.maps["tasks"], self.id, int(self._record.generation))

    def _hand_back(self, task: Task) -> None:
        self.core.release(task.tid)
        if (refusal := tasks.restore(task.tid, task.original)) is not None:
            self.not_restored.append(refusal)
        if self.core.full:
            self._join(task.tid, 0, 0)

    def _join(self, tid: int, enclave: int, generation: int) -> tuple[int, int]:
        while (answer := self.core.join(tid, enclave, generation))[0] == -errno.EAGAIN:
            time.sleep(_FORK_POLL_S)
        error, *before = answer
        if error:
            raise tasks.task_error(tid, -error)
        return before[0], before[1]

    def _not_a_member(self, tid: int) -> TaskError:
        if tasks.policy_of(tid) is None:
            return tasks.task_error(tid, errno.ESRCH)
        return TaskError(tid, f"it is not in enclave {self.id}", hint=f"ghostbpf enclave show {self.id} --tasks")

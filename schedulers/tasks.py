# SPDX-License-Identifier: Apache-2.0
"""Moving tasks into and out of the ext class, single threads or whole processes."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..loaders import pid_namespace
from .errors import NotRestored, TaskError

# Not in the os module.
SCHED_DEADLINE, SCHED_EXT = 6, 7
#: How many seconds to follow tasks that fork all the time.
FORK_TIMEOUT_S = 60.0
_NAMES = {
    os.SCHED_BATCH: "batch",
    os.SCHED_IDLE: "idle",
    os.SCHED_FIFO: "fifo",
    os.SCHED_RR: "rr",
    SCHED_DEADLINE: "deadline",
}
_PF_EXITING = 0x00000004
_PF_KTHREAD = 0x00200000
_HINTS = {errno.ESRCH: "ps -eLf lists tasks", errno.EPERM: "run it with sudo (CAP_SYS_NICE)"}
_REASONS = {
    errno.ESRCH: "there is no such task",
    errno.EINVAL: "it is a kernel thread",
    errno.EPERM: "not permitted",
    errno.EBUSY: "the kernel refuses it",
}


def policy_of(tid: int) -> int | None:
    """The scheduling policy that is set for a task, which priority inheritance can override; None if it has ended."""
    try:
        return os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
    except ProcessLookupError:
        return None


def check(tid: int) -> None:
    """Raise TaskError unless ``tid`` is a user's task; NamespaceError if /proc is another namespace's."""
    pid_namespace.need_own_proc()
    try:
        kernel = _flags(tid) & _PF_KTHREAD
    except OSError:
        raise task_error(tid, errno.ESRCH) from None
    if kernel:
        raise task_error(tid, errno.EINVAL)


def is_movable(tid: int) -> bool:
    """Whether task ``tid`` is a user's and is not exiting; OSError if it has ended."""
    return not _flags(tid) & (_PF_KTHREAD | _PF_EXITING)


def check_may_move(tid: int) -> None:
    """Raise TaskError if this process may not set the policy of task ``tid``; no error if the task has ended."""
    with contextlib.suppress(ProcessLookupError):
        try:
            # The kernel checks permissions before it finds that nothing changes.
            os.sched_setscheduler(tid, os.sched_getscheduler(tid), os.sched_getparam(tid))
        except PermissionError:
            raise task_error(tid, errno.EPERM) from None


def set_policy(tid: int, policy: int, priority: int = 0) -> None:
    """Set the policy of one task; its nice value stays. Raises TaskError."""
    try:
        os.sched_setscheduler(tid, policy, os.sched_param(priority))
    except OSError as error:
        raise task_error(tid, error.errno or errno.EINVAL) from None


def original_of(tid: int) -> tuple[int, int]:
    """The policy and priority for restore(), of a task that is about to enter the ext class. Raises TaskError."""
    try:
        policy = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
        return (os.SCHED_OTHER, 0) if policy == SCHED_EXT else (policy, os.sched_getparam(tid).sched_priority)
    except OSError as error:
        raise task_error(tid, error.errno or errno.EINVAL) from None


def enter_ext(tid: int) -> None:
    """Move one task into the ext class; its SCHED_RESET_ON_FORK stays as it is. Raises TaskError."""
    try:
        flag = os.sched_getscheduler(tid) & os.SCHED_RESET_ON_FORK
    except OSError as error:
        raise task_error(tid, error.errno or errno.EINVAL) from None
    set_policy(tid, SCHED_EXT | flag)


def restore(tid: int, original: tuple[int, int]) -> NotRestored | None:
    """Give one task its ``original`` policy and priority back; its nice value and SCHED_RESET_ON_FORK stay.

    If the kernel refuses, the task gets SCHED_OTHER, and the result says so. Raises TaskError if it cannot have that
    either.
    """
    try:
        flag = os.sched_getscheduler(tid) & os.SCHED_RESET_ON_FORK
    except OSError as error:
        raise task_error(tid, error.errno or errno.EINVAL) from None
    policy, priority = original
    reason = "its runtime, deadline and period are not kept"
    if policy != SCHED_DEADLINE:
        try:
            set_policy(tid, policy | flag, priority)
            return None
        except TaskError as error:
            reason = error.reason
    set_policy(tid, os.SCHED_OTHER | flag)
    return NotRestored(tid, _NAMES.get(policy, f"policy {policy}") + (f":{priority}" if priority else ""), reason)


def task_error(tid: int, number: int) -> TaskError:
    """The TaskError for an errno."""
    return TaskError(tid, _REASONS.get(number, os.strerror(number)), hint=_HINTS.get(number))


def threads(pid: int) -> set[int]:
    """The thread ids of process ``pid`` now; empty if it has ended."""
    with contextlib.suppress(OSError):
        return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    return set()


def each_thread(pid: int, move: Callable[[int], None], forking: Callable[[], set[int]]) -> int:
    """Call ``move`` with each thread of process ``pid`` until there is no new one; returns how many there were.

    A thread that ends meanwhile is no error, unless no thread was seen. A thread that ``forking`` names after it moved
    may show a new thread that did not move with it. Raises TaskError, and NamespaceError if /proc is another
    namespace's.
    """
    pid_namespace.need_own_proc()
    seen: set[int] = set()
    unsettled: set[int] = set()
    deadline = time.monotonic() + FORK_TIMEOUT_S
    while (new := threads(pid) - seen) or unsettled:
        if time.monotonic() > deadline:
            raise TaskError(pid, f"it has not stopped making threads for {FORK_TIMEOUT_S:.0f} s")
        for tid in new:
            try:
                move(tid)
            except TaskError:
                if tid in threads(pid):
                    raise
        seen |= new
        unsettled = forking() & (unsettled | new)
    if not seen:
        raise task_error(pid, errno.ESRCH)
    return len(seen)


def _flags(tid: int) -> int:
    return int(Path(f"/proc/{tid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[6])

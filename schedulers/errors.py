# SPDX-License-Identifier: Apache-2.0
"""Errors of enclaves, tasks and agents; they extend the tree of ``loaders.errors``."""

from __future__ import annotations

from collections.abc import Iterable

from ..loaders.errors import GhostError


class EnclaveBusy(GhostError):
    """The CPUs requested belong to enclave ``owner``."""

    def __init__(self, owner: int, cpus: str, *, hint: str | None = None):
        super().__init__(
            f"enclave {owner} holds CPU {cpus}",
            hint=hint or f"take other CPUs, or: ghostbpf enclave destroy {owner}",
        )
        self.owner, self.cpus = owner, cpus


class ResizeError(GhostError):
    """The CPUs of enclave ``id`` cannot be changed like that, for ``reason``; it goes on as before."""

    def __init__(self, id: int, reason: str, *, hint: str | None = None):
        super().__init__(f"cannot change the CPUs of enclave {id}: {reason}", hint=hint)
        self.id, self.reason = id, reason


class NoSuchEnclave(GhostError):
    """There is no enclave ``id``."""

    def __init__(self, id: int):
        super().__init__(f"there is no enclave {id}", hint="ghostbpf enclave ls lists the enclaves")
        self.id = id


class NoSuchPolicy(GhostError):
    """There is no policy ``name``; ``suggestion`` is the policy with the nearest name, or None."""

    exit_status = 2

    def __init__(self, name: str, known: Iterable[str]):
        import difflib

        known = sorted(known)
        self.name = name
        self.suggestion = next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f"did you mean {self.suggestion}?" if self.suggestion else f"choose from: {', '.join(known)}"
        super().__init__(f'there is no policy "{name}"', hint=hint)


class NoPolicyInFile(GhostError):
    """File ``path`` holds no policy that can be run, for ``reason``."""

    exit_status = 2

    def __init__(self, path: str, reason: str, hint: str | None = None):
        super().__init__(f"cannot load a policy from {path}: {reason}", hint=hint)
        self.path, self.reason = path, reason


class TaskError(GhostError):
    """Task or process ``pid`` cannot be moved, for ``reason``."""

    def __init__(self, pid: int, reason: str, *, hint: str | None = None):
        super().__init__(f"cannot move task {pid}: {reason}", hint=hint)
        self.pid, self.reason = pid, reason


class NoUsableCpu(GhostError):
    """A task may use only the CPUs ``allowed``, none of enclave ``id``; ``cpuset`` is the cgroup that limits it."""

    def __init__(self, id: int, cpus: str, allowed: str, cpuset: str | None):
        by = "by its affinity" if cpuset is None else f"by the cpuset of cgroup {cpuset}"
        other = f"taskset -c {cpus} …" if cpuset is None else f"a cgroup that has CPU {cpus}"
        super().__init__(
            f"the command may use CPU {allowed} {by}, and enclave {id} has CPU {cpus}: it could not run there",
            hint=f"use an enclave of its CPUs, --cpus {allowed}, or {other}",
        )
        self.id, self.allowed, self.cpuset = id, allowed, cpuset


class NotRestored(GhostError):
    """Task ``pid`` left its enclave as SCHED_OTHER instead of its previous ``policy``, for ``reason``."""

    def __init__(self, pid: int, policy: str, reason: str):
        super().__init__(
            f"task {pid} is SCHED_OTHER now, and not {policy} as before: {reason}",
            hint="chrt --deadline" if policy == "deadline" else f"echo {pid} | sudo ghostbpf pushtosched {policy}",
        )
        self.pid, self.policy, self.reason = pid, policy, reason


class SchedulerBusy(GhostError):
    """Another sched_ext scheduler, ``ops``, is attached; the kernel allows only one."""

    def __init__(self, ops: str):
        super().__init__(f"the sched_ext scheduler {ops} is running", hint="stop it first; the kernel allows one")
        self.ops = ops


class StalePins(GhostError):
    """The pins are not those of this version, since ``why``."""

    def __init__(self, path: str, why: str):
        super().__init__(
            f"{path} holds pins that this ghostbpf cannot use: {why}",
            hint="clear them (tasks go back to the fair class): ghostbpf enclave destroy --all",
        )
        self.why = why


class Ejected(GhostError):
    """The kernel ejected the core, with its ``reason``, ``message`` and ``dump`` of the scheduler's state.

    ``at_ns`` is the time, by CLOCK_BOOTTIME.
    """

    def __init__(self, reason: str, message: str, dump: str, at_ns: int = 0):
        super().__init__(
            f"EXIT: {reason}" + (f" ({message})" if message else ""),
            hint="ghostbpf why explains it; ghostbpf run attaches anew; "
            "to remove the pins only: ghostbpf enclave destroy --all",
        )
        self.reason, self.message, self.dump, self.at_ns = reason, message, dump, at_ns


class AgentError(GhostError):
    """The agent of ``enclave`` could not start, or ended, for ``reason``."""

    def __init__(self, enclave: int, reason: str):
        super().__init__(
            f"the agent of enclave {enclave} is gone: {reason}",
            hint=f"its tasks go on in one FIFO queue; for a new agent: ghostbpf run POLICY --enclave {enclave}",
        )
        self.enclave, self.reason = enclave, reason


class CpuUnusable(GhostError):
    """A thread of an agent cannot run on ``cpu``."""

    def __init__(self, cpu: int):
        super().__init__(
            f"CPU {cpu}, for the agent, is offline, or not in the cpuset of this process",
            hint=f"chcpu --enable {cpu}, or leave the CPU out",
        )
        self.cpu = cpu


class UpgradeError(AgentError):
    """The new agent of ``enclave`` could not take over, for ``reason``; ``policy`` still schedules the enclave."""

    def __init__(self, enclave: int, reason: str, policy: str):
        super().__init__(enclave, reason)
        self.args = (f"the new agent of enclave {enclave} could not start: {reason}",)
        self.hint, self.policy = f"enclave {enclave} goes on under {policy}, as before", policy

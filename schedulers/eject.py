# SPDX-License-Identifier: Apache-2.0
"""The dump that the kernel makes when it ejects a scheduler, and what it means in words.

The kernel writes the dump (scx_dump_state() in its sched_ext source); bpf/core/exit.bpf.h adds lines about each
enclave and each task.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from . import queues
from .core import constant
from .cpuset import CpuListError, CpuSet
from .stay_alive import LEAST_SHARE, PULSE_S, PULSES_KEPT

# The numbers of digits are limited: a damaged line is skipped, and not converted into a number beyond all bounds.
_CPU = re.compile(r"CPU (\d{1,9})\s*: nr_run=")
_CURRENT = re.compile(r"\s+curr=(.*)\[(-?\d{1,9})\] class=\S*?(\w+)_sched_class")
#: Linux 7.3 puts the name of the task's scheduler, such as *root, before the time.
_TASK = re.compile(r" ([* ])(\S) (.*)\[(\d{1,9})\](?: \S+)? ([+-]\d{1,18})ms$")
_QUEUE = re.compile(r"dsq_id=(\(n/a\)|0x[0-9a-f]{1,16})")
_ALLOWED = re.compile(r"\s+cpus=([0-9a-f,]+)")
_MEMBER = re.compile(r"\s+enclave (\d{1,9})$")
_POLICY = re.compile(r"enclave (\d{1,9}): policy (.*), (\d{1,18}) queued$")
_CPUS = re.compile(r"enclave (\d{1,9}): cpus (\d{1,2}) ([0-9a-f]{1,16})$")
_FLAG = re.compile(r"enclave (\d{1,9}): (has an agent|fell back)$")
_AVAILABLE = re.compile(r"cpu (\d{1,9}): available ([0-9a-f]{1,16})$")
_TRIGGER = re.compile(r".*\[(\d{1,9})\] triggered exit kind ")
_STALLED = re.compile(r"(.*)\[(\d{1,9})\] failed to run for (\d{1,9}(?:\.\d{1,9})?)s$")
_REPORT = "report the dump: ghostbpf why --dump"
_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}_(\w+)")


@dataclass
class WaitingTask:
    """A task of the dump; ``queue`` is the DSQ on which it waits, None if it is on none."""

    comm: str
    tid: int
    cpu: int
    waited: float
    running: bool = False
    queue: int | None = None
    allowed: CpuSet = field(default_factory=CpuSet)
    enclave: int = 0


@dataclass
class DumpedCpu:
    """The task on a CPU when the dump was made, and its scheduling class: ext, fair, rt, idle …"""

    comm: str
    tid: int
    sched_class: str


@dataclass
class DumpedEnclave:
    """An enclave when the dump was made."""

    policy: str = ""
    queued: int = 0
    cpus: CpuSet = field(default_factory=CpuSet)
    has_agent: bool = False
    fell_back: bool = False


@dataclass
class Dump:
    """What a dump says; ``trigger`` is the task that ran the kernel's code that made it."""

    cpus: dict[int, DumpedCpu]
    tasks: list[WaitingTask]
    enclaves: dict[int, DumpedEnclave]
    programs: list[str]
    availability: dict[int, int] = field(default_factory=dict)
    trigger: int = 0

    @classmethod
    def parse(cls, text: str) -> Dump:
        """Read a dump, which may be cut off at any place, or be empty."""
        dump = cls({}, [], {}, _PROGRAM.findall(text))
        cpu = 0
        for line in text.splitlines():
            if found := _CPU.match(line):
                cpu = int(found[1])
            elif found := _CURRENT.match(line):
                dump.cpus[cpu] = DumpedCpu(found[1], int(found[2]), found[3])
            elif found := _TASK.match(line):
                waited = max(-int(found[5]), 0) / 1000
                dump.tasks.append(WaitingTask(found[3], int(found[4]), cpu, waited, found[1] == "*"))
            elif not line.startswith(" "):
                dump._read_core(line)
            elif dump.tasks:
                _read_task(dump.tasks[-1], line)
        return dump

    def share(self, cpu: int, seconds: float) -> float | None:
        """The share of the last ``seconds`` in which a task in the ext class could have run on ``cpu``, if known."""
        if cpu not in self.availability:
            return None
        pulses = max(min(int(seconds / PULSE_S), PULSES_KEPT), 1)
        return (self.availability[cpu] & (1 << pulses) - 1).bit_count() / pulses

    def _read_core(self, line: str) -> None:
        if found := _AVAILABLE.match(line):
            self.availability[int(found[1])] = int(found[2], 16)
        elif found := _TRIGGER.match(line):
            self.trigger = int(found[1])
        elif found := _POLICY.match(line):
            enclave = self.enclaves.setdefault(int(found[1]), DumpedEnclave())
            enclave.policy, enclave.queued = found[2], int(found[3])
        elif found := _CPUS.match(line):
            enclave = self.enclaves.setdefault(int(found[1]), DumpedEnclave())
            with contextlib.suppress(CpuListError):
                enclave.cpus |= CpuSet.from_bits(int(found[3], 16) << 64 * int(found[2]))
        elif found := _FLAG.match(line):
            enclave = self.enclaves.setdefault(int(found[1]), DumpedEnclave())
            enclave.has_agent |= found[2] == "has an agent"
            enclave.fell_back |= found[2] == "fell back"


def _read_task(task: WaitingTask, line: str) -> None:
    if (found := _QUEUE.search(line)) and found[1] != "(n/a)":
        task.queue = int(found[1], 16)
    elif found := _ALLOWED.match(line):
        with contextlib.suppress(CpuListError):
            task.allowed = CpuSet.from_mask(found[1])
    elif found := _MEMBER.match(line):
        task.enclave = int(found[1])


@dataclass(frozen=True)
class Explanation:
    """Why the kernel ejected the core, in words; what does not apply is None or empty.

    ``task`` waited on ``queue`` for ``waited`` seconds. ``decision`` says whose decision that was; ``cpus`` what the
    CPUs did that the task could have used; ``others`` which other tasks waited.
    """

    reason: str
    message: str
    task: str | None
    tid: int | None
    enclave: int | None
    policy: str | None
    waited: float | None
    queue: str | None
    decision: str
    cpus: tuple[str, ...]
    others: tuple[str, ...]
    remedy: str
    #: Whether the policy, or ghostbpf, is to blame.
    is_error: bool = True


def explain(reason: str, message: str, text: str, own_policies: Collection[str] = ()) -> Explanation:
    """Explain an ejection by its ``reason``, ``message`` and dump ``text``.

    For an error of one of ``own_policies``, which are part of ghostbpf, the remedy is to report it.
    """
    dump = Dump.parse(text)
    if found := _STALLED.match(message):
        why = _stall(reason, message, dump, found[1], int(found[2]), float(found[3]))
        if why.policy in own_policies and why.is_error:
            return replace(why, remedy=f"it is an error of ghostbpf: {_REPORT}")
        return why
    policy, decision = _failed_policy(dump, message)
    if policy:
        remedy = f"correct policy {policy}: the kernel ends every enclave for an error of one policy"
    elif "sysrq" in reason.lower():
        decision = "a user pressed SysRq-S, or wrote S to /proc/sysrq-trigger"
        remedy = "ghostbpf run attaches anew"
    else:
        decision = "no task or policy is named: see the reason"
        remedy = "ghostbpf run attaches anew; if it happens again, report the dump: ghostbpf why --dump"
    return Explanation(reason, message, None, None, None, policy, None, None, decision, (), _others(dump, None), remedy)


def _stall(reason: str, message: str, dump: Dump, comm: str, tid: int, seconds: float) -> Explanation:
    task = next((one for one in dump.tasks if one.tid == tid), None)
    enclave = dump.enclaves.get(task.enclave) if task else None
    usable = _usable(task, enclave) if task else CpuSet()
    is_taken = bool(usable) and all(_is_taken(dump, cpu, seconds) for cpu in usable)
    cpus = tuple(_cpu_line(dump, cpu, seconds) for cpu in usable)
    if task is None:
        decision = "the dump does not have the task: it was cut off, or the task ran meanwhile"
        remedy = "see the dump: ghostbpf why --dump"
    elif is_taken:
        decision = (
            f"no policy's: a higher class had {'every' if len(usable) > 1 else 'the only'} CPU that the task could use"
        )
        remedy = (
            f"keep other tasks off CPU {usable} (taskset, a cpuset), or schedule them, too: ghostbpf run POLICY --all"
        )
    else:
        decision, remedy = _decision(task, enclave)
    return Explanation(
        reason=reason,
        message=message,
        task=comm,
        tid=tid,
        enclave=task.enclave or None if task else None,
        policy=enclave.policy if enclave else None,
        waited=seconds,
        queue=None if task is None else _queue(task),
        decision=decision,
        cpus=cpus,
        others=_others(dump, tid),
        remedy=remedy,
        is_error=task is not None and not is_taken,
    )


def _is_taken(dump: Dump, cpu: int, seconds: float) -> bool:
    """Whether a higher class had ``cpu``: by its history, or else by the task on it when the dump was made."""
    share = dump.share(cpu, seconds)
    if share is not None:
        return share < LEAST_SHARE
    # The kernel's dump leaves idle CPUs out, and shows the task that makes it.
    seen = dump.cpus.get(cpu)
    return seen is not None and seen.tid != dump.trigger and seen.sched_class not in ("ext", "idle")


def _cpu_line(dump: Dump, cpu: int, seconds: float) -> str:
    share, seen = dump.share(cpu, seconds), dump.cpus.get(cpu)
    line = f"CPU {cpu} " + ("" if share is None else f"was available for {share:.0%} of the wait, and ")
    if seen is None or not seen.tid:
        return line + "was idle in the end"
    if seen.tid == dump.trigger:
        return line + "made the dump"
    return line + f"ran {seen.comm} ({seen.tid}), class {seen.sched_class}, in the end"


def _usable(task: WaitingTask, enclave: DumpedEnclave | None) -> CpuSet:
    """The CPUs that the task could use; without those of the enclave, it runs outside."""
    return (task.allowed & enclave.cpus if enclave else CpuSet()) or task.allowed


def _queue(task: WaitingTask) -> str:
    return "no queue" if task.queue is None else queues.name(task.queue, task.cpu)


def _decision(task: WaitingTask, enclave: DumpedEnclave | None) -> tuple[str, str]:
    """Whose decision it was that the task waited there, and the remedy."""
    if task.queue is None and enclave and not enclave.fell_back:
        return (
            f"policy {enclave.policy}: its enqueue() got the task and did not insert it into a queue",
            f"correct enqueue() of {enclave.policy}: it must insert each task, for example by enqueue_pending()",
        )
    if task.queue == constant("FALLBACK_DSQ") and enclave:
        return (
            f"the core's built-in FIFO: the task, which may use CPU {task.allowed}, could use no CPU of its enclave",
            f"let the task use a CPU of its enclave (taskset, a cpuset); if it may, {_REPORT}",
        )
    if enclave is None or enclave.fell_back:
        which = "which has replaced the policy" if enclave else "since the task is in no enclave"
        return f"the core's built-in FIFO, {which}", _REPORT
    if queues.is_local(task.queue or 0):
        return (
            f"policy {enclave.policy} sent the task to CPU {task.cpu}, which did not come to run it",
            f"limit the slices of {enclave.policy}; if they are limited, {_REPORT}",
        )
    owner = queues.owner(task.queue or 0)
    if owner is not None and owner not in task.allowed:
        return (
            f"policy {enclave.policy} put the task on CPU {owner}'s own queue, though it may use only CPU "
            f"{task.allowed}",
            f"correct {enclave.policy}: it must choose a CPU that the task may use; if it does, {_REPORT}",
        )
    if enclave.has_agent:
        return (
            f"the agent of policy {enclave.policy} did not let the task run, and the core did not rescue it",
            f"ghostbpf enclave show {task.enclave} shows the agent; {_REPORT}",
        )
    return (
        f"policy {enclave.policy}: its dispatch() did not take the task from that queue",
        f"correct dispatch() of {enclave.policy}: it must serve each queue that it inserts into, and PENDING; "
        "a shorter --runnable-timeout makes the built-in FIFO take over in time",
    )


def _failed_policy(dump: Dump, message: str) -> tuple[str | None, str]:
    """The policy with a program in the kernel's backtrace, or the only one; and what it did."""
    policies = {enclave.policy for enclave in dump.enclaves.values() if not enclave.fell_back}
    for program in dump.programs:
        for policy in policies:
            if program.startswith(f"{policy}_"[:15]):
                return policy, f"policy {policy}: its function {program} made an error: {message}"
    return None, ""


def _others(dump: Dump, tid: int | None) -> tuple[str, ...]:
    waiting = sorted((one for one in dump.tasks if not one.running and one.tid != tid), key=lambda one: -one.waited)
    return tuple(f"{one.comm} ({one.tid}), for {one.waited:.1f} s, on {_queue(one)}" for one in waiting)

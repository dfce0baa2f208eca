# SPDX-License-Identifier: Apache-2.0
"""Enclaves: sets of CPUs with tasks and a policy, each a directory in bpffs (ghOSt's ghostfs).

    with Enclaves.create() as enclaves:
        enclave = enclaves.new(CpuSet.parse("2-3"), POLICIES["biff"])
        enclave.add_process(1234)
        enclave.swap(POLICIES["rr"])
        enclave.destroy()

What is done is done in the kernel and survives this process. Every change is made so that one store commits
it (``state`` for an enclave's life, ``bank`` for its policy): a loader killed at any instant leaves the
state before or the state after, and the next one clears away what it had begun.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from ..hints import Hints
from ..loaders import sched_ext
from ..loaders.errors import GhostError
from ..loaders.maps import Map, possible_cpus
from . import agents, pids, tasks
from . import core as _core
from .core import ROOT, Core, Task, constant, locked
from .cpuset import CpuSet
from .errors import Ejected, EnclaveBusy, NoSuchEnclave, NotRestored, TaskError
from .policy import LoadedPolicy, Policy
from .topology import Topology

#: How often to look whether a task's making has come to its end.
_BIRTH_S = 0.0001


@dataclass(frozen=True)
class Counters:
    """Sums over all CPUs since the enclave was made; see ``struct counters`` in bpf/abi.h."""

    idle: int
    queued: int
    switches: int
    preempted: int
    affinity_misses: int
    runtime_ns: int


@dataclass(frozen=True)
class Departures:
    """How many tasks left an enclave by themselves since it was made; the last ones by tid and name, oldest first."""

    count: int
    last: tuple[tuple[int, str], ...]

    def since(self, count: int) -> Self:
        """Those after the first ``count``."""
        more = self.count - count
        return type(self)(more, self.last[-more:] if more else ())


class Enclaves:
    """All enclaves of this machine, through the attached core."""

    def __init__(self, core: Core) -> None:
        self.core = core

    @classmethod
    @contextlib.contextmanager
    def create(cls, *, full: bool = False, ahead: Policy | None = None) -> Iterator[Self]:
        """The enclaves, with the core attached if it is not; locked against other changes for the block.

        A policy to be used in the block can be compiled ``ahead``, beside the core.
        The core becomes permanent when the block has made an enclave; else it goes again. Raises KernelUnsupported.
        """
        sched_ext.status()
        with locked():
            core = _open_or_clear()
            if core is not None and core.full != full and full:
                raise GhostError(
                    "the core is attached in partial mode", hint="for --all, first: ghostbpf enclave destroy --all"
                )
            fresh = core is None
            if core is None:
                _core.clear_pins()
                with ahead.compile_ahead() if ahead else contextlib.nullcontext():
                    core = Core.attach(full=full)
            enclaves = cls(core)
            try:
                enclaves._reconcile()
                yield enclaves
                if fresh and enclaves.ids():
                    core.pin()
            except BaseException:
                if fresh or not enclaves.ids():
                    core.detach()
                raise
            if not enclaves.ids():
                core.detach()

    @classmethod
    def open(cls) -> Self | None:
        """The enclaves there are, to look at; None where no core is attached. Raises Ejected."""
        core = Core.open()
        return None if core is None else cls(core)

    @classmethod
    def find(cls, id: int) -> Enclave:
        """Enclave ``id``, to look at or to give tasks; raises NoSuchEnclave, Ejected."""
        enclaves = cls.open()
        if enclaves is None:
            raise NoSuchEnclave(id)
        return enclaves.get(id)

    @classmethod
    @contextlib.contextmanager
    def change(cls) -> Iterator[Self | None]:
        """The enclaves there are, locked for a change; None where no core is attached. Raises Ejected."""
        with locked():
            enclaves = cls.open()
            if enclaves is None:
                _core.clear_pins()
            else:
                enclaves._reconcile()
            try:
                yield enclaves
            finally:
                if enclaves is not None and not enclaves.ids():
                    enclaves.core.detach()

    def ids(self) -> list[int]:
        """The ids of the enclaves there are."""
        return [i for i in range(1, len(self.core.enclaves)) if self._state(i) != constant("ENCLAVE_FREE")]

    def __iter__(self) -> Iterator[Enclave]:
        return (Enclave(self.core, id) for id in self.ids())

    def __contains__(self, enclave: Enclave) -> bool:
        """Whether ``enclave`` is still there; another one with its id is not it."""
        there = self.core.enclaves[enclave.id]
        active = there.state == constant("ENCLAVE_ACTIVE") and there.created_ns == enclave.created_ns
        return bool(active) and self.core.attached

    def get(self, id: int) -> Enclave:
        """Enclave ``id``; raises NoSuchEnclave."""
        if not 0 < id < len(self.core.enclaves) or self._state(id) != constant("ENCLAVE_ACTIVE"):
            raise NoSuchEnclave(id)
        return Enclave(self.core, id)

    def free_cpus(self) -> CpuSet:
        """Online CPUs that no enclave holds."""
        return Topology.from_sysfs().all_cpus - CpuSet(cpu for enclave in self for cpu in enclave.cpus)

    def new(
        self, cpus: CpuSet, policy: Policy, options: Mapping[str, str] | None = None, *, id: int | None = None
    ) -> Enclave:
        """Make an enclave of ``cpus`` scheduled by ``policy``; raises EnclaveBusy and what loading raises."""
        values = policy.values(options)
        self._check_cpus(cpus)
        policy.check(values, cpus)
        if id is None:
            id = self._free_id()
        enclave = Enclave(self.core, id)
        enclave._start(cpus, enclave._load(policy, values))
        return enclave

    def _check_cpus(self, cpus: CpuSet) -> None:
        check_cpus(cpus)
        for other in self:
            if taken := cpus & other.cpus:
                raise EnclaveBusy(other.id, str(taken))

    def _free_id(self) -> int:
        ids = range(1, len(self.core.enclaves))
        for id in ids:
            if self._state(id) == constant("ENCLAVE_FREE"):
                return id
        raise GhostError(f"there are {len(ids)} enclaves, and no more ids", hint="ghostbpf enclave destroy ID")

    def _state(self, id: int) -> int:
        return int(self.core.enclaves[id].state)

    def _reconcile(self) -> None:
        """Finish or undo what a loader that died had begun."""
        for enclave in list(self):
            if self._state(enclave.id) == constant("ENCLAVE_DYING"):
                if not enclave._hidden_tasks():
                    enclave._finish_destroy()
            else:
                enclave._tidy()
                enclave._depart_strangers()
        if ROOT.exists():
            known = {enclave.path for enclave in self} | {_core.CORE}
            for path in set(ROOT.iterdir()) - known:
                shutil.rmtree(path, ignore_errors=True)


class NextAgent(Protocol):
    """The agent of a policy that is to replace another; see AgentProcess in userspace/agent_process.py."""

    def prepare(self, enclave: Enclave, bank: int) -> None:
        """Do all that may fail, while the policy in the other bank is live still."""

    def take_over(self, enclave: Enclave) -> object:
        """Be the agent, now that the policy is live."""


class Enclave:
    """One enclave, by ``id``; what it says is read from the kernel each time."""

    def __init__(self, core: Core, id: int) -> None:
        self.core, self.id = core, id
        self._record: Any = core.enclaves[id]
        #: When it was made, by CLOCK_BOOTTIME; no two enclaves have the same.
        self.created_ns = int(self._record.created_ns)
        #: The tasks that this object handed back and that did not get the policy that they had when they joined.
        self.not_restored: list[NotRestored] = []

    @property
    def path(self) -> Path:
        """Its directory in bpffs."""
        return ROOT / f"enclave_{self.id}"

    @property
    def hints_path(self) -> Path:
        """Where its table of hints is, once it has had a policy that reads them."""
        return self.path / "hints"

    @property
    def cpus(self) -> CpuSet:
        """The CPUs it owns, online or not."""
        return CpuSet.from_words(self._record.cpus)

    @property
    def spun_cpu(self) -> int | None:
        """The one of them that runs no tasks, since an agent spins there."""
        spun = self._record.spinner >> 32
        return int(spun) - 1 if spun else None

    @property
    def policy(self) -> str:
        """The name of the policy that schedules it now."""
        return _core.text(self._record.policy[self._record.bank])

    @property
    def agent(self) -> agents.AgentState | None:
        """Its agent; None where its policy has none."""
        there = self._agents()
        return None if there is None else there.state

    def task_states(self) -> list[dict[str, Any]]:
        """What its agents know of its tasks: tid, state, seconds in it, sequence number; empty without agents."""
        there = self._agents()
        return [] if there is None else list(there.task_states())

    def _agents(self) -> agents.Agents | None:
        return agents.Agents.open(self.id) if self._record.agents[self._record.bank] else None

    @property
    def nr_tasks(self) -> int:
        """How many tasks are in it and in the ext class."""
        return len(self.tasks())

    @property
    def swaps(self) -> int:
        """How many times its policy was replaced."""
        return int(self._record.swaps)

    @property
    def uid(self) -> int:
        """The user who made it."""
        return int(self._record.uid)

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - float(self._record.created_ns) / 1e9

    def per_cpu(self) -> dict[int, Counters]:
        """Its counters by CPU, for each CPU that has any."""
        found = {}
        for cpu, values in enumerate(self.core.counters[self.id]):
            counters = Counters(*(int(getattr(values, name)) for name in Counters.__dataclass_fields__))
            if any(vars(counters).values()):
                found[cpu] = counters
        return found

    def counters(self) -> Counters:
        """Its counters, all CPUs together."""
        rows = [list(vars(row).values()) for row in self.per_cpu().values()]
        return Counters(*map(sum, zip(*rows, strict=True))) if rows else Counters(0, 0, 0, 0, 0, 0)

    def departures(self) -> Departures:
        """The tasks that left the ext class, and so the enclave, by themselves, or by a program that is no loader."""
        record = self.core.departures[self.id]
        count, kept = int(record.count), len(record.last)
        last = (record.last[number % kept] for number in range(max(count - kept, 0), count))
        return Departures(count, tuple((int(one.tid), _core.text(one.comm)) for one in last))

    def tasks(self) -> list[Task]:
        """Its tasks that are in the ext class, or out of it only while they hold a real-time task's lock."""
        return [task for task in self.core.tasks() if task.enclave == self.id]

    def add(self, tid: int) -> None:
        """Move one task in, from wherever it is; raises TaskError and NoSuchEnclave."""
        if not self._is_there:
            raise NoSuchEnclave(self.id)
        original = tasks.original_of(tid)
        before = self._join(tid, self.id, self._record.generation)
        try:
            tasks.enter_ext(tid)
        except GhostError:
            self._join(tid, *before)
            raise
        if before[0] not in (0, self.id) and (others := agents.Agents.open(before[0])) is not None:
            others.depart(tid)
        if not self._is_there:
            # Its destroyer may have looked for its tasks before this one was there to be seen.
            if tasks.policy_of(tid) == tasks.SCHED_EXT:
                tasks.restore(tid, original)
            raise NoSuchEnclave(self.id)

    @property
    def _is_there(self) -> bool:
        return bool(self._record.state == constant("ENCLAVE_ACTIVE") and self._record.created_ns == self.created_ns)

    def add_process(self, pid: int) -> int:
        """Move every thread of process ``pid`` in; how many there were. Raises TaskError."""
        return tasks.each_thread(pid, self.add, self.core.forking)

    def remove(self, tid: int) -> None:
        """Hand one task back, with the policy that it had before; raises TaskError where it is not in here."""
        found = next((task for task in self.tasks() if task.tid == tid), None)
        if found is None:
            raise self._not_in_here(tid)
        self._hand_back(found)

    def remove_process(self, pid: int) -> int:
        """Hand every thread of process ``pid`` that is in here back, as remove() does; how many there were.

        Raises TaskError where none is.
        """
        seen = self._hand_back_all(lambda task: task.pid == pid)
        if not seen:
            raise self._not_in_here(pid)
        return len(seen)

    def swap(
        self, policy: Policy, options: Mapping[str, str] | None = None, next_agent: NextAgent | None = None
    ) -> None:
        """Replace its policy: the new one is loaded beside the old one, and one store puts it in charge.

        Where that has an agent, ``next_agent`` does all that may fail before that store, and takes over after it.
        Where anything fails, the old policy is in charge, with the agent that it had. Where both have an agent, the old
        agent stays until a new one takes over; where the new one has none, it leaves.
        """
        values = policy.values(options)
        policy.check(values, self.cpus)
        new = 1 - int(self._record.bank)
        try:
            loaded = self._load(policy, values)
            self._fill(new, loaded)
            loaded.close()
            if next_agent is not None:
                next_agent.prepare(self, new)
            self._switch_to(new, next_agent)
        except BaseException:
            self._empty(new)
            self._tidy()
            raise
        self._record.swaps += 1
        self._tidy()

    def _switch_to(self, bank: int, next_agent: NextAgent | None) -> None:
        old = 1 - bank
        self._make_live(bank)
        try:
            if next_agent is not None:
                next_agent.take_over(self)
        except BaseException:
            self._make_live(old)
            raise

    def _make_live(self, bank: int) -> None:
        if self._record.queues[1 - bank] and not all(self._record.agents):
            self._record.draining = 1
        self._record.bank = bank

    def _tidy(self) -> None:
        """Clear away what the live policy has no use for, and what those before it left, or a loader that died."""
        bank = int(self._record.bank)
        if self._bank_path(1 - bank).exists():
            self._empty(1 - bank)
        if not self._record.agents[bank] and agents.has_pins(self.id):
            self._forget_agents()
        if self._record.draining:
            self._hand_over()

    def _depart_strangers(self) -> None:
        """Tell its agent of tasks that are another enclave's: the loader that moved them died before it could."""
        if (there := self._agents()) is None or not (known := there.tids()):
            return
        for task in self.core.tasks():
            if task.enclave != self.id and task.tid in known:
                with contextlib.suppress(GhostError):
                    there.depart(task.tid)

    def destroy(self) -> None:
        """Hand its tasks back, each with the policy that it had before, and free its CPUs.

        Raises NamespaceError where it has tasks outside of this process's pid namespace, for it cannot move those.
        """
        if hidden := self._hidden_tasks():
            raise pids.NamespaceError(
                f"enclave {self.id} has {hidden} tasks outside of this pid namespace",
                hint=f"in the initial pid namespace, on the host: ghostbpf enclave destroy {self.id}",
            )
        self._record.state = constant("ENCLAVE_DYING")
        self._finish_destroy()

    def _load(self, policy: Policy, values: Mapping[str, int]) -> LoadedPolicy:
        compiled = policy.compile()
        if not policy.is_hinted(compiled):
            return policy.load(compiled, self.id, self.core.maps, values)
        # It stays through all swaps: applications have it mapped.
        if not self.hints_path.exists():
            _core.make_private(self.path)
            Hints.create(self.hints_path).close()
        with Map.open(self.hints_path) as table:
            return policy.load(compiled, self.id, {**self.core.maps, "hints": table}, values)

    def _start(self, cpus: CpuSet, loaded: LoadedPolicy) -> None:
        record = self._record
        self._empty(0)
        self._empty(1)
        self._fill(0, loaded)
        self.core.counters.clear(self.id)
        self.core.departures[self.id].count = 0
        record.generation += 1
        record.bank, record.swaps, record.draining, record.uid = 0, 0, 0, os.getuid()
        self.created_ns = record.created_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        record.cpus = cpus.words(constant("CPU_WORDS"))
        record.spinner = 0
        self._disown_cpus()
        self.core.set_stray(self.id, False)
        for cpu in cpus:
            self.core.cpus[cpu].enclave = self.id
        record.state = constant("ENCLAVE_ACTIVE")
        loaded.close()

    def _finish_destroy(self) -> None:
        self.core.set_stray(self.id, True)
        self._forget_agents()
        self._disown_cpus()
        if self.id != int(self.core.state.default_enclave):
            self._hand_back_all(lambda task: True)
        self._empty(0)
        self._empty(1)
        shutil.rmtree(self.path, ignore_errors=True)
        quiet = _core.synchronize_rcu()
        self.core.drain(self.id)
        if quiet and not self.core.set_stray(self.id, True):
            self.core.set_stray(self.id, False)
        self._record.state = constant("ENCLAVE_FREE")

    def _hand_over(self) -> None:
        # Where there is no telling when the programs of the policy before are done, the core goes on looking.
        if _core.synchronize_rcu():
            self.core.drain(self.id)
            self._record.draining = 0

    def _hand_back_all(self, wanted: Callable[[Task], bool]) -> set[int]:
        # Each round finds the children that tasks of the last one had forked meanwhile; a fork that was under way when
        # its task was handed back shows its child only when it is done.
        seen: set[int] = set()
        forking: set[int] = set()
        deadline = time.monotonic() + tasks.PATIENCE_S
        while (found := [task for task in self.tasks() if wanted(task)]) or forking:
            for task in found:
                try:
                    self._hand_back(task)
                except TaskError:
                    if tasks.policy_of(task.tid) is not None:
                        raise
            tids = {task.tid for task in found}
            seen |= tids
            forking = self.core.forking() & (forking | tids)
            if time.monotonic() > deadline:
                raise GhostError(f"enclave {self.id} forks faster than its tasks can be handed back", hint="try again")
        return seen

    def _hidden_tasks(self) -> int:
        if self.id == int(self.core.state.default_enclave):
            return 0  # they are the fair class's, and stay where they are
        return pids.hidden_tasks(self.core.maps["tasks"], self.id, int(self._record.generation))

    def _forget_agents(self) -> None:
        agents.forget(self.id)
        self._record.spinner = 0

    def _disown_cpus(self) -> None:
        for number in range(possible_cpus()):
            cpu = self.core.cpus[number]
            if cpu.enclave == self.id:
                cpu.enclave = 0

    def _hand_back(self, task: Task) -> None:
        self.core.release(task.tid)
        if (refusal := tasks.restore(task.tid, task.original)) is not None:
            self.not_restored.append(refusal)
        if self.core.full:
            self._join(task.tid, 0, 0)

    def _join(self, tid: int, enclave: int, generation: int) -> tuple[int, int]:
        while (answer := self.core.join(tid, enclave, generation))[0] == -errno.EAGAIN:
            time.sleep(_BIRTH_S)
        error, *before = answer
        if error:
            raise tasks.task_error(tid, -error)
        return before[0], before[1]

    def _not_in_here(self, tid: int) -> TaskError:
        if tasks.policy_of(tid) is None:
            return tasks.task_error(tid, errno.ESRCH)
        return TaskError(tid, f"it is not in enclave {self.id}", hint=f"ghostbpf enclave show {self.id} --tasks")

    def _bank_path(self, bank: int) -> Path:
        return self.path / f"policy_{bank}"

    def _slot(self, bank: int) -> int:
        return self.id + bank * constant("MAX_ENCLAVES")

    def _fill(self, bank: int, loaded: LoadedPolicy) -> None:
        self._empty(bank)
        self._record.policy[bank] = loaded.policy.name.encode()
        self._record.queues[bank] = loaded.policy.queues
        self._record.agents[bank] = isinstance(loaded.policy, agents.AgentPolicySpec)
        for op, program in loaded.programs.items():
            self.core.slots[op][self._slot(bank)] = program.fd
        directory = self._bank_path(bank)
        _core.make_private(directory)
        for name, held in loaded.maps.items():
            held.pin(directory / name)

    def _empty(self, bank: int) -> None:
        for slot in self.core.slots.values():
            with contextlib.suppress(KeyError):
                del slot[self._slot(bank)]
        shutil.rmtree(self._bank_path(bank), ignore_errors=True)


def check_cpus(cpus: CpuSet) -> None:
    """Raise GhostError unless there are some, and all of them online."""
    if not cpus:
        raise GhostError("an enclave needs at least one CPU", hint="for example --cpus 0-3")
    online = Topology.from_sysfs().all_cpus
    if missing := cpus - online:
        raise GhostError(f"CPU {missing} is not there or not online", hint=f"online are {online}")


def _open_or_clear() -> Core | None:
    """The attached core; where the kernel had thrown the last one out, its pins are cleared away."""
    try:
        return Core.open()
    except Ejected:
        _core.clear_pins()
        return None

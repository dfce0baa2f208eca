# SPDX-License-Identifier: Apache-2.0
"""Enclaves: sets of CPUs with tasks and a policy, each a directory in bpffs (ghOSt's ghostfs).

    with Enclaves.temporary(POLICIES["biff"], CpuSet.parse("2-3")) as enclave:
        enclave.add_process(1234)
        enclave.set_policy(POLICIES["rr"])

Changes are made in the kernel and outlive this process. One store commits each change (``state`` for an enclave's
life, ``bank`` for its policy): a loader killed at any instant leaves the state before or the state after, and the next
loader removes what the killed one had begun.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Collection, Iterator
from typing import Self

from ..loaders import pid_namespace, sched_ext
from ..loaders.errors import GhostError, KernelUnsupported
from ..loaders.maps import possible_cpus
from . import core as _core
from . import limits, resize, stay_alive
from .core import DEFAULT_ENCLAVE, Core, constant, has_fallen_back, locked
from .cpuset import CpuSet
from .errors import AgentError, Ejected, EnclaveBusy, NoSuchEnclave, UpgradeError
from .lending import Lending
from .pins import CORE, ROOT
from .policy import AgentHandle, LoadedPolicy, Policy, PolicyOptions
from .topology import Topology
from .tree_member import TreeMember


class Enclaves:
    """All enclaves of this machine, through the attached core."""

    def __init__(self, core: Core) -> None:
        self.core = core

    @classmethod
    @contextlib.contextmanager
    def temporary(
        cls,
        policy: Policy | PolicyOptions[Policy],
        cpus: CpuSet | None = None,
        *,
        id: int | None = None,
        full: bool = False,
        keep_stats: bool = True,
        keep: bool = False,
        start_agent: bool = True,
        runnable_timeout_ns: int | None = None,
        block: Collection[signal.Signals] = (),
    ) -> Iterator[Enclave]:
        """An enclave of ``cpus`` (default: all that are free) under ``policy`` for the block, with its agent in charge.

        An enclave ``id`` that exists gets the policy instead, and stays after the block. With ``keep``, a new enclave
        and its agent stay too, unless the agent cannot start; if the block raises, the agent ends. With
        ``start_agent=False`` the caller starts the agent. ``runnable_timeout_ns`` is how long the policy may let a
        runnable task wait before the built-in FIFO replaces it (0: for ever); the default is that of a new enclave, or
        what an existing one has. ``block``: signals that are blocked, for the caller to
        unblock, from before the enclave is made; until then they end this process, and the core with it.

        Raises EnclaveBusy, AgentError, UpgradeError, and what create() and loading raise.
        """
        options = PolicyOptions.of(policy)
        # Forked before anything is locked or attached, for the agent would inherit the lock.
        agent = options.start_agent(stay=keep) if start_agent else None
        with _ending(agent, keep):
            with cls.create(full=full, keep_stats=keep_stats, ahead=options.policy) as enclaves:
                signal.pthread_sigmask(signal.SIG_BLOCK, block)
                existing = None if id is None else enclaves._active(id)
                if existing is not None:
                    if cpus is not None and cpus != existing.cpus:
                        raise EnclaveBusy(
                            existing.id,
                            str(existing.cpus),
                            hint=f"leave --cpus out, or first: ghostbpf enclave resize {id} --cpus {cpus}",
                        )
                    existing.set_policy(options, agent)
                    enclave = existing
                else:
                    new_id = DEFAULT_ENCLAVE if full else id
                    enclave = enclaves.new(enclaves._free_cpus() if cpus is None else cpus, options, id=new_id)
                if runnable_timeout_ns is not None:
                    enclave.set_runnable_timeout(runnable_timeout_ns)
            try:
                if agent is not None and existing is None:
                    try:
                        agent.take_over(enclave)
                    except AgentError:
                        keep = False
                        raise
                    enclave.agent_process = agent
                yield enclave
            finally:
                if existing is None and not keep and enclave.core.attached:
                    cls._destroy(enclave)

    @classmethod
    def _destroy(cls, enclave: Enclave) -> None:
        """Destroy ``enclave`` unless it is gone; a later enclave with its id is left alone."""
        with cls.change() as enclaves:
            if enclaves is not None and enclave in enclaves:
                current = enclaves.get(enclave.id)
                try:
                    current.destroy()
                finally:
                    enclave.not_restored += current.not_restored

    @classmethod
    @contextlib.contextmanager
    def create(cls, *, full: bool = False, keep_stats: bool = True, ahead: Policy | None = None) -> Iterator[Self]:
        """The enclaves, with the core attached if it was not; locked against other changes for the block.

        A policy that the block will load can be compiled ``ahead``, in parallel to the core.
        A core attached here stays only if the block made an enclave. Raises KernelUnsupported.
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
                    core = Core.attach(full=full, keep_stats=keep_stats)
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
        """The enclaves, to read; None if no core is attached. Raises Ejected."""
        core = Core.open()
        return None if core is None else cls(core)

    @classmethod
    def find(cls, id: int) -> Enclave:
        """Enclave ``id``, to read or to add tasks; raises NoSuchEnclave, Ejected."""
        enclaves = cls.open()
        if enclaves is None:
            raise NoSuchEnclave(id)
        return enclaves.get(id)

    @classmethod
    @contextlib.contextmanager
    def change(cls) -> Iterator[Self | None]:
        """The enclaves, locked for a change; None if no core is attached. Raises Ejected."""
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
        """The ids in use."""
        return [i for i in range(1, len(self.core.enclaves)) if self._state(i) != constant("ENCLAVE_FREE")]

    def __iter__(self) -> Iterator[Enclave]:
        return (Enclave(self.core, id) for id in self.ids())

    def __contains__(self, enclave: Enclave) -> bool:
        """Whether ``enclave`` still exists; a later enclave with its id is not the same."""
        record = self.core.enclaves[enclave.id]
        active = record.state == constant("ENCLAVE_ACTIVE") and record.created_ns == enclave.created_ns
        return bool(active) and self.core.attached

    def get(self, id: int) -> Enclave:
        """Enclave ``id``; raises NoSuchEnclave."""
        if (enclave := self._active(id)) is None:
            raise NoSuchEnclave(id)
        return enclave

    def free_cpus(self) -> CpuSet:
        """Online CPUs that belong to no enclave."""
        return Topology.from_sysfs().all_cpus - CpuSet(cpu for enclave in self for cpu in enclave.cpus)

    def new(self, cpus: CpuSet, policy: Policy | PolicyOptions[Policy], *, id: int | None = None) -> Enclave:
        """Make an enclave of ``cpus`` scheduled by ``policy``; raises EnclaveBusy and what loading raises."""
        options = PolicyOptions.of(policy)
        self._check_cpus(cpus)
        options.policy.check(options.values, cpus)
        enclave = Enclave(self.core, self._free_id() if id is None else id)
        enclave._start(cpus, enclave._banks.load(options))
        return enclave

    def new_in_tree(self, root: int, cpus: CpuSet, options: PolicyOptions[Policy] | None, leaf: int) -> Enclave:
        """Make an enclave of tree ``root`` (0: it is the root); see trees.py. Raises what loading raises."""
        enclave = Enclave(self.core, self._free_id())
        if options is not None:
            options.policy.check(options.values, cpus)
        loaded = None if options is None else enclave._banks.load(options)
        enclave._start(CpuSet() if leaf else cpus, loaded, tree=root or enclave.id, leaf=leaf)
        return enclave

    def _active(self, id: int) -> Enclave | None:
        if not 0 < id < len(self.core.enclaves) or self._state(id) != constant("ENCLAVE_ACTIVE"):
            return None
        return Enclave(self.core, id)

    def _free_cpus(self) -> CpuSet:
        if free := self.free_cpus():
            return free
        owner = next(iter(self))
        raise EnclaveBusy(owner.id, str(owner.cpus))

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
        """Finish or undo what a killed loader had begun."""
        for enclave in list(self):
            dying = self._state(enclave.id) == constant("ENCLAVE_DYING")
            if enclave.tree and (dying or not enclave._banks.hierarchy.is_complete):
                enclave._mark_dying()
        for enclave in list(self):
            if self._state(enclave.id) == constant("ENCLAVE_DYING"):
                if not enclave._hidden_tasks():
                    enclave._finish_destroy()
            else:
                enclave._banks.tidy()
                enclave._report_missed_departures()
        if ROOT.exists():
            known = {enclave.path for enclave in self} | {CORE}
            for path in set(ROOT.iterdir()) - known:
                shutil.rmtree(path, ignore_errors=True)


class Enclave(TreeMember):
    """One enclave, by ``id``, and the changes to it."""

    def __init__(self, core: Core, id: int) -> None:
        super().__init__(core, id)
        #: The agent that temporary() or set_policy() put in charge through this object.
        self.agent_process: AgentHandle | None = None

    def set_policy(self, policy: Policy | PolicyOptions[Policy], agent: AgentHandle | None = None) -> None:
        """Replace its policy: the new one is loaded beside the old one, and one store makes it live.

        ``agent``, started by ``policy.start_agent()``, prepares before that store and takes over after it. If both
        policies have agents, the old agent stays until a new one has taken over without a failure; if the new policy
        has none, the old agent leaves. The caller holds the lock of Enclaves.change() or create(), and ends ``agent``
        if this raises.

        On any failure the old policy is live, with its agent. Raises UpgradeError (AgentError if the old agent is
        gone, too) and what loading raises.
        """
        options = PolicyOptions.of(policy)
        self._check_leaf(options.policy)
        options.policy.check(options.values, self.cpus)
        before, old, agents = self.policy, self._banks.live, self._agents()
        fell_back = has_fallen_back(self._record)
        had_agent = agents is not None and agents.channels[0].tid
        try:
            loaded = self._banks.load(options)
            self._banks.fill(1 - old, loaded)
            loaded.close()
            if agent is not None:
                agent.prepare(self, 1 - old)
            self._banks.make_live(1 - old)
            try:
                if agent is not None:
                    agent.take_over(self)
            except BaseException:
                self._banks.make_live(old, fall_back=fell_back)
                if agents is not None and had_agent:
                    agents.wait_for_return()
                raise
        except BaseException as error:
            self._banks.empty(1 - old)
            self._banks.tidy()
            if isinstance(error, AgentError) and not self._has_lost_agent():
                raise UpgradeError(self.id, error.reason, before) from None
            raise
        self._record.swaps += 1
        self._banks.tidy()
        self.agent_process = agent

    def set_runnable_timeout(self, ns: int) -> None:
        """Let its policies leave a runnable task waiting for up to ``ns``, until the built-in FIFO replaces them."""
        self._record.runnable_timeout_ns = ns

    def resize(self, cpus: CpuSet, *, steal_from: Enclave | None = None) -> None:
        """Give it exactly ``cpus``, in one step: if this process is killed, it has the old CPUs or the new ones.

        Its tasks leave a CPU that it loses within a tick, and its agents learn of the change. CPUs that ``steal_from``
        has leave that enclave in the same step. The caller holds the lock of Enclaves.change() or create().

        Raises EnclaveBusy if another enclave has one of ``cpus``, ResizeError and NoSuchEnclave; nothing has changed
        then.
        """
        if not self.is_active and not self.is_being_destroyed:
            raise NoSuchEnclave(self.id)
        resize.check(self, cpus, [one for one in Enclaves(self.core) if one.id != self.id], steal_from)
        both = [self] if steal_from is None or steal_from.cpus.isdisjoint(cpus) else [self, steal_from]
        if self.core.resize(self.id, cpus, both[-1].id if len(both) > 1 else 0):
            raise NoSuchEnclave(self.id)
        for one in both:
            if (shared := one._agents()) is not None:
                shared.report_cpus_changed()
        for one in both:
            one._banks.tidy()

    def set_lending(
        self, *, lend: bool | None = None, borrow: bool | None = None, reclaim: str | None = None
    ) -> Lending:
        """Lend idle CPUs to enclaves that borrow, or borrow those of enclaves that lend; returns what holds now.

        What is None stays as it is; see Lending for ``reclaim``. The caller holds the lock of Enclaves.change() or
        create(). Raises ValueError, and what loading raises; nothing has changed then.
        """
        self._check_lending()
        lending = self.lending.replace(lend, borrow, reclaim)
        self._banks.lending.set(lending)
        return lending

    def apply_cgroup_limits(self, on: bool) -> None:
        """Apply the ``cpu.max`` of cgroups to its tasks, as a new enclave does, or no longer; waiting tasks go on.

        Raises KernelUnsupported if it is to be on and the kernel cannot.
        """
        if on and not limits.are_applied():
            raise KernelUnsupported(
                "cgroup limits",
                "enclaves cannot apply the limits of cgroups on this kernel",
                hint="limit tasks by the enclave's CPUs, or boot a kernel with CONFIG_CFS_BANDWIDTH",
            )
        self._record.unlimited = not on

    def destroy(self) -> None:
        """Move its tasks out, each with the policy that it had before, and free its CPUs.

        The root of a tree is destroyed with all leaves. Raises NamespaceError if it has tasks outside of this process's
        pid namespace, which cannot be moved from here, TaskError if it has tasks that this process may not move, and
        GhostError for a leaf; nothing has changed then.
        """
        self._check_destroy()
        members = [Enclave(self.core, id) for id in self._members()]
        for one in members:
            if hidden := one._hidden_tasks():
                raise pid_namespace.NamespaceError(
                    f"enclave {one.id} has {hidden} tasks outside of this pid namespace",
                    hint=f"in the initial pid namespace, on the host: ghostbpf enclave destroy {self.id}",
                )
            one._check_may_move()
        self._mark_dying()
        for one in members:
            try:
                one._finish_destroy()
            finally:
                if one.id != self.id:
                    self.not_restored += one.not_restored

    def _has_lost_agent(self) -> bool:
        return (agent := self.agent) is not None and agent.state == "gone"

    def _report_missed_departures(self) -> None:
        """Tell the agent of tasks that joined another enclave: the loader that moved them was killed before it did."""
        if (shared := self._agents()) is None or not (known := shared.tids()):
            return
        for task in self.core.tasks():
            if task.enclave != self.id and task.tid in known:
                with contextlib.suppress(GhostError):
                    shared.depart(task.tid)

    def _start(self, cpus: CpuSet, loaded: LoadedPolicy | None, *, tree: int = 0, leaf: int = 0) -> None:
        """Make it active. In a tree it has the number ``leaf``; the root (0) has no policy, and all ``cpus``."""
        record = self._record
        record.tree = record.leaf = 0
        self._banks.empty(0)
        self._banks.empty(1)
        record.tree, record.leaf = tree, leaf
        record.reach = [0] * constant("CPU_WORDS")
        if loaded is not None:
            self._banks.fill(0, loaded)
        self.core.counters.clear(self.id)
        self.core.departures[self.id].count = 0
        self.core.fallbacks[self.id].count = 0
        record.generation += 1
        record.bank, record.swaps, record.draining, record.uid = 0, 0, 0, os.getuid()
        record.unlimited = 0
        self.created_ns = record.created_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        record.cpus = cpus.words(constant("CPU_WORDS"))
        record.spinner = 0
        record.runnable_timeout_ns = stay_alive.timeout_ns(stay_alive.DEFAULT)
        record.policy_since_ns = time.monotonic_ns()
        self._banks.lending.forget()
        self._disown_cpus()
        self.core.set_stray(self.id, False)
        for cpu in cpus:
            self.core.cpus[cpu].availability = 0
            self.core.cpus[cpu].holder = self.id if tree else 0
            self.core.cpus[cpu].turn_until = 0
            self.core.cpus[cpu].enclave = self.id
        record.state = constant("ENCLAVE_ACTIVE")
        if loaded is not None:
            loaded.close()

    def _finish_destroy(self) -> None:
        self._banks.lending.forget()
        self.core.set_stray(self.id, True)
        self._banks.forget_agents()
        if self.tree:
            _core.synchronize_rcu()  # arbiters that did not know that the tree goes away may have moved CPUs until now
        self._disown_cpus()
        if self.id != int(self.core.state.default_enclave):
            self._remove_all(lambda task: True)
        self._banks.empty(0)
        self._banks.empty(1)
        shutil.rmtree(self.path, ignore_errors=True)
        quiet = _core.synchronize_rcu()
        self.core.drain(self.id)
        if quiet and not self.core.set_stray(self.id, True):
            self.core.set_stray(self.id, False)
        self._record.tree = self._record.leaf = 0
        self._record.reach = [0] * constant("CPU_WORDS")
        self._record.state = constant("ENCLAVE_FREE")

    def _disown_cpus(self) -> None:
        for number in range(possible_cpus()):
            cpu = self.core.cpus[number]
            if cpu.enclave == self.id:
                cpu.enclave = cpu.holder = 0


def check_cpus(cpus: CpuSet) -> None:
    """Raise GhostError unless there is at least one CPU and all are online."""
    if not cpus:
        raise GhostError("an enclave needs at least one CPU", hint="for example --cpus 0-3")
    online = Topology.from_sysfs().all_cpus
    if missing := cpus - online:
        raise GhostError(f"CPU {missing} is not online", hint=f"choose from {online}")


@contextlib.contextmanager
def _ending(agent: AgentHandle | None, keep: bool) -> Iterator[None]:
    """End ``agent`` after the block; with ``keep`` only if the block raises."""
    try:
        yield
    except BaseException:
        if agent is not None:
            agent.end()
        raise
    if agent is not None and not keep:
        agent.end()


def _open_or_clear() -> Core | None:
    """The attached core; the pins of a core that the kernel has ejected are removed."""
    try:
        return Core.open()
    except Ejected:
        _core.clear_pins()
        return None

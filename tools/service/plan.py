# SPDX-License-Identifier: Apache-2.0
"""What differs between enclaves in the kernel and a file; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from ...loaders.errors import GhostError
from ...schedulers.auto_join import AutoJoin
from ...schedulers.cpuset import CpuSet
from ...schedulers.enclave import Enclave, Enclaves, check_cpus
from ...schedulers.errors import Ejected, EnclaveBusy
from ...schedulers.lending import Lending
from ...schedulers.processes import Rule
from .applied import Applied
from .config import EnclaveConfig

#: The enclaves of a file, by id.
Wanted = Mapping[int, EnclaveConfig]


@dataclass(frozen=True)
class Live:
    """An enclave in the kernel; ``lost`` says why its policy does not decide any more, empty if it does."""

    id: int
    cpus: CpuSet
    policy: str
    applied: Applied | None
    lost: str
    runnable_timeout_ns: int
    cgroup_limits: bool
    lending: Lending
    tree: int = 0

    @classmethod
    def of(cls, enclave: Enclave) -> Self:
        """What ``enclave`` is now."""
        agent, lost = enclave.agent, ""
        if enclave.fallback is not None:
            lost = "the built-in FIFO has replaced it"
        elif agent is not None and agent.state == "gone":
            lost = "its agent is gone"
        return cls(
            id=enclave.id,
            cpus=enclave.cpus,
            policy=enclave.policy,
            applied=Applied.load(enclave),
            lost=lost,
            runnable_timeout_ns=enclave.runnable_timeout_ns,
            cgroup_limits=not enclave.ignores_cgroup_limits,
            lending=enclave.lending,
            tree=enclave.tree,
        )

    @property
    def shown(self) -> str:
        """Its policy, for people."""
        what = self.policy if self.applied is None else self.applied.shown
        if self.lost:
            return f"{what} ({self.lost})"
        return what if self.applied is not None else f"{what} (options unknown)"

    def has_policy_of(self, config: EnclaveConfig) -> bool:
        """Whether the policy of ``config`` decides, with its options and from the same code."""
        return (
            not self.lost
            and self.applied is not None
            and self.policy == config.options.policy.name
            and dict(self.applied.values) == dict(config.options.values)
            and self.applied.fingerprint == config.fingerprint
        )


@dataclass(frozen=True)
class Change:
    """One difference: ``what`` of ``enclave`` is ``before`` (None: there is no such enclave) and becomes ``after``."""

    enclave: int
    what: str
    before: str | None
    after: str | None


def live() -> dict[int, Live]:
    """The enclaves in the kernel, by id; none without a core, or if the kernel has ejected it."""
    try:
        enclaves = Enclaves.open()
    except Ejected:
        return {}
    return {enclave.id: Live.of(enclave) for enclave in enclaves or () if enclave.is_active}


def differences(wanted: Wanted, found: Mapping[int, Live], removed: Iterable[int]) -> list[Change]:
    """What makes ``found`` into ``wanted``; enclaves that the file lacks stay, except for ``removed``."""
    changes = [Change(id, "enclave", found[id].shown, None) for id in sorted(removed) if id in found]
    for id, config in sorted(wanted.items()):
        changes += _new(config) if id not in found else _changed(config, found[id])
    return changes


def _new(config: EnclaveConfig) -> Iterator[Change]:
    yield Change(config.id, "enclave", None, f"{config.shown} on CPU {config.cpus}")


def _changed(config: EnclaveConfig, now: Live) -> Iterator[Change]:
    if not now.has_policy_of(config):
        is_upgrade = now.applied is not None and now.applied.fingerprint != config.fingerprint
        note = " (other code)" if is_upgrade else ""
        yield Change(config.id, "policy", now.shown, config.shown + note)
    pairs: tuple[tuple[str, object, object], ...] = (
        ("cpus", now.cpus, config.cpus),
        ("runnable-timeout", _seconds(now.runnable_timeout_ns), _seconds(config.runnable_timeout_ns)),
        ("cgroup-limits", now.cgroup_limits, config.cgroup_limits),
        ("lending", now.lending, config.lending),
    )
    for what, before, after in pairs:
        if before != after:
            yield Change(config.id, what, _text(before), _text(after))


def joins(wanted: Wanted) -> list[Change]:
    """The processes outside that match a rule of their enclave, which exists."""
    changes = []
    for id, rules in rules_of(wanted).items():
        enclave = Enclaves.find(id)
        outside = set().union(*(AutoJoin(enclave, rule).left_out() for rule in rules))
        if outside:
            changes.append(Change(id, "processes", f"{len(outside)} outside match a rule", "join"))
    return changes


def rules_of(wanted: Wanted) -> dict[int, list[Rule]]:
    """The rules of each enclave that has some; a task that matches rules of two enclaves joins that with the lower id.

    Without that, each scan would move such a task to the other enclave. Raises NoSuchCgroup where no mount has one.
    """
    found: dict[int, list[Rule]] = {}
    earlier: tuple[Rule, ...] = ()
    for id, config in sorted(wanted.items()):
        own = [join.rule for join in config.joins]
        if own:
            found[id] = [rule.without(earlier) for rule in own]
        earlier += tuple(own)
    return found


def check(wanted: Wanted, found: Mapping[int, Live], removed: Iterable[int]) -> None:
    """Raise GhostError if a wanted CPU is offline, or held by an enclave that stays, or a tree is in the way."""
    for id, config in wanted.items():
        if id not in found or found[id].cpus != config.cpus:
            check_cpus(config.cpus)
        if id in found and found[id].tree:
            raise GhostError(
                f"enclave {id} belongs to tree {found[id].tree}, which no file for apply describes",
                hint=f"give the enclave of the file another id, or: ghostbpf enclave destroy {found[id].tree}",
            )
        for other in found.values():
            if other.id not in wanted and other.id not in removed and (both := config.cpus & other.cpus):
                raise EnclaveBusy(other.id, str(both))


def resize_steps(now: Mapping[int, CpuSet], target: Mapping[int, CpuSet]) -> list[tuple[int, CpuSet]]:
    """Steps from the CPUs ``now`` to those in ``target``; in each, every enclave keeps a CPU, and no two share one.

    An enclave that is not in ``now`` is made in one step. Raises GhostError if there is no free CPU to begin with.
    """
    held, steps = dict(now), []

    def step(id: int, cpus: CpuSet) -> None:
        held[id] = cpus
        steps.append((id, cpus))

    while waiting := [id for id in target if held.get(id) != target[id]]:
        before = len(steps)
        for id in waiting:
            if target[id].isdisjoint(CpuSet(cpu for other in held.keys() - {id} for cpu in held[other])):
                step(id, target[id])
        for id in waiting if len(steps) == before else ():
            if id in held and held[id] != (kept := held[id] & target[id] or CpuSet([held[id].first])):
                step(id, kept)
        if len(steps) == before:
            before = len(steps)
            for id in waiting:
                free = target[id] - CpuSet(cpu for cpus in held.values() for cpu in cpus)
                if id in held and free:
                    step(id, held[id] | free)
        if len(steps) == before:
            ids = " and ".join(map(str, waiting))
            raise GhostError(
                f"enclaves {ids} exchange CPUs, and no CPU is free meanwhile",
                hint="apply a file first that leaves one of their CPUs out",
            )
    return steps


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:g}s" if ns else "off"


def _text(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)

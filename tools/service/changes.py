# SPDX-License-Identifier: Apache-2.0
"""Making the enclaves of a file: all changes, or none.

What is most likely to fail comes first: a policy that does not load is known before any CPU moves. If a step fails,
the steps before it are undone, the last one first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from ...loaders.errors import GhostError
from ...schedulers.auto_join import AutoJoin, Outcome
from ...schedulers.cpuset import CpuSet
from ...schedulers.enclave import Enclave, Enclaves
from ...schedulers.errors import NoSuchEnclave
from ...schedulers.lending import Lending
from ...schedulers.policy import Policy, PolicyOptions, find
from ...schedulers.registry import POLICIES, from_file, is_file
from ..output import warn
from .applied import Applied
from .config import EnclaveConfig
from .plan import Live, Wanted, resize_steps, rules_of


def make(wanted: Wanted, found: Mapping[int, Live], removed: Iterable[int]) -> None:
    """Make ``found``, the enclaves in the kernel, into ``wanted``, and destroy ``removed``.

    Raises what loading, agents and enclaves raise, when all but the destruction has been undone.
    """
    with contextlib.ExitStack() as undo:
        for id, config in wanted.items():
            if id in found and not found[id].has_policy_of(config):
                _swap(config, found[id], undo)
        for id in removed:
            _destroy(id)
        held = {id: found[id].cpus for id in wanted if id in found}
        for id, cpus in resize_steps(held, {id: config.cpus for id, config in wanted.items()}):
            if id in held:
                _resize(id, cpus, held[id], undo)
            else:
                _create(wanted[id], undo)
            held[id] = cpus
        for id, config in wanted.items():
            _set(config, found.get(id), undo)
        undo.pop_all()


def join(wanted: Wanted) -> Iterator[tuple[int, Outcome]]:
    """Move the tasks that match a rule into their enclaves."""
    for id, rules in rules_of(wanted).items():
        enclave = Enclaves.find(id)
        for rule in rules:
            yield from ((id, outcome) for outcome in AutoJoin(enclave, rule).once())


def _swap(config: EnclaveConfig, before: Live, undo: contextlib.ExitStack) -> None:
    _give(config.id, before.cpus, config.options, Applied.of(config))
    undo.callback(_restore_policy, config.id, before)


def _restore_policy(id: int, before: Live) -> None:
    if before.applied is None:
        message = f"enclave {id} keeps its new policy: the options of {before.policy}, which it had, are not known"
        warn([GhostError(message, hint=f"ghostbpf enclave swap {id} {before.policy}")])
        return
    name = before.applied.policy
    with _told(f"enclave {id} does not have its former policy again"):
        policy: Policy = from_file(name) if is_file(name) else find(name, POLICIES)
        _give(id, before.cpus, PolicyOptions(policy, before.applied.values), before.applied)


def _create(config: EnclaveConfig, undo: contextlib.ExitStack) -> None:
    _give(config.id, config.cpus, config.options, Applied.of(config))
    undo.callback(_destroy_again, config.id)


def _give(id: int, cpus: CpuSet, options: PolicyOptions[Policy], record: Applied) -> None:
    """Give enclave ``id`` a policy, or make it; it has ``cpus`` before, or gets them."""
    # Without the record, the next apply replaces the policy again, and no more is lost.
    with (
        Enclaves.temporary(options, cpus, id=id, keep=True) as enclave,
        _told("what was applied is not recorded"),
    ):
        record.save(enclave)


def _destroy_again(id: int) -> None:
    with _told(f"enclave {id} is not destroyed again"):
        _destroy(id)


def _destroy(id: int) -> None:
    with Enclaves.change() as enclaves:
        if enclaves is not None and id in enclaves.ids():
            enclave = enclaves.get(id)
            try:
                enclave.destroy()
            finally:
                warn(enclave.not_restored)


def _resize(id: int, cpus: CpuSet, before: CpuSet, undo: contextlib.ExitStack) -> None:
    with _changing(id) as enclave:
        enclave.resize(cpus)
    undo.callback(_restore_cpus, id, before)


def _restore_cpus(id: int, cpus: CpuSet) -> None:
    with _told(f"enclave {id} does not have CPU {cpus} again"), _changing(id) as enclave:
        enclave.resize(cpus)


def _set(config: EnclaveConfig, before: Live | None, undo: contextlib.ExitStack) -> None:
    if before is not None:
        former = before.runnable_timeout_ns, before.cgroup_limits, before.lending
        undo.callback(_restore_settings, config.id, *former)
    _change_settings(config.id, config.runnable_timeout_ns, config.cgroup_limits, config.lending)


def _restore_settings(id: int, runnable_timeout_ns: int, cgroup_limits: bool, lending: Lending) -> None:
    with _told(f"enclave {id} does not have its former settings again"):
        _change_settings(id, runnable_timeout_ns, cgroup_limits, lending)


def _change_settings(id: int, runnable_timeout_ns: int, cgroup_limits: bool, lending: Lending) -> None:
    with _changing(id) as enclave:
        if enclave.runnable_timeout_ns != runnable_timeout_ns:
            enclave.set_runnable_timeout(runnable_timeout_ns)
        if enclave.ignores_cgroup_limits == cgroup_limits:
            enclave.apply_cgroup_limits(cgroup_limits)
        if enclave.lending != lending:
            enclave.set_lending(lend=lending.lend, borrow=lending.borrow, reclaim=lending.reclaim)


@contextlib.contextmanager
def _changing(id: int) -> Iterator[Enclave]:
    with Enclaves.change() as enclaves:
        if enclaves is None:
            raise NoSuchEnclave(id)
        yield enclaves.get(id)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an error of the block into a warning: the steps that are left are undone, too."""
    try:
        yield
    except GhostError as error:
        warn([GhostError(f"{what}: {error}", hint=error.hint)])

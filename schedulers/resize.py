# SPDX-License-Identifier: Apache-2.0
"""What may become of an enclave's CPUs while its tasks run: how a change is written, and when it is refused.

bpf/core/resize.bpf.h makes the change.
"""

from __future__ import annotations

from collections.abc import Iterable

from .cpuset import CpuListError, CpuSet
from .enclave_view import EnclaveView
from .errors import EnclaveBusy, ResizeError
from .topology import Topology


def parse(text: str, cpus: CpuSet) -> CpuSet:
    """The CPUs that ``text`` makes of ``cpus``: ``2-5`` these alone, ``+4,6`` these too, ``-2`` all but these.

    Raises CpuListError, also if one of the CPUs to remove is not there.
    """
    sign = text[:1]
    if sign not in ("+", "-"):
        return CpuSet.parse(text)
    if not (named := CpuSet.parse(text[1:])):
        raise CpuListError("CPU list", text, f'no CPU follows "{sign}"', "write for example 2-5, +4 or -2")
    if sign == "+":
        return cpus | named
    if missing := named - cpus:
        raise CpuListError("CPU list", text, f"CPU {missing} is not there", f"choose from {cpus}")
    return cpus - named


def check(enclave: EnclaveView, cpus: CpuSet, others: Iterable[EnclaveView], steal_from: EnclaveView | None) -> None:
    """Raise ResizeError or EnclaveBusy unless ``enclave`` can have exactly ``cpus``.

    ``others`` are all other enclaves. Only from ``steal_from`` CPUs may be taken.
    """
    if enclave.is_being_destroyed:
        raise ResizeError(enclave.id, "it is being destroyed", hint=f"ghostbpf enclave destroy {enclave.id} ends that")
    for one in (enclave, steal_from):
        if one is not None and one.tree:
            remedy = f"ghostbpf enclave destroy {one.tree}, and make another tree"
            raise ResizeError(one.id, f"it belongs to tree {one.tree}", hint=remedy)
    online = Topology.from_sysfs().all_cpus
    if not cpus:
        raise ResizeError(enclave.id, "it would have no CPU", hint=f"ghostbpf enclave destroy {enclave.id}")
    if missing := cpus - enclave.cpus - online:
        raise ResizeError(enclave.id, f"CPU {missing} is not online", hint=f"choose from {online}")
    for other in others:
        taken = cpus & other.cpus
        if not taken:
            continue
        if steal_from is None or other.id != steal_from.id:
            raise EnclaveBusy(other.id, str(taken), hint=f"take other CPUs, or take these from it: --steal {other.id}")
        if other.is_being_destroyed:
            raise ResizeError(other.id, "it is being destroyed", hint=f"ghostbpf enclave destroy {other.id} ends that")
        _check_rest(other, other.cpus - taken, online)
    _check_rest(enclave, cpus, online)


def _check_rest(enclave: EnclaveView, cpus: CpuSet, online: CpuSet) -> None:
    """Raise ResizeError unless ``enclave`` can run tasks on ``cpus`` alone."""
    if not cpus & online:
        rest = f"CPU {cpus}, which it would have, is not online" if cpus else "it would have no CPU"
        raise ResizeError(enclave.id, rest, hint=f"leave it one of its CPUs, {enclave.cpus}")
    if enclave.spun_cpu is not None and len(cpus & online) < 2:
        raise ResizeError(
            enclave.id,
            f"its agent spins, and needs a CPU besides CPU {cpus}",
            hint="leave it two or more CPUs",
        )

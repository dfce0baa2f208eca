# SPDX-License-Identifier: Apache-2.0
"""Whether programs can call a kernel's sched_ext kfuncs, judged by its BTF."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .btf import Btf, Kind

_SCHED_EXT = re.compile(r"(scx_bpf_|__scx_bpf_|bpf_iter_scx_)")


@dataclass(frozen=True)
class Kfuncs:
    """How many sched_ext kfuncs a kernel has, and the names of those whose prototype is ``malformed``."""

    total: int
    malformed: tuple[str, ...]


def judge(btf: Btf) -> Kfuncs:
    """Judge the sched_ext kfuncs in ``btf``.

    From Linux 7.1 on most of them take an implicit ``struct bpf_prog_aux *``, which the build removes from the
    prototype that programs see (it stays under NAME_impl). pahole before 1.31 loses the tag that asks for this from
    some functions at random, differently in each build; the verifier then rejects every program that calls one.
    """
    names = [name for name in btf.names(Kind.FUNC) if _SCHED_EXT.match(name) and not name.endswith("_impl")]
    malformed = sorted(name for name in names if _shows_prog_aux(btf, name))
    return Kfuncs(len(names), tuple(malformed))


def _shows_prog_aux(btf: Btf, name: str) -> bool:
    """Whether the last parameter of ``name`` is ``[const] struct bpf_prog_aux *``."""
    params = btf.params(btf.find(name, Kind.FUNC) or 0)
    if not params or not params[-1].type_id:
        return False
    pointer = btf.resolve(params[-1].type_id)
    if btf.kind(pointer) is not Kind.PTR or not btf.target(pointer):
        return False
    target = btf.resolve(btf.target(pointer))
    return bool(target) and btf.kind(target) is Kind.STRUCT and btf.name(target) == "bpf_prog_aux"

# SPDX-License-Identifier: Apache-2.0
"""Lending: idle CPUs of an enclave that lends run waiting tasks of enclaves that borrow.

    with Enclaves.change() as enclaves:
        enclaves.get(1).set_lending(lend=True)
        enclaves.get(2).set_lending(borrow=True)

While an enclave lends or borrows, a layer of BPF programs (bpf/core/lending.bpf.c) is between the core and the
enclave's policy: the core's slots hold the layer's programs, and the policy's own are in the layer's arrays. Each store
to a slot leaves an enclave that works, and the layer passes everything on until the enclave's ``lending`` bits are set,
so a loader may be killed at any instant.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..loaders import capabilities
from ..loaders.compiler import compile
from ..loaders.handle import open_pinned
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Hash, Map
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from .core import Core, constant, ffi
from .pins import make_private
from .topology import nr_cpu_words

#: The ops that the layer has a program for.
_OPS = ("enqueue", "dispatch", "tick", "stopping")

#: When an enclave that lends gets a CPU back that its own task needs: at once, or at the next tick.
RECLAIM = ("now", "tick")


@dataclass(frozen=True)
class Lending:
    """Whether an enclave's idle CPUs are lent, whether its tasks use those of others, and how it gets a CPU back.

    ``reclaim`` is "now" (a task of the lender preempts a borrowed turn) or "tick" (the turn lasts until the next tick,
    at most 4 ms with CONFIG_HZ=250). Raises ValueError for another text.
    """

    lend: bool = False
    borrow: bool = False
    reclaim: str = "now"

    def __post_init__(self) -> None:
        if self.reclaim not in RECLAIM:
            raise ValueError(f'bad reclaim "{self.reclaim}": {" or ".join(RECLAIM)}')

    @classmethod
    def from_bits(cls, bits: int) -> Self:
        """The value that ``lending`` of struct enclave has."""
        reclaim = RECLAIM[bool(bits & constant("LENDING_AT_TICK"))]
        return cls(bool(bits & constant("LENDING_LENDS")), bool(bits & constant("LENDING_BORROWS")), reclaim)

    @property
    def bits(self) -> int:
        """Its value in struct enclave."""
        bits = {
            "LENDING_LENDS": self.lend,
            "LENDING_BORROWS": self.borrow,
            "LENDING_AT_TICK": self.reclaim == "tick",
        }
        return sum(constant(name) for name, is_set in bits.items() if is_set)

    def replace(self, lend: bool | None, borrow: bool | None, reclaim: str | None) -> Self:
        """The same with other values; what is None stays as it is."""
        return type(self)(
            self.lend if lend is None else lend,
            self.borrow if borrow is None else borrow,
            self.reclaim if reclaim is None else reclaim,
        )

    def __str__(self) -> str:
        return f"lend {_yes(self.lend)}, borrow {_yes(self.borrow)}, reclaim {self.reclaim}"


def check_permitted() -> None:
    """Raise PermissionMissing unless this process may open the programs of a policy by their ids."""
    capabilities.need("lend and borrow CPUs", "CAP_SYS_ADMIN")


def compiled() -> Object:
    """The layer's object for this kernel. Raises what compile() raises."""
    return compile(BPF_DIR / "core" / "lending.bpf.c", {"NR_CPU_WORDS": nr_cpu_words()})


class LendingLayer:
    """The layer of enclave ``id``, pinned below ``path``; ``record`` is its ``struct enclave``."""

    def __init__(self, core: Core, id: int, record: Any, path: Path) -> None:
        self._core, self._id, self._record, self._path = core, id, record, path / "lending"

    def set(self, lending: Lending) -> None:
        """Make the enclave lend and borrow as ``lending`` says. The caller holds the lock on changes.

        Raises PermissionMissing, and what loading raises.
        """
        check_permitted()
        if lending.lend or lending.borrow:
            self._load()
            for bank in (0, 1):
                self._cover_current(bank)
        self._record.lending = lending.bits
        self._mark(lending)
        if not (lending.lend or lending.borrow):
            self._remove()

    def tidy(self) -> None:
        """Finish what a killed loader had begun."""
        lending = Lending.from_bits(self._record.lending)
        self._mark(lending)
        if not (lending.lend or lending.borrow) and self._path.exists() and "CAP_SYS_ADMIN" in capabilities.held():
            self._remove()

    def forget(self) -> None:
        """The enclave is new, or goes away: no other enclave borrows from it or lends to it."""
        self._record.lending = 0
        self._mark(Lending())

    def cover(self, bank: int, programs: Mapping[str, Program]) -> None:
        """Put the layer, if there is one, before a policy whose ``programs``, by op, are in ``bank`` of the slots."""
        if not self._is_loaded():
            return
        for op in _OPS:
            with self._open(op) as layer, self._open_inner(op) as inner:
                _store(_slots(inner), bank, programs.get(op))
                self._core.slots[op][self._slot(bank)] = layer.fd

    def empty(self, bank: int) -> None:
        """The policy of ``bank`` has left the core's slots: let the layer forget it."""
        if self._is_loaded():
            for op in _OPS:
                with self._open_inner(op) as inner:
                    _store(_slots(inner), bank, None)

    def _cover_current(self, bank: int) -> None:
        """Put the layer before what is in ``bank`` of the slots, unless it is there."""
        with contextlib.ExitStack() as opened:
            programs = {}
            for op in _OPS:
                layer, current = opened.enter_context(self._open(op)), self._core.slots[op].get(self._slot(bank))
                if current == layer.id:
                    current = _slots(opened.enter_context(self._open_inner(op))).get(bank)
                if current is not None:
                    programs[op] = opened.enter_context(Program.by_id(current))
            self.cover(bank, programs)

    def _remove(self) -> None:
        """Put the policies back into the core's slots, and remove the layer."""
        if self._is_loaded():
            for op in _OPS:
                with self._open(op) as layer, self._open_inner(op) as inner:
                    for bank in (0, 1):
                        if self._core.slots[op].get(self._slot(bank)) == layer.id:
                            current = _slots(inner).get(bank)
                            with contextlib.nullcontext() if current is None else Program.by_id(current) as program:
                                _store(self._core.slots[op], self._slot(bank), program)
        # An op that runs in the layer now may find its array empty: it does what the built-in FIFO does.
        shutil.rmtree(self._path, ignore_errors=True)

    def _load(self) -> None:
        if self._is_loaded():
            return
        shutil.rmtree(self._path, ignore_errors=True)
        module = Module(compiled(), maps=self._core.maps, constants={"enclave": self._id})
        targets = {op: (f"lending_{op}", Target.struct_ops("sched_ext_ops", op)) for op in _OPS}
        with contextlib.closing(module):
            programs = module.load_all(targets)
            make_private(self._path)
            for op, program in programs.items():
                module.own_maps[f"inner_{op}"].pin(self._path / f"inner_{op}")
                program.pin(self._path / op)
                program.close()

    def _is_loaded(self) -> bool:
        return all((self._path / op).exists() for op in _OPS)

    def _open(self, op: str) -> Program:
        return Program(open_pinned(self._path / op))

    def _open_inner(self, op: str) -> Map:
        return Map.open(self._path / f"inner_{op}")

    def _mark(self, lending: Lending) -> None:
        """Enter the enclave into the core's sets of lenders and borrowers, or remove it from them."""
        bit, state = 1 << self._id, self._core.state
        state.lenders = int(state.lenders) & ~bit | bit * lending.lend
        state.borrowers = int(state.borrowers) & ~bit | bit * lending.borrow

    def _slot(self, bank: int) -> int:
        return 2 * self._id + bank


def _slots(programs: Map) -> Hash:
    return Hash(programs, ffi(), "u32", "u32")


def _store(slots: Hash, index: int, program: Program | None) -> None:
    """Put ``program`` into a slot; None empties the slot."""
    if program is not None:
        slots[index] = program.fd
    else:
        with contextlib.suppress(KeyError):
            del slots[index]


def _yes(is_set: bool) -> str:
    return "yes" if is_set else "no"

# SPDX-License-Identifier: Apache-2.0
"""Policies written in BPF: what each is called, takes and compiles from, and loading one for an enclave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..loaders import abi, compiler
from ..loaders.link import Module, Program, Target, close_all
from ..loaders.maps import Map, MmapArray
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from .cpuset import CpuSet
from .errors import NoSuchPolicy
from .topology import nr_cpu_words

#: The ops of struct sched_ext_ops that a policy may define; the core has a slot for each.
OPS = (
    *("select_cpu", "enqueue", "dispatch", "tick", "running", "stopping"),
    *("disable", "exit_task", "set_cpumask", "set_weight", "yield"),
)


@dataclass(frozen=True)
class Option:
    """A policy's parameter: ``name`` on the command line, ``field`` of the policy's parameter struct.

    ``parse`` turns the command line's text into the field's value and raises ValueError with the reason.
    """

    name: str
    field: str
    parse: Callable[[str], int]
    default: str
    help: str


@dataclass(frozen=True)
class Policy:
    """A policy in BPF: ``<program>.bpf.c`` with functions ``<program>_<op>`` and a struct ``<program>_params``.

    ``program`` is ``name`` unless given. With ``queues`` it has tasks wait on CPUs' own queues too, and not only on
    the enclave's.
    """

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    directory: Path = field(default=BPF_DIR / "policies")
    program: str = ""
    queues: bool = False

    def __post_init__(self) -> None:
        if not self.program:
            object.__setattr__(self, "program", self.name)

    @property
    def source(self) -> Path:
        """The C file."""
        return self.directory / f"{self.program}.bpf.c"

    @cached_property
    def params_type(self) -> tuple[Any, str]:
        """The FFI that knows the parameter struct, and the struct's name."""
        return abi.load(self.directory / f"{self.program}.h"), f"struct {self.program}_params"

    def values(self, given: Mapping[str, str] | None = None) -> dict[str, int]:
        """Field values from option texts; options left out have their defaults. Raises ValueError."""
        given = dict(given or {})
        values = {o.field: o.parse(given.pop(o.name, o.default)) for o in self.options}
        if given:
            raise ValueError(f"{self.name} has no option {', '.join(sorted(given))}")
        return values

    def check(self, values: Mapping[str, int], cpus: CpuSet) -> None:
        """Raise GhostError where the policy cannot schedule ``cpus`` with these values of its options."""

    def compile_ahead(self) -> AbstractContextManager[None]:
        """Compile it on another CPU while the block runs, for a load() after that."""
        return compiler.ahead(self.source, _defines())

    def compile(self) -> Object:
        """Compile it, or take it from the cache."""
        return compiler.compile(self.source, _defines())

    def is_hinted(self, compiled: Object) -> bool:
        """Whether it reads hints: the enclave then has a table of them."""
        return "hints" in compiled.maps

    def load(self, compiled: Object, enclave: int, maps: Mapping[str, Map], values: Mapping[str, int]) -> LoadedPolicy:
        """Link what compile() gave for ``enclave`` against ``maps``, the core's and the enclave's, and load."""
        return self._load(Module(compiled, maps=maps, constants={"enclave": enclave}), values)

    def _load(self, module: Module, values: Mapping[str, int]) -> LoadedPolicy:
        if "params" in module.own_maps:
            ffi, struct = self.params_type
            with MmapArray(module.own_maps["params"], ffi, struct) as params:
                for name in values.keys() & dict(ffi.typeof(struct).fields or ()).keys():
                    setattr(params[0], name, values[name])
        functions = {op: f"{self.program}_{op}" for op in OPS if f"{self.program}_{op}" in module.object.functions}
        # One after another: a busy enclave is not to lose all its CPUs to the verifier at once.
        programs = {op: module.load(f, Target.struct_ops("sched_ext_ops", op)) for op, f in functions.items()}
        return LoadedPolicy(self, programs, module.own_maps, module)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy's programs, in the kernel but not yet in any slot, and the maps that are this policy's alone."""

    policy: Policy
    programs: dict[str, Program]
    maps: dict[str, Map]
    module: Module

    def close(self) -> None:
        """Drop this process's references; slots and pins keep what they hold."""
        close_all(self.programs.values())
        self.module.close()


def _defines() -> dict[str, int]:
    return {"NR_CPU_WORDS": nr_cpu_words()}


def duration_ns(text: str) -> int:
    """Nanoseconds from "50ms", "300us", "1.5s", "2000ns"; raises ValueError."""
    number = text.rstrip("nmus")
    units = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
    try:
        value = round(float(number) * units[text[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f'bad duration "{text}": write for example 50ms, 300us or 1.5s') from None
    if not 0 < value <= 10 * 10**9:
        raise ValueError(f'bad duration "{text}": more than 0 and up to 10s')
    return value


def find(name: str, policies: Mapping[str, Policy]) -> Policy:
    """The policy called ``name``; raises NoSuchPolicy with the nearest name."""
    if name not in policies:
        raise NoSuchPolicy(name, policies)
    return policies[name]

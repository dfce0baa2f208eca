# SPDX-License-Identifier: Apache-2.0
"""BPF policies: their names, their options, and how one is compiled and loaded for an enclave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from ..loaders import abi, compiler
from ..loaders.errors import BpfError
from ..loaders.link import Module, Program, Target, close_all
from ..loaders.maps import Map, MmapArray
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from .cpuset import CpuSet
from .errors import NoSuchPolicy
from .topology import nr_cpu_words

if TYPE_CHECKING:
    from .enclave import Enclave

#: The ops of struct sched_ext_ops that a policy may define; the core has a slot for each.
OPS = (
    *("select_cpu", "enqueue", "dispatch", "tick", "running", "stopping"),
    *("disable", "exit_task", "set_cpumask", "set_weight", "yield", "throttle"),
)
#: The function that is called once, before the policy becomes live; a policy need not have it.
INIT = "call_init"
#: The ops of a policy that are not the kernel's, and the kernel's op with the same arguments.
_LIKE = {"throttle": "enqueue"}


class OptionError(ValueError):
    """The text for ``option`` of a policy is not valid; ``option`` is None if the policy has no option of that name."""

    def __init__(self, message: str, option: str | None = None):
        super().__init__(message)
        self.option = option


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


class AgentHandle(Protocol):
    """An agent that has been started for one policy; AgentProcess in userspace/agent_process.py is one."""

    pid: int

    def prepare(self, enclave: Enclave, bank: int) -> None:
        """Do everything that may fail, while the policy in the other bank is still live. Raises AgentError."""

    def take_over(self, enclave: Enclave) -> object:
        """Become the agent of ``enclave``, whose live policy is this one's. Raises AgentError."""

    def check(self) -> bool:
        """Whether it is still the agent; False where another has taken over. Raises AgentError where it failed."""

    def end(self) -> None:
        """Make it leave, and wait until it has."""


@dataclass(frozen=True)
class Policy:
    """A policy in BPF: ``<program>.bpf.c`` with functions ``<program>_<op>`` and a struct ``<program>_params``.

    ``program`` is ``name`` unless given. A policy with ``queues`` also uses the per-CPU queues, not only the
    enclave's queue. A policy that ``weighs_cgroups`` gives cgroups CPU time by their weights.
    """

    name: str
    summary: str
    options: tuple[Option, ...] = ()
    directory: Path = field(default=BPF_DIR / "policies")
    program: str = ""
    queues: bool = False
    weighs_cgroups: bool = False

    #: Whether agents make its decisions; see agents/spec.py.
    has_agents: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.program:
            object.__setattr__(self, "program", self.name)

    @property
    def source(self) -> Path:
        """The C file."""
        return self.directory / f"{self.program}.bpf.c"

    @property
    def defines(self) -> dict[str, int]:
        """The macros that the C file is compiled with."""
        return {"NR_CPU_WORDS": nr_cpu_words()}

    @cached_property
    def params_type(self) -> tuple[Any, str]:
        """The FFI that knows the parameter struct, and the struct's name."""
        return abi.load(self.directory / f"{self.program}.h"), f"struct {self.program}_params"

    def parse(self, texts: Mapping[str, str] | None = None) -> PolicyOptions[Self]:
        """The policy with its option values, from texts by option name; an option left out has its default.

        Raises OptionError.
        """
        texts = dict(texts or {})
        values = {}
        for option in self.options:
            try:
                values[option.field] = option.parse(texts.pop(option.name, option.default))
            except ValueError as error:
                raise OptionError(str(error), option.name) from None
        if texts:
            known = ", ".join(option.name for option in self.options)
            raise OptionError(f"{self.name} has no option {', '.join(sorted(texts))}: it has {known}")
        return PolicyOptions(self, values)

    def check(self, values: Mapping[str, int], cpus: CpuSet) -> None:
        """Raise GhostError if the policy cannot schedule ``cpus`` with these option values."""

    def start_agent(self, options: PolicyOptions[Any], *, stay: bool = False) -> AgentHandle | None:
        """Start the policy's agent, not yet in charge; None for a policy without agents.

        ``stay``: the agent outlives the process that starts it. Call it before any file is locked or any enclave
        is opened: the agent is forked, and would inherit them.
        """
        return None

    def compile_ahead(self) -> AbstractContextManager[None]:
        """Compile on another CPU while the block runs, for a later load()."""
        return compiler.ahead(self.source, self.defines)

    def compile(self) -> Object:
        """Compile the policy, or take the object from the cache."""
        return compiler.compile(self.source, self.defines)

    def is_hinted(self, compiled: Object) -> bool:
        """Whether the policy reads hints, so that its enclave needs a hint table."""
        return "hints" in compiled.maps

    def load(self, compiled: Object, enclave: int, maps: Mapping[str, Map], values: Mapping[str, int]) -> LoadedPolicy:
        """Link the object from compile() for ``enclave`` against ``maps`` (the core's and the enclave's), and load."""
        return self._load(Module(compiled, maps=maps, constants={"enclave": enclave}), values)

    def _load(self, module: Module, values: Mapping[str, int]) -> LoadedPolicy:
        if "params" in module.own_maps:
            ffi, struct = self.params_type
            with MmapArray(module.own_maps["params"], ffi, struct) as params:
                for name in values.keys() & dict(ffi.typeof(struct).fields or ()).keys():
                    setattr(params[0], name, values[name])
        functions = {op: f"{self.program}_{op}" for op in OPS if f"{self.program}_{op}" in module.object.functions}
        # Sequential: loading in parallel would take all CPUs of a busy enclave for the verifier at once.
        programs = {op: module.load(f, op_target(op)) for op, f in functions.items()}
        if INIT in module.object.functions:
            with module.load(INIT, Target.syscall()) as program:
                if (error := program.run()[0]) < 0:
                    raise BpfError(f"initialize policy {self.name}", -error)
        return LoadedPolicy(self, programs, module.own_maps, module)


_P = TypeVar("_P", bound=Policy, covariant=True)


@dataclass(frozen=True)
class PolicyOptions(Generic[_P]):
    """A policy with a value for each of its options, by field; parsed once, by Policy.parse(), and handed down."""

    policy: _P
    values: Mapping[str, int]

    @classmethod
    def of(cls, policy: Policy | PolicyOptions[Policy]) -> PolicyOptions[Policy]:
        """``policy`` itself, or, for a Policy alone, the policy with the defaults of its options."""
        return policy.parse() if isinstance(policy, Policy) else policy

    def replace(self, **values: int) -> Self:
        """The same with other ``values``, which need not be options, such as an agent's ``ring_bytes``."""
        return replace(self, values={**self.values, **values})

    def start_agent(self, *, stay: bool = False) -> AgentHandle | None:
        """Start the policy's agent with these options; see Policy.start_agent()."""
        return self.policy.start_agent(self, stay=stay)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy's programs, loaded but not yet in any slot, and the maps that only this policy uses."""

    policy: Policy
    programs: dict[str, Program]
    maps: dict[str, Map]
    module: Module

    def close(self) -> None:
        """Drop this process's references; slots and pins keep theirs."""
        close_all(self.programs.values())
        self.module.close()


def duration_ns(text: str, *, most_s: float = 10) -> int:
    """Nanoseconds from "50ms", "300us", "1.5s", "2000ns", up to ``most_s`` seconds; raises ValueError."""
    number = text.rstrip("nmus")
    units = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
    try:
        value = round(float(number) * units[text[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        raise ValueError(f'bad duration "{text}": write for example 50ms, 300us or 1.5s') from None
    if not 0 < value <= most_s * 10**9:
        raise ValueError(f'bad duration "{text}": more than 0 and up to {most_s:g}s')
    return value


def op_target(op: str) -> Target:
    """What a program for a policy's ``op`` is loaded as."""
    return Target.struct_ops("sched_ext_ops", _LIKE.get(op, op))


def find(name: str, policies: Mapping[str, Policy]) -> Policy:
    """The policy called ``name``; raises NoSuchPolicy with the nearest name."""
    if name not in policies:
        raise NoSuchPolicy(name, policies)
    return policies[name]

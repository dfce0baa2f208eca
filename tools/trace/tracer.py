# SPDX-License-Identifier: Apache-2.0
"""A tracer in the kernel: attaches its programs by their names, and reads its maps."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import struct
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ...loaders import (
    Array,
    Hash,
    KernelUnsupported,
    Link,
    Module,
    PerCpuArray,
    Program,
    Target,
    abi,
    compile,
    kernel_types,
)
from ...loaders._libbpf import info_by_fd
from ...loaders.attach import Samplers
from ...loaders.errors import PermissionMissing
from ...loaders.maps import Map
from ...loaders.source import BPF_DIR
from ...schedulers.errors import Ejected, StalePins
from ...schedulers.pins import CORE
from .filters import By, Filters
from .histogram import Histogram

if TYPE_CHECKING:
    from ...schedulers.core import Core

TRACERS = BPF_DIR / "tracers"
_PIDFD_THREAD = os.O_EXCL
_TRACEPOINT, _FOLLOW, _NAMED, _FILTERED = "tp_", "follow_", "named_", "filtered_"
_SWITCH = "sched_switch"
#: How often to sample CPUs that have come online: each check briefly interrupts all CPUs.
_HOTPLUG_SECONDS = 0.5

#: Maps shared with the core, if one is attached: the enclave of each task, and when a CPU last dispatched.
_CORE_MAPS = ("tasks", "enclaves", "cpus")


@functools.cache
def ffi(*headers: str) -> Any:
    """An FFI with bpf/abi.h, bpf/tracers/trace.h and ``headers``, which are in bpf/tracers."""
    return abi.load(BPF_DIR / "abi.h", *(TRACERS / name for name in ("trace.h", *headers)))


def constant(name: str) -> int:
    """A #define or enumerator of bpf/tracers/trace.h."""
    return int(getattr(ffi().dlopen(None), name))


class Missed(NamedTuple):
    """Numbers of times that are not in the figures because one of their events was lost (struct missed)."""

    #: The start was seen, and no end.
    unended: int = 0
    #: The start was not seen.
    unannounced: int = 0


class Tracer:
    """``bpf/tracers/<name>.bpf.c``, attached for the length of a with block.

    Each function ``tp_<tracepoint>`` is attached to that tracepoint; ``filtered_<tracepoint>`` only if the filters
    exclude tasks. ``constants`` are the tool's own.
    """

    #: time.monotonic() shortly before it was attached: all counted events are later.
    started: float

    def __init__(
        self,
        name: str,
        filters: Filters,
        *,
        by: By = By.NOTHING,
        unit_ns: int = 1_000,
        constants: Mapping[str, int] | None = None,
        defines: Mapping[str, int | str] | None = None,
        entries: Mapping[str, int] | None = None,
        header: str | None = None,
    ) -> None:
        self.by, self.unit_ns = by, unit_ns
        self._ffi = ffi(header) if header else ffi()
        core = open_core()
        values = {
            **filters.constants(),
            "default_enclave": core.state.default_enclave if core else 0,
            "by": int(by),
            "unit": unit_ns,
            **(constants or {}),
        }
        borrowed = {name: core.maps[name] for name in _CORE_MAPS} if core else {}
        self.object = compile(TRACERS / f"{name}.bpf.c", defines)
        self.has_core = core is not None
        self._open = ExitStack()
        self.module = Module(self.object, maps=borrowed, constants=values, entries=entries)
        self._open.callback(self.module.close)
        self.programs: dict[str, Program] = {}
        self.links: dict[str, Link] = {}
        self._samplers: Samplers | None = None
        self._hotplug_check_at = 0.0
        self._filters = filters

    def __enter__(self) -> Self:
        try:
            enabled = {
                _TRACEPOINT: True,
                _FOLLOW: self._filters.command,
                _NAMED: self.by in (By.PROCESS, By.THREAD),
                _FILTERED: self._filters.choose_tasks,
            }
            self.programs = self.module.load_all(
                {
                    function: (function, Target.tracepoint(function.removeprefix(prefix)))
                    for function in self.object.functions
                    for prefix, on in enabled.items()
                    if on and function.startswith(prefix)
                }
            )
            for program in self.programs.values():
                self._open.enter_context(program)
            self.started = time.monotonic()
            for function in sorted(self.programs, key=lambda name: name.endswith(_SWITCH)):
                self.attach(function)
            if "attached_at" in self.module.maps:
                Array(self.map("attached_at"), self._ffi, "u64")[0] = time.monotonic_ns()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def attach(self, function: str) -> None:
        """Attach one of its programs.

        Attach those on sched_switch last: then no event of a task is missed after its first switch.
        """
        self.links[function] = self._open.enter_context(Link.tracepoint(self.programs[function]))

    def keep(self, context: Any) -> Any:
        """Enter a context that ends with the tracer."""
        return self._open.enter_context(context)

    def sample(self, hertz: int) -> None:
        """Run the function ``perf_sample`` on each online CPU, ``hertz`` times per second."""
        program = self.keep(self.module.load("perf_sample", Target.perf_event()))
        self._samplers = self.keep(Samplers(program, hertz))

    def follow_hotplug(self) -> None:
        """Sample CPUs that have come online since the last call; call it periodically."""
        if self._samplers is not None and time.monotonic() >= self._hotplug_check_at:
            self._samplers.follow()
            self._hotplug_check_at = time.monotonic() + _HOTPLUG_SECONDS

    def mark(self, tid: int) -> None:
        """Trace task ``tid`` and its future children; does nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            pidfd = _pidfd(tid)
            try:
                self.hash("marks", "s32", "u32")[pidfd] = 1
            finally:
                os.close(pidfd)

    def hash(self, name: str, key: str, value: str) -> Hash:
        """A view of one of its maps."""
        return Hash(self.map(name), self._ffi, key, value)

    def per_cpu(self, name: str, value: str) -> PerCpuArray:
        """A view of one of its per-CPU arrays."""
        return PerCpuArray(self.map(name), self._ffi, value)

    def map(self, name: str) -> Map:
        """One of its maps."""
        return self.module.maps[name]

    def histograms(self) -> dict[tuple[int, int], Histogram]:
        """The histograms so far, by (number of the tool's histogram, id); the id is 0 without a breakdown."""
        return self._cells() if self.by else self._hists()

    def names(self) -> dict[int, str]:
        """The names of the tasks that histograms are broken down by."""
        if self.by not in (By.PROCESS, By.THREAD):
            return {}
        return {key: comm(value.comm) for key, value in self.hash("names", "u64", "struct task_name").items()}

    def drops(self) -> int:
        """The number of lost events: out of memory, or during another event on the same CPU."""
        missed = kernel_types.struct("bpf_prog_info").members.get("recursion_misses")
        recursion = 0
        for program in self.programs.values():
            if missed:
                recursion += struct.unpack_from("=Q", info_by_fd(program.fd, 512), missed.offset)[0]
        counted = sum(self.per_cpu("drops", "u64")[0]) if "drops" in self.module.maps else 0
        return int(counted + recursion)

    def missed(self) -> Missed:
        """Times that are missing because the kernel did not report a switch or a wakeup."""
        if "missed_times" not in self.module.maps:
            return Missed()
        cpus = self.per_cpu("missed_times", "struct missed")[0]
        return Missed(*(sum(getattr(cpu, name) for cpu in cpus) for name in Missed._fields))

    def _hists(self) -> dict[tuple[int, int], Histogram]:
        histograms = {}
        hists = self.per_cpu("hists", "struct hist")
        for which in range(len(hists)):
            cpus = hists[which]
            per_cpu = [self._ffi.unpack(cpu.count, len(cpu.count)) for cpu in cpus]
            histograms[which, 0] = Histogram(
                self.unit_ns,
                tuple(map(sum, zip(*per_cpu, strict=True))),
                sum(cpu.sum for cpu in cpus),
                max(cpu.max for cpu in cpus),
            )
        return histograms

    def _cells(self) -> dict[tuple[int, int], Histogram]:
        size = constant("HIST_BUCKETS")
        counts: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * size)
        sums: dict[tuple[int, int], int] = defaultdict(int)
        maxima: dict[tuple[int, int], int] = defaultdict(int)
        for key, cell in self.hash("cells", "struct cell_key", "struct cell").items():
            at = (key.which, key.id)
            counts[at][key.bucket] = cell.count
            sums[at] += cell.sum
            maxima[at] = max(maxima[at], cell.max)
        return {at: Histogram(self.unit_ns, tuple(counts[at]), sums[at], maxima[at]) for at in sorted(counts)}


def _pidfd(tid: int) -> int:
    try:
        return os.pidfd_open(tid, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    try:
        return os.pidfd_open(tid)  # before Linux 6.9, for thread-group leaders only
    except OSError:
        raise KernelUnsupported(
            "PIDFD_THREAD", f"this kernel cannot mark thread {tid} alone", hint="trace the process: -p PID"
        ) from None


def open_core() -> Core | None:
    """The attached core; None if there is none or this process may not read it. Pins of an ejected core are ignored."""
    try:
        if not CORE.exists():
            return None
        from ...schedulers.core import Core  # a machine that has no core can be traced without the code for one

        return Core.open()
    except (PermissionError, PermissionMissing, Ejected, StalePins):
        return None


def comm(chars: Any) -> str:
    """A task's name from its char array."""
    return b"".join(chars).split(b"\0")[0].decode(errors="replace")

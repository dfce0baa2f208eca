# SPDX-License-Identifier: Apache-2.0
"""The core in the kernel: attaching it, opening it through its pins, detaching it.

``/sys/fs/bpf/ghostbpf/core`` holds its maps, its programs and, pinned last, its link. Without the link's pin there is
no core, and the other pins are the rest of a killed loader, which the next loader removes. There is no daemon: the pins
are the state, and one lock in bpffs serializes changes to them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from ..loaders import abi, capabilities, kernel_types, sched_ext
from ..loaders.attach import Iterator as TaskIterator
from ..loaders.attach import Link
from ..loaders.compiler import compile
from ..loaders.errors import AttachError, BpfError
from ..loaders.handle import Handle, open_pinned
from ..loaders.link import Module, Program, Target
from ..loaders.maps import Array, Hash, Map, MmapArray, PerCpuArray
from ..loaders.membarrier import GLOBAL, membarrier
from ..loaders.object import Object
from ..loaders.source import BPF_DIR
from ..loaders.struct_ops import StructOps
from . import pids, pins, stats, stay_alive
from .cpuset import CpuSet
from .errors import Ejected, SchedulerBusy, StalePins
from .pins import CORE, LAST_EXIT, ROOT, make_private, reported
from .policy import OPS, op_target
from .topology import Topology, nr_cpu_words

NAME = "ghostbpf"
DEFAULT_ENCLAVE = 1
TIMEOUT_MS = 30_000
DUMP_BYTES = 32768

#: The maps that policies share with the core.
_SHARED = ("tasks", "enclaves", "cpus", "core", "counters")
#: The same of cgroup limits; where the kernel cannot apply them, some are not used, and do not exist.
_LIMITS = ("limits", "limit_numbers", "free_limits", "nr_limits", "limit_timers")
_SLOTS = tuple(f"slot_{op}" for op in OPS)
_CALLS = ("call_join", "call_set_orphaned", "call_drain", "call_release", "call_resize", "call_set_release")

#: The ops with a program in front of the policy's, in enclaves with cgroup limits.
_LIMITED = ("select_cpu", "enqueue", "tick", "running", "stopping")
#: The core's parts of an op, in the order of the enum in bpf/core/slots.bpf.h.
_PARTS = {"dispatch": ("orphaned", "draining")}


@functools.cache
def ffi() -> Any:
    """An FFI with the types of bpf/abi.h."""
    return abi.load(BPF_DIR / "abi.h")


def text(chars: Any) -> str:
    """A char array of the kernel as str."""
    return bytes(ffi().string(chars)).decode(errors="replace")


@functools.cache
def constant(name: str) -> int:
    """A #define or enumerator of bpf/abi.h."""
    return int(getattr(ffi().dlopen(None), name))


def live_bank(enclave: Any) -> int:
    """The bank of the policy of ``enclave``, a ``struct enclave``, also if the built-in FIFO has replaced it."""
    return int(enclave.bank) & constant("LIVE_BANK")


def has_fallen_back(enclave: Any) -> bool:
    """Whether the core has replaced the policy of ``enclave``, a ``struct enclave``, by the built-in FIFO."""
    return bool(enclave.bank & constant("FELL_BACK"))


#: Task states of the kernel that a task has alone or with flags: the lowest of these bits says it.
_STATES = {0x1: "sleeping", 0x2: "blocked", 0x4: "stopped", 0x8: "traced", 0x40: "parked", 0x80: "exiting"}


@dataclass(frozen=True)
class Activity:
    """What a task does, and did since it was made, in any class.

    ``state`` is "running", "waiting" (for a CPU), "sleeping", "blocked" (uninterruptible), "stopped", "traced",
    "parked", "exiting" or "waking". ``runs`` counts the times it was put on a CPU, for which it had waited
    ``waited_ns`` in all. ``waiting_ns`` is how long it has been waiting now, on DSQ ``queue``; 0 if it is on none.
    """

    state: str
    runs: int
    waited_ns: int
    waiting_ns: int
    migrations: int
    queue: int

    @classmethod
    def of(cls, record: Any) -> Self:
        """That of a ``struct task_record``."""
        if record.on_cpu:
            state = "running"
        elif record.waiting_ns:
            state = "waiting"
        else:
            state = next((name for bit, name in _STATES.items() if record.state & bit), "waking")
        return cls(state, *(int(getattr(record, name)) for name in list(cls.__dataclass_fields__)[1:]))


@dataclass(frozen=True)
class Task:
    """A task in the ext class; ``enclave`` is 0 if it is in none, ``cpu`` is the one it ran on last.

    ``elsewhere``: it may use none of its enclave's CPUs now, so the core's built-in FIFO runs it outside them.
    ``original`` is the policy, with its real-time priority, that it had before it joined.
    """

    tid: int
    pid: int
    enclave: int
    cpu: int
    on_cpu: bool
    runtime_ns: int
    comm: str
    elsewhere: bool = False
    original: tuple[int, int] = (os.SCHED_OTHER, 0)
    activity: Activity = Activity("waking", 0, 0, 0, 0, 0)


def compiled() -> Object:
    """The core's object for this kernel. Raises what compile() raises."""
    macros = {"NR_CPU_WORDS": nr_cpu_words(), "HAS_SCHED_INFO": int(stats.is_supported())}
    return compile(BPF_DIR / "core" / "core.bpf.c", macros)


class Core:
    """The attached core. Its maps are views of kernel memory; until pin(), ``link`` keeps it attached."""

    def __init__(self, maps: dict[str, Map], programs: dict[str, Program], tasks: TaskIterator, link: StructOps):
        self.maps, self.link = maps, link
        self._programs, self._tasks = programs, tasks
        self.enclaves = MmapArray(maps["enclaves"], ffi(), "struct enclave")
        self.cpus = MmapArray(maps["cpus"], ffi(), "struct cpu")
        self.state = MmapArray(maps["core"], ffi(), "struct core")[0]
        self.counters = PerCpuArray(maps["counters"], ffi(), "struct counters")
        self.departures = MmapArray(maps["departures"], ffi(), "struct departures")
        self.fallbacks = MmapArray(maps["fallbacks"], ffi(), "struct fallback")
        self.slots = {op: Hash(maps[f"slot_{op}"], ffi(), "u32", "u32") for op in OPS}
        self._tracepoints: dict[str, Handle] = {}

    @classmethod
    def attach(cls, *, full: bool = False, keep_stats: bool = True) -> Self:
        """Attach a new core: in full mode it has every task of the fair class, in partial mode those of SCHED_EXT.

        Without pin(), it ends with this process. Raises SchedulerBusy, AttachError, KernelUnsupported.
        """
        before = sched_ext.status()
        if before.state == "disabling" and sched_ext.wait_disabled():
            before = sched_ext.status()
        if before.state != "disabled":
            raise SchedulerBusy(before.ops or before.state)
        obj = compiled()
        keep_stats = keep_stats and stats.is_supported()
        constants = {"full_mode": int(full), "keeps_stats": int(keep_stats), **stay_alive.constants()}
        module = Module(obj, constants=constants)
        _prepare(module, full, keep_stats)
        flags = kernel_types.enum("scx_ops_flags")
        # Without ENQ_EXITING and ENQ_MIGRATION_DISABLED the kernel inserts such tasks into their CPU's local queue
        # itself, unknown to the policy; re-enqueueing that queue returns them to it until the kernel ejects the core.
        names = ["SCX_OPS_ENQ_LAST", "SCX_OPS_ENQ_EXITING", "SCX_OPS_ENQ_MIGRATION_DISABLED"]
        names += ["SCX_OPS_ALLOW_QUEUED_WAKEUP"]
        names += [] if full else ["SCX_OPS_SWITCH_PARTIAL"]
        try:
            link = sched_ext.attach(
                module,
                "core_",
                name=NAME,
                fields={
                    "flags": sum(flags.get(flag, 0) for flag in names),
                    "timeout_ms": TIMEOUT_MS,
                    "exit_dump_len": DUMP_BYTES,
                },
            )
        except AttachError as error:
            raise _exit_record(module.maps["exit_info"]) or error from None
        tracepoints = [name for name in obj.functions if name.startswith("tp_")]
        targets = {
            **dict.fromkeys(_CALLS, Target.syscall()),
            "iter_tasks": Target.iterator("task"),
            stay_alive.PROGRAM: Target.perf_event(),
            **{name: Target.tracepoint(name.removeprefix("tp_")) for name in tracepoints},
        }
        targets |= {f"limited_{op}": op_target(op) for op in _LIMITED}
        targets |= {f"part_{op}_{part}": op_target(op) for op, parts in _PARTS.items() for part in parts}
        programs = module.load_all({name: (name, target) for name, target in targets.items()})
        core = cls(
            module.maps,
            {name: programs[name] for name in _CALLS},
            TaskIterator.attach(programs["iter_tasks"]),
            link,
        )
        core._put_in_front({op: programs[f"limited_{op}"] for op in _LIMITED})
        core._put_parts(programs)
        for enclave in range(1, constant("MAX_ENCLAVES")):
            core.set_release(enclave)
        core._tracepoints = {name: Link.tracepoint(programs[name]) for name in tracepoints}
        core._tracepoints |= stay_alive.attach_pulses(programs[stay_alive.PROGRAM])
        return core

    def pin(self) -> None:
        """Make it outlive this process; the link is pinned last, which commits the rest."""
        make_private(CORE)
        for name, held in self.maps.items():
            held.pin(CORE / name)
        for name, program in self._programs.items():
            program.pin(CORE / name)
        self._tasks.pin(CORE / "iter_tasks")
        for name, link in self._tracepoints.items():
            link.pin(CORE / name)
        self.link.pin(CORE / "link")
        self._close_tracepoints()

    @classmethod
    def open(cls) -> Self | None:
        """The core that is attached and pinned; None if there is none.

        Raises Ejected if the kernel has ejected it, StalePins if another version made the pins, PermissionMissing, and
        GhostError if another user made them.
        """
        with reported(), contextlib.suppress(FileNotFoundError):
            pins.check_owner(ROOT)
        while (pinned := _pinned_link()) is not None:
            try:
                core = cls._open()
            except StalePins:
                if _pinned_link() == pinned:
                    raise
            else:
                # If the pin changed, another core was pinned meanwhile, and some of the maps may be its.
                if _pinned_link() == pinned:
                    return core
        return None

    @classmethod
    def _open(cls) -> Self | None:
        names = [*_SHARED, *_SLOTS, "exit_info", "departures", "fallbacks"]
        names += [name for name in _LIMITS if (CORE / name).exists()]
        try:
            maps = {name: Map.open(CORE / name) for name in names}
            if (ejected := _exit_record(maps["exit_info"])) is not None:
                raise ejected
            if _has_exited(maps["exit_info"]):
                return None  # detached by a loader that was killed before it removed the pins
            core = cls(
                maps,
                {name: Program(open_pinned(CORE / name)) for name in _CALLS},
                TaskIterator.open(CORE / "iter_tasks"),
                StructOps.open(CORE / "link"),
            )
            version = int(core.state.abi_version)
        except (TypeError, BpfError) as error:
            if isinstance(error, BpfError) and error.errno in (errno.EPERM, errno.EACCES):
                raise
            raise StalePins(str(CORE), str(error)) from None
        if version != constant("ABI_VERSION"):
            raise StalePins(str(CORE), f"they are of version {version}")
        return core

    @property
    def full(self) -> bool:
        """Whether it is in full mode: every task of the fair class is in it."""
        return bool(self.state.default_enclave)

    @property
    def keeps_stats(self) -> bool:
        """Whether it keeps statistics of waits, turns and queues."""
        return bool(self.state.keeps_stats)

    def join(self, tid: int, enclave: int, generation: int) -> tuple[int, int, int]:
        """Record task ``tid`` as a member of ``enclave`` (0: of none).

        Returns 0 or a negative errno, and the enclave and generation that it had before.
        """
        arguments = {"tid": pids.to_initial(tid), "enclave": enclave, "generation": generation}
        record = ffi().new("struct join_args *", arguments)
        result, output = self._programs["call_join"].run(bytes(ffi().buffer(record)))
        before = ffi().from_buffer("struct join_args *", output)
        return result, before.enclave, before.generation

    def release(self, tid: int) -> None:
        """Announce that this process moves task ``tid`` out of the class, so that it is not counted as a departure."""
        record = ffi().new("struct join_args *", {"tid": pids.to_initial(tid)})
        self._programs["call_release"].run(bytes(ffi().buffer(record)))

    def set_stray(self, enclave: int, on: bool) -> int:
        """Let every CPU serve ``enclave``'s queue, or only its own CPUs again; returns how many tasks wait there."""
        record = ffi().new("struct join_args *", {"tid": int(on), "enclave": enclave})
        return self._programs["call_set_orphaned"].run(bytes(ffi().buffer(record)))[0]

    def drain(self, enclave: int) -> None:
        """Move the tasks on the per-CPU queues of ``enclave`` to its common queue."""
        record = ffi().new("struct join_args *", {"enclave": enclave})
        self._programs["call_drain"].run(bytes(ffi().buffer(record)))

    def set_release(self, enclave: int) -> None:
        """Let the core release the throttled tasks of ``enclave``, not an agent's program."""
        record = ffi().new("struct join_args *", {"enclave": enclave})
        self._programs["call_set_release"].run(bytes(ffi().buffer(record)))

    def _put_in_front(self, programs: dict[str, Program]) -> None:
        first = constant("LIMITED_SLOTS")
        for op, program in programs.items():
            for number in range(2 * constant("MAX_ENCLAVES")):
                self.slots[op][first + number] = program.fd
            program.close()

    def _put_parts(self, programs: dict[str, Program]) -> None:
        for op, parts in _PARTS.items():
            for slot, part in enumerate(parts):
                self.slots[op][slot] = programs[f"part_{op}_{part}"].fd
                programs[f"part_{op}_{part}"].close()

    def resize(self, enclave: int, cpus: CpuSet, source: int) -> int:
        """Give ``enclave`` exactly ``cpus``, and take those from enclave ``source`` (0: none) that it has.

        Returns 0 or a negative errno.
        """
        words = cpus.words(constant("CPU_WORDS"))
        record = ffi().new("struct resize_args *", {"enclave": enclave, "from": source, "cpus": words})
        return self._programs["call_resize"].run(bytes(ffi().buffer(record)))[0]

    def tasks(self) -> list[Task]:
        """Every task in the class, of every enclave, that is in this process's pid namespace."""
        data = self._task_records()  # the records do not keep their memory alive
        records = [r for r in data if r.enabled]
        local = pids.to_local(number for r in records for number in (r.tid, r.tgid))
        return [
            Task(
                tid=local[r.tid],
                pid=local.get(r.tgid, 0),
                enclave=r.enclave,
                cpu=r.cpu,
                on_cpu=bool(r.on_cpu),
                runtime_ns=r.runtime_ns,
                comm=text(r.comm),
                elsewhere=bool(r.elsewhere),
                original=(r.policy, r.priority),
                activity=Activity.of(r),
            )
            for r in records
            if r.tid in local
        ]

    def count_tasks(self) -> Counter[int]:
        """How many tasks each enclave has, by its id; those outside this process's pid namespace count, too."""
        data = self._task_records()
        return Counter(int(record.enclave) for record in data if record.enabled)

    def forking(self) -> set[int]:
        """The tasks, now or formerly in the class, that may have a child that is not visible yet."""
        return set(pids.to_local(int(r.tid) for r in self._task_records() if r.forking).values())

    def _task_records(self) -> Any:
        data = self._tasks.read()
        return ffi().from_buffer("struct task_record[]", bytearray(data)) if data else ()

    def exited(self) -> Ejected | None:
        """Why the kernel ejected the core; None while it runs, and after a regular detach."""
        if sched_ext.status().state == "disabling":
            sched_ext.wait_disabled()  # the kernel gives the reason only late while it disables
        return _exit_record(self.maps["exit_info"])

    @property
    def attached(self) -> bool:
        """Whether it is still attached."""
        return not _has_exited(self.maps["exit_info"])

    def detach(self) -> None:
        """Return every task to the fair class, and remove the pins."""
        self._close_tracepoints()
        with contextlib.suppress(BpfError):
            self.link.detach()
        clear_pins()
        self.link.close()
        sched_ext.wait_disabled()

    def _close_tracepoints(self) -> None:
        """Close this process's links of the tracepoints; pins may still hold them."""
        for link in self._tracepoints.values():
            link.close()
        self._tracepoints.clear()


def _pinned_link() -> int | None:
    """The inode of the pin of the core's link, which no other pin of a link has; None without a pin."""
    with reported(), contextlib.suppress(FileNotFoundError):
        return (CORE / "link").stat().st_ino
    return None


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock on changes to enclaves, which ends with the process. Mounts bpffs if it is not mounted.

    Raises PermissionMissing, and GhostError where another user has made the directory to lock.
    """
    capabilities.need("change enclaves", "CAP_BPF", "CAP_PERFMON")
    with pins.locked():
        yield


def clear_pins() -> None:
    """Detach the pinned core and remove all pins: that of the link first, without which the rest is ignored.

    If the kernel has ejected that core, its reason is kept for last_eject().
    """
    _keep_exit_record()
    with contextlib.suppress(BpfError), StructOps.open(CORE / "link") as link:
        link.detach()  # other references may still hold it
    (CORE / "link").unlink(missing_ok=True)
    shutil.rmtree(ROOT, ignore_errors=True)


def last_eject() -> Ejected | None:
    """Why the kernel last ejected a core since boot, also if another is attached by now; None if it has not.

    Raises BpfError, or PermissionMissing.
    """
    for path in (CORE / "exit_info", LAST_EXIT):
        with contextlib.suppress(FileNotFoundError, TypeError), reported():
            path.lstat()
            with Map.open(path) as exit_info:
                if (ejected := _exit_record(exit_info)) is not None:
                    return ejected
    return None


def _keep_exit_record() -> None:
    with contextlib.suppress(TypeError, BpfError, OSError), Map.open(CORE / "exit_info") as exit_info:
        if _exit_record(exit_info) is not None:
            LAST_EXIT.unlink(missing_ok=True)
            exit_info.pin(LAST_EXIT)


def synchronize_rcu() -> bool:
    """Wait until no CPU runs a program that was live before the call; False if the kernel cannot (nohz_full)."""
    return membarrier(GLOBAL)


def _prepare(module: Module, full: bool, keeps_stats: bool) -> None:
    state = MmapArray(module.maps["core"], ffi(), "struct core")[0]
    topology = Topology.from_sysfs()
    words = constant("CPU_WORDS")
    state.abi_version = constant("ABI_VERSION")
    state.default_enclave = DEFAULT_ENCLAVE if full else 0
    state.keeps_stats = keeps_stats
    state.online = topology.all_cpus.words(words)
    cpus = MmapArray(module.maps["cpus"], ffi(), "struct cpu")
    for number in topology.all_cpus:
        cpu = topology.cpu(number)
        cpus[number].llc = (cpu.l3_siblings or CpuSet([number])).words(words)


def _has_exited(exit_info: Map) -> bool:
    return bool(Array(exit_info, ffi(), "struct exit_record")[0].kind)


def _exit_record(exit_info: Map) -> Ejected | None:
    record = Array(exit_info, ffi(), "struct exit_record")[0]
    if not record.kind or record.regular:
        return None
    reason, message, dump = (
        bytes(ffi().string(text)).decode(errors="replace") for text in (record.reason, record.message, record.dump)
    )
    return Ejected(reason, message, dump, int(record.at_ns))

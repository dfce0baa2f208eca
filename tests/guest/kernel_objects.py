# SPDX-License-Identifier: Apache-2.0
"""What a scheduler may leave behind: objects of BPF, pins, open files, processes, and memory of the kernel."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cffi
from ghostbpf.schedulers import core

_ffi = cffi.FFI()
_ffi.cdef("""
    int bpf_prog_get_next_id(unsigned int start, unsigned int *next);
    int bpf_map_get_next_id(unsigned int start, unsigned int *next);
    int bpf_link_get_next_id(unsigned int start, unsigned int *next);
""")
_libbpf: Any = _ffi.dlopen("libbpf.so.1")

#: Lines of /proc/meminfo for memory that the kernel cannot reclaim: maps, programs, tasks.
_KEPT = ("SUnreclaim", "VmallocUsed", "KernelStack", "PageTables", "Percpu")
#: By how many KB that memory may grow with the same objects. Under biff in a guest with 4 CPUs, it differs by up to
#: 200 KB between rounds of a storm, up and down; a longer night finds a smaller leak.
_NOISE_KB = 2048
#: Seconds in which the kernel frees what waits for a grace period, and killed processes end.
_SETTLING = 60.0


@dataclass(frozen=True)
class KernelObjects:
    """Numbers at one time, of the whole machine except for ``files``; memory in KB."""

    programs: int
    maps: int
    links: int
    pins: int
    files: int
    processes: int
    memory: int

    @classmethod
    def now(cls) -> KernelObjects:
        """What there is now."""
        return cls(
            programs=_count(_libbpf.bpf_prog_get_next_id),
            maps=_count(_libbpf.bpf_map_get_next_id),
            links=_count(_libbpf.bpf_link_get_next_id),
            pins=sum(1 for _ in core.ROOT.rglob("*")),
            files=len(os.listdir("/proc/self/fd")),
            processes=_processes(),
            memory=_kept_memory(),
        )

    def settle(self) -> KernelObjects:
        """Wait until no number exceeds that of this time, and return them; AssertionError with what is left over."""
        deadline = time.monotonic() + _SETTLING
        while more := (now := self.now())._growth_since(self):
            assert time.monotonic() < deadline, f"left over: {', '.join(more)}"
            time.sleep(0.5)
        return now

    def _growth_since(self, before: KernelObjects) -> list[str]:
        grown = {field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)}
        grown["memory"] -= _NOISE_KB
        return [f"{getattr(self, name)} {name}, before {getattr(before, name)}" for name, by in grown.items() if by > 0]


def _count(get_next_id: Any) -> int:
    number, found = 0, _ffi.new("unsigned int *", 0)
    while not get_next_id(found[0], found):
        number += 1
    return number


def _processes() -> int:
    """The processes that are neither threads of the kernel nor zombies."""
    number = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            number += bool(path.read_bytes())
    return number


def _kept_memory() -> int:
    for path in Path("/sys/kernel/slab").glob("*/shrink"):
        path.write_text("1")  # else free objects count, of slabs that are kept for the next allocations
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return sum(sizes[name] for name in _KEPT)

# SPDX-License-Identifier: Apache-2.0
"""Attaches programs that are no callbacks of an operations table: to tracepoints, functions, perf events, iterators."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Self

from . import libc
from ._libbpf import check, ffi, lib
from .closing import Closing
from .errors import BpfError
from .handle import Handle, open_pinned
from .link import Program
from .uapi import attach_type, value

_CHUNK = 1 << 16
_ONLINE = Path("/sys/devices/system/cpu/online")

# struct perf_event_attr {type, size, config, sample_freq, sample_type, read_format, flags}, and zeroes up to its size.
_ATTR, _ATTR_BYTES = struct.Struct("=IIQQQQQ"), 136
# Macros and bits of include/uapi/linux/perf_event.h, which BTF does not have: of the flags in the attributes, the bit
# that makes sample_freq a frequency; the flag of the system call; ioctl requests.
_ATTR_FREQ = 1 << 10
_PERF_FLAG_FD_CLOEXEC = 8
_IOC_SET_BPF, _IOC_ENABLE = 0x40042408, 0x2400


class Link(Handle):
    """A program attached to its tracepoint; closing it detaches, unless it is pinned."""

    @classmethod
    def tracepoint(cls, program: Program) -> Self:
        """Attach a program that was loaded for ``Target.tracepoint``."""
        return cls(_tracing_link(program, "TRACE_RAW_TP", "attach to a tracepoint"))

    @classmethod
    def function_entry(cls, program: Program) -> Self:
        """Attach a program that was loaded for ``Target.function_entry``."""
        return cls(_tracing_link(program, "TRACE_FENTRY", "attach to a function"))

    @classmethod
    def function_exit(cls, program: Program) -> Self:
        """Attach a program that was loaded for ``Target.function_exit``."""
        return cls(_tracing_link(program, "TRACE_FEXIT", "attach to a function"))

    @classmethod
    def clock(cls, program: Program, cpu: int, period_s: float) -> Self:
        """Run a program that was loaded for ``Target.perf_event`` every ``period_s`` seconds on ``cpu``, idle or not.

        Unlike a Sampler it can be pinned. It ends for good when the CPU goes offline.
        """
        with Handle(_clock_event(cpu, period_ns=round(period_s * 1e9))) as event:
            return cls(
                check(
                    lib.bpf_link_create(program.fd, event.fd, attach_type("PERF_EVENT"), ffi.NULL),
                    f"attach to the clock of CPU {cpu}",
                )
            )


def _tracing_link(program: Program, kind: str, doing: str) -> int:
    return check(lib.bpf_link_create(program.fd, 0, attach_type(kind), ffi.NULL), doing)


class Sampler(Handle):
    """A program that runs at a fixed rate on one CPU, by the kernel's software clock event, until it is closed.

    The kernel disables the event permanently when the CPU goes offline: a CPU that is online again needs a new Sampler.
    """

    @classmethod
    def on_cpu(cls, program: Program, cpu: int, hertz: int) -> Self:
        """Run a program that was loaded for ``Target.perf_event`` ``hertz`` times a second on ``cpu``, idle or not."""
        with contextlib.ExitStack() as undo:
            sampler = cls(_clock_event(cpu, hertz=hertz))
            undo.callback(sampler.close)
            try:
                fcntl.ioctl(sampler.fd, _IOC_SET_BPF, program.fd)
                fcntl.ioctl(sampler.fd, _IOC_ENABLE, 0)
            except OSError as error:
                raise BpfError(f"sample CPU {cpu}", error.errno or 0) from None
            undo.pop_all()
        return sampler

    def is_alive(self) -> bool:
        """Whether the CPU has been online since: the enabled time of a disabled event does not advance."""
        before = self._enabled_ns()
        return self._enabled_ns() > before

    def _enabled_ns(self) -> int:
        return int(struct.unpack("=QQ", os.read(self.fd, 16))[1])


def _clock_event(cpu: int, *, hertz: int = 0, period_ns: int = 0) -> int:
    """A descriptor of a software clock event on ``cpu``, ``hertz`` times a second or every ``period_ns``."""
    attributes = _ATTR.pack(
        value("perf_type_id", "PERF_TYPE_SOFTWARE"),
        _ATTR_BYTES,
        value("perf_sw_ids", "PERF_COUNT_SW_CPU_CLOCK"),
        hertz or period_ns,
        0,
        value("perf_event_read_format", "PERF_FORMAT_TOTAL_TIME_ENABLED"),
        _ATTR_FREQ if hertz else 0,
    ).ljust(_ATTR_BYTES, b"\0")
    try:
        return libc.syscall("perf_event_open", libc.ffi.from_buffer(attributes), -1, cpu, -1, _PERF_FLAG_FD_CLOEXEC)
    except OSError as error:
        raise BpfError(f"sample CPU {cpu}", error.errno or 0) from None


class Samplers(Closing):
    """A Sampler on each online CPU; call ``follow()`` periodically to adapt to CPU hotplug."""

    def __init__(self, program: Program, hertz: int) -> None:
        self._program, self._hertz = program, hertz
        self._samplers: dict[int, Sampler] = {}
        try:
            self.follow()
        except BaseException:
            self.close()
            raise

    def follow(self) -> None:
        """Sample each CPU that is online now, including CPUs that were offline since the last call."""
        online = set(online_cpus())
        for cpu, sampler in list(self._samplers.items()):
            if cpu not in online or not sampler.is_alive():
                self._samplers.pop(cpu).close()
        for cpu in online - self._samplers.keys():
            try:
                self._samplers[cpu] = Sampler.on_cpu(self._program, cpu, self._hertz)
            except BpfError as error:
                # The CPU has gone offline since online_cpus().
                if error.errno != errno.ENODEV:
                    raise

    def close(self) -> None:
        """Stop sampling."""
        while self._samplers:
            self._samplers.popitem()[1].close()


def online_cpus() -> list[int]:
    """The numbers of the online CPUs."""
    ranges = (part.partition("-") for part in _ONLINE.read_text(encoding="utf-8").strip().split(","))
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


class Iterator(Handle):
    """A BPF iterator: each read() runs its program over all objects."""

    @classmethod
    def attach(cls, program: Program) -> Self:
        """Attach a program that was loaded for ``Target.iterator``."""
        return cls(check(lib.bpf_link_create(program.fd, 0, attach_type("TRACE_ITER"), ffi.NULL), "attach an iterator"))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The iterator pinned at ``path``."""
        return cls(open_pinned(str(path)))

    def read(self) -> bytes:
        """Run the program over all objects; returns everything that it wrote."""
        with Handle(check(lib.bpf_iter_create(self.fd), "run a BPF iterator")) as run:
            chunks = []
            while chunk := os.read(run.fd, _CHUNK):
                chunks.append(chunk)
        return b"".join(chunks)

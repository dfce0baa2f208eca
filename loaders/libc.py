# SPDX-License-Identifier: Apache-2.0
"""The C library, through cffi: calls that Python's own modules lack.

glibc has functions for prctl(2), mlockall(2), sched_getcpu(3) and, from 2.36 on, pidfd_getfd(2). It has none for
perf_event_open(2), membarrier(2) and futex(2): these are called by number, and ``NUMBERS`` is the one table of numbers.
A call that fails raises OSError. (``vm/init.py`` runs in the guest without this package and uses ctypes.)
"""

from __future__ import annotations

import os
from typing import Any

from .declarations import declare
from .errors import KernelUnsupported

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_TIMERSLACK, _PR_SET_NO_NEW_PRIVS = 1, 15, 29, 38
_CAPABILITY_VERSION_3 = 0x20080522
_MCL_CURRENT, _MCL_FUTURE = 1, 2

ffi = declare(
    """
    long syscall(long number, ...);
    int prctl(int option, ...);
    int pidfd_getfd(int pidfd, int fd, unsigned int flags);
    int mlockall(int flags);
    int sched_getcpu(void);
    int capget(void *header, void *data);
    int capset(void *header, void *data);

    void *open_memstream(char **buffer, size_t *size);
    int fputs(const char *text, void *stream);
    int vfprintf(void *stream, const char *format, void *args);
    int fclose(void *stream);
    void free(void *);
    """
)
lib: Any = ffi.dlopen(None)

# include/uapi/asm-generic/unistd.h, which every architecture since 2012 uses.
_GENERIC = {"futex": 98, "perf_event_open": 241, "membarrier": 283}
#: System call numbers by the machine that ``os.uname()`` names.
NUMBERS = {
    "x86_64": {"futex": 202, "perf_event_open": 298, "membarrier": 324},
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "ppc64le": {"futex": 221, "perf_event_open": 319, "membarrier": 365},
    "s390x": {"futex": 238, "perf_event_open": 331, "membarrier": 356},
}.get(os.uname().machine, {})


def syscall(name: str, *arguments: Any) -> int:
    """Make the system call ``name`` of ``NUMBERS`` with integers or pointers (cdata); raises KernelUnsupported."""
    if name not in NUMBERS:
        raise KernelUnsupported(name, f"the number of {name}(2) on {os.uname().machine} is not known here")
    return _checked(name, lib.syscall(NUMBERS[name], *map(_word, arguments)))


def prctl(option: int, *arguments: Any) -> int:
    """prctl(2) with integers or pointers (cdata)."""
    return _checked("prctl", lib.prctl(option, *map(_word, arguments)))


def set_death_signal(number: int) -> None:
    """Have the kernel send this process signal ``number`` when its parent ends; 0: none."""
    prctl(_PR_SET_PDEATHSIG, number)


def set_name(name: bytes) -> None:
    """Name the calling thread; the kernel keeps 15 bytes."""
    prctl(_PR_SET_NAME, ffi.new("char[]", name))


def set_timer_slack(ns: int) -> None:
    """Set how late a sleep of the calling thread may end."""
    prctl(_PR_SET_TIMERSLACK, ns)


def limit_capabilities(kept: int) -> None:
    """Take all capabilities from the calling thread but those of the bits in ``kept``."""
    header = ffi.new("uint32_t[2]", (_CAPABILITY_VERSION_3, 0))
    data = ffi.new("uint32_t[6]")  # effective, permitted and inheritable: the low words, then the high words
    _checked("capget", lib.capget(header, data))
    for word in range(6):
        data[word] &= kept >> 32 * (word // 3) & 0xFFFFFFFF
    _checked("capset", lib.capset(header, data))


def gain_no_privileges() -> None:
    """Let exec() grant no privileges to this process from now on, as by set-user-ID bits, or to root."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def lock_memory() -> None:
    """Keep all memory of this process resident, now and later."""
    _checked("mlockall", lib.mlockall(_MCL_CURRENT | _MCL_FUTURE))


def current_cpu() -> int:
    """The CPU that runs the calling thread."""
    return int(lib.sched_getcpu())


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate, closed on exec, of descriptor ``fd`` of the process behind ``pidfd``."""
    return _checked("pidfd_getfd", lib.pidfd_getfd(pidfd, fd, 0))


def _word(argument: Any) -> Any:
    """``argument`` as wide as a register: a variadic function takes a C type's own width for what it gets."""
    return argument if isinstance(argument, ffi.CData) else ffi.cast("long", argument)


def _checked(name: str, result: int) -> int:
    if result < 0:
        raise OSError(ffi.errno, f"{name}: {os.strerror(ffi.errno)}")
    return int(result)

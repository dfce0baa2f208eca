# SPDX-License-Identifier: Apache-2.0
"""The C library's functions that agents call and that Python's standard library lacks, bound by cffi."""

from __future__ import annotations

import os
from typing import Any

import cffi

_ffi = cffi.FFI()
_ffi.cdef("int prctl(int option, ...); int mlockall(int flags); int sched_getcpu(void);")
_lib: Any = _ffi.dlopen(None)

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_MCL_CURRENT, _MCL_FUTURE = 1, 2


def current_cpu() -> int:
    """The CPU that runs the calling thread."""
    return int(_lib.sched_getcpu())


def lock_memory() -> None:
    """Keep all memory of this process resident, now and later; raises OSError."""
    _check("mlockall", _lib.mlockall(_MCL_CURRENT | _MCL_FUTURE))


def set_death_signal(number: int) -> None:
    """Have the kernel send this process signal ``number`` when its parent ends; 0: none. Raises OSError."""
    _prctl(_PR_SET_PDEATHSIG, number)


def set_timer_slack(ns: int) -> None:
    """How late a sleep of the calling thread may end; raises OSError."""
    _prctl(_PR_SET_TIMERSLACK, ns)


def _prctl(option: int, value: int) -> None:
    arguments = (_ffi.cast("unsigned long", number) for number in (value, 0, 0, 0))
    _check(f"prctl({option}, {value})", _lib.prctl(option, *arguments))


def _check(call: str, result: int) -> None:
    if result:
        raise OSError(_ffi.errno, f"{call}: {os.strerror(_ffi.errno)}")

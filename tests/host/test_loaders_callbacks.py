# SPDX-License-Identifier: Apache-2.0
"""Callbacks: functions of an object that the kernel calls on behalf of one of its programs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import cffi
import pytest
from ghostbpf.loaders.errors import LinkError
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import Array
from ghostbpf.loaders.object import Object

Build = Callable[[str], Object]

_TIMER = """
    struct alarm { struct bpf_timer timer; };
    BPF_ARRAY(alarms, struct alarm, 1);
    BPF_ARRAY(rings, u64, 1);

    int ring(void *map)
    {
        u32 zero = 0;
        u64 *count = rings.lookup(&zero);
        struct alarm *alarm = alarms.lookup(&zero);

        if (count && alarm && ++*count < 3)
            bpf_timer_start(&alarm->timer, 1000, 0);
        return 0;
    }

    int start(u64 *ctx)
    {
        u32 zero = 0;
        struct alarm *alarm = alarms.lookup(&zero);

        if (!alarm || bpf_timer_init(&alarm->timer, LINK_ADDRESS(alarms), 1 /* CLOCK_MONOTONIC */))
            return -1;
        if (bpf_timer_set_callback(&alarm->timer, LINK_ADDRESS(ring)))
            return -2;
        return bpf_timer_start(&alarm->timer, 1000, 0);
    }
"""


def test_timer_calls_the_function_that_its_program_names(build: Build, stack: contextlib.ExitStack) -> None:
    ffi = cffi.FFI()
    ffi.cdef("typedef uint32_t u32; typedef uint64_t u64;")
    module = stack.enter_context(contextlib.closing(Module(build(_TIMER))))
    rings = Array(module.maps["rings"], ffi, "u64")
    with module.load("start", Target.syscall()) as start:
        assert start.run()[0] == 0
        deadline = time.monotonic() + 10
        while rings[0] < 3:
            assert time.monotonic() < deadline, "the timer never called back"


def test_callback_that_does_not_exist_is_named(build: Build, stack: contextlib.ExitStack) -> None:
    obj = build("int start(u64 *ctx) { return (u64)LINK_ADDRESS(absent) == 0; }")
    module = stack.enter_context(contextlib.closing(Module(obj)))
    with pytest.raises(LinkError, match="has no function absent"):
        module.load("start", Target.syscall())

# SPDX-License-Identifier: Apache-2.0
"""Runnable timeouts, and the reason for which the FIFO has replaced a policy, in words."""

from __future__ import annotations

import time

import pytest
from ghostbpf.schedulers import core, queues
from ghostbpf.schedulers.stay_alive import Fallback, timeout_ns


def test_timeout_is_a_duration_within_limits_or_off() -> None:
    assert [timeout_ns(text) for text in ("1s", "2500ms", "25s", "off")] == [10**9, 2_500_000_000, 25 * 10**9, 0]


@pytest.mark.parametrize("text", ["999ms", "25.1s", "0", "", "never", "-5s"])
def test_timeout_beyond_the_limits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bad duration"):
        timeout_ns(text)


def _fallback(**values: object) -> Fallback:
    record = core.ffi().new("struct fallback *", {"count": 1, "at_ns": time.monotonic_ns(), "wait_ns": 2 * 10**9})
    settings = {"policy": b"bad", "comm": b"load", "tid": 7, "cpu": 2, "task_cpu": 3, "pulses": 4, "available": 3}
    for name, value in {**settings, **values}.items():
        setattr(record, name, value)
    why = Fallback.of(record)
    assert why is not None
    return why


def test_reason_names_task_queue_wait_and_cpu() -> None:
    assert str(_fallback(queue=core.constant("PENDING_DSQS") + 5)) == (
        "the built-in FIFO has replaced policy bad: task load (7) waited for 2.0 s on PENDING, the queue of enclave 5, "
        "although CPU 2 was available for 75% of that time, and idles"
    )
    why = _fallback(running=9, running_comm=b"hog")
    assert "on no queue: enqueue() of the policy did not insert it, although CPU 2 " in str(why)
    assert str(why).endswith("and runs hog")
    assert (why.document()["queue"], why.document()["dsq"]) == ("no queue", 0)


def test_enclave_whose_policy_was_never_replaced_has_no_reason() -> None:
    assert Fallback.of(core.ffi().new("struct fallback *")) is None


def test_each_queue_has_a_name() -> None:
    assert queues.name(core.constant("FALLBACK_DSQ")).startswith("the fallback queue")
    assert queues.name(core.constant("CPU_DSQS") + 4) == "CPU_DSQ(4), CPU 4's own queue"
    assert queues.name(core.constant("VTIME_DSQS") + 70).startswith("VTIME_DSQ(70), ")
    assert queues.name(0x8000000000000002, 3) == "the kernel's local queue of CPU 3"
    assert queues.name(0xC000000000000005, 3) == "the kernel's local queue of CPU 5"
    assert queues.name(0x8000000000000001) == "the kernel's global queue"
    assert queues.name(0x999) == "DSQ 0x999"
    assert [queues.owner(queue) for queue in (core.constant("CPU_DSQS") + 4, 0x999)] == [4, None]
    assert [queues.is_local(queue) for queue in (0x8000000000000002, 0x8000000000000001, 0x20001)] == [
        True,
        False,
        False,
    ]

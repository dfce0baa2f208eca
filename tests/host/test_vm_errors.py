# SPDX-License-Identifier: Apache-2.0
"""How a guest's end becomes an error with an exit status, and when the guest is started again. No guest boots."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.vm import BadRequest, GuestError, GuestLost, GuestOops, GuestTimeout, ImageError, VmError
from ghostbpf.vm import guest as guest_module
from ghostbpf.vm.machine import Machine, Tools
from ghostbpf.vm.session import Session


def test_guest_errors_have_status_hint_and_the_end_of_the_console() -> None:
    console = "".join(f"line {n}\n" for n in range(100))
    for kind, status in ((GuestTimeout, 124), (GuestOops, 125), (GuestLost, 128)):
        error = kind("it went wrong", "this", console)
        assert (error.exit_status, error.hint) == (status, "this")
        lines = str(error).splitlines()
        assert lines[0] == "it went wrong"
        assert lines[-1].endswith("line 99")
        assert len(lines) == 22
    assert VmError("x").exit_status == ImageError("x").exit_status == 1
    assert BadRequest("x").exit_status == 2
    # Guests that never come up must not be retried for ever.
    assert [kind("x", emulation=True).exit_status for kind in (GuestOops, GuestLost)] == [123, 128]


_INT3 = """\
[   41.3] Oops: int3: 0000 [#1] SMP PTI
[   41.3] CPU: 2 UID: 0 PID: 312 Comm: python3 Not tainted 7.3.4+deb13-cloud-amd64
[   41.3] RIP: 0010:scx_enqueue+0x1/0x90
[   41.3] Code: 90 90 90 90 90 90 {before} <44> 00 00 41 57 41 56
[   41.4] Kernel panic - not syncing: Fatal exception
"""
_STALE, _REAL = _INT3.format(before="0f 1f"), _INT3.format(before="cc cc")
_TIMER = "[   90.1] rcu: rcu_preempt kthread timer wakeup didn't happen for 75000 jiffies!\n[   91.0] Kernel panic\n"


@pytest.mark.parametrize(
    ("console", "machine", "status"),
    [
        (_STALE, {"accel": "tcg"}, 123),
        (_STALE, {"accel": "kvm"}, 125),
        (_STALE, {"accel": "tcg", "exact": True}, 125),
        (_REAL, {"accel": "tcg"}, 125),
        (_TIMER, {"accel": "tcg"}, 123),
        (_TIMER, {"accel": "kvm"}, 125),
    ],
)
def test_kernel_death_is_excused_only_where_qemu_can_have_caused_it(
    console: str, machine: dict[str, Any], status: int
) -> None:
    session = Session(
        Tools(("qemu",), ("virtiofsd",), "10.0"),
        Machine(Path("vmlinux"), cpus=4, memory=1024, **machine),
        shares=[],
        setup=[],
        stdin=None,
        stdout=bytes,
        stderr=bytes,
    )
    session._console += console.encode()
    with pytest.raises(GuestOops, match="int3" if "int3" in console else "timer wakeup") as raised:
        session._outcome(True, None, "")
    assert raised.value.exit_status == status
    assert (raised.value.hint is not None) == (status == 123)


class FakeSession:
    console = "console"

    def __init__(self, error: GuestError | None, begun: bool) -> None:
        self.error, self.begun = error, begun

    def run(self, timeout: float | None, begin: float) -> int:
        if self.error:
            raise self.error
        return 7


@pytest.mark.parametrize(
    ("emulation", "begun", "outcome"),
    [
        (True, False, nullcontext()),
        (True, True, pytest.raises(GuestError)),
        (False, False, pytest.raises(GuestError)),
    ],
)
@pytest.mark.parametrize("kind", [GuestOops, GuestLost])
def test_guest_that_qemu_broke_is_started_again_unless_the_command_had_begun(
    kind: type[GuestError], emulation: bool, begun: bool, outcome: AbstractContextManager[object]
) -> None:
    sessions = iter([FakeSession(kind("died", emulation=emulation), begun), FakeSession(None, True)])
    boot: Callable[..., tuple[int, str]] = guest_module._boot
    with outcome:
        assert boot(lambda: next(sessions), None) == (7, "console")


def test_full_disk_is_a_vm_error_and_a_closed_pipe_a_broken_pipe_error() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(VmError, match="no space left"):
        guest_module.write_all(full.fileno(), b"x")
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        guest_module.write_all(write, b"x")
    os.close(write)

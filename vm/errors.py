# SPDX-License-Identifier: Apache-2.0
"""The errors of guests, with their exit statuses.

VmError
├── BadRequest       2    a value on the command line or in a call is invalid
├── KernelNotFound   1    no kernel has that name, or none of them is usable
├── ImageError       1    packages were not fetched, or the guest's root or tools not made
└── GuestError       1    the guest was started and failed
    ├── GuestTimeout 124  it was still running at the end of its time-out
    ├── GuestOops    125  its kernel died; 123 if QEMU may be the cause
    └── GuestLost    128  it ended without an exit status, or did not boot
        └── QemuDied 123  QEMU itself failed
"""

from __future__ import annotations

CONSOLE_TAIL = 20
#: The exit status if QEMU may have killed the guest's kernel: it says nothing about the command.
KILLED_BY_EMULATION = 123


class VmError(Exception):
    """Root of this package's errors: a lower-case message, and a hint or None."""

    exit_status: int = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadRequest(VmError):
    """A value of the caller's is invalid; nothing was started."""

    exit_status = 2


class KernelNotFound(VmError):
    """No kernel has the name, or none that has it is usable."""


class ImageError(VmError):
    """Packages were not fetched, or the guest's root or tools not made."""


class GuestError(VmError):
    """The guest was started and failed; `console` is what its kernel printed.

    `emulation` marks failures that QEMU may have caused, which say nothing about the kernel. They are rare and occur
    with TCG on a busy host: TCG can run code that another virtual CPU is patching, and then executes a breakpoint
    (int3) that is no longer there; it can lose a timer or an interrupt, for which the kernel then waits for ever; and
    it can fail an assertion of its own.
    """

    def __init__(self, message: str, hint: str | None = None, console: str = "", *, emulation: bool = False) -> None:
        super().__init__(message, hint)
        self.console = console
        self.emulation = emulation

    def __str__(self) -> str:
        tail = self.console.splitlines()[-CONSOLE_TAIL:]
        if not tail:
            return f"{self.message} (its kernel has printed nothing)"
        return "\n".join([self.message, "last lines of its console:", *(f"  | {line}" for line in tail)])


class GuestTimeout(GuestError):
    """The guest was still running at the end of its time-out."""

    exit_status = 124


class GuestOops(GuestError):
    """The guest's kernel died: an oops, a BUG or a panic."""

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        """125, or 123 if QEMU may be the cause."""
        return KILLED_BY_EMULATION if self.emulation else 125


class GuestLost(GuestError):
    """The guest ended without an exit status, or did not boot."""

    exit_status = 128


class QemuDied(GuestLost):
    """QEMU itself failed, by an assertion of its own for example."""

    exit_status = KILLED_BY_EMULATION

# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a guest, and the exit status each failure stands for.

VmError
├── BadRequest       2    a value on the command line or in a call is wrong
├── KernelNotFound   1    no kernel answers to that name, or none of them is usable
├── ImageError       1    the guest's root, the tools or the packages could not be made
└── GuestError       1    the guest was started and failed
    ├── GuestTimeout 124  it was still running when its time was up
    ├── GuestOops    125  its kernel died; 123 if that was QEMU's doing
    └── GuestLost    128  it went away without a word, or never came up
"""

from __future__ import annotations

CONSOLE_TAIL = 20
#: The exit status where QEMU killed the guest's kernel: it says nothing of what ran in it.
KILLED_BY_EMULATION = 123


class VmError(Exception):
    """Root of this package's errors: a lower-case message, and the cure where one is known."""

    exit_status: int = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadRequest(VmError):
    """A value given by the caller cannot be used; nothing was started."""

    exit_status = 2


class KernelNotFound(VmError):
    """No kernel answers to the name, or none that does is usable."""


class ImageError(VmError):
    """Packages could not be fetched, or the guest's root or tools could not be made."""


class GuestError(VmError):
    """The guest was started and failed; `console` is what its kernel printed.

    `emulation` tells the failures that may be of QEMU's making, and say nothing of the kernel. They need TCG, are
    rare, and need a busy host: TCG can run code while another virtual CPU is patching it, and then executes a
    breakpoint (int3) that is no longer there; and it can lose a timer or an interrupt, for which the kernel then waits
    for ever.
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
    """The guest was still running when its time was up."""

    exit_status = 124


class GuestOops(GuestError):
    """The guest's kernel died: an oops, a BUG or a panic."""

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        """125, or 123 where QEMU has killed it."""
        return KILLED_BY_EMULATION if self.emulation else 125


class GuestLost(GuestError):
    """The guest went away without handing over an exit status."""

    exit_status = 128

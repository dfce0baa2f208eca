# SPDX-License-Identifier: Apache-2.0
"""The kernel's sched_ext: its state in sysfs, and attaching a scheduler with the reason of a failure.

The attach call can succeed although enabling fails (an error in ops.init, for example): the kernel has then ejected the
scheduler before attach() reads the state. The reason is in the kernel log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from .closing import Closing
from .errors import AttachError, BpfError, KernelUnsupported
from .link import Module
from .struct_ops import StructOps

SYSFS = Path("/sys/kernel/sched_ext")
_KMSG = Path("/dev/kmsg")
_KMSG_RECORD = 8192

#: The remedy for a boot parameter that takes CPUs out of the scheduling domains.
WITHOUT_ISOLCPUS = "boot without isolcpus= (nohz_full= and rcu_nocbs= may stay)"
_HINTS = {
    "domain isolation": WITHOUT_ISOLCPUS,
    "hotplug": "a CPU went online or offline meanwhile: try again",
}


@dataclass(frozen=True)
class Status:
    """``state`` is the kernel's name of it (enabled, disabled, enabling …), ``ops`` the attached scheduler or None."""

    state: str
    ops: str | None
    switch_all: bool
    nr_rejected: int
    hotplug_seq: int


def status() -> Status:
    """The state of sched_ext; raises KernelUnsupported if the kernel has no sched_ext."""
    try:
        state = _read("state")
    except OSError:
        raise KernelUnsupported(
            "sched_ext",
            f"this kernel ({os.uname().release}) has no sched_ext",
            hint="boot one with CONFIG_SCHED_CLASS_EXT=y (Debian: from trixie-backports), or use: ghostbpf vm",
        ) from None
    ops = None
    with contextlib.suppress(OSError):
        ops = _read("root/ops") or None
    return Status(state, ops, _read("switch_all") == "1", int(_read("nr_rejected")), int(_read("hotplug_seq")))


def events() -> dict[str, int]:
    """The kernel's counts of events (SCX_EV_…) since the scheduler was attached; empty if none is."""
    try:
        lines = _read("root/events").splitlines()
    except OSError:
        return {}
    return {name: int(count) for name, count in (line.split() for line in lines)}


def attach(
    module: Module, prefix: str, *, name: str, fields: Mapping[str, int] | None = None, sleepable: Collection[str] = ()
) -> StructOps:
    """Attach the functions of ``module`` that are named ``prefix`` + op, as the sched_ext scheduler ``name``.

    ``fields`` are the other members of struct sched_ext_ops (flags, timeout_ms …). ``init`` may always sleep.
    Raises AttachError with the kernel's reason if another scheduler runs, or the kernel refuses or ejects this one.
    """
    before = status()
    if before.state != "disabled":
        raise AttachError(f"cannot attach {name}: the scheduler {before.ops or '?'} is running", hint="stop it first")
    ops = {f.removeprefix(prefix): f for f in module.object.functions if f.startswith(prefix)}
    with KernelLog() as log:
        try:
            link = StructOps.attach(
                module,
                "sched_ext_ops",
                ops,
                fields={"name": name, "hotplug_seq": before.hotplug_seq, **(fields or {})},
                sleepable={"init", *sleepable} & ops.keys(),
            )
        except BpfError as error:
            if reason := "; ".join(log.lines()) or _known_refusal(error.errno):
                raise AttachError(f"the kernel refuses {name}: {reason}", hint=_hint(reason) or error.hint) from None
            raise
    after = status()
    if after.state not in ("enabled", "enabling") or after.ops != name:
        link.close()
        reason = exit_reason(name) or "see dmesg"
        raise AttachError(f"the kernel ejected {name} at once: {reason}", hint=_hint(reason))
    return link


class KernelLog(Closing):
    """Lines of the kernel log about sched_ext from now on; none if the log is unreadable."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        """The new lines, without the prefix "sched_ext: "."""
        lines = []
        with contextlib.suppress(OSError):
            while record := os.read(self._fd, _KMSG_RECORD).decode(errors="replace"):
                line = record.partition(";")[2].partition("\n")[0]
                if line.startswith("sched_ext: "):
                    lines.append(line.removeprefix("sched_ext: "))
        return lines

    def close(self) -> None:
        """Close the log."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def boot_isolation() -> str | None:
    """The value of the boot parameter isolcpus=, or None."""
    match = re.search(r"\bisolcpus=(\S+)", Path("/proc/cmdline").read_text(encoding="utf-8"))
    return match[1] if match else None


def isolates_domains(isolcpus: str) -> bool:
    """Whether ``isolcpus`` takes CPUs out of scheduling domains: by default, and with its flag domain."""
    flags = [word for word in isolcpus.split(",") if word.isalpha() or "_" in word]
    return not flags or "domain" in flags


def _known_refusal(number: int) -> str | None:
    """A likely reason of an attach that failed with errno ``number``, for when the kernel log is unreadable."""
    if number == errno.EINVAL and (isolcpus := boot_isolation()) and isolates_domains(isolcpus):
        return f"isolcpus={isolcpus} is domain isolation, which sched_ext is not compatible with"
    return None


def _hint(reason: str) -> str | None:
    return next((hint for phrase, hint in _HINTS.items() if phrase in reason), None)


def wait_disabled(timeout: float = 10.0) -> bool:
    """Wait up to ``timeout`` seconds until no scheduler is attached; returns whether that is so."""
    deadline = time.monotonic() + timeout
    while status().state != "disabled":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def exit_reason(name: str) -> str | None:
    """The last message of the kernel log about the scheduler ``name``."""
    reason = None
    with contextlib.suppress(OSError), open(_KMSG, "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while record := os.read(log.fileno(), _KMSG_RECORD):
                if match := re.search(rf';sched_ext: .*"?{re.escape(name)}"?:? (.*)', record.decode(errors="replace")):
                    reason = match[1]
    return reason


def _read(name: str) -> str:
    return (SYSFS / name).read_text(encoding="utf-8").strip()

# SPDX-License-Identifier: Apache-2.0
"""The kernel's sched_ext: what it says in sysfs, and attaching a scheduler so that failure shows.

Attaching can succeed although enabling failed (an error in ops.init, say): the kernel then has thrown the
scheduler out again before attach() looks. The reason is in the kernel's log.
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

#: What to do where a boot parameter takes CPUs out of the scheduling domains.
WITHOUT_ISOLCPUS = "boot without isolcpus= (nohz_full= and rcu_nocbs= may stay)"
_HINTS = {
    "domain isolation": WITHOUT_ISOLCPUS,
    "hotplug": "a CPU came or went meanwhile: try again",
}


@dataclass(frozen=True)
class Status:
    """``state`` is the kernel's word (enabled, disabled, enabling …), ``ops`` the name of the scheduler, if any."""

    state: str
    ops: str | None
    switch_all: bool
    nr_rejected: int
    hotplug_seq: int


def status() -> Status:
    """What sched_ext does now; raises KernelUnsupported where the kernel has none."""
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


def attach(
    module: Module, prefix: str, *, name: str, fields: Mapping[str, int] | None = None, sleepable: Collection[str] = ()
) -> StructOps:
    """Attach the functions of ``module`` called ``prefix`` + op as a sched_ext scheduler called ``name``.

    ``fields`` are the other members of struct sched_ext_ops (flags, timeout_ms …). ``init`` may always sleep.
    Raises AttachError with the kernel's reason where another scheduler runs, and where this one is refused or thrown
    out.
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
        words = last_words(name) or "see dmesg"
        raise AttachError(f"the kernel threw {name} out at once: {words}", hint=_hint(words))
    return link


class KernelLog(Closing):
    """What the kernel's log says of sched_ext from now on; nothing where the log cannot be read."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        """The lines that have come, without what each of them begins with."""
        found = []
        with contextlib.suppress(OSError):
            while record := os.read(self._fd, _KMSG_RECORD).decode(errors="replace"):
                line = record.partition(";")[2].partition("\n")[0]
                if line.startswith("sched_ext: "):
                    found.append(line.removeprefix("sched_ext: "))
        return found

    def close(self) -> None:
        """Stop listening."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def boot_isolation() -> str | None:
    """The kernel's parameter isolcpus=, where there is one."""
    match = re.search(r"\bisolcpus=(\S+)", Path("/proc/cmdline").read_text())
    return match[1] if match else None


def isolates_domains(isolcpus: str) -> bool:
    """Whether the kernel's parameter takes CPUs out of scheduling domains: by default, and with its flag domain."""
    flags = [word for word in isolcpus.split(",") if word.isalpha() or "_" in word]
    return not flags or "domain" in flags


def _known_refusal(number: int) -> str | None:
    """Why an attach may have failed with this errno, where the kernel's log cannot be read."""
    if number == errno.EINVAL and (isolcpus := boot_isolation()) and isolates_domains(isolcpus):
        return f"isolcpus={isolcpus} is domain isolation, which sched_ext is not compatible with"
    return None


def _hint(reason: str) -> str | None:
    return next((hint for words, hint in _HINTS.items() if words in reason), None)


def wait_disabled(timeout: float = 10.0) -> bool:
    """Wait up to ``timeout`` seconds for the running scheduler to be gone; whether it is."""
    deadline = time.monotonic() + timeout
    while status().state != "disabled":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def last_words(name: str) -> str | None:
    """What the kernel's log last said about the scheduler ``name``."""
    found = None
    with contextlib.suppress(OSError), open(_KMSG, "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while record := os.read(log.fileno(), _KMSG_RECORD):
                if match := re.search(rf';sched_ext: .*"?{re.escape(name)}"?:? (.*)', record.decode(errors="replace")):
                    found = match[1]
    return found


def _read(name: str) -> str:
    return (SYSFS / name).read_text().strip()

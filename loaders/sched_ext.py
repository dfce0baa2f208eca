# SPDX-License-Identifier: Apache-2.0
"""The kernel's sched_ext: what it says in sysfs, and attaching a scheduler so that failure shows.

Attaching can succeed although enabling failed (an error in ops.init, say): the kernel then has thrown the
scheduler out again before attach() looks. The reason is in the kernel's log.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import AttachError, KernelUnsupported
from .link import Module
from .struct_ops import StructOps

SYSFS = Path("/sys/kernel/sched_ext")


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
            cure="boot one with CONFIG_SCHED_CLASS_EXT=y (Debian: from trixie-backports), or use: ghostbpf vm",
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
    Raises AttachError with the kernel's reason where another scheduler runs or this one is thrown out.
    """
    before = status()
    if before.state != "disabled":
        raise AttachError(f"cannot attach {name}: the scheduler {before.ops or '?'} is running", cure="stop it first")
    ops = {f.removeprefix(prefix): f for f in module.object.functions if f.startswith(prefix)}
    link = StructOps.attach(
        module,
        "sched_ext_ops",
        ops,
        fields={"name": name, "hotplug_seq": before.hotplug_seq, **(fields or {})},
        sleepable={"init", *sleepable} & ops.keys(),
    )
    after = status()
    if after.state not in ("enabled", "enabling") or after.ops != name:
        link.close()
        raise AttachError(f"the kernel threw {name} out at once: {last_words(name) or 'see dmesg'}")
    return link


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
    with contextlib.suppress(OSError), open("/dev/kmsg", "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while record := os.read(log.fileno(), 8192):
                if match := re.search(rf';sched_ext: .*"?{re.escape(name)}"?:? (.*)', record.decode(errors="replace")):
                    found = match[1]
    return found


def _read(name: str) -> str:
    return (SYSFS / name).read_text().strip()

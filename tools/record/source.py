# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of a recorder: bpf/tracers/record.bpf.c, attached, and the state of enclaves."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

from ...loaders import BpfError, KernelUnsupported, Link, Target, VerifierError, kernel_types
from ...loaders.btf import Kind
from ...loaders.closing import Closing
from ...loaders.maps import possible_cpus
from ...loaders.ring import Ring
from ...schedulers.core import Core
from ...schedulers.enclave_view import EnclaveView
from ...schedulers.pins import CORE
from ..trace.classes import ext_class
from ..trace.filters import Filters
from ..trace.tracer import Tracer, open_core
from .events import FORMAT, Ejected, Enclave, Event
from .messages import Messages

#: How often to look at enclaves and at the core, in seconds.
_LOOK_SECONDS = 0.5

#: The kernel function that runs the commit of an agent.
_COMMIT = "bpf_prog_test_run_syscall"


def now() -> int:
    """The time of events, in ns."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


#: LINK_CONSTANTs of record.bpf.c: offsets of members of kernel structs.
_OFFSETS = {
    "prog_aux": ("bpf_prog", "aux"),
    "aux_name": ("bpf_prog_aux", "name"),
    "aux_used_maps": ("bpf_prog_aux", "used_maps"),
    "aux_used_map_cnt": ("bpf_prog_aux", "used_map_cnt"),
    "map_name": ("bpf_map", "name"),
    "array_aux": ("bpf_array", "aux"),
}


def _offsets() -> dict[str, int]:
    return {name: kernel_types.struct(struct).members[member].offset for name, (struct, member) in _OFFSETS.items()}


class Records(NamedTuple):
    """Records as the kernel wrote them, of which those count that are from ``since`` on and before ``until``."""

    content: bytes
    since: int
    until: int


class _Attached(Closing):
    """The tracer, attached; its records are from ``since`` on."""

    def __init__(self) -> None:
        with ExitStack() as undo:
            self.tracer = undo.enter_context(
                Tracer(
                    "record",
                    Filters(),
                    constants={**ext_class(), **_offsets(), "nr_cpus": possible_cpus()},
                    header="record.h",
                )
            )
            self.ring = Ring(self.tracer.map("events"), FORMAT)
            self.missing = self._trace_commits()
            self.since = now()
            self._open = undo.pop_all()

    def close(self) -> None:
        """Detach."""
        self._open.close()

    def _trace_commits(self) -> str:
        """Trace transactions; returns why that is not possible, if so."""
        if kernel_types.find("sched_ext_ops", Kind.STRUCT) is None:
            return ""  # there are no agents
        name = f"fexit_{_COMMIT}"
        try:
            program = self.tracer.keep(self.tracer.module.load(name, Target.function_exit(_COMMIT)))
            self.tracer.keep(Link.function_exit(program))
        except (KernelUnsupported, VerifierError, BpfError) as error:
            return f"transactions are not recorded: {str(error).splitlines()[0]}"
        self.tracer.programs[name] = program
        return ""


class Source(Closing):
    """All that there is to record, from now on."""

    def __init__(self) -> None:
        self._core, self._identity = open_core(), _identity()
        self._attached = _Attached()
        self._messages: Messages | None = Messages()
        #: Why a part of what there is cannot be recorded.
        self.missing = [self._attached.missing] if self._attached.missing else []
        self._dropped_before = 0
        self._enclaves: dict[int, Enclave] = {}
        self._ejected = False
        self._look_at = 0.0
        self._seen: list[Event] = []
        # Messages are read from here on.
        self._seen = self.look()

    def close(self) -> None:
        """Stop."""
        self._attached.close()

    def read(self) -> list[Records]:
        """The records since the last call."""
        if _identity() != self._identity:
            return self._follow_core()
        return self._read(1 << 64)

    def drops(self) -> int:
        """How many events were lost so far."""
        return self._dropped_before + self._attached.tracer.drops()

    def look(self) -> list[Event]:
        """What has happened since the last call: messages, and changes of enclaves and the core."""
        events, self._seen = self._seen, []
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            events += self._look_at_core()
        if self._messages is not None:
            events += self._messages.read()
        return events

    def _look_at_core(self) -> Iterable[Event]:
        at = now()
        views = list(_active(self._core)) if self._core is not None else []
        found = {view.id: Enclave(at, view.id, view.policy, view.cpus.bits) for view in views}
        for one in found.values():
            before = self._enclaves.get(one.id)
            if before is None or before[1:] != one[1:]:
                yield one
        for id in self._enclaves.keys() - found.keys():
            yield Enclave(at, id, "", 0)
        self._enclaves = found
        if self._messages is not None:
            try:
                self._messages.follow({view.id: view.path / "agent" / "rings" for view in views})
            except (OSError, BpfError) as error:
                self._messages = None
                self.missing.append(f"messages to agents are not recorded: {error}")
        if self._core is not None and not self._ejected and (ejected := self._core.exited()):
            self._ejected = True
            yield Ejected(at, str(ejected))

    def _read(self, until: int) -> list[Records]:
        content = self._attached.ring.read_bytes()
        return [Records(content, self._attached.since, until)] if content else []

    def _follow_core(self) -> list[Records]:
        """Another core has been attached, or the first: the tracer reads its maps from now on, without a gap."""
        identity = _identity()
        core = open_core() if identity else None
        if core is None:
            return self._read(1 << 64)
        self._identity, self._core, self._ejected = identity, core, False
        attached = _Attached()
        records = self._read(attached.since)
        self._dropped_before = self.drops()
        self._attached.close()
        self._attached = attached
        return records


def _identity() -> Any:
    """Differs between one core and the next; None without a core."""
    with contextlib.suppress(OSError):
        stat = os.stat(CORE / "link")
        return stat.st_ino, stat.st_ctime_ns
    return None


def _active(core: Core) -> Iterable[EnclaveView]:
    return (view for id in range(1, len(core.enclaves)) if (view := EnclaveView(core, id)).is_active)

# SPDX-License-Identifier: Apache-2.0
"""Filters of events: the command line's options as constants of a BPF program."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ...loaders import pid_namespace
from ...loaders.errors import GhostError
from ...schedulers import cgroups, pids
from ...schedulers.errors import NoSuchEnclave

_COMM_BYTES = 16


class By(IntEnum):
    """The breakdown of histograms (enum trace_by of bpf/tracers/trace.h)."""

    NOTHING = 0
    PROCESS = 1
    THREAD = 2
    CPU = 3
    OTHER = 4


@dataclass(frozen=True)
class Filters:
    """An event must match all filters that are set; ``cgroup`` includes the cgroups below it."""

    pid: int | None = None
    tid: int | None = None
    comm: str | None = None
    cgroup: Path | None = None
    enclave: int | None = None
    cpu: int | None = None
    command: bool = False

    @property
    def choose_tasks(self) -> bool:
        """Whether the filters exclude tasks."""
        return self.command or any(
            given is not None for given in (self.pid, self.tid, self.comm, self.cgroup, self.enclave)
        )

    def constants(self) -> dict[str, int]:
        """Values of the LINK_CONSTANTs in bpf/tracers/trace.bpf.h; raises GhostError if nothing can match."""
        comm = _comm(self.comm)
        return {
            "tgid": _in_bpf(_process(self.pid), "process"),
            "tid": _in_bpf(_existing(self.tid, "thread"), "thread"),
            "comm_low": int.from_bytes(comm[:8], "little"),
            "comm_high": int.from_bytes(comm[8:], "little"),
            "cgroup": _cgroup(self.cgroup) if self.cgroup else 0,
            "enclave": _enclave(self.enclave),
            "cpu_plus_1": 0 if self.cpu is None else _cpu(self.cpu) + 1,
            "marked": int(self.command),
        }

    def why_nothing(self) -> str:
        """The likely reason that no event matched."""
        for number, what in ((self.pid, "process"), (self.tid, "thread")):
            if number is not None and not Path(f"/proc/{number}").exists():
                return f"{what} {number} has ended"
            if number is not None:
                return f"{what} {number} was neither woken nor preempted meanwhile"
        if self.comm is not None:
            return f'no event of a task named "{self.comm}" (a name has at most 15 characters)'
        if self.cgroup is not None:
            return f"no event of a task in or below {self.cgroup}"
        if self.enclave is not None:
            return f"no event of a task in enclave {self.enclave}: ghostbpf enclave show {self.enclave} lists its tasks"
        if self.cpu is not None:
            return f"CPU {self.cpu} was idle, or ran one task without a switch"
        return "no event in this time"


def _existing(number: int | None, what: str) -> int:
    if number is None:
        return 0
    pid_namespace.need_own_proc()
    if not Path(f"/proc/{number}").exists():
        raise _none(what, number)
    return number


def _in_bpf(number: int, what: str) -> int:
    """The pid of ``number`` in the initial pid namespace, which BPF programs use; 0, no filter, stays 0."""
    if number and not (initial := pids.to_initial(number)):
        raise _none(what, number)
    return initial if number else 0


def _none(what: str, number: int) -> GhostError:
    return GhostError(f"there is no {what} {number}", hint="ps -eLf lists them")


def _process(number: int | None) -> int:
    pid = _existing(number, "process")
    if pid:
        # The name on the first line may have any byte except a line feed.
        status = dict(line.split(b":", 1) for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n") if line)
        if (process := int(status[b"Tgid"])) != pid:
            raise GhostError(f"{pid} is a thread of process {process}", hint=f"-t {pid}, or -p {process}")
    return pid


def _comm(name: str | None) -> bytes:
    if name == "":
        raise GhostError("a task's name has at least one character", hint="ps -eLo comm lists names")
    comm = os.fsencode(name or "")
    if len(comm) >= _COMM_BYTES:
        raise GhostError(
            f'no task is called "{name}": the kernel keeps 15 characters of a name',
            hint=f'-c "{comm[: _COMM_BYTES - 1].decode(errors="replace")}"',
        )
    return comm.ljust(_COMM_BYTES, b"\0")


def _cgroup(path: Path) -> int:
    """The id of a cgroup: its directory's inode number."""
    return Path(cgroups.find(str(path))).stat().st_ino


def _enclave(number: int | None) -> int:
    if number is None:
        return 0
    from ...schedulers.enclave import Enclaves

    enclaves = Enclaves.open()
    if enclaves is None:
        raise NoSuchEnclave(number)
    return enclaves.get(number).id


def _cpu(number: int) -> int:
    if not Path(f"/sys/devices/system/cpu/cpu{number}").exists():
        raise GhostError(f"there is no CPU {number}", hint="lscpu -e lists them")
    return number

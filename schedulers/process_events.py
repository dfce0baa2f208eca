# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of processes as it happens: forks, programs, names, users, ends (its process connector).

The numbers are pyroute2's. Its socket cannot be used: where events were lost it raises struct.error, and with it
throws away what had come; so it does, with UnicodeDecodeError, for a name that is not UTF-8, and any user may give
a process such a name.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
from dataclasses import dataclass

from pyroute2.netlink import NETLINK_CONNECTOR, NLMSG_DONE
from pyroute2.netlink.connector import cn_proc

from ..loaders.errors import KernelUnsupported, PermissionMissing
from ..loaders.netlink import BUFFER_BYTES, NetlinkEvents

#: So many are read at once, lest a storm of them keep us from doing anything about them.
_BATCH = 4096

_KINDS = {
    cn_proc.PROC_EVENT_FORK: "fork",
    cn_proc.PROC_EVENT_EXEC: "exec",
    cn_proc.PROC_EVENT_UID: "uid",
    cn_proc.PROC_EVENT_COMM: "comm",
    cn_proc.PROC_EVENT_EXIT: "exit",
}
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_CN_MSG = struct.Struct("=IIIIHH")
_EVENT = struct.Struct("=IIQ")
_TASKS = struct.Struct("=4i")
_MODE = struct.Struct("=I")
_EVENT_AT = _HEADER.size + _CN_MSG.size


@dataclass(frozen=True)
class ProcessEvent:
    """Thread ``tid`` of process ``pid`` did ``kind``, by CLOCK_MONOTONIC at ``at_ns``.

    Of a fork it is the child, and ``parent`` the thread it is from; of a new thread the kernel tells the process only.
    """

    kind: str
    pid: int
    tid: int
    at_ns: int
    parent: int = 0


class ProcessEvents(NetlinkEvents):
    """The events from now on. Raises KernelUnsupported and PermissionMissing."""

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._next: dict[int, int] = {}
        try:
            super().__init__(NETLINK_CONNECTOR, buffer_bytes)
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            raise _unsupported("it has no CONFIG_CONNECTOR") from None

    def read(self) -> tuple[list[ProcessEvent], bool]:
        """The events that have come, oldest first (perhaps not yet all), and whether others got lost."""
        events = []
        for _ in range(_BATCH):
            if (message := self._receive()) is None:
                break
            if (event := self._parse(message)) is not None:
                events.append(event)
        lost, self.lost = self.lost, False
        return events, lost

    def close(self) -> None:
        """No more of them."""
        if self._socket.fileno() >= 0:
            # Older kernels count listeners, and would go on for one that is gone.
            self._ask(cn_proc.PROC_CN_MCAST_IGNORE)
            super().close()

    def _subscribe(self) -> None:
        try:
            self._socket.bind((0, cn_proc.CN_IDX_PROC))
            asked = self._ask(cn_proc.PROC_CN_MCAST_LISTEN)
        except PermissionError:
            raise _not_permitted() from None
        # The kernel answers before the question is through, so the answer is there; and it answers only in the
        # initial namespaces of users and pids. Where so much came meanwhile that it got lost, there are events.
        while (message := self._receive()) is not None:
            _, _, _, answered, _, _ = _CN_MSG.unpack_from(message, _HEADER.size)
            number, _, _ = _EVENT.unpack_from(message, _EVENT_AT)
            if number == cn_proc.PROC_EVENT_NONE and answered == asked + 1:
                if _MODE.unpack_from(message, _EVENT_AT + _EVENT.size)[0]:
                    raise _not_permitted()
                return
        if not self.lost:
            raise _unsupported("it has no CONFIG_PROC_EVENTS, or this is a container")

    def _ask(self, mode: int) -> int:
        asked = secrets.randbits(31)
        body = _CN_MSG.pack(cn_proc.CN_IDX_PROC, cn_proc.CN_VAL_PROC, 0, asked, _MODE.size, 0) + _MODE.pack(mode)
        header = _HEADER.pack(_HEADER.size + len(body), NLMSG_DONE, 0, 0, os.getpid())
        self._socket.send(header + body)
        return asked

    def _parse(self, message: bytes) -> ProcessEvent | None:
        _, _, sequence, _, _, _ = _CN_MSG.unpack_from(message, _HEADER.size)
        number, cpu, at_ns = _EVENT.unpack_from(message, _EVENT_AT)
        # Each CPU counts its events: one that the kernel had no memory for leaves a gap, and nothing else.
        self.lost |= self._next.get(cpu, sequence) != sequence
        self._next[cpu] = (sequence + 1) & 0xFFFFFFFF
        if (kind := _KINDS.get(number)) is None:
            return None
        tid, pid, child_tid, child_pid = _TASKS.unpack_from(message, _EVENT_AT + _EVENT.size)
        if kind == "fork":
            # The parent that the kernel names is the child's: of a thread, that of its process.
            parent = tid if child_tid == child_pid else child_pid
            return ProcessEvent(kind, child_pid, child_tid, at_ns, parent)
        return ProcessEvent(kind, pid, tid, at_ns)


def _unsupported(why: str) -> KernelUnsupported:
    return KernelUnsupported("process events", f"this kernel tells no process events: {why}")


def _not_permitted() -> PermissionMissing:
    return PermissionMissing("CAP_NET_ADMIN", "listen to process events")

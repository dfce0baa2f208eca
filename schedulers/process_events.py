# SPDX-License-Identifier: Apache-2.0
"""The kernel's process events (process connector): fork, exec, change of name or user, exit.

The constants are pyroute2's. Its socket cannot be used: after lost events it raises struct.error, and for a name that
is not UTF-8, which any user can set, UnicodeDecodeError; both lose the events received so far.
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

#: The most events that one read() returns, so that a storm of events does not delay their handling.
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
    """Event ``kind`` of thread ``tid`` of process ``pid``, at ``at_ns`` by CLOCK_MONOTONIC.

    For a fork, ``tid`` is the child and ``parent`` the forking thread, or, for a new thread, its process.
    """

    kind: str
    pid: int
    tid: int
    at_ns: int
    parent: int = 0


class ProcessEvents(NetlinkEvents):
    """All events from now on. Raises KernelUnsupported and PermissionMissing."""

    def __init__(self, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._next: dict[int, int] = {}
        try:
            super().__init__(NETLINK_CONNECTOR, buffer_bytes)
        except OSError as error:
            if error.errno != errno.EPROTONOSUPPORT:
                raise
            raise _unsupported("it has no CONFIG_CONNECTOR") from None

    def read(self) -> tuple[list[ProcessEvent], bool]:
        """Received events, oldest first (at most a batch), and whether others were lost."""
        events = []
        for _ in range(_BATCH):
            if (message := self._receive()) is None:
                break
            if (event := self._parse(message)) is not None:
                events.append(event)
        lost, self.lost = self.lost, False
        return events, lost

    def close(self) -> None:
        """Unsubscribe."""
        if self._socket.fileno() >= 0:
            # Older kernels count listeners, and would keep sending for one that is gone.
            self._ask(cn_proc.PROC_CN_MCAST_IGNORE)
            super().close()

    def _subscribe(self) -> None:
        try:
            self._socket.bind((0, cn_proc.CN_IDX_PROC))
            request = self._ask(cn_proc.PROC_CN_MCAST_LISTEN)
        except PermissionError:
            raise _not_permitted() from None
        # The kernel answers before send() returns, and only in the initial namespaces of users and pids. If the answer
        # itself was lost among events, there are events.
        while (message := self._receive()) is not None:
            _, _, _, answered, _, _ = _CN_MSG.unpack_from(message, _HEADER.size)
            number, _, _ = _EVENT.unpack_from(message, _EVENT_AT)
            if number == cn_proc.PROC_EVENT_NONE and answered == request + 1:
                if _MODE.unpack_from(message, _EVENT_AT + _EVENT.size)[0]:
                    raise _not_permitted()
                return
        if not self.lost:
            raise _unsupported("it has no CONFIG_PROC_EVENTS, or this is a container")

    def _ask(self, mode: int) -> int:
        request = secrets.randbits(31)
        body = _CN_MSG.pack(cn_proc.CN_IDX_PROC, cn_proc.CN_VAL_PROC, 0, request, _MODE.size, 0) + _MODE.pack(mode)
        header = _HEADER.pack(_HEADER.size + len(body), NLMSG_DONE, 0, 0, os.getpid())
        self._socket.send(header + body)
        return request

    def _parse(self, message: bytes) -> ProcessEvent | None:
        _, _, sequence, _, _, _ = _CN_MSG.unpack_from(message, _HEADER.size)
        number, cpu, at_ns = _EVENT.unpack_from(message, _EVENT_AT)
        # Each CPU numbers its events: an event for which the kernel had no memory leaves only a gap.
        self.lost |= self._next.get(cpu, sequence) != sequence
        self._next[cpu] = (sequence + 1) & 0xFFFFFFFF
        if (kind := _KINDS.get(number)) is None:
            return None
        tid, pid, child_tid, child_pid = _TASKS.unpack_from(message, _EVENT_AT + _EVENT.size)
        if kind == "fork":
            # The kernel names the child's parent, which for a new thread is the parent of its process.
            parent = tid if child_tid == child_pid else child_pid
            return ProcessEvent(kind, child_pid, child_tid, at_ns, parent)
        return ProcessEvent(kind, pid, tid, at_ns)


def _unsupported(why: str) -> KernelUnsupported:
    return KernelUnsupported("process events", f"this kernel reports no process events: {why}")


def _not_permitted() -> PermissionMissing:
    return PermissionMissing("CAP_NET_ADMIN", "listen to process events")

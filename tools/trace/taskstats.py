# SPDX-License-Identifier: Apache-2.0
"""The kernel's delay accounting of a task, over generic netlink, with the struct's layout from the kernel's BTF.

(pyroute2's TaskStats has the layouts of two versions of the struct; there are more.)
"""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink import NETLINK_GENERIC, NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ...loaders import kernel_types
from ...loaders.errors import GhostError, KernelUnsupported, PermissionMissing
from ...loaders.netlink import NetlinkEvents

_TASKSTATS_CMD_GET = 1
_ATTRIBUTES = (
    ("TASKSTATS_TYPE_UNSPEC", "none"),
    ("TASKSTATS_TYPE_PID", "uint32"),
    ("TASKSTATS_TYPE_TGID", "uint32"),
    ("TASKSTATS_TYPE_STATS", "cdata"),
)
_SYSCTL = Path("/proc/sys/kernel/task_delayacct")
_POSSIBLE = Path("/sys/devices/system/cpu/possible")
_TYPE, _ERROR = slice(4, 6), slice(16, 20)  # in struct nlmsghdr, and in struct nlmsgerr after it


class _Message(genlmsg):  # type: ignore[misc]
    nla_map = (*_ATTRIBUTES, ("TASKSTATS_TYPE_AGGR_PID", "aggregate"))

    class aggregate(nla):  # type: ignore[misc]
        nla_map = _ATTRIBUTES


class _Request(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("TASKSTATS_CMD_ATTR_UNSPEC", "none"),
        ("TASKSTATS_CMD_ATTR_PID", "uint32"),
        ("TASKSTATS_CMD_ATTR_TGID", "uint32"),
        ("TASKSTATS_CMD_ATTR_REGISTER_CPUMASK", "asciiz"),
    )


class TaskStats:
    """Queries struct taskstats, one thread at a time."""

    def __init__(self) -> None:
        self._socket: Any = GenericNetlinkSocket()
        try:
            self._socket.bind("TASKSTATS", _Message)
        except NetlinkError as error:
            self._socket.close()
            if error.code == errno.EPERM:
                raise PermissionMissing("CAP_NET_ADMIN", "read delay accounting") from None
            raise KernelUnsupported(
                "taskstats", "this kernel has no taskstats", hint="boot a kernel with CONFIG_TASKSTATS=y"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def get(self, tid: int) -> dict[str, int] | None:
        """The numbers in struct taskstats of thread ``tid`` by member name; None if it has ended."""
        request = _request("TASKSTATS_CMD_ATTR_PID", tid)
        try:
            answers = self._socket.nlm_request(request, msg_type=self._socket.prid, msg_flags=NLM_F_REQUEST)
            aggregate = next(iter(answers)).get_attr("TASKSTATS_TYPE_AGGR_PID")
        except NetlinkError as error:
            if error.code == errno.ESRCH:
                return None
            if error.code == errno.EPERM:
                raise PermissionMissing("CAP_NET_ADMIN", "read delay accounting") from None
            raise GhostError(f"no delay accounting for thread {tid}: {error}") from None
        return _figures(aggregate)

    def exits(self) -> Exits:
        """Subscribe to exits of threads; raises KernelUnsupported in a container."""
        return Exits(self._socket.prid)


class Exits(NetlinkEvents):
    """The last figures of each thread of the machine that ends; ``family`` is taskstats' netlink family."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._early: list[bytes] = []
        super().__init__(NETLINK_GENERIC)

    def read(self) -> dict[int, dict[str, int]]:
        """The numbers in struct taskstats of each thread that has ended since the last call, by tid and member name."""
        messages, self._early = self._early, []
        messages.extend(iter(self._receive, None))
        return dict(map(_ended, messages))

    def _subscribe(self) -> None:
        request = _request("TASKSTATS_CMD_ATTR_REGISTER_CPUMASK", _POSSIBLE.read_text(encoding="utf-8").strip())
        request["header"]["type"], request["header"]["flags"] = self._family, NLM_F_REQUEST | NLM_F_ACK
        request.encode()
        self._socket.send(request.data)
        # Both registration and acknowledgement happen within send(); a message before the latter is an exit.
        while (answer := self._receive()) is not None:
            if int.from_bytes(answer[_TYPE], "little") == self._family:
                self._early.append(answer)
            elif error := int.from_bytes(answer[_ERROR], "little", signed=True):
                raise KernelUnsupported("taskstats", f"the kernel sends no exit events here: {os.strerror(-error)}")


def _request(attribute: str, value: int | str) -> Any:
    request = _Request()
    request["cmd"], request["version"] = _TASKSTATS_CMD_GET, 1
    request["attrs"] = [(attribute, value)]
    return request


def _ended(data: bytes) -> tuple[int, dict[str, int]]:
    message = _Message(data)
    message.decode()
    aggregate = message.get_attr("TASKSTATS_TYPE_AGGR_PID")
    return aggregate.get_attr("TASKSTATS_TYPE_PID"), _figures(aggregate)


def _figures(aggregate: Any) -> dict[str, int]:
    data = aggregate.get_attr("TASKSTATS_TYPE_STATS")
    return {
        name: int.from_bytes(data[offset : offset + size], "little")
        for name, offset, size in _layout()
        if offset + size <= len(data)
    }


def is_complete() -> bool:
    """Whether the kernel accounts all delays, not only waits for a CPU (sysctl kernel.task_delayacct)."""
    return _SYSCTL.exists() and _SYSCTL.read_text(encoding="utf-8").strip() == "1"


@functools.cache
def _layout() -> tuple[tuple[str, int, int], ...]:
    members = kernel_types.struct("taskstats").members.values()
    return tuple((m.name, m.offset, m.size) for m in members if m.size in (1, 2, 4, 8))

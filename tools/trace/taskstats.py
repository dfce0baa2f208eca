# SPDX-License-Identifier: Apache-2.0
"""The kernel's delay accounting of a task, over generic netlink; laid out as the running kernel's BTF says.

(pyroute2's own TaskStats knows the layout of two versions of the struct; kernels have had others.)
"""

from __future__ import annotations

import errno
import functools
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink import NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from ...loaders.btf import Btf
from ...loaders.errors import GhostError, KernelUnsupported, PermissionMissing

_GET = 1
_ATTRIBUTES = (
    ("TASKSTATS_TYPE_UNSPEC", "none"),
    ("TASKSTATS_TYPE_PID", "uint32"),
    ("TASKSTATS_TYPE_TGID", "uint32"),
    ("TASKSTATS_TYPE_STATS", "cdata"),
)
_SYSCTL = Path("/proc/sys/kernel/task_delayacct")


class _Message(genlmsg):  # type: ignore[misc]
    nla_map = (*_ATTRIBUTES, ("TASKSTATS_TYPE_AGGR_PID", "aggregate"))

    class aggregate(nla):  # type: ignore[misc]
        nla_map = _ATTRIBUTES


class TaskStats:
    """Asks for struct taskstats of one thread at a time."""

    def __init__(self) -> None:
        self._socket: Any = GenericNetlinkSocket()
        try:
            self._socket.bind("TASKSTATS", _Message)
        except NetlinkError as error:
            self._socket.close()
            if error.code == errno.EPERM:
                raise PermissionMissing("CAP_NET_ADMIN", "ask for delay accounting") from None
            raise KernelUnsupported("taskstats", "this kernel has no CONFIG_TASKSTATS") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def get(self, tid: int) -> dict[str, int] | None:
        """Every number in thread ``tid``'s struct taskstats, by member name; None if it has ended."""
        request = _Message()
        request["cmd"], request["version"] = _GET, 1
        request["attrs"] = [("TASKSTATS_TYPE_PID", tid)]
        try:
            answers = self._socket.nlm_request(request, msg_type=self._socket.prid, msg_flags=NLM_F_REQUEST)
            aggregate = next(iter(answers)).get_attr("TASKSTATS_TYPE_AGGR_PID")
        except NetlinkError as error:
            if error.code == errno.ESRCH:
                return None
            raise GhostError(f"no delay accounting for thread {tid}: {error}") from None
        data = aggregate.get_attr("TASKSTATS_TYPE_STATS")
        return {
            name: int.from_bytes(data[offset : offset + size], "little")
            for name, offset, size in _layout()
            if offset + size <= len(data)
        }


def is_complete() -> bool:
    """Whether the kernel accounts for more than waits for a CPU (sysctl kernel.task_delayacct)."""
    return _SYSCTL.exists() and _SYSCTL.read_text().strip() == "1"


@functools.cache
def _layout() -> tuple[tuple[str, int, int], ...]:
    btf = Btf.kernel()
    members = btf.members(btf.struct_id("taskstats"))
    return tuple((m.name, m.offset, m.size) for m in members.values() if m.size in (1, 2, 4, 8))

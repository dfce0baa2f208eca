# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel tells over netlink, faster at times than they can be read.

(pyroute2's sockets throw away what has come where something got lost; its numbers and layouts serve.)
"""

from __future__ import annotations

import errno
import socket

from .closing import Closing

#: Room for events that nobody has read yet: some ten thousand.
BUFFER_BYTES = 8 << 20

_SO_RCVBUFFORCE = 33
_MAX_MESSAGE = 1 << 14


class NetlinkEvents(Closing):
    """A socket of netlink protocol ``protocol`` that never blocks; what to ask for is its subclass's business."""

    def __init__(self, protocol: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        #: Whether messages came faster than they were read, and are not known.
        self.lost = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            self._socket.setblocking(False)
            self._make_room(buffer_bytes)
            self._subscribe()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """To poll: readable when events have come, or got lost."""
        return self._socket.fileno()

    def close(self) -> None:
        """No more of them."""
        self._socket.close()

    def _subscribe(self) -> None:
        raise NotImplementedError

    def _receive(self) -> bytes | None:
        """The next message, as it came; None if there is none yet."""
        while True:
            try:
                return self._socket.recv(_MAX_MESSAGE)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True

    def _make_room(self, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

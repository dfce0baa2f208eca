# SPDX-License-Identifier: Apache-2.0
"""Events that the kernel multicasts over netlink, at times faster than a reader receives them.

(pyroute2's sockets discard received messages after a loss, so this is a plain socket; subclasses use pyroute2's message
layouts.)
"""

from __future__ import annotations

import errno
import socket

from .closing import Closing

#: The receive buffer, for about ten thousand events.
BUFFER_BYTES = 8 << 20

_SO_RCVBUFFORCE = 33  # not in the socket module
_MAX_MESSAGE = 1 << 14


class NetlinkEvents(Closing):
    """A non-blocking socket of netlink protocol ``protocol``; a subclass subscribes to its events."""

    def __init__(self, protocol: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        #: Whether the kernel dropped messages because the buffer was full.
        self.lost = False
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            self._socket.setblocking(False)
            self._set_buffer(buffer_bytes)
            self._subscribe()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """A descriptor for poll: readable when there are events, or when events were lost."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _subscribe(self) -> None:
        raise NotImplementedError

    def _receive(self) -> bytes | None:
        """The next message, or None."""
        while True:
            try:
                return self._socket.recv(_MAX_MESSAGE)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True

    def _set_buffer(self, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

# SPDX-License-Identifier: Apache-2.0
"""Messages to systemd: sd_notify(3), for units with Type=notify.

The protocol is one datagram of text to $NOTIFY_SOCKET, which systemd promises to keep, so the socket module suffices.
Of the libraries, sdnotify falls silent for good when the socket is missing once, and systemd-python needs a compiler
and libsystemd's headers. Each message here opens the socket anew: one that is lost has no effect on the next.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """Sends to the service manager that started this process; without one, messages go nowhere."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._status = ""

    @property
    def watchdog_s(self) -> float | None:
        """Within how many seconds the manager expects each WATCHDOG=1; None if it does not watch this process."""
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        return int(microseconds) / 1e6

    def send(self, *lines: str) -> bool:
        """Send one message of ``lines`` such as "READY=1"; whether the manager's socket took it."""
        if not self._address:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.connect(self._address)
            # A manager that is busy must not stop this process: the next message says the same.
            out.send("\n".join(lines).encode(), socket.MSG_DONTWAIT)
            return True
        return False

    def status(self, text: str) -> None:
        """Say in one line what this process does, if that has changed."""
        line = f"STATUS={' '.join(text.split())}"
        if line != self._status and self.send(line):
            self._status = line

    def reloading(self) -> None:
        """Say that a reload has begun; READY=1 ends it."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

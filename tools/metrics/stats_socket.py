# SPDX-License-Identifier: Apache-2.0
"""A server of lines on a UNIX socket, in one thread: each line is answered by a line.

What a client can cost is bounded: it is not read from while it has an answer to read, a line has a longest length, and
a client too many disconnects the client that was silent for the longest time. Each turn answers at most one line of
each client, so that none waits for another's queue of requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...loaders.closing import Closing
from ...loaders.errors import GhostError

MOST_CLIENTS = 32
LONGEST_LINE = 1 << 16


class StatsSocket(Closing):
    """Listens at ``path``, which close() removes; ``answer`` takes a line to the response. Raises GhostError."""

    def __init__(self, path: Path, answer: Callable[[bytes], bytes]) -> None:
        self._path, self._answer = path, answer
        self._listener, self._inode = _listen(path)
        self._clients: set[_Client] = set()
        self._selector = selectors.DefaultSelector()
        self._end, self._ended = socket.socketpair()
        for source in (self._listener, self._ended):
            self._selector.register(source, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Serve from here on, in a thread."""
        self._thread.start()

    @property
    def is_replaced(self) -> bool:
        """Whether another process has put a socket of its own, or nothing, in this one's place."""
        with contextlib.suppress(OSError):
            return self._path.lstat().st_ino != self._inode
        return True

    def close(self) -> None:
        """Disconnect all clients, and remove the socket unless it has been replaced."""
        self._end.close()
        if self._thread.is_alive():
            self._thread.join()
        for client in [*self._clients]:
            self._drop(client)
        if not self.is_replaced:
            self._path.unlink()
        for opened in (self._selector, self._listener, self._ended):
            opened.close()

    def _serve(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._ended:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif (client := key.data) in self._clients:  # not dropped in this turn
                    self._serve_client(client, events)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the client has gone
        if len(self._clients) == MOST_CLIENTS:
            self._drop(min(self._clients, key=lambda client: client.active))
        client = _Client(connection)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _serve_client(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                client.receive()
            if not client.unsent and (line := client.next_line()) is not None:
                client.unsent = memoryview(self._answer(line))
            client.send()
        except OSError:
            self._drop(client)
            return
        if client.has_work:
            self._selector.modify(client.connection, selectors.EVENT_WRITE, client)
        elif client.is_done:
            self._drop(client)
        else:
            self._selector.modify(client.connection, selectors.EVENT_READ, client)

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.connection)
        client.connection.close()


class _Client:
    """``is_done``: it sends nothing more, or a line that is too long. ``active`` is when it last read or wrote."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unsent = memoryview(b"")
        self.is_done = False
        self.active = time.monotonic()
        self._received = bytearray()
        connection.setblocking(False)

    @property
    def has_work(self) -> bool:
        """Whether there is more to send, or to answer."""
        return bool(self.unsent) or b"\n" in self._received or (self.is_done and bool(self._received))

    def receive(self) -> None:
        """Read what has come; raises OSError."""
        data = self.connection.recv(LONGEST_LINE)
        self.active = time.monotonic()
        self._received += data
        self.is_done = not data or (len(self._received) > LONGEST_LINE and b"\n" not in self._received)

    def next_line(self) -> bytes | None:
        """Take the next line, which at the end of the input has no line break; None while there is none."""
        end = self._received.find(b"\n") + 1
        if not end and not self.is_done:
            return None
        line = bytes(self._received[: end or None])
        del self._received[: end or None]
        return line or None

    def send(self) -> None:
        """Send what the client takes now; raises OSError."""
        if self.unsent:
            with contextlib.suppress(BlockingIOError):
                sent = self.connection.send(self.unsent)
                self.unsent = self.unsent[sent:]
                self.active = time.monotonic()


def _listen(path: Path) -> tuple[socket.socket, int]:
    """A listening socket at ``path``, in place of one whose process has ended, and its inode number."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            _remove_stale(path)
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            return listener, path.lstat().st_ino
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise GhostError(f"cannot listen at {path}: {reason}", hint="another path: --scx-stats PATH") from None
    except GhostError:
        listener.close()
        raise


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise GhostError(f"{path} exists, and is not a socket", hint="another path: --scx-stats PATH")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # BlockingIOError: alive, and busy
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise GhostError(
        f"cannot listen at {path}: another process does",
        hint=f"ss -lxp src {path} names it; stop it, or another path: --scx-stats PATH",
    )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time look at the sockets of a directory, and make one.

    The lock is on a file that no other user can open: any user could hold that of a directory.
    """
    fd = os.open(directory / ".ghostbpf.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

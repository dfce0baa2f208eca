# SPDX-License-Identifier: Apache-2.0
"""Passes an open descriptor to another process.

    with Offer(fd) as offer:              # the sender
        send_to_receiver(str(offer))
        offer.serve()

    fd = take(text)                       # the receiver
    fd = duplicate(pid, 7)                # or without a sender, with the right to trace process ``pid``

An application can receive one object that it has no permission to open (an enclave's pins are open to their owner
only). An offer listens on an abstract socket, to which any process can connect. The first client that sends the nonce
receives the descriptor; with a ``taker``, only that process can. A client that sends a wrong nonce, sends nothing or
disconnects does not consume the offer. ghOSt's fd server has the same purpose.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import selectors
import signal
import socket
import struct
import time

from . import libc
from .closing import Closing
from .errors import GhostError, PermissionMissing

#: How long an offer lasts, and how long a receiver waits for an answer, in seconds.
TIMEOUT = 1.0

_GOOD, _BAD, _NOT_YOURS = b"GOOD NONCE", b"BAD NONCE", b"NOT YOURS"
_CALLERS = 16
_MESSAGE_BYTES = 256
_FD = struct.Struct("i")
_TIMEVAL = struct.Struct("ll")
_UCRED = struct.Struct("iII")


class DescriptorError(GhostError):
    """A descriptor was not passed."""


class Offer(Closing):
    """Offers descriptor ``fd``, which the caller still owns, to the first client of ``address`` with ``nonce``.

    With ``taker``, a process id, only to that process; raises DescriptorError if it does not exist.
    """

    def __init__(self, fd: int, *, taker: int | None = None) -> None:
        self.fd, self.nonce, self.taker = fd, secrets.token_hex(16), taker
        self._process = None if taker is None else _open_process(taker)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind("")  # the kernel chooses a name
        self._socket.listen(_CALLERS)
        self.address = "@" + self._socket.getsockname()[1:].decode()

    def __str__(self) -> str:
        """Address and nonce, the argument of ``take()``."""
        return f"{self.address}:{self.nonce}"

    def serve(self, timeout: float = TIMEOUT) -> int:
        """Pass the descriptor on; returns the receiver's pid. Raises DescriptorError at the end of ``timeout``."""
        deadline = time.monotonic() + timeout
        callers: list[socket.socket] = []
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
            selector.register(self._socket, selectors.EVENT_READ)
            while (rest := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(rest):
                    if key.fileobj is self._socket:
                        callers.append(opened.enter_context(self._socket.accept()[0]))
                        selector.register(callers[-1], selectors.EVENT_READ)
                        done = callers[0] if len(callers) > _CALLERS else None
                    else:
                        done = next(caller for caller in callers if caller is key.fileobj)
                        if (pid := self._answer(done)) is not None:
                            return pid
                    if done is not None:
                        callers.remove(done)
                        selector.unregister(done)
                        done.close()
        raise DescriptorError(
            f"no process took the descriptor within {timeout:g} s", hint="a longer timeout, or a receiver that is ready"
        )

    def _answer(self, caller: socket.socket) -> int | None:
        """Answer one client: its pid if it received the descriptor, else None."""
        with contextlib.suppress(OSError):
            pid = int(_UCRED.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[0])
            if not hmac.compare_digest(caller.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT), self.nonce.encode()):
                caller.send(_BAD)
            elif not self._is_for(pid):
                caller.send(_NOT_YOURS)
            else:
                socket.send_fds(caller, [_GOOD], [self.fd])
                return pid
        return None

    def _is_for(self, pid: int) -> bool:
        if self._process is None:
            return True
        try:
            signal.pidfd_send_signal(self._process, 0)
        except ProcessLookupError:  # it has ended, and its pid may be in use again
            return False
        except PermissionError:  # it is alive, and another user's
            pass
        return pid == self.taker

    def close(self) -> None:
        """Withdraw the offer."""
        self._socket.close()
        if self._process is not None:
            os.close(self._process)
            self._process = None


def take(offer: str, timeout: float = TIMEOUT) -> int:
    """The descriptor of an offer, given as its ``str()``; raises DescriptorError."""
    address, colon, nonce = offer.partition(":")
    if not colon:
        raise DescriptorError(f'"{offer}" is not an offer', hint="pass what ghostbpf fd send printed")
    return receive(address, nonce, timeout)


def receive(address: str, nonce: str, timeout: float = TIMEOUT) -> int:
    """The descriptor that is offered at ``address`` for ``nonce``; raises DescriptorError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        # Python's own time-out makes connect() fail at once if the listener's backlog is full.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            server.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6) or 1))
        try:
            server.connect("\0" + address.removeprefix("@"))
            server.send(nonce.encode())
            answer, passed, _, _ = server.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise DescriptorError(f"{address} did not answer within {timeout:g} s", hint="try again") from None
        except OSError as error:
            raise DescriptorError(
                f"nothing is offered at {address} ({error.strerror or error})",
                hint="an offer serves one process and expires: ask for a new offer",
            ) from None
    fds = [_FD.unpack_from(data)[0] for _, kind, data in passed if kind == socket.SCM_RIGHTS]
    if answer == _NOT_YOURS:
        raise DescriptorError(f"the offer at {address} is for another process", hint="ask for an offer to this process")
    if answer != _GOOD or not fds:
        raise DescriptorError(f"the nonce is wrong for {address}", hint="use the nonce printed with this address")
    return int(fds[0])


def duplicate(pid: int, fd: int) -> int:
    """A duplicate of descriptor ``fd`` of process ``pid``; raises DescriptorError and PermissionMissing."""
    process = _open_process(pid)
    try:
        return libc.pidfd_getfd(process, fd)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise PermissionMissing("CAP_SYS_PTRACE", f"take a descriptor of process {pid}") from None
        reason = "has not opened it" if error.errno == errno.EBADF else os.strerror(error.errno or 0)
        raise DescriptorError(
            f"cannot take descriptor {fd} of process {pid}: {reason}", hint=f"ls -l /proc/{pid}/fd"
        ) from None
    finally:
        os.close(process)


def _open_process(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError):
        raise DescriptorError(f"there is no process {pid}") from None

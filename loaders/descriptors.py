# SPDX-License-Identifier: Apache-2.0
"""Handing an open descriptor to another process.

    with Offer(fd) as offer:              # here
        tell_the_other(offer.address, offer.nonce)
        offer.serve()

    fd = receive(address, nonce)          # there
    fd = duplicate(pid, 7)                # or there alone, for who may trace process ``pid``

What an application may not open (an enclave's pins are its owner's alone) it can be given, and no more than that. An
offer is on an abstract socket, which anyone can call; who shows its nonce gets the descriptor, once. The purpose is
that of ghOSt's fd server. A caller that is wrong, silent, or gone does not use the offer up.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import selectors
import socket
import struct
import time

from ._libbpf import cloexec, ffi, libc
from .closing import Closing
from .errors import GhostError, PermissionMissing

#: How long an offer stands, and how long a receiver waits for an answer: seconds.
TIMEOUT = 1.0

_GOOD, _BAD = b"GOOD NONCE", b"BAD NONCE"
_CALLERS = 16
_MESSAGE_BYTES = 256
_FD = struct.Struct("i")
_TIMEVAL = struct.Struct("ll")
_UCRED = struct.Struct("iII")
_PIDFD_GETFD = 438  # on every architecture


class DescriptorError(GhostError):
    """A descriptor was not handed over."""


class Offer(Closing):
    """Descriptor ``fd``, for the first who calls ``address`` with ``nonce``. It stays the caller's, to be closed."""

    def __init__(self, fd: int) -> None:
        self.fd, self.nonce = fd, secrets.token_hex(16)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind("")  # the kernel chooses a name
        self._socket.listen(_CALLERS)
        self.address = "@" + self._socket.getsockname()[1:].decode()

    def serve(self, timeout: float = TIMEOUT) -> int:
        """Hand it over; the pid of who has it now. Raises DescriptorError where nobody took it in time."""
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
            f"nobody took the descriptor within {timeout:g} s", cure="let it wait longer, or have the other be quicker"
        )

    def _answer(self, caller: socket.socket) -> int | None:
        """Whom the descriptor went to; None where it is still to be had."""
        with contextlib.suppress(OSError):
            if hmac.compare_digest(caller.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT), self.nonce.encode()):
                socket.send_fds(caller, [_GOOD], [self.fd])
                peer = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                return int(_UCRED.unpack(peer)[0])
            caller.send(_BAD)
        return None

    def close(self) -> None:
        """Withdraw it."""
        self._socket.close()


def receive(address: str, nonce: str, timeout: float = TIMEOUT) -> int:
    """The descriptor that is offered at ``address`` to who knows ``nonce``; raises DescriptorError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        # Python's own time-out would not wait where many others are in line.
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            server.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6) or 1))
        try:
            server.connect("\0" + address.removeprefix("@"))
            server.send(nonce.encode())
            answer, passed, _, _ = server.recvmsg(_MESSAGE_BYTES, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            raise DescriptorError(f"{address} did not answer within {timeout:g} s", cure="try again") from None
        except OSError as error:
            raise DescriptorError(
                f"nothing is offered at {address} ({error.strerror or error})",
                cure="an offer is for one taker, and for a time: have it offered anew",
            ) from None
    fds = [_FD.unpack_from(data)[0] for _, kind, data in passed if kind == socket.SCM_RIGHTS]
    if answer != _GOOD or not fds:
        raise DescriptorError(f"{address} does not know that nonce", cure="take the nonce that was told with it")
    return int(fds[0])


def duplicate(pid: int, fd: int) -> int:
    """A descriptor for what process ``pid`` has open as ``fd``; raises DescriptorError and PermissionMissing."""
    try:
        process = os.pidfd_open(pid)
    except (OSError, OverflowError):
        raise DescriptorError(f"there is no process {pid}") from None
    try:
        got = libc.syscall(_PIDFD_GETFD, *(ffi.cast("long", number) for number in (process, fd, 0)))
    finally:
        os.close(process)
    if got >= 0:
        return cloexec(got)
    if ffi.errno == errno.EPERM:
        raise PermissionMissing("CAP_SYS_PTRACE", f"take a descriptor of process {pid}")
    why = "has not opened it" if ffi.errno == errno.EBADF else os.strerror(ffi.errno)
    raise DescriptorError(f"cannot take descriptor {fd} of process {pid}: {why}", cure=f"ls -l /proc/{pid}/fd")

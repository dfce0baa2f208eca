# SPDX-License-Identifier: Apache-2.0
"""Passing open descriptors to other processes, including the cases of ghOSt's fd_server_test."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from ghostbpf.loaders import Array, BpfError, Map
from ghostbpf.loaders.descriptors import DescriptorError, Offer, duplicate, receive, take
from ghostbpf.loaders.errors import GhostError, PermissionMissing
from ghostbpf.loaders.handle import open_pinned
from ghostbpf.loaders.link import create_map
from ghostbpf.loaders.object import MapDef
from tracing import Task

#: Seconds; far longer than any step here takes.
LONG = 30.0
_COMMAND = [sys.executable, "-m", "ghostbpf.tools.cli", "fd"]


class Serving:
    """An offer that is served in another thread."""

    def __init__(self, fd: int, timeout: float, *, taker: int | None = None) -> None:
        self.offer = Offer(fd, taker=taker)
        self.result: int | DescriptorError | None = None
        self._thread = threading.Thread(target=self._serve, args=(timeout,))
        self._thread.start()

    def _serve(self, timeout: float) -> None:
        try:
            self.result = self.offer.serve(timeout)
        except DescriptorError as error:
            self.result = error

    def end(self) -> int | DescriptorError | None:
        """Wait for the end of the offer; returns its result."""
        self._thread.join()
        self.offer.close()
        return self.result


@pytest.fixture
def note(tmp_path: Path) -> Iterator[int]:
    """An open file of five bytes."""
    path = tmp_path / "note"
    path.write_text("hello")
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def call(offer: Offer, *, say: bytes | None = None) -> socket.socket:
    """A connected caller that sends ``say``, or nothing."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.connect("\0" + offer.address[1:])
    if say is not None:
        caller.send(say)
    return caller


def test_caller_with_the_nonce_gets_the_same_open_file(note: int) -> None:
    serving = Serving(note, LONG)
    got = receive(serving.offer.address, serving.offer.nonce, LONG)
    assert serving.end() == os.getpid()
    assert got != note
    assert not os.get_inheritable(got)
    assert os.fstat(got).st_ino == os.fstat(note).st_ino
    assert os.read(got, 100) == b"hello"
    assert os.read(note, 100) == b"", "both descriptors share their position"
    os.close(got)


@pytest.mark.parametrize("spoil", [lambda n: "", lambda n: n[:-1], lambda n: n + "0", lambda n: n[::-1]])
def test_caller_with_a_wrong_nonce_gets_nothing_and_the_offer_stands(note: int, spoil: Callable[[str], str]) -> None:
    serving = Serving(note, LONG)
    with pytest.raises(DescriptorError, match="the nonce is wrong for"):
        receive(serving.offer.address, spoil(serving.offer.nonce), LONG)
    os.close(receive(serving.offer.address, serving.offer.nonce, LONG))
    assert serving.end() == os.getpid()


def test_silent_or_closed_callers_do_not_block_others(note: int) -> None:
    serving = Serving(note, LONG)
    silent = [call(serving.offer) for _ in range(12)]
    for _ in range(40):
        call(serving.offer).close()
    call(serving.offer, say=b"nonsense").close()
    os.close(receive(serving.offer.address, serving.offer.nonce, LONG))
    assert serving.end() == os.getpid()
    for caller in silent:
        caller.close()


def test_oldest_of_too_many_silent_callers_is_dropped(note: int) -> None:
    serving = Serving(note, LONG)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(call(serving.offer))
        for _ in range(20):
            stack.enter_context(call(serving.offer))
        assert first.recv(10) == b"", "the caller that has waited longest is dropped"
        os.close(receive(serving.offer.address, serving.offer.nonce, LONG))
    assert serving.end() == os.getpid()


def test_descriptor_is_offered_once(note: int) -> None:
    serving = Serving(note, LONG)
    os.close(receive(serving.offer.address, serving.offer.nonce, LONG))
    serving.end()
    with pytest.raises(DescriptorError, match="nothing is offered at") as error:
        receive(serving.offer.address, serving.offer.nonce)
    assert error.value.hint


def test_offer_that_is_not_taken_times_out(note: int) -> None:
    with Offer(note) as offer, pytest.raises(DescriptorError, match=r"no process took the descriptor within 0\.05 s"):
        offer.serve(0.05)
    with pytest.raises(DescriptorError, match="nothing is offered at"):
        receive(offer.address, offer.nonce)
    os.fstat(note)  # the caller keeps its descriptor


def test_receive_from_a_server_that_never_answers_times_out(note: int) -> None:
    with Offer(note) as offer, pytest.raises(DescriptorError, match="did not answer within"):
        receive(offer.address, offer.nonce, 0.05)


def test_offer_to_a_process_is_refused_to_any_other(note: int) -> None:
    serving = Serving(note, LONG, taker=os.getpid())
    asked = fd("receive", serving.offer, "--timeout", LONG)
    assert (asked.returncode, "is for another process" in asked.stderr) == (1, True), asked
    os.close(take(str(serving.offer), LONG))
    assert serving.end() == os.getpid()


@pytest.mark.usefixtures("root")
def test_offer_to_a_process_of_another_user_reaches_it(note: int) -> None:
    hear, tell = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            with Offer(note, taker=os.getppid()) as offer:
                os.write(tell, str(offer).encode())
                offer.serve(LONG)
        finally:
            os._exit(0)
    os.close(take(os.read(hear, 200).decode(), LONG))
    os.waitpid(child, 0)
    os.close(hear)
    os.close(tell)


def test_offer_to_a_process_that_has_ended_is_refused_to_the_next_of_its_pid(
    task: Callable[..., Task], note: int
) -> None:
    other = task(lambda: None)
    with Offer(note, taker=other.pid) as offer, contextlib.closing(call(offer, say=offer.nonce.encode())) as caller:
        other.kill()
        offer.taker = os.getpid()  # as if this process had got that pid
        with pytest.raises(DescriptorError, match="no process took"):
            offer.serve(0.05)
        assert caller.recv(10) == b"NOT YOURS"
    with pytest.raises(DescriptorError, match=f"there is no process {other.pid}"):
        Offer(note, taker=other.pid)


@pytest.mark.usefixtures("root")
def test_pinned_map_reaches_another_process_read_only(bpffs: Path) -> None:
    with create_map(MapDef("numbers", 2, 4, 8, 4, 0, 0, 0, 0)) as made:
        made.pin(bpffs / "numbers")
        serving = Serving(open_pinned(bpffs / "numbers", read_only=True), LONG)
        got = Map(receive(serving.offer.address, serving.offer.nonce, LONG))
        serving.end()
        ffi = cffi.FFI()
        ffi.cdef("typedef uint32_t u32; typedef uint64_t u64;")
        ours, theirs = (Array(one, ffi, "u64") for one in (made, got))
        ours[2] = 42
        assert theirs[2] == 42
        with pytest.raises(BpfError, match="not permitted"):
            theirs[2] = 43
        got.close()


def test_descriptor_of_another_process(task: Callable[..., Task], note: int) -> None:
    other = task(lambda: None)
    got = duplicate(other.pid, note)
    assert os.fstat(got).st_ino == os.fstat(note).st_ino
    assert not os.get_inheritable(got)
    os.close(got)
    with pytest.raises(DescriptorError, match=f"cannot take descriptor 999 of process {other.pid}: has not opened it"):
        duplicate(other.pid, 999)
    other.kill()
    with pytest.raises(DescriptorError, match=f"there is no process {other.pid}"):
        duplicate(other.pid, note)


def fd(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


@contextlib.contextmanager
def sending(*arguments: object) -> Iterator[str]:
    """``ghostbpf fd send ARGUMENTS`` during the block; yields the process and its offer."""
    command = [*_COMMAND, "send", "--timeout", str(LONG), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        _, err = process.communicate(timeout=LONG)
    assert (process.returncode, err.endswith(" has it\n")) == (0, True), err


def test_command_prints_what_it_received(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 1000)
    with sending(tmp_path / "f") as offer:
        done = subprocess.run([*_COMMAND, "receive", "--timeout", "20", offer], capture_output=True, check=False)
    assert done.stdout == (tmp_path / "f").read_bytes()


def test_command_runs_another_with_the_descriptor_and_takes_the_offer_from_stdin(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello")
    with sending(tmp_path / "f", "--write") as offer:
        done = fd("receive", "-", "--fd", 7, "--", "sh", "-c", "cat <&7; echo bye >&7; exit 5", input=f"{offer}\n")
    assert (done.returncode, done.stdout) == (5, "hello")
    assert (tmp_path / "f").read_text() == "hellobye\n"


def test_command_passes_on_what_another_process_has_open(note: int) -> None:
    with sending("--pid", os.getpid(), "--fd", note, "--json") as line:
        done = fd("receive", json.loads(line)["offer"], "--timeout", LONG)
    assert done.stdout == "hello"


def test_failed_send_or_receive_is_reported_with_a_hint(tmp_path: Path) -> None:
    for arguments, status, says in (
        (("send", tmp_path / "none"), 1, "none: No such file or directory"),
        (("send",), 2, "name a PATH, or --pid and --fd"),
        (("send", tmp_path, "--pid", 1, "--fd", 1), 2, "name a PATH, or --pid and --fd"),
        (("send", "--pid", 1), 2, "name a PATH, or --pid and --fd"),
        (("send", "--pid", 2**40, "--fd", 1), 1, "there is no process"),
        (("send", tmp_path, "--timeout", "0.05"), 1, "no process took the descriptor within 0.05 s"),
        (("receive", "@none:1234"), 1, "nothing is offered at @none"),
        (("receive", "nonsense"), 1, '"nonsense" is not an offer'),
        (("send", tmp_path, "--to", 2**40), 1, "there is no process"),
        (("receive", "@" + "x" * 200 + ":1"), 1, "nothing is offered at"),
    ):
        done = fd(*arguments)
        assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (status, True, False), done
    with sending(tmp_path) as offer:
        done = fd("receive", offer, "--timeout", LONG)
    assert done.returncode == 1
    assert "cannot be read: Is a directory\n  try: -- CMD" in done.stderr


@pytest.mark.usefixtures("root")
def test_descriptor_of_a_process_that_may_not_be_traced_is_refused(note: int) -> None:
    def without_the_right() -> None:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        duplicate(os.getppid(), note)

    read, write = os.pipe()
    if not os.fork():
        try:
            without_the_right()
        except GhostError as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as answer:
        assert answer.read() == f"{PermissionMissing.__name__}: cannot take a descriptor of process {os.getpid()} " + (
            "without CAP_SYS_PTRACE"
        )
    os.wait()

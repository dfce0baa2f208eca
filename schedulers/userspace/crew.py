# SPDX-License-Identifier: Apache-2.0
"""Agents as processes: started beside the command that wants them, watched, and ended.

The process that starts a crew never is an agent itself, for an agent must not wait for a task that it schedules. A crew
is one process, or, where each CPU has an agent, one that hands tasks out and one for each CPU. It outlives whoever
started it, and leaves by itself when another takes over, or when its enclave goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, Self

from ...loaders.errors import GhostError
from ..agents import AgentHalf, Agents, stand_apart
from ..enclave import Enclave, Enclaves
from ..launch import endings
from .agent import Agent
from .placer import Placer

_IN_CHARGE = "in charge"
_MCL_ALL = 3
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
#: How long an agent that is to end may take.
_PATIENCE_S = 4.0
#: How often to look whether somebody has lost patience with an agent that does not get to its start.
_LOOK_UP_S = 0.25
_TOLD, _TOLD_REASON = 3, "it was told to end"


class AgentError(GhostError):
    """The agent of ``enclave`` could not start, or ended, for ``reason``."""

    def __init__(self, enclave: int, reason: str):
        super().__init__(
            f"the agent of enclave {enclave} is gone: {reason}",
            cure=f"its tasks go on in one FIFO queue; for a new agent: ghostbpf run POLICY --enclave {enclave}",
        )
        self.enclave, self.reason = enclave, reason


class Crew:
    """The agent processes of one enclave, made before there is any need to hurry and let go by take_over().

    Those that ``stay`` longer than whoever made them let go of its standard streams once they are in charge.
    """

    def __init__(self, half: AgentHalf, values: Mapping[str, int], *, stay: bool = False) -> None:
        self.half, self._id = half, 0
        gate, self._gate = os.pipe()
        self._words, words = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._words)
            _run(lambda: _lead(half, dict(values), gate, words, stay))
        os.close(gate)
        os.close(words)
        self._status: int | None = None

    def take_over(self, enclave: Enclave) -> Self:
        """Have it take ``enclave`` over, whose policy has to be the BPF half by now.

        Raises AgentError if it cannot; then an agent that was there has left, too, since its policy is gone.
        """
        self._id = enclave.id
        os.write(self._gate, f"{enclave.id}\n".encode())
        os.close(self._gate)
        self._gate = -1
        if (said := self._hear()) != _IN_CHARGE:
            reason = said or self.reason()
            if agents := Agents.open(enclave.id):
                agents.dismiss(reason)
            raise AgentError(enclave.id, reason)
        return self

    def _hear(self) -> str:
        """What it says of its start; it is ended where somebody asks us to end before that."""
        while not select.select([self._words], [], [], _LOOK_UP_S)[0]:
            if signal.sigpending() & endings():
                self.end()
        return os.read(self._words, 4096).decode(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def check(self) -> bool:
        """Whether it is still there; False where another took over, or the enclave has no use for it any more.

        Raises AgentError otherwise.
        """
        agents = Agents.open(self._id)
        abandoned = agents is not None and not agents.channels[0].tid
        if self.alive and not abandoned:
            return True
        reason = self.reason()
        if self._status == 0:
            return False
        if agents is not None and abandoned:
            agents.tell_why(reason)
        raise AgentError(self._id, reason)

    def reason(self) -> str:
        """Why it ended; waits for that."""
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(self._status):
            return f"killed by {signal.Signals(os.WTERMSIG(self._status)).name}"
        if os.WEXITSTATUS(self._status) == _TOLD:
            return _TOLD_REASON
        return os.read(self._words, 4096).decode(errors="replace") or f"status {os.WEXITSTATUS(self._status)}"

    def end(self) -> None:
        """Have it leave, and wait until it has; by force if it does not listen."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        if self.alive:
            self._status = _end([self.pid], _PATIENCE_S)[self.pid]


def _end(pids: Iterable[int], seconds: float) -> dict[int, int]:
    """End children, by force those that have not after ``seconds``; the wait status of each."""
    fds = {pid: os.pidfd_open(pid) for pid in pids}
    for pid in fds:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + seconds
    statuses = {}
    for pid, fd in fds.items():
        if not select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(fd)
        statuses[pid] = os.waitpid(pid, 0)[1]
    return statuses


def _run(body: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        status = body()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def _listen(agent: Agent) -> None:
    # Raising instead would not do: an exception out of a handler that interrupts a finalizer is lost.
    signal.signal(signal.SIGTERM, lambda _number, _frame: agent.stop(_TOLD_REASON))


def _lead(half: AgentHalf, values: dict[str, int], gate: int, words: int, stay: bool) -> int:
    """The life of a crew's first process: the agent of the enclave, or the one that hands its tasks out to others."""
    if not (wanted := os.read(gate, 32).decode()):
        return 0
    others: list[int] = []
    agent: Agent | None = None
    reason = ""
    try:
        enclave = Enclaves.find(int(wanted))
        _stand_apart(enclave)
        agent = Agent(enclave, Placer.half(half) if half.agent.per_cpu else half, values)
        _take_over(agent)
        _listen(agent)
        if half.agent.per_cpu:
            _start_each(filter(agent.is_online, enclave.cpus), enclave, half, values, others)
        if stay:
            _let_go_of_streams()
        os.write(words, _IN_CHARGE.encode())
        agent.run()
        if failed := _end_all(others):
            raise GhostError(failed)
    except BaseException as error:
        reason = _one_line(error)
        os.write(words, reason.encode(errors="replace")[:4096])
        raise
    finally:
        if agent is not None:
            agent.leave(reason)
        _end_all(others)
    return _TOLD if agent.stopped else 0


def _let_go_of_streams() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


def _end_all(pids: list[int]) -> str:
    """End the agents of single CPUs that have not; what there is to say of those that ended badly."""
    statuses = _end(pids, _PATIENCE_S / 2)
    pids.clear()
    codes = {pid: os.waitstatus_to_exitcode(status) for pid, status in statuses.items()}
    return "; ".join(
        f"the agent of one CPU, process {pid}, ended with status {code}"
        for pid, code in codes.items()
        if code not in (0, _TOLD)
    )


def _start_each(
    cpus: Iterable[int], enclave: Enclave, half: AgentHalf, values: dict[str, int], started: list[int]
) -> None:
    """An agent for each CPU; ``started`` gets their processes, which begin side by side."""
    heard = {}
    for cpu in cpus:
        heard[cpu], tell = os.pipe()
        if not (pid := os.fork()):
            for told in heard.values():
                os.close(told)
            _run(lambda cpu=cpu, tell=tell: _run_on(cpu, enclave, half, values, tell))  # type: ignore[misc]
        os.close(tell)
        started.append(pid)
    try:
        for cpu, told in heard.items():
            if not os.read(told, 1):
                raise GhostError(f"the agent of CPU {cpu} could not start")
    finally:
        for told in heard.values():
            os.close(told)


def _run_on(cpu: int, enclave: Enclave, half: AgentHalf, values: dict[str, int], tell: int) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _stand_apart(enclave)
    agent = Agent(enclave, half, values, cpu)
    _take_over(agent)
    _listen(agent)
    os.write(tell, b"!")
    os.close(tell)
    try:
        agent.run()
    except BaseException as error:
        agent.leave(_one_line(error))
        raise
    return _TOLD if agent.stopped else 0


def _stand_apart(enclave: Enclave) -> None:
    """Before what it schedules, and out of reach of the memory it might have to wait for."""
    stand_apart(0, enclave.core)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlockall(_MCL_ALL)
    libc.prctl(_PR_SET_TIMERSLACK, 1)  # or slices would be 50 us longer


def _take_over(agent: Agent) -> None:
    agent.take_over()
    # Enrolment by rule may have put it into an enclave before, but leaves alone who is in charge.
    stand_apart(0, agent.enclave.core)


def _one_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"

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
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn, Self

from ...loaders.errors import GhostError
from ..agents import AgentPolicySpec, Agents, set_agent_class
from ..enclave import Enclave, Enclaves
from ..launch import termination_signals
from .agent import Agent
from .task_assigner import TaskAssigner

_READY, _IN_CHARGE = "ready", "in charge"
_LIBC = ctypes.CDLL(None, use_errno=True)
_MCL_ALL = 3
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
#: How long an agent that is to end may take.
_PATIENCE_S = 4.0
#: How often to look whether somebody has lost patience with an agent that does not get to its start.
_LOOK_UP_S = 0.25
_TOLD, _TOLD_REASON = 3, "it was told to end"
# Between the process of a crew that leads and that of one CPU's agent.
_CPU_READY, _CPU_GO, _CPU_IN_CHARGE = b"r", b"g", b"!"


class AgentError(GhostError):
    """The agent of ``enclave`` could not start, or ended, for ``reason``."""

    def __init__(self, enclave: int, reason: str):
        super().__init__(
            f"the agent of enclave {enclave} is gone: {reason}",
            hint=f"its tasks go on in one FIFO queue; for a new agent: ghostbpf run POLICY --enclave {enclave}",
        )
        self.enclave, self.reason = enclave, reason


class UpgradeError(AgentError):
    """The agent that was to take ``enclave`` over could not, for ``reason``: ``policy`` schedules on."""

    def __init__(self, enclave: int, reason: str, policy: str):
        super().__init__(enclave, reason)
        self.args = (f"the new agent of enclave {enclave} could not start: {reason}",)
        self.hint, self.policy = f"enclave {enclave} goes on under {policy}, as before", policy


class AgentProcess:
    """The agent processes of one enclave, made before there is any need to hurry.

    prepare() has them do all that may fail, for a policy that is not live yet; take_over() puts them in charge of it.
    Those that ``stay`` longer than whoever made them let go of its standard streams once they are in charge.
    """

    def __init__(self, half: AgentPolicySpec, values: Mapping[str, int], *, stay: bool = False) -> None:
        self.half, self._id, self._is_ready = half, 0, False
        gate, self._gate = os.pipe()
        self._words, words = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._words)
            _run(lambda: _lead(half, dict(values), gate, words, stay, parent))
        os.close(gate)
        os.close(words)
        self._status: int | None = None

    def prepare(self, enclave: Enclave, bank: int) -> None:
        """Have it load and try all it needs to take ``enclave`` over once the policy in ``bank`` is live.

        Raises AgentError if it cannot, and then it has ended; the agent that is there decides on.
        """
        self._id = enclave.id
        self._tell(f"{enclave.id} {bank}\n")
        self._expect(_READY)
        self._is_ready = True

    def take_over(self, enclave: Enclave) -> Self:
        """Have it take ``enclave`` over, whose policy has to be the BPF half by now. Raises AgentError if it cannot."""
        if not self._is_ready:
            self.prepare(enclave, int(enclave.core.enclaves[enclave.id].bank))
        self._tell("!")
        os.close(self._gate)
        self._gate = -1
        self._expect(_IN_CHARGE)
        return self

    def _expect(self, word: str) -> None:
        if (said := self._hear()) == word:
            return
        reason = said or self.reason()
        agents = Agents.open(self._id)
        if agents is not None and not agents.channels[0].tid:
            agents.tell_why(reason)
        raise AgentError(self._id, reason)

    def _tell(self, what: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and _hear() tells why
            os.write(self._gate, what.encode())

    def _hear(self) -> str:
        """What it says of its start; it is ended where somebody asks us to end before that."""
        while not select.select([self._words], [], [], _LOOK_UP_S)[0]:
            if signal.sigpending() & termination_signals():
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


def _lead(half: AgentPolicySpec, values: dict[str, int], gate: int, words: int, stay: bool, parent: int) -> int:
    """The life of a crew's first process: the agent of the enclave, or the one that hands its tasks out to others."""
    if not (wanted := os.read(gate, 64).split()):
        return 0
    # A policy that does not come to the end of its making is not to outlive the loader that waits for it.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    id, bank = map(int, wanted)
    agent: Agent | None = None
    others: _CpuAgents | None = None
    reason = ""
    try:
        enclave = Enclaves.find(id)
        _set_agent_class(enclave, warns=True)
        agent = Agent(enclave, TaskAssigner.half(half) if half.agent.per_cpu else half, values, bank=bank)
        agent.prepare()
        if half.agent.per_cpu:
            others = _CpuAgents(agent, half, values, bank)
            others.prepare()
        _prctl(_PR_SET_PDEATHSIG, 0)
        _say(words, _READY)
        # A loader that died when it had made the policy live wanted it to have this agent.
        if not os.read(gate, 1) and enclave.core.enclaves[id].bank != bank:
            return 0
        _take_over(agent, per_cpu=others is not None)
        _listen(agent)
        if others is not None:
            others.take_over()
        if stay:
            _let_go_of_streams()
        _say(words, _IN_CHARGE)
        agent.run(None if others is None else others.look_around)
        if others is not None and (failed := others.end()):
            raise GhostError(failed)
    except BaseException as error:
        reason = _one_line(error)
        _say(words, reason[:4096])
        raise
    finally:
        if agent is not None:
            agent.leave(reason)
        if others is not None:
            others.end()
    return _TOLD if agent.stopped else 0


def _say(words: int, what: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the loader has died
        os.write(words, what.encode(errors="replace"))


def _let_go_of_streams() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)


class _CpuAgents:
    """The agents of single CPUs, each a process, as the process of agent ``lead`` sees them; one for each online CPU.

    ``bank`` is where the BPF half is before it is live.
    """

    def __init__(self, lead: Agent, half: AgentPolicySpec, values: dict[str, int], bank: int) -> None:
        self._lead, self._half, self._values, self._bank = lead, half, values, bank
        self._pids: dict[int, int] = {}
        self._heard: dict[int, socket.socket] = {}
        self._failed: set[int] = set()  # CPUs whose agent could not start since they came online

    def prepare(self) -> None:
        """Start them, side by side, and wait until each is ready; raises GhostError where one cannot start."""
        for cpu in self._online():
            self._start(cpu)
        self._expect(_CPU_READY)

    def take_over(self) -> None:
        """Let them take over, and wait until they have; raises GhostError where one cannot."""
        for cpu in self._heard:
            self._let_go(cpu)
        self._expect(_CPU_IN_CHARGE)
        self._forget_sockets()

    def look_around(self) -> None:
        """Start an agent for each CPU that has come online and has none. One that cannot leaves its CPU to the core."""
        online = set(self._online())
        self._failed &= online
        for cpu in list(self._heard):  # of those that look_around() has started
            if os.waitpid(self._pids[cpu], os.WNOHANG)[0]:
                del self._pids[cpu]
                self._heard.pop(cpu).close()
                self._failed.add(cpu)
            elif self._lead.has_agent(cpu):
                self._heard.pop(cpu).close()
        for cpu in online - self._pids.keys() - self._failed:
            self._start(cpu)
            self._let_go(cpu)

    def end(self) -> str:
        """End those that have not; what there is to say of those that ended badly."""
        self._forget_sockets()
        statuses = _end(self._pids.values(), _PATIENCE_S / 2)
        self._pids.clear()
        codes = {pid: os.waitstatus_to_exitcode(status) for pid, status in statuses.items()}
        return "; ".join(
            f"the agent of one CPU, process {pid}, ended with status {code}"
            for pid, code in codes.items()
            if code not in (0, _TOLD)
        )

    def _online(self) -> Iterator[int]:
        return filter(self._lead.is_online, self._lead.enclave.cpus)

    def _start(self, cpu: int) -> None:
        ours, theirs = socket.socketpair()
        lead, bank = os.getpid(), self._bank
        if not (pid := os.fork()):
            ours.close()
            self._forget_sockets()
            enclave, half, values = self._lead.enclave, self._half, self._values
            _run(lambda: _run_on(cpu, enclave, half, values, bank, theirs, lead))
        theirs.close()
        self._pids[cpu], self._heard[cpu] = pid, ours

    def _let_go(self, cpu: int) -> None:
        with contextlib.suppress(ConnectionError):  # then it has ended
            self._heard[cpu].send(_CPU_GO)

    def _expect(self, word: bytes) -> None:
        for cpu, agent in self._heard.items():
            said = b""
            with contextlib.suppress(ConnectionError):
                said = agent.recv(4096)
            if said != word:
                reason = f": {said.decode(errors='replace')}" if said else ""
                raise GhostError(f"the agent of CPU {cpu} could not start{reason}")

    def _forget_sockets(self) -> None:
        for agent in self._heard.values():
            agent.close()
        self._heard.clear()


def _run_on(
    cpu: int,
    enclave: Enclave,
    half: AgentPolicySpec,
    values: dict[str, int],
    bank: int,
    lead: socket.socket,
    parent: int,
) -> int:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    try:
        _set_agent_class(enclave, warns=False)
        agent = Agent(enclave, half, values, cpu, bank)
        agent.prepare()
        lead.send(_CPU_READY)
        if lead.recv(1) != _CPU_GO:
            return 0
        _take_over(agent)
        _listen(agent)
    except BaseException as error:
        with contextlib.suppress(ConnectionError):
            lead.send(_one_line(error)[:4096].encode(errors="replace"))
        raise
    with contextlib.suppress(ConnectionError):
        lead.send(_CPU_IN_CHARGE)
    lead.close()
    try:
        agent.run()
    except BaseException as error:
        agent.leave(_one_line(error))
        raise
    return _TOLD if agent.stopped else 0


def _set_agent_class(enclave: Enclave, *, warns: bool) -> None:
    """Before what it schedules, and out of reach of the memory it might have to wait for."""
    set_agent_class(0, enclave.core)
    if _LIBC.mlockall(_MCL_ALL) and warns:
        why = os.strerror(ctypes.get_errno())
        message = f"warning: the agent's memory is not locked, and it may have to wait for a disk: {why}\n"
        os.write(2, f"{message}  try: give it CAP_IPC_LOCK, or: ulimit -l unlimited\n".encode())
    _prctl(_PR_SET_TIMERSLACK, 1)  # or slices would be 50 us longer


def _prctl(what: int, value: int) -> None:
    if _LIBC.prctl(what, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({what}, {value}): {os.strerror(ctypes.get_errno())}")


def _take_over(agent: Agent, *, per_cpu: bool = False) -> None:
    agent.take_over(per_cpu=per_cpu)
    # AutoJoin by rule may have put it into an enclave before, but leaves alone who is in charge.
    set_agent_class(0, agent.enclave.core)


def _one_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"

# SPDX-License-Identifier: Apache-2.0
"""What runs in agent processes: the lead process, and the processes of the agents of single CPUs.

The lead process is the agent of the enclave; where each CPU has an agent, it assigns new tasks to them and is their
parent. The processes may outlive the loader. They end when another agent has taken over, or when the enclave is
destroyed. If the other agent fails before its take-over is complete, they return.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from ...loaders import capabilities, libc
from ...loaders.errors import GhostError
from ..agents import AgentPolicySpec, set_agent_class
from ..agents.kernel import KernelInterface
from ..agents.programs import AgentPrograms
from ..enclave import Enclave, Enclaves
from ..errors import CpuUnusable
from ..pins import ROOT
from ..topology import TopologyError
from .agent import Agent
from .task_assigner import TaskAssigner

#: What the lead process reports to its loader; any other report is the reason why it could not start.
READY, IN_CHARGE = "ready", "in charge"
#: How long an agent may take to end after SIGTERM.
END_TIMEOUT_S = 4.0
#: The exit status of an agent that ended because of SIGTERM.
TOLD, TOLD_REASON = 3, "it was told to end"
#: How often a replaced agent checks whether the take-over of its successor is complete.
_SUCCESSION_CHECK_S = 0.01
#: The capabilities of an agent in charge.
_KEPT = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_NICE", "CAP_IPC_LOCK")
# What the lead process and the process of one CPU's agent tell each other.
_CPU_READY, _CPU_GO, _CPU_IN_CHARGE = b"r", b"g", b"!"


def lead(spec: AgentPolicySpec, values: dict[str, int], gate: int, reports: int, stay: bool, parent: int) -> int:
    """Run the lead process: be the agent of the enclave, alone or with an agent for each CPU."""
    if not (command := os.read(gate, 64).split()):
        return 0
    # The loader waits for the policy to start. If the loader dies, this process must end, even in a policy that hangs.
    libc.set_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    id, bank = map(int, command)
    agent: Agent | None = None
    others: _CpuAgents | None = None
    reason = ""
    try:
        enclave = Enclaves.find(id)
        _set_agent_class(enclave, warns=True)
        own_spec = TaskAssigner.spec_for(spec) if spec.agent.per_cpu else spec
        kernel = KernelInterface(enclave, own_spec, bank)
        agent = Agent(enclave, own_spec, values, bank=bank, kernel=kernel)
        agent.prepare()
        if spec.agent.per_cpu:
            others = _CpuAgents(agent, spec, values, bank, kernel.programs)
            others.prepare()
        libc.set_death_signal(0)
        _report(reports, READY)
        # The loader may die after it made the policy live: the policy then needs this agent all the same.
        if not os.read(gate, 1) and not enclave.is_live(bank):
            return 0
        _take_over(agent, per_cpu=others is not None)
        if others is not None:
            others.take_over()
            agent.confirm()
        _drop_privileges()
        _listen(agent)
        if stay:
            _close_streams()
        _report(reports, IN_CHARGE)
        _serve(agent, bank, agent.tid, others)
        if others is not None and (failed := others.end()):
            raise GhostError(failed)
    except BaseException as error:
        reason = _one_line(error)
        if not isinstance(error, CpuUnusable):
            _print_traceback()
        return 1
    finally:
        if agent is not None:
            agent.leave(reason)
        if others is not None:
            others.end()
        if reason:
            _report(reports, reason[:4096])  # last, since the loader then makes the former agents return
    return TOLD if agent.stopped else 0


def _report(reports: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the loader has died
        os.write(reports, text.encode(errors="replace"))


def _close_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)


def run(body: Callable[[], int]) -> NoReturn:
    """Make this process, a child, an agent process: it ends with the status that ``body`` returns, or 1."""
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
        _print_traceback()
    finally:
        os._exit(status)


def _print_traceback() -> None:
    """Print the current exception; before it is reported, since this process may be killed after that."""
    with contextlib.suppress(BaseException):
        traceback.print_exc()
        sys.stderr.flush()


def end_children(pids: Iterable[int], seconds: float) -> dict[int, int]:
    """End children with SIGTERM, or after ``seconds`` with SIGKILL; returns the wait status of each."""
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


def _listen(agent: Agent) -> None:
    # The handler raises nothing: Python discards an exception from a handler that interrupts a finalizer.
    signal.signal(signal.SIGTERM, lambda _number, _frame: agent.stop(TOLD_REASON))


class _CpuAgents:
    """The agents of single CPUs, one process for each online CPU, as the process of agent ``lead`` sees them.

    ``bank`` is where the policy's BPF program is before it is live. All use the ``programs`` of ``lead``.
    """

    def __init__(
        self, lead: Agent, spec: AgentPolicySpec, values: dict[str, int], bank: int, programs: AgentPrograms
    ) -> None:
        self._lead, self._spec, self._values, self._bank, self._programs = lead, spec, values, bank, programs
        self._pids: dict[int, int] = {}
        self._sockets: dict[int, socket.socket] = {}  # of agents that are not known to be in charge
        self._failed: set[int] = set()  # CPUs whose agent could not start since they came online
        self._ending: dict[int, tuple[int, float]] = {}  # by CPU that was lost: its process, and when that is killed

    def prepare(self) -> None:
        """Start them side by side and wait until each is ready; raises GhostError where one cannot start.

        A CPU that goes offline meanwhile gets its agent when it is back.
        """
        for cpu in self._online():
            self._start(cpu)
        self._expect(_CPU_READY)

    def take_over(self) -> None:
        """Let them take over and wait until they have; raises GhostError where one cannot."""
        for cpu in self._sockets:
            self._start_deciding(cpu)
        self._expect(_CPU_IN_CHARGE)
        self._close_sockets()

    def follow_cpus(self) -> None:
        """Start an agent for each CPU that came online, or to the enclave, and end those of CPUs that the enclave lost.

        The core schedules a CPU whose agent cannot start.
        """
        self._end_lost()
        online = set(self._online())
        self._failed &= online
        for cpu in list(self._sockets):  # of agents that an earlier call has started
            if os.waitpid(self._pids[cpu], os.WNOHANG)[0]:
                del self._pids[cpu]
                self._sockets.pop(cpu).close()
                self._failed.add(cpu)
            elif self._lead.has_agent(cpu):
                self._sockets.pop(cpu).close()
        for cpu in online - self._pids.keys() - self._ending.keys() - self._failed:
            self._start(cpu)
            self._start_deciding(cpu)

    def _end_lost(self) -> None:
        for cpu in self._pids.keys() - set(self._lead.enclave.cpus):
            pid = self._pids.pop(cpu)
            if cpu in self._sockets:
                self._sockets.pop(cpu).close()
            self._ending[cpu] = pid, time.monotonic() + END_TIMEOUT_S
            os.kill(pid, signal.SIGTERM)
            self._lead.adopt(cpu)
        for cpu, (pid, deadline) in list(self._ending.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._ending[cpu]
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)

    def end(self) -> str:
        """End all that still run; returns which ended with an error, or an empty text."""
        self._close_sockets()
        statuses = end_children(self._pids.values(), END_TIMEOUT_S / 2)
        end_children((pid for pid, _ in self._ending.values()), END_TIMEOUT_S / 2)
        self._pids.clear()
        self._ending.clear()
        codes = {pid: os.waitstatus_to_exitcode(status) for pid, status in statuses.items()}
        return "; ".join(
            f"the agent of one CPU, process {pid}, ended with status {code}"
            for pid, code in codes.items()
            if code not in (0, TOLD)
        )

    def _online(self) -> Iterator[int]:
        return filter(self._lead.is_online, self._lead.enclave.cpus)

    def _start(self, cpu: int) -> None:
        ours, theirs = socket.socketpair()
        parent, lead, bank = os.getpid(), self._lead.tid, self._bank
        if not (pid := os.fork()):
            ours.close()
            self._close_sockets()
            enclave, spec, values, programs = self._lead.enclave, self._spec, self._values, self._programs
            run(lambda: _run_on(cpu, enclave, spec, values, bank, programs, lead, theirs, parent))
        theirs.close()
        self._pids[cpu], self._sockets[cpu] = pid, ours

    def _start_deciding(self, cpu: int) -> None:
        with contextlib.suppress(ConnectionError):  # then it has ended
            self._sockets[cpu].send(_CPU_GO)

    def _expect(self, report: bytes) -> None:
        for cpu, agent in list(self._sockets.items()):
            received = b""
            with contextlib.suppress(ConnectionError):
                received = agent.recv(4096)
            if received != report and received and not self._lead.is_online(cpu):
                os.waitpid(self._pids.pop(cpu), 0)
                self._sockets.pop(cpu).close()
            elif received != report:
                reason = f": {received.decode(errors='replace')}" if received else ""
                raise GhostError(f"the agent of CPU {cpu} could not start{reason}")

    def _close_sockets(self) -> None:
        for agent in self._sockets.values():
            agent.close()
        self._sockets.clear()


def _run_on(
    cpu: int,
    enclave: Enclave,
    spec: AgentPolicySpec,
    values: dict[str, int],
    bank: int,
    programs: AgentPrograms,
    lead: int,
    reports: socket.socket,
    parent: int,
) -> int:
    libc.set_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        return 0
    try:
        _set_agent_class(enclave, warns=False)
        agent = Agent(enclave, spec, values, cpu, bank, KernelInterface(enclave, spec, bank, programs))
        agent.prepare()
        reports.send(_CPU_READY)
        if reports.recv(1) != _CPU_GO:
            return 0
        _take_over(agent)
        _drop_privileges()
        _listen(agent)
    except BaseException as error:
        if not isinstance(error, (CpuUnusable, TopologyError)):  # the CPU went offline
            _print_traceback()
        with contextlib.suppress(ConnectionError):
            reports.send(_one_line(error)[:4096].encode(errors="replace"))
        return 1
    with contextlib.suppress(ConnectionError):
        reports.send(_CPU_IN_CHARGE)
    reports.close()
    try:
        _serve(agent, bank, lead)
    except BaseException as error:
        _print_traceback()
        agent.leave(_one_line(error))
        return 1
    return TOLD if agent.stopped else 0


def _drop_privileges() -> None:
    """Keep what an agent in charge needs: an error in a policy, or a task that misleads it, can use nothing more.

    CAP_SYS_NICE and CAP_IPC_LOCK are for agents of CPUs that come online, CAP_PERFMON is for the timers of idle CPUs,
    and CAP_DAC_OVERRIDE for pins of another user.
    """
    owns_pins = ROOT.stat().st_uid == os.geteuid()
    capabilities.keep_only(*_KEPT, *([] if owns_pins else ["CAP_DAC_OVERRIDE"]))


def _set_agent_class(enclave: Enclave, *, warns: bool) -> None:
    """Run before the tasks that the agent schedules, and never wait for memory on a disk."""
    set_agent_class(0, enclave.core)
    try:
        libc.lock_memory()
    except OSError as error:
        if warns:
            why = os.strerror(error.errno or 0)
            message = f"warning: the agent's memory is not locked, and it may have to wait for a disk: {why}\n"
            os.write(2, f"{message}  try: give it CAP_IPC_LOCK, or: ulimit -l unlimited\n".encode())
    libc.set_timer_slack(1)  # otherwise slices would end up to 50 us late


def _take_over(agent: Agent, *, per_cpu: bool = False) -> None:
    agent.take_over(per_cpu=per_cpu)
    # An auto-join rule may have put this process into an enclave before, but leaves agents in charge alone.
    set_agent_class(0, agent.enclave.core)


def _serve(agent: Agent, bank: int, lead: int, others: _CpuAgents | None = None) -> None:
    """Let ``agent`` decide for the policy in ``bank`` until it is told to end, or other agents have taken over.

    If they fail to, it takes over again, once the loader has made its policy live. ``lead`` is the tid of the enclave's
    agent in the initial pid namespace; the agents of CPUs take over again after that agent.
    """
    while True:
        agent.run(None if others is None else others.follow_cpus)
        while (returns := _must_return(agent, bank, lead)) is None:
            time.sleep(_SUCCESSION_CHECK_S)
        if not returns:
            return
        _take_over(agent, per_cpu=others is not None)
        if agent.cpu is None:
            agent.confirm()  # then the agents of CPUs take over again


def _must_return(agent: Agent, bank: int, lead: int) -> bool | None:
    """Whether ``agent``, which was replaced, must take over again; None while the new take-over is not complete."""
    enclave = agent.enclave
    exists = enclave in Enclaves(enclave.core) and (enclave.path / f"policy_{bank}").exists()
    if agent.stopped or not exists:
        return False
    confirmed, tid = agent.successor
    if confirmed:
        return tid == lead
    if agent.cpu is None and not tid and enclave.is_live(bank):
        return True
    return None


def _one_line(error: BaseException) -> str:
    """What went wrong; of an error that is not ghostbpf's own, also its type and where it was raised."""
    if isinstance(error, GhostError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"

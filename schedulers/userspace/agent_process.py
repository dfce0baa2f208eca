# SPDX-License-Identifier: Apache-2.0
"""The agent processes of one enclave, as the loader that starts, watches and ends them sees them.

A loader is never an agent itself, for an agent must not wait for a task that it schedules. agent_main.py is what runs
in the processes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from typing import Self

from ..agents import AgentPolicySpec, Agents
from ..enclave import Enclave
from ..errors import AgentError
from ..launch import termination_signals
from ..policy import PolicyOptions
from . import agent_main
from .agent_main import IN_CHARGE, READY, TOLD, TOLD_REASON, end_children, lead, run

#: How often a loader that waits for an agent to start checks for signals that end the loader.
_SIGNAL_CHECK_S = 0.25


class AgentProcess:
    """The agent processes of one enclave, as the loader that started them sees them.

    prepare() makes them do all that may fail, for a policy that is not live yet; take_over() puts them in charge.
    With ``stay``, they may outlive the loader, and close its standard streams once they are in charge.
    """

    def __init__(self, options: PolicyOptions[AgentPolicySpec], *, stay: bool = False) -> None:
        self.options, self._id, self._is_ready = options, 0, False
        gate, self._gate = os.pipe()
        self._reports, reports = os.pipe()
        self._last_report = b""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._reports)
            run(lambda: lead(options.policy, dict(options.values), gate, reports, stay, parent))
        os.close(gate)
        os.close(reports)
        self._status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def prepare(self, enclave: Enclave, bank: int) -> None:
        """Make it load and try all that it needs to take ``enclave`` over once the policy in ``bank`` is live.

        Raises AgentError where that fails: then the process has ended, and the agent in charge stays.
        """
        self._id = enclave.id
        self._tell(f"{enclave.id} {bank}\n")
        self._expect(READY)
        self._is_ready = True

    def take_over(self, enclave: Enclave) -> Self:
        """Make it take ``enclave`` over, where its policy is live by now. Raises AgentError where that fails."""
        if not self._is_ready:
            self.prepare(enclave, enclave.live_bank)
        self._tell("!")
        os.close(self._gate)
        self._gate = -1
        self._expect(IN_CHARGE)
        return self

    def _expect(self, report: str) -> None:
        if (received := self._receive()) == report:
            return
        reason = received or self.reason()
        agents = Agents.open(self._id)
        if agents is not None and not agents.channels[0].tid:
            agents.set_reason(reason)
        raise AgentError(self._id, reason)

    def _tell(self, command: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and _receive() returns why
            os.write(self._gate, command.encode())

    def _receive(self) -> str:
        """What the process reports of its start; a signal that ends the loader ends the process first."""
        while not select.select([self._reports], [], [], _SIGNAL_CHECK_S)[0]:
            if signal.sigpending() & termination_signals():
                self.end()
                break
        return self._report()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def check(self) -> bool:
        """Whether it is in charge; False where another agent took over, or the enclave needs none any more.

        Raises AgentError where it has ended for any other reason.
        """
        agents = Agents.open(self._id)
        abandoned = agents is not None and agents.is_abandoned
        if self.alive and not abandoned:
            return True
        reason = self.reason()
        if self._status == 0:
            return False
        if agents is not None and abandoned:
            agents.set_reason(reason)
        raise AgentError(self._id, reason)

    def reason(self) -> str:
        """Wait until it has ended; returns why."""
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(self._status):
            return f"killed by {signal.Signals(os.WTERMSIG(self._status)).name}"
        if os.WEXITSTATUS(self._status) == TOLD:
            return TOLD_REASON
        return self._report() or f"status {os.WEXITSTATUS(self._status)}"

    def end(self) -> None:
        """End it with SIGTERM, or else with SIGKILL, and wait until it has ended."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        if self.alive:
            self._status = end_children([self.pid], agent_main.END_TIMEOUT_S)[self.pid]
        if self._reports >= 0:
            os.set_blocking(self._reports, False)  # agents of CPUs that end after it hold the other end, too
            with contextlib.suppress(BlockingIOError):
                self._last_report = os.read(self._reports, 4096)
            os.close(self._reports)
            self._reports = -1

    def _report(self) -> str:
        """Its next report; "" if it has ended without one."""
        report = self._last_report if self._reports < 0 else os.read(self._reports, 4096)
        return report.decode(errors="replace")

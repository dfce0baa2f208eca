# SPDX-License-Identifier: Apache-2.0
"""A night of storms: each policy for a set time, under load, while everything is changed and killed at random.

``make soak-night DURATION=600`` runs each policy for ten minutes. What is done, and when, is printed, and follows from
the seed of the run: ``make soak-night ARGS="--seed N -k biff"`` does it again.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import pytest
from command import fork, read_sources_once
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.processes import children
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import AgentProcess
from kernel_events import KernelEvents
from kernel_log import KernelLog
from kernel_objects import KernelObjects
from scribble import scribble
from shared_core import SharedCore
from workload import Child, MakeEnclave, Workload, set_online, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.night]

#: Actions between two checks of all tasks.
_CHECK_EVERY = 8
#: Rounds of a night, unless they would be longer than this, in seconds.
_ROUNDS, _LONGEST = 4, 300.0
_STRESSORS = "--schedmix 1 --affinity 1 --switch 1 --yield 1"


class Storm:
    """An enclave under a policy, its tasks, and what may happen to them."""

    def __init__(self, enclave: Enclave, policy: str, rng: random.Random) -> None:
        self.enclave, self.policy, self.rng = enclave, policy, rng
        self.count = 0
        self._began = time.monotonic()
        self._agent: AgentProcess | None = None
        self._down: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._agent is not None:
            self._agent.end()

    def round(self, actions: Iterable[Callable[[], None]], seconds: float) -> None:
        """Do ``actions`` to tasks of all kinds, for ``seconds`` to those of stress-ng, too; then see that all is well.

        The policy is live then, on all CPUs, and without tasks.
        """
        with Workload() as workload:
            self._start_tasks(workload)
            command = ("stress-ng", *_STRESSORS.split(), "--timeout", str(math.ceil(seconds)))
            stress = workload.spawn(lambda me: os.execvp(command[0], command), self.enclave, cpus=[1, 2, 3])
            for action in actions:
                print(f"{time.monotonic() - self._began:8.1f} s  {action.__name__}", flush=True)
                action()
                self.count += 1
                if self.count % _CHECK_EVERY == 0:
                    self._check()
            assert stress.wait(seconds + 300) == 0
            self._calm()
            self._check()
            assert {task.tid for task in self.enclave.tasks()} == {child.pid for child in self._living()}
        until(lambda: self.enclave.nr_tasks == 0, "all tasks have left")

    def anything(self, seconds: float) -> Iterator[Callable[[], None]]:
        """Random actions for ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield self.rng.choice(self.actions)

    @property
    def actions(self) -> list[Callable[[], None]]:
        """All that may happen; each leaves the enclave able to schedule its tasks."""
        return [
            self.swap,
            self.upgrade,
            self.kill_loader,
            self.kill_agent,
            self.stop_agent,
            self.resize,
            self.hotplug,
            self.leave_and_join,
            self.kill_task,
            self.stop_tasks,
            self.rewrite_hints,
        ]

    # What happens:

    def swap(self) -> None:
        """Another policy."""
        other = self.rng.choice([name for name in POLICIES if name != self.policy])
        print(f"{'':12}to {other}", flush=True)
        self._set_policy(other)

    def upgrade(self) -> None:
        """The policy, in place of another or of itself."""
        self._set_policy(self.policy)

    def kill_loader(self) -> None:
        """A loader is killed while it replaces the policy, or after it, and its agent with it."""
        loader = fork(self._upgrade_elsewhere)
        if loader.ended(self.rng.uniform(0, 3)):
            done = loader.wait()
            assert done.status == 0, done.err
        else:
            loader.signal(signal.SIGKILL, group=True)
            loader.wait()
        self.upgrade()

    def kill_agent(self) -> None:
        """The agent, or that of one CPU, is killed; after a while, a new one comes."""
        self._signal_agent(signal.SIGKILL)
        self.upgrade()

    def stop_agent(self) -> None:
        """The agent, or that of one CPU, stands still for up to a second: five times its time-out."""
        self._signal_agent(signal.SIGSTOP, signal.SIGCONT)

    def resize(self) -> None:
        """Other CPUs."""
        online = sorted({2, 3} - self._down)
        with self._changing() as enclave:
            enclave.resize(CpuSet([1, *self.rng.sample(online, self.rng.randint(0, len(online)))]))

    def hotplug(self) -> None:
        """A CPU goes down or comes up."""
        cpu = self.rng.choice((2, 3))
        set_online(cpu, cpu in self._down)
        self._down ^= {cpu}

    def leave_and_join(self) -> None:
        """A task leaves the enclave, and joins again."""
        child = self.rng.choice(self._running)
        self.enclave.remove(child.pid)
        self._pause(0.05)
        self.enclave.add(child.pid)

    def kill_task(self) -> None:
        """A task is killed, and a new one joins."""
        number = self.rng.randrange(len(self._running))
        self._running[number].close()
        self._running[number] = self._workload.napper(self.enclave, nap_ms=2)

    def stop_tasks(self) -> None:
        """All tasks are stopped, and go on at once."""
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for child in self._running:
                os.kill(child.pid, number)
            self._pause(0.2)

    def rewrite_hints(self) -> None:
        """Nonsense is written into the table of hints, if a policy has made one."""
        scribble(self.enclave.hints_path, self.rng, self._victim.pid, 100)

    # Helpers:

    def _start_tasks(self, workload: Workload) -> None:
        self._workload = workload
        self._running = [workload.napper(self.enclave, nap_ms=2) for _ in range(4)]
        self._running += [workload.napper(self.enclave, nap_ms=2, cpus=[2]), workload.spinner(self.enclave)]
        self._sleeper = workload.sleeper(self.enclave)
        self._victim = workload.spinner(self.enclave)

    def _living(self) -> list[Child]:
        return [*self._running, self._sleeper, self._victim]

    def _pause(self, most: float) -> None:
        time.sleep(self.rng.uniform(0, most))

    def _signal_agent(self, *numbers: signal.Signals) -> None:
        if self._agent is None:
            return
        pid = self.rng.choice([self._agent.pid, *children(self._agent.pid)])
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):  # that of a CPU that has left the enclave
                os.kill(pid, number)
            self._pause(1)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Enclave]:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            yield enclaves.get(self.enclave.id)

    def _set_policy(self, name: str) -> None:
        policy = POLICIES[name]
        has_seed = any(option.name == "seed" for option in policy.options)
        options = policy.parse({"seed": str(self.rng.randrange(1 << 32))} if has_seed else {})
        agent = options.start_agent()
        assert agent is None or isinstance(agent, AgentProcess)
        try:
            with self._changing() as enclave:
                enclave.set_policy(options, agent)
        except BaseException:
            if agent is not None:
                agent.end()
            raise
        if self._agent is not None:
            self._agent.end()
        self._agent = agent

    def _upgrade_elsewhere(self) -> None:
        self._agent = None  # the test process ends the former agent
        self.upgrade()

    def _calm(self) -> None:
        for cpu in sorted(self._down):
            set_online(cpu, True)
        self._down.clear()
        with self._changing() as enclave:
            enclave.resize(CpuSet([1, 2, 3]))
        self.upgrade()

    def _check(self) -> None:
        """Each task runs, the core is attached, the agent decides, and no policy was replaced by the FIFO."""
        for child in self._running:
            child.progress()
        loops = self._sleeper.asleep().loops
        self._sleeper.wake()
        until(lambda: self._sleeper.loops > loops, "the sleeper runs")
        assert sched_ext.status().state == "enabled"
        assert self.enclave.last_fallback is None, str(self.enclave.last_fallback)
        if self._agent is not None:
            assert self._agent.check()
            until(lambda: self.enclave.agent and self.enclave.agent.state == "deciding", "the agent decides")


@pytest.fixture(scope="module")
def loaded(session_core: SharedCore) -> None:
    """Load each policy once: this process and the kernel keep some of what that makes for the next time."""
    session_core.attach()
    for policy in POLICIES.values():
        with Enclaves.temporary(policy, CpuSet([1, 2, 3])):
            pass


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("policy", POLICIES)
def test_night_of_storms_loses_nothing_and_leaves_nothing_behind(
    enclave: MakeEnclave,
    kernel_log: KernelLog,
    kernel_events: KernelEvents,
    rng: random.Random,
    policy: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_sources_once(monkeypatch, *POLICIES.values())
    duration = request.config.getoption("--duration")
    seconds = min(duration / _ROUNDS, _LONGEST)
    with Storm(enclave("1-3"), policy, rng) as storm:
        storm.round(storm.actions, 10)
        before = KernelObjects.now()
        print(f"before: {before}")
        began = time.monotonic()
        while time.monotonic() - began < duration:
            storm.round(storm.anything(seconds), seconds)
            print(f"after {storm.count} actions: {before.settle()}; {kernel_events.counts()}")
            kernel_events.allow_repeats_for(time.monotonic() - began)
            kernel_log.lines()  # read before the kernel overwrites them

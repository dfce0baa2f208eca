# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the guest tier, which runs in a throw-away guest on a kernel with sched_ext.

A test fails if it leaves behind an enclave, a pin, an attached scheduler, an offline CPU or a task in SCHED_EXT, if
the kernel logged an error during the test, if the kernel counted events that a correct scheduler does not cause, or
if an agent's transactions were refused in a loop. Tests that provoke such lines or events call
``kernel_log.expect()`` and ``kernel_events.expect()``.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import sched_ext as kernel
from ghostbpf.loaders.errors import BpfError, GhostError, KernelUnsupported
from ghostbpf.schedulers import cgroups, core
from ghostbpf.schedulers.agents import AgentPolicySpec
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.errors import Ejected, TaskError
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.tasks import set_policy
from ghostbpf.schedulers.userspace import Agent, AgentPolicy, AgentProcess, spec_of

# With --import-mode=importlib, a test's own directory is not on the path.
sys.path.insert(0, str(Path(__file__).parent))
import done
from agents import MakeAgent, MakeAgentProcess, Manual
from failures import Failures
from kernel_events import KernelEvents
from kernel_log import KernelLog
from refusals import Refusals
from shared_core import SharedCore
from workload import DEADLINE, MakeEnclave, Workload, all_cpus, ext_tasks, present_cpus, set_online, until

#: The CPU of the test process and its helpers, so that they do not disturb enclaves, which use other CPUs.
HOME = 0

#: The time, in seconds, for killed tasks to end that are not children of the test process.
_DYING_S = 5.0


def pytest_addoption(parser: pytest.Parser) -> None:
    done.pytest_addoption(parser)
    parser.addoption("--duration", type=float, default=60, metavar="S", help="how long a test of the mark night takes")


def pytest_configure(config: pytest.Config) -> None:
    done.pytest_configure(config)
    config.pluginmanager.register(Failures(config))
    if config.option.seed is None:
        # Each run kills, interrupts and races at other moments.
        config.option.seed = random.randrange(1 << 32)


@pytest.fixture(scope="session")
def sched_ext() -> None:
    """Skip if the core cannot be attached."""
    try:
        status = kernel.status()
    except KernelUnsupported as error:
        pytest.skip(f"{error} ({error.hint})")
    if os.geteuid() != 0:
        pytest.skip("loading BPF needs root")
    if status.state != "disabled":
        pytest.skip(f"the sched_ext scheduler {status.ops or '?'} is running")
    if len(all_cpus()) < 4:
        pytest.skip("these tests need 4 CPUs")


@pytest.fixture(scope="session")
def session_core(sched_ext: None) -> Iterator[SharedCore]:
    """The core that the tests with the mark ``shared_core`` share."""
    core = SharedCore(HOME)
    yield core
    core.detach()


@pytest.fixture(autouse=True)
def shared_core(session_core: SharedCore, request: pytest.FixtureRequest) -> SharedCore:
    """Attach the shared core for tests with the mark ``shared_core``, but not ``own_core``; detach it for others."""
    if request.node.get_closest_marker("shared_core") and not request.node.get_closest_marker("own_core"):
        session_core.attach()
    else:
        session_core.detach()
    return session_core


@pytest.fixture
def kernel_log(shared_core: SharedCore) -> Iterator[KernelLog]:
    """The kernel's log since the test began."""
    log = KernelLog()
    yield log
    log.close()


@pytest.fixture
def kernel_events(shared_core: SharedCore) -> Iterator[KernelEvents]:
    """The kernel's events since the test began."""
    events = KernelEvents()
    yield events
    events.close()


@pytest.fixture(scope="session")
def refusals(sched_ext: None) -> Iterator[Refusals]:
    """Watch the agents of all tests for refused transactions."""
    watching = Refusals(HOME)
    yield watching
    watching.close()


@pytest.fixture(autouse=True)
def watched(
    shared_core: SharedCore, kernel_log: KernelLog, kernel_events: KernelEvents, refusals: Refusals
) -> Iterator[None]:
    """Fail the test if it left anything behind, and remove that."""
    keep = shared_core if shared_core.attached else None
    if not keep:
        assert kernel.status().state == "disabled", "the previous test could not be cleaned up"
    refusals.report()
    yield
    problems = [*_leftovers(keep), *(f"kernel: {line}" for line in kernel_log.trouble())]
    problems += [f"kernel event {line}" for line in kernel_events.trouble()]
    problems += refusals.report()
    if any("sched_ext" in line for line in problems):
        problems.append(kernel_log.dump())
    if problems or not keep:
        _clean_up()
        problems += [f"the clean-up did not remove: {what}" for what in _leftovers()]
    if problems:
        pytest.fail("\n".join(["the test left behind:", *problems]), pytrace=False)


@pytest.fixture
def workload(watched: None) -> Iterator[Workload]:
    """Make real tasks; they end with the test."""
    with Workload() as made:
        yield made


@pytest.fixture
def enclave(watched: None) -> Iterator[MakeEnclave]:
    """``enclave("1-2", "biff", slice="20ms")`` makes an enclave; it is destroyed with the test."""
    with contextlib.ExitStack() as made:

        def make(cpus: str, policy: str | Policy = "biff", **texts: str) -> Enclave:
            options = (POLICIES[policy] if isinstance(policy, str) else policy).parse(texts)
            return made.enter_context(Enclaves.temporary(options, CpuSet.parse(cpus), start_agent=False))

        yield make


@pytest.fixture
def agent(enclave: MakeEnclave, quiet: None) -> Iterator[MakeAgent]:
    """``agent("1-3", Manual)`` makes an enclave whose agent is the test process; drive() runs its turns."""
    made: list[Agent] = []

    def make(cpus: str, policy: type[AgentPolicy] = Manual, ring_bytes: int = 1 << 20, **options: str) -> Agent:
        spec = spec_of(policy)
        options = {"agent-timeout": "10s"} | {name.replace("_", "-"): value for name, value in options.items()}
        values = spec.parse(options).replace(ring_bytes=ring_bytes).values
        made.append(Agent(enclave(cpus, spec, **options), spec, values))
        made[-1].take_over()
        return made[-1]

    yield make
    for one in made:
        one.leave()


@pytest.fixture
def agent_process(watched: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeAgentProcess]:
    """``agent_process("1-3", "fifo_centralized")`` makes an enclave with an agent process, or gives it a new one."""
    # A machine that stands still for seconds makes no agent one that does not listen.
    monkeypatch.setattr("ghostbpf.schedulers.userspace.agent_main.END_TIMEOUT_S", DEADLINE)
    with contextlib.ExitStack() as made:

        def make(where: str | Enclave, policy: str | type[AgentPolicy], **texts: str) -> tuple[Enclave, AgentProcess]:
            spec = POLICIES[policy] if isinstance(policy, str) else spec_of(policy)
            assert isinstance(spec, AgentPolicySpec)
            options = spec.parse({name.replace("_", "-"): text for name, text in texts.items()})
            if isinstance(where, Enclave):
                agent = made.enter_context(AgentProcess(options))
                with Enclaves.change() as enclaves:
                    assert enclaves is not None
                    enclaves.get(where.id).set_policy(options, agent)
                return where, agent
            one = made.enter_context(Enclaves.temporary(options, CpuSet.parse(where)))
            assert isinstance(one.agent_process, AgentProcess)
            return one, one.agent_process

        yield make


@pytest.fixture
def governed(enclave: MakeEnclave, agent_process: MakeAgentProcess) -> MakeEnclave:
    """Like ``enclave``; a policy with agents gets them, and they decide every wakeup."""

    def make(cpus: str, policy: str = "biff", **options: str) -> Enclave:
        if isinstance(POLICIES[policy], AgentPolicySpec):
            return agent_process(cpus, policy, fastpath="off", **options)[0]
        return enclave(cpus, policy, **options)

    return make


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep the test process on CPU 0, away from enclaves; children of ``workload`` start with all CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {HOME})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def cgroup(tmp_path: Path) -> Iterator[Path]:
    """The directory of a cgroup with one ``below`` it, where the controllers cpu and cpuset can be used.

    What a test makes below it goes with it.
    """
    try:
        root, mounted = cgroups.mount_point(), False
    except GhostError:
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", tmp_path], check=True)
        root, mounted = tmp_path, True
    (root / "cgroup.subtree_control").write_text("+cpu +cpuset")
    top = root / "ghostbpf-test"
    (top / "below").mkdir(parents=True)
    (top / "cgroup.subtree_control").write_text("+cpu")
    yield top
    directories = [*filter(Path.is_dir, top.iterdir()), top]
    for directory in directories:
        # Else the kernel makes killed tasks wait for their quota before they end.
        (directory / "cpu.max").write_text("max")
    (top / "cgroup.kill").write_text("1")
    until(lambda: "populated 0" in (top / "cgroup.events").read_text(), "it is empty")
    for directory in directories:
        directory.rmdir()
    if mounted:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def _leftovers(keep: SharedCore | None = None) -> list[str]:
    """What a test left behind; ``keep`` is to be there, and is one if it is not."""
    found = []
    try:
        if (enclaves := Enclaves.open()) is not None:
            left = [one for one in enclaves if keep is None or one.id != keep.id]
            found += [f"enclave {one.id} ({one.policy} on CPU {one.cpus})" for one in left]
    except Ejected as ejected:
        found.append(f"{ejected}\n{ejected.dump[:4000]}")
    if keep:
        if not keep.attached:
            found.append("no shared core")
    else:
        found += _leftovers_of_core()
    if stray := _stray_tasks():
        found.append(f"in SCHED_EXT, though no enclave is left: {stray}")
    if missing := present_cpus() - all_cpus():
        found.append(f"CPU {missing} offline")
    return found


def _leftovers_of_core() -> list[str]:
    found = []
    if core.ROOT.exists():
        found += [f"pin {path}" for path in (core.ROOT, *core.ROOT.iterdir())]
    if (status := kernel.status()).state != "disabled":
        found.append(f"the scheduler {status.ops}, {status.state}")
    return found


def _stray_tasks() -> dict[int, str]:
    deadline = time.monotonic() + _DYING_S
    while (stray := ext_tasks()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return stray


def _clean_up() -> None:
    for cpu in present_cpus() - all_cpus():
        set_online(cpu, True)
    with contextlib.suppress(Ejected, BpfError), Enclaves.change() as enclaves:
        for one in enclaves or ():
            one.destroy()
    if core.ROOT.exists():
        core.clear_pins()
        shutil.rmtree(core.ROOT, ignore_errors=True)
    for tid in ext_tasks():
        with contextlib.suppress(TaskError):
            set_policy(tid, os.SCHED_OTHER)
    kernel.wait_disabled()

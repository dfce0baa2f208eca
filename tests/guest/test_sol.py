# SPDX-License-Identifier: Apache-2.0
"""SOL: no task waits for a CPU while another idles, and no message or decision is lost at full speed."""

from __future__ import annotations

import os
import re
import resource
import time

import pytest
from agents import PATIENT, MakeAgentProcess
from command import ghostbpf
from ghostbpf.schedulers.enclave import Enclave
from workload import Me, Workload, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]


def test_task_committed_behind_another_runs_on_a_cpu_that_idles(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    one, _ = agent_process("1-2", "sol", **PATIENT)
    sleeper = workload.sleeper(one, cpus=[1])
    stays, ends = workload.spinner(one, cpus=[1]), workload.spinner(one, cpus=[2])
    for holder in (stays, ends):
        holder.progress()
    os.sched_setaffinity(sleeper.pid, {1, 2})
    loops = sleeper.loops
    committed = _committed(one)
    sleeper.wake()
    until(lambda: _committed(one) > committed, "it is committed to a busy CPU")
    ends.stop()
    until(lambda: sleeper.loops > loops, "it runs on the idle CPU")
    stays.progress()


@pytest.mark.soak
@pytest.mark.parametrize("spin", ["no", "yes"])
def test_nothing_is_lost_at_full_speed(workload: Workload, agent_process: MakeAgentProcess, spin: str) -> None:
    """Each yield is a message and a decision; none is lost or repeated."""
    one, agent = agent_process("1-3", "sol", spin=spin, **PATIENT)
    yields, tasks = 300, 20

    def body(me: Me) -> None:
        for _ in range(yields):
            me.note()
            os.sched_yield()

    children = [workload.spawn(body, one, start=False) for _ in range(tasks)]
    for child in children:
        child.wake()
    assert [child.wait() for child in children] == [0] * tasks
    assert [child.loops for child in children] == [yields] * tasks
    assert agent.check()
    state = one.agent
    assert state is not None
    assert (state.timeouts, state.lost) == (0, 0)
    assert state.committed >= yields * tasks
    assert state.messages >= yields * tasks
    assert 0 < state.busy_ns <= state.age_ns
    assert state.rate <= state.capacity
    shown = ghostbpf("enclave", "show", one.id).out
    load = re.search(r"load: .*%: .* messages/s, .* a turn, queue .*/decision", shown)
    assert load is not None, shown
    print(load.group())


@pytest.mark.soak
def test_tasks_that_spin_and_sleep_run_once_for_each_decision(
    workload: Workload, agent_process: MakeAgentProcess
) -> None:
    """ghOSt's sol_test: five tasks per CPU spin and sleep. The efficiency it prints depends on the machine."""
    one, agent = agent_process("1-3", "sol", **PATIENT)
    tasks, rounds = 15, 40
    for spin_us in (1000, 750, 500, 250, 100, 50):
        print(f"{spin_us / 1000:.2f} msecs")
        for sleep_us in (spin_us, spin_us // 2, spin_us // 10):

            def body(me: Me, spin_us: int = spin_us, sleep_us: int = sleep_us) -> None:
                me.block()
                before = _sleeps()
                for _ in range(rounds):
                    me.spin(spin_us / 1000)
                    time.sleep(sleep_us / 1e6)
                    me.note()
                me.set(_sleeps() - before)

            children = [workload.spawn(body, one).asleep() for _ in range(tasks)]
            committed, began = _committed(one), time.monotonic_ns()
            for child in children:
                child.wake()
            assert [child.wait() for child in children] == [0] * tasks
            actual = time.monotonic_ns() - began
            # A task that slept and runs on was committed to a CPU in between.
            slept = sum(child.value for child in children)
            assert slept > 0
            assert _committed(one) - committed >= slept
            ideal = rounds * 1000 * max(spin_us * tasks / len(one.cpus), spin_us + sleep_us)
            print(f"  sleep {sleep_us / 1000:.3f} ms: efficiency {100 * ideal / actual:.1f} %")
    assert agent.check()
    assert one.agent is not None
    assert (one.agent.timeouts, one.agent.lost) == (0, 0)


def _sleeps() -> int:
    """The number of voluntary switches of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _committed(enclave: Enclave) -> int:
    assert enclave.agent is not None
    return enclave.agent.committed

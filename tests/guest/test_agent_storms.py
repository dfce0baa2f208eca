# SPDX-License-Identifier: Apache-2.0
"""Storms: hundreds of thousands of messages, forks, affinity changes, and the scheduler stressors of stress-ng."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from agents import MakeAgent, MakeAgentProcess, drive
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers.enclave import Enclave
from ghostbpf.schedulers.userspace import Message, MessageType, turns
from workload import DEADLINE, MakeEnclave, Me, Workload, all_cpus, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

SOAKED = ("sol", "shinjuku", "edf")
ENDS = (MessageType.TASK_DEAD, MessageType.TASK_DEPARTED)


@pytest.mark.parametrize(
    "count",
    [pytest.param(10_000, marks=pytest.mark.kernel_independent), pytest.param(1_000_000, marks=pytest.mark.marathon)],
)
@pytest.mark.timeout(1200)
def test_messages_of_each_task_come_in_order_and_without_a_gap(
    workload: Workload, agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(turns, "native", None)  # checked() sees what Python code reads
    one = agent("1-3", ring_bytes=1 << 24)
    seen: dict[int, int] = {}
    ended: set[int] = set()
    total = departures = 0
    read = one._channel.read

    def checked() -> list[tuple[int, ...]]:
        nonlocal total, departures
        records = read()
        assert one._channel.record.lost == 0
        for record in records:
            message = Message(*record)
            if not message.gtid:
                continue
            assert message.gtid not in ended, f"{message} follows the last message of its task"
            assert message.seq == seen.get(message.gtid, 0) + 1, f"{message} follows number {seen.get(message.gtid)}"
            assert (message.seq == 1) == (message.type == MessageType.TASK_NEW)
            seen[message.gtid] = message.seq
            if message.type in ENDS:
                ended.add(message.gtid)
                departures += message.type == MessageType.TASK_DEPARTED
        total += len(records)
        return records

    one._channel.read = checked

    def forks(me: Me) -> None:
        while not me.stopped:
            if not (pid := os.fork()):
                os._exit(0)
            os.waitpid(pid, 0)

    def moves(me: Me) -> None:
        while not me.stopped:
            for child in targets:
                os.sched_setaffinity(child.pid, {1, 2})
                os.sched_setaffinity(child.pid, {2, 3})
            time.sleep(0.0005)  # without a pause, the ring would overflow before it is read

    def expels(me: Me) -> None:
        while not me.stopped:
            os.sched_setscheduler(guest.pid, os.SCHED_OTHER, os.sched_param(0))
            one.enclave.add(guest.pid)
            time.sleep(0.01)

    *targets, guest = [workload.spinner(one.enclave) for _ in range(3)]
    children = [workload.spawn(forks, one.enclave) for _ in range(3)] + [
        workload.spawn(moves),
        workload.spawn(expels),
    ]
    drive(one, lambda: total > count, f"{count} messages", seconds=1100)
    for child in [*children, *targets, guest]:
        child.stop(wait=False)
    drive(one, lambda: not any(child.alive for child in [*children, *targets, guest]), "all end")
    assert departures > 0
    print(f"{total} messages of {len(seen)} tasks")


@pytest.mark.soak
@pytest.mark.parametrize("policy", SOAKED)
def test_thousand_threads_all_finish(workload: Workload, agent_process: MakeAgentProcess, policy: str) -> None:
    one, agents = agent_process("1-3", policy)

    def sleep_yield_sleep() -> None:
        time.sleep(0.01)
        os.sched_yield()
        time.sleep(0.01)

    crowd = workload.crowd(1000, sleep_yield_sleep, one)
    until(lambda: crowd.value == 1000, "all threads have started")
    crowd.wake()
    # Slices of 50 us are far shorter than a decision takes in an emulated guest: shinjuku needs a minute.
    assert crowd.wait(240 if policy == "shinjuku" else DEADLINE) == 0
    until(lambda: one.nr_tasks == 0, "the enclave is empty")
    assert agents.check()


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_exiting_threads_finish_without_a_commit(workload: Workload, agent_process: MakeAgentProcess) -> None:
    """A thread that is preempted while it exits has no pid any more, so no transaction can name it."""
    one, agents = agent_process("1-3", "fifo_per_cpu")
    crowd = workload.crowd(400, lambda: time.sleep(0.01), one)
    until(lambda: crowd.value == 400, "all threads have started")
    crowd.wake()
    assert crowd.wait() == 0
    until(lambda: not one.task_states(), "all end before the core runs uncommitted tasks, after 5 s", 2)
    assert agents.check()


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    "policy",
    [
        "fifo_centralized",
        *(
            pytest.param(policy, marks=pytest.mark.soak)
            for policy in ("biff", "rr", "cfs_bpf", "fifo_per_cpu", *SOAKED)
        ),
    ],
)
def test_changing_affinities_and_nice_values_strand_no_task(
    workload: Workload, governed: MakeEnclave, policy: str
) -> None:
    one = governed("1-3", policy)
    children = [workload.napper(one) for _ in range(6)]
    end = time.monotonic() + 5
    turn = 0
    while time.monotonic() < end:
        turn += 1
        child = children[turn % 6]
        os.sched_setaffinity(child.pid, {1 + turn % 3} if turn % 2 else {1, 2, 3})
        os.setpriority(os.PRIO_PROCESS, child.pid, turn % 20)
    for child in children:
        child.progress()
    assert one.agent is None or one.agent.state == "deciding"


@pytest.mark.marathon
def test_thousand_forked_processes_all_finish(workload: Workload, agent_process: MakeAgentProcess) -> None:
    one, agents = agent_process("1-3", "fifo_centralized", fastpath="off")

    def breed(me: Me) -> None:
        for _ in range(125):
            if not (pid := os.fork()):
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

    children = [workload.spawn(breed, one) for _ in range(8)]
    for child in children:
        assert child.wait(200) == 0
    assert agents.check()
    until(lambda: one.nr_tasks == 0, "the enclave is empty")


@pytest.mark.marathon
@pytest.mark.timeout(400)
@pytest.mark.parametrize("policy", ["fifo_centralized", "fifo_per_cpu"])
@pytest.mark.parametrize(
    "stressor", ["--schedmix 4", "--cpu-sched 4", "--affinity 4", "--cpu-online 1 --cpu 3", "--switch 4 --yield 2"]
)
def test_stress_ng_succeeds_for_a_minute_under_the_agents_decisions(
    workload: Workload, agent_process: MakeAgentProcess, policy: str, stressor: str
) -> None:
    one, agents = agent_process("1-3", policy, fastpath="off")
    gate, go = os.pipe()
    command = ["sh", "-c", f"read go; exec stress-ng {stressor} --timeout 60 --verbose"]
    done = subprocess.Popen(command, stdin=gate, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.sched_setaffinity(done.pid, set(all_cpus()))
    one.add(done.pid)
    os.write(go, b"\n")
    output, _ = done.communicate(timeout=300)
    os.close(gate)
    os.close(go)
    assert done.returncode == 0, output[-3000:]
    assert agents.check()
    assert one.agent is not None
    print(f"{one.agent.committed} decisions, {one.agent.timeouts} time-outs")
    assert one.agent.committed > 100
    sleeper = workload.sleeper(one)

    def is_wakeup_committed() -> bool:
        """Wake the only task that is left; a pause of the machine may let the core decide."""
        before, loops = _committed(one), sleeper.asleep().loops
        sleeper.wake()
        until(lambda: sleeper.loops > loops, "it runs")
        return _committed(one) > before

    until(is_wakeup_committed, "the agent still decides")
    assert sched_ext.status().state == "enabled"


def _committed(enclave: Enclave) -> int:
    agent = enclave.agent
    assert agent is not None
    return agent.committed

# SPDX-License-Identifier: Apache-2.0
"""Messages and transactions one by one, with the test as the agent: the messages, and the result of each commit."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from random import Random

import pytest
from agents import MakeAgent, Manual, asleep, drive, manual, task_of
from ghostbpf.schedulers.agents.task import BLOCKED, HEAD, LATCHED, ON_CPU, PREEMPT, WAITING
from ghostbpf.schedulers.core import constant
from ghostbpf.schedulers.userspace import Agent, AgentPolicy, Task, Transaction, TxnState, spec_of
from workload import (
    DEADLINE,
    Child,
    MakeEnclave,
    Me,
    Workload,
    in_ext,
    is_off_cpu,
    last_cpu,
    offline,
    runtime_ns,
    until,
)

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

AT_REST, WOKEN = constant("AGENT_IDLE"), constant("AGENT_WOKEN")


def sleeper(workload: Workload, agent: Agent) -> Child:
    """A sleeping task of the agent's enclave; with each wake() it calls note() once."""

    def body(me: Me) -> None:
        while not me.stopped:
            me.block()
            me.note()

    manual(agent).auto = True
    return asleep(agent, workload.spawn(body, agent.enclave))


def spinner(workload: Workload, agent: Agent, cpu: int) -> tuple[Child, Task]:
    """A spinner bound to ``cpu``: if a higher class took ``cpu``, an idle CPU would run an unbound one."""
    child = workload.spinner(agent.enclave, cpus=[cpu])
    task = task_of(agent, child)
    assert agent.commit([Transaction(task, cpu)]) == [TxnState.COMPLETE]
    manual(agent).kept[task] = cpu  # also after a higher class has preempted it
    drive(agent, lambda: child.loops and child.at == cpu, f"it spins on CPU {cpu}")
    return child, task


def agent_of(one: Agent, cpu: int) -> Agent:
    """The test as the agent of ``cpu``, too; it decides nothing."""
    spec = spec_of(Manual)
    made = Agent(one.enclave, spec, spec.parse({"agent-timeout": "10s"}).values, cpu=cpu)
    manual(made)
    home = os.sched_getaffinity(0)
    made.take_over()
    os.sched_setaffinity(0, home)
    return made


def woken(agent: Agent, child: Child) -> Task:
    """Wake a sleeper; returns its task, which waits for a CPU."""
    child.wake()
    return task_of(agent, child)


def test_committed_task_runs_on_the_cpu_of_its_transaction(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-3")
    child = sleeper(workload, one)
    as_committed = 0
    for turn in range(6):
        cpu = 1 + turn % 3
        loops = child.loops
        task = woken(one, child)
        assert child.loops == loops, "it waits for a decision"
        assert one.commit([Transaction(task, cpu)]) == [TxnState.COMPLETE]
        assert task.state == LATCHED
        asleep(one, child)
        assert child.loops == loops + 1
        assert one.status_words[task.word].state == BLOCKED
        as_committed += child.at == cpu
    assert as_committed >= 3, "all but the tasks whose CPU another class took"


@pytest.mark.kernel_independent
@pytest.mark.own_core
def test_each_refused_transaction_has_its_own_code_and_strands_no_task(
    workload: Workload, agent: MakeAgent, enclave: MakeEnclave
) -> None:
    one = agent("1-3")
    other = enclave("0", "biff")
    gone, away = workload.spinner(one.enclave), workload.spinner(one.enclave)
    dead, moved = task_of(one, gone), task_of(one, away)
    other.add(away.pid)
    away.progress()
    os.kill(gone.pid, signal.SIGKILL)
    manual(one).auto = True
    drive(one, lambda: not gone.alive, "it ends")
    runs, running = spinner(workload, one, 1)
    children = [sleeper(workload, one) for _ in range(2)]
    waits, sleeps = woken(one, children[0]), _known(one, children[1])
    stale = Task(waits.gtid)
    stale.seq, stale.word, stale.allowed = waits.seq - 1, waits.word, waits.allowed
    nobody = Task(1 << 40 | 1)
    nobody.seq = nobody.word = 0
    drive(one, lambda: one.commit([Transaction(running, 2)]) == [TxnState.ON_CPU], "the commit finds the task on a CPU")
    expected = [
        (sleeps, 2, TxnState.NOT_RUNNABLE),
        (dead, 2, TxnState.NOT_FOUND),
        (moved, 2, TxnState.NOT_PERMITTED),
        (nobody, 2, TxnState.NOT_FOUND),
        (stale, 2, TxnState.STALE),
        (waits, 0, TxnState.INVALID_CPU),
        (waits, -1, TxnState.INVALID_CPU),
        (waits, 4000, TxnState.INVALID_CPU),
        (None, 0, TxnState.INVALID_CPU),
    ]
    for task, cpu, code in expected:
        assert one.commit([Transaction(task, cpu)]) == [code], (task, cpu)
        assert one.status_words[waits.word].state == WAITING
    os.sched_setaffinity(children[0].pid, {1, 2})
    drive(one, lambda: waits.allowed == 0b110, "the agent reads of the new affinity")
    assert one.commit([Transaction(waits, 3)]) == [TxnState.INVALID_CPU]
    assert one.commit([Transaction(waits, 2)]) == [TxnState.COMPLETE]
    asleep(one, children[0])
    assert children[0].at in (1, 2), "a CPU of its affinity: 1 if another class has 2"
    # Taking a CPU offline may take longer than the core lets a task wait for a commit: wake the task after that.
    with offline(3):
        drive(
            one,
            lambda: one.commit([Transaction(None, 3)]) == [TxnState.CPU_OFFLINE],
            "the commit finds the CPU offline",
        )
        late = woken(one, children[1])
        assert one.commit([Transaction(late, 3)]) == [TxnState.CPU_OFFLINE]
        assert one.commit([Transaction(late, 2)]) == [TxnState.COMPLETE]
        asleep(one, children[1])
    runs.progress()
    away.progress()


def _known(agent: Agent, child: Child) -> Task:
    return next(task for task in agent.tasks.values() if task.tid == child.pid)


@pytest.mark.kernel_independent(on="oldest")
def test_commit_of_a_task_that_ended_is_not_found(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    for _ in range(20):
        child = workload.spinner(one.enclave)
        task = task_of(one, child)
        os.kill(child.pid, signal.SIGKILL)
        # A killed task needs a CPU to end on.
        assert one.commit([Transaction(task, 1)]) == [TxnState.COMPLETE]
        manual(one).auto = True
        drive(one, lambda child=child: not child.alive, "it ends")
        assert one.commit([Transaction(task, 1)]) == [TxnState.NOT_FOUND]


@pytest.mark.kernel_independent
def test_group_is_all_or_nothing(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-3")
    children = [sleeper(workload, one) for _ in range(3)]
    for turn in range(20):
        tasks = [woken(one, child) for child in children]
        loops = [child.loops for child in children]
        wrong = turn % 3
        group = [Transaction(task, 0 if n == wrong else 1 + n) for n, task in enumerate(tasks)]
        expected = [TxnState.INVALID_CPU if n == wrong else TxnState.POISONED for n in range(3)]
        assert one.commit(group, group=True) == expected
        assert [child.loops for child in children] == loops
        assert all(one.status_words[task.word].state == WAITING for task in tasks)
        group = [Transaction(task, 1 + n) for n, task in enumerate(tasks)]
        assert one.commit(group, group=True) == [TxnState.COMPLETE] * 3
        for child in children:
            asleep(one, child)
        assert [child.loops for child in children] == [n + 1 for n in loops]
    with pytest.raises(ValueError, match="at most 64"):
        one.commit([Transaction(None, 1)] * 65, group=True)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_take_moves_the_tasks_that_have_waited_longest_for_another_cpu(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-3")
    spinner(workload, one, 1)  # so that a task committed to CPU 1 waits for its turn
    sleepers = [sleeper(workload, one) for _ in range(3)]
    os.sched_setaffinity(sleepers[1].pid, {1, 3})
    first, second = (
        agent_of(one, 1),
        agent_of(one, 2),
    )  # before any task waits: making an agent takes seconds on a slow machine
    latched = task_of(one, workload.spinner(one.enclave))
    tasks = [latched, *(woken(one, child) for child in sleepers)]
    assert all(one.associate(task, 1) for task in tasks)
    first.turn()
    assert first.commit([Transaction(first.tasks[latched.gtid], 1)]) == [TxnState.COMPLETE]
    assert one.loads() == {1: 4, 2: 0}
    assert second.take(9, 3) == 0, "CPU 9 has no agent"
    assert second.take(1, 1) == 1
    assert second.take(9) == 1, "one task is committed, and one may not run on CPU 2"
    assert one.loads() == {1: 2, 2: 2}
    second.turn()
    assert list(second.tasks) == [tasks[1].gtid, tasks[3].gtid]
    assert first.take(9, 2) == 2
    assert one.loads() == {1: 4, 2: 0}


@pytest.mark.kernel_independent
def test_preempting_commit_takes_the_cpu_at_once(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1")
    hog, victim = spinner(workload, one, 1)
    child = sleeper_beside(workload, one)
    for turn in range(10):
        del manual(one).log[:]
        task = woken(one, child)
        if turn % 2:
            assert one.commit([Transaction(task, 1, flags=PREEMPT)]) == [TxnState.COMPLETE]
        else:
            assert one.commit([Transaction(task, 1)]) == [TxnState.COMPLETE]
            assert one.commit([Transaction(None, 1, flags=PREEMPT)]) == [TxnState.COMPLETE]
        drive(one, lambda turn=turn: child.loops == turn + 1 and ("preempt", victim) in manual(one).log, "it runs")
        loops = hog.loops
        drive(one, lambda loops=loops: hog.loops > loops, "the hog runs on")


def sleeper_beside(workload: Workload, agent: Agent, say: int | None = None) -> Child:
    """A sleeper that joins the enclave asleep, so that it needs no CPU to join. Awake, it may log ``say``."""

    def body(me: Me) -> None:
        me.note()
        if say is not None:
            me.log(say)

    child = workload.sleeper(then=body)
    agent.enclave.add(child.pid)
    return child


@pytest.mark.kernel_independent
def test_commit_with_head_runs_before_tasks_committed_earlier(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1")
    hog, _ = spinner(workload, one, 1)
    children = [sleeper_beside(workload, one, say=n) for n in range(3)]
    tasks = [woken(one, child) for child in children]
    # As a group, or the CPU might run the first before the last is committed.
    group = [Transaction(tasks[0], 1), Transaction(tasks[1], 1), Transaction(tasks[2], 1, flags=HEAD)]
    assert one.commit(group, group=True) == [TxnState.COMPLETE] * 3
    hog.kill()
    order: list[int] = []
    drive(one, lambda: order.extend(int(word) for _, word in workload.read_log()) or len(order) == 3, "every task runs")
    one.turn()
    # A task that another class preempted may have been preempted before its line was written.
    counts = [n for n in (2, 0, 1) if ("preempt", tasks[n]) not in manual(one).log]
    assert [n for n in order if n in counts] == counts
    assert len(counts) >= 2


@pytest.mark.kernel_independent
def test_committed_task_can_be_committed_elsewhere(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    spinner(workload, one, 1)
    moved = 0
    for _ in range(5):
        child = sleeper_beside(workload, one)
        task = woken(one, child)
        # In one batch, since CPU 1 runs a committed task as soon as another class preempts the spinner.
        assert one.commit([Transaction(task, 1), Transaction(task, 2)])[0] == TxnState.COMPLETE
        drive(one, lambda child=child: child.loops == 1, "it runs")
        moved += child.at == 2
    assert moved >= 3, "all but the tasks that CPU 1 had run already"


@pytest.mark.kernel_independent
def test_committed_slice_ends_with_a_preempt_message(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1")
    child = workload.spinner(one.enclave)
    drive(one, lambda: child.loops > 1000, "it has no more page faults, and only spins")
    manual(one)
    (task,) = one.tasks.values()
    drive(
        one, lambda: task.state == WAITING or not one.commit([Transaction(None, 1, flags=PREEMPT)]), "it is preempted"
    )
    for _ in range(5):
        before = task.runtime_ns
        one.commit([Transaction(task, 1, slice_ns=5_000_000)])
        drive(one, lambda: task.state == WAITING, "its slice ends")
        assert manual(one).log[-1] == ("preempt", task)
        assert task.boosted or task.runtime_ns - before >= 4_000_000
    manual(one).kept[task] = 1
    drive(one, lambda: child.loops > 20_000, "it runs without an end of its slice")
    drive(one, lambda: one.status_words[task.word].state == ON_CPU, "it runs on, or runs again after a higher class")


@pytest.mark.kernel_independent
def test_each_change_of_a_task_is_a_message(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")

    def body(me: Me) -> None:
        os.sched_yield()
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        me.block()

    child = workload.spawn(body, start=False)
    os.setpriority(os.PRIO_PROCESS, child.pid, 1)
    one.enclave.add(child.pid)
    child.wake()
    (task,) = drive(one, lambda: list(one.tasks.values()), "the agent reads of the task")
    assert task.weight == 80, "nice 1"
    drive(one, lambda: is_off_cpu(child.pid), "it sleeps")
    os.sched_setaffinity(child.pid, {1})
    drive(one, lambda: task.allowed == 0b10, "the agent reads of its affinity")
    child.wake()
    drive(one, lambda: not child.alive and not one.tasks, "it has ended")
    log = [what for what, of in manual(one).log if of is task]
    assert (log[0], log[-1]) == ("new", "dead")
    # It may also have waited for a page of its program, or for a CPU held by another class.
    rest = iter(log)
    for what in ("new", "yield", "priority_changed", "blocked", "affinity_changed", "wakeup", "dead"):
        assert what in rest, log
    assert task.weight == 33, "nice 5"


@pytest.mark.kernel_independent
def test_departing_is_a_message_and_a_task_that_returns_has_a_new_gtid(
    workload: Workload, agent: MakeAgent, enclave: MakeEnclave
) -> None:
    one = agent("1-2")
    other = enclave("3", "biff")
    sleeping = sleeper(workload, one)
    runs, running = spinner(workload, one, 1)
    waiting = workload.spinner(one.enclave, cpus=[2])
    waits = task_of(one, waiting)
    sleeps = _known(one, sleeping)
    one.enclave.remove(runs.pid)
    os.sched_setscheduler(waiting.pid, os.SCHED_OTHER, os.sched_param(0))
    other.add(sleeping.pid)
    drive(one, lambda: not one.tasks, "all have departed")
    departed = [task for what, task in manual(one).log if what == "departed"]
    assert {task.gtid for task in departed} == {running.gtid, waits.gtid, sleeps.gtid}
    runs.progress()
    waiting.progress()
    sleeping.wake()
    until(lambda: sleeping.at == 3, "it runs in the other enclave")
    one.enclave.add(sleeping.asleep().pid)
    again = woken(one, sleeping)
    assert again.gtid not in {running.gtid, waits.gtid, sleeps.gtid}, "a gtid is never used again"


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_forked_child_is_a_new_task(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")

    def body(me: Me) -> None:
        if not (pid := os.fork()):
            os._exit(0 if in_ext(os.getpid()) else 1)
        assert os.waitpid(pid, 0)[1] == 0

    child = workload.spawn(body, one.enclave)
    drive(one, lambda: not child.alive, "both end")
    assert child.wait() == 0
    new = [task for what, task in manual(one).log if what == "new"]
    assert len(new) == 2
    assert new[1].tgid == new[1].tid != new[0].tid


@pytest.mark.kernel_independent
def test_idle_and_tick_of_a_cpu_are_messages(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    child, _ = spinner(workload, one, 1)
    one.ticks(True)
    drive(one, lambda: ("tick", 1) in manual(one).cpu_log, "ticks of CPU 1")
    one.ticks(False)
    assert ("tick", 2) not in manual(one).cpu_log
    waiting = workload.spinner(one.enclave)
    task_of(one, waiting)
    child.kill()
    drive(one, lambda: ("idle", 1) in manual(one).cpu_log, "CPU 1 idles")


@pytest.mark.kernel_independent
def test_agent_at_rest_is_woken_only_for_messages_that_ask_for_a_decision(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    child = sleeper(workload, one)
    channel = one._channel
    quiet = False
    while not quiet:
        task = woken(one, child)
        asked = channel.record.answered
        assert one.commit([Transaction(task, 1)]) == [TxnState.COMPLETE]
        until(lambda: channel.wait(0), "it sleeps, or another class has preempted it, or a CPU asks for a task")
        quiet = one.status_words[task.word].state == BLOCKED and channel.record.asked == asked
        if quiet:
            assert channel.record.state == AT_REST
        manual(one).auto = True
        asleep(one, child)
    child.wake()
    until(lambda: channel.record.state == WOKEN, "the agent is woken")


@pytest.mark.kernel_independent
def test_task_committed_to_the_cpu_of_an_agent_that_does_not_sleep_runs_on_another(
    workload: Workload, agent: MakeAgent
) -> None:
    one = agent("1-2")
    task = woken(one, sleeper(workload, one))
    os.sched_setaffinity(0, {1})
    assert one.commit([Transaction(task, 1)]) == [TxnState.COMPLETE]
    end = time.monotonic() + DEADLINE
    while one.status_words[task.word].state == WAITING:
        assert time.monotonic() < end


class Watches(Manual):
    """Gets a message when a higher class takes or returns a CPU."""

    name = "watches"
    watches_cpus = True


def test_cpu_taken_by_a_higher_class_is_a_message_to_an_agent_that_watches_cpus(
    workload: Workload, agent: MakeAgent
) -> None:
    one = agent("1-2", Watches)

    def messages() -> list[str]:
        return [what for what, cpu in manual(one).cpu_log if cpu == 1 and what in ("busy", "available")]

    hog = workload.spinner(cpus=[1])
    hog.progress()
    drive(one, lambda: messages()[-1:] == ["busy"], "the hog has CPU 1")
    hog.stop()
    drive(one, lambda: messages()[-1:] == ["available"], "CPU 1 is back")
    # A class that had the CPU when the agent took over may leave it first.
    assert all(before != after for before, after in itertools.pairwise(messages()))


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_agent_that_does_not_watch_cpus_gets_no_message_of_higher_classes(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    hog = workload.spinner(cpus=[1])
    hog.progress(100)
    one.turn()
    assert not {"busy", "available"} & {what for what, _ in manual(one).cpu_log}


@pytest.mark.kernel_independent
def test_replaced_agent_may_not_commit(workload: Workload, agent: MakeAgent) -> None:
    one = agent("1-2")
    task = task_of(one, workload.spinner(one.enclave))
    channel = one._channel.record
    channel.tid, mine = 1, channel.tid
    assert one.commit([Transaction(task, 1)]) == [TxnState.NOT_PERMITTED]
    channel.tid = mine


@pytest.mark.kernel_independent(on="oldest")
def test_affinity_changed_after_the_commit_strands_no_task(workload: Workload, agent: MakeAgent) -> None:
    """A committed task whose new affinity excludes the CPU waits again, with a message, and runs elsewhere."""
    one = agent("1-3")
    for cpu in (1, 2, 3):
        spinner(workload, one, cpu)
    child = sleeper_beside(workload, one)
    waited = 0
    for turn in range(25):
        cpu, loops = 1 + turn % 3, child.loops
        os.sched_setaffinity(child.pid, {1, 2, 3})
        task = woken(one, child)
        assert one.commit([Transaction(task, cpu)]) == [TxnState.COMPLETE]
        os.sched_setaffinity(child.pid, {1, 2, 3} - {cpu})
        # It runs in time if a higher class preempts the hog before the affinity changes.
        drive(one, lambda task=task, loops=loops: task.state == WAITING or child.loops > loops, "it waits again")
        if task.state == WAITING:
            waited += 1
            elsewhere = min({1, 2, 3} - {cpu})
            assert one.commit([Transaction(task, elsewhere, flags=PREEMPT)]) == [TxnState.COMPLETE]
            drive(one, lambda loops=loops: child.loops > loops, "it runs")
            assert last_cpu(asleep(one, child).pid) != cpu
        asleep(one, child)
    assert waited > 5


class CommitsAll(AgentPolicy):
    """Commits each waiting task in each turn: to CPU 1 if its affinity allows that, else to CPU 2."""

    name = "commits_all"
    fastpath = False

    def enqueue(self, task: Task) -> None:
        """Nothing: schedule() iterates over all tasks."""

    def dequeue(self, task: Task) -> None:
        """Nothing."""

    def schedule(self) -> Iterator[Transaction]:
        for task in self.agent.tasks.values():
            if task.state == WAITING:
                yield Transaction(task, 1 if task.may_run_on(1) else 2, 5_000_000)


@pytest.mark.kernel_independent
def test_commit_against_changes_of_affinity_leaves_no_task_on_a_forbidden_cpu(
    workload: Workload, agent: MakeAgent, rng: Random
) -> None:
    one = agent("1-2", CommitsAll)
    pids = [workload.spinner(one.enclave, cpus=[1, 2]).pid for _ in range(6)]

    def flip(me: Me) -> None:
        while not me.stopped:
            pid = rng.choice(pids)
            os.sched_setaffinity(pid, {1})
            os.sched_setaffinity(pid, {2} if rng.random() < 0.7 else {1})
            me.note()

    for _ in range(3):
        flipper = workload.spawn(flip, cpus=[3])
        drive(one, lambda flipper=flipper: flipper.loops >= 200, "affinities change")
        flipper.kill()
        before = [runtime_ns(pid) for pid in pids]
        drive(one, lambda before=before: all(map(int.__lt__, before, map(runtime_ns, pids))), "each has a turn")

# SPDX-License-Identifier: Apache-2.0
"""cfs with weighed cgroups: its queue alone, and its agents on a model of the kernel."""

from __future__ import annotations

from collections.abc import Callable

from ghostbpf.schedulers.agents.status_words import CGROUP_WEIGHT_ONE
from ghostbpf.schedulers.userspace import CFS
from ghostbpf.schedulers.userspace.cfs import Cfs
from ghostbpf.schedulers.userspace.fair import FairQueue, FairTask, GroupedFairQueue
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_model import World
from kernel_model.state import Task

MS = 10**6
weights = st.sampled_from([CGROUP_WEIGHT_ONE * weight // 100 for weight in (1, 30, 100, 400, 1600, 10_000)])
turns = st.lists(st.integers(1, 20 * MS), min_size=50, max_size=100)


class Model(FairTask):
    """A task that may run, in a cgroup or not."""

    def __init__(self, cgroup: int = 0, cgroup_weight: int = CGROUP_WEIGHT_ONE, weight: int = 100) -> None:
        super().__init__(1)
        self.weight, self.group = weight, (cgroup, cgroup_weight)


class Cpu:
    """What the agent of a CPU does with its queue when tasks wait, run and sleep."""

    def __init__(self) -> None:
        self.queue: GroupedFairQueue[Model] = GroupedFairQueue()
        self.running: Model | None = None
        self.now_ns = 0

    def wait(self, task: Model) -> None:
        self.now_ns += 1
        task.queued_ns = self.now_ns
        self.queue.charge(task, task.runtime_ns)
        self.queue.advance(self.running)
        self.queue.join(task, *task.group)
        self.queue.add(task)

    def sleep(self) -> None:
        """The running task sleeps, or ends."""
        if self.running is not None:
            self.queue.charge(self.running, self.running.runtime_ns)
            self.queue.advance(self.running)
        self.running = None

    def turn(self, ns: int) -> Model:
        """The next task runs for ``ns``, and waits again."""
        task = self.pick()
        task.runtime_ns += ns
        self.wait(task)
        self.running = None
        return task

    def pick(self) -> Model:
        self.running = self.queue.pop_least()
        assert self.running is not None
        return self.running


def _shares(tasks: list[list[Model]]) -> list[float]:
    ran = [sum(task.runtime_ns for task in group) for group in tasks]
    return [one / max(sum(ran), 1) for one in ran]


@settings(max_examples=50)
@given(st.lists(st.tuples(weights, st.integers(1, 4)), min_size=2, max_size=5), turns)
def test_cgroups_share_by_weight_within_one_turn_each_whatever_the_number_of_tasks(
    given: list[tuple[int, int]], turns: list[int]
) -> None:
    cpu = Cpu()
    groups = [[Model(number, weight) for _ in range(count)] for number, (weight, count) in enumerate(given, start=1)]
    for group in groups:
        for task in group:
            cpu.wait(task)
    for turn in turns:
        cpu.turn(turn)
    for group, (weight, _) in zip(groups, given, strict=True):
        for other, (other_weight, _) in zip(groups, given, strict=True):
            share, other_share = (
                sum(task.runtime_ns for task in each) * CGROUP_WEIGHT_ONE / one
                for each, one in ((group, weight), (other, other_weight))
            )
            assert share - other_share <= max(turns) * CGROUP_WEIGHT_ONE / weight + 2 * len(turns)


def test_tasks_of_a_cgroup_share_by_nice_value_and_tasks_of_none_beside_it() -> None:
    cpu = Cpu()
    groups = [[Model(1, 4 * CGROUP_WEIGHT_ONE)], [Model(1, 4 * CGROUP_WEIGHT_ONE, weight=300)], [Model()]]
    for (task,) in groups:
        cpu.wait(task)
    for _ in range(2000):
        cpu.turn(MS)
    assert [round(share, 2) for share in _shares(groups)] == [0.2, 0.6, 0.2]


def test_weight_that_changes_counts_from_the_next_wait_on() -> None:
    cpu = Cpu()
    groups = [[Model(1), Model(1)], [Model(2)]]
    for task in (task for group in groups for task in group):
        cpu.wait(task)
    for _ in range(1000):
        cpu.turn(MS)
    assert [round(share, 2) for share in _shares(groups)] == [0.5, 0.5]
    for task in groups[0]:
        task.group = (1, 3 * CGROUP_WEIGHT_ONE)
    for task in (task for group in groups for task in group):
        task.runtime_ns -= (before := task.runtime_ns)
        task.charged_ns = task.charged_ns and task.charged_ns - before
    for _ in range(1000):
        cpu.turn(MS)
    assert [round(share, 2) for share in _shares(groups)] == [0.75, 0.25]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), weights), min_size=10, max_size=50))
def test_task_that_moves_to_another_cgroup_starts_at_the_least_vruntime_there(
    moves: list[tuple[int, int, int]],
) -> None:
    """So that it neither waits for a debt of another cgroup, nor brings a credit."""
    cpu = Cpu()
    tasks = [Model() for _ in range(6)]
    for task in tasks:
        cpu.wait(task)
    for index, cgroup, weight in moves:
        tasks[index].group = (cgroup, weight if cgroup else CGROUP_WEIGHT_ONE)
        clock = cpu.queue.clock
        cpu.turn(MS)
        assert cpu.queue.clock >= clock
        assert len(cpu.queue) == 6
        assert set(cpu.queue) == set(tasks)
        assert all(task in cpu.queue for task in tasks)
        assert cpu.queue.oldest() is min(tasks, key=lambda task: task.queued_ns)
    # At most this much vruntime separates any two: one turn at the least weight.
    waiting = []
    while (head := cpu.queue.head()) is not None:
        waiting.append(head[0])
        cpu.queue.discard(head[1])
    assert waiting == sorted(waiting)
    assert waiting[-1] - cpu.queue.clock <= MS * 100 + len(moves)


def test_cgroup_whose_tasks_end_is_charged_and_forgotten_when_it_has_no_debt_left() -> None:
    """Children that end, one after another, get the share of their cgroup; the table does not grow."""
    cpu = Cpu()
    hog, ran_ns = Model(), 0
    cpu.wait(hog)
    for number in range(3000):
        child = Model(1 + number // 100, CGROUP_WEIGHT_ONE // 3)
        cpu.queue.charge(child, 0)
        cpu.wait(child)
        while (task := cpu.pick()) is hog:
            hog.runtime_ns += MS
            cpu.wait(hog)
        assert task is child
        child.runtime_ns += MS
        ran_ns += MS
        cpu.sleep()
        assert len(cpu.queue._groups) <= 3
    assert abs(hog.runtime_ns / ran_ns - 3) < 0.1


def test_task_that_yields_lets_another_task_run() -> None:
    for others in ([Model(1)], [Model(2)], [Model()], [Model(1), Model(2)]):
        cpu, first = Cpu(), Model(1, 100 * CGROUP_WEIGHT_ONE)
        cpu.wait(first)
        assert cpu.pick() is first
        for other in others:
            cpu.wait(other)
        first.runtime_ns += 1
        cpu.queue.charge(first, first.runtime_ns)
        cpu.queue.yield_to_first(first)
        cpu.wait(first)
        assert cpu.pick() is not first


class Machine:
    """One CPU of the model under cfs, whose tasks run for 1 ms at a time."""

    def __init__(self, *cgroups: tuple[int, int]) -> None:
        """A task for each of ``cgroups``, a number and a weight (cpu.weight 100: 100)."""
        self.world = World(CFS, cpus=1, tasks=len(cgroups))
        self.tasks = self.world.kernel.tasks
        self.asleep: set[Task] = set()  #: they wake no more
        for task, cgroup in zip(self.tasks, cgroups, strict=True):
            put(task, *cgroup)

    def run(self, ms: int, why: Callable[[Task], str] = lambda task: "preempt") -> list[float]:
        """The share of each task in the next ``ms`` ms; ``why`` tells how it leaves the CPU."""
        kernel, before = self.world.kernel, [task.agent.runtime_ns for task in self.tasks]
        with self.world.clocked():
            for _ in range(ms):
                for task in self.tasks:
                    if not task.runnable and task not in self.asleep:
                        self.world._start(kernel.wake(task))
                self._decide()
                task = kernel.cpus[0].current
                assert task is not None
                kernel.now_ns += MS
                self.world._start(self.world._switch(0, why(task)))
                self._decide()
        ran = [task.agent.runtime_ns - then for task, then in zip(self.tasks, before, strict=True)]
        return [round(one / sum(ran), 2) for one in ran]

    def _decide(self) -> None:
        self.world._finish_flows()
        while due := [runner for runner in self.world.runners if runner.is_due()]:
            for runner in due:
                runner.turn()
            self.world._finish_flows()


def put(task: Task, cgroup: int, weight: int = 100) -> None:
    """Move ``task`` to another cgroup, or give its cgroup another weight."""
    task.cgroup = cgroup, weight * CGROUP_WEIGHT_ONE // 100


def test_agent_gives_cgroups_their_shares_and_follows_changes() -> None:
    machine = Machine((1, 100), (1, 100), (2, 600), (0, 100))
    assert machine.run(320) == [0.06, 0.06, 0.75, 0.12]
    for task in machine.tasks[:2]:
        put(task, 1, 600)
    machine.run(20)
    assert machine.run(390) == [0.23, 0.23, 0.46, 0.08]
    put(machine.tasks[1], 2, 600)
    machine.run(20)
    assert machine.run(390) == [0.46, 0.23, 0.23, 0.08]


def test_tasks_that_block_leave_their_run_time_to_the_cgroup() -> None:
    """Two tasks that sleep after each turn have together the share of one that does not."""
    machine = Machine((1, 100), (1, 100), (2, 100))
    machine.run(50)
    *both, hog = machine.run(400, lambda task: "preempt" if task is machine.tasks[2] else "block")
    assert abs(sum(both) - 0.5) < 0.02
    assert abs(hog - 0.5) < 0.02


def test_tasks_that_run_once_leave_their_run_time_to_the_cgroup() -> None:
    """Without it, each would find the cgroup at the least vruntime, and there would be a turn of the hog for each."""
    machine = Machine((2, 100), *[(1, 25)] * 20)
    hog = machine.tasks[0]

    def once(task: Task) -> str:
        if task is not hog:
            machine.asleep.add(task)
        return "preempt" if task is hog else "block"

    assert abs(machine.run(60, once)[0] - 0.8) < 0.05


def test_cgroup_that_slept_gets_no_more_than_its_share() -> None:
    machine = Machine((1, 100), (2, 100))
    _, second = machine.tasks
    machine.run(10)
    machine.asleep.add(second)
    machine.run(50, lambda task: "block" if task is second else "preempt")
    machine.asleep.clear()
    machine.run(1)
    assert machine.run(20) == [0.5, 0.5]


def test_task_that_ran_alone_for_long_leaves_no_debt_to_the_cgroup_that_it_leaves() -> None:
    machine = Machine((1, 100), (1, 100))
    first, second = machine.tasks
    machine.run(20)
    machine.asleep.add(second)
    machine.run(4, lambda task: "block" if task is second else "preempt")
    assert machine.world.kernel.cpus[0].current is first
    machine.world.kernel.now_ns += 10_000 * MS
    put(first, 2)
    machine.asleep.clear()
    machine.run(2)
    assert machine.run(100) == [0.5, 0.5]


def test_task_that_moves_into_a_cgroup_takes_turns_with_its_tasks_at_once() -> None:
    machine = Machine((0, 100), (1, 10))
    machine.run(200)
    put(machine.tasks[0], 1, 10)
    machine.run(2)
    assert machine.run(20) == [0.5, 0.5]


def test_table_of_cgroups_does_not_grow_when_they_run_one_after_another() -> None:
    machine = Machine(*[(number, 100) for number in range(1, 21)])
    machine.asleep.update(machine.tasks)
    for task in machine.tasks:
        machine.asleep.remove(task)
        machine.run(1, lambda _: "block")
        machine.asleep.add(task)
    policy = machine.world.runners[1].agent.policy
    assert isinstance(policy, Cfs)
    assert len(policy.queue._groups) <= 2


@given(st.lists(st.integers(0, 20 * MS), max_size=10), st.integers(0, 10 * MS))
def test_queue_that_begins_to_weigh_cgroups_keeps_tasks_order_and_clock(vruntimes: list[int], clock: int) -> None:
    plain: FairQueue[Model] = FairQueue()
    plain.clock = clock
    for arrival, vruntime in enumerate(vruntimes):
        task = Model()
        task.vruntime, task.queued_ns = vruntime, arrival
        plain.add(task)
    tasks, oldest = list(plain), plain.oldest()
    grouped = GroupedFairQueue(plain)
    assert (grouped.clock, grouped.oldest(), len(plain)) == (clock, oldest, 0)
    assert [grouped.pop_least() for _ in tasks] == tasks

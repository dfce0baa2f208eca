# SPDX-License-Identifier: Apache-2.0
"""The native half of an agent does what the Python code does: the same messages and answers, the same calls and counts.

Ring, arrays and programs are real BPF; a program writes the messages, and another answers the transactions.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ghostbpf.loaders.link import Module, Target, create_map
from ghostbpf.loaders.maps import Array, MmapArray
from ghostbpf.loaders.object import Object
from ghostbpf.loaders.ring import Ring
from ghostbpf.schedulers.agents import extension
from ghostbpf.schedulers.agents.channel import _COMMIT, Channel
from ghostbpf.schedulers.agents.cpus import CpuFlags, cpu_flags
from ghostbpf.schedulers.agents.extension import in_python
from ghostbpf.schedulers.agents.status_words import StatusWords
from ghostbpf.schedulers.agents.task import WAITING, MessageType, message_format
from ghostbpf.schedulers.core import ffi
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.userspace import Agent, AgentPolicy, RunQueue, Task, Transaction, TxnState, refusals, spec_of
from ghostbpf.schedulers.userspace.priority_queue import PriorityQueue
from ghostbpf.schedulers.userspace.turns import Pause
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("root", "bcc")

CPUS, TASKS, WORDS = 3, 6, 16
_MESSAGE = struct.Struct("=" + message_format())
_SOURCE = """
#include "abi.h"

BPF_F_TABLE("array", u32, struct channel, channels, 8, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct txn, txns, 8 * TXNS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct status_word, status_words, 16, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct allowed_rest, allowed_rest, 16, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cpu, cpus, 3, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct enclave, enclaves, 2, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct core, core, 1, BPF_F_MMAPABLE);
BPF_HASH(agents, u32, u32, 8);
BPF_ARRAY(answers, u32, 32);
BPF_RINGBUF_OUTPUT(ring, 4);

int push(struct message *message)
{
    struct message copy = *message;

    return ring.ringbuf_output(&copy, sizeof(copy), 0);
}

/* Each transaction gets the answer for its CPU and task. */
int commit(struct commit_args *args)
{
    for (u32 n = 0; n < TXNS && n < args->count; n++) {
        u32 at = args->channel * TXNS + n;
        struct txn *txn = txns.lookup(&at);
        u32 key = txn ? ((u32)txn->gtid * 4 + txn->cpu) & 31 : 0;
        u32 *answer = answers.lookup(&key);

        if (txn && answer)
            txn->state = *answer;
    }
    return args->group && args->count > 3;
}
"""


class Recorder(AgentPolicy):
    """Records its callbacks; the agent takes odd tasks in the order of arrival, even ones by CPU time."""

    name = "recorder"
    fastpath = False

    def __init__(self, agent: Any, **options: int) -> None:
        super().__init__(agent, **options)
        self.queue, self.taken, self.calls = RunQueue(), RunQueue(), list[tuple[Any, ...]]()
        self.by_cpu_time: PriorityQueue[Task] = PriorityQueue()
        near = {cpu: 1 << cpu ^ 1 for cpu in range(CPUS)}
        self.first_in_first_out = agent.first_in_first_out(self.queue, 7, near, otherwise=self.note_queue)
        self.fill_idle = agent.fill_idle(self.by_cpu_time, self.taken)

    def callback(self, name: str) -> Callable[[Any], object]:
        own = super().callback(name) or repr

        def recorded(argument: Any) -> None:
            self.calls.append((name, _picture(argument)))
            own(argument)

        return recorded

    def enqueue(self, task: Task) -> None:
        task.leave_queues()
        if task.gtid % 2:
            self.queue.add(task)
        else:
            self.by_cpu_time.put(task, task.runtime_ns)

    def dequeue(self, task: Task) -> None:
        task.leave_queues()

    def on_refused(self, transaction: Transaction, state: TxnState) -> None:
        self.calls.append(("refused", state.name, _picture(transaction.task), transaction.cpu))
        if transaction.task is not None:
            self.enqueue(transaction.task)

    def note_queue(self) -> None:
        self.calls.append(("no CPU", *(task.gtid for task in self.queue)))

    def schedule(self) -> Iterator[Transaction]:
        yield from self.first_in_first_out()
        yield from self.fill_idle()
        yield Transaction(None, 1, flags=1)


def _picture(argument: Any) -> Any:
    if not isinstance(argument, Task):
        return argument
    return {name: getattr(argument, name) for name in in_python(Task).__annotations__}


class BpfChannel(Channel):
    """A channel whose programs are those of the test."""

    def __init__(self, kernel: BpfKernel, number: int) -> None:
        self._kernel = kernel
        super().__init__(kernel.enclave, kernel.agents, None, number, 0)  # type: ignore[arg-type]

    def _connect(self, *_: Any) -> None:
        maps = self._kernel.maps
        self._programs = SimpleNamespace(commit=self._kernel.commit)  # type: ignore[assignment]
        self._commit = self._kernel.commit.prepared(_COMMIT.size)
        self._ring_map = self._kernel.ring
        self._ring = Ring(self._ring_map, message_format())
        self._txn_records = MmapArray(maps["txns"], ffi(), "struct txn")

    def for_native(self) -> dict[str, Any] | None:
        return super().for_native() if self._kernel.is_native else None


class BpfKernel:
    """A kernel interface of maps and programs alone."""

    def __init__(self, compiled: Object, is_native: bool, is_wide: bool = False, ring: Any = None) -> None:
        maps = {name: create_map(definition) for name, definition in compiled.maps.items()}
        self.module, self.is_native, self.maps = Module(compiled, maps=maps), is_native, maps
        self.ring = ring or maps["ring"]
        self.push, self.commit = (self.module.load(name, Target.syscall()) for name in ("push", "commit"))
        arrays = {
            name: MmapArray(self.maps[name], ffi(), f"struct {kind}")
            for name, kind in (
                ("channels", "channel"),
                ("status_words", "status_word"),
                ("allowed_rest", "allowed_rest"),
                ("cpus", "cpu"),
                ("enclaves", "enclave"),
                ("core", "core"),
            )
        }
        self.cpus, self.words, self.allowed_rest = arrays["cpus"], arrays["status_words"], arrays["allowed_rest"]
        self.answers = Array(self.maps["answers"], ffi(), "u32")
        arrays["core"][0].online[0] = (1 << CPUS) - 1
        core = SimpleNamespace(cpus=self.cpus, enclaves=arrays["enclaves"], state=arrays["core"][0], maps={})
        self.enclave: Any = SimpleNamespace(id=1, cpus=CpuSet(range(CPUS)), core=core, hints_path=None)
        self.agents: Any = SimpleNamespace(
            channels=arrays["channels"],
            status_words=self.words,
            allowed_rest=arrays["allowed_rest"] if is_wide else None,
            words_used=WORDS,
            maps=self.maps,
        )
        self.agent = Agent(self.enclave, spec_of(Recorder), {"fastpath": 0}, 0, kernel=self)  # type: ignore[arg-type]
        self.record = arrays["channels"][1]

    def channel(self, number: int, _: int) -> BpfChannel:
        return BpfChannel(self, number)

    def topology(self) -> Any:
        return None

    def status_words(self) -> StatusWords:
        return StatusWords(self.agents)

    def cpu_flags(self, _: tuple[int, ...]) -> CpuFlags:
        # Agents of single CPUs need no sampler; this one decides for all.
        return cpu_flags(self.enclave, tuple(range(CPUS)), CpuFlags if self.is_native else in_python(CpuFlags))

    def params(self) -> tuple[None, Any]:
        return None, None

    def stay_on(self, cpu: int) -> None:
        pass

    @property
    def counts(self) -> tuple[int, ...]:
        record = self.record
        names = ("state", "asked", "answered", "overflowed", "messages", "committed", "failed", "resyncs", "turns")
        return tuple(int(getattr(record, name)) for name in names)

    def close(self) -> None:
        self.module.close()
        for one in self.maps.values():
            one.close()


@pytest.fixture(autouse=True)
def stays() -> Iterator[None]:
    """Stay on one CPU: that of the agent itself counts as free although the agent holds it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    if extension.native is None:
        pytest.skip(f"the native half is not used: {extension.missing}")
    return build(_SOURCE)


small = st.integers(0, 3)
messages = st.tuples(
    st.integers(0, TASKS), small, small, st.sampled_from(list(MessageType)), st.booleans(), st.integers(1, 15), small
)
words = st.tuples(st.sampled_from([True, True, False]), st.integers(0, 2), st.sampled_from([1, 1, 0]))
cpu_states = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=CPUS, max_size=CPUS)
answer = st.sampled_from([*[TxnState.COMPLETE, TxnState.STALE] * 6, *TxnState]) | st.integers(0, (1 << 32) - 1)
answers = st.lists(answer, min_size=32, max_size=32)
rounds = st.tuples(
    st.lists(messages, max_size=6), st.lists(words, min_size=TASKS, max_size=TASKS), cpu_states, st.booleans()
)


def play(kernel: BpfKernel, script: list[Any], codes: list[int]) -> Iterator[Any]:
    """Go through ``script``, and yield what can be seen after each round."""
    agent, seqs = kernel.agent, [0] * (TASKS + 1)
    policy: Any = agent.policy
    for key, code in enumerate(codes):
        kernel.answers[key] = code
    for sent, states, cpus, overflows in script:
        for gtid, (is_used, state, owner) in enumerate(states, 1):
            word = kernel.words[gtid]
            word.gtid, word.state, word.channel, word.seq = gtid * is_used, state, owner, seqs[gtid]
            word.allowed = 15
        for cpu, flags in enumerate(cpus):
            record = kernel.cpus[cpu]
            record.running, record.latched, record.preempted_by_class = flags
        kernel.record.overflowed, kernel.record.asked = overflows, kernel.record.asked + len(sent)
        for gtid, advance, runtime, kind, boosted, allowed, cpu in sent:
            about_cpu = kind >= MessageType.CPU_IDLE
            gtid = 0 if about_cpu else max(gtid, 1)
            seqs[gtid] += advance
            kernel.allowed_rest[gtid].words[runtime * 4] = allowed
            fields = (gtid, runtime, 5, allowed, seqs[gtid], kind, boosted, gtid, cpu, 40 + gtid, 100)
            assert kernel.push.run(_MESSAGE.pack(*fields))[0] == 0
        is_due = agent.turn()
        yield is_due, list(policy.calls), kernel.counts
        policy.calls.clear()
        yield sorted(agent.tasks)
        for queue in (policy.queue, policy.by_cpu_time, policy.taken):
            yield [_picture(task) for task in queue]
        yield sorted(task.gtid for task in agent._refusals.tasks)
        batch = [Transaction(task, 2) for task in agent.tasks.values()]
        yield agent.commit(batch, group=True), kernel.counts
        yield [(agent.waits(task), agent.decides_for(task)) for task in agent.tasks.values()]
        yield agent.idle_cpus(), agent.busy_cpus()
        for busy in (False, True):
            matched = agent.match(policy.queue, 7, {0: (1,), 1: (0,)}, busy=busy)()
            yield [(task.gtid, *rest) for task, *rest in matched]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rounds, min_size=1, max_size=8), answers, st.booleans())
def test_same_messages_and_answers_have_the_same_effects(
    compiled: Object, script: list[Any], codes: list[int], is_wide: bool
) -> None:
    seen = []
    for is_native in (False, True):
        kernel = BpfKernel(compiled, is_native, is_wide)
        assert isinstance(kernel.agent._turns, extension.native.Turns) == is_native  # type: ignore[union-attr]
        with contextlib.closing(kernel), pytest.MonkeyPatch.context() as patch:
            # What rests, rests for ever: the clock changes nothing.
            patch.setattr(refusals, "_REST_LEAST_NS", 1 << 60)
            patch.setattr(refusals, "_REST_MOST_NS", 1 << 60)
            seen.append(list(play(kernel, script, codes)))
    python, native = seen
    for ours, theirs in zip(native, python, strict=True):
        assert ours == theirs


@pytest.fixture(params=[False, True], ids=["python", "native"])
def kernel(compiled: Object, request: pytest.FixtureRequest) -> Iterator[BpfKernel]:
    made = BpfKernel(compiled, request.param)
    yield made
    made.close()


def tell(kernel: BpfKernel, kind: MessageType, gtid: int = 1, seq: int = 1) -> None:
    word = kernel.words[3]
    word.gtid, word.state, word.channel, word.allowed = gtid, WAITING, 1, 15
    assert kernel.push.run(_MESSAGE.pack(gtid, 0, 5, 15, seq, kind, 0, 3, 0, 40, 100))[0] == 0


def test_agent_serves_until_something_else_is_to_be_done(kernel: BpfKernel) -> None:
    turns, ever = kernel.agent._turns, 1 << 62
    assert turns.serve(ever) == Pause.REPLACED
    kernel.record.tid = kernel.agent.tid
    assert turns.serve(0) == Pause.UPKEEP
    for key in range(32):
        kernel.answers[key] = TxnState.COMPLETE
    tell(kernel, MessageType.TASK_NEW)
    assert turns.serve(ever) == Pause.NO_MESSAGE
    assert kernel.record.messages == 1
    assert kernel.record.committed > 1


@pytest.mark.parametrize(
    "decision",
    [5, (1, 2), Transaction("task", 1), Transaction(None, 1 << 40), Transaction(None, 0, -1)],  # type: ignore[arg-type]
)
def test_impossible_decision_is_an_error(kernel: BpfKernel, decision: Any) -> None:
    kernel.agent.policy.schedule = lambda: [decision]  # type: ignore[method-assign]
    kernel.agent._make_policy = lambda: None  # type: ignore[method-assign]
    policy = kernel.agent.policy
    kernel.agent._turns.use(policy, [None], Task, policy.schedule, policy.enqueue, policy.on_affinity_changed)
    with pytest.raises((TypeError, ValueError, OverflowError, AttributeError, struct.error)):
        kernel.agent._turns.turn()


def test_list_of_decisions_may_change_while_they_are_committed(kernel: BpfKernel) -> None:
    for key in range(32):
        kernel.answers[key] = TxnState.STALE
    policy, kept = kernel.agent.policy, list[Transaction]()
    refused = policy.on_refused

    def on_refused(transaction: Transaction, state: TxnState) -> None:
        kept.clear()
        refused(transaction, state)

    def schedule() -> list[Transaction]:
        kept[:] = [Transaction(task, 1) for task in kernel.agent.tasks.values()]
        return kept

    tell(kernel, MessageType.TASK_NEW)
    tell(kernel, MessageType.TASK_NEW, gtid=2)
    policy.on_refused = on_refused  # type: ignore[method-assign]
    callbacks = [policy.enqueue] * (1 + max(MessageType))
    kernel.agent._turns.use(policy, callbacks, Task, schedule, policy.enqueue, policy.on_affinity_changed)
    kernel.agent.turn()
    assert kernel.record.failed == 2


def test_error_of_a_callback_ends_the_turn(kernel: BpfKernel) -> None:
    def fail(task: Task) -> None:
        raise RuntimeError(f"no place for {task.tid}")

    policy = kernel.agent.policy
    callbacks = [fail] * (1 + max(MessageType))
    kernel.agent._turns.use(policy, callbacks, Task, policy.schedule, policy.enqueue, policy.on_affinity_changed)
    tell(kernel, MessageType.TASK_WAKEUP)
    with pytest.raises(RuntimeError, match="no place for 1"):
        kernel.agent._turns.turn()
    assert kernel.agent.tasks.keys() == {1}


def test_message_without_a_callback_is_read_and_calls_nothing(kernel: BpfKernel) -> None:
    policy: Any = kernel.agent.policy
    nothing = [None] * (1 + max(MessageType))
    kernel.agent._turns.use(policy, nothing, Task, policy.schedule, policy.enqueue, policy.on_affinity_changed)
    tell(kernel, MessageType.TASK_NEW)
    tell(kernel, MessageType.TASK_PRIORITY_CHANGED, seq=2)
    assert kernel.push.run(_MESSAGE.pack(0, 0, 5, 0, 0, MessageType.CPU_IDLE, 0, 0, 2, 0, 0))[0] == 0
    kernel.agent.turn()
    assert kernel.record.messages == 3
    assert kernel.agent.tasks[1].seq == 2
    assert not policy.calls


def test_default_that_does_nothing_is_no_callback(kernel: BpfKernel) -> None:
    policy: Any = kernel.agent.policy
    of_base = AgentPolicy.callback
    assert of_base(policy, "on_cpu_idle") is of_base(policy, "on_affinity_changed") is None
    assert of_base(policy, "on_task_wakeup") == policy.enqueue
    assert of_base(policy, "on_refused") == policy.on_refused


def test_news_of_a_task_that_rests_lets_it_be_tried_again(kernel: BpfKernel) -> None:
    for key in range(32):
        kernel.answers[key] = TxnState.STALE

    def failures() -> int:
        before = kernel.record.failed
        kernel.agent.turn()
        return int(kernel.record.failed - before)

    tell(kernel, MessageType.TASK_NEW)
    # Each turn also makes a transaction without a task.
    assert [failures() for _ in range(3)] == [2, 2, 1]
    tell(kernel, MessageType.TASK_PRIORITY_CHANGED, seq=2)
    assert failures() == 2


@pytest.mark.parametrize("is_native", [False, True], ids=["python", "native"])
def test_affinity_may_name_each_of_1024_cpus(compiled: Object, is_native: bool) -> None:
    with contextlib.closing(BpfKernel(compiled, is_native, is_wide=True)) as kernel:
        for key in range(32):
            kernel.answers[key] = TxnState.COMPLETE
        kernel.allowed_rest[3].words = [1 << n for n in range(15)]
        tell(kernel, MessageType.TASK_NEW)
        kernel.agent.turn()
        [task] = kernel.agent.tasks.values()
        expected = {0, 1, 2, 3, *(64 * (1 + n) + n for n in range(15))}
        assert {cpu for cpu in range(1024) if task.may_run_on(cpu)} == expected
        assert task.allowed == sum(1 << cpu for cpu in expected)

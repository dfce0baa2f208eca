# SPDX-License-Identifier: Apache-2.0
"""A policy that lets a task wait for ever loses its enclave to the built-in FIFO, and no other enclave notices."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from agents import MakeAgent
from bad_policies import bad_policy
from command import ghostbpf, running
from ghostbpf.schedulers.core import CORE, constant
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from workload import Child, MakeEnclave, Workload, in_ext, runtime_ns, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

_SECOND = 10**9


def _swap(e: Enclave, policy: Policy) -> None:
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(e.id).set_policy(policy)


@pytest.mark.kernel_independent
def test_policy_that_loses_tasks_is_replaced_and_no_other_enclave_notices(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    dropped, misplaced, healthy = enclave("1"), enclave("2"), enclave("3", "rr")
    link = (CORE / "link").stat().st_ino
    lost: dict[Enclave, Child] = {e: workload.sleeper(e).asleep() for e in (dropped, misplaced)}
    neighbours = [workload.spinner(healthy) for _ in range(2)]
    for e, name in ((dropped, "drops"), (misplaced, "misplaces")):
        e.set_runnable_timeout(_SECOND)
        _swap(e, bad_policy(tmp_path, name))
        lost[e].wake()

    for e, child in lost.items():
        why = until(lambda e=e: e.fallback, "the FIFO replaces the policy")
        assert (why.policy, why.tid, why.cpu, why.running) == (e.policy, child.pid, min(e.cpus), None)
        assert why.comm in str(why)
        assert 1 < why.waited < 30
        until(lambda child=child: child.loops == 1, f"{child} runs")
    assert dropped.fallback
    assert dropped.fallback.queue == 0
    assert "on no queue" in str(dropped.fallback)
    assert misplaced.fallback
    assert misplaced.fallback.queue == constant("VTIME_DSQS")
    assert "CPU 0's own queue" in str(misplaced.fallback)

    for child in neighbours:
        child.progress()
    assert healthy.fallback is None
    assert (CORE / "link").stat().st_ino == link
    assert all(in_ext(child.pid) for child in (*lost.values(), *neighbours))

    for e, child in lost.items():
        _swap(e, POLICIES["biff"])
        assert (e.policy, e.fallback) == ("biff", None)
        assert e.last_fallback is not None
        child.asleep().wake()
        until(lambda child=child: child.loops == 2, f"{child} runs")


@pytest.mark.kernel_independent
def test_endless_slices_end_when_the_fifo_takes_over(workload: Workload, enclave: MakeEnclave, tmp_path: Path) -> None:
    e = enclave("1")
    e.set_runnable_timeout(_SECOND)
    _swap(e, bad_policy(tmp_path, "hoards"))
    children = [workload.spinner(e) for _ in range(3)]
    why = until(lambda: e.fallback, "the FIFO replaces the policy")
    assert why.queue == constant("PENDING_DSQS") + e.id
    for child in children * 2:
        child.progress(2)
    assert e.fallback is not None


@pytest.mark.kernel_independent
def test_policy_is_not_to_blame_while_a_higher_class_has_the_cpu(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1")
    child = workload.spinner(e)
    child.progress()
    e.set_runnable_timeout(_SECOND)
    hog = workload.spinner(cpus=[1])
    since = runtime_ns(hog.pid)
    until(lambda: runtime_ns(hog.pid) - since > 3 * _SECOND, "the fair task takes the CPU")
    assert e.fallback is None
    hog.kill()
    child.progress()
    assert e.fallback is None


@pytest.mark.kernel_independent
def test_commands_show_the_reason(workload: Workload, tmp_path: Path) -> None:
    with running("run", "biff", "--cpus", "1", "--runnable-timeout", "1s") as process:
        process.until(lambda: "is scheduled by" in process.err)
        e = min(Enclaves.open() or (), key=lambda one: one.id)
        child = workload.sleeper(e).asleep()
        _swap(e, bad_policy(tmp_path, "drops"))
        child.wake()
        process.until(lambda: "has replaced policy drops" in process.err)
        listed = ghostbpf("enclave", "ls")
        (why,) = [json.loads(line) for line in ghostbpf("why", "--json").out.splitlines() if '"replaced"' in line]
        text = ghostbpf("why").out
        process.signal(signal.SIGINT)
        done = process.wait()
    assert done.status == 1
    assert f"({child.pid}) waited for " in done.err
    assert "  try: correct its enqueue()" in done.err
    assert f"error: enclave {e.id}: the built-in FIFO has replaced policy drops: task " in listed.err
    assert (why["enclave"], why["policy"], why["tid"], why["dsq"], why["still"]) == (
        e.id,
        "drops",
        child.pid,
        0,
        True,
    )
    assert f"the built-in FIFO replaced policy drops of enclave {e.id} " in text
    assert "  queue:    no queue: enqueue() of the policy did not insert it\n" in text


@pytest.mark.kernel_independent
def test_swap_sets_the_timeout_and_watch_ends_with_the_reason(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    e = enclave("1")
    child = workload.sleeper(e).asleep()
    assert ghostbpf("enclave", "swap", e.id, "rr", "--runnable-timeout", "1s").status == 0
    assert e.runnable_timeout_ns == _SECOND
    _swap(e, bad_policy(tmp_path, "drops"))
    with running("enclave", "watch", e.id) as watch:  # it waits for an agent
        child.wake()
        done = watch.wait()
    assert (done.status, done.out) == (1, "")
    assert f"error: enclave {e.id}: the built-in FIFO has replaced policy drops: " in done.err


@pytest.mark.kernel_independent
def test_agent_that_lets_a_task_wait_loses_its_enclave(workload: Workload, agent: MakeAgent) -> None:
    e = agent("1").enclave
    child = workload.sleeper()
    e.add(child.asleep().pid)
    e.set_runnable_timeout(_SECOND)
    child.wake()
    why = until(lambda: e.fallback, "the FIFO replaces the policy")
    assert (why.policy, why.has_agent, why.tid) == ("manual", True, child.pid)
    until(lambda: child.loops == 1, f"{child} runs")
    child.asleep().wake()
    until(lambda: child.loops == 2, f"{child} runs")
    _swap(e, POLICIES["biff"])
    child.asleep().wake()
    until(lambda: child.loops == 3, f"{child} runs")

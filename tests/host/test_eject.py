# SPDX-License-Identifier: Apache-2.0
"""The explanation of an ejection, from dumps that kernels made in guests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.eject import Dump, Explanation, explain
from ghostbpf.schedulers.registry import POLICIES

_DUMPS = Path(__file__).parent / "dumps"
_NAMES = sorted(path.stem for path in _DUMPS.iterdir())


def _read(name: str) -> tuple[str, str, str]:
    first, _, dump = (_DUMPS / f"{name}.txt").read_text().partition("\n")
    found = re.fullmatch(r"EXIT: (.*?) \((.*)\)", first)
    assert found
    return found[1], found[2], dump


def _explain(name: str) -> Explanation:
    return explain(*_read(name), POLICIES)


def test_task_on_the_own_queue_of_a_cpu_that_it_may_not_use() -> None:
    why = _explain("own-queue-of-another-cpu-7.3")
    assert (why.task, why.tid, why.enclave, why.policy, why.waited) == ("python3", 216, 1, "commits_all", 39.544)
    assert why.queue == "CPU_DSQ(1), CPU 1's own queue"
    assert why.decision == "policy commits_all put the task on CPU 1's own queue, though it may use only CPU 2"
    assert why.cpus == ("CPU 2 was idle in the end",)
    assert why.others[0] == "python3 (219), for 0.4 s, on CPU_DSQ(2), CPU 2's own queue"
    assert len(why.others) == 5


def test_error_of_a_policy_of_ghostbpf_is_to_be_reported() -> None:
    why = _explain("pending-6.16")
    assert why.queue == "PENDING, the queue of enclave 1"
    assert why.decision == "policy biff: its dispatch() did not take the task from that queue"
    assert why.remedy == "it is an error of ghostbpf: report the dump: ghostbpf why --dump"


def test_task_outside_its_enclave_is_the_cores() -> None:
    why = _explain("fallback-queue-6.16")
    assert why.decision.startswith("the core's built-in FIFO: the task, which may use CPU 2,")


def test_task_that_enqueue_did_not_insert() -> None:
    why = _explain("dropped-7.3")
    assert (why.tid, why.enclave, why.policy, why.queue) == (176, 1, "drops", "no queue")
    assert why.decision == "policy drops: its enqueue() got the task and did not insert it into a queue"
    assert why.cpus == ("CPU 1 was idle in the end",)
    assert why.others[0] == "python3 (177), for 3.9 s, on no queue"


def test_task_on_a_queue_that_no_cpu_serves() -> None:
    why = _explain("misplaced-7.3")
    assert why.queue == "VTIME_DSQ(0), CPU 0's own queue by vtime"
    assert why.decision == "policy misplaces: its dispatch() did not take the task from that queue"
    assert why.remedy.startswith("correct dispatch() of misplaces: ")


def test_wait_for_cpus_of_a_higher_class_is_no_policys_decision() -> None:
    why = _explain("hog-6.16")
    assert (why.tid, why.policy, why.is_error) == (228, "rr", False)
    assert why.decision == "no policy's: a higher class had the only CPU that the task could use"
    assert why.cpus == ("CPU 1 was available for 0% of the wait, and ran python3 (233), class fair, in the end",)
    assert "--all" in why.remedy


def test_without_the_history_of_a_cpu_the_task_on_it_in_the_end_decides() -> None:
    reason, message, dump = _read("hog-6.16")
    without = re.sub("^cpu .*\n", "", dump, flags=re.MULTILINE)
    assert explain(reason, message, without).decision.startswith("no policy's: ")
    # The task that makes the dump has only just come there.
    assert explain(reason, message, without.replace("[42]", "[233]")).is_error


@pytest.mark.parametrize("name", _NAMES)
def test_dump_that_is_cut_off_anywhere_is_explained(name: str) -> None:
    reason, message, dump = _read(name)
    for length in range(0, len(dump), 97):
        why = explain(reason, message, dump[:length])
        assert why.tid == _explain(name).tid
        assert why.decision
        assert why.remedy


def test_dump_names_cpus_enclaves_and_tasks() -> None:
    dump = Dump.parse(_read("pending-6.16")[2])
    assert sorted(dump.cpus) == [0, 1, 2, 3]
    assert (dump.cpus[2].tid, dump.cpus[2].sched_class) == (0, "idle")
    assert (dump.enclaves[1].policy, dump.enclaves[1].queued) == ("biff", 3)
    assert [(task.tid, task.running) for task in dump.tasks] == [
        (1756, True),
        (1758, False),
        (1759, False),
        (1760, False),
        (1757, True),
    ]
    assert dump.tasks[3].allowed == CpuSet([2])


def test_sysrq_names_no_task() -> None:
    why = explain("disabled by sysrq-S", "", "")
    assert (why.task, why.queue, why.policy) == (None, None, None)
    assert "SysRq-S" in why.decision

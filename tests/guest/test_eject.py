# SPDX-License-Identifier: Apache-2.0
"""The kernel ejects the core: each command reports why, tasks run on in fair, and the next run attaches a new core."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_policies import bad_policy
from command import Done, ghostbpf, running
from ghostbpf.loaders import sched_ext
from ghostbpf.loaders.handle import Handle, open_pinned
from ghostbpf.schedulers import core, tasks
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import Ejected
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from kernel_log import KernelLog
from workload import Child, MakeEnclave, Workload, in_ext, until

pytestmark = pytest.mark.usefixtures("quiet")

Eject = Callable[[], None]

_EVENT = Path("/sys/kernel/tracing/events/sched_ext/sched_ext_dump/enable")
_TRACE = Path("/sys/kernel/tracing/trace")


@pytest.fixture
def eject(kernel_log: KernelLog) -> Iterator[Eject]:
    """``eject()`` makes the kernel eject the scheduler; the fixture removes its pins at the end."""
    kernel_log.expect("ghostbpf")

    def sysrq() -> None:
        Path("/proc/sysrq-trigger").write_text("S")
        until(lambda: sched_ext.status().state == "disabled")

    yield sysrq
    if core.ROOT.exists():
        core.clear_pins()


def still_runs(child: Child) -> None:
    """Check that it runs in fair, and restore its policy, which is still SCHED_EXT."""
    child.progress()
    assert not in_ext(child.pid)
    tasks.set_policy(child.pid, os.SCHED_OTHER)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_run_without_a_command_reports_the_ejection_and_exits_with_1(workload: Workload, eject: Eject) -> None:
    with running("run", "biff", "--cpus", "1-2") as process:
        process.until(lambda: "Ctrl-C ends" in process.err)
        child = workload.spinner()
        assert ghostbpf("enclave", "add", 1, child.pid).status == 0
        eject()
        done = process.wait()
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith("EXIT: ")
    assert "sysrq" in done.err.splitlines()[-1].lower()
    still_runs(child)

    looked = ghostbpf("enclave", "ls")
    assert looked.status == 1
    assert looked.err.startswith("error: EXIT: ")
    assert "  try: " in looked.err
    assert ghostbpf("run", "rr", "--cpus", "1", "--", "sh", "-c", "exit 4") == Done(4, "", "")
    assert not core.ROOT.exists()


@pytest.mark.kernel_independent
def test_run_with_a_command_lets_it_finish_and_reports_the_ejection(eject: Eject) -> None:
    script = "echo ready; while grep -q enabled /sys/kernel/sched_ext/state; do sleep 0.1; done; exit 7"
    with running("run", "biff", "--cpus", "1-2", "--", "sh", "-c", script) as process:
        process.until(lambda: "ready" in process.out)
        eject()
        done = process.wait()
    assert (done.status, done.out) == (7, "ready\n")
    assert done.err.startswith("EXIT: ")
    assert done.err.count("EXIT: ") == 1
    assert ghostbpf("enclave", "destroy", "--all").status == 0
    assert not core.ROOT.exists()
    assert ghostbpf("enclave", "ls") == Done(0, "no enclaves\n", "")


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_every_enclave_of_an_ejected_core_is_gone(workload: Workload, enclave: MakeEnclave, eject: Eject) -> None:
    made = [enclave("1"), enclave("2", "rr")]
    children = [workload.spinner(e) for e in made]
    eject()
    assert all(e.core.exited() is not None for e in made)
    with pytest.raises(Ejected, match="EXIT: "):
        Enclaves.open()
    for child in children:
        still_runs(child)
    with Enclaves.create() as enclaves:
        assert enclaves.ids() == []
        again = enclaves.new(CpuSet([1, 2]), POLICIES["biff"])
    assert again.id == 1
    assert [(e.id, str(e.cpus)) for e in Enclaves.open() or ()] == [(1, "1-2")]
    child = workload.spinner(again)
    child.progress()
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(1).destroy()
    del made[:]


@pytest.mark.soak
def test_tracepoint_programs_of_an_ejected_core_do_not_touch_the_next(
    workload: Workload, enclave: MakeEnclave, eject: Eject
) -> None:
    """An open descriptor keeps such a program attached, and its core's maps still list the enclaves."""
    enclave("1-3")
    with contextlib.ExitStack() as held:
        for path in core.CORE.glob("tp_*"):
            held.enter_context(Handle(open_pinned(path)))
        eject()
        core.clear_pins()
        children = [workload.napper(busy_ms=0, nap_ms=0.5, cpus=[cpu]) for cpu in (1, 2, 3)]
        for _ in range(10):
            with Enclaves.create() as enclaves:
                again = enclaves.new(CpuSet([1, 2]), POLICIES["biff"])
            for child in children:
                child.progress()
            assert again.core.exited() is None
            with Enclaves.change() as enclaves:
                assert enclaves is not None
                enclaves.get(again.id).destroy()


def test_dump_names_each_enclave_its_policy_and_the_enclave_of_each_task(
    workload: Workload, enclave: MakeEnclave
) -> None:
    made = [enclave("1"), enclave("2", "rr")]
    children = [workload.spinner(e) for e in made for _ in range(2)]
    for child in children:
        child.progress()
    _TRACE.write_text("")
    _EVENT.write_text("1")
    try:
        Path("/proc/sysrq-trigger").write_text("D")
        text = until(lambda: (t := _TRACE.read_text()).count("enclave ") >= 8 and t)
    finally:
        _EVENT.write_text("0")
    lines = [line.partition("sched_ext_dump: ")[2].strip() for line in text.splitlines()]
    assert any(line.startswith("enclave 1: policy biff, ") and line.endswith(" queued") for line in lines)
    assert any(line.startswith("enclave 2: policy rr, ") and line.endswith(" queued") for line in lines)
    for e in made:
        assert f"enclave {e.id}" in lines
    assert sched_ext.status().state == "enabled"


_WRONG = """\
/* SPDX-License-Identifier: GPL-2.0-only */
#include "sched.bpf.h"

BPF_PROG(wrong_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, 0xbad, SLICE_ENDLESS, enq_flags);
	return 0;
}
"""


@pytest.mark.kernel_independent(on="oldest")
def test_policy_error_ejects_the_core_with_a_dump_that_names_the_policy(
    workload: Workload, enclave: MakeEnclave, eject: Eject, tmp_path: Path
) -> None:
    (tmp_path / "wrong.bpf.c").write_text(_WRONG)
    e = enclave("1")
    children = [workload.spinner(e) for _ in range(2)]
    e.set_policy(Policy("wrong", "queues tasks where there is no queue", directory=tmp_path))
    ejected = until(e.core.exited)
    assert "0xbad" in str(ejected)
    assert "enclave 1: policy wrong, " in ejected.dump
    assert "enclave 1" in [line.strip() for line in ejected.dump.splitlines()]
    until(lambda: sched_ext.status().state == "disabled")
    for child in children:
        still_runs(child)
    done = ghostbpf("enclave", "ls")
    assert done.status == 1
    assert "0xbad" in done.err
    why = ghostbpf("why").out
    assert re.match(r"the kernel ejected ghostbpf \d+ s ago, with all enclaves: ", why)
    assert "0xbad" in why
    assert ghostbpf("why", "--dump").out.strip() == ejected.dump.strip()


@pytest.mark.soak
def test_why_explains_an_ejection_by_the_watchdog(
    workload: Workload, enclave: MakeEnclave, eject: Eject, tmp_path: Path
) -> None:
    e = enclave("1")
    e.set_runnable_timeout(0)
    child = workload.sleeper(e).asleep()
    e.set_policy(bad_policy(tmp_path, "drops"))
    child.wake()
    until(e.core.exited, "the kernel's watchdog ejects the core", 120)
    until(lambda: child.loops == 1, "the task runs in the fair class")
    why = json.loads(ghostbpf("why", "--json").out)
    assert (why["event"], why["tid"], why["enclave"], why["policy"]) == ("ejected", child.pid, e.id, "drops")
    assert why["waited"] >= 30
    assert why["queue"] == "no queue"
    assert why["decision"] == "policy drops: its enqueue() got the task and did not insert it into a queue"
    assert why["remedy"].startswith("correct ")
    tasks.set_policy(child.pid, os.SCHED_OTHER)

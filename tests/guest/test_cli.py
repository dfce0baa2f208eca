# SPDX-License-Identifier: Apache-2.0
"""The command: its output, its exit status, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from random import Random

import pytest
from command import Done, ghostbpf, running
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers import core
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.registry import POLICIES
from workload import MakeEnclave, Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent(on="oldest")]

#: The keys of ``enclave ls --json``, a stable interface.
LS_KEYS = ["enclave", "policy", "cpus", "tasks", "elsewhere", "swaps", "uid", "age"]
LENDING_KEYS = ["lent_ns", "borrowed_ns", "borrowings", "reclaims"]
COUNTER_KEYS = ["idle", "queued", "switches", "preempted", "affinity_misses", "runtime_ns", *LENDING_KEYS]


def gone() -> bool:
    """Whether the core is detached and no pin is left."""
    return sched_ext.status().state == "disabled" and not core.ROOT.exists()


def output_of(done: Done) -> str:
    """The output of a command that succeeded without a warning."""
    assert (done.status, done.err) == (0, "")
    return done.out


def test_run_attaches_for_a_command_and_detaches_when_it_ends() -> None:
    show = "cat /sys/kernel/sched_ext/state /sys/kernel/sched_ext/root/ops"
    assert output_of(ghostbpf("run", "biff", "--cpus", "1-2", "--", "sh", "-c", show)) == "enabled\nghostbpf\n"
    assert gone()


def test_status_of_the_command_is_the_status_of_run(enclave: MakeEnclave) -> None:
    enclave("3")  # so that the core stays attached
    for cmd, status, message in (
        (["true"], 0, ""),
        (["sh", "-c", "exit 3"], 3, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["/nowhere/to/be/found"], 127, "error: cannot run /nowhere/to/be/found: No such file or directory\n"),
        (["/etc/passwd"], 126, "error: cannot run /etc/passwd: Permission denied\n"),
    ):
        assert ghostbpf("run", "biff", "--cpus", "1-2", "--", *cmd) == Done(status, "", message)
    assert [e.id for e in Enclaves.open() or ()] == [1]


def test_command_and_its_children_run_in_the_enclave_and_its_output_is_theirs() -> None:
    script = "grep ext.enabled /proc/self/sched; (grep Cpus_allowed_list /proc/self/status) >&2; cat /proc/$$/stat"
    done = ghostbpf("run", "rr", "--cpus", "2", "--", "sh", "-c", script)
    assert done.status == 0
    first, second = done.out.splitlines()
    assert first.split() == ["ext.enabled", ":", "1"]
    assert second.rpartition(")")[2].split()[38] == "7"  # its policy: SCHED_EXT
    assert "Cpus_allowed_list" in done.err
    assert gone()


def test_command_has_the_signals_of_a_fresh_process() -> None:
    out = output_of(ghostbpf("run", "biff", "--cpus", "1", "--", "cat", "/proc/self/status"))
    masks = dict(re.findall(r"^(Sig(?:Pnd|Blk|Ign)):\s*(\w+)$", out, re.M))
    assert {name: int(mask, 16) for name, mask in masks.items()} == {"SigPnd": 0, "SigBlk": 0, "SigIgn": 0}


@pytest.mark.soak
def test_options_after_the_command_are_the_commands(tmp_path: Path) -> None:
    done = ghostbpf("run", "biff", "--cpus", "1", "--", "echo", "--cpus", "99", "-h")
    assert (done.status, done.out) == (0, "--cpus 99 -h\n")


def test_keep_leaves_the_enclave_and_run_on_it_swaps_and_leaves_it_there() -> None:
    assert ghostbpf("run", "biff", "--cpus", "1-2", "--keep", "--", "true").status == 0
    kept = Enclaves.open()
    assert kept is not None
    assert [(e.id, e.policy, str(e.cpus)) for e in kept] == [(1, "biff", "1-2")]
    seq = (sched_ext.SYSFS / "enable_seq").read_text()
    assert ghostbpf("run", "rr", "--enclave", 1, "--slice", "3ms", "--", "sh", "-c", "exit 5").status == 5
    assert [(e.id, e.policy, e.swaps) for e in kept] == [(1, "rr", 1)]
    assert (sched_ext.SYSFS / "enable_seq").read_text() == seq
    assert output_of(ghostbpf("enclave", "destroy", 1)) == "enclave 1 is gone\n"
    assert gone()


def test_enclave_asked_for_by_a_new_id_is_made_and_goes_with_run() -> None:
    done = ghostbpf("run", "biff", "--enclave", 7, "--cpus", "3", "--", "ls", str(core.ROOT))
    assert output_of(done).split() == ["core", "enclave_7"]
    assert gone()


def test_enclave_commands_add_show_swap_remove_and_destroy(workload: Workload, enclave: MakeEnclave) -> None:
    enclave("1-2")
    child = workload.sleeper()
    assert output_of(ghostbpf("enclave", "add", 1, child.pid)) == "1 task joined enclave 1\n"
    assert in_ext(child.pid)
    child.wake()
    until(lambda: Enclaves.open().get(1).counters().switches > 0)  # type: ignore[union-attr]
    child.asleep()  # otherwise the counters change between two reads

    row = json.loads(output_of(ghostbpf("enclave", "ls", "--json")))
    assert list(row) == [*LS_KEYS, "fallback"]
    assert [row[key] for key in LS_KEYS[:-1]] == [1, "biff", "1-2", 1, 0, 0, 0]
    assert re.fullmatch(r"\d+s", row["age"])

    shown = json.loads(output_of(ghostbpf("enclave", "show", 1, "--json", "--tasks")))
    more = ["runnable_timeout_ns", "fallback", "left", "lending", "counters", "per_cpu"]
    assert list(shown) == [*LS_KEYS, *more, "task_list"]
    assert shown["lending"] == {"lend": False, "borrow": False, "reclaim": "now"}
    assert list(shown["counters"]) == COUNTER_KEYS
    assert shown["per_cpu"]
    assert all(list(cpu) == ["cpu", *COUNTER_KEYS] for cpu in shown["per_cpu"])
    for key in COUNTER_KEYS:
        assert shown["counters"][key] == sum(cpu[key] for cpu in shown["per_cpu"])
    (task,) = shown["task_list"]
    assert list(task) == ["tid", "pid", "enclave", "cpu", "on_cpu", "runtime_ns", "comm", "elsewhere"]
    assert (task["tid"], task["pid"], task["enclave"]) == (child.pid, child.pid, 1)

    assert output_of(ghostbpf("enclave", "swap", 1, "rr", "--set", "slice=2ms")) == "enclave 1: biff -> rr\n"
    off, on = ("lend no, borrow no, reclaim now", "lend no, borrow yes, reclaim now")
    assert output_of(ghostbpf("enclave", "set", 1, "--borrow", "yes")) == f"enclave 1: {off} -> {on}\n"
    assert output_of(ghostbpf("enclave", "set", 1, "--lend", "no")) == f"enclave 1: {on}, as before\n"
    loops = child.loops
    child.wake()
    until(lambda: child.loops > loops)
    table = output_of(ghostbpf("enclave", "ls"))
    assert table.split()[: len(LS_KEYS)] == LS_KEYS
    assert table.splitlines()[2].split()[:7] == ["1", "rr", "1-2", "1", "0", "1", "0"]
    assert f" {child.pid} " in output_of(ghostbpf("enclave", "show", 1, "--tasks"))
    assert max(map(len, table.splitlines())) < 80

    assert output_of(ghostbpf("enclave", "rm", 1, "--tid", child.pid)) == "1 task left enclave 1\n"
    assert not in_ext(child.pid)
    assert output_of(ghostbpf("enclave", "destroy", "--all")) == "all enclaves are gone\n"
    assert output_of(ghostbpf("enclave", "ls")) == "no enclaves\n"
    assert output_of(ghostbpf("enclave", "ls", "--json")) == ""
    assert gone()


def test_stats_come_a_line_a_second_and_as_json() -> None:
    with running("run", "biff", "--cpus", "1-2", "--lend", "yes", "--reclaim", "tick") as plain:
        plain.until(lambda: plain.out.count("\n") >= 2)
        with running("run", "rr", "--cpus", "3", "--json") as lines:
            lines.until(lambda: lines.out.count("\n") >= 1)
            lines.signal(signal.SIGTERM)
            row = json.loads(lines.wait().out.splitlines()[0])
        shown = output_of(ghostbpf("enclave", "show", 1))
        assert "  lending: lend yes, borrow no, reclaim tick\n     lent: 0 ns, 0 reclaims\n" in shown
        plain.signal(signal.SIGINT, group=True)
        done = plain.wait()
    assert done.status == 0
    assert "enclave 1 is scheduled by biff on CPU 1-2" in done.err
    for line in done.out.splitlines():
        assert re.fullmatch(
            r"biff: tasks=0 busy=\d+\.\d\d/2 lent=0\.00 borrowed=0\.00 idle=\d+/s queued=\d+/s switches=\d+/s "
            r"preempted=\d+/s affinity_misses=\d+/s",
            line,
        )
    cpus = ["busy_cpus", "lent_cpus", "borrowed_cpus"]
    assert list(row) == ["enclave", "policy", "tasks", *cpus, *COUNTER_KEYS[:5], "borrowings", "reclaims"]
    assert (row["enclave"], row["policy"], row["tasks"]) == (2, "rr", 0)
    assert gone()


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.soak) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_signal_ends_run_without_a_command_and_leaves_nothing(number: signal.Signals) -> None:
    with running("run", "biff", "--cpus", "1-2") as process:
        process.until(lambda: "Ctrl-C ends" in process.err)
        process.signal(number)
        assert process.wait().status == 0
    assert gone()


def test_ctrl_c_reaches_the_command_and_run_exits_with_its_status() -> None:
    script = "trap 'echo caught; exit 42' INT; echo ready; while :; do sleep 0.05; done"
    with running("run", "biff", "--cpus", "1-2", "--", "sh", "-c", script) as process:
        process.until(lambda: "ready" in process.out)
        process.signal(signal.SIGINT, group=True)
        done = process.wait()
    assert (done.status, done.out) == (42, "ready\ncaught\n")
    assert gone()


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.soak)])
def test_signal_to_run_is_passed_on_to_the_command(number: signal.Signals) -> None:
    with running("run", "biff", "--cpus", "1-2", "--", "sh", "-c", "echo ready; exec sleep 1000") as process:
        process.until(lambda: "ready" in process.out)
        process.signal(number)
        assert process.wait().status == 128 + number
    assert gone()


def test_signals_at_any_moment_leave_nothing_behind(rng: Random) -> None:
    begun, begin = os.pipe()
    for number in (signal.SIGINT, signal.SIGTERM) * 6:
        command = ("run", "biff", "--cpus", "1-2", "--", "sleep", "0.05")
        with running(*command, first=lambda: os.write(begin, b"!")) as process:
            os.read(begun, 1)  # before that, it has not yet installed its signal handlers
            process.ended(rng.uniform(0, 1.2))
            process.signal(number, group=True)
            done = process.wait()
        assert done.status in (0, 130, 143)
        assert "Traceback" not in done.err
        assert sched_ext.wait_disabled()
        # A signal during the attach kills the process; pins without a link may then stay.
        assert not (core.CORE / "link").exists()
        assert Enclaves.open() is None
    with Enclaves.change():
        pass
    assert gone()


@pytest.mark.soak
def test_nohup_keeps_run_alive_through_a_hangup() -> None:
    with running("run", "biff", "--cpus", "1", first=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        process.until(lambda: "Ctrl-C ends" in process.err)
        process.signal(signal.SIGHUP)
        process.until(lambda: process.out.count("\n") >= 2)
        process.signal(signal.SIGINT)
        assert process.wait().status == 0
    assert gone()


@pytest.mark.soak
def test_destroyed_enclave_ends_its_run_and_the_next_one_of_that_id_is_left_alone() -> None:
    with running("run", "biff", "--cpus", "1-2") as first:
        first.until(lambda: "Ctrl-C ends" in first.err)
        assert ghostbpf("enclave", "destroy", 1).status == 0
        assert ghostbpf("run", "rr", "--cpus", "1-2", "--keep", "--", "true").status == 0
        done = first.wait()
    assert done.status == 0
    assert done.err.endswith("enclave 1 was destroyed\n")
    enclaves = Enclaves.open()
    assert enclaves is not None
    assert [(e.id, e.policy) for e in enclaves] == [(1, "rr")]
    ghostbpf("enclave", "destroy", 1)


@pytest.mark.soak
def test_command_runs_on_when_its_enclave_is_destroyed() -> None:
    with running("run", "biff", "--cpus", "1-2", "--", "sh", "-c", "echo ready; exec sleep 1000") as process:
        process.until(lambda: "ready" in process.out)
        assert ghostbpf("enclave", "destroy", 1).status == 0
        process.signal(signal.SIGTERM)
        done = process.wait()
    assert done == Done(143, "ready\n", "")
    assert gone()


def test_all_schedules_ordinary_tasks_and_hands_them_back(workload: Workload) -> None:
    bystander = workload.spinner()
    script = f"cat /proc/{bystander.pid}/sched /sys/kernel/sched_ext/switch_all; ls /sys/fs/bpf/ghostbpf; exit 6"
    done = ghostbpf("run", "biff", "--all", "--", "sh", "-c", script)
    assert done.status == 6, done.err
    assert re.search(r"^ext.enabled\s*:\s*1$", done.out, re.M)
    assert done.out.endswith("1\ncore\nenclave_1\n")
    assert not in_ext(bystander.pid)
    bystander.progress()
    assert gone()


@pytest.mark.soak  # on a busy host, its waits alone take longer than its limit
@pytest.mark.parametrize(
    "options", [pytest.param(("biff", "--slice", "10s"), id="biff"), pytest.param(("fifo_centralized",), id="agent")]
)
def test_under_all_per_cpu_kernel_threads_do_not_wait_for_hogs(workload: Workload, options: tuple[str, ...]) -> None:
    """stat_refresh waits until a kernel thread of each CPU has run."""
    hogs = [workload.spinner(cpus=[cpu]) for cpu in (1, 2, 3)]
    fields = " ".join(f"/proc/{hog.pid}/sched" for hog in hogs)
    show = f"grep -h sum_exec_runtime {fields}"
    script = f"{show}; for i in 1 2 3 4 5; do cat /proc/sys/vm/stat_refresh; done; {show}"
    # On a CPU without a hog: elsewhere the command itself would wait for the end of a hog's slice.
    done = ghostbpf("run", *options, "--all", "--", "sh", "-c", script, first=lambda: os.sched_setaffinity(0, {0}))
    seen = [float(line.split(":")[1]) for line in output_of(done).splitlines()]
    assert len(seen) == 6
    # In ms. A kernel thread that waits for a hog waits 5 s, until the core rescues it.
    assert all(after - before < 20_000 for before, after in zip(seen[:3], seen[3:], strict=True))
    for hog in hogs:
        hog.progress()


@pytest.mark.soak
def test_all_takes_over_its_own_enclave_and_refuses_a_partial_core(enclave: MakeEnclave) -> None:
    assert ghostbpf("run", "biff", "--all", "--keep", "--", "true").status == 0
    assert ghostbpf("run", "rr", "--all", "--enclave", 1, "--", "sh", "-c", "exit 8").status == 8
    done = ghostbpf("run", "rr", "--cpus", "1", "--", "true")
    assert (done.status, "enclave 1 holds CPU 1" in done.err) == (1, True)
    assert ghostbpf("enclave", "destroy", "--all").status == 0
    assert gone()
    enclave("1")
    done = ghostbpf("run", "biff", "--all", "--", "true")
    assert (done.status, done.out) == (1, "")
    assert "the core is attached in partial mode\n  try: " in done.err


def test_installed_command_prints_what_main_prints() -> None:
    done = subprocess.run(["ghostbpf", "policies", "--json"], capture_output=True, text=True, timeout=100, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["policy"] for row in rows] == list(POLICIES)
    assert [list(row) for row in rows] == [["policy", "in", "options", "what it does"]] * len(rows)
    assert done.stdout == output_of(ghostbpf("policies", "--json"))


def test_doctor_finds_this_guest_ready() -> None:
    done = ghostbpf("doctor")
    assert done.status == 0, done.out
    assert "READY: sudo ghostbpf run biff" in done.out
    assert "fail" not in done.out
    rows = [json.loads(line) for line in output_of(ghostbpf("doctor", "--json")).splitlines()]
    assert all(list(row) == ["what", "verdict", "found", "hint"] for row in rows)
    assert {row["verdict"] for row in rows} <= {"ok", "warn"}
    found = {row["what"]: row["found"] for row in rows}
    assert found["sched_ext"] == "available, no scheduler loaded"
    assert found["kernel"].startswith(os.uname().release)

# SPDX-License-Identifier: Apache-2.0
"""The output of other tools and of the kernel's files for a task in an enclave: the rows of docs/other-tools.md.

If a tool's output differs, it knows SCHED_EXT by now, or the page is wrong: correct the page.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import pytest
from command import ghostbpf, running
from ghostbpf.schedulers import limits
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.tasks import SCHED_EXT
from ghostbpf.tools.trace.taskstats import TaskStats
from kernel_events import BYPASS, KernelEvents
from shares import stopwatch
from workload import Child, MakeEnclave, Me, Workload, all_cpus, in_ext, sched_field, state, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

S = 10**9
MS = 10**6


def output_of(*argv: object, status: int = 0) -> str:
    """Run a tool; returns its output on both streams."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print("$", *words)
    print(done.stdout)
    assert done.returncode == status, done.stdout
    return done.stdout


def anywhere() -> None:
    """For ``first``: allow all CPUs instead of the test's own."""
    os.sched_setaffinity(0, set(all_cpus()))


def spinning(workload: Workload, one: Enclave) -> Child:
    child = workload.spinner(one)
    child.progress()
    return child


def has_run(child: Child) -> Callable[[], bool]:
    """A function that tells whether ``child`` has run since this call."""
    before = child.loops
    return lambda: child.loops > before + 10


def group(parent: Path, name: str, *children: Child, **settings: str) -> Path:
    """A cgroup with ``children`` in it, and its files set (``cpu__max`` is cpu.max)."""
    made = parent / name
    made.mkdir()
    for file, value in settings.items():
        (made / file.replace("__", ".")).write_text(value)
    for child in children:
        (made / "cgroup.procs").write_text(str(child.pid))
    return made


def test_ps_top_and_chrt_do_not_know_the_class_by_name(workload: Workload, enclave: MakeEnclave) -> None:
    pid = spinning(workload, enclave("1")).pid
    output_of("ps", "--version")
    assert output_of("ps", "-o", "cls=,policy=,rtprio=,ni=,pri=", "-p", pid).split() == ["#7", "#7", "0", "-", "19"]
    row = output_of("top", "-b", "-n", 1, "-p", pid).splitlines()[-1].split()
    assert row[:1] + row[2:4] == [str(pid), "20", "0"]
    version = output_of("chrt", "--version")
    if "--ext" in output_of("chrt", "--help"):
        assert "SCHED_EXT" in output_of("chrt", "-p", pid)
    else:
        assert f"pid {pid}'s current scheduling policy: unknown" in output_of("chrt", "-p", pid), version
        assert "SCHED_EXT" not in output_of("chrt", "-m")
        assert "invalid option" in output_of("chrt", "-e", 0, "true", status=1)
    assert os.sched_getscheduler(pid) == SCHED_EXT
    assert in_ext(pid)


def test_renice_and_uclampset_work_and_leave_it_in(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1", "cfs_bpf")
    child = spinning(workload, one)
    output_of("renice", "-n", 5, "-p", child.pid)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 5
    output_of("uclampset", "-m", 512, "-p", child.pid)
    assert [task.tid for task in one.tasks()] == [child.pid]


def test_chrt_takes_it_out_and_add_brings_it_back(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1")
    child = spinning(workload, one)
    for option in ("--batch", "--idle", "--other"):
        output_of("chrt", option, "-p", 0, child.pid)
        assert not one.tasks()
        assert ghostbpf("enclave", "add", one.id, child.pid).status == 0
        assert [task.tid for task in one.tasks()] == [child.pid]


def test_taskset_to_other_cpus_leaves_it_in_and_runs_it_there(workload: Workload, enclave: MakeEnclave) -> None:
    one = enclave("1-2")
    child = spinning(workload, one)
    output_of("taskset", "-pc", 3, child.pid)
    until(lambda: child.at == 3, "it runs on CPU 3")
    assert [task.tid for task in one.tasks()] == [child.pid]
    assert one.counters().affinity_misses > 0


def test_nproc_and_python_count_all_cpus(enclave: MakeEnclave) -> None:
    code = "import os; print(os.cpu_count(), os.process_cpu_count(), len(os.sched_getaffinity(0)))"
    done = ghostbpf("run", "biff", "--cpus", "1", "--", "sh", "-c", f'nproc; python3 -c "{code}"', first=anywhere)
    assert done.out.split() == [str(len(all_cpus()))] * 4


def test_accounts_of_waiting_and_running_are_right(workload: Workload, enclave: MakeEnclave) -> None:
    """Three spinners on one CPU: each runs for a third of the time, and waits for the rest."""
    one = enclave("1", "biff")
    children = [spinning(workload, one) for _ in range(3)]

    def delays() -> list[int]:
        return [int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[1]) for child in children]

    def pressure() -> int:
        return int(re.findall(r"total=(\d+)", Path("/proc/pressure/cpu").read_text())[0])

    def taskstats() -> list[int]:
        with TaskStats() as stats:
            return [(stats.get(child.pid) or {})["cpu_delay_total"] for child in children]

    began, ran, delayed, pressed, told = time.monotonic(), stopwatch(children), delays(), pressure(), taskstats()
    until(lambda: sum(ran()) > 5 * S, "they run", 120)
    took, waited = time.monotonic() - began, sum(delays()) - sum(delayed)
    kernel = sum(taskstats()) - sum(told)
    stalled = (pressure() - pressed) / 1e6
    print(
        f"took {took:.2f} s, ran {sum(ran()) / S:.2f}, schedstat waited {waited / S:.2f}, "
        f"taskstats {kernel / S:.2f}, PSI some {stalled:.2f}"
    )
    assert waited / S == pytest.approx(2 * took, rel=0.2)
    assert kernel / S == pytest.approx(2 * took, rel=0.2)
    # The kernel sums pressure every two seconds.
    assert took - 2.5 < stalled < took + 2.5
    assert sched_field(children[0].pid, "nr_switches") > 0


def test_perf_sched_is_right_about_latencies(workload: Workload, enclave: MakeEnclave, tmp_path: Path) -> None:
    one = enclave("1", "rr", slice="50ms")
    children = [spinning(workload, one) for _ in range(3)]
    output_of("perf", "--version")
    data = tmp_path / "perf.data"
    output_of("perf", "sched", "record", "-o", data, "sleep", 3)
    table = output_of("perf", "sched", "-i", data, "latency", "-p")
    for child in children:
        (average,) = re.findall(rf":{child.pid}\s*\|[^|]*\|[^|]*\|\s*avg:\s*([\d.]+) ms", table)
        assert 60 < float(average) < 300


@pytest.mark.skipif(not limits.are_applied(), reason="the kernel has no cpu.max")
def test_cpu_limits_hold_but_the_kernel_counts_no_throttling(
    workload: Workload, enclave: MakeEnclave, cgroup: Path
) -> None:
    one = enclave("1")
    child = spinning(workload, one)
    limited = group(cgroup, "limited", child, cpu__max="10000 100000")
    ran, began = stopwatch([child]), time.monotonic()
    until(lambda: ran()[0] > S / 5, "it runs", 60)
    inside = ran()[0] / S / (time.monotonic() - began)
    stat = (limited / "cpu.stat").read_text()
    print(f"in the enclave {inside:.2f} of a CPU\n{stat}")
    assert "nr_throttled 0\n" in stat
    one.remove(child.pid)
    until(lambda: "nr_throttled 0\n" not in (limited / "cpu.stat").read_text(), "the limit holds outside", 20)
    ran, began = stopwatch([child]), time.monotonic()
    time.sleep(2)
    outside = ran()[0] / S / (time.monotonic() - began)
    print(f"outside {outside:.2f}")
    assert outside < 0.3
    assert inside < 0.3


def test_cpu_weights_have_no_effect(workload: Workload, enclave: MakeEnclave, cgroup: Path) -> None:
    one = enclave("1", "rr")
    children = [spinning(workload, one) for _ in range(2)]
    for child, weight in zip(children, ("1", "10000"), strict=True):
        group(cgroup, weight, child, cpu__weight=weight)
    ran = stopwatch(children)
    until(lambda: sum(ran()) > 3 * S, "they run", 60)
    print("shares", [one / sum(ran()) for one in ran()])
    assert ran()[0] / sum(ran()) == pytest.approx(0.5, abs=0.1)


def test_freezer_and_sigstop_wait_for_a_turn(workload: Workload, enclave: MakeEnclave, cgroup: Path) -> None:
    """A task stops only when it runs: a waiting task must first get a CPU."""
    one = enclave("1", "rr", slice="1s")
    child, other = (spinning(workload, one) for _ in range(2))
    frozen = group(cgroup, "frozen", child)

    def stops_after(stop: Callable[[], object], is_stopped: Callable[[], bool]) -> float:
        until(has_run(child), "it runs")
        until(has_run(other), "the other runs")
        began = time.monotonic()
        stop()
        until(is_stopped, "it stops")
        return time.monotonic() - began

    def is_frozen() -> bool:
        return "frozen 1" in (frozen / "cgroup.events").read_text()

    freezing = stops_after(lambda: (frozen / "cgroup.freeze").write_text("1"), is_frozen)
    (frozen / "cgroup.freeze").write_text("0")
    stopping = stops_after(lambda: os.kill(child.pid, signal.SIGSTOP), lambda: state(child.pid) == "T")
    os.kill(child.pid, signal.SIGCONT)
    print(f"frozen after {1000 * freezing:.0f} ms, stopped after {1000 * stopping:.0f} ms")
    assert freezing > 0.2
    assert stopping > 0.2
    until(has_run(child), "it runs on")
    assert len(one.tasks()) == 2


def test_priority_inheritance_lends_a_real_time_priority(workload: Workload, enclave: MakeEnclave) -> None:
    """While a FIFO task waits for a lock, its holder is out of the class, but not out of the enclave."""
    one = enclave("1")
    shared = mmap.mmap(-1, 4096)
    ffi = cffi.FFI()
    ffi.cdef(
        """
        int pthread_mutexattr_init(void *);
        int pthread_mutexattr_setprotocol(void *, int);
        int pthread_mutexattr_setpshared(void *, int);
        int pthread_mutex_init(void *, void *);
        int pthread_mutex_lock(void *);
        int pthread_mutex_unlock(void *);
        """
    )
    libc: Any = ffi.dlopen(None)
    lock, attr = ffi.from_buffer(shared), ffi.new("char[16]")
    libc.pthread_mutexattr_init(attr)
    libc.pthread_mutexattr_setprotocol(attr, 1)  # PTHREAD_PRIO_INHERIT
    libc.pthread_mutexattr_setpshared(attr, 1)
    assert libc.pthread_mutex_init(lock, attr) == 0

    def hold(me: Me) -> None:
        libc.pthread_mutex_lock(lock)
        me.set(1)
        me.block()
        libc.pthread_mutex_unlock(lock)
        while not me.stopped:
            me.note()

    def wait(me: Me) -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_unlock(lock)

    holder = workload.spawn(hold, one)
    until(lambda: holder.value == 1, "it has the lock")
    waiter = workload.spawn(wait, cpus=[2])
    until(lambda: not in_ext(holder.pid), "it inherits a priority")
    assert os.sched_getscheduler(holder.pid) == SCHED_EXT
    holder.wake()
    until(lambda: in_ext(holder.pid), "it is back")
    assert waiter.wait() == 0
    assert [task.tid for task in one.tasks()] == [holder.pid]


def test_io_workers_of_io_uring_are_in_the_enclave(tmp_path: Path) -> None:
    words = ("stress-ng", "--io-uring", "1", "--temp-path", tmp_path, "-q")
    with running("run", "biff", "--cpus", "1-2", "--", *words, first=anywhere) as process:

        def workers() -> list[str]:
            (one,) = Enclaves.open() or [None]
            return [task.comm for task in one.tasks() if task.comm.startswith("iou-")] if one else []

        process.until(lambda: bool(workers()))
        process.signal(signal.SIGINT, group=True)
        process.wait()


def test_stress_ng_has_its_own_name_for_the_class(tmp_path: Path) -> None:
    output_of("stress-ng", "--version")
    listed = output_of("stress-ng", "--sched", "list", status=1)
    (name,) = re.findall(r"\b(?:sched_)?ext\b", listed)
    assert "successful run" in output_of("stress-ng", "--cpu", 1, "--sched", name, "-t", 1, "--temp-path", tmp_path)


def test_system_suspend_bypasses_the_enclave(
    workload: Workload, enclave: MakeEnclave, kernel_events: KernelEvents
) -> None:
    """The guest's devices refuse to suspend, after every task has been frozen."""
    kernel_events.expect(BYPASS)
    one = enclave("1", slice="10s")
    children = [spinning(workload, one), *(workload.spinner(one) for _ in range(2))]
    before = kernel_events.counts()[BYPASS]
    try:
        Path("/sys/power/state").write_text("freeze")
    except OSError as error:
        print("suspend:", error)
    assert kernel_events.counts()[BYPASS] > before
    assert kernel_events.trouble() == []
    until(has_run(children[0]), "it runs on")
    assert len(one.tasks()) == 3


def test_fair_hog_leaves_what_the_ext_server_gives(workload: Workload, enclave: MakeEnclave) -> None:
    """A few percent since 7.0; nothing before."""
    one = enclave("1")
    child = spinning(workload, one)
    hog = workload.spinner(cpus=[1])
    hog.progress()
    ran = stopwatch([child])
    time.sleep(5)
    share = ran()[0] / (5 * S)
    has_server = Path("/sys/kernel/debug/sched/ext_server").exists()
    print(f"ext_server: {has_server}, share {share:.3f}")
    assert (share > 0.01) == has_server
    assert share < 0.3

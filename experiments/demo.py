# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a real workload under the kernel's own scheduler and under Biff, a live swap, a killed loader.

It runs on this machine if the kernel has sched_ext, and in a guest otherwise.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tabulate import tabulate

from ..loaders import sched_ext
from ..loaders.errors import GhostError, KernelUnsupported
from ..schedulers.enclave import Enclave, Enclaves
from ..schedulers.launch import Command
from ..schedulers.registry import POLICIES
from ..tools.cli import report
from ..tools.output import human_ns
from .wakelat import Latencies, WakeLatency

_MESSAGING = "perf bench sched messaging -g 4 -l 30"
_THREADS = "perf bench sched messaging -t -g 25 -l 1"
_STEADY = "perf bench sched messaging -g 4 -l 300"
_SWAPS = 10
_GHOSTBPF = (sys.executable, "-m", "ghostbpf.tools.cli")
_STARTED = time.monotonic()


def main() -> int:
    """Run the demo; 0 if every part succeeded."""
    try:
        sched_ext.status()
    except KernelUnsupported as error:
        say(f"{error}: booting a guest with sched_ext")
        return subprocess.call([*_GHOSTBPF, "vm", "--cpus", "4", "--precompile", "--", "python3", "-m", __spec__.name])
    try:
        return _demo()
    except GhostError as error:
        return report(error)


def say(text: str) -> None:
    """A line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:5.1f} s] {text}", flush=True)


def _demo() -> int:
    say(f"kernel {os.uname().release}, {os.cpu_count()} CPUs, sched_ext {sched_ext.status().state}")
    if shutil.which("perf") is None:
        raise GhostError("the demo's workload is perf bench", hint="apt install linux-perf")
    say("compiling the tracer and the policy to swap to")
    with POLICIES["rr"].compile_ahead(), WakeLatency():
        pass
    say("compiling and attaching Biff")
    before = time.monotonic()
    with Enclaves.temporary(POLICIES["biff"]) as enclave:
        took = time.monotonic() - before
        say(f"enclave {enclave.id}: {enclave.policy} schedules CPU {enclave.cpus} (attached in {took:.1f} s)")
        _compare(enclave)
        lost = _swap_live(enclave)
    still_ran = _kill_loader()
    back = sched_ext.status().state == "disabled"
    say(f"sched_ext is {sched_ext.status().state}: the kernel is back on its own scheduler")
    return 0 if lost == 0 and still_ran and back else 1


def _destroy(id: int) -> None:
    with Enclaves.change() as enclaves:
        if enclaves is not None:
            enclaves.get(id).destroy()


def _compare(enclave: Enclave) -> None:
    rows, saved = [], []
    for title, workload in (("messaging, 160 tasks", _MESSAGING), ("1,000 short threads", _THREADS)):
        switches = {}
        for scheduler, prepare in (("EEVDF", None), ("Biff", enclave.add_process)):
            say(f"{title} under {scheduler}")
            seconds, seen = _measure(workload, prepare)
            switches[scheduler] = seen.switches
            rows.append([title, scheduler, f"{seconds:.2f} s", seen.switches, human_ns(seen.p50)])
        saved.append(f"{1 - switches['Biff'] / switches['EEVDF']:.0%}")
    headers = ["workload", "scheduler", "time", "context switches", "median wait for a CPU"]
    print(f"\n{tabulate(rows, headers, disable_numparse=True)}\n", flush=True)
    say(f"Biff runs each task until it blocks: {' and '.join(saved)} fewer switches")
    say("a task waits until the tasks before it block, so its wait may be shorter or longer")


def _measure(workload: str, prepare: Callable[[int], object] | None) -> tuple[float, Latencies]:
    with WakeLatency() as latency:
        child = _start(workload, latency, prepare)
        began = time.monotonic()
        _finish(child)
        return time.monotonic() - began, latency.read()


def _start(workload: str, latency: WakeLatency, prepare: Callable[[int], object] | None) -> Command:
    child = Command(["sh", "-c", f"exec {workload} >/dev/null"])

    def both(pid: int) -> None:
        latency.mark(pid)
        if prepare is not None:
            prepare(pid)

    child.start(both)
    return child


def _finish(child: Command) -> None:
    while (status := child.wait(1.0)) is None:
        pass
    if status:
        raise GhostError(f"the workload ended with status {status}")


def _swap_live(enclave: Enclave) -> int:
    say(f"replacing the policy {_SWAPS} times while messaging runs")
    with WakeLatency() as latency:
        child = _start(_STEADY, latency, enclave.add_process)
        # Wait until all 160 tasks exist before the first swap.
        while latency.read().forks < 160:
            time.sleep(0.01)
        latency.reset_gap()
        swaps = 0
        while swaps < _SWAPS and child.wait(0.05) is None:
            enclave.set_policy(POLICIES["rr" if swaps % 2 == 0 else "biff"])
            swaps += 1
        gap = latency.longest_gap
        _finish(child)
        seen = latency.read()
    lost = seen.running
    say(f"{swaps} swaps, {seen.forks + 1} tasks, {lost} lost; none on a CPU for {human_ns(gap)} at most")
    return lost


def _kill_loader() -> bool:
    say("starting a loader, and killing it with SIGKILL while its command runs")
    loader = subprocess.Popen([*_GHOSTBPF, "run", "biff", "--", "sh", "-c", f"exec {_STEADY} >/dev/null"])
    enclave = _wait_for_tasks(160, loader)
    loader.send_signal(signal.SIGKILL)
    loader.wait()
    before, at = enclave.counters().switches, time.monotonic()
    time.sleep(0.5)
    switches, seconds = enclave.counters().switches - before, time.monotonic() - at
    say(f"the loader is dead; its {enclave.nr_tasks} tasks go on: {switches / seconds:.0f} switches/s")
    while enclave.nr_tasks:
        time.sleep(0.1)
    say("they have all finished; destroying the enclave")
    _destroy(enclave.id)
    return switches > 0


def _wait_for_tasks(count: int, loader: subprocess.Popen[bytes]) -> Enclave:
    most = 0
    while loader.poll() is None:
        for enclave in Enclaves.open() or ():
            most = max(most, enclave.nr_tasks)
            if most >= count:
                return enclave
        time.sleep(0.02)
    raise GhostError(f"the loader ended with status {loader.returncode}, with at most {most} of {count} tasks")


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""``make bench``: the measurements that the README quotes, side by side in one run: medians and ratios.

Each part prints a table, or with --json one object a line. Without sched_ext in the kernel it runs in a guest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from tabulate import tabulate

from ..loaders import Btf, KernelUnsupported, MmapArray, Module, compile, headers, sched_ext, source
from ..loaders.errors import GhostError
from ..loaders.source import BPF_DIR
from ..schedulers import core
from ..schedulers.cpuset import CpuSet
from ..schedulers.enclave import Enclaves
from ..schedulers.registry import POLICIES
from ..schedulers.tasks import SCHED_EXT
from ..schedulers.topology import Topology, nr_cpu_words
from ..vm.errors import KILLED_BY_EMULATION
from .bench_agents import agent_gaps, agents, messages, transactions
from .bench_policies import policies, scaling, sizes
from .bench_tracers import tracers
from .measure import MESSAGING, PIPE, Row, bpf_stats, in_child, perf, programs, summary, timed
from .wakelat import WakeLatency

_GHOSTBPF = (sys.executable, "-m", "ghostbpf.tools.cli")
_WORKLOADS = {"messaging": MESSAGING, "pipe": PIPE}


def main() -> int:
    """Run the parts given, by default all."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *_PARTS], help="parts to run (default: all)")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each part (default: 5)")
    parser.add_argument("--cpus", type=int, default=4, help="CPUs of the guest, if one is needed (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    arguments = parser.parse_args()
    run = _here if _has_sched_ext() else _in_guest
    for name in arguments.parts or _PARTS:
        if status := run(name, arguments):
            return status
    return 0


def _has_sched_ext() -> bool:
    try:
        sched_ext.status()
    except KernelUnsupported:
        return False
    return True


def _in_guest(name: str, arguments: argparse.Namespace) -> int:
    """Run each part in its own guest, and again if QEMU kills the guest, so that only that part is repeated."""
    options = ["--runs", str(arguments.runs), *(["--json"] if arguments.json else [])]
    bench = ["python3", "-m", "ghostbpf.experiments.bench_readme", *options, name]
    guest = [*_GHOSTBPF, "vm", "--cpus", str(arguments.cpus), "--with-headers", "--", *bench]
    while (status := subprocess.call(guest)) == KILLED_BY_EMULATION:
        print(f"QEMU killed the guest: {name} starts again in a new guest", file=sys.stderr, flush=True)
    return status


def _here(name: str, arguments: argparse.Namespace) -> int:
    print(f"{name} …", file=sys.stderr, flush=True)
    rows = _PARTS[name](arguments.runs)
    if arguments.json:
        for row in rows:
            print(json.dumps({"part": name, **row}), flush=True)
    else:
        print(f"\n{name}\n{tabulate(rows, headers='keys', floatfmt='.3f')}\n", flush=True)
    return 0


def start_up(runs: int) -> list[Row]:
    """Time until attached: cold, warm, the whole command, and stock bcc compiling the same policy."""
    columns: tuple[list[float], ...] = ([], [], [], [])
    for run in range(runs + 1):
        with tempfile.TemporaryDirectory() as cache:
            row = in_child(_stock_compile), _attach_in_child(cache), _attach_in_child(cache)
        took = timed([*_GHOSTBPF, "run", "biff", "--", "true"])
        # The first round fills the page cache and, under emulation, translates the compiler's code: not measured.
        if run:
            for column, value in zip(columns, (*row, took), strict=True):
                column.append(value)
    stock, cold, warm, command = columns
    return [
        summary("stock bcc with kernel headers compiles biff.bpf.c", stock, "s"),
        summary("cold: core and Biff compiled, loaded, attached", cold, "s", stock),
        summary("warm: from the cache, loaded, attached", warm, "s", cold),
        summary("the whole command, warm: ghostbpf run biff -- true", command, "s"),
        {"what": "loader's peak memory after a warm start, MB", "median": _peak_memory()},
    ]


def throughput(runs: int) -> list[Row]:
    """perf bench under EEVDF and under Biff, in turn."""
    rows = []
    with Enclaves.temporary(POLICIES["biff"]) as enclave:
        for name, workload in _WORKLOADS.items():
            eevdf, biff = [], []
            for _ in range(runs):
                eevdf.append(perf(workload))
                biff.append(perf(workload, enclave.add))
            rows += [summary(f"{name}, EEVDF", eevdf, "s"), summary(f"{name}, Biff", biff, "s", eevdf)]
    return rows


def ops(runs: int) -> list[Row]:
    """Nanoseconds of BPF per call of each op and tracepoint, core and Biff together, by the kernel's own statistics."""
    with Enclaves.temporary(POLICIES["biff"]) as enclave, bpf_stats():
        for workload in _WORKLOADS.values():
            perf(workload, enclave.add)
        shown = programs()
    return [
        {"what": p["name"], "calls": p["run_cnt"], "ns per call": p["run_time_ns"] / p["run_cnt"]}
        for p in sorted(shown, key=lambda p: -p.get("run_time_ns", 0))
        if p.get("run_cnt") and (p["type"] == "struct_ops" or p["name"].startswith("tp_"))
    ]


def slots(runs: int) -> list[Row]:
    """Biff in the core against the same Biff attached as a struct_ops of its own, in turn.

    The pipe's two tasks are bound to one CPU: whether they share a CPU by chance costs more than a slot.
    """
    rows = []
    for name, workload in (_WORKLOADS | {"pipe": f"taskset -c 1 {_WORKLOADS['pipe']}"}).items():
        direct, in_core = [], []
        for _ in range(runs):
            with _direct():
                direct.append(perf(workload, _to_ext))
            with Enclaves.temporary(POLICIES["biff"]) as enclave:
                in_core.append(perf(workload, enclave.add))
        rows += [summary(f"{name}, direct", direct, "s"), summary(f"{name}, in the core", in_core, "s", direct)]
    return rows


def swap(runs: int) -> list[Row]:
    """The longest time without a switch to a task of a busy enclave: with swaps, and without."""
    swapping: list[float] = []
    quiet: list[float] = []
    cost: list[float] = []
    POLICIES["rr"].compile()
    with Enclaves.temporary(POLICIES["biff"]) as enclave:
        for _ in range(runs):
            for gaps, swaps in ((quiet, 0), (swapping, 20)):
                with WakeLatency() as latency:
                    load = subprocess.Popen(_silent(_WORKLOADS["messaging"]))
                    enclave.add_process(load.pid)
                    latency.mark(load.pid)
                    time.sleep(0.3)
                    latency.reset_gap()
                    for n in range(20):
                        began = time.monotonic()
                        if swaps:
                            enclave.set_policy(POLICIES["rr" if n % 2 == 0 else "biff"])
                            cost.append(time.monotonic() - began)
                        time.sleep(0.02)
                    gaps.append(latency.longest_gap / 1e6)
                    load.wait()
    return [
        summary("longest gap, no swap", quiet, "ms"),
        summary("longest gap, 20 swaps", swapping, "ms", quiet),
        summary("one swap, as the loader sees it", [c * 1e3 for c in cost], "ms"),
    ]


_PARTS: dict[str, Callable[[int], list[Row]]] = {
    "start_up": start_up,
    "throughput": throughput,
    "slots": slots,
    "ops": ops,
    "swap": swap,
    "tracers": tracers,
    "transactions": transactions,
    "messages": messages,
    "agents": agents,
    "agent_gaps": agent_gaps,
    "policies": policies,
    "scaling": scaling,
    "sizes": sizes,
}


@contextlib.contextmanager
def _direct() -> Iterator[None]:
    module = Module(
        compile(BPF_DIR / "policies" / "biff_direct.bpf.c", {"NR_CPU_WORDS": nr_cpu_words()}), constants={"enclave": 1}
    )
    ffi, words = core.ffi(), core.constant("CPU_WORDS")
    topology = Topology.from_sysfs()
    everything = topology.all_cpus.words(words)
    MmapArray(module.maps["core"], ffi, "struct core")[0].online = everything
    MmapArray(module.maps["enclaves"], ffi, "struct enclave")[1].cpus = everything
    cpus = MmapArray(module.maps["cpus"], ffi, "struct cpu")
    for number in topology.all_cpus:
        cpus[number].llc = (topology.cpu(number).l3_siblings or CpuSet([number])).words(words)
        cpus[number].running = 1
    params_ffi, struct = POLICIES["biff"].params_type
    MmapArray(module.maps["params"], params_ffi, struct)[0].slice_ns = 50_000_000
    flags = Btf.kernel().enum("scx_ops_flags")
    ops_flags = flags["SCX_OPS_SWITCH_PARTIAL"] | flags["SCX_OPS_ENQ_LAST"] | flags["SCX_OPS_ALLOW_QUEUED_WAKEUP"]
    with sched_ext.attach(module, "biff_", name="biff_direct", fields={"flags": ops_flags}):
        yield
    sched_ext.wait_disabled()


def _to_ext(pid: int) -> None:
    os.sched_setscheduler(pid, SCHED_EXT, os.sched_param(0))


def _silent(workload: str) -> list[str]:
    return ["sh", "-c", f"exec {workload} >/dev/null 2>&1"]


def _attach_in_child(cache: str) -> float:
    """Seconds until the core is attached with an enclave under Biff, in a child process."""

    def attach() -> float:
        os.environ["XDG_CACHE_HOME"] = cache
        began = time.monotonic()
        with Enclaves.temporary(POLICIES["biff"]):
            return time.monotonic() - began

    return float(in_child(attach))


def _peak_memory() -> float:
    """Peak memory in MB of the loader alone, read by the command that it starts."""
    script = "grep VmHWM /proc/$PPID/status"
    done = subprocess.run(
        [*_GHOSTBPF, "run", "biff", "--", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[1]) * 1024 / 1e6


def _stock_compile() -> float:
    """Seconds for the distribution's bcc to compile Biff's C with the kernel's headers package."""
    text = _for_stock(source.read(BPF_DIR / "policies" / "biff.bpf.c"))
    script = (
        "import sys, time; from bcc import BPF; began = time.monotonic();"
        "BPF(text=sys.stdin.read()); print(time.monotonic() - began)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GhostError(f"stock bcc cannot compile it: {done.stderr[-600:]}")
    return float(done.stdout)


def _for_stock(unit: source.Source) -> str:
    """The same C text, after the kfunc pointers and constants of sched_ext that stock bcc lacks."""
    generated = headers.generate(unit.code, Btf.kernel()).vmlinux_h
    ours = re.compile(r"typedef .*__t\(|static \w+__t \*|#define (HAVE_|SCX_|LINK_)")
    declarations = [line for line in generated.splitlines() if ours.match(line)]
    includes = ["#include <linux/sched.h>", "#include <linux/sched/ext.h>", "#define NR_CPU_WORDS 1"]
    return "\n".join([*includes, *declarations, unit.text])


if __name__ == "__main__":
    if shutil.which("perf") is None:
        sys.exit("error: perf is missing\n  try: apt install linux-perf")
    sys.exit(main())

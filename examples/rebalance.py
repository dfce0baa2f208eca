# SPDX-License-Identifier: Apache-2.0
"""Moves whole CPUs between enclaves by load: sudo python3 examples/rebalance.py [--threshold 20] [--cooldown 5] [ID...]

The load of an enclave is the CPU time that its tasks had since the last look, divided by that of its CPUs. If the
highest and the lowest load differ by the threshold, one CPU moves from the enclave with the lowest load to the one with
the highest. After a move, none follows for the cool-down, and the loads are measured afresh.

No CPU moves if the giver would then have the higher load: so none moves back while the tasks need what they need now.
A full enclave shows a load of 100 %, however much more its tasks need. An enclave that borrows CPUs (ghostbpf enclave
set ID --borrow yes) shows more than 100 %, and gets CPUs sooner.

Good for machines whose load moves between groups of tasks in seconds or minutes. Not good for shorter bursts: lending
idle CPUs serves those at once.
"""

import argparse
import sys
import time
from collections.abc import Collection
from typing import NamedTuple

from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves


class Move(NamedTuple):
    """CPU ``cpu`` moved from enclave ``giver`` to enclave ``taker``, by their loads before."""

    cpu: int
    giver: int
    taker: int
    loads: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.loads
        return f"CPU {self.cpu}: enclave {self.giver} ({low:.0%} loaded) -> enclave {self.taker} ({high:.0%})"


class Rebalancer:
    """Watches the enclaves ``ids`` (default: all); ``threshold`` is a difference of loads, 1 for a full enclave."""

    def __init__(self, threshold: float, cooldown_s: float, ids: Collection[int] = ()) -> None:
        self.threshold, self.cooldown_s, self.ids = threshold, cooldown_s, set(ids)
        self.not_before = 0.0
        self.at, self.seen = time.monotonic(), dict[int, tuple[dict[int, int], dict[int, int]]]()

    def step(self) -> Move | None:
        """Measure the loads since the last step, and move a CPU if they differ too much."""
        with Enclaves.change() as enclaves:
            chosen = [one for one in enclaves or () if one.is_active and (not self.ids or one.id in self.ids)]
            busy = self.busy_cpus(chosen)
            if len(busy) < 2 or self.at < self.not_before:
                return None
            load = {one: busy[one] / len(one.cpus) for one in busy}
            giver, taker = min(load, key=load.__getitem__), max(load, key=load.__getitem__)
            spare = giver.cpus - CpuSet([] if giver.spun_cpu is None else [giver.spun_cpu])
            if load[taker] - load[giver] < self.threshold or len(spare) < 2:
                return None
            if busy[giver] / (len(giver.cpus) - 1) > busy[taker] / (len(taker.cpus) + 1):
                return None
            cpu = max(spare)
            taker.resize(taker.cpus | CpuSet([cpu]), steal_from=giver)
        self.not_before = time.monotonic() + self.cooldown_s
        self.seen.clear()
        return Move(cpu, giver.id, taker.id, (load[giver], load[taker]))

    def busy_cpus(self, enclaves: Collection[Enclave]) -> dict[Enclave, float]:
        """How many CPUs each enclave kept busy since the last call; without enclaves that are new."""
        before, self.seen = self.seen, {one.created_ns: runtimes(one) for one in enclaves}
        then, self.at = self.at, time.monotonic()
        spent_ns = (self.at - then) * 1e9
        busy = {}
        for one in enclaves:
            if one.created_ns in before:
                (cpus_then, tasks_then), (cpus, tasks) = before[one.created_ns], self.seen[one.created_ns]
                # A CPU's counter has turns that ended, a task's run time only tasks that did not: each may lack a part.
                by_cpu = sum(min(ns - cpus_then.get(cpu, 0), spent_ns) for cpu, ns in cpus.items())
                by_task = sum(ns - tasks_then[tid] for tid, ns in tasks.items() if tid in tasks_then)
                busy[one] = max(by_cpu, by_task) / spent_ns
        return busy


def runtimes(enclave: Enclave) -> tuple[dict[int, int], dict[int, int]]:
    """The CPU time of an enclave, in ns: by CPU, of turns that have ended, and by task."""
    by_cpu = {cpu: counters.runtime_ns for cpu, counters in enclave.per_cpu().items()}
    return by_cpu, {task.tid: task.runtime_ns for task in enclave.tasks()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Move whole CPUs between enclaves by load.")
    parser.add_argument("--threshold", type=float, default=20, metavar="PERCENT", help="default: 20")
    parser.add_argument("--cooldown", type=float, default=5, metavar="SECONDS", help="default: 5")
    parser.add_argument("--interval", type=float, default=1, metavar="SECONDS", help="between two looks; default: 1")
    parser.add_argument("ids", type=int, nargs="*", metavar="ID", help="the enclaves; default: all")
    args = parser.parse_args()
    rebalancer = Rebalancer(args.threshold / 100, args.cooldown, args.ids)
    while True:
        try:
            if move := rebalancer.step():
                print(move, flush=True)
        except GhostError as error:  # for example an enclave that is destroyed meanwhile
            print(f"warning: {error}", file=sys.stderr, flush=True)
        time.sleep(args.interval)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except GhostError as error:
        sys.exit(f"error: {error}" + (f"\n  try: {error.hint}" if error.hint else ""))

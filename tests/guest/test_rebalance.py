# SPDX-License-Identifier: Apache-2.0
"""examples/rebalance.py: whole CPUs go to the enclave that needs them, and none goes back and forth."""

from __future__ import annotations

import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import fork
from workload import MakeEnclave, Workload, until

pytestmark = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.shared_core,
    pytest.mark.kernel_independent,
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "rebalance.py"


def moves(rebalancer: Any, looks: int, seconds: float = 0.1) -> list[tuple[int, int, int]]:
    """What moves in ``looks`` measurements of ``seconds`` each, longer than the cool-down."""
    found = []
    for _ in range(looks):
        time.sleep(seconds)
        if move := rebalancer.step():
            found.append((move.cpu, move.giver, move.taker))
    return found


@pytest.mark.soak
def test_cpu_moves_to_the_loaded_enclave_and_stays(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3")
    rebalancer = runpy.run_path(str(EXAMPLE))["Rebalancer"](0.2, 0.05, [first.id, second.id])
    spinners = [workload.spinner(first) for _ in range(3)]
    assert moves(rebalancer, 8) == [(3, second.id, first.id)]
    assert (str(first.cpus), str(second.cpus)) == ("1,3", "2")
    # Both are full, and later one task needs one CPU in each: none has a CPU to spare.
    own = workload.spinner(second)
    assert moves(rebalancer, 4) == []
    for spinner in spinners[1:]:
        spinner.stop()
    assert moves(rebalancer, 3, seconds=0.5) == []
    spinners[0].stop()
    assert moves(rebalancer, 8) == [(3, first.id, second.id)]
    own.stop()
    assert moves(rebalancer, 4) == []


@pytest.mark.soak
def test_cooldown_holds_a_second_move_back(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3")
    rebalancer = runpy.run_path(str(EXAMPLE))["Rebalancer"](0.2, 1000, [first.id, second.id])
    spinner = workload.spinner(first)
    assert moves(rebalancer, 4) == [(3, second.id, first.id)]
    spinner.stop()
    workload.spinner(second)
    assert moves(rebalancer, 4) == []


@pytest.mark.soak
def test_example_runs_as_it_is(workload: Workload, enclave: MakeEnclave) -> None:
    first, second = enclave("1"), enclave("2-3")

    def example() -> None:
        sys.argv = ["rebalance.py", "--interval", "0.1", "--cooldown", "0.2"]
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    workload.spinner(first)
    with fork(example) as running:
        until(lambda: running.out, "a CPU moves")
        running.signal(signal.SIGINT)
        done = running.wait()
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"CPU 3: enclave {second.id} (0% loaded) -> enclave {first.id} (")

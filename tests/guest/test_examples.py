# SPDX-License-Identifier: Apache-2.0
"""A custom scheduler, attached by the loaders alone: it runs, and the commands behave correctly beside it."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import fork, ghostbpf
from ghostbpf.loaders import Array, AttachError, Module, abi, compile, sched_ext
from ghostbpf.schedulers import core
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import SchedulerBusy
from workload import MakeEnclave, Workload, in_ext, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.soak]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fifo() -> Iterator[Array]:
    """Run the example's scheduler on all CPUs; yields its counter."""
    module = Module(compile(EXAMPLES / "fifo.bpf.c"))
    with sched_ext.attach(module, "fifo_", name="fifo") as link:
        yield Array(module.maps["queued"], abi.load(), "u64")
        link.detach()  # tasks forked since then hold it, too
    assert sched_ext.wait_disabled()
    module.close()


def test_example_runs_as_it_is_and_counts_what_it_queued() -> None:
    def example() -> None:
        sys.argv = ["fifo.py", "1"]
        runpy.run_path(str(EXAMPLES / "fifo.py"), run_name="__main__")

    done = fork(example).wait()
    assert (done.status, done.err) == (0, "")
    assert int(re.fullmatch(r"queued (\d+)\n", done.out)[1]) > 0  # type: ignore[index]
    assert sched_ext.wait_disabled()


def test_custom_scheduler_runs_every_ordinary_task(workload: Workload, fifo: Array) -> None:
    child = workload.spinner()
    assert in_ext(child.pid)
    before = fifo[0]
    for _ in range(2):
        workload.spinner(cpus=[1])  # two tasks on one CPU must queue
    until(lambda: fifo[0] > before)
    child.progress()
    assert sched_ext.status().ops == "fifo"


def test_run_names_the_scheduler_that_is_attached(fifo: Array) -> None:
    for line in ("run biff -- true", "run rr --all -- true", "run biff --cpus 1"):
        done = ghostbpf(*line.split())
        assert (done.status, done.out) == (1, "")
        error, hint = done.err.splitlines()
        assert error == "error: the sched_ext scheduler fifo is running"
        assert hint == "  try: stop it first; the kernel allows one"
    with pytest.raises(SchedulerBusy) as busy, Enclaves.create():
        pass
    assert busy.value.ops == "fifo"
    assert not core.ROOT.exists()
    assert sched_ext.status().ops == "fifo"
    done = ghostbpf("doctor")
    assert done.status == 1
    assert "NOT READY: sched_ext" in done.out
    assert "stop fifo: the kernel allows one scheduler" in done.out


@pytest.mark.soak
def test_commands_that_attach_nothing_work_beside_another_scheduler(fifo: Array) -> None:
    for line, says in (("enclave ls", "no enclaves\n"), ("enclave destroy --all", "all enclaves are gone\n")):
        done = ghostbpf(*line.split())
        assert (done.status, done.out, done.err) == (0, says, "")
    assert sched_ext.status().ops == "fifo"


def test_custom_scheduler_is_refused_while_the_core_is_attached(enclave: MakeEnclave) -> None:
    enclave("1")
    module = Module(compile(EXAMPLES / "fifo.bpf.c"))
    with pytest.raises(AttachError, match="cannot attach fifo: the scheduler ghostbpf is running"):
        sched_ext.attach(module, "fifo_", name="fifo")
    module.close()
    assert [e.id for e in Enclaves.open() or ()] == [1]

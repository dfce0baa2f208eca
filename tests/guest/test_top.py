# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf top`` and ``status``: what they show is what the kernel has, and keys change what they say they change."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import ghostbpf
from ghostbpf.loaders import sched_ext
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.tools import top
from kernel_log import KernelLog
from workload import Child, MakeEnclave, Workload, until

sys.path.insert(0, str(Path(__file__).parents[1]))
from terminal import Terminal

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core, pytest.mark.kernel_independent]

#: The test process, its children and the terminal are on CPU 0.
TOP = "taskset -c 2-3 ghostbpf top"
SCHEMA = json.loads(Path(top.__file__).with_name("schema.json").read_text())


def test_once_and_status_have_what_runs(workload: Workload, enclave: MakeEnclave) -> None:
    e = enclave("1")
    spinners = [workload.spinner(e) for _ in range(2)]
    for child in spinners:
        child.progress(3)
    done = ghostbpf("top", "--once", "--json", "--interval", "1", "--enclave", e.id)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    jsonschema.validate(found, SCHEMA)
    (row,) = (row for row in found["enclaves"] if row["enclave"] == e.id)
    assert (row["policy"], row["cpus"], row["tasks"], row["healthy"]) == ("biff", "1", 2, True)
    assert {task["tid"] for task in found["tasks"]} == {child.pid for child in spinners}
    assert sum(task["cpu_share"] for task in found["tasks"]) == pytest.approx(row["busy_cpus"], abs=0.3)
    # Two spin on one CPU: one of them waits at any time.
    assert sum(task["wait_share"] for task in found["tasks"]) > 0.5
    (cpu,) = (cpu for cpu in found["cpus"] if cpu["cpu"] == 1)
    assert cpu["enclave"] == e.id
    status = ghostbpf("status")
    assert (status.status, status.err) == (0, "")
    assert f"enclave {e.id}: biff on CPU 1: healthy\n  2 tasks: " in status.out
    assert "CPUs of no enclave: 2-3" in status.out


@contextmanager
def screen(
    directory: Path, *options: object, environment: dict[str, str] | None = None, **size: int
) -> Iterator[Terminal]:
    """A terminal with ``ghostbpf top``, which q must end, with the terminal restored."""
    command = " ".join([TOP, *map(str, options)])
    with Terminal(directory, command, environment=environment, **size) as terminal:
        yield terminal
        terminal.keys("q")
        assert "-icanon" not in terminal.until(lambda screen: "ended with 0" in screen and "iexten" in screen)


def row_of(screen: str, first: object) -> list[str]:
    """The words of the row whose first word is ``first``."""
    return next((line.split() for line in screen.splitlines() if line.split()[:1] == [str(first)]), [])


def shows(terminal: Terminal, child: Child) -> str:
    """Wait until the row of a task has rates."""
    return terminal.until(lambda screen: (row := row_of(screen, child.pid)) and "-" not in row[5:7])


@pytest.mark.soak
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "no colour"])
def test_screen_shows_the_load_and_keys_filter_follow_and_sort(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path, colour: bool
) -> None:
    e = enclave("1")
    spinners = [workload.spinner(e) for _ in range(2)]
    environment = {"TERM": "screen-256color"} | ({} if colour else {"NO_COLOR": "1"})
    with screen(tmp_path, "--enclave", e.id, environment=environment) as terminal:
        shown = shows(terminal, spinners[0])
        assert max(map(len, shown.splitlines())) <= 80
        assert row_of(shown, e.id)[1:3] == ["biff", "1"]
        assert row_of(shown, e.id)[-1] == "ok"
        assert re.search(rf"1\[#.*% e{e.id} +q\d", shown), "CPU 1 runs its tasks"
        assert bool(re.search(r"\x1b\[[0-9;]*3[1-7]", terminal.styled)) == colour

        terminal.keys("/", *str(spinners[1].pid), "Enter")
        terminal.until(lambda screen: "1 of " in screen and not row_of(screen, spinners[0].pid))
        terminal.keys("f")
        terminal.until(f"{spinners[1].pid} {comm(spinners[1])}: CPU")
        terminal.keys("/", "C-u", "Enter")
        shows(terminal, spinners[0])

        terminal.keys("s")
        terminal.until(", by wait")


@pytest.mark.soak
def test_keys_swap_the_policy_and_destroy_only_after_a_question(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    e = enclave("1")
    member = workload.sleeper(e)
    with screen(tmp_path, "--enclave", e.id) as terminal:
        shows(terminal, member)
        terminal.keys("w")
        terminal.until("another policy")
        terminal.keys("Down", "Enter")
        terminal.until(f"enclave {e.id}: biff -> rr")
        assert e.policy == "rr"
        terminal.until(lambda screen: row_of(screen, e.id)[1:2] == ["rr"])

        terminal.keys("d")
        terminal.until(f"ghostbpf enclave destroy {e.id}")
        terminal.keys("n")
        terminal.until("nothing was changed")
        assert e.is_active
        terminal.keys("d")
        terminal.until(f"ghostbpf enclave destroy {e.id}")
        terminal.keys("y")
        terminal.until(f"enclave {e.id} is gone")
        assert not e.is_active


@pytest.mark.soak
def test_keys_resize_the_enclave_and_add_and_remove_a_process(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    e = enclave("1")
    member, outsider = workload.sleeper(e), workload.sleeper()
    with screen(tmp_path, "--enclave", e.id) as terminal:
        shows(terminal, member)
        terminal.keys("c")
        terminal.until("CPUs of enclave")
        terminal.keys("+", "3", "Enter")
        terminal.until("CPU 1 -> 1,3")
        assert str(e.cpus) == "1,3"

        terminal.keys("a")
        terminal.until("PIDs between spaces")
        terminal.keys(*str(outsider.pid), "Enter")
        terminal.until("1 task joined")
        assert outsider.pid in {task.tid for task in e.tasks()}

        terminal.keys("/", *str(outsider.pid), "Enter")
        terminal.until("1 of ")
        terminal.keys("x")
        terminal.until(f"ghostbpf enclave rm {e.id} {outsider.pid}")
        terminal.keys("y")
        terminal.until("1 task left")
        assert outsider.pid not in {task.tid for task in e.tasks()}


@pytest.mark.soak
@pytest.mark.own_core
def test_screen_outlives_an_ejection_and_comes_back(
    workload: Workload, enclave: MakeEnclave, kernel_log: KernelLog, tmp_path: Path
) -> None:
    kernel_log.expect("ghostbpf")
    e = enclave("1")
    child = workload.spinner(e)
    with screen(tmp_path, width=120, height=40) as terminal:
        assert "QUEUE" in shows(terminal, child)
        Path("/proc/sysrq-trigger").write_text("S")
        until(lambda: sched_ext.status().state == "disabled")
        shown = terminal.until("the kernel ejected ghostbpf")
        assert "sysrq" in shown.lower()
        assert "try: sudo ghostbpf why" in shown
        status = ghostbpf("status")
        assert status.status == 1
        assert "the kernel ejected ghostbpf" in status.out
        again = enclave("2")
        terminal.until(lambda screen: row_of(screen, again.id)[1:3] == ["biff", "2"])
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(again.id).destroy()
        terminal.until("detached")


@pytest.mark.soak
def test_cursor_stays_on_its_task_and_a_bad_change_names_the_remedy(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    e = enclave("1")
    children = [workload.spinner(e) for _ in range(3)]
    with screen(tmp_path, "--enclave", e.id, "--sort", "tid", environment={"NO_COLOR": "1"}) as terminal:
        shows(terminal, children[0])
        terminal.keys("Down", "f")
        terminal.until(f"{children[1].pid} {comm(children[1])}: CPU")
        terminal.keys("i")  # the order is inverted: the last is the first
        terminal.until(", inverted")
        terminal.keys("Down", "f")
        terminal.until(f"{children[0].pid} {comm(children[0])}: CPU")
        terminal.keys("c")
        terminal.until("CPUs of enclave")
        terminal.keys("9", "9", "Enter")
        shown = terminal.until("try:")
        assert "status" in shown
        assert str(e.cpus) == "1"
        terminal.keys("Escape")


def comm(child: Child) -> Any:
    return Path(f"/proc/{child.pid}/comm").read_text().strip()


@pytest.mark.soak
def test_sigterm_restores_the_terminal_while_tasks_are_shown(
    workload: Workload, enclave: MakeEnclave, tmp_path: Path
) -> None:
    child = workload.spinner(enclave("1"))
    with Terminal(tmp_path, TOP) as terminal:
        shows(terminal, child)
        os.kill(terminal.pid, signal.SIGTERM)
        shown = terminal.until(lambda screen: "ended with 0" in screen and "iexten" in screen)
    assert "-icanon" not in shown

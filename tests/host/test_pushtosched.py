# SPDX-License-Identifier: Apache-2.0
"""``ghostbpf pushtosched`` and the other utilities on a kernel without sched_ext."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.schedulers.classes import SchedulingClass
from tracing import DEADLINE, Task

NOBODY = 65534


def ghostbpf(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ghostbpf.tools.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False, **options)


def push(target: str, stdin: str, *arguments: object) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and rows of ``ghostbpf pushtosched TARGET --json``."""
    done = ghostbpf("pushtosched", target, "--json", *arguments, input=stdin)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("root")
def test_every_class_and_back(task: Callable[..., Task]) -> None:
    one = task(lambda: None)
    os.setpriority(os.PRIO_PROCESS, one.pid, 5)
    before = "other"
    for target, policy, priority in (
        ("fifo:10", os.SCHED_FIFO, 10),
        ("rr:99", os.SCHED_RR, 99),
        ("rr:1", os.SCHED_RR, 1),
        ("idle", os.SCHED_IDLE, 0),
        ("batch", os.SCHED_BATCH, 0),
        ("other", os.SCHED_OTHER, 0),
    ):
        moved = {"tid": one.pid, "result": "moved", "before": before, "error": None}
        assert push(target, f"{one.pid}\n") == (0, [moved])
        assert os.sched_getscheduler(one.pid) == policy
        assert os.sched_getparam(one.pid).sched_priority == priority
        before = target
    assert os.getpriority(os.PRIO_PROCESS, one.pid) == 5


def test_each_task_is_reported_as_moved_unchanged_or_ended(task: Callable[..., Task]) -> None:
    one, two, dead = task(lambda: None), task(lambda: None), task(lambda: None)
    os.sched_setscheduler(two.pid, os.SCHED_BATCH, os.sched_param(0))
    dead.kill()
    done = ghostbpf("pushtosched", "batch", input=f"\n  {one.pid}\t{two.pid}\n\n{dead.pid}")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{one.pid}: moved from other",
        f"{two.pid}: there already",
        f"{dead.pid}: died meanwhile",
    ]
    assert done.stderr == "1 moved, 1 there, 1 died, 0 failed\n"


def test_bad_words_are_named_with_their_line_and_the_rest_is_done(task: Callable[..., Task]) -> None:
    one = task(lambda: None)
    words = ("x1", "-5", "0", "99999999999999999999", "1.5", "\N{ARABIC-INDIC DIGIT FIVE}")
    done = subprocess.run(
        [sys.executable, "-m", "ghostbpf.tools.cli", "pushtosched", "batch"],
        input="\n".join([*words, str(one.pid)]).encode() + b"\n\xff\xfe\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.decode() == f"{one.pid}: moved from other\n"
    lines = done.stderr.decode().splitlines()
    assert lines[:-1] == [
        *(f'failed: line {number}: "{word}" is no TID' for number, word in enumerate(words, 1)),
        'failed: line 8: "\\xff\\xfe" is no TID',
    ]
    assert lines[-1] == "1 moved, 0 there, 0 died, 7 failed"
    assert os.sched_getscheduler(one.pid) == os.SCHED_BATCH


def test_tasks_are_moved_as_their_lines_come(task: Callable[..., Task]) -> None:
    one = task(lambda: None)
    command = [sys.executable, "-m", "ghostbpf.tools.cli", "pushtosched", "batch"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{one.pid}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline() == f"{one.pid}: moved from other\n".encode()
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 0


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("uid", [NOBODY, 0], ids=["of another user", "with more capabilities"])
def test_move_without_permission_fails_with_a_hint(task: Callable[..., Task], uid: int) -> None:
    one = task(lambda: os.setresuid(uid, uid, uid))
    one.run()
    without = ["setpriv", "--bounding-set", "-sys_nice"]
    command = [*without, sys.executable, "-m", "ghostbpf.tools.cli", "pushtosched", "batch", "--json"]
    done = subprocess.run(command, input=f"{one.pid}\n", capture_output=True, text=True, check=False)
    row = json.loads(done.stdout)
    assert done.returncode == 1
    assert (row["tid"], row["result"]) == (one.pid, "failed")
    assert row["error"] == f"cannot move task {one.pid}: not permitted; run it with sudo (CAP_SYS_NICE)"
    assert os.sched_getscheduler(one.pid) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fair", 'there is no class "fair"'),
        ("fifo", "fifo takes a priority from 1 to 99, for example fifo:1"),
        ("fifo:", "fifo takes a priority"),
        ("fifo:0", "fifo takes a priority"),
        ("rr:100", "rr takes a priority"),
        ("rr:x", "rr takes a priority"),
        ("other:5", "other has no priority"),
        ("ext:1", "ext has no priority"),
        ("deadline", "chrt --deadline"),
        ("", 'there is no class ""'),
    ],
)
def test_unknown_class_is_refused_with_the_valid_names(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SchedulingClass.parse(text)


@pytest.mark.parametrize("text", ["ext", "other", "batch", "idle", "fifo:1", "rr:99"])
def test_class_is_written_as_it_is_read(text: str) -> None:
    assert str(SchedulingClass.parse(text)) == text


def test_class_of_an_ended_task_is_none(task: Callable[..., Task]) -> None:
    one = task(lambda: None)
    assert SchedulingClass.of(one.pid) == SchedulingClass("other")
    one.kill()
    assert SchedulingClass.of(one.pid) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pushtosched",), "CLASS"),
        (("pushtosched", "fair"), 'there is no class "fair"'),
        (("pushtosched", "ext"), "ext takes an --enclave ID"),
        (("pushtosched", "other", "--enclave", "1"), "--enclave is for ext"),
        (("enclave", "auto-join", "1"), "give a rule: --comm, --cgroup, --uid or --parent"),
        (("enclave", "auto-join", "1", "--uid", "no-such-user"), 'there is no user "no-such-user"'),
        (("enclave", "auto-join", "1", "--parent", "999999999"), "there is no process 999999999"),
        (("enclave", "auto-join", "1", "--comm", "sixteen-letters!"), 'write "sixteen-letters"'),
        (("enclave", "auto-join", "1", "--comm", "x", "--period", "1h"), 'bad duration "1h"'),
        (("enclave", "add", "1", "1", "--follow"), "--follow needs --cgroup"),
        (("enclave", "add", "1"), "--cgroup PATH"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_command_line_exits_2(arguments: tuple[str, ...], says: str) -> None:
    done = ghostbpf(*arguments, input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in " ".join(done.stderr.split())


@pytest.mark.skipif(Path("/sys/fs/bpf/ghostbpf").exists(), reason="this machine has enclaves")
@pytest.mark.usefixtures("root")
def test_enclave_that_does_not_exist_is_refused() -> None:
    for line in ("pushtosched ext --enclave 5", "enclave auto-join 5 --comm x", "enclave auto-join 5 --comm x --once"):
        done = ghostbpf(*line.split(), input=str(os.getpid()))
        assert (done.returncode, done.stdout) == (1, ""), line
        assert done.stderr == "error: there is no enclave 5\n  try: ghostbpf enclave ls lists the enclaves\n"

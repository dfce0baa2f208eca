# SPDX-License-Identifier: Apache-2.0
"""Replacing a policy while it schedules: no task is lost or overtaken, and the core stays attached."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from command import read_sources_once
from ghostbpf.loaders import CompileError, LintError, VerifierError, sched_ext
from ghostbpf.loaders.maps import Map, MmapArray
from ghostbpf.schedulers import core
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.policy import Policy
from ghostbpf.schedulers.registry import POLICIES
from workload import Child, MakeEnclave, Me, Workload, in_ext, runtime_ns, until

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.shared_core]

BIFF, RR = POLICIES["biff"], POLICIES["rr"]
_SWAPS = 200


def _player(hears: int, tells: int, *others: int) -> Callable[[Me], None]:
    def play(me: Me) -> None:
        for fd in others:
            os.close(fd)
        with contextlib.suppress(BrokenPipeError):
            while not me.stopped and os.read(hears, 1):
                me.note()
                time.sleep(0.002)
                os.write(tells, b"!")

    return play


def _load(workload: Workload, enclave: Enclave) -> list[Child]:
    """Fifty tasks: six compete for CPU 1, fourteen nap, the rest are pairs that wake each other."""
    children = [workload.spinner(enclave, cpus=[1]) for _ in range(6)]
    children += [workload.napper(enclave, busy_ms=0, nap_ms=5) for _ in range(14)]
    for _ in range(15):
        (a_out, a_in), (b_out, b_in) = os.pipe(), os.pipe()
        children.append(workload.spawn(_player(a_out, b_in, a_in, b_out), enclave))
        children.append(workload.spawn(_player(b_out, a_in, b_in, a_out), enclave))
        os.write(a_in, b"!")
        for fd in (a_out, a_in, b_out, b_in):
            os.close(fd)
    return children


@pytest.mark.soak
def test_200_swaps_under_load_lose_no_task(
    workload: Workload, enclave: MakeEnclave, monkeypatch: pytest.MonkeyPatch, rng: Random
) -> None:
    read_sources_once(monkeypatch, BIFF, RR)
    e = enclave("1-2", "biff", slice="5ms")
    children = _load(workload, e)
    for child in children:
        child.progress()
    seq = (sched_ext.SYSFS / "enable_seq").read_text()
    for number in range(_SWAPS):
        e.set_policy((BIFF if number % 2 else RR).parse({"slice": "5ms"}))
        assert sched_ext.status().state == "enabled"
        time.sleep(rng.random() * 0.01)
    assert (e.swaps, e.policy) == (_SWAPS, "biff")
    assert (sched_ext.SYSFS / "enable_seq").read_text() == seq
    assert {task.tid for task in e.tasks()} == {child.pid for child in children}
    for child in children:
        assert in_ext(child.pid)
        child.progress()
    for child in children:
        child.stop()
    assert e.tasks() == []


_SWAP = pytest.mark.parametrize(
    ("before", "after"), [(BIFF, RR), pytest.param(RR, BIFF, marks=pytest.mark.soak)], ids=["biff-rr", "rr-biff"]
)


@_SWAP
def test_waiting_tasks_keep_their_order_across_a_swap(
    workload: Workload, enclave: MakeEnclave, before: Policy, after: Policy
) -> None:
    e = enclave("1", before.name, slice="10s")
    sleepers = [workload.sleeper(e, then=lambda me: me.log("ran")) for _ in range(8)]

    for order in ([3, 0, 7, 1, 6, 2, 5, 4], list(range(8))):
        hog = workload.spinner(e)
        hog.progress()
        for index in order:
            sleepers[index].wake()
        e.set_policy(after.parse({"slice": "10s"}))
        assert not workload.read_log()
        hog.stop()
        lines: list[object] = []
        until(lambda lines=lines: lines.extend(workload.read_log()) or len(lines) >= 8)
        assert lines == [(index, "ran") for index in order]
        e.set_policy(before.parse({"slice": "10s"}))


@_SWAP
def test_task_that_never_blocks_obeys_the_policy_swapped_in(
    workload: Workload, enclave: MakeEnclave, before: Policy, after: Policy
) -> None:
    e = enclave("1", before.name, slice="10s")
    hogs = [workload.spinner(e) for _ in range(2)]
    until(lambda: any(hog.loops for hog in hogs))
    for _ in range(4):
        e.set_policy(after.parse({"slice": "5ms"}))
        ran = sum(runtime_ns(hog.pid) for hog in hogs)
        for hog in hogs:
            hog.progress()
        # One slice and one tick are 15 ms, not the former 10 s; the limit allows for the polling of this test.
        assert sum(runtime_ns(hog.pid) for hog in hogs) - ran < 2 * 10**9
        e.set_policy(before.parse({"slice": "10s"}))
    assert sched_ext.status().state == "enabled"


@pytest.mark.kernel_independent
def test_swap_pins_the_new_parameters_and_unpins_the_old(enclave: MakeEnclave) -> None:
    e = enclave("1", "biff")
    for number, (policy, bank) in enumerate(((RR, 1), (BIFF, 0), (BIFF, 1)), start=1):
        e.set_policy(policy.parse({"slice": f"{number}ms"}))
        assert {path.name for path in e.path.iterdir()} == {f"policy_{bank}"}
        with MmapArray(Map.open(e.path / f"policy_{bank}" / "params"), *policy.params_type) as pinned:
            assert pinned[0].slice_ns == number * 10**6
        assert (e.policy, e.swaps) == (policy.name, number)


@pytest.mark.soak
@pytest.mark.kernel_independent
def test_swap_of_one_enclave_leaves_the_others_policy_alone(workload: Workload, enclave: MakeEnclave) -> None:
    changed, other = enclave("1", "biff"), enclave("2", "biff")
    children = [workload.spinner(e) for e in (changed, other)]
    changed.set_policy(RR)
    assert (changed.policy, other.policy, other.swaps) == ("rr", "biff", 0)
    for child in children:
        child.progress()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Policy]:
    """``faulty(name)`` is a policy with that fault; all share a directory, so that each is compiled once."""
    directory = tmp_path_factory.mktemp("policies")
    return lambda name: _write(directory, name, _FAULTS[name][1])


def _write(directory: Path, name: str, functions: str) -> Policy:
    (directory / f"{name}.h").write_text(f"struct {name}_params {{\n\tu64 slice_ns;\n}};\n")
    (directory / f"{name}.bpf.c").write_text(
        textwrap.dedent(
            f"""\
            /* SPDX-License-Identifier: GPL-2.0-only */
            #include "sched.bpf.h"
            #include "{name}.h"
            BPF_F_TABLE("array", u32, struct {name}_params, params, 1, BPF_F_MMAPABLE);
            """
        )
        + textwrap.dedent(functions)
    )
    return Policy(name, "a policy with a fault", directory=directory)


_FAULTS = {
    "syntax": (
        CompileError,
        r"""
        BPF_PROG(syntax_dispatch, s32 cpu, struct task_struct *prev)
        {
            scx_bpf_dsq_move_to_local(PENDNG);
            return 0;
        }
        """,
        "PENDNG",
    ),
    "unknown": (
        CompileError,
        r"""
        BPF_PROG(unknown_dispatch, s32 cpu, struct task_struct *prev)
        {
            scx_bpf_no_such_function(cpu);
            return 0;
        }
        """,
        "scx_bpf_no_such_function",
    ),
    "global": (
        LintError,
        r"""
        static u64 seen;
        BPF_PROG(global_dispatch, s32 cpu, struct task_struct *prev)
        {
            __sync_fetch_and_add(&seen, 1);
            return 0;
        }
        """,
        "global_dispatch",
    ),
    "overrun": (
        VerifierError,
        r"""
        BPF_PROG(overrun_dispatch, s32 cpu, struct task_struct *prev)
        {
            u32 zero = 0;
            struct overrun_params *param = params.lookup(&zero);
            return param ? (&param->slice_ns)[1] : 0;
        }
        """,
        "overrun_dispatch",
    ),
}


@pytest.mark.kernel_independent
@pytest.mark.parametrize(
    "name", ["overrun", *(pytest.param(name, marks=pytest.mark.soak) for name in ("unknown", "syntax", "global"))]
)
def test_policy_with_a_fault_changes_nothing(
    workload: Workload, enclave: MakeEnclave, faulty: Callable[[str], Policy], name: str
) -> None:
    kind, _, culprit = _FAULTS[name]
    policy = faulty(name)
    e = enclave("1", "biff")
    child = workload.spinner(e)
    enclaves = [one.id for one in Enclaves.open() or ()]
    pins = {path.name for path in core.ROOT.iterdir()}
    with pytest.raises(kind, match=culprit) as swapped:
        e.set_policy(policy)
    if isinstance(swapped.value, CompileError):
        first = swapped.value.diagnostics[0]
        text = policy.source.read_text().splitlines()
        assert first.file == str(policy.source)
        assert culprit in text[first.line - 1]
        assert text[first.line - 1][first.column - 1 :].startswith(culprit)
    assert (e.policy, e.swaps) == ("biff", 0)
    assert [one.id for one in Enclaves.open() or ()] == enclaves
    assert {path.name for path in e.path.iterdir()} == {"policy_0"}
    assert {path.name for path in core.ROOT.iterdir()} == pins
    child.progress()


@pytest.mark.soak
@pytest.mark.kernel_independent
@pytest.mark.own_core
def test_policy_with_a_fault_makes_no_enclave(faulty: Callable[[str], Policy], enclave: MakeEnclave) -> None:
    def refused() -> None:
        with pytest.raises(VerifierError, match="overrun_dispatch"), Enclaves.create() as enclaves:
            enclaves.new(CpuSet([2]), faulty("overrun"))

    refused()
    assert sched_ext.status().state == "disabled"
    assert not core.ROOT.exists()
    enclave("1")
    refused()
    assert [e.id for e in Enclaves.open() or ()] == [1]
    assert {path.name for path in core.ROOT.iterdir()} == {"core", "enclave_1"}

# SPDX-License-Identifier: Apache-2.0
"""Bad input: an error that names the value and a hint, the right exit status, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Done, ghostbpf, nobody, without
from ghostbpf.loaders import cache, sched_ext
from ghostbpf.loaders.link import create_map
from ghostbpf.loaders.object import MapDef
from ghostbpf.schedulers import core, pins, tasks
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.registry import POLICIES
from workload import MakeEnclave, Me, Workload, in_ext

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.kernel_independent(on="oldest")]


@pytest.fixture
def untouched() -> Iterator[None]:
    """Fail the test if it attaches a scheduler, however briefly, or leaves a pin."""
    seq = (sched_ext.SYSFS / "enable_seq").read_text()
    yield
    assert (sched_ext.SYSFS / "enable_seq").read_text() == seq
    assert not core.ROOT.exists()


def refused(done: Done, *says: str, status: int = 1) -> None:
    """Check for a refusal with a hint that contains all of ``says``."""
    assert (done.status, done.out) == (status, ""), done
    for words in says:
        assert words in done.err
    assert "Traceback" not in done.err
    if status == 1:
        first, *_, hint = done.err.splitlines()
        assert first.startswith("error: ")
        assert hint.startswith("  try: ")


WRONG_LINES: dict[str, tuple[str, ...]] = {
    "run bif -- true": ('"bif"', "did you mean biff?"),
    "run zebra -- true": ('"zebra"', f"choose from: {', '.join(sorted(POLICIES))}"),
    "run biff --cpus 0-x": ("--cpus", '"0-x"', "not a CPU number", "for example 0-3,6"),
    "run biff --cpus 7-3": ("--cpus", '"7-3"', "runs backwards"),
    "run biff --cpus 9999": ("--cpus", '"9999"', "the highest CPU number is 4095"),
    "run biff --cpus=": ("--cpus", "at least one CPU"),
    "run biff --slice 0": ("--slice", '"0"', "50ms"),
    "run biff --slice 0ms": ("--slice", '"0ms"', "more than 0"),
    "run biff --slice -1": ("--slice", '"-1"', "50ms"),
    "run biff --slice 5x": ("--slice", '"5x"', "50ms"),
    "run rr --slice 1h": ("--slice", '"1h"', "50ms"),
    "run rr --slice 11s": ("--slice", '"11s"', "up to 10s"),
    "run biff --enclave 0": ("--enclave", "0", "1<=x<=63"),
    "run biff --enclave 64": ("--enclave", "64", "1<=x<=63"),
    "run biff --enclave abc": ("--enclave", "'abc'"),
    "run biff --all --cpus 1": ("--all takes every CPU",),
    "run biff --all --enclave 2": ("--all is enclave 1",),
    "run biff --frobnicate": ("--frobnicate",),
    "enclave add 1": ("PID",),
    "enclave add x 1": ("'x'",),
    "enclave add 1 self": ("'self'",),
    "enclave rm 1": ("PID",),
    "enclave show abc": ("'abc'",),
    "enclave destroy": ("name one enclave, or --all",),
    "enclave destroy 1 --all": ("name one enclave, or --all",),
    "enclave swap 1 bif": ('"bif"', "did you mean biff?"),
    "frobnicate": ("'frobnicate'",),
}


@pytest.mark.usefixtures("untouched")
def test_wrong_command_lines_exit_with_status_2_before_anything_is_done() -> None:
    for line, says in WRONG_LINES.items():
        refused(ghostbpf(*line.split()), *says, status=2)


@pytest.mark.usefixtures("untouched")
def test_cpus_that_do_not_exist_are_refused() -> None:
    refused(ghostbpf("run", "biff", "--cpus", "99", "--", "true"), "CPU 99 is not online", "choose from 0-3")
    refused(ghostbpf("run", "biff", "--cpus", "2-99", "--", "true"), "CPU 4-99 is not online")


@pytest.mark.usefixtures("untouched")
def test_enclave_that_does_not_exist_is_refused() -> None:
    for line in ("show 5", "show 64", "add 5 1", "rm 5 1", "swap 5 rr", "destroy 5"):
        refused(ghostbpf("enclave", *line.split()), f"there is no enclave {line.split()[1]}", "enclave ls")


@pytest.mark.soak
def test_missing_enclave_is_refused_beside_an_existing_one(enclave: MakeEnclave) -> None:
    enclave("1")
    for line in ("show 5", "add 5 1", "rm 5 1", "swap 5 rr", "destroy 5"):
        refused(ghostbpf("enclave", *line.split()), "there is no enclave 5", "enclave ls")
    assert [e.id for e in Enclaves.open() or ()] == [1]


@pytest.mark.soak
def test_cpus_of_another_enclave_are_refused(enclave: MakeEnclave) -> None:
    enclave("1-2")
    refused(ghostbpf("run", "rr", "--cpus", "2-3", "--", "true"), "enclave 1 holds CPU 2", "enclave destroy 1")
    other = ghostbpf("run", "rr", "--enclave", 1, "--cpus", "3", "--", "true")
    refused(other, "enclave 1 holds CPU 1-2", "leave --cpus out")
    enclave("0,3")
    refused(ghostbpf("run", "rr", "--", "true"), "enclave 1 holds CPU 1-2")
    assert [(e.id, e.policy) for e in Enclaves.open() or ()] == [(1, "biff"), (2, "biff")]


@pytest.mark.shared_core
def test_list_with_an_unmovable_task_moves_no_task(workload: Workload, enclave: MakeEnclave) -> None:
    enclave("1")
    good, dead = workload.spinner(), workload.spinner()
    dead.stop()
    for line, *says in (
        (f"add 1 {dead.pid}", f"task {dead.pid}", "no such task"),
        (f"add 1 {good.pid} {dead.pid}", f"task {dead.pid}", "no such task"),
        (f"add 1 {good.pid} --tid {dead.pid}", f"task {dead.pid}", "no such task"),
        ("add 1 2", "task 2", "kernel thread"),
        (f"add 1 --tid {good.pid} --tid 2", "task 2", "kernel thread"),
        ("add 1 0", "task 0", "no such task"),
        ("add 1 99999999999", "task 99999999999", "no such task"),
        (f"rm 1 {good.pid}", f"task {good.pid}", "not in enclave 1"),
        (f"rm 1 --tid {good.pid}", f"task {good.pid}", "not in enclave 1"),
        (f"rm 1 {dead.pid}", f"task {dead.pid}", "no such task"),
    ):
        done = ghostbpf("enclave", *line.split())
        assert (done.status, done.out) == (1, ""), line
        assert done.err.startswith(f"error: cannot move {says[0]}: "), line
        assert says[1] in done.err, line
        assert not in_ext(good.pid), line
    assert Enclaves.open().core.tasks() == []  # type: ignore[union-attr]


@pytest.mark.shared_core
def test_task_of_another_enclave_is_not_removed_by_the_wrong_id(workload: Workload, enclave: MakeEnclave) -> None:
    enclave("1")
    child = workload.spinner(enclave("2"))
    refused(ghostbpf("enclave", "rm", 1, child.pid), f"task {child.pid}", "not in enclave 1")
    assert in_ext(child.pid)


@pytest.mark.shared_core
def test_bad_option_of_a_swap_changes_nothing(enclave: MakeEnclave) -> None:
    e = enclave("1", "biff")
    for setting, *says in (
        ("slice=5x", '"5x"', "50ms"),
        ("speed=1", "rr has no option speed"),
        ("slice", '"slice": write OPTION=VALUE'),
    ):
        refused(ghostbpf("enclave", "swap", 1, "rr", "--set", setting), *says, status=2)
    assert (e.policy, e.swaps) == ("biff", 0)


@pytest.mark.shared_core
@pytest.mark.soak
def test_swap_to_a_policy_with_an_agent_names_the_command(enclave: MakeEnclave, tmp_path: Path) -> None:
    file = tmp_path / "lab.py"
    file.write_text(
        "from ghostbpf.schedulers.userspace import AgentPolicy\nclass Lab(AgentPolicy):\n    name = 'lab'\n"
    )
    e = enclave("1", "biff")
    for policy in ("fifo_per_cpu", f"{file}:Lab"):
        refused(ghostbpf("enclave", "swap", 1, policy), "has an agent", f"ghostbpf run {policy} --enclave 1")
    assert (e.policy, e.swaps) == ("biff", 0)


@pytest.mark.shared_core
def test_ordinary_user_may_not_list_enclaves(enclave: MakeEnclave) -> None:
    enclave("1")
    for line in ("ls", "show 1"):
        refused(ghostbpf("enclave", *line.split(), first=nobody), "/sys/fs/bpf", "CAP_DAC_OVERRIDE", "sudo")


@pytest.mark.shared_core
def test_task_of_another_user_is_refused_without_cap_sys_nice(workload: Workload, enclave: MakeEnclave) -> None:
    def spin(me: Me) -> None:
        os.setresuid(65534, 65534, 65534)
        me.set(1)
        while not me.stopped:
            me.note()

    enclave("1")
    child = workload.spawn(spin)
    child.progress()
    done = ghostbpf("enclave", "add", 1, child.pid, first=without("CAP_SYS_NICE"))
    refused(done, f"task {child.pid}", "not permitted", "CAP_SYS_NICE")
    assert not in_ext(child.pid)
    # A refused task of another enclave stays in that enclave.
    other = enclave("2")
    other.add(child.pid)
    refused(ghostbpf("enclave", "add", 1, child.pid, first=without("CAP_SYS_NICE")), "not permitted")
    refused(ghostbpf("enclave", "destroy", 2, first=without("CAP_SYS_NICE")), "not permitted", "CAP_SYS_NICE")
    assert [task.tid for task in other.tasks()] == [child.pid]
    assert Enclaves.find(2).is_active


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("first", "capability"),
    [
        (nobody, "CAP_BPF and CAP_PERFMON"),
        (without("CAP_BPF", "CAP_SYS_ADMIN"), "CAP_BPF"),
        pytest.param(without("CAP_PERFMON", "CAP_SYS_ADMIN"), "CAP_PERFMON", marks=pytest.mark.soak),
    ],
    ids=["nobody", "CAP_BPF", "CAP_PERFMON"],
)
def test_missing_capability_is_named(first: Callable[[], None], capability: str) -> None:
    for line in ("run biff -- true", "run biff --all -- true", "enclave destroy 1", "enclave destroy --all"):
        refused(ghostbpf(*line.split(), first=first), f"without {capability}\n", "sudo")


@contextlib.contextmanager
def unmounted() -> Iterator[None]:
    subprocess.run(["umount", pins.BPFFS], check=True)
    try:
        yield
    finally:
        if not os.path.ismount(pins.BPFFS):
            subprocess.run(["mount", "-t", "bpf", "-o", "mode=700", "bpf", pins.BPFFS], check=True)


@pytest.mark.soak
def test_bpffs_that_is_not_mounted_is_mounted() -> None:
    with unmounted():
        assert ghostbpf("enclave", "ls") == Done(0, "no enclaves\n", "")
        done = ghostbpf("run", "biff", "--cpus", "1", "--", "true", first=without("CAP_SYS_ADMIN"))
        refused(done, "bpffs is not mounted at /sys/fs/bpf", "sudo mount -t bpf -o mode=700 bpf /sys/fs/bpf")
        assert not os.path.ismount(pins.BPFFS)
        assert ghostbpf("run", "biff", "--cpus", "1", "--", "sh", "-c", "exit 4").status == 4
        assert os.path.ismount(pins.BPFFS)


def _another_version(e: core.Core) -> None:
    e.state.abi_version = 99


def _another_size(e: core.Core) -> None:
    (core.CORE / "enclaves").unlink()
    with create_map(MapDef("enclaves", 2, 4, 8, 64, 1 << 10, 0, 0, 0)) as other:
        other.pin(core.CORE / "enclaves")


def _one_missing(e: core.Core) -> None:
    (core.CORE / "counters").unlink()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(_another_version, "version 99", id="version"),
        pytest.param(_another_size, "holds 8 bytes|cannot be mapped", id="size", marks=pytest.mark.soak),
        pytest.param(_one_missing, "counters", id="missing", marks=pytest.mark.soak),
    ],
)
def test_pins_of_another_version_are_refused_until_destroy_all(
    workload: Workload, enclave: MakeEnclave, spoil: Callable[[core.Core], None], why: str
) -> None:
    e = enclave("1")
    child = workload.spinner(e)
    spoil(e.core)
    for line in ("run biff --cpus 1 -- true", "enclave ls", "enclave show 1", "enclave add 1 1", "enclave destroy 1"):
        done = ghostbpf(*line.split())
        refused(done, "/sys/fs/bpf/ghostbpf/core holds pins that this ghostbpf cannot use", "enclave destroy --all")
        assert any(words in done.err for words in why.split("|"))
    assert sched_ext.status().state == "enabled"
    del e  # descriptors of this process would keep the core attached
    done = ghostbpf("enclave", "destroy", "--all")
    assert (done.status, done.out) == (0, "all enclaves are gone\n")
    assert sched_ext.wait_disabled()
    assert not core.ROOT.exists()
    child.progress()
    tasks.set_policy(child.pid, os.SCHED_OTHER)


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache on a file system of 2 MB that holds every object but Biff's; returns the path of that entry."""
    names: list[str] = []
    load = cache.load
    with monkeypatch.context() as patch:
        patch.setattr(cache, "load", lambda name: names.append(name) or load(name))
        POLICIES["biff"].compile()
        core.compiled()
    full = cache.directory() / "objects"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "small", tmp_path], check=True)
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        objects = cache.directory() / "objects"
        objects.mkdir(parents=True)
        shutil.copy(full / names[1], objects)
        yield objects / names[0]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.soak
def test_damaged_cache_entry_is_made_anew(small_cache: Path) -> None:
    small_cache.write_bytes(os.urandom(5000))
    assert ghostbpf("run", "biff", "--cpus", "1", "--", "true") == Done(0, "", "")
    assert cache.load(small_cache.name) is not None


@pytest.mark.soak
def test_full_disk_costs_the_cache_and_nothing_else(small_cache: Path) -> None:
    before = set(small_cache.parent.iterdir())
    with contextlib.suppress(OSError), (small_cache.parents[2] / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass
    assert ghostbpf("run", "biff", "--cpus", "1", "--", "true") == Done(0, "", "")
    assert set(small_cache.parent.iterdir()) == before

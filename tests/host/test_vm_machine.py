# SPDX-License-Identifier: Apache-2.0
"""The virtual machine: its accelerator and QEMU's command line, and requests that are refused. No guest boots."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ghostbpf.tools.vm_command import command
from ghostbpf.vm import BadRequest, Guest, GuestTimeout, VmError, parse_memory
from ghostbpf.vm.accel import choose
from ghostbpf.vm.machine import Machine, Tools, qemu_argv
from ghostbpf.vm.request import check, shared_directory


def test_kvm_is_tried_once_and_the_answer_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostbpf.vm.accel.KVM", tmp_path)
    tries: list[int] = []

    def trial() -> int:
        tries.append(1)
        raise GuestTimeout("never came up")

    memory = tmp_path / "accel.json"
    assert choose("auto", memory, "10.0", trial) == "tcg"
    assert choose("auto", memory, "10.0", trial) == "tcg"
    assert len(tries) == 1
    assert choose("auto", memory, "10.1", lambda: 0) == "kvm", "another QEMU is tried again"
    assert choose("tcg", memory, "10.1", trial) == "tcg"


def qemu_words(**machine: Any) -> str:
    """The command line of a machine as one string."""
    tools = Tools(("qemu",), ("virtiofsd",), "10.0")
    made = Machine(Path("vmlinux"), cpus=4, memory=1024, **machine)
    return " ".join(qemu_argv(tools, made, console=3, io=4, control=5, shares=[("root", 6)]))


def test_exact_machine_counts_instructions_on_all_its_cpus() -> None:
    words = qemu_words(accel="tcg", exact=True)
    assert "-accel tcg,thread=single" in words
    assert "-icount shift=0,sleep=off" in words
    assert "-smp 4" in words
    assert "-icount" not in qemu_words(accel="tcg") + qemu_words(accel="kvm")


@pytest.mark.parametrize(("accel", "word"), [("tcg", "init_on_alloc=1"), ("kvm", "init_on_alloc=0")])
def test_emulated_guest_zeroes_each_page_before_a_file_is_read_into_it(accel: str, word: str) -> None:
    assert [w for w in qemu_words(accel=accel).split() if w.startswith("init_on_alloc=")] == [word]


@pytest.mark.parametrize(
    ("text", "mebibytes"), [("2G", 2048), ("512M", 512), ("768", 768), ("1gib", 1024), ("3GB", 3072)]
)
def test_memory_sizes(text: str, mebibytes: int) -> None:
    assert parse_memory(text) == mebibytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5G", "2T", "2 G", "1e3"])
def test_memory_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(repr(text))):
        parse_memory(text)


@pytest.mark.parametrize(
    ("guest", "complaint"),
    [
        (Guest(cpus=0), "cannot have 0 CPUs"),
        (Guest(cpus=10_000), "10000 CPUs"),
        (Guest(memory=8), "8M of memory"),
        (Guest(memory=1 << 30), "1073741824M of memory"),
        (Guest(accel="xen"), "unknown accelerator 'xen'"),
        (Guest(accel="kvm", exact=True), "KVM cannot count instructions"),
        (Guest(append="quiet -- sh"), "is not valid on a kernel command line"),
        (Guest(append="a\nb"), "is not valid on a kernel command line"),
        (Guest(environment={"A": "b\0c"}), "NUL"),
    ],
)
def test_invalid_guest_is_refused(guest: Guest, complaint: str) -> None:
    with pytest.raises(BadRequest, match=complaint):
        check(["true"], guest, None)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(BadRequest, match="time-out"):
        check(["true"], Guest(), timeout)


@pytest.mark.parametrize("path", ["/", "/usr", "/proc", "/nowhere-at-all"])
def test_directory_that_cannot_be_shared_is_refused(path: str) -> None:
    with pytest.raises(BadRequest, match=path):
        shared_directory(Path(path))


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--cpus", "0", "--", "true"], 2, "0 CPUs"),
        (["--memory", "lots", "--", "true"], 2, "'lots' is not a size"),
        (["--kernel", "/nowhere/vmlinuz", "--", "true"], 1, "/nowhere/vmlinuz"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--json", "--", "true"], 2, "--json needs --list"),
    ],
)
def test_command_refuses(arguments: list[str], status: int, complaint: str, root: None) -> None:
    result = CliRunner().invoke(command, arguments)
    error = result.exception
    assert complaint in result.output + str(error)
    assert (error.exit_status if isinstance(error, VmError) else result.exit_code) == status

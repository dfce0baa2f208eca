# SPDX-License-Identifier: Apache-2.0
"""Numbers of the kernel's interface: those that the source holds, and those that BTF gives."""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ghostbpf.loaders import libc, uapi
from ghostbpf.loaders.btf import Btf
from ghostbpf.loaders.errors import KernelUnsupported


def test_flags_in_the_source_are_the_kernels() -> None:
    kernel = Btf.kernel().enumerators
    written = {name: value for name, value in vars(uapi).items() if name.startswith("BPF_F_")}
    macros = {"BPF_F_SLEEPABLE"}
    assert written.keys() - kernel.keys() == macros
    assert {name: kernel[name] for name in written.keys() - macros} == {n: written[n] for n in written.keys() - macros}


def test_type_that_the_kernel_lacks_is_unsupported() -> None:
    assert uapi.map_type("ARRAY") == 2
    with pytest.raises(KernelUnsupported, match="bpf_map_type has no BPF_MAP_TYPE_TREE") as error:
        uapi.map_type("TREE")
    assert error.value.feature == "BPF_MAP_TYPE_TREE"


def test_system_call_numbers_are_the_c_librarys() -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler on this machine (apt install gcc)")
    command = [compiler, "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    macros = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    numbers = {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", macros, re.M)}
    assert libc.NUMBERS
    assert {name: numbers[name] for name in libc.NUMBERS} == libc.NUMBERS


def test_system_call_without_a_known_number_is_unsupported() -> None:
    with pytest.raises(KernelUnsupported, match=r"number of no_such_call\(2\)"):
        libc.syscall("no_such_call")


def test_failed_call_raises_its_errno() -> None:
    with pytest.raises(OSError, match="prctl") as error:
        libc.prctl(-1)
    assert error.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="membarrier") as error:
        libc.syscall("membarrier", -1, 0, 0)
    assert error.value.errno == errno.EINVAL


def test_pointers_reach_the_kernel() -> None:
    comm = Path("/proc/thread-self/comm")
    before = comm.read_text().strip()
    try:
        libc.set_name(b"by-pointer")
        assert comm.read_text() == "by-pointer\n"
    finally:
        comm.write_text(before)

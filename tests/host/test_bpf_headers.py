# SPDX-License-Identifier: Apache-2.0
"""The C of bpf/: each header includes what it uses, and a name stands for one value."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from ghostbpf.loaders.btf import Btf
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import CompileError
from ghostbpf.loaders.source import BPF_DIR
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.vm import VmError, catalog
from ghostbpf.vm.btf import btf_section

HEADERS = sorted(str(path.relative_to(BPF_DIR)) for path in BPF_DIR.rglob("*.h"))

# Read before a fixture gives the tests a cache of their own, without the guest's kernels.
_CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


@pytest.fixture(scope="module")
def guest_btf() -> Btf:
    """The types of the newest guest kernel: most of bpf/ compiles only for a kernel with sched_ext."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", _CACHE)
        try:
            image = catalog().resolve("newest").vmlinux
        except VmError as error:
            pytest.skip(f"no guest kernel: {error}")
    section = btf_section(image.read_bytes())
    assert section is not None
    return Btf.parse(section)


@pytest.fixture
def guest_kernel(guest_btf: Btf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes compile() use the guest kernel's types; what it compiles cannot be loaded here."""
    monkeypatch.setattr(Btf, "kernel", lambda: guest_btf)


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone(guest_kernel: None, bpf_source: Callable[..., Path], header: str) -> None:
    # Without any program, bcc would give maps no types.
    obj = compile(bpf_source(f'#include "{BPF_DIR / header}"\nint alone(void *ctx) {{ return 0; }}\n'))
    assert "alone" in obj.functions


def test_header_that_lacks_an_include_does_not_compile(guest_kernel: None, bpf_source: Callable[..., Path]) -> None:
    bpf_source("static u64 now(struct cpu *cpu) { return cpu->running_since; }\n", "lacking.bpf.h")
    with pytest.raises(CompileError, match=r"lacking\.bpf\.h"):
        compile(bpf_source('#include "lacking.bpf.h"\nint alone(void *ctx) { return 0; }\n'))


def test_a_name_stands_for_one_value() -> None:
    values: dict[str, dict[str, str]] = defaultdict(dict)
    defaults: set[str] = set()
    for path in BPF_DIR.rglob("*.[ch]"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        defaults |= set(re.findall(r"#ifndef (\w+)", text))
        for name, value in re.findall(r"^#define (\w+) (.+)$", text, re.MULTILINE):
            values[name].setdefault(value.strip(), str(path.relative_to(BPF_DIR)))
    several = {
        name: found
        for name, found in values.items()
        if name not in defaults and len(found) > 1 and len(set(found.values())) > 1
    }
    assert not several
    assert {"BUILTIN_SLICE", "FALLBACK_SLICE"} <= values.keys()


@pytest.mark.parametrize(("words", "has_rest"), [(1, False), (2, True), (16, True)])
def test_agents_share_affinity_for_cpus_from_64_on_where_there_are_any(
    guest_kernel: None, words: int, has_rest: bool
) -> None:
    obj = compile(BPF_DIR / "agent" / "agent.bpf.c", {"NR_CPU_WORDS": words})
    assert ("allowed_rest" in obj.maps) == has_rest


@pytest.mark.parametrize(("policy", "weighs"), [("cfs", True), ("fifo_per_cpu", False)])
def test_only_policies_that_weigh_cgroups_have_code_for_it(guest_kernel: None, policy: str, weighs: bool) -> None:
    obj = POLICIES[policy].compile()
    assert ("task_cgroups" in obj.maps, "weights_in_use" in obj.maps) == (weighs, weighs)

# SPDX-License-Identifier: Apache-2.0
"""Descriptors: owned once, closed once, inherited by no child; and nothing is left in the kernel afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.errors import BpfError
from ghostbpf.loaders.handle import Handle, open_pinned
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import MmapArray, RingBuffer


def a_descriptor() -> int:
    return os.open("/dev/null", os.O_RDONLY)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_closes_once() -> None:
    handle = Handle(a_descriptor())
    fd = handle.fd
    handle.close()
    assert not is_open(fd)
    # Another file may get the same number at once, and must stay open.
    other = a_descriptor()
    assert other == fd
    handle.close()
    del handle
    assert is_open(other)
    os.close(other)


def test_with_block_closes_also_on_error() -> None:
    with Handle(a_descriptor()) as handle:
        fd = handle.fd
        assert is_open(fd)
    assert not is_open(fd)
    handle = Handle(a_descriptor())
    fd = handle.fd
    with pytest.raises(KeyError), handle:
        raise KeyError
    assert not is_open(fd)


def test_unreferenced_handle_closes() -> None:
    handle = Handle(a_descriptor())
    fd = handle.fd
    del handle
    assert not is_open(fd)


def test_handle_of_nothing_closes_nothing() -> None:
    with Handle(-1) as handle:
        assert handle.fd == -1


def test_children_do_not_inherit() -> None:
    fd = a_descriptor()
    os.set_inheritable(fd, True)
    with Handle(fd):
        assert not os.get_inheritable(fd)


def test_descriptor_that_is_not_bpf_cannot_be_pinned(bpffs: Path) -> None:
    with Handle(a_descriptor()) as handle, pytest.raises(BpfError, match="cannot pin") as error:
        handle.pin(bpffs / "null")
    assert error.value.errno
    with pytest.raises(BpfError, match="No such file"):
        open_pinned(bpffs / "null")


def test_nothing_is_left_of_fifty_rounds(
    bpf_source: Callable[..., Path],
    bpftool: Callable[..., Any],
    open_fds: Callable[[], dict[int, str]],
    until: Callable[[Callable[[], bool]], bool],
) -> None:
    # Other processes may load programs at the same time, but none of this name.
    tag = f"leak{os.getpid()}"
    path = bpf_source(
        f"""
        BPF_HASH({tag}_h, u32, u64, 4);
        BPF_RINGBUF_OUTPUT({tag}_r, 1);
        BPF_F_TABLE("array", u32, u64, {tag}_m, 4, BPF_F_MMAPABLE);
        int {tag}(u64 *ctx)
        {{
            u32 key = 0;
            u64 one = 1;
            {tag}_h.update(&key, &one);
            {tag}_m.update(&key, &one);
            return {tag}_r.ringbuf_output(&one, sizeof(one), 0);
        }}
        """
    )

    def ours(kind: str) -> int:
        return sum(entry.get("name", "").startswith(tag) for entry in bpftool(kind, "show"))

    ffi = abi.load()
    got: list[bytes] = []
    compile(path)
    fds, mappings = open_fds(), Path("/proc/self/maps").read_text().count("bpf-map")
    for _ in range(50):
        with contextlib.closing(Module(compile(path))) as module, module.load(tag, Target.syscall()) as program:
            ring = RingBuffer(module.maps[f"{tag}_r"], got.append)
            with MmapArray(module.maps[f"{tag}_m"], ffi, "u64") as mapped:
                assert program.run()[0] == 0
                assert mapped[0] == 1
            ring.consume()
    assert len(got) == 50
    del ring
    assert until(lambda: (ours("prog"), ours("map")) == (0, 0))
    assert open_fds() == fds
    assert Path("/proc/self/maps").read_text().count("bpf-map") == mappings


def test_the_leak_test_can_see_a_leak(
    bpf_source: Callable[..., Path], bpftool: Callable[..., Any], open_fds: Callable[[], dict[int, str]]
) -> None:
    tag, before = f"kept{os.getpid()}", open_fds()
    obj = compile(bpf_source(f"BPF_ARRAY({tag}, u64, 1); int f(u64 *ctx) {{ {tag}.increment(0); return 0; }}"))
    with contextlib.closing(Module(obj)):
        assert [m["name"] for m in bpftool("map", "show") if m.get("name") == tag] == [tag]
        assert len(open_fds()) == len(before) + 1
    assert open_fds() == before

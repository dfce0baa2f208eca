# SPDX-License-Identifier: Apache-2.0
"""struct_ops end to end, with a TCP congestion control, which every kernel supports."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.btf import Btf, Kind
from ghostbpf.loaders.errors import AttachError, BpfError, GhostError, KernelUnsupported, VerifierError
from ghostbpf.loaders.link import Module
from ghostbpf.loaders.maps import Array
from ghostbpf.loaders.object import Object
from ghostbpf.loaders.struct_ops import StructOps

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
OPS = {"ssthresh": "cc_ssthresh", "undo_cwnd": "cc_undo_cwnd", "cong_avoid": "cc_cong_avoid", "init": "cc_init"}
TABLE = "tcp_congestion_ops"
MEGABYTE = 1 << 20

Until = Callable[[Callable[[], bool]], bool]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    if Btf.kernel().find(f"bpf_struct_ops_{TABLE}", Kind.STRUCT) is None:
        pytest.skip("this kernel supports no congestion control in BPF")
    return build(
        """
        BPF_ARRAY(calls, u64, 2);

        static void count(u32 which)
        {
            u64 *calls_of = calls.lookup(&which);
            if (calls_of)
                __sync_fetch_and_add(calls_of, 1);
        }

        BPF_PROG(cc_init, struct sock *sk) { count(0); return 0; }
        BPF_PROG(cc_ssthresh, struct sock *sk) { return tcp_reno_ssthresh(sk); }
        BPF_PROG(cc_undo_cwnd, struct sock *sk) { return tcp_reno_undo_cwnd(sk); }
        BPF_PROG(cc_cong_avoid, struct sock *sk, u32 ack, u32 acked)
        {
            count(1);
            tcp_reno_cong_avoid(sk, ack, acked);
            return 0;
        }
        BPF_PROG(cc_wild, struct sock *sk) { return *(u64 *)(u64)sk->__sk_common.skc_hash; }
        """
    )


@pytest.fixture
def module(compiled: Object) -> Iterator[Module]:
    with contextlib.closing(Module(compiled)) as made:
        yield made


@pytest.fixture
def name(until: Until) -> Iterator[str]:
    """An unused name for a congestion control; the fixture checks that none of that name is left."""
    chosen = f"t{os.getpid()}_{next(_numbers)}"
    yield chosen
    assert until(lambda: not is_registered(chosen)), f"{chosen} is still registered"


def is_registered(name: str) -> bool:
    return name in AVAILABLE.read_text().split()


def attach(module: Module, name: str, **ops: str) -> StructOps:
    return StructOps.attach(module, TABLE, {**OPS, **ops}, fields={"name": name})


def send(name: str, size: int) -> int:
    """Send ``size`` bytes over 127.0.0.1 under the congestion control ``name``; returns the bytes received."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.socket())
        for end in (server, sender):
            end.settimeout(10)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        sender.connect(server.getsockname())
        receiver = stack.enter_context(server.accept()[0])
        receiver.settimeout(10)
        arrived, chunk = 0, bytes(16 << 10)
        for _ in range(size // len(chunk)):
            sender.sendall(chunk)
            arrived += len(receiver.recv(len(chunk), socket.MSG_WAITALL))
        return arrived


def test_traffic_runs_through_the_attached_programs(module: Module, name: str) -> None:
    calls = Array(module.maps["calls"], abi.load(), "u64")
    with attach(module, name):
        assert is_registered(name)
        assert (calls[0], calls[1]) == (0, 0)
        assert send(name, MEGABYTE) == MEGABYTE
        assert calls[0] == 1
        # At least one acknowledgement for each two segments of the largest size.
        assert calls[1] >= MEGABYTE // (2 * 65536)
        assert send("reno", MEGABYTE) == MEGABYTE
        assert calls[0] == 1


def test_closing_detaches(module: Module, name: str, until: Until) -> None:
    link = attach(module, name)
    assert is_registered(name)
    link.close()
    assert until(lambda: not is_registered(name))


def test_error_in_a_with_block_detaches(module: Module, name: str, until: Until) -> None:
    with pytest.raises(ZeroDivisionError), attach(module, name):
        raise ZeroDivisionError
    assert until(lambda: not is_registered(name))


def test_unreferenced_link_detaches(module: Module, name: str, until: Until) -> None:
    attach(module, name)
    assert until(lambda: not is_registered(name))


def test_detach_works_while_another_descriptor_holds_the_link(
    module: Module, name: str, until: Until, bpffs: Path
) -> None:
    with attach(module, name) as link:
        link.pin(bpffs / "link")
        link.detach()
        assert until(lambda: not is_registered(name))
        # The kernel may have detached it first: not an error.
        link.detach()


def test_pinned_link_outlives_its_loader_and_opens_again(module: Module, name: str, until: Until, bpffs: Path) -> None:
    calls = Array(module.maps["calls"], abi.load(), "u64")
    with attach(module, name) as link:
        link.pin(bpffs / "link")
    assert send(name, MEGABYTE) == MEGABYTE
    assert calls[0] == 1
    with StructOps.open(bpffs / "link") as link:
        assert is_registered(name)
        (bpffs / "link").unlink()
        assert is_registered(name)
    assert until(lambda: not is_registered(name))


def test_child_started_meanwhile_does_not_keep_it_attached(module: Module, name: str, until: Until) -> None:
    link = attach(module, name)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        try:
            link.close()
            assert until(lambda: not is_registered(name))
            assert child.poll() is None
        finally:
            child.kill()


def test_two_tables_of_one_object_live_side_by_side(compiled: Object, module: Module, name: str) -> None:
    ffi, other = abi.load(), f"{name}b"
    with contextlib.closing(Module(compiled)) as second, attach(module, name), attach(second, other):
        send(other, MEGABYTE)
        assert Array(module.maps["calls"], ffi, "u64")[0] == 0
        assert Array(second.maps["calls"], ffi, "u64")[0] == 1


def test_name_that_is_taken_is_refused(module: Module, name: str) -> None:
    with attach(module, name), pytest.raises(GhostError, match=f"{TABLE}: File exists"):
        attach(module, name)


def test_longest_name_fits_and_a_longer_one_is_refused(module: Module, name: str) -> None:
    longest = name.ljust(15, "x")
    with attach(module, longest):
        assert is_registered(longest)
    with pytest.raises(AttachError, match='"tttttttttttttttt" is longer than the 15 bytes of name'):
        attach(module, "t" * 16)


def test_table_without_a_required_operation_is_refused(module: Module, name: str) -> None:
    with pytest.raises(BpfError, match=f"register {TABLE} with the kernel"):
        StructOps.attach(module, TABLE, {"init": "cc_init"}, fields={"name": name})
    assert not is_registered(name)


@pytest.mark.parametrize(
    ("table", "ops", "fields", "feature"),
    [
        (TABLE, {"no_such_op": "cc_init"}, {}, f"{TABLE}.no_such_op"),
        (TABLE, OPS, {"no_such_field": 1}, f"{TABLE}.no_such_field"),
        ("no_such_ops", OPS, {}, "struct bpf_struct_ops_no_such_ops"),
    ],
    ids=["op", "field", "table"],
)
def test_what_the_kernel_lacks_is_named(
    module: Module, table: str, ops: dict[str, str], fields: dict[str, int | str], feature: str
) -> None:
    with pytest.raises(KernelUnsupported) as error:
        StructOps.attach(module, table, ops, fields=fields)
    assert error.value.feature == feature


def test_rejected_program_leaves_nothing_open(
    module: Module, name: str, open_fds: Callable[[], dict[int, str]]
) -> None:
    before = open_fds()
    with pytest.raises(VerifierError, match="verifier rejects cc_wild"):
        attach(module, name, undo_cwnd="cc_wild")
    assert not is_registered(name)
    assert open_fds() == before


def test_attached_table_holds_one_descriptor(module: Module, name: str, open_fds: Callable[[], dict[int, str]]) -> None:
    before = open_fds()
    with attach(module, name) as link:
        assert set(open_fds()) - set(before) == {link.fd}
    assert open_fds() == before

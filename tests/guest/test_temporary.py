# SPDX-License-Identifier: Apache-2.0
"""Enclaves.temporary(): an enclave, with its agent in charge, for the length of a block."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclaves
from ghostbpf.schedulers.errors import EnclaveBusy
from ghostbpf.schedulers.registry import POLICIES
from ghostbpf.schedulers.userspace import AgentProcess
from workload import MakeEnclave, Workload, in_ext

pytestmark = [pytest.mark.usefixtures("quiet", "watched"), pytest.mark.kernel_independent]

BIFF, RR, FIFO = POLICIES["biff"], POLICIES["rr"], POLICIES["fifo_centralized"]


def test_block_that_raises_leaves_no_enclave_and_no_task_in_the_class(workload: Workload) -> None:
    child = workload.spinner()

    def fail() -> None:
        with Enclaves.temporary(BIFF, CpuSet([1])) as one:
            one.add(child.pid)
            assert in_ext(child.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Enclaves.open() is None
    assert not in_ext(child.pid)
    child.progress()


@pytest.mark.soak
def test_agent_is_in_charge_during_the_block_and_ended_after_it(workload: Workload) -> None:
    with Enclaves.temporary(FIFO.parse({"fastpath": "off"}), CpuSet([1])) as one:
        agent = one.agent_process
        assert isinstance(agent, AgentProcess)
        workload.spinner(one).progress()
        assert agent.check()
        assert one.agent is not None
        assert (one.agent.tid, one.agent.state) == (agent.pid, "deciding")
    assert not agent.alive


@pytest.mark.soak
def test_existing_enclave_gets_the_policy_and_stays(enclave: MakeEnclave) -> None:
    one = enclave("1", "biff")
    with Enclaves.temporary(RR, id=one.id) as same:
        assert (same.id, same.created_ns, same.policy) == (one.id, one.created_ns, "rr")
    assert one.is_active
    assert one.policy == "rr"
    with pytest.raises(EnclaveBusy), Enclaves.temporary(BIFF, CpuSet([2]), id=one.id):
        pass
    assert (one.policy, str(one.cpus)) == ("rr", "1")


@pytest.mark.soak
def test_later_enclave_with_the_same_id_is_not_destroyed(enclave: MakeEnclave) -> None:
    with Enclaves.temporary(BIFF, CpuSet([1])) as one:
        with Enclaves.change() as enclaves:
            assert enclaves is not None
            enclaves.get(one.id).destroy()
        later = enclave("1")
        assert later.id == one.id
    assert later.is_active
    assert not one.is_active


@pytest.mark.soak
def test_kept_enclave_outlives_the_block() -> None:
    with Enclaves.temporary(BIFF, CpuSet([1]), keep=True) as one:
        pass
    assert one.is_active
    with Enclaves.change() as enclaves:
        assert enclaves is not None
        enclaves.get(one.id).destroy()

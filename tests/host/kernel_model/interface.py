# SPDX-License-Identifier: Apache-2.0
"""The kernel interface of an agent on the model: the real Channel, with the model's programs, ring and arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from ghostbpf.hints import WorkClass
from ghostbpf.schedulers.agents import AgentPolicySpec
from ghostbpf.schedulers.agents.channel import _COMMIT, _TAKE, _TASK, Channel
from ghostbpf.schedulers.agents.cpus import CpuFlags, cpu_flags
from ghostbpf.schedulers.agents.extension import in_python
from ghostbpf.schedulers.agents.status_words import StatusWords
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.topology import CpuRow, Topology
from ghostbpf.schedulers.userspace import Agent
from ghostbpf.schedulers.userspace.central import BARE

from .kernel import Kernel
from .memory import Ring
from .state import ENCLAVE, WORDS

_tids = itertools.count(1_000_000)


class Program:
    """A prepared syscall program: ``body`` takes its argument's members, and returns its result and the new members."""

    def __init__(self, format: Any, body: Callable[..., tuple[int, tuple[int, ...]]]) -> None:
        self._format, self._body = format, body
        self.context = bytearray(format.size)

    def __call__(self) -> int:
        result, fields = self._body(*self._format.unpack(self.context))
        self._format.pack_into(self.context, 0, *fields)
        return result


class ModelChannel(Channel):
    """A Channel that calls the model's programs."""

    def __init__(self, interface: ModelInterface, number: int) -> None:
        self._interface = interface
        super().__init__(interface.enclave, interface.agents, None, number, 0)  # type: ignore[arg-type]

    def _connect(self, *_: Any) -> None:
        kernel, run = self._interface.kernel, self._interface.run
        self.tid, number = next(_tids), self.number

        def commit(channel: int, count: int, group: int, _: int) -> tuple[int, tuple[int, ...]]:
            result = run(kernel.call_commit(self.tid, channel, count, bool(group)))
            return result, (channel, count, group, 0)

        def associate(gtid: int, channel: int, _: int) -> tuple[int, tuple[int, ...]]:
            return run(kernel.call_associate(gtid, channel)), (gtid, channel, 0)

        def take(channel: int, source: int, most: int, _: int) -> tuple[int, tuple[int, ...]]:
            return 0, (channel, source, most, run(kernel.call_take(channel, source, most)))

        self._commit, self._associate = Program(_COMMIT, commit), Program(_TASK, associate)  # type: ignore[assignment]
        self._take = Program(_TAKE, take)  # type: ignore[assignment]
        self._programs = SimpleNamespace(  # type: ignore[assignment]
            register_waiting=SimpleNamespace(run=lambda: run(kernel.call_register_waiting())),
            leave=SimpleNamespace(run=lambda _: kernel.call_leave(self.tid, number)),
            spin=SimpleNamespace(run=lambda _: None),
        )
        self._ring = Ring(self._interface.ring_records, kernel.point)  # type: ignore[assignment]
        self._txn_records, self._known = kernel.txns, kernel.known  # type: ignore[assignment]

    def for_native(self) -> None:
        """The native half knows the real kernel only."""

    def _offer_ring(self) -> None:
        self._interface.kernel.rings[self.number] = self._ring  # type: ignore[assignment]
        self._interface.kernel.sleepers[self.number] = self.wake
        self.woken = False

    def _wait_for_ops(self) -> None:
        kernel = self._interface.kernel
        if kernel.fixes.waits_for_ops:
            self._interface.run(kernel.wait_for_ops())

    def wake(self) -> None:
        """The core wakes the agent."""
        self.woken = True


class ModelWords(StatusWords):
    """Status words, each read of which is a point."""

    def __init__(self, interface: ModelInterface) -> None:
        super().__init__(interface.agents, interface.kernel.task_cgroups)  # type: ignore[arg-type]
        self._point = interface.kernel.point

    def __getitem__(self, number: int) -> Any:
        self._point()
        return super().__getitem__(number)

    def waits(self, task: Any) -> bool:
        self._point()
        return super().waits(task)

    def on_cpu(self, task: Any) -> Any:
        self._point()
        return super().on_cpu(task)

    def in_use(self) -> Iterator[Any]:
        self._point()
        return iter(list(super().in_use()))


class NoHints:
    """An empty table of hints."""

    def updates(self) -> list[Any]:
        return []

    def work_class(self, _: int) -> WorkClass:
        return BARE


class ModelInterface:
    """The model as a ``KernelInterface``; ``run`` drives a program of the kernel to its end."""

    def __init__(self, kernel: Kernel, run: Callable[[Iterator[Any]], Any], ring_records: int) -> None:
        self.kernel, self.run, self.ring_records = kernel, run, ring_records
        self.agents = _Agents(kernel)
        self.enclave = SimpleNamespace(
            id=ENCLAVE,
            cpus=CpuSet(kernel.numbers),
            core=SimpleNamespace(cpus=kernel.cpu_records, enclaves=kernel.enclaves, state=kernel.core, maps={}),
            hints_path=None,
        )

    def channel(self, number: int, _ring_bytes: int) -> ModelChannel:
        return ModelChannel(self, number)

    def topology(self) -> Topology:
        rows = [
            CpuRow(id=cpu, core=cpu, smt_idx=0, siblings=str(cpu), l3_siblings=str(self.enclave.cpus), numa_node=0)
            for cpu in self.kernel.numbers
        ]
        return Topology.from_rows(rows)

    def status_words(self) -> ModelWords:
        return ModelWords(self)

    def cpu_flags(self, cpus: tuple[int, ...]) -> CpuFlags:
        return cpu_flags(self.enclave, cpus, in_python(CpuFlags))  # type: ignore[arg-type]

    def params(self) -> tuple[None, Any]:
        return None, SimpleNamespace(slice_ns=0)

    def hints(self) -> NoHints:
        return NoHints()

    def stay_on(self, cpu: int) -> None:
        pass

    def agent(self, spec: AgentPolicySpec, values: dict[str, int], cpu: int | None = None) -> Agent:
        """An agent that has not taken over yet."""
        return Agent(self.enclave, spec, values, cpu, kernel=self)  # type: ignore[arg-type]


class _Agents:
    """``schedulers.agents.Agents`` on the model."""

    def __init__(self, kernel: Kernel) -> None:
        self.channels, self.status_words, self.allowed_rest, self.maps, self._kernel = (
            kernel.channels,
            kernel.status_words,
            kernel.allowed_rest,
            dict[str, Any](),
            kernel,
        )

    @property
    def words_used(self) -> int:
        return min(self._kernel.words_ever + 1, WORDS)

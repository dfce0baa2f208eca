# SPDX-License-Identifier: Apache-2.0
"""Programs on tracepoints and over all tasks."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ghostbpf.loaders import abi, attach, sched_ext
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import Array, PerCpuArray
from ghostbpf.loaders.object import Object
from tracing import Task, spin_for


@pytest.fixture(scope="module")
def compiled(build: Callable[[str], Object]) -> Object:
    return build(
        """
        BPF_ARRAY(switched_from, u64, 1);

        int on_switch(unsigned long long *ctx)
        {
            struct task_struct *prev = (struct task_struct *)ctx[1];
            u32 zero = 0;
            u64 *times = switched_from.lookup(&zero);

            if (times && prev->tgid == LINK_CONSTANT(who))
                __sync_fetch_and_add(times, 1);
            return 0;
        }

        BPF_PERCPU_ARRAY(samples, u64, 1);

        int sample(struct bpf_perf_event_data *ctx)
        {
            u32 zero = 0;
            u64 *count = samples.lookup(&zero);

            if (count)
                *count += 1;
            return 0;
        }

        int each_task(struct bpf_iter__task *ctx)
        {
            struct bpf_iter_meta *meta = ctx->meta;
            struct task_struct *p = ctx->task;
            /* A kilobyte a task: more than one read() returns. */
            struct { u32 pid, pad[63]; } record = {};

            if (!p)
                return 0;
            record.pid = p->pid;
            for (int i = 0; i < 4; i++)
                bpf_seq_write(meta->seq, &record, sizeof(record));
            return 0;
        }
        """
    )


@pytest.fixture
def module(compiled: Object) -> Iterator[Module]:
    with contextlib.closing(Module(compiled, constants={"who": os.getpid()})) as made:
        yield made


def sleep_often() -> None:
    for _ in range(20):
        time.sleep(0.001)


def test_tracepoint_program_runs_while_it_is_attached(module: Module) -> None:
    times = Array(module.maps["switched_from"], abi.load(), "u64")
    with module.load("on_switch", Target.tracepoint("sched_switch")) as program:
        link = attach.Link.tracepoint(program)
    with link:
        sleep_often()
        assert times[0] >= 20
    sleep_often()
    after = times[0]
    sleep_often()
    assert times[0] == after


def pids(iterator: attach.Iterator) -> set[int]:
    return {pid for (pid,) in struct.iter_unpack("I252x", iterator.read())}


def test_iterator_visits_all_tasks_each_time(module: Module) -> None:
    with module.load("each_task", Target.iterator("task")) as program:
        iterator = attach.Iterator.attach(program)
    with iterator:
        assert os.getpid() in pids(iterator)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        try:
            assert child in pids(iterator)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert child not in pids(iterator)


def test_pinned_iterator_opens_again(module: Module, bpffs: Path) -> None:
    with module.load("each_task", Target.iterator("task")) as program, attach.Iterator.attach(program) as iterator:
        iterator.pin(bpffs / "tasks")
    with attach.Iterator.open(bpffs / "tasks") as iterator:
        assert os.getpid() in pids(iterator)


@pytest.mark.usefixtures("root")
def test_kernel_log_has_the_lines_on_sched_ext_since_it_was_opened() -> None:
    kmsg = Path("/dev/kmsg")
    kmsg.write_text("sched_ext: said before\n")
    with sched_ext.KernelLog() as log:
        for line in ("sched_ext: first words", "someone else: sched_ext: no", 'sched_ext: "more" words'):
            kmsg.write_text(f"{line}\n")
        assert log.lines() == ["first words", '"more" words']
        assert log.lines() == []


def test_kernel_log_that_cannot_be_read_is_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sched_ext, "_KMSG", tmp_path / "none")
    with sched_ext.KernelLog() as log:
        assert log.lines() == []


def test_samplers_sample_each_cpu_until_they_are_closed(
    module: Module, task: Callable[..., Task], open_fds: Callable[[], dict[int, str]]
) -> None:
    counts = PerCpuArray(module.maps["samples"], abi.load(), "u64")
    online = attach.online_cpus()
    spinners = [task(spin_for(0.3), cpu=cpu) for cpu in online]
    with module.load("sample", Target.perf_event()) as program:
        fds = open_fds()
        with attach.Samplers(program, 1000) as samplers:
            for spinner in spinners:
                spinner.start()
            for spinner in spinners:
                spinner.finish()
            before = open_fds()
            samplers.follow()
            # All samplers are alive: none was opened again.
            assert open_fds() == before
            assert len(before) == len(fds) + len(online)
            found = list(counts[0])
        assert open_fds() == fds
        assert all(found[cpu] > 30 for cpu in online)
        found = list(counts[0])
        spin_for(0.05)()
        assert list(counts[0]) == found


def test_program_on_the_clock_of_a_cpu_runs_there_alone_until_the_link_is_closed(
    module: Module, open_fds: Callable[[], dict[int, str]]
) -> None:
    counts = PerCpuArray(module.maps["samples"], abi.load(), "u64")
    first, *others = attach.online_cpus()
    with module.load("sample", Target.perf_event()) as program:
        fds, before = open_fds(), list(counts[0])
        with attach.Link.clock(program, first, 0.001):
            while counts[0][first] < before[first] + 10:
                spin_for(0.01)()
        assert open_fds() == fds
        found = list(counts[0])
        assert [found[cpu] for cpu in others] == [before[cpu] for cpu in others]
        spin_for(0.05)()
        assert list(counts[0]) == found

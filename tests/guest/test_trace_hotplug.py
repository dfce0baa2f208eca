# SPDX-License-Identifier: Apache-2.0
"""Tracers that sample CPUs, during hotplug."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from command import running
from ghostbpf.loaders import Module, PerCpuArray, Sampler, Samplers, Target, abi, compile
from workload import Workload, offline, until

pytestmark = pytest.mark.usefixtures("quiet")

AWAY, HERTZ = 2, 100
COUNT_SAMPLES = """
BPF_PERCPU_ARRAY(samples, u64, 1);

int perf_sample(struct bpf_perf_event_data *ctx)
{
	u32 zero = 0;
	u64 *count = samples.lookup(&zero);

	if (count)
		*count += 1;
	return 0;
}
"""


def longest(text: str, cpu: int) -> list[float]:
    """The longest queue of ``cpu`` in each report of ``text`` that has it."""
    lines = map(json.loads, text.rpartition("\n")[0].splitlines())
    return [line["max"] for line in lines if line["type"] == "histogram" and line["by"]["cpu"] == cpu]


@pytest.mark.kernel_independent
@pytest.mark.soak
def test_runqlen_counts_a_cpu_again_that_was_offline(workload: Workload) -> None:
    with running("trace", "runqlen", "--per-cpu", "--json", "0.3") as tracer:
        tracer.until(lambda: longest(tracer.out, AWAY))
        with offline(AWAY):
            before = tracer.out
            tracer.until(lambda: len(longest(tracer.out, 0)) >= len(longest(before, 0)) + 3)
            assert len(longest(tracer.out, AWAY)) <= len(longest(before, AWAY)) + 1
        away = len(longest(tracer.out, AWAY))
        for spinner in [workload.spinner(cpus=[AWAY]) for _ in range(3)]:
            spinner.progress(20)
        tracer.until(lambda: max(longest(tracer.out, AWAY)[away:], default=0) >= 2)
        tracer.signal(signal.SIGINT)
        assert tracer.wait().status == 0


@pytest.mark.soak
def test_samplers_follow_a_cpu_that_was_offline_between_two_looks(tmp_path: Path) -> None:
    source = tmp_path / "samples.bpf.c"
    source.write_text(COUNT_SAMPLES)
    module = Module(compile(source))
    counts = PerCpuArray(module.maps["samples"], abi.load(), "u64")
    with (
        module.load("perf_sample", Target.perf_event()) as program,
        Samplers(program, HERTZ) as samplers,
        Sampler.on_cpu(program, AWAY, HERTZ) as alone,
    ):
        until(lambda: counts[0][AWAY] > 10, "CPU 2 is sampled")
        assert alone.is_alive()
        with offline(AWAY):
            pass
        # A sampler of a CPU that was offline stays dead.
        assert not alone.is_alive()
        before = counts[0][AWAY]
        time.sleep(0.2)
        assert counts[0][AWAY] == before
        samplers.follow()
        until(lambda: counts[0][AWAY] > before + 10, "CPU 2 is sampled again")
        samplers.follow()
    module.close()

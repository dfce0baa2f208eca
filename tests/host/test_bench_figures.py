# SPDX-License-Identifier: Apache-2.0
"""The statistics of ``ghostbpf bench``, and how it measures what other processes use."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bench_values import nearest_rank
from ghostbpf.experiments.bench import figures, noise
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 1000))
def test_quantile_is_the_nearest_rank(values: list[int], per_mille: int) -> None:
    assert figures.quantile(values, per_mille / 1000) == nearest_rank(values, per_mille)


def test_quantile_agrees_with_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    rng = random.Random(5)
    for size in (1, 2, 51, 99, 100, 1000):
        values = [rng.random() for _ in range(size)]
        for fraction in (0.025, 0.5, 0.9, 0.975, 0.99, 0.999, 1):
            assert figures.quantile(values, fraction) == numpy.quantile(values, fraction, method="inverted_cdf")


def test_interval_covers_the_median_about_as_often_as_its_level_says() -> None:
    rng = random.Random(11)
    covered = widths = 0.0
    for _ in range(200):
        bounds = figures.interval([rng.lognormvariate(math.log(1.2), 0.1) for _ in range(25)], rng)
        assert bounds is not None
        covered += bounds[0] <= 1.2 <= bounds[1]
        widths += bounds[1] - bounds[0]
    # 95 % of 200 with a standard deviation of 3; an interval that covers all by its width would be useless.
    assert covered >= 178
    assert widths / 200 < 0.15


def test_interval_of_equal_ratios_is_that_ratio_and_few_ratios_have_none() -> None:
    assert figures.interval([1.5] * 5, random.Random(1)) == (1.5, 1.5)
    assert figures.interval([1.5] * 2, random.Random(1)) is None


@pytest.mark.parametrize(
    ("ratio", "bounds", "differs", "lower", "expected"),
    [
        (0.8, (0.78, 0.82), 0.05, True, "better"),
        (0.8, (0.78, 0.82), 0.05, False, "worse"),
        (1.3, (1.2, 1.4), 0.05, True, "worse"),
        (1.3, (1.2, 1.4), 0.31, True, "within noise"),
        (1 / 1.3, (0.7, 0.8), 0.31, True, "within noise"),
        (1.3, (0.9, 1.4), 0.05, True, "within noise"),
        (1.3, None, 0.05, True, "worse"),
    ],
)
def test_verdict_needs_more_than_the_noise(
    ratio: float, bounds: tuple[float, float] | None, differs: float, lower: bool, expected: str
) -> None:
    assert figures.verdict(ratio, bounds, differs, lower_is_better=lower) == expected


def test_noise_is_the_farthest_that_equal_measurements_may_differ() -> None:
    assert figures.noise(1.0, (0.8, 1.1)) == pytest.approx(0.25)
    assert figures.noise(1.1, None) == pytest.approx(0.1)


def test_what_the_workload_uses_itself_is_not_what_others_use() -> None:
    """A second of the workload's own CPU time, of a grandchild that it waits for, lowers the others' by as much."""
    watch = noise.Watch(lambda: 0.0)
    before = os.times()
    subprocess.run(["sh", "-c", "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; true"], check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used > 0.05
    all_of_them, others = watch.others(0.0), watch.others(used)
    assert others < all_of_them


def test_cpu_time_of_a_process_includes_its_children() -> None:
    child = subprocess.Popen(["sh", "-c", "sh -c 'while :; do :; done' & wait"], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while noise.tree_seconds(child.pid) < 0.2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        alone = sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        assert alone / os.sysconf("SC_CLK_TCK") < 0.2
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert noise.tree_seconds(child.pid) == 0


def test_short_runs_are_marked_only_above_the_sampling_error() -> None:
    assert noise.is_noisy(0.2, 60)
    assert not noise.is_noisy(0.14, 60)
    assert not noise.is_noisy(0.2, 0.01)

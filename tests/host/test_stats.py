# SPDX-License-Identifier: Apache-2.0
"""Statistics of an enclave: histograms by powers of two, sums and differences, and how they are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ghostbpf.schedulers import core, stats
from ghostbpf.schedulers.stats import Histogram, Stats
from ghostbpf.tools.stats import document, show_stats
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from metrics_state import STATS


def histogram(*counts: int, total: float = 0) -> Histogram:
    return Histogram(counts, total, 2**10)


def test_this_kernel_records_waits() -> None:
    assert stats.is_supported()


def test_buckets_end_at_powers_of_two() -> None:
    assert [histogram(0, 0, 0).end(bucket) for bucket in range(3)] == [1024, 2048, 4096]


def test_percentile_is_in_the_bucket_of_the_rank() -> None:
    one = histogram(50, 40, 10)
    assert one.percentile(0.25) == 512
    assert one.percentile(0.5) == 1024
    assert one.percentile(0.9) == 2048
    assert one.percentile(1) == 4096
    assert histogram(0, 0).percentile(0.5) == 0


@given(st.lists(st.integers(1, 2**39), min_size=1), st.floats(0.01, 1))
def test_percentile_is_right_within_a_factor_of_two(values: list[int], share: float) -> None:
    counts = [0] * 32
    for ns in values:
        counts[min((ns >> 10).bit_length(), 31)] += 1
    rank = max(0, -(-len(values) * share // 1) - 1)
    exact = sorted(values)[int(rank)]
    found = histogram(*counts).percentile(share)
    assert exact / 2 <= found or exact <= 1024
    assert found <= max(2 * exact, 1024)


def test_difference_has_what_came_between() -> None:
    before, now = histogram(1, 2, total=100), histogram(3, 2, total=150)
    assert now - before == histogram(2, 0, total=50)
    assert (now - before) + before == now
    assert (STATS - STATS).wakeup_wait.count == 0
    assert STATS + STATS - STATS == STATS


def test_records_of_all_cpus_are_summed() -> None:
    record = core.ffi().new("struct counters[2]")
    record[0].waits[0].counts[3], record[1].waits[0].counts[3] = 5, 6
    record[1].waits[1].counts[31], record[1].waits[1].sum_ns = 7, 9
    record[0].turns[0], record[0].runtime_ns, record[1].runtime_ns = 8, 400, 600
    record[0].depths[2], record[0].waiting, record[1].idle_ticks = 4, 12, 1
    record[0].slice_ends, record[1].class_preemptions, record[1].idle_wait_ns = 10, 11, 13
    found = Stats.of(record)
    assert found.wakeup_wait.counts[3] == found.wakeup_wait.count == 11
    assert (found.preempted_wait.counts[31], found.preempted_wait.sum) == (7, 9e-9)
    assert (found.turn.counts[0], found.turn.sum) == (8, pytest.approx(1e-6))
    assert (found.depth.counts[2], found.depth.sum, found.depth.end(2)) == (4, 12, 4)
    assert (found.slice_ends, found.class_preemptions, found.idle_wait_ns) == (10, 11, 13)
    assert found.work_conservation == 0.75


def test_json_has_counts_with_the_ends_of_their_buckets() -> None:
    shown = json.loads(json.dumps(document(STATS)))
    wait = shown["wakeup_wait"]
    assert wait["unit"] == "ns"
    assert (len(wait["ends"]), wait["ends"][:2]) == (len(wait["counts"]) - 1, [1024, 2048])
    assert wait["count"] == sum(wait["counts"]) == STATS.wakeup_wait.count
    assert shown["depth"]["unit"] == "tasks"
    assert document(None) is None


def test_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_stats(STATS)
    out = capsys.readouterr().out
    assert "work conservation: 75.0% of ticks" in out
    assert max(map(len, out.splitlines())) < 80
    show_stats(None)
    assert capsys.readouterr().out == "the core keeps no statistics\n"

# SPDX-License-Identifier: Apache-2.0
"""Histograms: the exact text, the buckets of the kernel side, and percentiles."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from ghostbpf.loaders import abi
from ghostbpf.loaders.attach import Link
from ghostbpf.loaders.compiler import compile
from ghostbpf.loaders.link import Module, Target
from ghostbpf.loaders.maps import Array
from ghostbpf.tools.trace.histogram import Histogram, LinearHistogram, Row, edges, linear_picture, picture
from ghostbpf.tools.trace.report import HistogramSection
from ghostbpf.tools.trace.tracer import TRACERS, constant

USEC, MSEC = 1_000, 1_000_000
BUCKETS = constant("HIST_BUCKETS")
SCALE = constant("HIST_SCALE")


def bucket_of(ns: int, unit_ns: int = USEC) -> int:
    """The bucket of a value by the rule of bpf/tracers/trace.h, computed in another way."""
    value = min(ns, 2**53) * SCALE // unit_ns
    return next(bucket for bucket in range(BUCKETS) if edges(bucket)[0] <= value < edges(bucket)[1])


def histogram(times_ns: Iterable[int], unit_ns: int = USEC) -> Histogram:
    """The histogram that the kernel side makes of these times."""
    times = list(times_ns)
    counts = [0] * BUCKETS
    for ns in times:
        counts[bucket_of(ns, unit_ns)] += 1
    return Histogram(unit_ns, tuple(counts), sum(times), max(times, default=0))


def test_histogram_is_printed_exactly_as_by_bcc() -> None:
    rows = [Row(0, 1, 233), Row(2, 3, 742), Row(4, 7, 203), Row(8, 15, 0), Row(16, 31, 1000), Row(32, 63, 24)]
    assert (
        picture(rows, "usecs")
        == """\
     usecs               : count     distribution
         0 -> 1          : 233      |*********                               |
         2 -> 3          : 742      |*****************************           |
         4 -> 7          : 203      |********                                |
         8 -> 15         : 0        |                                        |
        16 -> 31         : 1000     |****************************************|
        32 -> 63         : 24       |                                        |"""
    )


def test_histogram_is_wider_for_numbers_beyond_32_bits() -> None:
    rows = [Row(0, 1, 1), *(Row(1 << n, (2 << n) - 1, 0) for n in range(1, 31)), Row(1 << 31, (2 << 31) - 1, 2)]
    narrow = picture(rows, "usecs").splitlines()
    assert narrow[-1] == "2147483648 -> 4294967295 : 2        |****************************************|"
    wide = picture([*rows, Row(1 << 32, (2 << 32) - 1, 4)], "usecs").splitlines()
    assert wide[0] == "     usecs                                   : count     distribution"
    assert wide[1] == "                   0 -> 1                    : 1        |*****               |"
    assert wide[-1] == "          4294967296 -> 8589934591           : 4        |********************|"
    assert max(map(len, [*wide, *narrow])) < 80


def test_linear_histogram_is_printed_exactly_as_by_bcc() -> None:
    assert (
        linear_picture(LinearHistogram("runqlen", (1068, 642, 0, 1, 0, 0)).rows(), "runqlen")
        == """\
     runqlen       : count     distribution
        0          : 1068     |****************************************|
        1          : 642      |************************                |
        2          : 0        |                                        |
        3          : 1        |                                        |"""
    )


def test_percentiles_of_small_numbers_are_exact() -> None:
    lengths = LinearHistogram("runqlen", (50, 40, 9, 0, 1, 0))
    assert [lengths.percentile(share) for share in (0.5, 0.9, 0.99, 0.999)] == [0, 1, 2, 4]
    assert lengths.summary() == {"p50": 0, "p90": 1, "p99": 2, "p99.9": 4, "max": 4, "avg": 0.62}
    assert lengths.text().splitlines()[-1] == "     p50 0  p90 1  p99 2  p99.9 4  max 4  avg 0.62  (100 in all)"


def test_empty_histogram_is_its_header() -> None:
    assert picture([], "usecs") == "     usecs               : count     distribution"
    assert linear_picture([], "runqlen") == "     runqlen       : count     distribution"
    assert Histogram.empty(USEC, BUCKETS).rows() == []
    assert Histogram.empty(USEC, BUCKETS).summary() == {
        "p50": 0, "p90": 0, "p99": 0, "p99.9": 0, "max": 0, "avg": 0
    }  # fmt: skip


def test_percentiles_follow_the_histogram() -> None:
    section = HistogramSection("wait", histogram([500, 1_000, 3_000, 6_000_000]), "Waits:", {"pid": 185, "comm": "sh"})
    assert section.text().splitlines() == [
        "Waits:",
        "pid = 185 sh",
        "     usecs               : count     distribution",
        "         0 -> 1          : 2        |****************************************|",
        "         2 -> 3          : 1        |********************                    |",
        *(f"{1 << n:10d} -> {(2 << n) - 1:<10d} : 0        |{' ' * 40}|" for n in range(2, 12)),
        "      4096 -> 8191       : 1        |********************                    |",
        "     p50 1.12  p90 5939  p99 6000  p99.9 6000  max 6000  avg 1501  (4 in all)",
    ]


def test_figures_that_are_long_take_two_lines() -> None:
    *picture, above, below = histogram([10**9, 10**13, *[10**12] * 999]).text().splitlines()
    assert picture[-1].endswith("|")
    assert above.split()[::2] == ["p50", "p90", "p99", "p99.9"]
    assert below == "     max 10000000000  avg 1007993007  (1001 in all)"
    assert len(above) < 80


def test_buckets_have_no_gaps_and_are_an_eighth_wide_at_most() -> None:
    assert edges(0) == (0, 1)
    for bucket in range(1, BUCKETS):
        low, high = edges(bucket)
        assert low == edges(bucket - 1)[1]
        assert high - low == max(1, (1 << (low.bit_length() - 1)) // 8)


def test_powers_of_two_of_the_unit_are_edges() -> None:
    lows = {edges(bucket)[0] for bucket in range(BUCKETS)}
    assert {SCALE << n for n in range(40)} <= lows
    assert {(SCALE << n) * (8 + eighth) // 8 for n in range(40) for eighth in range(8)} <= lows


@pytest.fixture(scope="module")
def kernels_buckets(bcc: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[int], int], list[int]]:
    """``kernels_buckets(times, unit)`` returns the buckets that the kernel side puts the times into."""
    path: Path = tmp_path_factory.mktemp("buckets") / "buckets.bpf.c"
    path.write_text(
        f"""
        #include "{TRACERS}/hist.bpf.h"

        BPF_ARRAY(asked, u64, 256);
        BPF_ARRAY(answers, u64, 256);
        BPF_ARRAY(next, u64, 1);

        BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *to, u32 prev_state)
        {{
            u32 zero = 0, index;
            u64 *at = next.lookup(&zero), *ns, answer;

            if (!at || *at >= 256 || prev->tgid != LINK_CONSTANT(who))
                return 0;
            index = *at;
            ns = asked.lookup(&index);
            if (!ns)
                return 0;
            answer = bucket_of_time(*ns);
            answers.update(&index, &answer);
            *at += 1;
            return 0;
        }}
        """
    )
    compiled = compile(path)

    def ask(times: list[int], unit_ns: int) -> list[int]:
        with contextlib.closing(Module(compiled, constants={"who": os.getpid(), "unit": unit_ns})) as module:
            asked, answers, position = (
                Array(module.maps[name], abi.load(), "u64") for name in ("asked", "answers", "next")
            )
            for index, ns in enumerate(times):
                asked[index] = ns
            with module.load("on_switch", Target.tracepoint("sched_switch")) as program, Link.tracepoint(program):
                while position[0] < len(times):
                    time.sleep(1e-6)
            return [answers[index] for index in range(len(times))]

    return ask


@pytest.mark.parametrize("unit_ns", [USEC, MSEC], ids=["usecs", "msecs"])
def test_kernel_and_python_agree_on_buckets(
    kernels_buckets: Callable[[list[int], int], list[int]], rng: Random, unit_ns: int
) -> None:
    edges_ns = [(1 << n) * unit_ns // 8 * eighth for n in range(12) for eighth in (8, 9, 15)]
    times = [
        0, 1, 2, 7, 8, unit_ns - 1, unit_ns, 2**32 - 1, 2**32, 10**12, 2**53 - 1,
        *edges_ns,
        *(ns - 1 for ns in edges_ns),
        *(rng.randrange(2 ** rng.randrange(1, 53)) for _ in range(150)),
    ]  # fmt: skip
    assert kernels_buckets(times, unit_ns) == [bucket_of(ns, unit_ns) for ns in times]


def test_times_too_long_for_any_bucket_are_in_the_last_that_they_can_be(
    kernels_buckets: Callable[[list[int], int], list[int]],
) -> None:
    answers = kernels_buckets([2**53, 2**60, 2**64 - 1], USEC)
    assert len(set(answers)) == 1
    assert answers[0] == BUCKETS - 1


@pytest.mark.parametrize("unit_ns", [USEC, MSEC], ids=["usecs", "msecs"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: range(1, 10_001),
        lambda rng: [7] * 99 + [5_000_000],
        lambda rng: [3],
        lambda rng: [rng.paretovariate(1.2) * 10 for _ in range(5_000)],
    ],
    ids=["even", "one far out", "one", "long tail"],
)
def test_percentiles_are_right_within_an_eighth(
    draw: Callable[[Random], Iterable[float]], rng: Random, unit_ns: int
) -> None:
    times = sorted(round(us * 1000) for us in draw(rng))
    found = histogram(times, unit_ns)
    for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}.items():
        exact = times[max(-(-int(share * 1000) * len(times) // 1000) - 1, 0)] / unit_ns
        # Below 8/1024 of the unit, a bucket is one 1024th wide.
        assert found.summary()[name] == pytest.approx(exact, rel=1 / 8, abs=1 / SCALE), name
    assert found.summary()["max"] == times[-1] / unit_ns
    assert found.summary()["avg"] == pytest.approx(sum(times) / len(times) / unit_ns)


def test_rows_add_up_the_eighths_of_a_power_of_two() -> None:
    found = histogram([*range(64_000, 128_000, 1_000), 0, 999, 1_999, 2_000])
    assert [row for row in found.rows() if row.count] == [Row(0, 1, 3), Row(2, 3, 1), Row(64, 127, 64)]
    assert [row.low for row in found.rows()] == [0, 2, 4, 8, 16, 32, 64]


def test_histogram_since_another_is_what_came_after_it() -> None:
    early, late = [5_000, 9_000, 70_000], [6_000, 6_500, 31_000]
    found = histogram(early + late).since(histogram(early))
    alone = histogram(late)
    assert (found.counts, found.sum_ns, found.count) == (alone.counts, alone.sum_ns, 3)
    # The maximum came before: of the later times, only the buckets are known.
    assert 31 <= found.max <= 31 * 9 / 8
    assert histogram(early + [80_000]).since(histogram(early)).max == 80
    assert histogram(early).since(histogram(early)).summary()["max"] == 0

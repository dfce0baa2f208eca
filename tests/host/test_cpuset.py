# SPDX-License-Identifier: Apache-2.0
"""CpuSet against ghOSt's CpuList tests (tests/topology_test.cc), Python's sets and the running kernel.

Not ported: IteratorEnd, as a Python iterator has no end to compare with, and AtomicBitmapSet, AtomicIterator,
AtomicIteratorRange and AtomicTestAndClear, as a CpuSet is immutable.
"""

from __future__ import annotations

import copy
import doctest
import os
import pickle
import re
from dataclasses import FrozenInstanceError
from pathlib import Path
from random import Random

import pytest
from ghostbpf.loaders.errors import GhostError
from ghostbpf.schedulers import cpuset
from ghostbpf.schedulers.cpuset import MAX_CPUS, CpuListError, CpuSet


def samples(rng: Random) -> list[set[int]]:
    """Sets of every density, and the edges of 32- and 64-bit words."""
    edges = [0, 31, 32, 63, 64, 127, 128, MAX_CPUS - 1]
    some = [set(rng.sample(range(MAX_CPUS), size)) for size in (1, 2, 30, 500, 4000)]
    densities = [0.1, 0.5, 0.9] * 20
    dense = [{cpu for cpu in range(200) if rng.random() < density} for density in densities]
    return [set(), *({cpu} for cpu in edges), set(edges), set(range(MAX_CPUS)), *some, *dense]


def test_cpu_list_contents_empty() -> None:
    assert not CpuSet([])
    assert list(CpuSet()) == []


def test_cpu_list_contents() -> None:
    assert set(CpuSet([0, 1, 2])) == {0, 1, 2}


def test_cpu_set_content_empty() -> None:
    assert CpuSet().words(16) == (0,) * 16  # CPU_SETSIZE is 1024


def test_cpu_set_contents() -> None:
    """The kernel takes a CpuSet as its ``cpu_set_t``, and returns the same CPUs."""
    before = os.sched_getaffinity(0)
    cpus = CpuSet([min(before)])
    try:
        os.sched_setaffinity(0, cpus)
        assert CpuSet(os.sched_getaffinity(0)) == cpus
    finally:
        os.sched_setaffinity(0, before)
    assert CpuSet([0, 1, 2]).words(16) == (0b111, *(0,) * 15)


def test_bitmap_set() -> None:
    cpus = [5, 20, 87, 94, 100]
    built = CpuSet()
    for cpu in cpus:
        built |= CpuSet([cpu])
    assert [cpu for cpu in range(MAX_CPUS) if cpu in built] == cpus
    assert len(built) == 5
    assert list(built) == cpus
    for position, cpu in enumerate(cpus):
        built -= CpuSet([cpu])
        assert list(built) == cpus[position + 1 :]
    assert len(built) == 0


def test_intersection() -> None:
    one, other = CpuSet([5, 20, 87, 94, 100]), CpuSet([5, 10, 60, 80, 87, 90, 101, 110])
    assert one & other == CpuSet([5, 87])


def test_union() -> None:
    one, other = CpuSet([5, 20, 87, 94, 100]), CpuSet([5, 10, 60, 80, 87, 90, 101, 110])
    assert one | other == CpuSet([5, 10, 20, 60, 80, 87, 90, 94, 100, 101, 110])


def test_subtract() -> None:
    one, other = CpuSet([1, 3, 5, 20, 87, 94, 100]), CpuSet([0, 5, 10, 60, 94])
    assert one - other == CpuSet([1, 3, 20, 87, 100])


@pytest.mark.parametrize("cpus", [[5, 20, 87, 94, 100], [0, 20, 111]], ids=["plain", "boundary"])
def test_iterator(cpus: list[int]) -> None:
    assert list(CpuSet(reversed(cpus))) == cpus
    assert CpuSet(cpus).first == cpus[0]


MASKS = [
    ([1, 2, 3, 4, 5, 20, 87, 94, 100], "10,40800000,00000000,0010003e"),
    ([0, 1, 2, 3, 16], "1000f"),
    ([4, 5, 6, 7, 31, 105], "200,00000000,00000000,800000f0"),
    ([4, 5, 6, 7, 31, 129], "2,00000000,00000000,00000000,800000f0"),
    (list(range(33)), "1,ffffffff"),
    ([0, 5, 10, 15, 16, 21, 26, 31], "84218421"),
    ([0, 5, 10, 15, 16, 21, 26, 31, 32], "1,84218421"),
    ([], "0"),
]


@pytest.mark.parametrize(("cpus", "mask"), MASKS)
def test_cpu_mask_str(cpus: list[int], mask: str) -> None:
    assert CpuSet(cpus).mask() == mask
    assert CpuSet.from_mask(mask) == CpuSet(cpus)
    nibbles = mask.replace(",", "")[::-1]
    assert all(int(nibbles[cpu // 4], 16) & 1 << cpu % 4 for cpu in cpus)


LISTS = [
    ("", []),
    ("2", [2]),
    ("3,5,6,7", [3, 5, 6, 7]),
    ("2-8", [2, 3, 4, 5, 6, 7, 8]),
    ("2-8,11-12", [2, 3, 4, 5, 6, 7, 8, 11, 12]),
    ("0-3,6,10-12,14", [0, 1, 2, 3, 6, 10, 11, 12, 14]),
    ("2,3,2", [2, 3]),
    ("0-5,3,4", [0, 1, 2, 3, 4, 5]),
    ("0-5,3-7", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("\n", []),
    (" 0-3,6\n", [0, 1, 2, 3, 6]),
    ("5-5", [5]),
    ("007", [7]),
    ("4095", [4095]),
]


@pytest.mark.parametrize(("text", "cpus"), LISTS)
def test_parse_cpu_str(text: str, cpus: list[int]) -> None:
    assert list(CpuSet.parse(text)) == cpus


def test_cpu_set_to_cpu_list() -> None:
    cpus = [0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 78, 91, 105]
    assert list(CpuSet.from_words(CpuSet(cpus).words(16))) == cpus


def test_cpu_list_to_int_vector() -> None:
    assert list(CpuSet([2, 0, 1])) == [0, 1, 2]


def test_cpu_map_empty() -> None:
    assert not CpuSet()
    assert CpuSet([0])
    assert not CpuSet([0]) - CpuSet([0])
    assert CpuSet([111])


def test_wrapped_cpu_list() -> None:
    """Each slot of a u64 array is 64 CPUs, in both directions."""
    for slot in range(8):
        array = [0] * 8
        array[slot] = 1 << 2
        assert list(CpuSet.from_words(array)) == [2 + 64 * slot]
        assert CpuSet([2 + 64 * slot]).words(8) == tuple(array)


# Each form reads back, and is the kernel's.


def test_every_form_reads_back_as_the_same_set(rng: Random) -> None:
    for sample in samples(rng):
        cpus = CpuSet(sample)
        assert CpuSet.parse(str(cpus)) == cpus
        assert CpuSet.from_mask(cpus.mask()) == cpus
        assert CpuSet.from_words(cpus.words(MAX_CPUS // 64)) == cpus
        assert eval(repr(cpus)) == cpus


def test_algebra_agrees_with_pythons_sets(rng: Random) -> None:
    everything = samples(rng)
    for one, other in zip(everything, reversed(everything), strict=True):
        a, b = CpuSet(one), CpuSet(other)
        assert set(a | b) == one | other
        assert set(a & b) == one & other
        assert set(a - b) == one - other
        assert set(a ^ b) == one ^ other
        assert (a <= b, a & b <= b, b <= a | b) == (one <= other, True, True)
        assert a.isdisjoint(b) == one.isdisjoint(other)
        assert (len(a), list(a), bool(a)) == (len(one), sorted(one), bool(one))


@pytest.mark.parametrize("text", ["", "0", "0-1", "0-3,6", "63-64,66", "4095"])
def test_str_is_the_canonical_cpulist(text: str) -> None:
    assert str(CpuSet.parse(text)) == text


def test_the_kernel_prints_the_same_list_and_mask() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    allowed = CpuSet(os.sched_getaffinity(0))
    assert str(allowed) == status["Cpus_allowed_list"].strip()
    assert CpuSet.parse(status["Cpus_allowed_list"]) == allowed
    assert CpuSet.from_mask(status["Cpus_allowed"]) == allowed
    assert allowed.mask() == status["Cpus_allowed"].strip().lstrip("0,")


def test_a_cpu_set_is_a_value() -> None:
    cpus = CpuSet.parse("0-3,6")
    with pytest.raises(FrozenInstanceError):
        cpus.bits = 0  # type: ignore[misc]
    assert {cpus: "found"}[CpuSet([6, 3, 2, 1, 0])] == "found"
    assert cpus != CpuSet([0])
    assert pickle.loads(pickle.dumps(cpus)) == copy.deepcopy(cpus) == cpus


def test_membership_takes_any_integer_and_only_integers() -> None:
    assert 6 in CpuSet([6])
    assert -1 not in CpuSet([0, 6])
    assert 1 << 40 not in CpuSet([6])
    with pytest.raises(TypeError):
        "6" in CpuSet([6])  # type: ignore[operator]  # noqa: B015


def test_the_examples_in_the_documentation_are_true() -> None:
    assert doctest.testmod(cpuset) == doctest.TestResults(failed=0, attempted=2)


# Refused input, and the messages.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0-x", '"x" is not a CPU number'),
        ("all", '"all" is not a CPU number'),
        ("+1", '"+1" is not a CPU number'),
        ("1_0", '"1_0" is not a CPU number'),
        ("\u0661", '"\u0661" is not a CPU number'),
        ("0, 1", '" 1" is not a CPU number'),
        ("0 1", '"0 1" is not a CPU number'),
        ("0-31:2/8", '"31:2/8" is not a CPU number'),
        ("1-2-3", '"2-3" is not a CPU number'),
        ("-", '"-" is not a CPU number'),
        ("1-", '"1-" has no end'),
        ("-1", '"-1" is negative'),
        ("1--2", '"-2" is negative'),
        ("7-3", '"7-3" runs backwards'),
        ("1,,2", "an entry is empty"),
        ("1,", "an entry is empty"),
        ("4096", '"4096" is too large, the highest CPU number is 4095'),
        ("0-4096", '"4096" is too large, the highest CPU number is 4095'),
        ("9" * 5000, f'"{"9" * 5000}" is too large, the highest CPU number is 4095'),
    ],
)
def test_a_bad_list_is_refused_with_its_token_and_a_hint(text: str, reason: str) -> None:
    with pytest.raises(CpuListError) as caught:
        CpuSet.parse(text)
    hint = "write CPUs as numbers and ranges, for example 0-3,6"
    assert str(caught.value) == f'bad CPU list "{text}": {reason}\n{hint}'
    assert (caught.value.text, caught.value.reason) == (text, reason)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, GhostError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a group is empty"),
        ("1,", "a group is empty"),
        ("1,xyz", '"xyz" is not hexadecimal'),
        ("0x1", '"0x1" is not hexadecimal'),
        ("-1", '"-1" is not hexadecimal'),
        ("1ffffffff", '"1ffffffff" has more than 8 digits'),
        ("1" + ",00000000" * 128, "there is no such CPU"),
    ],
)
def test_a_bad_mask_is_refused(text: str, reason: str) -> None:
    with pytest.raises(CpuListError, match=re.escape(reason)):
        CpuSet.from_mask(text)


@pytest.mark.parametrize("cpu", [-1, MAX_CPUS])
def test_a_number_no_cpu_has_is_refused(cpu: int) -> None:
    with pytest.raises(CpuListError, match=f'"{cpu}": there is no such CPU\n.* from 0 to 4095'):
        CpuSet([0, cpu])
    with pytest.raises(CpuListError, match="negative" if cpu < 0 else '"4096"'):
        CpuSet.from_bits(cpu if cpu < 0 else 1 << cpu)


@pytest.mark.parametrize("word", [-1, 1 << 64])
def test_a_word_that_is_not_a_u64_is_refused(word: int) -> None:
    with pytest.raises(CpuListError, match="it is not a u64"):
        CpuSet.from_words([0, word])


def test_words_never_drop_a_cpu() -> None:
    assert CpuSet([63]).words(1) == (1 << 63,)
    with pytest.raises(CpuListError, match=r'"0,64": 1 u64 words cannot hold it\nmake room for 2'):
        CpuSet([0, 64]).words(1)


def test_an_empty_set_has_no_first_cpu() -> None:
    with pytest.raises(ValueError, match="no first CPU"):
        _ = CpuSet().first

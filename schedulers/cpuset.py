# SPDX-License-Identifier: Apache-2.0
"""Sets of CPUs, in each form the kernel writes them: cpulist, hex mask and u64 words.

    >>> cpus = CpuSet.parse("0-3,6")
    >>> str(cpus - CpuSet([1])), cpus.mask(), cpus.words(1)
    ('0,2-3,6', '4f', (79,))

ghOSt's ``CpuList`` (lib/topology.h) is a bitmap changed in place and tied to one topology; a CpuSet is a
value: it never changes, compares and hashes by content, and is right on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index
from string import hexdigits
from typing import SupportsIndex

from ..loaders.errors import GhostError

# More than any machine has, and few enough that a mistyped number does not become a huge bitmap.
MAX_CPUS = 4096

_NUMBERS = f"CPU numbers go from 0 to {MAX_CPUS - 1}"
_LISTS = "write CPUs as numbers and ranges, for example 0-3,6"
_MASKS = "write masks as the kernel does, in groups of 8 hex digits, for example 1,ffffffff"
_WORDS = "pass unsigned 64-bit words, CPU 0 in the lowest bit of the first"


class CpuListError(GhostError, ValueError):
    """``text`` is not a set of CPUs, for ``reason``."""

    def __init__(self, what: str, text: str, reason: str, hint: str) -> None:
        # The hint is part of the message: callers may catch this as a ValueError.
        super().__init__(f'bad {what} "{text}": {reason}\n{hint}')
        self.text = text
        self.reason = reason


@dataclass(frozen=True, slots=True, init=False, repr=False)
class CpuSet:
    """An immutable set of CPU numbers, 0 to 4095, in ascending order.

    ``bits`` has bit n set for CPU n. ``<=`` is "is a subset of". Raises CpuListError.
    """

    bits: int

    def __init__(self, cpus: Iterable[SupportsIndex] = ()) -> None:
        bits = 0
        for cpu in map(index, cpus):
            if not 0 <= cpu < MAX_CPUS:
                raise _no_such_cpu(cpu)
            bits |= 1 << cpu
        object.__setattr__(self, "bits", bits)

    @classmethod
    def from_bits(cls, bits: int) -> CpuSet:
        """The CPUs whose bits are set in ``bits``; CpuListError when it is negative or too wide."""
        if bits < 0:
            raise CpuListError("CPU bitmap", hex(bits), "it is negative", _NUMBERS)
        if bits >> MAX_CPUS:
            raise _no_such_cpu(bits.bit_length() - 1)
        cpus = cls()
        object.__setattr__(cpus, "bits", bits)
        return cpus

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """The CPUs of a kernel cpulist such as ``0-3,6``; duplicates and overlaps are fine.

        Whitespace around the list is dropped and no text is no CPUs, as sysfs writes them.
        """
        entries = text.strip().split(",") if text.strip() else []
        bits = 0
        try:
            for entry in entries:
                bits |= _entry_bits(entry)
        except ValueError as error:
            raise CpuListError("CPU list", text, str(error), _LISTS) from None
        return cls.from_bits(bits)

    @classmethod
    def from_mask(cls, text: str) -> CpuSet:
        """The CPUs of a kernel mask such as ``1,ffffffff``; leading zeros are fine."""
        bits = 0
        for group in text.strip().split(","):
            if not group:
                raise CpuListError("CPU mask", text, "a group is empty", _MASKS)
            if not set(group) <= set(hexdigits):
                raise CpuListError("CPU mask", text, f'"{group}" is not hexadecimal', _MASKS)
            if len(group) > 8:
                raise CpuListError("CPU mask", text, f'"{group}" has more than 8 digits', _MASKS)
            bits = bits << 32 | int(group, 16)
        return cls.from_bits(bits)

    @classmethod
    def from_words(cls, words: Iterable[int]) -> CpuSet:
        """The CPUs of a u64 array, which is how BPF maps and ``cpu_set_t`` hold them."""
        bits = 0
        for position, word in enumerate(words):
            if not 0 <= word < 1 << 64:
                raise CpuListError("CPU word", hex(word), "it is not a u64", _WORDS)
            bits |= word << 64 * position
        return cls.from_bits(bits)

    def words(self, count: int) -> tuple[int, ...]:
        """The set as ``count`` u64 words, CPU 0 in the lowest bit of the first; CpuListError if too few."""
        needed = -(-self.bits.bit_length() // 64)
        if needed > count:
            reason = f"{count} u64 words cannot hold it"
            raise CpuListError("CPU set", str(self), reason, f"make room for {needed}")
        return tuple(self.bits >> 64 * position & (1 << 64) - 1 for position in range(count))

    def mask(self) -> str:
        """The kernel's hex mask: a comma every 8 digits from the right, no leading zeros, ``0`` if empty."""
        groups = max(1, -(-self.bits.bit_length() // 32))
        top, *rest = (self.bits >> 32 * group & 0xFFFFFFFF for group in reversed(range(groups)))
        return ",".join([f"{top:x}", *(f"{group:08x}" for group in rest)])

    def __str__(self) -> str:
        """The canonical cpulist, byte for byte what the kernel prints (``%*pbl``)."""
        return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in self._ranges())

    def __repr__(self) -> str:
        return f"CpuSet.parse({str(self)!r})"

    def _ranges(self) -> Iterator[tuple[int, int]]:
        bits, cpu = self.bits, 0
        while bits:
            gap = (bits & -bits).bit_length() - 1
            bits >>= gap
            run = (~bits & bits + 1).bit_length() - 1
            bits >>= run
            yield cpu + gap, cpu + gap + run - 1
            cpu += gap + run

    @property
    def first(self) -> int:
        """The lowest CPU; ValueError if there is none."""
        if not self.bits:
            raise ValueError("an empty CPU set has no first CPU")
        return (self.bits & -self.bits).bit_length() - 1

    def __iter__(self) -> Iterator[int]:
        for low, high in self._ranges():
            yield from range(low, high + 1)

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __contains__(self, cpu: SupportsIndex) -> bool:
        return (number := index(cpu)) >= 0 and bool(self.bits >> number & 1)

    def __or__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self.bits | other.bits)

    def __and__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self.bits & other.bits)

    def __sub__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self.bits & ~other.bits)

    def __xor__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self.bits ^ other.bits)

    def __le__(self, other: CpuSet) -> bool:
        return not self.bits & ~other.bits

    def isdisjoint(self, other: CpuSet) -> bool:
        """True when no CPU is in both."""
        return not self.bits & other.bits


def _no_such_cpu(cpu: int) -> CpuListError:
    return CpuListError("CPU number", str(cpu), "there is no such CPU", _NUMBERS)


def _entry_bits(entry: str) -> int:
    """The bitmap of one cpulist entry, ``6`` or ``0-3``; ValueError says what is wrong with it."""
    if not entry:
        raise ValueError("an entry is empty")
    dash = entry.find("-", 1)  # not at 0, so that "-1" is told to be negative
    if dash < 0:
        return 1 << _number(entry)
    if entry.endswith("-"):
        raise ValueError(f'"{entry}" has no end')
    low, high = _number(entry[:dash]), _number(entry[dash + 1 :])
    if low > high:
        raise ValueError(f'"{entry}" runs backwards')
    return (1 << high + 1) - (1 << low)


def _number(token: str) -> int:
    # int() alone would let "+1", "1_0", " 1" and Arabic digits pass.
    if not (token.isascii() and token.isdigit()):
        negative = token.startswith("-") and token[1:].isdigit()
        raise ValueError(f'"{token}" is {"negative" if negative else "not a CPU number"}')
    digits = token.lstrip("0") or "0"
    # The length first: int() refuses thousands of digits with a message of its own.
    if len(digits) > len(str(MAX_CPUS)) or int(digits) >= MAX_CPUS:
        raise ValueError(f'"{token}" is too large, the highest CPU number is {MAX_CPUS - 1}')
    return int(digits)

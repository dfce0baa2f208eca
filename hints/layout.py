# SPDX-License-Identifier: Apache-2.0
"""bpf/hints.h as Python has it: what is in a table, and what its numbers mean."""

from __future__ import annotations

import struct
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple

from ..loaders import abi
from ..loaders.source import BPF_DIR

#: Where a C compiler finds ghostbpf_hints.h.
INCLUDE = Path(__file__).resolve().parent

_ffi: Any = abi.load(BPF_DIR / "hints.h")
_lib: Any = _ffi.dlopen(None)

VERSION: int = _lib.HINTS_VERSION
RECORD: int = _lib.HINTS_RECORD_BYTES
SLOTS_PER_RECORD: int = _lib.HINTS_SLOTS_PER_RECORD
CLASS_ENTRY: int = _lib.HINTS_CLASS_ENTRY
assert _ffi.sizeof("union hint_record") == RECORD

#: Offsets in the header, in units of u64.
LAST, RESCAN, MEMBERS = (_ffi.offsetof("struct hints_header", name) // 8 for name in ("last", "rescan", "members"))


class ItemFlags(IntFlag):
    """What is so about a scheduling item."""

    RUNNABLE = _lib.HINT_RUNNABLE


class ClassFlags(IntFlag):
    """What is so about a work class."""

    ONE_SHOT = _lib.HINT_ONE_SHOT
    REPEATING = _lib.HINT_REPEATING


class Header(NamedTuple):
    """A table's header; see ``struct hints_header`` in bpf/hints.h."""

    version: int
    slots: int
    classes: int
    items: int
    last: int
    rescan: int
    members: int

    @property
    def first_class(self) -> int:
        """The record of work class 0; header and stream come before it."""
        return 1 + self.slots // SLOTS_PER_RECORD

    @property
    def first_item(self) -> int:
        """The record of item 0."""
        return self.first_class + self.classes

    @property
    def records(self) -> int:
        """How many records the whole table has."""
        return self.first_item + self.items


class Item(NamedTuple):
    """A scheduling item: what its ``owner``, a process, says of task ``tid``. Times in ns of CLOCK_MONOTONIC.

    ``tid`` is 0 where the item is not in use; ``deadline_ns`` 0 where there is none.
    """

    owner: int
    tid: int
    work_class: int
    flags: ItemFlags
    deadline_ns: int
    updated_ns: int

    @classmethod
    def checked(cls, fields: tuple[int, ...], classes: int) -> Item:
        """What ``fields`` say, of which there may be anything: an application's mistakes must not end an agent."""
        owner, tid, work_class, flags, *times = fields
        return cls(owner, tid, work_class if work_class < classes else 0, ItemFlags(flags & ItemFlags.RUNNABLE), *times)

    @property
    def runnable(self) -> bool:
        """Whether the task has work to do."""
        return bool(self.flags & ItemFlags.RUNNABLE)


class WorkClass(NamedTuple):
    """A work class: what items have in common; without ``flags`` it is not in use.

    ``exectime_ns`` is how long a piece of work takes, as a first guess; ``period_ns`` how often a repeating one comes.
    """

    owner: int
    flags: ClassFlags
    qos: int
    exectime_ns: int
    period_ns: int

    @classmethod
    def checked(cls, fields: tuple[int, ...]) -> WorkClass:
        """What ``fields`` say; where they make no sense, that of a class not in use."""
        owner, flags, *rest = fields
        period_ns = rest[-1]
        if flags == ClassFlags.ONE_SHOT or (flags == ClassFlags.REPEATING and period_ns):
            return cls(owner, ClassFlags(flags), *rest)
        return cls(owner, ClassFlags(0), 0, 0, 0)

    @property
    def one_shot(self) -> bool:
        """Whether the application says each time that there is work, and by when."""
        return bool(self.flags & ClassFlags.ONE_SHOT)

    @property
    def repeating(self) -> bool:
        """Whether there is work every period."""
        return bool(self.flags & ClassFlags.REPEATING)


def _format(name: str, fields: tuple[str, ...]) -> struct.Struct:
    there = tuple(field for field, _ in _ffi.typeof(f"struct {name}").fields)
    assert there == fields, f"struct {name} has {there}"
    return struct.Struct("=" + abi.struct_format(_ffi, f"struct {name}"))


HEADER = _format("hints_header", Header._fields)
ITEM = _format("hint_item", ("seq", *Item._fields))
CLASS = _format("hint_class", ("seq", *WorkClass._fields))

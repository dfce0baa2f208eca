# SPDX-License-Identifier: Apache-2.0
"""The structs and constants of bpf/hints.h in Python: the contents of a table."""

from __future__ import annotations

import struct
from enum import IntFlag
from pathlib import Path
from typing import Any, NamedTuple

from ..loaders import abi
from ..loaders.source import BPF_DIR

#: The directory of ghostbpf_hints.h, for a C compiler.
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
    """Flags of a scheduling item."""

    RUNNABLE = _lib.HINT_RUNNABLE


class ClassFlags(IntFlag):
    """Flags of a work class."""

    ONE_SHOT = _lib.HINT_ONE_SHOT
    REPEATING = _lib.HINT_REPEATING


# A class has at most one of the flags, so == does. The operators of an enum are Python code, and cost as much as the
# rest of a decision.
_ONE_SHOT, _REPEATING = int(ClassFlags.ONE_SHOT), int(ClassFlags.REPEATING)


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
        """The record of work class 0, after header and stream."""
        return 1 + self.slots // SLOTS_PER_RECORD

    @property
    def first_item(self) -> int:
        """The record of item 0."""
        return self.first_class + self.classes

    @property
    def records(self) -> int:
        """The number of records of the table."""
        return self.first_item + self.items

    def describes(self, records: int) -> bool:
        """Whether this is the header of a table of ``records`` records; an application can write it at any time."""
        whole = self.slots % SLOTS_PER_RECORD == 0 and self.slots and self.classes and self.items
        return bool(self.version == VERSION and whole and self.records == records)


class Item(NamedTuple):
    """A scheduling item: the hints of process ``owner`` about task ``tid``. Times are in ns of CLOCK_MONOTONIC.

    ``tid`` is 0 in an unused item; ``deadline_ns`` is 0 without a deadline.
    """

    owner: int
    tid: int
    work_class: int
    flags: ItemFlags
    deadline_ns: int
    updated_ns: int

    @classmethod
    def checked(cls, fields: tuple[int, ...], classes: int) -> Item:
        """An item of untrusted ``fields``: an application's mistakes must not end an agent."""
        owner, tid, work_class, flags, *times = fields
        return cls(owner, tid, work_class if work_class < classes else 0, ItemFlags(flags & ItemFlags.RUNNABLE), *times)

    @property
    def runnable(self) -> bool:
        """Whether the task has work to do."""
        return bool(self.flags & ItemFlags.RUNNABLE)


class WorkClass(NamedTuple):
    """A work class: the common properties of items; an unused class has no ``flags``.

    ``exectime_ns`` is the expected run time of a job, ``period_ns`` the period of a repeating class.
    """

    owner: int
    flags: ClassFlags
    qos: int
    exectime_ns: int
    period_ns: int

    @classmethod
    def checked(cls, fields: tuple[int, ...]) -> WorkClass:
        """A class of untrusted ``fields``; an unused class if they are invalid."""
        owner, flags, *rest = fields
        period_ns = rest[-1]
        if flags == ClassFlags.ONE_SHOT or (flags == ClassFlags.REPEATING and period_ns):
            return cls(owner, ClassFlags(flags), *rest)
        return cls(owner, ClassFlags(0), 0, 0, 0)

    @property
    def one_shot(self) -> bool:
        """Whether the application announces each job with its deadline."""
        return self.flags == _ONE_SHOT

    @property
    def repeating(self) -> bool:
        """Whether there is a job every period."""
        return self.flags == _REPEATING


def _format(name: str, fields: tuple[str, ...]) -> struct.Struct:
    members = tuple(member for member, _ in _ffi.typeof(f"struct {name}").fields)
    assert members == fields, f"struct {name} has {members}"
    return struct.Struct("=" + abi.struct_format(_ffi, f"struct {name}"))


HEADER = _format("hints_header", Header._fields)
ITEM = _format("hint_item", ("seq", *Item._fields))
CLASS = _format("hint_class", ("seq", *WorkClass._fields))

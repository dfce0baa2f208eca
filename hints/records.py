# SPDX-License-Identifier: Apache-2.0
"""Records that one process writes while others read them, each under a sequence lock of its own.

All that this takes are loads and stores of aligned words, which a ``memoryview`` makes in one piece; ``struct`` does
not, and is used for nothing but what the lock guards.
"""

from __future__ import annotations

import os
import struct
from typing import Any

from ..loaders.errors import GhostError
from ..loaders.membarrier import fence
from .layout import RECORD

_SEQ_MASK = 0xFFFFFFFF
_WORDS = RECORD // 4
#: How often to look again while a record is being written; its owner may be dead, or wait for our CPU.
_PATIENCE = 100


class NotOwner(GhostError):
    """``index`` of the items, or of the work classes, is written by another process, ``owner``."""

    def __init__(self, what: str, index: int, owner: int) -> None:
        super().__init__(f"{what} {index} is process {owner}'s", hint="take one that is free, or have its owner let go")
        self.index, self.owner = index, owner


class Records:
    """``count`` records from the ``first`` of ``memory`` on; ``what`` they are.

    Each begins with its seq, its owner, and what is 0 where it is not in use.
    """

    def __init__(self, what: str, memory: memoryview, first: int, count: int, fields: struct.Struct) -> None:
        self._what, self._count, self._fields = what, count, fields
        self._memory = memory[first * RECORD : (first + count) * RECORD]
        self._words = self._memory.cast("I")
        self._guarded = struct.Struct("=" + fields.format.removeprefix("=II"))

    def __len__(self) -> int:
        return self._count

    @property
    def seqs(self) -> memoryview:
        """The seq of each record."""
        return self._words[::_WORDS]

    def read(self, index: int) -> tuple[Any, ...] | None:
        """A consistent copy of one record without its seq; None where there is none to be had."""
        at = self._at(index)
        for _ in range(_PATIENCE):
            seq = self._words[at]
            if seq & 1:
                continue
            fence()
            _, *fields = self._fields.unpack_from(self._memory, index * RECORD)
            fence()
            if self._words[at] == seq:
                return tuple(fields)
        return None

    def check_owner(self, index: int) -> None:
        """Raise NotOwner where the record is in use, and its owner another process that is alive."""
        _, owner, used = self._words[self._at(index) :][:3]
        if used and owner != os.getpid() and _is_alive(owner):
            raise NotOwner(self._what, index, owner)

    def write(self, index: int, *fields: int) -> int:
        """Become the owner of one record and store ``fields`` behind seq and owner; its seq from then on.

        Raises ValueError, and leaves the record as it is, where one does not fit.
        """
        at, start = self._at(index), index * RECORD + 8
        try:
            data = self._guarded.pack(*fields)
        except struct.error as error:
            raise ValueError(f"{self._what} {index}: {error}") from None
        self._words[at + 1] = os.getpid()
        fence()
        seq = (self._words[at] + 1 | 1) & _SEQ_MASK  # odd already where the owner before died meanwhile
        self._words[at] = seq
        fence()
        self._memory[start : start + len(data)] = data
        fence()
        self._words[at] = seq = seq + 1 & _SEQ_MASK
        fence()
        return seq

    def release(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.release()

    def _at(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"there is no {self._what} {index}, only 0 to {self._count - 1}")
        return index * _WORDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

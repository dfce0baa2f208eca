# SPDX-License-Identifier: Apache-2.0
"""Records that one process writes and others read, each with its own sequence lock.

A ``memoryview`` loads and stores aligned words in one piece. ``struct`` does not, and accesses only what the lock
guards.
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
#: How often to retry while a record is being written: its owner may have died, or wait for this CPU.
_READ_ATTEMPTS = 100


class NotOwner(GhostError):
    """Item or work class ``index`` belongs to another process, ``owner``."""

    def __init__(self, what: str, index: int, owner: int) -> None:
        super().__init__(
            f"{what} {index} belongs to process {owner}", hint="use a free one, or have its owner free this one"
        )
        self.index, self.owner = index, owner


class Records:
    """``count`` records of ``memory``, from record ``first`` on; ``what`` names them in messages.

    Each starts with its seq, its owner, and a word that is 0 in an unused record.
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
        """A consistent copy of one record without its seq; None if it was being written at each attempt."""
        at = self._at(index)
        for _ in range(_READ_ATTEMPTS):
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
        """Raise NotOwner if the record is in use and its owner is another living process."""
        _, owner, used = self._words[self._at(index) :][:3]
        if used and owner != os.getpid() and _is_alive(owner):
            raise NotOwner(self._what, index, owner)

    def write(self, index: int, *fields: int) -> int:
        """Become the owner of one record, store ``fields`` after seq and owner, and return the new seq.

        Raises ValueError, and changes nothing, if a field does not fit.
        """
        at, start = self._at(index), index * RECORD + 8
        try:
            data = self._guarded.pack(*fields)
        except struct.error as error:
            raise ValueError(f"{self._what} {index}: {error}") from None
        self._words[at + 1] = os.getpid()
        fence()
        seq = (self._words[at] + 1 | 1) & _SEQ_MASK  # already odd if its previous owner died while writing
        self._words[at] = seq
        fence()
        self._memory[start : start + len(data)] = data
        fence()
        self._words[at] = seq = seq + 1 & _SEQ_MASK
        fence()
        return seq

    def release(self) -> None:
        """Release the memory views."""
        self._words.release()
        self._memory.release()

    def _at(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"no {self._what} {index}: the table has 0 to {self._count - 1}")
        return index * _WORDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

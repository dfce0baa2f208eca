# SPDX-License-Identifier: Apache-2.0
"""A hostile process that may write the table of hints of an enclave, and writes anything."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from random import Random

from ghostbpf.hints.layout import CLASS, HEADER, ITEM, RECORD, Header
from ghostbpf.hints.table import CLASSES, ITEMS
from ghostbpf.loaders.maps import Map

#: The items of the victim: the first ones.
_VICTIMS_ITEMS = 4


def scribble(path: Path, choose: Random, victim: int, times: int) -> None:
    """Change the table at ``path``, if there is one, so many times at random, against its protocol.

    Task ``victim`` gets hints that may mean something: a hint may park a task, so other tasks get bytes alone.
    """
    if not path.exists():
        return
    with Map.open(path) as table, mmap.mmap(table.fd, RECORD * table.definition.max_entries) as memory:
        for _ in range(times):
            _change(memory, choose, victim)


def _change(memory: mmap.mmap, choose: Random, victim: int) -> None:
    """Any bytes anywhere, any header, any class, and an item of ``victim`` with any deadline."""
    size = choose.randrange(1, RECORD)
    at = choose.randrange(len(memory) - size)
    memory[at : at + size] = choose.randbytes(size)
    HEADER.pack_into(memory, 0, *Header(*(choose.randrange(1 << 32) for _ in Header._fields)))
    items = len(memory) - RECORD * ITEMS
    number, seq, ns = choose.randrange(CLASSES), choose.randrange(1 << 32), choose.randrange(1 << 64)
    at = items - RECORD * (CLASSES - number)
    CLASS.pack_into(memory, at, seq, os.getpid(), choose.randrange(3), seq, ns, ns)
    deadline, now = choose.choice((0, 1, time.monotonic_ns(), ns)), time.monotonic_ns()
    at = items + RECORD * choose.randrange(_VICTIMS_ITEMS)
    ITEM.pack_into(memory, at, seq, os.getpid(), victim, number, choose.randrange(2), deadline, now)

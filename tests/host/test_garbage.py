# SPDX-License-Identifier: Apache-2.0
"""When an agent collects garbage: soon if it idles, and also if it never idles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from ghostbpf.schedulers.userspace import garbage
from ghostbpf.schedulers.userspace.garbage import Garbage


class Cycle:
    """Refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock: the time is its one element. The fixture enables the collector again afterwards."""
    now = [1000.0]
    monkeypatch.setattr(garbage.time, "monotonic", lambda: now[0])
    yield now
    gc.unfreeze()
    gc.enable()


def test_garbage_is_collected_although_the_agent_never_idles(clock: list[float]) -> None:
    one = Garbage()
    assert not gc.isenabled()
    made = weakref.ref(Cycle())
    assert not one.collect(idle=False)
    assert made() is not None
    clock[0] += 1.0
    assert one.collect(idle=False)
    assert made() is None


def test_garbage_is_collected_sooner_if_the_agent_idles(clock: list[float]) -> None:
    one = Garbage()
    made = weakref.ref(Cycle())
    clock[0] += 0.25
    assert not one.collect(idle=False)
    assert one.collect(idle=True)
    assert made() is None
    assert not one.collect(idle=True)


def test_busy_agent_spends_a_small_share_of_its_time_on_garbage(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, collected = Garbage(), []

    def collect() -> int:
        clock[0] += 0.0125
        collected.append(clock[0])
        return 0

    monkeypatch.setattr(garbage.gc, "collect", collect)
    began = clock[0]
    while clock[0] < began + 60:
        clock[0] += 0.25
        one.collect(idle=False)
    assert 60 / 5.5 - 1 < len(collected) <= 60 / 5 + 1

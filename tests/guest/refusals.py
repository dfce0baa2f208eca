# SPDX-License-Identifier: Apache-2.0
"""Watches every agent of every process for transactions that are refused again and again.

A refused transaction is correct if the task's state has changed since the decision: the agent then gets a message of
it. Refusals therefore keep pace with messages. An agent with many refusals and hardly a message or a completed
transaction commits the same transaction in an endless loop.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ghostbpf.loaders import libc
from ghostbpf.loaders.errors import GhostError
from ghostbpf.loaders.maps import Map, MmapArray
from ghostbpf.schedulers import core

#: The length of a window: refusals within one slow turn are no loop.
WINDOW_S = 1.0
#: An agent is reported from LEAST refusals in a window on, if they are TIMES as many as its messages and commits.
LEAST, TIMES = 50, 10

_SAMPLE_S = 0.25


@dataclass(frozen=True)
class _Sample:
    at: float
    failed: int
    progress: int  # messages read and transactions completed


class Refusals:
    """A process on ``cpu`` that samples the counters of all channels.

    A thread would delay those of the test; another CPU would be taken from an enclave's tasks.
    """

    def __init__(self, cpu: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_watch, args=(far, cpu), daemon=True)
        self._process.start()
        far.close()

    def report(self) -> list[str]:
        """The refused agents since the last call: one line for each."""
        self._pipe.send(None)
        found: list[str] = self._pipe.recv()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _watch(pipe: Connection, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    libc.set_death_signal(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    samples: dict[tuple[int, int, int], deque[_Sample]] = {}
    found: dict[tuple[int, int, int], str] = {}
    while True:
        is_asked = pipe.poll(_SAMPLE_S)
        with contextlib.suppress(OSError, GhostError):  # of an enclave that is being created or destroyed
            _sample(samples, found)
        if is_asked:
            pipe.recv()
            pipe.send(list(found.values()))
            samples.clear()
            found.clear()


def _sample(samples: dict[tuple[int, int, int], deque[_Sample]], found: dict[tuple[int, int, int], str]) -> None:
    for directory in core.ROOT.glob("enclave_*"):
        enclave = int(directory.name.partition("_")[2])
        with contextlib.suppress(OSError, GhostError):
            channels = MmapArray(Map.open(directory / "agent/channels"), core.ffi(), "struct channel")
            for number, channel in enumerate(channels):
                if not channel.tid:
                    continue
                agent = (enclave, number, int(channel.since_ns))
                now = _Sample(time.monotonic(), int(channel.failed), int(channel.messages + channel.committed))
                window = samples.setdefault(agent, deque())
                window.append(now)
                while len(window) > 2 and now.at - window[1].at >= WINDOW_S:
                    window.popleft()
                failed, progress = now.failed - window[0].failed, now.progress - window[0].progress
                if now.at - window[0].at >= WINDOW_S and failed >= max(LEAST, TIMES * progress):
                    found[agent] = (
                        f"agent {channel.tid} of enclave {enclave} ({core.text(channel.policy)}): {failed} refused "
                        f"transactions within {now.at - window[0].at:.1f} s, with {progress} messages and commits"
                    )

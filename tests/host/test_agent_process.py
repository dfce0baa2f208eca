# SPDX-License-Identifier: Apache-2.0
"""The process of an agent, as the loader that starts it sees it."""

from __future__ import annotations

from collections.abc import Callable

from ghostbpf.schedulers.registry import POLICIES


def test_ended_agent_leaves_no_descriptor_open(open_fds: Callable[[], dict[int, str]]) -> None:
    before = open_fds()
    agent = POLICIES["fifo_centralized"].parse().start_agent()
    assert agent is not None
    assert agent.alive
    agent.end()
    assert not agent.alive
    assert open_fds() == before

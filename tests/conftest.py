# SPDX-License-Identifier: Apache-2.0
"""The seed of both tiers: all randomness in a test comes from it, through the fixture ``rng`` or through hypothesis."""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        metavar="N",
        help="seed of everything random in the tests; to repeat a failure, run the test with the seed of the header",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {seed_of(config)} (to repeat a failure: pytest --seed {seed_of(config)} TEST)"


def seed_of(config: pytest.Config) -> int:
    """The seed of this run; 0 where neither the command line nor the tier has set one."""
    return config.getoption("--seed") or 0


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend on the seed and on the test alone, not on the tests that ran before it."""
    return random.Random(f"{seed_of(request.config)} {request.node.nodeid}")

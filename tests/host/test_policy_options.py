# SPDX-License-Identifier: Apache-2.0
"""Options of policies: parsed once, into one object."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.policy import OptionError, PolicyOptions
from ghostbpf.schedulers.registry import POLICIES

BIFF = POLICIES["biff"]


def test_option_left_out_has_its_default() -> None:
    assert dict(BIFF.parse().values) == {"slice_ns": 50_000_000}
    assert dict(BIFF.parse({"slice": "20ms"}).values) == {"slice_ns": 20_000_000}


@pytest.mark.parametrize(
    ("texts", "option", "message"),
    [
        ({"slice": "soon"}, "slice", 'bad duration "soon"'),
        ({"slices": "20ms"}, None, "biff has no option slices: it has slice"),
    ],
)
def test_error_names_the_option(texts: dict[str, str], option: str | None, message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        BIFF.parse(texts)
    assert error.value.option == option


@pytest.mark.parametrize(
    ("texts", "field", "value"),
    [
        ({"fastpath": "idle"}, "fastpath", 1),
        ({"fastpath": "on"}, "fastpath", 1),
        ({"fastpath": "off"}, "fastpath", 0),
        ({"fastpath": "no"}, "fastpath", 0),
        ({"spin": "on"}, "spin", 1),
        ({"spin": "True"}, "spin", 1),
        ({"spin": "0"}, "spin", 0),
    ],
)
def test_choice_accepts_any_word_for_yes_and_no(texts: dict[str, str], field: str, value: int) -> None:
    assert POLICIES["fifo_centralized"].parse(texts).values[field] == value


def test_choice_refuses_other_words() -> None:
    with pytest.raises(OptionError, match='"busy": write idle or off'):
        POLICIES["fifo_centralized"].parse({"fastpath": "busy"})


def test_policy_alone_stands_for_its_defaults() -> None:
    options = BIFF.parse({"slice": "20ms"})
    assert PolicyOptions.of(options) is options
    assert PolicyOptions.of(BIFF) == BIFF.parse()


def test_replace_leaves_the_original_as_it_is() -> None:
    options = POLICIES["fifo_centralized"].parse()
    changed = options.replace(ring_bytes=1 << 20)
    assert changed.values["ring_bytes"] == 1 << 20
    assert "ring_bytes" not in options.values
    assert changed.policy is options.policy

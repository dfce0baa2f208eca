# SPDX-License-Identifier: Apache-2.0
"""How a change of an enclave's CPUs is written."""

from __future__ import annotations

import pytest
from ghostbpf.schedulers.cpuset import CpuListError, CpuSet
from ghostbpf.schedulers.resize import parse


@pytest.mark.parametrize(
    ("text", "result"),
    [("2-5", "2-5"), ("+4", "1-2,4"), ("+2,6-7", "1-2,6-7"), ("-2", "1"), ("-1-2", ""), ("", ""), ("1-2", "1-2")],
)
def test_list_replaces_a_sign_adds_or_removes(text: str, result: str) -> None:
    assert str(parse(text, CpuSet.parse("1-2"))) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-2-3", 'bad CPU list "-2-3": CPU 3 is not there\nchoose from 1-2'),
        ("+", 'bad CPU list "+": no CPU follows "+"'),
        ("-", 'bad CPU list "-": no CPU follows "-"'),
        ("++4", 'bad CPU list "+4": "+4" is not a CPU number'),
        ("--2", 'bad CPU list "-2": "-2" is negative'),
        ("+4,-2", 'bad CPU list "4,-2": "-2" is negative'),
        ("all", '"all" is not a CPU number'),
    ],
)
def test_wrong_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(CpuListError) as caught:
        parse(text, CpuSet.parse("1-2"))
    assert message in str(caught.value)

# SPDX-License-Identifier: Apache-2.0
"""A Transaction is a named tuple, whichever half of the runtime makes it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ghostbpf.schedulers.userspace import HEAD, Task, Transaction

TASK = Task(1)


@pytest.mark.parametrize(
    ("given", "named", "fields"),
    [
        ((TASK, 1), {}, (TASK, 1, 0, 0)),
        ((TASK, 1, 5), {}, (TASK, 1, 5, 0)),
        ((TASK, 1, 5, HEAD), {}, (TASK, 1, 5, HEAD)),
        ((None, 1), {"flags": HEAD}, (None, 1, 0, HEAD)),
        ((TASK,), {"slice_ns": 5, "cpu": 1}, (TASK, 1, 5, 0)),
    ],
)
def test_transaction_has_its_fields(given: Any, named: dict[str, int], fields: tuple[Any, ...]) -> None:
    made = Transaction(*given, **named)
    assert made == fields
    assert (made.task, made.cpu, made.slice_ns, made.flags) == fields
    assert type(made) is Transaction
    assert made._replace(cpu=3) == (fields[0], 3, *fields[2:])
    assert type(copy.copy(made)) is Transaction
    assert repr(made).startswith("Transaction(task=")


@pytest.mark.parametrize(
    ("given", "named"),
    [((), {}), ((TASK,), {}), ((TASK, 1, 2, 3, 4), {}), ((TASK, 1), {"cpus": 1}), ((TASK, 1), {"cpu": 1})],
)
def test_transaction_of_other_fields_is_an_error(given: Any, named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Transaction(*given, **named)

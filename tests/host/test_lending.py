# SPDX-License-Identifier: Apache-2.0
"""What an enclave lends and borrows, as a value and as the bits that the core reads."""

from __future__ import annotations

from itertools import product

import pytest
from ghostbpf.schedulers.lending import Lending


def test_bits_mean_what_was_set() -> None:
    every = [Lending(*values) for values in product((False, True), (False, True), ("now", "tick"))]
    assert [Lending.from_bits(one.bits) for one in every] == every
    assert len({one.bits for one in every}) == 8
    assert Lending().bits == 0


def test_what_is_not_given_stays() -> None:
    assert Lending(lend=True, reclaim="tick").replace(None, True, None) == Lending(True, True, "tick")
    assert Lending(lend=True, borrow=True).replace(False, None, "tick") == Lending(False, True, "tick")


def test_bad_reclaim_names_the_choices() -> None:
    with pytest.raises(ValueError, match='bad reclaim "soon": now or tick'):
        Lending().replace(None, None, "soon")

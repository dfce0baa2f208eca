# SPDX-License-Identifier: Apache-2.0
"""Compiles the core, its layers and every policy into the cache: ``python3 -m ghostbpf.tools.compile_all``."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable

from ..loaders.errors import GhostError
from ..loaders.object import Object
from ..schedulers import core, hierarchy_layer, lending
from ..schedulers.registry import POLICIES


def main() -> int:
    """Compile what is not in the cache, on all CPUs."""
    with multiprocessing.get_context("fork").Pool() as pool:
        errors = [error for error in pool.imap(_compile, range(len(_calls()))) if error]
    print(*errors, sep="\n", end="\n" if errors else "", file=sys.stderr)
    return 1 if errors else 0


def _calls() -> list[Callable[[], Object]]:
    """One call for each object; policies with agents share theirs."""
    policies = {(policy.source, *policy.defines.items()): policy.compile for policy in POLICIES.values()}
    return [core.compiled, *policies.values(), hierarchy_layer.compiled, lending.compiled]


def _compile(number: int) -> str | None:
    try:
        _calls()[number]()
    except GhostError as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())

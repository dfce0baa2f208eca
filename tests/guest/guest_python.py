# SPDX-License-Identifier: Apache-2.0
"""Libraries for the guest's Python that Debian 13 does not have, or has too old: `make build/guest-python`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PLACE = Path(__file__).parents[2] / "build" / "guest-python"

needed = pytest.mark.skipif(not _PLACE.is_dir(), reason="no libraries for the guest's Python (make build/guest-python)")


def environment() -> dict[str, str]:
    """The environment of a Python program that finds these libraries before the guest's own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(_PLACE), os.environ.get("PYTHONPATH"))))}

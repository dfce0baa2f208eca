# SPDX-License-Identifier: Apache-2.0
"""The version of ghostbpf. pyproject.toml is its only source."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def version() -> str:
    """Return the version of the installed package or, if none is installed, of the checkout.

    A guest (``ghostbpf vm``) imports the checkout from its path, without package metadata.
    """
    try:
        return installed("ghostbpf")
    except PackageNotFoundError:
        return str(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]["version"])

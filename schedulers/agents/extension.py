# SPDX-License-Identifier: Apache-2.0
"""The native half of the agent runtime: an optional extension that replaces classes of the same name.

The Python classes are the reference, and do the same without it. GHOSTBPF_NATIVE=off selects them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TypeVar

#: The version of native/native.h that this code works with.
VERSION = 5
_NAME = f"{__package__}._native"

T = TypeVar("T", bound=type)


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or None and why it is not used."""
    if os.environ.get("GHOSTBPF_NATIVE", "on") == "off":
        return None, "GHOSTBPF_NATIVE=off"
    if importlib.util.find_spec(_NAME) is None:
        return None, "not built"
    try:
        found = importlib.import_module(_NAME)
    except ImportError as error:
        return None, f"does not load: {error}"
    version = getattr(found, "VERSION", None)
    if version != VERSION:
        return None, f"stale: version {version}, not {VERSION}"
    return found, ""


#: The extension, or None; and why it is not used.
native, missing = _load()
if missing.startswith(("does not load", "stale")):
    print(
        f"warning: agents are slower: their native half is not used ({missing})\n  try: build it again: make setup",
        file=sys.stderr,
    )


def or_native(python: T) -> T:
    """Class decorator: where there is the extension, its class of the same name takes this one's place."""
    if native is None:
        return python
    members = {"__doc__": python.__doc__, "__module__": python.__module__, "python": python}
    return type(python)(python.__name__, (getattr(native, python.__name__),), members)


def in_python(kind: T) -> T:
    """The class in Python that ``kind`` is or replaces."""
    return vars(kind).get("python", kind)  # type: ignore[no-any-return]

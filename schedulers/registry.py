# SPDX-License-Identifier: Apache-2.0
"""Every policy there is, by name: those that come with ghostbpf, and those of installed packages.

A package offers its own by an entry point of the group ``ghostbpf.policies`` that is a ``Policy``, or a class of
``schedulers.userspace.AgentPolicy``. A class of the latter kind may also be in any file.
"""

from __future__ import annotations

import runpy
import traceback
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .agents import AgentPolicySpec
from .biff import BIFF
from .cfs_bpf import CFS_BPF
from .errors import NoPolicyInFile
from .policy import Policy
from .rr import RR
from .userspace import CFS, EDF, FIFO_CENTRALIZED, FIFO_PER_CPU, SHINJUKU, SOL, AgentPolicy, spec_of

GROUP = "ghostbpf.policies"


def _installed() -> dict[str, Policy]:
    found = {}
    for entry in entry_points(group=GROUP):
        try:
            policy = entry.load()
            if isinstance(policy, type) and issubclass(policy, AgentPolicy):
                policy = spec_of(policy)
            if not isinstance(policy, Policy):
                raise TypeError(f"{policy!r} is neither a Policy nor a class of AgentPolicy")
        except Exception as error:
            warnings.warn(f"policy {entry.name} of {entry.value} cannot be imported: {error}", stacklevel=2)
            continue
        found[policy.name] = policy
    return found


_OWN = (BIFF, RR, CFS_BPF, FIFO_CENTRALIZED, FIFO_PER_CPU, SOL, SHINJUKU, EDF, CFS)
POLICIES: dict[str, Policy] = _installed() | {policy.name: policy for policy in _OWN}


def is_file(name: str) -> bool:
    """Whether ``name`` is that of a file with a policy, FILE.py or FILE.py:CLASS, and not a policy's."""
    return Path(name.partition(":")[0]).suffix == ".py"


def from_file(name: str) -> AgentPolicySpec:
    """The policy that ``name``, FILE.py or FILE.py:CLASS, defines; raises NoPolicyInFile."""
    path, _, wanted = name.partition(":")
    found = {
        value.__name__: value
        for value in _run(path).values()
        if isinstance(value, type) and issubclass(value, AgentPolicy)
        if value.__module__ == Path(path).stem and hasattr(value, "name")
    }
    if wanted in found:
        return spec_of(found[wanted])
    choice = " or ".join(f"{path}:{known}" for known in found) or "a class of AgentPolicy with a name; see ghostbpf new"
    if wanted or len(found) != 1:
        raise NoPolicyInFile(path, f"it defines no {wanted}" if wanted else f"it defines {len(found)} policies", choice)
    return spec_of(*found.values())


def _run(path: str) -> dict[str, Any]:
    """The names that a Python file defines."""
    try:
        return runpy.run_path(path, run_name=Path(path).stem)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        at = f" (line {lines[-1]})" if lines else ""
        raise NoPolicyInFile(path, f"{type(error).__name__}: {error}{at}") from error

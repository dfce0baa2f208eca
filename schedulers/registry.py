# SPDX-License-Identifier: Apache-2.0
"""All policies by name: those of ghostbpf, and those of installed packages.

A package offers a policy by an entry point of the group ``ghostbpf.policies`` that is a ``Policy``, or a subclass of
``schedulers.userspace.AgentPolicy``. Such a subclass can also be in any Python file.
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
    policies = {}
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
        policies[policy.name] = policy
    return policies


_OWN = (BIFF, RR, CFS_BPF, FIFO_CENTRALIZED, FIFO_PER_CPU, SOL, SHINJUKU, EDF, CFS)
POLICIES: dict[str, Policy] = _installed() | {policy.name: policy for policy in _OWN}


def is_file(name: str) -> bool:
    """Whether ``name`` is FILE.py or FILE.py:CLASS, and not the name of a policy."""
    return Path(name.partition(":")[0]).suffix == ".py"


def from_file(name: str) -> AgentPolicySpec:
    """The policy that ``name``, FILE.py or FILE.py:CLASS, defines; raises NoPolicyInFile."""
    path, _, class_name = name.partition(":")
    classes = {
        value.__name__: value
        for value in _run(path).values()
        if isinstance(value, type) and issubclass(value, AgentPolicy)
        if value.__module__ == Path(path).stem and hasattr(value, "name")
    }
    if class_name in classes:
        return spec_of(classes[class_name])
    if class_name or len(classes) != 1:
        choice = " or ".join(f"{path}:{known}" for known in classes)
        reason = f"it defines no {class_name}" if class_name else f"it defines {len(classes)} policies"
        raise NoPolicyInFile(path, reason, choice or "a class of AgentPolicy with a name; see ghostbpf new")
    return spec_of(*classes.values())


def _run(path: str) -> dict[str, Any]:
    """The names that a Python file defines."""
    if not Path(path).is_file():
        raise NoPolicyInFile(path, "there is no such file")
    try:
        return runpy.run_path(path, run_name=Path(path).stem)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        at = f" (line {lines[-1]})" if lines else ""
        raise NoPolicyInFile(path, f"{type(error).__name__}: {error}{at}") from error

# SPDX-License-Identifier: Apache-2.0
"""All policies by name: those of ghostbpf, and those of installed packages.

A package offers a policy by an entry point of the group ``ghostbpf.policies`` that is a ``Policy``, or a subclass of
``schedulers.userspace.AgentPolicy``. Such a subclass can also be in any Python file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NoPolicyInFile
from .policy import Policy

if TYPE_CHECKING:
    from .agents import AgentPolicySpec

GROUP = "ghostbpf.policies"

_OWN = ("biff", "rr", "cfs_bpf", "chaos", "fifo_centralized", "fifo_per_cpu", "sol", "shinjuku", "edf", "cfs")


class _Policies(Mapping[str, Policy]):
    """Policies by name. One of ghostbpf is imported alone, and no installed package is searched for it."""

    def __getitem__(self, name: str) -> Policy:
        return _own(name) if name in _OWN else self._installed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._installed, *_OWN]))

    def __len__(self) -> int:
        return len({*self._installed, *_OWN})

    @cached_property
    def _installed(self) -> dict[str, Policy]:
        import warnings
        from importlib.metadata import entry_points

        from .userspace import AgentPolicy, spec_of

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


def _own(name: str) -> Policy:
    if name == "biff":
        from .biff import BIFF

        return BIFF
    if name == "rr":
        from .rr import RR

        return RR
    if name == "cfs_bpf":
        from .cfs_bpf import CFS_BPF

        return CFS_BPF
    if name == "chaos":
        from .chaos import CHAOS

        return CHAOS
    from . import userspace

    policy: Policy = getattr(userspace, name.upper())
    return policy


POLICIES: Mapping[str, Policy] = _Policies()


def is_file(name: str) -> bool:
    """Whether ``name`` is FILE.py or FILE.py:CLASS, and not the name of a policy."""
    return Path(name.partition(":")[0]).suffix == ".py"


def from_file(name: str) -> AgentPolicySpec:
    """The policy that ``name``, FILE.py or FILE.py:CLASS, defines; raises NoPolicyInFile."""
    from .userspace import AgentPolicy, spec_of

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
    import runpy
    import traceback

    if not Path(path).is_file():
        raise NoPolicyInFile(path, "there is no such file")
    try:
        return runpy.run_path(path, run_name=Path(path).stem)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        at = f" (line {lines[-1]})" if lines else ""
        raise NoPolicyInFile(path, f"{type(error).__name__}: {error}{at}") from error

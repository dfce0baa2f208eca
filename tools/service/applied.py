# SPDX-License-Identifier: Apache-2.0
"""Which options an enclave's policy was given: the kernel knows the policy's name, and its agent keeps the values.

A record in /run counts only for the enclave and the policy that it was written for: another command that replaces the
policy makes it void. Without a record, the options are unknown.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from ...loaders.errors import GhostError
from ...schedulers.enclave_view import EnclaveView
from .config import EnclaveConfig


@dataclass(frozen=True)
class Applied:
    """A policy that an enclave was given, as the file named it, and as people see it.

    ``created_ns`` and ``swaps`` say which policy of which enclave it is, once it is saved.
    """

    policy: str
    shown: str
    values: Mapping[str, int]
    fingerprint: str
    created_ns: int = 0
    swaps: int = 0

    @classmethod
    def of(cls, config: EnclaveConfig) -> Self:
        """What ``config`` gives its enclave."""
        return cls(config.policy, config.shown, dict(config.options.values), config.fingerprint)

    @classmethod
    def load(cls, enclave: EnclaveView) -> Self | None:
        """What ``enclave`` was given; None if that is unknown."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = cls(**json.loads(_path(enclave.id).read_text(encoding="utf-8")))
            if (found.created_ns, found.swaps) == (enclave.created_ns, enclave.swaps):
                return found
        return None

    def save(self, enclave: EnclaveView) -> None:
        """Record that ``enclave`` has this policy from now on. Raises GhostError."""
        record = replace(self, created_ns=enclave.created_ns, swaps=enclave.swaps)
        path = _path(enclave.id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(asdict(record)), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise GhostError(f"cannot write {path}: {error.strerror}", hint="run it with sudo") from None


def run_directory() -> Path:
    """Where the service and ``apply`` keep what ends with the boot; in a unit, systemd names it."""
    return Path(os.environ.get("RUNTIME_DIRECTORY") or "/run/ghostbpf")


def _path(id: int) -> Path:
    return run_directory() / f"enclave-{id}.json"

# SPDX-License-Identifier: Apache-2.0
"""One attached core for consecutive tests: attaching takes seconds in an emulated guest, and most tests need any core.

An enclave of CPU 0 alone keeps the core attached between tests. It has the highest id, so that the enclaves of a test
have the ids that they would have without it.
"""

from __future__ import annotations

import contextlib

from ghostbpf.schedulers import core
from ghostbpf.schedulers.cpuset import CpuSet
from ghostbpf.schedulers.enclave import Enclave, Enclaves
from ghostbpf.schedulers.registry import POLICIES


class SharedCore:
    """The enclave that keeps the core attached, while there is one."""

    def __init__(self, cpu: int) -> None:
        self.id = core.constant("MAX_ENCLAVES") - 1
        self._cpus = CpuSet((cpu,))
        self._stack = contextlib.ExitStack()
        self._enclave: Enclave | None = None

    @property
    def attached(self) -> bool:
        """Whether the enclave is there."""
        return self._enclave is not None and self._enclave.core.attached

    def attach(self) -> None:
        """Make the enclave, with a core, unless it is there."""
        if not self.attached:
            self.detach()
            biff = POLICIES["biff"].parse({})
            self._enclave = self._stack.enter_context(
                Enclaves.temporary(biff, self._cpus, id=self.id, start_agent=False)
            )

    def detach(self) -> None:
        """Destroy the enclave, if it is there, and with it a core that has no other."""
        self._enclave = None
        self._stack.close()

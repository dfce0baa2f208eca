# SPDX-License-Identifier: Apache-2.0
"""Objects that a with block closes at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """A context manager that calls close()."""

    def close(self) -> None:
        """Release the resources that this object holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

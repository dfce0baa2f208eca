# SPDX-License-Identifier: Apache-2.0
"""What has to be closed, and is at the end of a with block."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Base of classes that have a close()."""

    def close(self) -> None:
        """Let go of what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

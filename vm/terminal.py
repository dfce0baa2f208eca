# SPDX-License-Identifier: Apache-2.0
"""The host's terminal of a command in the guest: raw while the guest runs, so that all keys reach the command."""

from __future__ import annotations

import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Ctrl-], as in telnet, ends the guest; all other keys go to the command.
ESCAPE = b"\x1d"


@contextmanager
def raw(fd: int, resized: Callable[[os.terminal_size], None]) -> Iterator[None]:
    """Put the terminal `fd` into raw mode for the block, and call `resized` with each new size."""

    def on_resize(number: int, frame: FrameType | None) -> None:
        resized(os.get_terminal_size(fd))

    before = termios.tcgetattr(fd)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGWINCH, on_resize) if main else None
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        if main:
            signal.signal(signal.SIGWINCH, handler)

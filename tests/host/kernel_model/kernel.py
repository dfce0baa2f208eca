# SPDX-License-Identifier: Apache-2.0
"""The model as a whole, in steps."""

from __future__ import annotations

from .lending import Lending
from .programs import Programs


class Kernel(Lending, Programs):
    """The core's part of one enclave with agents, and the programs that agents call.

    Everything that takes time is a generator: at each ``yield``, another CPU may do anything. Names and order are those
    of the C code, so that a change there has one place here. The model leaves out slices, groups, spinning agents, and
    the rescue of tasks that an agent forgets: such a task never runs here, while the core runs it after 5 s.
    """

# SPDX-License-Identifier: Apache-2.0
"""Hints: applications tell the scheduler about their threads, in shared memory. docs/hints.md is the guide.

from ghostbpf.hints import Hints

hints = Hints.open()                                  # the table of the enclave that this process started in
hints.set_class(1, one_shot=True, qos=2, exectime_ns=500_000)
hints.set_item(7, tid=threading.get_native_id(), work_class=1, deadline_ns=time.monotonic_ns() + 10**7)
hints.set_runnable(7, False)
"""

from .access import admit
from .layout import INCLUDE, ClassFlags, Item, ItemFlags, WorkClass
from .records import NotOwner
from .table import ENVIRONMENT, Hints

__all__ = [
    "ENVIRONMENT",
    "INCLUDE",
    "ClassFlags",
    "Hints",
    "Item",
    "ItemFlags",
    "NotOwner",
    "WorkClass",
    "admit",
]

# SPDX-License-Identifier: Apache-2.0
"""Time in each DSQ; see bpf/tracers/dsqlat.bpf.c."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...loaders import kernel_types, sched_ext
from ...schedulers.core import constant
from .classes import ext_class
from .filters import By
from .tool import HistogramTool
from .tracer import Tracer

_CORE = "ghostbpf"
_FALLBACK = constant("FALLBACK_DSQ")
_NUMBERED = {constant(f"{name}_DSQS"): name for name in ("PENDING", "CPU", "VTIME")}


class TOOL(HistogramTool):
    """Prints a histogram for each dispatch queue (DSQ) and enclave, with any sched_ext scheduler."""

    NAME = "dsqlat"
    TRACES = "time in DSQs"
    BREAKS_DOWN = False

    def make(self) -> Tracer:
        sched_ext.status()  # raises KernelUnsupported where there is no sched_ext
        r = self.request
        return Tracer(self.NAME, r.filters, by=By.OTHER, unit_ns=r.unit_ns, constants=ext_class())

    def begin(self) -> None:
        super().begin()
        self._names = dsq_names()

    def named(self, which: int) -> tuple[str, str]:
        return "wait", ""

    def owner(self, id: int, names: Mapping[int, str], which: int) -> dict[str, Any]:
        return {"dsq": self._dsq(id), "enclave": which}

    def _dsq(self, id: int) -> str:
        local_on = self._names["LOCAL_ON"]
        if id & local_on == local_on:
            return f"LOCAL_ON {id & 0xFFFFFFFF}"
        for name, value in self._names.items():
            if id == value:
                return name
        if sched_ext.status().ops == _CORE and (kind := _NUMBERED.get(id & ~0xFFFF)):
            return f"{kind} {id & 0xFFFF}"
        return f"{id:#x}"


def dsq_names() -> dict[str, int]:
    """Ids of DSQs by their names; "none" means that the task is in a queue of the scheduler's own."""
    ids = kernel_types.enum("scx_dsq_id_flags")
    names = {name: ids[f"SCX_DSQ_{name}"] for name in ("GLOBAL", "LOCAL", "LOCAL_ON", "INVALID")}
    names["none"] = names.pop("INVALID")
    return names | ({"FALLBACK": _FALLBACK} if sched_ext.status().ops == _CORE else {})

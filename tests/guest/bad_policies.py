# SPDX-License-Identifier: Apache-2.0
"""Policies in BPF that let tasks wait for ever."""

from __future__ import annotations

from pathlib import Path

from ghostbpf.schedulers.policy import Policy

#: By name, what ops.enqueue does with a task. None has an ops.dispatch, so the core's serves PENDING.
_ENQUEUE = {
    "drops": "",
    "misplaces": "scx_bpf_dsq_insert_vtime(p, VTIME_DSQ(0), SLICE_ENDLESS, 0, enq_flags);",
    "hoards": "scx_bpf_dsq_insert(p, PENDING, SLICE_ENDLESS, enq_flags);",
}

_SOURCE = """\
/* SPDX-License-Identifier: GPL-2.0-only */
#include "sched.bpf.h"

BPF_PROG({name}_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{{
	return prev;
}}

BPF_PROG({name}_enqueue, struct task_struct *p, u64 enq_flags)
{{
	{enqueue}
	return 0;
}}
"""


def bad_policy(directory: Path, name: str) -> Policy:
    """The policy that ``drops``, ``misplaces`` or ``hoards`` tasks; its source is written to ``directory``."""
    (directory / f"{name}.bpf.c").write_text(_SOURCE.format(name=name, enqueue=_ENQUEUE[name]))
    return Policy(name, "lets tasks wait for ever", directory=directory)

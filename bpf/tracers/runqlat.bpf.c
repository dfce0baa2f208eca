/* SPDX-License-Identifier: GPL-2.0-only */
/* Runqueue latency: how long tasks wait for a CPU, from runnable to running. */
#include "hist.bpf.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	wait_woken(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	wait_woken(p);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 since;

	wait_left(prev, preempt, prev_state);
	if (wait_ended(next, &since) && matches_cpu())
		record(0, next, bpf_ktime_get_ns() - since);
	return 0;
}

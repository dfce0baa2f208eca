/* SPDX-License-Identifier: GPL-2.0-only */
/* From runnable to running: how long tasks wait for a CPU. */
#define HISTS 1
#define TRACE_STATE
struct state {
	u64 since;
};
#include "wait.bpf.h"

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	if (!p->on_cpu)
		begin_wait(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	begin_wait(p);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 since;

	if (prev->pid && stays_runnable(preempt, prev_state))
		begin_wait(prev);
	if (end_wait(next, &since) && wanted_here())
		record(0, next, bpf_ktime_get_ns() - since);
	return 0;
}

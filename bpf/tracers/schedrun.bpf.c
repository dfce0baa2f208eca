/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedrun: how long tasks keep a CPU, by whether they were preempted or blocked.
 *
 * A run that began before the trace is left out. The tracer keeps one time per CPU.
 */
#define HISTS 3
#include "hist.bpf.h"
#include "run.bpf.h"
#include "trace.bpf.h"

enum { PREEMPTED, BLOCKED, ALL };

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 now = bpf_ktime_get_ns(), since = run_ended(prev, next, now), ran = now - since;

	if (!since || !prev->pid || !matches_cpu() || !matches(prev))
		return 0;
	if (LINK_CONSTANT(only_class) && (u64)prev->sched_class != LINK_CONSTANT(only_class))
		return 0;
	record(stays_runnable(prev, preempt, prev_state) ? PREEMPTED : BLOCKED, prev, ran);
	record(ALL, prev, ran);
	return 0;
}

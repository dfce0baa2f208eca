/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedclasstop: CPU time by scheduling class, per CPU.
 *
 * A task counts for the class that it is really in: by its class pointer for ext, by its priority (also an inherited
 * one) for deadline and real time, else by its policy. Only the migration threads are in the stop class.
 */
#include "run.bpf.h"
#include "schedclasstop.h"
#include "trace.bpf.h"

#define MAX_DL_PRIO 0
#define MAX_RT_PRIO 100
#define SCHED_RR 2
#define SCHED_BATCH 3
#define SCHED_IDLE 5

BPF_PERCPU_ARRAY(times, struct class_time, 1);

static u32 class_of(struct task_struct *p)
{
	u64 class = (u64)p->sched_class;

	if (!p->pid)
		return CLASS_IDLE_TASK;
	if (class == LINK_CONSTANT(ext_class))
		return CLASS_EXT;
	if (p->prio < MAX_DL_PRIO)
		return CLASS_DEADLINE;
	if (p->prio < MAX_RT_PRIO && is_stopper(p))
		return CLASS_STOP;
	if (p->prio < MAX_RT_PRIO)
		return p->policy == SCHED_RR ? CLASS_RR : CLASS_FIFO;
	return p->policy == SCHED_BATCH ? CLASS_BATCH : p->policy == SCHED_IDLE ? CLASS_SCHED_IDLE : CLASS_OTHER;
}

static u32 shown_class_of(struct task_struct *p)
{
	return matches_cpu() && matches(p) ? class_of(p) : CLASSES;
}

/* A task that had the CPU when the trace began, and keeps it, is in no switch: the first sample finds it. */
int perf_sample(struct bpf_perf_event_data *ctx)
{
	u32 zero = 0;
	struct task_struct *p = bpf_get_current_task_btf();
	struct class_time *time = times.lookup(&zero);
	struct run *run = runs.lookup(&zero);

	if (!time || !run || time->since)
		return 0;
	time->current = shown_class_of(p);
	time->since = bpf_ktime_get_ns();
	run_begins(run, p, time->since);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 now = bpf_ktime_get_ns(), since = run_ended(prev, next, now);
	struct class_time *time;
	u32 zero = 0, class = shown_class_of(prev);

	time = times.lookup(&zero);
	if (!time)
		return 0;
	if (since && class < CLASSES)
		time->ns[class] += now - since;
	time->since = now;
	time->current = shown_class_of(next);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runs: the time that a task has a CPU, from one switch of that CPU to the next.
 *
 * If a switch in between was missed, another task leaves the CPU than came on it, or the same task leaves it
 * for the second time. The run time of neither is known, so neither is recorded: it would be charged to the wrong task.
 *
 * A tracer may define RUNS_OF(p), the tasks whose missed runs count as unended or unannounced, before it includes this
 * file.
 */
#ifndef GHOSTBPF_RUN_BPF_H
#define GHOSTBPF_RUN_BPF_H

#include "trace.bpf.h"

#ifndef RUNS_OF
#define RUNS_OF(p) ((p)->pid && matches_cpu() && matches(p))
#endif

struct run {
	u64 since; /* 0 before the first switch */
	u64 task; /* the address of its task_struct */
	u64 switches; /* the task's switches when it came on the CPU */
	u64 counts; /* RUNS_OF(task) at that time */
};

BPF_PERCPU_ARRAY(runs, struct run, 1);

/* p is seen to have this CPU. */
static void run_begins(struct run *run, struct task_struct *p, u64 now)
{
	run->since = now;
	run->task = (u64)p;
	run->switches = switches_of(p);
	run->counts = RUNS_OF(p);
}

/* prev leaves this CPU for next. Return when prev came on it, or 0 if that is not known. */
static u64 run_ended(struct task_struct *prev, struct task_struct *next, u64 now)
{
	u32 zero = 0;
	struct run *run = runs.lookup(&zero);
	u64 since;

	if (!run)
		return 0;
	since = run->since;
	if (since && (run->task != (u64)prev || run->switches + 1 != switches_of(prev))) {
		count_missed(run->counts, RUNS_OF(prev));
		since = 0;
	}
	run_begins(run, next, now);
	return since;
}

#endif

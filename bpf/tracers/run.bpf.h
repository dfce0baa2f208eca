/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runs: the time that a task has a CPU, from one switch of that CPU to its next.
 *
 * Where a switch in between was missed, another task leaves the CPU than came on it, or the same one for the second
 * time. Neither's time is known then, and neither is counted: it would be charged to a task that did not have it.
 *
 * RUNS_OF(p) tells which tasks' runs are counted as unended or unannounced where they were missed.
 */
#ifndef GHOSTBPF_RUN_BPF_H
#define GHOSTBPF_RUN_BPF_H

#include "trace.bpf.h"

#ifndef RUNS_OF
#define RUNS_OF(p) ((p)->pid && wanted_here() && wanted(p))
#endif

struct run {
	u64 since; /* 0 before the first switch */
	u64 task; /* the address of its task_struct */
	u64 switches; /* of the task, as it came on */
	u64 counts; /* whether RUNS_OF had the task in it then */
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

/* prev leaves this CPU for next: since when it had it, 0 where that is not known. */
static u64 run_ended(struct task_struct *prev, struct task_struct *next, u64 now)
{
	u32 zero = 0;
	struct run *run = runs.lookup(&zero);
	u64 since;

	if (!run)
		return 0;
	since = run->since;
	if (since && (run->task != (u64)prev || run->switches + 1 != switches_of(prev))) {
		missed(run->counts, RUNS_OF(prev));
		since = 0;
	}
	run_begins(run, next, now);
	return since;
}

#endif

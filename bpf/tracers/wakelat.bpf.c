/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Wakeup latency of the tasks of one process tree, whatever class schedules them.
 *
 * User space marks the tree's root in the marks map; fork passes the mark on. A wait starts when a marked task is woken
 * or made, and when it is taken off a CPU while runnable; it ends when the task comes on a CPU.
 */
#include "buckets.bpf.h"
#include "wakelat.h"

BPF_TASK_STORAGE(marks, struct wakelat_mark);
BPF_PERCPU_ARRAY(waits, u64, WAKELAT_BUCKETS);
BPF_F_TABLE("array", u32, struct wakelat_totals, totals, 1, BPF_F_MMAPABLE);

static u64 switches_of(struct task_struct *p)
{
	return p->nvcsw + p->nivcsw;
}

static void begin_wait(struct task_struct *p)
{
	struct wakelat_mark *mark = marks.task_storage_get(p, 0, 0);

	if (!mark)
		return;
	mark->since = bpf_ktime_get_ns();
	mark->switches = switches_of(p);
}

static struct wakelat_totals *the_totals(void)
{
	u32 zero = 0;

	return totals.lookup(&zero);
}

BPF_PROG(wakelat_fork, struct task_struct *parent, struct task_struct *child)
{
	struct wakelat_totals *total = the_totals();

	if (!total || !marks.task_storage_get(parent, 0, 0))
		return 0;
	/* The kernel may refuse, for example while this CPU is in the midst of another such call. */
	if (!marks.task_storage_get(child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
		__sync_fetch_and_add(&total->unmarked, 1);
	__sync_fetch_and_add(&total->forks, 1);
	return 0;
}

BPF_PROG(wakelat_exit, struct task_struct *p)
{
	struct wakelat_totals *total = the_totals();

	if (total && marks.task_storage_get(p, 0, 0))
		__sync_fetch_and_add(&total->exits, 1);
	return 0;
}

BPF_PROG(wakelat_wakeup, struct task_struct *p)
{
	begin_wait(p);
	return 0;
}

BPF_PROG(wakelat_wakeup_new, struct task_struct *p)
{
	begin_wait(p);
	return 0;
}

BPF_PROG(wakelat_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	struct wakelat_totals *total = the_totals();
	struct wakelat_mark *mark;
	u32 bucket;
	u64 now, wait, *count;

	if (!prev_state)
		begin_wait(prev);
	mark = marks.task_storage_get(next, 0, 0);
	if (!mark)
		return 0;
	now = bpf_ktime_get_ns();
	if (total) {
		s64 gap = now - total->last_on;

		if (total->last_on && gap > 0 && gap > (s64)total->longest_gap_ns)
			total->longest_gap_ns = gap;
		if (gap > 0)
			total->last_on = now;
		__sync_fetch_and_add(&total->switches, 1);
	}
	/* A run that was missed has ended the wait. */
	if (mark->switches != switches_of(next))
		mark->since = 0;
	if (!mark->since)
		return 0;
	wait = now - mark->since;
	mark->since = 0;
	if (total && wait > total->longest_ns)
		total->longest_ns = wait;
	bucket = bucket_of(wait);
	count = waits.lookup(&bucket);
	if (count)
		*count += 1;
	return 0;
}

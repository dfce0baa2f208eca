/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How many tasks wait on each CPU, sampled.
 *
 * rq.nr_running counts the tasks of every class: also those of sched_ext, wherever their scheduler keeps them, on the
 * run queue of the CPU that they became runnable on. Every task, of whatever class, knows the fair part of its CPU's run
 * queue, and that knows the whole. (Offsets come from BTF: C cannot express how these structs are aligned.)
 */
#include "trace.bpf.h"
#include "runqlen.h"

BPF_PERCPU_ARRAY(counts, struct runqlen_counts, 1);

int perf_sample(struct bpf_perf_event_data *ctx)
{
	struct task_struct *current_task = bpf_get_current_task_btf();
	void *fair = current_task->se.cfs_rq, *rq = NULL;
	struct runqlen_counts *count;
	u32 zero = 0, waiting = 0, slot;

	count = counts.lookup(&zero);
	if (!count || !wanted_here())
		return 0;
	bpf_probe_read_kernel(&rq, sizeof(rq), fair + LINK_CONSTANT(cfs_rq_rq));
	bpf_probe_read_kernel(&waiting, sizeof(waiting), rq + LINK_CONSTANT(rq_nr_running));
	if (waiting && current_task->pid)
		waiting--; /* it runs; and where the CPU idles, those of sched_ext may wait even so */
	slot = waiting < RUNQLEN_MAX ? waiting : RUNQLEN_MAX - 1;
	/* LLVM bounds a copy of it where the verifier watches the other: let it not see that the mask does nothing. */
	asm volatile("" : "+r"(slot));
	count->samples[slot & (RUNQLEN_MAX - 1)]++;
	return 0;
}

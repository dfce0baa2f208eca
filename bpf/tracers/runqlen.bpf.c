/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How many tasks wait on each CPU, sampled.
 *
 * rq.nr_running counts the tasks of every class: also those of sched_ext, wherever their scheduler keeps them, on the
 * run queue of the CPU that they became runnable on. Every task, of whatever class, knows the fair part of its CPU's run
 * queue, and that knows the whole. (Offsets come from BTF: C cannot express how these structs are aligned.)
 *
 * Where only some tasks are wanted, the kernel has no such count: each task is followed from queue to queue.
 */
#define TRACE_STATE
struct state {
	u32 cpu_plus_1; /* whose queue it waits in; 0 while it does not */
};
#include "trace.bpf.h"
#include "runqlen.h"

BPF_PERCPU_ARRAY(counts, struct runqlen_counts, 1);
BPF_ARRAY(queues, u64, MAX_CPUS); /* wanted tasks that wait, by CPU */

static void add(u32 cpu, s64 more)
{
	u64 *queue = queues.lookup(&cpu);

	if (queue)
		__sync_fetch_and_add(queue, more);
}

static void leave(struct state *state)
{
	if (state->cpu_plus_1)
		add(state->cpu_plus_1 - 1, -1);
	state->cpu_plus_1 = 0;
}

static void join(struct task_struct *p, u32 cpu)
{
	struct state *state = find_state(p);

	if (state)
		leave(state);
	state = wanted(p) ? state_of(p) : NULL;
	if (!state)
		return;
	add(cpu, 1);
	state->cpu_plus_1 = cpu + 1;
}

BPF_PROG(filtered_sched_wakeup, struct task_struct *p)
{
	if (!p->on_cpu)
		join(p, p->thread_info.cpu);
	return 0;
}

BPF_PROG(filtered_sched_wakeup_new, struct task_struct *p)
{
	join(p, p->thread_info.cpu);
	return 0;
}

BPF_PROG(filtered_sched_migrate_task, struct task_struct *p, int to)
{
	struct state *state = find_state(p);

	if (state && state->cpu_plus_1)
		join(p, to);
	return 0;
}

BPF_PROG(filtered_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	struct state *state = find_state(next);

	if (prev->pid && stays_runnable(prev, preempt, prev_state)) {
		join(prev, bpf_get_smp_processor_id());
	} else {
		/* It waits still where the switch to it was missed. */
		struct state *sleeper = find_state(prev);

		if (sleeper)
			leave(sleeper);
	}
	if (state)
		leave(state);
	return 0;
}

static u32 waiting_here(void)
{
	struct task_struct *current_task = bpf_get_current_task_btf();
	void *fair = current_task->se.cfs_rq, *rq = NULL;
	u32 running = 0;

	bpf_probe_read_kernel(&rq, sizeof(rq), fair + LINK_CONSTANT(cfs_rq_rq));
	bpf_probe_read_kernel(&running, sizeof(running), rq + LINK_CONSTANT(rq_nr_running));
	/* One of them runs; but where the CPU idles, those of sched_ext may wait even so. */
	return running && current_task->pid ? running - 1 : running;
}

static u32 wanted_waiting_here(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	u64 *queue = queues.lookup(&cpu);

	return queue ? *queue : 0;
}

int perf_sample(struct bpf_perf_event_data *ctx)
{
	struct runqlen_counts *count;
	u32 zero = 0, waiting, slot;

	count = counts.lookup(&zero);
	if (!count || !wanted_here())
		return 0;
	waiting = LINK_CONSTANT(filtered) ? wanted_waiting_here() : waiting_here();
	slot = waiting < RUNQLEN_MAX ? waiting : RUNQLEN_MAX - 1;
	/* LLVM bounds a copy of it where the verifier watches the other: let it not see that the mask does nothing. */
	asm volatile("" : "+r"(slot));
	count->samples[slot & (RUNQLEN_MAX - 1)]++;
	return 0;
}

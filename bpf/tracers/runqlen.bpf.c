/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runqueue length: how many tasks wait on each CPU, sampled.
 *
 * rq.nr_running counts the tasks of every class. A sched_ext task counts for the CPU on which it became runnable,
 * wherever its scheduler keeps it. A task of any class has a pointer to its CPU's fair runqueue, and that has one to
 * the rq. (Offsets come from BTF: C cannot express the alignment of these structs.)
 *
 * With a filter the kernel has no such count: the tracer follows each matching task from queue to queue.
 */
#include "abi.h"

#define TRACE_STATE
struct state {
	u32 cpu_plus_1; /* 1 + the CPU for which the task waits; 0 while it does not wait */
};
#include "runqlen.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"

BPF_PERCPU_ARRAY(counts, struct runqlen_counts, 1);
BPF_ARRAY(queues, u64, MAX_CPUS); /* matching tasks that wait, by CPU */

static void add(u32 cpu, s64 change)
{
	u64 *queue = queues.lookup(&cpu);

	if (queue)
		__sync_fetch_and_add(queue, change);
}

static void leave_queue(struct state *state)
{
	if (state->cpu_plus_1)
		add(state->cpu_plus_1 - 1, -1);
	state->cpu_plus_1 = 0;
}

static void join_queue(struct task_struct *p, u32 cpu)
{
	struct state *state = find_state(p);

	if (state)
		leave_queue(state);
	state = matches(p) ? state_of(p) : NULL;
	if (!state)
		return;
	add(cpu, 1);
	state->cpu_plus_1 = cpu + 1;
}

BPF_PROG(filtered_sched_wakeup, struct task_struct *p)
{
	if (!p->on_cpu)
		join_queue(p, p->thread_info.cpu);
	return 0;
}

BPF_PROG(filtered_sched_wakeup_new, struct task_struct *p)
{
	join_queue(p, p->thread_info.cpu);
	return 0;
}

BPF_PROG(filtered_sched_migrate_task, struct task_struct *p, int to)
{
	struct state *state = find_state(p);

	if (state && state->cpu_plus_1)
		join_queue(p, to);
	return 0;
}

BPF_PROG(filtered_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	struct state *state = find_state(next);

	if (prev->pid && stays_runnable(prev, preempt, prev_state)) {
		join_queue(prev, bpf_get_smp_processor_id());
	} else {
		/* If the switch onto the CPU was missed, the task still counts as waiting. */
		struct state *sleeper = find_state(prev);

		if (sleeper)
			leave_queue(sleeper);
	}
	if (state)
		leave_queue(state);
	return 0;
}

static u32 waiting_here(void)
{
	struct task_struct *current_task = bpf_get_current_task_btf();
	void *fair = current_task->se.cfs_rq, *rq = NULL;
	u32 running = 0;

	bpf_probe_read_kernel(&rq, sizeof(rq), fair + LINK_CONSTANT(cfs_rq_rq));
	bpf_probe_read_kernel(&running, sizeof(running), rq + LINK_CONSTANT(rq_nr_running));
	/* One of the tasks runs, unless the CPU idles; sched_ext tasks may wait even then. */
	return running && current_task->pid ? running - 1 : running;
}

static u32 matching_waiting_here(void)
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
	if (!count || !matches_cpu())
		return 0;
	waiting = LINK_CONSTANT(filtered) ? matching_waiting_here() : waiting_here();
	slot = waiting < RUNQLEN_MAX ? waiting : RUNQLEN_MAX - 1;
	/* LLVM would drop the mask as redundant, and with it the bound that the verifier sees. */
	asm volatile("" : "+r"(slot));
	count->samples[slot & (RUNQLEN_MAX - 1)]++;
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long tasks wait in each sched_ext DSQ, whatever scheduler is attached.
 *
 * A wait begins when a task is put on a DSQ because it woke or was taken off its CPU, and ends when it runs. The DSQ is
 * the one that it was put on then: schedulers move tasks on, from a shared DSQ to a CPU's own, when that CPU is
 * about to run them. One that is on no DSQ by then is held by the scheduler itself, in a queue of its own. Of our own
 * core it is known when an agent committed a task: from then on it waits in the queue of a CPU.
 */
#define HISTS 1
#include "trace.h"

#define TRACE_STATE
struct state {
	struct span wait;
	u64 dsq;
};
#define SPANS_OF(p) ((u64)(p)->sched_class == LINK_CONSTANT(ext_class) && wanted(p))
#include "wait.bpf.h"

static int begins(struct task_struct *p, struct state *state)
{
	struct scx_dispatch_q *dsq;

	if (!state)
		return 0;
	dsq = p->scx.dsq;
	state->dsq = dsq ? dsq->id : p->scx.ddsp_dsq_id;
	return 0;
}

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	return begins(p, wait_woken(p));
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	return begins(p, wait_woken(p));
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 since, now = bpf_ktime_get_ns();
	struct state *state;
	struct task_ctx *t;

	begins(prev, wait_left(prev, preempt, prev_state));
	state = wait_ended(next, &since);
	if (!state || !wanted_here())
		return 0;
	t = task_ctx_of(next);
	if (t && t->committed && t->latched_at > since) {
		record_for((u64)CPU_DSQS | bpf_get_smp_processor_id(), enclave_of(next), next, now - t->latched_at);
		now = t->latched_at;
	}
	record_for(state->dsq, enclave_of(next), next, now - since);
	return 0;
}

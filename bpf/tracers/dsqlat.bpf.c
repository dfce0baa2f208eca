/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long tasks wait in each sched_ext DSQ, whatever scheduler is attached.
 *
 * A wait starts when a task is put on a DSQ because it woke or was taken off its CPU, and ends when it runs. It counts
 * for the DSQ that the task was put on first: schedulers move tasks from a shared DSQ to a CPU's own when that CPU is
 * about to run them. A task on no DSQ is held by the scheduler in a queue of its own. The core notes when an agent
 * commits a task: from then on the task waits on that CPU's own queue.
 */
#include "abi.h"
#include "trace.h"

#define TRACE_STATE
struct state {
	struct span wait;
	u64 dsq;
};
#define SPANS_OF(p) ((u64)(p)->sched_class == LINK_CONSTANT(ext_class) && matches(p))
#include "hist.bpf.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

static int note_dsq(struct task_struct *p, struct state *state)
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
	return note_dsq(p, wait_woken(p));
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	return note_dsq(p, wait_woken(p));
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 since, now = bpf_ktime_get_ns();
	struct state *state;
	struct task_ctx *t;

	note_dsq(prev, wait_left(prev, preempt, prev_state));
	state = wait_ended(next, &since);
	if (!state || !matches_cpu())
		return 0;
	t = task_ctx_of(next);
	if (t && t->committed && t->latched_at > since) {
		record_for((u64)CPU_DSQS | bpf_get_smp_processor_id(), enclave_of(next), next, now - t->latched_at);
		now = t->latched_at;
	}
	record_for(state->dsq, enclave_of(next), next, now - since);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The two parts of a wait: until a policy puts the task on a CPU's queue ("latches" it, in ghOSt's words), and from
 * there to the CPU.
 *
 * A policy latches a task in one of three ways:
 *
 *   - As the task wakes, on the local queue of an idle CPU: the task shows it right after.
 *   - On a CPU's own queue, as agents do: the core notes the time.
 *   - When a CPU asks for a task: the core notes when each CPU last did.
 */
#ifndef GHOSTBPF_LATCH_BPF_H
#define GHOSTBPF_LATCH_BPF_H

#include "abi.h"
#include "trace.h"

#define TRACE_STATE
struct state {
	struct span wait;
	u64 latched; /* when the task was put on a CPU's queue, if that was as it woke */
};
#include "task_state.bpf.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

/* The core's map; empty if no core is attached. */
BPF_F_TABLE("array", u32, struct cpu, cpus, MAX_CPUS, BPF_F_MMAPABLE);

static bool is_on_local_queue(struct task_struct *p)
{
#ifdef HAVE_scx_bpf_dsq_insert
	struct scx_dispatch_q *dsq = p->scx.dsq;

	return dsq && dsq->id == SCX_DSQ_LOCAL;
#else
	return false;
#endif
}

static void note_woken(struct task_struct *p)
{
	struct state *state = wait_woken(p);

	if (state)
		state->latched = is_on_local_queue(p) ? state->wait.since : 0;
}

static void note_left(struct task_struct *p, bool preempt, u32 prev_state)
{
	struct state *state = wait_left(p, preempt, prev_state);

	if (state)
		state->latched = 0;
}

/* When p, which has waited and just come on this CPU, was latched; 0 if it is in no enclave. */
static u64 latched_at(struct task_struct *p, struct state *state, u64 since, bool *by_agent)
{
	u32 here = bpf_get_smp_processor_id();
	struct cpu *cpu = cpus.lookup(&here);
	struct task_ctx *t = task_ctx_of(p);

	*by_agent = false;
	if (!enclave_of(p))
		return 0;
	if (state->latched)
		return state->latched;
	if (t && t->latched_at > since) {
		*by_agent = t->committed;
		return t->latched_at;
	}
	return cpu && cpu->dispatched_at > since ? cpu->dispatched_at : since;
}

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	note_woken(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	note_woken(p);
	return 0;
}

#endif

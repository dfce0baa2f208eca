/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long tasks keep a CPU, or how long they are off it.
 *
 * On: from one switch of a CPU to the next, so the tracer keeps one time per CPU. A run that began before the trace is
 * left out. Off: from leaving a CPU to coming on one, for whatever reason.
 */
#include "trace.h"

#define TRACE_STATE
struct state {
	struct span off;
};
#include "hist.bpf.h"
#include "run.bpf.h"
#include "span.bpf.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"

static int on_cpu(struct task_struct *prev, struct task_struct *next)
{
	u64 now = bpf_ktime_get_ns(), since = run_ended(prev, next, now);

	if (since && (prev->pid || LINK_CONSTANT(idle)) && matches_cpu() && matches(prev))
		record(0, prev, now - since);
	return 0;
}

static int off_cpu(struct task_struct *prev, struct task_struct *next)
{
	struct state *state;
	u64 since;

	if (prev->pid && matches(prev)) {
		state = state_of(prev);
		if (state)
			span_begin(&state->off, prev);
	}
	if (!next->pid)
		return 0;
	state = find_state(next);
	since = state ? span_end(&state->off, next) : 0;
	if (since && matches_cpu())
		record(0, next, bpf_ktime_get_ns() - since);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	return LINK_CONSTANT(off) ? off_cpu(prev, next) : on_cpu(prev, next);
}

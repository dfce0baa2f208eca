/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long tasks keep a CPU, or how long they are off it.
 *
 * On: from one switch of a CPU to its next, so that all that is kept is a time for each CPU. A run that had begun
 * before the trace is left out. Off: from leaving a CPU to coming on one, for whatever reason.
 */
#define HISTS 1
#define TRACE_STATE
struct state {
	u64 off_at;
};
#include "trace.bpf.h"

BPF_PERCPU_ARRAY(switched, u64, 1);

static int on_cpu(struct task_struct *prev)
{
	u64 now = bpf_ktime_get_ns(), ran;
	u32 zero = 0;
	u64 *at = switched.lookup(&zero);

	if (!at)
		return 0;
	ran = *at ? now - *at : 0;
	*at = now;
	if (ran && (prev->pid || LINK_CONSTANT(idle)) && wanted_here() && wanted(prev))
		record(0, prev, ran);
	return 0;
}

static int off_cpu(struct task_struct *prev, struct task_struct *next)
{
	struct state *state;
	u64 now = bpf_ktime_get_ns();

	if (prev->pid && wanted(prev)) {
		state = state_of(prev);
		if (state)
			state->off_at = now;
	}
	if (!next->pid)
		return 0;
	state = find_state(next);
	if (!state || !state->off_at)
		return 0;
	if (wanted_here())
		record(0, next, now - state->off_at);
	state->off_at = 0;
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	return LINK_CONSTANT(off) ? off_cpu(prev, next) : on_cpu(prev);
}

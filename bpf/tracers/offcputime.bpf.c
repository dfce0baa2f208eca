/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Off-CPU time: the stacks with which tasks leave the CPU, and how long they stay off it.
 *
 * The stack is taken as the task leaves, and charged when it comes back. A task that does not come back is not counted.
 */
#include "trace.h"

#define TRACE_STATE
struct state {
	struct span off;
	s32 kernel_stack;
	s32 user_stack;
};
#include "offcputime.h"
#include "span.bpf.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"

#ifndef STACKS
#define STACKS 16384
#endif

BPF_STACK_TRACE(stacks, STACKS);
BPF_HASH(times, struct off_key, struct off_time, 16384);

static void note_left(void *ctx, struct task_struct *p, u32 prev_state)
{
	struct state *state = state_of(p);

	if (!state)
		return;
	if (LINK_CONSTANT(state) && !(prev_state & LINK_CONSTANT(state))) {
		span_forget(&state->off);
		return;
	}
	span_begin(&state->off, p);
	state->kernel_stack = LINK_CONSTANT(user_only) ? -1 : stacks.get_stackid(ctx, 0);
	state->user_stack = LINK_CONSTANT(kernel_only) ? -1 : stacks.get_stackid(ctx, BPF_F_USER_STACK);
}

static void charge_stack(struct task_struct *p, struct state *state, u64 ns)
{
	struct off_key key = {};
	struct off_time *time, first = { .ns = ns, .count = 1 };

	key.tid = *(volatile s32 *)&p->pid; /* one load each: the verifier refuses one for both */
	key.tgid = p->tgid;
	key.kernel_stack = state->kernel_stack;
	key.user_stack = state->user_stack;
	bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), p->comm);
	time = times.lookup(&key);
	if (!time) {
		if (times.insert(&key, &first))
			count_dropped();
		return;
	}
	__sync_fetch_and_add(&time->ns, ns);
	__sync_fetch_and_add(&time->count, 1);
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	struct state *state;
	u64 since, off;

	if (prev->pid && matches(prev))
		note_left(ctx, prev, prev_state);
	if (!next->pid)
		return 0;
	state = find_state(next);
	since = state ? span_end(&state->off, next) : 0;
	off = bpf_ktime_get_ns() - since;
	if (since && off >= LINK_CONSTANT(min_ns) && off <= LINK_CONSTANT(max_ns) && matches_cpu())
		charge_stack(next, state, off);
	return 0;
}

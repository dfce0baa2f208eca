/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The least that an off-CPU tracer does at each switch, one part after the other: each function is attached alone.
 *
 * No filter, no check for missed switches, no task's name: what a tracer with these costs more is its own.
 */
BPF_STACK_TRACE(stacks, 16384);

struct key {
	u32 tid;
	s32 kernel_stack;
	s32 user_stack;
};

struct state {
	u64 since;
	s32 kernel_stack;
	s32 user_stack;
};

BPF_TASK_STORAGE(states, struct state);
BPF_HASH(times, struct key, u64, 16384);

BPF_PROG(nothing, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return 0;
}

BPF_PROG(kernel_stack, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	if (prev->pid)
		stacks.get_stackid(ctx, 0);
	return 0;
}

BPF_PROG(user_stack, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	if (prev->pid)
		stacks.get_stackid(ctx, BPF_F_USER_STACK);
	return 0;
}

BPF_PROG(both_stacks, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	if (prev->pid) {
		stacks.get_stackid(ctx, 0);
		stacks.get_stackid(ctx, BPF_F_USER_STACK);
	}
	return 0;
}

/* Both stacks, and the map accesses that a sum of times by stack needs. */
BPF_PROG(all_parts, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u64 now = bpf_ktime_get_ns(), *time, zero = 0;
	struct state *state;
	struct key key = {};

	if (prev->pid) {
		state = states.task_storage_get(prev, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (state) {
			state->since = now;
			state->kernel_stack = stacks.get_stackid(ctx, 0);
			state->user_stack = stacks.get_stackid(ctx, BPF_F_USER_STACK);
		}
	}
	state = next->pid ? states.task_storage_get(next, 0, 0) : NULL;
	if (!state || !state->since)
		return 0;
	key.tid = next->pid;
	key.kernel_stack = state->kernel_stack;
	key.user_stack = state->user_stack;
	time = times.lookup_or_try_init(&key, &zero);
	if (time)
		__sync_fetch_and_add(time, now - state->since);
	return 0;
}

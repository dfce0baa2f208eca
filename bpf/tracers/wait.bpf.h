/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waits for a CPU. One begins when a task is woken or made, and when it is taken off a CPU while it could go on; it
 * ends when it comes on one. A wakeup of a task that runs or waits already begins nothing.
 *
 * Before it includes this file a tracer defines TRACE_STATE and a struct state with a struct span wait. It may define
 * SPANS_OF(p) where it looks at some of the wanted tasks only.
 */
#ifndef GHOSTBPF_WAIT_BPF_H
#define GHOSTBPF_WAIT_BPF_H

#include "span.bpf.h"

/* p is woken, or was made: its state where it begins to wait, for what else is to be noted; else NULL. */
static struct state *wait_woken(struct task_struct *p)
{
	struct state *state;

	if (p->on_cpu || !SPANS_OF(p))
		return NULL;
	state = state_of(p);
	return state && span_begin(&state->wait, p) ? state : NULL;
}

/* p leaves its CPU: its state where it begins to wait, for what else is to be noted; else NULL. */
static struct state *wait_left(struct task_struct *p, bool preempt, u32 prev_state)
{
	struct state *state;

	if (!p->pid || !SPANS_OF(p))
		return NULL;
	state = state_of(p);
	if (!state)
		return NULL;
	if (stays_runnable(p, preempt, prev_state))
		return span_begin(&state->wait, p) ? state : NULL;
	span_none(&state->wait, p);
	return NULL;
}

/* p comes on this CPU: its state, and since when it has waited, where it has; else NULL. */
static struct state *wait_ended(struct task_struct *p, u64 *since)
{
	struct state *state;

	if (!p->pid)
		return NULL;
	state = find_state(p);
	if (!state)
		return NULL;
	*since = span_end(&state->wait, p);
	return *since ? state : NULL;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waits for a CPU. A wait starts when a task is woken or made, and when a runnable task is taken off its CPU; it ends
 * when the task comes on a CPU. A wakeup of a task that runs or waits already starts no wait.
 *
 * A tracer's own struct state (task_state.bpf.h) must have a struct span wait.
 */
#ifndef GHOSTBPF_WAIT_BPF_H
#define GHOSTBPF_WAIT_BPF_H

#include "span.bpf.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"

/* p is woken, or was made. Return its state if a wait starts, so that the tracer can add to it; else NULL. */
static struct state *wait_woken(struct task_struct *p)
{
	struct state *state;

	if (p->on_cpu || !SPANS_OF(p))
		return NULL;
	state = state_of(p);
	return state && span_begin(&state->wait, p) ? state : NULL;
}

/* p leaves its CPU. Return its state if a wait starts; else NULL. */
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

/* p comes on this CPU. Return its state, and in *since when its wait started; NULL if there was no wait. */
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

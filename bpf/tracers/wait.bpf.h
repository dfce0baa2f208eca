/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Waits for a CPU. One begins when a task is woken or made, and when it is taken off a CPU while it could go on; it
 * ends when it comes on one. A wakeup of a task that runs or waits already begins nothing.
 *
 * Before it includes this file a tracer defines TRACE_STATE and a struct state with u64 since: when the task began to
 * wait, 0 while it does not.
 */
#ifndef GHOSTBPF_WAIT_BPF_H
#define GHOSTBPF_WAIT_BPF_H

#include "trace.bpf.h"

/* Its state where p begins to wait now, for what else is to be noted; NULL where it waits already, or is not wanted. */
static struct state *begin_wait(struct task_struct *p)
{
	struct state *state;

	if (!wanted(p))
		return NULL;
	state = state_of(p);
	if (!state || state->since)
		return NULL;
	state->since = bpf_ktime_get_ns();
	return state;
}

/* Its state, and since when it has waited, where p has waited and comes on this CPU now; else NULL. */
static struct state *end_wait(struct task_struct *p, u64 *since)
{
	struct state *state;

	if (!p->pid)
		return NULL;
	state = find_state(p);
	if (!state || !state->since)
		return NULL;
	*since = state->since;
	state->since = 0;
	return state;
}

#endif

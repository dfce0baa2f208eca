/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a tracer keeps of each task: a struct state, zeroed at first.
 *
 * A tracer that needs more than the default defines TRACE_STATE and its own struct state before it includes this file.
 */
#ifndef GHOSTBPF_TASK_STATE_BPF_H
#define GHOSTBPF_TASK_STATE_BPF_H

#include "trace.bpf.h"
#include "trace.h"

#ifndef TRACE_STATE
#define TRACE_STATE
struct state {
	struct span wait;
};
#endif

BPF_TASK_STORAGE(states, struct state);

/* p's state; NULL if there is none. */
static struct state *find_state(struct task_struct *p)
{
	return states.task_storage_get(p, 0, 0);
}

/* p's state, made if there is none; NULL if memory is short. */
static struct state *state_of(struct task_struct *p)
{
	struct state *state = states.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!state)
		count_dropped();
	return state;
}

#endif

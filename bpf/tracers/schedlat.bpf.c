/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedlat: how long a task waits for its policy, and then for the CPU.
 *
 * Of a task in no enclave only the whole wait is recorded: no policy of an enclave decides about it.
 */
#define HISTS 3
#include "hist.bpf.h"
#include "latch.bpf.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

enum { TO_LATCHED, LATCHED_TO_RUN, TO_RUN };

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 now, since, latched;
	struct state *state;
	bool by_agent;

	note_left(prev, preempt, prev_state);
	state = wait_ended(next, &since);
	if (!state || !matches_cpu())
		return 0;
	now = bpf_ktime_get_ns();
	latched = latched_at(next, state, since, &by_agent);
	if (latched) {
		record(TO_LATCHED, next, latched - since);
		record(LATCHED_TO_RUN, next, now - latched);
	}
	record(TO_RUN, next, now - since);
	return 0;
}

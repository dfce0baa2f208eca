/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedghostidle: how long a CPU is idle before a policy latches a task for it.
 *
 * Only the first latch after an idle time counts that time; a latch on a busy CPU counts as 0.
 */
#define RUNS_OF(p) false /* idle times are no runs: a missed one is not counted */
#include "hist.bpf.h"
#include "latch.bpf.h"
#include "run.bpf.h"
#include "schedghostidle.h"
#include "trace.bpf.h"
#include "wait.bpf.h"

BPF_PERCPU_ARRAY(totals, struct idle_totals, 1);

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 latched, since, idle_since, had_cpu_since = run_ended(prev, next, bpf_ktime_get_ns());
	struct idle_totals *total;
	struct state *state;
	bool by_agent;
	u32 zero = 0;

	note_left(prev, preempt, prev_state);
	total = totals.lookup(&zero);
	if (!total)
		return 0;
	idle_since = prev->pid ? 0 : had_cpu_since;
	state = wait_ended(next, &since);
	if (!state || !matches_cpu())
		return 0;
	latched = latched_at(next, state, since, &by_agent);
	if (!latched)
		return 0;
	total->latches++;
	if (!by_agent)
		total->bpf_latches++;
	if (!by_agent && idle_since && latched > idle_since)
		total->idle_to_bpf_latches++;
	record(0, next, idle_since && latched > idle_since ? latched - idle_since : 0);
	return 0;
}

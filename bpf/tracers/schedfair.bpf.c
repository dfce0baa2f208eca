/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedfair: the CPU time that tasks got over what would have been their fair share.
 *
 * At any moment a task's fair share is (CPUs / tasks that run or could), and one CPU at most, so that few tasks on
 * many CPUs are not called unfair. It accrues from wakeup to block. Weights are not looked at: rows are by priority.
 */
#define TRACE_STATE
struct state {
	u64 window; /* the fair share's count when it woke, + 1; 0 while it sleeps */
	u64 ran; /* ns in this window */
	u64 on_at; /* when it came on the CPU it is on */
	u64 place_plus_1; /* of the last switch that was seen; 0 where none was */
};
#include "trace.bpf.h"
#include "schedfair.h"

BPF_F_TABLE("array", u32, struct fair_share, fair, 1, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(windows, u64, FAIR_PRIOS * FAIR_BINS);
/* Over the whole trace, by tid and start time: a tid may come again. */
BPF_HASH(totals, u64, struct fair_task, 65536);

/* Count the share up to now, then change the load. Whoever comes while another counts leaves the time to the next. */
static u64 share_now(s64 more)
{
	u32 zero = 0;
	struct fair_share *f = fair.lookup(&zero);
	u64 now = bpf_ktime_get_ns(), share;

	if (!f)
		return 0;
	if (!__sync_val_compare_and_swap(&f->busy, 0, 1)) {
		s64 load = f->load;
		u64 rate = 1000;

		if (load > 0 && LINK_CONSTANT(milli_cpus) < 1000 * load)
			rate = LINK_CONSTANT(milli_cpus) / load;
		if (f->at && now > f->at)
			f->share += rate * (now - f->at);
		if (now > f->at)
			f->at = now;
		f->busy = 0;
	}
	share = f->share;
	if (more)
		__sync_fetch_and_add(&f->load, more);
	return share;
}

/* The switches of a task have numbers without a gap: even as it leaves a CPU, odd as it comes on one. */
static u64 place_of(struct task_struct *p, bool comes_on)
{
	return 2 * switches_of(p) + comes_on;
}

/* p is seen after its switch of that place. If others were missed, its window holds a sleep, or lacks a run. */
static void drop_torn(struct task_struct *p, struct state *state, u64 place)
{
	bool is_torn = state->place_plus_1 && state->place_plus_1 != place + 1;

	state->place_plus_1 = place + 1;
	if (!is_torn)
		return;
	if (state->window)
		share_now(-1);
	if (wanted(p) && wanted_here())
		missed(state->window ? 1 : 0, state->window ? 0 : 1);
	state->window = 0;
	state->on_at = 0;
}

static void wakes(struct task_struct *p)
{
	struct state *state = state_of(p);

	if (!state)
		return;
	if (!p->on_cpu && state->place_plus_1)
		drop_torn(p, state, place_of(p, false));
	if (state->window)
		return;
	state->window = share_now(1) + 1;
	state->ran = 0;
}

static u32 prio_of(struct task_struct *p)
{
	u32 prio = p->static_prio - 100;

	return prio < FAIR_PRIOS ? prio : FAIR_PRIOS - 1;
}

static void add_total(struct task_struct *p, u64 share, u64 ran)
{
	u64 key = (u64)p->pid << 32 | (u32)(p->start_time >> 20);
	struct fair_task *total = totals.lookup(&key), zero = {};

	if (!total) {
		zero.prio = prio_of(p);
		totals.update(&key, &zero);
		total = totals.lookup(&key);
	}
	if (!total) {
		dropped();
		return;
	}
	total->share += share;
	total->ran += ran;
}

/* The window of p ends: how much of its share has it got? */
static void blocks(struct task_struct *p, struct state *state)
{
	u64 share = share_now(-1) - (state->window - 1), *count;
	u32 bin;

	state->window = 0;
	if (!share || !state->ran || !wanted(p) || !wanted_here())
		return;
	bin = state->ran * 10 * 1000 / share;
	bin = prio_of(p) * FAIR_BINS + (bin < FAIR_BINS ? bin : FAIR_BINS - 1);
	count = windows.lookup(&bin);
	if (count)
		*count += 1;
	add_total(p, share, state->ran);
}

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	wakes(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	wakes(p);
	return 0;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	u64 now = bpf_ktime_get_ns();
	struct state *state;

	if (prev->pid) {
		state = find_state(prev);
		if (state) {
			drop_torn(prev, state, place_of(prev, false) - 1);
			state->place_plus_1++;
		}
		if (state && state->on_at) {
			state->ran += now - state->on_at;
			state->on_at = 0;
			if (state->window && !stays_runnable(prev, preempt, prev_state))
				blocks(prev, state);
		}
	}
	if (next->pid) {
		/* One that was running or waiting as the trace began has its window from here on. */
		wakes(next);
		state = find_state(next);
		if (state) {
			state->place_plus_1 = place_of(next, true) + 1;
			state->on_at = now;
		}
	}
	return 0;
}

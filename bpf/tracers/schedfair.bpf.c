/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ghOSt's schedfair: the CPU time that tasks got, relative to their fair share.
 *
 * At any moment a task's fair share is (CPUs / runnable tasks), and at most one CPU, so that few tasks on many CPUs do
 * not count as unfair. It accrues from wakeup to block, in the task's window. Weights are ignored: rows are by
 * priority.
 */
#define TRACE_STATE
struct state {
	u64 window; /* 1 + the fair share's value when the task woke; 0 while it sleeps */
	u64 ran; /* ns in this window */
	u64 on_at; /* when the task came on its CPU; 0 while it is on none */
	u64 place_plus_1; /* 1 + place_of() its last switch that was seen; 0 if none was */
};
#include "schedfair.h"
#include "task_state.bpf.h"
#include "trace.bpf.h"

BPF_F_TABLE("array", u32, struct fair_share, fair, 1, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(windows, u64, FAIR_PRIOS * FAIR_BINS);
/* Over the whole trace, by tid and start time, since tids are reused. */
BPF_HASH(totals, u64, struct fair_task, 65536);

/*
 * Advance the share to now, then change the load. A concurrent call does not advance the share: the next call counts
 * that time.
 */
static u64 share_now(s64 load_change)
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
	if (load_change)
		__sync_fetch_and_add(&f->load, load_change);
	return share;
}

/* A task's switches have numbers without a gap: even as it leaves a CPU, odd as it comes on one. */
static u64 place_of(struct task_struct *p, bool comes_on)
{
	return 2 * switches_of(p) + comes_on;
}

/* p is seen after its switch of that place. If switches were missed, its window includes a sleep or lacks a run. */
static void drop_torn(struct task_struct *p, struct state *state, u64 place)
{
	bool is_torn = state->place_plus_1 && state->place_plus_1 != place + 1;

	state->place_plus_1 = place + 1;
	if (!is_torn)
		return;
	if (state->window)
		share_now(-1);
	if (matches(p) && matches_cpu())
		count_missed(state->window ? 1 : 0, state->window ? 0 : 1);
	state->window = 0;
	state->on_at = 0;
}

static void begin_window(struct task_struct *p)
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
		count_dropped();
		return;
	}
	total->share += share;
	total->ran += ran;
}

/* p blocks: record the CPU time of its window relative to its fair share. */
static void end_window(struct task_struct *p, struct state *state)
{
	u64 share = share_now(-1) - (state->window - 1), *count;
	u32 bin;

	state->window = 0;
	if (!share || !state->ran || !matches(p) || !matches_cpu())
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
	begin_window(p);
	return 0;
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	begin_window(p);
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
				end_window(prev, state);
		}
	}
	if (next->pid) {
		/* The window of a task that was runnable when the trace began starts here. */
		begin_window(next);
		state = find_state(next);
		if (state) {
			state->place_plus_1 = place_of(next, true) + 1;
			state->on_at = now;
		}
	}
	return 0;
}

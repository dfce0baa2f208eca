/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Statistics that the core always keeps, per enclave and CPU: how long tasks wait for a CPU and run on it, what ends
 * their turns, how many wait, and whether one waits while a CPU idles.
 *
 * A task's waits are the kernel's own record, which also has what it waited before it was moved to another CPU.
 * `ghostbpf run --stats off` sets keeps_stats to 0: the kernel then drops this code when it loads it.
 */
#ifndef GHOSTBPF_STATS_BPF_H
#define GHOSTBPF_STATS_BPF_H

#include "abi.h"
#include "state.bpf.h"

/* A compile-time define: whether task_struct.sched_info has fields. CONFIG_SCHED_INFO, which distributions set. */
#ifndef HAS_SCHED_INFO
#define HAS_SCHED_INFO 1
#endif

#define KEEPS_STATS (HAS_SCHED_INFO && LINK_CONSTANT(keeps_stats))

/* In cpu.free_since while a higher class has the CPU: later than any time. */
#define NOT_FREE (~0ULL >> 1)

/*
 * The number of bits that it takes to write v, at least `low` and at most low + 1, 3, … 31. Compared to shifting the
 * bits into place, a tree of comparisons takes half of the instructions.
 */
#define BITS_2(v, low) ((v) >= 1LL << (low) ? (low) + 1 : (low))
#define BITS_4(v, low) ((v) >= 2LL << (low) ? BITS_2(v, (low) + 2) : BITS_2(v, low))
#define BITS_8(v, low) ((v) >= 8LL << (low) ? BITS_4(v, (low) + 4) : BITS_4(v, low))
#define BITS_16(v, low) ((v) >= 128LL << (low) ? BITS_8(v, (low) + 8) : BITS_8(v, low))
#define BITS_32(v, low) ((v) >= 32768LL << (low) ? BITS_16(v, (low) + 16) : BITS_16(v, low))

/* The bucket of a time: bucket 0 ends at 2^10 ns, and each other one at twice the end of the one before. */
static u32 time_bucket(s64 ns)
{
	s64 units = ns >> 10;

	return BITS_32(units, 0);
}

#if HAS_SCHED_INFO
/* The task is in the class, but not on a CPU: its first wait begins. */
static void begin_stats(struct task_struct *p, struct task_ctx *t)
{
	t->preempted = 0;
	t->waited = p->sched_info.run_delay - p->sched_info.last_arrival;
}

/*
 * The task gets a CPU: count how long it has waited, since its wakeup or since its last turn ended. The part of that in
 * which this CPU idled is counted apart.
 *
 * sched_info has the sum of the waits up to last_queued, when the last part of this one began, and last_arrival, when
 * the previous wait ended. At last_arrival the previous last_queued was gone; t->waited holds what it was.
 */
static void note_wait(struct counters *n, struct cpu *cpu, struct task_struct *p, struct task_ctx *t, u64 now)
{
	u64 queued_at = p->sched_info.last_queued, waited = p->sched_info.run_delay - queued_at;
	struct waits *w = &n->waits[t->preempted & 1];
	s64 wait, free;

	if (!queued_at) /* it did not wait: it only changed its affinity, priority or class */
		return;
	wait = waited + now - t->waited - p->sched_info.last_arrival;
	t->waited = waited;
	t->preempted = 0;
	w->sum_ns += wait;
	w->counts[time_bucket(wait)]++;
	free = now - cpu->free_since;
	if (free > 0)
		n->idle_wait_ns += wait < free ? wait : free;
}
#else
#define begin_stats(p, t) ((void)0)
#define note_wait(n, cpu, p, t, now) ((void)0)
#endif

/* The turn of a task ends; with `t` it is still runnable. */
static void note_turn(struct counters *n, struct cpu *cpu, struct task_struct *p, struct task_ctx *t, u64 ns, u64 now)
{
	n->turns[time_bucket(ns)]++;
	cpu->free_since = now;
	if (!t)
		return;
	t->preempted = 1;
	if (p->scx.slice)
		n->class_preemptions++;
	else
		n->slice_ends++;
}

/* A tick while a task of the enclave runs: `waiting` tasks wait, and with `idle` one of its CPUs idled. */
static void note_depth(u32 enclave, s32 waiting, bool idle)
{
	struct counters *n = counters_of(enclave);

	if (!n)
		return;
	n->waiting += waiting;
	n->depths[BITS_16(waiting, 0)]++;
	if (idle)
		n->idle_ticks++;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Transactions, from agents to the core.
 *
 * A commit moves a task from the queue where it waits to the own queue of a CPU, and kicks that CPU. It does not walk
 * the queue, and its result is there when the call returns.
 */
#ifndef GHOSTBPF_COMMIT_BPF_H
#define GHOSTBPF_COMMIT_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "core/bits.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/state.bpf.h"
#include "params.bpf.h"
#include "sched.bpf.h"
#include "status_words.bpf.h"

BPF_F_TABLE("array", u32, struct txn, txns, MAX_CHANNELS * TXNS, BPF_F_MMAPABLE);

/* The CPU that has p on its own queue; -1 if p is on another queue, or on none at the moment. */
static s32 queued_cpu(struct task_struct *p)
{
	u64 id = queue_of_task(p);

	return id >= CPU_DSQ(0) && id < CPU_DSQ(MAX_CPUS) ? (s32)(id - CPU_DSQ(0)) : -1;
}

/* The queue of the enclave that p waits on, or is about to wait on. */
static u64 queue_of(struct task_struct *p)
{
	s32 cpu = queued_cpu(p);

	return cpu >= 0 ? CPU_DSQ(cpu) : PENDING;
}

/* The same, also for a task that is being released from the queue of throttled tasks. */
static u64 any_queue_of(struct task_struct *p)
{
	return queue_of_task(p) == THROTTLED_DSQ(ENCLAVE) ? THROTTLED_DSQ(ENCLAVE) : queue_of(p);
}

static u32 check_cpu(s32 id, const struct cpumask *allowed)
{
	struct cpu *cpu = cpu_of(id);
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();

	if (!cpu || !e || !c || cpu->enclave != ENCLAVE)
		return TXN_INVALID_CPU;
	if (!has_bit(c->online, id))
		return TXN_CPU_OFFLINE;
	return allowed && !is_usable(e, c, allowed, id) ? TXN_INVALID_CPU : TXN_COMPLETE;
}

static u32 check_task(struct task_ctx *t, struct agent_task *a, struct txn *x)
{
	struct enclave *e = NULL;
	struct status_word *w;
	u32 id = t && !t->departed ? membership(t, &e) : 0; /* a boosted task is a member, TASK_BLOCKED */

	if (id != ENCLAVE)
		return id ? TXN_NOT_PERMITTED : TXN_NOT_FOUND;
	if (!a || a->gtid != x->gtid)
		return TXN_NOT_FOUND;
	w = word_at(a->word);
	if (!w)
		return TXN_NOT_FOUND;
	if ((u32)a->seq != x->seq)
		return TXN_STALE;
	if (w->state == TASK_ON_CPU)
		return TXN_ON_CPU;
	return w->state == TASK_WAITING ? TXN_COMPLETE : TXN_NOT_RUNNABLE;
}

/*
 * Move p from this queue to that of the transaction's CPU if the transaction is valid. The iterator is made before the checks: the
 * kernel takes a task off its queue to change its affinity or state, and an iterator moves no task that was queued
 * after the iterator was made. So a task that moves has not changed since the checks.
 */
static u32 try_latch(struct task_struct *p, struct task_ctx *t, struct agent_task *a, struct txn *x, u64 from,
		     bool *moved)
{
	u64 flags = x->flags & TXN_HEAD ? SCX_ENQ_HEAD : 0, slice = x->slice_ns ? x->slice_ns : SLICE_ENDLESS;
	struct bpf_iter_scx_dsq waiting;
	u32 state = TXN_STALE;

	*moved = false;
	if (!bpf_iter_scx_dsq_new(&waiting, from, 0)) {
		state = check_task(t, a, x);
		if (state == TXN_COMPLETE)
			state = check_cpu(x->cpu, untrusted(p)->cpus_ptr);
		if (state == TXN_COMPLETE) {
			note_latch(t, true);
			scx_bpf_dsq_move_set_slice(&waiting, slice);
			*moved = scx_bpf_dsq_move(&waiting, p, CPU_DSQ(x->cpu), flags);
		}
	}
	bpf_iter_scx_dsq_destroy(&waiting);
	return state;
}

/* Move p from a CPU's own queue, if it waits on one, to the head of the enclave's queue. */
static void unlatch(struct task_struct *p)
{
	struct bpf_iter_scx_dsq waiting;
	s32 cpu = queued_cpu(p);

	if (cpu < 0)
		return;
	if (!bpf_iter_scx_dsq_new(&waiting, CPU_DSQ(cpu), 0)) {
		scx_bpf_dsq_move_set_slice(&waiting, slice());
		scx_bpf_dsq_move(&waiting, p, PENDING, SCX_ENQ_HEAD);
	}
	bpf_iter_scx_dsq_destroy(&waiting);
}

static u32 latch(struct task_struct *p, struct txn *x)
{
	struct agent_task *a = agent_task_of(p, 0);
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu = cpu_of(x->cpu);
	bool moved = false;
	u32 state;

	if (!t || !a)
		return TXN_NOT_FOUND;
	if (!cpu || !e)
		return TXN_INVALID_CPU;
	/*
	 * A message can overtake its task, which is on its queue only after enqueue() has returned. The first try takes
	 * the task's runqueue lock, and so waits for that; the second try then finds the task.
	 */
	state = try_latch(p, t, a, x, queue_of(p), &moved);
	if (state == TXN_COMPLETE && !moved)
		state = try_latch(p, t, a, x, any_queue_of(p), &moved);
	if (!moved)
		return state == TXN_COMPLETE ? TXN_STALE : state;
	exchange(&cpu->latched, 1);
	note_latches(e);
	/* A CPU that goes offline, or leaves the enclave, empties its queue once, possibly before this insert. */
	state = check_cpu(x->cpu, NULL);
	if (state != TXN_COMPLETE) {
		unlatch(p);
		scx_bpf_kick_cpu(x->cpu, SCX_KICK_IDLE); /* which clears cpu->latched */
	}
	return state;
}

/*
 * Kick a CPU, once for all that was committed to it, since a kick costs an interrupt. A CPU that does not seem idle is
 * kicked too: it may turn idle while the task moves. If the CPU cannot run the task, an idle CPU is kicked to rescue
 * it.
 */
static void kick(s32 id)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu = cpu_of(id);

	if (!cpu || !e || !cpu->kick)
		return;
	/* The agent itself holds its CPU, which asks for a task as soon as the agent sleeps. */
	if (id != bpf_get_smp_processor_id()) {
		scx_bpf_kick_cpu(id, cpu->kick & TXN_KICK_PREEMPT ? SCX_KICK_PREEMPT : SCX_KICK_IDLE);
		if (is_lost(cpu, id)) {
			report_stuck(e);
			kick_any_idle(e, id);
		}
	}
	cpu->kick = 0;
}

static void request_kick(struct txn *x)
{
	struct cpu *cpu = cpu_of(x->cpu);

	if (cpu)
		cpu->kick |= x->flags & TXN_PREEMPT ? TXN_KICK_PREEMPT : TXN_KICK_IDLE;
}

static u32 commit(struct txn *x)
{
	struct task_struct *p;
	u32 state;

	if (!x->gtid)
		return check_cpu(x->cpu, NULL);
	p = bpf_task_from_pid((s32)x->gtid);
	if (!p)
		return TXN_NOT_FOUND;
	bpf_rcu_read_lock();
	state = latch(p, x);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return state;
}

/* The tasks of a failed group return to the enclave's queue, even if they waited on a CPU's own queue before. */
static void undo(struct txn *x)
{
	struct task_struct *p = bpf_task_from_pid((s32)x->gtid);
	struct agent_task *a;

	if (!p)
		return;
	bpf_rcu_read_lock();
	a = agent_task_of(p, 0);
	if (a && a->gtid == x->gtid)
		unlatch(p);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
}

/*
 * A held CPU may ask for a task and get none, so it is kicked when it is released. It is released even if it has left
 * the enclave meanwhile.
 */
static void set_group_hold(s32 id, bool on)
{
	struct cpu *cpu = cpu_of(id);

	if (!cpu || (on ? cpu->enclave : cpu->group_hold) != ENCLAVE)
		return;
	cpu->group_hold = on ? ENCLAVE : 0;
	if (!on)
		scx_bpf_kick_cpu(id, SCX_KICK_IDLE);
}

enum step { HOLD, COMMIT, UNDO, RELEASE, REQUEST_KICK, KICK };

/* Do one step for each transaction; args->committed returns how many are complete. */
static void each_txn(struct commit_args *args, u32 step)
{
	u32 first = args->channel * TXNS;

	args->committed = 0;
	for_each_number(i, 0, args->count < TXNS ? args->count : TXNS) {
		u32 key = first + i;
		struct txn *x = txns.lookup(&key);

		if (!x)
			continue;
		if (step == HOLD)
			set_group_hold(x->cpu, true);
		if (step == COMMIT)
			x->state = commit(x);
		if (step == UNDO && x->state == TXN_COMPLETE) {
			if (x->gtid)
				undo(x);
			x->state = TXN_POISONED;
		}
		if (step == RELEASE)
			set_group_hold(x->cpu, false);
		if (x->state != TXN_COMPLETE)
			continue;
		args->committed++;
		if (step == (args->group ? REQUEST_KICK : COMMIT))
			request_kick(x);
		if (step == KICK)
			kick(x->cpu);
	}
}

/* Commit one transaction that is in no group; return how many are complete. */
static u32 commit_one(struct txn *x)
{
	x->state = commit(x);
	if (x->state != TXN_COMPLETE)
		return 0;
	request_kick(x);
	kick(x->cpu);
	return 1;
}

/* Commit a channel's first transactions. Only the channel's current agent may: a replaced agent must not go on. */
int call_commit(struct commit_args *args)
{
	struct channel *ch = channel_at(args->channel);
	u32 all = args->count < TXNS ? args->count : TXNS, first = args->channel * TXNS;
	struct txn *x = txns.lookup(&first);

	if (!ch || ch->tid != (u32)bpf_get_current_pid_tgid())
		return -1; /* EPERM */
	if (x && all == 1) {
		args->committed = commit_one(x);
		return 0;
	}
	if (args->group)
		each_txn(args, HOLD);
	each_txn(args, COMMIT);
	if (args->group && args->committed < all)
		each_txn(args, UNDO);
	if (args->group) {
		each_txn(args, RELEASE);
		each_txn(args, REQUEST_KICK);
	}
	each_txn(args, KICK);
	return 0;
}

#endif

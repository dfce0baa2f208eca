/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From agents to the core: transactions, and the programs that an agent calls.
 *
 * A commit moves the task from the queue where it waits to the own queue of the CPU that is to run it, and wakes that
 * CPU. It does not walk the queue, and its result is there when the call returns.
 */
#ifndef GHOSTBPF_COMMIT_BPF_H
#define GHOSTBPF_COMMIT_BPF_H

#include "messages.bpf.h"

BPF_F_TABLE("array", u32, struct txn, txns, MAX_CPUS * TXNS, BPF_F_MMAPABLE);

/* The CPU on whose own queue p waits; -1: it waits on another queue, or on none just now. */
static s32 queued_cpu(struct task_struct *p)
{
	struct scx_dispatch_q *dsq = p->scx.dsq;
	u64 id = dsq ? dsq->id : 0;

	return id >= CPU_DSQ(0) && id < CPU_DSQ(MAX_CPUS) ? (s32)(id - CPU_DSQ(0)) : -1;
}

/* The queue of ours that p waits on, or is about to wait on. */
static u64 queue_of(struct task_struct *p)
{
	s32 cpu = queued_cpu(p);

	return cpu >= 0 ? CPU_DSQ(cpu) : PENDING;
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
	u32 id = t && !t->left ? membership(t, &e) : 0; /* a boosted task is a member, and its word says that it sleeps */

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
 * Move p to the queue of x's CPU if x holds. The iterator comes before the checks: what changes a task's affinity or its
 * state takes it off its queue for that, and an iterator moves no task that was put on the queue after it was made. So
 * what the checks found is still so when p is moved.
 */
static u32 try_latch(struct task_struct *p, struct task_ctx *t, struct agent_task *a, struct txn *x, bool *moved)
{
	u64 flags = x->flags & TXN_HEAD ? SCX_ENQ_HEAD : 0, slice = x->slice_ns ? x->slice_ns : SLICE_ENDLESS;
	struct bpf_iter_scx_dsq waiting;
	u32 state = TXN_STALE;

	*moved = false;
	if (!bpf_iter_scx_dsq_new(&waiting, queue_of(p), 0)) {
		state = check_task(t, a, x);
		if (state == TXN_COMPLETE)
			state = check_cpu(x->cpu, p->cpus_ptr);
		if (state == TXN_COMPLETE) {
			note_latch(t, true);
			scx_bpf_dsq_move_set_slice(&waiting, slice);
			*moved = scx_bpf_dsq_move(&waiting, p, CPU_DSQ(x->cpu), flags);
		}
	}
	bpf_iter_scx_dsq_destroy(&waiting);
	return state;
}

/* p goes to the head of the enclave's queue if it waits on a CPU's own. */
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
	struct cpu *cpu = cpu_of(x->cpu);
	bool moved = false;
	u32 state;

	if (!t || !a)
		return TXN_NOT_FOUND;
	if (!cpu)
		return TXN_INVALID_CPU;
	/*
	 * A message can overtake its task, which is on the queue only when its enqueue() has returned. The first try
	 * waits for that, since it takes the lock of the task's runqueue; then the second finds the task.
	 */
	state = try_latch(p, t, a, x, &moved);
	if (state == TXN_COMPLETE && !moved)
		state = try_latch(p, t, a, x, &moved);
	if (!moved)
		return state == TXN_COMPLETE ? TXN_STALE : state;
	exchange(&cpu->latched, 1);
	/* A CPU that goes offline empties its queue once: before the insert, perhaps. */
	state = check_cpu(x->cpu, NULL);
	if (state != TXN_COMPLETE)
		unlatch(p);
	return state;
}

/* Does a CPU go, or has another class taken it, and not just its own agent, which will soon be done? */
static bool is_lost(struct cpu *cpu, s32 id)
{
	struct channel *own = channel_at(1 + id);
	struct core *c = the_core();

	if (c && !has_bit(c->online, id))
		return true;
	return cpu->preempted_by_class && !(own && own->tid);
}

/*
 * Whether or not the CPU seems to idle it is told, or a task that is moved just as it turns idle would wait for the
 * next; once for all that was committed to it, since that costs an interrupt. Where another class has the CPU, one that
 * idles comes to the rescue.
 */
static void kick(s32 id)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu = cpu_of(id);

	if (!cpu || !e || !cpu->kick)
		return;
	scx_bpf_kick_cpu(id, cpu->kick & TXN_KICK_PREEMPT ? SCX_KICK_PREEMPT : SCX_KICK_IDLE);
	cpu->kick = 0;
	if (is_lost(cpu, id))
		kick_any_idle(e, id);
}

static void ask_for_kick(struct txn *x)
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

/* A task whose group failed waits on the enclave's queue, even if it waited for a CPU before. */
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

/* While a CPU is held it may ask for a task and get none: it is told when it is not any more. */
static void hold(s32 id, bool on)
{
	struct cpu *cpu = cpu_of(id);

	if (!cpu || cpu->enclave != ENCLAVE)
		return;
	cpu->group_hold = on;
	if (!on)
		scx_bpf_kick_cpu(id, SCX_KICK_IDLE);
}

enum step { HOLD, COMMIT, UNDO, RELEASE, ASK, KICK };

/* One step for each transaction; args->committed tells how many of them are complete. */
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
			hold(x->cpu, true);
		if (step == COMMIT)
			x->state = commit(x);
		if (step == UNDO && x->state == TXN_COMPLETE) {
			if (x->gtid)
				undo(x);
			x->state = TXN_POISONED;
		}
		if (step == RELEASE)
			hold(x->cpu, false);
		if (x->state != TXN_COMPLETE)
			continue;
		args->committed++;
		if (step == (args->group ? ASK : COMMIT))
			ask_for_kick(x);
		if (step == KICK)
			kick(x->cpu);
	}
}

/* Commit a channel's first transactions. Only the agent behind it may, or one that has been replaced would go on. */
int call_commit(struct commit_args *args)
{
	struct channel *ch = channel_at(args->channel);
	u32 all = args->count < TXNS ? args->count : TXNS;

	if (!ch || ch->tid != (u32)bpf_get_current_pid_tgid())
		return -1; /* EPERM */
	if (args->group)
		each_txn(args, HOLD);
	each_txn(args, COMMIT);
	if (args->group && args->committed < all)
		each_txn(args, UNDO);
	if (args->group) {
		each_txn(args, RELEASE);
		each_txn(args, ASK);
	}
	each_txn(args, KICK);
	return 0;
}

/* Who has been replaced meanwhile does not take the CPU from its successor: that has changed the word since. */
int call_spin(struct agent_args *args)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct channel *ch = channel_at(args->channel);
	struct cpu *cpu = cpu_of(args->cpu);
	u32 tid = (u32)bpf_get_current_pid_tgid();

	if (!e || !ch)
		return -1; /* EPERM */
	if (cpu)
		cpu->agent_must_move = 0;
	for_each_number(tries, 0, 1000) {
		u64 before = *(volatile u64 *)&e->spinner;

		if (*(volatile u64 *)&ch->tid != tid)
			return -1;
		if (replace(&e->spinner, before, (u64)(1 + args->cpu) << 32 | tid))
			return 0;
	}
	return -16; /* EBUSY */
}

static void stop_spinning(u32 tid)
{
	struct enclave *e = enclave_of(ENCLAVE);
	u64 spinner = e ? e->spinner : 0;

	if (e && (u32)spinner == tid)
		replace(&e->spinner, spinner, 0);
}

static void kick_cpus(void)
{
	struct cpu *cpu;

	for_each_cpu_of(ENCLAVE, cpu, id)
		scx_bpf_kick_cpu(id, SCX_KICK_IDLE);
}

/* The agent behind a channel leaves, unless another has taken its place: the core decides. */
int call_leave(struct agent_args *args)
{
	struct channel *ch = channel_at(args->channel);
	u32 tid = (u32)bpf_get_current_pid_tgid();

	stop_spinning(tid);
	if (!ch || !replace(&ch->tid, tid, 0))
		return -1; /* EPERM */
	kick_cpus();
	return 0;
}

static void register_waiting(u64 dsq)
{
	for_each_waiting(waiting, p, dsq, 0) {
		struct agent_task *a = agent_task_of(p, BPF_LOCAL_STORAGE_GET_F_CREATE);
		struct status_word *w = a ? word_of(p, a) : NULL;

		if (!w)
			continue;
		a->knows = TASK_WAITING;
		w->allowed = p->cpus_ptr->bits[0];
		count_load(a, load_of(w));
	}
}

/* Before a new agent reads the status words: whoever waits has one. */
int call_take_stock(void *nothing)
{
	struct cpu *cpu;

	bpf_rcu_read_lock();
	register_waiting(PENDING);
	for_each_cpu_of(ENCLAVE, cpu, id)
		register_waiting(CPU_DSQ(id));
	bpf_rcu_read_unlock();
	return 0;
}

/*
 * From now on p's messages go to channel number; if it waits, that agent learns of it at once. What happens to p just
 * then is told beside this, perhaps to the agent before: so it is told again.
 */
static void associate(struct task_struct *p, struct agent_task *a, struct status_word *w, u32 number)
{
	struct channel *ch = channel_at(number);

	a->channel = number;
	for_each_number(tries, 0, 4) {
		u64 state = w->state, seq = a->seq + 1;

		tell(p, a, w, state == TASK_WAITING ? MSG_TASK_NEW : MSG_TASK_BLOCKED, 0);
		if (w->state == state && a->seq == seq)
			return;
	}
	if (ch)
		ch->overflowed = 1;
}

int call_associate(struct agent_task_args *args)
{
	struct task_struct *p = bpf_task_from_pid((s32)args->gtid);
	struct agent_task *a;
	struct status_word *w;

	if (!p)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	a = agent_task_of(p, 0);
	w = a && a->gtid == args->gtid ? word_at(a->word) : NULL;
	if (w)
		associate(p, a, w, args->channel);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return w ? 0 : -3;
}

/* Does it wait for an agent that is to be relieved of it? */
static bool is_to_take(struct status_word *w, struct take_args *args)
{
	if (w->state != TASK_WAITING || w->channel == args->channel)
		return false;
	return args->from ? w->channel == args->from : w->channel != 0;
}

/* The agent of a CPU takes over tasks that wait for another, and that its CPU may run, longest first. */
int call_take(struct take_args *args)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();

	args->taken = 0;
	if (!e || !c)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	for_each_waiting(waiting, p, PENDING, 0) {
		struct agent_task *a = agent_task_of(p, 0);
		struct status_word *w = a ? word_at(a->word) : NULL;

		if (args->taken >= args->most)
			break;
		if (!a || !w || !is_to_take(w, args) || !is_usable(e, c, p->cpus_ptr, args->channel - 1))
			continue;
		associate(p, a, w, args->channel);
		args->taken++;
	}
	bpf_rcu_read_unlock();
	return 0;
}

/* A task has been moved to another enclave, unnoticed by this one's policy. */
int call_depart(struct agent_task_args *args)
{
	struct task_struct *p = bpf_task_from_pid((s32)args->gtid);
	struct agent_task *a;

	if (!p)
		return -3; /* ESRCH */
	bpf_rcu_read_lock();
	a = agent_task_of(p, 0);
	if (a)
		tell_gone(p, a, MSG_TASK_DEPARTED);
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Lending: idle CPUs of an enclave that lends run waiting tasks of enclaves that borrow.
 *
 * This is a layer between the core and the policy of one enclave. While an enclave lends or borrows, the core's slots
 * hold the programs below, and each calls the policy's own program for that op, which is in an array of this file.
 * Enclaves that neither lend nor borrow have no such layer, so lending costs them no instruction.
 *
 * An enclave that lends: a CPU that asks for a task, while no task of the enclave that may run there waits, takes one
 * from the queues of an enclave that borrows, and keeps it until the next tick. (The core ends the turn of a task on a
 * foreign CPU at each tick.) A task of the lender that finds no idle CPU takes a lent one: it preempts the borrowed turn
 * (reclaim "now"), or waits for the tick (reclaim "tick").
 *
 * An enclave that borrows: a task that is queued while no CPU of the enclave idles kicks an idle CPU of a lender, which
 * then asks for a task. Only the enclave's common queue, and queues in order of vtime, are lent to: tasks that an agent
 * has latched to a CPU stay there. A borrowed task goes home when a CPU of its enclave idles at a tick.
 */
#include "abi.h"
#include "sched.bpf.h"

#define LOOK_AT_MAX 32 /* tasks at the head of a queue that are looked at */

/* The CPUs of this enclave that run borrowed turns, and the borrower that goes first next time. */
struct lent_cpus {
	u64 words[CPU_WORDS];
	u64 first;
};

BPF_ARRAY(lent, struct lent_cpus, 1);
BPF_PROG_ARRAY(inner_enqueue, 2);
BPF_PROG_ARRAY(inner_dispatch, 2);
BPF_PROG_ARRAY(inner_tick, 2);
BPF_PROG_ARRAY(inner_stopping, 2);

static struct lent_cpus *lent_cpus(void)
{
	u32 zero = 0;

	return lent.lookup(&zero);
}

static u32 bank_of(struct enclave *e)
{
	return e ? e->bank & LIVE_BANK : 0;
}

/* A task of `borrower` runs, or did until now, on this CPU: count what has not been counted if the owner lends. */
static void count_lent(struct cpu *cpu, u32 borrower, bool ends)
{
	u64 since = cpu->running_since, counted = cpu->lent_counted_at, now = scx_bpf_now(), ns;
	struct counters *ours = counters_of(borrower), *theirs = counters_of(cpu->enclave);
	struct enclave *lender = enclave_of(cpu->enclave);

	if (!ours || !theirs || !lender || !(lender->lending & LENDING_LENDS))
		return;
	ns = elapsed(since > counted ? since : counted, now);
	ours->borrowed_ns += ns;
	theirs->lent_ns += ns;
	cpu->lent_counted_at = now;
	if (ends)
		ours->borrowings++;
}

/* Borrowing: */

/* Make an idle CPU of a lender ask for a task. A claimed CPU is marked idle again if it finds none. */
static bool kick_lender(struct core *c, const struct cpumask *allowed, s32 near)
{
	volatile u64 left = c->lenders & ~(1ULL << ENCLAVE);

	for_each_number(i, 0, MAX_ENCLAVES) {
		u64 word = left;
		struct enclave *e;
		s32 cpu;

		if (!word)
			return false;
		left = word & (word - 1);
		e = enclave_of(lowest_bit(word));
		if (!e || e->state != ENCLAVE_ACTIVE || !(e->lending & LENDING_LENDS))
			continue;
		cpu = claim_idle_cpu(e, c, allowed, near);
		if (cpu >= 0) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
			return true;
		}
	}
	return false;
}

/* Take one of this enclave's lent CPUs back for a task with this affinity; return false if there is none. */
static bool reclaim(struct enclave *e, struct core *c, const struct cpumask *allowed)
{
	struct lent_cpus *all = lent_cpus();

	if (!all)
		return false;
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 word = usable(e, c, allowed, i) & all->words[i];

		if (!word)
			continue;
		COUNT(ENCLAVE, reclaims);
		/* The next task that is queued takes another CPU. */
		assign_bit(&all->words[i], lowest_bit(word), false);
		if (!(e->lending & LENDING_AT_TICK))
			scx_bpf_kick_cpu(i * 64 + lowest_bit(word), SCX_KICK_PREEMPT);
		return true;
	}
	return false;
}

/* p is about to be queued: find it a lent CPU, or one to borrow. The kick is delivered when p is on its queue. */
static void find_cpu(struct enclave *e, struct core *c, struct task_struct *p, u64 enq_flags)
{
	s32 here = scx_bpf_task_cpu(p);

	if (enq_flags & SCX_ENQ_LAST && is_usable(e, c, p->cpus_ptr, here))
		return;
	if (find_idle_cpu(e, c, p->cpus_ptr, here) >= 0)
		return;
	if (e->lending & LENDING_LENDS && reclaim(e, c, p->cpus_ptr))
		return;
	if (e->lending & LENDING_BORROWS)
		kick_lender(c, p->cpus_ptr, here);
}

BPF_PROG(lending_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();

	if (e && c)
		find_cpu(e, c, p, enq_flags);
	inner_enqueue.call(ctx, bank_of(e));
	enqueue_pending(ENCLAVE, p, SCX_SLICE_DFL, enq_flags);
	return 0;
}

/* A CPU that turns idle while a task is queued gets no kick. The next tick of any CPU of the enclave finds both. */
BPF_PROG(lending_tick, struct task_struct *p)
{
	struct enclave *e = enclave_of(ENCLAVE);
	s32 here = scx_bpf_task_cpu(p);
	const struct cpumask *online;
	struct core *c = the_core();

	if (e && c && e->lending & LENDING_BORROWS && has_waiting_tasks(ENCLAVE, e, here)) {
		online = scx_bpf_get_online_cpumask();
		kick_lender(c, online, here);
		scx_bpf_put_cpumask(online);
	}
	inner_tick.call(ctx, bank_of(e));
	return 0;
}

BPF_PROG(lending_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	struct enclave *e = enclave_of(ENCLAVE);

	if (cpu && cpu->enclave && cpu->enclave != ENCLAVE)
		count_lent(cpu, ENCLAVE, true);
	inner_stopping.call(ctx, bank_of(e));
	return 0;
}

/* Lending: */

/* Return true if a task on this queue may run on CPU `here`. */
static bool has_task_for(u64 dsq, s32 here)
{
	volatile u32 seen = 0;

	if (!scx_bpf_dsq_nr_queued(dsq))
		return false;
	for_each_waiting(waiting, p, dsq, 0)
		if (has_bit(p->cpus_ptr->bits, here) || ++seen >= LOOK_AT_MAX)
			return true;
	return false;
}

/* Return true if this CPU is not to be lent, because a task of this enclave, or of none, has a use for it. */
static bool is_needed(struct enclave *e, struct cpu *here_cpu, s32 here, bool prev_waits)
{
	struct cpu *cpu;
	s32 id;

	if (here_cpu->group_hold || (prev_waits && (!here_cpu->running || here_cpu->running == ENCLAVE)))
		return true;
	if (has_task_for(PENDING, here))
		return true;
	if (!has_cpu_queues(e) && !e->agents[0] && !e->agents[1])
		return false;
	for_each_cpu_of(ENCLAVE, e, cpu, id)
		if (has_task_for(VTIME_DSQ(id), here) || has_task_for(CPU_DSQ(id), here))
			return true;
	return false;
}

/* Run a waiting task of a borrower on this CPU; return false if there is none. */
static bool serve_borrower(u32 borrower)
{
	struct enclave *e = enclave_of(borrower);
	struct cpu *cpu;
	s32 id;

	if (!e || e->state != ENCLAVE_ACTIVE || !(e->lending & LENDING_BORROWS))
		return false;
	if (scx_bpf_dsq_move_to_local(PENDING_DSQ(borrower)))
		return true;
	if (!has_cpu_queues(e))
		return false;
	for_each_cpu_of(borrower, e, cpu, id)
		if (scx_bpf_dsq_nr_queued(VTIME_DSQ(id)) && scx_bpf_dsq_move_to_local(VTIME_DSQ(id)))
			return true;
	return false;
}

/* The borrowers take turns: after one has been served, the enclave with the next higher number goes first. */
static bool serve_borrowers(struct core *c, struct lent_cpus *all)
{
	u64 others = c->borrowers & ~(1ULL << ENCLAVE), later = others & -1ULL << (all->first & 63);
	volatile u64 now = later, then = others & ~later;

	for_each_number(i, 0, MAX_ENCLAVES) {
		u64 word = now;
		u32 borrower;

		if (!word) {
			word = then;
			then = 0;
		}
		if (!word)
			return false;
		now = word & (word - 1);
		borrower = lowest_bit(word) & (MAX_ENCLAVES - 1);
		if (serve_borrower(borrower)) {
			all->first = borrower + 1;
			return true;
		}
	}
	return false;
}

/* A borrowed task goes on, since no other borrowed task waits, unless a CPU of its own enclave is idle. */
static bool keep_borrower(struct core *c, struct cpu *cpu, struct task_struct *prev, s32 here)
{
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(prev), &e);

	if (!id || !e || id != cpu->running || !(e->lending & LENDING_BORROWS) || !has_bit(prev->cpus_ptr->bits, here))
		return false;
	if (find_idle_cpu(e, c, prev->cpus_ptr, here) >= 0)
		return false;
	set_slice(prev, SCX_SLICE_DFL);
	count_lent(cpu, id, false);
	return true;
}

static void mark_lent(struct lent_cpus *all, s32 here, bool is_lent)
{
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (i == (u32)here / 64 && (all->words[i] >> (here & 63) & 1) != is_lent)
			assign_bit(&all->words[i], here & 63, is_lent);
}

/* Run a borrowed task on this CPU if the CPU would idle otherwise; return false if not. */
static bool lend(struct enclave *e, struct core *c, struct cpu *cpu, s32 here, struct task_struct *prev)
{
	bool prev_waits = prev && prev->scx.flags & SCX_TASK_QUEUED, is_lent = false;
	struct lent_cpus *all = lent_cpus();

	if (!all || !(e->lending & LENDING_LENDS))
		return false;
	if (!is_needed(e, cpu, here, prev_waits))
		is_lent = serve_borrowers(c, all) || (prev_waits && prev && keep_borrower(c, cpu, prev, here));
	mark_lent(all, here, is_lent);
	return is_lent;
}

BPF_PROG(lending_dispatch, s32 here, struct task_struct *prev)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu = cpu_of(here);
	struct core *c = the_core();

	if (e && c && cpu && lend(e, c, cpu, here, prev))
		return 0;
	inner_dispatch.call(ctx, bank_of(e));
	scx_bpf_dsq_move_to_local(PENDING);
	return 0;
}

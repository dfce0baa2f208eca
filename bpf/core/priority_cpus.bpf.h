/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Priority CPUs of a leaf, as in ghOSt's prov: CPUs that it prefers to others.
 *
 * The programs below are in front of those of hierarchy.bpf.c, for leaves with priority CPUs alone. They try such a CPU
 * first, and call the program behind them if there is none. A task that runs on another CPU leaves it at a tick if a
 * priority CPU is available then (it preempts itself): its CPU goes to the root, which has it go to a leaf that wants
 * it, and the task, which is queued again, asks for the priority CPU. So nothing has to be handed from the tick to the
 * CPU, and if another leaf is faster, the task asks for any CPU.
 */
#ifndef GHOSTBPF_PRIORITY_CPUS_BPF_H
#define GHOSTBPF_PRIORITY_CPUS_BPF_H

#include "abi.h"
#include "grant.bpf.h"
#include "sched.bpf.h"
#include "tree.bpf.h"

/* The programs behind these, each in slot 0. */
BPF_PROG_ARRAY(behind_select_cpu, 1);
BPF_PROG_ARRAY(behind_enqueue, 1);
BPF_PROG_ARRAY(behind_tick, 1);

/* A CPU that a leaf may take. */
struct source {
	volatile s32 cpu; /* -1: there is none */
	volatile u32 from; /* the enclave that has it */
	volatile u64 rank; /* IDLE, or how much rather it is taken than another */
};

#define IDLE (~0ULL)

static bool has_priority_cpus(struct tree_leaf *leaf)
{
	u64 any = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		any |= leaf->priority[i];
	return any;
}

/* Return true if the task of e that runs on a CPU, which enclave `holder` has now, has left it for a priority CPU. */
static bool leaves_for_priority_cpu(struct tree *tree, struct enclave *e, u32 holder)
{
	return holder == ROOT && e && has_priority_cpus(leaf_at(tree, leaf_of(e)));
}

/*
 * How much rather leaf `to` takes this CPU than another: one that is idle, and else the one of the last leaf that was
 * granted last. 0 if it may not take it. A leaf that `gives` a CPU for it stays within its limits.
 */
static u64 rank_of(struct tree *tree, u32 to, u32 from, struct cpu *cpu, s32 number, bool preempt, bool gives)
{
	bool by_right = may_take(tree, to, from);

	if (!gives && is_at_limit(tree, to, from))
		return 0;
	if (is_idle(number))
		return by_right || is_settled(number) ? IDLE : 0;
	if (!preempt || !by_right || from == NO_LEAF || cpu->preempted_by_class || bpf_ktime_get_ns() < cpu->turn_until)
		return 0;
	return (u64)from << 60 | cpu->granted_at;
}

/* The priority CPU that leaf `to` takes for a task. */
static void find_priority_cpu(struct tree *tree, struct core *c, u32 to, const struct cpumask *allowed, bool preempt,
			      bool gives, struct source *best)
{
	best->cpu = -1;
	best->rank = 0;
	for_each_round(round, NR_CPU_WORDS) {
		volatile u64 left = 0;

#pragma unroll
		for (u32 i = 0; i < NR_CPU_WORDS; i++)
			if (i == (u32)round)
				left = leaf_at(tree, to)->priority[i] & c->online[i] & allowed->bits[i];
		for_each_number(n, 0, 64) {
			struct enclave *holder;
			struct cpu *cpu;
			u32 id, from;
			s32 number;
			u64 rank;

			if (!left)
				break;
			number = round * 64 + take_bit(&left);
			cpu = cpu_of(number);
			if (!cpu)
				continue;
			id = cpu->enclave;
			holder = enclave_of(id);
			from = leaf_of(holder);
			if (!holder || holder->tree != ROOT || from == to)
				continue;
			rank = rank_of(tree, to, from, cpu, number, preempt, gives);
			if (rank <= best->rank)
				continue;
			best->rank = rank;
			best->cpu = number;
			best->from = id;
		}
	}
}

/* Give leaf `to` a priority CPU for one task. Return false if there is none. */
static bool request_priority_cpu(struct tree *tree, struct core *c, u32 to, const struct cpumask *allowed, bool preempt)
{
	struct source source;

	find_priority_cpu(tree, c, to, allowed, preempt, false, &source);
	return take_cpu(tree, to, source.from, source.cpu, source.rank == IDLE);
}

BPF_PROG(priority_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e), leaf = leaf_of(e);

	if (id && c && tree && e && leaf != NO_LEAF && find_idle_cpu(e, c, p->cpus_ptr, prev) < 0)
		request_priority_cpu(tree, c, leaf, p->cpus_ptr, false);
	behind_select_cpu.call(ctx, 0);
	return prev;
}

BPF_PROG(priority_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e), leaf = leaf_of(e);

	if (!id || !e || !c || !tree)
		return 0;
	if (leaf != NO_LEAF && !(enq_flags & SCX_ENQ_LAST && is_usable(e, c, p->cpus_ptr, scx_bpf_task_cpu(p))) &&
	    find_idle_cpu(e, c, p->cpus_ptr, scx_bpf_task_cpu(p)) < 0 &&
	    request_priority_cpu(tree, c, leaf, p->cpus_ptr, true))
		inner_enqueue.call(ctx, inner_slot_of(id, e));
	else
		behind_enqueue.call(ctx, 0);
	enqueue_pending(id, p, SCX_SLICE_DFL, enq_flags);
	return 0;
}

/* Return true if p, of leaf `number`, leaves this CPU for a priority CPU. */
static bool preempts_itself(struct tree *tree, struct core *c, struct cpu *cpu, s32 here, u32 number, struct task_struct *p)
{
	struct tree_leaf *leaf = leaf_at(tree, number);
	u64 now = bpf_ktime_get_ns();
	struct source source;

	if (cpu->enclave != leaf->enclave || has_bit(leaf->priority, here) || now < cpu->turn_until)
		return false;
	find_priority_cpu(tree, c, number, p->cpus_ptr, true, true, &source);
	/* If another task has to be interrupted, too, the request notes it. */
	if (source.cpu < 0 || (source.rank == IDLE ? !may_poke(leaf) : is_held(leaf, now)))
		return false;
	if (!grant(tree, cpu, here, leaf->enclave, ROOT, 0))
		return false;
	count_up(&leaf->self_preempts);
	return true;
}

BPF_PROG(priority_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct tree *tree = the_tree();
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e), leaf = leaf_of(e);

	if (id && c && cpu && tree && leaf != NO_LEAF && preempts_itself(tree, c, cpu, here, leaf, p))
		set_slice(p, 0);
	else
		behind_tick.call(ctx, 0);
	return 0;
}

#endif

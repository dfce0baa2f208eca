/* SPDX-License-Identifier: GPL-2.0-only */
/* How a CPU of a tree passes from one leaf to another; see hierarchy.bpf.c. */
#ifndef GHOSTBPF_GRANT_BPF_H
#define GHOSTBPF_GRANT_BPF_H

#include "abi.h"
#include "sched.bpf.h"
#include "tree.bpf.h"

#define OPS_END (10 * 1000000ULL) /* an op that began before a grant has ended after this time, nearly always */

static void assign_cpu(struct enclave *e, s32 number, bool on)
{
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (i == (u32)number / 64)
			assign_bit(&e->cpus[i], number & 63, on);
}

/*
 * Pass a CPU from one enclave of the tree to another, unless another CPU does so at this moment. With turn_ns no other
 * leaf takes it for that long.
 */
static bool grant(struct tree *tree, struct cpu *cpu, s32 number, u32 from, u32 to, u64 turn_ns)
{
	struct enclave *e = enclave_of(to), *former = enclave_of(from), *root = enclave_of(ROOT);
	u32 leaf = leaf_of(e);
	u64 now;

	if (!e || !former || !root || from == to || e->state != ENCLAVE_ACTIVE || former->state != ENCLAVE_ACTIVE ||
	    root->state != ENCLAVE_ACTIVE || !compare_and_swap(&cpu->holder, from, GRANT_BUSY))
		return false;
	now = bpf_ktime_get_ns();
	assign_cpu(former, number, false);
	if (has_cpu_queues(former))
		cpu->stale_queues = 1;
	cpu->granted_at = now;
	cpu->turn_until = turn_ns ? now + turn_ns : 0;
	cpu->enclave = to;
	assign_cpu(e, number, true);
	count_granted(tree, leaf_of(former), -1);
	count_granted(tree, leaf, 1);
	count_up(&leaf_at(tree, leaf)->grants);
	exchange(&cpu->holder, to);
	return true;
}

static bool is_settled(s32 number)
{
	struct cpu *cpu = cpu_of(number);

	return cpu && ns_since(cpu->granted_at) > OPS_END;
}

/* Return true if it is too early to interrupt a task for this leaf again. */
static bool is_held(struct tree_leaf *leaf, u64 now)
{
	if (!leaf->poke_threshold_ns || elapsed(leaf->poked_at, now) >= leaf->poke_threshold_ns)
		return false;
	count_up(&leaf->pokes_held);
	return true;
}

/* Return true if a task may be interrupted for this leaf now, and note that it is. */
static bool may_poke(struct tree_leaf *leaf)
{
	u64 now = bpf_ktime_get_ns(), last = leaf->poked_at;

	return !is_held(leaf, now) && (!leaf->poke_threshold_ns || compare_and_swap(&leaf->poked_at, last, now));
}

/* Give leaf `to` a CPU of enclave `from` for one task: one that is idle, or whose task is preempted. */
static bool take_cpu(struct tree *tree, u32 to, u32 from, s32 number, bool is_idle)
{
	struct tree_leaf *leaf = leaf_at(tree, to);
	struct cpu *cpu = cpu_of(number);

	if (!cpu || !(is_idle || may_poke(leaf)) || !grant(tree, cpu, number, from, leaf->enclave, 0))
		return false;
	if (!is_idle)
		count_up(&leaf->preemptions);
	scx_bpf_kick_cpu(number, is_idle ? SCX_KICK_IDLE : SCX_KICK_PREEMPT);
	return true;
}

#endif

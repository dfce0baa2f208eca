/* SPDX-License-Identifier: GPL-2.0-only */
/* The tree of a hierarchy: its leaves and their policies, and which may take a CPU from which; see hierarchy.bpf.c. */
#ifndef GHOSTBPF_TREE_BPF_H
#define GHOSTBPF_TREE_BPF_H

#include "abi.h"
#include "sched.bpf.h"

#define ROOT ENCLAVE
#define NO_LEAF MAX_LEAVES /* the root's place among the leaves: it comes last, and may always lose a CPU */

#define POLICY_SLOTS (2 * MAX_ENCLAVES)

BPF_F_TABLE("array", u32, struct tree, trees, 1, BPF_F_MMAPABLE);
BPF_PROG_ARRAY(inner_select_cpu, POLICY_SLOTS);
BPF_PROG_ARRAY(inner_enqueue, POLICY_SLOTS);
BPF_PROG_ARRAY(inner_dispatch, POLICY_SLOTS);
BPF_PROG_ARRAY(inner_tick, POLICY_SLOTS);

/* The slot of the policy's own program; beyond the arrays if the FIFO has replaced the policy. */
static u32 inner_slot_of(u32 id, struct enclave *e)
{
	return id * 2 + (u32)(e->bank & ~(u64)LIMITED);
}

static struct tree *the_tree(void)
{
	u32 zero = 0;

	return trees.lookup(&zero);
}

static struct tree_node *node_at(struct tree *tree, u32 number)
{
	return &tree->nodes[number & (MAX_NODES - 1)];
}

static struct tree_leaf *leaf_at(struct tree *tree, u32 number)
{
	return &tree->leaves[number & (LEAF_PLACES - 1)];
}

static struct tree_parting *parting_of(struct tree *tree, u32 a, u32 b)
{
	return &tree->partings[(a & (LEAF_PLACES - 1)) * LEAF_PLACES + (b & (LEAF_PLACES - 1))];
}

/* The number of the leaf that is this enclave; NO_LEAF if it is none, as the root. */
static u32 leaf_of(struct enclave *e)
{
	return e && e->tree == ROOT && e->leaf && e->state == ENCLAVE_ACTIVE ? (e->leaf - 1) & (MAX_LEAVES - 1) : NO_LEAF;
}

/* Return true if leaf `to` may take a CPU from leaf `from`, which uses it. */
static bool may_take(struct tree *tree, u32 to, u32 from)
{
	struct tree_parting *parting = parting_of(tree, to, from);
	struct tree_node *a = node_at(tree, parting->mine), *b = node_at(tree, parting->theirs);

	if (parting->kind == ARBITER_ROCI)
		return to < from;
	/* Strictly less, or two children would take one CPU from each other for ever. */
	return b->granted > 1 && (!a->granted || (a->granted + 1) * b->weight < b->granted * a->weight);
}

/* Return true if a free CPU goes to leaf `one` rather than to leaf `other`. */
static bool goes_before(struct tree *tree, u32 one, u32 other)
{
	struct tree_parting *parting = parting_of(tree, one, other);
	struct tree_node *a = node_at(tree, parting->mine), *b = node_at(tree, parting->theirs);

	return parting->kind == ARBITER_ROCI ? one < other : a->granted * b->weight < b->granted * a->weight;
}

/*
 * Return true if a limit forbids that leaf `to` gets a CPU of leaf `from`. Computed without branches, of which the
 * verifier would follow each combination: a negative number has its highest bit set.
 */
static bool is_at_limit(struct tree *tree, u32 to, u32 from)
{
	u64 over = 0;

#pragma unroll
	for (u32 level = 0; level < TREE_DEPTH; level++) {
		u64 number = leaf_at(tree, to)->path[level], other = leaf_at(tree, from)->path[level];
		struct tree_node *node = node_at(tree, number);

		over |= (node->max_cpus - node->granted - 1) & (number - other | other - number);
	}
	return over >> 63;
}

static void count_granted(struct tree *tree, u32 leaf, s64 change)
{
#pragma unroll
	for (u32 level = 0; level < TREE_DEPTH; level++)
		__sync_fetch_and_add(&node_at(tree, leaf_at(tree, leaf)->path[level])->granted, change);
}

#endif

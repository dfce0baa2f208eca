/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The weight of a task's cgroup (cpu.weight, cpu.weight.nice, cpu.idle): the product of the weights, each divided by
 * 100, from the cgroup up to the root.
 */
#ifndef GHOSTBPF_CGROUP_WEIGHT_BPF_H
#define GHOSTBPF_CGROUP_WEIGHT_BPF_H

#include "abi.h"
#include "state.bpf.h"

struct cgroup;
struct kernfs_node;
struct task_group;

#define GROUP_DEPTH 16

/* task_group.shares of a cgroup with cpu.weight 100. */
#define DEFAULT_SHARES (1ULL << 20)

#define CGROUP_WEIGHT_MIN (1ULL << 10)
#define CGROUP_WEIGHT_MAX (1ULL << 40)

BPF_ARRAY(weights_in_use, u64, 1);

/* The number of p's cgroup, and its weight; 0 if p is in none, or no cgroup in use has a weight of its own. */
static u64 weighted_group(struct task_struct *p, u64 *weight)
{
#ifdef HAVE_sched_group_set_shares
	struct task_group *own = p->sched_task_group, *group = own;
	u32 zero = 0;
	u64 *in_use = weights_in_use.lookup(&zero), product = CGROUP_WEIGHT_ONE;

	if (!in_use || !own || !own->parent)
		return 0;
	for (u32 depth = 0; depth < GROUP_DEPTH && group; depth++) {
		u64 shares = group->shares;

		if (group->parent && shares != DEFAULT_SHARES) {
			*in_use = 1;
			product = product * (shares >> 10) >> 10;
			if (product > CGROUP_WEIGHT_MAX)
				product = CGROUP_WEIGHT_MAX;
		}
		group = group->parent;
	}
	*weight = product > CGROUP_WEIGHT_MIN ? product : CGROUP_WEIGHT_MIN;
	return *in_use ? own->css.cgroup->kn->id : 0;
#else
	return 0;
#endif
}

#endif

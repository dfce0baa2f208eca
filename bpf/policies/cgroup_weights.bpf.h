/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The weights of cgroups (cpu.weight, cpu.weight.nice, cpu.idle) as a policy with a vtime may use them.
 *
 * All tasks of a cgroup share one vtime per CPU: when one of them runs, the vtime advances by its run time divided by
 * the cgroup's weight. So a cgroup gets its share whatever the number of its tasks, and they take turns. The weight of a
 * cgroup is the product of the weights, each divided by 100, from it up to the root.
 */
#ifndef GHOSTBPF_CGROUP_WEIGHTS_BPF_H
#define GHOSTBPF_CGROUP_WEIGHTS_BPF_H

#include "abi.h"
#include "core/state.bpf.h"

struct cgroup;
struct kernfs_node;
struct task_group;

#define GROUP_DEPTH 16

/* task_group.shares of a cgroup with cpu.weight 100. */
#define DEFAULT_SHARES (1ULL << 20)

/* Fixed point for weights: 1.0. */
#define WEIGHT_ONE (1ULL << 20)
#define WEIGHT_MIN (1ULL << 10)
#define WEIGHT_MAX (1ULL << 40)

struct group_clock {
	u64 vtime;
};

BPF_TABLE("lru_hash", u64, struct group_clock, group_clocks, 16384); /* by cgroup and CPU */
BPF_ARRAY(weights_in_use, u64, 1);

/* The number of p's cgroup, and its weight; 0 if p is in none, or no cgroup in use has a weight of its own. */
static u64 weighted_group(struct task_struct *p, u64 *weight)
{
#ifdef HAVE_sched_group_set_shares
	struct task_group *own = p->sched_task_group, *group = own;
	u32 zero = 0;
	u64 *in_use = weights_in_use.lookup(&zero), product = WEIGHT_ONE;

	if (!in_use || !own || !own->parent)
		return 0;
	for (u32 depth = 0; depth < GROUP_DEPTH && group; depth++) {
		u64 shares = group->shares;

		if (group->parent && shares != DEFAULT_SHARES) {
			*in_use = 1;
			product = product * (shares >> 10) >> 10;
			if (product > WEIGHT_MAX)
				product = WEIGHT_MAX;
		}
		group = group->parent;
	}
	*weight = product > WEIGHT_MIN ? product : WEIGHT_MIN;
	return *in_use ? own->css.cgroup->kn->id : 0;
#else
	return 0;
#endif
}

/* The vtime of a cgroup on a CPU, but at least `least`. */
static struct group_clock *group_clock_of(u64 cgroup, u32 cpu, u64 least)
{
	u64 key = cgroup * MAX_CPUS + cpu;
	struct group_clock *clock, fresh = { .vtime = least };

	clock = group_clocks.lookup(&key);
	if (!clock) {
		group_clocks.update(&key, &fresh);
		clock = group_clocks.lookup(&key);
	}
	if (clock && (s64)(clock->vtime - least) < 0)
		clock->vtime = least;
	return clock;
}

#endif

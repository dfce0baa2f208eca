/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The weights of cgroups as a policy with a vtime may use them; see core/cgroup_weight.bpf.h.
 *
 * All tasks of a cgroup share one vtime per CPU: when one of them runs, the vtime advances by its run time divided by
 * the cgroup's weight. So a cgroup gets its share whatever the number of its tasks, and they take turns.
 */
#ifndef GHOSTBPF_CGROUP_WEIGHTS_BPF_H
#define GHOSTBPF_CGROUP_WEIGHTS_BPF_H

#include "abi.h"
#include "core/cgroup_weight.bpf.h"
#include "core/state.bpf.h"

struct group_clock {
	u64 vtime;
};

BPF_TABLE("lru_hash", u64, struct group_clock, group_clocks, 16384); /* by cgroup and CPU */

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

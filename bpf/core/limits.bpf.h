/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Limits of cgroups (cpu.max, cpu.max.burst): what each limited cgroup may use, and has used.
 *
 * The kernel throttles tasks of the fair class alone. The core reads the same settings from the task's group in the
 * kernel, so nothing has to tell it of a change: a tick finds the limits of the task that runs, and release.bpf.h those
 * of tasks that wait. Each kernel with cpu.max has these settings there.
 *
 * A limited cgroup gets quota_ns per period, and may keep burst_ns of what it does not use. Run time is charged to every
 * limited cgroup from the task's own upwards, when the task leaves the CPU and at each tick. A task may use more than is
 * left, by up to a tick; the cgroup then waits for that much longer, so over several periods it gets exactly its quota.
 */
#ifndef GHOSTBPF_LIMITS_BPF_H
#define GHOSTBPF_LIMITS_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "iterate.bpf.h"
#include "state.bpf.h"

/* Whether limits are applied: the kernel must have cpu.max (CONFIG_CFS_BANDWIDTH). */
#ifdef HAVE_init_cfs_bandwidth
#define CAN_LIMIT 1
#else
#define CAN_LIMIT 0
#endif

struct cgroup;
struct kernfs_node;
struct task_group;

#define MAX_CGROUP_DEPTH 16
#define NO_QUOTA (~0ULL)
#define SIGKILL_BIT (1ULL << 8)

BPF_F_TABLE("array", u32, struct cgroup_limit, limits, MAX_LIMITS, BPF_F_MMAPABLE);
BPF_HASH(limit_numbers, u64, u32, MAX_LIMITS); /* by the cgroup's id */
BPF_QUEUE(free_limits, u32, MAX_LIMITS);
BPF_ARRAY(nr_limits, u64, 1); /* limits with a number up to this have been in use */

static struct cgroup_limit *limit_at(u32 number)
{
	return limits.lookup(&number);
}

/* Take an unused limit; return its number, or 0 if there is none. */
static u32 take_limit(void)
{
	u32 zero = 0, number = 0;
	u64 *used = nr_limits.lookup(&zero);

	if (!free_limits.pop(&number))
		return number;
	if (!used || *used >= MAX_LIMITS - 1)
		return 0;
	number = count_up(used);
	return number < MAX_LIMITS ? number : 0;
}

/* The number of the limit of a cgroup, which is made if it has none; 0 if all are in use. */
static u32 limit_of_cgroup(u64 cgroup)
{
	u32 *known = limit_numbers.lookup(&cgroup), number;
	struct cgroup_limit *l;

	if (known)
		return *known;
	number = take_limit();
	l = limit_at(number);
	if (!number || !l)
		return 0;
	__builtin_memset(l, 0, sizeof(*l));
	l->cgroup = cgroup;
	if (!limit_numbers.insert(&cgroup, &number))
		return number;
	/* Another CPU was first. */
	l->cgroup = 0;
	free_limits.push(&number, BPF_ANY);
	known = limit_numbers.lookup(&cgroup);
	return known ? *known : 0;
}

/* A cgroup is removed. */
static void forget_limit(u64 cgroup)
{
	u32 *known = limit_numbers.lookup(&cgroup), number;
	struct cgroup_limit *l;

	if (!known)
		return;
	number = *known;
	l = limit_at(number);
	if (l)
		l->cgroup = l->quota_ns = 0;
	limit_numbers.delete(&cgroup);
	free_limits.push(&number, BPF_ANY);
}

/* Begin the periods whose time has come. */
static void refill(struct cgroup_limit *l, u64 now)
{
	u64 end = l->period_end, passed;
	s64 left, used, more, room;

	if ((s64)(now - end) < 0 || !l->period_ns)
		return;
	passed = (now - end) / l->period_ns + 1;
	if (!compare_and_swap(&l->period_end, end, end + passed * l->period_ns))
		return;
	left = l->runtime_ns;
	/* What was used in advance is none of the burst. */
	used = l->began_with_ns - (left > 0 ? left : 0);
	if (l->burst_ns && used > (s64)l->quota_ns) {
		l->nr_bursts++;
		l->burst_used_ns += used - l->quota_ns;
	}
	more = passed * l->quota_ns;
	room = l->quota_ns + l->burst_ns - left;
	if (more > room)
		more = room;
	l->began_with_ns = left + more;
	__sync_fetch_and_add(&l->runtime_ns, more);
	l->nr_periods += l->throttled_since ? passed : 1;
	if (!l->throttled_since)
		return;
	l->nr_throttled += passed;
	if (l->runtime_ns > 0)
		l->throttled_ns += elapsed(exchange(&l->throttled_since, 0), now);
}

/* The kernel's settings of a cgroup; a change gives it a new period with all of its quota, as in the fair class. */
static void configure(struct cgroup_limit *l, u64 quota, u64 period, u64 burst, u64 now)
{
	if (l->quota_ns == quota && l->period_ns == period && l->burst_ns == burst)
		return;
	l->quota_ns = quota;
	l->period_ns = period;
	l->burst_ns = burst;
	l->period_end = now + period;
	l->runtime_ns = l->began_with_ns = quota;
}

/* Return true if a cgroup that p is in has a limit. */
static bool has_limit(struct task_struct *p)
{
#if CAN_LIMIT
	struct task_group *group = p->sched_task_group;

	for (u32 depth = 0; depth < MAX_CGROUP_DEPTH && group; depth++) {
		if (group->cfs_bandwidth.quota != NO_QUOTA)
			return true;
		group = group->parent;
	}
#endif
	return false;
}

/*
 * Find the limits that hold for p, and note the first; return its number. The loop is an iterator because its body is
 * long: the verifier would follow each round of a plain loop.
 */
static u32 find_limit(struct task_struct *p, struct task_ctx *t, u64 now)
{
	volatile u32 first = 0, below = 0;
#if CAN_LIMIT
	struct task_group *group = p->sched_task_group;

	t->limit_group = (u64)group;
	for_each_number(depth, 0, MAX_CGROUP_DEPTH) {
		u64 quota;

		if (!group)
			break;
		quota = group->cfs_bandwidth.quota;
		if (quota != NO_QUOTA) {
			u32 number = limit_of_cgroup(group->css.cgroup->kn->id);
			struct cgroup_limit *l = limit_at(number), *child = limit_at(below);

			if (number && l) {
				l->group = (u64)group;
				configure(l, quota, group->cfs_bandwidth.period, group->cfs_bandwidth.burst, now);
				if (below && child)
					child->parent = number;
				else
					first = number;
				below = number;
			}
		}
		group = group->parent;
	}
	if (below) {
		struct cgroup_limit *last = limit_at(below);

		if (last)
			last->parent = 0;
	}
#endif
	t->limit = first;
	return first;
}

/* The number of the first limit that holds for p; a task that has changed its cgroup has others. */
static u32 limit_of(struct task_struct *p, struct task_ctx *t, u64 now)
{
	return t->limit_group == (u64)p->sched_task_group ? t->limit : find_limit(p, t, now);
}

/* Charge run time to a limit and to those above it. */
static void charge_limits(u32 number, u64 ns)
{
	for (u32 level = 0; level < MAX_CGROUP_DEPTH && number; level++) {
		struct cgroup_limit *l = limit_at(number);

		if (!l)
			return;
		__sync_fetch_and_add(&l->runtime_ns, -ns);
		__sync_fetch_and_add(&l->usage_ns, ns);
		number = l->parent;
	}
}

/* Return true if this limit and those above it have CPU time left in their current periods. */
static bool has_runtime(u32 number, u64 now)
{
	for (u32 level = 0; level < MAX_CGROUP_DEPTH && number; level++) {
		struct cgroup_limit *l = limit_at(number);

		if (!l)
			break;
		if (l->runtime_ns <= 0 || (s64)(now - l->period_end) >= 0)
			return false;
		number = l->parent;
	}
	return true;
}

/* Note when tasks of this one limit may run again; 0 if they may run now. */
static u64 note_ready(struct cgroup_limit *l, u64 now)
{
	u64 debt, at = 0;

	refill(l, now);
	debt = -l->runtime_ns;
	if ((s64)debt >= 0 && l->quota_ns) {
		at = l->period_end + debt / l->quota_ns * l->period_ns;
		l->until_ns = bpf_ktime_get_ns() + elapsed(now, at);
	}
	l->ready_at = at;
	return at;
}

/* When tasks with this limit may run again; 0 if they may run now. */
static u64 throttled_until(u32 first, u64 now)
{
	volatile u32 number = first;
	volatile u64 latest = 0;

	for_each_number(level, 0, MAX_CGROUP_DEPTH) {
		struct cgroup_limit *l = number ? limit_at(number) : NULL;
		u64 at;

		if (!l)
			break;
		at = note_ready(l, now);
		if (at > latest)
			latest = at;
		number = l->parent;
	}
	return latest;
}

/* Read a setting of a task group, which may have been freed. */
static u64 setting(u64 group, u32 offset)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)group + offset);
	return value;
}

/*
 * Before a pass over throttled tasks: follow changes of the limits that they may wait for, and note when each is ready.
 * A limit that had CPU time left when a task began to wait may have used it up. The pass itself only looks at that. It
 * must be short: in a loop over a queue, the verifier of 6.16 follows nearly each combination of branches.
 */
static void update_limits(u64 now)
{
#if CAN_LIMIT
	u32 zero = 0;
	u64 *used = nr_limits.lookup(&zero);

	if (!used)
		return;
	for_each_number(number, 1, *used < MAX_LIMITS ? *used + 1 : MAX_LIMITS) {
		struct cgroup_limit *l = limit_at(number);
		u64 quota, group;

		if (!l || !l->cgroup || (l->runtime_ns > 0 && !l->throttled_since && !l->ready_at))
			continue;
		group = l->group;
		quota = setting(group, __builtin_offsetof(struct task_group, cfs_bandwidth.quota));
		configure(l, quota == NO_QUOTA ? 0 : quota,
			  setting(group, __builtin_offsetof(struct task_group, cfs_bandwidth.period)),
			  setting(group, __builtin_offsetof(struct task_group, cfs_bandwidth.burst)), now);
		note_ready(l, now);
	}
#endif
}

/* A task waits for CPU time of these limits. */
static void note_throttled(u32 number, u64 now)
{
	for (u32 level = 0; level < MAX_CGROUP_DEPTH && number; level++) {
		struct cgroup_limit *l = limit_at(number);

		if (!l)
			return;
		if (l->runtime_ns <= 0 && !l->throttled_since)
			l->throttled_since = now;
		number = l->parent;
	}
}

/* A task that is killed or ends runs in any case. */
static bool is_ending(struct task_struct *p)
{
	return p->flags & PF_EXITING || p->pending.signal.sig[0] & SIGKILL_BIT;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all tracers use: filters, the membership of tasks in enclaves, and counts of lost data.
 *
 * A tracer is a set of functions tp_<tracepoint>(…), each attached to the kernel's tracepoint of that name.
 *
 * Filters and the breakdown are link-time constants: the verifier sees their values and removes the code that they rule
 * out. So one compiled object serves every command line, and an unused filter costs nothing.
 */
#ifndef GHOSTBPF_TRACE_BPF_H
#define GHOSTBPF_TRACE_BPF_H

#include "abi.h"
#include "trace.h"

#define PF_KTHREAD 0x00200000
#define CGROUP_DEPTH_MAX 32

struct css_set;

BPF_PERCPU_ARRAY(drops, u64, 1);
BPF_PERCPU_ARRAY(missed_times, struct missed, 1);
BPF_ARRAY(attached_at, u64, 1); /* when all programs were attached, written by user space; 0 before that */
/* The tasks of a traced command; user space marks the first. */
BPF_TASK_STORAGE(marks, u32);
/* The core's maps; empty if no core is attached. */
BPF_TASK_STORAGE(tasks, struct task_ctx);
BPF_F_TABLE("array", u32, struct enclave, enclaves, MAX_ENCLAVES, BPF_F_MMAPABLE);

/* A full map could not take a record. */
static void count_dropped(void)
{
	u32 zero = 0;
	u64 *count = drops.lookup(&zero);

	if (count)
		*count += 1;
}

static void count_missed(u64 unended, u64 unannounced)
{
	u32 zero = 0;
	struct missed *count = missed_times.lookup(&zero);

	if (!count)
		return;
	count->unended += unended;
	count->unannounced += unannounced;
}

static struct task_ctx *task_ctx_of(struct task_struct *p)
{
	return tasks.task_storage_get(p, 0, 0);
}

/* p's enclave; 0 if p is in none. */
static u32 enclave_of(struct task_struct *p)
{
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = t && t->enclave ? enclaves.lookup(&t->enclave) : NULL;

	if (t && t->departed)
		return 0;
	if (e && e->state == ENCLAVE_ACTIVE && e->generation == t->generation)
		return t->enclave;
	return LINK_CONSTANT(default_enclave);
}

static bool has_name(struct task_struct *p)
{
	u64 comm[2] = {};

	bpf_probe_read_kernel(comm, sizeof(comm), p->comm);
	return comm[0] == LINK_CONSTANT(comm_low) && comm[1] == LINK_CONSTANT(comm_high);
}

/*
 * Return true if p is in the cgroup or below it. This walks up the parents, because some kernels' BTF has a wrong
 * offset for cgroup.ancestors. The cgroup's depth cannot be derived from its path: in a cgroup namespace, or where only
 * a subtree is mounted, the path does not begin at the root.
 */
static bool is_in_cgroup(struct task_struct *p)
{
	struct css_set *set = p->cgroups;
	struct cgroup *group = set->dfl_cgrp;
	struct kernfs_node *node;
	u64 id;

	for (s32 n = 0; n < CGROUP_DEPTH_MAX && group; n++) {
		node = NULL;
		id = 0;
		bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
		bpf_probe_read_kernel(&id, sizeof(id), &node->id);
		if (id == LINK_CONSTANT(cgroup))
			return true;
		bpf_probe_read_kernel(&group, sizeof(group), &group->self.parent); /* self is the first member */
	}
	return false;
}

static bool is_in_enclave(struct task_struct *p)
{
	return enclave_of(p) == LINK_CONSTANT(enclave);
}

/* Return true if p matches the user's filters. */
static bool matches(struct task_struct *p)
{
	if (LINK_CONSTANT(tgid) && p->tgid != LINK_CONSTANT(tgid))
		return false;
	if (LINK_CONSTANT(tid) && p->pid != LINK_CONSTANT(tid))
		return false;
	if (LINK_CONSTANT(comm_low) && !has_name(p))
		return false;
	if (LINK_CONSTANT(enclave) && !is_in_enclave(p))
		return false;
	if (LINK_CONSTANT(marked) && !marks.task_storage_get(p, 0, 0))
		return false;
	if (LINK_CONSTANT(cgroup) && !is_in_cgroup(p))
		return false;
	return true;
}

/* Return true if the current CPU matches the user's CPU filter. */
static bool matches_cpu(void)
{
	return !LINK_CONSTANT(cpu_plus_1) || bpf_get_smp_processor_id() + 1 == LINK_CONSTANT(cpu_plus_1);
}

/* Attached if a command is traced: its children are part of it. */
BPF_PROG(follow_sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	if (!marks.task_storage_get(parent, 0, 0))
		return 0;
	if (!marks.task_storage_get(child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
		count_dropped();
	return 0;
}

/* Return true for the kernel's migration/N threads, the only tasks of the stop class. */
static bool is_stopper(struct task_struct *p)
{
	char name[] = { 'm', 'i', 'g', 'r', 'a', 't', 'i', 'o' };
	u64 comm = 0;

	if (!(p->flags & PF_KTHREAD))
		return false;
	bpf_probe_read_kernel(&comm, sizeof(comm), p->comm);
	return comm == *(u64 *)name;
}

/*
 * Return true if a task that leaves its CPU stays runnable: it was preempted, or it yielded. (A task that is preempted
 * on its way to sleep has its new state already, but is not asleep. A task that a pending signal keeps from sleeping is
 * runnable again by now; kernels before 6.14 still pass the state that it was about to have.)
 */
static bool stays_runnable(struct task_struct *p, bool preempt, u32 prev_state)
{
	return preempt || !prev_state || !p->__state;
}

/* How often p has left a CPU. In a sched_switch program this includes the current switch. */
static u64 switches_of(struct task_struct *p)
{
	return p->nvcsw + p->nivcsw;
}

#endif

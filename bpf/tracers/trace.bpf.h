/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all tracers stand on: filters, histograms, a record a task, and the count of what was dropped.
 *
 * A tracer is a set of functions tp_<tracepoint>(…), each attached to the kernel's tracepoint of that name. Before
 * it includes this file it may define
 *
 *   HISTS         the number of its histograms; record() adds to them
 *   TRACE_STATE   and a struct state, what it keeps of a task; state_of() and find_state() give it, zeroed at first
 *
 * Filters and the breakdown are link-time constants: the verifier sees their values, and takes out of the program
 * what they rule out. So one compiled object serves every command line, and a filter that is not used costs nothing.
 */
#ifndef GHOSTBPF_TRACE_BPF_H
#define GHOSTBPF_TRACE_BPF_H

#include "abi.h"
#include "trace.h"

#define PF_KTHREAD 0x00200000
#define CGROUP_DEPTH 32

struct css_set;

BPF_PERCPU_ARRAY(drops, u64, 1);
BPF_PERCPU_ARRAY(missed_times, struct missed, 1);
BPF_ARRAY(attached_at, u64, 1); /* when all programs were attached, by user space; 0 before that */
/* Tasks that a traced command consists of; user space marks the first. */
BPF_TASK_STORAGE(marks, u32);
/* The core's, where one is attached; else empty. */
BPF_TASK_STORAGE(tasks, struct task_ctx);
BPF_F_TABLE("array", u32, struct enclave, enclaves, MAX_ENCLAVES, BPF_F_MMAPABLE);

static void dropped(void)
{
	u32 zero = 0;
	u64 *count = drops.lookup(&zero);

	if (count)
		*count += 1;
}

static void missed(u64 unended, u64 unannounced)
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

/* The enclave that p is in; 0 if in none. */
static u32 enclave_of(struct task_struct *p)
{
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = t && t->enclave ? enclaves.lookup(&t->enclave) : NULL;

	if (t && t->left)
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
 * Is p in the cgroup, or in one below it? (cgroup.ancestors is not where BTF says in each kernel: go up, instead. How
 * deep the cgroup is cannot be told from its path: in a cgroup namespace, or below a part that is mounted, that does not
 * begin at the root.)
 */
static bool is_below(struct task_struct *p)
{
	struct css_set *set = p->cgroups;
	struct cgroup *group = set->dfl_cgrp;
	struct kernfs_node *node;
	u64 id;

	for (s32 n = 0; n < CGROUP_DEPTH && group; n++) {
		node = NULL;
		id = 0;
		bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
		bpf_probe_read_kernel(&id, sizeof(id), &node->id);
		if (id == LINK_CONSTANT(cgroup))
			return true;
		bpf_probe_read_kernel(&group, sizeof(group), &group->self.parent); /* self is what it begins with */
	}
	return false;
}

static bool is_in_enclave(struct task_struct *p)
{
	return enclave_of(p) == LINK_CONSTANT(enclave);
}

/* Does the user want to see p? */
static bool wanted(struct task_struct *p)
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
	if (LINK_CONSTANT(cgroup) && !is_below(p))
		return false;
	return true;
}

/* Does the user want to see what happens on this CPU? */
static bool wanted_here(void)
{
	return !LINK_CONSTANT(cpu_plus_1) || bpf_get_smp_processor_id() + 1 == LINK_CONSTANT(cpu_plus_1);
}

/* Attached only when a command is traced: its children are part of it. */
BPF_PROG(follow_sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	if (!marks.task_storage_get(parent, 0, 0))
		return 0;
	if (!marks.task_storage_get(child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
		dropped();
	return 0;
}

/* One of the kernel's migration/N threads, all that the stop class has? */
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
 * A task that is switched off can go on: it was preempted, or yielded. (One that is preempted on its way to sleep
 * has its new state already, and still is not asleep. One that a pending signal keeps from sleeping is runnable
 * again by now, though kernels before 6.14 pass the state that it was going to have.)
 */
static bool stays_runnable(struct task_struct *p, bool preempt, u32 prev_state)
{
	return preempt || !prev_state || !p->__state;
}

/* How often p has left a CPU; as sched_switch is traced, the time that it does so now is among them. */
static u64 switches_of(struct task_struct *p)
{
	return p->nvcsw + p->nivcsw;
}

#ifdef TRACE_STATE
BPF_TASK_STORAGE(states, struct state);

static struct state *find_state(struct task_struct *p)
{
	return states.task_storage_get(p, 0, 0);
}

/* The same, made where there is none. */
static struct state *state_of(struct task_struct *p)
{
	struct state *found = states.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!found)
		dropped();
	return found;
}
#endif

#ifdef HISTS
BPF_PERCPU_ARRAY(hists, struct hist, HISTS);
BPF_HASH(cells, struct cell_key, struct cell, 65536);
BPF_HASH(names, u64, struct task_name, 16384);

static u32 bucket_of(u64 ns)
{
	u64 value = ns >> 53 ? ~0ULL >> 1 : ns * HIST_SCALE / LINK_CONSTANT(unit), rest = value;
	u32 power = 0, bucket;

	if (value < 8)
		return value;
	if (rest >> 32) { power += 32; rest >>= 32; }
	if (rest >> 16) { power += 16; rest >>= 16; }
	if (rest >> 8) { power += 8; rest >>= 8; }
	if (rest >> 4) { power += 4; rest >>= 4; }
	if (rest >> 2) { power += 2; rest >>= 2; }
	power += rest >> 1;
	bucket = (power - 2) * 8 + (value >> (power - 3) & 7);
	return bucket < HIST_BUCKETS ? bucket : HIST_BUCKETS - 1;
}

static void keep_name(u64 id, struct task_struct *p)
{
	struct task_struct *named = LINK_CONSTANT(by) == BY_PROCESS ? p->group_leader : p;
	struct task_name name = {};

	bpf_probe_read_kernel_str(name.comm, sizeof(name.comm), named->comm);
	names.update(&id, &name);
}

/* Attached only where tasks are broken down by name: who execs goes on under the new one. */
BPF_PROG(named_sched_process_exec, struct task_struct *p)
{
	u64 id = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid : p->pid;

	if (names.lookup(&id))
		keep_name(id, p);
	return 0;
}

static void record_cell(struct cell_key *key, struct task_struct *p, u64 ns)
{
	struct cell *cell = cells.lookup(key);

	if (!cell) {
		struct cell zero = {};

		cells.insert(key, &zero);
		cell = cells.lookup(key);
		if (!cell) {
			dropped();
			return;
		}
		if (LINK_CONSTANT(by) == BY_PROCESS || LINK_CONSTANT(by) == BY_THREAD)
			keep_name(key->id, p);
	}
	__sync_fetch_and_add(&cell->count, 1);
	__sync_fetch_and_add(&cell->sum, ns);
	if (ns > cell->max)
		cell->max = ns;
}

/* Add a time to one of the tool's histograms, or where there is a breakdown, to that of id. */
static void record_for(u64 id, u32 which, struct task_struct *p, u64 ns)
{
	u32 bucket = bucket_of(ns);
	struct hist *hist;

	if (LINK_CONSTANT(by)) {
		struct cell_key key = { .id = id, .which = which, .bucket = bucket };

		record_cell(&key, p, ns);
		return;
	}
	hist = hists.lookup(&which);
	if (!hist || bucket >= HIST_BUCKETS)
		return;
	hist->count[bucket]++;
	hist->sum += ns;
	if (ns > hist->max)
		hist->max = ns;
}

/* The same, broken down by p, its process or this CPU. */
static void record(u32 which, struct task_struct *p, u64 ns)
{
	u64 id = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid :
		 LINK_CONSTANT(by) == BY_THREAD ? p->pid : bpf_get_smp_processor_id();

	record_for(id, which, p, ns);
}
#endif

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/* The state that the core, policies and agents share: the core's maps, look-ups in them, queues, and time. */
#ifndef GHOSTBPF_STATE_BPF_H
#define GHOSTBPF_STATE_BPF_H

#include "abi.h"

BPF_TASK_STORAGE(tasks, struct task_ctx);
BPF_F_TABLE("array", u32, struct enclave, enclaves, MAX_ENCLAVES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cpu, cpus, MAX_CPUS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct core, core, 1, BPF_F_MMAPABLE);
BPF_PERCPU_ARRAY(counters, struct counters, MAX_ENCLAVES);

#define SCHED_EXT 7
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000
#define MAX_RT_PRIO 100

#define PENDING_DSQ(enclave) ((u64)PENDING_DSQS | (enclave))
#define CPU_DSQ(cpu) ((u64)CPU_DSQS | (cpu))
#define VTIME_DSQ(cpu) ((u64)VTIME_DSQS | (cpu))
#define THROTTLED_DSQ(enclave) ((u64)THROTTLED_DSQS | (enclave))

#define COUNT(enclave, event)                                   \
	do {                                                    \
		struct counters *__c = counters_of(enclave);    \
		if (__c)                                        \
			__c->event++;                           \
	} while (0)

static struct counters *counters_of(u32 enclave)
{
	return counters.lookup(&enclave);
}

static struct enclave *enclave_of(u32 id)
{
	return enclaves.lookup(&id);
}

static struct cpu *cpu_of(s32 id)
{
	u32 key = id;

	return cpus.lookup(&key);
}

static struct core *the_core(void)
{
	u32 zero = 0;

	return core.lookup(&zero);
}

static struct task_ctx *task_ctx_of(struct task_struct *p)
{
	return tasks.task_storage_get(p, 0, 0);
}

/*
 * p, for loads of pointers that are only read or compared. When a program loads a pointer from a struct that the verifier
 * trusts, kernels such as 6.16 search all of their types by name, each time that they verify the load. In loops that was
 * half of the time to attach the core.
 */
static struct task_struct *untrusted(struct task_struct *p)
{
	return bpf_rdonly_cast(p, TYPE_ID(task_struct));
}

static bool is_live(struct enclave *e, u32 generation)
{
	return e->state == ENCLAVE_ACTIVE && e->generation == generation;
}

/* The enclave of a task with this record, and its struct in *e; 0 if the task is in none. */
static u32 membership(struct task_ctx *t, struct enclave **e)
{
	struct core *c;
	u32 id;

	if (t && t->enclave) {
		*e = enclave_of(t->enclave);
		if (*e && is_live(*e, t->generation))
			return t->enclave;
	}
	c = the_core();
	id = c ? c->default_enclave : 0;
	*e = enclave_of(id);
	return id && *e && (*e)->state == ENCLAVE_ACTIVE ? id : 0;
}

/* Return true if p is of a class above ext. In full mode the core schedules the fair class, too. */
static bool is_higher_class(struct task_struct *p, bool full)
{
	return p->pid && (p->prio < MAX_RT_PRIO || (!full && p->policy != SCHED_EXT));
}

/* A task is about to wait on a CPU's own queue; tracers read the time. */
static void note_latch(struct task_ctx *t, bool by_agent)
{
	t->latched_at = bpf_ktime_get_ns();
	t->committed = by_agent;
}

/* The time between two readings; 0 if `then` is later, since another CPU wrote it or its clock is ahead. */
static u64 elapsed(u64 then, u64 now)
{
	return (s64)(now - then) > 0 ? now - then : 0;
}

/* The time since a reading of CLOCK_MONOTONIC. */
static u64 ns_since(u64 then)
{
	return elapsed(then, bpf_ktime_get_ns());
}

/* The DSQ on which p waits; 0 if it is on none. */
static u64 queue_of_task(struct task_struct *p)
{
	struct scx_dispatch_q *dsq = untrusted(p)->scx.dsq;

	return dsq ? dsq->id : 0;
}

/* How long the task on this CPU has run. */
static u64 ns_on(struct cpu *cpu)
{
	return elapsed(cpu->running_since, scx_bpf_now());
}

static void set_slice(struct task_struct *p, u64 ns)
{
#ifdef HAVE_scx_bpf_task_set_slice
	scx_bpf_task_set_slice(p, ns);
#else
	p->scx.slice = ns;
#endif
}

#endif

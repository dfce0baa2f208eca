/* SPDX-License-Identifier: GPL-2.0-only */
/* Membership: how tasks join, inherit and leave enclaves, and the iterator that lists them. */
#ifndef GHOSTBPF_MEMBERSHIP_BPF_H
#define GHOSTBPF_MEMBERSHIP_BPF_H

#include "abi.h"
#include "cpus.bpf.h"
#include "departures.bpf.h"
#include "full_mode.bpf.h"
#include "slots.bpf.h"
#include "state.bpf.h"
#include "stats.bpf.h"

#define TASK_NEW 0x0800
#define TASK_FREEZABLE 0x2000
#define SCHED_BATCH 3
#define SCHED_IDLE 5

/*
 * Note the policy and priority to restore when the task leaves. A task that moves between enclaves has SCHED_EXT now
 * and keeps what was noted first. SCHED_RESET_ON_FORK is not noted: it stays set in the ext class.
 */
static void note_policy(struct task_ctx *t, struct task_struct *p)
{
	if (p->policy == SCHED_EXT)
		return;
	t->policy = p->policy;
	t->priority = p->rt_priority;
}

/*
 * Put a task into an enclave (0: out of any), before user space moves it into the ext class. A task already in the
 * class changes over when it is next enqueued, or at the next tick if it runs. args returns the previous enclave.
 */
int call_join(struct join_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->tid);
	struct task_ctx *t;
	int error = 0;

	if (!p)
		return -3; /* ESRCH */
	t = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t) {
		error = -12; /* ENOMEM */
	} else if (p->flags & PF_KTHREAD) {
		error = -22; /* EINVAL */
	} else if (p->__state == TASK_NEW) {
		error = -11; /* EAGAIN: scx_post_fork() has yet to run, and enables tasks that are in the ext class */
	} else {
		u32 enclave = t->departed ? 0 : t->enclave, generation = t->generation;

		t->enclave = args->enclave;
		t->generation = args->generation;
		t->departed = 0;
		note_policy(t, p);
		args->enclave = enclave;
		args->generation = generation;
	}
	bpf_task_release(p);
	return error;
}

/*
 * A loader is about to take a task out of the class. A task with an inherited real-time priority is out of the class
 * already, and its next class change calls no op: it counts as departed from now on.
 */
int call_release(struct join_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->tid);
	struct task_ctx *t;

	if (!p)
		return -3; /* ESRCH */
	t = task_ctx_of(p);
	if (t) {
		t->released_by = bpf_get_current_pid_tgid() >> 32;
		if (!t->enabled && p->__state != TASK_NEW)
			t->departed = 1;
	}
	bpf_task_release(p);
	return 0;
}

/*
 * A child inherits the policy to restore. If the parent has SCHED_RESET_ON_FORK, sched_fork() would not make the child
 * a real-time task, so the child inherits SCHED_BATCH and SCHED_IDLE alone.
 */
static void inherit_policy(struct task_ctx *child, struct task_ctx *parent, struct task_struct *p)
{
	u32 policy = parent->policy;

	if (p->sched_reset_on_fork && policy != SCHED_BATCH && policy != SCHED_IDLE)
		return;
	child->policy = policy;
	child->priority = parent->priority;
}

/* A child of an enclave's task is in the enclave, even if its parent left after the child was copied. */
BPF_PROG(core_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *parent, *child;

	if (!args->fork)
		return 0;
	parent = task_ctx_of(bpf_get_current_task_btf());
	if (!parent || !parent->enclave || (parent->departed && p->policy != SCHED_EXT))
		return 0;
	child = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!child)
		return -12; /* ENOMEM fails the fork; without storage the child would leave the enclave */
	child->enclave = parent->enclave;
	child->generation = parent->generation;
	inherit_policy(child, parent, bpf_get_current_task_btf());
	return 0;
}

/* In full mode every task needs storage; in partial mode the tasks that joined have it. */
BPF_PROG(core_enable, struct task_struct *p)
{
	struct task_ctx *t = tasks.task_storage_get(p, 0, FULL_MODE ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);

	if (!t)
		return 0;
	t->enabled = 1;
	if (KEEPS_STATS)
		begin_stats(p, t);
	if (t->departed)
		t->departed = t->enclave = 0;
	return 0;
}

/*
 * Leaving the ext class leaves the enclave, except during priority inheritance: a task that inherits a real-time
 * priority from a waiter for one of its locks returns later. (The task's policy cannot tell the two apart: some kernels
 * call this before they change the policy, some after.)
 */
BPF_PROG(core_disable, struct task_struct *p)
{
	struct task_ctx *t = task_ctx_of(p);
	struct task_struct *lender = p->pi_top_task;
	struct enclave *e = NULL;
	u32 id;

	if (!t)
		return 0;
	t->enabled = 0;
	t->departed = !lender || lender->prio >= MAX_RT_PRIO;
	id = membership(t, &e);
	if (id && t->departed && !(p->flags & (PF_EXITING | PF_KTHREAD)) && !is_released(t))
		note_departure(id, p);
	if (id && e)
		slot_disable.call(ctx, slot_of(id, e));
	return 0;
}

#define SYS_CLONE 56
#define SYS_FORK 57
#define SYS_VFORK 58
#define SYS_CLONE3 435

/*
 * Return true if p is in a system call that makes a task, and does not yet wait for the child that it made (vfork). The
 * saved user registers tell. They keep the last call's number until the next entry, so the result may stay true for a
 * moment too long.
 */
static bool is_forking(struct task_struct *p)
{
#ifdef bpf_target_x86
	struct pt_regs *regs = (void *)bpf_task_pt_regs(p);
	u64 call = regs->orig_ax;

	return (call == SYS_CLONE || call == SYS_FORK || call == SYS_VFORK || call == SYS_CLONE3) &&
	       !(p->__state & TASK_FREEZABLE);
#else
	return false;
#endif
}

/*
 * Return true if p is out of the class because it inherits the priority of a real-time task that waits for one of its
 * locks. Such a task is still a member. (A task that is being made is not in the class yet.)
 */
static bool is_boosted(struct task_struct *p, struct task_ctx *t)
{
	return !t->enabled && !t->departed && t->enclave && p->policy == SCHED_EXT && p->__state != TASK_NEW;
}

/* Return true if p's affinity excludes every CPU that runs e's tasks now. */
static bool runs_elsewhere(struct task_struct *p, struct enclave *e)
{
	struct core *c = the_core();

	return c && !may_run_in(e, c, p->cpus_ptr);
}

/* How often p was put on a CPU, and how long it waited and waits; nothing on kernels that do not record that. */
static void note_waits(struct task_record *record, struct task_struct *p)
{
#if HAS_SCHED_INFO
	u64 queued_at = p->sched_info.last_queued; /* by the clock of its run queue, as scx_bpf_now() */

	record->runs = p->sched_info.pcount;
	record->waited_ns = p->sched_info.run_delay;
	if (!queued_at)
		return;
	record->waiting_ns = elapsed(queued_at, scx_bpf_now()) ?: 1;
	record->queue = queue_of_task(p);
#endif
}

int iter_tasks(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct task_struct *p = ctx->task;
	struct task_record record = {};
	struct enclave *e;
	struct task_ctx *t;

	if (!p)
		return 0;
	t = task_ctx_of(p);
	if (!t)
		return 0;
	record.enabled = t->enabled || is_boosted(p, t);
	record.forking = is_forking(p);
	if (!record.enabled && !record.forking)
		return 0;
	/* One load each: the verifier refuses the one 8-byte load that LLVM would make of both. */
	record.tid = *(volatile s32 *)&p->pid;
	record.tgid = *(volatile s32 *)&p->tgid;
	e = enclave_of(t->enclave);
	if (t->enclave && e && e->state != ENCLAVE_FREE && e->generation == t->generation)
		record.enclave = t->enclave; /* also while it is destroyed: the destroyer needs its tasks */
	else
		record.enclave = membership(t, &e);
	record.elsewhere = record.enclave && e && runs_elsewhere(p, e);
	record.cpu = scx_bpf_task_cpu(p);
	record.on_cpu = p->on_cpu;
	record.runtime_ns = p->se.sum_exec_runtime;
	record.state = p->__state;
	record.migrations = p->se.nr_migrations;
	note_waits(&record, p);
	if (p->policy == SCHED_EXT) {
		record.policy = t->policy;
		record.priority = t->priority;
	} else { /* full mode */
		record.policy = p->policy;
	}
	bpf_probe_read_kernel_str(record.comm, sizeof(record.comm), p->comm);
	bpf_seq_write(meta->seq, &record, sizeof(record));
	return 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Migrations: which tasks move from which CPU to which, and why.
 *
 * The task's state tells the reason. Its affinity may exclude the old CPU. A task that is not on a runqueue is being
 * woken. A task that is on one is moved by the migration thread (load balancing, or the task's own exec), by a
 * sched_ext dispatch, or by load balancing.
 */
#include "migrations.h"

#define COUNT_KEY struct migration_key
#include "counts.bpf.h"
#include "trace.bpf.h"

static bool may_stay(struct task_struct *p)
{
	u32 cpu = p->thread_info.cpu;
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)&p->cpus_mask + cpu / 64 * sizeof(word));
	return word >> cpu % 64 & 1;
}

static u32 reason_of(struct task_struct *p)
{
	struct task_struct *mover = bpf_get_current_task_btf();

	if (!may_stay(p))
		return MOVED_AFFINITY;
	if (!p->on_rq)
		return MOVED_WAKEUP;
	if (is_stopper(mover))
		return p->in_execve ? MOVED_EXEC : MOVED_STOPPER;
	if (LINK_CONSTANT(ext_class) && (u64)p->sched_class == LINK_CONSTANT(ext_class))
		return MOVED_EXT;
	return MOVED_BALANCE;
}

static int count_move(struct task_struct *p, u32 from, u32 to, u32 reason)
{
	struct migration_key key = { .tid = p->pid, .reason = reason, .from = from, .to = to };

	bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), p->comm);
	count_event(&key);
	return 0;
}

BPF_PROG(tp_sched_migrate_task, struct task_struct *p, int to)
{
	return matches_cpu() && matches(p) ? count_move(p, p->thread_info.cpu, to, reason_of(p)) : 0;
}

/* A new task is placed without that tracepoint; recent_used_cpu is still its parent's CPU. */
BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	u32 from = p->recent_used_cpu, to = p->thread_info.cpu;

	return from != to && matches_cpu() && matches(p) ? count_move(p, from, to, MOVED_FORK) : 0;
}

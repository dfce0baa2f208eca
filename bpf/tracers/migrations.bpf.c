/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which tasks move from which CPU to which, and why.
 *
 * The reason is told from the task's state as it moves: it may not stay where it was; not on a run queue, it is being
 * woken; on one, it was moved by whoever runs then: the migration thread, itself in exec, a sched_ext dispatch, or
 * load balancing.
 */
#include "trace.bpf.h"
#include "migrations.h"

BPF_HASH(moves, struct migration_key, u64, 16384);

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

static int moved(struct task_struct *p, u32 from, u32 to, u32 reason)
{
	struct migration_key key = { .tid = p->pid, .reason = reason, .from = from, .to = to };
	u64 *count, one = 1;

	bpf_probe_read_kernel_str(key.comm, sizeof(key.comm), p->comm);
	count = moves.lookup(&key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else if (moves.insert(&key, &one)) {
		count = moves.lookup(&key);
		if (count)
			__sync_fetch_and_add(count, 1);
		else
			dropped();
	}
	return 0;
}

BPF_PROG(tp_sched_migrate_task, struct task_struct *p, int to)
{
	return wanted_here() && wanted(p) ? moved(p, p->thread_info.cpu, to, reason_of(p)) : 0;
}

/* A new task is placed without that tracepoint: it is still known where its parent was. */
BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	u32 from = p->recent_used_cpu, to = p->thread_info.cpu;

	return from != to && wanted_here() && wanted(p) ? moved(p, from, to, MOVED_FORK) : 0;
}

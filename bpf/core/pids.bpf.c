/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Translation of task ids between pid namespaces.
 *
 * BPF programs, the core's maps and its messages name a task by its id in the initial namespace. System calls and /proc
 * of a process in another namespace use that namespace's ids.
 */
#include "abi.h"
#include "pids.h"

/* The core's map; empty if no core is attached. */
BPF_TASK_STORAGE(tasks, struct task_ctx);

/* p's id in its namespace at this level, and that namespace's address in *ns; 0 if p has none. */
static s32 id_at(struct task_struct *p, u32 level, u64 *ns)
{
	struct upid upid = {};
	u64 pid = 0;
	u32 own_level = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), &p->thread_pid);
	if (!pid) /* p has ended */
		return 0;
	bpf_probe_read_kernel(&own_level, sizeof(own_level), (void *)(pid + __builtin_offsetof(struct pid, level)));
	if (own_level < level)
		return 0;
	bpf_probe_read_kernel(&upid, sizeof(upid),
			      (void *)(pid + __builtin_offsetof(struct pid, numbers) + level * sizeof(upid)));
	*ns = (u64)upid.ns;
	return upid.nr;
}

/* The number of pid namespaces above that of the calling process. */
static u32 level_of_caller(void)
{
	struct task_struct *caller = bpf_get_current_task_btf();
	u64 pid = 0;
	u32 level = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), &caller->thread_pid);
	if (pid)
		bpf_probe_read_kernel(&level, sizeof(level), (void *)(pid + __builtin_offsetof(struct pid, level)));
	return level;
}

/* The kernel runs this for each task in the caller's pid namespace or below it. */
int iter_numbers(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct task_struct *p = ctx->task;
	struct task_number ids = {};
	u64 ns;

	if (!p)
		return 0;
	ids.initial = p->pid;
	ids.local = id_at(p, level_of_caller(), &ns);
	if (ids.local)
		bpf_seq_write(meta->seq, &ids, sizeof(ids));
	return 0;
}

#ifdef HAVE_bpf_task_from_vpid
/* Look up a task's id in the initial namespace by its id in the caller's; 0 if there is no such task. */
int call_initial(struct task_number *ids)
{
	struct task_struct *p = bpf_task_from_vpid(ids->local);

	ids->initial = 0;
	if (!p)
		return 0;
	ids->initial = p->pid;
	bpf_task_release(p);
	return 0;
}
#endif

#ifdef HAVE_bpf_iter_task_new
/* Count the tasks of an enclave that are in the ext class and have no id in the caller's pid namespace. */
int call_count_hidden(struct count_args *args)
{
	struct task_struct *caller = bpf_get_current_task_btf(), *p;
	u32 level = level_of_caller();
	u64 own = 0, ns;
	struct bpf_iter_task all;

	args->tasks = 0;
	id_at(caller, level, &own);
	bpf_rcu_read_lock();
	bpf_iter_task_new(&all, NULL, BPF_TASK_ITER_ALL_THREADS);
	while ((p = bpf_iter_task_next(&all))) {
		struct task_ctx *t = tasks.task_storage_get(p, 0, 0);

		if (!t || !t->enabled || t->enclave != args->enclave || t->generation != args->generation)
			continue;
		ns = 0;
		if (!id_at(p, level, &ns) || ns != own)
			args->tasks++;
	}
	bpf_iter_task_destroy(&all);
	bpf_rcu_read_unlock();
	return 0;
}
#endif

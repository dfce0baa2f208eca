/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The numbers of tasks in two pid namespaces.
 *
 * BPF programs, the core's maps and its messages name a task by its number in the initial namespace. System calls and
 * /proc of a process in another namespace use other numbers.
 */
#include "abi.h"
#include "pids.h"

/* The core's, where one is attached; else empty. */
BPF_TASK_STORAGE(tasks, struct task_ctx);

/* The number of p in the namespace at this level; 0 where p has none. Its namespace there is stored in ns. */
static s32 number_at(struct task_struct *p, u32 level, u64 *ns)
{
	struct upid number = {};
	u64 pid = 0;
	u32 own = 0;

	bpf_probe_read_kernel(&pid, sizeof(pid), &p->thread_pid);
	if (!pid) /* p has ended */
		return 0;
	bpf_probe_read_kernel(&own, sizeof(own), (void *)(pid + __builtin_offsetof(struct pid, level)));
	if (own < level)
		return 0;
	bpf_probe_read_kernel(&number, sizeof(number),
			      (void *)(pid + __builtin_offsetof(struct pid, numbers) + level * sizeof(number)));
	*ns = (u64)number.ns;
	return number.nr;
}

/* How many pid namespaces are above that of the calling process. */
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

/* The kernel has this run for each task that is in the caller's pid namespace, or in one below it. */
int iter_numbers(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct task_struct *p = ctx->task;
	struct task_number found = {};
	u64 ns;

	if (!p)
		return 0;
	found.initial = p->pid;
	found.local = number_at(p, level_of_caller(), &ns);
	if (found.local)
		bpf_seq_write(meta->seq, &found, sizeof(found));
	return 0;
}

#ifdef HAVE_bpf_task_from_vpid
/* Tell the number in the initial namespace of one task, by that in the caller's; 0 where there is no such task. */
int call_initial(struct task_number *number)
{
	struct task_struct *p = bpf_task_from_vpid(number->local);

	number->initial = 0;
	if (!p)
		return 0;
	number->initial = p->pid;
	bpf_task_release(p);
	return 0;
}
#endif

#ifdef HAVE_bpf_iter_task_new
/* Count the tasks of an enclave that are in the ext class and have no number in the caller's pid namespace. */
int call_count_hidden(struct count_args *args)
{
	struct task_struct *caller = bpf_get_current_task_btf(), *p;
	u32 level = level_of_caller();
	u64 own = 0, ns;
	struct bpf_iter_task all;

	args->tasks = 0;
	number_at(caller, level, &own);
	bpf_rcu_read_lock();
	bpf_iter_task_new(&all, NULL, BPF_TASK_ITER_ALL_THREADS);
	while ((p = bpf_iter_task_next(&all))) {
		struct task_ctx *t = tasks.task_storage_get(p, 0, 0);

		if (!t || !t->enabled || t->enclave != args->enclave || t->generation != args->generation)
			continue;
		ns = 0;
		if (!number_at(p, level, &ns) || ns != own)
			args->tasks++;
	}
	bpf_iter_task_destroy(&all);
	bpf_rcu_read_unlock();
	return 0;
}
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Wakeups: which task wakes which, and how often.
 *
 * The waker is the task on the CPU that makes the wakeup. For a wakeup in an interrupt that is the interrupted task,
 * mostly the idle task. A wakeup of a task that still runs counts, too.
 */
#include "wakers.h"

#define COUNT_KEY struct wake_key
#include "counts.bpf.h"
#include "trace.bpf.h"

static int count_wakeup(struct task_struct *p)
{
	struct task_struct *waker = bpf_get_current_task_btf();
	struct wake_key key = {};

	if (!matches_cpu() || (!matches(p) && !matches(waker)))
		return 0;
	key.waker = LINK_CONSTANT(by) == BY_PROCESS ? waker->tgid : waker->pid;
	key.wakee = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid : p->pid;
	bpf_probe_read_kernel_str(key.waker_comm, sizeof(key.waker_comm), waker->comm);
	bpf_probe_read_kernel_str(key.wakee_comm, sizeof(key.wakee_comm), p->comm);
	count_event(&key);
	return 0;
}

BPF_PROG(tp_sched_waking, struct task_struct *p)
{
	return count_wakeup(p);
}

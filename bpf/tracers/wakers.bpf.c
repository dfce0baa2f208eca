/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who wakes whom, and how often.
 *
 * The waker is the task that was running where the wakeup was made; in an interrupt, that is whoever was interrupted,
 * mostly the idle task. A wakeup of a task that still runs is one, too.
 */
#include "trace.bpf.h"
#include "wakers.h"

BPF_HASH(wakes, struct wake_key, u64, 16384);

static int woken(struct task_struct *p)
{
	struct task_struct *waker = bpf_get_current_task_btf();
	struct wake_key key = {};
	u64 *count, one = 1;

	if (!wanted_here() || (!wanted(p) && !wanted(waker)))
		return 0;
	key.waker = LINK_CONSTANT(by) == BY_PROCESS ? waker->tgid : waker->pid;
	key.wakee = LINK_CONSTANT(by) == BY_PROCESS ? p->tgid : p->pid;
	bpf_probe_read_kernel_str(key.waker_comm, sizeof(key.waker_comm), waker->comm);
	bpf_probe_read_kernel_str(key.wakee_comm, sizeof(key.wakee_comm), p->comm);
	count = wakes.lookup(&key);
	if (count)
		__sync_fetch_and_add(count, 1);
	else if (wakes.insert(&key, &one)) {
		count = wakes.lookup(&key);
		if (count)
			__sync_fetch_and_add(count, 1);
		else
			dropped();
	}
	return 0;
}

BPF_PROG(tp_sched_waking, struct task_struct *p)
{
	return woken(p);
}

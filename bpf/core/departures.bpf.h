/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tasks that leave the ext class, and with it their enclave, without a loader: by a sched_setscheduler() of their own
 * or of another process. They are counted, and the last ones are kept by name. Kernel threads, of which full mode has some,
 * are not: their class is the kernel's business.
 */
#ifndef GHOSTBPF_DEPARTURES_BPF_H
#define GHOSTBPF_DEPARTURES_BPF_H

#include "sched.bpf.h"

BPF_F_TABLE("array", u32, struct departures, departures, MAX_ENCLAVES, BPF_F_MMAPABLE);

/* Does the process that runs now take this task out as a loader? It has said so by call_release(). */
static bool is_released(struct task_ctx *t)
{
	u32 by = t->released_by;

	t->released_by = 0;
	return by && by == (u32)(bpf_get_current_pid_tgid() >> 32);
}

/* Two tasks that leave at once take two numbers; a reader may see a record that is being written. */
static void note_departure(u32 id, struct task_struct *p)
{
	struct departures *all = departures.lookup(&id);
	struct departure *one;

	if (!all)
		return;
	one = &all->last[(count_up(&all->count) - 1) % DEPARTURES_KEPT];
	/* One load each: the verifier refuses the one 8-byte load that LLVM would make of both. */
	one->tid = *(volatile s32 *)&p->pid;
	one->tgid = *(volatile s32 *)&p->tgid;
	bpf_probe_read_kernel_str(one->comm, sizeof(one->comm), p->comm);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Departures: tasks that leave the ext class, and with it their enclave, without a loader's call_release(), for example
 * by sched_setscheduler(). The core counts them and keeps the last ones by name. Kernel threads (of which full mode has
 * some) are not counted: the kernel chooses their class.
 */
#ifndef GHOSTBPF_DEPARTURES_BPF_H
#define GHOSTBPF_DEPARTURES_BPF_H

#include "abi.h"
#include "bits.bpf.h"

BPF_F_TABLE("array", u32, struct departures, departures, MAX_ENCLAVES, BPF_F_MMAPABLE);

/* Return true if the current process is the loader that announced, by call_release(), that it takes the task out. */
static bool is_released(struct task_ctx *t)
{
	u32 by = t->released_by;

	t->released_by = 0;
	return by && by == (u32)(bpf_get_current_pid_tgid() >> 32);
}

/* Two tasks that leave at once take two numbers. Accepted race: a reader may see a record while it is written. */
static void note_departure(u32 id, struct task_struct *p)
{
	struct departures *all = departures.lookup(&id);
	struct departure *record;

	if (!all)
		return;
	record = &all->last[(count_up(&all->count) - 1) % DEPARTURES_KEPT];
	/* One load each: the verifier refuses the one 8-byte load that LLVM would make of both. */
	record->tid = *(volatile s32 *)&p->pid;
	record->tgid = *(volatile s32 *)&p->tgid;
	bpf_probe_read_kernel_str(record->comm, sizeof(record->comm), p->comm);
}

#endif

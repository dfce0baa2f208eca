/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Re-enqueueing: tasks on a CPU's local queue return to their policy when a higher class takes the CPU. Otherwise they
 * wait there as long as that class wants the CPU.
 *
 * CAN_REENQUEUE tells whether the kernel allows it at any time (from 6.19 on). Earlier kernels allow it in
 * ops.cpu_release alone, so a task goes to a local queue only when its CPU is about to run it.
 */
#ifndef GHOSTBPF_REENQUEUE_BPF_H
#define GHOSTBPF_REENQUEUE_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "state.bpf.h"

#ifdef HAVE_scx_bpf_reenqueue_local___v2
#define CAN_REENQUEUE 1

static void reenqueue_local(void)
{
	scx_bpf_reenqueue_local___v2();
}
#else
#define CAN_REENQUEUE 0
#endif

/*
 * Since 7.3 the kernel ends a scheduler that re-enqueues a task more than 256 times before it runs. After half as many,
 * no local queue is re-enqueued for a pause: the task then runs from its local queue. It could reach 256 only by
 * waiting through 128 pauses, which is longer than the kernel's watchdog allows.
 */
#define MAX_REENQUEUES 128
#define REENQUEUE_PAUSE (1000 * 1000000ULL)

static void note_reenqueue(struct task_struct *p)
{
	struct task_ctx *t = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct core *c = the_core();

	if (t && c && ++t->reenqueued >= MAX_REENQUEUES)
		c->reenqueue_after = bpf_ktime_get_ns() + REENQUEUE_PAUSE;
}

/* A CPU that goes offline is excluded: the kernel returns its tasks to the local queue without asking the policy. */
static bool may_reenqueue(s32 here)
{
	struct core *c = the_core();

	return c && has_bit(c->online, here) && elapsed(c->reenqueue_after, bpf_ktime_get_ns());
}

#endif

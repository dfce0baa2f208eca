/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Round robin: Biff's one queue, with a short slice for every task.
 *
 * A task runs for slice_ns (5 ms), then goes to the tail of the enclave's queue. The kernel counts the slice down and
 * asks for the next task when it is used up; if no task waits, the task keeps its CPU.
 *
 * Good for: a bounded wait. Of n runnable tasks on c CPUs, each runs within n / c slices. Not good for: throughput,
 * since CPU hogs are switched ten times as often as by Biff; priorities; machines with many cores (one queue).
 *
 * It demonstrates the shortest policy with preemption: the kernel's own slices do the work.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "rr.h"

BPF_F_TABLE("array", u32, struct rr_params, params, 1, BPF_F_MMAPABLE);

static u64 slice(void)
{
	u32 zero = 0;
	struct rr_params *param = params.lookup(&zero);

	return param ? param->slice_ns : SCX_SLICE_DFL;
}

BPF_PROG(rr_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return select_idle(ENCLAVE, p, prev_cpu, wake_flags, slice());
}

BPF_PROG(rr_enqueue, struct task_struct *p, u64 enq_flags)
{
	enqueue_pending(ENCLAVE, p, slice(), enq_flags);
	return 0;
}

BPF_PROG(rr_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(PENDING);
	return 0;
}

/* Tasks that the previous policy ran or queued have the slice that it gave them. */
BPF_PROG(rr_tick, struct task_struct *p)
{
	u64 most = slice();

	if (p->scx.slice > most)
		set_slice(p, most);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Round robin: Biff's queue with a short slice for everybody.
 *
 * Each task gets slice_ns (5 ms), then goes to the tail of the enclave's one queue. The kernel counts the
 * slice down and asks for the next task when it is used up; where nobody waits, the task goes on.
 *
 * Good for: a bounded wait, n tasks on c CPUs each run within n / c slices. Not good for: throughput, since
 * hogs are switched ten times as often as by Biff.
 */
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

/* Whoever the policy before put on a CPU or on the queue has the slice that it was given then. */
BPF_PROG(rr_tick, struct task_struct *p)
{
	u64 most = slice();

	if (p->scx.slice > most)
		set_slice(p, most);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Biff: ghOSt's bare-bones FIFO, all of it in BPF.
 *
 * One queue for the whole enclave. A task that becomes runnable goes to its tail, unless a CPU is idle: then
 * it runs there at once. A CPU that has nothing to run takes the head. A task keeps its CPU until it blocks or
 * yields, or until a tick finds that it has had the CPU for more than slice_ns (50 ms) while somebody waits:
 * then it goes to the tail. One that the kernel's own threads or another class interrupt goes on after them.
 *
 * Good for: throughput, with tasks that block often; nothing is shorter. Not good for: latency beside
 * hogs (each of n hogs ahead in the queue costs up to slice_ns), priorities (there are none), machines with
 * many cores (they all share one queue and its lock).
 *
 * Shows: how a policy in BPF is written here. Unlike ghOSt's Biff it honours affinity: a CPU takes the first
 * task that may run on it.
 */
#include "sched.bpf.h"
#include "biff.h"

BPF_F_TABLE("array", u32, struct biff_params, params, 1, BPF_F_MMAPABLE);

BPF_PROG(biff_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return select_idle(ENCLAVE, p, prev_cpu, wake_flags, SLICE_ENDLESS);
}

BPF_PROG(biff_enqueue, struct task_struct *p, u64 enq_flags)
{
	enqueue_pending(ENCLAVE, p, SLICE_ENDLESS, enq_flags);
	return 0;
}

BPF_PROG(biff_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(PENDING);
	return 0;
}

BPF_PROG(biff_tick, struct task_struct *p)
{
	u32 zero = 0;
	struct biff_params *param = params.lookup(&zero);
	u64 ran = SLICE_ENDLESS - p->scx.slice;

	/* It yields, or has been preempted already, and is about to leave. */
	if (!p->scx.slice)
		return 0;
	/* The policy before this one gave it that slice: its time with this one begins now. */
	if (ran > SLICE_ENDLESS / 2) {
		set_slice(p, SLICE_ENDLESS);
		return 0;
	}
	if (param && ran > param->slice_ns && scx_bpf_dsq_nr_queued(PENDING)) {
		COUNT(ENCLAVE, preempted);
		set_slice(p, 0);
	}
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Biff: ghOSt's bare-bones FIFO, entirely in BPF.
 *
 * The enclave has one queue. A task that wakes runs at once if a CPU is idle; otherwise it goes to the tail. A CPU that
 * has nothing to run takes the first task that may run on it. A task keeps its CPU until it blocks or yields, or until
 * a tick finds that it has run for more than slice_ns (50 ms) while another task waits: it then goes to the tail. A
 * task that a higher class interrupts goes to the head, with what is left of its slice.
 *
 * Good for: throughput of tasks that block often; no policy here is shorter. Not good for: latency beside CPU hogs
 * (each hog ahead in the queue costs up to slice_ns), priorities (there are none), and machines with many cores (all
 * share one queue and its lock).
 *
 * It demonstrates how to write a policy in BPF here. Unlike ghOSt's Biff it honours affinity.
 */
#include "abi.h"
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

	/* The task yields, or is preempted already, and is about to leave the CPU. */
	if (!p->scx.slice)
		return 0;
	/* The previous policy gave the task this slice: its time under Biff begins now. */
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

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A complete sched_ext scheduler: one FIFO queue for the machine, and a count of the tasks that were queued.
 *
 * A task that wakes runs at once if a CPU is idle; otherwise it waits for its turn, and then runs for the kernel's
 * default slice. Good for a first look at sched_ext. Not good for work: there are no priorities, and all CPUs share one
 * queue. It demonstrates that fifo.py attaches a scheduler without the core or an enclave.
 */
#define SHARED_DSQ 0

BPF_ARRAY(queued, u64, 1);

BPF_PROG(fifo_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);

	if (idle)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE_DFL, 0);
	return cpu;
}

BPF_PROG(fifo_enqueue, struct task_struct *p, u64 enq_flags)
{
	queued.increment(0);
	scx_bpf_dsq_insert(p, SHARED_DSQ, SCX_SLICE_DFL, enq_flags);
	return 0;
}

BPF_PROG(fifo_dispatch, s32 cpu, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

BPF_PROG(fifo_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Two FIFO schedulers: a root scheduler that accepts sub-schedulers, and a sub-scheduler for the tasks of one cgroup.
 *
 * The root scheduler grants the sub-scheduler all CPUs, and serves its tasks first. It is good for the question which
 * form of scheduler the kernel accepts on either side. It is not good for work: the root scheduler's tasks may starve.
 */
#define SHARED_DSQ 0
#define CGROUP LINK_CONSTANT(cgroup)
/* A struct scx_cmask of all CPUs, which user space writes to the arena. */
#define ALL_CIDS ((void *)LINK_CONSTANT(all_cids))

BPF_ARRAY(ran, u64, 2); /* how often a task was put on a CPU, by the root scheduler and by the sub-scheduler */
BPF_ARRAY(fails, u64, 1); /* 1: the sub-scheduler reports an error at its next task */

BPF_PROG(root_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SHARED_DSQ, SCX_SLICE_DFL, enq_flags);
	return 0;
}

BPF_PROG(root_running, struct task_struct *p)
{
	ran.increment(0);
	return 0;
}

BPF_PROG(root_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

BPF_PROG(root_dispatch, s32 here, struct task_struct *prev)
{
	if (!scx_bpf_sub_dispatch(CGROUP))
		scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

BPF_PROG(root_sub_attach, struct scx_sub_attach_args *args)
{
	return scx_bpf_sub_grant(CGROUP, SCX_CAP_ENQ | SCX_CAP_ENQ_IMMED, ALL_CIDS, NULL);
}

BPF_PROG(sub_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SHARED_DSQ, SCX_SLICE_DFL, enq_flags);
	return 0;
}

BPF_PROG(sub_dispatch, s32 here, struct task_struct *prev)
{
	scx_bpf_dsq_move_to_local(SHARED_DSQ);
	return 0;
}

BPF_PROG(sub_running, struct task_struct *p)
{
	char format[] = "asked to fail";
	u64 *failing, data[1] = {};
	u32 zero = 0;

	ran.increment(1);
	failing = fails.lookup(&zero);
	if (failing && *failing)
		scx_bpf_error_bstr(format, data, 0);
	return 0;
}

BPF_PROG(sub_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

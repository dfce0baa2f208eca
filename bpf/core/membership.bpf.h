/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs by which user space puts tasks into enclaves, and sees which are there. */
#define TASK_NEW 0x0800

/*
 * What a task is to get back when it leaves. A task that moves from one enclave to another has SCHED_EXT now, and keeps
 * what was noted first. SCHED_RESET_ON_FORK is not noted: it stays set in the ext class.
 */
static void note_policy(struct task_ctx *t, struct task_struct *p)
{
	if (p->policy == SCHED_EXT)
		return;
	t->policy = p->policy;
	t->priority = p->rt_priority;
}

/*
 * Put a task into an enclave (0: out of any), before user space moves it into the ext class. One that is in
 * the class already moves over the next time it is enqueued, or at the next tick if it runs. Where it was before
 * comes back in args.
 */
int call_join(struct join_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->tid);
	struct task_ctx *t;
	int error = 0;

	if (!p)
		return -3; /* ESRCH */
	t = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t) {
		error = -12; /* ENOMEM */
	} else if (p->flags & PF_KTHREAD) {
		error = -22; /* EINVAL */
	} else if (p->__state == TASK_NEW) {
		error = -11; /* EAGAIN: scx_post_fork() is to come, and enables whom it finds in the ext class */
	} else {
		u32 enclave = t->left ? 0 : t->enclave, generation = t->generation;

		t->enclave = args->enclave;
		t->generation = args->generation;
		t->left = 0;
		note_policy(t, p);
		args->enclave = enclave;
		args->generation = generation;
	}
	bpf_task_release(p);
	return error;
}

/*
 * A loader is about to hand a task back. A boosted task is out of the class already, and its next class change calls no
 * op: from here on it counts as having left.
 */
int call_release(struct join_args *args)
{
	struct task_struct *p = bpf_task_from_pid(args->tid);
	struct task_ctx *t;

	if (!p)
		return -3; /* ESRCH */
	t = task_ctx_of(p);
	if (t) {
		t->released_by = bpf_get_current_pid_tgid() >> 32;
		if (!t->enabled && p->__state != TASK_NEW)
			t->left = 1;
	}
	bpf_task_release(p);
	return 0;
}

/* A queue whose enclave goes away is served by every CPU until it is empty. */
int call_set_stray(struct join_args *args)
{
	struct core *c = the_core();
	u32 id = args->enclave & (MAX_ENCLAVES - 1);

	if (c)
		set_bit(&c->orphaned_queues, id, args->tid);
	return scx_bpf_dsq_nr_queued(PENDING_DSQ(id));
}

#define CLONE 56
#define FORK 57
#define VFORK 58
#define CLONE3 435
#define TASK_FREEZABLE 0x2000

/*
 * Is p in a system call that makes a task, and does not yet wait for a child that is there (vfork)? The registers
 * that p entered the kernel with say so; those of an earlier entry stay until the next, so the answer may be yes
 * for a moment too long.
 */
static bool is_forking(struct task_struct *p)
{
#ifdef bpf_target_x86
	struct pt_regs *regs = (void *)bpf_task_pt_regs(p);
	u64 call = regs->orig_ax;

	return (call == CLONE || call == FORK || call == VFORK || call == CLONE3) && !(p->__state & TASK_FREEZABLE);
#else
	return false;
#endif
}

/*
 * Is p out of the class for as long as it has the priority of a real-time task that waits for a lock of p's? It is a
 * member all the while. (A task that is being made is not in the class yet.)
 */
static bool is_boosted(struct task_struct *p, struct task_ctx *t)
{
	return !t->enabled && !t->left && t->enclave && p->policy == SCHED_EXT && p->__state != TASK_NEW;
}

/* Are all CPUs that may run p outside those of e that run its tasks now? */
static bool runs_elsewhere(struct task_struct *p, struct enclave *e)
{
	struct core *c = the_core();

	return c && !is_any_usable(e, c, p->cpus_ptr);
}

int iter_tasks(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct task_struct *p = ctx->task;
	struct task_record record = {};
	struct enclave *e;
	struct task_ctx *t;

	if (!p)
		return 0;
	t = task_ctx_of(p);
	if (!t)
		return 0;
	record.enabled = t->enabled || is_boosted(p, t);
	record.forking = is_forking(p);
	if (!record.enabled && !record.forking)
		return 0;
	/* One load each: the verifier refuses the one 8-byte load that LLVM would make of both. */
	record.tid = *(volatile s32 *)&p->pid;
	record.tgid = *(volatile s32 *)&p->tgid;
	e = enclave_of(t->enclave);
	if (t->enclave && e && e->state != ENCLAVE_FREE && e->generation == t->generation)
		record.enclave = t->enclave; /* also where the enclave is going: its destroyer looks for them */
	else
		record.enclave = membership(t, &e);
	record.elsewhere = record.enclave && e && runs_elsewhere(p, e);
	record.cpu = scx_bpf_task_cpu(p);
	record.on_cpu = p->on_cpu;
	record.runtime_ns = p->se.sum_exec_runtime;
	if (p->policy == SCHED_EXT) {
		record.policy = t->policy;
		record.priority = t->priority;
	} else { /* full mode */
		record.policy = p->policy;
	}
	bpf_probe_read_kernel_str(record.comm, sizeof(record.comm), p->comm);
	bpf_seq_write(meta->seq, &record, sizeof(record));
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a recording has from the kernel: switches, wakeups with the queue on which the task then waits, and agents'
 * transactions. (User space reads the messages to agents from their rings.)
 *
 * Transactions have no tracepoint. The kernel function that runs an agent's commit is traced instead, so that agents
 * pay nothing unless there is a recorder. It also runs other programs: the name tells them apart.
 */
#include "abi.h"
#include "record.h"
#include "trace.bpf.h"

#define MAPS_MAX 64 /* that a program uses */
#define ATTR_CTX_IN 48 /* the offset of test.ctx_in in union bpf_attr, which is part of the kernel's ABI */

BPF_RINGBUF_OUTPUT(events, 1024);

static void note(struct record *r)
{
	if (events.ringbuf_output(r, sizeof(*r), BPF_RB_NO_WAKEUP))
		count_dropped();
}

static void note_task(struct record *r, struct task_struct *p)
{
	r->tid = *(volatile s32 *)&p->pid; /* one load each: the verifier refuses one for both */
	r->tgid = p->tgid;
	r->prio = p->prio;
	bpf_probe_read_kernel(&r->comm_low, 16, p->comm);
}

static void note_other(struct record *r, struct task_struct *p)
{
	r->other = *(volatile s32 *)&p->pid;
	r->other_tgid = p->tgid;
	r->other_prio = p->prio;
	bpf_probe_read_kernel(&r->other_comm_low, 16, p->comm);
}

/* The DSQ that p waits on. All local queues have one id: the CPU is added, as in SCX_DSQ_LOCAL_ON. */
static void note_queue(struct record *r, struct task_struct *p)
{
#ifdef HAVE_scx_bpf_dsq_insert
	struct scx_dispatch_q *dsq = p->scx.dsq;
	u64 id = 0;
	u32 nr = 0;

	if (!dsq)
		return;
	bpf_probe_read_kernel(&id, sizeof(id), &dsq->id);
	bpf_probe_read_kernel(&nr, sizeof(nr), &dsq->nr);
	r->queue = id == SCX_DSQ_LOCAL ? SCX_DSQ_LOCAL_ON | p->thread_info.cpu : id;
	r->depth = nr;
#endif
}

/* p's affinity. Of more than 64 CPUs, those of a task that may not use all are in records before this one. */
static void note_allowed(struct record *r, struct task_struct *p)
{
	const void *words = p->cpus_ptr;
	struct record more = {};

	r->nr_allowed = p->nr_cpus_allowed;
	bpf_probe_read_kernel(&r->allowed, sizeof(r->allowed), words);
	if (r->nr_allowed >= LINK_CONSTANT(nr_cpus))
		return;
	for (u32 n = 1; n < CPU_WORDS && n * 64 < LINK_CONSTANT(nr_cpus); n++) {
		bpf_probe_read_kernel(&more.allowed, sizeof(more.allowed), words + n * 8);
		if (!more.allowed)
			continue;
		more.type = RECORD_AFFINITY;
		more.at = r->at;
		more.tid = r->tid;
		more.depth = n;
		note(&more);
	}
}

/* p waits for a CPU from now on. */
static void note_wait(struct record *r, struct task_struct *p)
{
	note_allowed(r, p);
	if ((u64)p->sched_class != LINK_CONSTANT(ext_class))
		return;
	r->flags |= RECORD_EXT;
	r->enclave = enclave_of(p);
	note_queue(r, p);
}

static int note_wakeup(struct task_struct *p, u32 type)
{
	struct record r = { .type = type, .at = bpf_ktime_get_boot_ns(), .cpu = bpf_get_smp_processor_id() };

	if (p->on_cpu)
		return 0;
	note_task(&r, p);
	note_other(&r, bpf_get_current_task_btf());
	r.target = p->thread_info.cpu;
	note_wait(&r, p);
	note(&r);
	return 0;
}

BPF_PROG(tp_sched_wakeup, struct task_struct *p)
{
	return note_wakeup(p, RECORD_WAKEUP);
}

BPF_PROG(tp_sched_wakeup_new, struct task_struct *p)
{
	return note_wakeup(p, RECORD_NEW);
}

/* The state of a task that leaves its CPU, as the kernel's own tracepoint prints it: its lowest bit, or 0x100. */
static u32 printed_state(struct task_struct *p, bool preempt, u32 state)
{
	if (preempt)
		return 0x100; /* TASK_REPORT_MAX */
	if ((state & 0x402) == 0x402)
		return 0x80; /* TASK_IDLE */
	state = (state | p->exit_state) & 0x7f; /* TASK_REPORT */
	return state & -state;
}

BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next, u32 prev_state)
{
	struct record r = { .type = RECORD_SWITCH, .at = bpf_ktime_get_boot_ns(), .cpu = bpf_get_smp_processor_id() };

	note_task(&r, prev);
	note_other(&r, next);
	r.state = printed_state(prev, preempt, prev_state);
	if (prev->pid && stays_runnable(prev, preempt, prev_state)) {
		r.flags = RECORD_WAITS;
		if (r.state != 0x100)
			r.state = 0; /* a signal kept it from sleeping */
		note_wait(&r, prev);
	}
	note(&r);
	return 0;
}

static u64 word_at(u64 address)
{
	u64 word = 0;

	bpf_probe_read_kernel(&word, sizeof(word), (void *)address);
	return word;
}

/* The address of the values of the map of transactions that a program uses; 0 if it uses none. */
static u64 txns_of(u64 aux)
{
	u64 used = word_at(aux + LINK_CONSTANT(aux_used_maps)), map;
	u32 count = word_at(aux + LINK_CONSTANT(aux_used_map_cnt));

	for (u32 n = 0; n < MAPS_MAX && n < count; n++) {
		map = word_at(used + n * 8);
		if (map && word_at(map + LINK_CONSTANT(map_name)) == 0x736e7874 /* txns */)
			return map + LINK_CONSTANT(array_aux) + 8; /* the values follow that pointer */
	}
	return 0;
}

/*
 * The arguments have no types, and user space finds the members' offsets: the types of programs and maps refer to those
 * of half the kernel, which bcc would have to compile.
 */
BPF_PROG(fexit_bpf_prog_test_run_syscall, u64 prog, u64 attr)
{
	struct record r = { .type = RECORD_TXN, .at = bpf_ktime_get_boot_ns(), .cpu = bpf_get_smp_processor_id() };
	u64 aux = word_at(prog + LINK_CONSTANT(prog_aux)), name = aux + LINK_CONSTANT(aux_name), txns;
	struct commit_args args = {};
	struct txn x;

	if (word_at(name) != 0x6d6f635f6c6c6163 || word_at(name + 8) != 0x74696d) /* call_commit */
		return 0;
	bpf_probe_read_user(&args, sizeof(args), (void *)word_at(attr + ATTR_CTX_IN));
	txns = txns_of(aux);
	if (!txns)
		return 0;
	note_task(&r, bpf_get_current_task_btf());
	for (u32 n = 0; n < TXNS && n < args.count; n++) {
		if (bpf_probe_read_kernel(&x, sizeof(x), (void *)(txns + (args.channel * TXNS + n) * sizeof(x))))
			break;
		r.gtid = x.gtid;
		r.depth = x.seq;
		r.target = x.cpu;
		r.state = x.state;
		r.flags = x.flags;
		r.slice_ns = x.slice_ns;
		note(&r);
	}
	return 0;
}

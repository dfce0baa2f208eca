/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The completely fair scheduler, as Linux had it until 6.5, all in BPF: CPU time in proportion to weight, which is
 * that of the nice value. (The kernel applies cpu.weight, cpu.max and cpu.idle of a cgroup to the fair class alone.)
 *
 * Each CPU has a queue in order of vtime, which is the CPU time that a task has had, divided by its weight: the first
 * in the queue has had least, and runs next. A CPU's clock is the least vtime of those that run or wait there. Whoever
 * is new begins there; whoever has slept gets half a latency of credit at most; whoever changes the CPU keeps its
 * distance from the clock. A tick preempts a task when it has had its slice (latency divided by the number of tasks,
 * but at least min_granularity) and somebody waits whose turn is before its own.
 *
 * A task that wakes runs at once where a CPU is idle; else it waits for its own CPU, or where fewer wait. A CPU that has
 * nothing to do takes the first of another's queue. Two rules keep the kernel content, which ends a scheduler that lets
 * a task wait for 30 s: what waits for a CPU that another class has taken goes to the others, and who has waited for
 * PATIENCE (nice 19 beside nice -20, for one) is next, however much it has had.
 *
 * Good for: hogs and interactive tasks side by side, and nice values that mean what they say. Not good for: wake-up
 * latency below a tick, for a wake-up preempts nobody; shares across CPUs, since a share is one of a CPU, and CPUs that
 * are all busy exchange tasks only as they wake; nice 19, whose weight the kernel rounds from 1.5 % to 1 %.
 *
 * ghOSt's cfs_bpf gave every task the same weight, looked for the least vtime among the first 100 only, had no regard to
 * affinity, and left a task on whatever CPU had heard of it first.
 */
#include "sched.bpf.h"
#include "cfs_bpf.h"

#define NICE_0_WEIGHT 100
#define STARVATION_TIMEOUT (5 * 1000000000ULL)
#define CHECK_PERIOD (50 * 1000000ULL)

/* Times in ns. */
struct fair_task {
	u64 vtime;
	u64 charged; /* the part of its run time that is in vtime */
	u64 waits_since; /* CLOCK_MONOTONIC */
	u64 home; /* 1 + the CPU whose clock its vtime goes by; 0: it is new */
};

struct fair_queue {
	u64 clock;
};

BPF_F_TABLE("array", u32, struct cfs_bpf_params, params, 1, BPF_F_MMAPABLE);
BPF_TASK_STORAGE(fair_tasks, struct fair_task);
BPF_ARRAY(queues, struct fair_queue, MAX_CPUS);

static struct fair_task *fair_task_of(struct task_struct *p)
{
	return fair_tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

static struct fair_queue *queue_of(u32 cpu)
{
	return queues.lookup(&cpu);
}

static struct cfs_bpf_params *the_params(void)
{
	u32 zero = 0;

	return params.lookup(&zero);
}

static bool is_before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

/* How long a task keeps a CPU on whose queue somebody waits. */
static u64 slice_on(s32 cpu)
{
	struct cfs_bpf_params *param = the_params();
	u64 slice;

	if (!param)
		return 0;
	slice = param->latency_ns / (1 + scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)));
	return slice > param->min_granularity_ns ? slice : param->min_granularity_ns;
}

/* p's vtime by the clock of cpu. */
static void place(struct task_struct *p, struct fair_task *t, u32 cpu)
{
	struct fair_queue *to = queue_of(cpu), *from = queue_of(t->home - 1);
	struct cfs_bpf_params *param = the_params();

	if (!to || !param)
		return;
	if (!from) {
		t->vtime = to->clock;
		t->charged = p->se.sum_exec_runtime;
	} else {
		t->vtime += to->clock - from->clock;
	}
	if (is_before(t->vtime, to->clock - param->latency_ns / 2))
		t->vtime = to->clock - param->latency_ns / 2;
	t->home = 1 + cpu;
}

/* A change of p's weight needs no more than this: the kernel takes p off its CPU, or its queue, for that moment. */
static void charge(struct task_struct *p, struct fair_task *t)
{
	u64 runtime = p->se.sum_exec_runtime;

	t->vtime += (runtime - t->charged) * NICE_0_WEIGHT / p->scx.weight;
	t->charged = runtime;
}

/* The vtime of whoever is first in cpu's queue; without anybody, no_one. */
static u64 first_vtime(s32 cpu, u64 no_one)
{
	if (scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)) > 0)
		for_each_waiting(waiting, p, VTIME_DSQ(cpu), 0)
			return p->scx.dsq_vtime;
	return no_one;
}

/* Set the clock of a CPU whose task has this vtime; is there somebody whose turn is before that task's? */
static bool set_clock(s32 cpu, u64 vtime)
{
	struct fair_queue *queue = queue_of(cpu);
	u64 first = first_vtime(cpu, vtime);
	bool behind = is_before(first, vtime);
	u64 least = behind ? first : vtime;

	if (queue && is_before(queue->clock, least))
		queue->clock = least;
	return behind;
}

/* The CPU that p is to wait for: its own, unless another class has that or fewer wait for the next. */
static s32 choose_cpu(struct enclave *e, struct core *c, struct task_struct *p, s32 own)
{
	struct cpu *cpu = cpu_of(own);
	u32 waiting = cpu && cpu->preempted_by_class ? -1U : scx_bpf_dsq_nr_queued(VTIME_DSQ(own));
	u32 total = scx_bpf_nr_cpu_ids();

	for_each_number(i, 1, waiting ? total : 1) {
		u32 id = ((u32)own + i) % total;

		cpu = cpu_of(id);
		if (cpu && !cpu->preempted_by_class && is_usable(e, c, p->cpus_ptr, id) &&
		    (u32)scx_bpf_dsq_nr_queued(VTIME_DSQ(id)) < waiting)
			return id;
	}
	return own;
}

/* A CPU, other than here, that goes, or that another class has had for a while, and tasks wait for it; -1 if none. */
static s32 find_abandoned(s32 here)
{
	struct core *c = the_core();
	struct cpu *cpu;

	for_each_cpu_of(ENCLAVE, cpu, id) {
		if (!c || id == here || !scx_bpf_dsq_nr_queued(VTIME_DSQ(id)))
			continue;
		if (!has_bit(c->online, id))
			return id;
		if (!cpu->running && ns_since(cpu->dispatched_at) > CHECK_PERIOD)
			return id;
	}
	return -1;
}

/* Has the last in here's queue waited for too long? Then, if it is to be moved, it is the first on PENDING. */
static bool is_starving(s32 here, bool move)
{
	for_each_waiting(waiting, p, VTIME_DSQ(here), SCX_DSQ_ITER_REV) {
		struct fair_task *t = fair_tasks.task_storage_get(p, 0, 0);
		bool starving = t && ns_since(t->waits_since) > STARVATION_TIMEOUT;

		if (starving && move)
			scx_bpf_dsq_move(&waiting, p, PENDING, SCX_ENQ_HEAD);
		return starving;
	}
	return false;
}

static bool is_check_due(struct cpu *cpu)
{
	return ns_since(cpu->checked_at) > CHECK_PERIOD;
}

static bool serve_overdue(struct cpu *cpu, s32 here)
{
	s32 abandoned = find_abandoned(here);

	if (abandoned >= 0 && scx_bpf_dsq_move_to_local(VTIME_DSQ(abandoned)))
		return true;
	is_starving(here, true);
	cpu->checked_at = bpf_ktime_get_ns();
	return false;
}

/* The first on another CPU's queue that may run here, from the next CPU on. */
static void steal(u32 here)
{
	u32 total = scx_bpf_nr_cpu_ids();

	for_each_number(i, 1, total) {
		u32 id = (here + i) % total;
		struct cpu *cpu = cpu_of(id);

		if (cpu && cpu->enclave == ENCLAVE && scx_bpf_dsq_nr_queued(VTIME_DSQ(id)) > 0 &&
		    scx_bpf_dsq_move_to_local(VTIME_DSQ(id)))
			return;
	}
}

BPF_PROG(cfs_bpf_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return select_idle(ENCLAVE, p, prev_cpu, wake_flags, SLICE_ENDLESS);
}

BPF_PROG(cfs_bpf_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 here = scx_bpf_task_cpu(p), cpu, idle;
	struct fair_task *t = fair_task_of(p);
	struct task_ctx *member = task_ctx_of(p);
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();

	cpu = e && c ? home_cpu(e, c, p->cpus_ptr, here) : -1;
	if (!t || !e || !c || cpu < 0 || (enq_flags & SCX_ENQ_LAST)) {
		enqueue_pending(ENCLAVE, p, SLICE_ENDLESS, enq_flags);
		return 0;
	}
	COUNT(ENCLAVE, queued);
	idle = claim_idle_cpu(e, c, p->cpus_ptr, here);
	if (idle >= 0)
		cpu = idle;
	else if (enq_flags & SCX_ENQ_WAKEUP || !t->home)
		cpu = choose_cpu(e, c, p, cpu);
	place(p, t, cpu);
	t->waits_since = bpf_ktime_get_ns();
	if (member)
		note_latch(member, false);
	scx_bpf_dsq_insert_vtime(p, VTIME_DSQ(cpu), SLICE_ENDLESS, t->vtime, enq_flags);
	/* The kernel itself makes an idle CPU look up where a task wakes. */
	if (cpu != here || (idle >= 0 && !(enq_flags & SCX_ENQ_WAKEUP)))
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	return 0;
}

BPF_PROG(cfs_bpf_dispatch, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);

	if (!cpu || (is_check_due(cpu) && serve_overdue(cpu, here)))
		return 0;
	if (scx_bpf_dsq_move_to_local(PENDING) || scx_bpf_dsq_move_to_local(VTIME_DSQ(here)))
		return 0;
	if (!prev || !(prev->scx.flags & SCX_TASK_QUEUED))
		steal(here);
	return 0;
}

BPF_PROG(cfs_bpf_running, struct task_struct *p)
{
	struct fair_task *t = fair_task_of(p);
	s32 here = scx_bpf_task_cpu(p);

	if (!t)
		return 0;
	place(p, t, here);
	t->charged = p->se.sum_exec_runtime; /* what p ran outside, boosted or as no member, cost this enclave nothing */
	set_clock(here, t->vtime);
	return 0;
}

BPF_PROG(cfs_bpf_stopping, struct task_struct *p, bool runnable)
{
	struct fair_task *t = fair_tasks.task_storage_get(p, 0, 0);

	if (t && t->home)
		charge(p, t);
	return 0;
}

BPF_PROG(cfs_bpf_tick, struct task_struct *p)
{
	struct fair_task *t = fair_task_of(p);
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	bool late;

	if (!t || !cpu)
		return 0;
	place(p, t, here);
	charge(p, t);
	late = set_clock(here, t->vtime) || scx_bpf_dsq_nr_queued(PENDING) > 0;
	late = late && ns_on(cpu) > slice_on(here);
	if (is_check_due(cpu) && (find_abandoned(here) >= 0 || is_starving(here, false))) {
		cpu->checked_at = 0; /* so that dispatch() sees it, too */
		late = true;
	}
	/* Without a slice, it yields, or has been preempted already, and is about to leave. */
	if (late && p->scx.slice) {
		COUNT(ENCLAVE, preempted);
		set_slice(p, 0);
	}
	return 0;
}

/* Whoever is first goes first, though it may have had more. */
BPF_PROG(cfs_bpf_yield, struct task_struct *from, struct task_struct *to)
{
	struct fair_task *t = fair_tasks.task_storage_get(from, 0, 0);
	u64 first;

	if (!t)
		return 0;
	first = first_vtime(scx_bpf_task_cpu(from), t->vtime);
	if (is_before(t->vtime, first))
		t->vtime = first;
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The completely fair scheduler, as Linux had it until 6.5, entirely in BPF. Tasks get CPU time in proportion to their
 * weight, which follows from the nice value. From the first tick on that finds a task in a cgroup with a cpu.weight of its
 * own, cgroups are weighed instead of their tasks; see cgroup_weights.bpf.h.
 *
 * Each CPU has a queue in order of vtime: the CPU time that a task has had, divided by its weight. The first task in
 * the queue has had the least and runs next. A CPU's clock is the least vtime of the tasks that run or wait there. A
 * new task starts at the clock; a task that slept gets at most half of latency_ns as credit; a task that changes its
 * CPU keeps its distance from the clock. A tick preempts a task when it has run for its slice (latency_ns divided by
 * the number of tasks, but at least min_granularity_ns) and a waiting task has less vtime.
 *
 * A task that wakes runs at once if a CPU is idle; otherwise it waits on its own CPU's queue, or on a shorter one. A
 * CPU that has nothing to run takes the first task of another CPU's queue. The kernel ends a scheduler that lets a task
 * wait for 30 s; two rules prevent that. Other CPUs serve the queue of a CPU that a higher class holds; and a task that
 * has waited for STARVATION_TIMEOUT (nice 19 beside nice -20, for example) runs next, whatever its vtime.
 *
 * Good for: CPU hogs and interactive tasks side by side, and nice values that work as documented. Not good for: wakeup
 * latency below a tick (a wakeup preempts no task); shares across CPUs (a share is one of a CPU, and busy CPUs exchange
 * tasks only at wakeups); nice 19 (the kernel rounds its weight from 1.5 % to 1 %).
 *
 * It demonstrates per-CPU queues ordered by vtime, and task storage of a policy's own. ghOSt's cfs_bpf gave every task
 * the same weight, searched only the first 100 tasks for the least vtime, ignored affinity, and left a task on the CPU
 * that first saw it.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "cfs_bpf.h"
#include "cgroup_weights.bpf.h"
#include "core/bits.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/state.bpf.h"

#define NICE_0_WEIGHT 100

/* fair_task.home of a task whose cgroup is weighed; no CPU has this number. */
#define IN_GROUP (MAX_CPUS + 1)
#define STARVATION_TIMEOUT (5 * 1000000000ULL)
#define STARVATION_CHECK_PERIOD (50 * 1000000ULL)

/* Times in ns. */
struct fair_task {
	u64 vtime;
	u64 charged; /* the run time that vtime includes */
	u64 waiting_since; /* CLOCK_MONOTONIC */
	u64 home; /* 1 + the CPU that provides the clock for vtime; 0: the task is new; or IN_GROUP */
	u64 group; /* the cgroup that is weighed, if home is IN_GROUP */
	u64 group_weight;
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

/* How long a task keeps a CPU while another waits on the CPU's queue. */
static u64 slice_on(s32 cpu)
{
	struct cfs_bpf_params *param = the_params();
	u64 slice;

	if (!param)
		return 0;
	slice = param->latency_ns / (1 + scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)));
	return slice > param->min_granularity_ns ? slice : param->min_granularity_ns;
}

/* Convert p's vtime to the clock of `cpu`. */
static void rebase_vtime(struct task_struct *p, struct fair_task *t, u32 cpu)
{
	struct fair_queue *to = queue_of(cpu), *from = queue_of(t->home - 1);
	struct cfs_bpf_params *param = the_params();
	struct group_clock *clock;

	if (!to || !param)
		return;
	if (!from && t->home == IN_GROUP) {
		clock = group_clock_of(t->group, cpu, to->clock - param->latency_ns / 2);
		if (clock)
			t->vtime = clock->vtime;
		return;
	}
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

/*
 * Add p's run time to its vtime, at its current weight. That is exact even when the weight changes: the kernel takes p
 * off its CPU or queue for the change, so what ran at the old weight is charged before.
 */
static void charge(struct task_struct *p, struct fair_task *t)
{
	u64 runtime = p->se.sum_exec_runtime, ran = runtime - t->charged;
	struct group_clock *clock;
	u64 weight;

	t->charged = runtime;
	if (t->home != IN_GROUP) {
		t->vtime += ran * NICE_0_WEIGHT / p->scx.weight;
		return;
	}
	clock = group_clock_of(t->group, scx_bpf_task_cpu(p), t->vtime);
	weight = t->group_weight >> 10;
	if (!clock || !weight)
		return;
	clock->vtime += (ran << 10) / weight;
	t->vtime = clock->vtime;
}

/* At a tick: find out whether p's cgroup is weighed. */
static void find_group(struct task_struct *p, struct fair_task *t)
{
	struct enclave *e = enclave_of(ENCLAVE);
	u64 group = e && !e->unlimited ? weighted_group(p, &t->group_weight) : 0;

	if (group == t->group)
		return;
	t->group = group;
	t->home = group ? IN_GROUP : 0;
	t->charged = p->se.sum_exec_runtime;
}

/* The vtime of the first task in cpu's queue; if_empty if there is none. */
static u64 first_vtime(s32 cpu, u64 if_empty)
{
	if (scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)) > 0)
		for_each_waiting(waiting, p, VTIME_DSQ(cpu), 0)
			return p->scx.dsq_vtime;
	return if_empty;
}

/* Advance a CPU's clock; vtime is that of its task. Return true if a waiting task has less vtime. */
static bool advance_clock(s32 cpu, u64 vtime)
{
	struct fair_queue *queue = queue_of(cpu);
	u64 first = first_vtime(cpu, vtime);
	bool behind = is_before(first, vtime);
	u64 least = behind ? first : vtime;

	if (queue && is_before(queue->clock, least))
		queue->clock = least;
	return behind;
}

/* Choose the CPU that p waits for: its own, unless a higher class holds that or another CPU has a shorter queue. */
static s32 choose_cpu(struct enclave *e, struct core *c, struct task_struct *p, s32 own)
{
	struct cpu *cpu = cpu_of(own);
	u32 waiting = cpu && cpu->preempted_by_class ? -1U : scx_bpf_dsq_nr_queued(VTIME_DSQ(own));
	s32 id;

	if (!waiting)
		return own;
	for_each_cpu_from((u32)own, ENCLAVE, e, cpu, id)
		if (!cpu->preempted_by_class && (u32)scx_bpf_dsq_nr_queued(VTIME_DSQ(id)) < waiting &&
		    is_usable(e, c, p->cpus_ptr, id))
			return id;
	return own;
}

/*
 * Find another CPU with waiting tasks that is offline, or that has run no task of an enclave for a while because a
 * higher class holds it; -1 if there is none.
 */
static s32 find_abandoned(s32 here)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct core *c = the_core();
	struct cpu *cpu;
	s32 id;

	if (!e || !c)
		return -1;
	for_each_cpu_of(ENCLAVE, e, cpu, id) {
		if (id == here || !scx_bpf_dsq_nr_queued(VTIME_DSQ(id)))
			continue;
		if (!has_bit(c->online, id))
			return id;
		if (!cpu->running && ns_since(cpu->dispatched_at) > STARVATION_CHECK_PERIOD)
			return id;
	}
	return -1;
}

/* Return true if the last task in this CPU's queue has waited too long. With move it goes to the head of PENDING. */
static bool is_starving(s32 here, bool move)
{
	for_each_waiting(waiting, p, VTIME_DSQ(here), SCX_DSQ_ITER_REV) {
		struct fair_task *t = fair_tasks.task_storage_get(p, 0, 0);
		bool starving = t && ns_since(t->waiting_since) > STARVATION_TIMEOUT;

		if (starving && move)
			scx_bpf_dsq_move(&waiting, p, PENDING, SCX_ENQ_HEAD);
		return starving;
	}
	return false;
}

static bool is_starvation_check_due(struct cpu *cpu)
{
	return ns_since(cpu->checked_at) > STARVATION_CHECK_PERIOD;
}

/*
 * Run a task of an abandoned CPU; return false if there is none. A starving task moves to PENDING, which is served
 * next.
 */
static bool serve_abandoned(struct cpu *cpu, s32 here)
{
	s32 abandoned = find_abandoned(here);

	if (abandoned >= 0 && scx_bpf_dsq_move_to_local(VTIME_DSQ(abandoned)))
		return true;
	is_starving(here, true);
	cpu->checked_at = bpf_ktime_get_ns();
	return false;
}

/* Run the first task on another CPU's queue that may run here, from the next CPU on. */
static void steal(u32 here)
{
	struct enclave *e = enclave_of(ENCLAVE);
	struct cpu *cpu;
	s32 id;

	if (!e)
		return;
	for_each_cpu_from(here, ENCLAVE, e, cpu, id)
		if (scx_bpf_dsq_nr_queued(VTIME_DSQ(id)) > 0 && scx_bpf_dsq_move_to_local(VTIME_DSQ(id)))
			return;
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
	rebase_vtime(p, t, cpu);
	t->waiting_since = bpf_ktime_get_ns();
	if (member)
		note_latch(member, false);
	scx_bpf_dsq_insert_vtime(p, VTIME_DSQ(cpu), SLICE_ENDLESS, t->vtime, enq_flags);
	/* On a wakeup the kernel itself makes p's own CPU ask for a task. */
	if (cpu != here || (idle >= 0 && !(enq_flags & SCX_ENQ_WAKEUP)))
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	return 0;
}

BPF_PROG(cfs_bpf_dispatch, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);

	if (!cpu || (is_starvation_check_due(cpu) && serve_abandoned(cpu, here)))
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
	rebase_vtime(p, t, here);
	/* Run time outside the enclave (boosted, or before p joined) is not charged. */
	t->charged = p->se.sum_exec_runtime;
	advance_clock(here, t->vtime);
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
	find_group(p, t);
	rebase_vtime(p, t, here);
	charge(p, t);
	late = advance_clock(here, t->vtime) || scx_bpf_dsq_nr_queued(PENDING) > 0;
	late = late && ns_on(cpu) > slice_on(here);
	if (is_starvation_check_due(cpu) && (find_abandoned(here) >= 0 || is_starving(here, false))) {
		cpu->checked_at = 0; /* dispatch() must check, too */
		late = true;
	}
	/* A task without a slice yields, or is preempted already, and is about to leave the CPU. */
	if (late && p->scx.slice) {
		COUNT(ENCLAVE, preempted);
		set_slice(p, 0);
	}
	return 0;
}

/* The first waiting task runs before the task that yields, even if it has had more CPU time. */
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

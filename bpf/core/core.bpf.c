/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The core: the one sched_ext scheduler that the kernel allows. It holds any number of enclaves.
 *
 * Each op does the work that all policies share (membership, counters, hotplug), then tail-calls the program that the
 * enclave's policy put into the slot of that op. An empty slot falls through to the built-in FIFO below. slots.bpf.h
 * tells how a live policy is replaced.
 *
 * Every runnable task is on a queue that some CPU serves:
 *
 *   - its enclave's PENDING queue, which the policy serves;
 *   - or the fallback queue, which every CPU serves. It holds tasks of no enclave, tasks that may run on no online
 *     CPU of their enclave, and tasks of an enclave that is being destroyed.
 *
 * If an enclave has lost all CPUs, its PENDING queue is marked in core.orphaned_queues, and every CPU serves it.
 */
#include "abi.h"
#include "sched.bpf.h"
#include "cpus.bpf.h"
#include "departures.bpf.h"
#include "drain.bpf.h"
#include "exit.bpf.h"
#include "full_mode.bpf.h"
#include "hotplug.bpf.h"
#include "limited.bpf.h"
#include "limits.bpf.h"
#include "membership.bpf.h"
#include "reenqueue.bpf.h"
#include "resize.bpf.h"
#include "serve.bpf.h"
#include "slots.bpf.h"
#include "state.bpf.h"
#include "stats.bpf.h"
#include "stay_alive.bpf.h"

#define FALLBACK_SLICE (5 * 1000000ULL)

/*
 * The enclave that schedules a task with this record: its own, unless the task's affinity excludes every CPU of it now,
 * or the task is a per-CPU kernel thread.
 */
static u32 scheduling_enclave(struct task_struct *p, struct task_ctx *t, struct enclave **e)
{
	u32 id = membership(t, e);
	struct core *c;

	if (!id || !*e || is_percpu_kthread(p))
		return 0;
	c = the_core();
	if (c && may_run_in(*e, c, p->cpus_ptr))
		return id;
	COUNT(id, affinity_misses);
	return 0;
}

static u32 enclave_of_task(struct task_struct *p, struct enclave **e)
{
	return scheduling_enclave(p, task_ctx_of(p), e);
}

/* The active enclave that owns this CPU; 0 if there is none. */
static u32 enclave_of_cpu(struct cpu *cpu, struct enclave **e)
{
	u32 id = cpu->enclave;

	if (!id)
		return 0;
	*e = enclave_of(id);
	return *e && (*e)->state == ENCLAVE_ACTIVE ? id : 0;
}

BPF_PROG(core_select_cpu, struct task_struct *p, s32 prev, u64 wake_flags)
{
	struct enclave *e = NULL;
	u32 id = enclave_of_task(p, &e);
	bool idle = false;
	s32 cpu;

	if (id && e) {
		slot_select_cpu.call(ctx, throttling_slot_of(id, e));
		return select_idle(id, p, prev, wake_flags, SCX_SLICE_DFL);
	}
	cpu = scx_bpf_select_cpu_dfl(p, prev, wake_flags, &idle);
	if (idle) {
		COUNT(0, idle);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, FALLBACK_SLICE, 0);
	}
	return cpu;
}

/* A task waits for a CPU that an agent spins on. The agent is of a higher class, so it must move to another CPU. */
static void request_agent_move(s32 here)
{
	struct cpu *cpu = cpu_of(here);
	struct enclave *e = NULL;

	if (cpu && enclave_of_cpu(cpu, &e) && e && spun_cpu(e) == here)
		cpu->agent_must_move = 1;
}

BPF_PROG(core_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct enclave *e = NULL;
	u32 id = enclave_of_task(p, &e);
	u64 slice = FALLBACK_SLICE;
	struct core *c;

	if (enq_flags & SCX_ENQ_REENQ)
		note_reenqueue(p);
	if (id && e) {
		slot_enqueue.call(ctx, throttling_slot_of(id, e));
		enqueue_pending(id, p, SCX_SLICE_DFL, enq_flags);
		return 0;
	}
	COUNT(0, queued);
	request_agent_move(scx_bpf_task_cpu(p));
	if (enq_flags & SCX_ENQ_LAST) {
		keep_running(p, scx_bpf_task_cpu(p), FALLBACK_SLICE, enq_flags);
		return 0;
	}
	if (kthread_boost(p, &slice, enq_flags)) {
		enqueue_boosted(p, slice, enq_flags);
		return 0;
	}
	c = the_core();
	if (c && !has_bit(c->online, scx_bpf_task_cpu(p))) {
		/* The CPU goes offline: soon it takes tasks from its local queue alone. */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, FALLBACK_SLICE, enq_flags);
		return 0;
	}
	scx_bpf_dsq_insert(p, FALLBACK_DSQ, FALLBACK_SLICE, enq_flags);
	kick_idle_for(p, NULL, NULL);
	return 0;
}

/* A higher class takes this CPU: kick an idle CPU to run the tasks on this CPU's own queues. */
static void offer_waiting_tasks(struct cpu *cpu, s32 here)
{
	struct enclave *e = NULL;

	if (!enclave_of_cpu(cpu, &e) || !e || !has_cpu_queues(e))
		return;
	if (scx_bpf_dsq_nr_queued(CPU_DSQ(here)) || scx_bpf_dsq_nr_queued(VTIME_DSQ(here))) {
		report_stuck(e);
		kick_any_idle(e, here);
	}
}

#if !CAN_REENQUEUE
/*
 * Return true if a task of a higher class waits for this CPU. These kernels ask ext for a task even then, and a task
 * fetched now could not be re-enqueued. (rq.nr_running may count a fair task that is about to sleep; the CPU then
 * idles, and the kick makes it ask again.)
 */
static bool has_higher_class_waiter(s32 cpu)
{
	struct rq *rq = scx_bpf_cpu_rq(cpu);

	return rq && rq->nr_running > rq->scx.nr_running;
}
#endif

/* The enclave's policy dispatches, or the FIFO. */
static void dispatch_policy(void *ctx, struct cpu *cpu, u32 id, struct enclave *e)
{
	if (id && e)
		slot_dispatch.call(ctx, slot_of(id, e));
	/* The FIFO has replaced a leaf's policy, and with it the arbiter's program in front of it. */
	if (id && e && e->tree && e->bank & FELL_BACK)
		slot_dispatch.call(ctx, e->tree * 2);
	/* Also for an enclave that is being destroyed: its loader may have died before it handed the tasks back. */
	if (cpu->enclave)
		scx_bpf_dsq_move_to_local(PENDING_DSQ(cpu->enclave));
}

/* Return true if a task of a higher class gets the CPU; an idle CPU of the enclave then runs what waits. */
static bool yields_to_higher_class(s32 here, u32 id, struct enclave *e)
{
#if CAN_REENQUEUE
	return false;
#else
	if (!has_higher_class_waiter(here))
		return false;
	scx_bpf_kick_cpu(here, SCX_KICK_IDLE);
	if (id && e && has_waiting_tasks(id, e, here))
		kick_any_idle(e, here);
	return true;
#endif
}

static void dispatch_waiting(void *ctx, struct cpu *cpu, s32 here, u32 id, struct enclave *e)
{
	bool policy_first;

	if (serve_fallback(cpu, here, id, e))
		return;
	policy_first = cpu->rescue_in && !--cpu->rescue_in;
	if (!policy_first && !cpu->group_hold && may_be_latched(cpu, here, e) && serve_latched(cpu, here))
		return;
	if (id && e && e->draining)
		slot_dispatch.call(ctx, DRAINING_PART);
	dispatch_policy(ctx, cpu, id, e);
}

BPF_PROG(core_dispatch, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id;

	if (!cpu || !c)
		return 0;
	cpu->dispatched_at = bpf_ktime_get_ns();
	if (cpu->stale_queues || c->orphaned_queues)
		slot_dispatch.call(ctx, ORPHANED_PART);
	id = enclave_of_cpu(cpu, &e);
	if (!yields_to_higher_class(here, id, e))
		dispatch_waiting(ctx, cpu, here, id, e);
	return 0;
}

/* core_dispatch() if tasks may wait on queues that no CPU of their enclave serves. */
BPF_PROG(part_dispatch_orphaned, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id;

	if (!cpu || !c)
		return 0;
	if (cpu->stale_queues)
		return_tasks(here, cpu->enclave);
	id = enclave_of_cpu(cpu, &e);
	if (yields_to_higher_class(here, id, e))
		return 0;
	if (!c->orphaned_queues || !serve_orphaned_queues(c->orphaned_queues))
		dispatch_waiting(ctx, cpu, here, id, e);
	return 0;
}

/* The rest of core_dispatch() if tasks may wait where the policy does not look for them. */
BPF_PROG(part_dispatch_draining, s32 here, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(here);
	struct core *c = the_core();
	struct enclave *e = NULL;
	u32 id;

	if (!cpu || !c)
		return 0;
	id = enclave_of_cpu(cpu, &e);
	if (!id || !e || !serve_draining(id, e, c))
		dispatch_policy(ctx, cpu, id, e);
	return 0;
}

BPF_PROG(core_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct enclave *e = NULL;
	u32 id = enclave_of_task(p, &e), waiting;
	bool idle;

	if (!id || !e || !cpu) {
		/* A policy that no longer schedules the task may have given it an endless slice. */
		if (p->scx.slice > FALLBACK_SLICE)
			set_slice(p, FALLBACK_SLICE);
		return 0;
	}
	waiting = nr_waiting(id, e, here);
	idle = waiting && kick_any_idle(e, here);
	if (KEEPS_STATS)
		note_depth(id, waiting, idle);
	/* A task that ran on another enclave's CPU when it joined is still there. */
	if (cpu->enclave != id || has_unmanaged_waiter(cpu, here) ||
	    (e->draining & DRAINING_QUEUES && each_draining_queue(id, e, DRAIN_CHECK)))
		set_slice(p, 0);
	else {
		find_limits(id, e, p);
		slot_tick.call(ctx, front_slot_of(id, e));
	}
	/* A policy that the FIFO has replaced may have given the task an endless slice. */
	if (e->bank & FELL_BACK && p->scx.slice > SCX_SLICE_DFL)
		set_slice(p, SCX_SLICE_DFL);
	if (e->tree && e->bank & FELL_BACK)
		slot_tick.call(ctx, e->tree * 2);
	return 0;
}

BPF_PROG(core_running, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = scheduling_enclave(p, t, &e);
	u64 now = scx_bpf_now();
	struct counters *n;

	if (!cpu)
		return 0;
	if (t && t->reenqueued)
		t->reenqueued = 0;
	cpu->running = id;
	cpu->after_sync = t ? t->after_sync : SYNC_UNKNOWN;
	allow_next_latch(cpu, here);
	cpu->running_since = now;
	n = counters_of(id);
	if (n) {
		n->switches++;
		if (KEEPS_STATS && t)
			note_wait(n, cpu, p, t, now);
	}
	if (id && e)
		slot_running.call(ctx, throttling_slot_of(id, e));
	return 0;
}

/* A task leaves its CPU after a sync wakeup: note how long it stayed, if that differs from the last time. */
static void note_sync_waker(struct cpu *cpu, struct task_struct *p, u64 now)
{
	u64 stayed = elapsed(cpu->sync_wake_at, now);
	u32 after = stayed > LINGER ? SYNC_STAYED : stayed > AT_ONCE ? SYNC_UNKNOWN : SYNC_SLEPT;
	struct task_ctx *t = after == cpu->after_sync ? NULL : task_ctx_of(p);

	if (t)
		t->after_sync = after;
	cpu->sync_wake_at = 0;
}

/*
 * A task that a higher class preempts goes back to its CPU's local queue with no callback, and waits there as long as
 * that class wants the CPU. A task with no slice left goes to ops.enqueue instead, so its slice is taken here; what was
 * left of it is noted, since the task's turn is not over. (On 6.16 even cpu_release() is not called:
 * put_prev_task_scx() returns before that.)
 */
BPF_PROG(core_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	u64 now = scx_bpf_now();
	struct task_ctx *t = NULL;
	struct counters *n;
	struct enclave *e;
	u64 ran;
	u32 id;

	if (!cpu)
		return 0;
	id = cpu->running;
	cpu->running = 0;
	cpu->ran = id;
	ran = elapsed(cpu->running_since, now);
	if (cpu->sync_wake_at)
		note_sync_waker(cpu, p, now);
	if (runnable) {
		t = task_ctx_of(p);
		if (t)
			t->slice_left_ns = p->scx.slice;
	}
	n = counters_of(id);
	if (n) {
		n->runtime_ns += ran;
		if (KEEPS_STATS)
			note_turn(n, cpu, p, t, ran, now);
	}
	if (runnable)
		set_slice(p, 0);
	/* The slot of enclave 0 is empty. */
	e = enclave_of(id);
	if (e)
		slot_stopping.call(ctx, front_slot_of(id, e));
	return 0;
}

/* Called for every task that ends, also for tasks outside the class and outside all enclaves. */
BPF_PROG(core_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = t ? membership(t, &e) : 0;

	if (id && e)
		slot_exit_task.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(core_set_cpumask, struct task_struct *p, const struct cpumask *allowed)
{
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e);

	if (id && e)
		slot_set_cpumask.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(core_set_weight, struct task_struct *p, u32 weight)
{
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(p), &e);

	if (id && e)
		slot_set_weight.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(core_yield, struct task_struct *from, struct task_struct *to)
{
	struct enclave *e = NULL;
	u32 id = membership(task_ctx_of(from), &e);

	set_slice(from, 0);
	if (id && e)
		slot_yield.call(ctx, slot_of(id, e));
	return 0;
}

/* The loops are iterators because the verifier would follow each of up to MAX_CPUS rounds of a plain loop. */
static s32 create_queues(void)
{
	s32 error = scx_bpf_create_dsq(FALLBACK_DSQ, -1);

	if (error)
		return error;
	for_each_number(id, 1, MAX_ENCLAVES) {
		error = scx_bpf_create_dsq(PENDING_DSQ(id), -1);
		if (!error)
			error = scx_bpf_create_dsq(THROTTLED_DSQ(id), -1);
		if (error)
			return error;
	}
	for_each_number(cpu, 0, scx_bpf_nr_cpu_ids()) {
		if (cpu >= MAX_CPUS)
			break;
		error = scx_bpf_create_dsq(CPU_DSQ(cpu), -1);
		if (!error)
			error = scx_bpf_create_dsq(VTIME_DSQ(cpu), -1);
		if (error)
			return error;
	}
	return 0;
}

BPF_PROG(core_init)
{
	return create_queues();
}

/* Re-enqueue local tasks when a higher class takes the CPU. */
#if CAN_REENQUEUE
BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	s32 here = bpf_get_smp_processor_id();
	struct cpu *cpu = cpu_of(here);

	if (!cpu)
		return 0;
	if (cpu->preempted_by_class)
		cpu->free_since = scx_bpf_now();
	cpu->preempted_by_class = is_higher_class(next, FULL_MODE);
	if (!cpu->preempted_by_class)
		return 0;
	cpu->free_since = NOT_FREE;
	if (has_exited())
		return 0;
	offer_waiting_tasks(cpu, here);
	if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL) > 0 && may_reenqueue(here))
		reenqueue_local();
	return 0;
}
#else
BPF_PROG(core_cpu_release, s32 here, struct scx_cpu_release_args *args)
{
	struct cpu *cpu = cpu_of(here);

	if (cpu) {
		cpu->preempted_by_class = 1;
		cpu->free_since = NOT_FREE;
		offer_waiting_tasks(cpu, here);
	}
	scx_bpf_reenqueue_local();
	return 0;
}

BPF_PROG(core_cpu_acquire, s32 here, struct scx_cpu_acquire_args *args)
{
	struct cpu *cpu = cpu_of(here);

	if (cpu) {
		cpu->preempted_by_class = 0;
		cpu->free_since = scx_bpf_now();
	}
	return 0;
}
#endif

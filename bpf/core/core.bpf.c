/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The core: the one sched_ext scheduler that the kernel allows, holding any number of enclaves.
 *
 * Each op does the work that all policies share (whose task is it, counters, hotplug) and then tail-calls
 * the program that the enclave's policy put into the slot for that op. An empty slot falls through to the
 * built-in FIFO below. A slot array has two banks; enclave.bank says which one is live, so one store in
 * user space replaces a whole policy between two events, with nothing detached and no gap.
 *
 * Nothing is ever stranded. A task waits either on its enclave's PENDING queue, which its policy serves, or
 * on the fallback queue, which every CPU serves: there go tasks of no enclave, tasks whose affinity leaves
 * them no online CPU of their enclave, and tasks of an enclave that is being destroyed. A queue that lost
 * all CPUs of its own is marked in core.strays and is then served by every CPU too.
 */
#include "sched.bpf.h"
#include "serve.bpf.h"
#include "departures.bpf.h"

#define PF_KTHREAD 0x00200000
#define SCHED_BATCH 3
#define SCHED_IDLE 5
#define FALLBACK_SLICE (5 * 1000000ULL)

BPF_PROG_ARRAY(slot_select_cpu, SLOTS);
BPF_PROG_ARRAY(slot_enqueue, SLOTS);
BPF_PROG_ARRAY(slot_dispatch, SLOTS);
BPF_PROG_ARRAY(slot_tick, SLOTS);
BPF_PROG_ARRAY(slot_running, SLOTS);
BPF_PROG_ARRAY(slot_stopping, SLOTS);
BPF_PROG_ARRAY(slot_disable, SLOTS);
BPF_PROG_ARRAY(slot_exit_task, SLOTS);
BPF_PROG_ARRAY(slot_set_cpumask, SLOTS);
BPF_PROG_ARRAY(slot_set_weight, SLOTS);
BPF_PROG_ARRAY(slot_yield, SLOTS);
BPF_ARRAY(exit_info, struct exit_record, 1);

#define FULL_MODE LINK_CONSTANT(full_mode)

/*
 * Has the kernel ended this core? Its tracepoint programs may stay for a while (a loader that died had not pinned them
 * all, or still had them open), and must not touch the scheduler that comes after it: to look for an idle CPU before
 * that one is ready for it would end it.
 */
static bool is_over(void)
{
	u32 zero = 0;
	struct exit_record *record = exit_info.lookup(&zero);

	return !record || record->kind;
}

static u32 slot_of(u32 id, struct enclave *e)
{
	return id + (e->bank ? MAX_ENCLAVES : 0);
}

/* In full mode, is this a kernel thread of one CPU? */
static bool is_percpu_kthread(struct task_struct *p)
{
	return FULL_MODE && p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1;
}

/* The enclave that schedules p: its own, unless p's affinity excludes every CPU of it now, or p is a CPU's own. */
static u32 scheduling(struct task_struct *p, struct task_ctx *t, struct enclave **e)
{
	struct core *c = the_core();
	u32 id = membership(t, e);

	if (!id || !*e || !c || is_percpu_kthread(p))
		return 0;
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (usable(*e, c, p->cpus_ptr, i))
			return id;
	COUNT(id, affinity_misses);
	return 0;
}

static u32 enclave_of_task(struct task_struct *p, struct enclave **e)
{
	return scheduling(p, task_ctx_of(p), e);
}

/* The enclave whose CPU this is; 0 where there is none. */
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
		slot_select_cpu.call(ctx, slot_of(id, e));
		return select_idle(id, p, prev, wake_flags, SCX_SLICE_DFL);
	}
	cpu = scx_bpf_select_cpu_dfl(p, prev, wake_flags, &idle);
	if (idle) {
		COUNT(0, idle);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, FALLBACK_SLICE, 0);
	}
	return cpu;
}

/* An agent that spins on this CPU outranks the task that waits for it. */
static void ask_to_move(s32 here)
{
	struct cpu *cpu = cpu_of(here);
	struct enclave *e = NULL;

	if (cpu && enclave_of_cpu(cpu, &e) && e && spun_cpu(e) == here)
		cpu->agent_must_move = 1;
}

/*
 * A CPU's own kernel thread goes first when it wakes, for it is what everything else waits for, and until it has had a
 * slice; from then on it waits on the fallback queue.
 */
static bool kthread_boost(struct task_struct *p, u64 *slice, u64 enq_flags)
{
	struct task_ctx *t = is_percpu_kthread(p) ? task_ctx_of(p) : NULL;
	u64 runtime = p->se.sum_exec_runtime;

	if (!t || enq_flags & SCX_ENQ_LAST)
		return false;
	if (enq_flags & SCX_ENQ_WAKEUP)
		t->woke_at_runtime_ns = runtime;
	*slice -= runtime - t->woke_at_runtime_ns;
	return (s64)*slice > 0;
}

/*
 * p runs next on its CPU. A task that has just been taken from the local queue does not return to it, or each switch to
 * a higher class would re-enqueue it once more: it waits on the CPU's own queue until the CPU asks for a task.
 */
static void boost(struct task_struct *p, u64 slice, u64 enq_flags)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);

	if (enq_flags & SCX_ENQ_REENQ && cpu) {
		scx_bpf_dsq_insert(p, CPU_DSQ(here), slice, enq_flags | SCX_ENQ_HEAD);
		cpu->latched = 1;
		return;
	}
	if (enq_flags & SCX_ENQ_WAKEUP)
		enq_flags |= SCX_ENQ_PREEMPT;
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
}

BPF_PROG(core_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct enclave *e = NULL;
	u32 id = enclave_of_task(p, &e);
	u64 slice = FALLBACK_SLICE;
	s32 cpu;

	if (enq_flags & SCX_ENQ_REENQ)
		note_reenqueue(p);
	if (id && e) {
		slot_enqueue.call(ctx, slot_of(id, e));
		enqueue_pending(id, p, SCX_SLICE_DFL, enq_flags);
		return 0;
	}
	COUNT(0, queued);
	ask_to_move(scx_bpf_task_cpu(p));
	if (enq_flags & SCX_ENQ_LAST) {
		go_on(p, scx_bpf_task_cpu(p), FALLBACK_SLICE, enq_flags);
		return 0;
	}
	if (kthread_boost(p, &slice, enq_flags)) {
		boost(p, slice, enq_flags);
		return 0;
	}
	scx_bpf_dsq_insert(p, FALLBACK_DSQ, FALLBACK_SLICE, enq_flags);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	scx_bpf_kick_cpu(cpu >= 0 ? cpu : scx_bpf_task_cpu(p), SCX_KICK_IDLE);
	return 0;
}

/* A queue that somebody waits on while a CPU of its enclave idles: tell that CPU. */
static void kick_idle(u32 id, struct enclave *e, s32 here)
{
	if (is_waited_for(id, e, here))
		kick_any_idle(e, here);
}

/* A higher class takes a CPU that tasks wait for on its own queues: another CPU had better run them. */
static void give_up_waiting(struct cpu *cpu, s32 here)
{
	struct enclave *e = NULL;

	if (enclave_of_cpu(cpu, &e) && e && has_cpu_queues(e) &&
	    (scx_bpf_dsq_nr_queued(CPU_DSQ(here)) || scx_bpf_dsq_nr_queued(VTIME_DSQ(here))))
		kick_any_idle(e, here);
}

#if !CAN_TAKE_BACK
/*
 * Does a higher class want this CPU? These kernels ask ext for a task even so, and one that was fetched now could not
 * be taken back. (rq.nr_running may count a fair task that is about to sleep; then the CPU idles, and is kicked.)
 */
static bool is_outranked(s32 cpu)
{
	struct rq *rq = scx_bpf_cpu_rq(cpu);

	return rq && rq->nr_running > rq->scx.nr_running;
}
#endif

BPF_PROG(core_dispatch, s32 cpu_id, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(cpu_id);
	struct core *c = the_core();
	struct enclave *e = NULL;
	bool policy_first;
	u32 id;

	if (!cpu || !c)
		return 0;
	cpu->dispatched_at = bpf_ktime_get_ns();
	id = enclave_of_cpu(cpu, &e);
#if !CAN_TAKE_BACK
	if (is_outranked(cpu_id)) {
		scx_bpf_kick_cpu(cpu_id, SCX_KICK_IDLE);
		if (id && e)
			kick_idle(id, e, cpu_id);
		return 0;
	}
#endif
	if (c->orphaned_queues && serve_orphaned_queues(c->orphaned_queues))
		return 0;
	if (serve_fallback(cpu, cpu_id, id, e))
		return 0;
	policy_first = cpu->rescue_in && !--cpu->rescue_in;
	if (!policy_first && !cpu->group_hold && may_be_latched(cpu, cpu_id, e) && serve_latched(cpu, cpu_id))
		return 0;
	if (id && e) {
		if (e->draining && each_draining_queue(id, e, SERVE))
			return 0;
		slot_dispatch.call(ctx, slot_of(id, e));
	}
	/* Also that of an enclave which is being destroyed: its loader may have died before it could hand the tasks back. */
	if (cpu->enclave)
		scx_bpf_dsq_move_to_local(PENDING_DSQ(cpu->enclave));
	return 0;
}

BPF_PROG(core_tick, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct enclave *e = NULL;
	u32 id = enclave_of_task(p, &e);

	if (!id || !e || !cpu) {
		/* What its enclave's policy gave it, when it still had one, may be without an end. */
		if (p->scx.slice > FALLBACK_SLICE)
			set_slice(p, FALLBACK_SLICE);
		return 0;
	}
	kick_idle(id, e, here);
	/* On a CPU that is not its enclave's it was running when it joined. */
	if (cpu->enclave != id || has_unmanaged_waiter(cpu, here) || (e->draining && each_draining_queue(id, e, LOOK)))
		set_slice(p, 0);
	else
		slot_tick.call(ctx, slot_of(id, e));
	return 0;
}

BPF_PROG(core_running, struct task_struct *p)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct task_ctx *t = task_ctx_of(p);
	struct enclave *e = NULL;
	u32 id = scheduling(p, t, &e);

	if (!cpu)
		return 0;
	if (t && t->reenqueued)
		t->reenqueued = 0;
	cpu->running = id;
	cpu->sync_waker_stays = t && t->sync_waker_stays;
	open_for_next(cpu, here);
	cpu->ran_at = scx_bpf_now();
	COUNT(id, switches);
	if (id && e)
		slot_running.call(ctx, slot_of(id, e));
	return 0;
}

/* Did the task that leaves this CPU do so when it was to sleep? Noted where that is news. */
static void note_lingering(struct cpu *cpu, struct task_struct *p, u64 now)
{
	bool sync_waker_stays = elapsed(cpu->sync_wake_at, now) > LINGER;
	struct task_ctx *t = sync_waker_stays == cpu->sync_waker_stays ? NULL : task_ctx_of(p);

	if (t)
		t->sync_waker_stays = sync_waker_stays;
	cpu->sync_wake_at = 0;
}

/*
 * A task that a higher class preempts goes back to its CPU's own queue with no callback, to wait there as long as
 * that class wants the CPU; but one with no slice left goes back to its policy. (On 6.16 not even cpu_release()
 * would come: put_prev_task_scx() returns before that.) What was left of the slice is kept, for its turn is not over.
 */
BPF_PROG(core_stopping, struct task_struct *p, bool runnable)
{
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));
	u64 now = scx_bpf_now();
	struct counters *n;
	struct task_ctx *t;
	struct enclave *e;
	u32 id;

	if (!cpu)
		return 0;
	id = cpu->running;
	cpu->running = 0;
	n = counters_of(id);
	if (n)
		n->runtime_ns += elapsed(cpu->ran_at, now);
	if (cpu->sync_wake_at)
		note_lingering(cpu, p, now);
	if (runnable) {
		t = task_ctx_of(p);
		if (t)
			t->left_ns = p->scx.slice;
		set_slice(p, 0);
	}
	e = enclave_of(id);
	if (id && e)
		slot_stopping.call(ctx, slot_of(id, e));
	return 0;
}

/*
 * A child gets back what its parent would: but where the parent has SCHED_RESET_ON_FORK, sched_fork() makes no child a
 * real-time task.
 */
static void inherit_policy(struct task_ctx *child, struct task_ctx *parent, struct task_struct *p)
{
	u32 policy = parent->policy;

	if (p->sched_reset_on_fork && policy != SCHED_BATCH && policy != SCHED_IDLE)
		return;
	child->policy = policy;
	child->priority = parent->priority;
}

/* A child of an enclave's task is in the enclave; also if its parent left after it had been copied. */
BPF_PROG(core_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *parent, *child;

	if (!args->fork)
		return 0;
	parent = task_ctx_of(bpf_get_current_task_btf());
	if (!parent || !parent->enclave || (parent->left && p->policy != SCHED_EXT))
		return 0;
	child = tasks.task_storage_get(p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!child)
		return -12; /* ENOMEM fails the fork, rather than let the child slip out */
	child->enclave = parent->enclave;
	child->generation = parent->generation;
	inherit_policy(child, parent, bpf_get_current_task_btf());
	return 0;
}

/* In full mode every task needs storage; in partial mode those that joined have it. */
BPF_PROG(core_enable, struct task_struct *p)
{
	struct task_ctx *t = tasks.task_storage_get(p, 0, FULL_MODE ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);

	if (!t)
		return 0;
	t->enabled = 1;
	if (t->left)
		t->left = t->enclave = 0;
	return 0;
}

/*
 * Out of the class is out of the enclave, whoever did it: the task itself, the loader, or its exit. But a task that
 * is lent a real-time priority, by one that waits for a lock of its, will be back. (Its policy does not tell: some
 * kernels call this after they have set a new one, some before.)
 */
BPF_PROG(core_disable, struct task_struct *p)
{
	struct task_ctx *t = task_ctx_of(p);
	struct task_struct *lender = p->pi_top_task;
	struct enclave *e = NULL;
	u32 id;

	if (!t)
		return 0;
	t->enabled = 0;
	t->left = !lender || lender->prio >= MAX_RT_PRIO;
	id = membership(t, &e);
	if (id && t->left && !(p->flags & (PF_EXITING | PF_KTHREAD)) && !is_released(t))
		note_departure(id, p);
	if (id && e)
		slot_disable.call(ctx, slot_of(id, e));
	return 0;
}

/* Also of tasks that are in no enclave and in no class of ours, as they end. */
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

BPF_PROG(core_init)
{
	s32 error = scx_bpf_create_dsq(FALLBACK_DSQ, -1);

	for (u32 id = 1; id < MAX_ENCLAVES && !error; id++)
		error = scx_bpf_create_dsq(PENDING_DSQ(id), -1);
	for (u32 cpu = 0; cpu < MAX_CPUS && cpu < scx_bpf_nr_cpu_ids() && !error; cpu++) {
		error = scx_bpf_create_dsq(CPU_DSQ(cpu), -1);
		if (!error)
			error = scx_bpf_create_dsq(VTIME_DSQ(cpu), -1);
	}
	return error;
}

/* Tasks on this CPU's local queue return to their policy when a higher class takes the CPU. */
#if CAN_TAKE_BACK
BPF_PROG(tp_sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	s32 here = bpf_get_smp_processor_id();
	struct cpu *cpu = cpu_of(here);

	if (!cpu)
		return 0;
	cpu->preempted_by_class = is_higher_class(next, FULL_MODE);
	if (!cpu->preempted_by_class || is_over())
		return 0;
	give_up_waiting(cpu, here);
	if (scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL) > 0 && may_reenqueue(here))
		take_back();
	return 0;
}
#else
BPF_PROG(core_cpu_release, s32 here, struct scx_cpu_release_args *args)
{
	struct cpu *cpu = cpu_of(here);

	if (cpu) {
		cpu->preempted_by_class = 1;
		give_up_waiting(cpu, here);
	}
	scx_bpf_reenqueue_local();
	return 0;
}

BPF_PROG(core_cpu_acquire, s32 here, struct scx_cpu_acquire_args *args)
{
	struct cpu *cpu = cpu_of(here);

	if (cpu)
		cpu->preempted_by_class = 0;
	return 0;
}
#endif

#include "exit.bpf.h"
#include "membership.bpf.h"

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interface for policies. A policy's C uses nothing but bcc's map macros, kernel functions by name, and this
 * header.
 *
 * A policy is a set of functions <policy>_<op>(…), each with the arguments of the sched_ext op of that name; the core's
 * FIFO replaces ops that a policy leaves out. A policy schedules one enclave, ENCLAVE; the number is known when the
 * policy is linked. The core guarantees:
 *
 *   - Each task that the policy sees is in ENCLAVE and may run on at least one online CPU of it.
 *   - PENDING is the enclave's FIFO queue. Tasks that the previous policy left there stay, in order and with the slice
 *     they had, so every policy must serve PENDING.
 *   - VTIME_DSQ(cpu) is a CPU's own queue, in order of vtime, for a policy that is registered as using CPU queues.
 *     Tasks left there move to PENDING when another policy replaces this one.
 *   - Nothing else inserts into the enclave's queues, and dispatch() is called for CPUs of the enclave alone.
 */
#ifndef GHOSTBPF_SCHED_BPF_H
#define GHOSTBPF_SCHED_BPF_H

#include "abi.h"
#include "core/bits.bpf.h"
#include "core/cpus.bpf.h"
#include "core/iterate.bpf.h"
#include "core/reenqueue.bpf.h"
#include "core/state.bpf.h"

#define ENCLAVE ((u32)LINK_CONSTANT(enclave))
#define PENDING PENDING_DSQ(ENCLAVE)

/* Too long to expire. SCX_SLICE_INF would allow a nohz_full CPU to stop its tick. */
#define SLICE_ENDLESS (1ULL << 62)

/* A waker that still runs this long after a sync wakeup was not about to sleep. */
#define LINGER (1000 * 1000ULL)

/* A waker that sleeps within this time leaves its CPU sooner than another CPU would leave a deep idle state. */
#define AT_ONCE (50 * 1000ULL)

/*
 * Return true if a task of e that wakes may follow the waker on CPU `here`: the CPU is e's, the waker is a task of e,
 * and no task waits for the CPU.
 */
static bool may_follow(struct cpu *cpu, s32 here, u32 id, struct enclave *e, struct core *c, const struct cpumask *allowed)
{
	return cpu->running == id && is_usable(e, c, allowed, here) &&
	       !scx_bpf_dsq_nr_queued(SCX_DSQ_LOCAL_ON | here) && !has_waiting_tasks(id, e, here);
}

/*
 * A CPU that p, which wakes, may run on at once: an idle CPU, which is then marked busy, or that of a waker that is
 * about to sleep (WAKE_SYNC). -1 if there is none.
 *
 * Every write to a pipe makes a sync wakeup, so what the waker did after its previous one decides. A waker that sleeps
 * at once is preferred to an idle CPU: its CPU's cache has what it wrote for p, and no CPU has to leave its idle state.
 */
static s32 claim_cpu(u32 id, struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev, u64 wake_flags)
{
	s32 here = bpf_get_smp_processor_id(), cpu;
	struct cpu *waker = wake_flags & SCX_WAKE_SYNC ? cpu_of(here) : NULL;
	u32 after_sync = SYNC_STAYED;

	if (waker && may_follow(waker, here, id, e, c, allowed)) {
		waker->sync_wake_at = scx_bpf_now();
		after_sync = waker->after_sync;
	}
	if (after_sync == SYNC_SLEPT)
		return here;
	cpu = claim_idle_cpu(e, c, allowed, prev);
	return cpu < 0 && after_sync == SYNC_UNKNOWN ? here : cpu;
}

/*
 * ops.select_cpu for most policies: run p at once on the CPU of claim_cpu(), for slice ns; if there is none, p will be
 * enqueued. On the CPU of a waker, p skips the queue; if the waker does not sleep after all, p runs at the next tick.
 *
 * Without CAN_REENQUEUE a fair task that wakes at the same moment could take the CPU and strand p on its local queue.
 * There p goes through the queue: enqueue_pending() finds the CPU that was chosen here idle, and kicks it.
 */
static s32 select_idle(u32 id, struct task_struct *p, s32 prev, u64 wake_flags, u64 slice)
{
	struct enclave *e = enclave_of(id);
	struct core *c = the_core();
	s32 cpu;

	if (!e || !c)
		return prev;
#if CAN_REENQUEUE
	cpu = claim_cpu(id, e, c, p->cpus_ptr, prev, wake_flags);
	if (cpu >= 0)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, 0);
#else
	cpu = find_idle_cpu(e, c, p->cpus_ptr, prev);
#endif
	if (cpu >= 0) {
		COUNT(id, idle);
		return cpu;
	}
	cpu = home_cpu(e, c, p->cpus_ptr, prev);
	return cpu >= 0 ? cpu : prev;
}

/*
 * ops.enqueue with SCX_ENQ_LAST: p, the last runnable task of CPU `here`, keeps the CPU.
 *
 * The CPU has already chosen to idle. On kernels up to 6.18 at least, an insert from enqueue() does not make it choose
 * again: without the kick, p would wait until another event woke the CPU.
 */
static void keep_running(struct task_struct *p, s32 here, u64 slice, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
	scx_bpf_kick_cpu(here, 0);
}

/* Return true if a higher class interrupted p's turn. *slice is then reduced to what is left of p's slice. */
static bool is_interrupted(struct task_struct *p, u64 *slice, u64 enq_flags)
{
	struct task_ctx *t;
	u64 left;

	if (enq_flags & SCX_ENQ_WAKEUP)
		return false;
	if (enq_flags & SCX_ENQ_REENQ)
		return true;
	t = task_ctx_of(p);
	if (!t || !t->slice_left_ns)
		return false;
	left = t->slice_left_ns;
	t->slice_left_ns = 0;
	if (left < *slice)
		*slice = left;
	return true;
}

/*
 * Queue p on the enclave's PENDING queue and kick an idle CPU. Return true if p waits because no CPU was idle.
 *
 * A kick is delivered after the insert has taken effect. A CPU that turns idle between the look at the idle mask and
 * the insert gets no kick. If it is p's own CPU, the kernel reschedules it. If p's own CPU is not usable, a usable one
 * is kicked whatever it does. Otherwise the next tick in the enclave finds p.
 */
static bool enqueue_for(u32 id, struct task_struct *p, u64 slice, u64 enq_flags)
{
	struct enclave *e = enclave_of(id);
	struct core *c = the_core();
	s32 here = scx_bpf_task_cpu(p), cpu;

	COUNT(id, queued);
	/* No other task wants p's CPU: p keeps it, unless the CPU is not usable. */
	if (enq_flags & SCX_ENQ_LAST && e && c && is_usable(e, c, p->cpus_ptr, here)) {
		keep_running(p, here, slice, enq_flags);
		return false;
	}
	scx_bpf_dsq_insert(p, PENDING_DSQ(id), slice, enq_flags);
	if (!e || !c)
		return true;
	cpu = claim_idle_cpu(e, c, p->cpus_ptr, here);
	if (cpu >= 0) {
		/* On a wakeup the kernel itself makes p's own CPU ask for a task. */
		if (cpu != here || !(enq_flags & SCX_ENQ_WAKEUP))
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return false;
	}
	if (!is_usable(e, c, p->cpus_ptr, here)) {
		cpu = home_cpu(e, c, p->cpus_ptr, here);
		if (cpu >= 0)
			scx_bpf_kick_cpu(cpu, 0);
	}
	return true;
}

/* ops.enqueue for most policies: p goes to the tail of the enclave's queue, or to its head if p was interrupted. */
static void enqueue_pending(u32 id, struct task_struct *p, u64 slice, u64 enq_flags)
{
	if (is_interrupted(p, &slice, enq_flags))
		enq_flags |= SCX_ENQ_HEAD;
	enqueue_for(id, p, slice, enq_flags);
}

#endif

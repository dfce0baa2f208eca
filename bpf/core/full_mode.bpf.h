/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Full mode: the core schedules every task of the fair class, kernel threads included. No enclave schedules a kernel
 * thread that is bound to one CPU: other tasks, agents among them, wait for its work.
 */
#ifndef GHOSTBPF_FULL_MODE_BPF_H
#define GHOSTBPF_FULL_MODE_BPF_H

#include "abi.h"
#include "cpus.bpf.h"
#include "state.bpf.h"

#define FULL_MODE LINK_CONSTANT(full_mode)

/* Return true in full mode if p is a kernel thread bound to one CPU. */
static bool is_percpu_kthread(struct task_struct *p)
{
	return FULL_MODE && p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1;
}

/*
 * Return true if a per-CPU kernel thread goes before all other tasks: from its wakeup until it has run for a slice.
 * *slice is reduced to what is left of that slice. Afterwards the thread waits on the fallback queue.
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
 * Run p next on its CPU. A task that was just taken from the local queue does not return to it, or each switch to a
 * higher class would re-enqueue it again: it waits on the CPU's own queue until the CPU asks for a task.
 */
static void enqueue_boosted(struct task_struct *p, u64 slice, u64 enq_flags)
{
	s32 here = scx_bpf_task_cpu(p);
	struct cpu *cpu = cpu_of(here);
	struct enclave *e;

	if (enq_flags & SCX_ENQ_REENQ && cpu) {
		e = enclave_of(cpu->enclave);
		scx_bpf_dsq_insert(p, CPU_DSQ(here), slice, enq_flags | SCX_ENQ_HEAD);
		cpu->latched = 1;
		if (e)
			note_latches(e);
		return;
	}
	if (enq_flags & SCX_ENQ_WAKEUP)
		enq_flags |= SCX_ENQ_PREEMPT;
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice, enq_flags);
}

#endif

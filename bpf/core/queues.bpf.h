/* SPDX-License-Identifier: GPL-2.0-only */
/* Moving tasks that wait on the core's queues (DSQs) to other queues. */
#ifndef GHOSTBPF_QUEUES_BPF_H
#define GHOSTBPF_QUEUES_BPF_H

#include "abi.h"
#include "cpus.bpf.h"
#include "iterate.bpf.h"
#include "state.bpf.h"

/*
 * Move the tasks of a CPU that goes offline to its local queue. The kernel moves each task away, and widens the
 * affinity of those bound to the CPU, when it comes to run there; but it now runs only the CPU's local queue. Without
 * this, a bound task that waits on one of our queues would block itself and the CPU (seen on 6.16). With `bound`, move
 * only tasks that may use no other CPU.
 */
static void evacuate(u64 dsq, s32 cpu, bool bound)
{
	struct core *c = the_core();

	if (!c || !scx_bpf_dsq_nr_queued(dsq))
		return;
	for_each_waiting(waiting, p, dsq, 0) {
		if (scx_bpf_task_cpu(p) != cpu || (bound && is_any_online(c, untrusted(p)->cpus_ptr)))
			continue;
		if (scx_bpf_dsq_move(&waiting, p, SCX_DSQ_LOCAL_ON | cpu, 0))
			scx_bpf_kick_cpu(cpu, 0);
	}
}

/* In reverse, each to the head: the tasks keep their order. */
static void move_to_pending_head(u64 dsq, u32 enclave)
{
	for_each_waiting(waiting, p, dsq, SCX_DSQ_ITER_REV)
		scx_bpf_dsq_move(&waiting, p, PENDING_DSQ(enclave), SCX_ENQ_HEAD);
}

/* Move the tasks on a CPU's own queues to the head of the enclave's queue. */
static void requeue(s32 cpu, u32 enclave)
{
	move_to_pending_head(VTIME_DSQ(cpu), enclave);
	move_to_pending_head(CPU_DSQ(cpu), enclave);
}

/*
 * p has come to a queue that the CPUs of e serve, or all CPUs if e is NULL: kick an idle one that may run it, or that an
 * arbiter may give to e, p's own if possible. If there is none, p's CPU may be turning idle: then the kick makes it
 * dispatch again.
 */
static void kick_idle_for(struct task_struct *p, struct enclave *e, struct core *c)
{
	const struct cpumask *allowed = untrusted(p)->cpus_ptr, *idle = scx_bpf_get_idle_cpumask();
	s32 here = scx_bpf_task_cpu(p), cpu = -1;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 word = idle->bits[i] & (e ? reachable(e, c, allowed, i) : allowed->bits[i]);

		if (i == (u32)here / 64 && word >> (here & 63) & 1)
			cpu = here;
		else if (word && cpu < 0)
			cpu = i * 64 + lowest_bit(word);
	}
	scx_bpf_put_idle_cpumask(idle);
	scx_bpf_kick_cpu(cpu >= 0 && scx_bpf_test_and_clear_cpu_idle(cpu) ? cpu : here, SCX_KICK_IDLE);
}

/* Move tasks that may run on no CPU of e to the queue that all CPUs serve. */
static void move_to_fallback(u64 dsq, struct enclave *e, struct core *c)
{
	for_each_waiting(waiting, p, dsq, 0)
		if (!may_run_in(e, c, untrusted(p)->cpus_ptr) && scx_bpf_dsq_move(&waiting, p, FALLBACK_DSQ, 0))
			kick_idle_for(p, NULL, c);
}

#endif

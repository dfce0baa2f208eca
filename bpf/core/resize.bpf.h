/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Resizing: CPUs come to an enclave, or leave it, while its tasks run.
 *
 * call_resize() changes the sets of CPUs of one enclave, or of two, in one call: a loader that is killed leaves the old
 * sets or the new ones. Ops that run meanwhile may still act by the old sets. Such an op may queue a task for a CPU
 * that has left (cpu.stale_queues), or queue a task that can use none of the CPUs that stay (DRAINING_RESIZED). Until
 * user space has called call_drain(), when no such op runs any more, CPUs look for these tasks before they dispatch.
 */
#ifndef GHOSTBPF_RESIZE_BPF_H
#define GHOSTBPF_RESIZE_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "cpus.bpf.h"
#include "full_mode.bpf.h"
#include "hotplug.bpf.h"
#include "iterate.bpf.h"
#include "queues.bpf.h"
#include "state.bpf.h"

/*
 * Tasks on a CPU's own queues whose enclave has lost the CPU return to the enclave's queue. In reverse, each to the head:
 * the tasks keep their order.
 */
static void return_tasks_on(u64 dsq, u32 owner)
{
	struct enclave *e = NULL;
	struct core *c = the_core();

	for_each_waiting(waiting, p, dsq, SCX_DSQ_ITER_REV) {
		u32 id = membership(task_ctx_of(p), &e);
		bool is_pending;

		if (!c || is_percpu_kthread(p) || (id && id == owner))
			continue;
		is_pending = id && e && may_run_in(e, c, untrusted(p)->cpus_ptr);
		scx_bpf_dsq_move(&waiting, p, is_pending ? PENDING_DSQ(id) : FALLBACK_DSQ, SCX_ENQ_HEAD);
		kick_idle_for(p, is_pending ? e : NULL, c);
	}
}

static void return_tasks(s32 number, u32 owner)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 2; i++)
		return_tasks_on(i ? CPU_DSQ(number) : VTIME_DSQ(number), owner);
}

/* Change the owner of a CPU. What the former owner's agent was told of the CPU is unknown to the next one. */
static void set_owner(struct cpu *cpu, s32 number, u32 owner)
{
	struct enclave *former = cpu->enclave ? enclave_of(cpu->enclave) : NULL;

	if (former) {
		cpu->stale_queues = 1;
		if (spun_cpu(former) == number)
			cpu->agent_must_move = 1;
	}
	cpu->enclave = owner;
	cpu->told_idle = cpu->told_busy = cpu->rescue_in = 0;
	cpu->availability = 0; /* its new owner's tasks could not have used it */
}

/*
 * Change the sets: first no task is sent to the CPUs that leave, then they change their owner, then tasks are sent to
 * those that come.
 */
static void change_cpus(struct resize_args *args, struct enclave *e, struct enclave *loser)
{
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		e->cpus[i] &= args->cpus[i];
		if (loser)
			loser->cpus[i] &= ~args->cpus[i];
	}
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		struct cpu *cpu = cpu_of(number);
		bool wanted = has_bit(args->cpus, number);

		if (cpu && wanted != (cpu->enclave == args->enclave))
			set_owner(cpu, number, wanted ? args->enclave : 0);
	}
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		e->cpus[i] = args->cpus[i];
}

/* Move the tasks that cannot stay where they wait. A CPU has returned all of its tasks once no op queues others. */
static void return_all_tasks(u32 id, bool no_op_queues)
{
	for_each_number(number, 0, scx_bpf_nr_cpu_ids()) {
		struct cpu *cpu = cpu_of(number);

		if (!cpu || !cpu->stale_queues)
			continue;
		return_tasks(number, cpu->enclave);
		if (no_op_queues)
			cpu->stale_queues = 0;
		else
			scx_bpf_kick_cpu(number, SCX_KICK_PREEMPT);
	}
	evacuate_affinity_misses(id);
}

/* Give an enclave exactly the CPUs args->cpus; those that enclave args->from has, if it is not 0, are taken from it. */
int call_resize(struct resize_args *args)
{
	struct enclave *e = enclave_of(args->enclave), *loser = args->from ? enclave_of(args->from) : NULL;
	struct core *c = the_core();

	if (!c || !e || e->state != ENCLAVE_ACTIVE || (args->from && !loser))
		return -3; /* ESRCH */
	e->draining |= DRAINING_RESIZED;
	if (loser)
		loser->draining |= DRAINING_RESIZED;
	bpf_rcu_read_lock();
	change_cpus(args, e, loser);
	update_orphaned(args->enclave, e, c);
	return_all_tasks(args->enclave, false);
	if (loser) {
		update_orphaned(args->from, loser, c);
		evacuate_affinity_misses(args->from);
	}
	kick_online(c);
	bpf_rcu_read_unlock();
	return 0;
}

#endif

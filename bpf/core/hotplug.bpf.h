/* SPDX-License-Identifier: GPL-2.0-only */
/* The core's answer to CPUs that come and go; and the marks of queues that lost all CPUs of their own. */
#ifndef GHOSTBPF_HOTPLUG_BPF_H
#define GHOSTBPF_HOTPLUG_BPF_H

#include "sched.bpf.h"

/* Does enclave e have a CPU that runs its tasks? */
static bool has_cpu(struct enclave *e, struct core *c)
{
	u64 any = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		any |= serving(e, c, i);
	return any;
}

static void set_bit(u64 *word, u32 bit, bool on)
{
	if (on)
		__sync_fetch_and_or(word, 1ULL << bit);
	else
		__sync_fetch_and_and(word, ~(1ULL << bit));
}

/*
 * All tasks of a CPU that goes have to leave it. The kernel sees to that as they come to run there, and widens the
 * affinity of those that may run nowhere else; but it runs only what is on the CPU's own queue by now. Without this,
 * a task that is bound to the CPU and waits on a queue of ours would hold up both itself and the CPU (6.16).
 */
static void evacuate(u64 dsq, s32 cpu)
{
	for_each_waiting(waiting, p, dsq, 0)
		if (scx_bpf_task_cpu(p) == cpu)
			scx_bpf_dsq_move(&waiting, p, SCX_DSQ_LOCAL_ON | cpu, 0);
}

/* Who waits on a CPU's own queue, and cannot any longer, is the first on its enclave's; in the same order. */
static void return_waiting(u64 dsq, u32 enclave)
{
	for_each_waiting(waiting, p, dsq, SCX_DSQ_ITER_REV)
		scx_bpf_dsq_move(&waiting, p, PENDING_DSQ(enclave), SCX_ENQ_HEAD);
}

static void requeue(s32 cpu, u32 enclave)
{
	return_waiting(VTIME_DSQ(cpu), enclave);
	return_waiting(CPU_DSQ(cpu), enclave);
}

/*
 * From now on CPU id counts, or does not; and all CPUs look around, since what waits may have to run elsewhere. The
 * kernel calls this with hotplug locked, so nobody else writes core.online.
 */
static void set_online(s32 id, bool online)
{
	struct cpu *cpu = cpu_of(id);
	struct core *c = the_core();
	struct enclave *e;

	if (!cpu || !c)
		return;
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 bit = i == (u32)id / 64 ? 1ULL << (id & 63) : 0;

		c->online[i] = online ? c->online[i] | bit : c->online[i] & ~bit;
	}
	e = enclave_of(cpu->enclave);
	if (!cpu->enclave || !e)
		return;
	set_bit(&c->orphaned_queues, cpu->enclave & (MAX_ENCLAVES - 1), !has_cpu(e, c));
	for (u32 i = 0; i < NR_CPU_WORDS * 64; i++)
		if (c->online[i / 64 & (CPU_WORDS - 1)] >> (i & 63) & 1)
			scx_bpf_kick_cpu(i, 0);
}

static void push_all_out(s32 id)
{
	struct cpu *cpu = cpu_of(id), *other;

	evacuate(FALLBACK_DSQ, id);
	if (!cpu || !cpu->enclave)
		return;
	evacuate(PENDING_DSQ(cpu->enclave), id);
	for_each_cpu_of(cpu->enclave, other, number) {
		evacuate(CPU_DSQ(number), id);
		evacuate(VTIME_DSQ(number), id);
	}
	cpu->latched = 0;
	requeue(id, cpu->enclave);
}

/* A task that waits for an enclave of which it may use no CPU any more moves to the queue that every CPU serves. */
static void push_to_fallback(u64 dsq, struct enclave *e, struct core *c)
{
	for_each_waiting(waiting, p, dsq, 0)
		if (!is_any_usable(e, c, p->cpus_ptr))
			scx_bpf_dsq_move(&waiting, p, FALLBACK_DSQ, 0);
}

static void evacuate_affinity_misses(s32 id)
{
	struct cpu *cpu = cpu_of(id), *other;
	struct core *c = the_core();
	struct enclave *e = cpu ? enclave_of(cpu->enclave) : NULL;

	if (!cpu || !cpu->enclave || !c || !e)
		return;
	push_to_fallback(PENDING_DSQ(cpu->enclave), e, c);
	for_each_cpu_of(cpu->enclave, other, number) {
		push_to_fallback(CPU_DSQ(number), e, c);
		push_to_fallback(VTIME_DSQ(number), e, c);
	}
}

BPF_PROG(core_cpu_online, s32 cpu)
{
	set_online(cpu, true);
	return 0;
}

BPF_PROG(core_cpu_offline, s32 cpu)
{
	push_all_out(cpu);
	set_online(cpu, false);
	evacuate_affinity_misses(cpu);
	return 0;
}

/*
 * Long before it calls cpu_offline() the kernel moves a CPU's tasks away, lets that CPU fetch no others, and waits for
 * RCU: for a task, it may be, that was preempted while it read, and could never go on if it waited for that very CPU.
 */
BPF_PROG(tp_cpuhp_enter, u32 cpu, int target, int step, void *function)
{
	if (step == CPUHP_AP_ACTIVE && target < step)
		set_online(cpu, false);
	return 0;
}

/* And if after all the CPU may not go, there is no cpu_online(). */
BPF_PROG(tp_cpuhp_exit, u32 cpu, int state, int step, int error)
{
	if (step == CPUHP_AP_ACTIVE && error)
		set_online(cpu, true);
	return 0;
}

#endif
